//! Folding in parallel: which shard an event's rows belong to, and the rows that one shard holds in memory.
//!
//! Every row is folded by exactly one shard, in position order, so that the rows are those of a serial fold, also where many
//! streams feed one row. A shard keeps the rows that it touched lately; what it has not got it loads, unless it knows
//! that there is no such row.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashSet;
use std::mem::size_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use indexmap::IndexMap;
use postgres_types::IsNull;
use serde::de::DeserializeOwned;

use super::decoded::{Decoded, DecodedOnce, Types, panicked};
use super::fold::{Fold, Folding, TableSql, boxed, by_key};
use super::hashed::{ByHash, Hashed, Lookup};
use super::known::Known;
use super::row::{ColumnArray, Row, hash_of, hash_with};
use super::split::Statements;
use super::{BoxError, Load, ProjectError};
use crate::copied::CopiedEvent;
use crate::words::event::{RawEvent, Recorded};
use crate::words::position::Position;

/// Events of one projector, decoded, with the rows that they touch. Only the projector that made it knows its type.
pub(crate) type Piece = Box<dyn Any + Send + Sync>;

/// A projector in the bulk of a replay.
pub(crate) trait Parallel: Send + Sync {
    /// Into how many shards it can be split at most.
    fn most_shards(&self) -> usize {
        usize::MAX
    }
    /// Decodes events, which are of the projector's types and in position order, up to the first one that does not decode; or
    /// takes what was decoded of these very events `once` for another projector.
    fn decode(
        &self,
        events: &[CopiedEvent<'_>],
        shards: usize,
        once: &mut DecodedOnce,
    ) -> (Piece, Option<ProjectError>);
    /// What one shard does with its events.
    fn shard(&self, shard: usize, known: Known) -> Work;
    /// What some events are split by, where the projector itself has declared it; nothing for one that does not tell.
    fn split(&self, _events: &[RawEvent]) -> Vec<Option<i64>> {
        Vec::new()
    }
}

/// What a shard does with the events that are its own.
pub(crate) enum Work {
    /// Folds them into rows in memory.
    Rows(Box<dyn Shard>),
    /// Runs statements of the projector's own.
    Statements(Box<dyn Statements>),
}

/// The rows of one shard, of all tables of a projector.
pub(crate) trait Shard: Send + Sync {
    /// The statements that load the rows which a piece touches, which are not in memory and may be stored. By table.
    fn missing<'s>(&'s self, piece: &'s Piece, after: Position) -> Vec<(usize, Load<'s>)>;
    /// Takes what one of them loaded.
    fn loaded(&mut self, table: usize, rows: &[tokio_postgres::Row]) -> Result<(), ProjectError>;
    /// Folds the events of a piece above a position. On an error the rows in memory are worth nothing any more.
    fn fold(&mut self, piece: &Piece, after: Position) -> Result<(), ProjectError>;
    /// What it holds in memory, roughly.
    fn bytes(&self) -> usize;
    /// What is to be written so that the tables hold what is in memory, with so many rows in a statement at most.
    fn changes(&self, statement_rows: usize) -> Vec<TableChanges<'_>>;
    /// The changes are committed. Keeps the rows that were touched since the last time, at most so many bytes of them.
    fn written(&mut self, keep_bytes: usize);
}

/// The changes of one table.
pub(crate) struct TableChanges<'s> {
    /// `COPY` for the new rows.
    pub(crate) copy_in: &'s str,
    /// Their encoder; none if there are none.
    pub(crate) new: Option<Box<dyn CopyRows + 's>>,
    /// Upserts of rows that are stored already, and deletions, in statements of a bounded size.
    pub(crate) rest: Vec<Load<'s>>,
}

/// Rows in the binary format of `COPY`.
pub(crate) trait CopyRows: Send {
    /// The next ones, of about so many bytes; none at the end.
    fn next(&mut self, about_bytes: usize) -> Result<Option<Bytes>, ProjectError>;
}

/// What a `COPY` of rows begins with: the signature, no flags, no extension.
pub(crate) const COPY_BEGIN: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What it ends with.
pub(crate) const COPY_END: &[u8] = &(-1_i16).to_be_bytes();

// --- decoding ---------------------------------------------------------------------------------------------------------

struct FoldPiece<E> {
    decoded: Arc<Decoded<E>>,
    /// For each table, what [`FoldTable::split`] made.
    touched: Vec<Piece>,
}

/// For each shard: the place of the event in the piece, the hash of the key, the key.
type Touches<K> = Vec<Vec<(u32, u64, K)>>;

impl<E: DeserializeOwned + Send + Sync + 'static> Parallel for Folding<E> {
    fn decode(
        &self,
        copied: &[CopiedEvent<'_>],
        shards: usize,
        once: &mut DecodedOnce,
    ) -> (Piece, Option<ProjectError>) {
        let decoded = once.get::<E>(copied);
        let mut error = decoded.error(copied);
        let mut good = &decoded.events[..];
        let at = Cell::new(0);
        let touched = loop {
            let splitting = catch_unwind(AssertUnwindSafe(|| {
                self.tables.iter().map(|table| table.split(good, shards, &at)).collect::<Vec<_>>()
            }));
            if let Ok(touched) = splitting {
                break touched;
            }
            // The events before the one at fault are good.
            error = Some(panicked(&copied[at.get()]));
            good = &good[..at.get()];
        };
        (Box::new(FoldPiece { decoded, touched }), error)
    }

    fn shard(&self, shard: usize, known: Known) -> Work {
        let tables = self.tables.iter().map(|table| table.shard(shard, known.clone()).0).collect();
        Work::Rows(Box::new(FoldShard { tables }))
    }
}

/// Sorts the keys of events by shard. `at` tells which event was looked at last.
pub(super) fn split<T: Fold>(
    sql: &TableSql,
    events: &[Recorded<T::Event>],
    shards: usize,
    at: &Cell<usize>,
) -> Piece {
    // What most events touch is one row; and no shard has just its share of them.
    let share = events.len() / shards;
    let mut touches: Touches<T::Key> = (0..shards).map(|_| Vec::with_capacity(share + share / 8)).collect();
    let mut own: Vec<T::Key> = Vec::new();
    let mut bytes = BytesMut::with_capacity(64);
    for (place, event) in events.iter().enumerate() {
        at.set(place);
        own.clear();
        for key in T::keys(&event.data, &event.stream) {
            // An event that names a key twice touches that row once.
            if !own.contains(&key) {
                own.push(key);
            }
        }
        for key in own.drain(..) {
            let hash = hash_with(&mut bytes, 0, &key, &sql.key_types);
            let place = u32::try_from(place).expect("BUG: a piece of more than four billion events");
            touches[shard_of(hash, shards)].push((place, hash, key));
        }
    }
    Box::new(touches)
}

/// The upper bits, since the rows of a shard are found by the lower ones.
pub(super) fn shard_of(hash: u64, shards: usize) -> usize {
    usize::try_from(hash >> 32).expect("BUG: 32 bits") % shards
}

// --- folding ----------------------------------------------------------------------------------------------------------

struct FoldShard<E> {
    tables: Vec<Box<dyn ShardTable<E>>>,
}

impl<E: Send + Sync + 'static> Shard for FoldShard<E> {
    fn missing<'s>(&'s self, piece: &'s Piece, after: Position) -> Vec<(usize, Load<'s>)> {
        let FoldPiece::<E> { decoded, touched } = of(piece);
        let tables = self.tables.iter().zip(touched).enumerate();
        tables
            .filter_map(|(at, (table, touched))| Some((at, table.missing(&decoded.events, touched, after)?)))
            .collect()
    }

    fn loaded(&mut self, table: usize, rows: &[tokio_postgres::Row]) -> Result<(), ProjectError> {
        self.tables[table].loaded(rows)
    }

    fn fold(&mut self, piece: &Piece, after: Position) -> Result<(), ProjectError> {
        let FoldPiece::<E> { decoded, touched } = of(piece);
        let Decoded { events, types, .. } = &**decoded;
        let at = Cell::new(0);
        let folding = catch_unwind(AssertUnwindSafe(|| {
            let mut tables = self.tables.iter_mut().zip(touched);
            tables.try_for_each(|(table, touched)| table.fold(events, types, touched, after, &at))
        }));
        folding.unwrap_or_else(|_| {
            let (position, event_type) = (events[at.get()].position, types.get(at.get()));
            Err(ProjectError::Panicked { position, event_type })
        })
    }

    fn bytes(&self) -> usize {
        self.tables.iter().map(|table| table.bytes()).sum()
    }

    fn changes(&self, statement_rows: usize) -> Vec<TableChanges<'_>> {
        self.tables.iter().map(|table| table.changes(statement_rows)).collect()
    }

    fn written(&mut self, keep_bytes: usize) {
        let keep_bytes = keep_bytes / self.tables.len();
        for table in &mut self.tables {
            table.written(keep_bytes);
        }
    }
}

fn of<T: 'static>(piece: &Piece) -> &T {
    piece.downcast_ref().expect("BUG: a piece of another projector")
}

/// The rows of one table that one shard has in memory.
pub(super) trait ShardTable<E>: Send + Sync {
    fn missing<'s>(&'s self, events: &[Recorded<E>], touched: &'s Piece, after: Position)
    -> Option<Load<'s>>;
    fn loaded(&mut self, rows: &[tokio_postgres::Row]) -> Result<(), ProjectError>;
    fn fold(
        &mut self,
        events: &[Recorded<E>],
        types: &Types,
        touched: &Piece,
        after: Position,
        at: &Cell<usize>,
    ) -> Result<(), ProjectError>;
    fn bytes(&self) -> usize;
    fn changes(&self, statement_rows: usize) -> TableChanges<'_>;
    fn written(&mut self, keep_bytes: usize);
}

pub(super) struct ShardRows<T: Fold> {
    sql: Arc<TableSql>,
    shard: usize,
    known: Known,
    /// In the order in which they were touched first, which is often that of their keys: so they are cheaper to insert.
    rows: IndexMap<Hashed<T::Key>, Slot<T>, ByHash>,
    /// The bytes of an average row as it is sent, measured now and then.
    row_bytes: usize,
    folds: u64,
}

struct Slot<T> {
    row: Option<T>,
    /// Whether the table holds it.
    stored: bool,
    /// Whether the table does not hold it as it is here.
    changed: bool,
    /// Whether an event touched it since the last time that everything was written.
    touched: bool,
}

/// Every so many folds a row is measured.
const MEASURE_EVERY: u64 = 64;

/// A row in memory is larger than as it is sent: allocations, twice its key.
const OVERHEAD: usize = 48;

impl<T: Fold> ShardRows<T> {
    pub(super) fn new(sql: Arc<TableSql>, shard: usize, known: Known) -> Self {
        Self { sql, shard, known, rows: IndexMap::default(), row_bytes: 0, folds: 0 }
    }

    /// Notes how large a row is.
    fn measure(&mut self, row: &T) {
        let mut bytes = BytesMut::new();
        // What cannot be encoded is told when it is written.
        let _ = encode(&mut bytes, row, &self.sql);
        let earlier = if self.row_bytes == 0 { bytes.len() } else { self.row_bytes };
        self.row_bytes = (earlier * 15 + bytes.len()) / 16;
    }

    fn rows_bytes(&self) -> usize {
        let each = size_of::<(u64, Hashed<T::Key>, Slot<T>)>()
            + 2 * size_of::<usize>()
            + OVERHEAD
            + self.row_bytes * 3 / 2;
        self.rows.len() * each
    }
}

impl<T: Fold> ShardTable<T::Event> for ShardRows<T> {
    fn missing<'s>(
        &'s self,
        events: &[Recorded<T::Event>],
        touched: &'s Piece,
        after: Position,
    ) -> Option<Load<'s>> {
        if matches!(self.known, Known::Empty) {
            return None;
        }
        let by_shard: &Touches<T::Key> = of(touched);
        let missing: HashSet<&T::Key> = by_shard[self.shard]
            .iter()
            .filter(|(event, hash, key)| {
                events[*event as usize].position > after
                    && self.known.may_be_stored(*hash)
                    && !self.rows.contains_key(&Lookup { hash: *hash, key })
            })
            .map(|(_, _, key)| key)
            .collect();
        (!missing.is_empty()).then(|| by_key(&self.sql.load, missing.into_iter()))
    }

    fn loaded(&mut self, rows: &[tokio_postgres::Row]) -> Result<(), ProjectError> {
        for row in rows {
            let row = T::from_row(row)?;
            let hash = hash_of(0, &row.key(), &self.sql.key_types);
            let key = Hashed { hash, key: row.key() };
            self.rows.insert(key, Slot { row: Some(row), stored: true, changed: false, touched: true });
        }
        Ok(())
    }

    fn fold(
        &mut self,
        events: &[Recorded<T::Event>],
        types: &Types,
        touched: &Piece,
        after: Position,
        at: &Cell<usize>,
    ) -> Result<(), ProjectError> {
        let by_shard: &Touches<T::Key> = of(touched);
        for (place, hash, key) in &by_shard[self.shard] {
            let place = *place as usize;
            let event = &events[place];
            if event.position <= after {
                continue;
            }
            at.set(place);
            let slot = match self.rows.get_mut(&Lookup { hash: *hash, key }) {
                Some(slot) => slot,
                None => self.rows.entry(Hashed { hash: *hash, key: key.clone() }).or_insert(Slot {
                    row: None,
                    stored: false,
                    changed: false,
                    touched: false,
                }),
            };
            slot.row = T::fold(slot.row.take(), key, event);
            (slot.changed, slot.touched) = (true, true);
            if let Some(row) = &slot.row {
                if !row.has_key(key) {
                    let (position, event_type) = (event.position, types.get(place));
                    return Err(ProjectError::KeyChanged { table: T::TABLE, position, event_type });
                }
                self.folds += 1;
                if self.folds % MEASURE_EVERY == 1 {
                    let row = row.clone();
                    self.measure(&row);
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.rows_bytes() + self.known.bytes()
    }

    fn changes(&self, statement_rows: usize) -> TableChanges<'_> {
        let changed = || self.rows.iter().filter(|(_, slot)| slot.changed);
        let kept: Vec<&T> =
            changed().filter(|(_, slot)| slot.stored).filter_map(|(_, slot)| slot.row.as_ref()).collect();
        let gone: Vec<&T::Key> = changed()
            .filter(|(_, slot)| slot.stored && slot.row.is_none())
            .map(|(key, _)| &key.key)
            .collect();
        let upserts = kept.chunks(statement_rows).map(|rows| Load {
            sql: &self.sql.upsert,
            params: boxed(ColumnArray::transpose(rows.iter().map(|row| row.values()))),
        });
        let deletions =
            gone.chunks(statement_rows).map(|keys| by_key(&self.sql.delete, keys.iter().copied()));
        let new = changed().filter(|(_, slot)| !slot.stored).filter_map(|(_, slot)| slot.row.as_ref());
        let mut new = new.peekable();
        TableChanges {
            rest: upserts.chain(deletions).collect(),
            copy_in: &self.sql.copy_in,
            new: new
                .peek()
                .is_some()
                .then(|| Box::new(Encoder { sql: &self.sql, rows: new }) as Box<dyn CopyRows + '_>),
        }
    }

    fn written(&mut self, keep_bytes: usize) {
        // Beside the rows, in the part that they leave free: hashes that filled all of it would have everything written again after
        // every stretch.
        let most_known = keep_bytes / 2;
        if self.known.bytes() > most_known {
            self.known = Known::Nothing;
        }
        self.rows.retain(|_, slot| {
            (slot.stored, slot.changed) = (slot.row.is_some(), false);
            slot.stored
        });
        for untouched_only in [true, false] {
            if self.rows_bytes() <= keep_bytes {
                break;
            }
            let known = &mut self.known;
            self.rows.retain(|key, slot| {
                let keep = untouched_only && slot.touched;
                if !keep {
                    known.store(key.hash, most_known);
                }
                keep
            });
            self.rows.shrink_to_fit();
        }
        self.rows.values_mut().for_each(|slot| slot.touched = false);
    }
}

// --- writing ----------------------------------------------------------------------------------------------------------

struct Encoder<'s, R> {
    sql: &'s TableSql,
    rows: R,
}

impl<'s, T: Row, R: Iterator<Item = &'s T> + Send> CopyRows for Encoder<'s, R> {
    fn next(&mut self, about_bytes: usize) -> Result<Option<Bytes>, ProjectError> {
        let mut bytes = BytesMut::with_capacity(about_bytes + about_bytes / 8);
        while bytes.len() < about_bytes
            && let Some(row) = self.rows.next()
        {
            encode(&mut bytes, row, self.sql).map_err(ProjectError::Projector)?;
        }
        Ok((!bytes.is_empty()).then(|| bytes.freeze()))
    }
}

/// Encodes a row as a tuple of the binary format.
fn encode<T: Row>(bytes: &mut BytesMut, row: &T, sql: &TableSql) -> Result<(), BoxError> {
    let values = row.values();
    bytes.put_i16(i16::try_from(values.len())?);
    for (value, ty) in values.into_iter().zip(&sql.types) {
        let at = bytes.len();
        bytes.put_i32(-1);
        if let IsNull::No = value.to_sql_checked(ty, bytes)? {
            let length = i32::try_from(bytes.len() - at - 4)?;
            bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::fold::{FoldProjector, TableShard};
    use super::*;
    use crate::words::names::StreamName;
    use crate::words::position::Revision;

    #[derive(serde::Deserialize)]
    enum CountEvent {
        Counted { id: i64 },
    }

    #[derive(changeover::Row, Clone)]
    #[row(table = "counts")]
    struct Count {
        #[row(key)]
        id: i64,
        times: i64,
    }

    impl Fold for Count {
        type Event = CountEvent;

        fn keys(CountEvent::Counted { id }: &CountEvent, _: &StreamName) -> impl IntoIterator<Item = i64> {
            [*id]
        }

        fn fold(row: Option<Self>, id: &i64, _: &Recorded<CountEvent>) -> Option<Self> {
            Some(Self { id: *id, times: row.map_or(0, |row| row.times) + 1 })
        }
    }

    struct Counts;

    impl FoldProjector for Counts {
        const NAME: &'static str = "counts";
        const VERSION: semver::Version = semver::Version::new(1, 0, 0);
        type Event = CountEvent;
        type Tables = (Count,);
    }

    fn counted(ids: impl IntoIterator<Item = i64>) -> Vec<Recorded<CountEvent>> {
        let counted = |id| Recorded {
            position: Position::new(id + 1),
            stream: "counts".parse().unwrap(),
            revision: Revision::new(id + 1),
            recorded_at: SystemTime::UNIX_EPOCH,
            metadata: None,
            data: CountEvent::Counted { id },
        };
        ids.into_iter().map(counted).collect()
    }

    #[test]
    fn a_shard_keeps_to_its_memory_however_many_rows_it_has_written_and_forgets_none_of_them() {
        const LIMIT: usize = 200_000;
        let folding = Folding::of::<Counts>("counts_v1");
        let table = &folding.tables[0];
        let TableShard(mut shard) = table.shard(0, Known::Empty);
        let mut writes = 0;
        for hundred in 0..1_000 {
            let events = counted(hundred * 100..hundred * 100 + 100);
            let touched = table.split(&events, 1, &Cell::new(0));
            shard.fold(&events, &Types::default(), &touched, Position::START, &Cell::new(0)).unwrap();
            if shard.bytes() > LIMIT {
                shard.written(LIMIT / 2);
                writes += 1;
                assert!(shard.bytes() <= LIMIT, "{} bytes after {writes} writes", shard.bytes());
            }
        }
        // Not after every stretch.
        assert!(writes < 250, "{writes} writes");
        shard.written(LIMIT / 2);
        shard.written(0);
        for id in (0..100_000).step_by(97) {
            let events = counted([id]);
            let touched = table.split(&events, 1, &Cell::new(0));
            assert!(shard.missing(&events, &touched, Position::START).is_some(), "row {id} is taken for new");
        }
    }
}
