//! Going back to the configuration before, and forward again: refused where it makes no sense, and nothing is ever lost.

use changeover::{
    Activated, AppendError, Changeover, Expected, NoWayBack, ReadyState, Refused, RollbackError,
};
use changeover_testkit::{Database, eventually};

use crate::orders::{place, placed, stream};
use crate::releases::{
    Held, SOON, Writers, active, hasty, instance_of, more_events, wrong_rows, wrong_rows_at_checkpoint,
};
use crate::traps::{activate, published};

async fn rollback(old: &Changeover) -> Activated {
    old.rollback(&hasty(), &|_| {}).await.unwrap()
}

async fn refused(build: &Changeover) -> RollbackError {
    let planned = build.plan_rollback().await.unwrap_err();
    let error = build.rollback(&hasty(), &|_| {}).await.unwrap_err();
    assert_eq!(planned.to_string(), error.to_string(), "a plan says something else");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrade_rollback_upgrade_under_load_loses_nothing() {
    for (one, two) in [
        ("1.0.0", "2.0.0"),
        ("inline 1.0.0", "inline 2.0.0"),
        ("1.0.0", "inline 2.0.0"),
        ("inline 1.0.0", "2.0.0"),
    ] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let (old, new) = (instance_of(&database, one).await, instance_of(&database, two).await);
        place(&old, "first", 1).await;
        let running = (old.start(), new.start());
        let writers = Writers::start(4, &[&old, &new]);
        more_events(&client, 50).await;
        activate(&new).await;
        for round in 0..2 {
            more_events(&client, 50).await;
            let back = rollback(&old).await;
            assert!(back.activation.is_some() && back.pause_ms < 1_000.0, "{one} {two} {round}: {back:?}");
            assert_eq!(active(&client).await, "orders 1.0.0");
            assert_eq!(wrong_rows_at_checkpoint(&client, "orders_v2").await, 0, "{one} {two} {round}");
            more_events(&client, 50).await;
            activate(&new).await;
            assert_eq!(active(&client).await, "orders 2.0.0");
            assert_eq!(wrong_rows_at_checkpoint(&client, "orders_v1").await, 0, "{one} {two} {round}");
        }
        more_events(&client, 50).await;
        let _ = rollback(&old).await;
        more_events(&client, 50).await;
        let written = writers.stop().await;
        assert_eq!(written.failed, Vec::<String>::new(), "{one} {two}");
        assert!(written.by.iter().all(|by| *by > 0), "only one release wrote: {:?}", written.by);
        published(&old, "orders").await;
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{one} {two}");
        activate(&new).await;
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0, "{one} {two}");
        running.0.stop().await;
        running.1.stop().await;
    }
}

#[tokio::test]
async fn after_a_rollback_the_newer_release_waits_and_the_older_one_serves() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) =
        (instance_of(&database, "1.0.0 totals").await, instance_of(&database, "2.0.0 totals").await);
    place(&old, "before", 1).await;
    let running = (old.start(), new.start());
    activate(&new).await;
    place(&new, "between", 2).await;
    eventually(SOON, || async { old.readiness().state == ReadyState::Retired }).await;
    let planned = old.plan_rollback().await.unwrap();
    let back = rollback(&old).await;
    assert_eq!((&planned, back.plan.steps.len()), (&back.plan, 2));
    eventually(SOON, || async { old.readiness().is_ready() }).await;
    eventually(SOON, || async { new.readiness().state == ReadyState::Waiting }).await;
    let late = new.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(late, AppendError::Refused(Refused::OlderProjectorIsActive { .. })), "{late}");
    place(&old, "after", 3).await;
    published(&old, "orders").await;
    published(&old, "totals").await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    let total = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
    assert_eq!(total.get::<_, i64>(0), 6);
    // The history says which of the two it was.
    let history = client.query("SELECT rollback FROM changeover.activations ORDER BY id", &[]).await.unwrap();
    assert_eq!(history.iter().map(|row| row.get(0)).collect::<Vec<bool>>(), [false, true]);
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test]
async fn a_minor_and_a_patch_version_are_gone_back_from_in_place() {
    for (from, to, paused) in [("1.0.0", "1.1.0", true), ("1.0.0", "1.0.1", false)] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let (old, new) = (instance_of(&database, from).await, instance_of(&database, to).await);
        place(&old, "before", 1).await;
        activate(&new).await;
        place(&new, "between", 1).await;
        let back = rollback(&old).await;
        assert_eq!((active(&client).await, back.horizon.is_some()), (format!("orders {from}"), paused));
        place(&old, "after", 1).await;
        let running = old.start();
        published(&old, "orders").await;
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{from} {to}");
        running.stop().await;
    }
}

#[tokio::test]
async fn whatever_is_not_the_configuration_before_is_refused_and_nothing_changes() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0 totals").await;
    place(&old, "first", 1).await;
    // The first configuration ever: nothing was active before it.
    let error = refused(&old).await;
    let RollbackError::NoWayBack(NoWayBack::NothingBefore { active: first }) = &error else {
        panic!("{error}")
    };
    assert_eq!(first.len(), 2);
    let new = instance_of(&database, "2.0.0 totals").await;
    let error = refused(&new).await;
    assert!(matches!(error, RollbackError::NoWayBack(NoWayBack::NothingBefore { .. })), "{error}");
    activate(&new).await;

    // The build that is active already: the one to go back from. "Done" would be a lie.
    let error = refused(&new).await;
    let said = error.to_string();
    assert!(said.contains("before it there was orders 1.0.0, totals 1.0.0: run `rollback`"), "{said}");
    // Builds that have something else.
    for (name, expected) in [
        (
            "1.1.0",
            "orders 1.0.0 is needed, this build has 1.1.0; totals 1.0.0 is needed, this build has none",
        ),
        ("1.0.0", "totals 1.0.0 is needed, this build has none"),
        ("none", "orders 1.0.0 is needed, this build has none"),
        ("orders and fan_1", "this build has fan_1 1.0.0, which was not active"),
    ] {
        let error = refused(&instance_of(&database, name).await).await;
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(matches!(error, RollbackError::NoWayBack(NoWayBack::OtherConfiguration { .. })), "{error}");
    }
    assert_eq!(active(&client).await, "orders 2.0.0, totals 1.0.0");
    let rows = client.query_one("SELECT count(*) FROM changeover.activations", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 1, "something was begun");

    // Done twice it is done once, also by a pipeline that tries again.
    let back = rollback(&old).await;
    assert!(back.activation.is_some());
    let again = rollback(&old).await;
    assert!(again.activation.is_none() && again.plan.is_done(), "{again:?}");
    // And what was gone back from was active before: the way forward is open in the same way.
    let forward = new.rollback(&hasty(), &|_| {}).await.unwrap();
    assert!(forward.activation.is_some());
    assert_eq!(active(&client).await, "orders 2.0.0, totals 1.0.0");
}

#[tokio::test]
async fn a_removed_projector_comes_back_with_what_it_missed() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0 totals").await, instance_of(&database, "1.0.0").await);
    place(&old, "before", 2).await;
    activate(&new).await;
    place(&new, "between", 3).await;
    let _ = rollback(&old).await;
    assert_eq!(active(&client).await, "orders 1.0.0, totals 1.0.0");
    let total = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
    assert_eq!(total.get::<_, i64>(0), 5);
}

#[tokio::test]
async fn tables_that_somebody_dropped_by_hand_are_missed_before_anybody_pauses() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&old, "before", 1).await;
    activate(&new).await;
    client.batch_execute("DROP TABLE orders_v1.orders; DROP SCHEMA orders_v1").await.unwrap();
    let error = refused(&old).await;
    let RollbackError::Gone(gone) = &error else { panic!("{error}") };
    assert_eq!((gone[0].schema.as_str(), &gone[0].pruned_by), ("orders_v1", &None));
    assert!(error.to_string().contains("the tables of orders 1.0.0 (orders_v1) are gone"), "{error}");
    assert_eq!(active(&client).await, "orders 2.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_rollback_that_is_overtaken_makes_no_third_configuration() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (one, two) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&one, "first", 1).await;
    activate(&two).await;
    // A third release takes over while the way back to the first is prepared.
    let options = changeover::ActivateOptions { wait_for_instances: 1, ..hasty() };
    let going = {
        let one = one.clone();
        tokio::spawn(async move { one.rollback(&options, &|_| {}).await })
    };
    let waiting = "SELECT FROM changeover.projector_states WHERE version = '1.0.0' AND state = 'replaying'";
    eventually(SOON, || async { client.query_opt(waiting, &[]).await.unwrap().is_some() }).await;
    activate(&instance_of(&database, "2.0.0 totals").await).await;
    let running = one.start();
    let error = going.await.unwrap().unwrap_err();
    assert!(matches!(error, RollbackError::Activate(_)), "{error}");
    assert_eq!(active(&client).await, "orders 2.0.0, totals 1.0.0");
    // Now that configuration is what one would go back from, and the first is not what was before.
    let error = refused(&one).await;
    assert!(matches!(error, RollbackError::NoWayBack(NoWayBack::OtherConfiguration { .. })), "{error}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_rollback_that_is_given_back_leaves_the_newer_release_serving_and_can_be_done_again() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) =
        (instance_of(&database, "inline 1.0.0").await, instance_of(&database, "inline 2.0.0").await);
    place(&old, "first", 1).await;
    activate(&new).await;
    place(&new, "second", 1).await;
    let mut held = Held::back_at("drained", &old, hasty());
    held.reached().await;
    assert_eq!(new.abort("test").await.unwrap().len(), 1);
    assert!(held.outcome().await.is_err());
    place(&new, "third", 1).await;
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    let _ = rollback(&old).await;
    place(&old, "fourth", 1).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}
