//! The table of decisions, row by row: what each state lets an instance append and publish, in every isolation level, directly
//! and behind PgBouncer in transaction mode.

use std::time::Duration;

use changeover::tokio_postgres::types::ToSql;
use changeover::tokio_postgres::{Client, Config, NoTls, Row};
use changeover::{Changeover, Expected, ReadyState, Type, WaitError};
use changeover_testkit::{Database, PgBouncer, eventually};

use crate::admission::{LEVELS, append, orders1, outcome, set_states};
use crate::orders::{Totals, place, placed, stream};
use crate::publisher::append_by_hand;
use crate::releases::SOON;

/// How an instance reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Pooled,
}

/// A database, and the way that instances take to it. The test itself always goes directly.
struct Reached {
    database: Database,
    config: Config,
    _pooler: Option<PgBouncer>,
}

impl Way {
    async fn to_a_fresh_database(self) -> Reached {
        let database = Database::fresh().await;
        let pooler = (self == Self::Pooled).then(|| PgBouncer::start(&database.config()).unwrap());
        let config = pooler.as_ref().map_or_else(|| database.config(), PgBouncer::config);
        Reached { database, config, _pooler: pooler }
    }
}

#[tokio::test]
async fn every_row_of_the_table_holds_for_appends_alone_and_in_every_isolation_level() {
    every_row_holds_for_appends(Way::Direct).await;
}

#[tokio::test]
async fn every_row_of_the_table_holds_for_appends_behind_a_pooler() {
    every_row_holds_for_appends(Way::Pooled).await;
}

async fn every_row_holds_for_appends(way: Way) {
    let reached = way.to_a_fresh_database().await;
    let configuration = orders1().sql(Totals).unwrap();
    let builder = Changeover::builder(reached.config.clone()).configuration(configuration);
    builder.migrate().await.unwrap();
    let changeover = builder.activation_wait(Duration::ZERO).connect().await.unwrap();
    let admin = reached.database.client().await;
    let check = async |states: &[&str], expected: &str, ready: ReadyState| {
        for level in LEVELS {
            for seen_before in [false, true] {
                set_states(&admin, &["orders 1.0.0 active", "totals 1.0.0 active"]).await;
                assert_eq!(append(&changeover).await, "done");
                // The snapshot is from before the states changed, and so is the decision, unless another append saw it.
                let mut client = changeover.pool().get().await.unwrap();
                let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
                tx.query_typed("SELECT * FROM changeover.projector_states", &[]).await.unwrap();
                set_states(&admin, states).await;
                if seen_before {
                    assert_eq!(append(&changeover).await, expected, "alone, {states:?}");
                    assert_eq!(changeover.readiness().state, ready, "{states:?}");
                }
                let name = stream(&format!("in {level:?} {seen_before} {states:?}"));
                let appended = changeover.append_in(&tx, &name, Expected::NoStream, &[placed("Ada")]).await;
                assert_eq!(outcome(appended), expected, "{level:?}, {states:?}");
                // A refusal leaves nothing behind that would hold up an activation, and the transaction can go on.
                if expected != "done" {
                    assert!(changeover.status().await.unwrap().in_flight.is_empty(), "{states:?}");
                }
                tx.query_typed("SELECT 1", &[]).await.unwrap();
                tx.commit().await.unwrap();
                let sql = "SELECT count(*) FROM changeover.events WHERE stream = $1";
                let written: i64 = admin.query_one(sql, &[&name.as_str()]).await.unwrap().get(0);
                assert_eq!(written, i64::from(expected == "done"), "{level:?}, {states:?}");
            }
        }
    };
    let with_totals = |orders| [orders, "totals 1.0.0 active"];
    let (active, waiting) = (ReadyState::Active, ReadyState::Waiting);
    check(&[], "done", active).await;
    check(&with_totals("orders 1.0.0 active"), "done", active).await;
    check(&with_totals("orders 1.0.1 active"), "done", active).await;
    check(&["orders 1.0.0 active", "totals 1.0.0 active", "orders 2.0.0 replaying"], "done", active).await;
    check(&["orders 1.0.0 active", "totals 1.0.0 active", "gone 2.0.0 retired"], "done", active).await;
    check(&["orders 1.0.0 active", "totals 1.0.0 active", "new 2.0.0 replaying"], "done", active).await;
    check(&with_totals("orders 1.1.0 active"), "NewerProjectorIsActive", ReadyState::Retired).await;
    check(&with_totals("orders 2.0.0 active"), "NewerProjectorIsActive", ReadyState::Retired).await;
    check(&with_totals("orders 0.9.0 active"), "OlderProjectorIsActive", waiting).await;
    check(&["orders 1.0.0 active", "totals 0.9.9 active"], "OlderProjectorIsActive", waiting).await;
    let unknown = "UnknownProjectorIsActive";
    check(&["orders 1.0.0 active", "other 1.0.0 active"], unknown, ReadyState::Unknown).await;
    check(&["orders 1.0.0 active", "other 1.0.0 activating"], unknown, ReadyState::Unknown).await;
    let activating = "ProjectorIsActivating";
    check(&["orders 1.0.0 active", "orders 2.0.0 activating"], activating, ReadyState::Activating).await;
    check(&with_totals("orders 1.0.0 active switching"), activating, ReadyState::Activating).await;
    check(&with_totals("orders 1.0.0 activating"), activating, ReadyState::Activating).await;
    // No version active: not fed, and no reason to refuse what concerns the others.
    check(&["totals 1.0.0 active"], "done", waiting).await;
    check(&with_totals("orders 1.0.0 replaying"), "done", waiting).await;
    check(&with_totals("orders 1.0.0 retired"), "done", waiting).await;
    check(&with_totals("orders 2.0.0 replaying"), "done", waiting).await;
}

#[tokio::test]
async fn every_row_of_the_table_holds_for_publishing() {
    every_row_holds_for_publishing(Way::Direct).await;
}

#[tokio::test]
async fn every_row_of_the_table_holds_for_publishing_behind_a_pooler() {
    every_row_holds_for_publishing(Way::Pooled).await;
}

/// Batches that hold their presence, or wait for it.
async fn batches(client: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_locks
               WHERE locktype = 'advisory' AND classid = 'changeover.projector_states'::regclass AND objsubid = 2
                 AND mode = 'ShareLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn checkpoint(client: &Client) -> i64 {
    let sql = "SELECT position FROM changeover.checkpoints WHERE projector = 'orders'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The states change twice for every row of the table: once while a batch that was decided upon before is on its way, so that
/// it is the server that refuses it; then the instance knows by itself.
async fn every_row_holds_for_publishing(way: Way) {
    let reached = way.to_a_fresh_database().await;
    let builder = Changeover::builder(reached.config.clone()).configuration(orders1());
    builder.migrate().await.unwrap();
    let changeover = builder.connect().await.unwrap();
    let (admin, gate) = (reached.database.client().await, reached.database.client().await);
    let orders = "orders".parse().unwrap();
    let running = changeover.start();
    place(&changeover, "first", 1).await;
    let gets_there = async |last, limit: Duration| match changeover.wait_for(&orders, last, limit).await {
        Ok(()) => true,
        Err(WaitError::Timeout { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    let event = r#"{"customer": "Ada"}"#;
    let check = async |states: &[&str], ready: ReadyState, fed: bool| {
        let last = append_by_hand(&admin, event).await;
        assert!(gets_there(last, SOON).await, "before {states:?}");
        // A batch takes its presence first. It waits for that here, decided upon and not yet admitted.
        let shut =
            "BEGIN; SELECT pg_advisory_xact_lock('changeover.projector_states'::regclass::oid::integer, 0)";
        gate.batch_execute(shut).await.unwrap();
        let last = append_by_hand(&admin, event).await;
        changeover.waker().wake();
        eventually(SOON, || async { batches(&admin).await == 1 }).await;
        set_states(&admin, states).await;
        let mut readiness = changeover.watch_readiness();
        tokio::time::timeout(SOON, readiness.wait_for(|readiness| readiness.state == ready))
            .await
            .unwrap()
            .unwrap();
        gate.batch_execute("COMMIT").await.unwrap();
        if fed {
            assert!(gets_there(last, SOON).await, "{states:?}");
        } else {
            // Its presence goes with its transaction: had it been let in, the checkpoint would have moved by then.
            eventually(SOON, || async { batches(&admin).await == 0 }).await;
            assert!(checkpoint(&admin).await < last.get(), "{states:?}");
            // And none is begun any more: nothing tells that somebody does nothing.
            assert!(!gets_there(last, Duration::from_millis(150)).await, "{states:?}");
        }
        // What was left lying is projected as soon as the states allow it.
        set_states(&admin, &["orders 1.0.0 active"]).await;
        assert!(gets_there(last, SOON).await, "after {states:?}");
    };
    check(&["orders 1.0.2 active"], ReadyState::Active, true).await;
    check(&["orders 1.1.0 active"], ReadyState::Retired, false).await;
    check(&["orders 2.0.0 active"], ReadyState::Retired, false).await;
    check(&["orders 0.1.0 active"], ReadyState::Waiting, false).await;
    check(&["orders 1.0.0 active", "other 1.0.0 active"], ReadyState::Unknown, false).await;
    check(&["orders 1.0.0 active", "orders 2.0.0 activating"], ReadyState::Activating, false).await;
    check(&["orders 1.0.0 active switching"], ReadyState::Activating, false).await;
    check(&["orders 1.0.0 replaying"], ReadyState::Waiting, false).await;
    check(&["orders 1.0.0 retired"], ReadyState::Waiting, false).await;
    check(&["other 1.0.0 replaying"], ReadyState::Waiting, false).await;
    running.stop().await;
    let sql = "SELECT (SELECT count(*) FROM orders_v1.orders), (SELECT count(*) FROM changeover.events WHERE type = 'Placed')";
    let row = admin.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1));
}

/// The library looks at the generation that comes back once more; here the statement is on its own.
#[tokio::test]
async fn the_statement_that_admits_a_batch_gives_no_checkpoint_at_another_generation() {
    for way in [Way::Direct, Way::Pooled] {
        let reached = way.to_a_fresh_database().await;
        let builder = Changeover::builder(reached.config.clone()).configuration(orders1());
        builder.migrate().await.unwrap();
        append(&builder.connect().await.unwrap()).await;
        let admin = reached.database.client().await;
        let sql =
            include_str!("../../crates/changeover/src/store/sql/enter.sql").replace("{schema}", "changeover");
        let (mut client, connection) = reached.config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut enter = async |generation: i64| -> (Row, bool) {
            let tx = client.transaction().await.unwrap();
            let none: Option<String> = None;
            let params: [(&(dyn ToSql + Sync), Type); 7] = [
                (&generation, Type::INT8),
                (&"orders", Type::TEXT),
                (&1_i64, Type::INT8),
                (&0_i32, Type::INT4),
                (&"1min", Type::TEXT),
                (&none, Type::TEXT),
                (&None::<i32>, Type::INT4),
            ];
            let row = tx.query_typed(&sql, &params).await.unwrap().remove(0);
            let claimed =
                "SELECT FROM changeover.checkpoints WHERE projector = 'orders' FOR UPDATE SKIP LOCKED";
            let is_claimed = admin.query(claimed, &[]).await.unwrap().is_empty();
            tx.rollback().await.unwrap();
            (row, is_claimed)
        };
        let current = "SELECT last_value FROM changeover.generation";
        let decided: i64 = admin.query_one(current, &[]).await.unwrap().get(0);
        let (row, is_claimed) = enter(decided).await;
        assert_eq!(
            (row.get("generation"), row.get("position"), is_claimed),
            (decided, Some(0_i64), true),
            "{way:?}"
        );
        set_states(&admin, &["orders 2.0.0 active"]).await;
        let now: i64 = admin.query_one(current, &[]).await.unwrap().get(0);
        let (row, is_claimed) = enter(decided).await;
        assert_eq!(
            (row.get("generation"), row.get("position"), is_claimed),
            (now, None::<i64>, false),
            "{way:?}"
        );
    }
}
