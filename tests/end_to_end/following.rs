//! Following: instances of the old release keep the retired tables current, so that going back takes one activation.

use std::sync::atomic::{AtomicU64, Ordering};

use changeover::{
    ActivateOptions, ActivationProgress, AppendError, Changeover, Expected, ReadyState, Refused,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::orders::{place, placed, stream};
use crate::releases::{
    SOON, Writers, active, hasty, instance_of, more_events, wrong_rows, wrong_rows_at_checkpoint,
};
use crate::traps::{activate, published};

fn keeping() -> ActivateOptions {
    ActivateOptions { keep_following: true, ..hasty() }
}

/// The versions that are followed: `orders 1.0.0`.
async fn followed(client: &Client) -> Vec<String> {
    let sql = "SELECT projector || ' ' || version FROM changeover.projector_states WHERE follow ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// How far a version is behind, as `status` shows it.
async fn lag(instance: &Changeover, projector: &str, major: u64) -> i64 {
    let status = instance.status().await.unwrap();
    let mut own = status.projectors.iter().filter(|own| own.projector.as_str() == projector);
    own.find(|own| own.version.major == major).unwrap().tables.as_ref().unwrap().lag_events
}

/// Goes back and returns how many events that replayed before the pause.
async fn replayed_on_the_way_back(old: &Changeover, options: &ActivateOptions) -> u64 {
    let replayed = AtomicU64::new(0);
    let on_progress = |progress: ActivationProgress| {
        if let ActivationProgress::Replaying(progress) = progress {
            replayed.fetch_max(progress.events, Ordering::Relaxed);
        }
    };
    let back = old.rollback(options, &on_progress).await.unwrap();
    assert!(back.activation.is_some());
    replayed.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_followed_stays_near_the_end_of_the_log_and_going_back_replays_nothing() {
    for (one, two) in [("1.0.0", "2.0.0"), ("inline 1.0.0", "inline 2.0.0"), ("inline 1.0.0", "2.0.0")] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let (old, new) = (instance_of(&database, one).await, instance_of(&database, two).await);
        place(&old, "first", 1).await;
        let running = (old.start(), new.start());
        let _ = new.activate(&keeping(), &|_| {}).await.unwrap();
        assert_eq!(followed(&client).await, ["orders 1.0.0"], "{one} {two}");
        let writers = Writers::start(3, &[&new]);
        for _ in 0..3 {
            more_events(&client, 200).await;
            // A moment at which less than a moment's events are missing, with writers at work.
            eventually(SOON, || async { lag(&new, "orders", 1).await < 200 }).await;
        }
        // It takes no traffic, and its appends are refused as ever.
        assert_eq!(old.readiness().state, ReadyState::Retired, "{}", old.readiness().reason);
        let late = old.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(matches!(late, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{late}");
        assert_eq!(writers.stop().await.failed, Vec::<String>::new());

        eventually(SOON, || async { lag(&new, "orders", 1).await == 0 }).await;
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{one} {two}: nobody activated it yet");
        assert_eq!(replayed_on_the_way_back(&old, &keeping()).await, 0, "{one} {two}");
        // Now it is the newer release that follows, though it waits.
        assert_eq!(followed(&client).await, ["orders 2.0.0"], "{one} {two}");
        place(&old, "after", 3).await;
        eventually(SOON, || async { new.readiness().state == ReadyState::Waiting }).await;
        eventually(SOON, || async { lag(&old, "orders", 2).await == 0 }).await;
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0, "{one} {two}");
        assert_eq!(replayed_on_the_way_back(&new, &hasty()).await, 0, "{one} {two}");
        assert_eq!(followed(&client).await, [""; 0], "{one} {two}");
        running.0.stop().await;
        running.1.stop().await;
        assert_eq!(wrong_rows_at_checkpoint(&client, "orders_v1").await, 0, "{one} {two}");
    }
}

#[tokio::test]
async fn who_is_not_told_to_follow_does_not() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&old, "first", 1).await;
    let running = (old.start(), new.start());
    activate(&new).await;
    assert_eq!(followed(&client).await, [""; 0]);
    eventually(SOON, || async { old.readiness().state == ReadyState::Retired }).await;
    let before = lag(&new, "orders", 1).await;
    place(&new, "second", 4).await;
    published(&new, "orders").await;
    // The other release has published it: whoever wanted to follow would have heard of it as well.
    assert_eq!(lag(&new, "orders", 1).await, before + 5);
    assert!(replayed_on_the_way_back(&old, &hasty()).await >= 5);
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test]
async fn tables_that_the_active_version_shares_are_not_followed() {
    for to in ["1.1.0", "1.0.1"] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, to).await);
        let running = old.start();
        place(&old, "first", 1).await;
        let _ = new.activate(&keeping(), &|_| {}).await.unwrap();
        assert_eq!((active(&client).await, followed(&client).await), (format!("orders {to}"), vec![]));
        place(&new, "second", 1).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_later_switch_ends_the_following_and_a_patch_does_not() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "pair 1 1").await;
    place(&old, "first", 1).await;
    let _ = instance_of(&database, "pair 2 1").await.activate(&keeping(), &|_| {}).await.unwrap();
    assert_eq!(followed(&client).await, ["fan_1 1.0.0"]);
    // The way back leads to what the last switch retired, and so does the following.
    let _ = instance_of(&database, "pair 1 1").await.rollback(&keeping(), &|_| {}).await.unwrap();
    assert_eq!(followed(&client).await, ["fan_1 2.0.0"]);
    activate(&instance_of(&database, "pair 1 1.0.1").await).await;
    assert_eq!(followed(&client).await, ["fan_1 2.0.0"]);
    activate(&instance_of(&database, "pair 1 2").await).await;
    assert_eq!(followed(&client).await, [""; 0]);
}

#[tokio::test]
async fn a_switch_does_not_wait_for_whoever_has_a_followed_version_locked() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0 totals").await;
    place(&old, "first", 2).await;
    let _ = instance_of(&database, "1.0.0").await.activate(&keeping(), &|_| {}).await.unwrap();
    assert_eq!(followed(&client).await, ["totals 1.0.0"]);
    // As a prune has it, or the mark of an activation that takes it back and waits for the pause of this one to end.
    let locker = database.client().await;
    let lock = "BEGIN; SELECT FROM changeover.projector_states WHERE projector = 'totals' FOR UPDATE";
    locker.batch_execute(lock).await.unwrap();
    let new = instance_of(&database, "2.0.0").await;
    let options = ActivateOptions { pause_limit: SOON, ..hasty() };
    let switched = new.activate(&options, &|_| {});
    let switched = tokio::time::timeout(SOON / 2, switched).await.expect("it waits in its pause").unwrap();
    assert!(switched.activation.is_some());
    assert_eq!(active(&client).await, "orders 2.0.0");
    locker.batch_execute("COMMIT").await.unwrap();
    // What was left is made up for by the next one.
    activate(&instance_of(&database, "1.0.0").await).await;
    assert_eq!(followed(&client).await, [""; 0]);
}

#[tokio::test]
async fn a_removed_projector_is_followed_by_those_that_still_register_it() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0 totals").await, instance_of(&database, "1.0.0").await);
    place(&old, "first", 2).await;
    let running = old.start();
    let _ = new.activate(&keeping(), &|_| {}).await.unwrap();
    assert_eq!(followed(&client).await, ["totals 1.0.0"]);
    place(&new, "second", 3).await;
    eventually(SOON, || async { lag(&new, "totals", 1).await == 0 }).await;
    let total = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
    assert_eq!(total.get::<_, i64>(0), 5);
    assert_eq!(old.readiness().state, ReadyState::Waiting, "it registers a projector that does not count");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_on_its_way_back_is_followed_until_its_pause() {
    let database = Database::fresh().await;
    let (old, new) =
        (instance_of(&database, "inline 1.0.0").await, instance_of(&database, "inline 2.0.0").await);
    place(&old, "first", 1).await;
    let running = old.start();
    let _ = new.activate(&keeping(), &|_| {}).await.unwrap();
    // A rollback that was killed leaves it replaying, with nobody to feed it but those who follow.
    let client = database.client().await;
    let mut held = crate::releases::Held::back_at("drained", &old, hasty());
    held.reached().await;
    new.abort("test").await.unwrap();
    assert!(held.outcome().await.is_err());
    let state = "SELECT state FROM changeover.projector_states WHERE version = '1.0.0'";
    assert_eq!(client.query_one(state, &[]).await.unwrap().get::<_, &str>(0), "replaying");
    place(&new, "second", 3).await;
    eventually(SOON, || async { lag(&new, "orders", 1).await == 0 }).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    running.stop().await;
}
