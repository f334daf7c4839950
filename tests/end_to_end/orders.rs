//! The tests' own small domain: orders, and projectors of them in several versions.

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Delivery, Expected, Fold, FoldProjector, Recorded, Row,
    SqlProjector, StreamName, Transaction, Type,
};
use changeover_testkit::Database;
use serde::{Deserialize, Serialize};

use crate::releases::SOON;

/// What happens to an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum OrderEvent {
    Placed { customer: String },
    ItemAdded { cents: i64 },
    Paid,
    Cancelled,
}

pub(crate) fn placed(customer: &str) -> OrderEvent {
    OrderEvent::Placed { customer: customer.to_owned() }
}

pub(crate) fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

/// A row for each order that was not cancelled.
#[derive(Row, Clone, Debug, PartialEq)]
#[row(table = "orders")]
pub(crate) struct Order {
    #[row(key)]
    pub(crate) id: String,
    #[row(index)]
    pub(crate) customer: String,
    pub(crate) items: i32,
    pub(crate) cents: i64,
    pub(crate) paid: bool,
    pub(crate) last_position: i64,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        let row = match &event.data {
            OrderEvent::Placed { customer } => Some(Order {
                id: id.clone(),
                customer: customer.clone(),
                items: 0,
                cents: 0,
                paid: false,
                last_position: 0,
            }),
            OrderEvent::ItemAdded { cents } => {
                row.map(|row| Order { items: row.items + 1, cents: row.cents + cents, ..row })
            }
            OrderEvent::Paid => row.map(|row| Order { paid: true, ..row }),
            OrderEvent::Cancelled => None,
        };
        row.map(|row| Order { last_position: event.position.get(), ..row })
    }
}

/// A fold projector named `orders`: `version` and `delivery` vary, the tables do not.
macro_rules! orders_projector {
    ($($name:ident $version:expr, $delivery:ident;)*) => {$(
        pub(crate) struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = "orders";
            const VERSION: Version = $version;
            const DELIVERY: Delivery = Delivery::$delivery;
            type Event = OrderEvent;
            type Tables = (Order,);
        }
    )*};
}

orders_projector! {
    Orders1 Version::new(1, 0, 0), Background;
    Orders1Patched Version::new(1, 0, 1), Background;
    Orders1Minor Version::new(1, 1, 0), Background;
    Orders2 Version::new(2, 0, 0), Background;
    InlineOrders1 Version::new(1, 0, 0), Inline;
    InlineOrders2 Version::new(2, 0, 0), Inline;
}

/// Counts events in SQL; the row is fed by many streams.
pub(crate) struct Totals;

#[derive(Deserialize)]
pub(crate) enum ItemEvent {
    ItemAdded { cents: i64 },
}

impl SqlProjector for Totals {
    const NAME: &'static str = "totals";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str =
        "CREATE TABLE {schema}.total (one boolean PRIMARY KEY, items bigint NOT NULL, cents bigint NOT NULL)";
    type Event = ItemEvent;

    async fn project(&self, batch: Batch<'_, ItemEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let sql = batch.sql(
            "INSERT INTO {schema}.total AS t VALUES (true, 1, $1)
             ON CONFLICT (one) DO UPDATE SET items = t.items + 1, cents = t.cents + excluded.cents",
        );
        for event in batch.events() {
            let ItemEvent::ItemAdded { cents } = &event.data;
            tx.query_typed(&sql, &[(cents, Type::INT8)]).await?;
        }
        Ok(())
    }
}

/// A migrated instance of a configuration on a database. Its appends wait for the outcome of an activation for longer than
/// they do by default, so that none is refused because the machine stands still.
pub(crate) async fn instance(database: &Database, configuration: Configuration) -> Changeover {
    let builder = Changeover::builder(database.config())
        .application("test", "1.0.0")
        .configuration(configuration)
        .activation_wait(SOON);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

/// Places an order with some items.
pub(crate) async fn place(changeover: &Changeover, id: &str, items: i64) -> changeover::Appended {
    let mut events = vec![placed("Ada")];
    events.extend((0..items).map(|item| OrderEvent::ItemAdded { cents: 100 + item }));
    changeover.append(&stream(id), Expected::NoStream, &events).await.unwrap()
}
