//! The subjects of the replays: orders of ten events each, and projectors of them.

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Fold, FoldProjector, Recorded, Row, SplitBy, SplitKey, SqlProjector, StreamName,
    Transaction, Type,
};
use serde::Deserialize;

/// What happens to an order.
#[derive(Debug, Clone, Deserialize)]
pub(crate) enum OrderEvent {
    OrderPlaced { customer: String },
    ItemAdded { customer: String, cents: i64 },
    OrderPaid { customer: String },
    OrderShipped { customer: String },
}

impl OrderEvent {
    fn customer(&self) -> &String {
        match self {
            Self::OrderPlaced { customer }
            | Self::ItemAdded { customer, .. }
            | Self::OrderPaid { customer }
            | Self::OrderShipped { customer } => customer,
        }
    }
}

/// A row for each order.
#[derive(Row, Clone)]
#[row(table = "orders")]
pub(crate) struct Order {
    #[row(key)]
    id: String,
    customer: String,
    items: i32,
    cents: i64,
    status: String,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.as_str().to_owned()]
    }

    fn fold(row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        if let OrderEvent::OrderPlaced { customer } = &event.data {
            let (id, customer, status) = (id.clone(), customer.clone(), "placed".to_owned());
            return Some(Self { id, customer, items: 0, cents: 0, status });
        }
        let mut row = row?;
        match &event.data {
            OrderEvent::ItemAdded { cents, .. } => {
                row.items += 1;
                row.cents += cents;
            }
            OrderEvent::OrderPaid { .. } => "paid".clone_into(&mut row.status),
            _ => "shipped".clone_into(&mut row.status),
        }
        Some(row)
    }
}

/// A row for each customer, fed by all the streams of that customer's orders.
#[derive(Row, Clone)]
#[row(table = "customers")]
pub(crate) struct Customer {
    #[row(key)]
    name: String,
    orders: i64,
    items: i64,
    cents: i64,
    last_position: i64,
}

impl Fold for Customer {
    type Event = OrderEvent;

    fn keys(event: &OrderEvent, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        [event.customer().clone()]
    }

    fn fold(row: Option<Self>, name: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        let empty = || Self { name: name.clone(), orders: 0, items: 0, cents: 0, last_position: 0 };
        let mut row = row.unwrap_or_else(empty);
        match &event.data {
            OrderEvent::OrderPlaced { .. } => row.orders += 1,
            OrderEvent::ItemAdded { cents, .. } => {
                row.items += 1;
                row.cents += cents;
            }
            _ => {}
        }
        row.last_position = event.position.get();
        Some(row)
    }
}

/// A row for each customer and for the whole shop.
#[derive(Row, Clone)]
#[row(table = "revenue")]
pub(crate) struct Revenue {
    #[row(key)]
    of: String,
    cents: i64,
}

impl Fold for Revenue {
    type Event = OrderEvent;

    fn keys(event: &OrderEvent, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        match event {
            OrderEvent::ItemAdded { customer, .. } => vec![customer.clone(), "everybody".to_owned()],
            _ => Vec::new(),
        }
    }

    fn fold(row: Option<Self>, of: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        let OrderEvent::ItemAdded { cents, .. } = &event.data else { return row };
        Some(Self { of: of.clone(), cents: row.map_or(0, |row| row.cents) + cents })
    }
}

macro_rules! projectors {
    ($($name:ident $text:literal $tables:ty;)*) => {$(
        pub(crate) struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = $text;
            const VERSION: Version = Version::new(1, 0, 0);
            type Event = OrderEvent;
            type Tables = $tables;
        }
    )*};
}

projectors! {
    Orders "orders" (Order,);
    Customers "customers" (Customer,);
    Wide "wide" (Order, Customer, Revenue);
    BigOrders "big_orders" (Order,);
}

/// A row for each order, by SQL of the projector's own. `EACH`: a statement for each event, all of a batch on their way at once, and
/// otherwise one for each batch. `SPLIT`: split by the order.
pub(crate) struct OrdersSql<const EACH: bool, const SPLIT: bool>;

impl<const EACH: bool, const SPLIT: bool> SqlProjector for OrdersSql<EACH, SPLIT> {
    const NAME: &'static str = "orders_sql";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "CREATE TABLE {schema}.orders (id text PRIMARY KEY, customer text NOT NULL,
        items bigint NOT NULL, cents bigint NOT NULL, status text NOT NULL)";
    type Event = OrderEvent;

    const SPLIT_BY: Option<SplitBy<OrderEvent>> =
        if SPLIT { Some(|event| SplitKey::of(event.stream.as_str())) } else { None };

    async fn project(&self, batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        if EACH { each(batch, tx).await } else { at_once(batch, tx).await }
    }
}

/// The same statements as those of the loop that is written by hand.
async fn each(batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
    let placed = "INSERT INTO {schema}.orders VALUES ($1, $2, 0, 0, 'placed')";
    let placed = &batch.prepare(tx, placed, &[Type::TEXT, Type::TEXT]).await?;
    let added = "UPDATE {schema}.orders SET items = items + 1, cents = cents + $2 WHERE id = $1";
    let added = &batch.prepare(tx, added, &[Type::TEXT, Type::INT8]).await?;
    let status = "UPDATE {schema}.orders SET status = $2 WHERE id = $1";
    let status = &batch.prepare(tx, status, &[Type::TEXT, Type::TEXT]).await?;
    batch
        .pipeline(async |event| {
            let id = event.stream.as_str();
            match &event.data {
                OrderEvent::OrderPlaced { customer } => placed.query(tx, &[&id, customer]).await?,
                OrderEvent::ItemAdded { cents, .. } => added.query(tx, &[&id, cents]).await?,
                OrderEvent::OrderPaid { .. } => status.query(tx, &[&id, &"paid"]).await?,
                OrderEvent::OrderShipped { .. } => status.query(tx, &[&id, &"shipped"]).await?,
            };
            Ok(())
        })
        .await
}

async fn at_once(batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
    let sql = batch.sql(
            "INSERT INTO {schema}.orders AS o
             SELECT e.id, min(e.customer), sum(e.items), sum(e.cents), coalesce((array_agg(e.status ORDER BY e.at DESC) FILTER (WHERE e.status <> ''))[1], '')
             FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::text[]) WITH ORDINALITY
                  AS e (id, customer, items, cents, status, at)
             GROUP BY e.id
             ON CONFLICT (id) DO UPDATE SET items = o.items + excluded.items, cents = o.cents + excluded.cents,
                 status = coalesce(nullif(excluded.status, ''), o.status)",
        );
    let events = batch.events();
    let ids: Vec<&str> = events.iter().map(|event| event.stream.as_str()).collect();
    let customers: Vec<&String> = events.iter().map(|event| event.data.customer()).collect();
    let of = |event: &Recorded<OrderEvent>| match &event.data {
        OrderEvent::OrderPlaced { .. } => (0, 0, "placed"),
        OrderEvent::ItemAdded { cents, .. } => (1, *cents, ""),
        OrderEvent::OrderPaid { .. } => (0, 0, "paid"),
        OrderEvent::OrderShipped { .. } => (0, 0, "shipped"),
    };
    let items: Vec<i32> = events.iter().map(|event| of(event).0).collect();
    let cents: Vec<i64> = events.iter().map(|event| of(event).1).collect();
    let status: Vec<&str> = events.iter().map(|event| of(event).2).collect();
    tx.query_typed(
        &sql,
        &[
            (&ids, Type::TEXT_ARRAY),
            (&customers, Type::TEXT_ARRAY),
            (&items, Type::INT4_ARRAY),
            (&cents, Type::INT8_ARRAY),
            (&status, Type::TEXT_ARRAY),
        ],
    )
    .await?;
    Ok(())
}
