//! Release 2: the summary says more of an order and keeps those that were cancelled, in tables of its own; and there is
//! something new, the revenue of each day.

use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, ConfigurationError, Delivery, Fold, FoldProjector, Recorded,
    Row, SqlProjector, StreamName, Transaction, Type,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bestsellers::{self, Bestsellers};
use crate::http::Problem;
use crate::orders::{OrderEvent, order_of};

/// The projectors of this release.
pub fn configuration() -> Result<Configuration, ConfigurationError> {
    Configuration::new().fold(OrderSummary)?.fold(Bestsellers)?.sql(DailyRevenue)
}

struct OrderSummary;

impl FoldProjector for OrderSummary {
    const NAME: &'static str = "order_summary";
    /// Other columns, other rows: another major version, with tables of its own beside those of release 1.
    const VERSION: Version = Version::new(2, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = OrderEvent;
    type Tables = (Order,);
}

/// An order, whatever became of it.
#[derive(Debug, Clone, Row, Serialize)]
#[row(table = "orders")]
struct Order {
    #[row(key)]
    id: Uuid,
    #[row(index)]
    customer: String,
    status: String,
    items: i32,
    pieces: i64,
    cents: i64,
    placed_at: SystemTime,
    revision: i64,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = Uuid> {
        order_of(stream)
    }

    fn fold(row: Option<Self>, id: &Uuid, event: &Recorded<OrderEvent>) -> Option<Self> {
        let with_status = |row: Order, status: &str| Order { status: status.to_owned(), ..row };
        let row = match (row, &event.data) {
            (None, OrderEvent::OrderPlaced { customer }) => Order {
                id: *id,
                customer: customer.clone(),
                status: "open".to_owned(),
                items: 0,
                pieces: 0,
                cents: 0,
                placed_at: event.recorded_at,
                revision: 0,
            },
            (row, OrderEvent::ItemAdded { quantity, cents, .. }) => {
                let (row, quantity) = (row?, i64::from(*quantity));
                let (pieces, cents) = (row.pieces + quantity, row.cents + quantity * cents);
                Order { items: row.items + 1, pieces, cents, ..row }
            }
            (row, OrderEvent::OrderPlaced { .. }) => row?,
            (row, OrderEvent::OrderPaid) => with_status(row?, "paid"),
            (row, OrderEvent::OrderShipped) => with_status(row?, "shipped"),
            (row, OrderEvent::OrderCancelled) => with_status(row?, "cancelled"),
        };
        Some(Order { revision: row.revision + 1, ..row })
    }
}

/// In SQL, since one row goes into another: what is in an order counts on the day on which it is paid.
struct DailyRevenue;

#[derive(Deserialize)]
enum RevenueEvent {
    ItemAdded { quantity: i32, cents: i64 },
    OrderPaid,
    OrderCancelled,
}

impl SqlProjector for DailyRevenue {
    const NAME: &'static str = "daily_revenue";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "
        CREATE TABLE {schema}.unpaid (id uuid PRIMARY KEY, items bigint NOT NULL, cents bigint NOT NULL);
        CREATE TABLE {schema}.days (
            day date PRIMARY KEY, orders bigint NOT NULL, items bigint NOT NULL, cents bigint NOT NULL
        )";
    type Event = RevenueEvent;

    /// Two statements for a batch of any size. All items first: nothing is added to an order once it is paid or cancelled.
    async fn project(&self, batch: Batch<'_, RevenueEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let (mut added, mut added_cents, mut closed, mut paid_at) = (vec![], vec![], vec![], vec![]);
        for event in batch.events() {
            let Some(order) = order_of(&event.stream) else { continue };
            match event.data {
                RevenueEvent::ItemAdded { quantity, cents } => {
                    added.push(order);
                    added_cents.push(i64::from(quantity) * cents);
                }
                RevenueEvent::OrderPaid => {
                    closed.push(order);
                    paid_at.push(Some(event.recorded_at));
                }
                RevenueEvent::OrderCancelled => {
                    closed.push(order);
                    paid_at.push(None);
                }
            }
        }
        let sql = batch.sql(
            "INSERT INTO {schema}.unpaid AS u
             SELECT id, count(*), sum(cents)::bigint FROM unnest($1, $2) AS added (id, cents) GROUP BY id
             ON CONFLICT (id) DO UPDATE SET items = u.items + excluded.items, cents = u.cents + excluded.cents",
        );
        tx.query_typed(&sql, &[(&added, Type::UUID_ARRAY), (&added_cents, Type::INT8_ARRAY)]).await?;
        let sql = batch.sql(
            "WITH closed AS (
                 DELETE FROM {schema}.unpaid u USING unnest($1, $2) AS c (id, paid_at)
                 WHERE u.id = c.id RETURNING (c.paid_at AT TIME ZONE 'UTC')::date AS day, u.items, u.cents
             )
             INSERT INTO {schema}.days AS d
             SELECT day, count(*), sum(items)::bigint, sum(cents)::bigint FROM closed
             WHERE day IS NOT NULL GROUP BY day
             ON CONFLICT (day) DO UPDATE SET
                 orders = d.orders + excluded.orders, items = d.items + excluded.items, cents = d.cents + excluded.cents",
        );
        tx.query_typed(&sql, &[(&closed, Type::UUID_ARRAY), (&paid_at, Type::TIMESTAMPTZ_ARRAY)]).await?;
        Ok(())
    }
}

/// `GET /orders/{id}`, `GET /customers/{name}`, `GET /bestsellers`, `GET /revenue`
pub fn routes() -> Router<Changeover> {
    Router::new()
        .route("/orders/{id}", get(order))
        .route("/customers/{name}", get(customer))
        .route("/revenue", get(revenue))
        .merge(bestsellers::routes())
}

const ORDERS: &str =
    "SELECT id, customer, status, items, pieces, cents, placed_at, revision FROM order_summary_v2.orders";

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
    let sql = format!("{ORDERS} WHERE customer = $1 ORDER BY placed_at DESC, id LIMIT 20");
    let rows = client.query_typed(&sql, &[(&name, Type::TEXT)]).await?;
    Ok(Json(rows.iter().map(Order::from_row).collect::<Result<_, _>>()?))
}

#[derive(Serialize)]
struct Revenue {
    day: String,
    orders: i64,
    cents: i64,
}

async fn revenue(State(changeover): State<Changeover>) -> Result<Json<Vec<Revenue>>, Problem> {
    let client = changeover.pool().get().await?;
    let sql = "SELECT day::text, orders, cents FROM daily_revenue_v1.days ORDER BY day DESC LIMIT 31";
    let rows = client.query_typed(sql, &[]).await?;
    Ok(Json(
        rows.iter().map(|row| Revenue { day: row.get(0), orders: row.get(1), cents: row.get(2) }).collect(),
    ))
}
