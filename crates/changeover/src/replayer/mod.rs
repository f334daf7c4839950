//! The replayer: feeds history to versions that are not active, beside the live ones.
//!
//! The bulk of the log goes through a pipeline of its own ([`bulk`]), in parallel by row key; what is left, and every projector
//! that runs its own SQL, goes through the same step as live publishing.

mod begun;
mod bulk;
mod claims;
mod indexes;
mod options;
mod over;
mod shard;
mod source;
mod throttle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::info;

use self::begun::Begun;
pub(crate) use self::bulk::fold_afresh;
pub use self::options::{Pace, ReplayOptions, Throttle};
use crate::admission::Permit;
use crate::core::Core;
use crate::decider::read_states;
use crate::horizon;
use crate::in_flight::Blocker;
use crate::log::read::Limits;
use crate::projector::{ProjectError, Registered};
use crate::registration::{self, RegisterError};
use crate::step::{StepError, Stepped, UpTo, step};
use crate::store::{Store, StoreError, read_committed};
use crate::words::decision::VersionState;
use crate::words::names::ProjectorName;
use crate::words::position::Position;
use crate::words::state::ProjectorState;

/// Why a replay stopped. What was replayed before stays; the same call goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The version cannot be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The configuration holds no such projector.
    #[error("this build registers no projector {0}")]
    NotOurs(ProjectorName),
    /// The projector cannot project an event.
    #[error(
        "{projector} {version} cannot project the event at position {position} ({event_type}): mend it and replay again; everything before it is kept"
    )]
    Projector {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The position of the event.
        position: Position,
        /// Its type.
        event_type: String,
        /// Why.
        #[source]
        source: ProjectError,
    },
    /// It stalled at an event before.
    #[error("{projector} {version} is stalled ({error}): mend it and run `retry`, or skip the event")]
    Stalled {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What stalled it.
        error: String,
    },
    /// It is not being replayed any more: somebody activated or retired it meanwhile.
    #[error("{projector} {version} is {state} now and is not to be replayed")]
    NotReplaying {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Where it stands.
        state: String,
    },
    /// It did not come close enough to the end of the log in time.
    #[error(
        "{projector} {version} is still {lag_events} events behind after {after:?}: give it more time, or replay it beforehand"
    )]
    TooSlow {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// How far it is behind, at most.
        lag_events: i64,
        /// How long it tried.
        after: Duration,
    },
    /// The rows cannot be written or read back.
    #[error("the rows of {projector} {version} cannot be written: mend it and replay again")]
    Rows {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Why.
        #[source]
        source: ProjectError,
    },
    /// Somebody has started over since: what this process does is of an earlier attempt.
    #[error(
        "the replay of {projector} {version} was started over by somebody else: run `replay` again to join it"
    )]
    StartedOver {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// Its rows are not to be thrown away.
    #[error("the replay of {projector} {version} was not started over: {why}")]
    NotStartedOver {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Why not.
        why: String,
    },
    /// Somebody uses its tables, so they cannot be emptied.
    #[error(
        "the replay of {projector} {version} was not started over: its tables were in use for {after:?}{}; try again later",
        blocked_by(.blockers)
    )]
    InUse {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Who, as far as that can be seen.
        blockers: Vec<Blocker>,
        /// How long it waited.
        after: Duration,
    },
    /// Nothing was replayed yet, and there are rows all the same.
    #[error(
        "{table} holds rows that no replay of {projector} {version} has written: start over with `replay --restart`, or raise its version"
    )]
    NotEmpty {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The table.
        table: String,
    },
    /// Its tables are not as its DDL made them.
    #[error(
        "the tables of {projector} {version} were altered: {difference}; put that back, or raise its version"
    )]
    Altered {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What is different.
        difference: String,
    },
    /// Another process replays the same rows, and was faster.
    #[error("another process has moved checkpoint {shard} of {projector} {version} meanwhile: replay again")]
    Overtaken {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The shard.
        shard: i32,
    },
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

fn blocked_by(blockers: &[Blocker]) -> String {
    let blockers: Vec<String> = blockers.iter().map(ToString::to_string).collect();
    if blockers.is_empty() { String::new() } else { format!(" by {}", blockers.join("; ")) }
}

/// How far a replay has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayProgress {
    /// The projector.
    pub projector: ProjectorName,
    /// Its version.
    pub version: semver::Version,
    /// Its checkpoint.
    pub position: Position,
    /// The end of the log.
    pub horizon: Position,
    /// Events projected by this call so far.
    pub events: u64,
    /// How long this call has been at it.
    pub elapsed: Duration,
}

impl ReplayProgress {
    /// How many events it is behind, at most: positions have gaps.
    pub fn lag_events(&self) -> i64 {
        (self.horizon.get() - self.position.get()).max(0)
    }
}

/// A version whose checkpoint has reached a horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct CaughtUp {
    /// Where the replay ended.
    pub progress: ReplayProgress,
}

/// Whoever wants to see progress.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(&ReplayProgress) + Send + Sync);

/// Registers versions and feeds them until at most `lag_events` are left: first the bulk of the log, in parallel and all of them
/// together, then their indexes, then what came meanwhile, by the same step as live publishing.
pub(crate) async fn replay(
    core: &Core,
    wanted: &[Arc<Registered>],
    options: &ReplayOptions,
    on_progress: OnProgress<'_>,
) -> Result<Vec<CaughtUp>, ReplayError> {
    let client = core.store.single().await?;
    let mut begun = Vec::with_capacity(wanted.len());
    for registered in wanted {
        if options.restart {
            over::start_over(core, registered).await?;
        }
        registration::register(&core.store, &client, registered, &options.requested_by).await?;
        begun.push(Begun::join(&core.store, &client, registered).await?);
    }
    let mut done = bulk::replay(core, &begun, &options.pace, on_progress).await?;
    let mut caught_up = Vec::with_capacity(begun.len());
    for begun in &begun {
        indexes::build(core, begun, &options.pace).await?;
        let events = done.remove(&begun.registered.target.projector).unwrap_or_default();
        caught_up.push(catch_up(core, begun, options, events, on_progress).await?);
    }
    Ok(caught_up)
}

/// Feeds one version by the same step as live publishing.
async fn catch_up(
    core: &Core,
    begun: &Begun,
    options: &ReplayOptions,
    events: u64,
    on_progress: OnProgress<'_>,
) -> Result<CaughtUp, ReplayError> {
    let client = core.store.single().await?;
    let Begun { registered, attempt } = begun;
    let (projector, version) = registered.id();
    let started = Instant::now();
    let mut progress = ReplayProgress {
        position: position(core, &client, registered).await?,
        horizon: Position::START,
        events,
        elapsed: Duration::ZERO,
        projector: projector.clone(),
        version: version.clone(),
    };
    let mut permit = permit(&core.store, &client, registered, *attempt).await?;
    loop {
        let stepped = step_or_name(core, permit, registered, UpTo::Horizon).await?;
        progress.elapsed = started.elapsed();
        match stepped {
            Stepped::Moved { events, to, horizon } => {
                progress.position = to;
                progress.horizon = horizon;
                progress.events += events as u64;
                on_progress(&progress);
            }
            Stepped::Nothing { horizon } => {
                progress.position = horizon;
                progress.horizon = horizon;
            }
            // Another process replays it too, and moves the checkpoint.
            Stepped::Busy => {
                sleep(BUSY).await;
                begun.still(&core.store, &client).await?;
                progress.position = position(core, &client, registered).await?;
                progress.horizon = horizon::look(&core.store, &client).await?.horizon;
            }
            Stepped::Stale(_) => {
                permit = self::permit(&core.store, &client, registered, *attempt).await?;
                continue;
            }
            Stepped::Stalled(error) => return Err(ReplayError::Stalled { projector, version, error }),
            Stepped::Inline => {
                let state = "fed by appends".to_owned();
                return Err(ReplayError::NotReplaying { projector, version, state });
            }
        }
        if progress.lag_events() <= options.lag_events {
            on_progress(&progress);
            info!(%projector, %version, events = progress.events, position = %progress.position, "caught up");
            return Ok(CaughtUp { progress });
        }
        if options.limit.is_some_and(|limit| started.elapsed() > limit) {
            let lag_events = progress.lag_events();
            return Err(ReplayError::TooSlow { projector, version, lag_events, after: started.elapsed() });
        }
    }
}

const BUSY: Duration = Duration::from_millis(20);

/// Lets a version be replayed: its row says so, at the generation that is noted.
async fn permit(
    store: &Store,
    client: &tokio_postgres::Client,
    registered: &Registered,
    attempt: i32,
) -> Result<Permit, ReplayError> {
    let (generation, states) = read_states(store, client).await?;
    let (projector, version) = (&registered.target.projector, &registered.target.version);
    let row = states.iter().find(|row| row.projector == *projector && row.version == *version);
    match row.map(|row| row.state) {
        Some(ProjectorState::Replaying) if !shares_live_tables(registered, &states) => {
            begun::still(store, client, registered, attempt).await?;
            Ok(Permit { generation, until: None, attempt: Some(attempt) })
        }
        other => Err(ReplayError::NotReplaying {
            projector: projector.clone(),
            version: version.clone(),
            state: match other {
                Some(ProjectorState::Replaying) => {
                    "to take over the tables of the active version in place".to_owned()
                }
                Some(state) => state.to_string(),
                None => "not registered".to_owned(),
            },
        }),
    }
}

/// Whether the tables of a version are those of the active one: then the live publisher feeds them, nobody else.
pub(crate) fn shares_live_tables(registered: &Registered, states: &[VersionState]) -> bool {
    states.iter().any(|row| {
        row.projector == registered.target.projector
            && row.version.major == registered.target.version.major
            && row.state == ProjectorState::Active
    })
}

/// Takes a step; if the batch fails, takes its events one by one, so that the one at fault is named.
pub(crate) async fn step_or_name(
    core: &Core,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
) -> Result<Stepped, ReplayError> {
    let mut one_by_one = 0;
    loop {
        let limits = if one_by_one > 0 { Limits { rows: 1, ..Limits::BATCH } } else { Limits::BATCH };
        match step_once(core, permit, registered, up_to, limits).await {
            Ok(Stepped::Moved { .. }) if one_by_one > 1 => one_by_one -= 1,
            Ok(stepped) => return Ok(stepped),
            Err(StepError::Store(error)) => return Err(error.into()),
            Err(StepError::Project { source, .. }) if source.is_retryable() => {}
            Err(StepError::Project { events, .. }) if events > 1 => one_by_one = events,
            Err(StepError::Project { first: (position, event_type), source, .. }) => {
                let (projector, version) = registered.id();
                return Err(ReplayError::Projector { projector, version, position, event_type, source });
            }
        }
    }
}

async fn step_once(
    core: &Core,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
    limits: Limits,
) -> Result<Stepped, StepError> {
    let mut client = core.background().await?;
    let tx = read_committed(&mut client).await?;
    step(&core.store, tx, permit, registered, up_to, limits).await
}

/// Where the checkpoint of a version's tables stands.
async fn position(
    core: &Core,
    client: &tokio_postgres::Client,
    registered: &Registered,
) -> Result<Position, StoreError> {
    let registry = registration::registry(&core.store, client).await?;
    let own = registry.tables.iter().find(|row| {
        row.projector == registered.target.projector && row.major == registered.target.version.major
    });
    Ok(own.map_or(Position::START, |row| row.position))
}
