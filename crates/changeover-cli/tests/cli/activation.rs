//! `replay` and `activate-configuration`, from release 1 to release 2.

use std::time::Instant;

use changeover::{AppendError, Expected, Refused};
use changeover_testkit::{Database, Process, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::program::{
    Program, SOON, caught_up, golden, instance, place, placed, release_1_is_active, stream,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_release_1_to_release_2_and_back() {
    let database = Database::fresh().await;
    let (one, two) = (Program::host(1).on(&database), Program::host(2).on(&database));
    one.run("migrate").ended(0);
    golden("activation_of_the_first_configuration", one.run("activate-configuration").ended(0));
    one.run("place 300").ended(0);
    let old = instance(&database, 1).await;
    let running = old.start();
    caught_up(&old).await;

    golden("dry_run", two.run("activate-configuration --dry-run").ended(0));
    golden("replay", two.run("replay --lag-events 0").ended(0));
    let again = two.run("replay orders --json").ended(0).json();
    assert_eq!(
        (&again["replayed"][0]["events"], &again["replayed"][0]["lag_events"]),
        (&json!(0), &json!(0))
    );
    golden("activation", two.run("activate-configuration").ended(0));
    golden("activation_of_the_active_configuration", two.run("activate-configuration").ended(0));
    golden("activation_of_the_active_configuration_json", two.run("activate-configuration --json").ended(0));
    let retired = || async { old.status().await.unwrap().instances[0].readiness == "retired" };
    eventually(SOON, retired).await;
    golden("status_after_activation", two.run("status --quiet").ended(0));

    let refused = old.append(&stream("late"), Expected::Any, &[placed(1)]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    assert_eq!(one.run("replay totals --json").ended(1).kind(), "not_replaying");
    assert_eq!(one.run("replay missing --json").ended(1).kind(), "unknown_projector");
    two.run("place 10").ended(0);
    let back = one.run("activate-configuration --json").ended(0);
    golden("activation_back_json", &back);
    place(&old, 0..1).await;
    caught_up(&old).await;
    let client = database.client().await;
    let rows: i64 = client.query_one("SELECT count(*) FROM orders_v1.orders", &[]).await.unwrap().get(0);
    assert_eq!(rows, 3, "one stream for each time that orders were placed");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_activation_names_who_blocks_it() {
    let database = release_1_is_active(5).await;
    let serving = instance(&database, 1).await;
    let mut client = serving.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    serving.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    eventually(SOON, || async { serving.status().await.unwrap().in_flight[0].age_secs > Some(0.5) }).await;
    let two = Program::host(2).on(&database);
    let ran = two.run("activate-configuration --pause-limit 200ms --drain-timeout 300ms").ended(1);
    assert!(
        ran.stderr.contains(&format!("blocked by: pid {pid} (host 1.0.0) holds an append for ")),
        "{ran}"
    );
    assert!(ran.stderr.contains(&format!("pg_terminate_backend({pid})")), "{ran}");
    golden("blocked_activation", ran);
    let ran =
        two.run("activate-configuration --pause-limit 200ms --drain-timeout 300ms --json --quiet").ended(1);
    golden("blocked_activation_json", &ran);
    let blocker = &ran.json()["error"]["blockers"][0];
    assert_eq!((&blocker["pid"], &blocker["holds"]), (&json!(pid), &json!("lease")));
    tx.commit().await.unwrap();
    two.run("activate-configuration").ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_do_not_show_up_are_not_waited_for_for_ever() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let line = "activate-configuration --wait-for-instances 1 --instances-timeout 300ms";
    golden("activation_without_instances", two.run(line).ended(1));
    assert_eq!(two.run(&format!("{line} --json")).ended(1).kind(), "instances");
    let new = Process::spawn(two.command("serve")).unwrap();
    two.run("activate-configuration --wait-for-instances 1 --instances-timeout 2m").ended(0);
    drop(new);
}

/// A transaction that holds a lease stays open, so that the pause lasts; then the signal comes.
async fn stopped_in_its_pause(signal: Signal, expected: &str) {
    let database = release_1_is_active(5).await;
    let serving = instance(&database, 1).await;
    let mut client = serving.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    serving.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let two = Program::host(2).on(&database);
    let activating = Process::spawn(two.command("activate-configuration --pause-limit 5m --json")).unwrap();
    let paused = || async { serving.status().await.unwrap().activation.is_some_and(|open| open.paused) };
    eventually(SOON, paused).await;
    let refused = serving.append(&stream("x"), Expected::Any, &[placed(1)]).await;
    assert!(
        matches!(refused, Err(AppendError::Refused(Refused::ProjectorIsActivating { .. }))),
        "{refused:?}"
    );

    let pid = i32::try_from(activating.pid()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    assert_eq!(activating.wait(SOON).await.unwrap().code(), Some(3));
    let stopped = Instant::now();
    serving.append(&stream("x"), Expected::Any, &[placed(1)]).await.unwrap();
    // The pause would have lasted for minutes.
    assert!(stopped.elapsed() < SOON / 2, "writers were not released: {:?}", stopped.elapsed());
    let output = activating.output();
    assert!(output.contains(expected) && output.contains("\"kind\": \"interrupted\""), "{output}");
    tx.commit().await.unwrap();
    let client = database.client().await;
    let row = client.query_one("SELECT outcome, error FROM changeover.activations", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("aborted", "aborted by tester"));
    two.run("activate-configuration").ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_pause_releases_the_writers_at_once() {
    stopped_in_its_pause(Signal::TERM, "SIGTERM: activation 1 was aborted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_the_pause_releases_the_writers_at_once() {
    stopped_in_its_pause(Signal::INT, "Ctrl-C: activation 1 was aborted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_own_activation_is_aborted_by_a_signal() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let line = "activate-configuration --wait-for-instances 9";
    let first = Process::spawn(two.command(line)).unwrap();
    first.wait_for_line("0 of 9 are alive", SOON).await.unwrap();
    let second = Process::spawn(two.command(line)).unwrap();
    second.wait_for_line("0 of 9 are alive", SOON).await.unwrap();
    second.terminate().unwrap();
    assert_eq!(second.wait(SOON).await.unwrap().code(), Some(3));
    let serving = instance(&database, 1).await;
    let open = serving.status().await.unwrap().activation.expect("the other one must be open still");
    assert_eq!(open.id, 1);

    golden("status_during_an_activation", Program::changeover().on(&database).run("status"));
    let aborted = Program::changeover().on(&database).run("abort --json").ended(0).json();
    assert_eq!(aborted, json!({ "aborted": [1], "replays": [] }));
    first.terminate().unwrap();
    assert_eq!(first.wait(SOON).await.unwrap().code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_stopped_goes_on_later() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    // Whoever holds the checkpoint's row holds up the replay.
    two.run("replay --lag-events 0").ended(0);
    place(&instance(&database, 1).await, 5..8).await;
    let mut client = database.client().await;
    let tx = client.transaction().await.unwrap();
    tx.execute("SELECT FROM changeover.checkpoints WHERE major = 2 FOR UPDATE", &[]).await.unwrap();
    let client_of_its_own = database.client().await;
    let replaying = Process::spawn(two.command("replay --lag-events 0 --json")).unwrap();
    let waiting = || async {
        let waiting = "SELECT FROM pg_stat_activity
             WHERE application_name = 'host 2.0.0' AND datname = current_database() AND query LIKE '-- horizon%'";
        !client_of_its_own.query(waiting, &[]).await.unwrap().is_empty()
    };
    eventually(SOON, waiting).await;
    replaying.terminate().unwrap();
    assert_eq!(replaying.wait(SOON).await.unwrap().code(), Some(3));
    let output = replaying.output();
    assert!(output.contains("SIGTERM: the replay of orders was stopped"), "{output}");
    tx.rollback().await.unwrap();
    let replayed = two.run("replay --lag-events 0 --json").ended(0).json();
    assert_eq!(replayed["replayed"][0]["events"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_at_the_very_moment_of_the_pause_leaves_nobody_paused() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let activating = Process::spawn(two.command("activate-configuration --wait-for-instances 1")).unwrap();
    activating.wait_for_line("0 of 1 are alive", SOON).await.unwrap();
    let client = database.client().await;
    let waiting = async |statement: &str| {
        let waiting = "SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- ' || $1 || '%'";
        eventually(SOON, || async { !client.query(waiting, &[&statement]).await.unwrap().is_empty() }).await;
    };
    // Both the mark and the abort wait for the activation's row, in this order.
    let mut locker = database.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.execute("SELECT FROM changeover.activations FOR UPDATE", &[]).await.unwrap();
    let new = Process::spawn(two.command("serve")).unwrap();
    waiting("mark_activating").await;
    let aborting = Process::spawn(Program::changeover().on(&database).command("abort")).unwrap();
    waiting("give_back").await;
    lock.commit().await.unwrap();

    assert_eq!(aborting.wait(SOON).await.unwrap().code(), Some(0));
    let ended = activating.wait(SOON).await.unwrap().code();
    drop(new);
    let serving = instance(&database, if ended == Some(0) { 2 } else { 1 }).await;
    place(&serving, 5..6).await;
    let status = serving.status().await.unwrap();
    assert!(status.projectors.iter().all(|projector| !projector.in_activation), "{status:?}");
}
