//! What long work shows of itself in `status`, and that it can be ended by it: by whom, and by which process, makes no difference.

use std::time::Duration;

use changeover::{
    ActivateError, ActivateOptions, Changeover, Pace, ReplayError, RunningReplay, VerifyError, VerifyOptions,
};
use changeover_testkit::{Database, eventually};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::accounts::{accounts, cramped, of, replay, slowly, with};
use crate::operator::Operator;
use crate::parallel_breaking::{claims, handled_after, is_the_same, with_history};
use crate::releases::SOON;

/// So slow that it does not end by itself while a test looks at it.
const CRAWLING: u32 = 2_000;
const EVENTS: i64 = 120_000;

async fn shown(instance: &Changeover) -> Vec<RunningReplay> {
    instance.status().await.unwrap().replays
}

/// Waits until exactly so many processes are at it and one of them has come somewhere, and returns what they show. The others may
/// have to wait until it hands some of its shards on.
async fn under_way(instance: &Changeover, processes: usize) -> Vec<RunningReplay> {
    eventually(SOON, || async {
        let replays = shown(instance).await;
        let all = replays.len() == processes && replays.iter().all(|replay| replay.alive);
        (all && replays.iter().any(|replay| replay.events > 0)).then_some(replays)
    })
    .await
}

async fn checkpoints(client: &Client) -> i64 {
    let sql = "SELECT coalesce(min(position), 0)::bigint FROM changeover.checkpoints
               WHERE projector = 'accounts' AND major = 2 AND shard > 0";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_share_a_replay_show_how_far_they_are_until_they_end_or_are_killed() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.31, EVENTS).await;
    let watcher = of::<2>(&database).await;
    assert_eq!(shown(&watcher).await, []);
    let start = || Operator::replay_in_bulk(&database, "accounts 2", 4, CRAWLING, u64::MAX);
    let (one, other) = (start(), start());
    let both = under_way(&watcher, 2).await;
    for process in [&one, &other] {
        let own = both.iter().find(|replay| replay.pid == i64::from(process.pid())).unwrap();
        let names = (own.projector.as_str(), own.version.to_string());
        assert_eq!((names.0, &names.1[..], &own.purpose[..]), ("accounts", "2.0.0", "replay"));
        assert_eq!(own.requested_by.as_deref(), Some("test"));
        assert_eq!(own.phase, if own.events > 0 { "bulk" } else { "beginning" });
        assert_eq!((&own.application[..], &own.application_version[..]), ("operator", "accounts 2"));
        assert!(own.lag_events > 0 && own.lag_events <= 2 * EVENTS, "{own:?}");
        assert!(own.host.is_some() && own.aborted_by.is_none(), "{own:?}");
    }
    assert_ne!(both[0].id, both[1].id);
    // How fast they are, and how long still, can be told after a while.
    eventually(SOON, || async {
        let known = |replay: &RunningReplay| replay.events_per_sec.is_some() && replay.left_secs > Some(1.0);
        shown(&watcher).await.iter().any(known)
    })
    .await;
    // The one that is killed is seen to be gone by its silence, the other one goes on.
    one.kill_9();
    eventually(SOON, || async {
        let replays = shown(&watcher).await;
        let is_alive = |process: &Operator| {
            replays.iter().find(|replay| replay.pid == i64::from(process.pid())).map(|replay| replay.alive)
        };
        is_alive(&one) == Some(false) && is_alive(&other) == Some(true)
    })
    .await;
    other.kill_9();
    eventually(SOON, || async { claims(&client).await.is_empty() }).await;
    // Whoever begins next removes what has been silent for long, and nothing else.
    let sql = "UPDATE changeover.replays SET last_seen = last_seen - interval '2 minutes' WHERE pid = $1";
    assert_eq!(client.execute(sql, &[&i64::from(one.pid())]).await.unwrap(), 1);
    replay(&watcher, &with(Pace { memory_bytes: 64 << 20, ..cramped(4) })).await;
    let left: Vec<i64> = shown(&watcher).await.iter().map(|replay| replay.pid).collect();
    assert_eq!(left, [i64::from(other.pid())]);
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_the_rows_that_show_a_replay() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.32, 5_000).await;
    let instance = of::<2>(&database).await;
    let mut holder = database.client().await;
    let held = holder.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE changeover.replays IN EXCLUSIVE MODE").await.unwrap();
    // Neither who replays and activates, nor who looks.
    let options = ActivateOptions {
        pace: cramped(2),
        verify: Some(VerifyOptions::default()),
        pause_limit: SOON,
        ..ActivateOptions::default()
    };
    let activated = timeout(2 * SOON, instance.activate(&options, &|_| {})).await.unwrap().unwrap();
    assert!(activated.activation.is_some());
    assert_eq!(timeout(SOON, shown(&instance)).await.unwrap(), []);
    held.rollback().await.unwrap();
    is_the_same(&client).await;
    // What waited for the lock is gone with it.
    eventually(SOON, || async { shown(&instance).await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_another_process_is_aborted_and_goes_on_from_there_the_next_time() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.33, EVENTS).await;
    let watcher = of::<2>(&database).await;
    let (there, frozen) = (
        Operator::replay_in_bulk(&database, "accounts 2", 4, CRAWLING, u64::MAX),
        Operator::replay_in_bulk(&database, "accounts 2", 4, CRAWLING, u64::MAX),
    );
    under_way(&watcher, 2).await;
    eventually(SOON, || async { checkpoints(&client).await > 0 }).await;
    frozen.freeze();
    // Of other projectors nobody is meant.
    let others = ["closings".parse().unwrap()];
    assert_eq!(watcher.abort_replays(&others, "nobody").await.unwrap(), []);
    let aborted = watcher.abort_replays(&[accounts()], "ada").await.unwrap();
    assert_eq!(aborted.len(), 2);
    assert!(aborted.iter().all(|replay| replay.aborted_by.as_deref() == Some("ada")), "{aborted:?}");
    assert_eq!(watcher.abort_replays(&[], "bob").await.unwrap(), [], "told once is told");
    let said = there.end().await;
    assert!(said.contains("Aborted") && said.contains("by: \"ada\""), "{said}");
    eventually(SOON, || async { shown(&watcher).await.len() == 1 }).await;
    // Whoever was frozen sees it when it wakes up.
    let said = frozen.thaw().await;
    assert!(said.contains("Aborted") && said.contains("by: \"ada\""), "{said}");
    eventually(SOON, || async { shown(&watcher).await.is_empty() && claims(&client).await.is_empty() }).await;
    // Everything that was replayed is kept.
    let sql = "SELECT min(position) FROM changeover.checkpoints WHERE major = 2 AND shard > 0";
    let after: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(after > 0);
    let options = with(Pace { memory_bytes: 64 << 20, ..cramped(4) });
    assert_eq!(replay(&watcher, &options).await, handled_after(&client, after).await);
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activation_whose_replay_is_aborted_has_not_happened() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.34, EVENTS).await;
    let instance = of::<2>(&database).await;
    let activating = {
        let instance = instance.clone();
        let options = ActivateOptions { pace: slowly(4, CRAWLING), ..ActivateOptions::default() };
        tokio::spawn(async move { instance.activate(&options, &|_| {}).await })
    };
    under_way(&instance, 1).await;
    assert_eq!(instance.abort_replays(&[accounts()], "ada").await.unwrap().len(), 1);
    let refused = timeout(SOON, activating).await.unwrap().unwrap().unwrap_err();
    let by_ada = matches!(&refused, ActivateError::Replay(ReplayError::Aborted { by, .. }) if by == "ada");
    assert!(by_ada, "{refused:?}");
    let sql = "SELECT outcome, error FROM changeover.activations";
    let history = client.query_one(sql, &[]).await.unwrap();
    assert_eq!(history.get::<_, &str>(0), "failed");
    assert!(history.get::<_, &str>(1).contains("aborted by ada"), "{}", history.get::<_, &str>(1));
    assert_eq!(shown(&instance).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_shows_how_far_it_is_and_is_aborted_without_a_trace() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.35, EVENTS).await;
    let instance = of::<1>(&database).await;
    let verifying = {
        let instance = instance.clone();
        let options = VerifyOptions { pace: slowly(4, CRAWLING), ..VerifyOptions::default() };
        tokio::spawn(async move { instance.verify(&accounts(), &options, &|_| {}).await })
    };
    let [verification] = &under_way(&instance, 1).await[..] else { panic!("one process") };
    assert_eq!(verification.purpose, "verify");
    instance.abort_replays(&[], "ada").await.unwrap();
    let refused = timeout(SOON, verifying).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&refused, VerifyError::Aborted { by, .. } if by == "ada"), "{refused:?}");
    let sql = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%_verify_%'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(shown(&instance).await, []);
}

/// The rows that stand in the way of nobody stand in the way of a dropped future either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_given_up_in_this_process_is_shown_no_more() {
    let database = Database::fresh().await;
    let _client = with_history(&database, 0.36, EVENTS).await;
    let instance = of::<2>(&database).await;
    let options = with(slowly(4, CRAWLING));
    let given_up = timeout(Duration::from_secs(2), instance.replay(&[accounts()], &options, &|_| {})).await;
    assert!(given_up.is_err());
    eventually(SOON, || async { shown(&instance).await.is_empty() }).await;
}
