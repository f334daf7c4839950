//! Admission of a batch: the proof, taken in the batch's own transaction, that this process may feed a projector.

use std::time::Instant;

use deadpool_postgres::Transaction;

use crate::projector::Registered;
use crate::store::{Store, StoreError};
use crate::words::position::{Generation, Position};

/// What a process decided upon before: the states of this generation let it feed a projector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permit {
    pub(crate) generation: Generation,
    /// When it ends: that of an activation in its pause does.
    pub(crate) until: Option<Instant>,
}

impl Permit {
    /// Bounds a transaction by the permit: past the deadline the server itself ends it, whatever became of us.
    pub(crate) async fn bound(self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        if let Some(until) = self.until {
            let ms = until.saturating_duration_since(Instant::now()).as_millis().max(1);
            let limits = format!(
                "SET LOCAL idle_in_transaction_session_timeout = {ms}; SET LOCAL statement_timeout = {ms}"
            );
            tx.batch_execute(&limits).await?;
        }
        Ok(())
    }
}

/// The proof. It borrows the transaction, so it cannot outlive it; while the transaction lives, an activation waits for it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Admission<'t> {
    pub(crate) tx: &'t Transaction<'t>,
    /// Where the claimed checkpoint stands.
    pub(crate) position: Position,
}

/// The outcome of asking for admission.
#[derive(Debug)]
pub(crate) enum Entered<'t> {
    Admitted(Admission<'t>),
    /// Somebody else is at this checkpoint.
    Busy,
    /// Appends keep these rows current themselves.
    Inline,
    /// An error stalled it, until somebody retries or skips.
    Stalled(String),
    /// The states changed since the permit.
    Stale(Generation),
}

/// Asks for admission: presence, generation, claim of the checkpoint, in one statement.
pub(crate) async fn enter<'t>(
    store: &Store,
    tx: &'t Transaction<'t>,
    permit: Permit,
    registered: &Registered,
) -> Result<Entered<'t>, StoreError> {
    const SHARD: i32 = 0;
    let projector = registered.target.projector.as_str();
    let row = store
        .query_one(tx, &store.sql.enter, &[&permit.generation, &projector, &registered.major(), &SHARD])
        .await?;
    let seen: Generation = row.get("generation");
    if seen != permit.generation {
        return Ok(Entered::Stale(seen));
    }
    let Some(position) = row.get::<_, Option<Position>>("position") else { return Ok(Entered::Busy) };
    if let Some(error) = row.get::<_, Option<String>>("error") {
        return Ok(Entered::Stalled(error));
    }
    if row.get("inline") {
        return Ok(Entered::Inline);
    }
    Ok(Entered::Admitted(Admission { tx, position }))
}
