//! Pruning: drops the tables of retired versions, and nothing else.
//!
//! One transaction for each major version, which happens whole or not at all. What becomes of a race with whoever replays or
//! activates the version is decided in the database: registering takes the same lock, and a version that has not retired is
//! not there to be dropped. Nothing is dropped along with something else: what depends on the tables, or stands among them
//! and is not the projector's, is named instead.

use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use postgres_types::{Json, ToSql};
use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::info;

use crate::activation::rollback::newest_switch;
use crate::expiry::SILENT_AFTER_SECS;
use crate::in_flight::{self, Blocker};
use crate::instances::GONE_AFTER_SECS;
use crate::objects;
use crate::registration::{Changed, changing, registry};
use crate::store::{Store, StoreError, rows};
use crate::wake::Hint;
use crate::words::decision::Versions;
use crate::words::names::ProjectorName;
use crate::words::prune::{Fate, Foreign, LostConfiguration, PrunePlan, RetiredTables, fates, needs};

/// How pruning is to be done.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Who asks for it, for the history.
    pub requested_by: String,
    /// How many retired major versions of each projector are kept: those that retired last.
    pub keep: usize,
    /// How long to try for the locks that dropping takes. They are never queued for, so nobody has to wait behind us.
    pub wait: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self { requested_by: "unnamed".to_owned(), keep: 1, wait: Duration::from_secs(10) }
    }
}

/// What was pruned.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[must_use]
pub struct Pruned {
    /// The tables that were dropped.
    pub dropped: Vec<RetiredTables>,
    /// The configurations that nobody can go back to any more without a replay from the beginning.
    pub lost: Vec<LostConfiguration>,
}

/// Why not everything was pruned that was due.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// Some tables are left as they were, whole.
    #[error("{} not pruned: {}", left.len(), left.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Left {
        /// What was dropped all the same.
        pruned: Pruned,
        /// What was not, and why.
        left: Vec<NotPruned>,
    },
    /// The database did not do as asked. What was dropped before stays dropped.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

/// Tables that were due, and are left as they were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotPruned {
    /// The projector.
    pub projector: ProjectorName,
    /// The major version that owns the tables.
    pub major: u64,
    /// The schema that holds them.
    pub schema: String,
    /// Why.
    pub why: WhyNotPruned,
}

/// What protects tables.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhyNotPruned {
    /// Live instances keep them current.
    Followed {
        /// How many.
        instances: usize,
    },
    /// Something that is not the projector's stands on them, or among them.
    InTheWay(Vec<Foreign>),
    /// Somebody replays or activates them now.
    InUse,
    /// Somebody holds locks on them.
    Blocked {
        /// Who.
        blockers: Vec<Blocker>,
        /// How long was tried, in seconds.
        after_secs: f64,
    },
}

impl std::fmt::Display for NotPruned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |items: Vec<String>| items.join(", ");
        write!(
            f,
            "the tables of {} v{} ({}) are left as they are: ",
            self.projector, self.major, self.schema
        )?;
        match &self.why {
            WhyNotPruned::Followed { instances } => {
                write!(f, "{instances} live instances keep them current; stop those first")
            }
            WhyNotPruned::InTheWay(foreign) => write!(
                f,
                "{}; drop that or move it elsewhere first",
                list(foreign.iter().map(ToString::to_string).collect())
            ),
            WhyNotPruned::InUse => f.write_str(
                "they are being replayed or activated, and so have not retired any more; `abort` ends that",
            ),
            WhyNotPruned::Blocked { blockers, after_secs } if blockers.is_empty() => {
                write!(f, "their locks could not be had within {after_secs:.1} s; try again later")
            }
            WhyNotPruned::Blocked { blockers, after_secs } => write!(
                f,
                "they were in use for {after_secs:.1} s: {}; end that, or try again later",
                list(blockers.iter().map(ToString::to_string).collect())
            ),
        }
    }
}

/// What pruning would do.
pub(crate) async fn plan(store: &Store, keep: usize) -> Result<PrunePlan, StoreError> {
    let client = store.single().await?;
    plan_on(store, &client, keep).await
}

async fn plan_on(store: &Store, client: &Client, keep: usize) -> Result<PrunePlan, StoreError> {
    let rows = store.query(client, &store.sql.retired_tables, &[&GONE_AFTER_SECS]).await?;
    let count = |row: &tokio_postgres::Row, column: &str| {
        usize::try_from(row.get::<_, i64>(column)).unwrap_or_default()
    };
    let names: Vec<ProjectorName> =
        rows.iter().map(|row| rows::word(row, "projector")).collect::<Result<_, _>>()?;
    let followed = names.iter().zip(rows.iter().map(|row| count(row, "followers")));
    let fates = fates(followed, keep);
    let mut tables = Vec::with_capacity(rows.len());
    for ((row, projector), fate) in rows.iter().zip(&names).zip(fates) {
        let versions: Vec<String> = row.get("versions");
        let version = |text: &String| {
            text.parse().map_err(|error: semver::Error| StoreError::Unreadable(error.to_string()))
        };
        let mut retired = RetiredTables {
            projector: projector.clone(),
            major: rows::major(row),
            versions: versions.iter().map(version).collect::<Result<_, _>>()?,
            schema: row.get("schema"),
            retired_secs: row.get("retired_secs"),
            bytes: row.get("bytes"),
            instances: count(row, "instances"),
            fate,
        };
        if retired.fate == Fate::Drop {
            let foreign = foreign(store, client, &Doomed::of(&retired)).await?;
            if !foreign.is_empty() {
                retired.fate = Fate::InTheWay(foreign);
            }
        }
        tables.push(retired);
    }
    let lost = lost(store, client, tables.iter().filter(|tables| tables.fate == Fate::Drop)).await?;
    Ok(PrunePlan { tables, lost })
}

/// The configurations that need tables which are to be dropped, and whose tables are all there still.
async fn lost<'a>(
    store: &Store,
    client: &Client,
    dropped: impl Iterator<Item = &'a RetiredTables> + Clone,
) -> Result<Vec<LostConfiguration>, StoreError> {
    let registry = registry(store, client).await?;
    let active = registry.active();
    let before = newest_switch(store, client).await?.filter(|switched| switched.to == active);
    let there = |configuration: &Versions| {
        configuration.iter().all(|(projector, version)| {
            registry.tables.iter().any(|own| own.projector == *projector && own.major == version.major)
        })
    };
    let rows = store.query(client, &store.sql.replaced_configurations, &[]).await?;
    let configurations = rows.iter().map(|row| LostConfiguration {
        configuration: row.get::<_, Json<Versions>>("configuration").0,
        replaced_secs: row.get("replaced_secs"),
        before: false,
    });
    Ok(configurations
        .filter(|lost| there(&lost.configuration))
        .filter(|lost| needs(&lost.configuration, dropped.clone().map(|own| (&own.projector, own.major))))
        .map(|lost| LostConfiguration {
            before: before.as_ref().is_some_and(|before| before.from == lost.configuration),
            ..lost
        })
        .collect())
}

/// What stands in the schema of some tables, or depends on it, and is not the projector's.
pub(crate) async fn foreign(
    store: &Store,
    client: &Client,
    tables: &Doomed,
) -> Result<Vec<Foreign>, StoreError> {
    let Doomed { schema, .. } = tables;
    let params: [&(dyn ToSql + Sync); 2] = [&tables.projector.as_str(), &tables.major_number()];
    let made = store.query_opt(client, &store.sql.objects_made, &params).await?;
    let made: Vec<String> = made.map(|row| row.get("objects")).unwrap_or_default();
    let objects = objects::all(store, client, schema).await?;
    let dependents = store.query(client, &store.sql.dependents, &[schema]).await?;
    let strangers = objects.iter().map(ToString::to_string).filter(|object| !made.contains(object));
    let dependents = dependents.iter().map(|row| Foreign::Dependent(row.get("object")));
    Ok(strangers.map(Foreign::Stranger).chain(dependents).collect())
}

/// Tables that are to go, of one major version.
#[derive(Debug, Clone)]
pub(crate) struct Doomed {
    pub(crate) projector: ProjectorName,
    pub(crate) major: u64,
    pub(crate) schema: String,
}

impl Doomed {
    fn of(tables: &RetiredTables) -> Self {
        let RetiredTables { projector, major, schema, .. } = tables.clone();
        Self { projector, major, schema }
    }

    /// The major version, as the database keeps it.
    pub(crate) fn major_number(&self) -> i64 {
        i64::try_from(self.major).unwrap_or(i64::MAX)
    }

    /// The name by which processes share a replay of it.
    pub(crate) fn replay_name(&self, store: &Store) -> String {
        format!("{} {} v{}", store.schema, self.projector, self.major)
    }
}

/// Why tables may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Going {
    /// They have retired.
    Retired,
    /// They were replayed, and never activated.
    Abandoned,
}

/// Drops the tables of retired versions, but for the newest of each projector.
pub(crate) async fn prune(store: &Store, options: &PruneOptions) -> Result<Pruned, PruneError> {
    let client = store.single().await?;
    let watcher = store.single().await?;
    let plan = plan_on(store, &client, options.keep).await?;
    let mut dropped = Vec::new();
    let mut left = Vec::new();
    for tables in &plan.tables {
        let why = match &tables.fate {
            Fate::Newest => continue,
            Fate::Followed { instances } => WhyNotPruned::Followed { instances: *instances },
            Fate::InTheWay(foreign) => WhyNotPruned::InTheWay(foreign.clone()),
            Fate::Drop => match drop_tables(
                store,
                &client,
                &watcher,
                &Doomed::of(tables),
                Going::Retired,
                &options.requested_by,
                options.wait,
            )
            .await?
            {
                Dropped::Yes => {
                    info!(projector = %tables.projector, major = tables.major, schema = tables.schema, "pruned");
                    dropped.push(tables.clone());
                    continue;
                }
                Dropped::ByOthers => continue,
                Dropped::No(why) => why,
            },
        };
        let RetiredTables { projector, major, schema, .. } = tables.clone();
        left.push(NotPruned { projector, major, schema, why });
    }
    let gone = |lost: &LostConfiguration| {
        needs(&lost.configuration, dropped.iter().map(|own: &RetiredTables| (&own.projector, own.major)))
    };
    let lost = plan.lost.into_iter().filter(gone).collect();
    let pruned = Pruned { dropped, lost };
    if left.is_empty() { Ok(pruned) } else { Err(PruneError::Left { pruned, left }) }
}

/// What became of one schema.
pub(crate) enum Dropped {
    Yes,
    /// Somebody else pruned it meanwhile.
    ByOthers,
    No(WhyNotPruned),
}

/// Why one transaction did not drop a schema. It is rolled back: everything is as it was.
enum Failed {
    Not(Dropped),
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

fn is(error: &StoreError, code: &SqlState) -> bool {
    matches!(error, StoreError::Database(error) if error.code() == Some(code))
}

/// How long between two tries for the locks, and between two looks at who holds them.
const AGAIN: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(20);

/// Drops one schema, trying for so long.
pub(crate) async fn drop_tables(
    store: &Store,
    client: &Client,
    watcher: &Client,
    tables: &Doomed,
    going: Going,
    who: &str,
    wait: Duration,
) -> Result<Dropped, StoreError> {
    let started = Instant::now();
    loop {
        let session = OnceLock::new();
        let mut blockers = Vec::new();
        let tried = {
            let mut trying = pin!(changing(store, client, async |client| {
                drop_once(store, client, tables, going, who, &session).await
            }));
            loop {
                tokio::select! {
                    tried = &mut trying => break tried,
                    () = sleep(LOOK) => {
                        // While it waits, whoever it waits for can be seen.
                        let Some(&pid) = session.get() else { continue };
                        let seen = in_flight::in_the_way(store, watcher, &tables.schema, pid).await?;
                        if !seen.is_empty() {
                            blockers = seen;
                        }
                    }
                }
            }
        };
        match tried {
            Ok(_) => {
                store.hint(client, Hint::States).await;
                return Ok(Dropped::Yes);
            }
            Err(Failed::Not(dropped)) => return Ok(dropped),
            Err(Failed::Store(error)) if is(&error, &SqlState::LOCK_NOT_AVAILABLE) => {
                if blockers.is_empty() {
                    let pid = session.get().copied().unwrap_or_default();
                    blockers = in_flight::in_the_way(store, watcher, &tables.schema, pid).await?;
                }
            }
            Err(Failed::Store(error)) if is(&error, &SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
                // It came while we were at it.
                let foreign = foreign(store, client, tables).await?;
                let not = WhyNotPruned::InTheWay(foreign.clone());
                return if foreign.is_empty() { Err(error) } else { Ok(Dropped::No(not)) };
            }
            Err(Failed::Store(error)) => return Err(error),
        }
        if started.elapsed() >= wait {
            let after_secs = started.elapsed().as_secs_f64();
            return Ok(Dropped::No(WhyNotPruned::Blocked { blockers, after_secs }));
        }
        sleep(AGAIN.min(wait.saturating_sub(started.elapsed()))).await;
    }
}

/// Drops one schema with everything that we know of it, in a transaction that has begun.
async fn drop_once(
    store: &Store,
    client: &Client,
    tables: &Doomed,
    going: Going,
    who: &str,
    session: &OnceLock<i32>,
) -> Result<Changed, Failed> {
    let Doomed { projector, schema, .. } = tables;
    let (name, major) = (projector.as_str(), tables.major_number());
    let pid = store.query_one(client, &store.sql.begin_pruning, &[]).await?.get("pid");
    session.get_or_init(|| pid);
    let params: [&(dyn ToSql + Sync); 2] = [&name, &major];
    store.query(client, &store.sql.lock_checkpoints, &params).await?;
    let replay = tables.replay_name(store);
    let versions: [&(dyn ToSql + Sync); 6] =
        [&name, &major, &who, &GONE_AFTER_SECS, &SILENT_AFTER_SECS, &replay];
    match going {
        Going::Retired => {
            if store.query(client, &store.sql.prune_versions, &versions[..4]).await?.is_empty() {
                return Err(Failed::Not(not_retired(store, client, tables).await?));
            }
        }
        Going::Abandoned => {
            if store.query(client, &store.sql.discard_versions, &versions).await?.is_empty() {
                return Err(Failed::Not(Dropped::No(WhyNotPruned::InUse)));
            }
        }
    }
    let mut left = objects::all(store, client, schema).await?;
    let own: Vec<&str> =
        left.iter().filter(|own| own.kind == "TABLE").map(|own| own.identity.as_str()).collect();
    if !own.is_empty() {
        // Not queued for: everybody who wants to read would queue up behind us.
        let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT", own.join(", "));
        client.batch_execute(&lock).await?;
    }
    // Under the locks, so that nobody puts a view on them any more.
    let foreign = foreign(store, client, tables).await?;
    if !foreign.is_empty() {
        return Err(Failed::Not(Dropped::No(WhyNotPruned::InTheWay(foreign))));
    }
    while !left.is_empty() {
        left = objects::drop_free(client, left).await?;
    }
    let exists = store.query_one(client, &store.sql.schema_exists, &[schema]).await?;
    if exists.get("present") {
        client.batch_execute(&format!("DROP SCHEMA {schema} RESTRICT")).await?;
    }
    store.query(client, &store.sql.forget_tables, &params).await?;
    Ok(Changed::Yes)
}

/// Why no version was there to be dropped.
async fn not_retired(store: &Store, client: &Client, tables: &Doomed) -> Result<Dropped, StoreError> {
    let rows = store.query(client, &store.sql.retired_tables, &[&GONE_AFTER_SECS]).await?;
    for row in &rows {
        if rows::word::<ProjectorName>(row, "projector")? == tables.projector
            && rows::major(row) == tables.major
        {
            let instances = usize::try_from(row.get::<_, i64>("followers")).unwrap_or_default();
            return Ok(Dropped::No(WhyNotPruned::Followed { instances }));
        }
    }
    let known = registry(store, client).await?.known;
    let there =
        known.iter().any(|row| row.projector == tables.projector && row.version.major == tables.major);
    Ok(if there { Dropped::No(WhyNotPruned::InUse) } else { Dropped::ByOthers })
}
