//! The replayer: feeds history to versions that are not active, beside the live ones.
//!
//! The bulk of the log goes through a pipeline of its own ([`bulk`]), in parallel by row key, or by what a projector that runs its own
//! SQL declares; what is left goes through the same step as live publishing.

mod begun;
mod bulk;
pub(crate) mod claims;
mod counted;
mod error;
mod fault;
mod follow;
pub(crate) mod indexes;
mod options;
mod over;
mod place;
mod progress;
mod shard;
pub(crate) mod shown;
mod source;
mod speed;
mod split;
mod statements;
pub(crate) mod throttle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::info;

pub(crate) use self::begun::Begun;
pub(crate) use self::bulk::fold_afresh;
pub use self::error::ReplayError;
pub use self::options::{Pace, ReplayOptions, Throttle};
pub use self::progress::{CaughtUp, Indexing, ReplayPhase, ReplayProgress};
use self::shown::{Purpose, Shown};
pub use self::speed::{Left, Speed};
use self::throttle::Throttled;
use crate::admission::Permit;
use crate::core::Core;
use crate::decider::read_states;
use crate::horizon;
use crate::log::read::Limits;
use crate::projector::Registered;
use crate::registration;
use crate::step::{StepError, Stepped, UpTo, step};
use crate::store::{Store, StoreError};
use crate::words::decision::VersionState;
use crate::words::position::Position;
use crate::words::state::ProjectorState;

/// Whoever wants to see progress.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(&ReplayProgress) + Send + Sync);

/// Replays, and shows how far it is to whoever looks from outside; ends where somebody aborts it.
pub(crate) async fn replay(
    core: &Core,
    wanted: &[Arc<Registered>],
    options: &ReplayOptions,
    on_progress: OnProgress<'_>,
) -> Result<Vec<CaughtUp>, ReplayError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let shown = Shown::begin(core, Purpose::Replay, wanted, Some(&options.requested_by));
    let (shown, client) = tokio::join!(shown, core.store.single());
    let report = |progress: &ReplayProgress| {
        shown.note(progress);
        on_progress(progress);
    };
    let aborted = |projector, version, by| ReplayError::Aborted { projector, version, by };
    let done = shown.until(Box::pin(replay_all(core, client, wanted, options, &report)), aborted).await;
    shown.end().await;
    done
}

/// Registers versions and feeds them until at most `lag_events` are left: first the bulk of the log, in parallel and all of them
/// together, then their indexes, then what came meanwhile, by the same step as live publishing.
async fn replay_all(
    core: &Core,
    client: Result<Client, StoreError>,
    wanted: &[Arc<Registered>],
    options: &ReplayOptions,
    on_progress: OnProgress<'_>,
) -> Result<Vec<CaughtUp>, ReplayError> {
    let started = Instant::now();
    let client = client?;
    let mut throttled = Throttled::new(&core.store, &options.pace.throttle).await?;
    let mut begun = Vec::with_capacity(wanted.len());
    for registered in wanted {
        if options.restart {
            over::start_over(core, registered).await?;
        }
        registration::register(&core.store, &client, registered, &options.requested_by).await?;
        begun.push(Begun::join(&core.store, &client, registered).await?);
    }
    for begun in &begun {
        indexes::before_the_bulk(core, &client, begun, &options.pace, on_progress).await?;
    }
    let mut done =
        bulk::replay(core, &client, &begun, &options.pace, started, &mut throttled, on_progress).await?;
    let mut caught_up = Vec::with_capacity(begun.len());
    for begun in &begun {
        let events = done.remove(&begun.registered.target.projector).map_or(0, |counted| counted.events);
        let indexing = |progress: &ReplayProgress| {
            on_progress(&ReplayProgress { events, elapsed: started.elapsed(), ..progress.clone() });
        };
        indexes::after_the_bulk(core, &client, begun, &options.pace, events, &indexing).await?;
        let since = Since { started, events };
        caught_up.push(catch_up(core, &client, begun, options, since, &mut throttled, on_progress).await?);
    }
    if options.follow {
        return follow::all(core, &begun, caught_up, on_progress).await;
    }
    Ok(caught_up)
}

/// What a call has done before.
#[derive(Debug, Clone, Copy)]
struct Since {
    started: Instant,
    events: u64,
}

/// Feeds one version by the same step as live publishing.
async fn catch_up(
    core: &Core,
    client: &Client,
    begun: &Begun,
    options: &ReplayOptions,
    since: Since,
    throttled: &mut Throttled,
    on_progress: OnProgress<'_>,
) -> Result<CaughtUp, ReplayError> {
    let Begun { registered, attempt } = begun;
    let (projector, version) = registered.id();
    let started = Instant::now();
    let mut progress = ReplayProgress {
        position: position(core, client, registered).await?,
        horizon: Position::START,
        phase: ReplayPhase::CatchingUp,
        events: since.events,
        indexing: None,
        elapsed: since.started.elapsed(),
        projector: projector.clone(),
        version: version.clone(),
    };
    let mut permit = permit(&core.store, client, registered, *attempt).await?;
    let limits = Limits::BATCH.of_rows(throttled.throttle().at_once());
    loop {
        while throttled.pauses().await? {
            progress.phase = ReplayPhase::Paused;
            progress.elapsed = since.started.elapsed();
            progress.horizon = horizon::look(&core.store, client).await?.horizon;
            on_progress(&progress);
        }
        progress.phase = ReplayPhase::CatchingUp;
        let horizon = horizon::look(&core.store, client).await?.horizon;
        let stepped = if horizon > progress.position {
            step_within(core, permit, registered, UpTo::Horizon, limits).await?
        } else {
            Stepped::Nothing { horizon: progress.position }
        };
        progress.elapsed = since.started.elapsed();
        match stepped {
            Stepped::Moved { events, to, horizon } => {
                progress.position = to;
                progress.horizon = horizon;
                progress.events += events as u64;
                on_progress(&progress);
                throttled.wait(events as u64).await;
            }
            Stepped::Nothing { horizon } => {
                progress.position = horizon;
                progress.horizon = horizon;
            }
            // Another process replays it too, and moves the checkpoint.
            Stepped::Busy => {
                sleep(BUSY).await;
                begun.still(&core.store, client).await?;
                bulk::can_go_on(core, client, registered).await?;
                progress.position = position(core, client, registered).await?;
                progress.horizon = horizon::look(&core.store, client).await?.horizon;
            }
            Stepped::Stale(_) => {
                permit = self::permit(&core.store, client, registered, *attempt).await?;
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
            return Ok(CaughtUp { progress, activated: false });
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
    client: &Client,
    registered: &Registered,
    attempt: i32,
) -> Result<Permit, ReplayError> {
    let (generation, states) = read_states(store, client).await?;
    if let Some(refusal) = refusal(registered, &states) {
        return Err(refusal);
    }
    begun::still(store, client, registered, attempt).await?;
    Ok(Permit { generation, until: None, attempt: Some(attempt) })
}

/// Why a version is not to be replayed; none if its row says that it is.
fn refusal(registered: &Registered, states: &[VersionState]) -> Option<ReplayError> {
    let (projector, version) = registered.id();
    let row = states.iter().find(|row| row.projector == projector && row.version == version);
    let state = match row.map(|row| row.state) {
        Some(ProjectorState::Replaying) if !shares_live_tables(registered, states) => return None,
        Some(ProjectorState::Replaying) => {
            "to take over the tables of the active version in place".to_owned()
        }
        Some(state) => state.to_string(),
        None => "not registered".to_owned(),
    };
    Some(ReplayError::NotReplaying { projector, version, state })
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
    step_within(core, permit, registered, up_to, Limits::BATCH).await
}

/// The same, by batches of other limits.
async fn step_within(
    core: &Core,
    permit: Permit,
    registered: &Registered,
    up_to: UpTo,
    limits: Limits,
) -> Result<Stepped, ReplayError> {
    let mut one_by_one = 0;
    loop {
        let limits = if one_by_one > 0 { Limits { rows: 1, ..limits } } else { limits };
        match step_once(core, permit, registered, up_to, limits).await {
            Ok(Stepped::Moved { .. }) if one_by_one > 1 => one_by_one -= 1,
            Ok(stepped) => return Ok(stepped),
            Err(StepError::Project { source, .. }) if source.is_retryable() => {}
            Err(StepError::Project { source, events, .. }) if events > 1 && !source.is_outage() => {
                one_by_one = events;
            }
            Err(error) => return Err(failed(registered, error)),
        }
    }
}

/// Why a step failed whose batch held one event at most, or whose failure is no event's fault.
pub(crate) fn failed(registered: &Registered, error: StepError) -> ReplayError {
    match error {
        // Neither the projector nor an event is to be mended.
        StepError::Store(error) if error.is_outage() => ReplayError::rows(registered.id(), error.into()),
        StepError::Store(error) => error.into(),
        StepError::Project { source, .. } if source.is_outage() => ReplayError::rows(registered.id(), source),
        StepError::Project { first: (position, event_type), source, .. } => {
            let (projector, version) = registered.id();
            ReplayError::Projector { projector, version, position, event_type, source }
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
    step(&core.store, core.background().await?, permit, registered, up_to, limits).await
}

/// Where the checkpoint of a version's tables stands.
async fn position(core: &Core, client: &Client, registered: &Registered) -> Result<Position, StoreError> {
    let registry = registration::registry(&core.store, client).await?;
    let own = registry.tables.iter().find(|row| {
        row.projector == registered.target.projector && row.major == registered.target.version.major
    });
    Ok(own.map_or(Position::START, |row| row.position))
}
