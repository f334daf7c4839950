//! The projectors of every release.
//!
//! Every row holds a digest of the events that made it, in their order: an event that is lost, projected twice or out of
//! order changes it.

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Configuration, ConfigurationError, Delivery, Fold, FoldProjector, Recorded, Row,
    SplitBy, SplitKey, SqlProjector, StreamName, Transaction, Type,
};
use serde::Deserialize;

use crate::story::ShopEvent;

fn digest(before: i64, position: i64) -> i64 {
    (before * 31 + position) % 1_000_000_007
}

/// Fed by its own stream.
#[derive(Row, Clone)]
#[row(table = "orders")]
struct Order {
    #[row(key)]
    id: String,
    #[row(index)]
    customer: i64,
    items: i32,
    cents: i64,
    digest: i64,
}

impl Fold for Order {
    type Event = ShopEvent;

    fn keys(event: &ShopEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        match event {
            ShopEvent::Moved { .. } | ShopEvent::Closed { .. } => None,
            _ => Some(stream.to_string()),
        }
    }

    fn fold(row: Option<Self>, id: &String, event: &Recorded<ShopEvent>) -> Option<Self> {
        let row = match event.data {
            ShopEvent::Placed { customer, cents } => {
                Some(Self { id: id.clone(), customer, items: 1, cents, digest: 0 })
            }
            ShopEvent::ItemAdded { cents, .. } => {
                row.map(|row| Self { items: row.items + 1, cents: row.cents + cents, ..row })
            }
            _ => None,
        };
        row.map(|row| Self { digest: digest(row.digest, event.position.get()), ..row })
    }
}

/// Fed by many streams.
#[derive(Row, Clone)]
#[row(table = "accounts")]
struct Account {
    #[row(key)]
    customer: i64,
    orders: i64,
    cents: i64,
    digest: i64,
}

impl Fold for Account {
    type Event = ShopEvent;

    fn keys(event: &ShopEvent, _stream: &StreamName) -> impl IntoIterator<Item = i64> {
        match *event {
            ShopEvent::Placed { customer, .. }
            | ShopEvent::ItemAdded { customer, .. }
            | ShopEvent::Cancelled { customer }
            | ShopEvent::Closed { customer } => vec![customer],
            ShopEvent::Moved { from, to } => vec![from, to],
        }
    }

    fn fold(row: Option<Self>, key: &i64, event: &Recorded<ShopEvent>) -> Option<Self> {
        let new = || Self { customer: *key, orders: 0, cents: 0, digest: 0 };
        let row = match event.data {
            ShopEvent::Placed { cents, .. } => {
                let row = row.unwrap_or_else(new);
                Some(Self { orders: row.orders + 1, cents: row.cents + cents, ..row })
            }
            ShopEvent::ItemAdded { cents, .. } => row.map(|row| Self { cents: row.cents + cents, ..row }),
            ShopEvent::Moved { from, .. } if from == *key => {
                row.map(|row| Self { cents: row.cents - 1, ..row })
            }
            ShopEvent::Moved { .. } => {
                let row = row.unwrap_or_else(new);
                Some(Self { cents: row.cents + 1, ..row })
            }
            ShopEvent::Cancelled { .. } => {
                row.filter(|row| row.orders > 1).map(|row| Self { orders: row.orders - 1, ..row })
            }
            ShopEvent::Closed { .. } => None,
        };
        row.map(|row| Self { digest: digest(row.digest, event.position.get()), ..row })
    }
}

struct Orders<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for Orders<MAJOR> {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = ShopEvent;
    type Tables = (Order, Account);
}

struct Customers<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for Customers<MAJOR> {
    const NAME: &'static str = "customers";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    type Event = ShopEvent;
    type Tables = (Account,);
}

/// One row per stream, which is never deleted.
#[derive(Row, Clone)]
#[row(table = "trails")]
struct Trail {
    #[row(key)]
    stream: String,
    events: i64,
    digest: i64,
}

impl Fold for Trail {
    type Event = ShopEvent;

    fn keys(_event: &ShopEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(row: Option<Self>, stream: &String, event: &Recorded<ShopEvent>) -> Option<Self> {
        let row = row.unwrap_or_else(|| Self { stream: stream.clone(), events: 0, digest: 0 });
        let digest = digest(row.digest, event.position.get());
        Some(Self { events: row.events + 1, digest, ..row })
    }
}

struct Trails;

impl FoldProjector for Trails {
    const NAME: &'static str = "trails";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = ShopEvent;
    type Tables = (Trail,);
}

/// What the SQL projectors handle: not everything.
#[derive(Deserialize)]
enum Sale {
    Placed { customer: i64, cents: i64 },
    ItemAdded { customer: i64, cents: i64 },
}

impl Sale {
    fn parts(&self) -> (i64, i64) {
        match *self {
            Self::Placed { customer, cents } | Self::ItemAdded { customer, cents } => (customer, cents),
        }
    }
}

macro_rules! sales {
    () => {
        "CREATE TABLE {schema}.sales
            (customer bigint PRIMARY KEY, events bigint NOT NULL, cents bigint NOT NULL, digest bigint NOT NULL)"
    };
}

async fn sell(batch: &Batch<'_, Sale>, tx: &Transaction<'_>, rows: i64) -> Result<(), BoxError> {
    let sql = batch.sql(
        "INSERT INTO {schema}.sales AS s VALUES ($1, 1, $2, $3 % 1000000007)
         ON CONFLICT (customer) DO UPDATE SET events = s.events + 1, cents = s.cents + excluded.cents,
            digest = (s.digest * 31 + $3) % 1000000007",
    );
    for event in batch.events() {
        let (customer, cents) = event.data.parts();
        let params = [
            (&(customer % rows) as &(dyn changeover::ToSql + Sync), Type::INT8),
            (&cents, Type::INT8),
            (&event.position, Type::INT8),
        ];
        tx.query_typed(&sql, &params).await?;
    }
    Ok(())
}

/// One version takes over from the other in place, and notes which events it has projected, and when: rows that both of them make alike
/// would not tell who made them.
struct Totals<const MINOR: u64>;

impl<const MINOR: u64> SqlProjector for Totals<MINOR> {
    const NAME: &'static str = "totals";
    const VERSION: Version = Version::new(1, MINOR, 0);
    const TABLES: &'static str = concat!(
        sales!(),
        "; CREATE TABLE {schema}.projected (position bigint PRIMARY KEY, release bigint NOT NULL, at timestamptz NOT NULL)"
    );
    type Event = Sale;

    async fn project(&self, batch: Batch<'_, Sale>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        sell(&batch, tx, 2).await?;
        let note = batch.sql(
            "INSERT INTO {schema}.projected SELECT position, $2, clock_timestamp() FROM unnest($1) AS position",
        );
        let positions: Vec<i64> = batch.events().iter().map(|event| event.position.get()).collect();
        let params = [
            (&positions as &(dyn changeover::ToSql + Sync), Type::INT8_ARRAY),
            (&i64::try_from(MINOR)?, Type::INT8),
        ];
        tx.query_typed(&note, &params).await?;
        Ok(())
    }
}

struct Ledger;

impl SqlProjector for Ledger {
    const NAME: &'static str = "ledger";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    const TABLES: &'static str = sales!();
    type Event = Sale;

    const SPLIT_BY: Option<SplitBy<Sale>> = Some(|event| SplitKey::of(&event.data.parts().0.to_be_bytes()));

    fn keys(event: &Sale, _stream: &StreamName) -> Option<Vec<String>> {
        Some(vec![event.parts().0.to_string()])
    }

    async fn project(&self, batch: Batch<'_, Sale>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        sell(&batch, tx, i64::MAX).await
    }
}

/// The projectors of a release, as `story::projectors` lists them.
pub(crate) fn configuration(release: u64) -> Result<Configuration, ConfigurationError> {
    macro_rules! releases {
        ($($release:literal)*) => {
            match release {
                $($release => Configuration::new()
                    .fold(Orders::<$release>)?
                    .fold(Customers::<{ $release / 2 + 1 }>)?
                    .sql(Totals::<$release>)?,)*
                _ => panic!("BUG: there is no release {release}"),
            }
        };
    }
    let mut configuration = releases!(1 2 3 4 5 6 7 8 9 10);
    if release.is_multiple_of(2) {
        configuration = configuration.fold(Trails)?;
    }
    if release.is_multiple_of(3) {
        configuration = configuration.sql(Ledger)?;
    }
    let listed = crate::story::projectors(release)
        .into_iter()
        .map(|(name, major, minor)| (name.parse().expect("a name"), Version::new(major, minor, 0)));
    assert_eq!(configuration.versions(), listed.collect(), "BUG: the story tells other versions");
    Ok(configuration)
}
