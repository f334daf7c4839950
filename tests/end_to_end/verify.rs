//! Verifying: rows that are right are proved so beside whoever writes them, and every row that is wrong is found.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Delivery, Expected, Fold, FoldProjector, Pace, Position,
    ProjectorName, Recorded, ReplayError, Row, RowDifference, RowDiffers, SqlProjector, StreamName,
    TableVerdict, Transaction, Type, Verified, VerifyError, VerifyOptions, VerifyProgress,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::orders::{OrderEvent, instance, place, placed, stream};
use crate::accounts::{Accounts, accounts, at_once, cramped, fill, with};
use crate::releases::{SOON, Writers, hasty, instance_of, more_events};

/// Pages so small that every table has several.
fn small_pages() -> VerifyOptions {
    VerifyOptions { page_rows: 50, pace: cramped(2), ..VerifyOptions::default() }
}

async fn verify(instance: &Changeover, projector: &str, options: &VerifyOptions) -> Verified {
    let projector = name(projector);
    let verifying = instance.verify(&projector, options, &|_| {});
    tokio::time::timeout(SOON * 2, verifying).await.expect("it takes too long").unwrap()
}

fn name(projector: &str) -> ProjectorName {
    projector.parse().unwrap()
}

/// The schemas that verifications have left.
async fn scratch(client: &Client) -> Vec<String> {
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '_verify_' ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn count(client: &Client, table: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM {table}");
    u64::try_from(client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)).unwrap()
}

/// Accounts that were replayed, from a random log.
async fn replayed_accounts(database: &Database, client: &Client, seed: f64, events: i64) -> Changeover {
    let instance = instance(database, Configuration::new().fold(Accounts::<1>).unwrap()).await;
    fill(client, seed, events).await;
    instance.replay(&[accounts()], &with(at_once()), &|_| {}).await.unwrap();
    instance
}

// --- equal ------------------------------------------------------------------------------------------------------------

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

// --- different --------------------------------------------------------------------------------------------------------

/// A difference as the tests write it down: how, the key, the columns.
fn told(difference: &RowDifference) -> (RowDiffers, Vec<&str>, Vec<&str>) {
    let key = difference.key.iter().map(|(_, value)| value.as_str()).collect();
    (difference.difference, key, difference.columns.iter().map(String::as_str).collect())
}

fn table<'v>(verified: &'v Verified, name: &str) -> &'v TableVerdict {
    verified.tables.iter().find(|table| table.table == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_that_is_wrong_is_found_and_counted() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.2, 30_000).await;
    let plant = "
        DELETE FROM accounts_v1.accounts WHERE id IN (SELECT id FROM accounts_v1.accounts ORDER BY id OFFSET 20 LIMIT 3);
        UPDATE accounts_v1.accounts SET owner = 'Mallory-7731'
            WHERE id IN (SELECT id FROM accounts_v1.accounts ORDER BY id DESC LIMIT 2);
        UPDATE accounts_v1.accounts SET owner = NULL, cents = cents + 1
            WHERE id = (SELECT id FROM accounts_v1.accounts WHERE owner IS NOT NULL ORDER BY id LIMIT 1);
        INSERT INTO accounts_v1.accounts VALUES (-5, NULL, 0, 'none'), (100000, 'Eve-7731', 1, 'none'), (100001, 'Eve-7731', 1, 'none'), (100002, 'Eve-7731', 1, 'none');
        INSERT INTO accounts_v1.kinds VALUES ('it''s \"new\"', 'other', 1, 1);
        DELETE FROM accounts_v1.whole";
    client.batch_execute(plant).await.unwrap();
    for options in [
        VerifyOptions { pace: at_once(), examples: 100, ..VerifyOptions::default() },
        VerifyOptions { examples: 100, ..small_pages() },
    ] {
        let verified = verify(&instance, "accounts", &options).await;
        assert!(!verified.is_equal());
        let accounts = table(&verified, "accounts");
        assert_eq!((accounts.missing, accounts.extra, accounts.different), (3, 4, 3), "{accounts:?}");
        assert_eq!(accounts.rows + 3 - 4, accounts.expected_rows);
        let columns = BTreeMap::from([("owner".to_owned(), 3), ("cents".to_owned(), 1)]);
        assert_eq!(accounts.columns, columns);
        let told: Vec<_> = accounts.examples.iter().map(told).collect();
        assert_eq!(told.len(), 10, "{told:?}");
        let extra = |id: &'static str| (RowDiffers::Extra, vec![id], vec![]);
        assert_eq!(told[0], extra("-5"));
        assert_eq!(told[7..], [extra("100000"), extra("100001"), extra("100002")]);
        let of = |how: RowDiffers| told.iter().filter(move |(what, ..)| *what == how);
        assert_eq!(of(RowDiffers::Missing).count(), 3, "{told:?}");
        let different: Vec<_> = of(RowDiffers::Different).map(|(_, _, columns)| columns.clone()).collect();
        assert_eq!(different, [vec!["cents", "owner"], vec!["owner"], vec!["owner"]]);
        assert_eq!(accounts.examples[0].key[0].0, "id");
        let kinds = table(&verified, "kinds");
        assert_eq!((kinds.missing, kinds.extra, kinds.different), (0, 1, 0));
        assert_eq!(
            kinds.examples[0].key,
            [("stream".into(), "it's \"new\"".into()), ("what".into(), "other".into())]
        );
        let whole = table(&verified, "whole");
        assert_eq!((whole.rows, whole.expected_rows, whole.missing), (0, 1, 1));
        assert_eq!(
            verified.to_string(),
            "accounts 1.0.0 differs from the log in 12 rows (accounts: 3 missing, 4 extra, 3 different; kinds: 1 extra; whole: 1 missing)"
        );
        // No value is told but those of keys.
        assert!(!format!("{verified:?}").contains("7731"), "{verified:?}");
    }
    let options = VerifyOptions { examples: 2, show_values: true, ..small_pages() };
    let verified = verify(&instance, "accounts", &options).await;
    let accounts = table(&verified, "accounts");
    assert_eq!((accounts.differences(), accounts.examples.len()), (10, 2));
    let values = accounts.examples[1].values.as_ref().unwrap();
    assert_eq!(accounts.examples[1].difference, RowDiffers::Different);
    let owner = values.iter().find(|value| value.column == "owner").unwrap();
    assert!(
        owner.found.is_none() && owner.expected.as_ref().is_some_and(|was| was.starts_with("It's")),
        "{values:?}"
    );
}

/// What changes in code that depends on more than the event.
static FOLDS: AtomicI64 = AtomicI64::new(0);

macro_rules! counters {
    ($($row:ident $projector:ident $value:expr;)*) => {$(
        #[derive(Row, Clone)]
        #[row(table = "counted")]
        struct $row {
            #[row(key)]
            id: String,
            value: i64,
        }

        impl Fold for $row {
            type Event = OrderEvent;

            fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
                [stream.to_string()]
            }

            fn fold(_row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
                let value: fn(&Recorded<OrderEvent>) -> i64 = $value;
                Some(Self { id: id.clone(), value: value(event) })
            }
        }

        struct $projector;

        impl FoldProjector for $projector {
            const NAME: &'static str = "counted";
            const VERSION: Version = Version::new(1, 0, 0);
            type Event = OrderEvent;
            type Tables = ($row,);
        }
    )*};
}

counters! {
    Moody MoodyCounter |_| FOLDS.fetch_add(1, Ordering::Relaxed);
    Sound SoundCounter |event| event.position.get();
    // What somebody changed without telling.
    Changed ChangedCounter |event| event.position.get() / 3 * 3;
}

async fn counted(database: &Database, configuration: Configuration) -> Changeover {
    let counted = instance(database, configuration).await;
    counted.replay(&[name("counted")], &with(at_once()), &|_| {}).await.unwrap();
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fold_that_depends_on_more_than_its_events_is_caught() {
    let database = Database::fresh().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..20 {
        place(&writer, &format!("o-{order}"), 1).await;
    }
    let counted = counted(&database, Configuration::new().fold(MoodyCounter).unwrap()).await;
    let verified = verify(&counted, "counted", &small_pages()).await;
    assert_eq!(verified.tables[0].different, 20, "{verified:?}");
    assert_eq!(verified.tables[0].columns, BTreeMap::from([("value".to_owned(), 20)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_was_changed_without_its_version_is_caught() {
    let database = Database::fresh().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..20 {
        place(&writer, &format!("o-{order}"), 0).await;
    }
    let before = counted(&database, Configuration::new().fold(SoundCounter).unwrap()).await;
    assert!(verify(&before, "counted", &small_pages()).await.is_equal());
    let after = instance(&database, Configuration::new().fold(ChangedCounter).unwrap()).await;
    let verified = verify(&after, "counted", &small_pages()).await;
    // Positions 1 to 20, of which 3, 6, .. 18 are what they were.
    assert_eq!(verified.tables[0].different, 14, "{verified:?}");
}

// --- tables of all kinds ----------------------------------------------------------------------------------------------

/// Tables as SQL projectors make them: types of their own, no key, several kinds of columns.
struct Motley;

impl SqlProjector for Motley {
    const NAME: &'static str = "motley";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = r#"
        CREATE TYPE {schema}.mood AS ENUM ('sad', 'glad', 'mad');
        CREATE TABLE {schema}.moods (
            mood {schema}.mood NOT NULL, "the ""day""" date NOT NULL, n numeric, j json, b jsonb, f double precision,
            area box, tags text[], moods {schema}.mood[], ip inet, PRIMARY KEY (mood, "the ""day""")
        );
        CREATE TABLE {schema}.entries (day date, j json, note text);
        CREATE TABLE {schema}.parted (id bigint PRIMARY KEY, moody {schema}.mood) PARTITION BY RANGE (id);
        CREATE TABLE {schema}.parted_low PARTITION OF {schema}.parted FOR VALUES FROM (0) TO (10);
        CREATE TABLE {schema}.parted_high PARTITION OF {schema}.parted DEFAULT;
        CREATE TABLE {schema}.nothing ();
        CREATE VIEW {schema}.glad AS SELECT * FROM {schema}.moods WHERE mood = 'glad';
        CREATE FUNCTION {schema}.sadness(m {schema}.moods) RETURNS text LANGUAGE sql AS 'SELECT m.mood::text';
        CREATE SEQUENCE {schema}.numbers"#;
    type Event = OrderEvent;

    async fn project(&self, batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        for event in batch.events() {
            let sql = format!(
                r#"INSERT INTO {{schema}}.moods VALUES ((ARRAY['sad', 'glad', 'mad'])[1 + {n} % 3]::{{schema}}.mood,
                       date '2026-01-01' + {n}, {n}.50, '{{"n": {n}, "nul": "\u0000", "a": [1, 2]}}', '{{"n": {n}}}',
                       CASE WHEN {n} % 5 = 0 THEN 'NaN' ELSE {n} / 3.0 END, box '((0,0),(2,{n}))', ARRAY['t{n}', NULL],
                       '{{sad,glad}}', '10.0.0.{n}');
                   INSERT INTO {{schema}}.entries VALUES (date '2026-01-01' + {n} % 7, '{{"a": 1}}', NULL);
                   INSERT INTO {{schema}}.parted VALUES ({n}, 'mad')"#,
                n = event.position
            );
            tx.batch_execute(&batch.sql(&sql)).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_types_of_all_kinds_are_compared() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let motley = instance(&database, Configuration::new().sql(Motley).unwrap()).await;
    let running = motley.start();
    place(&motley, "a", 40).await;
    motley.wait_for(&name("motley"), motley.horizon().await.unwrap(), SOON).await.unwrap();
    running.stop().await;
    let options = VerifyOptions { page_rows: 7, ..VerifyOptions::default() };
    let verified = verify(&motley, "motley", &options).await;
    assert!(verified.is_equal(), "{verified:?}");
    let rows: Vec<(&str, u64)> =
        verified.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect();
    assert_eq!(rows, [("entries", 41), ("moods", 41), ("nothing", 0), ("parted", 41)]);
    assert_eq!(scratch(&client).await, [""; 0], "views, functions and types went as well");

    // What changes nothing: another scale, other spaces and another order in JSON.
    client
        .batch_execute(
            r#"UPDATE motley_v1.moods SET n = 7.5, j = '{"a":[1,2],   "nul": "\u0000", "n": 7}', b = '{"n": 7.0}' WHERE ip = '10.0.0.8';
               UPDATE motley_v1.moods SET n = n + 0.00 WHERE ip = '10.0.0.9';
               UPDATE motley_v1.entries SET j = '{ "a":1 }' WHERE ctid IN (SELECT ctid FROM motley_v1.entries LIMIT 4)"#,
        )
        .await
        .unwrap();
    let verified = verify(&motley, "motley", &options).await;
    // JSON with a NUL is compared as text.
    assert_eq!(table(&verified, "moods").columns.keys().collect::<Vec<_>>(), ["b", "j", "n"], "{verified:?}");
    assert_eq!(table(&verified, "moods").different, 1);
    assert_eq!(table(&verified, "entries").differences(), 0, "{verified:?}");

    let check = async |plant: &str, of: &str, expected: (u64, u64, u64), columns: &[&str]| {
        let before = verify(&motley, "motley", &options).await;
        client.batch_execute(&format!("BEGIN; {plant}; COMMIT")).await.unwrap();
        let after = verify(&motley, "motley", &options).await;
        let (before, after) = (table(&before, of), table(&after, of));
        let differs =
            (after.missing - before.missing, after.extra - before.extra, after.different - before.different);
        assert_eq!(differs, expected, "{plant}: {after:?}");
        for column in columns {
            assert!(after.columns.contains_key(*column), "{plant}: {after:?}");
        }
    };
    // The same area, which is all that `=` looks at.
    check(
        "UPDATE motley_v1.moods SET area = box '((0,0),(1,22))' WHERE ip = '10.0.0.11'",
        "moods",
        (0, 0, 1),
        &["area"],
    )
    .await;
    check(
        "UPDATE motley_v1.moods SET tags = ARRAY['t12', 'x'] WHERE ip = '10.0.0.12'",
        "moods",
        (0, 0, 1),
        &["tags"],
    )
    .await;
    check(
        "UPDATE motley_v1.moods SET moods = '{glad}' WHERE ip = '10.0.0.13'",
        "moods",
        (0, 0, 1),
        &["moods"],
    )
    .await;
    check("UPDATE motley_v1.moods SET f = NULL WHERE ip = '10.0.0.15'", "moods", (0, 0, 1), &["f"]).await;
    check("UPDATE motley_v1.moods SET mood = 'sad' WHERE ip = '10.0.0.16'", "moods", (1, 1, 0), &[]).await;
    check(
        "UPDATE motley_v1.moods SET ip = '10.0.0.17/24' WHERE ip = '10.0.0.17'",
        "moods",
        (0, 0, 1),
        &["ip"],
    )
    .await;
    check("UPDATE motley_v1.parted SET id = 1000, moody = 'sad' WHERE id = 3", "parted", (1, 1, 0), &[])
        .await;
    check("UPDATE motley_v1.parted SET moody = 'sad' WHERE id = 12", "parted", (0, 0, 1), &["moody"]).await;
    // Without a key: how often each row is there.
    check(
        "INSERT INTO motley_v1.entries SELECT * FROM motley_v1.entries WHERE day = '2026-01-03'",
        "entries",
        (0, 6, 0),
        &[],
    )
    .await;
    check("DELETE FROM motley_v1.entries WHERE day = '2026-01-04'", "entries", (6, 0, 0), &[]).await;
    check("UPDATE motley_v1.entries SET note = 'NULL' WHERE day = '2026-01-05'", "entries", (6, 6, 0), &[])
        .await;
    check("INSERT INTO motley_v1.nothing DEFAULT VALUES", "nothing", (0, 1, 0), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_are_not_as_defined_are_named() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.3, 1_000).await;
    let check = async |ddl: &str, expected: &str| {
        client.batch_execute(ddl).await.unwrap();
        let error = instance.verify(&accounts(), &small_pages(), &|_| {}).await.unwrap_err();
        assert!(matches!(&error, VerifyError::OtherTable { .. }), "{error:?}");
        assert_eq!(error.to_string(), expected);
        assert_eq!(scratch(&client).await, [""; 0]);
    };
    check(
        "ALTER TABLE accounts_v1.kinds ADD extra text; ALTER TABLE accounts_v1.kinds ALTER last TYPE integer; ALTER TABLE accounts_v1.kinds RENAME events TO evts",
        "table kinds of accounts 1.0.0 is not as it is defined: it has no column events; last is integer, not bigint; evts is not in the definition; extra is not in the definition",
    )
    .await;
    check(
        "ALTER TABLE accounts_v1.accounts DROP CONSTRAINT accounts_pkey",
        "table accounts of accounts 1.0.0 is not as it is defined: it has another primary key",
    )
    .await;
    check(
        "DROP TABLE accounts_v1.accounts",
        "table accounts of accounts 1.0.0 is not as it is defined: it is not there",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_verified_is_refused() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let fresh = instance(&database, Configuration::new().fold(Accounts::<1>).unwrap()).await;
    let error = fresh.verify(&name("others"), &small_pages(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, VerifyError::NotOurs(_)), "{error:?}");
    let error = fresh.verify(&accounts(), &small_pages(), &|_| {}).await.unwrap_err();
    assert_eq!(error.to_string(), "accounts 1.0.0 has no tables yet: replay it first");
    // A replay whose shards have not met: one event cannot be folded.
    fill(&client, 0.4, 5_000).await;
    let poison =
        "UPDATE changeover.events SET type = 'Closed', data = '{\"account\": \"x\"}' WHERE position = 6000";
    client.batch_execute(poison).await.unwrap();
    let error = fresh.replay(&[accounts()], &with(cramped(2)), &|_| {}).await.unwrap_err();
    assert!(matches!(error, ReplayError::Projector { .. }), "{error:?}");
    let error = fresh.verify(&accounts(), &small_pages(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, VerifyError::InShards { .. }), "{error:?}");
    assert_eq!(scratch(&client).await, [""; 0]);
    // An event that was folded once and cannot be any more stops the fold, and is named.
    let mend = "UPDATE changeover.events SET data = '{\"account\": 5}' WHERE position = 6000";
    client.batch_execute(mend).await.unwrap();
    fresh.replay(&[accounts()], &with(cramped(2)), &|_| {}).await.unwrap();
    client.batch_execute(poison).await.unwrap();
    for pace in [cramped(2), Pace::default()] {
        let options = VerifyOptions { pace, ..small_pages() };
        let error = fresh.verify(&accounts(), &options, &|_| {}).await.unwrap_err();
        let VerifyError::Fold(ReplayError::Projector { position, event_type, .. }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!((position.get(), event_type.as_str()), (6_000, "Closed"));
        assert_eq!(scratch(&client).await, [""; 0]);
    }
}

// --- beside others ----------------------------------------------------------------------------------------------------

/// A verification that stops whenever it has compared a page, until it is let go on.
struct Stepwise {
    task: tokio::task::JoinHandle<Result<Verified, VerifyError>>,
    paged: tokio::sync::mpsc::UnboundedReceiver<u64>,
    go: Option<mpsc::Sender<()>>,
}

impl Stepwise {
    fn start(instance: &Changeover, projector: &str, options: VerifyOptions) -> Self {
        let (tell, paged) = tokio::sync::mpsc::unbounded_channel();
        let (go, gate) = mpsc::channel::<()>();
        let (instance, projector, gate) = (instance.clone(), name(projector), Mutex::new(gate));
        let task = tokio::spawn(async move {
            let on_progress = |progress: VerifyProgress| {
                if let VerifyProgress::Comparing { rows, .. } = progress
                    && tell.send(rows).is_ok()
                {
                    let gate = gate.lock().unwrap();
                    // An error: it was let go for good.
                    tokio::task::block_in_place(|| gate.recv()).unwrap_or_default();
                }
            };
            instance.verify(&projector, &options, &on_progress).await
        });
        Self { task, paged, go: Some(go) }
    }

    /// Waits for a page.
    async fn page(&mut self) -> u64 {
        tokio::time::timeout(SOON, self.paged.recv()).await.unwrap().expect("it ended before")
    }

    async fn outcome(mut self) -> Result<Verified, VerifyError> {
        self.go = None;
        drop(self.paged);
        tokio::time::timeout(SOON, &mut self.task).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_neither_waits_for_readers_nor_locks_anything_between_pages() {
    let database = Database::fresh().await;
    let mut client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.5, 3_000).await;
    let watcher = database.client().await;
    // A long reader, whose snapshot is of before.
    let reader = client.transaction().await.unwrap();
    reader.execute("SELECT count(*) FROM accounts_v1.accounts", &[]).await.unwrap();
    let mut verifying = Stepwise::start(&instance, "accounts", small_pages());
    assert_eq!(verifying.page().await, 50);
    reader.commit().await.unwrap();
    let lock = "BEGIN; LOCK TABLE accounts_v1.accounts, accounts_v1.kinds, changeover.events, changeover.checkpoints IN ACCESS EXCLUSIVE MODE NOWAIT; ROLLBACK";
    watcher.batch_execute(lock).await.unwrap();
    // Nor does it hold any old snapshot.
    let old = "SELECT query, state FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
                 AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)";
    let old = watcher.query(old, &[]).await.unwrap();
    let old: Vec<(String, String)> = old.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(old, []);
    assert!(verifying.outcome().await.unwrap().is_equal());
}

/// The marks of verifications in this database.
const AT_IT: &str = "FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND d.datname = current_database()";

/// Waits until the server has seen that nobody verifies any more.
async fn nobody_at_it(client: &Client) {
    let at_it = format!("SELECT count(*) {AT_IT}");
    eventually(SOON, || async { client.query_one(&at_it, &[]).await.unwrap().get::<_, i64>(0) == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_verification_leaves_is_dropped_by_the_next_and_nothing_else() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.6, 3_000).await;
    let mut left_behind = Vec::new();
    for _ in 0..2 {
        let mut killed = Stepwise::start(&instance, "accounts", small_pages());
        killed.page().await;
        left_behind = scratch(&client).await;
        killed.task.abort();
        drop(killed.go.take());
        assert!(killed.task.await.is_err_and(|error| error.is_cancelled()));
        // The server sees that nobody is at it any more.
        nobody_at_it(&client).await;
    }
    assert_eq!(left_behind.len(), 1, "what the first one left went with the second: {left_behind:?}");
    // Others of such a name, with tables like them, and one that something depends on.
    client
        .batch_execute(
            "CREATE SCHEMA accounts_v1_verify_0123abcd; CREATE TABLE accounts_v1_verify_0123abcd.accounts ()",
        )
        .await
        .unwrap();
    let mut other = Stepwise::start(&instance, "accounts", small_pages());
    other.page().await;
    let now = scratch(&client).await;
    assert_eq!(now.len(), 2, "{now:?}");
    assert!(
        !now.contains(&left_behind[0]) && now.contains(&"accounts_v1_verify_0123abcd".to_owned()),
        "{now:?}"
    );
    // One that is at work is left alone.
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert_eq!(scratch(&client).await, now);
    assert!(other.outcome().await.unwrap().is_equal());

    let mut killed = Stepwise::start(&instance, "accounts", small_pages());
    killed.page().await;
    let schema = scratch(&client).await.into_iter().find(|schema| !schema.ends_with("0123abcd")).unwrap();
    client
        .batch_execute(&format!("CREATE VIEW public.mine AS SELECT id FROM {schema}.accounts"))
        .await
        .unwrap();
    killed.task.abort();
    drop(killed.go.take());
    assert!(killed.task.await.is_err());
    nobody_at_it(&client).await;
    // Somebody's view keeps it, whole; verifying goes on.
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert!(scratch(&client).await.contains(&schema));
    client.batch_execute("SELECT * FROM public.mine; DROP VIEW public.mine").await.unwrap();
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert_eq!(scratch(&client).await, ["accounts_v1_verify_0123abcd"]);
    assert_eq!(count(&client, "accounts_v1_verify_0123abcd.accounts").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_when_the_connection_was_lost_that_kept_the_tables() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.7, 3_000).await;
    let mut verifying = Stepwise::start(&instance, "accounts", small_pages());
    verifying.page().await;
    let cut = format!("SELECT count(pg_terminate_backend(pid)) {AT_IT}");
    let cut = cut.as_str();
    assert_eq!(client.query_one(cut, &[]).await.unwrap().get::<_, i64>(0), 1);
    let error = verifying.outcome().await.unwrap_err();
    assert!(matches!(error, VerifyError::ScratchLost { .. }), "{error:?}");
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert_eq!(scratch(&client).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_in_the_middle_changes_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    for order in 0..40 {
        place(&old, &format!("o-{order}"), 1).await;
    }
    let new = instance_of(&database, "inline 2.0.0").await;
    new.replay(&[name("orders")], &with(at_once()), &|_| {}).await.unwrap();
    let options = VerifyOptions { page_rows: 10, ..small_pages() };
    // One that is retired meanwhile, and one that appends feed from then on.
    let mut retiring = Stepwise::start(&old, "orders", options.clone());
    let mut taking_over = Stepwise::start(&new, "orders", options);
    retiring.page().await;
    taking_over.page().await;
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    for order in 0..40 {
        new.append(&stream(&format!("o-{order}")), Expected::Any, &[OrderEvent::Paid]).await.unwrap();
    }
    for verifying in [retiring, taking_over] {
        let verified = verifying.outcome().await.unwrap();
        assert!(verified.is_equal() && verified.rows() == 40, "{verified:?}");
    }
    assert_eq!(count(&client, "orders_v2.orders WHERE paid").await, 40);
}
