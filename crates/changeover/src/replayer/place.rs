//! Where a shard of a replay stands: its checkpoint, which moves in the transaction that writes its rows, and only from where the
//! shard believes it to be.

use std::sync::Arc;

use deadpool_postgres::{Client, Pool, Timeouts, Transaction};
use postgres_types::ToSql;

use super::throttle::Breaths;
use super::{ReplayError, permit};
use crate::projector::{ProjectError, Registered};
use crate::store::connect::{self, Untouched};
use crate::store::{Store, StoreError};
use crate::words::position::{Generation, Position};

/// Where a shard stands.
pub(super) struct Place {
    pub(super) store: Arc<Store>,
    pub(super) registered: Arc<Registered>,
    /// Its number among the checkpoints.
    pub(super) shard: i32,
    /// Its checkpoint.
    pub(super) written: Position,
    pub(super) checkpoint: Checkpoint,
}

/// The connections that shards write on. What they ask for takes as long as it does, whatever limit the role has.
#[derive(Debug, Clone)]
pub(super) struct Writers {
    pool: Pool,
    /// How they are written on where the replay is held back.
    pub(super) breaths: Option<Breaths>,
}

impl Writers {
    pub(super) fn new(
        store: &Store,
        connections: usize,
        breaths: Option<Breaths>,
    ) -> Result<Self, StoreError> {
        let config = connect::without_limit(&store.config);
        Ok(Self { pool: connect::pool(&config, connections, Untouched::default())?, breaths })
    }

    /// A connection. Waits for as long as other shards need theirs.
    pub(super) async fn client(&self) -> Result<Client, StoreError> {
        let patiently =
            Timeouts { wait: None, create: Some(connect::TIMEOUT), recycle: Some(connect::TIMEOUT) };
        Ok(self.pool.timeout_get(&patiently).await?)
    }
}

/// What is written together with the rows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Checkpoint {
    /// The shard's checkpoint, as long as the replay is at this attempt and this generation lets the version be replayed.
    Kept { attempt: i32, generation: Generation },
    /// None: nobody else knows of these tables, and nobody will go on with them.
    None,
}

/// Whether commits wait until they are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commits {
    /// As the session has it.
    AsSet,
    /// They do not. Rows and checkpoint are lost together or not at all, and the commit that ends the replay waits for all before.
    Lazily,
}

/// Why a shard stopped.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It cannot project an event. What it had written before stays.
    Event { position: Position, event_type: String, source: ProjectError },
    /// The server refuses the rows that are written up to a position, and took those of its checkpoint.
    Refused { shard: i32, after: Position, up_to: Position, source: ProjectError },
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

impl Place {
    /// Whether a transaction is admitted at this shard's checkpoint. If it is not, the states have changed, and it was decided anew
    /// whether the version is still to be replayed: begin another one.
    pub(super) async fn admits(&mut self, tx: &Transaction<'_>, commits: Commits) -> Result<bool, Stopped> {
        let Checkpoint::Kept { attempt, generation } = self.checkpoint else {
            self.store.query_one(tx, &self.store.sql.enter_scratch, &[]).await?;
            return Ok(true);
        };
        if self.enter(tx, attempt, commits).await? == Some(generation) {
            return Ok(true);
        }
        let single = self.store.single().await?;
        let permit = permit(&self.store, &single, &self.registered, attempt).await.map_err(Stopped::Other)?;
        self.checkpoint = Checkpoint::Kept { attempt, generation: permit.generation };
        Ok(false)
    }

    async fn enter(
        &self,
        tx: &Transaction<'_>,
        attempt: i32,
        commits: Commits,
    ) -> Result<Option<Generation>, Stopped> {
        let target = &self.registered.target;
        let durability = (commits == Commits::Lazily).then_some("off");
        let params: [&(dyn ToSql + Sync); 5] =
            [&target.projector.as_str(), &self.registered.major(), &self.shard, &attempt, &durability];
        let row = self.store.query_one(tx, &self.store.sql.enter_shard, &params).await?;
        if row.get::<_, Option<Position>>("position") != Some(self.written) {
            let (projector, version) = self.registered.id();
            return Err(Stopped::Other(ReplayError::Overtaken { projector, version, shard: self.shard }));
        }
        Ok(row.get("generation"))
    }

    /// Moves the checkpoint in a transaction that was admitted. The last statement before its commit, which reports no error where
    /// the transaction was broken before.
    pub(super) async fn advance(&self, tx: &Transaction<'_>, to: Position) -> Result<(), StoreError> {
        let Checkpoint::Kept { .. } = self.checkpoint else {
            return self.store.query_one(tx, &self.store.sql.generation, &[]).await.map(drop);
        };
        let (projector, major) = (self.registered.target.projector.as_str(), self.registered.major());
        let params: [&(dyn ToSql + Sync); 5] = [&projector, &major, &self.shard, &self.written, &to];
        self.store.query_one(tx, &self.store.sql.advance_checkpoint, &params).await.map(drop)
    }

    /// Rows up to a position were not written.
    pub(super) fn not_written(&self, up_to: Position, source: ProjectError) -> Stopped {
        match (source, self.checkpoint) {
            // It lost a race: nothing is wrong with the rows.
            (ProjectError::Store(error), _) if error.is_retryable() => error.into(),
            (source, Checkpoint::Kept { .. }) if !source.is_outage() => {
                Stopped::Refused { shard: self.shard, after: self.written, up_to, source }
            }
            (source, _) => self.rows_error(source),
        }
    }

    pub(super) fn rows_error(&self, source: ProjectError) -> Stopped {
        Stopped::Other(ReplayError::rows(self.registered.id(), source))
    }
}
