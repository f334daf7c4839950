//! `/livez`, `/readyz` and the guard.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use changeover::{ActivateOptions, Configuration, Expected, Pace, ReplayOptions, Throttle};
use changeover_testkit::{Database, Proxy, eventually};

use crate::instances::{OrderEvent, PATIENCE, app, get_from, instance, stream, until_readyz_says};

#[tokio::test]
async fn readyz_and_the_guard_follow_an_instance_through_an_upgrade() {
    let database = Database::fresh().await;
    let old = instance::<1>(database.config()).await;
    let old_app = app(&old);
    until_readyz_says(&old_app, "unknown").await;
    assert_eq!(get_from(&old_app, "/orders").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let old_running = old.start();
    until_readyz_says(&old_app, "active").await;
    assert_eq!(get_from(&old_app, "/orders").await.text, "from the read model");

    let new = instance::<2>(database.config()).await;
    let (new_app, new_running) = (app(&new), new.start());
    let waiting = until_readyz_says(&new_app, "waiting").await;
    assert!(waiting.text.contains("orders 1.0.0 is active and older than our 2.0.0"), "{}", waiting.text);
    assert_eq!(get_from(&new_app, "/orders").await.status, StatusCode::SERVICE_UNAVAILABLE);

    // An append in flight keeps the activation in its pause.
    let mut client = old.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    old.append_in(&tx, &stream("order-1"), Expected::Any, &[OrderEvent::OrderPaid {}]).await.unwrap();
    let activating = tokio::spawn({
        let new = new.clone();
        async move {
            let options = ActivateOptions { pause_limit: PATIENCE, ..Default::default() };
            new.activate(&options, &|_| {}).await
        }
    });
    until_readyz_says(&old_app, "activating").await;
    until_readyz_says(&new_app, "activating").await;
    // Both reads wait for the outcome, and get what it says.
    let asked = Instant::now();
    let (from_old, from_new, ()) =
        tokio::join!(get_from(&old_app, "/orders"), get_from(&new_app, "/orders"), async {
            tx.commit().await.unwrap();
        });
    assert_eq!(from_old.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(from_old.of("error"), "NotReady");
    // They wait for two seconds, in which a machine that stands still may not get that far.
    if asked.elapsed() < Duration::from_secs(2) {
        assert!(
            from_old.of("message").as_str().unwrap().contains("this instance is retired"),
            "{}",
            from_old.text
        );
        assert_eq!((from_new.status, from_new.text.as_str()), (StatusCode::OK, "from the read model"));
    }

    activating.await.unwrap().unwrap().activation.expect("something was activated");
    let retired = until_readyz_says(&old_app, "retired").await;
    assert!(retired.text.contains("orders 2.0.0 is active and newer than our 1.0.0"), "{}", retired.text);
    until_readyz_says(&new_app, "active").await;
    for app in [&old_app, &new_app] {
        assert_eq!(get_from(app, "/livez").await.status, StatusCode::OK);
    }
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn readyz_says_unknown_where_an_unknown_projector_is_active() {
    let database = Database::fresh().await;
    let other = instance::<1>(database.config()).await;
    other.append(&stream("order-1"), Expected::Any, &[OrderEvent::OrderPaid {}]).await.unwrap();
    let without = changeover::Changeover::builder(database.config()).configuration(Configuration::new());
    let without = without.connect().await.unwrap();
    let (without_app, running) = (app(&without), without.start());
    eventually(PATIENCE, || async {
        get_from(&without_app, "/readyz").await.text.contains("does not know it")
    })
    .await;
    until_readyz_says(&without_app, "unknown").await;
    running.stop().await;
}

#[tokio::test]
async fn neither_liveness_nor_readiness_depends_on_lag() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance::<1>(database.config()).await;
    let (old_app, old_running) = (app(&old), old.start());
    until_readyz_says(&old_app, "active").await;

    // Nobody publishes while somebody has the checkpoint; and what is stalled is not published either.
    let hold = "BEGIN; UPDATE changeover.checkpoints SET error = 'a poison', stalled_since = now() WHERE projector = 'orders'";
    client.batch_execute(hold).await.unwrap();
    let events: Vec<OrderEvent> = (0..500).map(|_| OrderEvent::OrderPaid {}).collect();
    old.append(&stream("order-1"), Expected::Any, &events).await.unwrap();
    let lags = async || {
        old.status()
            .await
            .unwrap()
            .projectors
            .iter()
            .any(|row| row.tables.as_ref().is_some_and(|tables| tables.lag_events >= 500))
    };
    for stalled in [false, true] {
        if stalled {
            client.batch_execute("COMMIT").await.unwrap();
        }
        eventually(PATIENCE, lags).await;
        for path in ["/livez", "/readyz"] {
            let answer = get_from(&old_app, path).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}, stalled: {stalled}: {}", answer.text);
        }
    }

    // In the middle of a replay: the process that replays lives, and is not restarted.
    let new = instance::<2>(database.config()).await;
    let (new_app, new_running) = (app(&new), new.start());
    until_readyz_says(&new_app, "waiting").await;
    let throttle = Throttle { events_per_sec: Some(1), ..Throttle::default() };
    let pace = Pace { throttle, parallel_above_events: 0, ..Pace::default() };
    let options = ReplayOptions { pace, ..ReplayOptions::default() };
    let replaying = tokio::spawn({
        let new = new.clone();
        async move { new.replay(&["orders".parse().unwrap()], &options, &|_| {}).await }
    });
    eventually(PATIENCE, || async { !old.status().await.unwrap().replays.is_empty() }).await;
    assert_eq!(get_from(&new_app, "/livez").await.status, StatusCode::OK);
    assert_eq!(get_from(&old_app, "/readyz").await.status, StatusCode::OK);
    until_readyz_says(&new_app, "waiting").await;
    assert!(!replaying.is_finished(), "the replay was over before anybody looked");
    replaying.abort();
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn a_thousand_polls_ask_the_database_nothing() {
    const ACTIVITY: &str =
        "SELECT string_agg(concat_ws(' ', pid, backend_start, query_start, state_change, query), E'\\n')
        FROM (SELECT * FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND backend_type = 'client backend' ORDER BY pid) a";
    let database = Database::fresh().await;
    // Not started: whatever reaches the database now comes from the polls.
    let changeover = instance::<1>(database.config()).await;
    changeover.append(&stream("order-1"), Expected::Any, &[OrderEvent::OrderPaid {}]).await.unwrap();
    let app = app(&changeover);
    let watcher = database.client().await;
    let activity = async || watcher.query_one(ACTIVITY, &[]).await.unwrap().get::<_, String>(0);
    let before = activity().await;
    // What a decision asks for last.
    assert!(before.contains("-- compatibility"), "the watcher must see what the instance did: {before}");
    for _ in 0..1_000 {
        assert_eq!(get_from(&app, "/readyz").await.status, StatusCode::OK);
        assert_eq!(get_from(&app, "/livez").await.status, StatusCode::OK);
        assert_eq!(get_from(&app, "/orders").await.status, StatusCode::OK);
    }
    assert_eq!(activity().await, before);
}

/// Asks a future once whether it is done.
async fn poll_once<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

#[tokio::test]
async fn health_answers_at_once_while_the_database_does_not() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let changeover = instance::<1>(proxy.config(&database.config())).await;
    let (app, running) = (app(&changeover), changeover.start());
    until_readyz_says(&app, "active").await;

    proxy.stall();
    for _ in 0..1_000 {
        // Not soon, by some clock, but without waiting for anything at all.
        let mut ready = pin!(get_from(&app, "/readyz"));
        assert!(poll_once(&mut ready).await.is_ready());
        let mut live = pin!(get_from(&app, "/livez"));
        let Poll::Ready(live) = poll_once(&mut live).await else { panic!("it waits for something") };
        assert_eq!(live.status, StatusCode::OK);
        tokio::task::yield_now().await;
    }
    until_readyz_says(&app, "unreachable").await;

    proxy.cut();
    until_readyz_says(&app, "unreachable").await;
    let read = get_from(&app, "/orders").await;
    assert_eq!((read.status, read.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_eq!(get_from(&app, "/livez").await.status, StatusCode::OK);

    proxy.resume();
    until_readyz_says(&app, "active").await;
    running.stop().await;
}
