//! Scratch tables: the tables of a version in a schema of their own, into which the log is folded afresh.
//!
//! They have no checkpoint and no row among the states: nobody but their maker knows of them, and whoever is killed leaves
//! tables behind that nobody will go on with. The next verification drops those. It knows them by the comment that was made
//! together with the schema, and that nobody is at them any more by a lock that ends with its maker's connection. Nothing is
//! ever dropped along with something else.

use std::sync::Arc;
use std::time::Instant;

use deadpool_postgres::{Pool, Transaction};
use tokio_postgres::Client;
use tracing::{debug, warn};
use uuid::Uuid;

use super::{OnVerify, VerifyError, VerifyProgress};
use crate::core::Core;
use crate::log::read::{self, Batch, Limits};
use crate::objects;
use crate::projector::configuration::Indexes;
use crate::projector::{ProjectError, Registered};
use crate::replayer::claims;
use crate::replayer::throttle::Throttled;
use crate::replayer::{Pace, ReplayError, ReplayPhase, ReplayProgress, fold_afresh};
use crate::step;
use crate::store::connect::{self, Untouched};
use crate::store::quote::ident;
use crate::store::{Path, Store, StoreError, read_committed};
use crate::words::event::RawEvent;
use crate::words::position::Position;

/// The tables of a version, folded afresh.
pub(super) struct Scratch<'c> {
    core: &'c Core,
    /// The version, with its tables in the schema of this.
    pub(super) registered: Arc<Registered>,
    /// Holds the mark that somebody is at it.
    claim: Client,
    pool: Pool,
    /// How far its rows have come.
    pub(super) position: Position,
    /// How many events were folded.
    pub(super) events: u64,
    /// Events that are not to be folded.
    pub(super) skipped: Vec<Position>,
    throttled: Throttled,
    started: Instant,
}

/// How long to wait for a lock on tables that are to be dropped: nobody should hold one.
const DROP_LOCKS: &str = "SET LOCAL lock_timeout = '2s'";

/// Events that a SQL projector is handed at once.
const AT_ONCE: usize = 1_000;

impl<'c> Scratch<'c> {
    /// Drops what others have left behind, and makes new tables.
    pub(super) async fn make(
        core: &'c Core,
        registered: &Registered,
        pace: &Pace,
    ) -> Result<Self, VerifyError> {
        let store = &core.store;
        let throttled = Throttled::new(store, &pace.throttle).await?;
        let claim = store.single().await?;
        sweep(store, &claim).await?;
        execute(&claim, "BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        let schema = loop {
            let id = Uuid::new_v4().simple().to_string();
            // Names have at most 63 bytes.
            let schema = format!("{:.47}_verify_{}", registered.schema, &id[..8]);
            if take(store, &claim, &schema).await? {
                break schema;
            }
        };
        // It stands still for as long as the verification takes. Until another statement comes, the last one keeps its snapshot,
        // and with it every row that is deleted anywhere.
        execute(&claim, "SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        let registered = Arc::new(registered.elsewhere(&schema));
        let client = store.single().await?;
        let indexes = match &registered.indexes {
            // They are for reading.
            Indexes::Each(_) => "",
            // The projector's own statements may need them.
            Indexes::Whole(indexes) => indexes.as_str(),
        };
        let ddl = format!(
            "BEGIN; CREATE SCHEMA {name}; COMMENT ON SCHEMA {name} IS '{}';\n{}{indexes}COMMIT",
            comment(store),
            registered.tables,
            name = ident(&schema),
        );
        client.batch_execute(&ddl).await.map_err(|source| {
            let (projector, version) = registered.id();
            VerifyError::Ddl { projector, version, source: source.into() }
        })?;
        let pool = connect::pool(&store.config, 1, Untouched::default())?;
        let scratch = Self {
            core,
            registered,
            claim,
            pool,
            position: Position::START,
            events: 0,
            skipped: Vec::new(),
            throttled,
            started: Instant::now(),
        };
        if !scratch.registered.projector.needs_transaction() {
            // Nobody will want them back after a crash.
            scratch.each_table(&client, |table| format!("ALTER TABLE {table} SET UNLOGGED")).await?;
        }
        Ok(scratch)
    }

    async fn each_table(
        &self,
        client: &Client,
        statement: impl Fn(&str) -> String,
    ) -> Result<(), StoreError> {
        let store = &self.core.store;
        for row in store.query(client, &store.sql.tables_of, &[&self.registered.schema]).await? {
            client.batch_execute(&statement(row.get("name"))).await?;
        }
        Ok(())
    }

    /// Folds the bulk of the log.
    pub(super) async fn fold(
        &mut self,
        to: Position,
        pace: &Pace,
        on_progress: OnVerify<'_>,
    ) -> Result<(), VerifyError> {
        let far = to.get() - self.position.get() > pace.parallel_above_events;
        if far && self.position == Position::START && self.core.store.path == Path::Direct {
            let report = |progress: &ReplayProgress| on_progress(VerifyProgress::Folding(progress.clone()));
            let (skipped, throttled) = (&self.skipped, &mut self.throttled);
            self.events =
                fold_afresh(self.core, &self.registered, to, skipped, pace, throttled, &report).await?;
            self.position = to;
        }
        self.advance(to, on_progress).await?;
        let client = self.core.store.single().await?;
        self.each_table(&client, |table| format!("ANALYZE {table}")).await?;
        Ok(())
    }

    /// Folds on to exactly this position.
    pub(super) async fn advance(
        &mut self,
        to: Position,
        on_progress: OnVerify<'_>,
    ) -> Result<(), VerifyError> {
        let (projector, version) = self.registered.id();
        if to < self.position {
            return Err(VerifyError::WentBack { projector, version });
        }
        let mut limits = Limits::BATCH.of_rows(self.throttled.throttle().at_once());
        let progress = |phase, position, events, elapsed| {
            let (projector, version) = (projector.clone(), version.clone());
            let indexing = None;
            on_progress(VerifyProgress::Folding(ReplayProgress {
                projector,
                version,
                position,
                phase,
                horizon: to,
                events,
                indexing,
                elapsed,
            }));
        };
        while self.position < to {
            while self.throttled.pauses().await? {
                progress(ReplayPhase::Paused, self.position, self.events, self.started.elapsed());
            }
            let mut client = self.pool.get().await.map_err(StoreError::from)?;
            let tx = self.begin(&mut client).await?;
            let types = Some(&self.registered.event_types[..]);
            let Batch { mut events, reached } =
                read::next(&self.core.store, &tx, self.position, to, types, limits).await?;
            events.retain(|event| !self.skipped.contains(&event.recorded.position));
            match self.feed(&tx, &events).await {
                Ok(()) => {}
                Err(source) if source.is_retryable() => continue,
                // One by one, so that the one at fault is named.
                Err(_) if events.len() > 1 => {
                    limits.rows = 1;
                    continue;
                }
                Err(source) => return Err(self.failed(&events[0], source).into()),
            }
            tx.commit().await.map_err(StoreError::from)?;
            self.position = reached;
            self.events += events.len() as u64;
            progress(ReplayPhase::CatchingUp, reached, self.events, self.started.elapsed());
            self.throttled.wait(events.len() as u64).await;
        }
        Ok(())
    }

    /// Lets some work see the tables as they would be after some more events, and undoes those.
    pub(super) async fn with<T>(
        &self,
        beyond: &[RawEvent],
        work: impl AsyncFnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, VerifyError> {
        let mut client = self.pool.get().await.map_err(StoreError::from)?;
        let tx = self.begin(&mut client).await?;
        for events in beyond.chunks(AT_ONCE) {
            self.feed(&tx, events).await.map_err(|source| self.failed(&events[0], source))?;
        }
        let done = work(&tx).await?;
        tx.rollback().await.map_err(StoreError::from)?;
        Ok(done)
    }

    async fn begin<'t>(
        &self,
        client: &'t mut deadpool_postgres::Client,
    ) -> Result<Transaction<'t>, StoreError> {
        let tx = read_committed(client).await?;
        self.core.store.query_one(&tx, &self.core.store.sql.enter_scratch, &[]).await?;
        Ok(tx)
    }

    async fn feed(&self, tx: &Transaction<'_>, events: &[RawEvent]) -> Result<(), ProjectError> {
        if events.is_empty() {
            return Ok(());
        }
        step::feed(&self.core.store, tx, &self.registered, events).await?;
        if self.registered.projector.needs_transaction() {
            // A projector that lets an error of the database pass leaves a broken transaction, whose commit would report no
            // error. Any statement tells.
            self.core.store.query_one(tx, &self.core.store.sql.generation, &[]).await?;
        }
        Ok(())
    }

    fn failed(&self, first: &RawEvent, source: ProjectError) -> ReplayError {
        let (projector, version) = self.registered.id();
        let named = source.event().map(|(position, event_type)| (position, event_type.to_owned()));
        let (position, event_type) = named.unwrap_or((first.recorded.position, first.event_type.clone()));
        ReplayError::Projector { projector, version, position, event_type, source }
    }

    /// Whether the tables have been ours all the time: a server that crashed has emptied them.
    pub(super) async fn is_whole(&self) -> Result<(), VerifyError> {
        let store = &self.core.store;
        let alive = store.query_one(&self.claim, &store.sql.generation, &[]).await;
        alive.map(drop).map_err(|source| VerifyError::ScratchLost { source })
    }

    /// Drops the tables.
    pub(super) async fn drop(self) -> Result<(), StoreError> {
        let Self { core, registered, claim, pool, .. } = self;
        pool.close();
        let dropped = drop_schema(&core.store, &claim, &registered.schema).await;
        execute(&claim, "COMMIT").await?;
        dropped
    }
}

/// What is said of each of these schemas, so that it can be told from all others.
fn comment(store: &Store) -> String {
    format!("Tables that a verification of {} has made and will drop", store.schema)
}

async fn execute(client: &Client, sql: &str) -> Result<(), StoreError> {
    Ok(client.batch_execute(sql).await?)
}

/// Marks that somebody is at a schema, until the transaction ends. False if somebody else is.
async fn take(store: &Store, client: &Client, schema: &str) -> Result<bool, StoreError> {
    claims::claim(store, client, &format!("{} {schema}", store.schema)).await
}

/// Drops what verifications have left behind whose process is gone.
async fn sweep(store: &Store, client: &Client) -> Result<(), StoreError> {
    for row in store.query(client, &store.sql.scratch_schemas, &[&comment(store)]).await? {
        let schema: String = row.get("name");
        execute(client, "BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        if take(store, client, &schema).await? {
            debug!(schema, "left behind by a verification: dropped");
            drop_schema(store, client, &schema).await?;
        }
        execute(client, "COMMIT").await?;
    }
    Ok(())
}

/// Drops a schema with what stands in it, and nothing else: what depends on it elsewhere keeps it. Inside a transaction.
async fn drop_schema(store: &Store, client: &Client, schema: &str) -> Result<(), StoreError> {
    execute(client, &format!("SAVEPOINT scratch; {DROP_LOCKS}")).await?;
    let dropping = async {
        let mut left = objects::all(store, client, schema).await?;
        while !left.is_empty() {
            left = objects::drop_free(client, left).await?;
        }
        execute(client, &format!("DROP SCHEMA IF EXISTS {} RESTRICT", ident(schema))).await
    };
    let Err(error) = dropping.await else { return execute(client, "RELEASE scratch").await };
    warn!(schema, %error, "what a verification has left behind was not dropped");
    execute(client, "ROLLBACK TO scratch").await
}
