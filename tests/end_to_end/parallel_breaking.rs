//! A parallel replay under fire: processes that are killed or frozen, a server that restarts, connections that are cut. Nothing is
//! lost and nothing is there twice; what has to be done again is what lies after the checkpoints.

use std::collections::BTreeMap;
use std::time::Duration;

use changeover::{CaughtUp, Changeover, Expected, Pace, ReplayError, ReplayProgress};
use changeover_testkit::{Cluster, Database, eventually};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::accounts::{
    AccountEvent, accounts, at_once, cramped, differences, fill, is_whole, of, replay, rows, serially,
    slowly, with,
};
use crate::chaos::{Chance, seed};
use crate::operator::Operator;
use crate::orders::stream;
use crate::releases::SOON;
use crate::traps::published;

const SHARDS: u16 = 4;

/// The checkpoints of the second version's shards; none before there are any, and none once they have met.
pub(crate) async fn checkpoints(client: &Client) -> BTreeMap<i32, i64> {
    let sql = "SELECT shard, position FROM changeover.checkpoints
               WHERE projector = 'accounts' AND major = 2 AND shard > 0";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn sum_of_checkpoints(client: &Client) -> i64 {
    checkpoints(client).await.values().sum()
}

/// The events that a replay reads after a position.
pub(crate) async fn handled_after(client: &Client, position: i64) -> u64 {
    let sql = "SELECT count(*) FROM changeover.events WHERE position > $1 AND type <> 'Unheard'";
    client.query_one(sql, &[&position]).await.unwrap().get::<_, i64>(0).try_into().unwrap()
}

const CLAIMS: &str = "SELECT DISTINCT l.pid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 'changeover.checkpoints_pkey'::regclass
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The backends that hold claims: one for each process that has any.
pub(crate) async fn claims(client: &Client) -> Vec<i32> {
    client.query(CLAIMS, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Until nobody claims anything: what a dead process held goes when the server notices.
pub(crate) async fn nobody_is_at_it(client: &Client) {
    eventually(SOON, || async { claims(client).await.is_empty() }).await;
}

/// The first version, replayed serially: what all others are compared with.
pub(crate) async fn with_history(database: &Database, seed: f64, events: i64) -> Client {
    let serial = of::<1>(database).await;
    let client = database.client().await;
    fill(&client, seed, events).await;
    replay(&serial, &serially()).await;
    client
}

/// A replay of the second version in this process.
fn replaying(instance: &Changeover, events_per_sec: u32) -> JoinHandle<Result<Vec<CaughtUp>, ReplayError>> {
    let instance = instance.clone();
    tokio::spawn(async move {
        instance.replay(&[accounts()], &with(slowly(SHARDS, events_per_sec)), &|_| {}).await
    })
}

pub(crate) async fn is_the_same(client: &Client) {
    assert_eq!(differences(client, 1, 2).await, 0);
    is_whole(client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_again_and_again_end_with_the_same_rows() {
    let seed = seed();
    println!("CHANGEOVER_CHAOS_SEED={seed}");
    let mut chance = Chance::new(seed);
    let database = Database::fresh().await;
    let client = with_history(&database, 0.11, 60_000).await;
    let start = || Operator::replay_in_bulk(&database, "accounts 2", SHARDS, 30_000, u64::MAX);
    let mut processes: Vec<Operator> = (0..3).map(|_| start()).collect();
    let mut before = BTreeMap::new();
    for _ in 0..8 {
        let goal = before.values().sum::<i64>() + i64::try_from(chance.below(40_000)).unwrap();
        eventually(SOON, || async { sum_of_checkpoints(&client).await > goal }).await;
        // Any moment is as good as any other.
        sleep(Duration::from_millis(chance.below(40))).await;
        let all = chance.percent(30);
        let victim = usize::try_from(chance.below(3)).unwrap();
        for (at, process) in processes.iter_mut().enumerate() {
            if all || at == victim {
                process.kill_9();
                *process = start();
            }
        }
        let after = checkpoints(&client).await;
        assert!(before.iter().all(|(shard, position)| after[shard] >= *position), "{before:?} {after:?}");
        before = after;
    }
    for process in &processes {
        process.kill_9();
    }
    nobody_is_at_it(&client).await;
    // Whoever goes on does what lies after the checkpoint that is furthest behind, and nothing else.
    let after = *checkpoints(&client).await.values().min().unwrap();
    assert!(after > 0);
    let last = of::<2>(&database).await;
    assert_eq!(replay(&last, &with(cramped(SHARDS))).await, handled_after(&client, after).await);
    is_the_same(&client).await;
    assert!(rows(&client, 2).await > 45_000);
}

/// A process of its own that replays the second version and stands still in the middle; nothing else does.
async fn frozen_in_the_middle(database: &Database, client: &Client) -> Operator {
    let frozen = Operator::replay_in_bulk(database, "accounts 2", SHARDS, 20_000, 3_000);
    frozen.stopped().await;
    assert_eq!(claims(client).await.len(), 1);
    frozen
}

/// The server ends what a process has open, as it does with a process that it does not hear of any more. Its other connections
/// stay.
pub(crate) async fn end_transactions(client: &Client) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name = 'operator accounts 2' AND datname = current_database()
                 AND (backend_xid IS NOT NULL OR state = 'idle in transaction')";
    assert!(!client.query(sql, &[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shards_of_a_frozen_process_are_taken_over_once_it_is_dead() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.12, 20_000).await;
    let frozen = frozen_in_the_middle(&database, &client).await;
    let before = checkpoints(&client).await;
    let heir = replaying(&of::<2>(&database).await, 1_000_000);
    // It has joined, and finds every shard taken.
    let joined = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
                  AND classid = 'changeover.projector_states_pkey'::regclass
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { client.query_one(joined, &[]).await.unwrap().get::<_, i64>(0) == 2 }).await;
    assert_eq!((claims(&client).await.len(), checkpoints(&client).await), (1, before));
    frozen.kill_9();
    let done = timeout(SOON, heir).await.unwrap().unwrap().unwrap();
    assert_eq!(done[0].progress.lag_events(), 0);
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wakes_up_late_is_refused_and_does_no_harm() {
    for heir_is_done in [false, true] {
        let database = Database::fresh().await;
        let client = with_history(&database, 0.13, 20_000).await;
        let late = frozen_in_the_middle(&database, &client).await;
        let before = checkpoints(&client).await;
        end_transactions(&client).await;
        nobody_is_at_it(&client).await;
        let heir = of::<2>(&database).await;
        if heir_is_done {
            replay(&heir, &with(cramped(SHARDS))).await;
            is_the_same(&client).await;
        } else {
            // It has moved every one of the shards when the other one wakes up.
            let going = replaying(&heir, 20_000);
            eventually(SOON, || async {
                let now = checkpoints(&client).await;
                now.iter().all(|(shard, position)| *position > before[shard])
            })
            .await;
            going.abort();
        }
        let said = late.thaw().await;
        assert!(said.starts_with("end: refused"), "{said}");
        replay(&heir, &with(cramped(SHARDS))).await;
        is_the_same(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_claims_are_cut_off_shares_the_work_no_more_and_does_no_harm() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.14, 30_000).await;
    let (one, other) = (of::<2>(&database).await, of::<2>(&database).await);
    // It writes whenever its memory is full, and will not look at its claims any more.
    let rarely = Pace { checkpoint_every: Duration::from_mins(1), ..slowly(SHARDS, 15_000) };
    let cut = {
        let one = one.clone();
        tokio::spawn(async move { one.replay(&[accounts()], &with(rarely), &|_| {}).await })
    };
    eventually(SOON, || async { sum_of_checkpoints(&client).await > 4_000 }).await;
    let [pid] = claims(&client).await[..] else { panic!("one process, one connection") };
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    // The other one takes what is free at once, whatever the first one is in the middle of.
    let heir = timeout(SOON, replaying(&other, 15_000)).await.unwrap().unwrap().unwrap();
    assert_eq!(heir[0].progress.lag_events(), 0);
    let cut = timeout(SOON, cut).await.unwrap().unwrap();
    assert!(matches!(cut, Err(ReplayError::Store(_) | ReplayError::Outage { .. })), "{cut:?}");
    is_the_same(&client).await;
    // It is of use again.
    replay(&one, &with(cramped(SHARDS))).await;
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_only_wants_the_checkpoints_to_stay_keeps_no_shard_from_writing() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.18, 20_000).await;
    let instance = of::<2>(&database).await;
    // Begun, and dropped in the middle.
    let begun = replaying(&instance, 20_000);
    eventually(SOON, || async { sum_of_checkpoints(&client).await > 4_000 }).await;
    begun.abort();
    let mut reader = database.client().await;
    let reading = reader.transaction().await.unwrap();
    let hold = "SELECT FROM changeover.checkpoints WHERE projector = 'accounts' AND major = 2 FOR KEY SHARE";
    assert_eq!(reading.query(hold, &[]).await.unwrap().len(), usize::from(SHARDS) + 1);
    // They all arrive; only then is there something to wait for, since they are to become one.
    let going = replaying(&instance, 1_000_000);
    eventually(SOON, || async { checkpoints(&client).await.values().all(|position| *position == 40_000) })
        .await;
    reading.commit().await.unwrap();
    timeout(SOON, going).await.unwrap().unwrap().unwrap();
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_server_that_restarts_in_the_middle_costs_what_lies_after_the_checkpoints() {
    let cluster = Cluster::builder().durable().start().unwrap();
    for crash in [false, true] {
        let database = Database::fresh_on(&cluster).await;
        let client = with_history(&database, 0.15, 20_000).await;
        let instance = of::<2>(&database).await;
        let cut = replaying(&instance, 20_000);
        eventually(SOON, || async { sum_of_checkpoints(&client).await > 10_000 }).await;
        let before = checkpoints(&client).await;
        tokio::task::block_in_place(|| {
            if crash {
                cluster.kill_9().unwrap();
            }
            cluster.restart().unwrap();
        });
        let cut = timeout(SOON, cut).await.unwrap().unwrap();
        assert!(matches!(cut, Err(ReplayError::Store(_) | ReplayError::Outage { .. })), "{cut:?}");
        let client = database.client().await;
        let after = checkpoints(&client).await;
        assert!(before.iter().all(|(shard, position)| after[shard] >= *position), "{before:?} {after:?}");
        // Idle connections of the pool are found to be gone when they are used.
        let again = eventually(SOON, || async {
            instance.replay(&[accounts()], &with(cramped(SHARDS)), &|_| {}).await.ok()
        })
        .await;
        assert_eq!(again[0].progress.lag_events(), 0);
        is_the_same(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_log_does_not_have_to_fit_into_memory_and_neither_do_the_rows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let second = of::<2>(&database).await;
    drop(second);
    // More than a hundred mebibytes of events, and more than sixty of rows.
    let sql = "INSERT INTO changeover.events (position, stream, revision, type, data)
               SELECT n, 'stream-' || n % 40, n / 40 + 1, 'Opened',
                      json_build_object('account', n % 50000, 'owner', repeat(md5(n::text), 40))
               FROM generate_series(1, 80000) AS n;
               SELECT setval('changeover.event_position', 80000)";
    client.batch_execute(sql).await.unwrap();
    let (before, peak) = Operator::replay_within(&database, "accounts 2", 16 << 20).await;
    println!("{} MiB before, {} MiB at most", before >> 20, peak >> 20);
    assert!(peak < before + (64 << 20), "{} MiB after {}", peak >> 20, before >> 20);
    is_whole(&client, 2).await;
    let sql = "SELECT (SELECT count(*) FROM accounts_v2.accounts), (SELECT events FROM accounts_v2.whole),
                      (SELECT bool_and(owner = repeat(md5(last::text), 40))
                       FROM accounts_v2.accounts, LATERAL (SELECT CASE WHEN id BETWEEN 1 AND 30000 THEN id + 50000 WHEN id = 0 THEN 50000 ELSE id END AS last) l)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, bool>(2)), (50_000, 80_000, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_an_event_of_the_projector_is_replayed_to_its_end() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let second = of::<2>(&database).await;
    fill(&client, 0.16, 60_000).await;
    client.batch_execute("UPDATE changeover.events SET type = 'Unheard'").await.unwrap();
    assert_eq!(replay(&second, &with(cramped(SHARDS))).await, 0);
    is_whole(&client, 2).await;
}

fn an_event(chance: &mut Chance) -> AccountEvent {
    let account = i64::try_from(chance.below(60)).unwrap();
    let other = i64::try_from(chance.below(60)).unwrap();
    match chance.below(8) {
        0 => AccountEvent::Opened { account, owner: format!("owner {other}") },
        1 => AccountEvent::Closed { account },
        2 => AccountEvent::Nothing {},
        _ => AccountEvent::Moved { from: account, to: other, cents: other * 3 },
    }
}

/// Appends at random, to streams that others append to as well.
fn writer(instance: &Changeover, seed: u64) -> JoinHandle<()> {
    let instance = instance.clone();
    tokio::spawn(async move {
        let mut chance = Chance::new(seed);
        for _ in 0..150 {
            let events: Vec<AccountEvent> = (0..=chance.below(5)).map(|_| an_event(&mut chance)).collect();
            let name = stream(&format!("live-{}", chance.below(5)));
            instance.append(&name, Expected::Any, &events).await.unwrap();
        }
    })
}

/// Replays a version again and again, each time until some moment, until it is through.
async fn replay_by_fits_and_starts(instance: &Changeover, chance: &mut Chance, parallel: bool) {
    for fit in 1.. {
        let shards = u16::try_from(1 + chance.below(5)).unwrap();
        let memory_bytes = usize::try_from(20_000 + chance.below(400_000)).unwrap();
        let pace = Pace { memory_bytes, ..cramped(shards) };
        let options = if parallel { with(pace) } else { serially() };
        let limit = Duration::from_millis(chance.below(40) * fit);
        let names = [accounts()];
        if let Ok(done) = timeout(limit, instance.replay(&names, &options, &|_: &ReplayProgress| {})).await {
            done.unwrap();
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_serial_parallel_and_resumed_rows_are_the_same_row_for_row() {
    let first = seed();
    for seed in first..first + 3 {
        println!("CHANGEOVER_CHAOS_SEED={seed}");
        let mut chance = Chance::new(seed);
        let database = Database::fresh().await;
        let client = database.client().await;
        // The first version is live: appends admit it, a running instance publishes to it.
        let live = of::<1>(&database).await;
        #[expect(clippy::cast_precision_loss, reason = "a seed for the database, between 0 and 1")]
        fill(&client, chance.below(1_000) as f64 / 1_000.0, 8_000).await;
        let running = live.start();
        let writers: Vec<_> = (0..3).map(|_| writer(&live, chance.next())).collect();
        // The others are replayed beside it, while the log grows.
        let (resumed, serial) = (of::<2>(&database).await, of::<3>(&database).await);
        let mut other_chance = Chance::new(chance.next());
        tokio::join!(
            replay_by_fits_and_starts(&resumed, &mut chance, true),
            replay_by_fits_and_starts(&serial, &mut other_chance, false),
        );
        for writer in writers {
            timeout(SOON, writer).await.unwrap().unwrap();
        }
        published(&live, "accounts").await;
        // What came since.
        replay(&resumed, &with(cramped(3))).await;
        replay(&serial, &serially()).await;
        // And all of it at once, by two processes.
        let (one, other) = (of::<4>(&database).await, of::<4>(&database).await);
        let (at_once, tight) = (with(at_once()), with(cramped(4)));
        tokio::join!(replay(&one, &tight), replay(&other, &at_once));
        for version in 2..=4 {
            assert_eq!(differences(&client, 1, version).await, 0, "version {version}, seed {seed}");
        }
        assert!(rows(&client, 1).await > 7_000);
        running.stop().await;
    }
}
