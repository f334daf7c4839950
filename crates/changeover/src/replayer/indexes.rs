//! The secondary indexes, and what the planner knows of the tables. Rows that we write ourselves go in faster without indexes; a
//! projector's own statements may need them.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::info;

use super::begun::Begun;
use super::{Pace, ReplayError};
use crate::core::Core;
use crate::projector::configuration::Indexes;
use crate::registration;
use crate::store::StoreError;

/// How long to wait before looking again whether somebody else has built them.
const BUSY: Duration = Duration::from_millis(50);

/// Builds what has to be there before the bulk.
pub(super) async fn before_the_bulk(core: &Core, begun: &Begun, pace: &Pace) -> Result<(), ReplayError> {
    match begun.registered.indexes {
        Indexes::Each(_) => Ok(()),
        // The planner takes tables that nobody has analyzed for larger than empty ones.
        Indexes::Whole(_) => build(core, begun, pace).await.map(drop),
    }
}

/// Builds what is missing, and lets the planner know of the rows: of those `events` came from here.
pub(super) async fn after_the_bulk(
    core: &Core,
    begun: &Begun,
    pace: &Pace,
    events: u64,
) -> Result<(), ReplayError> {
    let built = build(core, begun, pace).await?;
    if built || (events > 0 && matches!(begun.registered.indexes, Indexes::Whole(_))) {
        analyze(core, begun, pace).await?;
    }
    Ok(())
}

async fn analyze(core: &Core, begun: &Begun, pace: &Pace) -> Result<(), StoreError> {
    let client = core.store.single().await?;
    let tables = core.store.query(&client, &core.store.sql.tables_of, &[&begun.registered.schema]).await?;
    let analyze: Vec<String> =
        tables.iter().map(|row| format!("ANALYZE {}", row.get::<_, &str>("name"))).collect();
    run(core, &analyze, at_once(pace)).await
}

/// Builds what is missing, one process at a time, several indexes at once. False where nothing was.
async fn build(core: &Core, begun: &Begun, pace: &Pace) -> Result<bool, ReplayError> {
    let (store, registered) = (&core.store, &*begun.registered);
    let client = store.single().await?;
    let execute = async |sql: &str| client.batch_execute(sql).await.map_err(StoreError::from);
    let claim = format!("{} {} v{} indexes", store.schema, registered.target.projector, registered.major());
    loop {
        if registration::is_indexed(store, &client, registered).await? {
            return Ok(false);
        }
        execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 0")
            .await?;
        if store.query_one(&client, &store.sql.claim_shard, &[&claim]).await?.get("claimed") {
            break;
        }
        execute("ROLLBACK").await?;
        sleep(BUSY).await;
    }
    match &registered.indexes {
        Indexes::Each(indexes) => {
            let statements: Vec<String> = indexes.iter().map(|index| index.create.clone()).collect();
            run(core, &statements, at_once(pace)).await?;
        }
        Indexes::Whole(statements) => execute(statements).await?,
    }
    let params: [&(dyn postgres_types::ToSql + Sync); 3] =
        [&registered.target.projector.as_str(), &registered.major(), &begun.attempt];
    if store.query_opt(&client, &store.sql.indexed, &params).await?.is_none() {
        let (projector, version) = registered.id();
        return Err(ReplayError::StartedOver { projector, version });
    }
    execute("COMMIT").await?;
    info!(projector = %registered.target.projector, version = %registered.target.version, "indexes built");
    Ok(true)
}

fn at_once(pace: &Pace) -> usize {
    pace.max_connections.saturating_sub(1).max(1)
}

/// Runs statements on connections of their own.
async fn run(core: &Core, statements: &[String], at_once: usize) -> Result<(), StoreError> {
    let mut running = JoinSet::new();
    for statement in statements {
        if running.len() >= at_once
            && let Some(done) = running.join_next().await
        {
            done.expect("BUG: a statement panicked")?;
        }
        let (store, statement) = (core.store.clone(), statement.clone());
        running.spawn(async move {
            let client = store.single().await?;
            // A role's own limit is for its usual statements.
            client.batch_execute("SET statement_timeout = 0").await?;
            Ok::<_, StoreError>(client.batch_execute(&statement).await?)
        });
    }
    while let Some(done) = running.join_next().await {
        done.expect("BUG: a statement panicked")?;
    }
    Ok(())
}
