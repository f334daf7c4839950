//! What the shop answers.

use axum::http::{Method, StatusCode};
use changeover::{AppendError, Position, ReadyState};
use changeover_testkit::{Database, eventually};
use serde_json::{Value, json};
use shop::Release;
use shop::orders::{OrderError, OrderEvent, place};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::shops::{PATIENCE, active_shop, app, send, shop, wait_for};

const POST: Method = Method::POST;
const GET: Method = Method::GET;

#[tokio::test]
async fn an_order_goes_its_way_in_release_1_and_on_in_release_2() {
    let database = Database::fresh().await;
    let one = active_shop(&database, Release::One).await;
    let (app_one, running_one) = (app(Release::One, &one), one.start());
    eventually(PATIENCE, || async { one.readiness().is_ready() }).await;

    let tea = json!({ "sku": "tea", "quantity": 2, "cents": 450 });
    let ordered = json!({ "customer": "Ada", "items": [tea] });
    let (status, written) = send(&app_one, POST, "/orders", ordered).await;
    assert_eq!((status, &written["revision"]), (StatusCode::CREATED, &json!(2)));
    let order = format!("/orders/{}", written["id"].as_str().unwrap());
    let cup = json!({ "sku": "cup", "quantity": 1, "cents": 1_200 });
    let (status, written) = send(&app_one, POST, &format!("{order}/items"), cup).await;
    assert_eq!((status, &written["revision"]), (StatusCode::OK, &json!(3)));
    let (status, seen) = send(&app_one, GET, &order, Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let expected = json!({ "customer": "Ada", "items": 2, "cents": 2_100, "paid": false, "revision": 3 });
    assert_eq!(without_id(seen), expected);

    let two = active_shop(&database, Release::Two).await;
    let (app_two, running_two) = (app(Release::Two, &two), two.start());
    eventually(PATIENCE, || async { two.readiness().is_ready() }).await;
    eventually(PATIENCE, || async { one.readiness().state == ReadyState::Retired }).await;
    for (method, path) in [(GET, order.clone()), (POST, format!("{order}/pay"))] {
        let (status, refused) = send(&app_one, method, &path, Value::Null).await;
        assert_eq!((status, &refused["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("NotReady")));
    }

    let (status, paid) = send(&app_two, POST, &format!("{order}/pay"), Value::Null).await;
    assert_eq!((status, &paid["revision"]), (StatusCode::OK, &json!(4)));
    let (_, mut seen) = send(&app_two, GET, &order, Value::Null).await;
    assert!(seen["placed_at"].is_object(), "{seen}");
    seen.as_object_mut().unwrap().remove("placed_at");
    let expected = json!({
        "customer": "Ada", "status": "paid", "items": 2, "pieces": 3, "cents": 2_100, "revision": 4
    });
    assert_eq!(without_id(seen), expected);
    let (_, orders) = send(&app_two, GET, "/customers/Ada", Value::Null).await;
    assert_eq!(orders.as_array().unwrap().len(), 1);

    let position = Position::new(paid["positions"][0].as_i64().unwrap());
    wait_for(&two, position, &["bestsellers", "daily_revenue"]).await;
    let (_, best) = send(&app_two, GET, "/bestsellers", Value::Null).await;
    let expected = json!([
        { "sku": "tea", "lines": 1, "pieces": 2, "cents": 900 },
        { "sku": "cup", "lines": 1, "pieces": 1, "cents": 1_200 }
    ]);
    assert_eq!(best, expected);
    let (_, revenue) = send(&app_two, GET, "/revenue", Value::Null).await;
    assert_eq!((&revenue[0]["orders"], &revenue[0]["cents"]), (&json!(1), &json!(2_100)));
    running_one.stop().await;
    running_two.stop().await;
}

fn without_id(mut order: Value) -> Value {
    order.as_object_mut().unwrap().remove("id").unwrap();
    order
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let database = Database::fresh().await;
    let two = active_shop(&database, Release::Two).await;
    let (app, running) = (app(Release::Two, &two), two.start());
    eventually(PATIENCE, || async { two.readiness().is_ready() }).await;
    let check = async |path: &str, body: Value, expected: StatusCode, error: &str| {
        let (status, answer) = send(&app, POST, path, body).await;
        assert_eq!((status, answer["error"].as_str()), (expected, Some(error)), "{path}: {answer}");
    };
    let nowhere = "/orders/0197f3c8-7a4e-7bb0-8f3c-0123456789ab";
    check(&format!("{nowhere}/pay"), Value::Null, StatusCode::NOT_FOUND, "NotFound").await;
    check("/orders", json!({ "customer": "" }), StatusCode::UNPROCESSABLE_ENTITY, "Invalid").await;
    check("/orders", json!({ "customer": "a\u{0}b" }), StatusCode::UNPROCESSABLE_ENTITY, "HoldsNul").await;

    let (_, written) = send(&app, POST, "/orders", json!({ "customer": "Ada" })).await;
    let order = format!("/orders/{}", written["id"].as_str().unwrap());
    let many = json!({ "sku": "tea", "quantity": 1, "cents": i64::MAX });
    check(&format!("{order}/items"), many, StatusCode::UNPROCESSABLE_ENTITY, "Invalid").await;
    check(&format!("{order}/pay"), Value::Null, StatusCode::CONFLICT, "NotAllowed").await;
    check(&format!("{order}/ship"), Value::Null, StatusCode::CONFLICT, "NotAllowed").await;
    assert_eq!(send(&app, POST, &format!("{order}/cancel"), Value::Null).await.0, StatusCode::OK);
    check(&format!("{order}/cancel"), Value::Null, StatusCode::CONFLICT, "NotAllowed").await;
    running.stop().await;
}

#[tokio::test]
async fn an_instance_of_release_1_that_comes_late_has_retired_before_it_served() {
    let database = Database::fresh().await;
    active_shop(&database, Release::Two).await;
    let one = shop(&database, Release::One).await;
    let (app, running) = (app(Release::One, &one), one.start());
    // Also though release 2 has a projector that release 1 does not know.
    eventually(PATIENCE, || async { one.readiness().state == ReadyState::Retired }).await;
    let (status, refused) = send(&app, POST, "/orders", json!({ "customer": "Ada" })).await;
    assert_eq!((status, &refused["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("NotReady")));
    let refused = place(&one, Uuid::now_v7(), &[OrderEvent::OrderPaid]).await.unwrap_err();
    let OrderError::Append(AppendError::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.name(), "NewerProjectorIsActive");
    running.stop().await;
}

#[tokio::test]
async fn all_who_change_one_order_at_once_get_through() {
    // Few at once, so that nobody loses more often than a change is tried; often, so that somebody loses at all.
    const AT_ONCE: usize = 3;
    const ROUNDS: usize = 10;
    let database = Database::fresh().await;
    let two = active_shop(&database, Release::Two).await;
    let (app, running) = (app(Release::Two, &two), two.start());
    eventually(PATIENCE, || async { two.readiness().is_ready() }).await;
    let (_, written) = send(&app, POST, "/orders", json!({ "customer": "Ada" })).await;
    let order = format!("/orders/{}", written["id"].as_str().unwrap());
    for _ in 0..ROUNDS {
        let mut changes = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (app, path) = (app.clone(), format!("{order}/items"));
            changes.spawn(async move {
                send(&app, POST, &path, json!({ "sku": "tea", "quantity": 1, "cents": 100 })).await.0
            });
        }
        while let Some(status) = changes.join_next().await {
            assert_eq!(status.unwrap(), StatusCode::OK);
        }
    }
    let (_, seen) = send(&app, GET, &order, Value::Null).await;
    let all = AT_ONCE * ROUNDS;
    assert_eq!((&seen["items"], &seen["cents"]), (&json!(all), &json!(all * 100)));
    running.stop().await;
}
