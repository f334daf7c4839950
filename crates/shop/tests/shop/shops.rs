//! Shops on databases of their own.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use changeover::{ActivateOptions, Appended, Changeover, Position};
use changeover_testkit::Database;
use serde_json::Value;
use shop::orders::{OrderEvent, place};
use shop::{Release, http};
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// An instance of a release whose configuration is active.
pub(crate) async fn active_shop(database: &Database, release: Release) -> Changeover {
    let changeover = shop(database, release).await;
    let options = ActivateOptions { pause_limit: Duration::from_secs(10), ..ActivateOptions::default() };
    let _ = changeover.activate(&options, &|_| {}).await.unwrap();
    changeover
}

pub(crate) async fn shop(database: &Database, release: Release) -> Changeover {
    let builder = Changeover::builder(database.config())
        .application("shop", release.version())
        .configuration(release.configuration().unwrap());
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

/// Appends what happened to one order.
pub(crate) async fn order(changeover: &Changeover, customer: &str, then: &[OrderEvent]) -> (Uuid, Appended) {
    let id = Uuid::now_v7();
    let mut events = vec![OrderEvent::OrderPlaced { customer: customer.to_owned() }];
    events.extend_from_slice(then);
    let appended = place(changeover, id, &events).await.unwrap();
    (id, appended)
}

pub(crate) fn item(sku: &str, quantity: i32, cents: i64) -> OrderEvent {
    OrderEvent::ItemAdded { sku: sku.to_owned(), quantity, cents }
}

/// Waits until all read models of a release hold everything up to a position.
pub(crate) async fn wait_for(changeover: &Changeover, position: Position, projectors: &[&str]) {
    for projector in projectors {
        changeover.wait_for(&projector.parse().unwrap(), position, PATIENCE).await.unwrap();
    }
}

/// A shop to send requests to.
pub(crate) fn app(release: Release, changeover: &Changeover) -> Router {
    http::app(release, changeover.clone())
}

pub(crate) async fn send(app: &Router, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let request =
        Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let (parts, body) = app.clone().oneshot(request.body(body).unwrap()).await.unwrap().into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    (parts.status, serde_json::from_slice(&bytes).unwrap_or_default())
}
