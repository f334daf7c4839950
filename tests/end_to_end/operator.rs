//! A process of its own for whoever is to be killed or frozen: this very binary, started again for one "test" that does
//! what an order in its environment says.

use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use changeover::{
    ActivateOptions, ActivationProgress, AdoptOptions, Changeover, Pace, Position, ReplayProgress,
    UpgradeProgress,
};
use changeover_testkit::{Database, Process};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::accounts::{accounts, at_once, slowly, with};
use crate::properties::{Paced, described};
use crate::releases::{SOON, phase, release, replay_one};

const ORDER: &str = "CHANGEOVER_TEST_ORDER";

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    url: String,
    release: String,
    task: Task,
}

#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// Serves until SIGTERM.
    Serve,
    /// Activates, and stands still once at a phase.
    Activate { stop_at: String, pause_limit: Duration },
    /// Adopts the tables of a projector in `public`, and stops itself once at a phase.
    Adopt { projector: String, position: i64, stop_at: String },
    /// Upgrades, and stands still where a step begins.
    Upgrade { stop_at: String },
    /// Replays a projector, and stands still once after so many events.
    Replay { projector: String, stop_after: u64 },
    /// Replays accounts in parallel with so much memory, once it was let, and stays there for whoever wants to know how much it took.
    ReplayWithin { memory_bytes: usize },
    /// Replays accounts in parallel with memory for all of them, and stops reading after so many events.
    ReplayRarely { checkpoint_every: Duration, stop_after: u64 },
    /// Replays the projector that the release is named after in parallel, everything as small as it gets, and stops itself once
    /// after so many events.
    ReplayInBulk { shards: u16, events_per_sec: u32, stop_after: u64 },
    /// Replays described projectors with so many tables, and says when it has read so many events.
    ReplayDescribed { tables: usize, pace: Paced, say_after: u64 },
}

/// The process.
pub(crate) struct Operator(Process);

impl Operator {
    /// An instance that serves.
    pub(crate) async fn serve(database: &Database, release: &str) -> Self {
        let serving = Self::start(database, release, Task::Serve);
        serving.0.wait_for_line("serving", SOON).await.unwrap();
        serving
    }

    /// An operator who activates, and stands still at a phase.
    pub(crate) async fn activate(
        database: &Database,
        release: &str,
        stop_at: &str,
        pause_limit: Duration,
    ) -> Self {
        let activating = Self::start_activating(database, release, stop_at, pause_limit);
        activating.stopped().await;
        activating
    }

    /// The same, without waiting for the phase.
    pub(crate) fn start_activating(
        database: &Database,
        release: &str,
        stop_at: &str,
        pause_limit: Duration,
    ) -> Self {
        Self::start(database, release, Task::Activate { stop_at: stop_at.to_owned(), pause_limit })
    }

    /// An operator who upgrades, and stands still where a step begins.
    pub(crate) async fn upgrade(database: &Database, release: &str, stop_at: &str) -> Self {
        let upgrading = Self::start(database, release, Task::Upgrade { stop_at: stop_at.to_owned() });
        upgrading.stopped().await;
        upgrading
    }

    /// An operator who adopts tables in `public`, and stands still at a phase of the activation that follows.
    pub(crate) async fn adopt(database: &Database, release: &str, position: i64, stop_at: &str) -> Self {
        let projector = "orders".to_owned();
        let task = Task::Adopt { projector, position, stop_at: stop_at.to_owned() };
        let adopting = Self::start(database, release, task);
        adopting.stopped().await;
        adopting
    }

    /// An operator who replays a projector, and stands still after so many events.
    pub(crate) async fn replay(database: &Database, release: &str, projector: &str, stop_after: u64) -> Self {
        let task = Task::Replay { projector: projector.to_owned(), stop_after };
        let replaying = Self::start(database, release, task);
        replaying.stopped().await;
        replaying
    }

    /// An operator who replays the projector that the release is named after in parallel, slowly.
    pub(crate) fn replay_in_bulk(
        database: &Database,
        release: &str,
        shards: u16,
        events_per_sec: u32,
        stop_after: u64,
    ) -> Self {
        Self::start(database, release, Task::ReplayInBulk { shards, events_per_sec, stop_after })
    }

    /// An operator who replays accounts with so much memory. Returns the most that its process took up before, and in all.
    pub(crate) async fn replay_within(
        database: &Database,
        release: &str,
        memory_bytes: usize,
    ) -> (usize, usize) {
        let replaying = Self::start(database, release, Task::ReplayWithin { memory_bytes });
        replaying.stopped().await;
        let before = replaying.most_memory();
        let said = replaying.thaw().await;
        assert!(said.starts_with("end: done"), "{said}");
        (before, replaying.most_memory())
    }

    /// The most memory that its process ever took up, as the kernel counts it.
    fn most_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        most.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// An operator who replays accounts, writes so seldom, and reads no more after so many events: up to which position it tells.
    pub(crate) async fn replay_rarely(
        database: &Database,
        release: &str,
        checkpoint_every: Duration,
        stop_after: u64,
    ) -> (Self, i64) {
        let replaying = Self::start(database, release, Task::ReplayRarely { checkpoint_every, stop_after });
        let reached = replaying.0.wait_for_line("reached ", SOON).await.unwrap();
        let reached = reached.trim_start_matches("reached ").parse().unwrap();
        (replaying, reached)
    }

    /// An operator who replays the sixth version of described projectors.
    pub(crate) fn replay_described(database: &Database, tables: usize, pace: &Paced, say_after: u64) -> Self {
        let task = Task::ReplayDescribed { tables, pace: pace.clone(), say_after };
        Self::start(database, "described 6", task)
    }

    /// Waits until it has read as much of the log as it was to read, or found that there is nothing left.
    pub(crate) async fn under_way_or_done(&self) {
        tokio::select! {
            Ok(_) = self.0.wait_for_line("under way", SOON) => {}
            said = self.0.wait_for_line("end: ", SOON) => {
                let said = said.unwrap();
                assert!(said.starts_with("end: done"), "{said}");
            }
        }
    }

    fn start(database: &Database, release: &str, task: Task) -> Self {
        let order = Order { url: database.url(), release: release.to_owned(), task };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "operator::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, serde_json::to_string(&order).unwrap());
        Self(Process::spawn(command).unwrap())
    }

    /// Waits until it stands still.
    pub(crate) async fn stopped(&self) {
        self.0.wait_for_line("stopping here", SOON).await.unwrap();
        self.0.freeze().unwrap();
    }

    /// Lets it go on, and returns what it says at its end: `done ..` or `refused: ..`.
    pub(crate) async fn thaw(&self) -> String {
        self.0.thaw().unwrap();
        self.end().await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    pub(crate) fn freeze(&self) {
        self.0.freeze().unwrap();
    }

    pub(crate) fn go_on(&self) {
        self.0.thaw().unwrap();
    }

    /// What it says at its end.
    pub(crate) async fn end(&self) -> String {
        self.0.wait_for_line("end: ", SOON).await.unwrap()
    }

    pub(crate) fn kill_9(&self) {
        self.0.kill_9().unwrap();
    }

    /// Asks it to stop, and waits until it did.
    pub(crate) async fn terminate(&self) {
        self.0.terminate().unwrap();
        assert!(self.0.wait(SOON).await.unwrap().success(), "{}", self.0.output());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: the process that other tests start"]
async fn child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let Order { url, release: name, task } = serde_json::from_str(&order).unwrap();
    let configuration = match &task {
        Task::ReplayDescribed { tables, .. } => described(*tables, 6),
        _ => release(&name),
    };
    let changeover = Changeover::builder(url.parse().unwrap())
        .application("operator", &name)
        .address("http://10.0.0.7:8080")
        .configuration(configuration)
        .connect()
        .await
        .unwrap();
    match task {
        Task::Serve => serve(&changeover).await,
        Task::Activate { stop_at, pause_limit } => {
            let options = ActivateOptions {
                requested_by: "the child".to_owned(),
                pause_limit,
                drain_timeout: pause_limit,
                ..ActivateOptions::default()
            };
            let stop = Once::new();
            let on_progress = |progress: ActivationProgress| stop.here(phase(&progress) == stop_at);
            end(changeover.activate(&options, &on_progress).await);
        }
        Task::Adopt { projector, position, stop_at } => {
            let options = AdoptOptions {
                from_schema: Some("public".to_owned()),
                ..AdoptOptions::at(Position::new(position))
            };
            let (stop, projector) = (Once::new(), projector.parse().unwrap());
            let on_progress = |progress: ActivationProgress| stop.here(phase(&progress) == stop_at);
            end(changeover.adopt(&projector, &options, &on_progress).await);
        }
        Task::Upgrade { stop_at } => {
            let stop = Once::new();
            let on_progress = |progress: UpgradeProgress| {
                stop.here(matches!(progress, UpgradeProgress::Step(begun) if begun.as_str() == stop_at));
            };
            end(changeover.upgrade(&crate::whole_upgrade::options(), &on_progress).await);
        }
        Task::Replay { projector, stop_after } => {
            let (stop, projector) = (Once::new(), projector.parse().unwrap());
            let on_progress = |progress: &ReplayProgress| stop.here(progress.events >= stop_after);
            end(replay_one(&changeover, &projector, &on_progress).await);
        }
        Task::ReplayWithin { memory_bytes } => {
            Once::new().here(true);
            let options = with(Pace { memory_bytes, ..at_once() });
            end(changeover.replay(&[accounts()], &options, &|_| {}).await);
            std::future::pending::<()>().await;
        }
        Task::ReplayRarely { checkpoint_every, stop_after } => {
            let stop = Once::new();
            let on_progress = |progress: &ReplayProgress| {
                if progress.events >= stop_after {
                    println!("\nreached {}", progress.position);
                    stop.here(true);
                }
            };
            let pace = Pace { memory_bytes: 16 << 20, checkpoint_every, ..slowly(3, 20_000) };
            end(changeover.replay(&[accounts()], &with(pace), &on_progress).await);
        }
        Task::ReplayDescribed { pace, say_after, .. } => {
            if say_after == 0 {
                println!("\nunder way");
            }
            let on_progress = |progress: &ReplayProgress| {
                if progress.events >= say_after {
                    println!("\nunder way");
                }
            };
            end(changeover.replay(&pace.who.names(), &pace.options(), &on_progress).await);
        }
        Task::ReplayInBulk { shards, events_per_sec, stop_after } => {
            let stop = Once::new();
            let on_progress = |progress: &ReplayProgress| stop.here(progress.events >= stop_after);
            let options = with(slowly(shards, events_per_sec));
            let projector = name.split(' ').next().unwrap().parse().unwrap();
            end(changeover.replay(&[projector], &options, &on_progress).await);
        }
    }
}

async fn serve(changeover: &Changeover) {
    let mut term = signal(SignalKind::terminate()).unwrap();
    let running = changeover.start();
    println!("serving");
    term.recv().await.unwrap();
    running.stop().await;
}

fn end<T: std::fmt::Debug>(outcome: Result<T, impl std::error::Error>) {
    match outcome {
        Ok(done) => println!("\nend: done {done:?}"),
        Err(refused) => println!("\nend: refused: {refused:?}"),
    }
}

/// Holds whoever comes by, once, until the process is let go on after it was frozen.
///
/// Not by a signal to itself: the kernel may hand that to any of its threads, and until that one has got a processor the one
/// that is to stand still goes on, as far as through the switch.
struct Once(Mutex<Option<Signal>>);

impl Once {
    fn new() -> Self {
        /// SIGCONT: what thawing sends.
        const CONT: i32 = 18;
        Self(Mutex::new(Some(signal(SignalKind::from_raw(CONT)).unwrap())))
    }

    fn here(&self, here: bool) {
        let thawed = if here { self.0.lock().unwrap().take() } else { None };
        if let Some(mut thawed) = thawed {
            println!("\nstopping here");
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(thawed.recv()))
                .unwrap();
        }
    }
}
