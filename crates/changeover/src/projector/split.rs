//! SQL projectors in the bulk of a replay: which part an event belongs to, and the statements of one part.
//!
//! The rows of a SQL projector are known to nobody but its own statements. So its events go through one shard, in position order,
//! unless it declares how they may be split.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use deadpool_postgres::Transaction;
use futures_util::future::BoxFuture;

use super::ProjectError;
use super::decoded::{DecodedOnce, Types, panicked};
use super::known::Known;
use super::parallel::{Parallel, Piece, Work, shard_of};
use super::row::stable_hash;
use super::sql::{Running, SqlProjector};
use crate::codec;
use crate::copied::CopiedEvent;
use crate::store::Path;
use crate::words::event::{RawEvent, Recorded};
use crate::words::position::Position;

/// Which part of a SQL projector's rows an event belongs to. Any process, any build and any platform makes the same one of the
/// same bytes.
///
/// ```
/// use changeover::SplitKey;
///
/// assert_eq!(SplitKey::of("order-1"), SplitKey::of(&String::from("order-1")));
/// assert_ne!(SplitKey::of("order-1"), SplitKey::of("order-2"));
/// // A number goes by its bytes; several parts of a key by what tells them apart.
/// assert_ne!(SplitKey::of(&7_i64.to_be_bytes()), SplitKey::of(&8_i64.to_be_bytes()));
/// let (tenant, order) = (3, "order-1");
/// assert_ne!(SplitKey::of(&format!("{tenant}/{order}")), SplitKey::of(order));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SplitKey(u64);

impl SplitKey {
    /// The key of some bytes: of a text, a UUID, a number's bytes. Costs no allocation.
    pub fn of<K: AsRef<[u8]> + ?Sized>(key: &K) -> Self {
        Self(stable_hash(0, key.as_ref()))
    }
}

impl fmt::Debug for SplitKey {
    /// Says nothing of what it was made of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SplitKey({:016x})", self.0)
    }
}

/// How the events of a SQL projector are split; see [`SqlProjector::SPLIT_BY`].
pub type SplitBy<E> = fn(event: &Recorded<E>) -> SplitKey;

/// One shard of a projector that runs its own SQL.
pub(crate) trait Statements: Send + Sync {
    /// The shard's events in a piece above a position, by their places.
    fn after(&self, piece: &Piece, after: Position) -> Range<usize>;
    /// The position and the type of one of them.
    fn event(&self, piece: &Piece, at: usize) -> (Position, String);
    /// Runs the projector's statements for some of them, at least one.
    fn run<'t>(
        &'t self,
        piece: &'t Piece,
        events: Range<usize>,
        tx: &'t Transaction<'_>,
        path: Path,
    ) -> BoxFuture<'t, Result<(), ProjectError>>;
}

/// Events of one projector, decoded, for each shard those that are its own.
type SqlPiece<E> = Vec<Part<E>>;

struct Part<E> {
    events: Vec<Recorded<E>>,
    types: Types,
}

impl<P: SqlProjector> Parallel for Running<P> {
    fn most_shards(&self) -> usize {
        if P::SPLIT_BY.is_some() { usize::MAX } else { 1 }
    }

    /// Nothing is shared: each shard has its own events one after the other, as the projector wants its batches.
    fn decode(
        &self,
        copied: &[CopiedEvent<'_>],
        shards: usize,
        once: &mut DecodedOnce,
    ) -> (Piece, Option<ProjectError>) {
        let part = |_| Part::<P::Event> {
            events: Vec::with_capacity(copied.len() / shards),
            types: once.types(copied.len() / shards),
        };
        let mut parts: SqlPiece<P::Event> = (0..shards).map(part).collect();
        let at = Cell::new(0);
        let decoding = catch_unwind(AssertUnwindSafe(|| {
            for (place, event) in copied.iter().enumerate() {
                at.set(place);
                let data = codec::decode(event.event_type, event.data).map_err(|reason| {
                    let (position, event_type) = (event.position, event.event_type.to_owned());
                    ProjectError::Undecodable { position, event_type, reason }
                })?;
                let recorded = event.recorded(data);
                let part = match P::SPLIT_BY {
                    Some(split_by) if shards > 1 => shard_of(split_by(&recorded).0, shards),
                    _ => 0,
                };
                parts[part].events.push(recorded);
                parts[part].types.push(event);
            }
            Ok(())
        }));
        let error = decoding.unwrap_or_else(|_| Err(panicked(&copied[at.get()])));
        (Box::new(parts), error.err())
    }

    fn shard(&self, shard: usize, _known: Known) -> Work {
        let running = Self { projector: self.projector.clone(), schema: self.schema.clone() };
        Work::Statements(Box::new(SqlShard { running: Arc::new(running), shard }))
    }

    fn split(&self, events: &[RawEvent]) -> Vec<Option<i64>> {
        let Some(split_by) = P::SPLIT_BY else { return Vec::new() };
        let key = |event: &RawEvent| {
            let data = codec::decode(&event.event_type, event.recorded.data.get()).ok()?;
            Some(split_by(&event.with_data(data)).0.cast_signed())
        };
        events.iter().map(|event| catch_unwind(AssertUnwindSafe(|| key(event))).ok().flatten()).collect()
    }
}

struct SqlShard<P> {
    running: Arc<Running<P>>,
    shard: usize,
}

impl<P: SqlProjector> SqlShard<P> {
    fn part<'p>(&self, piece: &'p Piece) -> &'p Part<P::Event> {
        let piece: &(dyn Any + Send + Sync) = &**piece;
        let parts: &SqlPiece<P::Event> = piece.downcast_ref().expect("BUG: a piece of another projector");
        &parts[self.shard]
    }
}

impl<P: SqlProjector> Statements for SqlShard<P> {
    fn after(&self, piece: &Piece, after: Position) -> Range<usize> {
        let events = &self.part(piece).events;
        events.partition_point(|event| event.position <= after)..events.len()
    }

    fn event(&self, piece: &Piece, at: usize) -> (Position, String) {
        let part = self.part(piece);
        (part.events[at].position, part.types.get(at))
    }

    fn run<'t>(
        &'t self,
        piece: &'t Piece,
        events: Range<usize>,
        tx: &'t Transaction<'_>,
        path: Path,
    ) -> BoxFuture<'t, Result<(), ProjectError>> {
        let part = self.part(piece);
        let first = events.start;
        Box::pin(self.running.project(&part.events[events], tx, path, move || part.types.get(first)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_changes() {
        // Pinned: another value here means that a replay goes on with other shards than it was begun with.
        assert_eq!(format!("{:?}", SplitKey::of("a")), "SplitKey(e6c632b61e964e1f)");
        let shards: Vec<usize> = (0..8).map(|n| shard_of(SplitKey::of(&format!("order-{n}")).0, 4)).collect();
        assert_eq!(shards, [3, 3, 0, 0, 3, 3, 3, 3]);
        let mut sizes = [0; 4];
        for n in 0..4_000 {
            sizes[shard_of(SplitKey::of(&format!("order-{n}")).0, 4)] += 1;
        }
        assert!(
            sizes.iter().all(|size| (900..1_100).contains(size)),
            "they are of about the same size: {sizes:?}"
        );
    }
}
