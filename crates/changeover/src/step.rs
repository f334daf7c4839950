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

    fn in_hand(&self) -> Option<&Transaction<'c>> {
        match self {
            Self::Open(_) => None,
            Self::InHand(tx) => Some(tx),
        }
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
        client.give_back();
    } else {
        client.give_back_untouched();
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
    let admission = match admitted(entered, horizon) {
        Ok(admission) => admission,
        Err(stepped) => return Ok(stepped),
    };
    let projected = project(store, begun.in_hand(), admission, registered, horizon, limits).await?;
    let stepped = projected.stepped(horizon);
    let write = projected.made_ready(store, begun.statements()).await?;
    match begun {
        Begun::Open(open) => {
            let on = open.statements();
            open.commit(checkpoint(on, registered, &projected, &write)).await?;
        }
        Begun::InHand(tx) => {
            checkpoint(On::from(&tx), registered, &projected, &write).await?;
            tx.commit().await.map_err(StoreError::from)?;
        }
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
    let on = On::from(tx);
    let entered = admission::enter(store, on, permit, registered).await?;
    let horizon = look(store, on, up_to).await?;
    let admission = match admitted(entered, horizon) {
        Ok(admission) => admission,
        Err(stepped) => return Ok(stepped),
    };
    let projected = project(store, Some(tx), admission, registered, horizon, limits).await?;
    let write = projected.made_ready(store, on).await?;
    checkpoint(on, registered, &projected, &write).await?;
    Ok(projected.stepped(horizon))
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
    let entering = join(admission::enter(store, on, permit, registered), look(store, on, up_to));
    let (entered, horizon) = match begun {
        Begun::Open(open) => open.begin(entering).await?,
        Begun::InHand(_) => entering.await,
    };
    Ok((entered?, horizon?))
}

async fn look(store: &Store, on: On<'_>, up_to: UpTo) -> Result<Position, StoreError> {
    match up_to {
        UpTo::Exactly(position) => Ok(position),
        UpTo::Horizon => Ok(horizon::look(store, on).await?.horizon),
    }
}

/// The admission, where there is something to do with it; else what the step comes to.
fn admitted(entered: Entered<'_>, horizon: Position) -> Result<Admission<'_>, Stepped> {
    match entered {
        Entered::Admitted(admission) if admission.position >= horizon => Err(Stepped::Nothing { horizon }),
        Entered::Admitted(admission) => Ok(admission),
        Entered::Busy => Err(Stepped::Busy),
        Entered::Inline => Err(Stepped::Inline),
        Entered::Stalled(error) => Err(Stepped::Stalled(error)),
        Entered::Stale(seen) => Err(Stepped::Stale(seen)),
    }
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

/// The statements that write rows and checkpoint, ready to be sent together.
struct Write<'w> {
    rows: Vec<Load<'w>>,
    ready: Vec<Ready<'w>>,
    advance: Ready<'w>,
}

impl Projected<'_> {
    fn stepped(&self, horizon: Position) -> Stepped {
        Stepped::Moved { events: self.events, to: self.to, horizon }
    }

    async fn made_ready<'w>(&'w self, store: &'w Store, on: On<'_>) -> Result<Write<'w>, StoreError> {
        let rows = self.folded.as_ref().map(|folded| folded.decoded.writes()).unwrap_or_default();
        let ready = ready(store, on, &rows).await?;
        Ok(Write { rows, ready, advance: store.ready(on, &store.sql.advance_checkpoint).await? })
    }
}

/// Reads the next events and makes rows of them. A projector with SQL of its own writes them itself, in the transaction that it is given.
async fn project<'p>(
    store: &Store,
    in_hand: Option<&Transaction<'_>>,
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
    let projecting = async {
        let decoded = fold(store, on, registered, &events).await?;
        if let Some(tx) = in_hand {
            decoded.run(tx, store.path).await?;
        }
        Ok(decoded)
    };
    match projecting.await {
        Ok(decoded) => {
            Ok(Projected { from, to, events: events.len(), folded: Some(Folded { decoded, first }) })
        }
        Err(source) => Err(StepError::Project { after: from, first, events: events.len(), source }),
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

/// Writes the rows and moves the checkpoint. All of it is sent at the first poll, so a commit may follow at once: where the rows are
/// refused, or the checkpoint is elsewhere, it commits nothing.
async fn checkpoint(
    on: On<'_>,
    registered: &Registered,
    projected: &Projected<'_>,
    write: &Write<'_>,
) -> Result<(), StepError> {
    let Projected { from, to, events, folded } = projected;
    let (projector, major) = (registered.target.projector.as_str(), registered.major());
    let params: [&(dyn ToSql + Sync); 5] = [&projector, &major, &SHARD, from, to];
    let (rows, moved) = join(together(on, &write.ready, &write.rows), write.advance.query(on, &params)).await;
    match (rows, folded) {
        (Err(source), Some(Folded { first, .. })) if !source.is_disconnect() => {
            let (first, source) = (first.clone(), source.into());
            Err(StepError::Project { after: *from, first, events: *events, source })
        }
        (Err(error), _) => Err(error.into()),
        (Ok(_), _) => Ok(moved.map(drop)?),
    }
}
