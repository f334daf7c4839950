//! A whole upgrade: replay, optimize, catch up, verify, activate.
//!
//! Nothing is kept of how far an upgrade is but what each of its steps keeps by itself: checkpoints, indexes, states. So whoever
//! begins it again goes on where it was stopped, whoever it was that began it; and two who do so at once share the work.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;
use tracing::info;

use crate::activation::{self, ActivateError, ActivateOptions, Activated, ActivationProgress};
use crate::core::Core;
use crate::expiry::{expire, paused_by};
use crate::optimize::{self, OptimizeError, OptimizeOptions, Optimized};
use crate::projector::Registered;
use crate::replayer::{self, ReplayError, ReplayProgress};
use crate::store::StoreError;
use crate::verify::{self, Verified, VerifyError, VerifyOptions, VerifyProgress, to_mend};
use crate::words::plan::{Plan, Step};

/// How a whole upgrade is to be done.
///
/// ```
/// use changeover::{ActivateOptions, UpgradeOptions};
///
/// let options = UpgradeOptions::default();
/// assert!(options.activation.verify.is_some(), "rows are proved unless somebody says otherwise");
/// let unproved = UpgradeOptions { activation: ActivateOptions { verify: None, ..options.activation } };
/// # let _ = unproved;
/// ```
#[derive(Debug, Clone)]
pub struct UpgradeOptions {
    /// How the activation is to be done, and at what pace what comes before it. The rows of new versions are verified unless
    /// [`verify`](ActivateOptions::verify) is none.
    pub activation: ActivateOptions,
}

impl Default for UpgradeOptions {
    fn default() -> Self {
        let verify = Some(VerifyOptions::default());
        Self { activation: ActivateOptions { verify, ..ActivateOptions::default() } }
    }
}

/// The steps of an upgrade, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpgradeStep {
    /// New versions are fed the log, beside the active ones.
    Replay,
    /// Their indexes are built, and the planner learns of their rows.
    Optimize,
    /// They are fed what came meanwhile.
    CatchUp,
    /// Their rows are proved against the log.
    Verify,
    /// All projectors switch at one moment.
    Activate,
}

impl UpgradeStep {
    /// The words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Optimize => "optimize",
            Self::CatchUp => "catch up",
            Self::Verify => "verify",
            Self::Activate => "activate",
        }
    }
}

impl fmt::Display for UpgradeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an upgrade is at, for whoever watches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum UpgradeProgress {
    /// What it will do.
    Planned(Plan),
    /// A step begins.
    Step(UpgradeStep),
    /// A version is being replayed or optimized, or catches up.
    Replaying(ReplayProgress),
    /// The rows of a version are being proved.
    Verifying(VerifyProgress),
    /// The activation has come further.
    Activating(ActivationProgress),
}

/// A step of an upgrade that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepTaken {
    /// Which.
    pub step: UpgradeStep,
    /// How long it took.
    pub secs: f64,
}

/// A configuration that became active by a whole upgrade, or was already.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[must_use]
pub struct Upgraded {
    /// The steps that were taken; none but the last where nothing had to be done.
    pub steps: Vec<StepTaken>,
    /// The tables that were optimized.
    pub optimized: Vec<Optimized>,
    /// What the proofs said: all of them that nothing differs.
    pub verified: Vec<Verified>,
    /// The activation.
    pub activated: Activated,
}

/// Why an upgrade stopped. What it did until then is kept, and the same call goes on from there. But for
/// [`ActivateError::Unknown`], the configuration that was active before is active still.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// A new version could not be replayed.
    #[error("not upgraded: replaying failed")]
    Replay(#[from] ReplayError),
    /// Its tables could not be optimized.
    #[error("not upgraded: optimizing failed")]
    Optimize(#[from] OptimizeError),
    /// Its rows could not be proved.
    #[error("not upgraded: verifying failed")]
    Verify(#[from] VerifyError),
    /// Its rows are not what the log makes of them.
    #[error("not upgraded: {}; {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), to_mend(.0))]
    Differs(Vec<Verified>),
    /// The activation did not happen.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

impl From<StoreError> for UpgradeError {
    fn from(error: StoreError) -> Self {
        Self::Activate(error.into())
    }
}

impl UpgradeError {
    /// Whether another activation got in between: then there may be nothing left to do, or it is to be tried again.
    fn is_overtaken(&self) -> bool {
        let replay = match self {
            Self::Activate(ActivateError::Overtaken { .. }) => return true,
            Self::Replay(error)
            | Self::Optimize(OptimizeError::Replay(error))
            | Self::Activate(ActivateError::Replay(error))
            | Self::Verify(VerifyError::Fold(error)) => error,
            _ => return false,
        };
        matches!(replay, ReplayError::NotReplaying { .. })
    }
}

/// How often it is begun again where another activation got in between.
const ROUNDS: usize = 3;

/// How often is looked whether another activation's pause is over.
const POLL: Duration = Duration::from_millis(100);

/// Takes all the steps.
pub(crate) async fn upgrade(
    core: &Core,
    options: &UpgradeOptions,
    on_progress: OnUpgrade<'_>,
) -> Result<Upgraded, UpgradeError> {
    let mut round = 1;
    loop {
        match Box::pin(steps(core, &options.activation, on_progress)).await {
            Err(error) if round < ROUNDS && (error.is_overtaken() || is_done(core, &error).await?) => {
                info!(%error, "another activation got in between: looking again at what is left to do");
                let client = core.store.single().await?;
                // A pause has a deadline.
                while paused_by(&core.store, &client).await?.is_some() {
                    sleep(POLL).await;
                    expire(&core.store, &client).await?;
                }
                round += 1;
            }
            done => return done,
        }
    }
}

/// Whether an activation was ended because somebody else has activated the same configuration.
async fn is_done(core: &Core, error: &UpgradeError) -> Result<bool, StoreError> {
    let ended = matches!(error, UpgradeError::Activate(ActivateError::Ended { .. }));
    Ok(ended && activation::plan_for(core).await?.is_done())
}

/// Whoever wants to see progress.
pub(crate) type OnUpgrade<'a> = &'a (dyn Fn(UpgradeProgress) + Send + Sync);

/// The steps, and how long each takes.
struct Steps<'a> {
    on_progress: OnUpgrade<'a>,
    taken: Vec<StepTaken>,
}

impl Steps<'_> {
    async fn take<T, E>(
        &mut self,
        step: UpgradeStep,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        (self.on_progress)(UpgradeProgress::Step(step));
        let started = Instant::now();
        let done = work.await?;
        let secs = started.elapsed().as_secs_f64();
        info!(%step, secs, "a step of an upgrade was taken");
        self.taken.push(StepTaken { step, secs });
        Ok(done)
    }
}

async fn steps(
    core: &Core,
    options: &ActivateOptions,
    on_progress: OnUpgrade<'_>,
) -> Result<Upgraded, UpgradeError> {
    let plan = activation::plan_for(core).await?;
    if !plan.obstacles.is_empty() {
        return Err(ActivateError::Obstacles(plan.obstacles).into());
    }
    on_progress(UpgradeProgress::Planned(plan.clone()));
    let mut steps = Steps { on_progress, taken: Vec::new() };
    let replayed = activation::to_replay(core, &plan).await?;
    let report = |progress: &ReplayProgress| on_progress(UpgradeProgress::Replaying(progress.clone()));
    let (mut optimized, mut verified) = (Vec::new(), Vec::new());
    let replay = options.replay();
    if !replayed.is_empty() {
        let _ = steps
            .take(UpgradeStep::Replay, Box::pin(replayer::replay(core, &replayed, &replay, &report)))
            .await?;
    }
    let incoming: Vec<Arc<Registered>> = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Replay { .. } | Step::Activate { .. }))
        .map(|step| core.configuration.projectors[step.projector()].clone())
        .collect();
    if !incoming.is_empty() {
        let max_connections = options.pace.max_connections.saturating_sub(1).max(1);
        let how = OptimizeOptions { requested_by: options.requested_by.clone(), max_connections };
        optimized = steps
            .take(UpgradeStep::Optimize, Box::pin(optimize::optimize(core, &incoming, &how, &report)))
            .await?;
    }
    if !replayed.is_empty() {
        let _ = steps
            .take(UpgradeStep::CatchUp, Box::pin(replayer::replay(core, &replayed, &replay, &report)))
            .await?;
        if let Some(how) = &options.verify {
            let report = |progress: VerifyProgress| on_progress(UpgradeProgress::Verifying(progress));
            let proving = verify::each(core, &replayed, how, &report);
            verified = steps.take(UpgradeStep::Verify, Box::pin(proving)).await?;
        }
    }
    let unequal = || verified.iter().filter(|verified: &&Verified| !verified.is_equal());
    if unequal().next().is_some() {
        return Err(UpgradeError::Differs(unequal().cloned().collect()));
    }
    // Proved already.
    let options = ActivateOptions { verify: None, ..options.clone() };
    let report = |progress: ActivationProgress| on_progress(UpgradeProgress::Activating(progress));
    let activated =
        steps.take(UpgradeStep::Activate, Box::pin(activation::activate(core, &options, &report))).await?;
    Ok(Upgraded { steps: steps.taken, optimized, verified, activated })
}
