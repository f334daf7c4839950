//! The main job: version N and N+1 side by side, and the switch between them.

use changeover::{AppendError, Configuration, Expected, ReadyState, Refused};
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
