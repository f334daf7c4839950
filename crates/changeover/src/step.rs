//! One batch: admit, project, checkpoint. The publisher, the replayer and an activation all take this step.

use deadpool_postgres::{Client, Transaction};
use futures_util::future::{join, join_all};
use postgres_types::ToSql;
use tokio_postgres::Row;

use crate::admission::{self, Admission, Entered, Permit, SHARD};
use crate::horizon;
use crate::log::read::{self, Batch, Limits};
use crate::projector::{Decoded, Load, ProjectError, Registered};
use crate::store::open::Open;
use crate::store::{Lent, On, Ready, Store, StoreError, read_committed};
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

/// The transaction of a step.
enum Begun<'c> {
    /// BEGIN travels with the first statements, COMMIT with the last ones.
    Open(Open<'c>),
    /// A projector wants it in hand.
    InHand(Transaction<'c>),
}

impl<'c> Begun<'c> {
    async fn on(client: &'c mut Client, registered: &Registered) -> Result<Self, StoreError> {
        Ok(if registered.projector.needs_transaction() {
            Self::InHand(read_committed(client).await?)
        } else {
            Self::Open(Open::on_its_way(client))
        })
    }

    fn statements(&self) -> On<'_> {
        match self {
            Self::Open(open) => open.statements(),
            Self::InHand(tx) => On::from(tx),
        }
    }
}

/// Takes a step on a connection, commits it, and gives the connection back. `limits` bounds the batch. Folds take four round trips,
/// one where there is nothing to do.
pub(crate) async fn step(
    store: &Store,
    mut client: Lent,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
    limits: Limits,
) -> Result<Stepped, StepError> {
    let stepped = step_on(store, &mut client, permit, registered, up_to, limits).await?;
    // Who knows what statements of the projector's own have set.
    if registered.projector.needs_transaction() {
        client.give_back()
    } else {
        client.give_back_untouched()
    }
    Ok(stepped)
}

/// The step itself: admit, project, checkpoint.
async fn step_on(
    store: &Store,
    client: &mut Client,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
    limits: Limits,
) -> Result<Stepped, StepError> {
    let begun = Begun::on(client, registered).await?;
    let (entered, horizon) = enter(store, &begun, permit, registered, up_to).await?;
    let admission = match entered {
        Entered::Admitted(admission) => admission,
        Entered::Busy => return Ok(Stepped::Busy),
        Entered::Inline => return Ok(Stepped::Inline),
        Entered::Stalled(error) => return Ok(Stepped::Stalled(error)),
        Entered::Stale(seen) => return Ok(Stepped::Stale(seen)),
    };
    if admission.position >= horizon {
        return Ok(Stepped::Nothing { horizon });
    }
    let projected = project(store, &begun, admission, registered, horizon, limits).await?;
    let stepped = Stepped::Moved { events: projected.events, to: projected.to, horizon };
    checkpoint(store, begun, registered, projected).await?;
    Ok(stepped)
}

/// Asks for admission, and looks right behind it how far the log goes.
async fn enter<'b>(
    store: &Store,
    begun: &'b Begun<'_>,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
) -> Result<(Entered<'b>, Position), StoreError> {
    let on = begun.statements();
    // Before anything is sent: what is sent together must not wait for that.
    store.ready(on, &store.sql.enter).await?;
    store.ready(on, &store.sql.horizon).await?;
    let horizon = async {
        match up_to {
            UpTo::Exactly(position) => Ok(position),
            UpTo::Horizon => horizon::look(store, on).await.map(|look| look.horizon),
        }
    };
    let entering = join(admission::enter(store, on, permit, registered), horizon);
    let (entered, horizon) = match begun {
        Begun::Open(open) => open.begin(entering).await?,
        Begun::InHand(_) => entering.await,
    };
    Ok((entered?, horizon?))
}

/// A batch whose rows are known: they must be written, and the checkpoint with them.
#[must_use]
struct Projected<'p> {
    /// Where the claimed checkpoint stands.
    from: Position,
    to: Position,
    events: usize,
    folded: Option<Folded<'p>>,
}

/// What a batch makes of the rows.
struct Folded<'p> {
    decoded: Box<dyn Decoded + 'p>,
    /// The position and the type of the batch's first event.
    first: (Position, String),
}

async fn project<'p>(
    store: &Store,
    begun: &Begun<'_>,
    admission: Admission<'_>,
    registered: &'p Registered,
    horizon: Position,
    limits: Limits,
) -> Result<Projected<'p>, StepError> {
    let Admission { on, position: from } = admission;
    let Batch { events, reached: to } =
        read::next(store, on, from, horizon, Some(&registered.event_types), limits).await?;
    let Some(first) = events.first() else { return Ok(Projected { from, to, events: 0, folded: None }) };
    let first = (first.recorded.position, first.event_type.clone());
    let failed = |first, source| StepError::Project { after: from, first, events: events.len(), source };
    let projecting = async {
        let decoded = fold(store, on, registered, &events).await?;
        if let Begun::InHand(tx) = begun {
            decoded.run(tx, store.path).await?;
        }
        Ok(decoded)
    };
    match projecting.await {
        Ok(decoded) => {
            Ok(Projected { from, to, events: events.len(), folded: Some(Folded { decoded, first }) })
        }
        Err(source) => Err(failed(first, source)),
    }
}

/// Folds events into the rows of a projector, inside a transaction, and writes them.
pub(crate) async fn feed(
    store: &Store,
    tx: &Transaction<'_>,
    registered: &Registered,
    events: &[RawEvent],
) -> Result<(), ProjectError> {
    let on = On::from(tx);
    let decoded = fold(store, on, registered, events).await?;
    let writes = decoded.writes();
    let ready = ready(store, on, &writes).await?;
    together(on, &ready, &writes).await?;
    drop(writes);
    decoded.run(tx, store.path).await
}

/// Folds events into the rows of a projector as they are. Writes nothing.
async fn fold<'p>(
    store: &Store,
    on: On<'_>,
    registered: &'p Registered,
    events: &[RawEvent],
) -> Result<Box<dyn Decoded + 'p>, ProjectError> {
    let mut decoded = registered.projector.decode(events)?;
    let loads = decoded.loads();
    let ready = ready(store, on, &loads).await?;
    let loaded = together(on, &ready, &loads).await?;
    drop(loads);
    decoded.fold(&loaded)?;
    Ok(decoded)
}

async fn ready<'d>(store: &Store, on: On<'_>, statements: &[Load<'d>]) -> Result<Vec<Ready<'d>>, StoreError> {
    let mut ready = Vec::with_capacity(statements.len());
    for statement in statements {
        ready.push(store.ready(on, statement.sql).await?);
    }
    Ok(ready)
}

/// Runs statements that do not depend on each other in one round trip; all of them are sent at the first poll.
async fn together(
    on: On<'_>,
    ready: &[Ready<'_>],
    statements: &[Load<'_>],
) -> Result<Vec<Vec<Row>>, StoreError> {
    let sent = ready.iter().zip(statements);
    let sent = sent.map(|(ready, statement)| async move { ready.query(on, &statement.params()).await });
    join_all(sent).await.into_iter().collect()
}

/// Writes the rows, moves the checkpoint and commits.
async fn checkpoint(
    store: &Store,
    begun: Begun<'_>,
    registered: &Registered,
    projected: Projected<'_>,
) -> Result<(), StepError> {
    let Projected { from, to, events, folded } = &projected;
    let on = begun.statements();
    let writes = folded.as_ref().map(|folded| folded.decoded.writes()).unwrap_or_default();
    let ready_writes = ready(store, on, &writes).await?;
    let advance = store.ready(on, &store.sql.advance_checkpoint).await?;
    let (projector, major) = (registered.target.projector.as_str(), registered.major());
    let params: [&(dyn ToSql + Sync); 5] = [&projector, &major, &SHARD, from, to];
    let written = |written: Result<Vec<Vec<Row>>, StoreError>| match (written, folded) {
        (Err(source), Some(Folded { first, .. })) if !source.is_disconnect() => Err(StepError::Project {
            after: *from,
            first: first.clone(),
            events: *events,
            source: source.into(),
        }),
        (Err(error), _) => Err(error.into()),
        (Ok(_), _) => Ok(()),
    };
    match begun {
        Begun::Open(open) => {
            let on = open.statements();
            open.commit(async {
                let (rows, moved) =
                    join(together(on, &ready_writes, &writes), advance.query(on, &params)).await;
                written(rows)?;
                Ok(moved.map(drop)?)
            })
            .await
        }
        Begun::InHand(tx) => {
            // The last statement before the commit must succeed: a commit of an aborted transaction reports no error.
            advance.query(On::from(&tx), &params).await?;
            Ok(tx.commit().await.map_err(StoreError::from)?)
        }
    }
}
