//! The parallel replay gives the rows of a serial one: whatever the log, the shards, the memory, and whoever stops in between.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Changeover, Configuration, Fold, FoldProjector, Pace, ProjectorName, Recorded, ReplayError,
    ReplayOptions, Row, StreamName,
};
use changeover_testkit::{Database, eventually};
use serde::Deserialize;
use tokio_postgres::Client;

use crate::orders::instance;
use crate::releases::{SOON, instance_of};

/// What happens to accounts. An event names one account, two, or none.
#[derive(Debug, Deserialize)]
enum AccountEvent {
    Opened { account: i64, owner: String },
    Moved { from: i64, to: i64, cents: i64 },
    Closed { account: i64 },
    Poisoned { account: i64 },
    Nothing {},
}

impl AccountEvent {
    fn accounts(&self) -> Vec<i64> {
        match self {
            Self::Opened { account, .. } | Self::Closed { account } | Self::Poisoned { account } => {
                vec![*account]
            }
            Self::Moved { from, to, .. } => vec![*from, *to, *from],
            Self::Nothing {} => Vec::new(),
        }
    }
}

/// A row for each account, fed by many streams; it comes and goes. The trace depends on the order of events.
#[derive(Row, Clone)]
#[row(table = "accounts")]
struct Account {
    #[row(key)]
    id: i64,
    #[row(index)]
    owner: Option<String>,
    cents: i64,
    trace: String,
}

/// While this is not 0, the account of this number cannot be poisoned without a panic.
static POISON: AtomicU64 = AtomicU64::new(0);

impl Fold for Account {
    type Event = AccountEvent;

    fn keys(event: &AccountEvent, _stream: &StreamName) -> impl IntoIterator<Item = i64> {
        event.accounts()
    }

    fn fold(row: Option<Self>, account: &i64, event: &Recorded<AccountEvent>) -> Option<Self> {
        let mut row =
            row.unwrap_or_else(|| Self { id: *account, owner: None, cents: 0, trace: String::new() });
        match &event.data {
            AccountEvent::Opened { owner, .. } => row.owner = Some(owner.clone()),
            AccountEvent::Moved { from, to, cents } => {
                row.cents +=
                    if account == to { *cents } else { 0 } - if account == from { *cents } else { 0 };
            }
            AccountEvent::Closed { .. } => return None,
            AccountEvent::Poisoned { .. } => {
                assert_ne!(POISON.load(Ordering::Relaxed), account.unsigned_abs(), "poison");
            }
            AccountEvent::Nothing {} => {}
        }
        row.trace = format!("{:.40}", format!("{} {}", event.position, row.trace));
        Some(row)
    }
}

/// A row for each stream and kind of event, with a key of two parts.
#[derive(Row, Clone)]
#[row(table = "kinds")]
struct Kind {
    #[row(key)]
    stream: String,
    #[row(key)]
    what: String,
    events: i64,
    last: i64,
}

impl Fold for Kind {
    type Event = AccountEvent;

    fn keys(event: &AccountEvent, stream: &StreamName) -> impl IntoIterator<Item = (String, String)> {
        let kind = match event {
            AccountEvent::Nothing {} => return None,
            AccountEvent::Moved { .. } => "moved",
            _ => "other",
        };
        Some((stream.to_string(), kind.to_owned()))
    }

    fn fold(
        row: Option<Self>,
        (stream, kind): &(String, String),
        event: &Recorded<AccountEvent>,
    ) -> Option<Self> {
        let events = row.map_or(0, |row| row.events) + 1;
        Some(Self { stream: stream.clone(), what: kind.clone(), events, last: event.revision.get() })
    }
}

/// The one row that every event touches.
#[derive(Row, Clone)]
#[row(table = "whole")]
struct Whole {
    #[row(key)]
    one: bool,
    events: i64,
    checksum: i64,
}

impl Fold for Whole {
    type Event = AccountEvent;

    fn keys(_event: &AccountEvent, _stream: &StreamName) -> impl IntoIterator<Item = bool> {
        [true]
    }

    fn fold(row: Option<Self>, one: &bool, event: &Recorded<AccountEvent>) -> Option<Self> {
        let (events, checksum) = row.map_or((0, 0), |row| (row.events, row.checksum));
        let checksum = checksum.wrapping_mul(31).wrapping_add(event.position.get());
        Some(Self { one: *one, events: events + 1, checksum })
    }
}

struct Accounts<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for Accounts<MAJOR> {
    const NAME: &'static str = "accounts";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    type Event = AccountEvent;
    type Tables = (Account, Kind, Whole);
}

const TABLES: [&str; 3] = ["accounts", "kinds", "whole"];

/// A projector of its own beside it, that handles few of the types.
#[derive(Debug, Deserialize)]
enum ClosingEvent {
    Closed { account: i64 },
}

#[derive(Row, Clone)]
#[row(table = "closings")]
struct Closing {
    #[row(key)]
    account: i64,
    times: i64,
}

impl Fold for Closing {
    type Event = ClosingEvent;

    fn keys(
        ClosingEvent::Closed { account }: &ClosingEvent,
        _stream: &StreamName,
    ) -> impl IntoIterator<Item = i64> {
        [*account]
    }

    fn fold(row: Option<Self>, account: &i64, _event: &Recorded<ClosingEvent>) -> Option<Self> {
        Some(Self { account: *account, times: row.map_or(0, |row| row.times) + 1 })
    }
}

struct Closings;

impl FoldProjector for Closings {
    const NAME: &'static str = "closings";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = ClosingEvent;
    type Tables = (Closing,);
}

fn accounts() -> ProjectorName {
    "accounts".parse().unwrap()
}

/// A random log: its numbers come from the seed alone.
async fn fill(client: &Client, seed: f64, events: i64) {
    let sql = format!(
        "SELECT setseed({seed});
         INSERT INTO changeover.events (position, stream, revision, type, data)
         SELECT n * 2, stream, row_number() OVER (PARTITION BY stream ORDER BY n), type,
                (CASE type
                     WHEN 'Opened' THEN json_build_object('account', a, 'owner', 'It''s ' || b)
                     WHEN 'Moved' THEN json_build_object('from', a, 'to', b, 'cents', b * 7)
                     WHEN 'Nothing' THEN json_build_object()
                     ELSE json_build_object('account', a) END)
         FROM (
             SELECT n, 'stream-' || (random() * 40)::int AS stream, (random() * random() * 900)::int AS a,
                    (random() * 900)::int AS b,
                    (ARRAY['Opened', 'Moved', 'Moved', 'Moved', 'Closed', 'Nothing', 'Unheard', 'Moved'])[1 + (random() * 7)::int]
                    AS type
             FROM generate_series(1, {events}) AS n
         ) random;
         SELECT setval('changeover.event_position', {events} * 2)"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// The rows of one version that another one has not got, in any table, in both directions.
async fn differences(client: &Client, one: u64, other: u64) -> i64 {
    let mut differences = 0;
    for table in TABLES {
        let (one, other) = (format!("accounts_v{one}.{table}"), format!("accounts_v{other}.{table}"));
        let sql = format!(
            "SELECT count(*) FROM ((TABLE {one} EXCEPT ALL TABLE {other}) UNION ALL (TABLE {other} EXCEPT ALL TABLE {one})) d"
        );
        differences += client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0);
    }
    differences
}

async fn rows(client: &Client, major: u64) -> i64 {
    let sql = format!(
        "SELECT (SELECT count(*) FROM accounts_v{major}.accounts) + (SELECT events FROM accounts_v{major}.whole)"
    );
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

fn serially() -> ReplayOptions {
    with(Pace { parallel_above_events: i64::MAX, ..Pace::default() })
}

fn with(pace: Pace) -> ReplayOptions {
    ReplayOptions { requested_by: "test".to_owned(), pace, ..ReplayOptions::default() }
}

/// Everything as small as it gets, so that everything happens: rows are written, forgotten and loaded again all the time.
fn cramped(shards: u16) -> Pace {
    Pace {
        parallel_above_events: 0,
        shards: Some(shards),
        memory_bytes: 40_000 * usize::from(shards),
        checkpoint_every: Duration::from_millis(5),
        max_connections: 6,
        ..Pace::default()
    }
}

fn at_once() -> Pace {
    Pace { parallel_above_events: 0, ..Pace::default() }
}

async fn replay(instance: &Changeover, options: &ReplayOptions) -> u64 {
    let done = instance.replay(&[accounts()], options, &|_| {}).await.unwrap();
    assert_eq!(done[0].progress.position, instance.horizon().await.unwrap());
    done[0].progress.events
}

async fn of<const MAJOR: u64>(database: &Database) -> Changeover {
    instance(database, Configuration::new().fold(Accounts::<MAJOR>).unwrap()).await
}

/// No trace of shards is left, and the indexes are there.
async fn is_whole(client: &Client, major: i64) {
    let sql =
        "SELECT count(*), bool_and(indexed AND parallel_to IS NULL AND shard = 0) FROM changeover.checkpoints
               WHERE projector = 'accounts' AND major = $1";
    let row = client.query_one(sql, &[&major]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<bool>>(1)), (1, Some(true)));
    let sql = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'accounts_v' || $1::bigint AND indexname = 'accounts_owner_idx'";
    assert_eq!(client.query_one(sql, &[&major]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_those_of_a_serial_replay_whatever_the_shards_and_the_memory() {
    for (seed, shards) in [(0.1, 1), (0.2, 2), (0.3, 5)] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let serial = of::<1>(&database).await;
        fill(&client, seed, 40_000).await;
        replay(&serial, &serially()).await;
        let roomy = of::<2>(&database).await;
        assert!(replay(&roomy, &with(at_once())).await > 20_000);
        assert_eq!(differences(&client, 1, 2).await, 0, "seed {seed}, at once");
        is_whole(&client, 2).await;
        let narrow = of::<3>(&database).await;
        replay(&narrow, &with(cramped(shards))).await;
        assert_eq!(differences(&client, 1, 3).await, 0, "seed {seed}, {shards} shards");
        is_whole(&client, 3).await;
        assert!(rows(&client, 3).await > 30_000);
        // Live publishing goes on where the shards met.
        replay(&narrow, &serially()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_dropped_again_and_again_ends_with_the_same_rows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1>(&database).await;
    fill(&client, 0.4, 60_000).await;
    replay(&serial, &serially()).await;
    let parallel = of::<2>(&database).await;
    let mut checkpoints = BTreeSet::new();
    for stop_after in (5_000..).step_by(5_000).take(8) {
        let (stop, names) = (tokio::sync::Notify::new(), [accounts()]);
        let on_progress = |progress: &changeover::ReplayProgress| {
            if progress.events >= stop_after {
                stop.notify_one();
            }
        };
        let pace = cramped(3);
        let throttle = changeover::Throttle { events_per_sec: Some(60_000), ..Default::default() };
        let options = with(Pace { throttle, ..pace });
        tokio::select! {
            _ = parallel.replay(&names, &options, &on_progress) => break,
            () = stop.notified() => {}
        }
        let sql = "SELECT min(position) FROM changeover.checkpoints WHERE projector = 'accounts' AND major = 2 AND shard > 0";
        checkpoints.insert(client.query_one(sql, &[]).await.unwrap().get::<_, Option<i64>>(0));
    }
    assert!(checkpoints.len() > 2, "it got on: {checkpoints:?}");
    replay(&parallel, &with(cramped(3))).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_a_parallel_replay_and_do_nothing_twice() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1>(&database).await;
    fill(&client, 0.5, 60_000).await;
    replay(&serial, &serially()).await;
    let throttle = changeover::Throttle { events_per_sec: Some(100_000), ..Default::default() };
    let options = with(Pace { throttle, ..cramped(4) });
    let processes = [of::<2>(&database).await, of::<2>(&database).await, of::<2>(&database).await];
    futures_util::future::join_all(processes.iter().map(|process| replay(process, &options))).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projectors_that_are_replayed_together_read_the_log_once() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let both = Configuration::new().fold(Accounts::<2>).unwrap().fold(Closings).unwrap();
    let both = instance(&database, both).await;
    fill(&client, 0.6, 40_000).await;
    // Rows that an index led to: the log is filled and checked without one.
    let sql = "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE schemaname = 'changeover' AND relname = 'events'";
    let read = async || client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let before = read().await;
    let names = [accounts(), "closings".parse().unwrap()];
    both.replay(&names, &with(at_once()), &|_| {}).await.unwrap();
    // A connection that ends says what it has read.
    eventually(SOON, || async { read().await - before > 30_000 }).await;
    assert!(read().await - before < 60_000, "{before} and now {}", read().await);

    let sql = "SELECT count(*) FROM (
                   SELECT (data ->> 'account')::bigint AS account, count(*) AS times
                   FROM changeover.events WHERE type = 'Closed' GROUP BY 1
               ) e FULL JOIN closings_v1.closings c USING (account) WHERE e.times IS DISTINCT FROM c.times";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    let serial = of::<1>(&database).await;
    replay(&serial, &serially()).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_projected_stops_it_there_and_everything_before_is_kept() {
    let poisons = [
        // A fold that panics, and data that does not decode.
        ("json_build_object('account', 7)", "Poisoned", "panicked"),
        ("json_build_object('account', 'seven')", "Closed", "cannot be decoded"),
    ];
    for (data, event_type, reason) in poisons {
        let database = Database::fresh().await;
        let client = database.client().await;
        let writer = instance_of(&database, "none").await;
        fill(&client, 0.7, 40_000).await;
        let poison = format!(
            "UPDATE changeover.events SET type = '{event_type}', data = {data} WHERE position = 50000"
        );
        client.batch_execute(&poison).await.unwrap();
        let parallel = of::<2>(&database).await;
        POISON.store(7, Ordering::Relaxed);
        for _ in 0..2 {
            let error = parallel.replay(&[accounts()], &with(cramped(3)), &|_| {}).await.unwrap_err();
            let ReplayError::Projector { position, event_type: at, source, .. } = &error else {
                panic!("{error:?}")
            };
            assert_eq!((position.get(), at.as_str()), (50_000, event_type));
            assert!(source.to_string().contains(reason), "{source}");
            // Each shard stands right before it, or beyond it where it has nothing to do with it.
            let sql = "SELECT min(position) FROM changeover.checkpoints WHERE major = 2 AND shard > 0";
            assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 49_999);
        }
        // Nobody can activate what is not whole.
        let error = parallel.activate(&crate::releases::hasty(), &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains("50000") || format!("{error:?}").contains("50000"), "{error:?}");
        // Mended, it goes on.
        POISON.store(0, Ordering::Relaxed);
        client
            .batch_execute(
                "UPDATE changeover.events SET type = 'Nothing', data = '{}' WHERE position = 50000",
            )
            .await
            .unwrap();
        replay(&parallel, &with(cramped(3))).await;
        let serial = of::<1>(&database).await;
        replay(&serial, &serially()).await;
        // The poisoned account itself was touched by an event that is another one now.
        assert_eq!(differences(&client, 1, 2).await, 0);
        is_whole(&client, 2).await;
        drop(writer);
    }
}
