//! What long work shows of itself: a row for each projector that it is about, so that everybody sees from outside how far it is,
//! and can end it.
//!
//! The rows are written once a second, on a connection of their own and beside the work, which waits for them briefly at its
//! beginning and its end, and else never: whoever cannot write them works on all the same. Nobody holds a lock on them for
//! longer than one small statement, and but for the word that it is to end, nothing is ever decided by them. Rows of processes
//! that are gone are known by their silence, and removed by whoever begins next.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres_types::{Json, ToSql};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Row};
use tracing::debug;
use uuid::Uuid;

use super::{Left, ReplayPhase, ReplayProgress, Speed};
use crate::core::Core;
use crate::instances::GONE_AFTER_SECS;
use crate::projector::{Registered, chain};
use crate::store::{On, Store, StoreError, rows};
use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// How often it is written how far it is.
const EVERY: Duration = Duration::from_secs(1);

/// How long the work waits for its rows, at its beginning and at its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// After which silence a row is removed by whoever begins next. One that says that the work is to end stays for longer: whoever
/// was frozen may wake up late.
const FORGOTTEN_AFTER_SECS: f64 = 60.0;
const ABORTED_FORGOTTEN_AFTER_SECS: f64 = 86_400.0;

/// A speed from longer ago is none any more.
const STALE: Duration = Duration::from_secs(10);

/// What long work is done for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Purpose {
    /// A version is fed: by itself, or as part of an activation.
    Replay,
    /// The rows of a version are proved.
    Verify,
    /// The indexes of a version's tables are built, and the planner learns of the rows.
    Optimize,
}

impl Purpose {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Verify => "verify",
            Self::Optimize => "optimize",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Work on one projector version by one process, as the database knows it. Processes that share a replay have a row each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunningReplay {
    /// Of the work: projectors that are replayed together have the same.
    pub id: Uuid,
    /// The projector.
    pub projector: ProjectorName,
    /// Its version.
    pub version: semver::Version,
    /// What it is done for: the word of a [`Purpose`], of this release or of another one.
    pub purpose: String,
    /// What it is at: the word of a [`ReplayPhase`], of this release or of another one.
    pub phase: String,
    /// How far the rows have come, as this process sees it.
    pub position: Position,
    /// How many events they are behind the end of the log now, at most; of a verification, how many it has still to fold.
    pub lag_events: i64,
    /// Events that this process has projected.
    pub events: i64,
    /// How many each second, lately; none where that cannot be told.
    pub events_per_sec: Option<f64>,
    /// In how many seconds it will have done what it is at, if it goes on like this; none where that cannot be told, or where the log grows at
    /// least as fast.
    pub left_secs: Option<f64>,
    /// How many of its indexes are built.
    pub indexes_built: Option<i32>,
    /// How many indexes there are to be.
    pub indexes: Option<i32>,
    /// Who asked for it, where that is known.
    pub requested_by: Option<String>,
    /// The instance that does it.
    pub instance: Uuid,
    /// The application's name.
    pub application: String,
    /// The application's version.
    pub application_version: String,
    /// The machine's name, where it has one.
    pub host: Option<String>,
    /// The id of the process on that machine.
    pub pid: i64,
    /// How long ago it began.
    pub age_secs: f64,
    /// How long ago it was seen.
    pub silent_secs: f64,
    /// Whether it counts as there.
    pub alive: bool,
    /// Who has told it to end, if somebody has.
    pub aborted_by: Option<String>,
}

/// Everything that is under way, as it was written last.
pub(crate) async fn all(
    store: &Store,
    on: impl Into<On<'_>>,
    horizon: Position,
) -> Result<Vec<RunningReplay>, StoreError> {
    store.query(on, &store.sql.replays, &[]).await?.iter().map(|row| running(row, Some(horizon))).collect()
}

/// Tells whoever replays some projectors, or any, to end. Returns what was told so.
pub(crate) async fn abort(
    store: &Store,
    client: &Client,
    projectors: Option<&[ProjectorName]>,
    who: &str,
) -> Result<Vec<RunningReplay>, StoreError> {
    let names: Option<Vec<&str>> =
        projectors.map(|projectors| projectors.iter().map(ProjectorName::as_str).collect());
    let rows = store.query(client, &store.sql.abort_replays, &[&names, &who]).await?;
    rows.iter().map(|row| running(row, None)).collect()
}

fn running(row: &Row, horizon: Option<Position>) -> Result<RunningReplay, StoreError> {
    let (position, to): (Position, Position) = (row.get("position"), row.get("horizon"));
    let purpose: String = row.get("purpose");
    let end = horizon.filter(|_| purpose != Purpose::Verify.as_str()).unwrap_or(to);
    let silent_secs: f64 = row.get("silent_secs");
    Ok(RunningReplay {
        id: row.get("id"),
        projector: rows::word(row, "projector")?,
        version: rows::word(row, "version")?,
        purpose,
        phase: row.get("phase"),
        position,
        lag_events: (end.get() - position.get()).max(0),
        events: row.get("events"),
        events_per_sec: row.get("events_per_sec"),
        left_secs: row.get("left_secs"),
        indexes_built: row.get("indexes_built"),
        indexes: row.get("indexes"),
        requested_by: row.get("requested_by"),
        instance: row.get("instance"),
        application: row.get("application"),
        application_version: row.get("application_version"),
        host: row.get("host"),
        pid: row.get("pid"),
        age_secs: row.get("age_secs"),
        silent_secs,
        alive: silent_secs < GONE_AFTER_SECS,
        aborted_by: row.get("aborted_by"),
    })
}

/// Work that shows how far it is.
pub(crate) struct Shown {
    store: Arc<Store>,
    id: Uuid,
    about: Vec<About>,
    /// The connection that the rows are written on; none while there is none to be had.
    client: tokio::sync::Mutex<Option<Client>>,
    latest: Mutex<BTreeMap<ProjectorName, Latest>>,
    ended: bool,
}

/// What does not change.
#[derive(Debug, Clone, Serialize)]
struct About {
    projector: ProjectorName,
    version: String,
    purpose: Purpose,
    requested_by: Option<String>,
    instance: Uuid,
    application: String,
    application_version: String,
    host: Option<String>,
    pid: u32,
    phase: &'static str,
}

/// What does.
#[derive(Debug, Default)]
struct Latest {
    speed: Speed,
    progress: Option<(ReplayProgress, Instant)>,
}

/// How far it is, as it is written.
#[derive(Debug, Serialize)]
struct At {
    projector: ProjectorName,
    phase: &'static str,
    position: i64,
    horizon: i64,
    events: u64,
    events_per_sec: Option<f64>,
    left_secs: Option<f64>,
    indexes_built: Option<u32>,
    indexes: Option<u32>,
}

impl Latest {
    fn at(&self) -> Option<At> {
        let (progress, noted) = self.progress.as_ref()?;
        let going = noted.elapsed() < STALE;
        let lag = progress.lag_events();
        let left = match self.speed.left() {
            Left::About(left) if going || lag == 0 => Some(left.as_secs_f64()),
            _ => None,
        };
        Some(At {
            projector: progress.projector.clone(),
            phase: progress.phase.as_str(),
            position: progress.position.get(),
            horizon: progress.horizon.get(),
            events: progress.events,
            events_per_sec: self.speed.events_per_sec().filter(|_| going),
            left_secs: left.filter(|_| progress.phase != ReplayPhase::Indexing),
            indexes_built: progress.indexing.map(|indexing| indexing.built),
            indexes: progress.indexing.map(|indexing| indexing.of),
        })
    }
}

impl Shown {
    /// Begins to show work on some projectors.
    pub(crate) async fn begin(
        core: &Core,
        purpose: Purpose,
        wanted: &[Arc<Registered>],
        requested_by: Option<&str>,
    ) -> Self {
        let identity = &core.identity;
        let host = host();
        let about = wanted.iter().map(|registered| About {
            projector: registered.target.projector.clone(),
            version: registered.target.version.to_string(),
            purpose,
            requested_by: requested_by.map(str::to_owned),
            instance: identity.id,
            application: identity.application.clone(),
            application_version: identity.application_version.clone(),
            host: host.clone(),
            pid: std::process::id(),
            phase: ReplayPhase::Beginning.as_str(),
        });
        let shown = Self {
            store: core.store.clone(),
            id: Uuid::now_v7(),
            about: about.collect(),
            client: tokio::sync::Mutex::default(),
            latest: Mutex::default(),
            ended: false,
        };
        // Before any work is done: whoever wants to remove what is there must see that somebody is at it.
        if timeout(PATIENCE, shown.beat()).await.is_err() {
            debug!("a replay could not say in time that it begins");
        }
        shown
    }

    /// Takes note of how far it is.
    pub(crate) fn note(&self, progress: &ReplayProgress) {
        let mut latest = self.latest();
        let latest = latest.entry(progress.projector.clone()).or_default();
        latest.speed.push(progress);
        latest.progress = Some((progress.clone(), Instant::now()));
    }

    fn latest(&self) -> MutexGuard<'_, BTreeMap<ProjectorName, Latest>> {
        // What is noted is nothing that a panic could leave half done.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work and shows how far it is, until it is done or somebody aborts it. What it did not commit by then is undone.
    pub(crate) async fn until<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
        aborted: impl FnOnce(ProjectorName, semver::Version, String) -> E,
    ) -> Result<T, E> {
        let told = async {
            loop {
                sleep(EVERY).await;
                if let Some(by) = self.beat().await {
                    return by;
                }
            }
        };
        tokio::select! {
            done = work => done,
            (projector, version, by) = told => Err(aborted(projector, version, by)),
        }
    }

    /// Writes how far it is. Returns whether it is to end, and who says so.
    async fn beat(&self) -> Option<(ProjectorName, semver::Version, String)> {
        match self.write().await {
            Ok(aborted) => aborted,
            Err(error) => {
                debug!(error = %chain(&error), "how far a replay is could not be written down");
                *self.client.lock().await = None;
                None
            }
        }
    }

    async fn write(&self) -> Result<Option<(ProjectorName, semver::Version, String)>, StoreError> {
        let store = &self.store;
        let mut client = self.client.lock().await;
        let client = match &mut *client {
            Some(client) => client,
            empty => empty.insert(store.single().await?),
        };
        let at: Vec<At> = self.latest().values().filter_map(Latest::at).collect();
        let at = Json(&at);
        let seen: [&(dyn ToSql + Sync); 2] = [&self.id, &at];
        let mut rows = store.query(&*client, &store.sql.see_replay, &seen).await?;
        if rows.is_empty() {
            // The first time, or it was silent for so long that somebody has taken it for gone.
            let about = Json(&self.about);
            let params: [&(dyn ToSql + Sync); 4] =
                [&self.id, &about, &FORGOTTEN_AFTER_SECS, &ABORTED_FORGOTTEN_AFTER_SECS];
            store.query(&*client, &store.sql.show_replay, &params).await?;
            rows = store.query(&*client, &store.sql.see_replay, &seen).await?;
        }
        let told = rows.iter().find(|row| row.get::<_, Option<&str>>("aborted_by").is_some());
        told.map(|row| {
            Ok((rows::word(row, "projector")?, rows::word(row, "version")?, row.get("aborted_by")))
        })
        .transpose()
    }

    /// Shows it no more.
    pub(crate) async fn end(mut self) {
        self.ended = true;
        // After everything that was sent on this connection before.
        if let Some(client) = self.client.lock().await.take() {
            forget(&self.store, &client, self.id).await;
        }
    }
}

impl Drop for Shown {
    /// Whoever was given up halfway is gone as well.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if let Some(client) = self.client.get_mut().take().filter(|_| !self.ended) {
            let (store, id) = (self.store.clone(), self.id);
            runtime.spawn(async move { forget(&store, &client, id).await });
        }
    }
}

/// Removes the rows. Nobody waits long for that: they go by themselves.
async fn forget(store: &Store, client: &Client, id: Uuid) {
    let id: [&(dyn ToSql + Sync); 1] = [&id];
    match timeout(PATIENCE, store.query(client, &store.sql.forget_replay, &id)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(error = %chain(&error), "a replay could not say that it has ended"),
        Err(_) => debug!("a replay could not say in time that it has ended"),
    }
}

/// The name of this machine.
fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or(std::env::var("HOSTNAME").ok())?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
