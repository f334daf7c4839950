//! Connections: a pool for work, single ones for whatever must not wait for the pool, and what lies between us and the server.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod, Runtime,
};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};
use tracing::debug;

use super::StoreError;

/// What lies between us and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The server itself: named statements, LISTEN.
    Direct,
    /// A pooler, which may hand every transaction to another session: unnamed statements, no LISTEN.
    Pooled,
}

/// Of one attempt to connect: name look-up, TCP, start-up and all.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Refuses a connection that somebody gave back inside a transaction, and undoes what was set or locked for the session.
///
/// A transaction that leaked would swallow the next append. In one, `now()` is older than the statement: the division
/// fails, and the pool throws the connection away.
const CLEAN: &str =
    "SELECT 1 / (now() = statement_timestamp())::integer, pg_advisory_unlock_all(); RESET ALL";

/// Connections that came back from our own hands, as they were: nobody has to clean them. Known by their statement caches,
/// of which each has one for life.
#[derive(Debug, Clone, Default)]
pub(crate) struct Untouched(Arc<Mutex<HashSet<usize>>>);

impl Untouched {
    /// A connection is about to come back as it was.
    pub(crate) fn note(&self, client: &ClientWrapper) {
        self.0.lock().expect("BUG: nothing panics under this lock").insert(identity(client));
    }

    fn take(&self, client: &ClientWrapper) -> bool {
        self.0.lock().expect("BUG: nothing panics under this lock").remove(&identity(client))
    }
}

fn identity(client: &ClientWrapper) -> usize {
    Arc::as_ptr(&client.statement_cache).addr()
}

/// A pool of at most `size` connections. Cleaning one costs a round trip whenever it is taken, unless it is untouched.
pub(crate) fn pool(config: &Config, size: usize, untouched: Untouched) -> Result<Pool, StoreError> {
    let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let clean = Hook::async_fn(move |client: &mut ClientWrapper, _| {
        let untouched = untouched.take(client);
        Box::pin(async move {
            if !untouched {
                client.simple_query(CLEAN).await.map_err(HookError::Backend)?;
            }
            Ok(())
        })
    });
    Pool::builder(Manager::from_config(config.clone(), NoTls, manager_config))
        .max_size(size)
        .runtime(Runtime::Tokio1)
        // The server knows best what the connection that was used last is about.
        .queue_mode(QueueMode::Lifo)
        .pre_recycle(clean)
        .create_timeout(Some(TIMEOUT))
        .recycle_timeout(Some(TIMEOUT))
        .wait_timeout(Some(Duration::from_secs(30)))
        .build()
        .map_err(|error| StoreError::Pool(error.to_string()))
}

/// The same, without the limit that role or database set for their usual statements: some of ours take as long as they do. Not for
/// poolers, which refuse such settings.
pub(crate) fn without_limit(config: &Config) -> Config {
    let mut patient = config.clone();
    let options = config.get_options().map_or_else(String::new, |options| format!("{options} "));
    patient.options(format!("{options}-c statement_timeout=0"));
    patient
}

/// One connection of its own.
pub(crate) async fn single(config: &Config) -> Result<Client, StoreError> {
    let (client, connection) = tokio::time::timeout(TIMEOUT, config.connect(NoTls))
        .await
        .map_err(|_| StoreError::Timeout { what: "connecting", after: TIMEOUT })??;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection ended");
        }
    });
    Ok(client)
}

/// Finds out what lies between us and the server: a setting sent at start-up is there afterwards only if the session is
/// ours. PgBouncer refuses such settings, or drops them where it is told to; so do its like.
pub(crate) async fn probe(config: &Config) -> Result<Path, StoreError> {
    let mut asking = config.clone();
    let options = config.get_options().map_or_else(String::new, |options| format!("{options} "));
    asking.options(format!("{options}-c changeover.direct=on"));
    let client = match single(&asking).await {
        Ok(client) => client,
        Err(StoreError::Database(refused)) if refused.code() == Some(&SqlState::PROTOCOL_VIOLATION) => {
            debug!(%refused, "the server's side refuses start-up settings: a pooler");
            return Ok(Path::Pooled);
        }
        Err(error) => return Err(error),
    };
    let row = client.query_typed_one("SELECT current_setting('changeover.direct', true)", &[]).await?;
    Ok(match row.get::<_, Option<&str>>(0) {
        Some("on") => Path::Direct,
        _ => Path::Pooled,
    })
}
