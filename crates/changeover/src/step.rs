//! One batch: admit, project, checkpoint. The publisher, the replayer and an activation all take this step.

use deadpool_postgres::Transaction;
use futures_util::future::join_all;
use tokio_postgres::Row;

use crate::admission::{self, Admission, Entered, Permit, SHARD};
use crate::horizon;
use crate::log::read::{self, Batch, Limits};
use crate::projector::{Load, ProjectError, Registered};
use crate::store::{On, Store, StoreError};
use crate::words::event::RawEvent;
use crate::words::position::{Generation, Position};

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stepped {
    /// The checkpoint moved, with this many events.
    Moved { events: usize, to: Position, horizon: Position },
    /// The checkpoint is at the horizon.
    Nothing { horizon: Position },
    /// Somebody else is at this checkpoint.
    Busy,
    /// Appends keep these rows current themselves.
    Inline,
    /// An error stalled it before.
    Stalled(String),
    /// The states changed: decide anew.
    Stale(Generation),
}

/// Why a step failed. Its transaction is rolled back: nothing of the batch is there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error("the batch after position {after} could not be projected")]
    Project {
        after: Position,
        /// The first event of the batch: the culprit, if the batch held no other.
        first: (Position, String),
        /// How many events the batch held.
        events: usize,
        #[source]
        source: ProjectError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far a step may go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum UpTo {
    /// To the horizon, looked at on the step's own connection. One that is remembered may lie above the log of a server
    /// that crashed since: positions that never reached its disk are drawn again.
    Horizon,
    /// To a position that is known to be exact, since nobody may append.
    Exactly(Position),
}

/// Takes a step and commits it. `limits` bounds the batch.
pub(crate) async fn step(
    store: &Store,
    tx: Transaction<'_>,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
    limits: Limits,
) -> Result<Stepped, StepError> {
    let stepped = take(store, &tx, permit, registered, up_to, limits).await?;
    if matches!(stepped, Stepped::Moved { .. }) {
        tx.commit().await.map_err(StoreError::from)?;
    }
    Ok(stepped)
}

/// Takes a step in a transaction that its caller commits, perhaps with something else in it.
pub(crate) async fn take(
    store: &Store,
    tx: &Transaction<'_>,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
    limits: Limits,
) -> Result<Stepped, StepError> {
    let admission = match admission::enter(store, tx, permit, registered).await? {
        Entered::Admitted(admission) => admission,
        Entered::Busy => return Ok(Stepped::Busy),
        Entered::Inline => return Ok(Stepped::Inline),
        Entered::Stalled(error) => return Ok(Stepped::Stalled(error)),
        Entered::Stale(seen) => return Ok(Stepped::Stale(seen)),
    };
    let horizon = match up_to {
        UpTo::Exactly(position) => position,
        UpTo::Horizon => horizon::look(store, tx).await?.horizon,
    };
    if admission.position >= horizon {
        return Ok(Stepped::Nothing { horizon });
    }
    let projected = project(store, admission, registered, horizon, limits).await?;
    let stepped = Stepped::Moved { events: projected.events, to: projected.to, horizon };
    checkpoint(store, registered, projected).await?;
    Ok(stepped)
}

/// A batch whose rows are written: the checkpoint must follow.
#[must_use]
struct Projected<'t> {
    admission: Admission<'t>,
    events: usize,
    to: Position,
}

async fn project<'t>(
    store: &Store,
    admission: Admission<'t>,
    registered: &Registered,
    horizon: Position,
    limits: Limits,
) -> Result<Projected<'t>, StepError> {
    let Admission { tx, position: after } = admission;
    let Batch { events, reached } =
        read::next(store, tx, after, horizon, Some(&registered.event_types), limits).await?;
    if let Some(first) = events.first() {
        let first = (first.recorded.position, first.event_type.clone());
        let failed = |source| StepError::Project { after, first, events: events.len(), source };
        feed(store, tx, registered, &events).await.map_err(failed)?;
    }
    Ok(Projected { admission, events: events.len(), to: reached })
}

/// Folds events into the rows of a projector, inside a transaction.
pub(crate) async fn feed(
    store: &Store,
    tx: &Transaction<'_>,
    registered: &Registered,
    events: &[RawEvent],
) -> Result<(), ProjectError> {
    let mut decoded = registered.projector.decode(events)?;
    let loaded = together(store, tx, &decoded.loads()).await?;
    decoded.fold(&loaded)?;
    together(store, tx, &decoded.writes()).await?;
    decoded.run(tx, store.path).await
}

/// Runs statements that do not depend on each other in one round trip.
async fn together(
    store: &Store,
    tx: &Transaction<'_>,
    statements: &[Load<'_>],
) -> Result<Vec<Vec<Row>>, StoreError> {
    let mut ready = Vec::with_capacity(statements.len());
    for statement in statements {
        ready.push(store.ready(tx, statement.sql).await?);
    }
    let sent = ready.iter().zip(statements);
    let sent =
        sent.map(|(ready, statement)| async move { ready.query(On::from(tx), &statement.params()).await });
    join_all(sent).await.into_iter().collect()
}

async fn checkpoint(
    store: &Store,
    registered: &Registered,
    projected: Projected<'_>,
) -> Result<(), StoreError> {
    let Projected { admission: Admission { tx, position }, to, .. } = projected;
    let projector = registered.target.projector.as_str();
    // The last statement before the commit must give its row: a commit of an aborted transaction reports no error.
    store
        .query_one(
            tx,
            &store.sql.advance_checkpoint,
            &[&projector, &registered.major(), &SHARD, &position, &to],
        )
        .await
        .map(drop)
}
