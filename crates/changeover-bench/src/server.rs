//! The server that is measured: a private, durable one, or the one that `DATABASE_URL` names.

use std::env;

use anyhow::{Context as _, Result};
use changeover::tokio_postgres::{Client, Config};
use changeover::{Changeover, Configuration};
use changeover_testkit::{Cluster, Database};

/// The server.
pub(crate) struct Server {
    /// None where `DATABASE_URL` names one.
    private: Option<Cluster>,
}

impl Server {
    /// Starts one, unless there is one.
    pub(crate) fn start() -> Result<Self> {
        if env::var_os("DATABASE_URL").is_some() {
            return Ok(Self { private: None });
        }
        // As large as a small server in production; a checkpoint would hit whichever round it falls into.
        let settings = [("shared_buffers", "256MB"), ("max_wal_size", "8GB"), ("checkpoint_timeout", "1h")];
        let builder = settings
            .iter()
            .fold(Cluster::builder().durable(), |builder, (name, value)| builder.setting(name, value));
        Ok(Self { private: Some(builder.start()?) })
    }

    /// A new, empty database on it.
    pub(crate) async fn database(&self) -> Database {
        match &self.private {
            Some(cluster) => Database::fresh_on(cluster).await,
            None => Database::fresh().await,
        }
    }

    /// What the figures depend on, in a line.
    pub(crate) async fn conditions(&self) -> Result<String> {
        let database = self.database().await;
        let row = database
            .client()
            .await
            .query_one(
                "SELECT current_setting('server_version'), current_setting('fsync'),
                        current_setting('synchronous_commit'), current_setting('shared_buffers')",
                &[],
            )
            .await?;
        let [version, fsync, commit, buffers] = [0, 1, 2, 3].map(|at| row.get::<_, String>(at));
        let cores = std::thread::available_parallelism()?;
        let whose = if self.private.is_some() { "private" } else { "of DATABASE_URL" };
        Ok(format!(
            "PostgreSQL {version} ({whose}; fsync {fsync}, synchronous_commit {commit}, shared_buffers {buffers}) and its \
             clients on the same {cores} cores"
        ))
    }
}

/// A connection to the same database with a setting of its own.
pub(crate) fn with_setting(config: &Config, name: &str, value: &str) -> Config {
    let mut config = config.clone();
    let before = config.get_options().map_or_else(String::new, |options| format!("{options} "));
    config.options(format!("{before}-c {name}={value}"));
    config
}

/// A migrated instance, not started.
pub(crate) async fn instance(config: Config, configuration: Configuration) -> Result<Changeover> {
    Changeover::builder(config.clone()).migrate().await?;
    migrated(config, configuration).await
}

/// An instance on a schema that is there already, not started.
pub(crate) async fn migrated(config: Config, configuration: Configuration) -> Result<Changeover> {
    let builder = Changeover::builder(config).application("bench", "1.0.0").configuration(configuration);
    builder.connect().await.context("an instance to be measured cannot connect")
}

/// A connection of its own.
pub(crate) async fn client(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(changeover::tokio_postgres::NoTls).await?;
    // It ends with the client; whatever breaks it shows in the statements.
    tokio::spawn(connection);
    Ok(client)
}
