//! Traps of reading the log; see the list in [`traps`](crate::traps).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use changeover::semver::Version;
use changeover::{
    AppendError, Batch, BoxError, Changeover, Configuration, Expected, Position, ReadyState, Refused,
    SqlProjector, Transaction,
};
use changeover_testkit::{Cluster, Database, eventually};

use crate::orders::{OrderEvent, instance, place, placed, stream};
use crate::releases::{SOON, instance_of, replay_one, wrong_rows};
use crate::traps::{activate, published};

static BATCHES: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Notes how large its batches are.
struct Sizes;

impl SqlProjector for Sizes {
    const NAME: &'static str = "sizes";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "CREATE TABLE {schema}.nothing ()";
    type Event = OrderEvent;

    async fn project(&self, batch: Batch<'_, OrderEvent>, _tx: &Transaction<'_>) -> Result<(), BoxError> {
        BATCHES.lock().unwrap().push(batch.events().len());
        Ok(())
    }
}

#[tokio::test]
async fn a_replay_takes_the_log_in_bounded_batches() {
    let database = Database::fresh().await;
    let writer = instance_of(&database, "none").await;
    place(&writer, "many", 2_500).await;
    // A mebibyte that does not compress: what is counted is what the server stores.
    let mebibyte: String = (0..1 << 15).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let large: Vec<OrderEvent> = (0..30).map(|_| placed(&mebibyte)).collect();
    writer.append(&stream("large"), Expected::Any, &large).await.unwrap();
    let operator = instance(&database, Configuration::new().sql(Sizes).unwrap()).await;
    let _ = replay_one(&operator, &"sizes".parse().unwrap(), &|_| {}).await.unwrap();
    let batches = BATCHES.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 2_501 + 30);
    assert_eq!(batches.iter().max(), Some(&1_000));
    // The large ones by their bytes: at most some 16 MiB of them at once.
    assert!(batches.last().unwrap() < &20 && batches.len() >= 4, "{batches:?}");
}

async fn totals_lag(instance: &Changeover) -> i64 {
    let status = instance.status().await.unwrap();
    let totals = status.projectors.iter().find(|own| own.projector.as_str() == "totals").unwrap();
    totals.tables.as_ref().unwrap().lag_events
}

#[tokio::test]
async fn a_projector_whose_events_never_came_is_caught_up() {
    let database = Database::fresh().await;
    let writer = instance_of(&database, "none").await;
    // Nothing that `totals` handles, neither in the history nor after it.
    for order in 0..20 {
        place(&writer, &format!("order-{order}"), 0).await;
    }
    let instance = instance_of(&database, "totals").await;
    tokio::time::timeout(SOON, activate(&instance)).await.unwrap();
    let mut waits = Vec::new();
    for order in 20..25 {
        let last = place(&instance, &format!("order-{order}"), 0).await.last().unwrap();
        let started = Instant::now();
        // Also while nobody publishes: nothing is missing.
        instance.wait_for(&"totals".parse().unwrap(), last, SOON).await.unwrap();
        waits.push(started.elapsed());
    }
    // The machine may stand still in one of them, but hardly in all.
    assert!(waits.iter().min() < Some(&Duration::from_secs(1)), "{waits:?}");
    let running = instance.start();
    eventually(SOON, || async { totals_lag(&instance).await == 0 }).await;
    running.stop().await;
}

#[tokio::test]
async fn an_event_that_commits_late_is_read_in_its_place() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance_of(&database, "1.0.0").await;
    let running = instance.start();
    place(&instance, "first", 1).await;
    published(&instance, "orders").await;
    let mut connection = instance.pool().get().await.unwrap();
    let tx = connection.transaction().await.unwrap();
    instance.append_in(&tx, &stream("late"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let mut newest = None;
    for n in 0..20 {
        newest = place(&instance, &format!("later-{n}"), 1).await.last();
    }
    // Newer positions are committed; readers stop before the open one, however long it takes.
    let orders = "orders".parse().unwrap();
    let waited = instance.wait_for(&orders, newest.unwrap(), Duration::from_millis(300)).await;
    assert!(waited.is_err(), "an append in flight was read past");
    let mut reader = instance.read(Position::START, 1_000);
    assert_eq!(reader.next().await.unwrap().len(), 2);
    tx.commit().await.unwrap();
    instance.wait_for(&orders, newest.unwrap(), SOON).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    let rest = reader.next().await.unwrap();
    assert_eq!((rest.len(), rest[0].recorded.stream.as_str()), (41, "late"));
    running.stop().await;
}

#[tokio::test]
async fn a_gap_that_never_fills_is_not_waited_for() {
    let database = Database::fresh().await;
    let instance = instance_of(&database, "1.0.0").await;
    let running = instance.start();
    let mut waits = Vec::new();
    for n in 0..5 {
        let mut connection = instance.pool().get().await.unwrap();
        let tx = connection.transaction().await.unwrap();
        instance.append_in(&tx, &stream("never"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
        tx.rollback().await.unwrap();
        let last = place(&instance, &format!("order-{n}"), 0).await.last().unwrap();
        let started = Instant::now();
        instance.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
        waits.push(started.elapsed());
    }
    // The machine may stand still in one of them, but hardly in all.
    assert!(waits.iter().min() < Some(&Duration::from_secs(1)), "{waits:?}");
    assert_eq!(wrong_rows(&database.client().await, "orders_v1").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_long_transaction_elsewhere_holds_up_neither_publishing_nor_an_activation() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    let running = old.start();
    place(&old, "first", 1).await;
    client.batch_execute("CREATE TABLE elsewhere (n integer)").await.unwrap();
    let long = database.client().await;
    long.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO elsewhere VALUES (1); SELECT count(*) FROM changeover.events")
        .await
        .unwrap();
    let last = place(&old, "second", 1).await.last().unwrap();
    // It ends only after all of this.
    old.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
    tokio::time::timeout(SOON, activate(&instance_of(&database, "2.0.0").await))
        .await
        .expect("it waits for it");
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    // It is none of ours; batches come and go.
    eventually(SOON, || async { old.status().await.unwrap().in_flight.is_empty() }).await;
    long.batch_execute("COMMIT").await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn positions_go_on_after_dump_and_restore() {
    let database = Database::fresh().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    for order in 0..10 {
        place(&old, &format!("order-{order}"), 3).await;
    }
    activate(&instance_of(&database, "inline 2.0.0").await).await;
    let restored = Database::fresh().await;
    let cluster = Cluster::shared();
    let dumped = std::process::Command::new(cluster.bin("pg_dump")).arg(database.url()).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let file = std::env::temp_dir().join(restored.name());
    std::fs::write(&file, &dumped.stdout).unwrap();
    let psql = std::process::Command::new(cluster.bin("psql"))
        .args(["-q", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(&file)
        .arg(restored.url())
        .output();
    std::fs::remove_file(&file).unwrap();
    let psql = psql.unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));

    let client = restored.client().await;
    let new = instance_of(&restored, "inline 2.0.0").await;
    assert_eq!(new.horizon().await.unwrap().get(), 40);
    let appended = place(&new, "order-10", 3).await;
    assert_eq!(
        appended.positions.iter().map(|position| position.get()).collect::<Vec<_>>(),
        [41, 42, 43, 44]
    );
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    // Leases, admission and activation work there as before.
    let old = instance_of(&restored, "inline 1.0.0").await;
    let refused = old.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    activate(&old).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}

#[tokio::test]
async fn the_lag_of_a_projector_that_nobody_feeds_grows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance_of(&database, "totals").await;
    let running = instance.start();
    place(&instance, "first", 2).await;
    published(&instance, "totals").await;
    running.stop().await;
    let mut seen = totals_lag(&instance).await;
    for n in 0..3 {
        place(&instance, &format!("more-{n}"), 9).await;
        let now = totals_lag(&instance).await;
        assert!(now >= seen + 10, "{now} after {seen}");
        seen = now;
    }
    // In seconds too: by the oldest event that is missing, not by when somebody last looked.
    client
        .batch_execute("UPDATE changeover.events SET recorded_at = recorded_at - interval '1 hour'")
        .await
        .unwrap();
    let status = instance.status().await.unwrap();
    let tables = status.projectors[0].tables.clone().unwrap();
    assert!(tables.lag_secs >= 3_600.0, "{tables:?}");
}

#[tokio::test]
async fn an_idle_log_is_caught_up() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    let running = old.start();
    place(&old, "order", 1).await;
    published(&old, "orders").await;
    // Nothing happened for a year, and nothing happens now.
    client
        .batch_execute("UPDATE changeover.events SET recorded_at = recorded_at - interval '1 year'")
        .await
        .unwrap();
    let lag = |status: &changeover::Status| {
        status.projectors[0].tables.as_ref().map(|t| (t.lag_events, t.lag_secs))
    };
    assert_eq!(lag(&old.status().await.unwrap()), Some((0, 0.0)));
    assert!(old.readiness().is_ready() || old.readiness().state == ReadyState::Unknown);
    let new = instance_of(&database, "2.0.0").await;
    tokio::time::timeout(SOON, activate(&new)).await.expect("it waits for something to happen");
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    running.stop().await;
}
