//! `replay` that starts over, and `replay` that follows.

use changeover_testkit::Process;
use serde_json::json;

use crate::program::{Program, SOON, golden, instance, place, release_1_is_active};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_starts_over_where_it_was_told_so() {
    let database = release_1_is_active(5).await;
    let (one, two) = (Program::host(1).on(&database), Program::host(2).on(&database));
    let events = |line: &str| two.run(line).ended(0).json()["replayed"][0]["events"].clone();
    let all = events("replay --lag-events 0 --json");
    assert_ne!(all, json!(0));
    assert_eq!(events("replay orders --lag-events 0 --json"), json!(0));
    assert_eq!(events("replay orders --restart --lag-events 0 --json"), all);
    // What is active is not thrown away.
    golden("replay_restart_of_an_active_version", one.run("replay orders --restart").ended(1));
    assert_eq!(one.run("replay orders --restart --json").ended(1).kind(), "not_started_over");
    // Nor rows that somebody else put there.
    let client = database.client().await;
    client.batch_execute("UPDATE changeover.checkpoints SET position = 0 WHERE major = 2").await.unwrap();
    golden("replay_into_rows_of_others", two.run("replay orders").ended(1));
    client.batch_execute("ALTER TABLE orders_v2.orders DROP COLUMN cents").await.unwrap();
    golden("replay_into_altered_tables", two.run("replay orders --restart").ended(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_follows_ends_with_the_activation_or_when_it_is_told_to() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let follow = || Process::spawn(two.command("replay --follow --lag-events 0")).unwrap();
    let (told, activated) = (follow(), follow());
    for following in [&told, &activated] {
        following.wait_for_line("following orders 2.0.0: at ", SOON).await.unwrap();
    }
    told.terminate().unwrap();
    assert_eq!(told.wait(SOON).await.unwrap().code(), Some(0), "{}", told.output());
    assert!(told.output().contains("SIGTERM: followed until here"), "{}", told.output());
    place(&instance(&database, 1).await, 5..8).await;
    two.run("activate-configuration").ended(0);
    assert_eq!(activated.wait(SOON).await.unwrap().code(), Some(0), "{}", activated.output());
    assert!(activated.output().contains("orders 2.0.0 was activated."), "{}", activated.output());
}
