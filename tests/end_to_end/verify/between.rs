//! Two versions side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Against, BetweenOptions, Changeover, Configuration, Declared, Delivery, Expected, Fold, FoldProjector,
    Recorded, Row, RowDiffers, StreamName, Verified, VerifyError,
};
use changeover_testkit::Database;
use tokio_postgres::Client;

use super::{name, table};
use crate::accounts::{at_once, with};
use crate::orders::{OrderEvent, instance, place, placed, stream};
use crate::releases::{SOON, hasty};

/// Release 1 counts in euros and keeps notes, release 2 counts in cents.
#[derive(Row, Clone)]
#[row(table = "bills")]
struct Bill1 {
    #[row(key)]
    id: String,
    #[row(key)]
    year: i32,
    customer: String,
    euros: i64,
    note: Option<String>,
}

#[derive(Row, Clone)]
#[row(table = "bills")]
struct Bill2 {
    #[row(key)]
    id: String,
    #[row(key)]
    year: i32,
    customer: String,
    cents: i64,
}

/// What only release 2 has.
#[derive(Row, Clone)]
#[row(table = "customers")]
struct Customer2 {
    #[row(key)]
    customer: String,
}

impl Fold for Bill1 {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = (String, i32)> {
        [(stream.to_string(), 2026)]
    }

    fn fold(row: Option<Self>, key: &(String, i32), event: &Recorded<OrderEvent>) -> Option<Self> {
        Bill2::fold(row.map(Bill1::in_cents), key, event).map(|bill| Self {
            id: bill.id,
            year: bill.year,
            customer: bill.customer,
            euros: bill.cents / 100,
            note: None,
        })
    }
}

impl Bill1 {
    fn in_cents(self) -> Bill2 {
        Bill2 { id: self.id, year: self.year, customer: self.customer, cents: self.euros * 100 }
    }
}

impl Fold for Bill2 {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = (String, i32)> {
        [(stream.to_string(), 2026)]
    }

    fn fold(row: Option<Self>, (id, year): &(String, i32), event: &Recorded<OrderEvent>) -> Option<Self> {
        match &event.data {
            OrderEvent::Placed { customer } => {
                Some(Self { id: id.clone(), year: *year, customer: customer.clone(), cents: 0 })
            }
            OrderEvent::ItemAdded { cents } => {
                row.map(|row| Self { cents: row.cents + cents / 100 * 100, ..row })
            }
            OrderEvent::Paid => row,
            OrderEvent::Cancelled => None,
        }
    }
}

impl Fold for Customer2 {
    type Event = OrderEvent;

    fn keys(event: &OrderEvent, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        match event {
            OrderEvent::Placed { customer } => Some(customer.clone()),
            _ => None,
        }
    }

    fn fold(_row: Option<Self>, customer: &String, _event: &Recorded<OrderEvent>) -> Option<Self> {
        Some(Self { customer: customer.clone() })
    }
}

struct Bills1;

impl FoldProjector for Bills1 {
    const NAME: &'static str = "bills";
    const VERSION: Version = Version::new(1, 4, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = OrderEvent;
    type Tables = (Bill1,);
}

struct Bills2;

impl FoldProjector for Bills2 {
    const NAME: &'static str = "bills";
    const VERSION: Version = Version::new(2, 0, 0);
    type Event = OrderEvent;
    type Tables = (Bill2, Customer2);
}

const VERSIONS: [Version; 2] = [Version::new(1, 4, 0), Version::new(2, 0, 0)];

/// Release 1 is active, appends feed it; release 2 was replayed to the end.
async fn both() -> (Database, Client, Changeover, Changeover) {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance(&database, Configuration::new().fold(Bills1).unwrap()).await;
    for order in 0..100 {
        place(&old, &format!("o-{order}"), order % 4).await;
    }
    let new = instance(&database, Configuration::new().fold(Bills2).unwrap()).await;
    catch_up(&new).await;
    (database, client, old, new)
}

async fn catch_up(new: &Changeover) {
    new.replay(&[name("bills")], &with(at_once()), &|_| {}).await.unwrap();
}

fn out(table: &str, column: Option<&str>) -> Declared {
    Declared::LeftOut { table: table.to_owned(), column: column.map(str::to_owned) }
}

fn cents(expression: &str) -> Declared {
    let (table, column) = ("bills".to_owned(), "cents".to_owned());
    Declared::Mapped { table, column, expression: expression.to_owned() }
}

/// All that is meant to differ.
fn meant() -> BetweenOptions {
    let (euros, note) = (out("bills", Some("euros")), out("bills", Some("note")));
    BetweenOptions {
        declared: vec![cents("euros * 100"), euros, note, out("customers", None)],
        page_rows: 30,
        patience: Duration::from_millis(200),
        ..BetweenOptions::default()
    }
}

async fn compare(instance: &Changeover, options: &BetweenOptions) -> Result<Verified, VerifyError> {
    instance.verify_between(&name("bills"), &VERSIONS[0], &VERSIONS[1], options, &|_| {}).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_are_compared_with_a_mapped_and_a_dropped_column() {
    let (database, client, old, _) = both().await;
    // Any instance can: none of their code is needed.
    let none = instance(&database, Configuration::new()).await;
    let verified = compare(&none, &meant()).await.unwrap();
    assert!(verified.is_equal(), "{verified:?}");
    assert_eq!((verified.rows(), verified.tables.len(), verified.events), (100, 1, 0));
    assert_eq!(verified.against, Against::Version(VERSIONS[0].clone()));
    assert_eq!(verified.to, old.horizon().await.unwrap());
    assert_eq!(verified.to_string(), "bills 2.0.0 is equal to 1.4.0");

    client
        .batch_execute(
            "UPDATE bills_v2.bills SET cents = cents + 1, customer = 'Mallory-7731' WHERE id = 'o-7';
             UPDATE bills_v1.bills SET euros = 5 WHERE id = 'o-80';
             DELETE FROM bills_v2.bills WHERE id LIKE 'o-2%';
             INSERT INTO bills_v2.bills VALUES ('new', 2025, 'Eve-7731', 1), ('a', 2025, 'Eve-7731', 1);
             UPDATE bills_v1.bills SET note = 'does not matter'",
        )
        .await
        .unwrap();
    for page_rows in [1, 3, 30, 1_000] {
        let verified = compare(&none, &BetweenOptions { page_rows, examples: 100, ..meant() }).await.unwrap();
        let bills = table(&verified, "bills");
        assert_eq!((bills.rows, bills.expected_rows), (91, 100));
        assert_eq!((bills.missing, bills.extra, bills.different), (11, 2, 2), "{bills:?}");
        let columns = BTreeMap::from([("cents".to_owned(), 2), ("customer".to_owned(), 1)]);
        assert_eq!(bills.columns, columns);
        let first = &bills.examples[0];
        assert_eq!((first.difference, first.key[0].1.as_str()), (RowDiffers::Extra, "a"));
        assert_eq!(first.key[1], ("year".to_owned(), "2025".to_owned()));
        assert!(!format!("{verified:?}").contains("7731"));
    }
    let shown =
        compare(&none, &BetweenOptions { show_values: true, examples: 100, ..meant() }).await.unwrap();
    assert!(format!("{shown:?}").contains("Mallory-7731"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_neither_the_same_nor_declared_is_refused() {
    let (_database, client, _, new) = both().await;
    let error = compare(&new, &BetweenOptions::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "bills 1.4.0 and 2.0.0 cannot be compared: only one of them has bills.cents: map it or leave it out; only one of them has bills.euros: map it or leave it out; only one of them has bills.note: map it or leave it out; only one of them has a table customers"
    );
    let of = async |one: &str, other: &str| {
        let versions = [one, other].map(|version| version.parse().unwrap());
        new.verify_between(&name("bills"), &versions[0], &versions[1], &meant(), &|_| {}).await.unwrap_err()
    };
    let error = of("1.4.0", "1.5.0").await;
    assert!(error.to_string().ends_with("they share their tables"), "{error}");
    assert!(
        matches!(of("1.4.0", "3.0.0").await, VerifyError::NotThere { version, .. } if version.major == 3)
    );

    let options = |expression: &str| {
        let mut options = meant();
        options.declared[0] = cents(expression);
        options
    };
    let error = compare(&new, &options("dollars * 100")).await.unwrap_err();
    assert!(matches!(&error, VerifyError::Expression { column, .. } if column == "cents"), "{error:?}");
    // An expression can read, and nothing else.
    let before = new.horizon().await.unwrap();
    for expression in
        ["setval('changeover.event_position', 1)", "0) FROM bills_v1.bills; DROP TABLE bills_v1.bills; --"]
    {
        assert!(compare(&new, &options(expression)).await.is_err());
    }
    assert_eq!(new.horizon().await.unwrap(), before);
    client.batch_execute("SELECT FROM bills_v1.bills").await.unwrap();
    // Of another type, but comparable.
    assert!(compare(&new, &options("euros::numeric * 100.0")).await.unwrap().is_equal());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_stand_apart_are_waited_for_and_never_compared() {
    let (_database, client, old, new) = both().await;
    place(&old, "late", 2).await;
    let error = compare(&new, &meant()).await.unwrap_err();
    let VerifyError::Apart { positions, .. } = &error else { panic!("{error:?}") };
    assert!(positions[0] > positions[1], "{error}");
    let patient = BetweenOptions { patience: SOON, ..meant() };
    let (verified, ()) = tokio::join!(compare(&new, &patient), catch_up(&new));
    let verified = verified.unwrap();
    assert!(verified.is_equal() && verified.rows() == 101, "{verified:?}");
    // Positions that nobody used do not matter.
    client.batch_execute("SELECT setval('changeover.event_position', 5000)").await.unwrap();
    catch_up(&new).await;
    let verified = compare(&new, &meant()).await.unwrap();
    assert!(verified.is_equal() && verified.to.get() == 5_000, "{verified:?}");
    // An append that is open is in neither.
    let mut pooled = old.pool().get().await.unwrap();
    let open = pooled.transaction().await.unwrap();
    old.append_in(&open, &stream("open"), Expected::Any, &[placed("Eve")]).await.unwrap();
    assert!(compare(&new, &meant()).await.unwrap().is_equal());
    // One behind it is in the inline one alone.
    place(&old, "behind", 0).await;
    assert!(matches!(compare(&new, &meant()).await.unwrap_err(), VerifyError::Apart { .. }));
    open.commit().await.unwrap();

    // The one before stands where the switch was; what came since keeps them apart.
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert!(compare(&new, &meant()).await.unwrap().is_equal());
    let running = new.start();
    place(&new, "after", 1).await;
    new.wait_for(&name("bills"), new.horizon().await.unwrap(), SOON).await.unwrap();
    assert!(matches!(compare(&new, &meant()).await.unwrap_err(), VerifyError::Apart { .. }));
    running.stop().await;
}
