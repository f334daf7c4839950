//! Verifying: rows that are right are proved so beside whoever writes them, and every row that is wrong is found.

mod beside;
mod between;
mod differing;
mod kinds;
mod switching;

use std::collections::BTreeMap;
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Delivery, Expected, FoldProjector, Pace, Position,
    ProjectorName, SqlProjector, StreamName, TableVerdict, Transaction, Type, Verified, VerifyError,
    VerifyOptions,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::accounts::{Accounts, accounts, at_once, cramped, fill, with};
use crate::orders::{OrderEvent, instance, place, placed, stream};
use crate::releases::{SOON, Writers, instance_of, more_events};

/// Pages so small that every table has several.
pub(crate) fn small_pages() -> VerifyOptions {
    VerifyOptions { page_rows: 50, pace: cramped(2), ..VerifyOptions::default() }
}

pub(crate) async fn verify(instance: &Changeover, projector: &str, options: &VerifyOptions) -> Verified {
    let projector = name(projector);
    let verifying = instance.verify(&projector, options, &|_| {});
    tokio::time::timeout(SOON * 2, verifying).await.expect("it takes too long").unwrap()
}

pub(crate) fn name(projector: &str) -> ProjectorName {
    projector.parse().unwrap()
}

/// The schemas that verifications have left.
pub(crate) async fn scratch(client: &Client) -> Vec<String> {
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '_verify_' ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

pub(crate) async fn count(client: &Client, table: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM {table}");
    u64::try_from(client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)).unwrap()
}

pub(crate) fn table<'v>(verified: &'v Verified, name: &str) -> &'v TableVerdict {
    verified.tables.iter().find(|table| table.table == name).unwrap()
}

/// Accounts that were replayed, from a random log.
pub(crate) async fn replayed_accounts(
    database: &Database,
    client: &Client,
    seed: f64,
    events: i64,
) -> Changeover {
    let instance = instance(database, Configuration::new().fold(Accounts::<1>).unwrap()).await;
    fill(client, seed, events).await;
    instance.replay(&[accounts()], &with(at_once()), &|_| {}).await.unwrap();
    instance
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_right_are_proved_so_whatever_the_pages_and_the_way_of_folding() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.1, 30_000).await;
    let serially = Pace { parallel_above_events: i64::MAX, ..Pace::default() };
    for options in [
        VerifyOptions { pace: at_once(), ..VerifyOptions::default() },
        small_pages(),
        VerifyOptions { page_rows: 1_000, pace: serially, ..VerifyOptions::default() },
    ] {
        let verified = verify(&instance, "accounts", &options).await;
        assert!(verified.is_equal(), "{verified:?}");
        let rows: BTreeMap<&str, u64> =
            verified.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect();
        for table in ["accounts", "kinds", "whole"] {
            assert_eq!(rows[table], count(&client, &format!("accounts_v1.{table}")).await, "{table}");
        }
        assert!(rows["accounts"] > 300 && rows["whole"] == 1, "{rows:?}");
        let handled = "changeover.events WHERE type <> 'Unheard'";
        assert_eq!(verified.events, count(&client, handled).await);
        let end = Position::new(60_000);
        assert_eq!((verified.from, verified.to, verified.skipped_events), (end, end, 0));
        assert!(verified.elapsed > Duration::ZERO);
        assert_eq!(verified.to_string(), "accounts 1.0.0 is equal to the log");
        assert_eq!(scratch(&client).await, [""; 0]);
    }
}

/// Sums up orders in SQL, for each customer: the row of a customer is fed by many streams. Inline.
struct InlineSums;

impl SqlProjector for InlineSums {
    const NAME: &'static str = "sums";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    const TABLES: &'static str = "CREATE TABLE {schema}.sums (stream text, events bigint, last bigint)";
    // Without it, ON CONFLICT has nothing to go by.
    const INDEXES: &'static str = "CREATE UNIQUE INDEX ON {schema}.sums (stream)";
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> Option<Vec<String>> {
        Some(vec![first_part(stream).to_owned()])
    }

    async fn project(&self, batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let sql = batch.sql(
            "INSERT INTO {schema}.sums AS s VALUES ($1, 1, $2)
             ON CONFLICT (stream) DO UPDATE SET events = s.events + 1, last = excluded.last",
        );
        for event in batch.events() {
            let (of, at) = (first_part(&event.stream).to_owned(), event.position.get());
            tx.query_typed(&sql, &[(&of, Type::TEXT), (&at, Type::INT8)]).await?;
        }
        Ok(())
    }
}

fn first_part(stream: &StreamName) -> &str {
    stream.as_str().split('-').next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_proved_right_beside_appends_whoever_keeps_them() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let configuration = Configuration::new()
        .fold(crate::orders::InlineOrders1)
        .and_then(|c| c.sql(InlineSums))
        .and_then(|c| c.sql(crate::orders::Totals))
        .and_then(|c| c.fold(Background))
        .unwrap();
    let instance = instance(&database, configuration).await;
    let running = instance.start();
    let writers = Writers::start(2, &[&instance]);
    more_events(&client, 300).await;
    let mut moved = 0;
    for _ in 0..2 {
        for projector in ["orders", "sums", "totals", "background_orders"] {
            let options = VerifyOptions { page_rows: 40, ..small_pages() };
            let verified = verify(&instance, projector, &options).await;
            assert!(verified.is_equal(), "{verified:?}");
            assert!(verified.rows() > 0, "{verified:?}");
            moved += i32::from(verified.to > verified.from);
        }
    }
    let written = writers.stop().await;
    assert_eq!(written.failed, [""; 0]);
    assert!(moved >= 3, "the rows moved while they were compared, in {moved} of 8");
    running.stop().await;
    assert_eq!(scratch(&client).await, [""; 0]);
}

struct Background;

impl FoldProjector for Background {
    const NAME: &'static str = "background_orders";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = OrderEvent;
    type Tables = (crate::orders::Order,);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_above_the_horizon_counts_for_an_inline_projector() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let configuration =
        Configuration::new().fold(crate::orders::InlineOrders1).and_then(|c| c.sql(InlineSums)).unwrap();
    let instance = instance(&database, configuration).await;
    place(&instance, "a-1", 2).await;
    let mut pooled = instance.pool().get().await.unwrap();
    let open = pooled.transaction().await.unwrap();
    instance.append_in(&open, &stream("open-1"), Expected::Any, &[placed("Eve")]).await.unwrap();
    // Behind it, and committed before it.
    place(&instance, "b-1", 3).await;
    let more = [OrderEvent::ItemAdded { cents: 7 }, OrderEvent::Paid];
    instance.append(&stream("a-1"), Expected::Any, &more).await.unwrap();
    let horizon = instance.horizon().await.unwrap();
    for (projector, rows) in [("orders", 2), ("sums", 2)] {
        let verified = verify(&instance, projector, &VerifyOptions::default()).await;
        assert!(verified.is_equal(), "{verified:?}");
        assert_eq!((verified.rows(), verified.to), (rows, horizon));
    }
    // A row above the horizon that lost an update is found, though it is what was right at the horizon.
    client.batch_execute("UPDATE orders_v1.orders SET paid = false, cents = cents - 7, items = items - 1, last_position = 3 WHERE id = 'a-1'").await.unwrap();
    let verified = verify(&instance, "orders", &VerifyOptions::default()).await;
    assert_eq!(verified.tables[0].different, 1, "{verified:?}");
    open.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_where_too_much_lies_above_the_horizon() {
    let database = Database::fresh().await;
    let instance = instance_of(&database, "inline 1.0.0").await;
    place(&instance, "a-1", 2).await;
    let mut pooled = instance.pool().get().await.unwrap();
    let open = pooled.transaction().await.unwrap();
    instance.append_in(&open, &stream("open"), Expected::Any, &[placed("Eve")]).await.unwrap();
    place(&instance, "big", 10_000).await;
    let options = VerifyOptions { patience: Duration::from_millis(100), ..VerifyOptions::default() };
    let error = instance.verify(&name("orders"), &options, &|_| {}).await.unwrap_err();
    let VerifyError::HeldUp { blockers, .. } = &error else { panic!("{error:?}") };
    assert_eq!(blockers.len(), 1);
    assert!(error.to_string().contains("orders 1.0.0 could not be verified"), "{error}");
    // It is waited for.
    let options = VerifyOptions { patience: SOON, ..VerifyOptions::default() };
    let (verified, ()) = tokio::join!(verify(&instance, "orders", &options), async {
        open.commit().await.unwrap();
    });
    assert!(verified.is_equal() && verified.rows() == 3, "{verified:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_skipped_is_not_expected() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance_of(&database, "1.0.0").await;
    let running = instance.start();
    place(&instance, "a", 2).await;
    client
        .batch_execute("INSERT INTO changeover.events (position, stream, revision, type, data) VALUES (nextval('changeover.event_position'), 'b', 1, 'Placed', '{\"nobody\": 1}')")
        .await
        .unwrap();
    let bad = instance.horizon().await.unwrap();
    eventually(SOON, || async {
        let status = instance.status().await.unwrap();
        status.projectors[0].tables.as_ref().unwrap().stalled.is_some()
    })
    .await;
    // Stalled: what is there is right.
    let verified = verify(&instance, "orders", &VerifyOptions::default()).await;
    assert!(verified.is_equal() && verified.to < bad, "{verified:?}");
    instance.skip(&name("orders"), bad, "test").await.unwrap();
    place(&instance, "c", 2).await;
    let end = instance.horizon().await.unwrap();
    instance.wait_for(&name("orders"), end, SOON).await.unwrap();
    for pace in [Pace::default(), at_once()] {
        let verified = verify(&instance, "orders", &VerifyOptions { pace, ..VerifyOptions::default() }).await;
        assert!(verified.is_equal(), "{verified:?}");
        assert_eq!((verified.skipped_events, verified.rows()), (1, 2));
    }
    running.stop().await;
}
