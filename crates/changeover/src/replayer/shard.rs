//! One shard of a parallel replay: folds its rows, and from time to time writes them with its checkpoint.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use deadpool_postgres::Transaction;
use futures_util::SinkExt;
use tokio::sync::mpsc;

use super::place::{Commits, Place, Stopped, Writers};
use super::source::Stretch;
use super::throttle::Turn;
use crate::projector::ProjectError;
use crate::projector::parallel::{COPY_BEGIN, COPY_END, Shard, TableChanges};
use crate::store::{Store, read_committed};
use crate::words::position::Position;

/// What is sent at once: rows in a statement, bytes in a message of `COPY`.
const STATEMENT_ROWS: usize = 5_000;
const COPY_BYTES: usize = 256 << 10;

/// What is written between two breaths: rows in a statement, bytes in a `COPY`.
const BREATH_ROWS: usize = 250;
const BREATH_BYTES: usize = 32 << 10;

/// A shard at work.
pub(super) struct Worker {
    pub(super) at: Place,
    pub(super) writers: Writers,
    /// Which of the source's projectors this is.
    pub(super) projector: usize,
    pub(super) rows: Box<dyn Shard>,
    /// How far its rows in memory have come.
    pub(super) folded: Position,
    /// What its rows may take up in memory.
    pub(super) memory_bytes: usize,
    pub(super) checkpoint_every: Duration,
}

impl Worker {
    /// Folds what comes, and writes it. Returns when nothing comes any more and everything is written.
    pub(super) async fn run(mut self, mut input: mpsc::Receiver<Arc<Stretch>>) -> Result<(), Stopped> {
        // While the first of the log is on its way, a connection costs no time.
        drop(self.writers.client().await?);
        let mut last = Instant::now();
        loop {
            let due = self.checkpoint_every.saturating_sub(last.elapsed());
            match tokio::time::timeout(due, input.recv()).await {
                Ok(Some(stretch)) => self = self.take(stretch).await?,
                Ok(None) => break,
                Err(_) => {}
            }
            let full = self.rows.bytes() > self.memory_bytes;
            if full || last.elapsed() >= self.checkpoint_every {
                self.write(Commits::AsSet).await?;
                self.rows.written(self.memory_bytes / 2);
                last = Instant::now();
            }
        }
        // Whoever makes one checkpoint of the shards' waits for the disk.
        self.write(Commits::Lazily).await?;
        // Nobody waits until so much memory is free again.
        drop(tokio::task::spawn_blocking(move || drop(self.rows)));
        Ok(())
    }

    async fn take(mut self, stretch: Arc<Stretch>) -> Result<Self, Stopped> {
        if stretch.parts[self.projector].reached <= self.folded {
            return Ok(self);
        }
        self.load(&stretch).await?;
        let (worker, folded) = tokio::task::spawn_blocking(move || {
            let part = &stretch.parts[self.projector];
            let folded = self.rows.fold(&part.piece, self.folded).map(|()| part.reached);
            (self, folded)
        })
        .await
        .expect("BUG: a fold's panic was not caught");
        self = worker;
        match folded {
            Ok(reached) => {
                self.folded = reached;
                Ok(self)
            }
            Err(source) => match source.event() {
                Some((position, event_type)) => {
                    Err(Stopped::Event { position, event_type: event_type.to_owned(), source })
                }
                None => Err(self.at.rows_error(source)),
            },
        }
    }

    /// Loads the rows that a stretch touches and that are not in memory.
    async fn load(&mut self, stretch: &Stretch) -> Result<(), Stopped> {
        let missing = self.rows.missing(&stretch.parts[self.projector].piece, self.folded);
        if missing.is_empty() {
            return Ok(());
        }
        let client = self.writers.client().await?;
        let mut loaded = Vec::with_capacity(missing.len());
        for (table, load) in &missing {
            loaded.push((*table, self.at.store.query(&client, load.sql, &load.params()).await?));
        }
        drop(missing);
        for (table, rows) in loaded {
            self.rows.loaded(table, &rows).map_err(|source| self.at.rows_error(source))?;
        }
        Ok(())
    }

    /// Writes what changed together with the checkpoint.
    async fn write(&mut self, commits: Commits) -> Result<(), Stopped> {
        if self.folded <= self.at.written {
            return Ok(());
        }
        let writers = self.writers.clone();
        let turn = match &writers.breaths {
            Some(breaths) => Some(breaths.turn().await),
            None => None,
        };
        let mut client = writers.client().await?;
        let tx = loop {
            let tx = read_committed(&mut client).await?;
            if self.at.admits(&tx, commits).await? {
                break tx;
            }
            tx.rollback().await?;
        };
        let turn = turn.as_ref();
        for changes in self.rows.changes(turn.map_or(STATEMENT_ROWS, |_| BREATH_ROWS)) {
            let written = write_table(&self.at.store, &tx, changes, turn).await;
            written.map_err(|source| self.at.not_written(self.folded, source))?;
        }
        self.at.advance(&tx, self.folded).await?;
        tx.commit().await?;
        self.at.written = self.folded;
        Ok(())
    }
}

async fn write_table(
    store: &Store,
    tx: &Transaction<'_>,
    changes: TableChanges<'_>,
    turn: Option<&Turn>,
) -> Result<(), ProjectError> {
    if let Some(mut new) = changes.new {
        match turn {
            None => copy(tx, changes.copy_in, || new.next(COPY_BYTES)).await?,
            Some(turn) => {
                while let Some(rows) = new.next(BREATH_BYTES)? {
                    let mut rows = Some(rows);
                    turn.take(copy(tx, changes.copy_in, || Ok(rows.take()))).await?;
                }
            }
        }
    }
    for write in &changes.rest {
        let params = write.params();
        let writing = store.query(tx, write.sql, &params);
        match turn {
            None => writing.await?,
            Some(turn) => turn.take(writing).await?,
        };
    }
    Ok(())
}

/// Copies rows in, until none come any more.
async fn copy(
    tx: &Transaction<'_>,
    copy_in: &str,
    mut next: impl FnMut() -> Result<Option<Bytes>, ProjectError>,
) -> Result<(), ProjectError> {
    let mut sink = pin!(tx.copy_in(copy_in).await?);
    sink.feed(Bytes::from_static(COPY_BEGIN)).await?;
    while let Some(rows) = next()? {
        sink.feed(rows).await?;
    }
    sink.feed(Bytes::from_static(COPY_END)).await?;
    sink.finish().await?;
    Ok(())
}
