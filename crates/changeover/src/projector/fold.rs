//! Fold projectors: typed rows, the keys that an event touches, and a pure function from row and event to row.
//!
//! A batch costs one statement to load a table's rows, one to write and, where rows went away, one to delete them,
//! whatever the number of events. Rows are folded in memory, in position order.

use std::any::Any;
use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use deadpool_postgres::Transaction;
use futures_util::future::{BoxFuture, FutureExt, ready};
use postgres_types::{ToSql, Type};
use semver::Version;
use serde::de::DeserializeOwned;

use super::configuration::Index;
use super::known::Known;
use super::parallel::{self, Parallel, Piece, ShardRows, ShardTable};
use super::row::{ColumnArray, ColumnDefinition, Key, Row, hash_of, stable_hash};
use super::{Decoded, Load, Project, ProjectError};
use crate::store::Path;
use crate::store::statements::Sql;
use crate::words::event::{RawEvent, Recorded};
use crate::words::names::StreamName;
use crate::words::state::Delivery;

/// How a row comes about: which rows an event touches, and what becomes of each.
///
/// Both functions are pure: the same events must give the same rows, on any machine, in any year.
///
/// ```
/// use changeover::{Fold, Recorded, Row, StreamName};
///
/// #[derive(serde::Deserialize)]
/// enum OrderEvent {
///     OrderPlaced { customer: String },
///     OrderCancelled,
/// }
///
/// #[derive(Row, Clone)]
/// #[row(table = "orders")]
/// struct Order {
///     #[row(key)]
///     id: String,
///     customer: String,
/// }
///
/// impl Fold for Order {
///     type Event = OrderEvent;
///
///     fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
///         [stream.to_string()]
///     }
///
///     fn fold(row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
///         match &event.data {
///             OrderEvent::OrderPlaced { customer } => {
///                 Some(Order { id: id.clone(), customer: customer.clone() })
///             }
///             OrderEvent::OrderCancelled => None, // The row is deleted.
///         }
///     }
/// }
/// ```
pub trait Fold: Row {
    /// The events that it is made of: an enum with one variant for each event type, by name.
    type Event: DeserializeOwned + Send + Sync + 'static;

    /// The keys of the rows that an event touches. An event that touches none costs nothing further. A key that is named twice counts
    /// once.
    fn keys(event: &Self::Event, stream: &StreamName) -> impl IntoIterator<Item = Self::Key>;

    /// The row after the event: none if there is no such row any more. It must keep its key.
    fn fold(row: Option<Self>, key: &Self::Key, event: &Recorded<Self::Event>) -> Option<Self>;
}

/// A projector made of folds, one for each of its tables.
///
/// ```
/// # use changeover::{Fold, Recorded, Row, StreamName};
/// # #[derive(serde::Deserialize)]
/// # enum OrderEvent { OrderPlaced {} }
/// # #[derive(Row, Clone)]
/// # #[row(table = "orders")]
/// # struct Order { #[row(key)] id: String }
/// # impl Fold for Order {
/// #     type Event = OrderEvent;
/// #     fn keys(_: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> { [stream.to_string()] }
/// #     fn fold(_: Option<Self>, id: &String, _: &Recorded<OrderEvent>) -> Option<Self> { Some(Order { id: id.clone() }) }
/// # }
/// use changeover::{Configuration, FoldProjector};
/// use semver::Version;
///
/// struct OrderSummary;
///
/// impl FoldProjector for OrderSummary {
///     const NAME: &'static str = "order_summary";
///     const VERSION: Version = Version::new(1, 0, 0);
///     type Event = OrderEvent;
///     type Tables = (Order,);
/// }
///
/// let configuration = Configuration::new().fold(OrderSummary).unwrap();
/// ```
pub trait FoldProjector: Send + Sync + 'static {
    /// The stable name: a lower-case identifier.
    const NAME: &'static str;
    /// The version of tables, rows and code; see the README for which part to raise when.
    const VERSION: Version;
    /// When it is fed.
    const DELIVERY: Delivery = Delivery::Background;
    /// The events that its tables are made of.
    type Event: DeserializeOwned + Send + Sync + 'static;
    /// Its tables: a tuple of [`Fold`]s.
    type Tables: FoldTables<Self::Event>;
}

/// A tuple of folds over one event type. Implemented for tuples of one to six.
pub trait FoldTables<E>: Send + Sync + 'static {
    #[doc(hidden)]
    fn tables(schema: &str) -> Vec<Box<dyn FoldTable<E>>>;
}

macro_rules! fold_tables {
    ($(($($table:ident),*)),*) => {$(
        impl<Ev: DeserializeOwned + Send + Sync + 'static, $($table: Fold<Event = Ev>),*> FoldTables<Ev> for ($($table,)*) {
            fn tables(schema: &str) -> Vec<Box<dyn FoldTable<Ev>>> {
                vec![$(Box::new(TableOf::<$table>::new(schema))),*]
            }
        }
    )*};
}

fold_tables!((A), (A, B), (A, B, C), (A, B, C, D), (A, B, C, D, E), (A, B, C, D, E, F));

/// One table of a fold projector, its row type erased.
#[doc(hidden)]
pub trait FoldTable<E>: Send + Sync {
    #[doc(hidden)]
    fn definition(&self) -> TableDefinition;
    #[doc(hidden)]
    fn writes(&self) -> Writes<'_>;
    #[doc(hidden)]
    fn touch<'p>(&'p self, events: &[Recorded<E>]) -> Box<dyn Touched<E> + 'p>;
    #[doc(hidden)]
    fn split(&self, events: &[Recorded<E>], shards: usize, at: &Cell<usize>) -> Box<dyn Any + Send + Sync>;
    #[doc(hidden)]
    fn shard(&self, shard: usize, known: Known) -> TableShard<E>;
}

/// The DDL of a table, schema and all.
#[doc(hidden)]
#[derive(Debug)]
pub struct TableDefinition {
    pub(crate) table: String,
    pub(crate) indexes: Vec<Index>,
}

/// The rows of one table that one shard of a parallel replay holds.
#[doc(hidden)]
pub struct TableShard<E>(pub(super) Box<dyn ShardTable<E>>);

/// The statements with which a table is written.
#[doc(hidden)]
pub struct Writes<'t>([&'t Sql; 2]);

/// The rows of one table that a batch touches.
#[doc(hidden)]
pub trait Touched<E>: Send + Sync {
    #[doc(hidden)]
    fn row_locks(&self) -> Vec<u64>;
    #[doc(hidden)]
    fn touches_any(&self) -> bool;
    #[doc(hidden)]
    fn load(&self) -> Option<LoadRows<'_>>;
    #[doc(hidden)]
    fn hold(&self) -> Option<LoadRows<'_>>;
    #[doc(hidden)]
    fn unseen(&self, loaded: &[tokio_postgres::Row]) -> Result<Option<LoadRows<'_>>, ProjectError>;
    #[doc(hidden)]
    fn fold(
        &mut self,
        loaded: &[tokio_postgres::Row],
        events: &[Recorded<E>],
        types: &[String],
    ) -> Result<(), ProjectError>;
    #[doc(hidden)]
    fn writes(&self) -> Vec<LoadRows<'_>>;
}

/// A statement over a batch of rows.
#[doc(hidden)]
pub struct LoadRows<'d>(Load<'d>);

struct TableOf<T> {
    sql: Arc<TableSql>,
    row: PhantomData<fn() -> T>,
}

impl<T: Fold> TableOf<T> {
    fn new(schema: &str) -> Self {
        Self { sql: Arc::new(TableSql::of::<T>(schema)), row: PhantomData }
    }
}

/// What is said to the database about one table.
#[derive(Debug)]
pub(super) struct TableSql {
    /// The types of the key's values.
    pub(super) key_types: Vec<Type>,
    pub(super) definition: String,
    pub(super) indexes: Vec<Index>,
    pub(super) load: Sql,
    hold: Sql,
    unseen: Sql,
    pub(super) upsert: Sql,
    pub(super) delete: Sql,
    pub(super) copy_in: String,
    /// The types of the columns' values.
    pub(super) types: Vec<Type>,
}

impl TableSql {
    fn of<T: Row>(schema: &str) -> Self {
        let columns = T::columns();
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let table = format!("{}.{}", quoted(schema), quoted(T::TABLE));
        let list = |columns: &[&ColumnDefinition], each: &dyn Fn(&str) -> String, separator: &str| {
            columns.iter().map(|column| each(&quoted(column.name))).collect::<Vec<_>>().join(separator)
        };
        let arrays = |columns: &[&ColumnDefinition]| {
            let arrays = columns.iter().enumerate();
            arrays.map(|(at, column)| format!("${}::{}[]", at + 1, column.sql)).collect::<Vec<_>>().join(", ")
        };
        let types =
            |columns: &[&ColumnDefinition]| columns.iter().map(|column| column.array.clone()).collect();

        let all: Vec<&ColumnDefinition> = columns.iter().collect();
        let keys: Vec<&ColumnDefinition> = columns.iter().filter(|column| column.key).collect();
        let rest: Vec<&ColumnDefinition> = columns.iter().filter(|column| !column.key).collect();
        assert!(!keys.is_empty(), "the row of table {} has no #[row(key)]", T::TABLE);

        let names = list(&all, &str::to_owned, ", ");
        let key_names = list(&keys, &str::to_owned, ", ");
        let same_key = list(&keys, &|name| format!("t.{name} = k.{name}"), " AND ");
        let on_conflict = match list(&rest, &|name| format!("{name} = excluded.{name}"), ", ") {
            set if set.is_empty() => "DO NOTHING".to_owned(),
            set => format!("DO UPDATE SET {set}"),
        };
        let definitions: Vec<String> = columns
            .iter()
            .map(|column| {
                let null = if column.nullable { "" } else { " NOT NULL" };
                format!("    {} {}{null}", quoted(column.name), column.sql)
            })
            .collect();
        let indexes: Vec<Index> = columns
            .iter()
            .filter(|column| column.index)
            .map(|column| {
                let name = quoted(&index_name(T::TABLE, column.name));
                Index {
                    create: format!(
                        "CREATE INDEX IF NOT EXISTS {name} ON {table} ({});\n",
                        quoted(column.name)
                    ),
                    name: format!("{}.{name}", quoted(schema)),
                }
            })
            .collect();
        let loaded = list(&all, &|name| format!("t.{name}"), ", ");
        let from_keys = format!("unnest({}) AS k ({key_names})", arrays(&keys));
        Self {
            definition: format!(
                "CREATE TABLE {table} (\n{},\n    PRIMARY KEY ({key_names})\n);\n",
                definitions.join(",\n")
            ),
            indexes,
            load: Sql {
                text: format!("SELECT {loaded} FROM {from_keys} JOIN {table} t ON {same_key}"),
                types: types(&keys),
            },
            hold: Sql {
                text: format!("SELECT true FROM {from_keys} JOIN {table} t ON {same_key} FOR UPDATE OF t"),
                types: types(&keys),
            },
            unseen: Sql {
                // Rows that the transaction deleted itself, in a savepoint or not, are locked by it and do not count.
                text: format!(
                    "SELECT count(*) AS rows FROM (SELECT FROM {from_keys} JOIN {table} t ON {same_key} FOR KEY SHARE OF t SKIP LOCKED) AS present"
                ),
                types: types(&keys),
            },
            upsert: Sql {
                text: format!(
                    "INSERT INTO {table} ({names}) SELECT * FROM unnest({}) ON CONFLICT ({key_names}) {on_conflict}",
                    arrays(&all)
                ),
                types: types(&all),
            },
            delete: Sql {
                text: format!("DELETE FROM {table} t USING {from_keys} WHERE {same_key}"),
                types: types(&keys),
            },
            copy_in: format!("COPY {table} ({names}) FROM STDIN (FORMAT binary)"),
            types: columns.iter().map(ColumnDefinition::member).collect(),
            key_types: keys.iter().map(|column| column.member()).collect(),
        }
    }
}

/// As PostgreSQL would name it; told apart by a hash where that would be cut off.
fn index_name(table: &str, column: &str) -> String {
    const MAX_BYTES: usize = 63;
    let name = format!("{table}_{column}_idx");
    if name.len() <= MAX_BYTES {
        return name;
    }
    let hash = format!("_{:016x}_idx", stable_hash(0, name.as_bytes()));
    let end = (0..=MAX_BYTES - hash.len()).rev().find(|end| name.is_char_boundary(*end)).unwrap_or_default();
    format!("{}{hash}", &name[..end])
}

impl<T: Fold> FoldTable<T::Event> for TableOf<T> {
    fn definition(&self) -> TableDefinition {
        TableDefinition { table: self.sql.definition.clone(), indexes: self.sql.indexes.clone() }
    }

    fn writes(&self) -> Writes<'_> {
        Writes([&self.sql.upsert, &self.sql.delete])
    }

    fn split(&self, events: &[Recorded<T::Event>], shards: usize, at: &Cell<usize>) -> Piece {
        parallel::split::<T>(&self.sql, events, shards, at)
    }

    fn shard(&self, shard: usize, known: Known) -> TableShard<T::Event> {
        TableShard(Box::new(ShardRows::<T>::new(self.sql.clone(), shard, known)))
    }

    fn touch<'p>(&'p self, events: &[Recorded<T::Event>]) -> Box<dyn Touched<T::Event> + 'p> {
        let mut keys = Vec::new();
        let mut last_touched_at = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            for key in T::keys(&event.data, &event.stream) {
                // An event that names a key twice touches that row once.
                if last_touched_at.insert(key.clone(), at) != Some(at) {
                    keys.push((at, key));
                }
            }
        }
        let absent = |key| (key, Slot::<T> { row: None, existed: false });
        let rows = last_touched_at.into_keys().map(absent).collect();
        Box::new(TouchedRows { table: &self.sql, keys, rows })
    }
}

/// A row on its way through a batch.
struct Slot<T> {
    row: Option<T>,
    /// Whether the table holds it, so that a row that is gone in the end has to be deleted.
    existed: bool,
}

struct TouchedRows<'p, T: Fold> {
    table: &'p TableSql,
    /// The keys that each event touches, by the event's place in the batch.
    keys: Vec<(usize, T::Key)>,
    rows: HashMap<T::Key, Slot<T>>,
}

pub(super) fn by_key<'d, K: Key>(sql: &'d Sql, keys: impl Iterator<Item = &'d K>) -> Load<'d> {
    Load { sql, params: boxed(ColumnArray::transpose(keys.map(Key::values))) }
}

pub(super) fn boxed<'d>(columns: Vec<ColumnArray<'d>>) -> Vec<Box<dyn ToSql + Sync + Send + 'd>> {
    columns.into_iter().map(|column| Box::new(column) as Box<dyn ToSql + Sync + Send + 'd>).collect()
}

impl<T: Fold> Touched<T::Event> for TouchedRows<'_, T> {
    fn row_locks(&self) -> Vec<u64> {
        let seed = stable_hash(0, self.table.definition.as_bytes());
        self.rows.keys().map(|key| hash_of(seed, key, &self.table.key_types)).collect()
    }

    fn touches_any(&self) -> bool {
        !self.rows.is_empty()
    }

    fn load(&self) -> Option<LoadRows<'_>> {
        self.touches_any().then(|| LoadRows(by_key(&self.table.load, self.rows.keys())))
    }

    fn hold(&self) -> Option<LoadRows<'_>> {
        self.touches_any().then(|| LoadRows(by_key(&self.table.hold, self.rows.keys())))
    }

    fn unseen(&self, loaded: &[tokio_postgres::Row]) -> Result<Option<LoadRows<'_>>, ProjectError> {
        let seen = loaded
            .iter()
            .map(|row| Ok(T::from_row(row)?.key()))
            .collect::<Result<HashSet<_>, ProjectError>>()?;
        let mut absent = self.rows.keys().filter(|key| !seen.contains(*key)).peekable();
        if absent.peek().is_none() {
            return Ok(None);
        }
        Ok(Some(LoadRows(by_key(&self.table.unseen, absent))))
    }

    fn fold(
        &mut self,
        loaded: &[tokio_postgres::Row],
        events: &[Recorded<T::Event>],
        types: &[String],
    ) -> Result<(), ProjectError> {
        for row in loaded {
            let row = T::from_row(row)?;
            self.rows.insert(row.key(), Slot { row: Some(row), existed: true });
        }
        for (at, key) in &self.keys {
            let event = &events[*at];
            let Entry::Occupied(mut slot) = self.rows.entry(key.clone()) else {
                panic!("BUG: a key was touched that was not collected");
            };
            let before = slot.get_mut().row.take();
            slot.get_mut().row = T::fold(before, key, event);
            if slot.get().row.as_ref().is_some_and(|row| !row.has_key(key)) {
                let (position, event_type) = (event.position, types[*at].clone());
                return Err(ProjectError::KeyChanged { table: T::TABLE, position, event_type });
            }
        }
        Ok(())
    }

    fn writes(&self) -> Vec<LoadRows<'_>> {
        let kept: Vec<&T> = self.rows.values().filter_map(|slot| slot.row.as_ref()).collect();
        let gone: Vec<&T::Key> = self
            .rows
            .iter()
            .filter(|(_, slot)| slot.existed && slot.row.is_none())
            .map(|(key, _)| key)
            .collect();
        let mut writes = Vec::new();
        if !kept.is_empty() {
            let columns = ColumnArray::transpose(kept.iter().map(|row| row.values()));
            writes.push(LoadRows(Load { sql: &self.table.upsert, params: boxed(columns) }));
        }
        if !gone.is_empty() {
            writes.push(LoadRows(by_key(&self.table.delete, gone.into_iter())));
        }
        writes
    }
}

/// A fold projector underneath.
pub(crate) struct Folding<E> {
    pub(super) tables: Vec<Box<dyn FoldTable<E>>>,
}

impl<E> Folding<E> {
    pub(crate) fn of<P: FoldProjector<Event = E>>(schema: &str) -> Self {
        Self { tables: P::Tables::tables(schema) }
    }

    pub(crate) fn definitions(&self) -> Vec<TableDefinition> {
        self.tables.iter().map(|table| table.definition()).collect()
    }
}

impl<E: DeserializeOwned + Send + Sync + 'static> Project for Folding<E> {
    fn needs_transaction(&self) -> bool {
        false
    }

    fn parallel(&self) -> &dyn Parallel {
        self
    }

    fn writes(&self) -> Vec<&Sql> {
        self.tables.iter().flat_map(|table| table.writes().0).collect()
    }

    fn decode<'p>(&'p self, events: &[RawEvent]) -> Result<Box<dyn Decoded + 'p>, ProjectError> {
        let decoded = super::decode_all(events)?;
        let types = events.iter().map(|event| event.event_type.clone()).collect();
        let touched = catch_unwind(AssertUnwindSafe(|| {
            self.tables.iter().map(|table| table.touch(&decoded)).collect::<Vec<_>>()
        }))
        .map_err(|_| panicked(events))?;
        Ok(Box::new(FoldBatch { types, decoded, touched }))
    }
}

struct FoldBatch<'p, E> {
    types: Vec<String>,
    decoded: Vec<Recorded<E>>,
    touched: Vec<Box<dyn Touched<E> + 'p>>,
}

/// Which of several events it was is found out by trying them one by one.
fn panicked(events: &[RawEvent]) -> ProjectError {
    let first = events.first().expect("BUG: an empty batch panicked");
    ProjectError::Panicked { position: first.recorded.position, event_type: first.event_type.clone() }
}

impl<E: Send + Sync> Decoded for FoldBatch<'_, E> {
    fn row_locks(&self) -> Vec<u64> {
        self.touched.iter().flat_map(|touched| touched.row_locks()).collect()
    }

    fn loads(&self) -> Vec<Load<'_>> {
        self.touched.iter().filter_map(|touched| touched.load()).map(|LoadRows(load)| load).collect()
    }

    fn load_count(&self) -> usize {
        self.touched.iter().filter(|touched| touched.touches_any()).count()
    }

    fn holds(&self) -> Vec<Load<'_>> {
        self.touched.iter().filter_map(|touched| touched.hold()).map(|LoadRows(hold)| hold).collect()
    }

    fn unseen(&self, loaded: &[Vec<tokio_postgres::Row>]) -> Result<Vec<Load<'_>>, ProjectError> {
        let loading = self.touched.iter().filter(|touched| touched.touches_any());
        let unseen = loading.zip(loaded).map(|(touched, loaded)| touched.unseen(loaded));
        unseen.map(|load| Ok(load?.map(|LoadRows(load)| load))).filter_map(Result::transpose).collect()
    }

    fn place(&mut self, placed: &[RawEvent]) {
        super::place_all(&mut self.decoded, placed);
    }

    fn fold(&mut self, mut loaded: &[Vec<tokio_postgres::Row>]) -> Result<(), ProjectError> {
        for touched in &mut self.touched {
            if !touched.touches_any() {
                continue;
            }
            let (own, rest) = loaded.split_first().expect("BUG: a table was touched and not loaded");
            loaded = rest;
            let folding = catch_unwind(AssertUnwindSafe(|| touched.fold(own, &self.decoded, &self.types)));
            folding.unwrap_or_else(|_| {
                Err(ProjectError::Panicked {
                    position: self.decoded[0].position,
                    event_type: self.types[0].clone(),
                })
            })?;
        }
        Ok(())
    }

    fn writes(&self) -> Vec<Load<'_>> {
        self.touched.iter().flat_map(|touched| touched.writes()).map(|LoadRows(write)| write).collect()
    }

    fn run<'t>(&'t self, _tx: &'t Transaction<'_>, _path: Path) -> BoxFuture<'t, Result<(), ProjectError>> {
        ready(Ok(())).boxed()
    }
}
