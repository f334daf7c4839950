//! One shard of a parallel replay: folds its rows, and from time to time writes them with its checkpoint.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{Pool, Transaction};
use futures_util::SinkExt;
use tokio::sync::mpsc;

use super::place::{Commits, Place, Stopped};
use super::source::Stretch;
use crate::projector::ProjectError;
use crate::projector::parallel::{Shard, TableChanges};
use crate::store::{Store, StoreError, read_committed};
use crate::words::position::Position;

/// A shard at work.
pub(super) struct Worker {
    pub(super) at: Place,
    pub(super) pool: Pool,
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
                self.write(self.memory_bytes / 2).await?;
                last = Instant::now();
            }
        }
        self.write(0).await
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
        let client = self.pool.get().await.map_err(StoreError::from)?;
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

    /// Writes what changed together with the checkpoint, and keeps so many bytes of rows in memory.
    async fn write(&mut self, keep_bytes: usize) -> Result<(), Stopped> {
        if self.folded <= self.at.written {
            return Ok(());
        }
        let pool = self.pool.clone();
        let mut client = pool.get().await.map_err(StoreError::from)?;
        let tx = loop {
            let tx = read_committed(&mut client).await?;
            if self.at.admits(&tx, Commits::AsSet).await? {
                break tx;
            }
            tx.rollback().await?;
        };
        for changes in self.rows.changes() {
            write_table(&self.at.store, &tx, changes).await.map_err(|error| match error {
                ProjectError::Store(error) => error.into(),
                source => self.at.rows_error(source),
            })?;
        }
        self.at.advance(&tx, self.folded).await?;
        tx.commit().await?;
        self.at.written = self.folded;
        self.rows.written(keep_bytes);
        Ok(())
    }
}

async fn write_table(
    store: &Store,
    tx: &Transaction<'_>,
    changes: TableChanges<'_>,
) -> Result<(), ProjectError> {
    if let Some(mut new) = changes.new {
        let mut sink = pin!(tx.copy_in(changes.copy_in).await?);
        while let Some(bytes) = new.next()? {
            sink.feed(bytes).await?;
        }
        sink.finish().await?;
    }
    for write in &changes.rest {
        store.query(tx, write.sql, &write.params()).await?;
    }
    Ok(())
}
