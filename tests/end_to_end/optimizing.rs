//! `optimize`: indexes that are missing come back, beside whoever uses the tables, and whatever was left half built.

use changeover::semver::Version;
use changeover::{
    ActivateOptions, Batch, BoxError, Changeover, Configuration, OptimizeError, OptimizeOptions, Optimized,
    ReplayPhase, SqlProjector, Transaction,
};
use changeover_testkit::{Database, eventually};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::accounts::{accounts, of, replay, serially, slowly, with};
use crate::orders::{ItemEvent, instance};
use crate::parallel_breaking::with_history;
use crate::releases::SOON;

const INDEX: &str = "accounts_v1.accounts_owner_idx";

/// The first version of accounts is active; nobody publishes.
async fn active(seed: f64) -> (Database, Client, Changeover) {
    let database = Database::fresh().await;
    let client = with_history(&database, seed, 2_000).await;
    let instance = of::<1>(&database).await;
    activate(&instance).await;
    (database, client, instance)
}

async fn activate(instance: &Changeover) {
    let options = ActivateOptions { pause_limit: SOON, ..ActivateOptions::default() };
    let _ = instance.activate(&options, &|_| {}).await.unwrap();
}

async fn optimize(instance: &Changeover) -> Optimized {
    let mut done = instance.optimize(&[], &OptimizeOptions::default(), &|_| {}).await.unwrap();
    assert_eq!(done.len(), 1);
    done.remove(0)
}

async fn refused(instance: &Changeover) -> OptimizeError {
    instance.optimize(&[], &OptimizeOptions::default(), &|_| {}).await.unwrap_err()
}

/// Whether an index is there, and whole.
async fn state(client: &Client, index: &str) -> Option<bool> {
    let sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)";
    client.query_opt(sql, &[&index]).await.unwrap().map(|row| row.get(0))
}

/// The server's processes that build an index right now, each with whether it waits for others.
async fn builders(client: &Client) -> Vec<(i32, bool)> {
    let sql = "SELECT pid, phase LIKE 'waiting%' FROM pg_stat_progress_create_index
               WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Optimizes beside a transaction that has written to the table and stays open; returns once it waits for that.
async fn waiting(
    instance: &Changeover,
    client: &Client,
) -> (JoinHandle<Result<Vec<Optimized>, OptimizeError>>, i32) {
    let instance = instance.clone();
    let optimizing =
        tokio::spawn(async move { instance.optimize(&[], &OptimizeOptions::default(), &|_| {}).await });
    let pid = eventually(SOON, || async {
        builders(client).await.iter().find(|(_, waits)| *waits).map(|(pid, _)| *pid)
    })
    .await;
    (optimizing, pid)
}

const WRITE: &str =
    "UPDATE accounts_v1.accounts SET cents = cents WHERE id = (SELECT min(id) FROM accounts_v1.accounts)";
const WRITE_ANOTHER: &str = "SET lock_timeout = '30s';
    UPDATE accounts_v1.accounts SET cents = cents WHERE id = (SELECT max(id) FROM accounts_v1.accounts)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_live_tables_lack_is_built_beside_whoever_writes() {
    let (database, client, instance) = active(0.41).await;
    let there = optimize(&instance).await;
    assert_eq!((there.built.len(), there.concurrently, there.analyzed.len()), (0, false, 3));
    client.batch_execute(&format!("DROP INDEX {INDEX}")).await.unwrap();
    let mut writer = database.client().await;
    let open = writer.transaction().await.unwrap();
    open.batch_execute(WRITE).await.unwrap();
    let (optimizing, _) = waiting(&instance, &client).await;
    // While it waits, nobody waits for it; and it says that it is there.
    client.batch_execute(WRITE_ANOTHER).await.unwrap();
    let shown = eventually(SOON, || async {
        let replays = instance.status().await.unwrap().replays;
        replays.into_iter().find(|replay| replay.indexes.is_some())
    })
    .await;
    assert_eq!((&shown.purpose[..], &shown.phase[..]), ("optimize", "indexing"));
    assert_eq!((shown.indexes_built, shown.indexes), (Some(0), Some(1)));
    open.commit().await.unwrap();
    let done = timeout(SOON, optimizing).await.unwrap().unwrap().unwrap();
    assert_eq!((&done[0].built[..], done[0].concurrently), (&[INDEX.to_owned()][..], true));
    assert_eq!(state(&client, INDEX).await, Some(true));
    assert_eq!(optimize(&instance).await.built, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_half_built_is_built_anew() {
    let (database, client, instance) = active(0.42).await;
    let mut writer = database.client().await;
    for aborted in [false, true] {
        client.batch_execute(&format!("DROP INDEX {INDEX}")).await.unwrap();
        let open = writer.transaction().await.unwrap();
        open.batch_execute(WRITE).await.unwrap();
        let (optimizing, pid) = waiting(&instance, &client).await;
        if aborted {
            instance.abort_replays(&[accounts()], "ada").await.unwrap();
        } else {
            client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
        }
        let error = timeout(SOON, optimizing).await.unwrap().unwrap().unwrap_err();
        let expected = match &error {
            OptimizeError::Aborted { by, .. } => aborted && by == "ada",
            OptimizeError::Store(_) => !aborted,
            _ => false,
        };
        assert!(expected, "{error:?}");
        // Nobody goes on with it on the server either.
        eventually(SOON, || async { builders(&client).await.is_empty() }).await;
        assert_eq!(state(&client, INDEX).await, Some(false));
        open.commit().await.unwrap();
        assert_eq!(optimize(&instance).await.built, [INDEX]);
        assert_eq!(state(&client, INDEX).await, Some(true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_optimize_at_once_build_each_index_once() {
    let (_database, client, instance) = active(0.43).await;
    client.batch_execute(&format!("DROP INDEX {INDEX}")).await.unwrap();
    let (one, other) = tokio::join!(optimize(&instance), optimize(&instance));
    assert_eq!(one.built.len() + other.built.len(), 1, "{one:?} {other:?}");
    assert_eq!(state(&client, INDEX).await, Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_by_another_name_serves_and_another_one_by_the_same_name_is_named() {
    let (_database, client, instance) = active(0.44).await;
    client
        .batch_execute(&format!(
            "ALTER INDEX {INDEX} RENAME TO by_owner; CREATE INDEX mine ON accounts_v1.accounts (cents)"
        ))
        .await
        .unwrap();
    assert_eq!(optimize(&instance).await.built, [""; 0]);
    let another = "DROP INDEX accounts_v1.by_owner;
                   CREATE INDEX accounts_owner_idx ON accounts_v1.accounts (cents)";
    client.batch_execute(another).await.unwrap();
    let error = refused(&instance).await;
    assert!(matches!(&error, OptimizeError::OtherIndex { index, .. } if index == INDEX), "{error:?}");
    // What is nobody's definition is left alone.
    assert_eq!(state(&client, "accounts_v1.mine").await, Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_replayed_gets_what_it_lacks_and_one_that_is_in_its_bulk_nothing() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.45, 60_000).await;
    let instance = of::<2>(&database).await;
    assert!(matches!(
        instance.optimize(&[accounts()], &OptimizeOptions::default(), &|_| {}).await.unwrap_err(),
        OptimizeError::NotThere { .. }
    ));
    assert!(instance.optimize(&[], &OptimizeOptions::default(), &|_| {}).await.unwrap().is_empty());
    let crawling = {
        let instance = instance.clone();
        tokio::spawn(async move { instance.replay(&[accounts()], &with(slowly(2, 500)), &|_| {}).await })
    };
    let shards = "SELECT count(*) FROM changeover.checkpoints WHERE major = 2 AND shard > 0";
    eventually(SOON, || async { client.query_one(shards, &[]).await.unwrap().get::<_, i64>(0) == 2 }).await;
    assert!(matches!(refused(&instance).await, OptimizeError::InBulk { .. }));
    crawling.abort();
    let _ = crawling.await;
    let options =
        changeover::Pace { shards: Some(2), parallel_above_events: 0, ..changeover::Pace::default() };
    replay(&instance, &with(options)).await;
    replay(&instance, &serially()).await;
    let indexes = "DROP INDEX accounts_v2.accounts_owner_idx";
    client.batch_execute(indexes).await.unwrap();
    let built = optimize(&instance).await;
    assert_eq!(
        (&built.built[..], built.concurrently),
        (&["accounts_v2.accounts_owner_idx".to_owned()][..], false)
    );
    let phases = std::sync::Mutex::new(Vec::new());
    client.batch_execute(indexes).await.unwrap();
    let note = |progress: &changeover::ReplayProgress| {
        phases.lock().unwrap().push((progress.phase, progress.indexing));
    };
    let _ = instance.optimize(&[], &OptimizeOptions::default(), &note).await.unwrap();
    let phases = phases.into_inner().unwrap();
    let ends = (phases.first().unwrap(), phases.last().unwrap());
    assert_eq!((ends.0.0, ends.0.1.unwrap().built, ends.0.1.unwrap().of), (ReplayPhase::Indexing, 0, 1));
    assert_eq!(ends.1.1.unwrap().built, 1);
}

/// Two versions of one major: the second one defines indexes that the first did not.
struct Indexed<const MINOR: u64>;

impl<const MINOR: u64> SqlProjector for Indexed<MINOR> {
    const NAME: &'static str = "indexed";
    const VERSION: Version = Version::new(1, MINOR, 0);
    const TABLES: &'static str =
        "CREATE TABLE {schema}.\"Odd table\" (id bigint PRIMARY KEY, a text, b text)";
    const INDEXES: &'static str = match MINOR {
        0 => "",
        1 => {
            "CREATE INDEX ON {schema}.\"Odd table\" (lower(a)) WHERE b IS NOT NULL;
              CREATE INDEX \"By B\" ON {schema}.\"Odd table\" (b DESC, a)"
        }
        _ => "CREATE UNIQUE INDEX only_once ON {schema}.\"Odd table\" (a)",
    };
    type Event = ItemEvent;

    async fn project(&self, _: Batch<'_, ItemEvent>, _: &Transaction<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

async fn indexed<const MINOR: u64>(database: &Database) -> Changeover {
    instance(database, Configuration::new().sql(Indexed::<MINOR>).unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_that_a_minor_version_brings_along_are_built_and_a_unique_one_is_refused() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let first = indexed::<0>(&database).await;
    activate(&first).await;
    assert_eq!(optimize(&first).await.built, [""; 0]);
    let second = indexed::<1>(&database).await;
    let built = optimize(&second).await;
    let mut names = built.built.clone();
    names.sort_unstable();
    assert!(built.concurrently, "{built:?}");
    assert_eq!(names[0], "indexed_v1.\"By B\"");
    let sql = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indexrelid = to_regclass($1)";
    let definition: String = client.query_one(sql, &[&names[1]]).await.unwrap().get(0);
    let end = "ON indexed_v1.\"Odd table\" USING btree (lower(a)) WHERE (b IS NOT NULL)";
    assert!(definition.ends_with(end), "{definition}");
    assert_eq!(optimize(&second).await.built, [""; 0]);
    let third = indexed::<2>(&database).await;
    let error = refused(&third).await;
    assert!(
        matches!(&error, OptimizeError::Unique { index, .. } if index == "indexed_v1.only_once"),
        "{error:?}"
    );
    // Nothing is left of looking at what is defined.
    let sql = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%_define_%'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
}
