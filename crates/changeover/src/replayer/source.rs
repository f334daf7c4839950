//! The log, read by several connections, decoded in parallel, handed on in position order.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::stream::TryStreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::log::copy::{self, CopiedEvent};
use crate::projector::parallel::Piece;
use crate::projector::{ProjectError, Registered};
use crate::store::{Store, StoreError};
use crate::words::position::Position;

/// Pieces that a connection may be ahead.
const AHEAD: usize = 2;

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
    /// The piece holds everything up to here.
    pub(super) reached: Position,
    /// Why it ends before the stretch does.
    pub(super) failed: Option<ProjectError>,
}

/// Who reads, and for whom.
pub(super) struct Reading {
    pub(super) store: Arc<Store>,
    /// Each projector with the number of its shards.
    pub(super) projectors: Vec<(Arc<Registered>, usize)>,
    pub(super) after: Position,
    pub(super) up_to: Position,
    /// Positions that one statement looks at.
    pub(super) span: i64,
    /// Events that are left out.
    pub(super) without: Vec<Position>,
    pub(super) connections: usize,
    /// About how large a piece may get.
    pub(super) piece_bytes: usize,
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

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.bytes[begin..*end])
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
        let reading = Arc::new(reading);
        let mut tasks = JoinSet::new();
        let readers = (0..connections).map(|at| {
            let (sender, receiver) = mpsc::channel(AHEAD);
            let reading = reading.clone();
            tasks.spawn(async move {
                if let Err(error) = read(&reading, at, connections, &sender).await {
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
    reading: &Arc<Reading>,
    first: usize,
    connections: usize,
    sender: &mpsc::Sender<Message>,
) -> Result<(), StoreError> {
    let client = reading.store.single().await?;
    let types: BTreeSet<&str> = reading
        .projectors
        .iter()
        .flat_map(|(registered, _)| registered.event_types.iter().map(String::as_str))
        .collect();
    let types: Vec<String> = types.into_iter().map(literal).collect();
    let (schema, columns, types) = (&reading.store.schema, copy::COLUMNS, types.join(", "));
    let without: Vec<String> = reading.without.iter().map(ToString::to_string).collect();
    let without = match &without[..] {
        [] => String::new(),
        positions => format!("AND e.position NOT IN ({})", positions.join(", ")),
    };
    let spans = (reading.after.get()..reading.up_to.get())
        .step_by(usize::try_from(reading.span).expect("BUG: 64 bits"));
    for after in spans.skip(first).step_by(connections) {
        let up_to = reading.up_to.get().min(after + reading.span);
        let sql = format!(
            "COPY (SELECT {columns} FROM {schema}.events e
                   WHERE e.position > {after} AND e.position <= {up_to} AND e.type IN ({types}) {without}
                   ORDER BY e.position) TO STDOUT (FORMAT binary)"
        );
        let mut messages = std::pin::pin!(client.copy_out(&sql).await?);
        let (mut tuples, mut first) = (Tuples::default(), true);
        while let Some(message) = messages.try_next().await? {
            if let Some(tuple) = copy::tuple(&message, std::mem::take(&mut first)) {
                tuples.push(tuple);
            }
            if tuples.bytes.len() >= reading.piece_bytes
                && !decode(reading, std::mem::take(&mut tuples), None, sender).await
            {
                return Ok(());
            }
        }
        let whole = decode(reading, tuples, Some(Position::new(up_to)), sender).await;
        if !whole || sender.send(Message::End).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Hands tuples on, to be decoded on their way. False where nobody wants them any more.
async fn decode(
    reading: &Arc<Reading>,
    tuples: Tuples,
    reached: Option<Position>,
    sender: &mpsc::Sender<Message>,
) -> bool {
    let Ok(place) = sender.reserve().await else { return false };
    let reading = reading.clone();
    place.send(Message::Piece(tokio::task::spawn_blocking(move || stretch(&reading, &tuples, reached))));
    true
}

fn stretch(reading: &Reading, tuples: &Tuples, reached: Option<Position>) -> Result<Stretch, StoreError> {
    let events = tuples.iter().map(CopiedEvent::parse).collect::<Result<Vec<_>, _>>()?;
    let reached = reached
        .or_else(|| events.last().map(|last| last.position))
        .expect("BUG: a stretch without events, and without an end");
    let parts = reading.projectors.iter().map(|(registered, shards)| {
        let parallel = registered.projector.parallel();
        let (piece, failed) = if reading.projectors.len() == 1 {
            parallel.decode(&events, *shards)
        } else {
            let handled = |event: &&CopiedEvent<'_>| registered.handles(event.event_type);
            parallel.decode(&events.iter().filter(handled).copied().collect::<Vec<_>>(), *shards)
        };
        let before = failed.as_ref().and_then(ProjectError::event).map(|(position, _)| position.get() - 1);
        Part { piece, reached: before.map_or(reached, Position::new), failed }
    });
    Ok(Stretch { reached, events: events.len() as u64, parts: parts.collect() })
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
