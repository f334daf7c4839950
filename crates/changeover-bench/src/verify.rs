//! What it costs to prove a read model, beside replaying it; and what a throttled replay costs those who write meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;
use changeover::{
    ActivateOptions, Changeover, Configuration, Expected, Pace, ProjectorName, ReplayOptions, Throttle,
    VerifyOptions,
};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::domain::{new_stream, order, release};
use crate::measure::{Effort, Samples, Variant, in_turn, ms, open_loop};
use crate::replay::{Log, options};
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, instance, migrated};
use crate::subjects::{Customers, Orders};

const APPENDS_PER_SECOND: u32 = 500;

/// What the throttle lets through: a million events in twenty seconds.
const EVENTS_PER_SECOND: u32 = 50_000;

/// The group `verify`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let database = server.database().await;
    let log = Log::empty(&database, effort.large_log.max(100_000)).await?;
    log.fill().await?;
    proved(&log, effort, report).await?;
    log.forget().await?;
    throttled(&log, effort, report).await
}

async fn proved(log: &Log, effort: Effort, report: &mut Report) -> Result<()> {
    let cases = [
        ("a row for each order", Configuration::new().fold(Orders)?),
        ("a row for each of 5,000 customers", Configuration::new().fold(Customers)?),
    ];
    for (rows, configuration) in &cases {
        log.replay(configuration, &options()).await?;
        let [proved, replayed] = in_turn(
            effort.rounds.min(5),
            [
                Box::new(move || verify(log, configuration).boxed()) as Variant<'_, f64>,
                Box::new(move || async move { log.replay(configuration, &options()).await }.boxed()),
            ],
        )
        .await?;
        let params = json!({"events": log.events, "rows": rows, "beside": "the replay"});
        report.add(Figure::compared("verify", params, "s", (&proved, &replayed), Goal::RatioAtMost(1.5)))?;
    }
    Ok(())
}

/// Proves what was replayed, and says how many seconds that took.
async fn verify(log: &Log, configuration: &Configuration) -> Result<f64> {
    let changeover = migrated(log.config.clone(), configuration.clone()).await?;
    let started = Instant::now();
    for projector in configuration.versions().keys() {
        let verified = changeover.verify(projector, &VerifyOptions::default(), &|_| {}).await?;
        anyhow::ensure!(verified.is_equal(), "a replay went wrong: {verified}");
    }
    Ok(started.elapsed().as_secs_f64())
}

/// The latency of appends beside a replay that is held back.
async fn throttled(log: &Log, effort: Effort, report: &mut Report) -> Result<()> {
    let live = instance(log.config.clone(), release(1)).await?;
    live.activate(&ActivateOptions::default(), &|_| {}).await.map(drop)?;
    let running = live.start();
    let next = migrated(log.config.clone(), release(2)).await?;
    let begun = AtomicBool::new(false);
    let (live, next, begun) = (&live, &next, &begun);
    let [beside, alone] = in_turn(
        effort.stretches,
        [
            Box::new(move || {
                async move {
                    let restart = begun.swap(true, Ordering::Relaxed);
                    tokio::select! {
                        latency = append_p99(live, effort) => latency,
                        replayed = replay_held_back(next, restart) => {
                            replayed?;
                            anyhow::bail!("the replay was over before the appends were")
                        }
                    }
                }
                .boxed()
            }) as Variant<'_, f64>,
            Box::new(move || append_p99(live, effort).boxed()),
        ],
    )
    .await?;
    running.stop().await;
    let params = json!({"percentile": "p99", "appends_per_second": APPENDS_PER_SECOND, "replayed_per_second": EVENTS_PER_SECOND,
                        "beside": "no replay"});
    let goal = Goal::RatioAtMost(1.5);
    report.add(Figure::compared("replay_throttled_append_latency", params, "ms", (&beside, &alone), goal))
}

async fn replay_held_back(next: &Changeover, restart: bool) -> Result<()> {
    let names: Vec<ProjectorName> = release(2).versions().into_keys().collect();
    let throttle = Throttle { events_per_sec: Some(EVENTS_PER_SECOND), ..Throttle::default() };
    let pace = Pace { throttle, ..Pace::default() };
    next.replay(&names, &ReplayOptions { pace, restart, ..options() }, &|_| {}).await?;
    Ok(())
}

/// The latency of appends that come at a steady rate, in milliseconds.
async fn append_p99(live: &Changeover, effort: Effort) -> Result<f64> {
    let live = live.clone();
    let latencies = open_loop(APPENDS_PER_SECOND, effort.stretch, move || {
        let live = live.clone();
        async move {
            let (stream, events) = (new_stream(), order(1));
            let started = Instant::now();
            live.append(&stream, Expected::NoStream, &events).await?;
            Ok(ms(started.elapsed()))
        }
    })
    .await?;
    Ok(Samples::new(latencies).percentile(0.99))
}
