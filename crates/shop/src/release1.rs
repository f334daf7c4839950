//! Release 1: a summary of each order, current as soon as a write is acknowledged, and the bestsellers.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use changeover::semver::Version;
use changeover::{
    Changeover, Configuration, ConfigurationError, Delivery, Fold, FoldProjector, Recorded, Row, StreamName,
    Type,
};
use serde::Serialize;
use uuid::Uuid;

use crate::bestsellers::{self, Bestsellers};
use crate::http::Problem;
use crate::orders::{OrderEvent, order_of};

/// The projectors of this release.
pub fn configuration() -> Result<Configuration, ConfigurationError> {
    Configuration::new().fold(OrderSummary)?.fold(Bestsellers)
}

struct OrderSummary;

impl FoldProjector for OrderSummary {
    const NAME: &'static str = "order_summary";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = OrderEvent;
    type Tables = (Order,);
}

/// An order that was not cancelled.
#[derive(Debug, Clone, Row, Serialize)]
#[row(table = "orders")]
struct Order {
    #[row(key)]
    id: Uuid,
    #[row(index)]
    customer: String,
    items: i32,
    cents: i64,
    paid: bool,
    revision: i64,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = Uuid> {
        order_of(stream)
    }

    fn fold(row: Option<Self>, id: &Uuid, event: &Recorded<OrderEvent>) -> Option<Self> {
        let row = match (row, &event.data) {
            (None, OrderEvent::OrderPlaced { customer }) => {
                Order { id: *id, customer: customer.clone(), items: 0, cents: 0, paid: false, revision: 0 }
            }
            (row, OrderEvent::ItemAdded { quantity, cents, .. }) => {
                let row = row?;
                Order { items: row.items + 1, cents: row.cents + i64::from(*quantity) * cents, ..row }
            }
            (row, OrderEvent::OrderPaid) => Order { paid: true, ..row? },
            (row, OrderEvent::OrderPlaced { .. } | OrderEvent::OrderShipped) => row?,
            (_, OrderEvent::OrderCancelled) => return None,
        };
        Some(Order { revision: row.revision + 1, ..row })
    }
}

/// `GET /orders/{id}`, `GET /customers/{name}`, `GET /bestsellers`
pub fn routes() -> Router<Changeover> {
    Router::new()
        .route("/orders/{id}", get(order))
        .route("/customers/{name}", get(customer))
        .merge(bestsellers::routes())
}

const ORDERS: &str = "SELECT id, customer, items, cents, paid, revision FROM order_summary_v1.orders";

async fn order(State(changeover): State<Changeover>, Path(id): Path<Uuid>) -> Result<Json<Order>, Problem> {
    let client = changeover.pool().get().await?;
    let rows = client.query_typed(&format!("{ORDERS} WHERE id = $1"), &[(&id, Type::UUID)]).await?;
    let row = rows.first().ok_or(Problem::NotFound)?;
    Ok(Json(Order::from_row(row)?))
}

async fn customer(
    State(changeover): State<Changeover>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Order>>, Problem> {
    let client = changeover.pool().get().await?;
    let sql = format!("{ORDERS} WHERE customer = $1 ORDER BY id LIMIT 20");
    let rows = client.query_typed(&sql, &[(&name, Type::TEXT)]).await?;
    Ok(Json(rows.iter().map(Order::from_row).collect::<Result<_, _>>()?))
}
