//! Tables, types and columns of all kinds; and those that are not as they should be.

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Configuration, Pace, ReplayError, SqlProjector, Transaction, VerifyError, VerifyOptions,
};
use changeover_testkit::Database;

use super::{name, replayed_accounts, scratch, small_pages, table, verify};
use crate::accounts::{Accounts, accounts, cramped, fill, with};
use crate::orders::{OrderEvent, instance, place};
use crate::releases::SOON;

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
        let next = "put that back, or raise its version";
        assert_eq!(error.to_string(), format!("{expected}; {next}"));
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
