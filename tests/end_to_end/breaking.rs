//! Activations that break in the middle: whoever performs one dies, freezes, loses the connection, or is not alone.

use std::time::{Duration, Instant};

use changeover::{ActivateError, ActivateOptions, Changeover, Expected, Holds, ReadyState};
use changeover_testkit::{Cluster, Database, Proxy, eventually};
use tokio_postgres::Client;

use crate::operator::Operator;
use crate::orders::{place, placed, stream};
use crate::releases::{
    Held, SOON, Writers, active, hasty, instance_of, more_events, newest_outcome, release, replay_one,
    wrong_rows,
};

/// Of the pauses that are meant to end by their deadline.
const PAUSE: Duration = Duration::from_millis(600);

/// What the end of a pause may take beside its deadline, on a machine that stands still for a while. Far less than what would
/// end it otherwise: the minute after which the server ends an idle batch, or after which a request gives up waiting.
const LITTLE: Duration = Duration::from_secs(15);

/// Of the pauses that others have to get into the middle of, and that have to have an end all the same.
const LONG_PAUSE: Duration = Duration::from_secs(4);

/// An old and a new release with some history.
async fn two_releases(database: &Database, kind: &str) -> (Changeover, Changeover) {
    let old = instance_of(database, &format!("{kind}1.0.0")).await;
    for order in 0..10 {
        place(&old, &format!("order-{order}"), 3).await;
    }
    (old, instance_of(database, &format!("{kind}2.0.0")).await)
}

/// A request to the old version is served within a time, without an error in between; its rows are right, and an
/// activation that goes to its end finds everything as it should be.
async fn serves_by_itself(
    database: &Database,
    kind: &str,
    old: &Changeover,
    new: &Changeover,
    within: Duration,
) {
    let client = database.client().await;
    let started = Instant::now();
    place(old, "again", 3).await;
    assert!(started.elapsed() < within, "{:?}", started.elapsed());
    assert_eq!(active(&client).await, "orders 1.0.0");
    let pending = "SELECT count(*) FROM changeover.projector_states WHERE state = 'activating' OR activation IS NOT NULL";
    assert_eq!(client.query_one(pending, &[]).await.unwrap().get::<_, i64>(0), 0);
    if kind.is_empty() {
        let running = old.start();
        old.wait_for(&"orders".parse().unwrap(), old.horizon().await.unwrap(), SOON).await.unwrap();
        eventually(SOON, || async { old.readiness().state == ReadyState::Active }).await;
        running.stop().await;
    }
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(active(&client).await, "orders 2.0.0");
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

#[tokio::test]
async fn an_activator_that_is_killed_in_its_preparation_has_paused_nobody() {
    for stop_at in ["planned", "replaying"] {
        let database = Database::fresh().await;
        let (old, new) = two_releases(&database, "").await;
        let operator = Operator::activate(&database, "2.0.0", stop_at, PAUSE).await;
        place(&old, "meanwhile", 1).await;
        operator.kill_9();
        let paused = "SELECT count(*) FROM changeover.activations WHERE activating_at IS NOT NULL";
        assert_eq!(database.client().await.query_one(paused, &[]).await.unwrap().get::<_, i64>(0), 0);
        serves_by_itself(&database, "", &old, &new, LITTLE).await;
    }
}

#[tokio::test]
async fn an_activator_that_is_killed_in_its_pause_gives_it_back_by_the_deadline() {
    for (stop_at, kind) in [("paused", ""), ("paused", "inline "), ("drained", ""), ("drained", "inline ")] {
        let database = Database::fresh().await;
        let (old, new) = two_releases(&database, kind).await;
        let operator = Operator::activate(&database, &format!("{kind}2.0.0"), stop_at, PAUSE).await;
        operator.kill_9();
        serves_by_itself(&database, kind, &old, &new, PAUSE + LITTLE).await;
        let sql = "SELECT outcome, error FROM changeover.activations ORDER BY id LIMIT 1";
        let row = database.client().await.query_one(sql, &[]).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), ("expired", "its deadline passed"), "{stop_at}");
    }
}

/// Gets an operator as far as feeding in the pause, and no further: until the transaction that comes back ends.
async fn feeding(database: &Database, old: &Changeover, pause: Duration) -> (Operator, Client) {
    let client = database.client().await;
    let operator = Operator::activate(database, "2.0.0", "replaying", pause).await;
    // Something that is not committed when everything is caught up, and so has to be fed in the pause.
    let mut connection = old.pool().get().await.unwrap();
    let tx = connection.transaction().await.unwrap();
    old.append_in(&tx, &stream("open"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    operator.go_on();
    let paused = "SELECT EXISTS (SELECT FROM changeover.projector_states WHERE state = 'activating')";
    eventually(SOON, || async { client.query_one(paused, &[]).await.unwrap().get::<_, bool>(0) }).await;
    let holder = database.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE orders_v2.orders IN SHARE MODE").await.unwrap();
    tx.commit().await.unwrap();
    let feeding =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'orders_v2.orders'::regclass
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    eventually(SOON, || async { client.query_one(feeding, &[]).await.unwrap().get::<_, bool>(0) }).await;
    (operator, holder)
}

#[tokio::test]
async fn an_activator_that_is_killed_or_frozen_while_it_feeds_gives_the_pause_back_by_the_deadline() {
    for frozen in [false, true] {
        let database = Database::fresh().await;
        let (old, new) = two_releases(&database, "").await;
        let (operator, holder) = feeding(&database, &old, LONG_PAUSE).await;
        if frozen {
            operator.freeze();
        } else {
            operator.kill_9();
        }
        let started = Instant::now();
        place(&old, "meanwhile", 1).await;
        assert!(started.elapsed() < LONG_PAUSE + LITTLE, "{:?}", started.elapsed());
        holder.batch_execute("ROLLBACK").await.unwrap();
        // Its batch goes on now; then the server ends it, since nobody is there who could.
        eventually(LONG_PAUSE + LITTLE, || async { old.status().await.unwrap().in_flight.is_empty() }).await;
        if frozen {
            let said = operator.thaw().await;
            assert!(said.contains("end: refused"), "{said}");
        }
        serves_by_itself(&database, "", &old, &new, LITTLE).await;
    }
}

#[tokio::test]
async fn an_activator_that_wakes_up_after_its_deadline_changes_nothing_and_says_so() {
    for (stop_at, kind) in [("paused", ""), ("drained", "inline ")] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let (old, new) = two_releases(&database, kind).await;
        let operator = Operator::activate(&database, &format!("{kind}2.0.0"), stop_at, PAUSE).await;
        let started = Instant::now();
        place(&old, "meanwhile", 2).await;
        assert!(started.elapsed() < PAUSE + LITTLE, "{:?}", started.elapsed());
        let states = async || {
            let sql = "SELECT string_agg(s::text, ';' ORDER BY projector, version) FROM changeover.projector_states s";
            client.query_one(sql, &[]).await.unwrap().get::<_, String>(0)
        };
        let before = states().await;
        let said = operator.thaw().await;
        assert!(said.contains("end: refused: Ended") && said.contains("its deadline passed"), "{said}");
        assert_eq!(states().await, before);
        serves_by_itself(&database, kind, &old, &new, LITTLE).await;
    }
}

#[tokio::test]
async fn an_activator_that_dies_after_the_switch_has_switched() {
    let database = Database::fresh().await;
    let (_old, new) = two_releases(&database, "").await;
    Operator::activate(&database, "2.0.0", "switched", SOON).await.kill_9();
    place(&new, "again", 3).await;
    let client = database.client().await;
    assert_eq!(active(&client).await, "orders 2.0.0");
    assert_eq!(newest_outcome(&client).await.unwrap(), "activated");
}

// --- not alone --------------------------------------------------------------------------------------------------------

fn is_beaten(error: &ActivateError) -> bool {
    matches!(error, ActivateError::Overtaken { .. } | ActivateError::Ended { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn of_two_operators_with_one_configuration_one_succeeds() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let other_old = instance_of(&database, "1.0.0").await;
    let other_new = instance_of(&database, "2.0.0").await;
    for (version, one, other) in [("2.0.0", &new, &other_new), ("1.0.0", &old, &other_old)].repeat(4) {
        let options = hasty();
        let (one, other) = tokio::join!(one.activate(&options, &|_| {}), other.activate(&options, &|_| {}));
        assert_eq!(active(&client).await, format!("orders {version}"), "{one:?} {other:?}");
        let outcomes = [one, other];
        assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
        assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(is_beaten), "{outcomes:?}");
    }
    for schema in ["orders_v1", "orders_v2"] {
        assert_eq!(wrong_rows(&client, schema).await, 0, "{schema}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn two_operators_with_two_configurations_never_make_a_third() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let base = instance_of(&database, "pair 1 1").await;
    place(&base, "order", 2).await;
    let left = instance_of(&database, "pair 2 1").await;
    let right = instance_of(&database, "pair 1 2").await;
    let configurations = ["fan_1 2.0.0, fan_3 1.0.0", "fan_1 1.0.0, fan_3 2.0.0"];
    for _ in 0..4 {
        let options = hasty();
        let (one, other) = tokio::join!(left.activate(&options, &|_| {}), right.activate(&options, &|_| {}));
        let outcomes = [one, other];
        let now = active(&client).await;
        assert!(configurations.contains(&now.as_str()), "{now}: {outcomes:?}");
        assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
        assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(is_beaten), "{outcomes:?}");
        let _ = base.activate(&options, &|_| {}).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_mark_that_waits_for_the_switch_of_another_activation_does_not_hold_it_up() {
    let database = Database::fresh().await;
    let (client, mut holder) = (database.client().await, database.client().await);
    let base = instance_of(&database, "pair 1 1").await;
    place(&base, "order", 2).await;
    let left = instance_of(&database, "pair 2 1").await;
    let right = instance_of(&database, "pair 1 2").await;
    let mut late = Held::at("replaying", &right, hasty());
    late.reached().await;
    let mut first = Held::at("drained", &left, hasty());
    first.reached().await;
    // The switch has ended its activation and gets no further, so the mark of the other one has to wait for what comes of it.
    let waits_at = async |statement: &str| {
        let waits = "SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- ' || $1 || ':%'";
        eventually(SOON, || async { !client.query(waits, &[&statement]).await.unwrap().is_empty() }).await;
    };
    let held = holder.transaction().await.unwrap();
    held.query("SELECT FROM changeover.projector_states WHERE projector = 'fan_1' FOR UPDATE", &[])
        .await
        .unwrap();
    let first = tokio::spawn(first.outcome());
    waits_at("switch").await;
    let late = tokio::spawn(late.outcome());
    waits_at("mark_activating").await;
    held.rollback().await.unwrap();
    let _ = first.await.unwrap().unwrap();
    let error = late.await.unwrap().unwrap_err();
    assert!(is_beaten(&error), "{error:?}");
    assert_eq!(active(&client).await, "fan_1 2.0.0, fan_3 1.0.0");
    place(&left, "again", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_plan_that_is_out_of_date_is_not_carried_out() {
    // Wherever the other activation comes in between: right after the plan, or after everything was prepared.
    for held_at in ["planned", "started", "replaying"] {
        for patched in [false, true] {
            let database = Database::fresh().await;
            let client = database.client().await;
            let base = instance_of(&database, "pair 1 1").await;
            place(&base, "order", 2).await;
            let left = instance_of(&database, "pair 2 1").await;
            let mut held = Held::at(held_at, &left, hasty());
            held.reached().await;
            let other = if patched { "pair 1 1.0.1" } else { "pair 1 2" };
            let right = instance_of(&database, other).await;
            let _ = right.activate(&hasty(), &|_| {}).await.unwrap();
            let expected = active(&client).await;
            let error = held.outcome().await.unwrap_err();
            assert!(is_beaten(&error), "{held_at}: {error:?}");
            assert_eq!(active(&client).await, expected, "{held_at}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_late_operator_does_not_end_the_pause_of_the_one_before() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let other = instance_of(&database, "2.0.0").await;
    let mut late = Held::at("replaying", &other, hasty());
    late.reached().await;
    let mut first = Held::at("drained", &new, ActivateOptions { pause_limit: SOON, ..hasty() });
    first.reached().await;
    let error = late.outcome().await.unwrap_err();
    assert!(matches!(error, ActivateError::Overtaken { .. }), "{error:?}");
    assert!(error.to_string().contains("by hasty"), "{error}");
    // Neither does one who asks now, nor one who replays something else.
    let error = old.activate(&hasty(), &|_| {}).await.err();
    assert!(error.is_none_or(|error| is_beaten(&error)));
    let third = instance_of(&database, "totals").await;
    let _ = replay_one(&third, &"totals".parse().unwrap(), &|_| {}).await.unwrap();
    let _ = first.outcome().await.unwrap();
    assert_eq!(active(&client).await, "orders 2.0.0");
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

// --- who does not end -------------------------------------------------------------------------------------------------

/// Options of an activation that is to meet somebody who does not end.
fn blocked(pause_limit: Duration) -> ActivateOptions {
    ActivateOptions { pause_limit, drain_timeout: Duration::from_millis(300), ..hasty() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_left_open_is_named_and_nothing_changes() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let mut config = database.config();
    config.application_name("forgetful");
    let builder = Changeover::builder(config).configuration(release("1.0.0"));
    let forgetful = builder.connect().await.unwrap();
    let writers = Writers::start(2, &[&old]);
    more_events(&client, 5).await;
    let mut connection = forgetful.pool().get().await.unwrap();
    let tx = connection.transaction().await.unwrap();
    forgetful.append_in(&tx, &stream("open"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    for (pause_limit, paused) in [(LONG_PAUSE, true), (Duration::from_millis(20), false)] {
        // Too young to be waited for before a long pause: it is waited for in it, and the pause is given back. Long enough
        // open for a short one: nobody is paused for it.
        let (seen, error) = Held::at("", &new, blocked(pause_limit)).failed().await;
        assert_eq!(seen.contains("paused"), paused, "{seen:?}");
        let ActivateError::Blocked { blockers, after } = &error else { panic!("{error:?}") };
        let blocker =
            blockers.iter().find(|blocker| blocker.pid == Some(pid)).expect("not the one who blocks");
        assert_eq!(blocker.application_name.as_deref(), Some("forgetful"));
        assert_eq!((blocker.holds, blocker.doing.as_str()), (Holds::Lease, "idle in transaction"));
        assert!(
            blocker.age_secs.unwrap() > 0.01 && *after >= pause_limit.mul_f64(0.8),
            "{blocker:?} {after:?}"
        );
        let said = error.to_string();
        for part in [&format!("pid {pid} (forgetful) holds an append for"), "idle in transaction", "end them"]
        {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(active(&client).await, "orders 1.0.0");
        assert_eq!(newest_outcome(&client).await.unwrap(), "failed");
        more_events(&client, 5).await;
    }
    assert_eq!(writers.stop().await.failed, Vec::<String>::new());
    tx.rollback().await.unwrap();
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_does_not_end_is_named_and_nothing_changes() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let mut config = database.config();
    config.application_name("publishing");
    let builder = Changeover::builder(config).configuration(release("1.0.0"));
    let publishing = builder.connect().await.unwrap();
    // It can read its rows and not write them.
    let holder = database.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE orders_v1.orders IN SHARE MODE").await.unwrap();
    let running = publishing.start();
    let waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'orders_v1.orders'::regclass
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { client.query(waiting, &[]).await.unwrap().len() == 1 }).await;
    let pid: i32 = client.query_one(waiting, &[]).await.unwrap().get(0);
    for (pause_limit, paused) in [(LONG_PAUSE, true), (Duration::from_millis(20), false)] {
        let (seen, error) = Held::at("", &new, blocked(pause_limit)).failed().await;
        assert_eq!(seen.contains("paused"), paused, "{seen:?}");
        let ActivateError::Blocked { blockers, after } = &error else { panic!("{error:?}") };
        let [blocker] = &blockers[..] else { panic!("{blockers:?}") };
        assert_eq!((blocker.pid, blocker.application_name.as_deref()), (Some(pid), Some("publishing")));
        assert_eq!((blocker.holds, blocker.doing.as_str()), (Holds::Presence, "active"));
        assert!(
            blocker.age_secs.unwrap() > 0.01 && *after >= pause_limit.mul_f64(0.8),
            "{blocker:?} {after:?}"
        );
        let said = error.to_string();
        for part in
            [&format!("pid {pid} (publishing) holds a batch being published for"), "active", "end them"]
        {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(active(&client).await, "orders 1.0.0");
        assert_eq!(newest_outcome(&client).await.unwrap(), "failed");
        place(&old, &format!("meanwhile-{}", pause_limit.as_millis()), 1).await;
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    old.wait_for(&"orders".parse().unwrap(), old.horizon().await.unwrap(), SOON).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_process_that_freezes_while_it_registers_holds_up_the_others_for_seconds_only() {
    let database = Database::fresh().await;
    let (old, new) = two_releases(&database, "").await;
    let frozen = database.client().await;
    let lock = include_str!("../../crates/changeover/src/store/sql/lock_registration.sql");
    frozen.batch_execute(&format!("BEGIN; {}", lock.replace("{schema}", "changeover"))).await.unwrap();
    place(&old, "meanwhile", 1).await;
    let _ = tokio::time::timeout(SOON, new.activate(&hasty(), &|_| {}))
        .await
        .expect("it waits for ever")
        .unwrap();
    assert!(frozen.batch_execute("SELECT 1").await.is_err(), "it was not ended");
    assert_eq!(wrong_rows(&database.client().await, "orders_v2").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_batch_that_ends_while_it_is_looked_at_is_not_taken_for_an_old_one() {
    let database = Database::fresh().await;
    let (_old, new) = two_releases(&database, "").await;
    // What is seen then, made to last: a lock, by a session that is in no transaction.
    let ended = database.client().await;
    ended
        .batch_execute("SELECT pg_advisory_lock_shared('changeover.events'::regclass::oid::integer, 0)")
        .await
        .unwrap();
    let mut held = Held::at("paused", &new, hasty());
    held.reached().await;
    assert!(!held.seen().contains("waiting for appends"), "{:?}", held.seen());
    ended.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let _ = held.outcome().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_is_named_and_waited_for() {
    // Not every server that DATABASE_URL may name allows prepared transactions.
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let gid = database.name();
    let mut connection = old.pool().get().await.unwrap();
    let tx = connection.transaction().await.unwrap();
    old.append_in(&tx, &stream("prepared"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    tx.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await.unwrap();
    drop(tx);
    for (pause_limit, paused) in [(LONG_PAUSE, true), (Duration::from_millis(20), false)] {
        let (seen, error) = Held::at("", &new, blocked(pause_limit)).failed().await;
        assert_eq!(seen.contains("paused"), paused, "{seen:?}");
        let ActivateError::Blocked { blockers, .. } = &error else { panic!("{error:?}") };
        assert_eq!((blockers.len(), blockers[0].pid, blockers[0].holds), (1, None, Holds::Lease));
        assert!(error.to_string().contains(&format!("prepared transaction {gid}")), "{error}");
        assert_eq!(active(&client).await, "orders 1.0.0");
        place(&old, &format!("meanwhile-{}", pause_limit.as_millis()), 1).await;
    }
    client.batch_execute(&format!("COMMIT PREPARED '{gid}'")).await.unwrap();
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_transaction_that_is_prepared_during_the_pause_is_waited_for_too() {
    // Not every server that DATABASE_URL may name allows prepared transactions.
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let gid = database.name();
    let mut connection = old.pool().get().await.unwrap();
    let tx = connection.transaction().await.unwrap();
    old.append_in(&tx, &stream("prepared"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let activating = Held::at("", &new, ActivateOptions { pause_limit: SOON, ..hasty() });
    // Its transaction was seen in flight; from here on it goes by another name.
    eventually(SOON, || async { activating.seen().contains("paused") }).await;
    let looks = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '-- in_flight%' AND query_start > $1)";
    let now: std::time::SystemTime = client.query_one("SELECT clock_timestamp()", &[]).await.unwrap().get(0);
    eventually(SOON, || async { client.query_one(looks, &[&now]).await.unwrap().get::<_, bool>(0) }).await;
    tx.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await.unwrap();
    drop(tx);
    let now: std::time::SystemTime = client.query_one("SELECT clock_timestamp()", &[]).await.unwrap().get(0);
    eventually(SOON, || async {
        activating.seen().contains("drained")
            || client.query_one(looks, &[&now]).await.unwrap().get::<_, bool>(0)
    })
    .await;
    assert!(!activating.seen().contains("drained"), "an append in flight was not waited for");
    client.batch_execute(&format!("COMMIT PREPARED '{gid}'")).await.unwrap();
    let _ = activating.outcome().await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

// --- lost connections, clocks, restarts -------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_connection_that_is_cut_in_any_phase_leaves_one_configuration_or_the_other() {
    for cut_at in ["planned", "started", "replaying", "paused", "drained"] {
        for mended in [true, false] {
            let database = Database::fresh().await;
            let (old, new) = two_releases(&database, "").await;
            let proxy = Proxy::in_front_of(&database.config()).unwrap();
            let through =
                Changeover::builder(proxy.config(&database.config())).configuration(release("2.0.0"));
            let cut_off = through.connect().await.unwrap();
            let options = ActivateOptions { pause_limit: PAUSE, ..hasty() };
            let mut held = Held::at(cut_at, &cut_off, options);
            held.reached().await;
            proxy.cut();
            if mended {
                proxy.resume();
            }
            let outcome = tokio::spawn(held.outcome());
            // Mended, it gives the pause back itself; else the deadline does.
            serves_by_itself(&database, "", &old, &new, PAUSE + LITTLE).await;
            let error = outcome.await.unwrap().unwrap_err();
            let unknown = matches!(error, ActivateError::Unknown { .. });
            assert!(!unknown || !mended, "{cut_at}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_server_that_restarts_in_the_middle_leaves_the_old_version_active() {
    let cluster = Cluster::builder().durable().start().unwrap();
    for (held_at, crash) in [("paused", false), ("drained", true)] {
        let database = Database::fresh_on(&cluster).await;
        let (old, new) = two_releases(&database, "").await;
        let mut held = Held::at(held_at, &new, hasty());
        held.reached().await;
        if crash {
            cluster.kill_9().unwrap();
        }
        cluster.restart().unwrap();
        let error = held.outcome().await.unwrap_err();
        assert!(matches!(error, ActivateError::Store(_)), "{held_at}: {error:?}");
        let client = database.client().await;
        assert_eq!(active(&client).await, "orders 1.0.0");
        // The instance lost every connection that it had, and finds that out when it uses them.
        eventually(SOON, || async {
            let again = stream("after-the-restart");
            old.append(&again, Expected::Any, &[placed("Ada")]).await.is_ok()
        })
        .await;
        serves_by_itself(&database, "", &old, &new, LITTLE).await;
    }
}

#[tokio::test]
async fn deadlines_are_the_databases() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = two_releases(&database, "").await;
    let tiny = ActivateOptions { pause_limit: Duration::from_micros(10), ..hasty() };
    let error = new.activate(&tiny, &|_| {}).await.unwrap_err();
    assert!(matches!(error, ActivateError::Ended { .. }), "{error:?}");
    assert!(error.to_string().contains("deadline"), "{error}");
    serves_by_itself(&database, "", &old, &new, LITTLE).await;
    let limits = [tiny, hasty()].map(|options| i64::try_from(options.pause_limit.as_micros()).unwrap());
    // By the clock that wrote them down, all of them.
    let sql = "SELECT round(extract(epoch FROM deadline - activating_at) * 1000000)::bigint,
                      activating_at BETWEEN started_at AND ended_at AND ended_at <= clock_timestamp()
               FROM changeover.activations ORDER BY id";
    let rows = client.query(sql, &[]).await.unwrap();
    let rows: Vec<(i64, bool)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, limits.map(|limit| (limit, true)));
}
