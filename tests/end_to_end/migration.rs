//! Our own schema: brought up to date by anybody at any time, and refused where it does not fit.

use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    AppendError, Changeover, Configuration, ConfigurationError, ConnectError, Expected, FoldProjector,
    MigrateError, ReadyState, Refused, SchemaName, WaitError,
};
use changeover_testkit::{Database, eventually};
use tokio::task::JoinSet;

use crate::orders::{Order, OrderEvent, Orders1, placed, stream};
use crate::releases::{SOON, active, release};

/// The newest version of the schema: there is a file for each.
fn newest() -> i32 {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/sql")).unwrap();
    i32::try_from(files.count()).unwrap()
}

fn builder(database: &Database) -> changeover::Builder {
    Changeover::builder(database.config()).configuration(release("1.0.0"))
}

async fn twenty(database: &Database) -> Vec<Vec<i32>> {
    let mut migrating = JoinSet::new();
    for _ in 0..20 {
        let builder = builder(database);
        migrating.spawn(async move { builder.migrate().await.unwrap() });
    }
    let mut applied = tokio::time::timeout(SOON, migrating.join_all()).await.expect("migrators hang");
    applied.sort();
    applied
}

#[tokio::test]
async fn twenty_concurrent_migrators_all_succeed_and_one_of_them_did_the_work() {
    let database = Database::fresh().await;
    let mut expected = vec![Vec::new(); 19];
    expected.push((1..=newest()).collect::<Vec<_>>());
    assert_eq!(twenty(&database).await, expected);
    // Whoever runs is told to decide anew, once.
    let client = database.client().await;
    let generation = async || -> i64 {
        client.query_one("SELECT last_value FROM changeover.generation", &[]).await.unwrap().get(0)
    };
    let set = generation().await;
    assert!(set > 1 << 20, "{set}");
    assert_eq!(twenty(&database).await, vec![Vec::<i32>::new(); 20]);
    assert_eq!(generation().await, set);
    builder(&database).connect().await.unwrap();
}

#[tokio::test]
async fn migrators_do_not_deadlock_with_an_index_that_is_built_concurrently() {
    let database = Database::fresh().await;
    let (writer, builder, observer) =
        (database.client().await, database.client().await, database.client().await);
    writer.batch_execute("CREATE TABLE elsewhere (n integer)").await.unwrap();
    writer.batch_execute("BEGIN; INSERT INTO elsewhere VALUES (1)").await.unwrap();
    let building = tokio::spawn(async move {
        // It waits for every older snapshot of the database, twice.
        builder.batch_execute("CREATE INDEX CONCURRENTLY slow ON elsewhere (n)").await
    });
    let waiting = "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index
                   WHERE datname = current_database() AND phase LIKE 'waiting%')";
    eventually(SOON, || async { observer.query_one(waiting, &[]).await.unwrap().get::<_, bool>(0) }).await;

    let applied = twenty(&database).await;
    assert_eq!(applied.last().unwrap().len(), usize::try_from(newest()).unwrap());
    assert!(!building.is_finished(), "nothing was built meanwhile, so nothing was tested");

    // And with the index on its way through its other phases.
    let (again, committed) = tokio::join!(twenty(&database), writer.batch_execute("COMMIT"));
    committed.unwrap();
    assert_eq!(again.len(), 20);
    tokio::time::timeout(SOON, building).await.expect("the index hangs").unwrap().unwrap();
}

#[tokio::test]
async fn migrators_that_wait_for_one_that_is_slow_do_not_hold_up_an_index_that_is_built_concurrently() {
    let database = Database::fresh().await;
    let (slow, builder) = (database.client().await, database.client().await);
    builder.batch_execute("CREATE TABLE elsewhere (n integer)").await.unwrap();
    let lock = "SELECT pg_advisory_lock(hashtextextended('changeover migrations of changeover', 0))";
    slow.batch_execute(lock).await.unwrap();
    let migrating = twenty(&database);
    let building = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND (query LIKE '%advisory_xact_lock%' AND pid <> pg_backend_pid() OR query = 'ROLLBACK; BEGIN')";
        eventually(SOON, || async { builder.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) >= 20 })
            .await;
        for n in 0..5 {
            builder
                .batch_execute(&format!("CREATE INDEX CONCURRENTLY slow_{n} ON elsewhere (n)"))
                .await
                .unwrap();
        }
        slow.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    };
    let (applied, ()) = tokio::join!(migrating, building);
    assert_eq!(applied.last().unwrap().len(), usize::try_from(newest()).unwrap());
}

#[tokio::test]
async fn two_schemas_in_one_database_are_independent() {
    let database = Database::fresh().await;
    let mut instances = Vec::new();
    // Read models have names of their own in the database, so the two applications do not share a projector.
    for (schema, name) in [("first", "1.0.0"), ("second_one", "totals")] {
        let builder = Changeover::builder(database.config())
            .configuration(release(name))
            .schema(schema.parse().unwrap());
        assert_eq!(builder.migrate().await.unwrap().len(), usize::try_from(newest()).unwrap());
        instances.push(builder.connect().await.unwrap());
    }
    let events = [placed("Ada"), OrderEvent::Paid];
    instances[0].append(&stream("a"), Expected::NoStream, &events).await.unwrap();
    instances[1].append(&stream("a"), Expected::NoStream, &events[..1]).await.unwrap();
    let client = database.client().await;
    for (schema, events, projector) in [("first", 2_i64, "orders"), ("second_one", 1, "totals")] {
        let sql = format!(
            "SELECT (SELECT count(*) FROM {schema}.events), (SELECT string_agg(projector, ',') FROM {schema}.projector_states)"
        );
        let row = client.query_one(&sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (events, projector), "{schema}");
    }
    let there = client.query_one("SELECT to_regnamespace('changeover') IS NULL", &[]).await.unwrap();
    assert!(there.get::<_, bool>(0), "the default schema was made although nobody asked for it");
}

#[tokio::test]
async fn a_host_keeps_its_own_refinery_table() {
    let database = Database::fresh().await;
    let client = database.client().await;
    client
        .batch_execute(
            "CREATE TABLE refinery_schema_history (version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255));
             INSERT INTO refinery_schema_history VALUES (1, 'of_the_host', '2026-01-01T00:00:00Z', '4711')",
        )
        .await
        .unwrap();
    assert_eq!(builder(&database).migrate().await.unwrap().len(), usize::try_from(newest()).unwrap());
    let kept =
        client.query("SELECT version, name, checksum FROM refinery_schema_history", &[]).await.unwrap();
    let kept: Vec<(i32, &str, &str)> = kept.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(kept, [(1, "of_the_host", "4711")]);
    let ours = client.query_one("SELECT count(*)::integer FROM changeover.migrations", &[]).await.unwrap();
    assert_eq!(ours.get::<_, i32>(0), newest());
}

#[tokio::test]
async fn a_newer_schema_that_breaks_nothing_is_fine() {
    let database = Database::fresh().await;
    builder(&database).migrate().await.unwrap();
    database
        .client()
        .await
        .batch_execute(
            "INSERT INTO changeover.migrations SELECT 99, 'of_the_next_release', applied_on, '1' FROM changeover.migrations WHERE version = 1;
             ALTER TABLE changeover.events ADD COLUMN of_the_next_release text;
             ALTER TABLE changeover.projector_states ADD COLUMN of_the_next_release text;
             ALTER TABLE changeover.checkpoints ADD COLUMN of_the_next_release text",
        )
        .await
        .unwrap();
    assert_eq!(builder(&database).migrate().await.unwrap(), Vec::<i32>::new());
    let instance = builder(&database).connect().await.unwrap();
    let last = crate::orders::place(&instance, "order", 2).await.last().unwrap();
    let running = instance.start();
    instance.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_newer_schema_that_breaks_this_release_is_refused_by_name() {
    let database = Database::fresh().await;
    builder(&database).migrate().await.unwrap();
    let client = database.client().await;
    client.batch_execute("UPDATE changeover.compatibility SET needs = 99").await.unwrap();
    let refused = builder(&database).migrate().await.unwrap_err();
    let fits = |error: &MigrateError| {
        assert!(
            matches!(error, MigrateError::SchemaIsNewer { needs: 99, ours, .. } if *ours == newest()),
            "{error:?}"
        );
        assert!(error.to_string().contains("upgrade the application"), "{error}");
    };
    fits(&refused);
    let Err(ConnectError::Schema(refused)) = builder(&database).connect().await else {
        panic!("it connected")
    };
    fits(&refused);
    // Nothing was touched on the way: once it fits again it works.
    client.batch_execute("UPDATE changeover.compatibility SET needs = 1").await.unwrap();
    builder(&database).connect().await.unwrap();
}

/// Its stable views would stand among the tables of the projector `orders`.
struct NamedLikeASchema;

impl FoldProjector for NamedLikeASchema {
    const NAME: &'static str = "orders_v1";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order,);
}

#[tokio::test]
async fn no_projector_shares_a_schema_with_another_one_or_with_ours() {
    let orders = || Configuration::new().fold(Orders1).unwrap();
    let both =
        [orders().fold(NamedLikeASchema), Configuration::new().fold(NamedLikeASchema).unwrap().fold(Orders1)];
    for refused in both {
        let error = refused.unwrap_err();
        assert!(
            matches!(&error, ConfigurationError::SchemaTaken { views, tables }
                if views.as_str() == "orders_v1" && tables.as_str() == "orders"),
            "{error:?}"
        );
    }
    let database = Database::fresh().await;
    for (schema, fits) in [("orders", false), ("orders_v7", false), ("orders_x", true)] {
        let builder =
            Changeover::builder(database.config()).schema(schema.parse().unwrap()).configuration(orders());
        builder.migrate().await.unwrap();
        match builder.connect().await {
            Ok(_) => assert!(fits, "{schema}"),
            Err(ConnectError::SchemaTaken { projector, schema: taken }) => {
                assert_eq!((projector.as_str(), &taken[..], fits), ("orders", schema, false));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn an_instance_that_runs_stops_when_its_schema_becomes_one_that_it_cannot_work_with() {
    let database = Database::fresh().await;
    builder(&database).migrate().await.unwrap();
    let instance = builder(&database).connect().await.unwrap();
    let running = instance.start();
    let last = crate::orders::place(&instance, "order", 2).await.last().unwrap();
    let orders = "orders".parse().unwrap();
    instance.wait_for(&orders, last, SOON).await.unwrap();
    // What the migration of a later release does, in this order.
    let client = database.client().await;
    let migrated = async |needs: i32| {
        let sql = format!("UPDATE changeover.compatibility SET needs = {needs}");
        client.batch_execute(&sql).await.unwrap();
        let sql = "SELECT setval('changeover.generation', last_value + 1) FROM changeover.generation";
        client.query_one(sql, &[]).await.unwrap();
    };
    migrated(99).await;
    let again = [placed("Ada")];
    let refused = instance.append(&stream("late"), Expected::Any, &again).await.unwrap_err();
    assert!(
        matches!(&refused, AppendError::Refused(Refused::SchemaIsNewer { needs: 99, ours, .. }) if *ours == newest()),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("schema changeover is at version"), "{refused}");
    eventually(SOON, || async { instance.readiness().state == ReadyState::Retired }).await;
    let reason = instance.readiness().reason;
    assert!(reason.contains("needs a release that knows version 99"), "{reason}");
    // Nothing is published by it either: not what the later release appends meanwhile.
    let insert = "INSERT INTO changeover.events (position, stream, revision, type, data)
                  SELECT nextval('changeover.event_position'), 'theirs', 1, type, data FROM changeover.events LIMIT 1";
    client.execute(insert, &[]).await.unwrap();
    let short = Duration::from_millis(200);
    let newest = instance.horizon().await.unwrap();
    let waited = instance.wait_for(&orders, newest, short).await.unwrap_err();
    assert!(matches!(waited, WaitError::Timeout { at, .. } if at == last), "{waited:?}");
    // Should it be undone, it goes on.
    migrated(1).await;
    instance.wait_for(&orders, newest, SOON).await.unwrap();
    instance.append(&stream("late"), Expected::Any, &again).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn an_older_or_missing_schema_names_the_command() {
    let database = Database::fresh().await;
    let older = |result: Result<Changeover, ConnectError>, was: i32| {
        let Err(ConnectError::Schema(error)) = result else { panic!("it connected") };
        assert!(
            matches!(error, MigrateError::SchemaIsOlder { found, ours, .. } if (found, ours) == (was, newest()))
        );
        assert!(error.to_string().contains("run `changeover migrate`"), "{error}");
    };
    older(builder(&database).connect().await, 0);
    let there =
        database.client().await.query_one("SELECT to_regnamespace('changeover') IS NULL", &[]).await.unwrap();
    assert!(there.get::<_, bool>(0), "connecting made a schema");
    builder(&database).migrate().await.unwrap();
    let client = database.client().await;
    client.batch_execute("DELETE FROM changeover.migrations WHERE version > 1").await.unwrap();
    older(builder(&database).connect().await, 1);
}

#[tokio::test]
async fn a_diverged_migration_is_refused_and_nothing_is_applied() {
    let database = Database::fresh().await;
    builder(&database).migrate().await.unwrap();
    let client = database.client().await;
    client
        .batch_execute(
            "UPDATE changeover.migrations SET checksum = '4711' WHERE version = 1; DELETE FROM changeover.migrations WHERE version > 1",
        )
        .await
        .unwrap();
    let refused = builder(&database).migrate().await.unwrap_err();
    assert!(matches!(refused, MigrateError::Migration { .. }), "{refused:?}");
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("V1__log"), "{why}");
    let count = client.query_one("SELECT count(*) FROM changeover.migrations", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_migrator_that_dies_leaves_no_lock_behind() {
    let database = Database::fresh().await;
    let mut dead = JoinSet::new();
    for _ in 0..8 {
        let builder = builder(&database);
        dead.spawn(async move { builder.migrate().await.map(drop) });
    }
    tokio::time::timeout(Duration::from_millis(30), dead.join_next()).await.ok();
    dead.shutdown().await;
    twenty(&database).await;
    let instance = builder(&database).connect().await.unwrap();
    crate::orders::place(&instance, "order", 1).await;
    assert_eq!(active(&database.client().await).await, "orders 1.0.0");
}

/// A schema's name stands in SQL without quotes. Whichever words this server reserves are refused before that.
#[tokio::test]
async fn a_schema_is_named_by_any_word_that_sql_does_not_reserve() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let sql = "SELECT word, catcode IN ('R', 'T') AS reserved FROM pg_get_keywords() ORDER BY word";
    let mut usable = Vec::new();
    for row in client.query(sql, &[]).await.unwrap() {
        let (word, reserved): (&str, bool) = (row.get("word"), row.get("reserved"));
        let named = word.parse::<SchemaName>();
        assert_eq!(named.is_err(), reserved, "{word}");
        usable.extend(named.ok());
    }
    for name in &usable {
        let sql = format!(
            "CREATE SCHEMA {name}; CREATE TABLE {name}.t (a integer); INSERT INTO {name}.t AS t VALUES (1);
             UPDATE {name}.t SET a = 2; SELECT t.a FROM {name}.t t JOIN LATERAL (SELECT FROM {name}.t) u ON true;
             SELECT '{name}.t'::regclass; DROP TABLE {name}.t; DROP SCHEMA {name}"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    // Reserved by some dialects of SQL, and not by this one.
    let builder = builder(&database).schema("values".parse().unwrap());
    builder.migrate().await.unwrap();
    let changeover = builder.connect().await.unwrap();
    changeover.append(&stream("s"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let sql = "SELECT count(*) FROM values.events";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1);
}
