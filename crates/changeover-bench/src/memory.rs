//! What a replay takes up in memory and how long it takes, as the log grows tenfold.
//!
//! Each replay runs in a process of its own, this very program, and is looked at from outside.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use changeover::{Configuration, Pace, ReplayOptions};
use changeover_testkit::{Database, Process};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::measure::{Effort, Samples, Variant, in_turn};
use crate::replay::Log;
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, migrated};
use crate::subjects::Orders;

/// Longer than any replay.
const PATIENCE: Duration = Duration::from_mins(30);

/// What the process says when it is through.
const REPLAYED: &str = "replayed in seconds: ";

/// What it may take up, in mebibytes, and what its process may come to.
const NARROW_MIB: usize = 256;
const PEAK_MIB: f64 = 400.0;

/// The second part of the group `replay`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let (small, large) = (server.database().await, server.database().await);
    let events = effort.large_log;
    let small = Subject::fill(small, events).await?;
    let large = Subject::fill(large, 10 * events).await?;
    let rounds = effort.rounds.min(3);

    let (small_ref, large_ref) = (&small, &large);
    let [large_ns, small_ns] = in_turn(
        rounds,
        [
            Box::new(move || large_ref.ns_per_event().boxed()) as Variant<'_, f64>,
            Box::new(move || small_ref.ns_per_event().boxed()),
        ],
    )
    .await?;
    let params = json!({"events": large.log.events, "beside": small.log.events});
    let goal = Goal::RatioAtMost(1.15);
    report.add(Figure::compared("replay_growth", params, "ns/event", (&large_ns, &small_ns), goal))?;

    let mut peaks = Vec::new();
    for _ in 0..rounds {
        peaks.push(large.replay(Some(NARROW_MIB)).await?.peak_mib);
    }
    // The worst of them counts.
    let (worst, spread) = (Samples::new(peaks.clone()).percentile(1.0), Samples::new(peaks).spread());
    let params = json!({"events": large.log.events, "rows": large.rows().await?, "memory": format!("{NARROW_MIB}MiB"),
                        "process": "one of its own, seen from outside"});
    report.add(Figure::new(
        "replay_peak_rss",
        params,
        (worst, "MiB"),
        None,
        spread,
        Goal::AtMost(PEAK_MIB),
    ))?;
    // The databases go when the server goes, which may be later than the disk can bear.
    for subject in [&small, &large] {
        subject.log.forget().await?;
        subject.log.admin.batch_execute("TRUNCATE changeover.events; CHECKPOINT").await?;
    }
    Ok(())
}

/// A log in a database of its own.
struct Subject {
    database: Database,
    log: Log,
}

/// What was seen of a replay.
struct Seen {
    secs: f64,
    peak_mib: f64,
}

impl Subject {
    async fn fill(database: Database, events: i64) -> Result<Self> {
        let log = Log::empty(&database, events).await?;
        log.fill().await?;
        Ok(Self { database, log })
    }

    #[allow(clippy::cast_precision_loss)]
    async fn ns_per_event(&self) -> Result<f64> {
        Ok(self.replay(None).await?.secs * 1e9 / self.log.events as f64)
    }

    /// A replay of everything in a process of its own.
    async fn replay(&self, memory_mib: Option<usize>) -> Result<Seen> {
        self.log.forget().await?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--replay-alone", &self.database.url()]);
        if let Some(memory_mib) = memory_mib {
            command.args(["--memory-mib", &memory_mib.to_string()]);
        }
        let replaying = Process::spawn(command)?;
        let said = replaying.wait_for_line(REPLAYED, PATIENCE).await?;
        // It waits there, so that it can be looked at.
        let seen =
            Seen { secs: said.trim_start_matches(REPLAYED).parse()?, peak_mib: peak_mib(replaying.pid())? };
        replaying.kill_9()?;
        Ok(seen)
    }

    async fn rows(&self) -> Result<i64> {
        Ok(self.log.admin.query_one("SELECT count(*) FROM orders_v1.orders", &[]).await?.get(0))
    }
}

/// The most memory that a process ever had.
fn peak_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// What the process does: replays, says how long that took, and waits to be killed.
pub(crate) async fn child(url: &str, memory_mib: Option<usize>) -> Result<()> {
    let configuration = Configuration::new().fold(Orders)?;
    let names: Vec<_> = configuration.versions().into_keys().collect();
    let changeover = migrated(url.parse()?, configuration).await?;
    let memory_bytes = memory_mib.map_or(Pace::default().memory_bytes, |mib| mib << 20);
    let pace = Pace { memory_bytes, ..Pace::default() };
    let options = ReplayOptions { requested_by: "bench".to_owned(), pace, ..ReplayOptions::default() };
    let started = Instant::now();
    changeover.replay(&names, &options, &|_| {}).await?;
    println!("{REPLAYED}{}", started.elapsed().as_secs_f64());
    std::future::pending().await
}
