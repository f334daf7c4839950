//! Instances: they say who they are, and are seen to go.

use changeover::{Changeover, Instance};
use changeover_testkit::{Database, eventually};

use crate::operator::Operator;
use crate::releases::{SOON, hasty, instance_of, release};

/// The connections of the process that a test started.
const OF_THE_CHILD: &str = "SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'operator 1.0.0'";

async fn instances(changeover: &Changeover) -> Vec<Instance> {
    changeover.status().await.unwrap().instances
}

#[tokio::test]
async fn an_instance_registers_with_configuration_address_and_version() {
    let database = Database::fresh().await;
    let builder = Changeover::builder(database.config())
        .application("shop", "2.3.0")
        .address("http://10.0.0.7:8080")
        .configuration(release("1.0.0 totals"));
    builder.migrate().await.unwrap();
    let instance = builder.connect().await.unwrap();
    assert_eq!(instances(&instance).await, [], "it registered before it was started");
    let running = instance.start();
    let registered = eventually(SOON, || async {
        let seen = instances(&instance).await;
        seen.into_iter().find(|seen| seen.readiness == "active")
    })
    .await;
    assert_eq!(registered.id, instance.instance_id());
    assert_eq!((registered.application.as_str(), registered.application_version.as_str()), ("shop", "2.3.0"));
    assert_eq!(registered.address.as_deref(), Some("http://10.0.0.7:8080"));
    assert_eq!(registered.configuration, release("1.0.0 totals").versions());
    assert!(registered.alive && registered.silent_secs < 10.0, "{registered:?}");

    running.stop().await;
    assert_eq!(instances(&instance).await, [], "it said no goodbye");
}

#[tokio::test]
async fn the_readiness_of_an_instance_follows_an_activation() {
    let database = Database::fresh().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    let both = async |expected: [&str; 2]| {
        eventually(SOON, || async {
            let seen = instances(&old).await;
            let of = |one: &Changeover| seen.iter().find(|seen| seen.id == one.instance_id()).cloned();
            let words = [of(&old)?.readiness, of(&new)?.readiness];
            (words == expected).then_some(())
        })
        .await;
    };
    let old_running = old.start();
    eventually(SOON, || async { old.readiness().is_ready() }).await;
    let new_running = new.start();
    both(["active", "waiting"]).await;
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    both(["retired", "active"]).await;
    let _ = old.activate(&hasty(), &|_| {}).await.unwrap();
    both(["active", "waiting"]).await;
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn an_instance_that_was_killed_is_seen_to_go_and_one_that_says_goodbye_is_gone_at_once() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let observer = instance_of(&database, "1.0.0").await;
    let child = Operator::serve(&database, "1.0.0").await;
    let alive = || async { instances(&observer).await.iter().filter(|seen| seen.alive).count() };
    eventually(SOON, || async { alive().await == 1 }).await;
    // Eleven seconds go by. Whoever lives says so again ..
    let eleven_seconds = "UPDATE changeover.instances SET last_seen = last_seen - interval '11 seconds'";
    client.batch_execute(eleven_seconds).await.unwrap();
    eventually(SOON, || async { alive().await == 1 }).await;
    // .. and whoever was killed does not.
    child.kill_9();
    assert_eq!(alive().await, 1, "nobody can know yet");
    // What it asked for with its last breath is done, too.
    eventually(SOON, || async { client.query(OF_THE_CHILD, &[]).await.unwrap().is_empty() }).await;
    client.batch_execute(eleven_seconds).await.unwrap();
    assert_eq!(alive().await, 0);
    let seen = instances(&observer).await;
    assert!(seen.len() == 1 && !seen[0].alive && seen[0].silent_secs >= 11.0, "{seen:?}");
    assert_eq!(seen[0].address.as_deref(), Some("http://10.0.0.7:8080"));

    let child = Operator::serve(&database, "1.0.0").await;
    eventually(SOON, || async { alive().await == 1 }).await;
    child.terminate().await;
    assert_eq!((alive().await, instances(&observer).await.len()), (0, 1));
    // An hour later nobody remembers the one that was killed.
    client
        .batch_execute("UPDATE changeover.instances SET last_seen = last_seen - interval '1 hour'")
        .await
        .unwrap();
    let running = observer.start();
    eventually(SOON, || async {
        let seen = instances(&observer).await;
        seen.len() == 1 && seen[0].id == observer.instance_id()
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_frozen_instance_counts_as_gone_and_comes_back() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let observer = instance_of(&database, "2.0.0").await;
    let frozen = Operator::serve(&database, "1.0.0").await;
    let alive = || async { instances(&observer).await.iter().filter(|seen| seen.alive).count() };
    eventually(SOON, || async { instances(&observer).await.iter().any(|seen| seen.readiness == "active") })
        .await;
    frozen.freeze();
    // It may have been frozen in the middle of a batch, which would be named as a blocker: an operator ends it then.
    client
        .query(&format!("SELECT pg_terminate_backend(pid) FROM ({OF_THE_CHILD}) child"), &[])
        .await
        .unwrap();
    eventually(SOON, || async { client.query(OF_THE_CHILD, &[]).await.unwrap().is_empty() }).await;
    client
        .batch_execute("UPDATE changeover.instances SET last_seen = last_seen - interval '11 seconds'")
        .await
        .unwrap();
    assert_eq!(alive().await, 0);
    let _ = observer.activate(&hasty(), &|_| {}).await.unwrap();
    frozen.go_on();
    eventually(SOON, || async {
        let seen = instances(&observer).await;
        seen.len() == 1 && seen[0].alive && seen[0].readiness == "retired"
    })
    .await;
    frozen.terminate().await;
}

#[tokio::test]
async fn connections_are_ready_before_the_traffic_comes() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let ready = async |application: &str| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '-- append_at%'";
        client.query_one(sql, &[&application]).await.unwrap().get::<_, i64>(0)
    };
    for (application, pool_size, wanted, expected) in [("all 1.0.0", 5, 8, 5), ("some 1.0.0", 16, 3, 3)] {
        let (name, version) = application.split_once(' ').unwrap();
        let builder = Changeover::builder(database.config())
            .application(name, version)
            .configuration(release("1.0.0 totals"))
            .pool_size(pool_size)
            .ready_connections(wanted);
        builder.migrate().await.unwrap();
        let instance = builder.connect().await.unwrap();
        assert_eq!(ready(application).await, 0);
        let running = instance.start();
        eventually(SOON, || async { ready(application).await == expected }).await;
        // All of them came back to the pool.
        eventually(SOON, || async { instance.pool().status().available == instance.pool().status().size })
            .await;
        assert!(instance.pool().status().size >= usize::try_from(expected).unwrap());
        running.stop().await;
    }
}
