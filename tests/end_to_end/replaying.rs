//! Replays that break in the middle: an event that cannot be projected, a process that is killed, several processes at once;
//! and what a stalled projector means for an activation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use changeover::semver::Version;
use changeover::{
    ActivateError, Batch, BoxError, Changeover, Configuration, Obstacle, ReplayError, SqlProjector,
    Transaction, Type,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::operator::Operator;
use crate::orders::{OrderEvent, instance, place};
use crate::releases::{SOON, active, hasty, instance_of, replay_one};

/// Notes every item that it sees, and fails at those of 113 cents until it is mended. The key makes twice an error.
struct Fussy<const MAJOR: u64, const MINOR: u64> {
    mended: Arc<AtomicBool>,
}

impl<const MAJOR: u64, const MINOR: u64> SqlProjector for Fussy<MAJOR, MINOR> {
    const NAME: &'static str = "fussy";
    const VERSION: Version = Version::new(MAJOR, MINOR, 0);
    const TABLES: &'static str = "CREATE TABLE {schema}.seen (position bigint PRIMARY KEY)";
    type Event = OrderEvent;

    async fn project(&self, batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        for event in batch.events() {
            if event.data == (OrderEvent::ItemAdded { cents: 113 }) && !self.mended.load(Ordering::Relaxed) {
                return Err("thirteen is too much".into());
            }
            let position = event.position.get();
            tx.query_typed(&batch.sql("INSERT INTO {schema}.seen VALUES ($1)"), &[(&position, Type::INT8)])
                .await?;
        }
        Ok(())
    }
}

fn fussy<const MAJOR: u64, const MINOR: u64>(mended: &Arc<AtomicBool>) -> Configuration {
    Configuration::new().sql(Fussy::<MAJOR, MINOR> { mended: mended.clone() }).unwrap()
}

/// Where the projector did not see exactly what is in the log, up to a position.
async fn differences(client: &Client, major: u64, up_to: i64) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM (SELECT position FROM changeover.events WHERE position <= $1) e
         FULL JOIN fussy_v{major}.seen s USING (position) WHERE e.position IS NULL OR s.position IS NULL"
    );
    client.query_one(&sql, &[&up_to]).await.unwrap().get(0)
}

async fn fill(database: &Database) -> (Changeover, i64) {
    let writer = instance_of(database, "none").await;
    for order in 0..5 {
        place(&writer, &format!("order-{order}"), 10).await;
    }
    // The fourteenth item of an order costs 113 cents.
    place(&writer, "unlucky", 20).await;
    place(&writer, "lucky", 10).await;
    let sql = "SELECT position FROM changeover.events WHERE (data ->> 'cents')::bigint = 113";
    let poison = database.client().await.query_one(sql, &[]).await.unwrap().get(0);
    (writer, poison)
}

#[tokio::test]
async fn a_replay_stops_at_the_event_that_it_cannot_project_and_goes_on_once_it_is_mended() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (_writer, poison) = fill(&database).await;
    let mended = Arc::new(AtomicBool::new(false));
    let operator = instance(&database, fussy::<1, 0>(&mended)).await;
    let name = "fussy".parse().unwrap();
    for _ in 0..2 {
        let error = replay_one(&operator, &name, &|_| {}).await.unwrap_err();
        let ReplayError::Projector { projector, version, position, event_type, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((projector.as_str(), version.to_string().as_str()), ("fussy", "1.0.0"));
        assert_eq!((position.get(), event_type.as_str()), (poison, "ItemAdded"));
        assert!(error.to_string().contains(&format!("position {poison} (ItemAdded): mend it")), "{error}");
        assert!(format!("{source:?}").contains("thirteen is too much"), "{source:?}");
        // Everything before it is kept, and nothing after it was done.
        assert_eq!(differences(&client, 1, poison - 1).await, 0);
    }
    // Activating runs into the same, and leaves everything as it was.
    let error = operator.activate(&hasty(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, ActivateError::Replay(ReplayError::Projector { .. })), "{error:?}");
    assert_eq!(active(&client).await, "");

    mended.store(true, Ordering::Relaxed);
    let caught_up = replay_one(&operator, &name, &|_| {}).await.unwrap().progress;
    let end = operator.horizon().await.unwrap();
    assert_eq!((caught_up.position, caught_up.horizon, caught_up.lag_events()), (end, end, 0));
    assert_eq!(caught_up.events, u64::try_from(end.get() - poison + 1).unwrap(), "it did something twice");
    assert_eq!(differences(&client, 1, end.get()).await, 0);
}

#[tokio::test]
async fn a_replay_that_was_killed_goes_on_at_its_checkpoint() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..30 {
        place(&writer, &format!("order-{order}"), 100).await;
    }
    let killed = Operator::replay(&database, "totals", "totals", 1_000).await;
    killed.kill_9();
    let total = async || {
        let row = client.query_one("SELECT items, cents FROM totals_v1.total", &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    assert_eq!(total().await.0, 1_000);
    let operator = instance_of(&database, "totals").await;
    let caught_up = replay_one(&operator, &"totals".parse().unwrap(), &|_| {}).await.unwrap().progress;
    assert_eq!(caught_up.events, 2_000);
    assert_eq!(total().await, (3_000, 30 * (0..100).map(|n| 100 + n).sum::<i64>()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_replay_the_same_version_share_the_work() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..60 {
        place(&writer, &format!("order-{order}"), 100).await;
    }
    // One of them is at it when the others come, and lets them: it stands still between two batches.
    let first = Operator::replay(&database, "totals", "totals", 1).await;
    let mut others = Vec::new();
    for _ in 0..2 {
        let other = instance_of(&database, "totals").await;
        others.push(tokio::spawn(async move {
            replay_one(&other, &"totals".parse().unwrap(), &|_| {}).await.unwrap().progress.events
        }));
    }
    first.go_on();
    let said = first.end().await;
    let (_, events) = said.split_once("events: ").unwrap();
    let mut sum: u64 = events.split_once(',').unwrap().0.parse().unwrap();
    assert!(sum >= 1_000, "{said}");
    for other in others {
        sum += other.await.unwrap();
    }
    // Each event by exactly one of them.
    assert_eq!(sum, 6_000);
    let row = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 6_000);
}

async fn stalled(instance: &Changeover, version: &str) -> Option<i64> {
    let status = instance.status().await.unwrap();
    let own = status.projectors.iter().find(|own| own.version.to_string() == version)?;
    own.tables.as_ref()?.stalled.as_ref()?.position.map(changeover::Position::get)
}

#[tokio::test]
async fn a_stalled_version_cannot_be_fed_before_a_switch_and_so_is_not_activated() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (_writer, poison) = fill(&database).await;
    let (unmended, mended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let old = instance(&database, fussy::<1, 0>(&unmended)).await;
    let running = old.start();
    eventually(SOON, || async { stalled(&old, "1.0.0").await == Some(poison) }).await;
    running.stop().await;
    assert_eq!(differences(&client, 1, poison - 1).await, 0);

    // A new major version has tables of its own: it mends.
    let new = instance(&database, fussy::<2, 0>(&mended)).await;
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    let end = new.horizon().await.unwrap().get();
    assert_eq!(differences(&client, 2, end).await, 0);

    // Back to the stalled one is refused, with the obstacle and what to do.
    let plan = old.plan().await.unwrap();
    assert!(matches!(plan.obstacles[..], [Obstacle::Stalled { .. }]), "{plan:?}");
    let error = old.activate(&hasty(), &|_| {}).await.unwrap_err();
    assert!(matches!(&error, ActivateError::Obstacles(obstacles) if obstacles.len() == 1), "{error:?}");
    for part in ["fussy 1.0.0 is stalled", "run retry"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(active(&client).await, "fussy 2.0.0");
    let name = "fussy".parse().unwrap();
    let error = replay_one(&old, &name, &|_| {}).await.unwrap_err();
    assert!(matches!(error, ReplayError::Stalled { .. }), "{error:?}");

    // Mended and told so, it goes.
    unmended.store(true, Ordering::Relaxed);
    assert!(old.retry(&name).await.unwrap());
    let _ = old.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!((active(&client).await.as_str(), differences(&client, 1, end).await), ("fussy 1.0.0", 0));
}

#[tokio::test]
async fn a_mended_minor_version_takes_over_from_a_stalled_one_in_place() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (unmended, mended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let old = instance(&database, fussy::<1, 0>(&unmended)).await;
    let running = old.start();
    place(&old, "unlucky", 20).await;
    eventually(SOON, || async { stalled(&old, "1.0.0").await.is_some() }).await;
    let new = instance(&database, fussy::<1, 1>(&mended)).await;
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    running.stop().await;
    let running = new.start();
    let end = new.horizon().await.unwrap();
    new.wait_for(&"fussy".parse().unwrap(), end, SOON).await.unwrap();
    assert_eq!(differences(&client, 1, end.get()).await, 0);
    running.stop().await;
}
