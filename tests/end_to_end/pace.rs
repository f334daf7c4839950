//! What the pace of a replay promises: so many connections, so many indexes at once, and no more lost than what lies after the last write.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Configuration, Fold, FoldProjector, Indexing, Pace, Recorded, ReplayPhase, ReplayProgress, Row,
    StreamName,
};
use changeover_testkit::{Database, eventually};
use tokio::time::timeout;

use crate::accounts::{AccountEvent, accounts, at_once, cramped, fill, of, replay, slowly, with};
use crate::operator::Operator;
use crate::orders::instance;
use crate::parallel_breaking::{checkpoints, handled_after, is_the_same, nobody_is_at_it, with_history};
use crate::releases::SOON;

/// A row for each stream, with two secondary indexes.
#[derive(Row, Clone)]
#[row(table = "visits")]
struct Visit {
    #[row(key)]
    stream: String,
    #[row(index)]
    events: i64,
    #[row(index)]
    last: i64,
}

impl Fold for Visit {
    type Event = AccountEvent;

    fn keys(_event: &AccountEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(row: Option<Self>, stream: &String, event: &Recorded<AccountEvent>) -> Option<Self> {
        let events = row.map_or(0, |row| row.events) + 1;
        Some(Self { stream: stream.clone(), events, last: event.position.get() })
    }
}

struct Visits;

impl FoldProjector for Visits {
    const NAME: &'static str = "visits";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = AccountEvent;
    type Tables = (Visit,);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_indexes_are_built_at_once_as_there_are_connections_for_and_progress_counts_them() {
    for (max_connections, at_once) in [(8, 2), (2, 1)] {
        let database = Database::fresh().await;
        let (client, holder) = (database.client().await, database.client().await);
        let visits = instance(&database, Configuration::new().fold(Visits).unwrap()).await;
        fill(&client, 0.31, 2_000).await;
        let reports = Arc::new(Mutex::new(Vec::<(ReplayPhase, Option<Indexing>)>::new()));
        let (in_bulk, mut bulk) = tokio::sync::mpsc::unbounded_channel();
        let (go, gate) = mpsc::channel::<()>();
        let replaying = tokio::spawn({
            let (reports, gate) = (reports.clone(), Mutex::new(gate));
            async move {
                let on_progress = |progress: &ReplayProgress| {
                    reports.lock().unwrap().push((progress.phase, progress.indexing));
                    if progress.phase == ReplayPhase::Bulk && in_bulk.send(()).is_ok() {
                        // An error: it was let go for good.
                        tokio::task::block_in_place(|| gate.lock().unwrap().recv()).unwrap_or_default();
                    }
                };
                let options = with(Pace { max_connections, ..cramped(2) });
                visits.replay(&["visits".parse().unwrap()], &options, &on_progress).await
            }
        });
        timeout(SOON, bulk.recv()).await.unwrap().unwrap();
        // Rows go in beside this lock, and no index is built.
        holder.batch_execute("BEGIN; LOCK TABLE visits_v1.visits IN ROW EXCLUSIVE MODE").await.unwrap();
        drop((go, bulk));
        // Twice: between the two, every statement that is to run has long been sent.
        let indexing = |reports: &[(ReplayPhase, Option<Indexing>)]| {
            reports.iter().filter_map(|(_, indexing)| *indexing).collect::<Vec<_>>()
        };
        eventually(SOON, || async { indexing(&reports.lock().unwrap()).len() >= 3 }).await;
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'CREATE INDEX%'";
        assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), at_once);
        assert!(
            indexing(&reports.lock().unwrap()).iter().all(|indexing| (indexing.built, indexing.of) == (0, 2))
        );
        holder.batch_execute("COMMIT").await.unwrap();
        timeout(SOON, replaying).await.unwrap().unwrap().unwrap();

        let reports = reports.lock().unwrap().clone();
        let built: Vec<u32> = indexing(&reports).iter().map(|indexing| indexing.built).collect();
        assert!(built.is_sorted() && built.last() == Some(&2), "{built:?}");
        let mut phases: Vec<ReplayPhase> = reports.iter().map(|(phase, _)| *phase).collect();
        phases.dedup();
        assert_eq!(phases, [ReplayPhase::Bulk, ReplayPhase::Indexing, ReplayPhase::CatchingUp]);
        assert!(
            reports.iter().all(|(phase, indexing)| indexing.is_some() == (*phase == ReplayPhase::Indexing))
        );
        let sql = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'visits_v1'";
        assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 3);
    }
}

/// What a replay holds besides: to ask how things stand, to show how far it is.
const BESIDES: i64 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_has_as_many_connections_as_it_is_told_and_two_besides() {
    for max_connections in [1, 4, 7, 12] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let second = of::<2>(&database).await;
        fill(&client, 0.32, 8_000).await;
        // Far apart, so that there is something to read for every connection that may.
        let sql = "UPDATE changeover.events SET position = -position * 10; UPDATE changeover.events SET position = -position;
                   SELECT setval('changeover.event_position', 160000)";
        client.batch_execute(sql).await.unwrap();
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let sessions = async || client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        let before = sessions().await;
        let replaying = tokio::spawn(async move {
            let checkpoint_every = Duration::from_millis(20);
            let pace = Pace { max_connections, checkpoint_every, ..slowly(12, 8_000) };
            second.replay(&[accounts()], &with(pace), &|_| {}).await
        });
        let mut most = 0;
        while !replaying.is_finished() {
            most = most.max(sessions().await - before);
        }
        assert_eq!(timeout(SOON, replaying).await.unwrap().unwrap().unwrap()[0].progress.lag_events(), 0);
        // It takes at least three.
        let bound = i64::try_from(max_connections.max(3)).unwrap() + BESIDES;
        println!("{max_connections}: {most} sessions of {bound}");
        assert!(most <= bound, "{most} sessions where {bound} are allowed");
        // And makes use of them.
        assert!(most >= bound - 1, "{most} sessions where {bound} are allowed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_locks_the_tables_of_a_throttled_replay_waits_for_one_write_and_stops_nobody() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.33, 8_000).await;
    let second = of::<2>(&database).await;
    let replaying =
        tokio::spawn(async move { second.replay(&[accounts()], &with(slowly(4, 4_000)), &|_| {}).await });
    // Whoever writes is waited for, and whoever is about to write waits for the lock.
    let lock = "BEGIN; LOCK TABLE accounts_v2.accounts IN SHARE MODE; COMMIT";
    eventually(SOON, || async { !checkpoints(&client).await.is_empty() }).await;
    let mut locked = 0;
    while !replaying.is_finished() {
        timeout(SOON, client.batch_execute(lock)).await.unwrap().unwrap();
        locked += 1;
    }
    assert!(locked > 10, "only {locked} locks");
    assert_eq!(replaying.await.unwrap().unwrap()[0].progress.lag_events(), 0);
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_costs_is_what_it_read_since_it_was_to_write_last() {
    for checkpoint_every in [Duration::from_millis(300), Duration::from_mins(10)] {
        let database = Database::fresh().await;
        let client = with_history(&database, 0.33, 20_000).await;
        // There is memory for all of it, so nothing else makes it write. It has read some of the log, and reads no more.
        let (killed, reached) =
            Operator::replay_rarely(&database, "accounts 2", checkpoint_every, 6_000).await;
        assert!((6_000..40_000).contains(&reached), "{reached}");
        let is_often = checkpoint_every < Duration::from_secs(1);
        if is_often {
            // Sooner than it would by default, also on a machine that stands still for a while.
            eventually(Duration::from_secs(4), || async {
                checkpoints(&client).await.values().all(|position| *position == reached)
            })
            .await;
        }
        killed.kill_9();
        nobody_is_at_it(&client).await;
        let kept = if is_often { reached } else { 0 };
        assert!(checkpoints(&client).await.values().all(|position| *position == kept));
        let heir = of::<2>(&database).await;
        assert_eq!(replay(&heir, &with(at_once())).await, handled_after(&client, kept).await);
        is_the_same(&client).await;
    }
}
