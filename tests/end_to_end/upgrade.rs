//! The main job: version N and N+1 side by side, and the switch between them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use changeover::{
    ActivationProgress, AppendError, Changeover, Configuration, Expected, ReadyState, Refused, Signals,
};
use changeover_testkit::{Database, eventually};

use crate::orders::{
    InlineOrders1, InlineOrders2, OrderEvent, Orders1, Orders2, Totals, instance, place, stream,
};
use crate::releases::{SOON, hasty};

#[tokio::test]
async fn old_instances_retire_when_a_newer_configuration_is_activated() {
    let database = Database::fresh().await;
    let old = instance(&database, Configuration::new().fold(Orders1).unwrap().sql(Totals).unwrap()).await;
    let old_running = old.start();
    for order in 0..20 {
        place(&old, &format!("order-{order}"), 3).await;
    }
    let new = instance(&database, Configuration::new().fold(Orders2).unwrap().sql(Totals).unwrap()).await;
    let new_running = new.start();
    let refused = new.append(&stream("early"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::OlderProjectorIsActive { .. })), "{refused}");

    let activated = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert!(activated.activation.is_some());

    let refused = old.append(&stream("late"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    eventually(SOON, || async { old.readiness().state == ReadyState::Retired }).await;
    eventually(SOON, || async { new.readiness().state == ReadyState::Active }).await;

    let last = place(&new, "order-new", 3).await.last().unwrap();
    new.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
    new.wait_for(&"totals".parse().unwrap(), last, SOON).await.unwrap();
    let client = database.client().await;
    let rows = client.query_one("SELECT count(*), sum(items) FROM orders_v2.orders", &[]).await.unwrap();
    assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (21, 63));
    let total = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
    assert_eq!(total.get::<_, i64>(0), 63);
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn an_inline_projector_is_switched_with_its_tail() {
    let database = Database::fresh().await;
    let old = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    for order in 0..20 {
        place(&old, &format!("order-{order}"), 3).await;
    }
    let new = instance(&database, Configuration::new().fold(InlineOrders2).unwrap()).await;
    let activated = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(activated.horizon, Some(new.horizon().await.unwrap()));
    place(&new, "order-new", 3).await;
    let client = database.client().await;
    let rows = client.query_one("SELECT count(*), sum(items) FROM orders_v2.orders", &[]).await.unwrap();
    assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (21, 63));
    let rows = client.query_one("SELECT count(*), sum(items) FROM orders_v1.orders", &[]).await.unwrap();
    assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (20, 60));
}

/// By what is announced, and by looking. The pause is well over when the time begins to be taken, but for the switch.
#[tokio::test]
async fn an_instance_knows_within_milliseconds_of_a_switch_that_it_has_retired() {
    for notify in [Signals::default().notify, None] {
        let database = Database::fresh().await;
        let of = async |configuration: Configuration| {
            let builder = Changeover::builder(database.config())
                .configuration(configuration)
                .signals(Signals { notify, ..Signals::default() });
            builder.migrate().await.unwrap();
            builder.connect().await.unwrap()
        };
        let old = of(Configuration::new().fold(Orders1).unwrap()).await;
        place(&old, "order", 3).await;
        let new = of(Configuration::new().fold(Orders2).unwrap()).await;
        let running = old.start();
        let mut fewest = Duration::MAX;
        for turn in 0..5 {
            eventually(SOON, || async { old.readiness().state == ReadyState::Active }).await;
            let mut readiness = old.watch_readiness();
            let retired = tokio::spawn(async move {
                readiness.wait_for(|readiness| readiness.state == ReadyState::Retired).await.unwrap();
                Instant::now()
            });
            let drained = Mutex::new(None);
            let on_progress = |progress: ActivationProgress| {
                if let ActivationProgress::Drained { .. } = progress {
                    *drained.lock().unwrap() = Some(Instant::now());
                }
            };
            let _ = new.activate(&hasty(), &on_progress).await.unwrap();
            let retired = tokio::time::timeout(SOON, retired).await.unwrap().unwrap();
            let drained = drained.lock().unwrap().expect("there was no pause");
            fewest = fewest.min(retired - drained);
            if turn < 4 {
                let _ = old.activate(&hasty(), &|_| {}).await.unwrap();
            }
        }
        // The machine may stand still in one of them, but hardly in all.
        assert!(fewest < Duration::from_millis(100), "{fewest:?}, announced: {notify:?}");
        running.stop().await;
    }
}
