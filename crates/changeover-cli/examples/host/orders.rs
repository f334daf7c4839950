//! What happens in the application, and what it reads: orders, and their total.

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Configuration, ConfigurationError, Fold, FoldProjector, Recorded, Row, SqlProjector,
    StreamName, Transaction, Type,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum OrderEvent {
    Placed { customer: String, cents: i64 },
}

/// Release 1 knows the customer, release 2 what is to be paid as well: other tables, hence another major version.
#[derive(Row, Clone, Debug)]
#[row(table = "orders")]
pub(crate) struct Order1 {
    #[row(key)]
    id: String,
    customer: String,
}

#[derive(Row, Clone, Debug)]
#[row(table = "orders")]
pub(crate) struct Order2 {
    #[row(key)]
    id: String,
    customer: String,
    cents: i64,
}

impl Fold for Order1 {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(_row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        let OrderEvent::Placed { customer, .. } = &event.data;
        Some(Self { id: id.clone(), customer: customer.clone() })
    }
}

impl Fold for Order2 {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(_row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        let OrderEvent::Placed { customer, cents } = &event.data;
        Some(Self { id: id.clone(), customer: customer.clone(), cents: *cents })
    }
}

struct Orders1;

impl FoldProjector for Orders1 {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order1,);
}

struct Orders2;

impl FoldProjector for Orders2 {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(2, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order2,);
}

/// The same in both releases. It cannot make sense of an order below zero.
struct Totals;

impl SqlProjector for Totals {
    const NAME: &'static str = "totals";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str =
        "CREATE TABLE {schema}.total (one boolean PRIMARY KEY, cents bigint NOT NULL)";
    type Event = OrderEvent;

    async fn project(&self, batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let sql = batch.sql(
            "INSERT INTO {schema}.total AS t VALUES (true, $1)
             ON CONFLICT (one) DO UPDATE SET cents = t.cents + excluded.cents",
        );
        for event in batch.events() {
            let OrderEvent::Placed { cents, .. } = &event.data;
            if *cents < 0 {
                return Err("an order must not be below zero".into());
            }
            tx.query_typed(&sql, &[(cents, Type::INT8)]).await?;
        }
        Ok(())
    }
}

/// What one release registers.
pub(crate) fn configuration(release: u8) -> Result<Configuration, ConfigurationError> {
    let configuration = Configuration::new().sql(Totals)?;
    match release {
        1 => configuration.fold(Orders1),
        _ => configuration.fold(Orders2),
    }
}
