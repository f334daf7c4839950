//! The log, read by several connections, decoded in parallel, handed on in position order.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::TryStreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::copied::{self, CopiedEvent};
use crate::projector::decoded::DecodedOnce;
use crate::projector::parallel::Piece;
use crate::projector::{ProjectError, Registered};
use crate::store::{Store, StoreError};
use crate::words::position::Position;

/// Pieces that a connection may be ahead.
const AHEAD: usize = 2;

/// Where this share of the events, in percent, is handled, leaving the others to us costs less than having the server look at
/// the type of each.
const NEARLY_ALL: usize = 95;

/// A stretch of the log, decoded.
pub(super) struct Stretch {
    /// Everything up to here has been looked at.
    pub(super) reached: Position,
    /// The events in it, of any of the projectors.
    pub(super) events: u64,
    /// For each projector, its part of them.
    pub(super) parts: Vec<Part>,
}

/// What a stretch is to one projector.
pub(super) struct Part {
    pub(super) piece: Piece,
    /// Events of its own that were not counted before.
    pub(super) events: u64,
    /// The piece holds everything up to here.
    pub(super) reached: Position,
    /// Why it ends before the stretch does.
    pub(super) failed: Option<ProjectError>,
}

/// What is read, and how.
pub(super) struct Reading {
    pub(super) store: Arc<Store>,
    pub(super) readers: Vec<Reader>,
    pub(super) after: Position,
    pub(super) up_to: Position,
    /// Positions that one statement looks at.
    pub(super) span: i64,
    /// Events that are left out.
    pub(super) without: Vec<Position>,
    pub(super) connections: usize,
    /// About how large a piece may get.
    pub(super) piece_bytes: usize,
    /// How many events it may hold.
    pub(super) piece_events: usize,
}

/// For whom.
pub(super) struct Reader {
    pub(super) registered: Arc<Registered>,
    /// Into how many shards its events are split.
    pub(super) shards: usize,
    /// Its events up to here were counted before.
    pub(super) counted: Position,
}

/// What the connections share.
struct Shared {
    reading: Reading,
    /// The event types that any of the projectors handles, sorted.
    types: Arc<[String]>,
    /// Nearly all events are of these types, so the server sends all of them.
    nearly_all: AtomicBool,
    /// Memory of tuples that were decoded.
    spare: Mutex<Vec<Tuples>>,
}

impl Shared {
    fn tuples(&self) -> Tuples {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, mut tuples: Tuples) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.reading.connections {
            tuples.bytes.clear();
            tuples.ends.clear();
            spare.push(tuples);
        }
    }
}

enum Message {
    Piece(JoinHandle<Result<Stretch, StoreError>>),
    /// The next span is another connection's.
    End,
    Failed(StoreError),
}

/// Tuples in one piece of memory: those of the connection are free again at once.
#[derive(Default)]
struct Tuples {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Tuples {
    fn push(&mut self, tuple: &[u8]) {
        self.bytes.extend_from_slice(tuple);
        self.ends.push(self.bytes.len());
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        (0..self.len()).map(|at| {
            let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.bytes[begin..self.ends[at]]
        })
    }
}

/// The log in stretches.
pub(super) struct Source {
    readers: Vec<mpsc::Receiver<Message>>,
    turn: usize,
    reached: Position,
    up_to: Position,
    // Dropped, they end.
    _tasks: JoinSet<()>,
}

impl Source {
    pub(super) fn start(reading: Reading) -> Self {
        let (after, up_to) = (reading.after, reading.up_to);
        let spans =
            usize::try_from((up_to.get() - after.get()).max(0) / reading.span + 1).unwrap_or(usize::MAX);
        let connections = reading.connections.clamp(1, spans);
        let types: BTreeSet<String> =
            reading.readers.iter().flat_map(|reader| reader.registered.event_types.iter().cloned()).collect();
        let shared = Arc::new(Shared {
            reading,
            types: types.into_iter().collect(),
            nearly_all: AtomicBool::new(false),
            spare: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let readers = (0..connections).map(|at| {
            let (sender, receiver) = mpsc::channel(AHEAD);
            let shared = shared.clone();
            tasks.spawn(async move {
                if let Err(error) = read(&shared, at, connections, &sender).await {
                    // Nobody who would want to know is left if this fails.
                    let _ = sender.send(Message::Failed(error)).await;
                }
            });
            receiver
        });
        Self { readers: readers.collect(), turn: 0, reached: after, up_to, _tasks: tasks }
    }

    /// The next stretch; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Stretch>, StoreError> {
        while self.reached < self.up_to {
            match self.readers[self.turn].recv().await {
                Some(Message::Piece(decoding)) => {
                    let stretch = decoding.await.expect("BUG: decoding panicked")?;
                    self.reached = stretch.reached;
                    return Ok(Some(stretch));
                }
                Some(Message::End) => self.turn = (self.turn + 1) % self.readers.len(),
                Some(Message::Failed(error)) => return Err(error),
                None => panic!("BUG: a reader ended before the log did"),
            }
        }
        Ok(None)
    }
}

/// Reads every so-manieth span.
async fn read(
    shared: &Arc<Shared>,
    first: usize,
    connections: usize,
    sender: &mpsc::Sender<Message>,
) -> Result<(), StoreError> {
    let reading = &shared.reading;
    // It waits for whoever is to take what it reads.
    let client = reading.store.patient().await?;
    let types: Vec<String> = shared.types.iter().map(|name| literal(name)).collect();
    let (schema, columns, types) = (&reading.store.schema, copied::COLUMNS, types.join(", "));
    let without: Vec<String> = reading.without.iter().map(ToString::to_string).collect();
    let without = match &without[..] {
        [] => String::new(),
        positions => format!("AND e.position NOT IN ({})", positions.join(", ")),
    };
    let spans = (reading.after.get()..reading.up_to.get())
        .step_by(usize::try_from(reading.span).expect("BUG: 64 bits"));
    for after in spans.skip(first).step_by(connections) {
        let up_to = reading.up_to.get().min(after + reading.span);
        let all = shared.nearly_all.load(Relaxed);
        let of_types = if all { String::new() } else { format!("AND e.type IN ({types})") };
        let sql = format!(
            "COPY (SELECT {columns} FROM {schema}.events e
                   WHERE e.position > {after} AND e.position <= {up_to} {of_types} {without}
                   ORDER BY e.position) TO STDOUT (FORMAT binary)"
        );
        let mut messages = std::pin::pin!(client.copy_out(&sql).await?);
        let (mut tuples, mut first, mut read) = (shared.tuples(), true, 0);
        while let Some(message) = messages.try_next().await? {
            if let Some(tuple) = copied::tuple(&message, std::mem::take(&mut first)) {
                tuples.push(tuple);
                read += 1;
            }
            if tuples.bytes.len() >= reading.piece_bytes || tuples.len() >= reading.piece_events {
                let full = std::mem::replace(&mut tuples, shared.tuples());
                if !decode(shared, full, None, all, sender).await {
                    return Ok(());
                }
            }
        }
        if !all
            && read * 100 >= usize::try_from(up_to - after).unwrap_or(usize::MAX).saturating_mul(NEARLY_ALL)
        {
            shared.nearly_all.store(true, Relaxed);
        }
        let whole = decode(shared, tuples, Some(Position::new(up_to)), all, sender).await;
        if !whole || sender.send(Message::End).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Hands tuples on, to be decoded on their way. False where nobody wants them any more.
async fn decode(
    shared: &Arc<Shared>,
    tuples: Tuples,
    reached: Option<Position>,
    all: bool,
    sender: &mpsc::Sender<Message>,
) -> bool {
    let Ok(place) = sender.reserve().await else { return false };
    let shared = shared.clone();
    place.send(Message::Piece(tokio::task::spawn_blocking(move || {
        let stretch = stretch(&shared, &tuples, reached, all);
        shared.give_back(tuples);
        stretch
    })));
    true
}

/// Decodes tuples: of all events, or of those that the server has chosen.
fn stretch(
    shared: &Shared,
    tuples: &Tuples,
    reached: Option<Position>,
    all: bool,
) -> Result<Stretch, StoreError> {
    let reading = &shared.reading;
    let mut events = Vec::with_capacity(tuples.len());
    for tuple in tuples.iter() {
        events.extend(CopiedEvent::parse(tuple, &shared.types)?);
    }
    let reached = reached
        .or_else(|| tuples.iter().next_back().and_then(CopiedEvent::position))
        .expect("BUG: a stretch without events, and without an end");
    if all && events.len() * 100 < tuples.len() * NEARLY_ALL {
        shared.nearly_all.store(false, Relaxed);
    }
    let mut kinds: Vec<Kind<'_>> = Vec::new();
    let parts = reading.readers.iter().map(|reader| {
        let Reader { registered, shards, counted } = reader;
        let kind = Kind::of(&mut kinds, &registered.event_types, &events, &shared.types);
        let own = kind.events.as_ref();
        let counted = own.partition_point(|event| event.position <= *counted);
        let (piece, failed) = registered.projector.parallel().decode(own, *shards, &mut kind.decoded);
        let before = failed.as_ref().and_then(ProjectError::event).map(|(position, _)| position.get() - 1);
        let events = (own.len() - counted) as u64;
        Part { piece, events, reached: before.map_or(reached, Position::new), failed }
    });
    let parts = parts.collect();
    Ok(Stretch { reached, events: events.len() as u64, parts })
}

/// The events of those that handle the same types.
struct Kind<'e> {
    types: &'e [String],
    events: Cow<'e, [CopiedEvent<'e>]>,
    decoded: DecodedOnce,
}

impl<'e> Kind<'e> {
    /// The kind of these types, found or made.
    fn of<'k>(
        kinds: &'k mut Vec<Self>,
        types: &'e [String],
        all: &'e [CopiedEvent<'e>],
        everybodys: &Arc<[String]>,
    ) -> &'k mut Self {
        let known = kinds.iter().position(|kind| kind.types == types);
        let at = known.unwrap_or_else(|| {
            let events = if types == &**everybodys {
                Cow::Borrowed(all)
            } else {
                let is_own = |event: &&CopiedEvent<'_>| {
                    types.binary_search_by(|own| own.as_str().cmp(event.event_type)).is_ok()
                };
                Cow::Owned(all.iter().filter(is_own).copied().collect())
            };
            kinds.push(Self { types, events, decoded: DecodedOnce::new(everybodys.clone()) });
            kinds.len() - 1
        });
        &mut kinds[at]
    }
}

/// Text as a literal: `COPY` takes no parameters.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_holds_any_text() {
        assert_eq!(literal("It's a \\ '\\' "), "E'It\\'s a \\\\ \\'\\\\\\' '");
    }
}
