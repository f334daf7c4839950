//! Append: lease, admission, positions, in one statement; and inline projectors around it, in two round trips.
//!
//! What is sent together is run one after the other by the server: locks on the keys of inline rows, then the append (whose
//! positions are drawn once the keys are ours), then the rows as the writer before us left them. They are folded here, and
//! the second round trip writes them; where the transaction is ours, it commits as well.

use std::time::{Duration, SystemTime};

use deadpool_postgres::{Client, Transaction};
use futures_util::future::{join, join_all, join3};
use postgres_types::{Json, ToSql};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_postgres::Row;

use super::error::AppendError;
use super::inline::Inline;
use crate::codec::{self, EncodeError};
use crate::decider::{DecideError, Decided, Decider};
use crate::store::open::Open;
use crate::store::statements::Sql;
use crate::store::{self, On, Ready, Store, StoreError};
use crate::words::decision::Verdict;
use crate::words::event::{Expected, RawEvent, Recorded};
use crate::words::names::StreamName;
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
    fn after(before: Revision, positions: Vec<Position>) -> Self {
        let count = i64::try_from(positions.len()).unwrap_or(i64::MAX);
        Self { positions, revision: Revision::new(before.get() + count) }
    }

    /// The position of the last event: what to wait for in order to read one's own writes. None if nothing was appended.
    pub fn last(&self) -> Option<Position> {
        self.positions.last().copied()
    }
}

/// Of one append. PostgreSQL's own limit for a message is one gigabyte.
const MAX_BYTES: usize = 256 << 20;

/// How long a transaction of ours may sit there without a statement once it has locked row keys. Whoever is frozen between two
/// of its statements must not hold up an activation for ever.
const IDLE_LIMIT: &str = "10s";

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

    /// Their types, in order.
    pub(crate) fn types(&self) -> &[String] {
        &self.types
    }

    /// The events as projectors read them, before the log has given them their places.
    pub(super) fn unplaced(&self, stream: &StreamName) -> Result<Vec<RawEvent>, AppendError> {
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

/// What became of one try.
enum Tried<T> {
    Done(T),
    Stale(Stale),
}

/// The generation is not the one decided upon: nothing was written.
struct Stale {
    seen: Generation,
    /// Whether a lease was taken all the same.
    leased: bool,
}

/// The events are in the log, and what inline projectors make of them is to be written.
pub(super) struct Logged {
    pub(super) appended: Appended,
    pub(super) recorded_at: SystemTime,
    /// The rows that they touch, by statement.
    pub(super) loaded: Vec<Vec<Row>>,
    /// The transaction's isolation level, if anything was loaded.
    isolation: Option<String>,
}

/// The statement that appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One event, to a new stream.
    First,
    /// To a new stream.
    New,
    /// After a known revision.
    At,
    /// After any revision; and the one that says why nothing was written.
    Any,
}

/// The statements of one try, ready to be sent: nothing waits between one and the next, and what is sent behind them, a
/// commit above all, cannot overtake them.
struct Prepared<'s> {
    whose: Whose,
    form: Form,
    append: Ready<'s>,
    lock_stream: Option<Ready<'s>>,
    lock_keys: Option<Ready<'s>>,
    loads: Vec<Ready<'s>>,
}

/// Whose transaction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// No statement may break it: a conflict is an answer, not an error.
    Callers,
    /// A conflict may break it, which is the quicker way.
    Ours,
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
            let inline = Inline::decode(self, &decided)?;
            match self.attempt_in(tx, &decided, inline, Whose::Callers).await? {
                Tried::Done(appended) => return Ok(appended),
                Tried::Stale(Stale { seen, leased }) => {
                    decided = self.decider.after(seen).await?;
                    // An activation waits for this transaction's lease, so the transaction must not wait for the
                    // activation.
                    let holds_lease = leased || self.holds_lease(tx).await?;
                    let wait = if holds_lease { Duration::ZERO } else { self.activation_wait };
                    decided = match &decided.verdict {
                        Verdict::Admitted { .. } => decided,
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

    /// One round trip, two with inline folds; more where it meets a change of the states or another writer.
    async fn alone_or_lost(&self, client: &mut Client) -> Result<Appended, AppendError> {
        let mut whose = Whose::Ours;
        loop {
            let decided = self.decider.admit(self.activation_wait).await?;
            let inline = Inline::decode(self, &decided)?;
            let tried = if inline.needs_transaction() {
                self.attempt_in_transaction(client, &decided, inline, whose).await
            } else if !inline.is_empty() {
                self.attempt_between(client, &decided, inline, whose).await
            } else if self.expected == Expected::Any {
                self.attempt_at_once(client, &decided, &inline).await
            } else {
                let on = On::from(&*client);
                let prepared = self.prepare(on, &inline, whose).await?;
                self.log(on, &decided, &inline, &prepared).await.map(Tried::appended)
            };
            match tried {
                Ok(Tried::Done(appended)) => return Ok(appended),
                Ok(Tried::Stale(stale)) => drop(self.decider.after(stale.seen).await?),
                // It is rolled back already, so to the caller this is a conflict like any other, and the more careful way
                // says with what.
                Err(AppendError::Contended { .. })
                    if whose == Whose::Ours && self.expected.revision().is_some() =>
                {
                    whose = Whose::Callers;
                }
                Err(error) => return Err(self.conflict_if_contended(error)),
            }
        }
    }

    /// One try in a transaction, for projectors that want it in hand.
    async fn attempt_in_transaction(
        &self,
        client: &mut Client,
        decided: &Decided,
        inline: Inline<'_>,
        whose: Whose,
    ) -> Result<Tried<Appended>, AppendError> {
        let tx = store::read_committed(client).await?;
        let tried = self.attempt_in(&tx, decided, inline, whose).await?;
        if let Tried::Done(_) = tried {
            tx.commit().await.map_err(StoreError::from)?;
        }
        Ok(tried)
    }

    /// One try between BEGIN and COMMIT, all of it sent together. Where nothing was written nothing is to be rolled back.
    async fn attempt_at_once(
        &self,
        client: &mut Client,
        decided: &Decided,
        inline: &Inline<'_>,
    ) -> Result<Tried<Appended>, AppendError> {
        let on = On::from(&*client);
        let prepared = self.prepare(on, inline, Whose::Ours).await?;
        Open::whole(client, self.log(on, decided, inline, &prepared)).await.map(Tried::appended)
    }

    /// One try between BEGIN, which is sent along with the append, and COMMIT, which is sent along with the rows.
    async fn attempt_between(
        &self,
        client: &mut Client,
        decided: &Decided,
        mut inline: Inline<'_>,
        whose: Whose,
    ) -> Result<Tried<Appended>, AppendError> {
        let on = On::from(&*client);
        let writes = inline.ready_writes(self.store, on).await?;
        let prepared = self.prepare(on, &inline, whose).await?;
        let open = Open::on_its_way(client);
        let logged = open.begin(self.log(on, decided, &inline, &prepared)).await?;
        drop(prepared);
        let folded = logged.and_then(|logged| {
            if let Tried::Done(logged) = &logged {
                inline.fold(logged)?;
            }
            Ok(logged)
        });
        if let Ok(Tried::Done(logged)) = folded {
            open.commit(inline.write(on, &writes)).await?;
            return Ok(Tried::Done(logged.appended));
        }
        open.roll_back().await?;
        folded.map(Tried::appended)
    }

    /// One try in a transaction, which is not committed here.
    async fn attempt_in(
        &self,
        tx: &Transaction<'_>,
        decided: &Decided,
        mut inline: Inline<'_>,
        whose: Whose,
    ) -> Result<Tried<Appended>, AppendError> {
        let on = On::from(tx);
        let prepared = self.prepare(on, &inline, whose).await?;
        let logged = match self.log(on, decided, &inline, &prepared).await? {
            Tried::Done(logged) => logged,
            Tried::Stale(stale) => return Ok(Tried::Stale(stale)),
        };
        drop(prepared);
        if let Some(isolation) = logged.isolation.as_ref().filter(|isolation| *isolation != "read committed")
        {
            inline.check_snapshot(self.store, on, isolation, &logged.loaded).await?;
        }
        inline.fold(&logged)?;
        let writes = inline.ready_writes(self.store, on).await?;
        inline.write(on, &writes).await?;
        inline.run(self.store, tx).await?;
        Ok(Tried::Done(logged.appended))
    }

    /// Makes ready what [`log`](Self::log) sends.
    async fn prepare<'a>(
        &'a self,
        on: On<'_>,
        inline: &'a Inline<'_>,
        whose: Whose,
    ) -> Result<Prepared<'a>, StoreError> {
        let sql = &self.store.sql;
        let form = self.form(whose);
        let append = self.store.ready(on, self.sql(form)).await?;
        let lock_stream = match self.expected {
            Expected::Any => Some(self.store.ready(on, &sql.lock_stream).await?),
            _ => None,
        };
        let lock_keys =
            if inline.is_empty() { None } else { Some(self.store.ready(on, &sql.lock_keys).await?) };
        let mut loads = Vec::new();
        for load in inline.loads() {
            loads.push(self.store.ready(on, load.sql).await?);
        }
        Ok(Prepared { whose, form, append, lock_stream, lock_keys, loads })
    }

    /// Puts the events in the log, and loads the rows that they touch: locks, append and loads are sent at the first poll.
    async fn log(
        &self,
        on: On<'_>,
        decided: &Decided,
        inline: &Inline<'_>,
        prepared: &Prepared<'_>,
    ) -> Result<Tried<Logged>, AppendError> {
        let Prepared { form, append, lock_stream, lock_keys, loads: ready_loads, .. } = prepared;
        let buckets = inline.buckets();
        let loads = inline.loads();
        let stream = self.stream.as_str();
        let idle_limit = (prepared.whose == Whose::Ours).then_some(IDLE_LIMIT);
        let locks = async {
            // The stream before the keys, as in every append.
            let (stream, keys) = join(
                optional(lock_stream.as_ref(), on, &[&stream, &decided.generation]),
                optional(lock_keys.as_ref(), on, &[&buckets, &decided.generation, &idle_limit]),
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
        let (locked, rows, loaded) = join3(locks, self.insert(*form, append, on, decided), loaded).await;
        drop(loads);
        let isolation = locked?.map(|row| row.get("isolation"));
        let rows = rows.map_err(|error| self.contended(error))?;
        let placed = match rows.first() {
            Some(row) if *form == Form::Any => self.outcome(row, decided)?,
            Some(_) => self.placed(&rows),
            // Where a shorter statement wrote nothing, the longer one says why.
            None => {
                let append = self.store.ready(on, &self.store.sql.append).await?;
                let rows = self.insert(Form::Any, &append, on, decided).await;
                let rows = rows.map_err(|error| self.contended(error))?;
                self.outcome(&rows[0], decided)?
            }
        };
        Ok(match placed {
            Tried::Done((appended, recorded_at)) => {
                let loaded = loaded.into_iter().collect::<Result<Vec<_>, _>>()?;
                Tried::Done(Logged { appended, recorded_at, loaded, isolation })
            }
            Tried::Stale(stale) => Tried::Stale(stale),
        })
    }

    /// The quickest statement that will do.
    fn form(&self, whose: Whose) -> Form {
        match (self.expected.revision().map(Revision::get), self.new.types.len(), whose) {
            (None, _, _) | (_, 0, _) => Form::Any,
            (Some(0), 1, Whose::Ours) => Form::First,
            (Some(0), _, Whose::Ours) => Form::New,
            (Some(_), _, _) => Form::At,
        }
    }

    fn sql(&self, form: Form) -> &Sql {
        let sql = &self.store.sql;
        match form {
            Form::First => &sql.append_first,
            Form::New => &sql.append_new,
            Form::At => &sql.append_at,
            Form::Any => &sql.append,
        }
    }

    async fn insert(
        &self,
        form: Form,
        ready: &Ready<'_>,
        on: On<'_>,
        decided: &Decided,
    ) -> Result<Vec<Row>, StoreError> {
        let stream = self.stream.as_str();
        let NewEvents { types, data, metadata } = self.new;
        let metadata = metadata.as_deref().map(Json);
        if form == Form::First {
            return ready
                .query(on, &[&decided.generation, &stream, &types[0], &Json(&*data[0]), &metadata])
                .await;
        }
        let data: Vec<Json<&RawValue>> = data.iter().map(|data| Json(&**data)).collect();
        let metadata: Vec<_> = data.iter().map(|_| metadata.as_ref()).collect();
        if form == Form::New {
            return ready.query(on, &[&decided.generation, &stream, &types, &data, &metadata]).await;
        }
        let expected = self.expected.revision();
        ready.query(on, &[&decided.generation, &stream, &expected, &types, &data, &metadata]).await
    }

    /// What a shorter statement wrote.
    fn placed(&self, rows: &[Row]) -> Tried<(Appended, SystemTime)> {
        assert_eq!(rows.len(), self.new.types.len(), "BUG: an append wrote another number of events");
        let before = self.expected.revision().expect("BUG: placed after no revision");
        let positions = rows.iter().map(|row| row.get("position")).collect();
        Tried::Done((Appended::after(before, positions), rows[0].get("recorded_at")))
    }

    fn outcome(&self, row: &Row, decided: &Decided) -> Result<Tried<(Appended, SystemTime)>, AppendError> {
        let seen: Generation = row.get("generation");
        let Some(found) = row.get::<_, Option<Revision>>("found").filter(|_| seen == decided.generation)
        else {
            return Ok(Tried::Stale(Stale { seen, leased: row.get("leased") }));
        };
        if self.expected.revision().is_some_and(|expected| expected != found) {
            return Err(self.conflict(found));
        }
        let positions: Vec<Position> = row.get::<_, Option<Vec<Position>>>("positions").unwrap_or_default();
        assert_eq!(positions.len(), self.new.types.len(), "BUG: an append wrote another number of events");
        Ok(Tried::Done((Appended::after(found, positions), row.get("recorded_at"))))
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

impl Tried<Logged> {
    fn appended(self) -> Tried<Appended> {
        match self {
            Self::Done(logged) => Tried::Done(logged.appended),
            Self::Stale(stale) => Tried::Stale(stale),
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
