//! A process of the chaos test: an instance of the application, or an operator. What it is to do comes as its one argument.

mod projectors;
#[path = "../story.rs"]
mod story;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use changeover::{
    ActivateOptions, ActivationProgress, Builder, Changeover, PruneOptions, Signals, WhenNothingIsActive,
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
                ..ActivateOptions::default()
            };
            operate(&part, &options, back, linger_paused_ms, linger_drained_ms).await
        }
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
