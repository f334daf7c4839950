//! An empty database for one test.

use std::thread;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

use crate::address;
use crate::cluster::Cluster;

/// A new, empty database, dropped when this value is dropped, whoever is still connected to it.
///
/// ```no_run
/// use changeover_testkit::Database;
///
/// # async fn example() -> Result<(), tokio_postgres::Error> {
/// let database = Database::fresh().await;
/// let client = database.client().await;
/// client.batch_execute("CREATE TABLE order_summary (id uuid PRIMARY KEY)").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Database {
    name: String,
    config: Config,
    /// How to drop it. None if it goes together with its server.
    admin: Option<Config>,
}

impl Database {
    /// A database on [`Cluster::shared`]. It takes about 50 ms; the first one of a test binary waits for the
    /// server too.
    ///
    /// # Panics
    /// When the server does not start or does not let us create a database.
    pub async fn fresh() -> Self {
        // Starting a server blocks for half a second: not on a thread that other tasks need.
        let cluster =
            tokio::task::spawn_blocking(Cluster::shared).await.expect("the shared server must start");
        Self::fresh_on(cluster).await
    }

    /// A database on a server of its own. It goes when the server goes.
    ///
    /// # Panics
    /// When the server does not let us create a database.
    ///
    /// ```no_run
    /// # use changeover_testkit::{Cluster, Database};
    /// # async fn example() -> anyhow::Result<()> {
    /// let cluster = Cluster::start()?;
    /// let database = Database::fresh_on(&cluster).await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fresh_on(cluster: &Cluster) -> Self {
        let admin = cluster.config();
        let name = format!("test_{}", Uuid::new_v4().simple());
        // template0 is empty on every server, and nobody can be connected to it: either would spoil
        // template1.
        execute(&admin, &format!("CREATE DATABASE {name} TEMPLATE template0"))
            .await
            .unwrap_or_else(|error| panic!("cannot create database {name}: {error:?}"));
        let mut config = admin.clone();
        config.dbname(&name);
        Self { name, config, admin: (!cluster.is_private()).then_some(admin) }
    }

    /// Its name, unique on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How to connect to it.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        address::url(&self.config)
    }

    /// A new connection. Its task runs on the current runtime and ends with the client.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn client(&self) -> Client {
        connect(&self.config)
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error:?}", self.name))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(admin) = self.admin.take() else { return };
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // We may be on a thread of a runtime, which must not block on another one; a thread of its own may.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_mins(1), execute(&admin, &drop)).await?
            })
        });
        match dropped.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("cannot drop database {}: {error:#}", self.name),
            Err(_) => tracing::warn!("cannot drop database {}: panicked", self.name),
        }
    }
}

async fn execute(config: &Config, statement: &str) -> anyhow::Result<()> {
    Ok(connect(config).await?.batch_execute(statement).await?)
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended"); // Expected, where servers are killed.
        }
    });
    Ok(client)
}
