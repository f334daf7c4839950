//! The demo: an upgrade from release 1 to release 2 under load, on a real PostgreSQL, with real processes.
//!
//! What a deployment does is done as a deployment does it: instances are processes that are started and told to end, and
//! `migrate` and `activate-configuration` are commands of the same binary. Only the load and the checking are done in here.

mod balancer;
pub mod check;
mod dice;
mod fill;
pub mod ledger;
mod load;
pub mod report;
mod timeline;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use changeover::{Changeover, Configuration, Position, ProjectorName};
use changeover_testkit::{Cluster, Database, Process};
use clap::Args;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use self::balancer::{Balancer, SLICE};
use self::ledger::Ledger;
use self::load::Load;
use self::report::{Phase, Report, Slice};
use self::timeline::Timeline;
use crate::Release;

/// What the demo is told.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many events the log holds at least before anything is projected
    #[arg(long, default_value_t = 110_000)]
    pub events: u64,
    /// How many requests are sent each second
    #[arg(long, default_value_t = 400)]
    pub rate: u32,
    /// How many seconds each release serves by itself
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Where the figures go
    #[arg(long, default_value = "target/demo.json")]
    pub report: PathBuf,
    /// The shop's binary; this one unless given
    #[arg(long, hide = true)]
    pub shop: Option<PathBuf>,
    /// Print nothing
    #[arg(long, hide = true)]
    pub silent: bool,
}

/// Runs the demo, prints its report and writes it down. Ends with 1 if the promise was broken.
pub async fn main(arguments: &Arguments) -> ExitCode {
    let ran = tokio::select! {
        ran = run(arguments) => ran,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match ran {
        Ok(report) if report.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo broke off: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const PATIENCE: Duration = Duration::from_mins(2);

/// Runs the demo.
///
/// # Errors
///
/// It could not be carried through. A broken promise is no error: the report says so.
pub async fn run(arguments: &Arguments) -> Result<Report> {
    let timeline = Timeline::start(arguments.silent);
    let mut phases = Phases::start();

    let server = Server::start(&timeline).await?;
    let shop = Shop { binary: binary(arguments)?, url: server.database.url(), timeline };
    phases.end("start PostgreSQL");

    shop.command(Release::One, &["migrate"]).await?;
    let ledger = Arc::new(Ledger::default());
    // A process without projectors: it appends, and derives nothing.
    let past = Changeover::builder(server.database.config()).application("shop-past", "0.9.0");
    let past = past.configuration(Configuration::new()).connect().await?;
    fill::fill(&past, &ledger, arguments.events).await?;
    let in_log = ledger.entries().iter().map(|entry| entry.positions.len() as u64).sum();
    let orders = ledger.entries().len();
    timeline.say("log", &format!("{in_log} events of {orders} orders, appended through the library"));
    phases.end("fill the log");

    let activated = shop.activate(Release::One, 0).await?;
    timeline.say("release 1", &format!("active for the first time: {}", steps(&activated)));
    phases.end("activate release 1");

    let balancer = Arc::new(Balancer::new(timeline));
    let polling = Polling(tokio::spawn(balancer.clone().poll()));
    let ones = shop.serve_two(Release::One, &balancer).await?;
    balancer.until(1, "active", PATIENCE).await?;
    timeline.say("load", &format!("begins: {} requests/s, writes and reads", arguments.rate));
    let started = Instant::now();
    let (load, customers) = Load::start(balancer.clone(), ledger.clone(), timeline, arguments.rate);
    let watching = Polling(tokio::spawn(watch(timeline, balancer.clone(), load.clone())));
    sleep(Duration::from_secs_f64(arguments.seconds)).await;
    phases.end("release 1 serves");

    let twos = shop.serve_two(Release::Two, &balancer).await?;
    balancer.until(2, "waiting", PATIENCE).await?;
    phases.end("start release 2");

    let activated = shop.activate(Release::Two, 2).await?;
    let activation_pause_ms = activated["pause_ms"].as_f64().context("no pause_ms from the activation")?;
    let switched = format!("active: {}; writers paused for {activation_pause_ms:.1} ms", steps(&activated));
    timeline.say("release 2", &switched);
    balancer.until(1, "retired", PATIENCE).await?;
    balancer.until(2, "active", PATIENCE).await?;
    phases.end("replay and activate release 2");

    balancer.remove(1);
    end(&timeline, "release 1", ones).await?;
    phases.end("stop release 1");
    sleep(Duration::from_secs_f64(arguments.seconds)).await;
    load.stop(customers).await?;
    let loaded = started.elapsed();
    drop(watching);
    timeline.say("load", &format!("ends: {} requests in {:.1} s", load.requests(), loaded.as_secs_f64()));
    phases.end("release 2 serves");

    let client = server.database.client().await;
    wait_until_projected(&server, &ledger).await;
    let findings = check::check(&client, &ledger.entries(), load.failed() > 0).await?;
    let (from, to) = pause(&client).await?;
    let write_pause_ms = ledger.longest_gap(from, to);
    timeline.say("checker", "has compared every row with its own fold of the log");
    phases.end("check");

    drop(polling);
    end(&timeline, "release 2", twos).await?;
    phases.end("stop release 2");

    let report = Report {
        requests: load.requests(),
        failed: load.failed(),
        retried: balancer.retried() as u64,
        longest_wait_ms: balancer.longest_wait_ms(),
        stale_reads: load.stale_reads(),
        requests_per_sec: per_sec(load.requests(), loaded),
        findings,
        write_pause_ms,
        activation_pause_ms,
        events_in_log_before_replay: in_log,
        releases: slices(&balancer),
        phases: phases.done,
        duration_secs: timeline.elapsed().as_secs_f64(),
        failures: load.failures(),
    };
    report.write(&arguments.report)?;
    if !arguments.silent {
        report.print();
        anstream::println!(
            "{:.1} s in all; the figures are in {}",
            report.duration_secs,
            arguments.report.display()
        );
    }
    Ok(report)
}

/// A server and an empty database on it.
struct Server {
    /// Before its server, which it is on.
    database: Database,
    _cluster: Option<Cluster>,
}

impl Server {
    async fn start(timeline: &Timeline) -> Result<Self> {
        if std::env::var_os("DATABASE_URL").is_some() {
            let database = Database::fresh().await;
            timeline.say("postgresql", &format!("the server of DATABASE_URL, database {}", database.name()));
            return Ok(Self { database, _cluster: None });
        }
        // Starting a server blocks for half a second.
        let cluster = tokio::task::spawn_blocking(|| {
            Cluster::builder()
                .durable()
                .setting("shared_buffers", "256MB")
                .setting("max_wal_size", "2GB")
                .start()
        });
        let cluster = cluster.await??;
        let database = Database::fresh_on(&cluster).await;
        timeline.say("postgresql", &format!("a private server on port {}, durable", cluster.port()));
        Ok(Self { database, _cluster: Some(cluster) })
    }
}

/// The shop's binary, and the database that it works on.
struct Shop {
    binary: PathBuf,
    url: String,
    timeline: Timeline,
}

fn binary(arguments: &Arguments) -> Result<PathBuf> {
    arguments.shop.clone().map_or_else(|| std::env::current_exe().context("where is this binary?"), Ok)
}

fn number(release: Release) -> usize {
    match release {
        Release::One => 1,
        Release::Two => 2,
    }
}

impl Shop {
    /// Starts two processes of a release and puts them behind the balancer.
    async fn serve_two(&self, release: Release, balancer: &Balancer) -> Result<Vec<Process>> {
        let mut processes = Vec::new();
        for letter in ["a", "b"] {
            let number = number(release);
            let mut serve = std::process::Command::new(&self.binary);
            serve.env("DATABASE_URL", &self.url);
            serve.args(["serve", "--listen", "127.0.0.1:0", "--release", &number.to_string()]);
            let process = Process::spawn(serve)?;
            let line = process.wait_for_line("listening on", PATIENCE).await?;
            let address = line.trim_start_matches("listening on").trim();
            let name = format!("release {number}{letter}");
            self.timeline.say(&name, &format!("process {} {line}", process.pid()));
            balancer.add(number, &name, address);
            processes.push(process);
        }
        Ok(processes)
    }

    async fn activate(&self, release: Release, instances: usize) -> Result<Value> {
        let instances = instances.to_string();
        self.timeline.say("pipeline", &format!("activate-configuration of release {}", number(release)));
        let arguments =
            ["activate-configuration", "--wait-for-instances", &instances, "--requested-by", "make demo"];
        self.command(release, &arguments).await
    }

    /// Runs a command as a pipeline would. What it says on the way goes into the timeline.
    async fn command(&self, release: Release, arguments: &[&str]) -> Result<Value> {
        let release = number(release).to_string();
        let mut command = Command::new(&self.binary);
        command.env("DATABASE_URL", &self.url).args(["--json", "--release", &release]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?;
        let mut stdout = child.stdout.take().context("BUG: no standard output")?;
        let mut said = BufReader::new(child.stderr.take().context("BUG: no standard error")?).lines();
        let relay = async {
            while let Some(line) = said.next_line().await? {
                self.timeline.say("pipeline", &line);
            }
            anyhow::Ok(())
        };
        let mut json = String::new();
        let (relayed, read, status) = tokio::join!(relay, stdout.read_to_string(&mut json), child.wait());
        relayed?;
        read?;
        let status = status?;
        ensure!(status.success(), "{} of release {release} ended with {status}: {json}", arguments[0]);
        serde_json::from_str(&json).with_context(|| format!("{} printed no JSON: {json}", arguments[0]))
    }
}

/// What an activation did, in words.
fn steps(activated: &Value) -> String {
    let steps = activated["plan"]["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let words = steps.iter().map(|step| {
        let word = |field: &str| step[field].as_str().unwrap_or("?").to_owned();
        format!("{} {} ({})", word("projector"), word("version"), word("action"))
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Tells processes to end, as an orchestrator does, and waits until they have.
async fn end(timeline: &Timeline, who: &str, processes: Vec<Process>) -> Result<()> {
    for process in &processes {
        process.terminate()?;
    }
    for process in processes {
        let status = process.wait(PATIENCE).await?;
        if !status.success() {
            bail!("{who} ended with {status}: {}", process.output());
        }
    }
    timeline.say(who, "stopped: both processes ended by themselves when told to");
    Ok(())
}

/// A task that ends with this value.
struct Polling(JoinHandle<()>);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(timeline: Timeline, balancer: Arc<Balancer>, load: Arc<Load>) {
    let mut before = [0, 0];
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.tick().await;
    loop {
        every.tick().await;
        let now = balancer.slices().iter().fold([0, 0], |sum, slice| [sum[0] + slice[0], sum[1] + slice[1]]);
        timeline.traffic([now[0] - before[0], now[1] - before[1]], load.failed());
        before = now;
    }
}

/// Background projectors may be a moment behind. If they do not get there, the checker says what is missing.
async fn wait_until_projected(server: &Server, ledger: &Ledger) {
    let last = ledger.entries().iter().flat_map(|entry| entry.positions.clone()).max().unwrap_or_default();
    let Ok(configuration) = Release::Two.configuration() else { return };
    let builder = Changeover::builder(server.database.config()).configuration(configuration);
    let Ok(reader) = builder.application("shop-checker", "2.0.0").connect().await else { return };
    let mut waits = JoinSet::new();
    for name in ["order_summary", "bestsellers", "daily_revenue"] {
        let (reader, name): (_, ProjectorName) = (reader.clone(), name.parse().expect("BUG: it is a name"));
        waits.spawn(async move { reader.wait_for(&name, Position::new(last), PATIENCE).await });
    }
    while let Some(waited) = waits.join_next().await {
        if let Ok(Err(error)) = waited {
            tracing::warn!("{error}");
        }
    }
}

/// When the last activation paused the writers, by our clock.
async fn pause(client: &tokio_postgres::Client) -> Result<(Instant, Instant)> {
    let sql = "SELECT activating_at, ended_at, clock_timestamp() FROM changeover.activations
        WHERE outcome = 'activated' ORDER BY id DESC LIMIT 1";
    let row = client.query_one(sql, &[]).await.context("cannot read when writers were paused")?;
    let (now, there): (Instant, SystemTime) = (Instant::now(), row.get(2));
    let ours = |then: SystemTime| {
        now.checked_sub(there.duration_since(then).unwrap_or_default())
            .context("paused before this machine started")
    };
    // Writers hear of the end a moment later.
    Ok((ours(row.get(0))?, ours(row.get(1))? + SLICE))
}

fn slices(balancer: &Balancer) -> Vec<Slice> {
    let width = u64::try_from(SLICE.as_millis()).unwrap_or_default();
    let slices = balancer.slices().into_iter().zip(0_u64..);
    slices.map(|([release_1, release_2], nth)| Slice { at_ms: nth * width, release_1, release_2 }).collect()
}

fn per_sec(requests: u64, during: Duration) -> f64 {
    f64::from(u32::try_from(requests).unwrap_or(u32::MAX)) / during.as_secs_f64()
}

struct Phases {
    done: Vec<Phase>,
    since: Instant,
}

impl Phases {
    fn start() -> Self {
        Self { done: Vec::new(), since: Instant::now() }
    }

    fn end(&mut self, name: &'static str) {
        self.done.push(Phase { name, secs: self.since.elapsed().as_secs_f64() });
        self.since = Instant::now();
    }
}
