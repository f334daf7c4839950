//! Stable views: readers outside the application always see the active version, and keep what they were granted.

mod in_the_way;
mod kept;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use changeover::tokio_postgres::Client;
use changeover::{
    ActivateOptions, Activated, ActivationProgress, Changeover, ProjectorViews, PruneOptions, ViewProblem,
    WhenNothingIsActive,
};
use changeover_testkit::{Cluster, Database, PgBouncer, eventually};
use tokio::task::JoinHandle;

use crate::ledger::{ledger, ledger_on};
use crate::operator::Operator;
use crate::orders::place;
use crate::releases::{Held, SOON, active, hasty, instance_of, release};

/// Long enough for one more look behind a reader.
const MOMENT: Duration = Duration::from_millis(350);

/// How long a reader would wait at least who queues behind a lock request that waits for a long reader; on a slow machine
/// any other one waits for a while, too.
const QUEUED: Duration = Duration::from_secs(10);

async fn activate(changeover: &Changeover) -> Activated {
    changeover.activate(&hasty(), &|_| {}).await.unwrap()
}

async fn impatient(changeover: &Changeover) -> Activated {
    let options = ActivateOptions { views_timeout: MOMENT, ..hasty() };
    changeover.activate(&options, &|_| {}).await.unwrap()
}

/// A ledger of this version is active and has an order in it.
async fn ledger_is_active(major: u64) -> (Database, Client, Changeover) {
    let database = Database::fresh().await;
    let client = database.client().await;
    let changeover = ledger_on(&database, major).await;
    place(&changeover, "order-1", 0).await;
    let _ = activate(&changeover).await;
    let running = changeover.start();
    changeover.wait_for(&"ledger".parse().unwrap(), changeover.horizon().await.unwrap(), SOON).await.unwrap();
    running.stop().await;
    (database, client, changeover)
}

/// Which version the views of the ledger show, by their rows.
async fn shown(client: &Client) -> (i32, i32) {
    let row = client
        .query_one("SELECT e.major, s.major FROM ledger.entries e, ledger.sums s LIMIT 1", &[])
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

/// The views that lag behind, by name.
async fn lagging(changeover: &Changeover) -> Vec<String> {
    let views = changeover.status().await.unwrap().views;
    views.iter().filter(|view| view.lags_behind()).map(|view| view.view.clone()).collect()
}

fn the_problem(views: &[ProjectorViews]) -> &ViewProblem {
    let [ProjectorViews { problems, changed, .. }] = views else { panic!("{views:?}") };
    assert_eq!(changed, &[""; 0]);
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    problem
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn views_are_made_by_the_first_activation_and_by_the_first_instance_ever() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let humble = Changeover::builder(database.config())
        .configuration(release("1.0.0 totals"))
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    humble.migrate().await.unwrap();
    let activated = activate(&humble.connect().await.unwrap()).await;
    let made: Vec<&[String]> = activated.views.iter().map(|views| &views.changed[..]).collect();
    assert_eq!(made, [["orders.orders".to_owned()], ["totals.total".to_owned()]]);
    client.query("SELECT o.id, o.items, t.items FROM orders.orders o, totals.total t", &[]).await.unwrap();

    let database = Database::fresh().await;
    let client = database.client().await;
    let assuming = instance_of(&database, "inline 1.0.0 totals").await;
    place(&assuming, "order-1", 2).await;
    assert_eq!(text(&client, "SELECT id FROM orders.orders").await, "order-1");
    client.query("SELECT FROM totals.total", &[]).await.unwrap();
    assert_eq!(lagging(&assuming).await, [""; 0]);
}

#[tokio::test]
async fn views_follow_upgrades_and_the_way_back() {
    let (database, client, one) = ledger_is_active(1).await;
    assert_eq!(shown(&client).await, (1, 1));
    let (two, three) = (ledger_on(&database, 2).await, ledger_on(&database, 3).await);
    for (next, version) in [(&two, 2), (&one, 1), (&three, 3), (&one, 1), (&two, 2)] {
        let activated =
            if version == 1 { next.rollback(&hasty(), &|_| {}).await.unwrap() } else { activate(next).await };
        let [views] = &activated.views[..] else { panic!("{:?}", activated.views) };
        assert_eq!(views.changed, ["ledger.entries", "ledger.sums"]);
        assert_eq!((views.active, &views.problems[..]), (Some(u64::try_from(version).unwrap()), &[][..]));
        assert_eq!(shown(&client).await, (version, version));
        assert_eq!(lagging(next).await, [""; 0]);
        // Nothing is left to do, and nothing is done.
        let again = next.repoint_views(MOMENT).await.unwrap();
        assert!(again.iter().all(|views| views.changed.is_empty() && views.problems.is_empty()), "{again:?}");
        assert_eq!(activate(next).await.views, []);
    }
}

#[tokio::test]
async fn an_activation_that_is_aborted_leaves_the_views_where_the_states_are() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let options = ActivateOptions {
        wait_for_instances: 1,
        instances_timeout: Duration::from_millis(300),
        ..ActivateOptions::default()
    };
    two.activate(&options, &|_| {}).await.unwrap_err();
    assert_eq!((shown(&client).await, active(&client).await.as_str()), ((1, 1), "ledger 1.0.0"));
    let views = one.repoint_views(MOMENT).await.unwrap();
    assert!(views.iter().all(|views| views.changed.is_empty()), "{views:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_poll_during_activations_see_no_error_and_one_version_at_a_time() {
    let (database, _client, one) = ledger_is_active(1).await;
    let (two, three) = (ledger_on(&database, 2).await, ledger_on(&database, 3).await);
    let running = [one.start(), two.start(), three.start()];
    let stop = Arc::new(AtomicBool::new(false));
    let newest: Arc<[AtomicI32; 3]> = Arc::default();
    let mut readers = Vec::new();
    for number in 0..3 {
        let (reader, stop, newest) = (database.client().await, stop.clone(), newest.clone());
        readers.push(tokio::spawn(async move {
            let sql = "SELECT e.major AS entries, s.major AS sums FROM ledger.entries e, ledger.sums s WHERE e.id = 'order-1'";
            let statement = reader.prepare(sql).await.unwrap();
            let mut seen: Vec<i32> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let row = match number {
                    0 => reader.query_one(&statement, &[]).await.unwrap(),
                    _ => reader.query_typed_one(sql, &[]).await.unwrap(),
                };
                let (entries, sums): (i32, i32) = (row.get(0), row.get(1));
                assert_eq!(entries, sums, "a statement saw two versions");
                if seen.last() != Some(&entries) {
                    seen.push(entries);
                }
                newest[number].store(entries, Ordering::Relaxed);
            }
            seen
        }));
    }
    for (next, version) in [(&two, 2), (&one, 1), (&three, 3), (&one, 1), (&two, 2)] {
        let activated = activate(next).await;
        assert!(activated.views.iter().all(|views| views.problems.is_empty()), "{:?}", activated.views);
        let seen = || async {
            let all_see_it = newest.iter().all(|newest| newest.load(Ordering::Relaxed) == version);
            all_see_it || readers.iter().any(JoinHandle::is_finished)
        };
        eventually(SOON, seen).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), [1, 2, 1, 3, 1, 2]);
    }
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_holds_up_the_views_alone_and_nobody_queues_behind_them() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.sums", &[]).await.unwrap();
    let pid: i32 = reading.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    // Somebody who reads all the time meanwhile is never held up for long.
    let stop = Arc::new(AtomicBool::new(false));
    let others = tokio::spawn({
        let (reader, stop) = (database.client().await, stop.clone());
        async move {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(shown(&reader).await, (1, 1));
                longest = longest.max(asked.elapsed());
            }
            longest
        }
    });
    let options = ActivateOptions { views_timeout: Duration::from_secs(2), ..hasty() };
    let activated = two.activate(&options, &|_| {}).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let longest = others.await.unwrap();
    assert!(longest < QUEUED, "a reader waited {longest:?} behind a lock request");

    assert!(activated.activation.is_some());
    assert_eq!(active(&client).await, "ledger 2.0.0");
    let ViewProblem::Blocked { blockers, .. } = the_problem(&activated.views) else {
        panic!("{:?}", activated.views)
    };
    assert_eq!(blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [Some(pid)]);
    let said = activated.views[0].problems[0].to_string();
    assert!(said.contains(&format!("pid {pid}")) && said.contains("`repoint-views`"), "{said}");
    // Both stay, though only one is read: never two versions at once.
    assert_eq!(shown(&client).await, (1, 1));
    assert_eq!(lagging(&one).await, ["entries", "sums"]);

    reading.commit().await.unwrap();
    let views = one.repoint_views(SOON).await.unwrap();
    assert_eq!(views[0].changed, ["ledger.entries", "ledger.sums"]);
    assert_eq!(shown(&client).await, (2, 2));
    assert_eq!(lagging(&one).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_views_move_as_soon_as_the_long_reader_is_done() {
    let (database, client, _one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let options = ActivateOptions { views_timeout: SOON, ..hasty() };
    let mut activating = Held::at("waiting for readers", &two, options);
    activating.reached().await;
    // The activation itself is over and done with.
    assert_eq!(active(&client).await, "ledger 2.0.0");
    reading.commit().await.unwrap();
    let activated = activating.outcome().await.unwrap();
    assert_eq!((activated.views[0].changed.len(), activated.views[0].problems.len()), (2, 0));
    assert_eq!(shown(&client).await, (2, 2));
}

#[tokio::test]
async fn whoever_is_killed_between_the_switch_and_the_views_leaves_them_to_the_next() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    place(&old, "order-1", 2).await;
    let new = instance_of(&database, "2.0.0").await;
    let shows = async || {
        text(&client, "SELECT DISTINCT view_schema::text || ' ' || table_schema::text FROM information_schema.view_table_usage WHERE view_schema = 'orders'").await
    };
    for by_hand in [true, false] {
        let activating = Operator::activate(&database, "2.0.0", "switched", Duration::from_secs(2)).await;
        assert_eq!(
            (active(&client).await.as_str(), shows().await.as_str()),
            ("orders 2.0.0", "orders orders_v1")
        );
        activating.kill_9();
        assert_eq!(lagging(&new).await, ["orders"]);
        if by_hand {
            assert_eq!(new.repoint_views(SOON).await.unwrap()[0].changed, ["orders.orders"]);
        } else {
            let activated = activate(&new).await;
            assert_eq!(
                (activated.activation, &activated.views[0].changed[..]),
                (None, &["orders.orders".to_owned()][..])
            );
        }
        assert_eq!(shows().await, "orders orders_v2");
        assert_eq!(lagging(&new).await, [""; 0]);
        let _ = activate(&old).await;
        assert_eq!(shows().await, "orders orders_v1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_operators_at_once_leave_the_views_where_the_states_are() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    for _ in 0..6 {
        let operators = [one.clone(), two.clone(), one.clone()].map(|changeover| {
            tokio::spawn(async move {
                // Whoever comes second may be told so.
                let _ = changeover.activate(&ActivateOptions::default(), &|_| {}).await;
                changeover.repoint_views(SOON).await.unwrap();
            })
        });
        for operator in operators {
            operator.await.unwrap();
        }
        let version = if active(&client).await == "ledger 1.0.0" { 1 } else { 2 };
        assert_eq!(shown(&client).await, (version, version));
    }
}

#[tokio::test]
async fn views_and_their_schema_come_back_if_somebody_dropped_them() {
    let (_database, client, one) = ledger_is_active(1).await;
    client.batch_execute("DROP VIEW ledger.sums").await.unwrap();
    assert_eq!(lagging(&one).await, ["sums"]);
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.sums"]);
    client.batch_execute("DROP SCHEMA ledger CASCADE").await.unwrap();
    assert_eq!(lagging(&one).await, ["entries", "sums"]);
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries", "ledger.sums"]);
    assert_eq!(shown(&client).await, (1, 1));
}

#[tokio::test]
async fn whoever_may_not_create_schemas_activates_all_the_same_and_is_told() {
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let one = ledger_on(&database, 1).await;
    place(&one, "order-1", 0).await;
    client
        .batch_execute(
            "CREATE ROLE deploying LOGIN;
             GRANT USAGE ON SCHEMA changeover, ledger_v1 TO deploying;
             GRANT ALL ON ALL TABLES IN SCHEMA changeover, ledger_v1 TO deploying;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA changeover TO deploying;
             DROP SCHEMA ledger CASCADE; DELETE FROM changeover.views",
        )
        .await
        .unwrap();
    let mut config = cluster.config();
    config.user("deploying").dbname(database.name());
    let deploying = Changeover::builder(config).configuration(ledger(1)).connect().await.unwrap();
    let activated = activate(&deploying).await;
    let ViewProblem::Refused { reason, .. } = the_problem(&activated.views) else { panic!("{activated:?}") };
    assert!(reason.contains("permission denied for database"), "{reason}");
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed.len(), 2);

    // Views that belong to somebody else are not moved, nor half moved.
    client
        .batch_execute("GRANT CREATE, USAGE ON SCHEMA ledger TO deploying; DROP VIEW ledger.entries")
        .await
        .unwrap();
    assert_eq!(deploying.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries"]);
    client
        .batch_execute(
            "ALTER TABLE ledger_v1.entries ADD more text; ALTER TABLE ledger_v1.sums ADD more text",
        )
        .await
        .unwrap();
    let views = deploying.repoint_views(SOON).await.unwrap();
    assert!(
        matches!(the_problem(&views), ViewProblem::Refused { reason, .. } if reason.contains("must be owner of view sums")),
        "{views:?}"
    );
    client.query("SELECT FROM ledger.entries", &[]).await.unwrap();
}

#[tokio::test]
async fn views_can_be_turned_off_for_a_build_or_for_an_activation() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let builder = Changeover::builder(database.config()).configuration(ledger(1)).stable_views(false);
    builder.migrate().await.unwrap();
    let off = builder.connect().await.unwrap();
    place(&off, "order-1", 0).await;
    assert_eq!(activate(&off).await.views, []);
    let two = ledger_on(&database, 2).await;
    let options = ActivateOptions { repoint_views: false, ..hasty() };
    assert_eq!(two.activate(&options, &|_| {}).await.unwrap().views, []);
    assert_eq!(text(&client, "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'ledger'").await, "0");
    assert_eq!(activate(&two).await.views[0].changed.len(), 2);
}

#[tokio::test]
async fn views_follow_behind_a_pooler() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let through = async |major| {
        let builder = Changeover::builder(pooler.config()).configuration(ledger(major));
        builder.migrate().await.unwrap();
        builder.connect().await.unwrap()
    };
    let (one, two) = (through(1).await, through(2).await);
    place(&one, "order-1", 0).await;
    let _ = activate(&one).await;
    client.batch_execute("COMMENT ON VIEW ledger.entries IS 'kept'").await.unwrap();
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let blocked = impatient(&two).await;
    assert!(
        matches!(the_problem(&blocked.views), ViewProblem::Blocked { blockers, .. } if blockers.len() == 1)
    );
    reading.commit().await.unwrap();
    assert_eq!(two.repoint_views(SOON).await.unwrap()[0].changed.len(), 2);
    assert_eq!(text(&client, "SELECT obj_description('ledger.entries'::regclass, 'pg_class')").await, "kept");
    let status = two.status().await.unwrap().views;
    assert!(status.iter().all(|view| view.shows == Some(2) && view.active == Some(2)), "{status:?}");
    // Nothing of the attempts is left on the pooler's connections.
    assert_eq!(
        text(&through(2).await.pool().get().await.unwrap(), "SELECT current_setting('lock_timeout')").await,
        "0"
    );
}

#[tokio::test]
async fn a_view_that_lags_behind_keeps_its_tables_from_being_pruned() {
    let (database, client, _one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let _ = impatient(&two).await;
    reading.commit().await.unwrap();
    let options = PruneOptions { keep: 0, ..PruneOptions::default() };
    let refused = two.prune(&options).await.unwrap_err();
    assert!(refused.to_string().contains("view ledger.entries"), "{refused}");
    two.repoint_views(SOON).await.unwrap();
    let _ = two.prune(&options).await.unwrap();
    assert_eq!(shown(&client).await, (2, 2));
    assert_eq!(
        text(&client, "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'ledger_v1'").await,
        "0"
    );
}

#[tokio::test]
async fn the_views_are_moved_outside_the_pause() {
    let (database, _client, _one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let note = |progress: ActivationProgress| {
        if let ActivationProgress::WaitingForReaders { projector, readers } = progress {
            assert_eq!((projector.as_str(), readers.len()), ("ledger", 1));
        }
    };
    let options = ActivateOptions { views_timeout: Duration::from_secs(1), ..hasty() };
    let started = Instant::now();
    let activated = two.activate(&options, &note).await.unwrap();
    assert!(started.elapsed() > Duration::from_secs(1));
    assert!(
        activated.pause_ms < started.elapsed().as_secs_f64() * 1_000.0 - 1_000.0,
        "{} ms",
        activated.pause_ms
    );
    // Writers went on long before the views.
    place(&two, "order-2", 0).await;
    reading.rollback().await.unwrap();
}
