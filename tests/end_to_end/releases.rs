//! Releases of the tests' application by name, and who uses them: writers under load, and an activation that can be held
//! where it is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use changeover::semver::Version;
use changeover::tokio_postgres::Client;
use changeover::{
    ActivateError, ActivateOptions, Activated, ActivationProgress, AppendError, CaughtUp, Changeover,
    Configuration, Delivery, Expected, FoldProjector, ProjectorName, ReplayError, ReplayOptions, ReplayPhase,
    ReplayProgress, RollbackError,
};
use changeover_testkit::Database;
use tokio::task::JoinHandle;

use crate::accounts::Accounts;
use crate::orders::{
    InlineOrders1, InlineOrders2, Order, OrderEvent, Orders1, Orders1Minor, Orders1Patched, Orders2, Totals,
    placed, stream,
};
use crate::split::{BY_STREAM, Streams};

/// Replays one projector to the end of the log.
pub(crate) async fn replay_one(
    instance: &Changeover,
    projector: &ProjectorName,
    on_progress: &(dyn Fn(&ReplayProgress) + Send + Sync),
) -> Result<CaughtUp, ReplayError> {
    let mut done =
        instance.replay(std::slice::from_ref(projector), &ReplayOptions::default(), on_progress).await?;
    Ok(done.remove(0))
}

/// Long enough for anything that comes at all, also where the machine stands still for a while in between.
pub(crate) const SOON: Duration = Duration::from_mins(1);

macro_rules! more_orders {
    ($($name:ident $version:expr, $delivery:ident;)*) => {$(
        struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = "orders";
            const VERSION: Version = $version;
            const DELIVERY: Delivery = Delivery::$delivery;
            type Event = OrderEvent;
            type Tables = (Order,);
        }
    )*};
}

more_orders! {
    InlineOrders1Patched Version::new(1, 0, 1), Inline;
    InlineOrders1Minor Version::new(1, 1, 0), Inline;
    BackgroundOrders12 Version::new(1, 2, 0), Background;
    Orders3 Version::new(3, 0, 0), Background;
}

const FAN: [&str; 9] = ["fan_0", "fan_1", "fan_2", "fan_3", "fan_4", "fan_5", "fan_6", "fan_7", "fan_8"];

/// One of many projectors of the same events.
struct Fan<const N: usize, const MAJOR: u64, const INLINE: bool>;

impl<const N: usize, const MAJOR: u64, const INLINE: bool> FoldProjector for Fan<N, MAJOR, INLINE> {
    const NAME: &'static str = FAN[N];
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    const DELIVERY: Delivery = if INLINE { Delivery::Inline } else { Delivery::Background };
    type Event = OrderEvent;
    type Tables = (Order,);
}

struct Fan3Patched;

impl FoldProjector for Fan3Patched {
    const NAME: &'static str = FAN[3];
    const VERSION: Version = Version::new(1, 0, 1);
    type Event = OrderEvent;
    type Tables = (Order,);
}

fn fan<const MAJOR: u64>() -> Configuration {
    let some = Configuration::new()
        .fold(Fan::<0, MAJOR, true>)
        .and_then(|c| c.fold(Fan::<1, MAJOR, false>))
        .and_then(|c| c.fold(Fan::<2, MAJOR, true>))
        .and_then(|c| c.fold(Fan::<3, MAJOR, false>))
        .and_then(|c| c.fold(Fan::<4, MAJOR, false>));
    some.and_then(|c| c.fold(Fan::<5, MAJOR, false>))
        .and_then(|c| c.fold(Fan::<6, MAJOR, false>))
        .and_then(|c| c.fold(Fan::<7, MAJOR, false>))
        .and_then(|c| c.fold(Fan::<8, MAJOR, false>))
        .unwrap()
}

/// The configuration of a release: `orders` in a version, background unless it says inline, or something else by name.
pub(crate) fn release(name: &str) -> Configuration {
    let new = Configuration::new;
    match name {
        "none" => Ok(new()),
        "1.0.0" => new().fold(Orders1),
        "1.0.1" => new().fold(Orders1Patched),
        "1.1.0" => new().fold(Orders1Minor),
        "1.2.0" => new().fold(BackgroundOrders12),
        "2.0.0" => new().fold(Orders2),
        "3.0.0" => new().fold(Orders3),
        "inline 1.0.0" => new().fold(InlineOrders1),
        "inline 1.0.1" => new().fold(InlineOrders1Patched),
        "inline 1.1.0" => new().fold(InlineOrders1Minor),
        "inline 2.0.0" => new().fold(InlineOrders2),
        "totals" => new().sql(Totals),
        "1.0.0 totals" => new().fold(Orders1).and_then(|c| c.sql(Totals)),
        "2.0.0 totals" => new().fold(Orders2).and_then(|c| c.sql(Totals)),
        "inline 1.0.0 totals" => new().fold(InlineOrders1).and_then(|c| c.sql(Totals)),
        "fan 1" => Ok(fan::<1>()),
        "fan 2" => Ok(fan::<2>()),
        "pair 1 1" => new().fold(Fan::<1, 1, false>).and_then(|c| c.fold(Fan::<3, 1, false>)),
        "pair 2 1" => new().fold(Fan::<1, 2, false>).and_then(|c| c.fold(Fan::<3, 1, false>)),
        "pair 1 2" => new().fold(Fan::<1, 1, false>).and_then(|c| c.fold(Fan::<3, 2, false>)),
        "pair 1 1.0.1" => new().fold(Fan::<1, 1, false>).and_then(|c| c.fold(Fan3Patched)),
        "orders and fan_1" => new().fold(Orders1).and_then(|c| c.fold(Fan::<1, 1, false>)),
        "accounts 1" => new().fold(Accounts::<1>),
        "accounts 2" => new().fold(Accounts::<2>),
        "streams 2" => new().sql(Streams::<2, BY_STREAM>),
        other => panic!("no release {other}"),
    }
    .unwrap()
}

/// An instance of a release. It migrates first.
pub(crate) async fn instance_of(database: &Database, name: &str) -> Changeover {
    crate::orders::instance(database, release(name)).await
}

/// Which projector versions are active, in one statement.
pub(crate) async fn active(client: &Client) -> String {
    let sql = "SELECT coalesce(string_agg(projector || ' ' || version, ', ' ORDER BY projector), '')
               FROM changeover.projector_states WHERE state = 'active'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The outcome of the newest activation; none while it is open.
pub(crate) async fn newest_outcome(client: &Client) -> Option<String> {
    let sql = "SELECT outcome FROM changeover.activations ORDER BY id DESC LIMIT 1";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// How many rows of an `orders` table are not what the log says, computed by the database and not by our folds.
pub(crate) async fn wrong_rows(client: &Client, schema: &str) -> i64 {
    wrong_rows_up_to(client, schema, i64::MAX).await
}

/// The same for tables that have come as far as their checkpoint says.
pub(crate) async fn wrong_rows_at_checkpoint(client: &Client, schema: &str) -> i64 {
    let sql = "SELECT CASE WHEN inline THEN 9223372036854775807 ELSE position END FROM changeover.checkpoints
               WHERE projector || '_v' || major = $1";
    let up_to = client.query_one(sql, &[&schema]).await.unwrap().get(0);
    wrong_rows_up_to(client, schema, up_to).await
}

async fn wrong_rows_up_to(client: &Client, schema: &str, position: i64) -> i64 {
    let sql = format!(
        "WITH expected AS (
             SELECT stream, min(data ->> 'customer') AS customer,
                    (count(*) FILTER (WHERE type = 'ItemAdded'))::integer AS items,
                    coalesce(sum((data ->> 'cents')::bigint) FILTER (WHERE type = 'ItemAdded'), 0)::bigint AS cents,
                    bool_or(type = 'Paid') AS paid, max(position) AS last_position
             FROM changeover.events WHERE position <= $1 GROUP BY stream HAVING bool_or(type = 'Placed')
         ), found AS (
             SELECT id, customer, items, cents, paid, last_position FROM {schema}.orders
         )
         SELECT count(*) FROM (
             (TABLE expected EXCEPT ALL TABLE found) UNION ALL (TABLE found EXCEPT ALL TABLE expected)
         ) differ"
    );
    client.query_one(&sql, &[&position]).await.unwrap().get(0)
}

/// The word of a phase.
pub(crate) fn phase(progress: &ActivationProgress) -> &'static str {
    match progress {
        ActivationProgress::Planned(_) => "planned",
        ActivationProgress::Started { .. } => "started",
        // Whoever is held there holds others, too: one process at a time builds indexes.
        ActivationProgress::Replaying(progress) if progress.phase == ReplayPhase::Indexing => "indexing",
        ActivationProgress::Replaying(_) => "replaying",
        ActivationProgress::Verifying(_) => "verifying",
        ActivationProgress::WaitingForInstances { .. } => "waiting for instances",
        ActivationProgress::WaitingForAppends(_) => "waiting for appends",
        ActivationProgress::Paused => "paused",
        ActivationProgress::Drained { .. } => "drained",
        ActivationProgress::Switched => "switched",
        ActivationProgress::WaitingForReaders { .. } => "waiting for readers",
        other => panic!("a phase without a word: {other:?}"),
    }
}

/// An activation that runs in a task, and stops at a phase until it is let go. Takes a runtime of several threads.
pub(crate) struct Held {
    task: JoinHandle<Result<Activated, ActivateError>>,
    reached: tokio::sync::mpsc::UnboundedReceiver<()>,
    go: Option<mpsc::Sender<()>>,
    seen: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Held {
    /// Starts an activation.
    pub(crate) fn at(held_at: &'static str, new: &Changeover, options: ActivateOptions) -> Self {
        Self::of(held_at, new, options, false)
    }

    /// Starts a rollback.
    pub(crate) fn back_at(held_at: &'static str, old: &Changeover, options: ActivateOptions) -> Self {
        Self::of(held_at, old, options, true)
    }

    fn of(held_at: &'static str, build: &Changeover, options: ActivateOptions, back: bool) -> Self {
        let (tell, reached) = tokio::sync::mpsc::unbounded_channel();
        let (go, gate) = mpsc::channel::<()>();
        let (gate, seen) = (Mutex::new(gate), Arc::new(Mutex::new(BTreeSet::new())));
        let (build, noted) = (build.clone(), seen.clone());
        let task = tokio::spawn(async move {
            let on_progress = |progress: ActivationProgress| {
                let word = phase(&progress);
                noted.lock().unwrap_or_else(PoisonError::into_inner).insert(word);
                if word == held_at && tell.send(()).is_ok() {
                    let gate = gate.lock().unwrap();
                    // An error: it was let go for good.
                    tokio::task::block_in_place(|| gate.recv()).unwrap_or_default();
                }
            };
            if !back {
                return build.activate(&options, &on_progress).await;
            }
            match build.rollback(&options, &on_progress).await {
                Err(RollbackError::Activate(error)) => Err(error),
                other => Ok(other.expect("the way back must be open")),
            }
        });
        Self { task, reached, go: Some(go), seen }
    }

    /// Returns once it stands at its phase.
    pub(crate) async fn reached(&mut self) {
        tokio::time::timeout(SOON, self.reached.recv()).await.unwrap().expect("it ended before");
    }

    /// Lets it go on, and returns what came of it.
    pub(crate) async fn outcome(mut self) -> Result<Activated, ActivateError> {
        self.go = None;
        tokio::time::timeout(SOON, &mut self.task).await.unwrap().unwrap()
    }

    /// Lets it go on until it fails, and returns the phases that it came to and the error.
    pub(crate) async fn failed(self) -> (BTreeSet<&'static str>, ActivateError) {
        let seen = self.seen.clone();
        let error = self.outcome().await.unwrap_err();
        let seen = seen.lock().unwrap().clone();
        (seen, error)
    }

    /// The phases that it came to so far.
    pub(crate) fn seen(&self) -> BTreeSet<&'static str> {
        self.seen.lock().unwrap().clone()
    }
}

/// Options with a pause of some seconds at most. It takes milliseconds, but on a machine that stands still for a while it
/// must not end by its deadline where it is to end well.
pub(crate) fn hasty() -> ActivateOptions {
    ActivateOptions {
        requested_by: "hasty".to_owned(),
        pause_limit: Duration::from_secs(10),
        drain_timeout: SOON,
        ..ActivateOptions::default()
    }
}

/// Clients that place orders and add to them as fast as they can, each on streams of its own. Whoever is told that its
/// instance's configuration is not the active one asks the next instance, as a load balancer would.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Written>>,
}

static WRITERS: AtomicUsize = AtomicUsize::new(0);

/// What writers saw.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) events: usize,
    pub(crate) failed: Vec<String>,
    /// The longest time between two acknowledged writes of one client.
    pub(crate) longest: Duration,
    /// How often a write was acknowledged by each instance.
    pub(crate) by: Vec<usize>,
}

impl Writers {
    pub(crate) fn start(count: usize, instances: &[&Changeover]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let instances: Vec<Changeover> = instances.iter().map(|instance| (*instance).clone()).collect();
        let tasks = (0..count)
            .map(|_| {
                let name = format!("w{}", WRITERS.fetch_add(1, Ordering::Relaxed));
                tokio::spawn(write(name, instances.clone(), stop.clone()))
            })
            .collect();
        Self { stop, tasks }
    }

    pub(crate) async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        for task in self.tasks {
            let written = task.await.unwrap();
            all.events += written.events;
            all.failed.extend(written.failed);
            all.longest = all.longest.max(written.longest);
            all.by.resize(written.by.len(), 0);
            all.by.iter_mut().zip(written.by).for_each(|(sum, by)| *sum += by);
        }
        all
    }
}

async fn write(name: String, instances: Vec<Changeover>, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written { by: vec![0; instances.len()], ..Written::default() };
    let mut at = 0;
    let mut last = Instant::now();
    for n in 0.. {
        let event = if n % 5 == 0 { placed(&name) } else { OrderEvent::ItemAdded { cents: n } };
        let order = stream(&format!("{name}-{}", n / 5));
        let mut tries = 0;
        loop {
            match instances[at].append(&order, Expected::Any, std::slice::from_ref(&event)).await {
                Ok(_) => break,
                Err(AppendError::Refused(refused)) if tries < instances.len() && !refused.is_retryable() => {
                    tries += 1;
                    at = (at + 1) % instances.len();
                }
                Err(error) => {
                    written.failed.push(format!("{error} (from instance {at})"));
                    return written;
                }
            }
        }
        written.events += 1;
        written.by[at] += 1;
        written.longest = written.longest.max(last.elapsed());
        last = Instant::now();
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    written
}

/// The events in the log.
pub(crate) async fn events(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM changeover.events", &[]).await.unwrap().get(0)
}

/// Waits until writers have written some more.
pub(crate) async fn more_events(client: &Client, more: i64) {
    let before = events(client).await;
    changeover_testkit::eventually(SOON, || async { events(client).await >= before + more }).await;
}
