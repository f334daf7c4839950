//! Instances: who is there, with which configuration, and since when silent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postgres_types::Json;
use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::core::Core;
use crate::expiry::expire;
use crate::projector::chain;
use crate::store::{On, Store, StoreError};
use crate::words::decision::Versions;

/// How often an instance says that it is there, and after which silence it counts as gone.
const HEARTBEAT: Duration = Duration::from_secs(2);
pub(crate) const GONE_AFTER_SECS: f64 = 10.0;
/// After which silence its row is removed.
const FORGOTTEN_AFTER_SECS: f64 = 3_600.0;

/// One running process of the application, as the database knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Instance {
    /// Its id, new at every start.
    pub id: Uuid,
    /// The application's name.
    pub application: String,
    /// The application's version.
    pub application_version: String,
    /// The projectors that it registers.
    pub configuration: Versions,
    /// Where other instances reach it.
    pub address: Option<String>,
    /// What it last said of itself.
    pub readiness: String,
    /// When it started.
    pub started_at: SystemTime,
    /// How long ago it was seen.
    pub silent_secs: f64,
    /// Whether it counts as there.
    pub alive: bool,
}

/// Everybody that was seen lately.
pub(crate) async fn all(store: &Store, on: impl Into<On<'_>>) -> Result<Vec<Instance>, StoreError> {
    let rows = store.query(on, &store.sql.instances, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let silent_secs: f64 = row.get("silent_secs");
            Instance {
                id: row.get("id"),
                application: row.get("application"),
                application_version: row.get("application_version"),
                configuration: row.get::<_, Json<Versions>>("configuration").0,
                address: row.get("address"),
                readiness: row.get("readiness"),
                started_at: row.get("started_at"),
                silent_secs,
                alive: silent_secs < GONE_AFTER_SECS,
            }
        })
        .collect())
}

/// How many live instances have a configuration.
pub(crate) async fn alive_with(
    store: &Store,
    client: &Client,
    versions: &Versions,
) -> Result<usize, StoreError> {
    let instances = all(store, client).await?;
    let alive = instances.iter().filter(|instance| instance.alive && instance.configuration == *versions);
    // Several connections of one process are one instance.
    Ok(alive.map(|instance| instance.id).collect::<BTreeSet<_>>().len())
}

/// Says that this instance is there until it stops, then says goodbye.
pub(crate) async fn heartbeat(core: Arc<Core>, stop: CancellationToken) {
    let mut readiness = core.decider.readiness();
    while !stop.is_cancelled() {
        let word = readiness.borrow_and_update().state.as_str();
        if let Err(error) = beat(&core, word).await {
            debug!(error = %chain(&error), "this instance could not say that it is there");
        }
        tokio::select! {
            changed = readiness.changed() => if changed.is_err() { return },
            () = sleep(HEARTBEAT) => {}
            () = stop.cancelled() => {}
        }
    }
    if let Err(error) = forget(&core, Some(core.identity.id)).await {
        warn!(error = %chain(&error), "this instance could not say goodbye: it will be seen to go");
    }
}

async fn beat(core: &Core, readiness: &str) -> Result<(), StoreError> {
    let client = core.background().await?;
    let identity = &core.identity;
    let versions = Json(core.configuration.versions());
    core.store
        .query(
            &client,
            &core.store.sql.see_instance,
            &[
                &identity.id,
                &identity.application,
                &identity.application_version,
                &versions,
                &identity.address,
                &readiness,
            ],
        )
        .await?;
    // An activation whose performer is gone would otherwise be open until the next one.
    expire(&core.store, &client).await?;
    client.give_back_untouched();
    forget(core, None).await
}

async fn forget(core: &Core, id: Option<Uuid>) -> Result<(), StoreError> {
    let client = core.background().await?;
    core.store.query(&client, &core.store.sql.forget_instances, &[&id, &FORGOTTEN_AFTER_SECS]).await?;
    client.give_back_untouched();
    Ok(())
}
