//! What went wrong elsewhere, a test each; or where the test is that holds it.
//!
//! | trap | held by |
//! |---|---|
//! | skipping instead of refusing: the append commits, the row never comes | `an_append_that_nobody_would_project_is_refused` |
//! | "lag is 0" looked at without holding anything | `activation::an_append_in_flight_finishes_before_the_activation` |
//! | switching by several renames without a transaction | `activation::an_observer_never_sees_a_mix_of_two_configurations` |
//! | a brand-new projector stopped all publishing | `a_brand_new_projector_does_not_stop_the_others` |
//! | replaying the same version was impossible | `replaying_the_same_version_again_is_possible` |
//! | an unknown version treated as allowed | `an_unknown_projector_is_refused_and_not_allowed` |
//! | an exclusive lock request that queues everybody behind it | `an_activation_asks_for_no_lock_that_readers_of_our_tables_would_hold_up` |
//! | retrying the lock but not the write after it | `an_append_that_met_a_pause_is_written_once` |
//! | a fenced process that panics and is restarted for ever | `a_retired_process_goes_on_and_serves_again_after_the_way_back` |
//! | a switch that the load balancer learns of late, so old instances still get writes | `an_instance_that_heard_of_nothing_is_refused_all_the_same` |
//! | truncating the wrong tables and reporting success | `tables_that_are_not_ours_are_never_touched`, `starting_over::rows_that_count_are_not_thrown_away`, `traps_of_going_back::the_wrong_tables_are_neither_dropped_nor_reported_as_dropped` |
//! | a replay racing the live publisher | `live_tables_are_not_replayed_into`, `parallel_breaking::live_serial_parallel_and_resumed_rows_are_the_same_row_for_row` |
//! | parallel replay by stream for a row fed by many streams | `parallel::rows_are_those_of_a_serial_replay_whatever_the_shards_and_the_memory`, `parallel_breaking::live_serial_parallel_and_resumed_rows_are_the_same_row_for_row` |
//! | loading all events into memory | `traps_of_the_log::a_replay_takes_the_log_in_bounded_batches`, `parallel_breaking::the_whole_log_does_not_have_to_fit_into_memory_and_neither_do_the_rows` |
//! | side effects fired again by a replay | there are no side effects to fire yet: later |
//! | a version made of a hash that misses a change, or of the release number that replays everything each time | `a_release_that_changed_no_projector_replays_nothing`, `admission::a_version_with_another_definition_is_refused_at_start_up` |
//! | two versions writing one table | `two_major_versions_write_tables_of_their_own` |
//! | waiting for a progress row that never moves because no event matches | `traps_of_the_log::a_projector_whose_events_never_came_is_caught_up`, `parallel_breaking::a_log_without_an_event_of_the_projector_is_replayed_to_its_end` |
//! | `max(position)` while transactions are open | `traps_of_the_log::an_event_that_commits_late_is_read_in_its_place`, `read::no_event_is_missed_and_none_read_twice_beside_appenders_that_commit_in_any_order` |
//! | gap time-outs that skip late commits | `traps_of_the_log::an_event_that_commits_late_is_read_in_its_place` |
//! | waiting for gaps that never fill | `traps_of_the_log::a_gap_that_never_fills_is_not_waited_for` |
//! | holding back behind any long transaction of the cluster | `traps_of_the_log::a_long_transaction_elsewhere_holds_up_neither_publishing_nor_an_activation`, `read::a_transaction_that_appends_nothing_holds_nothing_up`, `read::a_running_dump_holds_nothing_up` |
//! | positions that break after dump and restore | `traps_of_the_log::positions_go_on_after_dump_and_restore`, `read::positions_go_on_after_dump_and_restore` |
//! | a lag measured against a frozen mark that reads "healthy" | `traps_of_the_log::the_lag_of_a_projector_that_nobody_feeds_grows` |
//! | liveness that depends on lag | `neither_liveness_nor_readiness_depends_on_lag`, in `crates/changeover-http` |
//! | a status command that blocks on the lock of the running replay | `status_waits_for_nobody`, `publisher::a_batch_in_progress_holds_up_neither_status_nor_appends_nor_other_projectors` |
//! | one flag that deletes everything | `traps_of_going_back::no_flag_deletes_what_is_active_replayed_or_being_activated` |
//! | error texts that leak event data | `errors_hold_no_event_data`, `publisher::an_event_that_does_not_decode_stalls_and_its_data_is_not_in_the_error` |
//! | "caught up" tested against the clock on an idle log | `traps_of_the_log::an_idle_log_is_caught_up` |
//! | the old version's tables dropped by the next run | `the_tables_of_retired_versions_stay`, `traps_of_going_back::the_old_versions_tables_are_dropped_by_no_run_but_a_prune_that_says_so` |

use std::fmt::Write;

use changeover::{
    ActivateOptions, AppendError, Changeover, Expected, Position, ReadyState, Refused, RegisterError,
    ReplayError,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::orders::{OrderEvent, place, placed, stream};
use crate::releases::{Held, SOON, active, events, hasty, instance_of, release, replay_one, wrong_rows};

pub(crate) async fn activate(changeover: &Changeover) {
    let _ = changeover.activate(&hasty(), &|_| {}).await.unwrap();
}

pub(crate) async fn published(instance: &Changeover, projector: &str) {
    let end = instance.horizon().await.unwrap();
    instance.wait_for(&projector.parse().unwrap(), end, SOON).await.unwrap();
}

#[tokio::test]
async fn an_append_that_nobody_would_project_is_refused() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    place(&old, "order", 1).await;
    activate(&instance_of(&database, "inline 2.0.0").await).await;
    let before = events(&client).await;
    // In its own transaction and in the caller's, for an inline projector whose version does not count any more.
    let refused = old.append(&stream("order"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    let mut connection = old.pool().get().await.unwrap();
    let tx = connection.transaction().await.unwrap();
    let refused = old.append_in(&tx, &stream("order"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    tx.commit().await.unwrap();
    assert_eq!(events(&client).await, before);
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}

#[tokio::test]
async fn a_brand_new_projector_does_not_stop_the_others() {
    let database = Database::fresh().await;
    let old = instance_of(&database, "1.0.0").await;
    place(&old, "order", 1).await;
    // It registers one more, of which no version is active anywhere.
    let new = instance_of(&database, "1.0.0 totals").await;
    let running = new.start();
    place(&new, "by-the-new-one", 1).await;
    published(&new, "orders").await;
    eventually(SOON, || async { new.readiness().state == ReadyState::Waiting }).await;
    assert!(new.readiness().reason.contains("no version of totals is active"), "{}", new.readiness().reason);
    assert_eq!(wrong_rows(&database.client().await, "orders_v1").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn replaying_the_same_version_again_is_possible() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance_of(&database, "1.0.0 totals").await;
    place(&instance, "order-1", 2).await;
    let orders = "orders".parse().unwrap();
    for round in 2..4 {
        let _ = instance.deactivate(&orders, &hasty()).await.unwrap();
        place(&instance, &format!("order-{round}"), 2).await;
        let _ = replay_one(&instance, &orders, &|_| {}).await.unwrap();
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
        activate(&instance).await;
        assert_eq!(active(&client).await, "orders 1.0.0, totals 1.0.0");
    }
}

#[tokio::test]
async fn an_unknown_projector_is_refused_and_not_allowed() {
    let database = Database::fresh().await;
    let client = database.client().await;
    place(&instance_of(&database, "1.0.0 totals").await, "order", 1).await;
    for name in ["1.0.0", "totals", "none"] {
        let other = instance_of(&database, name).await;
        let running = other.start();
        let refused = other.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(
            matches!(refused, AppendError::Refused(Refused::UnknownProjectorIsActive { .. })),
            "{name}: {refused}"
        );
        eventually(SOON, || async { other.readiness().state == ReadyState::Unknown }).await;
        running.stop().await;
    }
    // And neither did any of them publish.
    assert_eq!(events(&client).await, 2);
    let rows = client.query_one("SELECT max(position) FROM changeover.checkpoints", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn an_activation_asks_for_no_lock_that_readers_of_our_tables_would_hold_up() {
    let database = Database::fresh().await;
    let (old, new) =
        (instance_of(&database, "inline 1.0.0").await, instance_of(&database, "inline 2.0.0").await);
    place(&old, "order", 1).await;
    // As a dump and a VACUUM would: shared locks on everything there is, and the weakest that excludes itself.
    let dump = database.client().await;
    dump.batch_execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ;
         LOCK TABLE changeover.events, changeover.projector_states, changeover.checkpoints, changeover.activations,
                    changeover.instances, orders_v1.orders IN ACCESS SHARE MODE",
    )
    .await
    .unwrap();
    let vacuum = database.client().await;
    vacuum
        .batch_execute(
            "BEGIN; LOCK TABLE changeover.events, changeover.projector_states, changeover.checkpoints,
                    changeover.activations, orders_v1.orders IN SHARE UPDATE EXCLUSIVE MODE",
        )
        .await
        .unwrap();
    let activating = tokio::time::timeout(SOON, activate(&new));
    activating.await.expect("it waits for a reader");
    place(&new, "order-2", 1).await;
    for open in [dump, vacuum] {
        open.batch_execute("COMMIT").await.unwrap();
    }
    assert_eq!(wrong_rows(&database.client().await, "orders_v2").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_append_that_met_a_pause_is_written_once() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    let new = instance_of(&database, "inline 2.0.0").await;
    place(&old, "order", 1).await;
    // It decided before the pause and finds the generation gone when it writes: the decision is made again, and the write.
    let mut held = Held::at("paused", &new, ActivateOptions { pause_limit: SOON, ..hasty() });
    held.reached().await;
    let appending = {
        let old = old.clone();
        tokio::spawn(async move { old.append(&stream("order"), Expected::Any, &[OrderEvent::Paid]).await })
    };
    eventually(SOON, || async { old.readiness().state == ReadyState::Activating }).await;
    assert_eq!(old.abort("test").await.unwrap().len(), 1);
    let appended = appending.await.unwrap().unwrap();
    assert!(held.outcome().await.is_err());
    let sql = "SELECT count(*), max(position) FROM changeover.events WHERE type = 'Paid'";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), Some(row.get::<_, Position>(1))), (1, appended.last()));
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}

#[tokio::test]
async fn a_retired_process_goes_on_and_serves_again_after_the_way_back() {
    let database = Database::fresh().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    let running = old.start();
    place(&old, "before", 1).await;
    activate(&new).await;
    eventually(SOON, || async { old.readiness().state == ReadyState::Retired }).await;
    // Whatever it is asked, it says no, politely.
    for n in 0..20 {
        let refused =
            old.append(&stream(&format!("late-{n}")), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    }
    assert!(old.readiness().reason.contains("stop it"), "{}", old.readiness().reason);
    // The same process, never restarted.
    activate(&old).await;
    eventually(SOON, || async { old.readiness().is_ready() }).await;
    place(&old, "after", 1).await;
    published(&old, "orders").await;
    assert_eq!(wrong_rows(&database.client().await, "orders_v1").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn an_instance_that_heard_of_nothing_is_refused_all_the_same() {
    let database = Database::fresh().await;
    let client = database.client().await;
    // It listens to nothing and watches nothing: its decision is as old as can be.
    let deaf = instance_of(&database, "1.0.0").await;
    place(&deaf, "before", 1).await;
    assert!(deaf.readiness().is_ready());
    activate(&instance_of(&database, "2.0.0").await).await;
    assert!(deaf.readiness().is_ready(), "it did hear of it, so nothing was tested");
    let before = events(&client).await;
    let refused = deaf.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    assert_eq!((events(&client).await, deaf.readiness().state), (before, ReadyState::Retired));
}

#[tokio::test]
async fn tables_that_are_not_ours_are_never_touched() {
    let database = Database::fresh().await;
    let client = database.client().await;
    place(&instance_of(&database, "1.0.0").await, "order", 1).await;
    client
        .batch_execute("CREATE SCHEMA orders_v2; CREATE TABLE orders_v2.orders AS SELECT 'precious' AS id")
        .await
        .unwrap();
    let new = instance_of(&database, "2.0.0").await;
    let error = replay_one(&new, &"orders".parse().unwrap(), &|_| {}).await.unwrap_err();
    let ReplayError::Register(RegisterError::ForeignTables { schema, .. }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(schema, "orders_v2");
    new.activate(&hasty(), &|_| {}).await.unwrap_err();
    let kept = client.query_one("SELECT id FROM orders_v2.orders", &[]).await.unwrap();
    assert_eq!((kept.get::<_, &str>(0), active(&client).await.as_str()), ("precious", "orders 1.0.0"));
}

#[tokio::test]
async fn live_tables_are_not_replayed_into() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let live = instance_of(&database, "1.0.0").await;
    place(&live, "order", 1).await;
    for name in ["1.0.0", "1.0.1", "1.1.0"] {
        let operator = instance_of(&database, name).await;
        let error = replay_one(&operator, &"orders".parse().unwrap(), &|_| {}).await.unwrap_err();
        assert!(matches!(error, ReplayError::NotReplaying { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(&format!("orders {name} is")), "{error}");
    }
    let checkpoint = client.query_one("SELECT position FROM changeover.checkpoints", &[]).await.unwrap();
    assert_eq!((checkpoint.get::<_, i64>(0), active(&client).await.as_str()), (0, "orders 1.0.0"));
}

#[tokio::test]
async fn a_release_that_changed_no_projector_replays_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    place(&instance_of(&database, "1.0.0 totals").await, "order", 1).await;
    let next = Changeover::builder(database.config())
        .application("test", "17.0.0")
        .configuration(release("1.0.0 totals"));
    let next = next.connect().await.unwrap();
    assert!(next.plan().await.unwrap().is_done());
    let activated = next.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(activated.activation, None);
    place(&next, "by-the-next", 1).await;
    let history = client.query_one("SELECT count(*) FROM changeover.activations", &[]).await.unwrap();
    assert_eq!(history.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn two_major_versions_write_tables_of_their_own() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    let running = old.start();
    place(&old, "first", 1).await;
    let orders = "orders".parse().unwrap();
    let _ = replay_one(&new, &orders, &|_| {}).await.unwrap();
    place(&old, "second", 1).await;
    published(&old, "orders").await;
    let rows = async |schema: &str| {
        let sql = format!("SELECT count(*) FROM {schema}.orders");
        client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    // The live one went on, the other one stands where its replay left it.
    assert_eq!((rows("orders_v1").await, rows("orders_v2").await), (2, 1));
    assert_eq!(
        (old.tables_schema(&orders), new.tables_schema(&orders)),
        (Some("orders_v1"), Some("orders_v2"))
    );
    activate(&new).await;
    place(&new, "third", 1).await;
    let new_running = new.start();
    published(&new, "orders").await;
    assert_eq!((rows("orders_v1").await, rows("orders_v2").await), (2, 3));
    running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn status_waits_for_nobody() {
    let database = Database::fresh().await;
    let instance = instance_of(&database, "1.0.0 totals").await;
    place(&instance, "order", 1).await;
    // As a replay, a publisher and an activation hold them, all at once.
    let holder = database.client().await;
    holder
        .batch_execute(
            "BEGIN; SELECT * FROM changeover.checkpoints FOR UPDATE; SELECT * FROM changeover.projector_states FOR UPDATE;
             SELECT * FROM changeover.activations FOR UPDATE;
             SELECT pg_advisory_xact_lock_shared('changeover.projector_states'::regclass::oid::integer, 0);
             SELECT pg_advisory_xact_lock('changeover.instances'::regclass::oid::integer, 0)",
        )
        .await
        .unwrap();
    let status = tokio::time::timeout(SOON, instance.status()).await.expect("it waits").unwrap();
    assert_eq!((status.projectors.len(), status.in_flight.len()), (2, 1));
    tokio::time::timeout(SOON, instance.plan()).await.expect("a plan waits").unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
}

/// The whole chain of an error, as `{}` and as `{:?}`.
fn everything_said(error: &dyn std::error::Error) -> String {
    let mut said = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        write!(said, " {cause} {cause:?}").unwrap();
        source = cause.source();
    }
    said
}

#[tokio::test]
async fn errors_hold_no_event_data() {
    /// Items as somebody else writes them.
    #[derive(serde::Serialize)]
    enum Other {
        ItemAdded { cents: &'static str },
    }
    let database = Database::fresh().await;
    let client = database.client().await;
    let writer = instance_of(&database, "none").await;
    let secret = [Other::ItemAdded { cents: "iban-4711-secret" }];
    writer.append(&stream("order"), Expected::Any, &secret).await.unwrap();
    let operator = instance_of(&database, "totals").await;
    let error = replay_one(&operator, &"totals".parse().unwrap(), &|_| {}).await.unwrap_err();
    let said = everything_said(&error);
    assert!(said.contains("ItemAdded") && !said.contains("4711"), "{said}");
    let error = operator.activate(&hasty(), &|_| {}).await.unwrap_err();
    assert!(!everything_said(&error).contains("4711"), "{error:?}");
    // Nor what is written down of it, in the history or where it stalls.
    client.batch_execute("DELETE FROM changeover.projector_states").await.unwrap();
    let running = instance_of(&database, "totals").await;
    let publishing = running.start();
    let stalled = "SELECT error FROM changeover.checkpoints WHERE stalled_since IS NOT NULL";
    let stalled: String =
        eventually(SOON, || async { client.query_opt(stalled, &[]).await.unwrap().map(|row| row.get(0)) })
            .await;
    publishing.stop().await;
    assert!(!stalled.contains("4711"), "{stalled}");
    let noted = "SELECT string_agg(coalesce(error, ''), ';') FROM changeover.activations";
    assert!(!client.query_one(noted, &[]).await.unwrap().get::<_, String>(0).contains("4711"));
    // An inline projector refuses the append, in the same words.
    let database = Database::fresh().await;
    let inline = instance_of(&database, "inline 1.0.0").await;
    let error = inline.append(&stream("order"), Expected::Any, &secret).await.unwrap_err();
    let said = everything_said(&error);
    assert!(said.contains("orders") && !said.contains("4711"), "{said}");
}

async fn tables(client: &Client) -> Vec<String> {
    let sql =
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname LIKE 'orders%' ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn the_tables_of_retired_versions_stay() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    place(&old, "order", 1).await;
    let new = instance_of(&database, "inline 2.0.0").await;
    for round in 0..3 {
        activate(&new).await;
        place(&new, &format!("new-{round}"), 1).await;
        assert_eq!(tables(&client).await, ["orders_v1.orders", "orders_v2.orders"]);
        // Going back is there, whatever ran meanwhile.
        let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
        activate(&old).await;
        place(&old, &format!("old-{round}"), 1).await;
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    }
}
