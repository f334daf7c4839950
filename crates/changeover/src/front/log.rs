//! The front of the log: append and read.

use deadpool_postgres::Transaction;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Changeover;
use crate::codec;
use crate::core::Core;
use crate::log::append::{Appended, Appending, NewEvents};
use crate::log::error::AppendError;
use crate::log::read::{self, ReadError, Reader};
use crate::store::StoreError;
use crate::words::event::{Expected, Recorded};
use crate::words::names::StreamName;
use crate::words::position::{Position, Revision};

impl Changeover {
    /// Appends events to a stream, in a transaction of its own.
    ///
    /// One round trip; two where inline folds handle the events. [`Expected::Any`] waits for its turn at the stream, inside
    /// that one.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]. Nothing was written, unless the connection was lost: then the stream has to be read to know.
    pub async fn append<E: Serialize>(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
    ) -> Result<Appended, AppendError> {
        self.append_alone(stream, expected, &NewEvents::encode(events, None)?).await
    }

    /// Like [`append`](Self::append), with metadata for each of the events: who, why, because of what.
    pub async fn append_with<E: Serialize>(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
        metadata: &impl Serialize,
    ) -> Result<Appended, AppendError> {
        let metadata = codec::encode_metadata(metadata)?;
        self.append_alone(stream, expected, &NewEvents::encode(events, Some(metadata))?).await
    }

    async fn append_alone(
        &self,
        stream: &StreamName,
        expected: Expected,
        new: &NewEvents,
    ) -> Result<Appended, AppendError> {
        let mut lent = self.core.store.lent().await?;
        let appended = self.appending(stream, expected, new).alone(&mut lent).await;
        if appended.is_err() || self.core.configuration.runs_sql_inline() {
            lent.give_back();
        } else {
            lent.give_back_untouched();
        }
        let appended = appended?;
        if let Some(last) = appended.last() {
            self.core.appended(new.types(), last);
        }
        Ok(appended)
    }

    /// Appends events to a stream inside the caller's transaction, whatever its isolation level.
    ///
    /// One round trip; two where inline folds handle the events. The caller commits, soon: while the transaction is
    /// open, readers of the log stop before its events, and an activation waits for it.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]. Roll the transaction back.
    pub async fn append_in<E: Serialize>(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
    ) -> Result<Appended, AppendError> {
        self.append_within(tx, stream, expected, &NewEvents::encode(events, None)?).await
    }

    /// Like [`append_in`](Self::append_in), with metadata for each of the events.
    pub async fn append_in_with<E: Serialize>(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
        metadata: &impl Serialize,
    ) -> Result<Appended, AppendError> {
        let metadata = codec::encode_metadata(metadata)?;
        self.append_within(tx, stream, expected, &NewEvents::encode(events, Some(metadata))?).await
    }

    async fn append_within(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        expected: Expected,
        new: &NewEvents,
    ) -> Result<Appended, AppendError> {
        let appended = self.appending(stream, expected, new).within(tx).await?;
        // It is not committed yet: whoever looks now sees it in flight, and looks again soon.
        self.core.appending();
        Ok(appended)
    }

    fn appending<'a>(
        &'a self,
        stream: &'a StreamName,
        expected: Expected,
        new: &'a NewEvents,
    ) -> Appending<'a> {
        let Core { store, decider, activation_wait, .. } = &*self.core;
        Appending { store, decider, activation_wait: *activation_wait, stream, expected, new }
    }

    /// The events of a stream after a revision, at most `limit`.
    pub async fn read_stream<E: DeserializeOwned>(
        &self,
        stream: &StreamName,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Recorded<E>>, ReadError> {
        let client = self.core.store.client().await?;
        read::stream(&self.core.store, &client, stream, after, limit).await
    }

    /// Like [`read_stream`](Self::read_stream), inside a transaction.
    pub async fn read_stream_in<E: DeserializeOwned>(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Recorded<E>>, ReadError> {
        read::stream(&self.core.store, tx, stream, after, limit).await
    }

    /// Reads the whole log after a position, in batches of at most `batch` events, up to the horizon.
    pub fn read(&self, after: Position, batch: usize) -> Reader {
        Reader::new(self.core.store.clone(), after, batch)
    }

    /// The position at and below which no append is in flight any more.
    pub async fn horizon(&self) -> Result<Position, StoreError> {
        let client = self.core.store.client().await?;
        Ok(crate::horizon::look(&self.core.store, &client).await?.horizon)
    }
}
