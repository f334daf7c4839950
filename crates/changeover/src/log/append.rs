//! Append: lease, admission, positions, in one statement; and inline projectors around it, in two round trips and the commit.
//!
//! What is sent together is run one after the other by the server: locks on the keys of inline rows, then the append (whose
//! positions are drawn once the keys are ours), then the rows as the writer before us left them. They are folded here, and
//! the second round trip writes them.

use std::time::{Duration, SystemTime};

use deadpool_postgres::{Client, Transaction};
use futures_util::future::{FutureExt, join, join_all, join3};
use postgres_types::{Json, ToSql};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_postgres::Row;

use crate::codec::{self, EncodeError};
use crate::decider::{DecideError, Decided, Decider};
use crate::projector::{Decoded, Load, ProjectError, Registered};
use crate::store::{self, On, Ready, Store, StoreError};
use crate::words::decision::Refused;
use crate::words::event::{Expected, RawEvent, Recorded};
use crate::words::names::{ProjectorName, StreamName};
use crate::words::position::{Generation, Position, Revision};

/// What an append wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The positions of the events, in order. They need not follow one another directly.
    pub positions: Vec<Position>,
    /// The stream's newest revision afterwards.
    pub revision: Revision,
}

impl Appended {
    /// The position of the last event: what to wait for in order to read one's own writes. None if nothing was appended.
    pub fn last(&self) -> Option<Position> {
        self.positions.last().copied()
    }
}

/// Why nothing was appended.
///
/// After a refusal, a conflict, and events that cannot be encoded or are too large, the caller's transaction has written
/// nothing and may go on, soon: it may hold a lease. After anything else it is to be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The instance's configuration is not the active one.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The stream is not where the writer believed it to be.
    #[error(
        "stream {:?}: expected {expected}, found revision {found} or newer; read it again and decide anew",
        .stream.as_str()
    )]
    Conflict {
        /// The stream.
        stream: StreamName,
        /// What was expected.
        expected: Expected,
        /// The newest revision that was seen; 0 where there is no stream.
        found: Revision,
    },
    /// An event cannot be written down.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The events are too large to be appended at once.
    #[error("{bytes} bytes of events in one append are more than the limit of {limit}: split them")]
    TooLarge {
        /// What was to be appended.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// An inline projector could not project the events. The transaction is to be rolled back.
    #[error("inline projector {projector} could not project the events; roll the transaction back")]
    Projector {
        /// The projector.
        projector: ProjectorName,
        /// Why.
        #[source]
        source: ProjectError,
    },
    /// Another writer of the stream kept winning. The transaction is to be rolled back, and may be run again.
    #[error(
        "stream {:?}: another writer appended at the same moment; roll the transaction back and run it again",
        .stream.as_str()
    )]
    Contended {
        /// The stream.
        stream: StreamName,
    },
    /// Somebody changed a row of an inline projector after this transaction took its snapshot. The transaction is to be
    /// rolled back, and may be run again; in READ COMMITTED this does not happen.
    #[error(
        "this transaction's snapshot is older than a row that inline projector {projector} has to change; roll it back and run it again"
    )]
    StaleSnapshot {
        /// The projector.
        projector: ProjectorName,
    },
    /// The connection was lost before the outcome was known: the events are in the log, or none of them is.
    #[error(
        "the connection was lost while events were appended to stream {:?}: read the stream to know whether they are there",
        .stream.as_str()
    )]
    Unknown {
        /// The stream.
        stream: StreamName,
        /// How the connection was lost.
        #[source]
        source: StoreError,
    },
    /// The database did not do as asked. The transaction is to be rolled back.
    #[error("the database refused the append")]
    Store(#[from] StoreError),
}

impl AppendError {
    /// Whether the same transaction, rolled back and run again, may well succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refused) => refused.is_retryable(),
            Self::Contended { .. } | Self::StaleSnapshot { .. } => true,
            Self::Store(error) => error.is_retryable(),
            Self::Projector { source, .. } => source.is_retryable(),
            Self::Conflict { .. } | Self::Encode(_) | Self::TooLarge { .. } | Self::Unknown { .. } => false,
        }
    }
}

impl From<DecideError> for AppendError {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::Refused(refused) => Self::Refused(refused),
            DecideError::Store(error) => Self::Store(error),
        }
    }
}

/// Of one append. PostgreSQL's own limit for a message is one gigabyte.
const MAX_BYTES: usize = 256 << 20;

/// Row keys are locked by bucket, so that an append of any size holds a bounded number of locks.
const KEY_BUCKETS: u64 = 256;

/// Whatever the session's default is: the rows are loaded by a later statement than the one that locks their keys, and must
/// be seen as the writer before us left them. And whoever is frozen between two of our statements must not hold up an
/// activation for ever.
const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// Events ready to be sent.
#[derive(Debug)]
pub(crate) struct NewEvents {
    types: Vec<String>,
    data: Vec<Box<RawValue>>,
    metadata: Option<Box<RawValue>>,
}

impl NewEvents {
    pub(crate) fn encode<E: Serialize>(
        events: &[E],
        metadata: Option<Box<RawValue>>,
    ) -> Result<Self, AppendError> {
        let mut types = Vec::with_capacity(events.len());
        let mut data = Vec::with_capacity(events.len());
        let mut bytes = 0;
        for event in events {
            let encoded = codec::encode(event)?;
            bytes += encoded.event_type.len() + encoded.data.get().len();
            bytes += metadata.as_ref().map_or(0, |metadata| metadata.get().len());
            types.push(encoded.event_type);
            data.push(encoded.data);
        }
        if bytes > MAX_BYTES {
            return Err(AppendError::TooLarge { bytes, limit: MAX_BYTES });
        }
        Ok(Self { types, data, metadata })
    }

    /// The events as projectors read them, before the log has given them their places.
    fn unplaced(&self, stream: &StreamName) -> Result<Vec<RawEvent>, AppendError> {
        let metadata: Option<serde_json::Value> = match &self.metadata {
            Some(metadata) => Some(
                serde_json::from_str(metadata.get())
                    .map_err(|source| EncodeError::Json { event_type: "metadata".to_owned(), source })?,
            ),
            None => None,
        };
        let events = self.types.iter().zip(&self.data);
        Ok(events
            .map(|(event_type, data)| RawEvent {
                event_type: event_type.clone(),
                recorded: Recorded {
                    position: Position::START,
                    stream: stream.clone(),
                    revision: Revision::default(),
                    recorded_at: SystemTime::UNIX_EPOCH,
                    metadata: metadata.clone(),
                    data: data.clone(),
                },
            })
            .collect())
    }
}

/// What one append is about, and with what it is done.
pub(crate) struct Appending<'a> {
    pub(crate) store: &'a Store,
    pub(crate) decider: &'a Decider,
    pub(crate) activation_wait: Duration,
    pub(crate) stream: &'a StreamName,
    pub(crate) expected: Expected,
    pub(crate) new: &'a NewEvents,
}

/// What the server said to one try.
enum Tried {
    Appended(Appended),
    /// The generation is not the one decided upon; whether a lease was taken all the same.
    Stale {
        seen: Generation,
        leased: bool,
    },
}

/// A transaction that was begun by hand. Dropped halfway, it is rolled back at once: the connection may lie in the pool for
/// long, and what the transaction locked would hold up the horizon and every activation.
struct Open<'c>(&'c Client);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // The first poll sends it, behind all that was sent before.
        let _ = self.0.batch_execute("ROLLBACK").now_or_never();
    }
}

impl Appending<'_> {
    /// Inside the caller's transaction.
    pub(crate) async fn within(&self, tx: &Transaction<'_>) -> Result<Appended, AppendError> {
        // An activation waits for this transaction's lease, if it has appended before; so it must not wait in turn.
        let mut decided = match self.decider.admit(Duration::ZERO).await {
            Err(DecideError::Refused(refused)) if refused.is_retryable() && !self.holds_lease(tx).await? => {
                self.decider.admit(self.activation_wait).await?
            }
            decided => decided?,
        };
        loop {
            match self.attempt(On::from(tx), &decided).await? {
                Tried::Appended(appended) => return Ok(appended),
                Tried::Stale { seen, leased } => {
                    decided = self.decider.after(seen).await?;
                    // An activation waits for this transaction's lease, so the transaction must not wait for the
                    // activation.
                    let holds_lease = leased || self.holds_lease(tx).await?;
                    let wait = if holds_lease { Duration::ZERO } else { self.activation_wait };
                    decided = match &decided.verdict {
                        crate::words::decision::Verdict::Admitted { .. } => decided,
                        _ => self.decider.admit(wait).await?,
                    };
                }
            }
        }
    }

    async fn holds_lease(&self, tx: &Transaction<'_>) -> Result<bool, StoreError> {
        Ok(self.store.query_one(tx, &self.store.sql.holds_lease, &[]).await?.get("held"))
    }

    /// In a transaction of its own. Whether it was committed is not known where the connection is lost.
    pub(crate) async fn alone(&self, client: &mut Client) -> Result<Appended, AppendError> {
        self.alone_or_lost(client).await.map_err(|error| match error {
            AppendError::Store(source) if source.is_disconnect() => {
                AppendError::Unknown { stream: self.stream.clone(), source }
            }
            error => error,
        })
    }

    /// One round trip, two where any revision will do, three with inline folds.
    async fn alone_or_lost(&self, client: &mut Client) -> Result<Appended, AppendError> {
        loop {
            let decided = self.decider.admit(self.activation_wait).await?;
            let (between, in_transaction) = self.needs(&decided);
            let tried = if in_transaction {
                self.attempt_in_transaction(client, &decided).await
            } else if between {
                self.attempt_between(client, &decided).await
            } else {
                self.attempt(On::from(&*client), &decided).await
            };
            match tried.map_err(|error| self.conflict_if_contended(error))? {
                Tried::Appended(appended) => return Ok(appended),
                Tried::Stale { seen, .. } => drop(self.decider.after(seen).await?),
            }
        }
    }

    /// Whether an append must run between BEGIN and COMMIT, and whether a projector wants the transaction in hand.
    ///
    /// A function of its own: were the iterator part of the future, that would not be `Send` for callers who box it.
    fn needs(&self, decided: &Decided) -> (bool, bool) {
        let inline = decided.inline.iter().filter(|p| self.new.types.iter().any(|ty| p.handles(ty)));
        let mut inline = inline.map(|p| p.projector.needs_transaction()).peekable();
        let between = inline.peek().is_some() || self.expected == Expected::Any;
        (between, inline.any(|needs_transaction| needs_transaction))
    }

    /// One try in a transaction, for projectors that want it in hand.
    async fn attempt_in_transaction(
        &self,
        client: &mut Client,
        decided: &Decided,
    ) -> Result<Tried, AppendError> {
        let tx = store::read_committed(client).await?;
        let tried = self.attempt(On::from(&tx), decided).await?;
        if let Tried::Appended(_) = tried {
            tx.commit().await.map_err(StoreError::from)?;
        }
        Ok(tried)
    }

    /// One try between BEGIN and COMMIT, which are sent along with the rest.
    async fn attempt_between(&self, client: &mut Client, decided: &Decided) -> Result<Tried, AppendError> {
        let open = Open(&*client);
        let (begin, tried) = join(open.0.batch_execute(BEGIN), self.attempt(On::from(open.0), decided)).await;
        begin.map_err(StoreError::from)?;
        let end = if let Ok(Tried::Appended(_)) = tried { "COMMIT" } else { "ROLLBACK" };
        open.0.batch_execute(end).await.map_err(StoreError::from)?;
        std::mem::forget(open);
        tried
    }

    async fn attempt(&self, on: On<'_>, decided: &Decided) -> Result<Tried, AppendError> {
        let inline = Inline::decode(self, decided)?;
        let buckets = inline.buckets();
        let sql = &self.store.sql;

        // Everything is made ready first: from here on nothing waits between one statement and the next.
        let append = if self.is_at() { &sql.append_at } else { &sql.append };
        let append = self.store.ready(on, append).await?;
        let lock_stream = match self.expected {
            Expected::Any => Some(self.store.ready(on, &sql.lock_stream).await?),
            _ => None,
        };
        let lock_keys =
            if buckets.is_empty() { None } else { Some(self.store.ready(on, &sql.lock_keys).await?) };
        let loads = inline.loads();
        let mut ready_loads = Vec::with_capacity(loads.len());
        for load in &loads {
            ready_loads.push(self.store.ready(on, load.sql).await?);
        }

        let stream = self.stream.as_str();
        let data: Vec<Json<&RawValue>> = self.new.data.iter().map(|data| Json(&**data)).collect();
        let metadata = vec![self.new.metadata.as_deref().map(Json); data.len()];
        let expected = self.expected.revision();
        let params: [&(dyn ToSql + Sync); 6] =
            [&decided.generation, &stream, &expected, &self.new.types, &data, &metadata];
        let locks = async {
            // The stream before the keys, as in every append.
            let (stream, keys) = join(
                optional(lock_stream.as_ref(), on, &[&stream, &decided.generation]),
                optional(lock_keys.as_ref(), on, &[&buckets, &decided.generation]),
            )
            .await;
            stream.and(keys)
        };
        let loaded = join_all(
            ready_loads
                .iter()
                .zip(&loads)
                .map(|(ready, load)| async move { ready.query(on, &load.params()).await }),
        );
        let (locked, rows, loaded) = join3(locks, append.query(on, &params), loaded).await;
        drop(loads);
        let isolation = locked?.map(|row| row.get::<_, String>("isolation"));
        let rows = rows.map_err(|error| self.contended(error))?;
        let (tried, recorded_at) = match rows.first() {
            Some(first) if self.is_at() => (self.placed(&rows), first.get("recorded_at")),
            Some(row) => (self.outcome(row, decided)?, row.get("recorded_at")),
            // Where the shorter statement wrote nothing, the longer one says why.
            None => {
                let row = self.store.query_one(on, &sql.append, &params).await;
                let row = row.map_err(|error| self.contended(error))?;
                (self.outcome(&row, decided)?, row.get("recorded_at"))
            }
        };
        match tried {
            stale @ Tried::Stale { .. } => Ok(stale),
            Tried::Appended(appended) => {
                let loaded = loaded.into_iter().collect::<Result<Vec<_>, _>>()?;
                if let Some(isolation) = isolation.filter(|isolation| isolation != "read committed") {
                    inline.check_snapshot(self, on, &isolation, &loaded).await?;
                }
                inline.apply(self, on, &appended, recorded_at, loaded).await?;
                Ok(Tried::Appended(appended))
            }
        }
    }

    /// Whether the shorter statement will do: for events, after a revision that the writer knows.
    fn is_at(&self) -> bool {
        self.expected.revision().is_some() && !self.new.types.is_empty()
    }

    /// What the shorter statement wrote.
    fn placed(&self, rows: &[Row]) -> Tried {
        assert_eq!(rows.len(), self.new.types.len(), "BUG: an append wrote another number of events");
        let positions: Vec<Position> = rows.iter().map(|row| row.get("position")).collect();
        let before = self.expected.revision().expect("BUG: placed after no revision").get();
        let count = i64::try_from(positions.len()).unwrap_or(i64::MAX);
        Tried::Appended(Appended { positions, revision: Revision::new(before + count) })
    }

    fn outcome(&self, row: &Row, decided: &Decided) -> Result<Tried, AppendError> {
        let seen: Generation = row.get("generation");
        let Some(found) = row.get::<_, Option<Revision>>("found").filter(|_| seen == decided.generation)
        else {
            return Ok(Tried::Stale { seen, leased: row.get("leased") });
        };
        if self.expected.revision().is_some_and(|expected| expected != found) {
            return Err(self.conflict(found));
        }
        let positions: Vec<Position> = row.get::<_, Option<Vec<Position>>>("positions").unwrap_or_default();
        assert_eq!(positions.len(), self.new.types.len(), "BUG: an append wrote another number of events");
        let count = i64::try_from(positions.len()).unwrap_or(i64::MAX);
        Ok(Tried::Appended(Appended { positions, revision: Revision::new(found.get() + count) }))
    }

    fn conflict(&self, found: Revision) -> AppendError {
        AppendError::Conflict { stream: self.stream.clone(), expected: self.expected, found }
    }

    /// Two writers of one stream at the same moment: the unique constraint tells the later one.
    fn contended(&self, error: StoreError) -> AppendError {
        let constraint = match &error {
            StoreError::Database(error) => error.as_db_error().and_then(|db| db.constraint()),
            _ => None,
        };
        if constraint != Some("events_stream_revision") {
            if error.is_disconnect() {
                self.decider.forget();
            }
            return error.into();
        }
        AppendError::Contended { stream: self.stream.clone() }
    }

    /// Where the transaction was ours it is rolled back already, so to the caller this is a conflict like any other. In the
    /// caller's own it is not: that one is broken now, and a commit of it would report no error.
    fn conflict_if_contended(&self, error: AppendError) -> AppendError {
        match (error, self.expected.revision()) {
            // The other one wrote the very next revision, at least.
            (AppendError::Contended { .. }, Some(expected)) => {
                self.conflict(Revision::new(expected.get() + 1))
            }
            (error, _) => error,
        }
    }
}

async fn optional(
    ready: Option<&Ready<'_>>,
    on: On<'_>,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Option<Row>, StoreError> {
    match ready {
        Some(ready) => Ok(ready.query(on, params).await?.pop()),
        None => Ok(None),
    }
}

/// The inline projectors that an append feeds.
struct Inline<'d> {
    events: Vec<RawEvent>,
    batches: Vec<InlineBatch<'d>>,
}

struct InlineBatch<'d> {
    registered: &'d Registered,
    /// Which of the append's events are of its types.
    picked: Vec<usize>,
    decoded: Box<dyn Decoded + 'd>,
}

impl<'d> Inline<'d> {
    fn decode(appending: &Appending<'_>, decided: &'d Decided) -> Result<Self, AppendError> {
        if decided.inline.is_empty() {
            return Ok(Self { events: Vec::new(), batches: Vec::new() });
        }
        let events = appending.new.unplaced(appending.stream)?;
        let mut batches = Vec::new();
        for registered in &decided.inline {
            let picked: Vec<usize> =
                (0..events.len()).filter(|at| registered.handles(&events[*at].event_type)).collect();
            if picked.is_empty() {
                continue;
            }
            let own: Vec<RawEvent> = picked.iter().map(|at| events[*at].clone()).collect();
            let batch = registered.projector.decode(&own).map_err(|source| failed(registered, source))?;
            batches.push(InlineBatch { registered, picked, decoded: batch });
        }
        Ok(Self { events, batches })
    }

    /// In one sorted order, whatever the order of the events: two appends cannot wait for one another.
    fn buckets(&self) -> Vec<i32> {
        let locks = self.batches.iter().flat_map(|batch| batch.decoded.row_locks());
        let mut buckets: Vec<i32> =
            locks.map(|lock| i32::try_from(lock % KEY_BUCKETS).expect("a small number")).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    }

    fn loads(&self) -> Vec<Load<'_>> {
        self.batches.iter().flat_map(|batch| batch.decoded.loads()).collect()
    }

    /// In an isolation level with one snapshot for the whole transaction, a row that somebody committed after that snapshot
    /// cannot be seen. Changing one that was changed since fails by itself. One that was deleted since would be made anew, so
    /// what was loaded is locked, which fails then; and one that was made since would be taken for absent, so whether it is
    /// there is asked outside.
    async fn check_snapshot(
        &self,
        appending: &Appending<'_>,
        on: On<'_>,
        isolation: &str,
        mut loaded: &[Vec<Row>],
    ) -> Result<(), AppendError> {
        let mut outside = None;
        for InlineBatch { registered, decoded, .. } in &self.batches {
            if registered.projector.needs_transaction() {
                let isolation = isolation.to_owned();
                return Err(failed(registered, ProjectError::NeedsReadCommitted { isolation }));
            }
            for hold in decoded.holds() {
                appending.store.query(on, hold.sql, &hold.params()).await?;
            }
            let (own, rest) = loaded.split_at(decoded.load_count());
            loaded = rest;
            for load in decoded.unseen(own).map_err(|source| failed(registered, source))? {
                let client = match &outside {
                    Some(client) => client,
                    None => outside.insert(appending.store.single().await?),
                };
                let count = appending.store.query_one(client, load.sql, &load.params()).await?;
                if count.get::<_, i64>("rows") > 0 {
                    return Err(AppendError::StaleSnapshot {
                        projector: registered.target.projector.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    async fn apply(
        mut self,
        appending: &Appending<'_>,
        on: On<'_>,
        appended: &Appended,
        recorded_at: SystemTime,
        loaded: Vec<Vec<Row>>,
    ) -> Result<(), AppendError> {
        let first = appended.revision.get() - i64::try_from(appended.positions.len()).unwrap_or(i64::MAX) + 1;
        for ((event, position), revision) in self.events.iter_mut().zip(&appended.positions).zip(first..) {
            event.recorded.position = *position;
            event.recorded.revision = Revision::new(revision);
            event.recorded.recorded_at = recorded_at;
        }
        let mut loaded = loaded.into_iter();
        for InlineBatch { registered, picked, mut decoded } in self.batches {
            let placed: Vec<RawEvent> = picked.iter().map(|at| self.events[*at].clone()).collect();
            decoded.place(&placed);
            let own = loaded.by_ref().take(decoded.load_count()).collect();
            decoded.apply(on, appending.store, own).await.map_err(|source| failed(registered, source))?;
            if registered.projector.needs_transaction() {
                // A projector that lets an error of the database pass leaves a broken transaction, whose commit would
                // report no error. Any statement tells.
                let alive = appending.store.query_one(on, &appending.store.sql.holds_lease, &[]).await;
                alive.map_err(|source| failed(registered, ProjectError::Store(source)))?;
            }
        }
        Ok(())
    }
}

fn failed(registered: &Registered, source: ProjectError) -> AppendError {
    AppendError::Projector { projector: registered.target.projector.clone(), source }
}
