//! A replay that is held back: by a rate, by a server that is busy, by others' locks. It leaves the live system what it is to leave it,
//! says why it stands still, and goes on.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use changeover::{
    CaughtUp, Changeover, Pace, ReplayError, ReplayOptions, ReplayPhase, ReplayProgress, Throttle,
    VerifyOptions, VerifyProgress,
};
use changeover_testkit::{Database, eventually};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::accounts::{accounts, cramped, of, replay, serially, slowly, with};
use crate::parallel_breaking::{claims, is_the_same, with_history};
use crate::releases::SOON;

/// The same, serially.
fn slowly_by_steps(events_per_sec: u32) -> ReplayOptions {
    let Pace { throttle, .. } = slowly(1, events_per_sec);
    with(Pace { throttle, ..serially().pace })
}

/// A replay of the second version in a task of its own, and what it reports.
fn replaying(
    instance: &Changeover,
    options: ReplayOptions,
    reports: &'static Mutex<Vec<ReplayProgress>>,
) -> JoinHandle<Result<Vec<CaughtUp>, ReplayError>> {
    let instance = instance.clone();
    tokio::spawn(async move {
        let note = |progress: &ReplayProgress| reports.lock().unwrap().push(progress.clone());
        instance.replay(&[accounts()], &options, &note).await
    })
}

fn reports() -> &'static Mutex<Vec<ReplayProgress>> {
    Box::leak(Box::default())
}

fn last(reports: &Mutex<Vec<ReplayProgress>>) -> Option<ReplayProgress> {
    reports.lock().unwrap().last().cloned()
}

/// Everybody's checkpoints together.
async fn progress(client: &Client) -> i64 {
    let sql = "SELECT coalesce(sum(position), 0)::bigint FROM changeover.checkpoints
               WHERE projector = 'accounts' AND major = 2";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_events_go_through_than_the_rate_allows_in_bulk_by_steps_or_in_a_verification() {
    const RATE: u32 = 5_000;
    // What goes through at once, what sleeping too long is made up for, and what a clock of milliseconds cuts off.
    const AT_ONCE: f64 = 0.2 * RATE as f64;
    let check = |events: u64, elapsed: Duration| {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let events = events as f64;
        let allowed = f64::from(RATE) * elapsed.as_secs_f64() + AT_ONCE;
        assert!(events <= allowed, "{events} events after {elapsed:?}");
    };
    let database = Database::fresh().await;
    let client = with_history(&database, 0.51, 10_000).await;
    for options in [with(slowly(2, RATE)), slowly_by_steps(RATE)] {
        let instance = of::<2>(&database).await;
        let options = ReplayOptions { restart: true, ..options };
        let seen = Mutex::new(0);
        let note = |progress: &ReplayProgress| {
            check(progress.events, progress.elapsed);
            *seen.lock().unwrap() += 1;
        };
        let begun = Instant::now();
        let done = instance.replay(&[accounts()], &options, &note).await.unwrap();
        assert!(done[0].progress.events > 7_500 && *seen.lock().unwrap() > 5, "{done:?}");
        check(done[0].progress.events, begun.elapsed());
        is_the_same(&client).await;
    }
    for pace in [slowly(2, RATE), slowly_by_steps(RATE).pace] {
        let (begun, seen) = (Instant::now(), Mutex::new(0));
        let note = |progress: VerifyProgress| {
            if let VerifyProgress::Folding(progress) = progress {
                check(progress.events, begun.elapsed());
                *seen.lock().unwrap() += 1;
            }
        };
        let options = VerifyOptions { pace, ..VerifyOptions::default() };
        let verified = of::<2>(&database).await.verify(&accounts(), &options, &note).await.unwrap();
        assert!(verified.is_equal() && verified.events > 7_500, "{verified:?}");
        check(verified.events, begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_commits_take_long_a_replay_pauses_and_says_so() {
    for options in [with(cramped(3)), serially()] {
        let database = Database::fresh().await;
        let client = with_history(&database, 0.52, 20_000).await;
        let throttle = Throttle { commit_latency: Some(Duration::from_millis(500)), ..Throttle::default() };
        let options = with(Pace { throttle, ..options.pace });
        let instance = of::<2>(&database).await;
        // A commit that takes as long as this transaction.
        let mut busy = database.client().await;
        let busy = busy.transaction().await.unwrap();
        busy.batch_execute("UPDATE changeover.compatibility SET needs = needs").await.unwrap();
        let reports = reports();
        let replaying = replaying(&instance, options, reports);
        let shown = eventually(SOON, || async {
            let replays = instance.status().await.unwrap().replays;
            replays.into_iter().find(|replay| replay.phase == "paused")
        })
        .await;
        assert_eq!((shown.events, progress(&client).await), (0, 0));
        // How far it is behind is still told while the log grows.
        let horizon = last(reports).unwrap().horizon;
        client.batch_execute("SELECT setval('changeover.event_position', 41000)").await.unwrap();
        eventually(SOON, || async { last(reports).unwrap().horizon > horizon }).await;
        let paused =
            reports.lock().unwrap().iter().filter(|report| report.phase == ReplayPhase::Paused).count();
        assert!(paused > 1 && last(reports).unwrap().phase == ReplayPhase::Paused);
        assert_eq!(progress(&client).await, 0);

        busy.rollback().await.unwrap();
        let done = timeout(SOON, replaying).await.unwrap().unwrap().unwrap();
        assert!(done[0].progress.phase != ReplayPhase::Paused && done[0].progress.events > 15_000);
        is_the_same(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_the_bulk_is_behind_grows_with_the_log_and_nothing_is_counted_anew_after_it() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.53, 20_000).await;
    let instance = of::<2>(&database).await;
    let reports = reports();
    let replaying = replaying(&instance, with(slowly(2, 5_000)), reports);
    eventually(SOON, || async { last(reports).is_some_and(|report| report.events > 0) }).await;
    let before = last(reports).unwrap();
    assert_eq!((before.phase, before.horizon.get()), (ReplayPhase::Bulk, 40_000));
    let append = "INSERT INTO changeover.events (position, stream, revision, type, data)
                  SELECT 40000 + n, 'late', n, 'Closed', json_build_object('account', n) FROM generate_series(1, 500) AS n;
                  SELECT setval('changeover.event_position', 40500)";
    client.batch_execute(append).await.unwrap();
    let grown = eventually(SOON, || async {
        reports.lock().unwrap().iter().find(|report| report.horizon.get() == 40_500).cloned()
    })
    .await;
    assert_eq!(grown.phase, ReplayPhase::Bulk);
    let done = timeout(SOON, replaying).await.unwrap().unwrap().unwrap();
    let reports = reports.lock().unwrap();
    for pair in reports.windows(2) {
        assert!(pair[0].events <= pair[1].events && pair[0].elapsed <= pair[1].elapsed, "{pair:#?}");
    }
    let phases: Vec<ReplayPhase> = reports.iter().map(|report| report.phase).collect();
    assert!(phases.contains(&ReplayPhase::Indexing) && phases.last() == Some(&ReplayPhase::CatchingUp));
    let end = &done[0].progress;
    assert!(end.position.get() == 40_500 && end.elapsed >= grown.elapsed, "{end:?}");
}

/// More than a connection's buffers hold.
async fn fill_with_large_events(client: &Client) {
    let sql = "INSERT INTO changeover.events (position, stream, revision, type, data)
               SELECT n, 'stream-' || n % 40, n / 40 + 1, 'Opened',
                      json_build_object('account', n, 'owner', repeat(md5(n::text), 128))
               FROM generate_series(1, 10000) AS n;
               SELECT setval('changeover.event_position', 10000)";
    client.batch_execute(sql).await.unwrap();
}

/// How many statements that begin so have been at it for longer than the limit.
async fn beyond_the_limit(client: &Client, beginning: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND state = 'active' AND query LIKE $1 || '%'
                 AND clock_timestamp() - query_start > interval '600 ms'";
    client.query_one(sql, &[&beginning]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_a_replay_is_not_ended_by_the_limit_that_the_role_has_for_its_statements() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let second = of::<2>(&database).await;
    // Makes the tables.
    replay(&second, &with(cramped(2))).await;
    fill_with_large_events(&client).await;
    let limit = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = ''300ms''', current_database()); END $$";
    client.batch_execute(limit).await.unwrap();

    // Whoever reads the log waits for a shard, which waits for a row with the same key.
    let mut other = database.client().await;
    other.batch_execute("SET statement_timeout = 0").await.unwrap();
    let held = other.transaction().await.unwrap();
    held.batch_execute("INSERT INTO accounts_v2.accounts VALUES (1, NULL, 0, '')").await.unwrap();
    let instance = of::<2>(&database).await;
    let roomy = Pace { memory_bytes: 8 << 20, ..cramped(2) };
    let going = replaying(&instance, with(roomy), reports());
    eventually(SOON, || async { beyond_the_limit(&client, "COPY (SELECT").await > 0 || going.is_finished() })
        .await;
    held.rollback().await.unwrap();
    assert!(!going.is_finished(), "{:?}", going.await);
    timeout(SOON, going).await.unwrap().unwrap().unwrap();

    // A shard waits for the rows that it has to load, since it goes on where another one was.
    let seen = reports();
    let begun = replaying(&instance, ReplayOptions { restart: true, ..with(slowly(2, 1_000)) }, seen);
    eventually(SOON, || async { last(seen).is_some_and(|report| report.events > 500) }).await;
    begun.abort();
    assert!(progress(&client).await > 0);
    eventually(SOON, || async { claims(&client).await.is_empty() }).await;
    let seen = reports();
    let never = Pace { memory_bytes: 64 << 20, checkpoint_every: SOON, ..slowly(2, 1_000) };
    let going = replaying(&instance, with(never), seen);
    eventually(SOON, || async { last(seen).is_some_and(|report| report.events > 0) || going.is_finished() })
        .await;
    assert!(!going.is_finished(), "{:?}", going.await);
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK TABLE accounts_v2.accounts IN ACCESS EXCLUSIVE MODE").await.unwrap();
    eventually(SOON, || async { beyond_the_limit(&client, "SELECT t.").await > 0 || going.is_finished() })
        .await;
    locked.rollback().await.unwrap();
    assert!(!going.is_finished(), "{:?}", going.await);
    going.abort();
}
