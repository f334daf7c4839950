//! Connections: a pool for work, single ones for whatever must not wait for the pool, and what lies between us and the server.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
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
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Refuses a connection that somebody gave back inside a transaction, and undoes what was set or locked for the session.
///
/// A transaction that leaked would swallow the next append. In one, `now()` is older than the statement: the division
/// fails, and the pool throws the connection away.
const RECYCLE: &str =
    "SELECT 1 / (now() = statement_timestamp())::integer, pg_advisory_unlock_all(); RESET ALL";

/// A pool of at most `size` connections.
pub(crate) fn pool(config: &Config, size: usize) -> Result<Pool, StoreError> {
    let recycling_method = RecyclingMethod::Custom(RECYCLE.to_owned());
    let manager = Manager::from_config(config.clone(), NoTls, ManagerConfig { recycling_method });
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(CONNECT_TIMEOUT))
        .wait_timeout(Some(Duration::from_secs(30)))
        .build()
        .map_err(|error| StoreError::Pool(error.to_string()))
}

/// One connection of its own.
pub(crate) async fn single(config: &Config) -> Result<Client, StoreError> {
    let (client, connection) = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls))
        .await
        .map_err(|_| StoreError::Timeout { what: "connecting", after: CONNECT_TIMEOUT })??;
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
