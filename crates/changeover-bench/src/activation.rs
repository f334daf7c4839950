//! The pause of an activation, as whoever writes sees it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use changeover::{
    ActivateOptions, Activated, ActivationProgress, AppendError, Changeover, Expected, Refused, Running,
};
use changeover_testkit::Database;
use serde_json::json;

use crate::domain::{RELEASES, new_stream, order, release};
use crate::measure::{Effort, Load, Samples, ms};
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, client, instance};

const PER_SECOND: u32 = 500;
const SMALL_LOG: i64 = 10_000;
const GOAL_MS: f64 = 50.0;

/// Around a switch it is looked for the longest gap in this stretch.
const BEFORE: Duration = Duration::from_millis(100);
const AFTER: Duration = Duration::from_millis(300);

/// The group `activation`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let small = upgrades(server, effort, SMALL_LOG).await?;
    figures(report, "activation", SMALL_LOG, &small)?;
    let large = upgrades(server, effort, effort.large_log).await?;
    figures(report, "activation", effort.large_log, &large)?;
    // The same for both: held against each other, by the median, which a dozen of repetitions give best.
    report.add(Figure::new(
        "activation_size",
        json!({"measure": "median of the longest gap between acknowledged writes",
               "events_in_the_log": effort.large_log, "beside": SMALL_LOG}),
        (Samples::new(large.gaps.clone()).median(), "ms"),
        Some(Samples::new(small.gaps.clone()).median()),
        Samples::new(large.gaps).spread(),
        Goal::RatioAtMost(1.2),
    ))
}

/// What came out of several upgrades, in milliseconds.
#[derive(Default)]
struct Upgrades {
    /// The longest time between two acknowledged writes around each switch.
    gaps: Vec<f64>,
    /// The same in stretches as long, without a switch.
    quiet: Vec<f64>,
    /// What each activation says of itself.
    pauses: Vec<f64>,
}

fn figures(report: &mut Report, name: &'static str, events: i64, upgrades: &Upgrades) -> Result<()> {
    let quiet = Samples::new(upgrades.quiet.clone()).percentile(0.99);
    let measures = [
        ("longest gap between acknowledged writes", &upgrades.gaps, Some(quiet)),
        ("pause of the activation", &upgrades.pauses, None),
    ];
    for (measure, values, baseline) in measures {
        let values = Samples::new(values.clone());
        let params = json!({"measure": measure, "percentile": "p99", "events_in_the_log": events,
                            "appends_per_second": PER_SECOND, "switches": upgrades.gaps.len()});
        report.add(Figure::new(
            name,
            params,
            (values.percentile(0.99), "ms"),
            baseline,
            values.spread(),
            Goal::AtMost(GOAL_MS),
        ))?;
    }
    Ok(())
}

/// Fills the log, only here in a way that no application has: nobody is looking, no append is in flight.
///
/// Of ten events one is of the projectors' types, as in an application with more than these two projectors; a replay takes
/// a few seconds then and not minutes. How long it takes is not measured here.
const FILL: &str = "
    INSERT INTO changeover.events (position, stream, revision, type, data)
    SELECT n, 'filled-' || n, 1,
           CASE WHEN n % 10 = 0 THEN 'OrderPlaced' ELSE 'Visited' END,
           CASE WHEN n % 10 = 0 THEN '{\"customer\":\"Ada Lovelace\",\"note\":\"none\"}' ELSE '{\"page\":\"/catalogue\"}' END::json
    FROM generate_series(1, $1::bigint) AS n";

async fn upgrades(server: &Server, effort: Effort, events: i64) -> Result<Upgrades> {
    let (database, first) = filled(server, events).await?;
    let deployment = Deployment::of(first);
    let writers = {
        let deployment = deployment.clone();
        Load::start(PER_SECOND, move || deployment.clone().write())
    };
    let mut upgrades = Upgrades::default();
    for number in 2..=(effort.upgrades + 1).min(RELEASES) {
        let next = instance(database.config(), release(number)).await?;
        deployment.comes_up(&next);
        upgrades
            .watch(&deployment, async |note| Ok(next.activate(&ActivateOptions::default(), note).await?))
            .await?;
        deployment.retire().await;
    }
    writers.stop().await?;
    deployment.retire_all().await;
    Ok(upgrades)
}

/// The group `rollback`: back to the release before, and forward again, while both releases run.
pub(crate) async fn go_back(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let events = effort.large_log;
    let (database, first) = filled(server, events).await?;
    let next = instance(database.config(), release(2)).await?;
    let deployment = Deployment::of(first.clone());
    deployment.comes_up(&next);
    let writers = {
        let deployment = deployment.clone();
        Load::start(PER_SECOND, move || deployment.clone().write())
    };
    next.activate(&ActivateOptions::default(), &|_| {}).await.map(drop)?;
    let (mut back, mut forward) = (Upgrades::default(), Upgrades::default());
    for _ in 0..effort.upgrades.div_ceil(2) {
        back.watch(&deployment, async |note| Ok(first.rollback(&ActivateOptions::default(), note).await?))
            .await?;
        forward
            .watch(&deployment, async |note| Ok(next.activate(&ActivateOptions::default(), note).await?))
            .await?;
    }
    writers.stop().await?;
    deployment.retire_all().await;
    figures(report, "rollback", events, &back)?;
    figures(report, "rollback_and_forward_again", events, &forward)
}

/// An instance of the first release, active on a log of so many events.
async fn filled(server: &Server, events: i64) -> Result<(Database, Changeover)> {
    let database = server.database().await;
    let first = instance(database.config(), release(1)).await?;
    let admin = client(&database.config()).await?;
    admin.execute(FILL, &[&events]).await?;
    admin.query_one("SELECT setval('changeover.event_position', $1)", &[&events]).await?;
    admin.batch_execute("VACUUM ANALYZE changeover.events").await?;
    first.activate(&ActivateOptions::default(), &|_| {}).await.map(drop)?;
    Ok((database, first))
}

impl Upgrades {
    /// Watches one switch, and a stretch as long without one.
    async fn watch(
        &mut self,
        deployment: &Deployment,
        switch: impl AsyncFnOnce(&(dyn Fn(ActivationProgress) + Send + Sync)) -> Result<Activated>,
    ) -> Result<()> {
        let seen = Mutex::new(Vec::new());
        let note = |progress| {
            if let ActivationProgress::Paused | ActivationProgress::Switched = progress {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        };
        let activated = switch(&note).await?;
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let [paused, switched] = seen[..] else { anyhow::bail!("a switch without a pause: {activated:?}") };

        let began = paused.checked_sub(BEFORE).context("BUG: the clock began with the pause")?;
        let window = switched + AFTER - began;
        let quiet = switched + 2 * AFTER;
        tokio::time::sleep_until((quiet + window + AFTER).into()).await;
        self.gaps.push(deployment.longest_gap(began, switched + AFTER)?);
        self.quiet.push(deployment.longest_gap(quiet, quiet + window)?);
        self.pauses.push(activated.pause_ms);
        Ok(())
    }
}

/// The releases that run, and the requests that come in: to the release that serves, until it refuses as retired.
#[derive(Clone)]
struct Deployment(Arc<Mutex<Inner>>);

struct Inner {
    /// The release that requests go to.
    serving: usize,
    releases: Vec<(Changeover, Option<Running>)>,
    acknowledged: Vec<Instant>,
}

impl Deployment {
    fn of(first: Changeover) -> Self {
        let running = Some(first.start());
        let releases = vec![(first, running)];
        Self(Arc::new(Mutex::new(Inner { serving: 0, releases, acknowledged: Vec::new() })))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn comes_up(&self, next: &Changeover) {
        let running = Some(next.start());
        self.inner().releases.push((next.clone(), running));
    }

    /// One request. A refusal wrote nothing, so the next release may serve it.
    async fn write(self) -> Result<()> {
        let (stream, events) = (new_stream(), order(2));
        loop {
            let (number, release) = {
                let inner = self.inner();
                (inner.serving, inner.releases[inner.serving].0.clone())
            };
            match release.append(&stream, Expected::NoStream, &events).await {
                Ok(_) => {
                    let now = Instant::now();
                    self.inner().acknowledged.push(now);
                    return Ok(());
                }
                Err(AppendError::Refused(Refused::NewerProjectorIsActive { .. })) => {
                    let mut inner = self.inner();
                    anyhow::ensure!(
                        number + 1 < inner.releases.len(),
                        "retired, and there is no newer release"
                    );
                    inner.serving = inner.serving.max(number + 1);
                }
                Err(AppendError::Refused(Refused::OlderProjectorIsActive { .. })) => {
                    let before = number.checked_sub(1).context("there is no older release")?;
                    let mut inner = self.inner();
                    inner.serving = inner.serving.min(before);
                }
                Err(error) => return Err(error).context("a write failed around an activation"),
            }
        }
    }

    /// The longest time without an acknowledged write that touches a stretch, in milliseconds.
    fn longest_gap(&self, from: Instant, to: Instant) -> Result<f64> {
        let mut inner = self.inner();
        inner.acknowledged.sort_unstable();
        let acknowledged = &inner.acknowledged;
        let first = acknowledged.partition_point(|at| *at < from).saturating_sub(1);
        let last = acknowledged.partition_point(|at| *at <= to);
        let within = acknowledged.get(first..=last).context("writing ended before the stretch did")?;
        let longest = within.windows(2).map(|pair| pair[1] - pair[0]).max();
        longest.map(ms).context("nothing was written in the stretch")
    }

    /// The release before the one that serves is stopped, as a deployment would.
    async fn retire(&self) {
        let before = {
            let mut inner = self.inner();
            let before = inner.serving.checked_sub(1);
            before.and_then(|before| inner.releases[before].1.take())
        };
        if let Some(running) = before {
            running.stop().await;
        }
    }

    async fn retire_all(&self) {
        let running: Vec<Running> =
            self.inner().releases.iter_mut().filter_map(|(_, running)| running.take()).collect();
        for running in running {
            running.stop().await;
        }
    }
}
