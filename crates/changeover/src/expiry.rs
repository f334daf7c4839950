//! The end of an activation without a switch: given back by whoever performs it, by an operator, or by anyone past its
//! deadline.

use std::time::SystemTime;

use futures_util::future::join5;
use postgres_types::ToSql;
use tokio_postgres::Client;
use tracing::warn;

use crate::store::{Store, StoreError};
use crate::wake::Hint;

/// After which silence whoever prepares an activation counts as gone.
pub(crate) const SILENT_AFTER_SECS: f64 = 20.0;

/// Ends an activation, or all that are open, without a switch. Returns the ones that it ended.
///
/// One after the other, each in a transaction of its own: whoever held the record of one while it waits for another could wait for a
/// switch that waits for a mark that waits for the first.
pub(crate) async fn give_back(
    store: &Store,
    client: &Client,
    activation: Option<i64>,
    outcome: &str,
    reason: &str,
    only_expired: bool,
) -> Result<Vec<i64>, StoreError> {
    let open = if let Some(activation) = activation {
        vec![activation]
    } else {
        let open = store.query(client, &store.sql.open_activations, &[]).await?;
        open.iter().map(|row| row.get("id")).collect()
    };
    let mut ended = Vec::with_capacity(open.len());
    for activation in open {
        if give_back_one(store, client, activation, outcome, reason, only_expired).await? {
            ended.push(activation);
        }
    }
    if !ended.is_empty() {
        warn!(activations = ?ended, outcome, reason, "activation ended without a switch");
        store.hint(client, Hint::States).await;
    }
    Ok(ended)
}

async fn give_back_one(
    store: &Store,
    client: &Client,
    activation: i64,
    outcome: &str,
    reason: &str,
    only_expired: bool,
) -> Result<bool, StoreError> {
    let params: [&(dyn ToSql + Sync); 5] =
        [&activation, &outcome, &reason, &only_expired, &SILENT_AFTER_SECS];
    // Sent together: whatever becomes of us, the server takes them all.
    let begin = client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED");
    let given = store.query(client, &store.sql.give_back, &params);
    let released = store.query(client, &store.sql.release, &[]);
    let commit = client.batch_execute("COMMIT");
    let set = store.query_one(client, &store.sql.set_generation, &[]);
    let (begin, given, released, commit, set) = join5(begin, given, released, commit, set).await;
    begin?;
    let ended = !given?.is_empty();
    released?;
    commit?;
    set?;
    Ok(ended)
}

/// Gives back a pause whose deadline has passed, and ends an activation whose preparation nobody is at any more. Anyone may.
pub(crate) async fn expire(store: &Store, client: &Client) -> Result<bool, StoreError> {
    let row = store.query_one(client, &store.sql.overdue, &[&SILENT_AFTER_SECS]).await?;
    if !row.get::<_, bool>("overdue") {
        return Ok(false);
    }
    let reason = "its deadline passed";
    Ok(!give_back(store, client, None, "expired", reason, true).await?.is_empty())
}

/// Who performs the activation that is in its pause right now, if there is one.
pub(crate) async fn paused_by(store: &Store, client: &Client) -> Result<Option<String>, StoreError> {
    let open = store.query_opt(client, &store.sql.open_activation, &[&SILENT_AFTER_SECS]).await?;
    let paused = open.filter(|row| row.get::<_, Option<SystemTime>>("activating_at").is_some());
    Ok(paused.map(|row| {
        format!("activation {} by {}", row.get::<_, i64>("id"), row.get::<_, &str>("requested_by"))
    }))
}
