//! Discarding: drops the tables of a version that was replayed and never activated, with everything that is known of it.
//!
//! With the care of pruning, and by its means: in one transaction, which happens whole or not at all, never along with anything else, never
//! queueing for a lock. Whether somebody is at it, or the version counts after all, is decided in the database.

use std::time::Duration;

use postgres_types::ToSql;
use semver::Version;
use serde::Serialize;
use tokio_postgres::Client;
use tracing::info;

use crate::expiry::SILENT_AFTER_SECS;
use crate::instances::GONE_AFTER_SECS;
use crate::prune::{self, Doomed, Dropped, Going, NotPruned, WhyNotPruned};
use crate::registration::registry;
use crate::replayer::shown;
use crate::store::{Store, StoreError};
use crate::words::names::ProjectorName;
use crate::words::position::Position;
use crate::words::prune::Foreign;
use crate::words::state::ProjectorState;

/// How discarding is to be done.
#[derive(Debug, Clone)]
pub struct DiscardOptions {
    /// Who asks for it, for the history.
    pub requested_by: String,
    /// How long to try for the locks that dropping takes. They are never queued for, so nobody has to wait behind us.
    pub wait: Duration,
}

impl Default for DiscardOptions {
    fn default() -> Self {
        Self { requested_by: "unnamed".to_owned(), wait: Duration::from_secs(10) }
    }
}

/// A replay that was never activated: what is there of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Abandoned {
    /// The projector.
    pub projector: ProjectorName,
    /// The versions that share its tables, all of them replaying.
    pub versions: Vec<Version>,
    /// The schema that holds its tables.
    pub schema: String,
    /// How far its rows have come.
    pub position: Position,
    /// How large the tables are, with their indexes, in bytes.
    pub bytes: i64,
    /// How long ago its checkpoint moved last.
    pub untouched_secs: f64,
    /// How many live instances register one of the versions, and wait for it to be activated.
    pub instances: usize,
    /// What stands on the tables or among them and is not the projector's: while there is any, nothing is dropped.
    pub in_the_way: Vec<Foreign>,
}

/// Why a replay was not discarded. Everything is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscardError {
    /// Nobody has registered this version.
    #[error("{projector} {version} was never replayed: there is nothing to discard")]
    NotThere {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
    },
    /// It is not abandoned: it counts, or somebody is at it.
    #[error("{projector} {version} was not discarded: {why}")]
    NotAbandoned {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
        /// Why not, and what to do.
        why: String,
    },
    /// Something stands in the way of dropping its tables.
    #[error("{0}")]
    Left(NotPruned),
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

/// What discarding would drop.
pub(crate) async fn plan(
    store: &Store,
    projector: &ProjectorName,
    version: &Version,
) -> Result<Abandoned, DiscardError> {
    let client = store.single().await?;
    plan_on(store, &client, projector, version).await
}

async fn plan_on(
    store: &Store,
    client: &Client,
    projector: &ProjectorName,
    version: &Version,
) -> Result<Abandoned, DiscardError> {
    let doomed = doomed(projector, version);
    let known = registry(store, client).await?.known;
    let sharing =
        known.into_iter().filter(|row| row.projector == *projector && row.version.major == version.major);
    let sharing: Vec<_> = sharing.collect();
    let not = |why: String| DiscardError::NotAbandoned {
        projector: projector.clone(),
        version: version.clone(),
        why,
    };
    if !sharing.iter().any(|row| row.version == *version) {
        return Err(DiscardError::NotThere { projector: projector.clone(), version: version.clone() });
    }
    if let Some(counts) = sharing.iter().find(|row| row.state != ProjectorState::Replaying) {
        let next = match counts.state {
            ProjectorState::Retired => "; `prune` drops the tables of versions that have retired",
            ProjectorState::Activating => "; `abort` ends that activation",
            _ => "; activate another version, or run `deactivate`, and `prune` drops its tables",
        };
        return Err(not(if counts.version == *version {
            format!("it is {}{next}", counts.state)
        } else {
            format!("its tables are those of {} as well, which is {}{next}", counts.version, counts.state)
        }));
    }
    let at_it = |who: String| not(format!("{who}; `abort` ends that"));
    let replays = shown::all(store, client, Position::START).await?;
    let mut replays = replays.iter().filter(|replay| {
        replay.alive && replay.projector == *projector && replay.version.major == version.major
    });
    if let Some(replay) = replays.next() {
        let host = replay.host.as_deref().map_or_else(String::new, |host| format!(" on {host}"));
        let (pid, application, purpose) = (replay.pid, &replay.application, &replay.purpose);
        return Err(at_it(format!("process {pid}{host} ({application}) is at it ({purpose})")));
    }
    let params: [&(dyn ToSql + Sync); 5] = [
        &projector.as_str(),
        &doomed.major_number(),
        &GONE_AFTER_SECS,
        &SILENT_AFTER_SECS,
        &doomed.replay_name(store),
    ];
    let row = store.query_opt(client, &store.sql.abandoned, &params).await?;
    let Some(row) = row else {
        return Err(not("it has no tables, so nothing of it takes up room".to_owned()));
    };
    if let Some(by) = row.get::<_, Option<String>>("activation") {
        return Err(at_it(format!("{by} is to activate it")));
    }
    if row.get("shared") {
        return Err(at_it(
            "a process that was not seen lately holds shards of it, perhaps frozen".to_owned(),
        ));
    }
    if row.get("adopted") {
        return Err(
            not("its rows were adopted, and the log need not hold what they were made of; `adopt` goes on with it".to_owned()),
        );
    }
    if row.get("counted") {
        return Err(not(
            "it was active before, and its rows are the way back; `rollback` goes on with it, and once it has retired again `prune` drops its tables".to_owned(),
        ));
    }
    Ok(Abandoned {
        projector: projector.clone(),
        versions: sharing.into_iter().map(|row| row.version).collect(),
        schema: doomed.schema.clone(),
        position: row.get("position"),
        bytes: row.get("bytes"),
        untouched_secs: row.get("untouched_secs"),
        instances: usize::try_from(row.get::<_, i64>("instances")).unwrap_or_default(),
        in_the_way: prune::foreign(store, client, &doomed).await?,
    })
}

fn doomed(projector: &ProjectorName, version: &Version) -> Doomed {
    Doomed {
        projector: projector.clone(),
        major: version.major,
        schema: projector.tables_schema(version.major),
    }
}

/// Drops what there is of a replay that was never activated. Returns what it dropped.
pub(crate) async fn discard(
    store: &Store,
    projector: &ProjectorName,
    version: &Version,
    options: &DiscardOptions,
) -> Result<Abandoned, DiscardError> {
    let client = store.single().await?;
    let watcher = store.single().await?;
    let abandoned = plan_on(store, &client, projector, version).await?;
    let doomed = doomed(projector, version);
    let left = |why| {
        let Doomed { projector, major, schema } = doomed.clone();
        DiscardError::Left(NotPruned { projector, major, schema, why })
    };
    if !abandoned.in_the_way.is_empty() {
        return Err(left(WhyNotPruned::InTheWay(abandoned.in_the_way)));
    }
    let (who, wait) = (&options.requested_by[..], options.wait);
    match prune::drop_tables(store, &client, &watcher, &doomed, Going::Abandoned, who, wait).await? {
        Dropped::Yes => {
            info!(%projector, %version, schema = doomed.schema, "discarded");
            Ok(abandoned)
        }
        Dropped::No(WhyNotPruned::InUse) | Dropped::ByOthers => {
            // It changed meanwhile: what is so now says why.
            Err(plan_on(store, &client, projector, version)
                .await
                .err()
                .unwrap_or_else(|| left(WhyNotPruned::InUse)))
        }
        Dropped::No(why) => Err(left(why)),
    }
}
