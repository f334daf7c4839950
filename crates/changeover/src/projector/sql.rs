//! SQL projectors: for what does not fit typed rows.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use deadpool_postgres::Transaction;
use futures_util::future::{BoxFuture, FutureExt};
use semver::Version;
use serde::de::DeserializeOwned;
use tokio_postgres::Row;

use super::parallel::Parallel;
use super::row::{hash_of, stable_hash};
use super::{BoxError, Decoded, Load, Project, ProjectError};
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

    /// Projects a batch, in position order, inside the given transaction. Deterministic: only the events and the
    /// projector's own tables may decide what it writes. `tx` works through a pooler as long as statements are unnamed
    /// (`query_typed`).
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
}

/// A SQL projector underneath.
pub(crate) struct Running<P> {
    pub(crate) projector: Arc<P>,
    pub(crate) schema: String,
}

impl<P: SqlProjector> Project for Running<P> {
    fn needs_transaction(&self) -> bool {
        true
    }

    fn parallel(&self) -> Option<&dyn Parallel> {
        None
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
        let of = |key: &str| hash_of(seed, &key.to_owned(), &[postgres_types::Type::TEXT]);
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

    fn run<'t>(&'t self, tx: &'t Transaction<'_>) -> BoxFuture<'t, Result<(), ProjectError>> {
        async move {
            let batch = Batch { events: &self.decoded, schema: &self.running.schema };
            let projecting = self.running.projector.project(batch, tx);
            match AssertUnwindSafe(projecting).catch_unwind().await {
                Ok(projected) => projected.map_err(ProjectError::Projector),
                Err(_) => Err(ProjectError::Panicked {
                    position: self.decoded[0].position,
                    event_type: self.types[0].clone(),
                }),
            }
        }
        .boxed()
    }
}
