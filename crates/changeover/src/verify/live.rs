//! The rows that are there, page by page, each with the position at which they stand.
//!
//! A page and the position are read in one snapshot. Rows and checkpoint are committed together, so the rows of a background
//! projector are exactly those at the checkpoint. Appends keep the rows of an inline projector: their snapshot holds what the
//! events at and below the horizon have made of them, and those events above it which are visible. As two appends that touch
//! one row follow one another, each after the other's commit, folding these in position order gives the rows of the snapshot.

use std::time::{Duration, Instant};

use postgres_types::ToSql;
use tokio::time::sleep;
use tokio_postgres::{Client, Row};

use super::{AGAIN, SNAPSHOT, Standing, Subject, VerifyError, compare};
use crate::horizon;
use crate::in_flight;
use crate::log::read::{self, Batch, Limits};
use crate::store::{On, Store, StoreError};
use crate::words::event::RawEvent;
use crate::words::position::Position;

/// Where the rows of a snapshot stand.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// They hold everything up to here.
    pub(super) position: Position,
    /// And these events above it.
    pub(super) beyond: Vec<RawEvent>,
    /// They do without these.
    pub(super) skipped: Vec<Position>,
    /// How often their replay was begun, where they are registered.
    attempt: Option<i32>,
}

/// Events above the horizon that are held in memory: an append that has been open for long may hold any number up.
const BEYOND: Limits = Limits { rows: 10_000, bytes: 32 << 20, span: i64::MAX };

/// The tables that are there.
pub(super) struct Live<'a> {
    pub(super) store: &'a Store,
    pub(super) subject: &'a Subject<'a>,
    /// How long to wait for a horizon that is held up.
    pub(super) patience: Duration,
    pub(super) client: Client,
}

impl Live<'_> {
    /// Runs statements in a snapshot of which it is known where the rows stand; the snapshot ends with the last of them.
    pub(super) async fn snapshot(
        &self,
        statement: Option<(String, Vec<String>)>,
    ) -> Result<Snapshot, VerifyError> {
        let started = Instant::now();
        loop {
            // Before the snapshot: what is at or below it is visible there.
            let horizon = horizon::look(self.store, &self.client).await?.horizon;
            self.execute(SNAPSHOT).await?;
            if let Some(snapshot) = self.standing(horizon).await? {
                if let Some((sql, params)) = statement {
                    compare::run(On::from(&self.client), sql, &params).await?;
                }
                self.execute("COMMIT").await?;
                return if self.attempt().await? == snapshot.attempt {
                    Ok(snapshot)
                } else {
                    let (projector, version) = self.subject.registered.id();
                    Err(VerifyError::WentBack { projector, version })
                };
            }
            self.execute("ROLLBACK").await?;
            if started.elapsed() > self.patience {
                let (projector, version) = self.subject.registered.id();
                let blockers = in_flight::look(self.store, &self.client).await?;
                return Err(VerifyError::HeldUp { projector, version, blockers, after: started.elapsed() });
            }
            sleep(AGAIN).await;
        }
    }

    /// Where the rows of the snapshot stand. None if too much of it lies above the horizon.
    async fn standing(&self, horizon: Position) -> Result<Option<Snapshot>, VerifyError> {
        let registered = self.subject.registered;
        let (by_appends, position, skipped, attempt) = match self.subject.standing {
            Standing::At(position) => (false, position, Vec::new(), None),
            Standing::ByAppends => (true, horizon, Vec::new(), None),
            Standing::Registered => {
                let (projector, version) = registered.id();
                let Some(row) = self.checkpoint().await? else {
                    return Err(VerifyError::NotThere { projector, version });
                };
                if row.get("in_shards") {
                    return Err(VerifyError::InShards { projector, version });
                }
                let inline = row.get("inline");
                let position = if inline { horizon } else { row.get("position") };
                (inline, position, row.get("skipped"), Some(row.get("attempt")))
            }
        };
        let mut beyond = Vec::new();
        if by_appends {
            let types = Some(&registered.event_types[..]);
            let end = Position::new(i64::MAX);
            let batch = read::next(self.store, &self.client, position, end, types, BEYOND).await?;
            let Batch { events, reached } = batch;
            if reached < end {
                return Ok(None);
            }
            beyond = events;
        }
        Ok(Some(Snapshot { position, beyond, skipped, attempt }))
    }

    /// The attempt as it is now. A replay that is started over empties its tables also for snapshots that were taken before.
    async fn attempt(&self) -> Result<Option<i32>, StoreError> {
        if self.subject.standing != Standing::Registered {
            return Ok(None);
        }
        Ok(self.checkpoint().await?.map(|row| row.get("attempt")))
    }

    async fn checkpoint(&self) -> Result<Option<Row>, StoreError> {
        let registered = self.subject.registered;
        let params: [&(dyn ToSql + Sync); 2] = [&registered.target.projector.as_str(), &registered.major()];
        self.store.query_opt(&self.client, &self.store.sql.verified_at, &params).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        Ok(self.client.batch_execute(sql).await?)
    }
}
