//! How activations end otherwise: given back by whoever performs them, by an operator, or by anyone past the deadline.

use std::time::{Duration, Instant};

use postgres_types::Json;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::{info, warn};

use super::{ActivateError, Pause, Started};
use crate::core::Core;
use crate::expiry::{expire, give_back};
use crate::projector::chain;
use crate::store::StoreError;
use crate::words::decision::Versions;

/// Why a condition in one of our statements did not hold.
pub(super) async fn overtaken(
    core: &Core,
    client: &Client,
    activation: Started,
) -> Result<ActivateError, StoreError> {
    // If that is why, nobody may have written it down yet.
    expire(&core.store, client).await?;
    let rows = core.store.query(client, &core.store.sql.activations, &[&50_i64]).await?;
    if let Some(own) = rows.iter().find(|row| row.get::<_, i64>("id") == activation.id)
        && let Some(outcome) = own.get::<_, Option<String>>("outcome")
    {
        let error: Option<String> = own.get("error");
        let outcome = error.map_or(outcome.clone(), |error| format!("{outcome}: {error}"));
        let configuration = own.get::<_, Json<Versions>>("to_configuration").0;
        return Ok(ActivateError::Ended { activation: activation.id, configuration, outcome });
    }
    let other = rows.iter().find(|row| row.get::<_, i64>("id") != activation.id);
    let by = other.map_or_else(
        || "the states changed".to_owned(),
        |row| format!("activation {} by {}", row.get::<_, i64>("id"), row.get::<_, String>("requested_by")),
    );
    Ok(ActivateError::Overtaken { by })
}

/// How often a lost connection is made anew to ask for an outcome.
const RECONNECT: Duration = Duration::from_millis(100);

/// Ends an activation that failed on our side. Where the connection was lost the switch may have happened all the same:
/// then it did.
pub(super) async fn conclude(
    core: &Core,
    client: Client,
    activation: Started,
    limit: Duration,
    error: ActivateError,
) -> Result<Pause, ActivateError> {
    let source = match error {
        ActivateError::Store(source) if source.is_disconnect() => source,
        error => {
            let reason = chain(&error);
            if let Err(error) =
                give_back(&core.store, &client, Some(activation.id), "failed", &reason, false).await
            {
                warn!(error = %chain(&error), "the pause could not be given back: its deadline will");
            }
            return Err(error);
        }
    };
    let lost = Instant::now();
    let reason = chain(&source);
    loop {
        match outcome(core, activation, &reason).await {
            Ok(Some(pause)) => {
                info!(activation = activation.id, "the connection was lost, the switch was not");
                return Ok(pause);
            }
            Ok(None) => return Err(source.into()),
            Err(error) if lost.elapsed() < limit => {
                info!(error = %chain(&error), "asking for the outcome again");
                sleep(RECONNECT).await;
            }
            Err(_) => return Err(ActivateError::Unknown { activation: activation.id, source }),
        }
    }
}

/// What became of an activation; if nothing did yet, it is given back.
async fn outcome(core: &Core, activation: Started, reason: &str) -> Result<Option<Pause>, StoreError> {
    let client = core.store.single().await?;
    give_back(&core.store, &client, Some(activation.id), "failed", reason, false).await?;
    let rows = core.store.query(&client, &core.store.sql.activations, &[&50_i64]).await?;
    let own = rows.iter().find(|row| row.get::<_, i64>("id") == activation.id);
    Ok(own.filter(|row| row.get::<_, Option<&str>>("outcome") == Some("activated")).map(|row| Pause {
        horizon: row.get("horizon"),
        whole: Duration::from_secs_f64(
            row.get::<_, Option<f64>>("pause_ms").unwrap_or(0.0).max(0.0) / 1_000.0,
        ),
        ..Pause::default()
    }))
}
