//! One shard of a parallel replay: folds its rows, and from time to time writes them with its checkpoint.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{Pool, Transaction};
use futures_util::SinkExt;
use postgres_types::ToSql;
use tokio::sync::mpsc;

use super::source::Stretch;
use super::{ReplayError, permit};
use crate::projector::parallel::{Shard, TableChanges};
use crate::projector::{ProjectError, Registered};
use crate::store::{Store, StoreError, read_committed};
use crate::words::position::{Generation, Position};

/// A shard at work.
pub(super) struct Worker {
    pub(super) store: Arc<Store>,
    pub(super) pool: Pool,
    pub(super) registered: Arc<Registered>,
    /// Which of the source's projectors this is.
    pub(super) projector: usize,
    /// Its number among the checkpoints.
    pub(super) shard: i32,
    pub(super) rows: Box<dyn Shard>,
    /// Its checkpoint.
    pub(super) written: Position,
    /// How far its rows in memory have come.
    pub(super) folded: Position,
    /// What its rows may take up in memory.
    pub(super) memory_bytes: usize,
    pub(super) checkpoint_every: Duration,
    pub(super) checkpoint: Checkpoint,
}

/// What is written together with the rows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Checkpoint {
    /// The shard's checkpoint, as long as the replay is at this attempt and this generation lets the version be replayed.
    Kept { attempt: i32, generation: Generation },
    /// None: nobody else knows of these tables, and nobody will go on with them.
    None,
}

/// Why a shard stopped.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It cannot fold an event. What it had written before stays.
    Fold { position: Position, event_type: String, source: ProjectError },
    /// Anything else.
    Other(ReplayError),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

impl From<tokio_postgres::Error> for Stopped {
    fn from(error: tokio_postgres::Error) -> Self {
        StoreError::from(error).into()
    }
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
                    Err(Stopped::Fold { position, event_type: event_type.to_owned(), source })
                }
                None => Err(Stopped::Other(ReplayError::Rows {
                    projector: self.registered.target.projector.clone(),
                    version: self.registered.target.version.clone(),
                    source,
                })),
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
            loaded.push((*table, self.store.query(&client, load.sql, &load.params()).await?));
        }
        drop(missing);
        for (table, rows) in loaded {
            self.rows.loaded(table, &rows).map_err(|source| self.rows_error(source))?;
        }
        Ok(())
    }

    /// Writes what changed together with the checkpoint, and keeps so many bytes of rows in memory.
    async fn write(&mut self, keep_bytes: usize) -> Result<(), Stopped> {
        if self.folded <= self.written {
            return Ok(());
        }
        let pool = self.pool.clone();
        let mut client = pool.get().await.map_err(StoreError::from)?;
        let tx = loop {
            let tx = read_committed(&mut client).await?;
            let Checkpoint::Kept { attempt, generation } = self.checkpoint else {
                self.store.query_one(&tx, &self.store.sql.enter_scratch, &[]).await?;
                break tx;
            };
            if self.enter(&tx, attempt, generation).await? {
                break tx;
            }
            tx.rollback().await?;
            // The states changed: whether this version is still to be replayed is decided anew.
            let single = self.store.single().await?;
            let permit =
                permit(&self.store, &single, &self.registered, attempt).await.map_err(Stopped::Other)?;
            self.checkpoint = Checkpoint::Kept { attempt, generation: permit.generation };
        };
        for changes in self.rows.changes() {
            write_table(&self.store, &tx, changes).await.map_err(|error| match error {
                ProjectError::Store(error) => error.into(),
                source => self.rows_error(source),
            })?;
        }
        if let Checkpoint::Kept { .. } = self.checkpoint {
            let (projector, major) = (self.registered.target.projector.as_str(), self.registered.major());
            let params: [&(dyn ToSql + Sync); 5] =
                [&projector, &major, &self.shard, &self.written, &self.folded];
            self.store.query_one(&tx, &self.store.sql.advance_checkpoint, &params).await?;
        }
        tx.commit().await?;
        self.written = self.folded;
        self.rows.written(keep_bytes);
        Ok(())
    }

    /// Whether the transaction is admitted at this shard's checkpoint.
    async fn enter(&self, tx: &Transaction<'_>, attempt: i32, decided: Generation) -> Result<bool, Stopped> {
        let target = &self.registered.target;
        let params: [&(dyn ToSql + Sync); 4] =
            [&target.projector.as_str(), &self.registered.major(), &self.shard, &attempt];
        let row = self.store.query_one(tx, &self.store.sql.enter_shard, &params).await?;
        if row.get::<_, Option<Position>>("position") != Some(self.written) {
            let (projector, version) = self.registered.id();
            return Err(Stopped::Other(ReplayError::Overtaken { projector, version, shard: self.shard }));
        }
        Ok(row.get::<_, Option<Generation>>("generation") == Some(decided))
    }

    fn rows_error(&self, source: ProjectError) -> Stopped {
        let (projector, version) = self.registered.id();
        Stopped::Other(ReplayError::Rows { projector, version, source })
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
