//! Registration: the rows and the tables of a projector version, made in one transaction, by one process at a time.

use futures_util::future::join;
use tokio_postgres::Client;
use tracing::info;

use crate::objects;
use crate::projector::configuration::Configuration;
use crate::projector::{Registered, chain};
use crate::store::{Store, StoreError, rows};
use crate::words::decision::{Refused, Versions};
use crate::words::plan::{Known, KnownTables, Obstacle, Target, obstacle};
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

impl Registry {
    /// The configuration that is active.
    pub(crate) fn active(&self) -> Versions {
        let active = self.known.iter().filter(|row| row.state == ProjectorState::Active);
        active.map(|row| (row.projector.clone(), row.version.clone())).collect()
    }

    /// The tables of a version's major version.
    pub(crate) fn tables_of(&self, target: &Target) -> Option<&KnownTables> {
        let own = |row: &&KnownTables| row.projector == target.projector && row.major == target.version.major;
        self.tables.iter().find(own)
    }
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

/// Whether the secondary indexes of a version's tables are there.
pub(crate) async fn is_indexed(
    store: &Store,
    client: &Client,
    registered: &Registered,
) -> Result<bool, StoreError> {
    let rows = store.query(client, &store.sql.checkpoints, &[]).await?;
    let own = rows.iter().find(|row| {
        row.get::<_, &str>("projector") == registered.target.projector.as_str()
            && rows::major(row) == registered.target.version.major
    });
    Ok(own.is_none_or(|row| row.get("indexed")))
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
    client: &Client,
    registered: &Registered,
    who: &str,
) -> Result<(), RegisterError> {
    changing(store, client, async |client| {
        let registry = registry(store, client).await?;
        if let Some(obstacle) = obstacle(&registered.target, &registry.known, &registry.tables) {
            return Err(obstacle.into());
        }
        create_tables(store, client, registered, false, false, &registry).await?;
        let changed = insert(store, client, registered, ProjectorState::Replaying, who).await?;
        Ok(if changed { Changed::Yes } else { Changed::No })
    })
    .await
    .map(drop)
}

/// Makes a configuration the active one where nothing was ever activated, and says whether it did. Not an error if somebody else
/// was faster: the states then say what is so.
pub(crate) async fn assume(
    store: &Store,
    client: &Client,
    configuration: &Configuration,
) -> Result<Result<bool, Refused>, StoreError> {
    if configuration.projectors.is_empty() {
        return Ok(Ok(false));
    }
    let mut refused = None;
    let assumed = changing(store, client, async |client| {
        let registry = registry(store, client).await?;
        if !registry.known.is_empty() {
            return Ok(Changed::No);
        }
        // Everything may have been pruned: then this is no beginning, and an instance of some old release must not make one.
        if store.query_one(client, &store.sql.ever_activated, &[]).await?.get("ever") {
            refused = Some(Refused::NoConfigurationIsActive);
            return Ok(Changed::Undo);
        }
        let empty: bool = store.query_one(client, &store.sql.log_is_empty, &[]).await?.get("empty");
        for registered in configuration.projectors.values() {
            let inline = registered.target.delivery == Delivery::Inline;
            if inline && !empty {
                let (projector, version) = registered.id();
                refused = Some(Refused::HistoryIsMissing { projector, version });
                return Ok(Changed::Undo);
            }
            match create_tables(store, client, registered, inline, true, &registry).await {
                Ok(()) => {}
                Err(RegisterError::Store(error)) => return Err(error),
                Err(error) => {
                    let (projector, version) = registered.id();
                    let reason = chain(&error);
                    refused = Some(Refused::CannotBeRegistered { projector, version, reason });
                    return Ok(Changed::Undo);
                }
            }
            insert(store, client, registered, ProjectorState::Active, "assumed by an instance").await?;
        }
        Ok(Changed::Yes)
    })
    .await?;
    if assumed == Changed::Yes {
        info!(configuration = ?configuration.versions(), "nothing was active: assumed our configuration");
    }
    Ok(refused.map_or(Ok(assumed == Changed::Yes), Err))
}

/// What became of the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    Yes,
    No,
    /// Nothing may be kept of what was written.
    Undo,
}

/// Does some work in a transaction, one process at a time. Where it changed the states, the commit and the new generation
/// are sent together: nothing on our side can stop in between.
pub(crate) async fn changing<E: From<StoreError>>(
    store: &Store,
    client: &Client,
    work: impl AsyncFnOnce(&Client) -> Result<Changed, E>,
) -> Result<Changed, E> {
    let end = async |sql: &str| client.batch_execute(sql).await.map_err(StoreError::from);
    end("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let worked = match store.query_one(client, &store.sql.lock_registration, &[]).await {
        Ok(_) => work(client).await,
        Err(error) => Err(error.into()),
    };
    match worked {
        Ok(Changed::Yes) => {
            let (committed, set) =
                join(end("COMMIT"), store.query_one(client, &store.sql.set_generation, &[])).await;
            committed?;
            set?;
        }
        Ok(Changed::No | Changed::Undo) | Err(_) => end("ROLLBACK").await?,
    }
    worked
}

/// A column of a table in the schema of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableColumn {
    /// Its table's name and its own: `orders.customer`.
    pub(crate) name: String,
    /// Its type, and whatever else decides which values it takes.
    pub(crate) definition: String,
}

impl std::fmt::Display for TableColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.definition)
    }
}

/// The columns of the tables in a schema.
pub(crate) async fn columns(
    store: &Store,
    client: &Client,
    schema: &str,
) -> Result<Vec<TableColumn>, StoreError> {
    let rows = store.query(client, &store.sql.columns, &[&schema]).await?;
    Ok(rows
        .iter()
        .map(|row| TableColumn { name: row.get("name"), definition: row.get("definition") })
        .collect())
}

/// The tables among the objects of a version.
pub(crate) fn tables_among(objects: &[String]) -> impl Iterator<Item = &str> {
    objects.iter().filter_map(|object| object.strip_prefix("table "))
}

/// Those of a version's tables that hold rows.
pub(crate) async fn filled(client: &Client, objects: &[String]) -> Result<Vec<String>, StoreError> {
    let looks = tables_among(objects).map(|table| {
        format!("SELECT '{}' AS name WHERE EXISTS (SELECT FROM {table})", table.replace('\'', "''"))
    });
    let looks: Vec<String> = looks.collect();
    if looks.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client.query_typed(&looks.join(" UNION ALL "), &[]).await?;
    Ok(rows.iter().map(|row| row.get("name")).collect())
}

async fn insert(
    store: &Store,
    client: &Client,
    registered: &Registered,
    state: ProjectorState,
    who: &str,
) -> Result<bool, StoreError> {
    let target = &registered.target;
    let (version, fingerprint) = (target.version.to_string(), target.fingerprint.as_str());
    let row = store
        .query_opt(
            client,
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
    client: &Client,
    registered: &Registered,
    inline: bool,
    with_indexes: bool,
    registry: &Registry,
) -> Result<(), RegisterError> {
    let target = &registered.target;
    let (projector, version) = (target.projector.clone(), target.version.clone());
    if registry.tables_of(target).is_some() {
        return Ok(());
    }
    let schema = registered.schema.clone();
    let row = store.query_one(client, &store.sql.schema_exists, &[&schema]).await?;
    if row.get("present") {
        return Err(RegisterError::ForeignTables { schema, projector, version });
    }
    // What is replayed gets its secondary indexes once the bulk of the log is in.
    let indexes = if with_indexes { registered.indexes.all() } else { String::new() };
    let ddl = format!("CREATE SCHEMA {schema};\n{}{indexes}", registered.tables);
    client.batch_execute(&ddl).await.map_err(|source| RegisterError::Ddl {
        projector,
        version,
        source: source.into(),
    })?;
    let made = objects::all(store, client, &registered.schema).await?;
    let made: Vec<String> = made.iter().map(ToString::to_string).collect();
    let columns = columns(store, client, &registered.schema).await?;
    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
    let seeded = !filled(client, &made).await?.is_empty();
    let tables_fingerprint = target.tables_fingerprint.as_str();
    store
        .query_one(
            client,
            &store.sql.create_checkpoint,
            &[
                &target.projector.as_str(),
                &registered.major(),
                &inline,
                &tables_fingerprint,
                &with_indexes,
                &made,
                &columns,
                &seeded,
            ],
        )
        .await?;
    Ok(())
}
