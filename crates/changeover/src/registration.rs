//! Registration: the rows and the tables of a projector version, made in one transaction, by one process at a time.

use std::sync::Arc;

use postgres_types::Type;
use tokio_postgres::{Client, Transaction};
use tracing::info;

use crate::projector::Registered;
use crate::projector::configuration::Configuration;
use crate::store::statements::Sql;
use crate::store::{Store, StoreError, rows};
use crate::words::decision::Refused;
use crate::words::plan::{Known, KnownTables, Obstacle, obstacle};
use crate::words::state::{Delivery, ProjectorState};

/// Why a version cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// What the database knows of the projector contradicts this build.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    /// Its schema is there, and we did not make it.
    #[error(
        "schema {schema} is there already and does not belong to {projector} {version}: drop or rename it, or raise the major version"
    )]
    ForeignTables {
        /// The schema.
        schema: String,
        /// The projector.
        projector: crate::ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// The projector's DDL failed.
    #[error("the tables of {projector} {version} cannot be created")]
    Ddl {
        /// The projector.
        projector: crate::ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What the database says.
        #[source]
        source: StoreError,
    },
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

impl From<tokio_postgres::Error> for RegisterError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What the database knows of all projectors.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) known: Vec<Known>,
    pub(crate) tables: Vec<KnownTables>,
}

/// Reads what the database knows.
pub(crate) async fn registry(store: &Store, client: &Client) -> Result<Registry, StoreError> {
    let known = store.query(client, &store.sql.states, &[]).await?;
    let tables = store.query(client, &store.sql.checkpoints, &[]).await?;
    Ok(Registry {
        known: known.iter().map(rows::known).collect::<Result<_, _>>()?,
        tables: tables.iter().map(rows::known_tables).collect::<Result<_, _>>()?,
    })
}

/// What stands in the way of running this configuration at all.
pub(crate) fn obstacles<'a>(
    configuration: &'a Configuration,
    registry: &'a Registry,
) -> impl Iterator<Item = Obstacle> + 'a {
    configuration
        .projectors
        .values()
        .filter_map(|registered| obstacle(&registered.target, &registry.known, &registry.tables))
}

/// Registers a version that is to be replayed or to take over in place: its row becomes *replaying*, its tables are there.
/// Does nothing where both is the case already.
pub(crate) async fn register(
    store: &Store,
    client: &mut Client,
    registered: &Registered,
    who: &str,
) -> Result<(), RegisterError> {
    let tx = client.transaction().await?;
    lock(store, &tx).await?;
    let registry = registry(store, tx.client()).await?;
    if let Some(obstacle) = obstacle(&registered.target, &registry.known, &registry.tables) {
        return Err(obstacle.into());
    }
    create_tables(store, &tx, registered, false, &registry).await?;
    let changed = insert(store, &tx, registered, ProjectorState::Replaying, who).await?;
    tx.commit().await?;
    if changed {
        // The states changed: whoever decided before looks again.
        store.query(&*client, &store.sql.set_generation, &[]).await?;
    }
    Ok(())
}

/// Makes a configuration the active one where nothing was ever activated. Not an error if somebody else was faster: the
/// states then say what is so.
pub(crate) async fn assume(
    store: &Store,
    client: &mut Client,
    configuration: &Configuration,
) -> Result<Result<(), Refused>, StoreError> {
    if configuration.projectors.is_empty() {
        return Ok(Ok(()));
    }
    let tx = client.transaction().await?;
    lock(store, &tx).await?;
    let registry = registry(store, tx.client()).await?;
    if !registry.known.is_empty() {
        return Ok(Ok(()));
    }
    let empty: bool = one(store, &tx, &store.sql.log_is_empty).await?.get("empty");
    for registered in configuration.projectors.values() {
        let target = &registered.target;
        if target.delivery == Delivery::Inline && !empty {
            let (projector, version) = (target.projector.clone(), target.version.clone());
            return Ok(Err(Refused::HistoryIsMissing { projector, version }));
        }
        create_tables(store, &tx, registered, target.delivery == Delivery::Inline, &registry)
            .await
            .map_err(|error| StoreError::Unreadable(crate::projector::chain(&error)))?;
        insert(store, &tx, registered, ProjectorState::Active, "assumed by an instance").await?;
    }
    tx.commit().await?;
    store.query(&*client, &store.sql.set_generation, &[]).await?;
    info!(configuration = ?names(configuration.projectors.values()), "nothing was active: assumed our configuration");
    Ok(Ok(()))
}

fn names<'a>(registered: impl Iterator<Item = &'a Arc<Registered>>) -> Vec<String> {
    registered.map(|r| format!("{} {}", r.target.projector, r.target.version)).collect()
}

async fn lock(store: &Store, tx: &Transaction<'_>) -> Result<(), StoreError> {
    one(store, tx, &store.sql.lock_registration).await.map(drop)
}

async fn one(store: &Store, tx: &Transaction<'_>, sql: &Sql) -> Result<tokio_postgres::Row, StoreError> {
    store.query_one(tx.client(), sql, &[]).await
}

async fn insert(
    store: &Store,
    tx: &Transaction<'_>,
    registered: &Registered,
    state: ProjectorState,
    who: &str,
) -> Result<bool, StoreError> {
    let target = &registered.target;
    let (version, fingerprint) = (target.version.to_string(), target.fingerprint.as_str());
    let row = store
        .query_opt(
            tx.client(),
            &store.sql.register_version,
            &[
                &target.projector.as_str(),
                &version,
                &state.as_str(),
                &target.delivery.as_str(),
                &fingerprint,
                &who,
            ],
        )
        .await?;
    Ok(row.is_some())
}

/// Creates the tables of a major version and their checkpoint, unless they are ours already.
async fn create_tables(
    store: &Store,
    tx: &Transaction<'_>,
    registered: &Registered,
    inline: bool,
    registry: &Registry,
) -> Result<(), RegisterError> {
    let target = &registered.target;
    let (projector, version) = (target.projector.clone(), target.version.clone());
    let ours = |row: &KnownTables| row.projector == projector && row.major == version.major;
    if registry.tables.iter().any(ours) {
        return Ok(());
    }
    let schema = registered.schema.clone();
    let row = tx.query_typed_one(&store.sql.schema_exists.text, &[(&schema, Type::TEXT)]).await?;
    if row.get("present") {
        return Err(RegisterError::ForeignTables { schema, projector, version });
    }
    let ddl = format!("CREATE SCHEMA {schema};\n{}", registered.ddl);
    tx.batch_execute(&ddl).await.map_err(|source| RegisterError::Ddl {
        projector,
        version,
        source: source.into(),
    })?;
    let tables_fingerprint = target.tables_fingerprint.as_str();
    store
        .query_one(
            tx.client(),
            &store.sql.create_checkpoint,
            &[&target.projector.as_str(), &registered.major(), &inline, &tables_fingerprint],
        )
        .await?;
    Ok(())
}
