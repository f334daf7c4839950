//! Activation: one moment at which a configuration takes over, and everything that makes it safe.
//!
//! Before the pause everything is checked, replayed and caught up. The pause itself is: mark and commit, then set the
//! generation; wait until what was admitted before has ended; feed the rest; switch and commit, then set the generation.
//! Each of the two commits is one statement, sent together with the one that sets the generation: nobody can stop in between
//! on our side of the wire. (Where the rest is fed into tables of the version before, it is committed by the switch:
//! [`in_place`].) Past the deadline anyone may give the pause back.

mod ending;
mod in_place;
mod pause;
mod prepare;
pub(crate) mod rollback;

use std::sync::Arc;
use std::time::Duration;

use postgres_types::{Json, ToSql};
use serde::Serialize;
use tokio_postgres::Client;
use tracing::{info, warn};
use uuid::Uuid;

use crate::core::Core;
use crate::expiry::{expire, paused_by};
use crate::in_flight::Blocker;
use crate::projector::{Registered, chain};
use crate::registration::{self, RegisterError, Registry};
use crate::replayer::{Pace, ReplayError, ReplayOptions, ReplayProgress};
use crate::store::StoreError;
use crate::verify::{Verified, VerifyError, VerifyOptions, VerifyProgress, to_mend};
use crate::views::{self, ProjectorViews};
use crate::words::decision::Versions;
use crate::words::names::ProjectorName;
use crate::words::plan::{Obstacle, Plan, Step, plan};
use crate::words::position::Position;
use crate::words::state::{Delivery, ProjectorState};
use crate::words::way_back::Named;

/// Whoever wants to see progress.
pub(crate) type OnActivation<'a> = &'a (dyn Fn(ActivationProgress) + Send + Sync);

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
    /// How fast what has to be replayed is replayed.
    pub pace: Pace,
    /// How long to wait, before the pause, until no append is older than half the
    /// [`pause_limit`](Self::pause_limit).
    pub drain_timeout: Duration,
    /// Whether, and how, the rows of the versions that are to take over are proved before the pause: all of them that have
    /// tables of their own. Those that take over in place keep the rows that are there.
    pub verify: Option<VerifyOptions>,
    /// Whether instances of the old release that still run keep the tables current that retire, so that going back to them
    /// replays nothing. Until the next switch that is not of patch versions alone.
    pub keep_following: bool,
    /// The deadline of the pause: past it the old version serves again, whatever became of the activation.
    pub pause_limit: Duration,
    /// Whether the stable views `<projector>.<table>` are moved to the new versions after the switch.
    pub repoint_views: bool,
    /// How long that is tried while readers hold the views. It comes after the pause, and the activation stands whatever
    /// becomes of it.
    pub views_timeout: Duration,
}

impl ActivateOptions {
    /// How the new versions are replayed.
    pub(crate) fn replay(&self) -> ReplayOptions {
        ReplayOptions {
            requested_by: self.requested_by.clone(),
            lag_events: self.catch_up_lag_events,
            limit: Some(self.catch_up_timeout),
            pace: self.pace.clone(),
            ..ReplayOptions::default()
        }
    }
}

impl Default for ActivateOptions {
    fn default() -> Self {
        Self {
            requested_by: "unnamed".to_owned(),
            wait_for_instances: 0,
            instances_timeout: Duration::from_mins(5),
            catch_up_timeout: Duration::from_hours(24),
            catch_up_lag_events: 200,
            pace: Pace::default(),
            drain_timeout: Duration::from_secs(30),
            verify: None,
            keep_following: false,
            pause_limit: Duration::from_secs(2),
            repoint_views: true,
            views_timeout: Duration::from_secs(10),
        }
    }
}

/// What an activation is at, for whoever watches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ActivationProgress {
    /// What it will do.
    Planned(Plan),
    /// It has its number in the history: what [`Changeover::abort_one`](crate::Changeover::abort_one) takes.
    Started {
        /// The number.
        activation: i64,
    },
    /// A version is being replayed.
    Replaying(ReplayProgress),
    /// The rows of a version are being proved.
    Verifying(VerifyProgress),
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
    /// The stable views of a projector, or tables that it is to adopt, are still to be moved: readers hold them.
    WaitingForReaders {
        /// The projector.
        projector: ProjectorName,
        /// The readers, as far as they can be seen.
        readers: Vec<Blocker>,
    },
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
    /// The stable views that were moved after the switch, and those that could not be.
    pub views: Vec<ProjectorViews>,
}

/// Why an activation did not happen. But for [`Unknown`](Self::Unknown), the configuration that was active before is active
/// still.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// The configuration cannot be activated as it is.
    #[error("not activated: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Obstacles(Vec<Obstacle>),
    /// A new version could not be replayed.
    #[error("not activated: replaying failed")]
    Replay(#[from] ReplayError),
    /// The rows of a new version are not what the log makes of them.
    #[error("not activated: {}; {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), to_mend(.0))]
    Differs(Vec<Verified>),
    /// The rows of a new version could not be proved.
    #[error("not activated: verifying failed")]
    Verify(#[from] VerifyError),
    /// A version cannot be registered.
    #[error("not activated")]
    Register(#[from] RegisterError),
    /// Not enough instances of the new configuration showed up.
    #[error(
        "not activated: {seen} of {wanted} instances with {} are alive after {after:?}; start them, or wait for fewer",
        Named(configuration)
    )]
    Instances {
        /// The new configuration.
        configuration: Versions,
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
        "not activated: activation {activation}, of {}, was ended before it could switch ({outcome}); what was active before is active still: try again, with more time if that is what it lacked",
        Named(configuration)
    )]
    Ended {
        /// Its number.
        activation: i64,
        /// The configuration that it was to lead to.
        configuration: Versions,
        /// How it ended, as far as it can be seen.
        outcome: String,
    },
    /// The projector to be deactivated is not active.
    #[error(
        "no version of {0} is active: there is nothing to deactivate; `status` shows where its versions stand"
    )]
    NotActive(ProjectorName),
    /// The connection was lost during the pause and the outcome could not be asked for. It happened whole or not at all; if
    /// not, the deadline gives the pause back.
    #[error(
        "activation {activation} may or may not have switched: the connection was lost and the outcome could not be read; see `status`"
    )]
    Unknown {
        /// Its number.
        activation: i64,
        /// How the connection was lost.
        #[source]
        source: StoreError,
    },
    /// The database did not do as asked.
    #[error("not activated: the database refused")]
    Store(#[from] StoreError),
}

/// What moves in and what moves out.
#[derive(Debug, Default)]
struct Change {
    incoming: Vec<(ProjectorName, semver::Version)>,
    outgoing: Vec<(ProjectorName, semver::Version)>,
    /// Incoming versions whose tables are theirs alone, and must be at the horizon before the switch.
    feed: Vec<Arc<Registered>>,
    /// Incoming versions that take over in place and are fed inline from the switch on: what is left for their tables comes with
    /// the switch.
    feed_in_place: Vec<Arc<Registered>>,
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
            let registered = core.configuration.projectors.get(projector).filter(|_| incoming.is_some());
            let feed = match step {
                Step::Activate { .. } => &mut change.feed_in_place,
                _ => &mut change.feed,
            };
            // In place and in the background, the checkpoint simply goes on under the new code.
            let is_fed = |r: &&Arc<Registered>| {
                !matches!(step, Step::Activate { .. }) || r.target.delivery == Delivery::Inline
            };
            feed.extend(registered.filter(is_fed).cloned());
        }
        change
    }
}

/// Works out what activating the configuration would do.
pub(crate) async fn plan_for(core: &Core) -> Result<Plan, StoreError> {
    let client = core.store.single().await?;
    let registry = registration::registry(&core.store, &client).await?;
    Ok(plan(&core.configuration.targets(), &registry.known, &registry.tables))
}

/// The versions that have to be fed before a plan's activation.
pub(crate) async fn to_replay(core: &Core, plan: &Plan) -> Result<Vec<Arc<Registered>>, StoreError> {
    let client = core.store.single().await?;
    let registry = registration::registry(&core.store, &client).await?;
    Ok(prepare::to_replay(core, plan, &registry))
}

/// Activates the configuration.
pub(crate) async fn activate(
    core: &Core,
    options: &ActivateOptions,
    on_progress: OnActivation<'_>,
) -> Result<Activated, ActivateError> {
    let client = core.store.single().await?;
    let registry = before(core, &client).await?;
    activate_from(core, client, options, Way::Forward, &registry, on_progress).await
}

/// Whether it goes to a configuration like any other, or back to the one before, for the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Back,
}

/// Activates the configuration, from what the database was found to know.
async fn activate_from(
    core: &Core,
    client: Client,
    options: &ActivateOptions,
    way: Way,
    registry: &Registry,
    on_progress: OnActivation<'_>,
) -> Result<Activated, ActivateError> {
    let plan = plan(&core.configuration.targets(), &registry.known, &registry.tables);
    if !plan.obstacles.is_empty() {
        return Err(ActivateError::Obstacles(plan.obstacles));
    }
    on_progress(ActivationProgress::Planned(plan.clone()));
    if plan.is_done() {
        // Whoever switched before may have been stopped right after it.
        let views = repoint(core, &plan, options, on_progress).await;
        return Ok(Activated::of(None, plan, Pause::default(), views));
    }
    perform(core, client, options, plan, way, registry, on_progress).await
}

/// Retires one projector without another version in its place.
pub(crate) async fn deactivate(
    core: &Core,
    projector: &ProjectorName,
    options: &ActivateOptions,
) -> Result<Activated, ActivateError> {
    let client = core.store.single().await?;
    let registry = before(core, &client).await?;
    let active = registry
        .known
        .iter()
        .find(|row| row.projector == *projector && row.state == ProjectorState::Active)
        .ok_or_else(|| ActivateError::NotActive(projector.clone()))?;
    let step = Step::Retire { projector: projector.clone(), version: active.version.clone() };
    let plan = Plan { steps: vec![step], obstacles: Vec::new() };
    perform(core, client, options, plan, Way::Forward, &registry, &|_| {}).await
}

/// Activates one projector alone, of which no version is active; the others stay as they are.
pub(crate) async fn activate_one(
    core: &Core,
    registered: &Registered,
    options: &ActivateOptions,
    on_progress: OnActivation<'_>,
) -> Result<Activated, ActivateError> {
    let client = core.store.single().await?;
    let registry = before(core, &client).await?;
    let (projector, version) = registered.id();
    let own = registry.tables.iter().find(|row| row.projector == projector && row.major == version.major);
    let from = own.map_or(Position::START, |own| own.position);
    let step = Step::Replay { projector, version, replaces: None, from };
    let plan = Plan { steps: vec![step], obstacles: Vec::new() };
    perform(core, client, options, plan, Way::Forward, &registry, on_progress).await
}

/// What the database knows, once nothing of an earlier activation is left.
async fn before(core: &Core, client: &Client) -> Result<Registry, ActivateError> {
    expire(&core.store, client).await?;
    if let Some(by) = paused_by(&core.store, client).await? {
        return Err(ActivateError::Overtaken { by });
    }
    Ok(registration::registry(&core.store, client).await?)
}

async fn perform(
    core: &Core,
    client: Client,
    options: &ActivateOptions,
    plan: Plan,
    way: Way,
    registry: &Registry,
    on_progress: OnActivation<'_>,
) -> Result<Activated, ActivateError> {
    let change = Change::of(&plan, core);
    let activation = start(core, &client, options, &change, way, registry).await?;
    on_progress(ActivationProgress::Started { activation: activation.id });
    let prepared = tokio::select! {
        prepared = prepare::prepare(core, &client, options, &plan, registry, on_progress) => prepared,
        ended = prepare::stay_seen(core, activation) => Err(ended),
    };
    let paused = match prepared {
        Ok(()) if plan.needs_no_pause() => pause::switch_patches(core, activation, &change).await,
        Ok(()) => pause::pause(core, options, activation, &change, on_progress).await,
        // Whoever activated or retired it meanwhile is worth more than how that showed.
        Err(ActivateError::Replay(ReplayError::NotReplaying { .. })) => {
            Err(ending::overtaken(core, &client, activation).await?)
        }
        // Whoever aborts an activation aborts its replays as well: either may be seen first.
        Err(
            error @ (ActivateError::Replay(ReplayError::Aborted { .. })
            | ActivateError::Verify(VerifyError::Aborted { .. })),
        ) => match ending::overtaken(core, &client, activation).await? {
            ended @ ActivateError::Ended { .. } => Err(ended),
            _ => Err(error),
        },
        Err(error) => Err(error),
    };
    let paused = match paused {
        Ok(paused) => paused,
        Err(error) => ending::conclude(core, client, activation, options.pause_limit, error).await?,
    };
    on_progress(ActivationProgress::Switched);
    info!(
        activation = activation.id,
        pause_ms = paused.whole.as_secs_f64() * 1_000.0,
        "configuration activated"
    );
    let views = repoint(core, &plan, options, on_progress).await;
    Ok(Activated::of(Some(activation.id), plan, paused, views))
}

/// Moves the stable views. Whatever becomes of it, the activation took place.
async fn repoint(
    core: &Core,
    plan: &Plan,
    options: &ActivateOptions,
    on_progress: OnActivation<'_>,
) -> Vec<ProjectorViews> {
    if !(core.stable_views && options.repoint_views) {
        return Vec::new();
    }
    let on_wait = |projector: &ProjectorName, readers| {
        on_progress(ActivationProgress::WaitingForReaders { projector: projector.clone(), readers });
    };
    let followed = async {
        let client = core.store.single().await?;
        views::follow(&core.store, &client, options.views_timeout, &on_wait).await
    };
    match followed.await {
        Ok(mut views) => {
            views.retain(|views| !views.changed.is_empty() || !views.problems.is_empty());
            views
        }
        Err(error) => {
            warn!(error = %chain(&error), "the stable views were not looked at: run `repoint-views`");
            plan.steps.iter().map(|step| ProjectorViews::unknown(step.projector(), &error)).collect()
        }
    }
}

/// What a pause took.
#[derive(Debug, Clone, Copy, Default)]
struct Pause {
    horizon: Option<Position>,
    whole: Duration,
    drain: Duration,
    feed: Duration,
}

impl Activated {
    fn of(activation: Option<i64>, plan: Plan, pause: Pause, views: Vec<ProjectorViews>) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let Pause { horizon, whole, drain, feed } = pause;
        Self { activation, plan, horizon, pause_ms: ms(whole), drain_ms: ms(drain), feed_ms: ms(feed), views }
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
    way: Way,
    registry: &Registry,
) -> Result<Started, StoreError> {
    let token = Uuid::new_v4();
    let from = registry.active();
    let mut to = from.clone();
    for (projector, _) in &change.outgoing {
        to.remove(projector);
    }
    to.extend(change.incoming.iter().cloned());
    let sql = &core.store.sql.start_activation;
    let (from, to, back) = (Json(&from), Json(&to), way == Way::Back);
    let params: [&(dyn ToSql + Sync); 6] =
        [&token, &options.requested_by, &from, &to, &back, &options.keep_following];
    let row = core.store.query_one(client, sql, &params).await?;
    Ok(Started { id: row.get("id"), token })
}
