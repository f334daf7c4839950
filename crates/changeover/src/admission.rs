//! Admission of a batch: the proof, taken in the batch's own transaction, that this process may feed a projector.

use std::time::{Duration, Instant};

use postgres_types::ToSql;

use crate::projector::Registered;
use crate::store::{On, Store, StoreError};
use crate::words::position::{Generation, Position};

/// What a process decided upon before: the states of this generation let it feed a projector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permit {
    pub(crate) generation: Generation,
    /// When it ends: that of an activation in its pause does.
    pub(crate) until: Option<Instant>,
    /// Which attempt at a replay it is for: there is none for tables that were started over since.
    pub(crate) attempt: Option<i32>,
}

/// The tables as a whole. Shards of a parallel replay have numbers above it, until they have met.
pub(crate) const SHARD: i32 = 0;

/// How long a batch may sit in its transaction without a statement. Whoever stops there, frozen or cut off, holds up an
/// activation; past this the server ends the transaction.
const IDLE_LIMIT: Duration = Duration::from_mins(1);

impl Permit {
    /// What is left of it.
    fn left(self) -> Duration {
        let left = self.until.map_or(IDLE_LIMIT, |until| until.saturating_duration_since(Instant::now()));
        left.clamp(Duration::from_millis(1), IDLE_LIMIT)
    }
}

/// The proof. It borrows what the transaction runs on, so it cannot outlive it; while the transaction lives, an activation waits for it.
#[must_use]
pub(crate) struct Admission<'t> {
    pub(crate) on: On<'t>,
    /// Where the claimed checkpoint stands.
    pub(crate) position: Position,
}

/// The outcome of asking for admission.
pub(crate) enum Entered<'t> {
    Admitted(Admission<'t>),
    /// Somebody else is at this checkpoint, or begins it anew.
    Busy,
    /// Appends keep these rows current themselves.
    Inline,
    /// An error stalled it, until somebody retries or skips.
    Stalled(String),
    /// The states changed since the permit.
    Stale(Generation),
}

/// Asks for admission: presence, generation, claim of the checkpoint, in one statement. It is sent at the first poll if it was made
/// [`ready`](Store::ready) before.
pub(crate) async fn enter<'t>(
    store: &Store,
    on: On<'t>,
    permit: Permit,
    registered: &Registered,
) -> Result<Entered<'t>, StoreError> {
    let projector = registered.target.projector.as_str();
    let idle_limit = format!("{}ms", permit.left().as_millis());
    let statement_limit = permit.until.map(|_| idle_limit.as_str());
    let params: [&(dyn ToSql + Sync); 7] = [
        &permit.generation,
        &projector,
        &registered.major(),
        &SHARD,
        &idle_limit,
        &statement_limit,
        &permit.attempt,
    ];
    let row = store.query_one(on, &store.sql.enter, &params).await?;
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
    Ok(Entered::Admitted(Admission { on, position }))
}
