//! `rollback`, from the build of the old release.

use changeover::{AppendError, Changeover, Expected, Refused};
use changeover_testkit::{Database, Process, eventually};
use serde_json::json;
use tokio_postgres::Client;

use crate::program::{
    Program, SOON, caught_up, golden, instance, place, placed, release_1_is_active, stream,
};

/// Release 2 is active, on top of some orders of release 1.
async fn release_2_took_over() -> (Database, Program, Program) {
    let database = release_1_is_active(5).await;
    let (one, two) = (Program::host(1).on(&database), Program::host(2).on(&database));
    two.run("activate-configuration").ended(0);
    (database, one, two)
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// All orders are in the tables of release 1, and it is the active one.
async fn back_at_release_1(database: &Database, client: &Client) {
    let old = instance(database, 1).await;
    let running = old.start();
    place(&old, 0..1).await;
    caught_up(&old).await;
    running.stop().await;
    let streams = number(client, "SELECT count(DISTINCT stream) FROM changeover.events").await;
    assert_eq!(number(client, "SELECT count(*) FROM orders_v1.orders").await, streams);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_release_goes_back_and_says_what_it_does() {
    let (database, one, two) = release_2_took_over().await;
    two.run("place 10").ended(0);
    golden("rollback_of_the_wrong_build", two.run("rollback").ended(1));
    assert_eq!(two.run("rollback --dry-run --json").ended(1).kind(), "already_active");
    golden("rollback_dry_run", one.run("rollback --dry-run").ended(0));
    assert_eq!(one.run("rollback --dry-run --json").ended(0).json()["steps"][0]["from"], json!(5));
    golden("rollback", one.run("rollback").ended(0));
    golden("rollback_again", one.run("rollback").ended(0));
    assert_eq!(one.run("rollback --json").ended(0).json()["activation"], json!(null));
    back_at_release_1(&database, &database.client().await).await;
    // And forward again.
    assert_eq!(two.run("activate-configuration --json").ended(0).json()["activation"], json!(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_was_active_before_there_is_nothing_to_go_back_to() {
    let database = release_1_is_active(1).await;
    golden("rollback_of_the_first_configuration", Program::host(1).on(&database).run("rollback").ended(1));
    assert_eq!(Program::host(2).on(&database).run("rollback --json").ended(1).kind(), "nothing_before");
    let usage = Program::changeover().on(&database).run("rollback").ended(2);
    assert!(usage.stderr.contains("run `rollback` of the application's own binary"), "{usage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_killed_while_it_feeds_goes_on_where_it_was() {
    let (database, one, _) = release_2_took_over().await;
    let client = database.client().await;
    let new = instance(&database, 2).await;
    // More than one batch, and the row of an order in a later batch is held by somebody.
    place(&new, 0..1_300).await;
    let mut locker = database.client().await;
    let lock = locker.transaction().await.unwrap();
    let inserted = "INSERT INTO orders_v1.orders (id, customer) VALUES ('order-1250', 'somebody')";
    lock.execute(inserted, &[]).await.unwrap();
    let going = Process::spawn(one.command("rollback")).unwrap();
    let at = "SELECT position FROM changeover.checkpoints WHERE projector = 'orders' AND major = 1";
    let moved = eventually(SOON, || async {
        let waits =
            "SELECT FROM pg_stat_activity WHERE application_name = 'host 1.0.0' AND wait_event_type = 'Lock'
                     AND datname = current_database()";
        let waits = !client.query(waits, &[]).await.unwrap().is_empty();
        Some(number(&client, at).await).filter(|position| waits && *position > 5)
    })
    .await;
    assert!(moved < 1_250, "it stands beyond the row that is held: {moved}");
    going.kill_9().unwrap();
    lock.rollback().await.unwrap();

    // The newer release never noticed.
    place(&new, 1_300..1_301).await;
    assert_eq!(number(&client, at).await, moved, "what was fed is lost, or somebody else feeds it");
    let dry = one.run("rollback --dry-run --json").ended(0).json();
    assert_eq!(dry["steps"][0]["from"], json!(moved));
    one.run("rollback").ended(0);
    back_at_release_1(&database, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_killed_in_its_pause_is_given_back_and_can_be_done_again() {
    let (database, one, _) = release_2_took_over().await;
    let new = instance(&database, 2).await;
    // A transaction that holds a lease makes the pause last.
    let mut client = new.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    new.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let going = Process::spawn(one.command("rollback --pause-limit 2s")).unwrap();
    let paused = || async { new.status().await.unwrap().activation.is_some_and(|open| open.paused) };
    eventually(SOON, paused).await;
    going.kill_9().unwrap();
    tx.commit().await.unwrap();
    serves_again(&new).await;
    one.run("rollback").ended(0);
    back_at_release_1(&database, &database.client().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_instances_follow_whichever_of_them_is_frozen_or_killed() {
    let database = release_1_is_active(5).await;
    let (one, two) = (Program::host(1).on(&database), Program::host(2).on(&database));
    let client = database.client().await;
    let serving =
        [Process::spawn(one.command("serve")).unwrap(), Process::spawn(one.command("serve")).unwrap()];
    eventually(SOON, || async { number(&client, "SELECT count(*) FROM changeover.instances").await == 2 })
        .await;
    two.run("activate-configuration --keep-following").ended(0);
    let new = instance(&database, 2).await;
    let behind = "SELECT (SELECT max(position) FROM changeover.events) - position FROM changeover.checkpoints
                  WHERE projector = 'orders' AND major = 1";
    let caught_up = || async { number(&client, behind).await == 0 };
    place(&new, 5..30).await;
    eventually(SOON, caught_up).await;
    eventually(SOON, || async {
        let retired = "SELECT count(*) FROM changeover.instances WHERE readiness = 'retired'";
        number(&client, retired).await == 2
    })
    .await;
    golden("status_while_followed", two.run("status"));

    // Frozen between two batches it holds up nobody: the other one follows.
    let in_a_batch = "SELECT count(*) FROM pg_stat_activity
                      WHERE application_name = 'host 1.0.0' AND state LIKE 'idle in transaction%'
                      AND datname = current_database()";
    let at_work = "SELECT count(*) FROM pg_stat_activity
                   WHERE application_name = 'host 1.0.0' AND state = 'active' AND datname = current_database()";
    loop {
        serving[0].freeze().unwrap();
        // What it has sent is answered first: it may open a batch.
        eventually(SOON, || async { number(&client, at_work).await == 0 }).await;
        if number(&client, in_a_batch).await == 0 {
            break;
        }
        serving[0].thaw().unwrap();
    }
    place(&new, 30..60).await;
    eventually(SOON, caught_up).await;
    serving[0].thaw().unwrap();
    // And killed even less.
    serving[1].kill_9().unwrap();
    place(&new, 60..90).await;
    eventually(SOON, caught_up).await;

    // Frozen in the middle of a batch, it is waited for, and named: rows were loaded, and nothing comes of them.
    let mut locker = database.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE orders_v1.orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    place(&new, 90..100).await;
    let waits =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'host 1.0.0' AND wait_event_type = 'Lock'
                 AND datname = current_database()";
    let pid: i32 =
        eventually(SOON, || async { client.query_opt(waits, &[]).await.unwrap().map(|row| row.get(0)) })
            .await;
    serving[0].freeze().unwrap();
    lock.rollback().await.unwrap();
    let line = "rollback --pause-limit 1s --drain-timeout 1s --catch-up-timeout 1s";
    let blocked = one.run(line).ended(1);
    assert!(
        blocked.stderr.contains("behind after") || blocked.stderr.contains(&format!("pid {pid}")),
        "{blocked}"
    );
    place(&new, 100..101).await;
    serving[0].kill_9().unwrap();
    one.run("rollback").ended(0);
    back_at_release_1(&database, &client).await;
}

/// Whoever writes waits for the pause's deadline, and no longer.
async fn serves_again(changeover: &Changeover) {
    eventually(SOON, || async {
        match changeover.append(&stream("again"), Expected::Any, &[placed(1)]).await {
            Ok(_) => true,
            Err(AppendError::Refused(Refused::ProjectorIsActivating { .. })) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}
