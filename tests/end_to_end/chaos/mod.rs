//! The real thing against a checker: many processes append and publish while configurations are replayed in parallel, activated,
//! aborted and taken back, replays are shared, started over and discarded, retired versions are followed and pruned; processes are
//! killed, and frozen for longer than an activation. Afterwards the log, the journals of the writers and every row must agree. Each
//! way in which an activation or a replay may go well or wrong takes place at least once in each run.
//!
//! `CHANGEOVER_CHAOS_SEED` repeats the choices of a run (not the timing, which is the machine's), `CHANGEOVER_CHAOS_SECONDS`
//! makes it longer.

mod done;
mod faults;
mod found;
mod replays;
mod stage;
mod story;
mod verdict;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use changeover_testkit::{Cluster, Database};

use self::stage::Stage;
pub(crate) use self::story::Chance;

pub(crate) fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Of the choices of a run: from the environment, or from the clock.
pub(crate) fn seed() -> u64 {
    let clock = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros());
    from_environment("CHANGEOVER_CHAOS_SEED", u64::try_from(clock % 1_000_000).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_processes_write_is_there_once_whatever_is_killed_frozen_activated_or_aborted() {
    let seed = seed();
    let seconds = from_environment("CHANGEOVER_CHAOS_SECONDS", 16);
    println!("CHANGEOVER_CHAOS_SEED={seed} CHANGEOVER_CHAOS_SECONDS={seconds}");
    // Writers that append twice in one transaction run into each other. A second for each deadlock would be most of the run.
    let cluster = Cluster::builder().setting("deadlock_timeout", "20ms").start().expect("a server");
    let database = Database::fresh_on(&cluster).await;
    let mut chance = Chance::new(seed);
    let stage = Stage::set(&database, false, &mut chance).await;
    let until = Instant::now() + Duration::from_secs(seconds);
    let [upgrades, faults, replays] = std::array::from_fn(|_| Chance::new(chance.next()));
    let over = AtomicBool::new(false);
    let acts = async {
        stage.act(until, upgrades).await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(acts, stage.replay(&over, replays), stage.disturb(&over, faults), stage.watch(&over));
    stage.complete(3, true, Chance::new(chance.next())).await;
    stage.settle().await;
    let done = stage.done().await;
    verdict::check(&database, &stage.journals(), seed, &done).await;
    assert_eq!(done.missing(), [""; 0], "something never happened: {done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_server_that_is_killed() {
    let seed = seed();
    println!("CHANGEOVER_CHAOS_SEED={seed}");
    let cluster = Cluster::builder().durable().setting("deadlock_timeout", "20ms").start().expect("a server");
    let database = Database::fresh_on(&cluster).await;
    let mut chance = Chance::new(seed);
    let stage = Stage::set(&database, true, &mut chance).await;
    for _ in 0..2 {
        let until = Instant::now() + Duration::from_millis(1_500 + chance.below(1_000));
        let [upgrades, replays] = std::array::from_fn(|_| Chance::new(chance.next()));
        let over = AtomicBool::new(false);
        let killed = async {
            tokio::time::sleep_until(until.into()).await;
            cluster.kill_9().expect("the server is killed");
            over.store(true, Ordering::Relaxed);
            cluster.restart().expect("the server comes back");
        };
        tokio::join!(stage.act_until(until, upgrades), stage.replay(&over, replays), killed);
    }
    stage.complete(2, false, Chance::new(chance.next())).await;
    stage.settle().await;
    verdict::check(&database, &stage.journals(), seed, &stage.done().await).await;
}
