//! How long after a commit the row of a background projector is there for everybody to see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use changeover::deadpool_postgres::Pool;
use changeover::tokio_postgres::{Client, Config};
use changeover::{Changeover, Expected, Position, ReadyState};
use changeover_testkit::Database;
use futures_util::FutureExt as _;
use serde_json::json;

use crate::bare;
use crate::domain::{background, new_stream, order};
use crate::measure::{Effort, Samples, Variant, in_turn, ms, open_loop};
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, client, instance, migrated};

const PER_SECOND: u32 = 500;

/// The group `latency`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let database = server.database().await;
    let changeover = instance(database.config(), background()).await?;
    let running = changeover.start();
    active(&changeover).await?;
    place(&database, effort, report, "same instance", &changeover, [3.0, 20.0]).await?;
    running.stop().await;

    let database = server.database().await;
    let publishing = instance(database.config(), background()).await?;
    let publishing_running = publishing.start();
    active(&publishing).await?;
    let role = Role::that_cannot_publish(&database).await?;
    let appending = migrated(role.config.clone(), background()).await?;
    let appending_running = appending.start();
    active(&appending).await?;
    place(&database, effort, report, "another instance", &appending, [5.0, 25.0]).await?;
    appending_running.stop().await;
    publishing_running.stop().await;
    drop(appending);
    role.remove().await
}

async fn active(changeover: &Changeover) -> Result<()> {
    let mut readiness = changeover.watch_readiness();
    let active = readiness.wait_for(|readiness| readiness.state == ReadyState::Active);
    tokio::time::timeout(Duration::from_secs(10), active)
        .await
        .context("an instance does not become active")??;
    Ok(())
}

/// Two percentiles of one stretch, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Percentiles {
    p50: f64,
    p99: f64,
}

impl Percentiles {
    fn of(latencies: Vec<f64>) -> Self {
        let latencies = Samples::new(latencies);
        Self { p50: latencies.percentile(0.5), p99: latencies.percentile(0.99) }
    }
}

async fn place(
    database: &Database,
    effort: Effort,
    report: &mut Report,
    publisher: &str,
    appending: &Changeover,
    goals: [f64; 2],
) -> Result<()> {
    let config = database.config();
    bare::create(&config).await?;
    let pool = bare::pool(&config, 16)?;
    client(&config).await?.batch_execute("CREATE TABLE elsewhere (n integer)").await?;
    let [quiet, held, raw] = in_turn(
        effort.stretches,
        [
            visible(&config, appending, effort, false),
            visible(&config, appending, effort, true),
            raw_commits(&pool, effort),
        ],
    )
    .await?;
    for (percentile, goal) in ["p50", "p99"].into_iter().zip(goals) {
        let of = |stretches: &[Percentiles]| -> Vec<f64> {
            stretches.iter().map(|both| if percentile == "p50" { both.p50 } else { both.p99 }).collect()
        };
        let (quiet, held, raw) = (of(&quiet), of(&held), of(&raw));
        let params = |writer: &str| {
            json!({"percentile": percentile, "published_by": publisher, "appends_per_second": PER_SECOND,
                   "elsewhere": writer})
        };
        let (middle, spread) = (Samples::new(quiet.clone()).median(), Samples::new(quiet.clone()).spread());
        report.add(Figure::new(
            "latency",
            params("nothing, beside one raw commit"),
            (middle, "ms"),
            Some(Samples::new(raw).median()),
            spread,
            Goal::AtMost(goal),
        ))?;
        report.add(Figure::compared(
            "latency_idle_writer",
            params("an idle writing transaction, beside none"),
            "ms",
            (&held, &quiet),
            Goal::RatioAtMost(1.2),
        ))?;
    }
    Ok(())
}

/// Stretches of appends, each followed until its row is there.
fn visible<'v>(
    config: &'v Config,
    appending: &'v Changeover,
    effort: Effort,
    idle_writer: bool,
) -> Variant<'v, Percentiles> {
    Box::new(move || {
        async move {
            let writer = if idle_writer { Some(IdleWriter::begin(config).await?) } else { None };
            let observer = Observer::start(config.clone());
            let appending = appending.clone();
            let appends = open_loop(PER_SECOND, effort.stretch, move || {
                let appending = appending.clone();
                async move {
                    let (stream, events) = (new_stream(), order(1));
                    let appended = appending.append(&stream, Expected::NoStream, &events).await?;
                    let acknowledged = Instant::now();
                    Ok((
                        acknowledged,
                        appended.last().context("BUG: an append of one event gave no position")?,
                    ))
                }
            })
            .await?;
            let newest =
                appends.iter().map(|(_, position)| *position).max().context("nothing was appended")?;
            caught_up(config, newest).await?;
            let seen = observer.stop()?;
            if let Some(writer) = writer {
                writer.end().await?;
            }
            let latencies = appends.iter().map(|(acknowledged, position)| {
                let at = seen.partition_point(|(_, reached)| reached < position);
                let (visible, _) = seen.get(at).context("BUG: the observer stopped too early")?;
                // The publisher may have been there before the client heard of its own commit.
                Ok(ms(visible.saturating_duration_since(*acknowledged)))
            });
            Ok(Percentiles::of(latencies.collect::<Result<_>>()?))
        }
        .boxed()
    })
}

const CHECKPOINT: &str =
    "SELECT position FROM changeover.checkpoints WHERE projector = 'orders' AND major = 1";

/// Waits until the observer must have seen it too.
async fn caught_up(config: &Config, newest: Position) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    let client = client(config).await?;
    let started = Instant::now();
    while client.query_one(CHECKPOINT, &[]).await?.get::<_, Position>(0) < newest {
        anyhow::ensure!(started.elapsed() < LIMIT, "orders did not get to position {newest} in {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One more look of the observer's, at least.
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

/// Reads the checkpoint over and over and notes when it moved. The checkpoint is committed together with the rows.
///
/// On a thread of its own: a timer of the runtime is good for whole milliseconds only, and the load must not hold it up.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Vec<(Instant, Position)>>>,
}

impl Observer {
    const PAUSE: Duration = Duration::from_micros(150);

    fn start(config: Config) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let client = runtime.block_on(client(&config))?;
            let statement = runtime.block_on(client.prepare(CHECKPOINT))?;
            let mut seen: Vec<(Instant, Position)> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let row = runtime.block_on(client.query_opt(&statement, &[]))?;
                let now = Instant::now();
                let reached = row.map_or(Position::START, |row| row.get(0));
                if seen.last().is_none_or(|(_, before)| reached > *before) {
                    seen.push((now, reached));
                }
                thread::sleep(Self::PAUSE);
            }
            Ok(seen)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<Vec<(Instant, Position)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("BUG: the observer panicked"))?
    }
}

/// A transaction that wrote to a table of somebody else's, and idles.
struct IdleWriter(Client);

impl IdleWriter {
    async fn begin(config: &Config) -> Result<Self> {
        let client = client(config).await?;
        client.batch_execute("BEGIN; INSERT INTO elsewhere VALUES (1)").await?;
        Ok(Self(client))
    }

    async fn end(self) -> Result<()> {
        Ok(self.0.batch_execute("ROLLBACK").await?)
    }
}

/// Stretches of commits of one row each, at the same pace: what a row costs that nobody has to carry anywhere.
fn raw_commits(pool: &Pool, effort: Effort) -> Variant<'_, Percentiles> {
    Box::new(move || {
        async move {
            let commits = open_loop(PER_SECOND, effort.stretch, || {
                let pool = pool.clone();
                async move {
                    let started = Instant::now();
                    bare::insert_order(&pool, &new_stream()).await?;
                    Ok(ms(started.elapsed()))
                }
            });
            Ok(Percentiles::of(commits.await?))
        }
        .boxed()
    })
}

/// A role that may append and not publish, so that another instance has to.
///
/// An instance that appends publishes too, and is nearly always the first to do so. One that may not leaves it to the
/// others, which hear of the append by the signals between processes and by nothing else.
struct Role {
    name: String,
    config: Config,
    admin: Config,
}

impl Role {
    async fn that_cannot_publish(database: &Database) -> Result<Self> {
        let (admin, name) = (database.config(), format!("appends_to_{}", database.name()));
        let grants = format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{name}';
             GRANT USAGE ON SCHEMA changeover TO {name};
             GRANT SELECT ON ALL TABLES IN SCHEMA changeover TO {name};
             GRANT SELECT ON ALL SEQUENCES IN SCHEMA changeover TO {name};
             GRANT USAGE ON SEQUENCE changeover.event_position TO {name};
             GRANT INSERT ON changeover.events TO {name};
             GRANT INSERT, UPDATE, DELETE ON changeover.instances TO {name}"
        );
        client(&admin).await?.batch_execute(&grants).await?;
        let mut config = admin.clone();
        config.user(&name).password(&name);
        Ok(Self { name, config, admin })
    }

    async fn remove(self) -> Result<()> {
        let Self { name, admin, .. } = self;
        Ok(client(&admin).await?.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await?)
    }
}
