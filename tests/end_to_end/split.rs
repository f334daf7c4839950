//! SQL projectors in the bulk of a replay: pipelined, or split as they declare. Rows are those of a serial replay and of live
//! publishing, whatever the shards, and whoever stops in between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Pace, ProjectorName, Recorded, ReplayError, ReplayOptions,
    SplitBy, SplitKey, SqlProjector, ToSql, Transaction, Type, VerifyOptions,
};
use changeover_testkit::{Cluster, Database, eventually};
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::accounts::{AccountEvent, Accounts, accounts, at_once, cramped, fill, serially, slowly, with};
use crate::chaos::{Chance, seed};
use crate::operator::Operator;
use crate::orders::instance;
use crate::parallel_breaking::claims;
use crate::releases::SOON;
use crate::traps::published;
use crate::verify::{name, verify};

/// A row for each stream, and one for each account that a stream has named lately. What they hold depends on the order of events.
///
/// `SPLIT` says how it is split: not at all, by the stream, or by the stream in another way.
pub(crate) struct Streams<const MAJOR: u64, const SPLIT: u8>;

pub(crate) const WHOLE: u8 = 0;
pub(crate) const BY_STREAM: u8 = 1;
const OTHERWISE: u8 = 2;

/// While it is set, a poisoned event fails.
static POISON: AtomicBool = AtomicBool::new(false);

impl<const MAJOR: u64, const SPLIT: u8> SqlProjector for Streams<MAJOR, SPLIT> {
    const NAME: &'static str = "streams";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    const TABLES: &'static str = "
        CREATE TABLE {schema}.streams (stream text PRIMARY KEY, events bigint NOT NULL, cents bigint NOT NULL, trace text NOT NULL);
        CREATE TABLE {schema}.named (stream text NOT NULL, account bigint NOT NULL, times bigint NOT NULL)";
    // Without it, ON CONFLICT has nothing to go by.
    const INDEXES: &'static str = "CREATE UNIQUE INDEX ON {schema}.named (stream, account)";
    type Event = AccountEvent;

    const SPLIT_BY: Option<SplitBy<AccountEvent>> = match SPLIT {
        WHOLE => None,
        BY_STREAM => Some(|event| SplitKey::of(event.stream.as_str())),
        _ => Some(|event| SplitKey::of(&format!("the stream {}", event.stream))),
    };

    async fn project(&self, batch: Batch<'_, AccountEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let count = "INSERT INTO {schema}.streams AS s VALUES ($1, 1, $2, $3)
                     ON CONFLICT (stream) DO UPDATE SET events = s.events + 1, cents = s.cents + excluded.cents,
                         trace = left(excluded.trace || ' ' || s.trace, 60)";
        let name = "INSERT INTO {schema}.named AS n VALUES ($1, $2, 1)
                    ON CONFLICT (stream, account) DO UPDATE SET times = n.times + 1";
        let forget = "DELETE FROM {schema}.named WHERE stream = $1 AND account = $2";
        let count = &batch.prepare(tx, count, &[Type::TEXT, Type::INT8, Type::TEXT]).await?;
        let name = &batch.prepare(tx, name, &[Type::TEXT, Type::INT8]).await?;
        let forget = &batch.prepare(tx, forget, &[Type::TEXT, Type::INT8]).await?;
        batch
            .pipeline(async |event| {
                let (stream, trace) = (event.stream.as_str(), event.position.to_string());
                match &event.data {
                    AccountEvent::Moved { from, cents, .. } => {
                        let counting: [&(dyn ToSql + Sync); 3] = [&stream, cents, &trace];
                        let naming: [&(dyn ToSql + Sync); 2] = [&stream, from];
                        // Both are on their way before either is answered.
                        let (counted, named) =
                            tokio::join!(count.query(tx, &counting), name.query(tx, &naming));
                        counted?;
                        named?;
                    }
                    AccountEvent::Opened { account, .. } => {
                        name.query(tx, &[&stream, account]).await?;
                    }
                    AccountEvent::Closed { account } => {
                        forget.query(tx, &[&stream, account]).await?;
                    }
                    AccountEvent::Poisoned { account } if POISON.load(Ordering::Relaxed) => match account {
                        1 => panic!("poison"),
                        2 => return Err("poison".into()),
                        // An error that it lets pass.
                        _ => drop(tx.batch_execute("SELECT 1 / 0").await),
                    },
                    AccountEvent::Poisoned { .. } | AccountEvent::Nothing {} => {}
                }
                Ok(())
            })
            .await
    }
}

fn streams() -> ProjectorName {
    "streams".parse().unwrap()
}

async fn of<const MAJOR: u64, const SPLIT: u8>(database: &Database) -> Changeover {
    instance(database, Configuration::new().sql(Streams::<MAJOR, SPLIT>).unwrap()).await
}

async fn try_replay(instance: &Changeover, options: &ReplayOptions) -> Result<u64, ReplayError> {
    let done = instance.replay(&[streams()], options, &|_| {}).await?;
    assert_eq!(done[0].progress.position, instance.horizon().await.unwrap());
    Ok(done[0].progress.events)
}

async fn replay(instance: &Changeover, options: &ReplayOptions) -> u64 {
    try_replay(instance, options).await.unwrap()
}

/// The rows of one version that another one has not got, in both directions.
async fn differences(client: &Client, one: u64, other: u64) -> i64 {
    let mut differences = 0;
    for table in ["streams", "named"] {
        let (one, other) = (format!("streams_v{one}.{table}"), format!("streams_v{other}.{table}"));
        let sql = format!(
            "SELECT count(*) FROM ((TABLE {one} EXCEPT ALL TABLE {other}) UNION ALL (TABLE {other} EXCEPT ALL TABLE {one})) d"
        );
        differences += client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0);
    }
    differences
}

/// No trace of shards is left.
async fn is_whole(client: &Client, major: i64) {
    let sql =
        "SELECT count(*), bool_and(indexed AND parallel_to IS NULL AND split IS NULL AND shard = 0) FROM changeover.checkpoints
               WHERE projector = 'streams' AND major = $1";
    let row = client.query_one(sql, &[&major]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<bool>>(1)), (1, Some(true)));
}

/// The checkpoints of a version's shards; none before there are any, and none once they have met.
async fn checkpoints(client: &Client, major: i64) -> BTreeMap<i32, i64> {
    let sql = "SELECT shard, position FROM changeover.checkpoints
               WHERE projector = 'streams' AND major = $1 AND shard > 0";
    client.query(sql, &[&major]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn moved(client: &Client, major: i64) -> i64 {
    checkpoints(client, major).await.values().sum()
}

/// Everything at its default but for the shards and the connections.
fn split(shards: u16, max_connections: usize) -> ReplayOptions {
    with(Pace { shards: Some(shards), max_connections, ..at_once() })
}

/// Replays so slowly that it is in the middle for as long as anything may take, and comes back when it is.
async fn start(client: &Client, instance: &Changeover, major: i64) -> JoinHandle<Result<u64, ReplayError>> {
    let (instance, options) = (instance.clone(), with(slowly(3, 400)));
    let replaying = tokio::spawn(async move { try_replay(&instance, &options).await });
    eventually(SOON, || async { moved(client, major).await > 1_000 }).await;
    replaying
}

/// Replays for a while.
async fn begin(client: &Client, instance: &Changeover, major: i64) {
    start(client, instance, major).await.abort();
    eventually(SOON, || async { claims(client).await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_serial_pipelined_and_split_rows_are_the_same_row_for_row() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let live = of::<1, WHOLE>(&database).await;
    fill(&client, 0.21, 12_000).await;
    let running = live.start();
    published(&live, "streams").await;
    running.stop().await;
    replay(&of::<2, WHOLE>(&database).await, &serially()).await;
    let handled = "SELECT count(*) FROM changeover.events WHERE type <> 'Unheard'";
    let handled = u64::try_from(client.query_one(handled, &[]).await.unwrap().get::<_, i64>(0)).unwrap();
    assert_eq!(replay(&of::<3, WHOLE>(&database).await, &split(4, 8)).await, handled);
    // More shards than connections that write: they take turns.
    assert_eq!(replay(&of::<4, BY_STREAM>(&database).await, &split(5, 3)).await, handled);
    let narrow = of::<5, BY_STREAM>(&database).await;
    assert_eq!(replay(&narrow, &with(cramped(3))).await, handled);
    for version in 2..=5 {
        assert_eq!(differences(&client, 1, version).await, 0, "version {version}");
        is_whole(&client, i64::try_from(version).unwrap()).await;
    }
    let sql = "SELECT (SELECT count(*) FROM streams_v1.streams), (SELECT count(*) FROM streams_v1.named)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 35 && row.get::<_, i64>(1) > 2_000, "{row:?}");
    for pace in [at_once(), serially().pace] {
        let verified = verify(&narrow, "streams", &VerifyOptions { pace, ..VerifyOptions::default() }).await;
        assert!(verified.is_equal(), "{verified:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projectors_of_both_kinds_are_replayed_together() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = Configuration::new().fold(Accounts::<1>).and_then(|c| c.sql(Streams::<1, WHOLE>)).unwrap();
    let serial = instance(&database, serial).await;
    fill(&client, 0.28, 12_000).await;
    let both = Configuration::new().fold(Accounts::<2>).and_then(|c| c.sql(Streams::<2, BY_STREAM>)).unwrap();
    let names = [accounts(), streams()];
    serial.replay(&names, &serially(), &|_| {}).await.unwrap();
    let done = instance(&database, both).await.replay(&names, &with(cramped(3)), &|_| {}).await.unwrap();
    assert_eq!(done.len(), 2);
    assert_eq!(differences(&client, 1, 2).await, 0);
    assert_eq!(crate::accounts::differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_declares_no_split_has_one_shard_and_what_does_has_as_many_as_wanted() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (whole, split) = (of::<1, WHOLE>(&database).await, of::<2, BY_STREAM>(&database).await);
    fill(&client, 0.22, 12_000).await;
    begin(&client, &whole, 1).await;
    begin(&client, &split, 2).await;
    assert_eq!((checkpoints(&client, 1).await.len(), checkpoints(&client, 2).await.len()), (1, 3));
    // Begun with one shard, it goes on with any declaration.
    replay(&of::<1, BY_STREAM>(&database).await, &with(cramped(3))).await;
    replay(&split, &with(cramped(1))).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_stand_apart_go_on_each_from_its_own_position() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1, WHOLE>(&database).await;
    fill(&client, 0.27, 12_000).await;
    replay(&serial, &serially()).await;
    let split_up = of::<2, BY_STREAM>(&database).await;
    // Makes the tables.
    begin(&client, &split_up, 2).await;
    let mut holding = database.client().await;
    let held = holding.transaction().await.unwrap();
    // One shard will wait for this row, before it has committed anything new.
    let lock = "SELECT stream FROM streams_v2.streams ORDER BY stream LIMIT 1 FOR UPDATE";
    held.query_one(lock, &[]).await.unwrap();
    let before = checkpoints(&client, 2).await;
    let replaying = {
        let instance = split_up.clone();
        tokio::spawn(async move { try_replay(&instance, &with(cramped(3))).await })
    };
    // The others get on for as long as there is something for them in the queue.
    let waiting = async |then: &str| {
        let sql = format!(
            "SELECT count({then}) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        );
        client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    eventually(SOON, || async {
        let now = checkpoints(&client, 2).await;
        now.iter().filter(|(shard, position)| **position > before[shard] + 1_000).count() == 2
            && waiting("*").await == 1
    })
    .await;
    replaying.abort();
    // What the one that waits has sent already is not to be done once it need not wait any more.
    assert_eq!(waiting("pg_terminate_backend(pid)").await, 1);
    eventually(SOON, || async { waiting("*").await == 0 }).await;
    held.rollback().await.unwrap();
    eventually(SOON, || async { claims(&client).await.is_empty() }).await;
    let apart = checkpoints(&client, 2).await;
    assert!(apart.values().max().unwrap() - apart.values().min().unwrap() >= 1_000, "{apart:?}");
    // One that reads much at once: what it reads begins before and ends behind all of them.
    replay(&split_up, &split(3, 8)).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_again_and_again_end_with_the_same_rows() {
    const SHARDS: u16 = 4;
    let seed = seed();
    println!("CHANGEOVER_CHAOS_SEED={seed}");
    let mut chance = Chance::new(seed);
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1, WHOLE>(&database).await;
    fill(&client, 0.23, 20_000).await;
    replay(&serial, &serially()).await;
    let start = || Operator::replay_in_bulk(&database, "streams 2", SHARDS, 1_500, u64::MAX);
    let mut processes: Vec<Operator> = (0..2).map(|_| start()).collect();
    eventually(SOON, || async { !checkpoints(&client, 2).await.is_empty() }).await;
    let mut before = BTreeMap::new();
    for _ in 0..6 {
        let goal = before.values().sum::<i64>() + i64::try_from(chance.below(10_000)).unwrap();
        eventually(SOON, || async {
            let shards = checkpoints(&client, 2).await;
            shards.is_empty() || shards.values().sum::<i64>() > goal
        })
        .await;
        // Any moment is as good as any other.
        sleep(Duration::from_millis(chance.below(40))).await;
        let all = chance.percent(30);
        let victim = usize::try_from(chance.below(2)).unwrap();
        for (at, process) in processes.iter_mut().enumerate() {
            if all || at == victim {
                process.kill_9();
                *process = start();
            }
        }
        let after = checkpoints(&client, 2).await;
        // On a machine that stands still for long they may be through.
        if after.is_empty() {
            break;
        }
        assert!(before.iter().all(|(shard, position)| after[shard] >= *position), "{before:?} {after:?}");
        before = after;
    }
    for process in &processes {
        process.kill_9();
    }
    eventually(SOON, || async { claims(&client).await.is_empty() }).await;
    let after = checkpoints(&client, 2).await.into_values().min();
    assert!(after.is_none_or(|after| after > 0), "{before:?}");
    // Whoever goes on reads what lies after the checkpoint that is furthest behind, by its own connections and shards.
    let left = "SELECT count(*) FROM changeover.events WHERE position > $1 AND type <> 'Unheard'";
    let left = client.query_one(left, &[&after.unwrap_or(i64::MAX)]).await.unwrap().get::<_, i64>(0);
    let last = of::<2, BY_STREAM>(&database).await;
    assert_eq!(replay(&last, &split(2, 3)).await, u64::try_from(left).unwrap());
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_server_that_crashes_in_the_middle_loses_rows_and_checkpoints_together() {
    let cluster = Cluster::builder().durable().start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let serial = of::<1, WHOLE>(&database).await;
    fill(&client, 0.24, 12_000).await;
    replay(&serial, &serially()).await;
    for major in [2, 3] {
        let instance = match major {
            2 => of::<2, WHOLE>(&database).await,
            _ => of::<3, BY_STREAM>(&database).await,
        };
        let client = database.client().await;
        let cut = start(&client, &instance, major).await;
        tokio::task::block_in_place(|| {
            cluster.kill_9().unwrap();
            cluster.restart().unwrap();
        });
        let cut = timeout(SOON, cut).await.unwrap().unwrap();
        // The event that the connection was lost at is not the one to blame.
        assert!(matches!(cut, Err(ReplayError::Store(_) | ReplayError::Outage { .. })), "{cut:?}");
        eventually(SOON, || async { try_replay(&instance, &with(cramped(3))).await.ok() }).await;
        let client = database.client().await;
        assert_eq!(differences(&client, 1, u64::try_from(major).unwrap()).await, 0);
        is_whole(&client, major).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_projected_stops_it_there_and_everything_before_is_kept() {
    let poisons = [
        ("json_build_object('account', 'seven')", "cannot be decoded"),
        ("json_build_object('account', 1)", "panicked"),
        ("json_build_object('account', 2)", "the projector failed"),
        ("json_build_object('account', 3)", "the database refused"),
    ];
    let database = Database::fresh().await;
    let client = database.client().await;
    let instances = [of::<2, WHOLE>(&database).await, of::<3, BY_STREAM>(&database).await];
    fill(&client, 0.25, 12_000).await;
    POISON.store(true, Ordering::Relaxed);
    for (data, reason) in poisons {
        let poison =
            format!("UPDATE changeover.events SET type = 'Poisoned', data = {data} WHERE position = 10000");
        client.batch_execute(&poison).await.unwrap();
        for (major, instance) in (2..).zip(&instances) {
            let restart = ReplayOptions { restart: true, ..with(cramped(3)) };
            for options in [restart, with(at_once())] {
                let error = try_replay(instance, &options).await.unwrap_err();
                let ReplayError::Projector { position, event_type: at, source, .. } = &error else {
                    panic!("{error:?}")
                };
                assert_eq!((position.get(), at.as_str()), (10_000, "Poisoned"), "{reason}");
                assert!(source.to_string().contains(reason), "{source}");
                // Each shard stands right before it, or beyond it where it has nothing to do with it.
                let reached = checkpoints(&client, major).await;
                assert_eq!(reached.values().min(), Some(&9_999), "{reached:?}");
                assert_eq!(reached.len(), if major == 2 { 1 } else { 3 });
            }
        }
    }
    // Mended, they go on.
    POISON.store(false, Ordering::Relaxed);
    for (major, instance) in (2..).zip(&instances) {
        replay(instance, &with(cramped(3))).await;
        is_whole(&client, major).await;
    }
    replay(&of::<1, WHOLE>(&database).await, &serially()).await;
    assert_eq!((differences(&client, 1, 2).await, differences(&client, 1, 3).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_were_begun_by_another_split_are_refused_and_may_be_started_over() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1, WHOLE>(&database).await;
    fill(&client, 0.26, 12_000).await;
    replay(&serial, &serially()).await;
    let first = of::<2, BY_STREAM>(&database).await;
    begin(&client, &first, 2).await;
    let before = checkpoints(&client, 2).await;
    let (none, other) = (of::<2, WHOLE>(&database).await, of::<2, OTHERWISE>(&database).await);
    for instance in [&none, &other] {
        let error = try_replay(instance, &with(cramped(3))).await.unwrap_err();
        assert!(matches!(error, ReplayError::OtherSplit { shards: 3, .. }), "{error:?}");
        assert!(error.to_string().contains("streams 2.0.0 was begun in 3 shards"), "{error}");
    }
    assert_eq!(checkpoints(&client, 2).await, before);
    let again = ReplayOptions { restart: true, ..with(cramped(3)) };
    replay(&other, &again).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

/// Rows of accounts, which events of many streams feed: to split them by the stream is a mistake.
struct Mistaken;

#[derive(Debug, Deserialize)]
enum OpenedEvent {
    Opened { account: i64 },
}

/// While it is set, the first stream is projected after some other.
static LATE: AtomicBool = AtomicBool::new(false);
static LATER: AtomicU64 = AtomicU64::new(0);

impl SqlProjector for Mistaken {
    const NAME: &'static str = "mistaken";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str =
        "CREATE TABLE {schema}.openings (account bigint PRIMARY KEY, streams text NOT NULL)";
    type Event = OpenedEvent;

    const SPLIT_BY: Option<SplitBy<OpenedEvent>> = Some(|event| SplitKey::of(event.stream.as_str()));

    async fn project(&self, batch: Batch<'_, OpenedEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let is_first = |event: &Recorded<OpenedEvent>| event.stream.as_str() == "stream-1";
        if LATE.load(Ordering::Relaxed) && batch.events().iter().any(is_first) {
            let there = batch.sql("SELECT count(*) FROM {schema}.openings");
            // By the other shard: this one has written nothing.
            while tx.query_typed_one(&there, &[]).await?.get::<_, i64>(0) == 0 {
                sleep(Duration::from_millis(5)).await;
            }
            LATER.fetch_add(1, Ordering::Relaxed);
        }
        let sql = batch.sql(
            "INSERT INTO {schema}.openings AS o VALUES ($1, $2)
             ON CONFLICT (account) DO UPDATE SET streams = o.streams || ' ' || excluded.streams",
        );
        for event in batch.events() {
            let OpenedEvent::Opened { account } = &event.data;
            tx.query_typed(&sql, &[(account, Type::INT8), (&event.stream.as_str(), Type::TEXT)]).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declaration_that_is_a_mistake_is_found_by_verify() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance(&database, Configuration::new().sql(Mistaken).unwrap()).await;
    let sql = "INSERT INTO changeover.events (position, stream, revision, type, data)
               SELECT n, 'stream-' || n, 1, 'Opened', json_build_object('account', 7) FROM generate_series(1, 40) AS n;
               SELECT setval('changeover.event_position', 40)";
    client.batch_execute(sql).await.unwrap();
    LATE.store(true, Ordering::Relaxed);
    instance.replay(&[name("mistaken")], &split(2, 8), &|_| {}).await.unwrap();
    assert_eq!(LATER.load(Ordering::Relaxed), 1);
    LATE.store(false, Ordering::Relaxed);
    for pace in [split(2, 8).pace, serially().pace] {
        let options = VerifyOptions { pace, ..VerifyOptions::default() };
        let verified = verify(&instance, "mistaken", &options).await;
        let [openings] = &verified.tables[..] else { panic!("{verified:?}") };
        assert_eq!((openings.different, openings.missing, openings.extra), (1, 0, 0), "{verified:?}");
    }
    // Replayed as if it had declared nothing, it is right.
    let again = ReplayOptions { restart: true, ..split(1, 8) };
    instance.replay(&[name("mistaken")], &again, &|_| {}).await.unwrap();
    let options = VerifyOptions { pace: split(2, 8).pace, ..VerifyOptions::default() };
    assert!(verify(&instance, "mistaken", &options).await.is_equal());
}
