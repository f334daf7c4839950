//! A process of the chaos test: an instance of the application, or an operator. What it is to do comes as its one argument.

mod projectors;
#[path = "../story.rs"]
mod story;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    ActivateOptions, ActivationProgress, Builder, Changeover, DiscardOptions, Pace, ProjectorName,
    PruneOptions, ReplayError, ReplayOptions, ReplayPhase, ReplayProgress, Signals, Step, Throttle,
    WhenNothingIsActive,
};

use crate::story::{Chance, Part, RELEASES, Role};
use crate::writer::Journal;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let part = std::env::args().nth(1).expect("a part to play");
    let part: Part = serde_json::from_str(&part)?;
    assert!((1..=RELEASES).contains(&part.release));
    match part.role.clone() {
        Role::Instance { writers, log } => instance(&part, writers, &log).await,
        Role::Operator {
            name,
            back,
            keep_following,
            pause_limit_ms,
            linger_paused_ms,
            linger_drained_ms,
        } => {
            let options = ActivateOptions {
                requested_by: name,
                keep_following,
                pause_limit: Duration::from_millis(pause_limit_ms),
                drain_timeout: Duration::from_millis(500),
                catch_up_timeout: Duration::from_mins(1),
                pace: pace(&mut Chance::new(part.seed), None),
                ..ActivateOptions::default()
            };
            operate(&part, &options, back, linger_paused_ms, linger_drained_ms).await
        }
        Role::Replayer { restart, events_per_sec } => replay(&part, restart, events_per_sec).await,
        Role::Discarder => discard(&part).await,
        Role::Pruner { keep } => prune(&part, keep).await,
        Role::Aborter { times } => abort(&part, times).await,
    }
}

fn builder(part: &Part) -> anyhow::Result<Builder> {
    Ok(Changeover::builder(part.database.parse()?)
        .configuration(projectors::configuration(part.release)?)
        .application("chaos", &part.release.to_string())
        .pool_size(6))
}

/// Everything as small as it gets, so that everything happens: several shards whose rows are written, forgotten and loaded again.
fn pace(chance: &mut Chance, events_per_sec: Option<u32>) -> Pace {
    let mut between = |least: u64, below: u64| least + chance.below(below - least);
    let size = |number: u64| usize::try_from(number).expect("a small number");
    Pace {
        // Not 0: while others append it would begin another bulk for every event of theirs.
        parallel_above_events: i64::try_from(between(20, 200)).expect("a small number"),
        shards: Some(u16::try_from(between(2, 6)).expect("a small number")),
        memory_bytes: size(between(10_000, 300_000)),
        max_connections: size(between(3, 10)),
        checkpoint_every: Duration::from_millis(between(2, 60)),
        throttle: Throttle { events_per_sec, ..Throttle::default() },
    }
}

/// Says once that a parallel replay is under way.
#[derive(Default)]
struct Bulk(AtomicBool);

impl Bulk {
    fn look(&self, progress: &ReplayProgress) {
        if progress.phase == ReplayPhase::Bulk && !self.0.swap(true, Ordering::Relaxed) {
            println!("in the bulk");
        }
    }
}

async fn instance(part: &Part, writers: u64, log: &str) -> anyhow::Result<()> {
    let mut chance = Chance::new(part.seed);
    let when_nothing_is_active = match part.release {
        1 => WhenNothingIsActive::AssumeOurs,
        _ => WhenNothingIsActive::Refuse,
    };
    let changeover = builder(part)?
        .when_nothing_is_active(when_nothing_is_active)
        .activation_wait(Duration::from_millis(20 + chance.below(1_000)))
        .signals(Signals {
            in_process: chance.percent(80),
            notify: chance.percent(70).then(|| Duration::from_millis(2)),
            timer: Some(Duration::from_millis(20 + chance.below(200))),
        })
        .connect()
        .await?;
    let journal = Arc::new(Journal::create(log)?);
    let _running = changeover.start();
    for _ in 0..writers {
        let chance = Chance::new(chance.next());
        tokio::spawn(writer::write(changeover.clone(), part.release, journal.clone(), chance));
    }
    if writers > 0 {
        tokio::spawn(writer::read(changeover.clone(), journal));
    }
    println!("serving");
    // Until it is killed.
    std::future::pending().await
}

async fn operate(
    part: &Part,
    options: &ActivateOptions,
    back: bool,
    paused_ms: u64,
    drained_ms: u64,
) -> anyhow::Result<()> {
    let changeover = builder(part)?.connect().await?;
    let bulk = Bulk::default();
    let on_progress = |progress| {
        let linger = match progress {
            ActivationProgress::Paused => {
                println!("paused");
                paused_ms
            }
            ActivationProgress::Drained { .. } => {
                println!("drained");
                drained_ms
            }
            ActivationProgress::Replaying(progress) => {
                bulk.look(&progress);
                0
            }
            _ => 0,
        };
        // It blocks on purpose: nothing in this task goes on, as if it were starved.
        std::thread::sleep(Duration::from_millis(linger));
    };
    let activated = if back {
        changeover.rollback(options, &on_progress).await.map_err(anyhow::Error::from)
    } else {
        changeover.activate(options, &on_progress).await.map_err(anyhow::Error::from)
    };
    match activated {
        Ok(activated) => println!("activated, paused for {:.1} ms", activated.pause_ms),
        Err(error) => println!("not activated: {error:#}"),
    }
    println!("done");
    Ok(())
}

/// The projectors of the release that have tables to be replayed, each with its version.
async fn to_replay(changeover: &Changeover) -> anyhow::Result<Vec<(ProjectorName, Version)>> {
    let steps = changeover.plan().await?.steps.into_iter();
    let replays = steps.filter_map(|step| match step {
        Step::Replay { projector, version, .. } => Some((projector, version)),
        _ => None,
    });
    Ok(replays.collect())
}

async fn replay(part: &Part, restart: bool, events_per_sec: Option<u32>) -> anyhow::Result<()> {
    let changeover = builder(part)?.connect().await?;
    let names: Vec<ProjectorName> =
        to_replay(&changeover).await?.into_iter().map(|(projector, _)| projector).collect();
    let options = ReplayOptions {
        requested_by: "chaos".to_owned(),
        restart,
        pace: pace(&mut Chance::new(part.seed), events_per_sec),
        ..ReplayOptions::default()
    };
    let bulk = Bulk::default();
    match changeover.replay(&names, &options, &|progress| bulk.look(progress)).await {
        Ok(_) => println!("replayed"),
        // What others do to the same tables may be in its way, and nothing else.
        Err(
            error @ (ReplayError::NotReplaying { .. }
            | ReplayError::StartedOver { .. }
            | ReplayError::NotStartedOver { .. }
            | ReplayError::InUse { .. }
            | ReplayError::Aborted { .. }),
        ) => println!("not replayed: {:#}", anyhow::Error::from(error)),
        Err(error) => return Err(error.into()),
    }
    println!("done");
    Ok(())
}

async fn discard(part: &Part) -> anyhow::Result<()> {
    let changeover = builder(part)?.connect().await?;
    let wait = Duration::from_millis(500);
    let options = DiscardOptions { requested_by: "chaos".to_owned(), wait };
    for (projector, version) in to_replay(&changeover).await? {
        match changeover.discard(&projector, &version, &options).await {
            Ok(_) => println!("discarded {projector} {version}"),
            Err(error) => println!("not discarded: {:#}", anyhow::Error::from(error)),
        }
    }
    println!("done");
    Ok(())
}

async fn prune(part: &Part, keep: usize) -> anyhow::Result<()> {
    let changeover = builder(part)?.connect().await?;
    let wait = Duration::from_millis(500);
    let options = PruneOptions { requested_by: "chaos".to_owned(), keep, wait };
    match changeover.prune(&options).await {
        Ok(pruned) => println!("pruned {}", pruned.dropped.len()),
        Err(error) => println!("not pruned: {:#}", anyhow::Error::from(error)),
    }
    println!("done");
    Ok(())
}

async fn abort(part: &Part, times: u32) -> anyhow::Result<()> {
    let changeover = builder(part)?.connect().await?;
    let mut chance = Chance::new(part.seed);
    for _ in 0..times {
        println!("aborted {:?}", changeover.abort("chaos").await?);
        tokio::time::sleep(Duration::from_micros(chance.below(20_000))).await;
    }
    println!("done");
    Ok(())
}
