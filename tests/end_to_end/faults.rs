//! Faults: a server that dies, a wire that is cut or stalls. What was acknowledged is there, and nothing is there twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use changeover::semver::Version;
use changeover::tokio_postgres::Client;
use changeover::{
    AppendError, Batch, BoxError, Changeover, Configuration, Expected, Position, Revision, SqlProjector,
    StreamName, Transaction, Type,
};
use changeover_testkit::{Cluster, Database, Proxy, eventually};
use serde::Deserialize;

use crate::orders::{InlineOrders1, OrderEvent, instance, placed, stream};
use crate::releases::SOON;

const GATE: i64 = 4712;

/// Writes down every item, however often it is given it. Waits while the test holds the gate.
struct Items;

#[derive(Deserialize)]
enum Item {
    ItemAdded {},
}

impl SqlProjector for Items {
    const NAME: &'static str = "items";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str =
        "CREATE TABLE {schema}.items (at bigint GENERATED ALWAYS AS IDENTITY, position bigint)";
    type Event = Item;

    async fn project(&self, batch: Batch<'_, Item>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        tx.query_typed("SELECT pg_advisory_xact_lock_shared($1)", &[(&GATE, Type::INT8)]).await?;
        for event in batch.events() {
            let Item::ItemAdded {} = event.data;
            let sql = batch.sql("INSERT INTO {schema}.items (position) VALUES ($1)");
            tx.query_typed(&sql, &[(&event.position.get(), Type::INT8)]).await?;
        }
        Ok(())
    }
}

fn configuration() -> Configuration {
    Configuration::new().fold(InlineOrders1).unwrap().sql(Items).unwrap()
}

fn item() -> OrderEvent {
    OrderEvent::ItemAdded { cents: 1 }
}

/// Every item of the log was projected once, in order, and the inline rows say the same.
async fn all_is_there_once(client: &Client) {
    let positions = async |sql: &str| -> Vec<i64> {
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let log =
        positions("SELECT position FROM changeover.events WHERE type = 'ItemAdded' ORDER BY position").await;
    assert_eq!(positions("SELECT position FROM items_v1.items ORDER BY at").await, log);
    let sql = "SELECT count(*) FROM (
                   SELECT stream, count(*) FILTER (WHERE type = 'ItemAdded') AS items, max(position) AS last
                   FROM changeover.events GROUP BY stream
               ) e FULL JOIN orders_v1.orders o ON o.id = e.stream
               WHERE (e.items, e.last) IS DISTINCT FROM (o.items, o.last_position)";
    assert_eq!(positions(sql).await, [0], "inline rows that differ from the log");
}

/// Adds items to a stream of its own, one after the other, until it is told to stop. An answer that is lost says nothing:
/// the stream does. Returns how many were acknowledged.
async fn keep_adding(changeover: Changeover, name: StreamName, stop: Arc<AtomicBool>) -> (StreamName, i64) {
    let mut acknowledged = 1;
    while !stop.load(Ordering::SeqCst) {
        let expected = Expected::Exactly(Revision::new(acknowledged));
        match changeover.append(&name, expected, &[item()]).await {
            Ok(appended) => {
                assert_eq!(appended.revision.get(), acknowledged + 1);
                acknowledged += 1;
            }
            // It had been written all the same.
            Err(AppendError::Conflict { found, .. }) => {
                assert_eq!(
                    found.get(),
                    acknowledged + 1,
                    "what was acknowledged is lost, or somebody else wrote"
                );
                acknowledged += 1;
            }
            Err(AppendError::Store(_) | AppendError::Unknown { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    (name, acknowledged)
}

/// The inline row is asked, since it is there as soon as an event is.
async fn items_of(client: &Client, name: &StreamName) -> i64 {
    let sql = "SELECT items::bigint FROM orders_v1.orders WHERE id = $1";
    client.query_one(sql, &[&name.as_str()]).await.unwrap().get(0)
}

/// Appenders on streams of their own, while `harm` is done a few times, each time after all of them got on.
async fn survives(database: &Database, changeover: &Changeover, times: usize, mut harm: impl AsyncFnMut()) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut appending = Vec::new();
    let names: Vec<StreamName> = (0..4).map(|at| stream(&format!("order-{at}"))).collect();
    for name in &names {
        changeover.append(name, Expected::NoStream, &[placed("Ada")]).await.unwrap();
        appending.push(tokio::spawn(keep_adding(changeover.clone(), name.clone(), stop.clone())));
    }
    for _ in 0..times {
        let client = database.client().await;
        let mut goals = Vec::new();
        for name in &names {
            goals.push((name, items_of(&client, name).await + 10));
        }
        for (name, goal) in goals {
            eventually(SOON, || async { items_of(&client, name).await >= goal }).await;
        }
        drop(client);
        harm().await;
    }
    // Once more, so that they got on after the last harm as well.
    let client = database.client().await;
    for name in &names {
        let goal = items_of(&client, name).await + 5;
        eventually(SOON, || async { items_of(&client, name).await >= goal }).await;
    }
    stop.store(true, Ordering::SeqCst);
    for appending in appending {
        let (name, acknowledged) = tokio::time::timeout(SOON, appending).await.unwrap().unwrap();
        assert_eq!(items_of(&client, &name).await, acknowledged - 1, "{name}");
    }
    let last: i64 =
        client.query_one("SELECT max(position) FROM changeover.events", &[]).await.unwrap().get(0);
    changeover.wait_for(&"items".parse().unwrap(), Position::new(last), SOON).await.unwrap();
    all_is_there_once(&client).await;
    let status = changeover.status().await.unwrap();
    assert_eq!((status.horizon, status.in_flight.len()), (status.newest, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_that_was_acknowledged_and_projects_nothing_twice() {
    let cluster = Cluster::builder().durable().start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let changeover = instance(&database, configuration()).await;
    let other = instance(&database, configuration()).await;
    let running = (changeover.start(), other.start());
    survives(&database, &changeover, 2, async || {
        tokio::task::block_in_place(|| {
            cluster.kill_9().unwrap();
            cluster.restart().unwrap();
        });
    })
    .await;
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_is_cut_again_and_again_loses_nothing_and_projects_nothing_twice() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let builder = Changeover::builder(proxy.config(&database.config())).configuration(configuration());
    builder.migrate().await.unwrap();
    let changeover = builder.connect().await.unwrap();
    let running = changeover.start();
    survives(&database, &changeover, 6, async || {
        tokio::task::block_in_place(|| {
            proxy.cut();
            proxy.resume();
        });
    })
    .await;
    running.stop().await;
}

/// Until the batch of somebody waits at the gate.
async fn at_the_gate(client: &Client) -> i32 {
    let sql = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712 AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { client.query_opt(sql, &[]).await.unwrap().map(|row| row.get(0)) }).await
}

#[tokio::test]
async fn an_instance_that_is_cut_off_in_the_middle_of_a_batch_projects_nothing_twice_when_it_is_back() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let stalling = Changeover::builder(proxy.config(&database.config())).configuration(configuration());
    stalling.migrate().await.unwrap();
    let stalling = stalling.connect().await.unwrap();
    let other = instance(&database, configuration()).await;
    let items = "items".parse().unwrap();
    let name = stream("order");
    other.append(&name, Expected::NoStream, &[placed("Ada"), item()]).await.unwrap();
    let mut gate = database.client().await;
    // Either the server ends the transaction that goes on no more, as it does after a minute, or the instance comes back.
    for ended_by_the_server in [true, false] {
        let closed = gate.transaction().await.unwrap();
        closed.execute("SELECT pg_advisory_xact_lock($1)", &[&GATE]).await.unwrap();
        let stalled = stalling.start();
        other.append(&name, Expected::Any, &[item(), item()]).await.unwrap();
        let pid = at_the_gate(&client).await;
        proxy.stall();
        closed.commit().await.unwrap();

        let running = other.start();
        let last = other.append(&name, Expected::Any, &[item()]).await.unwrap().last().unwrap();
        let waiting = other.wait_for(&items, last, Duration::from_millis(100)).await;
        assert!(waiting.is_err(), "the batch of another instance is not to be overtaken");
        let blockers = other.status().await.unwrap().in_flight;
        assert!(
            blockers.iter().any(|blocker| blocker.pid == Some(pid)),
            "who holds it up is named: {blockers:?}"
        );
        if ended_by_the_server {
            client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
            other.wait_for(&items, last, SOON).await.unwrap();
        }
        proxy.resume();
        other.wait_for(&items, last, SOON).await.unwrap();
        all_is_there_once(&client).await;
        // It is of use again.
        running.stop().await;
        let last = other.append(&name, Expected::Any, &[item()]).await.unwrap().last().unwrap();
        stalling.wait_for(&items, last, SOON).await.unwrap();
        all_is_there_once(&client).await;
        stalled.stop().await;
    }
}
