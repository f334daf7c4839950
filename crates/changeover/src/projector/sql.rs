//! SQL projectors: for what does not fit typed rows.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use deadpool_postgres::Transaction;
use futures_util::future::{BoxFuture, FutureExt, join_all, ready};
use postgres_types::{ToSql, Type};
use semver::Version;
use serde::de::DeserializeOwned;
use tokio_postgres::Row;

use super::parallel::Parallel;
use super::row::{hash_of, stable_hash};
use super::split::SplitBy;
use super::{BoxError, Decoded, Load, Project, ProjectError};
use crate::store::Path;
use crate::store::statements::Sql;
use crate::words::event::{RawEvent, Recorded};
use crate::words::names::StreamName;
use crate::words::state::Delivery;

/// A projector that runs its own SQL.
///
/// ```
/// use changeover::{Batch, BoxError, SqlProjector, Transaction, Type};
/// use semver::Version;
///
/// #[derive(serde::Deserialize)]
/// enum OrderEvent {
///     OrderPlaced { customer: String },
/// }
///
/// struct OrdersPerCustomer;
///
/// impl SqlProjector for OrdersPerCustomer {
///     const NAME: &'static str = "orders_per_customer";
///     const VERSION: Version = Version::new(1, 0, 0);
///     const TABLES: &'static str = "CREATE TABLE {schema}.counts (customer text PRIMARY KEY, orders bigint NOT NULL)";
///     type Event = OrderEvent;
///
///     async fn project(&self, batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
///         let sql = batch.sql(
///             "INSERT INTO {schema}.counts AS c VALUES ($1, 1)
///              ON CONFLICT (customer) DO UPDATE SET orders = c.orders + 1",
///         );
///         for event in batch.events() {
///             let OrderEvent::OrderPlaced { customer } = &event.data;
///             tx.query_typed(&sql, &[(customer, Type::TEXT)]).await?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait SqlProjector: Send + Sync + 'static {
    /// The stable name: a lower-case identifier.
    const NAME: &'static str;
    /// The version of tables, rows and code.
    const VERSION: Version;
    /// When it is fed. Inline works in READ COMMITTED alone: in any other isolation level its statements might not see the
    /// rows that the append before has written.
    const DELIVERY: Delivery = Delivery::Background;
    /// What creates its tables; `{schema}` stands for the schema of its major version.
    const TABLES: &'static str;
    /// What creates its secondary indexes, likewise.
    const INDEXES: &'static str = "";
    /// The events that it handles: an enum with one variant for each event type, by name.
    type Event: DeserializeOwned + Send + Sync + 'static;

    /// What an event touches, for an inline projector: two appends that name the same key wait for one another, two
    /// that do not run side by side. `None` (the default) lets appends through one at a time.
    fn keys(_event: &Self::Event, _stream: &StreamName) -> Option<Vec<String>> {
        None
    }

    /// How its events may be split, so that the bulk of the log is replayed by several shards, each with a connection and
    /// transactions of its own. `None` (the default): one shard, which reads ahead.
    ///
    /// Sound is a split where every row belongs to one key: whatever the projector reads or writes for an event, only events
    /// with the same key write it. Then each row sees its events in position order, and the rows are those of a serial
    /// replay. A row that events of several keys feed, a sequence, a total, a foreign key into rows of another key: all these forbid it.
    /// Every event that the projector handles has a key; there is none for "any" or "all".
    ///
    /// ```
    /// use changeover::{SplitBy, SplitKey};
    /// # enum OrderEvent {}
    ///
    /// // The rows of an order come from the order's own stream.
    /// const SPLIT_BY: Option<SplitBy<OrderEvent>> = Some(|event| SplitKey::of(event.stream.as_str()));
    /// ```
    ///
    /// It only makes the replay faster: live events are projected serially, and no version has to be raised when it changes.
    /// A replay that is under way is not gone on with by another split, see [`ReplayError::OtherSplit`](crate::ReplayError).
    /// A mistake is what `verify` finds: it folds the log serially.
    const SPLIT_BY: Option<SplitBy<Self::Event>> = None;

    /// Projects a batch, in position order, inside the given transaction. Deterministic: only the events and the
    /// projector's own tables may decide what it writes. `tx` works through a pooler as long as statements are unnamed
    /// (`query_typed`) or made ready by the batch ([`Batch::prepare`]).
    ///
    /// # Errors
    ///
    /// Any error undoes the batch; it is tried again and then stalls the projector. Its text is kept and shown: it should
    /// not quote what an event holds.
    fn project(
        &self,
        batch: Batch<'_, Self::Event>,
        tx: &Transaction<'_>,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// Events for a SQL projector, in position order.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'b, E> {
    events: &'b [Recorded<E>],
    schema: &'b str,
    path: Path,
}

impl<'b, E> Batch<'b, E> {
    /// The events.
    pub fn events(&self) -> &'b [Recorded<E>] {
        self.events
    }

    /// The schema of the projector's tables; an identifier that needs no quotes.
    pub fn schema(&self) -> &'b str {
        self.schema
    }

    /// A statement in which `{schema}` has been replaced.
    pub fn sql(&self, template: &str) -> String {
        template.replace("{schema}", self.schema)
    }

    /// Makes a statement ready to be sent many times, `{schema}` replaced. On a direct connection the server parses and plans it
    /// once for all batches that come along this connection, which costs a round trip the first time; through a pooler it is
    /// sent unnamed, each time anew.
    ///
    /// # Errors
    ///
    /// The server refuses it.
    pub async fn prepare(
        &self,
        tx: &Transaction<'_>,
        template: &str,
        types: &[Type],
    ) -> Result<Prepared, tokio_postgres::Error> {
        let text = self.sql(template);
        Ok(Prepared(match self.path {
            Path::Direct => Form::Named(tx.prepare_typed_cached(&text, types).await?),
            Path::Pooled => Form::Unnamed(text, types.to_vec()),
        }))
    }

    /// Does something for each event and waits for all of it: what it sends to the server is on its way, in position order, before
    /// the first answer has come. So a statement for each event costs no round trip for each event.
    ///
    /// What is sent without waiting for anything first is in order; whoever waits for one answer to send the next statement
    /// has others in between.
    ///
    /// ```
    /// # use changeover::{Batch, BoxError, Transaction, Type};
    /// # enum OrderEvent { ItemAdded { cents: i64 }, OrderPaid }
    /// async fn project(batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
    ///     let add = "UPDATE {schema}.orders SET cents = cents + $2 WHERE id = $1";
    ///     let add = &batch.prepare(tx, add, &[Type::TEXT, Type::INT8]).await?;
    ///     let pay = "UPDATE {schema}.orders SET paid = true WHERE id = $1";
    ///     let pay = &batch.prepare(tx, pay, &[Type::TEXT]).await?;
    ///     batch
    ///         .pipeline(async |event| {
    ///             let id = event.stream.as_str();
    ///             match &event.data {
    ///                 OrderEvent::ItemAdded { cents } => add.query(tx, &[&id, cents]).await?,
    ///                 OrderEvent::OrderPaid => pay.query(tx, &[&id]).await?,
    ///             };
    ///             Ok(())
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The first one, in position order.
    pub fn pipeline<'f, F, D>(&self, each: F) -> BoxFuture<'f, Result<(), BoxError>>
    where
        'b: 'f,
        E: Sync,
        F: Fn(&'b Recorded<E>) -> D + Send + 'f,
        D: Future<Output = Result<(), BoxError>> + Send + 'f,
    {
        let events = self.events;
        // Boxes: the compiler does not see that a future is `Send` which holds closures with lifetimes of their own.
        Box::pin(async move {
            for events in events.chunks(AT_ONCE) {
                let mut begun: Vec<BoxFuture<'f, Result<(), BoxError>>> = Vec::with_capacity(events.len());
                for event in events {
                    begun.push(begin(Box::pin(each(event))));
                }
                // All of it is to be answered before anything else is sent on this connection.
                for done in join_all(begun).await {
                    done?;
                }
            }
            Ok(())
        })
    }
}

/// Polls a future once, here and now: what it sends first is sent in the order of these calls.
fn begin<'f, T: Send + 'f>(mut doing: BoxFuture<'f, T>) -> BoxFuture<'f, T> {
    match doing.as_mut().now_or_never() {
        Some(done) => Box::pin(ready(done)),
        None => doing,
    }
}

/// Statements on their way at once.
const AT_ONCE: usize = 256;

/// A statement that a [`Batch`] has made ready.
#[derive(Debug, Clone)]
pub struct Prepared(Form);

#[derive(Debug, Clone)]
enum Form {
    Named(tokio_postgres::Statement),
    Unnamed(String, Vec<Type>),
}

impl Prepared {
    /// Sends it at the first poll, and waits for its rows.
    ///
    /// # Errors
    ///
    /// The server refuses it, or a parameter does not fit its type.
    pub async fn query(
        &self,
        tx: &Transaction<'_>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match &self.0 {
            Form::Named(statement) => tx.query(statement, params).await,
            Form::Unnamed(text, types) => {
                let values: Vec<_> = params.iter().copied().zip(types.iter().cloned()).collect();
                tx.query_typed(text, &values).await
            }
        }
    }
}

/// A SQL projector underneath.
pub(crate) struct Running<P> {
    pub(crate) projector: Arc<P>,
    pub(crate) schema: String,
}

impl<P: SqlProjector> Running<P> {
    /// Lets the projector run its statements for some events, at least one.
    pub(super) async fn project(
        &self,
        events: &[Recorded<P::Event>],
        tx: &Transaction<'_>,
        path: Path,
        first_type: impl FnOnce() -> String + Send,
    ) -> Result<(), ProjectError> {
        let batch = Batch { events, schema: &self.schema, path };
        match AssertUnwindSafe(self.projector.project(batch, tx)).catch_unwind().await {
            Ok(projected) => projected.map_err(ProjectError::Projector),
            Err(_) => Err(ProjectError::Panicked { position: events[0].position, event_type: first_type() }),
        }
    }
}

impl<P: SqlProjector> Project for Running<P> {
    fn needs_transaction(&self) -> bool {
        true
    }

    fn parallel(&self) -> &dyn Parallel {
        self
    }

    fn writes(&self) -> Vec<&Sql> {
        Vec::new()
    }

    fn decode<'p>(&'p self, events: &[RawEvent]) -> Result<Box<dyn Decoded + 'p>, ProjectError> {
        let decoded = super::decode_all(events)?;
        let types = events.iter().map(|event| event.event_type.clone()).collect();
        Ok(Box::new(SqlBatch { running: self, types, decoded }))
    }
}

struct SqlBatch<'p, P: SqlProjector> {
    running: &'p Running<P>,
    types: Vec<String>,
    decoded: Vec<Recorded<P::Event>>,
}

impl<P: SqlProjector> Decoded for SqlBatch<'_, P> {
    fn row_locks(&self) -> Vec<u64> {
        let seed = stable_hash(0, self.running.schema.as_bytes());
        let of = |key: &str| hash_of(seed, &key.to_owned(), &[Type::TEXT]);
        let keys = self.decoded.iter().map(|event| P::keys(&event.data, &event.stream));
        // One event without keys may touch anything; then every append takes the projector's one lock as well.
        keys.flat_map(|keys| keys.unwrap_or_else(|| vec![String::new()])).map(|key| of(&key)).collect()
    }

    fn loads(&self) -> Vec<Load<'_>> {
        Vec::new()
    }

    fn load_count(&self) -> usize {
        0
    }

    fn holds(&self) -> Vec<Load<'_>> {
        Vec::new()
    }

    fn unseen(&self, _loaded: &[Vec<Row>]) -> Result<Vec<Load<'_>>, ProjectError> {
        Ok(Vec::new())
    }

    fn place(&mut self, placed: &[RawEvent]) {
        super::place_all(&mut self.decoded, placed);
    }

    fn fold(&mut self, _loaded: &[Vec<Row>]) -> Result<(), ProjectError> {
        Ok(())
    }

    fn writes(&self) -> Vec<Load<'_>> {
        Vec::new()
    }

    fn run<'t>(&'t self, tx: &'t Transaction<'_>, path: Path) -> BoxFuture<'t, Result<(), ProjectError>> {
        self.running.project(&self.decoded, tx, path, || self.types[0].clone()).boxed()
    }
}
