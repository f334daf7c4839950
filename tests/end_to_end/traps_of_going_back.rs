//! The traps of `traps` that concern the way back, and what would take it away.

use changeover::{
    AppendError, Changeover, Expected, Fate, PruneError, Refused, RollbackError, WhenNothingIsActive,
    WhyNotPruned,
};
use changeover_testkit::{Database, eventually};

use crate::orders::{OrderEvent, place, placed, stream};
use crate::pruning::{keeping, prune, there};
use crate::releases::{Held, SOON, active, hasty, instance_of, release, replay_one, wrong_rows};
use crate::traps::activate;

/// No command and no verb does more than it says: activations, rollbacks and replays drop nothing, ever, and pruning keeps
/// the way back unless it is told a number that takes it away, which it says.
#[tokio::test]
async fn the_old_versions_tables_are_dropped_by_no_run_but_a_prune_that_says_so() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let builds = [
        instance_of(&database, "1.0.0").await,
        instance_of(&database, "2.0.0").await,
        instance_of(&database, "3.0.0").await,
    ];
    place(&builds[0], "first", 2).await;
    for build in [1, 2, 1, 0, 2] {
        activate(&builds[build]).await;
        place(&builds[build], &format!("order-{}", changeover_position(&builds[build]).await), 1).await;
    }
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2", "orders_v3"]);
    // What is kept by default is what one would go back to.
    let options = changeover::PruneOptions::default();
    let pruned = builds[2].prune(&options).await.unwrap();
    assert!(pruned.lost.iter().all(|lost| !lost.before), "{pruned:?}");
    let _ = builds[0].rollback(&hasty(), &|_| {}).await.unwrap();
    assert_eq!((active(&client).await.as_str(), wrong_rows(&client, "orders_v1").await), ("orders 1.0.0", 0));
    // Taken away in so many words, it is said before, said afterwards, and said to whoever wants to go back.
    let plan = builds[0].plan_prune(0).await.unwrap();
    assert!(plan.lost.iter().any(|lost| lost.before && lost.configuration == release("3.0.0").versions()));
    assert!(prune(&builds[0], 0).await.lost.iter().any(|lost| lost.before));
    let error = builds[2].rollback(&hasty(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, RollbackError::Gone(_)), "{error}");
    assert!(error.to_string().contains("run `activate-configuration` of this build"), "{error}");
    assert_eq!(active(&client).await, "orders 1.0.0");
}

async fn changeover_position(build: &Changeover) -> i64 {
    build.horizon().await.unwrap().get()
}

/// Whatever number it is given, pruning drops the tables of retired versions alone: not of what is active, in whichever
/// minor version, not of what is being replayed, nor of what an activation is switching right now.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_flag_deletes_what_is_active_replayed_or_being_activated() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let one = instance_of(&database, "1.0.0 totals").await;
    place(&one, "first", 2).await;
    // In place: 1.0.0 has retired, and its tables are those of the active version.
    let minor = instance_of(&database, "1.1.0").await;
    activate(&minor).await;
    let plan = minor.plan_prune(0).await.unwrap();
    let due: Vec<&str> = plan.dropped().map(|tables| tables.schema.as_str()).collect();
    assert_eq!(due, ["totals_v1"]);
    let two = instance_of(&database, "2.0.0").await;
    let _ = replay_one(&two, &"orders".parse().unwrap(), &|_| {}).await.unwrap();
    assert_eq!(prune(&minor, 0).await.dropped.len(), 1);
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2"]);

    let mut held = Held::at("drained", &two, hasty());
    held.reached().await;
    assert!(prune(&two, 0).await.dropped.is_empty());
    let _ = held.outcome().await.unwrap();
    // Back again, held in the same place: both are being switched.
    place(&two, "second", 1).await;
    let mut held = Held::back_at("drained", &minor, hasty());
    held.reached().await;
    assert!(prune(&two, 0).await.dropped.is_empty());
    let _ = held.outcome().await.unwrap();
    place(&minor, "third", 1).await;
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2"]);
    // And a rollback that somebody began and left: what it replays is wanted.
    let _ = replay_one(&two, &"orders".parse().unwrap(), &|_| {}).await.unwrap();
    assert!(prune(&minor, 0).await.dropped.is_empty());
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

/// A schema that merely has the right name is somebody else's, and so is a table that somebody put among ours.
#[tokio::test]
async fn the_wrong_tables_are_neither_dropped_nor_reported_as_dropped() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (one, two) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    let running = one.start();
    place(&one, "first", 1).await;
    crate::traps::published(&one, "orders").await;
    running.stop().await;
    activate(&two).await;
    client
        .batch_execute(
            "CREATE SCHEMA orders_v7; CREATE TABLE orders_v7.orders AS SELECT 'precious' AS id;
             CREATE SCHEMA totals_v1; CREATE TABLE totals_v1.total AS SELECT 'precious' AS id;
             CREATE TABLE orders_v1.precious AS SELECT 'precious' AS id",
        )
        .await
        .unwrap();
    let precious = async |table: &str| {
        let sql = format!("SELECT id FROM {table}");
        assert_eq!(client.query_one(&sql, &[]).await.unwrap().get::<_, &str>(0), "precious", "{table}");
    };
    let PruneError::Left { pruned, left } = two.prune(&keeping(0)).await.unwrap_err() else { panic!() };
    assert!(pruned.dropped.is_empty() && left.len() == 1, "{pruned:?} {left:?}");
    assert!(matches!(left[0].why, WhyNotPruned::InTheWay(_)), "{left:?}");
    for table in ["orders_v7.orders", "totals_v1.total", "orders_v1.precious"] {
        precious(table).await;
    }
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "half of it is gone");

    // Ours dropped by hand, and another one of that name put in its place: still not ours.
    client
        .batch_execute(
            "DROP TABLE orders_v1.orders, orders_v1.precious; DROP SCHEMA orders_v1;
             CREATE SCHEMA orders_v1; CREATE TABLE orders_v1.somebodys AS SELECT 'precious' AS id",
        )
        .await
        .unwrap();
    let plan = two.plan_prune(0).await.unwrap();
    assert!(matches!(plan.tables[0].fate, Fate::InTheWay(_)), "{plan:?}");
    two.prune(&keeping(0)).await.unwrap_err();
    precious("orders_v1.somebodys").await;
    // Where there is nothing any more, what we know of it goes.
    client.batch_execute("DROP TABLE orders_v1.somebodys; DROP SCHEMA orders_v1").await.unwrap();
    assert_eq!(prune(&two, 0).await.dropped.len(), 1);
    let known = "SELECT count(*) FROM changeover.projector_states WHERE version = '1.0.0'";
    assert_eq!(client.query_one(known, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// With everything retired and pruned the states are empty, as they were before the first activation ever. They are not the
/// same: an instance that took its own configuration for the first one would begin all over, with rows of nothing.
#[tokio::test]
async fn an_empty_table_of_states_is_no_beginning_where_something_was_pruned() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    let running = (old.start(), new.start());
    eventually(SOON, || async { old.readiness().is_ready() || new.readiness().is_ready() }).await;
    let first = if active(&client).await == "orders 1.0.0" { &old } else { &new };
    place(first, "first", 2).await;
    let _ = new.deactivate(&"orders".parse().unwrap(), &hasty()).await.unwrap();
    assert_eq!(prune(&new, 0).await.dropped.len(), 1);
    for instance in [&old, &new] {
        let refused = instance.append(&stream("late"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::NoConfigurationIsActive)), "{refused}");
    }
    assert_eq!(there(&client).await, [""; 0]);
    running.0.stop().await;
    running.1.stop().await;
    // The next one is activated like any other, and holds everything.
    let humble = Changeover::builder(database.config())
        .configuration(release("2.0.0"))
        .when_nothing_is_active(WhenNothingIsActive::AssumeOurs);
    let next = humble.connect().await.unwrap();
    activate(&next).await;
    next.append(&stream("next"), Expected::Any, &[placed("Ada")]).await.unwrap();
    let running = next.start();
    crate::traps::published(&next, "orders").await;
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    running.stop().await;
}
