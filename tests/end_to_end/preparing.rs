//! Activations that are being prepared, and whoever prepares them: there, gone, or told to stop.

use std::time::Duration;

use changeover::{ActivateError, ActivateOptions, Changeover};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::operator::Operator;
use crate::orders::place;
use crate::releases::{SOON, active, hasty, instance_of, newest_outcome};
use crate::traps::activate;

/// As if nothing had been heard of whoever prepares an activation for so long.
async fn unheard_for(client: &Client, secs: f64) {
    let sql = "UPDATE changeover.activations SET last_seen = clock_timestamp() - $1 * interval '1 second' WHERE ended_at IS NULL";
    assert_eq!(client.execute(sql, &[&secs]).await.unwrap(), 1);
}

async fn under_way(instance: &Changeover) -> bool {
    instance.status().await.unwrap().activation.is_some()
}

/// An old release with some orders, and somebody who stopped while preparing the new one.
async fn stopped_while_preparing() -> (Database, Client, Changeover, Operator) {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    place(&old, "order", 2).await;
    let operator = Operator::activate(&database, "2.0.0", "replaying", Duration::from_secs(1)).await;
    assert!(under_way(&old).await);
    (database, client, old, operator)
}

#[tokio::test]
async fn an_activation_whose_preparer_was_killed_is_not_under_way_for_ever() {
    let (database, client, old, operator) = stopped_while_preparing().await;
    operator.kill_9();
    assert!(under_way(&old).await, "nobody can know so soon");
    unheard_for(&client, 60.0).await;
    assert!(!under_way(&old).await);
    assert_eq!(newest_outcome(&client).await, None, "a look changes nothing");
    // The next one finds nothing in its way, and says what became of it.
    activate(&instance_of(&database, "2.0.0").await).await;
    let history =
        client.query("SELECT outcome, error FROM changeover.activations ORDER BY id", &[]).await.unwrap();
    let history: Vec<(&str, Option<&str>)> = history.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(
        history,
        [("expired", Some("whoever prepared it was not heard of any more")), ("activated", None)]
    );
}

#[tokio::test]
async fn instances_end_what_nobody_prepares_any_more() {
    let (_database, client, old, operator) = stopped_while_preparing().await;
    operator.kill_9();
    unheard_for(&client, 60.0).await;
    let running = old.start();
    eventually(SOON, || async { newest_outcome(&client).await.as_deref() == Some("expired") }).await;
    place(&old, "served", 1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_preparer_that_was_frozen_and_given_up_changes_nothing_when_it_wakes_up() {
    let (database, client, old, operator) = stopped_while_preparing().await;
    unheard_for(&client, 60.0).await;
    // Somebody else's activation ends it.
    activate(&instance_of(&database, "1.1.0").await).await;
    let end = operator.thaw().await;
    assert!(end.contains("refused: Ended") && end.contains("not heard of"), "{end}");
    assert_eq!(active(&client).await, "orders 1.1.0");
    assert!(!under_way(&old).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_prepares_for_long_says_so_and_is_left_alone() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&old, "order", 2).await;
    let running = old.start();
    let activating = {
        let new = new.clone();
        tokio::spawn(async move {
            new.activate(&ActivateOptions { wait_for_instances: 1, ..hasty() }, &|_| {}).await
        })
    };
    eventually(SOON, || under_way(&old)).await;
    // Nearly too long; then it is heard of again, and again.
    for _ in 0..2 {
        unheard_for(&client, 15.0).await;
        let heard =
            "SELECT FROM changeover.activations WHERE last_seen > clock_timestamp() - interval '10 seconds'";
        eventually(SOON, || async { client.query_opt(heard, &[]).await.unwrap().is_some() }).await;
    }
    assert!(under_way(&old).await);
    let new_running = new.start();
    let _ = activating.await.unwrap().unwrap();
    assert_eq!(active(&client).await, "orders 2.0.0");
    running.stop().await;
    new_running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preparation_that_is_aborted_stops() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&old, "order", 2).await;
    let activating = {
        let new = new.clone();
        tokio::spawn(async move {
            new.activate(&ActivateOptions { wait_for_instances: 1, ..hasty() }, &|_| {}).await
        })
    };
    eventually(SOON, || under_way(&old)).await;
    assert_eq!(old.abort("somebody").await.unwrap().len(), 1);
    // It does not wait for instances for five minutes to be told then.
    let error = tokio::time::timeout(SOON, activating).await.unwrap().unwrap().unwrap_err();
    let ActivateError::Ended { outcome, .. } = &error else { panic!("{error:?}") };
    assert_eq!(outcome, "aborted: aborted by somebody");
    let text = error.to_string();
    assert!(text.contains(", of orders 2.0.0, was ended") && text.contains("try again"), "{text}");
    assert_eq!(active(&client).await, "orders 1.0.0");
}
