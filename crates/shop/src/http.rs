//! The shop on the web: JSON in, JSON out.
//!
//! | | |
//! |---|---|
//! | `POST /orders` | `{"customer": "Ada", "items": [{"sku": "tea", "quantity": 2, "cents": 450}]}` |
//! | `POST /orders/{id}/items` | `{"sku": "cup", "quantity": 1, "cents": 1200}` |
//! | `POST /orders/{id}/pay`, `/ship`, `/cancel` | nothing |
//! | `GET ..` | see the routes of the release |
//!
//! A write answers with the order's id and revision and the positions of the events that it appended.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router, middleware};
use changeover::{Appended, Changeover};
use changeover_http::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::Release;
use crate::orders::{self, Order, OrderError, OrderEvent};

/// All routes of a release.
pub fn app(release: Release, changeover: Changeover) -> Router {
    Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}/items", post(add_item))
        .route("/orders/{id}/pay", post(pay))
        .route("/orders/{id}/ship", post(ship))
        .route("/orders/{id}/cancel", post(cancel))
        .merge(release.routes())
        // An instance that has retired answers 503, so that the load balancer asks another one.
        .layer(middleware::from_fn_with_state(changeover.clone(), changeover_http::only_when_ready))
        // `/livez` and `/readyz`; after the layer, which does not apply to them.
        .merge(changeover_http::router(changeover.clone()))
        .with_state(changeover)
}

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    sku: String,
    quantity: i32,
    cents: i64,
}

impl TryFrom<Item> for OrderEvent {
    type Error = Problem;

    /// What is in the log stays there and is projected for ever, so it is looked at before.
    fn try_from(Item { sku, quantity, cents }: Item) -> Result<Self, Problem> {
        match (quantity, cents) {
            (1..=10_000, 0..=100_000_000) if is_name(&sku) => Ok(Self::ItemAdded { sku, quantity, cents }),
            _ => Err(Problem::Invalid("an item has a sku, 1 to 10000 pieces and a price of up to a million")),
        }
    }
}

fn is_name(text: &str) -> bool {
    (1..=200).contains(&text.len())
}

/// What a write did.
#[derive(Serialize)]
struct Written {
    id: Uuid,
    revision: i64,
    positions: Vec<i64>,
}

fn written(id: Uuid, appended: &Appended) -> Json<Written> {
    let positions = appended.positions.iter().map(|position| position.get()).collect();
    Json(Written { id, revision: appended.revision.get(), positions })
}

async fn place(
    State(changeover): State<Changeover>,
    Json(order): Json<NewOrder>,
) -> Result<(StatusCode, Json<Written>), Problem> {
    if !is_name(&order.customer) || order.items.len() > 1_000 {
        return Err(Problem::Invalid("an order has a customer and at most 1000 items"));
    }
    let id = Uuid::now_v7();
    let mut events = vec![OrderEvent::OrderPlaced { customer: order.customer }];
    for item in order.items {
        events.push(item.try_into()?);
    }
    let appended = orders::place(&changeover, id, &events).await?;
    Ok((StatusCode::CREATED, written(id, &appended)))
}

async fn add_item(
    State(changeover): State<Changeover>,
    Path(id): Path<Uuid>,
    Json(item): Json<Item>,
) -> Result<Json<Written>, Problem> {
    let item = OrderEvent::try_from(item)?;
    let appended = orders::change(&changeover, id, |order| order.add_item(item.clone())).await?;
    Ok(written(id, &appended))
}

async fn pay(State(changeover): State<Changeover>, Path(id): Path<Uuid>) -> Result<Json<Written>, Problem> {
    Ok(written(id, &orders::change(&changeover, id, Order::pay).await?))
}

async fn ship(State(changeover): State<Changeover>, Path(id): Path<Uuid>) -> Result<Json<Written>, Problem> {
    Ok(written(id, &orders::change(&changeover, id, Order::ship).await?))
}

async fn cancel(
    State(changeover): State<Changeover>,
    Path(id): Path<Uuid>,
) -> Result<Json<Written>, Problem> {
    Ok(written(id, &orders::change(&changeover, id, Order::cancel).await?))
}

/// Why a request was not served, as the client is told.
#[derive(Debug)]
pub enum Problem {
    /// The request holds something that makes no sense.
    Invalid(&'static str),
    /// There is no such order.
    NotFound,
    /// The order is not in a state that allows it.
    NotAllowed(&'static str),
    /// The library did not do as asked.
    Refusal(Refusal),
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, error, message) = match self {
            Self::Invalid(reason) => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid", reason),
            Self::NotFound => (StatusCode::NOT_FOUND, "NotFound", "there is no such order"),
            Self::NotAllowed(reason) => (StatusCode::CONFLICT, "NotAllowed", reason),
            Self::Refusal(refusal) => return refusal.into_response(),
        };
        (status, Json(json!({ "error": error, "message": message }))).into_response()
    }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NotFound => Self::NotFound,
            OrderError::Refused(reason) => Self::NotAllowed(reason),
            OrderError::Read(error) => Self::Refusal(error.into()),
            OrderError::Append(error) => Self::Refusal(error.into()),
        }
    }
}

macro_rules! refusals {
    ($($error:ty),*) => {$(
        impl From<$error> for Problem {
            fn from(error: $error) -> Self {
                Self::Refusal(error.into())
            }
        }
    )*};
}

refusals!(changeover::tokio_postgres::Error, changeover::deadpool_postgres::PoolError);
