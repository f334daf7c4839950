//! Pruning: what may go goes whole, and whatever may not is named and left alone.

use std::time::{Duration, Instant};

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Fate, NotPruned, PruneError, PruneOptions, Pruned,
    RollbackError, SqlProjector, Transaction, WhyNotPruned,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::orders::{ItemEvent, instance, place};
use crate::releases::{SOON, active, hasty, instance_of, release, replay_one, wrong_rows};
use crate::traps::{activate, published};

pub(crate) fn keeping(keep: usize) -> PruneOptions {
    PruneOptions { requested_by: "gardener".to_owned(), keep, wait: Duration::from_millis(300) }
}

pub(crate) async fn prune(instance: &Changeover, keep: usize) -> Pruned {
    instance.prune(&keeping(keep)).await.unwrap()
}

/// What is left of one prune that could not drop what was due.
async fn left(instance: &Changeover, keep: usize) -> Vec<NotPruned> {
    match instance.prune(&keeping(keep)).await.unwrap_err() {
        PruneError::Left { left, .. } => left,
        error => panic!("{error:?}"),
    }
}

fn schemas(pruned: &Pruned) -> Vec<&str> {
    pruned.dropped.iter().map(|tables| tables.schema.as_str()).collect()
}

/// The schemas with tables, and the major versions with states and with checkpoints: all three must agree.
pub(crate) async fn there(client: &Client) -> Vec<String> {
    let names = async |sql: &str| -> Vec<String> {
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let schemas = names(
        "SELECT DISTINCT table_schema::text FROM information_schema.tables WHERE table_schema ~ '_v[0-9]+$' ORDER BY 1",
    )
    .await;
    let states = names(
        "SELECT DISTINCT projector || '_v' || split_part(version, '.', 1) FROM changeover.projector_states ORDER BY 1",
    )
    .await;
    let checkpoints =
        names("SELECT DISTINCT projector || '_v' || major FROM changeover.checkpoints ORDER BY 1").await;
    assert_eq!(states, schemas, "versions without tables, or tables without a version");
    assert_eq!(checkpoints, schemas, "checkpoints without tables, or tables without a checkpoint");
    schemas
}

/// Three releases, one after the other; the third is active.
async fn three_releases() -> (Database, Client, [Changeover; 3]) {
    let database = Database::fresh().await;
    let client = database.client().await;
    let one = instance_of(&database, "1.0.0").await;
    place(&one, "first", 1).await;
    let two = instance_of(&database, "2.0.0").await;
    activate(&two).await;
    place(&two, "second", 1).await;
    let three = instance_of(&database, "3.0.0").await;
    activate(&three).await;
    place(&three, "third", 1).await;
    (database, client, [one, two, three])
}

#[tokio::test]
async fn the_newest_retired_versions_are_kept_and_the_others_go_whole() {
    let (_database, client, [_, two, three]) = three_releases().await;
    for keep in [2, 3, 100] {
        assert!(prune(&three, keep).await.dropped.is_empty(), "{keep}");
    }
    let before = there(&client).await;
    assert_eq!(before, ["orders_v1", "orders_v2", "orders_v3"]);
    let plan = three.plan_prune(1).await.unwrap();
    let fates: Vec<(&str, &Fate)> = plan.tables.iter().map(|own| (own.schema.as_str(), &own.fate)).collect();
    assert_eq!(fates, [("orders_v2", &Fate::Newest), ("orders_v1", &Fate::Drop)]);
    assert!(plan.tables[1].bytes > 0 && plan.tables[1].versions == [Version::new(1, 0, 0)], "{plan:?}");
    assert_eq!(there(&client).await, before, "a plan drops something");

    let pruned = prune(&three, 1).await;
    assert_eq!(schemas(&pruned), ["orders_v1"]);
    assert_eq!(plan.lost.len(), 1);
    assert!(!pruned.lost[0].before && pruned.lost[0].configuration == plan.lost[0].configuration);
    assert!(pruned.lost[0].configuration == release("1.0.0").versions());
    assert_eq!(there(&client).await, ["orders_v2", "orders_v3"]);
    assert!(prune(&three, 1).await.dropped.is_empty(), "what is gone is gone");

    // The way back leads to what was kept.
    let _ = two.rollback(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    activate(&three).await;
    let pruned = prune(&three, 0).await;
    assert_eq!((schemas(&pruned), pruned.lost[0].before), (vec!["orders_v2"], true));
    assert_eq!(there(&client).await, ["orders_v3"]);
    place(&three, "fourth", 1).await;
    let running = three.start();
    published(&three, "orders").await;
    assert_eq!(wrong_rows(&client, "orders_v3").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn what_retired_last_counts_as_the_newest_whatever_its_number() {
    let (_database, client, [_, two, three]) = three_releases().await;
    let _ = two.rollback(&hasty(), &|_| {}).await.unwrap();
    // Retired are 1 and, lately, 3.
    assert_eq!(schemas(&prune(&two, 1).await), ["orders_v1"]);
    activate(&three).await;
    let _ = two.rollback(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(active(&client).await, "orders 2.0.0");
}

#[tokio::test]
async fn a_pruned_version_is_replayed_from_the_beginning_if_somebody_wants_it_again() {
    let (_database, client, [one, two, three]) = three_releases().await;
    let _ = prune(&three, 0).await;
    let error = two.rollback(&hasty(), &|_| {}).await.unwrap_err();
    let RollbackError::Gone(gone) = &error else { panic!("{error}") };
    assert_eq!(gone[0].pruned_by.as_deref(), Some("gardener"));
    assert!(
        error.to_string().contains("the tables of orders 2.0.0 (orders_v2) are gone: gardener pruned them"),
        "{error}"
    );
    assert_eq!(active(&client).await, "orders 3.0.0");
    for build in [&one, &two] {
        activate(build).await;
        place(build, &format!("again-{}", build.instance_id()), 1).await;
        let running = build.start();
        published(build, "orders").await;
        running.stop().await;
    }
    assert_eq!((wrong_rows(&client, "orders_v2").await, there(&client).await.len()), (0, 3));
}

/// Things of somebody else's that stand on the tables of `orders` 1 or among them: how they are made, what they are called,
/// and how they go again.
const FOREIGN: &[(&str, &str, &str)] = &[
    (
        "CREATE VIEW public.report AS SELECT customer, count(*) FROM orders_v1.orders GROUP BY 1",
        "view public.report depends on them",
        "DROP VIEW public.report",
    ),
    (
        "CREATE MATERIALIZED VIEW public.report AS SELECT id FROM orders_v1.orders",
        "materialized view public.report depends on them",
        "DROP MATERIALIZED VIEW public.report",
    ),
    (
        "CREATE TABLE public.notes (about text CONSTRAINT about_order REFERENCES orders_v1.orders (id))",
        "table constraint about_order on public.notes depends on them",
        "DROP TABLE public.notes",
    ),
    (
        "CREATE FUNCTION public.latest() RETURNS SETOF orders_v1.orders LANGUAGE sql AS 'SELECT * FROM orders_v1.orders'",
        "function public.latest() depends on them",
        "DROP FUNCTION public.latest()",
    ),
    (
        "CREATE FUNCTION public.how_many() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM orders_v1.orders; END",
        "function public.how_many() depends on them",
        "DROP FUNCTION public.how_many()",
    ),
    (
        "CREATE TABLE public.copies (the_order orders_v1.orders)",
        "table column public.copies.the_order depends on them",
        "DROP TABLE public.copies",
    ),
    (
        "CREATE TABLE public.heirs () INHERITS (orders_v1.orders)",
        "table public.heirs depends on them",
        "DROP TABLE public.heirs",
    ),
    (
        "CREATE STATISTICS public.about_orders ON customer, paid FROM orders_v1.orders",
        "statistics object public.about_orders depends on them",
        "DROP STATISTICS public.about_orders",
    ),
    (
        "CREATE PUBLICATION feed FOR TABLE orders_v1.orders",
        "publication relation orders_v1.orders in publication feed depends on them",
        "DROP PUBLICATION feed",
    ),
    (
        "CREATE VIEW orders_v1.paid AS SELECT id FROM orders_v1.orders WHERE paid",
        "view orders_v1.paid is among them and was not made by the projector",
        "DROP VIEW orders_v1.paid",
    ),
    (
        "CREATE TABLE orders_v1.notes (note text)",
        "table orders_v1.notes is among them and was not made by the projector",
        "DROP TABLE orders_v1.notes",
    ),
    (
        "CREATE FUNCTION orders_v1.one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "routine orders_v1.one() is among them and was not made by the projector",
        "DROP FUNCTION orders_v1.one()",
    ),
    (
        "CREATE TYPE orders_v1.mood AS ENUM ('good')",
        "type orders_v1.mood is among them and was not made by the projector",
        "DROP TYPE orders_v1.mood",
    ),
];

#[tokio::test]
async fn what_stands_on_the_tables_or_among_them_is_named_and_the_schema_stays_whole() {
    let (_database, client, [_, _, three]) = three_releases().await;
    let rows = "SELECT count(*) FROM orders_v1.orders";
    let before: i64 = client.query_one(rows, &[]).await.unwrap().get(0);
    for (make, expected, drop) in FOREIGN {
        client.batch_execute(make).await.unwrap();
        let plan = three.plan_prune(0).await.unwrap();
        let fate = &plan.tables.iter().find(|own| own.major == 1).unwrap().fate;
        let Fate::InTheWay(planned) = fate else { panic!("{make}: {fate:?}") };
        assert_eq!(planned.iter().map(ToString::to_string).collect::<Vec<_>>(), [*expected], "{make}");
        let left = left(&three, 1).await;
        let WhyNotPruned::InTheWay(found) = &left[0].why else { panic!("{make}: {left:?}") };
        assert_eq!((left.len(), found), (1, planned), "{make}");
        assert!(left[0].to_string().contains("drop that or move it elsewhere first"), "{}", left[0]);
        assert_eq!(client.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), before, "{make}");
        client.batch_execute(drop).await.unwrap();
    }
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2", "orders_v3"]);
    // Indexes and statistics by hand are part of the tables: they go along.
    client
        .batch_execute(
            "CREATE INDEX by_hand ON orders_v1.orders (cents); CREATE STATISTICS orders_v1.by_hand ON customer, paid FROM orders_v1.orders",
        )
        .await
        .unwrap();
    // One that cannot go holds up none that can.
    client.batch_execute("CREATE VIEW public.report AS SELECT id FROM orders_v2.orders").await.unwrap();
    let PruneError::Left { pruned, left } = three.prune(&keeping(0)).await.unwrap_err() else { panic!() };
    assert_eq!((schemas(&pruned), left.len(), left[0].major), (vec!["orders_v1"], 1, 2));
    assert_eq!(pruned.lost.len(), 1, "the one that needs what is left is not lost: {pruned:?}");
    assert!(pruned.lost[0].configuration == release("1.0.0").versions());
    assert_eq!(there(&client).await, ["orders_v2", "orders_v3"]);
}

/// Owns about everything that a projector's DDL can make, in a tangle.
struct Tangle;

impl SqlProjector for Tangle {
    const NAME: &'static str = "tangle";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "CREATE TYPE {schema}.mood AS ENUM ('good', 'bad');
        CREATE DOMAIN {schema}.cents AS bigint CHECK (VALUE >= 0);
        CREATE TYPE {schema}.span AS RANGE (subtype = bigint);
        CREATE TYPE {schema}.pair AS (a integer, b {schema}.mood);
        CREATE SEQUENCE {schema}.numbers;
        CREATE FUNCTION {schema}.next() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
        CREATE TABLE {schema}.heads (
            id bigint PRIMARY KEY DEFAULT {schema}.next(), mood {schema}.mood, pair {schema}.pair, span {schema}.span,
            thing text REFERENCES public.things (id), number bigint DEFAULT nextval('{schema}.numbers'));
        CREATE TABLE {schema}.tails (
            id bigserial PRIMARY KEY, head bigint REFERENCES {schema}.heads (id), cents {schema}.cents,
            made bigint GENERATED ALWAYS AS IDENTITY);
        ALTER TABLE {schema}.heads ADD COLUMN tail bigint REFERENCES {schema}.tails (id);
        CREATE TABLE {schema}.days (day integer) PARTITION BY RANGE (day);
        CREATE TABLE {schema}.day1 PARTITION OF {schema}.days FOR VALUES FROM (1) TO (2);
        CREATE VIEW {schema}.both AS SELECT h.id, {schema}.next() AS n FROM {schema}.heads h JOIN {schema}.tails t ON t.head = h.id;
        CREATE MATERIALIZED VIEW {schema}.moods AS SELECT mood FROM {schema}.heads;
        CREATE FUNCTION {schema}.of_view() RETURNS SETOF {schema}.both LANGUAGE sql AS 'SELECT * FROM {schema}.both';
        CREATE FUNCTION {schema}.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER note BEFORE INSERT ON {schema}.tails FOR EACH ROW EXECUTE FUNCTION {schema}.note()";
    type Event = ItemEvent;

    async fn project(&self, batch: Batch<'_, ItemEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let sql = batch.sql("INSERT INTO {schema}.heads (mood) VALUES ('good') ON CONFLICT DO NOTHING");
        tx.query_typed(&sql, &[]).await?;
        Ok(())
    }
}

#[tokio::test]
async fn whatever_the_projectors_own_ddl_made_goes_and_nothing_of_anybody_elses() {
    let database = Database::fresh().await;
    let client = database.client().await;
    client
        .batch_execute("CREATE TABLE public.things (id text PRIMARY KEY); INSERT INTO things VALUES ('a')")
        .await
        .unwrap();
    let build = instance(&database, Configuration::new().sql(Tangle).unwrap()).await;
    place(&build, "first", 2).await;
    let tangle = "tangle".parse().unwrap();
    let running = build.start();
    published(&build, "tangle").await;
    running.stop().await;
    let _ = build.deactivate(&tangle, &hasty()).await.unwrap();
    // The table that ours refer to is somebody else's, and being read: its lock is needed for a moment, and not queued for.
    let reader = database.client().await;
    reader.batch_execute("BEGIN; SELECT * FROM public.things").await.unwrap();
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let found = left(&build, 0).await;
    let WhyNotPruned::Blocked { blockers, .. } = &found[0].why else { panic!("{found:?}") };
    assert_eq!(blockers.iter().map(|one| one.pid).collect::<Vec<_>>(), [Some(pid)]);
    assert_eq!(there(&client).await, ["tangle_v1"]);
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(schemas(&prune(&build, 0).await), ["tangle_v1"]);
    assert_eq!(there(&client).await, [""; 0]);
    let gone = client
        .query_one("SELECT to_regnamespace('tangle_v1') IS NULL, (SELECT count(*) FROM things)", &[])
        .await
        .unwrap();
    assert_eq!((gone.get::<_, bool>(0), gone.get::<_, i64>(1)), (true, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_is_named_and_nobody_queues_up_behind_the_prune() {
    let (database, client, [_, _, three]) = three_releases().await;
    let reader = database.client().await;
    reader
        .batch_execute("SET application_name = 'nightly report'; BEGIN; SELECT * FROM orders_v1.orders")
        .await
        .unwrap();
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let pruning = {
        let three = three.clone();
        tokio::spawn(async move {
            three.prune(&PruneOptions { wait: Duration::from_secs(2), ..keeping(1) }).await.unwrap_err()
        })
    };
    // Whoever else reads goes on as if nothing were.
    let other = database.client().await;
    other.batch_execute("SET lock_timeout = '20ms'").await.unwrap();
    let mut looks = 0;
    while !pruning.is_finished() {
        other.query("SELECT count(*) FROM orders_v1.orders", &[]).await.expect("it waits behind the prune");
        looks += 1;
    }
    assert!(looks > 100, "only {looks} looks");
    let error = pruning.await.unwrap();
    let PruneError::Left { left, .. } = &error else { panic!("{error:?}") };
    let WhyNotPruned::Blocked { blockers, after_secs } = &left[0].why else { panic!("{left:?}") };
    // The oldest first: the other reader comes and goes.
    assert_eq!(blockers[0].pid, Some(pid), "{blockers:?}");
    assert!(*after_secs >= 2.0, "{after_secs}");
    let said = error.to_string();
    assert!(said.contains(&format!("pid {pid} (nightly report) holds locks on the tables for ")), "{said}");
    assert_eq!(there(&client).await.len(), 3);

    // One that ends in time is waited for.
    let pruning = {
        let three = three.clone();
        tokio::spawn(async move { three.prune(&PruneOptions { wait: SOON, ..keeping(1) }).await.unwrap() })
    };
    let tried =
        "SELECT FROM pg_stat_activity WHERE query LIKE 'LOCK TABLE%' AND datname = current_database()";
    eventually(SOON, || async { !client.query(tried, &[]).await.unwrap().is_empty() }).await;
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(schemas(&pruning.await.unwrap()), ["orders_v1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_tables_for_long_can_hold_them_without_holding_up_their_publisher() {
    let (database, client, [_, _, three]) = three_releases().await;
    let comparing = database.client().await;
    comparing.batch_execute("BEGIN; SELECT FROM changeover.checkpoints FOR KEY SHARE").await.unwrap();
    let pid: i32 = comparing.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    // The live version is published to as ever.
    let running = three.start();
    place(&three, "fifth", 2).await;
    published(&three, "orders").await;
    running.stop().await;
    let found = left(&three, 1).await;
    let WhyNotPruned::Blocked { blockers, .. } = &found[0].why else { panic!("{found:?}") };
    assert!(blockers.iter().any(|one| one.pid == Some(pid)), "{blockers:?}");
    assert_eq!(there(&client).await.len(), 3);
    comparing.batch_execute("COMMIT").await.unwrap();
    assert_eq!(schemas(&prune(&three, 1).await), ["orders_v1"]);
}

/// A prune that has made its plan, and waits until the transaction that comes along ends.
async fn held_after_its_plan(
    database: &Database,
    build: &Changeover,
    keep: usize,
) -> (Client, tokio::task::JoinHandle<Result<Pruned, PruneError>>) {
    let lock = database.client().await;
    lock.batch_execute(
        "BEGIN; SELECT pg_advisory_xact_lock('changeover.instances'::regclass::oid::integer, 0)",
    )
    .await
    .unwrap();
    let build = build.clone();
    let pruning = tokio::spawn(async move { build.prune(&keeping(keep)).await });
    let client = database.client().await;
    let waits =
        "SELECT FROM pg_stat_activity WHERE query LIKE '-- lock_registration%' AND wait_event_type = 'Lock'
                 AND datname = current_database()";
    eventually(SOON, || async { !client.query(waits, &[]).await.unwrap().is_empty() }).await;
    (lock, pruning)
}

#[tokio::test]
async fn tables_that_another_version_wants_since_the_plan_was_made_stay() {
    let (database, client, [_, _, three]) = three_releases().await;
    let (lock, pruning) = held_after_its_plan(&database, &three, 1).await;
    // A minor version of the same tables, as a release would register it that goes back and mends something.
    client
        .batch_execute(
            "INSERT INTO changeover.projector_states (projector, version, state, delivery, fingerprint, changed_by)
             VALUES ('orders', '1.1.0', 'replaying', 'background', 'f', 'test')",
        )
        .await
        .unwrap();
    lock.batch_execute("ROLLBACK").await.unwrap();
    let Err(PruneError::Left { left, .. }) = pruning.await.unwrap() else { panic!("it was dropped") };
    assert_eq!((left.len(), &left[0].why), (1, &WhyNotPruned::InUse));
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2", "orders_v3"]);
}

#[tokio::test]
async fn what_a_live_instance_follows_is_not_dropped_under_it() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    place(&old, "first", 1).await;
    let running = old.start();
    let options = changeover::ActivateOptions { keep_following: true, ..hasty() };
    let _ = new.activate(&options, &|_| {}).await.unwrap();
    let seen = "SELECT FROM changeover.instances WHERE readiness = 'retired'";
    eventually(SOON, || async { !client.query(seen, &[]).await.unwrap().is_empty() }).await;
    let found = left(&new, 0).await;
    assert_eq!(found[0].why, WhyNotPruned::Followed { instances: 1 });
    assert!(found[0].to_string().contains("stop those first"), "{}", found[0]);
    // It is decided where it counts, not where it was planned: it is followed only after the plan was made.
    let follow = async |follow: bool| {
        let sql = "UPDATE changeover.projector_states SET follow = $1 WHERE version = '1.0.0'";
        assert_eq!(client.execute(sql, &[&follow]).await.unwrap(), 1);
    };
    follow(false).await;
    let (lock, pruning) = held_after_its_plan(&database, &new, 0).await;
    follow(true).await;
    lock.batch_execute("ROLLBACK").await.unwrap();
    let Err(PruneError::Left { left, .. }) = pruning.await.unwrap() else { panic!("it was dropped") };
    assert_eq!(left[0].why, WhyNotPruned::Followed { instances: 1 });
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2"]);
    running.stop().await;
    assert_eq!(schemas(&prune(&new, 0).await), ["orders_v1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_version_that_is_wanted_again_while_it_is_pruned_is_there_whole_or_made_anew() {
    let (database, client, [one, two, three]) = three_releases().await;
    let orders: changeover::ProjectorName = "orders".parse().unwrap();
    let (mut pruned_first, mut wanted_first) = (0, 0);
    for round in 0..4 {
        // Both wait at the same lock; who comes first is as good as chance.
        let mut locker = database.client().await;
        let lock = locker.transaction().await.unwrap();
        let registration = "SELECT pg_advisory_xact_lock('changeover.instances'::regclass::oid::integer, 0)";
        lock.execute(registration, &[]).await.unwrap();
        let waiting = async |count: i64| {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND wait_event_type = 'Lock' AND query LIKE '-- lock_registration%'";
            eventually(SOON, || async {
                client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == count
            })
            .await;
        };
        let spawn_prune = || {
            let three = three.clone();
            tokio::spawn(async move { three.prune(&PruneOptions { wait: SOON, ..keeping(1) }).await })
        };
        let spawn_replay = || {
            let (one, orders) = (one.clone(), orders.clone());
            tokio::spawn(async move { replay_one(&one, &orders, &|_| {}).await })
        };
        let (pruning, replaying) = if round % 2 == 0 {
            let pruning = spawn_prune();
            waiting(1).await;
            (pruning, spawn_replay())
        } else {
            let replaying = spawn_replay();
            waiting(1).await;
            (spawn_prune(), replaying)
        };
        waiting(2).await;
        lock.rollback().await.unwrap();
        let pruning = pruning.await.unwrap();
        let _ = replaying.await.unwrap().unwrap();
        match pruning {
            Ok(pruned) => pruned_first += usize::from(schemas(&pruned).contains(&"orders_v1")),
            Err(PruneError::Left { left, .. }) => {
                wanted_first += 1;
                assert_eq!((left[0].major, &left[0].why), (1, &WhyNotPruned::InUse));
            }
            Err(error) => panic!("{error:?}"),
        }
        // Whoever came first: the version is there, with tables that hold everything.
        assert!(there(&client).await.contains(&"orders_v1".to_owned()), "{round}");
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{round}");
        activate(&one).await;
        activate(&two).await;
        activate(&three).await;
    }
    assert!(pruned_first > 0 && wanted_first > 0, "{pruned_first} and {wanted_first}: no race was run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn two_that_prune_at_once_drop_everything_once() {
    let (_database, client, [_, two, three]) = three_releases().await;
    let options = PruneOptions { wait: SOON, ..keeping(0) };
    let (first, second) = tokio::join!(two.prune(&options), three.prune(&options));
    let (first, second) = (first.unwrap(), second.unwrap());
    let mut dropped = [schemas(&first), schemas(&second)].concat();
    dropped.sort_unstable();
    assert_eq!(dropped, ["orders_v1", "orders_v2"]);
    assert_eq!(there(&client).await, ["orders_v3"]);
}

#[tokio::test]
async fn a_prune_that_is_cut_off_leaves_everything_whole() {
    let (database, client, [_, _, three]) = three_releases().await;
    // It stands at a lock in the middle of its transaction, after it took the version out.
    let reader = database.client().await;
    reader
        .batch_execute("BEGIN; LOCK TABLE changeover.skipped_events IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let pruning = {
        let three = three.clone();
        tokio::spawn(async move { three.prune(&PruneOptions { wait: SOON, ..keeping(1) }).await })
    };
    let began = Instant::now();
    let at =
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '-- forget_tables%' AND wait_event_type = 'Lock'
              AND datname = current_database()";
    let pid: i32 =
        eventually(SOON, || async { client.query_opt(at, &[]).await.unwrap().map(|row| row.get(0)) }).await;
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let error = pruning.await.unwrap().unwrap_err();
    assert!(matches!(error, PruneError::Store(_)), "{error:?} after {:?}", began.elapsed());
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(there(&client).await, ["orders_v1", "orders_v2", "orders_v3"]);
    assert_eq!(schemas(&prune(&three, 1).await), ["orders_v1"]);
}
