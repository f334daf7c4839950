//! One shard of a replay whose projector runs its own SQL: some events at a time, with the shard's checkpoint.
//!
//! While it does so the next events are read and decoded. Its transactions are short, since a row that is changed a thousand times
//! in one is a thousand row versions that nobody may clear away before its end; so that they cost little all the same, their
//! commits do not wait for the disk.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::Client;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;

use super::place::{Commits, Place, Stopped, Writers};
use super::source::{Part, Stretch};
use crate::projector::ProjectError;
use crate::projector::split::Statements;
use crate::store::{Path, StoreError, read_committed};
use crate::words::position::Position;

/// Events in one transaction, at most.
const AT_ONCE: usize = 1_000;

/// A shard at work.
pub(super) struct Running {
    pub(super) writers: Writers,
    /// Which of the source's projectors this is.
    pub(super) projector: usize,
    pub(super) statements: Box<dyn Statements>,
    pub(super) at: Place,
    /// It has nothing to do with the events between its checkpoint and this.
    pub(super) seen: Position,
    pub(super) checkpoint_every: Duration,
}

/// Why events were not projected; their transaction is rolled back.
enum Failed {
    /// Their projector failed.
    Project(ProjectError),
    /// Nothing is known to be wrong with them.
    Stopped(Stopped),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Stopped(error.into())
    }
}

impl Running {
    /// Projects what comes. Returns when nothing comes any more and its checkpoint is where that ended.
    pub(super) async fn run(mut self, mut input: mpsc::Receiver<Arc<Stretch>>) -> Result<(), Stopped> {
        let mut moved = Instant::now();
        while let Some(stretch) = input.recv().await {
            let part = &stretch.parts[self.projector];
            if part.reached <= self.seen {
                continue;
            }
            let events = self.statements.after(&part.piece, self.seen);
            if !events.is_empty() {
                self.take(part, events).await?;
                moved = Instant::now();
            }
            self.seen = part.reached;
            if moved.elapsed() >= self.checkpoint_every {
                self.pass().await?;
                moved = Instant::now();
            }
        }
        self.pass().await
    }

    /// Moves the checkpoint over events that are not this shard's.
    async fn pass(&mut self) -> Result<(), Stopped> {
        if self.seen <= self.at.written {
            return Ok(());
        }
        let mut client = self.writers.client().await?;
        match self.write(&mut client, None, self.seen).await {
            Ok(()) => Ok(()),
            Err(Failed::Project(source)) => Err(self.at.rows_error(source)),
            Err(Failed::Stopped(stopped)) => Err(stopped),
        }
    }

    /// Projects some events of a part of a stretch, so many at a time. If they fail together they are taken one by one, so
    /// that the one at fault is named.
    async fn take(&mut self, part: &Part, events: Range<usize>) -> Result<(), Stopped> {
        let evenly = events.len().div_ceil(events.len().div_ceil(AT_ONCE));
        let mut client = self.writers.client().await?;
        let (mut one_by_one, mut lost) = (0, false);
        let mut next = events.start;
        while next < events.end {
            let end = events.end.min(next + if one_by_one > 0 { 1 } else { evenly });
            let to = match end {
                end if end == events.end => part.reached,
                end => self.statements.event(&part.piece, end - 1).0,
            };
            match self.write(&mut client, Some((part, next..end)), to).await {
                Ok(()) => {
                    one_by_one -= usize::from(one_by_one > 0);
                    (next, lost) = (end, false);
                }
                Err(Failed::Stopped(stopped)) => return Err(stopped),
                Err(Failed::Project(source)) if source.is_retryable() => {}
                // Neither the projector nor an event is to be mended.
                Err(Failed::Project(source)) if source.is_outage() && !is_lost(&client, &source) => {
                    return Err(self.at.rows_error(source));
                }
                Err(Failed::Project(_)) if end - next > 1 => {
                    one_by_one = end - next;
                    // Perhaps it was the connection.
                    client = self.another(client).await?;
                }
                Err(Failed::Project(source)) => {
                    if is_lost(&client, &source) && !lost {
                        lost = true;
                        client = self.another(client).await?;
                        continue;
                    }
                    let (position, event_type) = self.statements.event(&part.piece, next);
                    return Err(Stopped::Event { position, event_type, source });
                }
            }
        }
        Ok(())
    }

    /// Projects events, if any, and moves the checkpoint.
    async fn write(
        &mut self,
        client: &mut Client,
        events: Option<(&Part, Range<usize>)>,
        to: Position,
    ) -> Result<(), Failed> {
        let tx = loop {
            let tx = read_committed(client).await?;
            if self.at.admits(&tx, Commits::Lazily).await.map_err(Failed::Stopped)? {
                break tx;
            }
            tx.rollback().await.map_err(StoreError::from)?;
        };
        if let Some((part, events)) = events {
            // COPY has read them: this is a direct connection.
            self.statements.run(&part.piece, events, &tx, Path::Direct).await.map_err(Failed::Project)?;
        }
        self.at.advance(&tx, to).await.map_err(|error| match &error {
            // The projector has let an error of the database pass.
            StoreError::Database(db) if db.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                Failed::Project(error.into())
            }
            _ => error.into(),
        })?;
        tx.commit().await.map_err(StoreError::from).map_err(|error| match &error {
            // What is checked in the end was refused; otherwise nobody knows whether it is there.
            StoreError::Database(db) if db.as_db_error().is_some() && !error.is_disconnect() => {
                Failed::Project(error.into())
            }
            _ => error.into(),
        })?;
        self.at.written = to;
        Ok(())
    }

    async fn another(&self, client: Client) -> Result<Client, StoreError> {
        drop(client);
        self.writers.client().await
    }
}

/// Whether it was the connection that failed, and not the projector.
fn is_lost(client: &Client, source: &ProjectError) -> bool {
    let ended = |error: &tokio_postgres::Error| {
        error.is_closed() || error.as_db_error().is_some_and(|db| db.code().code().starts_with("57P"))
    };
    client.is_closed()
        || match source {
            ProjectError::Store(StoreError::Database(error)) => ended(error),
            ProjectError::Projector(error) => error.downcast_ref().is_some_and(ended),
            _ => false,
        }
}
