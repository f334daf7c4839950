//! Optimizing: the secondary indexes that a version's tables should have, and what the planner knows of their rows.
//!
//! What should be there is what the projector's own DDL makes, in a schema of its own and in a transaction that is undone; what
//! is missing is built. Where somebody may read or write the tables, an index is built beside them (`CONCURRENTLY`), which holds
//! nobody up; where a version is only replayed, as it is after the bulk of a replay.
//!
//! What this does not do: drop an index that is no part of the definition, or build a unique one beside writers, whom it would
//! refuse rows that are there already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres_types::ToSql;
use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::info;
use uuid::Uuid;

use crate::core::Core;
use crate::projector::Registered;
use crate::projector::configuration::{Indexes, NotRegistered};
use crate::registration::registry;
use crate::replayer::claims;
use crate::replayer::indexes::{self, Statement};
use crate::replayer::shown::{Purpose, Shown};
use crate::replayer::{Begun, OnProgress, Pace, ReplayError, ReplayProgress};
use crate::store::quote::{ident, relation};
use crate::store::{Path, Store, StoreError};
use crate::words::names::ProjectorName;
use crate::words::state::ProjectorState;

/// How tables are to be optimized.
#[derive(Debug, Clone)]
pub struct OptimizeOptions {
    /// Who asks for it; shown while it is under way.
    pub requested_by: String,
    /// How many indexes are built, or tables analyzed, at once: each keeps one connection and about one processor of the server busy.
    pub max_connections: usize,
}

impl Default for OptimizeOptions {
    fn default() -> Self {
        Self { requested_by: "unnamed".to_owned(), max_connections: 4 }
    }
}

/// Tables that have their indexes, and of whose rows the planner knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[must_use]
pub struct Optimized {
    /// The projector.
    pub projector: ProjectorName,
    /// Its version.
    pub version: semver::Version,
    /// The schema that holds its tables.
    pub schema: String,
    /// The indexes that were built; all others were there.
    pub built: Vec<String>,
    /// Whether they were built beside whoever reads and writes the tables.
    pub concurrently: bool,
    /// The tables that were analyzed.
    pub analyzed: Vec<String>,
    /// How long it took, in seconds.
    pub elapsed_secs: f64,
}

/// Why tables were not optimized. What was built before is kept, and the same call goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizeError {
    /// The configuration holds no such projector.
    #[error(transparent)]
    NotOurs(#[from] NotRegistered),
    /// The version has no tables.
    #[error("{projector} {version} has no tables yet: `replay` makes them")]
    NotThere {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// The bulk of the log is being replayed into the tables, which indexes would slow down.
    #[error(
        "the bulk of {projector} {version} is half replayed: `replay` goes on with it, and builds the indexes after it"
    )]
    InBulk {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// An index of that name is something else.
    #[error(
        "{index} is there and is not what {projector} {version} defines by that name: drop or rename it, then run `optimize` again"
    )]
    OtherIndex {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The index, with its schema.
        index: String,
    },
    /// A unique index is missing on tables that are live.
    #[error(
        "{index} of {projector} {version} is unique, and its tables are live: while it is built it would refuse what others write; build it by hand"
    )]
    Unique {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The index, with its schema.
        index: String,
    },
    /// Building beside whoever writes takes locks of a session, which a pooler hands on to others.
    #[error(
        "indexes of {projector} {version} are missing and its tables are live: building them takes a direct connection and not a pooler; run `optimize` with the server's own address"
    )]
    NeedsDirectConnection {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// The definition cannot be held against what is there.
    #[error(
        "the tables that {projector} {version} defines cannot be made, to see which indexes they have: mend what the database names (its DDL, or the right to create a schema), then run `optimize` again"
    )]
    Ddl {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What the database says.
        #[source]
        source: StoreError,
    },
    /// The version's replay is not as it should be.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Somebody ended it.
    #[error(
        "optimizing {projector} {version} was aborted by {by}; what was built is kept: `optimize` goes on from there"
    )]
    Aborted {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Who ended it.
        by: String,
    },
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

/// How long to wait before looking again whether somebody else has done it.
const BUSY: Duration = Duration::from_millis(100);

/// Optimizes the tables of some projectors, one after the other.
pub(crate) async fn optimize(
    core: &Core,
    wanted: &[Arc<Registered>],
    options: &OptimizeOptions,
    on_progress: OnProgress<'_>,
) -> Result<Vec<Optimized>, OptimizeError> {
    let mut done = Vec::with_capacity(wanted.len());
    for registered in wanted {
        let own = std::slice::from_ref(registered);
        let shown = Shown::begin(core, Purpose::Optimize, own, Some(&options.requested_by)).await;
        let report = |progress: &ReplayProgress| {
            shown.note(progress);
            on_progress(progress);
        };
        let aborted = |projector, version, by| OptimizeError::Aborted { projector, version, by };
        let optimized = shown.until(Box::pin(one(core, registered, options, &report)), aborted).await;
        shown.end().await;
        done.push(optimized?);
    }
    Ok(done)
}

/// The projectors of this build that have tables to be optimized.
pub(crate) async fn there(core: &Core) -> Result<Vec<Arc<Registered>>, StoreError> {
    let client = core.store.single().await?;
    let registry = registry(&core.store, &client).await?;
    let own = core.configuration.projectors.values();
    Ok(own.filter(|registered| registry.tables_of(&registered.target).is_some()).cloned().collect())
}

async fn one(
    core: &Core,
    registered: &Arc<Registered>,
    options: &OptimizeOptions,
    on_progress: OnProgress<'_>,
) -> Result<Optimized, OptimizeError> {
    let (store, started) = (&core.store, Instant::now());
    let (projector, version) = registered.id();
    let client = store.single().await?;
    let mut built = Vec::new();
    let live = match standing(store, &client, registered).await? {
        Standing::NotThere => return Err(OptimizeError::NotThere { projector, version }),
        Standing::InBulk => return Err(OptimizeError::InBulk { projector, version }),
        Standing::Live => true,
        Standing::Replaying => {
            let before = secondary(store, &client, &registered.schema).await?;
            // What is due after the bulk, and was not done.
            let begun = Begun::join(store, &client, registered).await?;
            let pace = Pace { max_connections: options.max_connections + 1, ..Pace::default() };
            let _ = indexes::build(core, &client, &begun, &pace, on_progress).await?;
            let after = secondary(store, &client, &registered.schema).await?;
            let new = after.iter().filter(|index| !before.contains(index));
            built.extend(new.map(|index| index.identity(registered)));
            false
        }
    };
    loop {
        let missing = missing(store, &client, registered).await?;
        if missing.is_empty() {
            break;
        }
        if live && let Some(unique) = missing.iter().find(|index| index.is_unique) {
            let index = unique.identity(registered);
            return Err(OptimizeError::Unique { projector, version, index });
        }
        if live && store.path != Path::Direct {
            return Err(OptimizeError::NeedsDirectConnection { projector, version });
        }
        let claim = indexes::claim_name(store, registered);
        // One process at a time; whoever waits looks again at what is missing.
        if !claims::begin(store, &client, &claim).await? {
            sleep(BUSY).await;
            continue;
        }
        let statements: Vec<Statement> =
            missing.iter().map(|index| index.statement(&registered.schema, live)).collect();
        let at = indexes::at(core, &client, registered).await?;
        // An index that is built beside others would wait for the snapshot of the last statement.
        client.batch_execute(claims::RELEASE_SNAPSHOT).await.map_err(StoreError::from)?;
        // Somebody else may have built them since we looked.
        built.extend(
            indexes::run(core, registered, &statements, options.max_connections, at, on_progress).await?,
        );
        client.batch_execute("COMMIT").await.map_err(StoreError::from)?;
    }
    let analyzed = indexes::analyze(store, &client, registered, options.max_connections).await?;
    Ok(optimized(registered, built, live, analyzed, started))
}

fn optimized(
    registered: &Registered,
    built: Vec<String>,
    live: bool,
    analyzed: Vec<String>,
    started: Instant,
) -> Optimized {
    let (projector, version) = registered.id();
    let schema = registered.schema.clone();
    let concurrently = live && !built.is_empty();
    info!(%projector, %version, built = built.len(), analyzed = analyzed.len(), "optimized");
    let elapsed_secs = started.elapsed().as_secs_f64();
    Optimized { projector, version, schema, built, concurrently, analyzed, elapsed_secs }
}

/// Where tables stand.
enum Standing {
    NotThere,
    /// Shards of a parallel replay have not met yet, or are to be begun.
    InBulk,
    /// Nobody but a replay writes to them.
    Replaying,
    /// Somebody may read or write them.
    Live,
}

async fn standing(store: &Store, client: &Client, registered: &Registered) -> Result<Standing, StoreError> {
    let id: [&(dyn ToSql + Sync); 2] = [&registered.target.projector.as_str(), &registered.major()];
    let Some(begun) = store.query_opt(client, &store.sql.begun, &id).await? else {
        return Ok(Standing::NotThere);
    };
    let registry = registry(store, client).await?;
    let inline = registry.tables_of(&registered.target).is_some_and(|own| own.inline);
    let counts = registry.known.iter().any(|row| {
        row.projector == registered.target.projector
            && row.version.major == registered.target.version.major
            && row.state != ProjectorState::Replaying
    });
    if counts || inline || begun.get("adopted") {
        return Ok(Standing::Live);
    }
    let in_shards = !store.query(client, &store.sql.shards, &id).await?.is_empty();
    Ok(if in_shards { Standing::InBulk } else { Standing::Replaying })
}

/// An index that does not belong to a constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Secondary {
    table: String,
    name: String,
    /// Its name, quoted where it has to be.
    quoted: String,
    /// What it is, but for its name and schema.
    definition: String,
    /// The same, from how it is built on.
    using: String,
    is_unique: bool,
    is_valid: bool,
}

impl Secondary {
    /// Its name with the schema of a version's tables.
    fn identity(&self, registered: &Registered) -> String {
        format!("{}.{}", registered.schema, self.quoted)
    }

    /// What builds it.
    fn statement(&self, schema: &str, live: bool) -> Statement {
        let Self { table, name, using, is_unique, .. } = self;
        let unique = if *is_unique { "UNIQUE " } else { "" };
        let on = format!("{} ON {}{using}", ident(name), relation(schema, table));
        Statement {
            index: format!("{schema}.{}", self.quoted),
            lock: if live { format!("{schema}.{table}") } else { format!("{schema}.{name}") },
            create: if live {
                format!("CREATE {unique}INDEX CONCURRENTLY {on}")
            } else {
                format!("CREATE {unique}INDEX IF NOT EXISTS {on}")
            },
            discard: format!(
                "DROP INDEX {}IF EXISTS {}",
                if live { "CONCURRENTLY " } else { "" },
                relation(schema, name)
            ),
            live,
        }
    }
}

/// The indexes in a schema.
async fn secondary(store: &Store, client: &Client, schema: &str) -> Result<Vec<Secondary>, StoreError> {
    let rows = store.query(client, &store.sql.secondary_indexes, &[&schema]).await?;
    let of = |row: &tokio_postgres::Row| Secondary {
        table: row.get("table"),
        name: row.get("name"),
        quoted: row.get("quoted"),
        definition: row.get("definition"),
        using: row.get("using"),
        is_unique: row.get("is_unique"),
        is_valid: row.get("is_valid"),
    };
    Ok(rows.iter().map(of).collect())
}

/// The indexes that are defined and not there.
async fn missing(
    store: &Store,
    client: &Client,
    registered: &Registered,
) -> Result<Vec<Secondary>, OptimizeError> {
    let there = secondary(store, client, &registered.schema).await?;
    let defined = defined(store, client, registered).await?;
    let mut missing = Vec::new();
    for index in defined {
        let same = |other: &&Secondary| other.table == index.table && other.definition == index.definition;
        if there.iter().any(|other| other.is_valid && same(&other)) {
            continue;
        }
        // One that is not valid, of this name and kind, is what is left of an attempt at it.
        if there.iter().any(|other| other.name == index.name && (other.is_valid || !same(&other))) {
            let (projector, version) = registered.id();
            let index = index.identity(registered);
            return Err(OptimizeError::OtherIndex { projector, version, index });
        }
        missing.push(index);
    }
    Ok(missing)
}

/// The indexes that the projector's own DDL makes, in a transaction that is undone.
async fn defined(
    store: &Store,
    client: &Client,
    registered: &Registered,
) -> Result<Vec<Secondary>, OptimizeError> {
    if let Indexes::Each(indexes) = &registered.indexes
        && indexes.is_empty()
    {
        return Ok(Vec::new());
    }
    let id = Uuid::new_v4().simple().to_string();
    let schema = format!("{:.47}_define_{}", registered.schema, &id[..8]);
    let scratch = registered.elsewhere(&schema);
    let ddl = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '2s'; CREATE SCHEMA {};\n{}{}",
        ident(&schema),
        scratch.tables,
        scratch.indexes.all()
    );
    let made = match client.batch_execute(&ddl).await {
        Ok(()) => secondary(store, client, &schema).await.map_err(OptimizeError::from),
        Err(error) => {
            let (projector, version) = registered.id();
            Err(OptimizeError::Ddl { projector, version, source: error.into() })
        }
    };
    client.batch_execute("ROLLBACK").await.map_err(StoreError::from)?;
    let (scratch, own) = (format!("{}.", ident(&schema)), format!("{}.", ident(&registered.schema)));
    let here = |index: Secondary| Secondary { using: index.using.replace(&scratch, &own), ..index };
    Ok(made?.into_iter().map(here).collect())
}
