//! Stable views, from the command line.

use changeover_testkit::{Process, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::program::{Program, SOON, golden, release_1_is_active};

#[tokio::test(flavor = "multi_thread")]
async fn views_that_a_reader_holds_are_told_and_moved_later() {
    let database = release_1_is_active(5).await;
    let (two, changeover) = (Program::host(2).on(&database), Program::changeover().on(&database));
    golden("repoint_views_with_nothing_to_do", changeover.run("repoint-views").ended(0));
    let mut reader = database.client().await;
    let reading = reader.transaction().await.unwrap();
    reading.query("SELECT FROM orders.orders", &[]).await.unwrap();
    let line = "activate-configuration --views-timeout 300ms";
    golden("activation_behind_a_reader", two.run(line).ended(0));
    golden("status_with_a_view_that_lags", changeover.run("status").ended(0));
    let views = changeover.run("status --json").ended(0).json();
    let lagging = json!({ "projector": "orders", "view": "orders", "shows": 1, "active": 2 });
    assert_eq!(views["views"][0], lagging);
    golden("repoint_views_behind_a_reader", changeover.run("repoint-views --timeout 300ms").ended(1));
    golden(
        "repoint_views_behind_a_reader_json",
        changeover.run("repoint-views --timeout 300ms --json").ended(1),
    );
    reading.commit().await.unwrap();
    golden("repoint_views", changeover.run("repoint-views").ended(0));
    assert!(!changeover.run("status").ended(0).stdout.contains("repoint-views"));
}

#[tokio::test(flavor = "multi_thread")]
async fn views_can_be_left_alone() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let activated = two.run("activate-configuration --no-views --json").ended(0).json();
    assert_eq!(activated["views"], json!([]));
    let moved = two.run("activate-configuration --json").ended(0).json();
    assert_eq!(
        (&moved["activation"], &moved["views"][0]["changed"]),
        (&json!(null), &json!(["orders.orders"]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_after_the_switch_is_no_abort() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let mut reader = database.client().await;
    let reading = reader.transaction().await.unwrap();
    reading.query("SELECT FROM orders.orders", &[]).await.unwrap();
    let activating = Process::spawn(two.command("activate-configuration --views-timeout 5m")).unwrap();
    activating.wait_for_line("waiting for readers of orders", SOON).await.unwrap();
    let pid = i32::try_from(activating.pid()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(activating.wait(SOON).await.unwrap().code(), Some(0));
    let said = activating.output();
    assert!(said.contains("SIGTERM: activation 1 has switched"), "{said}");
    reading.commit().await.unwrap();
    // Nothing of it is left behind on the server either.
    eventually(SOON, || async { Program::changeover().on(&database).run("repoint-views").code == Some(0) })
        .await;
    let client = database.client().await;
    client.query("SELECT cents FROM orders.orders", &[]).await.unwrap();
}
