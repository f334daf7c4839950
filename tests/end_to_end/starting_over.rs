//! Starting a replay over, and what a replay refuses to write into.

use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Pace, ReplayError, ReplayOptions, SqlProjector, Transaction,
    Type,
};
use changeover_testkit::{Database, eventually};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::accounts::{
    accounts, cramped, differences, fill, is_whole, of, replay, rows, serially, slowly, with,
};
use crate::operator::Operator;
use crate::orders::{ItemEvent, instance, place};
use crate::parallel_breaking::{claims, end_transactions, handled_after, is_the_same, with_history};
use crate::releases::{Held, SOON, hasty, instance_of};
use crate::traps::activate;

fn over(options: ReplayOptions) -> ReplayOptions {
    ReplayOptions { restart: true, ..options }
}

/// The replay of the second version's accounts is refused.
async fn refused(instance: &Changeover, options: &ReplayOptions) -> ReplayError {
    instance.replay(&[accounts()], options, &|_| {}).await.unwrap_err()
}

/// Of the second version.
async fn attempt(client: &Client) -> i32 {
    let sql =
        "SELECT attempt FROM changeover.checkpoints WHERE projector = 'accounts' AND major = 2 AND shard = 0";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_build_of_the_same_version_starts_over() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.21, 20_000).await;
    let second = of::<2>(&database).await;
    let options = [with(cramped(3)), serially()];
    for (round, options) in (1..).zip([&options[0], &options[1], &options[0]]) {
        // Nothing was begun the first time: then it is a replay like any other.
        let events = replay(&second, &over(options.clone())).await;
        assert_eq!((events, attempt(&client).await), (handled_after(&client, 0).await, round));
        is_the_same(&client).await;
        // As a build with a mistake in it would have left them; and a table of somebody else's among ours.
        client
            .batch_execute(
                "UPDATE accounts_v2.accounts SET cents = cents + 1; DELETE FROM accounts_v2.kinds;
                 CREATE TABLE IF NOT EXISTS accounts_v2.theirs AS SELECT 1 AS precious",
            )
            .await
            .unwrap();
        assert!(differences(&client, 1, 2).await > 0);
    }
    // What is finished stays so without being told otherwise.
    assert_eq!(replay(&second, &with(cramped(3))).await, 0);
    assert!(differences(&client, 1, 2).await > 0);
    // Half done, it starts over as well.
    let (names, slow) = ([accounts()], over(with(slowly(3, 20_000))));
    tokio::select! {
        done = second.replay(&names, &slow, &|_| {}) => panic!("{done:?}"),
        () = eventually(SOON, || async {
            let sql = "SELECT count(*) FROM changeover.checkpoints WHERE major = 2 AND shard > 0 AND position > 0";
            client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 3
        }) => {}
    }
    replay(&second, &over(with(cramped(2)))).await;
    is_the_same(&client).await;
    assert_eq!(attempt(&client).await, 5);
    let theirs = client.query_one("SELECT count(*) FROM accounts_v2.theirs", &[]).await.unwrap();
    assert_eq!(theirs.get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_written_nothing_yet_when_it_starts_over_writes_nothing_any_more() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.22, 20_000).await;
    let (one, other) = (of::<2>(&database).await, of::<2>(&database).await);
    // It writes at the end alone, from a checkpoint that looks like that of the next attempt.
    let lazy = Pace { memory_bytes: 64 << 20, checkpoint_every: Duration::from_mins(1), ..slowly(3, 20_000) };
    let late = tokio::spawn(async move { one.replay(&[accounts()], &with(lazy), &|_| {}).await });
    eventually(SOON, || async { !claims(&client).await.is_empty() }).await;
    // What it read while the one before still held shards, it may have read again.
    assert!(replay(&other, &over(with(cramped(3)))).await >= handled_after(&client, 0).await);
    let late = timeout(SOON, late).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(late, ReplayError::StartedOver { .. }), "{late:?}");
    is_the_same(&client).await;

    // Also where the generation was not set yet, or whoever started over died before it could.
    let third = of::<3>(&database).await;
    let lazy = Pace { memory_bytes: 64 << 20, checkpoint_every: Duration::from_mins(1), ..slowly(3, 20_000) };
    let late = tokio::spawn(async move { third.replay(&[accounts()], &with(lazy), &|_| {}).await });
    eventually(SOON, || async { !claims(&client).await.is_empty() }).await;
    let sql = "UPDATE changeover.checkpoints SET attempt = attempt + 1 WHERE major = 3";
    client.execute(sql, &[]).await.unwrap();
    let late = timeout(SOON, late).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(late, ReplayError::StartedOver { .. }), "{late:?}");
    assert_eq!(client.query("SELECT FROM accounts_v3.whole", &[]).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_that_wakes_up_after_it_was_started_over_is_refused() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.23, 20_000).await;
    let second = of::<2>(&database).await;
    for in_bulk in [true, false] {
        let frozen = if in_bulk {
            let frozen = Operator::replay_in_bulk(&database, "accounts 2", 3, 20_000, 3_000);
            frozen.stopped().await;
            end_transactions(&client).await;
            frozen
        } else {
            // Between two batches of the step that live publishing takes.
            let sql = "UPDATE changeover.checkpoints SET position = 33000 WHERE major = 2 AND shard = 0";
            client.execute(sql, &[]).await.unwrap();
            Operator::replay(&database, "accounts 2", "accounts", 1).await
        };
        replay(&second, &over(with(cramped(3)))).await;
        is_the_same(&client).await;
        let said = frozen.thaw().await;
        assert!(said.starts_with("end: refused"), "{said}");
        assert!(in_bulk || said.contains("StartedOver"), "{said}");
        is_the_same(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn rows_that_count_are_not_thrown_away() {
    let check = |error: &ReplayError, why: &str| {
        assert!(matches!(error, ReplayError::NotStartedOver { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("was not started over: ") && text.contains(why), "{text}");
    };
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&old, "order", 3).await;
    let orders = ["orders".parse().unwrap()];
    let restart = async |instance: &Changeover| {
        instance.replay(&orders, &over(ReplayOptions::default()), &|_| {}).await.unwrap_err()
    };
    check(&restart(&old).await, "it is active");
    // The patch and the minor version after it share its tables.
    for sharing in ["1.0.1", "1.1.0"] {
        check(
            &restart(&instance_of(&database, sharing).await).await,
            "other versions have filled its tables",
        );
    }
    // An activation has it in hand.
    let mut held = Held::at("replaying", &new, hasty());
    held.reached().await;
    check(&restart(&new).await, "is replaying it: `abort` that first");
    let _ = held.outcome().await.unwrap();
    check(&restart(&old).await, "kept for going back");
    // A table elsewhere refers to its rows.
    activate(&old).await;
    let third = of::<2>(&database).await;
    fill_beside(&client).await;
    replay(&third, &with(cramped(2))).await;
    client
        .batch_execute("CREATE TABLE theirs (account bigint REFERENCES accounts_v2.accounts)")
        .await
        .unwrap();
    check(&refused(&third, &over(with(cramped(2)))).await, "theirs_account_fkey");
    client.batch_execute("DROP TABLE theirs").await.unwrap();
    // Somebody reads them.
    let reader = database.client().await;
    reader.batch_execute("BEGIN; SELECT FROM accounts_v2.accounts").await.unwrap();
    let error = refused(&third, &over(with(cramped(2)))).await;
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    assert!(matches!(error, ReplayError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("by pid {pid}")), "{error}");
    reader.batch_execute("COMMIT").await.unwrap();
    // Nothing was lost by all of these.
    assert!(rows(&client, 2).await > 100);
    is_whole(&client, 2).await;
    replay(&third, &over(with(cramped(2)))).await;
}

/// A log that begins where this one ends.
async fn fill_beside(client: &Client) {
    client.batch_execute("TRUNCATE changeover.events").await.unwrap();
    fill(client, 0.24, 2_000).await;
}

#[tokio::test]
async fn a_replay_into_rows_that_are_not_its_own_is_refused() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let second = of::<2>(&database).await;
    replay(&second, &with(cramped(2))).await;
    client.batch_execute("INSERT INTO accounts_v2.kinds VALUES ('a', 'b', 1, 2)").await.unwrap();
    fill(&client, 0.25, 2_000).await;
    for options in [with(cramped(2)), serially()] {
        let error = refused(&second, &options).await;
        let ReplayError::NotEmpty { table, .. } = &error else { panic!("{error:?}") };
        assert_eq!(table, "accounts_v2.kinds");
        assert!(error.to_string().contains("start over with `replay accounts --restart`"), "{error}");
    }
    assert_eq!(client.query("SELECT FROM accounts_v2.accounts", &[]).await.unwrap().len(), 0);
    replay(&second, &over(with(cramped(2)))).await;
    let first = of::<1>(&database).await;
    replay(&first, &serially()).await;
    is_the_same(&client).await;
}

#[tokio::test]
async fn a_replay_into_tables_that_somebody_altered_is_refused_and_the_difference_is_named() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let second = of::<2>(&database).await;
    fill(&client, 0.26, 2_000).await;
    replay(&second, &with(cramped(2))).await;
    let alter = async |sql: &str| {
        client.batch_execute(&format!("ALTER TABLE accounts_v2.accounts {sql}")).await.unwrap();
    };
    let changes = [
        (
            "ALTER cents TYPE integer",
            "ALTER cents TYPE bigint",
            "column accounts.cents is integer not null, and was made as bigint not null",
        ),
        (
            "ALTER trace DROP NOT NULL",
            "ALTER trace SET NOT NULL",
            "column accounts.trace is text, and was made as text not null",
        ),
        ("RENAME owner TO proprietor", "RENAME proprietor TO owner", "column accounts.owner is gone"),
        (
            "DROP CONSTRAINT accounts_pkey",
            "ADD PRIMARY KEY (id)",
            "column accounts.id is bigint not null, and was made as bigint not null and number 1 of the primary key",
        ),
    ];
    for (change, back, difference) in changes {
        alter(change).await;
        for options in [with(cramped(2)), serially(), over(with(cramped(2)))] {
            let error = refused(&second, &options).await;
            assert!(matches!(error, ReplayError::Altered { .. }), "{error:?}");
            assert!(error.to_string().contains(&format!("were altered: {difference};")), "{error}");
        }
        alter(back).await;
        replay(&second, &with(cramped(2))).await;
    }
    // What rows can do without is nobody's business.
    alter("ADD note text, ADD twice bigint GENERATED ALWAYS AS (cents * 2) STORED").await;
    replay(&second, &over(with(cramped(2)))).await;
    alter("ADD must text NOT NULL DEFAULT ''").await;
    alter("ALTER must DROP DEFAULT").await;
    let error = refused(&second, &with(cramped(2))).await;
    assert!(error.to_string().contains("column accounts.must was added, and must be filled"), "{error}");
}

/// Counts in a row that its DDL has put there.
struct Seeded;

impl SqlProjector for Seeded {
    const NAME: &'static str = "seeded";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "CREATE TABLE {schema}.total (items bigint NOT NULL);
        INSERT INTO {schema}.total VALUES (0)";
    type Event = ItemEvent;

    async fn project(&self, batch: Batch<'_, ItemEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let items = i64::try_from(batch.events().len())?;
        tx.query_typed(&batch.sql("UPDATE {schema}.total SET items = items + $1"), &[(&items, Type::INT8)])
            .await?;
        Ok(())
    }
}

#[tokio::test]
async fn rows_that_ddl_has_made_are_no_obstacle_and_are_not_thrown_away() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let writer = instance_of(&database, "none").await;
    place(&writer, "order", 12).await;
    let both = Configuration::new().sql(Seeded).unwrap().sql(crate::orders::Totals).unwrap();
    let operator = instance(&database, both).await;
    let names = ["seeded".parse().unwrap(), "totals".parse().unwrap()];
    let _ = operator.replay(&names, &ReplayOptions::default(), &|_| {}).await.unwrap();
    let error = operator.replay(&names[..1], &over(ReplayOptions::default()), &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("its DDL inserts rows"), "{error}");
    // What runs its own SQL and begins with nothing starts over like all others.
    let _ = operator.replay(&names[1..], &over(ReplayOptions::default()), &|_| {}).await.unwrap();
    let sql = "SELECT (SELECT items FROM seeded_v1.total), (SELECT items FROM totals_v1.total)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (12, 12));
}
