//! Starting over: the tables of a version that is being replayed are emptied, and replayed from the first event.
//!
//! Everything happens in one transaction: the checkpoint goes back to 0 with the rows, and the attempt is counted up, so that a
//! process which is still at the one before is refused at its next checkpoint. Only the tables that the version's DDL made are
//! emptied, never with CASCADE; nobody has to queue up behind us.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use postgres_types::ToSql;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};
use tracing::info;

use super::ReplayError;
use super::begun::{read, unaltered};
use crate::core::Core;
use crate::expiry::{SILENT_AFTER_SECS, paused_by};
use crate::in_flight;
use crate::projector::Registered;
use crate::projector::configuration::Indexes;
use crate::registration::{Changed, changing, registry, tables_among};
use crate::store::{Store, StoreError};
use crate::wake::Hint;
use crate::words::plan::Known;
use crate::words::state::ProjectorState;

/// How long it tries for locks, and how long between two tries.
const WAIT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);

/// Starts over. Does nothing where nothing was begun.
pub(super) async fn start_over(core: &Core, registered: &Registered) -> Result<(), ReplayError> {
    let store = &core.store;
    let (client, watcher) = (store.single().await?, store.single().await?);
    let started = Instant::now();
    let session = OnceLock::new();
    loop {
        let tried = changing(store, &client, async |client| once(store, client, registered, &session).await);
        match tried.await {
            Ok(Changed::Yes) => {
                store.hint(&client, Hint::States).await;
                info!(projector = %registered.target.projector, version = %registered.target.version, "starting over");
                return Ok(());
            }
            Ok(_) => return Ok(()),
            Err(ReplayError::Store(error)) if is(&error, &SqlState::LOCK_NOT_AVAILABLE) => {
                if started.elapsed() < WAIT {
                    sleep(AGAIN).await;
                    continue;
                }
                let pid = session.get().copied().unwrap_or_default();
                let blockers = in_flight::in_the_way(store, &watcher, &registered.schema, pid).await?;
                let (projector, version) = registered.id();
                return Err(ReplayError::InUse { projector, version, blockers, after: started.elapsed() });
            }
            // What a foreign key refers to is not emptied.
            Err(ReplayError::Store(error)) if is(&error, &SqlState::FEATURE_NOT_SUPPORTED) => {
                let objects = store.query(&client, &store.sql.dependents, &[&registered.schema]).await?;
                let objects: Vec<String> = objects.iter().map(|row| row.get("object")).collect();
                let objects: Vec<&str> = objects
                    .iter()
                    .map(String::as_str)
                    .filter(|object| object.contains("constraint"))
                    .collect();
                let (projector, version) = registered.id();
                let why = format!("others refer to its tables ({}): drop that first", objects.join(", "));
                return Err(ReplayError::NotStartedOver { projector, version, why });
            }
            Err(error) => return Err(error),
        }
    }
}

fn is(error: &StoreError, code: &SqlState) -> bool {
    matches!(error, StoreError::Database(error) if error.code() == Some(code))
}

/// Starts over in a transaction that has begun.
async fn once(
    store: &Store,
    client: &Client,
    registered: &Registered,
    session: &OnceLock<i32>,
) -> Result<Changed, ReplayError> {
    let pid = store.query_one(client, &store.sql.begin_restart, &[]).await?.get("pid");
    session.get_or_init(|| pid);
    let (projector, major) = (registered.target.projector.as_str(), registered.major());
    // Whoever writes rows holds its checkpoint: from here on nobody does.
    store.query(client, &store.sql.lock_checkpoints, &[&projector, &major]).await?;
    let Some(begun) = read(store, client, registered).await? else { return Ok(Changed::No) };
    unaltered(store, client, registered, &begun).await?;
    let version = registered.target.version.to_string();
    let indexes_stay = matches!(registered.indexes, Indexes::Whole(_));
    let params: [&(dyn ToSql + Sync); 5] = [&projector, &major, &version, &indexes_stay, &SILENT_AFTER_SECS];
    let Some(row) = store.query_opt(client, &store.sql.restart, &params).await? else {
        return Err(refused(store, client, registered, &begun).await?);
    };
    let objects: Vec<String> = row.get("objects");
    let tables = tables_among(&objects).collect::<Vec<_>>().join(", ");
    if !tables.is_empty() {
        // Not queued for: everybody who wants to read would queue up behind us.
        let empty = format!(
            "LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE {tables} RESTART IDENTITY RESTRICT"
        );
        client.batch_execute(&empty).await.map_err(StoreError::from)?;
    }
    if let Indexes::Each(indexes) = &registered.indexes {
        // The bulk is faster without them; they are built again after it.
        let names: Vec<&str> = indexes.iter().map(|index| index.name.as_str()).collect();
        if !names.is_empty() {
            let drop = format!("DROP INDEX IF EXISTS {} RESTRICT", names.join(", "));
            client.batch_execute(&drop).await.map_err(StoreError::from)?;
        }
    }
    Ok(Changed::Yes)
}

/// Why nothing was started over.
async fn refused(
    store: &Store,
    client: &Client,
    registered: &Registered,
    begun: &Row,
) -> Result<ReplayError, StoreError> {
    let (projector, version) = registered.id();
    let known = registry(store, client).await?.known;
    let own = known.iter().find(|row| row.projector == projector && row.version == version);
    let sharing = known.iter().find(|row| {
        row.projector == projector
            && row.version.major == version.major
            && row.version != version
            && row.state != ProjectorState::Replaying
    });
    let why = match (own.map(|row| row.state), sharing) {
        (None, _) => "it was never replayed, and other versions have filled its tables; raise its major version, or leave out --restart".to_owned(),
        (Some(ProjectorState::Retired), _) => {
            "it has retired, and its rows are kept for going back; `replay` without --restart goes on with them"
                .to_owned()
        }
        (Some(state), _) if state != ProjectorState::Replaying => {
            format!("it is {state}; raise its major version to replay what it makes of the log")
        }
        (_, Some(other)) => {
            let Known { version, state, .. } = other;
            format!("its tables are those of {version} as well, which is {state}; raise its major version")
        }
        _ if begun.get("adopted") => {
            "its rows were adopted, and the log need not hold what they were made of: raise its major version"
                .to_owned()
        }
        _ if begun.get("seeded") => "its DDL inserts rows, which nobody would insert again: raise its version".to_owned(),
        _ => {
            let by = paused_by(store, client).await?;
            let by = by.unwrap_or_else(|| "an activation".to_owned());
            format!("{by} is replaying it: `abort` that first")
        }
    };
    Ok(ReplayError::NotStartedOver { projector, version, why })
}
