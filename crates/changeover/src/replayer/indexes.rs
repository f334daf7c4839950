//! The secondary indexes, and what the planner knows of the tables. Rows that we write ourselves go in faster without indexes; a
//! projector's own statements may need them.
//!
//! A process that is killed leaves its statements to the server, which goes on with them for a while. So whoever builds an index
//! locks its name, on the very connection that builds it: nobody else begins with it before that statement has ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, TryStreamExt};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::{CancelToken, Client, NoTls};
use tracing::{debug, info};

use super::begun::Begun;
use super::claims::{self, RELEASE_SNAPSHOT};
use super::{OnProgress, Pace, ReplayError, ReplayPhase, ReplayProgress, position};
use crate::core::Core;
use crate::horizon;
use crate::projector::Registered;
use crate::projector::configuration::Indexes;
use crate::registration;
use crate::replayer::Indexing;
use crate::store::{Store, StoreError};

/// How long to wait before looking again whether somebody else has built them.
const BUSY: Duration = Duration::from_millis(50);

/// How often it is tried to build an index beside others where that ends in a deadlock with one of them.
const TRIES: usize = 3;

/// How often the server is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// What builds an index.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// The index, with its schema.
    pub(crate) index: String,
    /// What nobody else may be at meanwhile. Beside others that is the table: two who build on one table wait for each other.
    pub(crate) lock: String,
    pub(crate) create: String,
    /// What drops one that was left half built.
    pub(crate) discard: String,
    /// Whether it is built beside others, which is nothing for a transaction.
    pub(crate) live: bool,
}

/// The name by which one process at a time builds the indexes of a version's tables.
pub(crate) fn claim_name(store: &Store, registered: &Registered) -> String {
    format!("{} {} v{} indexes", store.schema, registered.target.projector, registered.major())
}

/// Builds what has to be there before the bulk.
pub(super) async fn before_the_bulk(
    core: &Core,
    client: &Client,
    begun: &Begun,
    pace: &Pace,
    on_progress: OnProgress<'_>,
) -> Result<(), ReplayError> {
    match begun.registered.indexes {
        Indexes::Each(_) => Ok(()),
        // The planner takes tables that nobody has analyzed for larger than empty ones.
        Indexes::Whole(_) => build(core, client, begun, pace, on_progress).await.map(drop),
    }
}

/// Builds what is missing, and lets the planner know of the rows: of those `events` came from here.
pub(super) async fn after_the_bulk(
    core: &Core,
    client: &Client,
    begun: &Begun,
    pace: &Pace,
    events: u64,
    on_progress: OnProgress<'_>,
) -> Result<(), ReplayError> {
    let built = build(core, client, begun, pace, on_progress).await?;
    if built || (events > 0 && matches!(begun.registered.indexes, Indexes::Whole(_))) {
        analyze(&core.store, client, &begun.registered, at_once(pace)).await?;
    }
    Ok(())
}

fn at_once(pace: &Pace) -> usize {
    pace.max_connections.saturating_sub(1).max(1)
}

/// Builds what is missing, one process at a time, several indexes at once. False where nothing was.
pub(crate) async fn build(
    core: &Core,
    client: &Client,
    begun: &Begun,
    pace: &Pace,
    on_progress: OnProgress<'_>,
) -> Result<bool, ReplayError> {
    let (store, registered) = (&core.store, &*begun.registered);
    let execute = async |sql: &str| client.batch_execute(sql).await.map_err(StoreError::from);
    let claim = claim_name(store, registered);
    loop {
        if registration::is_indexed(store, client, registered).await? {
            return Ok(false);
        }
        if claims::begin(store, client, &claim).await? {
            break;
        }
        sleep(BUSY).await;
    }
    match &registered.indexes {
        Indexes::Each(indexes) => {
            let statements = indexes.iter().map(|index| Statement {
                index: index.name.clone(),
                lock: index.name.replace('"', ""),
                create: index.create.clone(),
                discard: format!("DROP INDEX IF EXISTS {}", index.name),
                live: false,
            });
            let statements: Vec<Statement> = statements.collect();
            if !statements.is_empty() {
                let at = at(core, client, registered).await?;
                execute(RELEASE_SNAPSHOT).await?;
                let _ = run(core, registered, &statements, at_once(pace), at, on_progress).await?;
            }
        }
        Indexes::Whole(statements) if statements.is_empty() => {}
        Indexes::Whole(statements) => {
            let mut at = at(core, client, registered).await?;
            at.indexing = Some(Indexing { built: 0, of: 1, percent: 0 });
            on_progress(&at);
            let given_up = Cancel::unless_done(client);
            execute("SET LOCAL statement_timeout = 0").await?;
            execute(statements).await?;
            given_up.done();
        }
    }
    let params: [&(dyn postgres_types::ToSql + Sync); 3] =
        [&registered.target.projector.as_str(), &registered.major(), &begun.attempt];
    if store.query_opt(client, &store.sql.indexed, &params).await?.is_none() {
        let (projector, version) = registered.id();
        return Err(ReplayError::StartedOver { projector, version });
    }
    execute("COMMIT").await?;
    info!(projector = %registered.target.projector, version = %registered.target.version, "indexes built");
    Ok(true)
}

/// What a report begins with.
pub(crate) async fn at(
    core: &Core,
    client: &Client,
    registered: &Registered,
) -> Result<ReplayProgress, StoreError> {
    let (projector, version) = registered.id();
    Ok(ReplayProgress {
        projector,
        version,
        position: position(core, client, registered).await?,
        horizon: horizon::look(&core.store, client).await?.horizon,
        phase: ReplayPhase::Indexing,
        events: 0,
        indexing: None,
        elapsed: Duration::ZERO,
    })
}

/// Builds indexes, so many at once, each on a connection of its own. Returns those that were not there by then, in their order.
pub(crate) async fn run(
    core: &Core,
    registered: &Registered,
    statements: &[Statement],
    at_once: usize,
    at: ReplayProgress,
    on_progress: OnProgress<'_>,
) -> Result<Vec<String>, StoreError> {
    let (store, started) = (&core.store, Instant::now());
    let watcher = store.single().await?;
    let of = u32::try_from(statements.len()).unwrap_or(u32::MAX);
    let (mut built, mut percent, mut were_there) = (0, 0, BTreeSet::new());
    let mut waiting = statements.iter().cloned();
    let mut running = JoinSet::new();
    loop {
        while running.len() < at_once.max(1)
            && let Some(statement) = waiting.next()
        {
            running.spawn(build_one(store.clone(), statement));
        }
        let indexing = Some(Indexing { built, of, percent });
        on_progress(&ReplayProgress { indexing, elapsed: started.elapsed(), ..at.clone() });
        tokio::select! {
            done = running.join_next() => {
                let Some(done) = done else { break };
                were_there.extend(done.expect("BUG: a statement panicked")?);
                built += 1;
            }
            () = sleep(LOOK) => {
                let row = store.query_one(&watcher, &store.sql.indexing, &[&registered.schema]).await?;
                percent = u8::try_from(row.get::<_, i32>("percent").clamp(0, 100)).unwrap_or_default();
            }
        }
    }
    let names = statements.iter().map(|statement| &statement.index);
    Ok(names.filter(|index| !were_there.contains(*index)).cloned().collect())
}

/// Builds one. Returns it if it was there by the time that nobody else was at it.
async fn build_one(store: Arc<Store>, statement: Statement) -> Result<Option<String>, StoreError> {
    let Statement { index, lock, create, discard, live } = statement;
    let client = store.single().await?;
    let execute = async |sql: &str| client.batch_execute(sql).await.map_err(StoreError::from);
    let claim = format!("{} index {lock}", store.schema);
    if live {
        // Of the session, since this is nothing for a transaction; both end with the connection.
        execute("SET statement_timeout = 0").await?;
        while !store.query_one(&client, &store.sql.lock_index, &[&claim]).await?.get::<_, bool>("locked") {
            sleep(BUSY).await;
        }
    } else {
        while !claims::begin(&store, &client, &claim).await? {
            sleep(BUSY).await;
        }
        execute("SET LOCAL statement_timeout = 0").await?;
    }
    let given_up = Cancel::unless_done(&client);
    let state = store.query_opt(&client, &store.sql.index_state, &[&index]).await?;
    let is_valid = state.map(|row| row.get::<_, bool>("is_valid"));
    if is_valid == Some(false) {
        debug!(index, "was left half built: it is built anew");
        execute(&discard).await?;
    }
    if is_valid != Some(true) {
        let mut tries = 1;
        while let Err(error) = execute(&create).await {
            if !live || !error.is_retryable() || tries == TRIES {
                return Err(error);
            }
            debug!(%error, index, "somebody's lock was in the way of building it: trying again");
            tries += 1;
            execute(&discard).await?;
        }
    }
    if !live {
        execute("COMMIT").await?;
    }
    given_up.done();
    Ok((is_valid == Some(true)).then_some(index))
}

/// The tables of a version.
async fn tables(store: &Store, client: &Client, registered: &Registered) -> Result<Vec<String>, StoreError> {
    let rows = store.query(client, &store.sql.tables_of, &[&registered.schema]).await?;
    Ok(rows.iter().map(|row| row.get("name")).collect())
}

/// Lets the planner know of the rows, of so many tables at once: of the first on a connection that is there. Returns the tables.
pub(crate) async fn analyze(
    store: &Store,
    client: &Client,
    registered: &Registered,
    at_once: usize,
) -> Result<Vec<String>, StoreError> {
    let tables = tables(store, client, registered).await?;
    stream::iter(tables.iter().enumerate().map(Ok))
        .try_for_each_concurrent(at_once.max(1), async |(at, table)| match at {
            0 => analyze_one(client, table).await,
            _ => analyze_one(&store.single().await?, table).await,
        })
        .await?;
    Ok(tables)
}

async fn analyze_one(client: &Client, table: &str) -> Result<(), StoreError> {
    let given_up = Cancel::unless_done(client);
    // A role's own limit is for its usual statements.
    client.batch_execute(&format!("BEGIN; SET LOCAL statement_timeout = 0; ANALYZE {table}; COMMIT")).await?;
    given_up.done();
    Ok(())
}

/// Cancels what a connection is at, if nobody waits for it any more.
struct Cancel(Option<CancelToken>);

impl Cancel {
    fn unless_done(client: &Client) -> Self {
        Self(Some(client.cancel_token()))
    }

    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        let (Some(token), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = token.cancel_query(NoTls).await {
                debug!(%error, "what nobody waits for any more was not cancelled");
            }
        });
    }
}
