//! Reading: by stream, or the whole log up to the horizon.

use serde::de::DeserializeOwned;

use crate::codec;
use crate::horizon;
use crate::store::{On, Store, StoreError, rows};
use crate::words::event::{RawEvent, Recorded};
use crate::words::names::StreamName;
use crate::words::position::{Position, Revision};

/// Why events were not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// An event is not of the type that was asked for.
    #[error("event {position} ({event_type}) cannot be decoded: {reason}")]
    Undecodable {
        /// Its position.
        position: Position,
        /// Its type.
        event_type: String,
        /// Where its data does not fit.
        reason: String,
    },
    /// The database did not do as asked.
    #[error("the database refused to read")]
    Store(#[from] StoreError),
}

/// Limits of one batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) rows: i64,
    pub(crate) bytes: i64,
    /// How far one statement may look for events of the wanted types.
    pub(crate) span: i64,
}

impl Limits {
    /// Of a batch that is published or replayed.
    pub(crate) const BATCH: Self = Self { rows: 1_000, bytes: 16 << 20, span: 100_000 };

    /// The same, with no more rows than this.
    pub(crate) fn of_rows(self, most: Option<usize>) -> Self {
        let most = most.and_then(|most| i64::try_from(most).ok()).unwrap_or(self.rows);
        Self { rows: self.rows.min(most), ..self }
    }
}

/// A batch of events, and how far the log was looked at for them.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<RawEvent>,
    /// Everything up to here has been looked at.
    pub(crate) reached: Position,
}

/// The next events after a position, up to a horizon that was taken before.
pub(crate) async fn next(
    store: &Store,
    on: impl Into<On<'_>>,
    after: Position,
    horizon: Position,
    types: Option<&[String]>,
    limits: Limits,
) -> Result<Batch, StoreError> {
    let up_to = horizon.min(Position::new(after.get().saturating_add(limits.span)));
    let rows =
        store.query(on, &store.sql.read, &[&after, &up_to, &types, &limits.rows, &limits.bytes]).await?;
    let events = rows.iter().map(rows::event).collect::<Result<Vec<_>, _>>()?;
    let read = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let cut = rows
        .first()
        .is_some_and(|row| row.get::<_, i64>("found") >= limits.rows || row.get::<_, i64>("found") > read);
    let reached = match events.last() {
        Some(last) if cut => last.recorded.position,
        _ => up_to,
    };
    Ok(Batch { events, reached })
}

/// The log after a position, in batches, up to the horizon as it is at each batch.
#[derive(Debug)]
pub struct Reader {
    store: std::sync::Arc<Store>,
    after: Position,
    rows: i64,
}

impl Reader {
    pub(crate) fn new(store: std::sync::Arc<Store>, after: Position, rows: usize) -> Self {
        Self { store, after, rows: i64::try_from(rows.max(1)).unwrap_or(i64::MAX) }
    }

    /// The next events, in position order; none where the reader has reached the horizon. It goes on from there when it
    /// is asked again: nothing that commits late is ever skipped.
    ///
    /// Costs two statements.
    pub async fn next(&mut self) -> Result<Vec<RawEvent>, StoreError> {
        let client = self.store.client().await?;
        let horizon = horizon::look(&self.store, &client).await?.horizon;
        let mut looked_at = self.after;
        while looked_at < horizon {
            let limits = Limits { rows: self.rows, ..Limits::BATCH };
            let batch = next(&self.store, &client, looked_at, horizon, None, limits).await?;
            // Only events are remembered: the positions of appends that were rolled back may be drawn again once the server
            // has crashed.
            if let Some(last) = batch.events.last() {
                self.after = last.recorded.position;
                return Ok(batch.events);
            }
            looked_at = batch.reached;
        }
        Ok(Vec::new())
    }

    /// The position of the last event that was read.
    pub fn position(&self) -> Position {
        self.after
    }
}

impl RawEvent {
    /// Decodes the event.
    pub fn decode<E: DeserializeOwned>(&self) -> Result<Recorded<E>, ReadError> {
        codec::decode(&self.event_type, self.recorded.data.get()).map(|data| self.with_data(data)).map_err(
            |reason| ReadError::Undecodable {
                position: self.recorded.position,
                event_type: self.event_type.clone(),
                reason,
            },
        )
    }
}

/// The events of one stream after a revision.
pub(crate) async fn stream<E: DeserializeOwned>(
    store: &Store,
    on: impl Into<On<'_>>,
    stream: &StreamName,
    after: Revision,
    limit: usize,
) -> Result<Vec<Recorded<E>>, ReadError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = store.query(on, &store.sql.read_stream, &[&stream.as_str(), &after, &limit]).await?;
    rows.iter().map(|row| rows::event(row)?.decode()).collect()
}
