//! Activation: one moment at which a configuration takes over, and everything that makes it safe.
//!
//! Before the pause everything is checked, replayed and caught up. The pause itself is: mark and commit, then set the
//! generation; wait until what was admitted before has ended; feed the rest; switch and commit, then set the generation.
//! Each of the two commits is one statement, sent together with the one that sets the generation: nobody can stop in between
//! on our side of the wire. Past the deadline anyone may give the pause back.

mod blockers;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{join, try_join_all};
use postgres_types::Json;
use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::{info, warn};
use uuid::Uuid;

pub(crate) use self::blockers::in_flight;
pub use self::blockers::{Blocker, Holds};
use crate::admission::Permit;
use crate::core::{Core, STATES, channel};
use crate::horizon::{self, Look};
use crate::instances;
use crate::projector::{Registered, chain};
use crate::registration::{self, RegisterError};
use crate::replayer::{self, OnProgress, ReplayError, ReplayProgress, step_or_name};
use crate::step::Stepped;
use crate::store::{Store, StoreError};
use crate::words::decision::Versions;
use crate::words::names::ProjectorName;
use crate::words::plan::{Obstacle, Plan, Step, plan};
use crate::words::position::{Generation, Position};

/// How an activation is to be done.
#[derive(Debug, Clone)]
pub struct ActivateOptions {
    /// Who asks for it, for the history.
    pub requested_by: String,
    /// How many live instances of the new configuration to wait for before the pause.
    pub wait_for_instances: usize,
    /// How long to wait for them.
    pub instances_timeout: Duration,
    /// How long the new versions may take to come close to the end of the log.
    pub catch_up_timeout: Duration,
    /// How close that is: what is fed during the pause.
    pub catch_up_lag_events: i64,
    /// How long to wait, before the pause, until no append is older than [`pause_limit`](Self::pause_limit).
    pub drain_timeout: Duration,
    /// The deadline of the pause: past it the old version serves again, whatever became of the activation.
    pub pause_limit: Duration,
}

impl Default for ActivateOptions {
    fn default() -> Self {
        Self {
            requested_by: "unnamed".to_owned(),
            wait_for_instances: 0,
            instances_timeout: Duration::from_secs(300),
            catch_up_timeout: Duration::from_secs(24 * 60 * 60),
            catch_up_lag_events: 200,
            drain_timeout: Duration::from_secs(30),
            pause_limit: Duration::from_secs(2),
        }
    }
}

/// What an activation is at, for whoever watches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ActivationProgress {
    /// What it will do.
    Planned(Plan),
    /// A version is being replayed.
    Replaying(ReplayProgress),
    /// It waits for instances of the new configuration: how many there are, how many there have to be.
    WaitingForInstances {
        /// Seen alive with this configuration.
        seen: usize,
        /// To be waited for.
        wanted: usize,
    },
    /// It waits for transactions that append and have been open for long.
    WaitingForAppends(Vec<Blocker>),
    /// The pause has begun.
    Paused,
    /// Nothing is in flight any more.
    Drained {
        /// The end of the log.
        horizon: Position,
    },
    /// The configuration is active.
    Switched,
}

/// A configuration that became active, or was already.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[must_use]
pub struct Activated {
    /// The number of the activation in the history; none where nothing had to be done.
    pub activation: Option<i64>,
    /// What was done.
    pub plan: Plan,
    /// The end of the log at the switch, where there was a pause.
    pub horizon: Option<Position>,
    /// How long writers were held up, in milliseconds: from the statement that marks to the one that switches.
    pub pause_ms: f64,
    /// Of that, waiting for what was in flight.
    pub drain_ms: f64,
    /// Of that, feeding the rest to the new versions.
    pub feed_ms: f64,
}

/// Why an activation did not happen. The configuration that was active before is active still.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// The configuration cannot be activated as it is.
    #[error("not activated: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Obstacles(Vec<Obstacle>),
    /// A new version could not be replayed.
    #[error("not activated: replaying failed")]
    Replay(#[from] ReplayError),
    /// A version cannot be registered.
    #[error("not activated")]
    Register(#[from] RegisterError),
    /// Not enough instances of the new configuration showed up.
    #[error(
        "not activated: {seen} of {wanted} instances of the new configuration are alive after {after:?}; start them, or wait for fewer"
    )]
    Instances {
        /// Seen alive with this configuration.
        seen: usize,
        /// To be waited for.
        wanted: usize,
        /// How long it waited.
        after: Duration,
    },
    /// Transactions that append or publish did not end.
    #[error("not activated: {} blocked it for {after:?}: {}; end them, or try again later", blockers.len(), blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Blocked {
        /// Who.
        blockers: Vec<Blocker>,
        /// How long it waited.
        after: Duration,
    },
    /// Another activation is in its pause, or changed the states that this one was planned for.
    #[error(
        "not activated: another activation is under way or took place meanwhile ({by}); see `status`, then try again"
    )]
    Overtaken {
        /// Who performs the other one, if it can still be seen.
        by: String,
    },
    /// The deadline passed, or an operator aborted it.
    #[error(
        "not activated: activation {activation} was ended before it could switch ({outcome}); the old configuration is active"
    )]
    Ended {
        /// Its number.
        activation: i64,
        /// How it ended, as far as it can be seen.
        outcome: String,
    },
    /// The projector to be deactivated is not active.
    #[error("no version of {0} is active")]
    NotActive(ProjectorName),
    /// The database did not do as asked. If that was during the pause, the deadline gives it back.
    #[error("not activated: the database refused")]
    Store(#[from] StoreError),
}

/// How often the transactions in flight are looked at.
const DRAIN_POLL: Duration = Duration::from_millis(1);
const PREPARE_POLL: Duration = Duration::from_millis(200);

/// What moves in and what moves out.
#[derive(Debug, Default)]
struct Change {
    incoming: Vec<(ProjectorName, semver::Version)>,
    outgoing: Vec<(ProjectorName, semver::Version)>,
    /// Incoming versions whose tables must be at the horizon before the switch.
    feed: Vec<Arc<Registered>>,
}

impl Change {
    fn of(plan: &Plan, core: &Core) -> Self {
        let mut change = Self::default();
        for step in &plan.steps {
            let (incoming, outgoing) = match step {
                Step::Keep { .. } => (None, None),
                Step::Replay { version, replaces, .. } => (Some(version), replaces.as_ref()),
                Step::Activate { version, replaces, .. } => (Some(version), Some(replaces)),
                Step::Retire { version, .. } => (None, Some(version)),
            };
            let projector = step.projector();
            change.incoming.extend(incoming.map(|version| (projector.clone(), version.clone())));
            change.outgoing.extend(outgoing.map(|version| (projector.clone(), version.clone())));
            // In place and in the background, the checkpoint simply goes on under the new code.
            let in_place = matches!(step, Step::Activate { .. });
            let registered = core.configuration.projectors.get(projector);
            change.feed.extend(
                registered
                    .filter(|_| incoming.is_some())
                    .filter(|r| !in_place || r.target.delivery == crate::Delivery::Inline)
                    .cloned(),
            );
        }
        change
    }
}

fn texts(versions: &[(ProjectorName, semver::Version)]) -> (Vec<&str>, Vec<String>) {
    versions.iter().map(|(projector, version)| (projector.as_str(), version.to_string())).unzip()
}

/// Works out what activating the configuration would do.
pub(crate) async fn plan_for(core: &Core) -> Result<Plan, StoreError> {
    let client = core.store.single().await?;
    let registry = registration::registry(&core.store, &client).await?;
    Ok(plan(&core.configuration.targets(), &registry.known, &registry.tables))
}

/// Activates the configuration.
pub(crate) async fn activate(
    core: &Core,
    options: &ActivateOptions,
    on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
) -> Result<Activated, ActivateError> {
    let mut client = core.store.single().await?;
    expire(&core.store, &client).await?;
    let registry = registration::registry(&core.store, &client).await?;
    let plan = plan(&core.configuration.targets(), &registry.known, &registry.tables);
    if !plan.obstacles.is_empty() {
        return Err(ActivateError::Obstacles(plan.obstacles));
    }
    on_progress(ActivationProgress::Planned(plan.clone()));
    if plan.is_done() {
        return Ok(Activated {
            activation: None,
            plan,
            horizon: None,
            pause_ms: 0.0,
            drain_ms: 0.0,
            feed_ms: 0.0,
        });
    }
    let change = Change::of(&plan, core);
    let activation = start(core, &client, options, &change, &registry.known).await?;
    let done = prepare(core, &mut client, options, &plan, on_progress).await;
    let done = match done {
        Ok(()) if plan.needs_no_pause() => switch_patches(core, &client, activation, &change).await,
        Ok(()) => pause(core, &client, options, activation, &change, on_progress).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(pause) => {
            on_progress(ActivationProgress::Switched);
            let Pause { horizon, whole, drain, feed } = pause;
            let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
            info!(activation = activation.id, pause_ms = ms(whole), "configuration activated");
            Ok(Activated {
                activation: Some(activation.id),
                plan,
                horizon,
                pause_ms: ms(whole),
                drain_ms: ms(drain),
                feed_ms: ms(feed),
            })
        }
        Err(error) => {
            let reason = chain(&error);
            if let Err(error) =
                give_back(&core.store, &client, Some(activation.id), "failed", &reason, false).await
            {
                warn!(error = %chain(&error), "the pause could not be given back: its deadline will");
            }
            Err(error)
        }
    }
}

/// Retires one projector without another version in its place.
pub(crate) async fn deactivate(
    core: &Core,
    projector: &ProjectorName,
    options: &ActivateOptions,
) -> Result<Activated, ActivateError> {
    let client = core.store.single().await?;
    expire(&core.store, &client).await?;
    let registry = registration::registry(&core.store, &client).await?;
    let active = registry
        .known
        .iter()
        .find(|row| row.projector == *projector && row.state == crate::ProjectorState::Active)
        .ok_or_else(|| ActivateError::NotActive(projector.clone()))?;
    let step = Step::Retire { projector: projector.clone(), version: active.version.clone() };
    let plan = Plan { steps: vec![step], obstacles: Vec::new() };
    let change = Change::of(&plan, core);
    let activation = start(core, &client, options, &change, &registry.known).await?;
    match pause(core, &client, options, activation, &change, &|_| {}).await {
        Ok(Pause { horizon, whole, drain, feed }) => Ok(Activated {
            activation: Some(activation.id),
            plan,
            horizon,
            pause_ms: whole.as_secs_f64() * 1_000.0,
            drain_ms: drain.as_secs_f64() * 1_000.0,
            feed_ms: feed.as_secs_f64() * 1_000.0,
        }),
        Err(error) => {
            give_back(&core.store, &client, Some(activation.id), "failed", &chain(&error), false).await?;
            Err(error)
        }
    }
}

/// An activation that was started, and the token that proves that it is ours.
#[derive(Debug, Clone, Copy)]
struct Started {
    id: i64,
    token: Uuid,
}

async fn start(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    change: &Change,
    known: &[crate::words::plan::Known],
) -> Result<Started, StoreError> {
    let token = Uuid::new_v4();
    let from: Versions = known
        .iter()
        .filter(|row| row.state == crate::ProjectorState::Active)
        .map(|row| (row.projector.clone(), row.version.clone()))
        .collect();
    let mut to = from.clone();
    for (projector, _) in &change.outgoing {
        to.remove(projector);
    }
    to.extend(change.incoming.iter().cloned());
    let sql = &core.store.sql.start_activation;
    let row =
        core.store.query_one(client, sql, &[&token, &options.requested_by, &Json(&from), &Json(&to)]).await?;
    Ok(Started { id: row.get("id"), token })
}

/// Everything that can be done while everybody writes.
async fn prepare(
    core: &Core,
    client: &mut Client,
    options: &ActivateOptions,
    plan: &Plan,
    on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
) -> Result<(), ActivateError> {
    for step in &plan.steps {
        if let Step::Activate { projector, .. } = step {
            let registered = &core.configuration.projectors[projector];
            registration::register(&core.store, client, registered, &options.requested_by).await?;
        }
    }
    catch_up(core, options, plan, on_progress).await?;
    wait_for_instances(core, client, options, on_progress).await?;
    // Instances may have taken long to show up.
    catch_up(core, options, plan, on_progress).await?;
    wait_for_old_appends(core, client, options, on_progress).await
}

async fn catch_up(
    core: &Core,
    options: &ActivateOptions,
    plan: &Plan,
    on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
) -> Result<(), ActivateError> {
    let report = |progress: &ReplayProgress| on_progress(ActivationProgress::Replaying(progress.clone()));
    let report: OnProgress<'_> = &report;
    for step in &plan.steps {
        if let Step::Replay { projector, .. } = step {
            let registered = &core.configuration.projectors[projector];
            let limit = Some(options.catch_up_timeout);
            replayer::replay(
                core,
                registered,
                &options.requested_by,
                options.catch_up_lag_events,
                limit,
                report,
            )
            .await
            .map(drop)?;
        }
    }
    Ok(())
}

async fn wait_for_instances(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
) -> Result<(), ActivateError> {
    let wanted = options.wait_for_instances;
    if wanted == 0 {
        return Ok(());
    }
    let started = Instant::now();
    let mut reported = None;
    loop {
        let seen = instances::alive_with(&core.store, client, &core.configuration.versions()).await?;
        if reported != Some(seen) {
            on_progress(ActivationProgress::WaitingForInstances { seen, wanted });
            reported = Some(seen);
        }
        if seen >= wanted {
            return Ok(());
        }
        if started.elapsed() > options.instances_timeout {
            return Err(ActivateError::Instances { seen, wanted, after: started.elapsed() });
        }
        sleep(PREPARE_POLL).await;
    }
}

/// A transaction that has been open for long would likely outlast the pause.
async fn wait_for_old_appends(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
) -> Result<(), ActivateError> {
    let started = Instant::now();
    loop {
        let limit = options.pause_limit.as_secs_f64() / 2.0;
        let mut old = in_flight(&core.store, client).await?;
        old.retain(|blocker| blocker.age_secs.is_none_or(|age| age > limit));
        if old.is_empty() {
            return Ok(());
        }
        if started.elapsed() > options.drain_timeout {
            return Err(ActivateError::Blocked { blockers: old, after: started.elapsed() });
        }
        on_progress(ActivationProgress::WaitingForAppends(old));
        sleep(PREPARE_POLL).await;
    }
}

/// What a pause took.
#[derive(Debug, Default)]
struct Pause {
    horizon: Option<Position>,
    whole: Duration,
    drain: Duration,
    feed: Duration,
}

/// The pause: mark, drain, feed, switch.
async fn pause(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    activation: Started,
    change: &Change,
    on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
) -> Result<Pause, ActivateError> {
    let began = Instant::now();
    let generation = mark(core, client, options, activation, change).await?;
    on_progress(ActivationProgress::Paused);
    let look = drain(core, client, options).await?;
    let drained = Instant::now();
    let horizon = look.newest;
    on_progress(ActivationProgress::Drained { horizon });
    let permit = Permit { generation, until: Some(deadline(core, client, activation).await?) };
    feed(core, client, activation, change, permit, horizon).await?;
    let fed = Instant::now();
    switch(core, client, activation, change, horizon, look.at).await?;
    Ok(Pause { horizon: Some(horizon), whole: began.elapsed(), drain: drained - began, feed: fed - drained })
}

/// Marks and commits, then sets the generation: sent together, so that nothing on our side can stop in between.
async fn mark(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    activation: Started,
    change: &Change,
) -> Result<Generation, ActivateError> {
    let sql = &core.store.sql;
    let ((incoming, in_versions), (outgoing, out_versions)) =
        (texts(&change.incoming), texts(&change.outgoing));
    let limit = options.pause_limit.as_secs_f64();
    let params: [&(dyn postgres_types::ToSql + Sync); 7] =
        [&activation.id, &activation.token, &limit, &incoming, &in_versions, &outgoing, &out_versions];
    let marked = core.store.query(client, &sql.mark_activating, &params);
    let set = core.store.query_one(client, &sql.set_generation, &[]);
    let (marked, set) = join(marked, set).await;
    let marked = match marked {
        Ok(rows) => rows.len(),
        Err(StoreError::Database(error)) if is_constraint(&error, "activations_one_at_a_time") => 0,
        Err(error) => return Err(error.into()),
    };
    let planned = change.incoming.len() + change.outgoing.len();
    if marked != planned {
        return Err(overtaken(core, client, activation).await?);
    }
    hint(core, client).await;
    Ok(set?.get("generation"))
}

fn is_constraint(error: &tokio_postgres::Error, name: &str) -> bool {
    error.as_db_error().and_then(|db| db.constraint()) == Some(name)
}

/// Why a condition in one of our statements did not hold.
async fn overtaken(core: &Core, client: &Client, activation: Started) -> Result<ActivateError, StoreError> {
    let rows = core.store.query(client, &core.store.sql.activations, &[&50_i64]).await?;
    if let Some(own) = rows.iter().find(|row| row.get::<_, i64>("id") == activation.id)
        && let Some(outcome) = own.get::<_, Option<String>>("outcome")
    {
        let error: Option<String> = own.get("error");
        let outcome = error.map_or(outcome.clone(), |error| format!("{outcome}: {error}"));
        return Ok(ActivateError::Ended { activation: activation.id, outcome });
    }
    let other = rows.iter().find(|row| row.get::<_, i64>("id") != activation.id);
    let by = other.map_or_else(
        || "the states changed".to_owned(),
        |row| format!("activation {} by {}", row.get::<_, i64>("id"), row.get::<_, String>("requested_by")),
    );
    Ok(ActivateError::Overtaken { by })
}

/// Waits until everything that was admitted before the mark has ended. Who is admitted later is so by the new states.
async fn drain(core: &Core, client: &Client, options: &ActivateOptions) -> Result<Look, ActivateError> {
    let started = Instant::now();
    let mut waited_for: Option<Vec<String>> = None;
    loop {
        let mut left = in_flight(&core.store, client).await?;
        if let Some(before) = &waited_for {
            left.retain(|blocker| before.contains(&blocker.transaction));
        }
        if left.is_empty() {
            return Ok(horizon::look(&core.store, client).await?);
        }
        // Some time must be left to feed and to switch.
        if started.elapsed() > options.pause_limit.mul_f64(0.8) {
            return Err(ActivateError::Blocked { blockers: left, after: started.elapsed() });
        }
        waited_for = Some(left.into_iter().map(|blocker| blocker.transaction).collect());
        sleep(DRAIN_POLL).await;
    }
}

/// When the pause ends, by the database's clock, on ours.
async fn deadline(core: &Core, client: &Client, activation: Started) -> Result<Instant, ActivateError> {
    let params: [&(dyn postgres_types::ToSql + Sync); 2] = [&activation.id, &activation.token];
    match core.store.query_opt(client, &core.store.sql.pause_left, &params).await? {
        Some(row) => Ok(Instant::now() + Duration::from_secs_f64(row.get("secs"))),
        None => Err(overtaken(core, client, activation).await?),
    }
}

/// Feeds the rest of the log to the new versions, all at once.
async fn feed(
    core: &Core,
    client: &Client,
    activation: Started,
    change: &Change,
    permit: Permit,
    horizon: Position,
) -> Result<(), ActivateError> {
    let feeding = change.feed.iter().map(|registered| async move {
        loop {
            match step_or_name(core, permit, registered, horizon).await? {
                // Inline rows are current: appends kept them so, and none is in flight.
                Stepped::Nothing | Stepped::Inline => return Ok(()),
                Stepped::Moved { .. } => {}
                Stepped::Busy => sleep(DRAIN_POLL).await,
                Stepped::Stale(_) => return Err(overtaken(core, client, activation).await?),
                Stepped::Stalled(error) => {
                    let (projector, version) =
                        (registered.target.projector.clone(), registered.target.version.clone());
                    return Err(ReplayError::Stalled { projector, version, error }.into());
                }
            }
        }
    });
    try_join_all(feeding).await.map(drop)
}

/// Switches and commits, then sets the generation.
async fn switch(
    core: &Core,
    client: &Client,
    activation: Started,
    change: &Change,
    horizon: Position,
    drained_at: SystemTime,
) -> Result<(), ActivateError> {
    let sql = &core.store.sql;
    let params: [&(dyn postgres_types::ToSql + Sync); 4] =
        [&activation.id, &activation.token, &horizon, &drained_at];
    let switched = core.store.query_one(client, &sql.switch, &params);
    let set = core.store.query_one(client, &sql.set_generation, &[]);
    let (switched, set) = join(switched, set).await;
    let switched = switched?;
    if switched.get::<_, i64>("done") == 0 {
        return Err(overtaken(core, client, activation).await?);
    }
    let moved = usize::try_from(switched.get::<_, i64>("moved")).unwrap_or_default();
    assert_eq!(
        moved,
        change.incoming.len() + change.outgoing.len(),
        "BUG: a switch moved other rows than it marked"
    );
    // The switch is committed. Without the new generation everybody looks again a little later.
    if let Err(error) = set {
        warn!(error = %chain(&error), "switched, but the generation was not set");
    }
    hint(core, client).await;
    Ok(())
}

/// Patches write the same rows: no pause.
async fn switch_patches(
    core: &Core,
    client: &Client,
    activation: Started,
    change: &Change,
) -> Result<Pause, ActivateError> {
    let ((incoming, in_versions), (outgoing, out_versions)) =
        (texts(&change.incoming), texts(&change.outgoing));
    let params: [&(dyn postgres_types::ToSql + Sync); 6] =
        [&activation.id, &activation.token, &incoming, &in_versions, &outgoing, &out_versions];
    let switched = core.store.query(client, &core.store.sql.switch_patches, &params);
    let set = core.store.query_one(client, &core.store.sql.set_generation, &[]);
    let (switched, _set) = join(switched, set).await;
    if switched?.len() != change.incoming.len() + change.outgoing.len() {
        return Err(overtaken(core, client, activation).await?);
    }
    hint(core, client).await;
    Ok(Pause::default())
}

/// Tells everybody that the states changed; who does not hear of it looks by itself.
async fn hint(core: &Core, client: &Client) {
    tell(&core.store, client).await;
}

async fn tell(store: &Store, client: &Client) {
    if let Err(error) = store.query(client, &store.sql.notify, &[&channel(store), &STATES]).await {
        warn!(error = %chain(&error), "a notification was not sent");
    }
}

/// Ends an activation, or all that are open, without a switch. Returns the ones that it ended.
pub(crate) async fn give_back(
    store: &Store,
    client: &Client,
    activation: Option<i64>,
    outcome: &str,
    reason: &str,
    only_expired: bool,
) -> Result<Vec<i64>, StoreError> {
    let params: [&(dyn postgres_types::ToSql + Sync); 4] = [&activation, &outcome, &reason, &only_expired];
    let given = store.query(client, &store.sql.give_back, &params);
    let set = store.query_one(client, &store.sql.set_generation, &[]);
    let (given, set) = join(given, set).await;
    let ended: Vec<i64> = given?.iter().map(|row| row.get("id")).collect();
    set?;
    if !ended.is_empty() {
        warn!(activations = ?ended, outcome, reason, "activation ended without a switch");
        tell(store, client).await;
    }
    Ok(ended)
}

/// Gives back a pause whose deadline has passed. Anyone may.
pub(crate) async fn expire(store: &Store, client: &Client) -> Result<bool, StoreError> {
    let open = store.query_opt(client, &store.sql.open_activation, &[]).await?;
    let overdue =
        open.is_some_and(|row| row.get::<_, Option<f64>>("left_secs").is_some_and(|left| left < 0.0));
    if !overdue {
        return Ok(false);
    }
    let reason = "its deadline passed";
    Ok(!give_back(store, client, None, "expired", reason, true).await?.is_empty())
}
