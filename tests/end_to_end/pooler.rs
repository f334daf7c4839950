//! The essentials once more behind PgBouncer 1.18 in transaction mode, where every transaction may run in another session.

use std::time::SystemTime;

use changeover::tokio_postgres::{IsolationLevel, NoTls, Row};
use changeover::{
    ActivateOptions, AppendError, Changeover, Configuration, Expected, Path, Position, ReadyState, Refused,
    ReplayError, Revision,
};
use changeover_testkit::{Database, PgBouncer, eventually};

use crate::accounts::{Accounts, accounts, cramped, differences, fill, is_whole, of, replay, slowly, with};
use crate::orders::{
    InlineOrders1, InlineOrders2, OrderEvent, Orders1, Orders2, Totals, place, placed, stream,
};
use crate::releases::{SOON, hasty};

async fn pooled(pooler: &PgBouncer, configuration: Configuration) -> Changeover {
    let builder = Changeover::builder(pooler.config()).configuration(configuration);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

#[tokio::test]
async fn the_path_to_the_server_is_found_out() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let through = pooled(&pooler, Configuration::new()).await;
    assert_eq!(through.path(), Path::Pooled);
    let direct = Changeover::builder(database.config()).connect().await.unwrap();
    assert_eq!(direct.path(), Path::Direct);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrators_behind_a_pooler_all_succeed() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let migrating = (0..6).map(|_| {
        let builder = Changeover::builder(pooler.config());
        tokio::spawn(async move { builder.migrate().await })
    });
    let mut applied = Vec::new();
    for migrating in migrating.collect::<Vec<_>>() {
        applied.extend(migrating.await.unwrap().unwrap());
    }
    assert!(applied.is_sorted() && applied.first() == Some(&1), "each once: {applied:?}");
    Changeover::builder(pooler.config()).connect().await.unwrap();
}

#[tokio::test]
async fn appends_and_readers_behind_a_pooler() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let changeover = pooled(&pooler, Configuration::new().fold(InlineOrders1).unwrap()).await;
    place(&changeover, "alone", 2).await;
    let paid = [OrderEvent::Paid];
    changeover.append(&stream("alone"), Expected::Exactly(Revision::new(3)), &paid).await.unwrap();
    let conflict = changeover.append(&stream("alone"), Expected::NoStream, &paid).await.unwrap_err();
    assert!(matches!(conflict, AppendError::Conflict { .. }), "{conflict}");
    changeover.append(&stream("alone"), Expected::Any, &paid).await.unwrap();

    for level in [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable]
    {
        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
        let name = stream(&format!("{level:?}"));
        let before = changeover.horizon().await.unwrap();
        changeover.append_in(&tx, &name, Expected::NoStream, &[placed("Ada")]).await.unwrap();
        changeover.append_in(&tx, &name, Expected::Any, &paid).await.unwrap();
        place(&changeover, &format!("beside {level:?}"), 0).await;
        assert_eq!(changeover.horizon().await.unwrap(), before, "its lease is held through the pooler too");
        tx.commit().await.unwrap();
        let tx = client.transaction().await.unwrap();
        changeover.append_in(&tx, &stream("gone"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
        tx.rollback().await.unwrap();
        let status = changeover.status().await.unwrap();
        assert_eq!((status.horizon, status.in_flight.len()), (status.newest, 0));
    }
    let read = changeover.read(Position::START, 1_000).next().await.unwrap();
    assert_eq!(read.len(), 5 + 3 * 3);
    let client = database.client().await;
    let sql = "SELECT count(*), count(*) FILTER (WHERE paid) FROM orders_v1.orders";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (7, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_behind_a_pooler_lose_nothing() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let mut instances = Vec::new();
    for _ in 0..2 {
        let configuration = Configuration::new().fold(InlineOrders1).unwrap().sql(Totals).unwrap();
        instances.push(pooled(&pooler, configuration).await);
    }
    place(&instances[0], "order", 0).await;
    let running: Vec<_> = instances.iter().map(Changeover::start).collect();
    let appending = (0..8).map(|at| {
        let changeover = instances[at % 2].clone();
        tokio::spawn(async move {
            for _ in 0..25 {
                let item = [OrderEvent::ItemAdded { cents: 1 }];
                changeover.append(&stream("order"), Expected::Any, &item).await.unwrap();
            }
        })
    });
    for appending in appending.collect::<Vec<_>>() {
        appending.await.unwrap();
    }
    let last = instances[0].horizon().await.unwrap();
    instances[0].wait_for(&"totals".parse().unwrap(), last, SOON).await.unwrap();
    let client = database.client().await;
    let sql = "SELECT o.items::bigint, t.items, (SELECT count(*) FROM changeover.events)
               FROM orders_v1.orders o, totals_v1.total t";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (200, 200, 201));
    for running in running {
        running.stop().await;
    }
}

#[tokio::test]
async fn an_upgrade_behind_a_pooler() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let background = |fold: Configuration| fold.sql(Totals).unwrap();
    let old = pooled(&pooler, background(Configuration::new().fold(Orders1).unwrap())).await;
    let old_running = old.start();
    for order in 0..10 {
        place(&old, &format!("order-{order}"), 3).await;
    }
    let new = pooled(&pooler, background(Configuration::new().fold(Orders2).unwrap())).await;
    let new_running = new.start();
    let refused = new.append(&stream("early"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::OlderProjectorIsActive { .. })), "{refused}");
    let mut client = old.pool().get().await.unwrap();
    let tx =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await.unwrap();
    tx.query_typed("SELECT * FROM changeover.projector_states", &[]).await.unwrap();

    let activated = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert!(activated.activation.is_some());
    let refused = old.append(&stream("late"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    let refused = old.append_in(&tx, &stream("late"), Expected::Any, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    tx.rollback().await.unwrap();
    eventually(SOON, || async { old.readiness().state == ReadyState::Retired }).await;
    eventually(SOON, || async { new.readiness().state == ReadyState::Active }).await;

    let last = place(&new, "order-new", 3).await.last().unwrap();
    for projector in ["orders", "totals"] {
        new.wait_for(&projector.parse().unwrap(), last, SOON).await.unwrap();
    }
    let client = database.client().await;
    let sql = "SELECT count(*), sum(items) FROM orders_v2.orders";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (11, 33));
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn an_inline_upgrade_behind_a_pooler_waits_for_the_append_in_flight() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let old = pooled(&pooler, Configuration::new().fold(InlineOrders1).unwrap()).await;
    place(&old, "order-0", 3).await;
    let new = pooled(&pooler, Configuration::new().fold(InlineOrders2).unwrap()).await;
    let mut client = old.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    old.append_in(&tx, &stream("order-1"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let activating = tokio::spawn({
        let new = new.clone();
        async move { new.activate(&ActivateOptions { pause_limit: SOON, ..hasty() }, &|_| {}).await }
    });
    let observer = database.client().await;
    let sql = "SELECT count(*) FROM changeover.projector_states WHERE activation IS NOT NULL";
    eventually(SOON, || async { observer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 2 }).await;
    assert!(!activating.is_finished());
    tx.commit().await.unwrap();
    let activated = activating.await.unwrap().unwrap();
    assert_eq!(activated.horizon, Some(new.horizon().await.unwrap()));
    place(&new, "order-2", 3).await;
    let sql = "SELECT count(*), sum(items) FROM orders_v2.orders";
    let row = observer.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (3, 6));
}

#[tokio::test]
async fn an_append_that_is_dropped_halfway_behind_a_pooler_leaves_nothing_half_done() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let changeover = pooled(&pooler, Configuration::new().fold(InlineOrders1).unwrap()).await;
    place(&changeover, "first", 1).await;
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    changeover.append_in(&tx, &stream("order"), Expected::Any, &[placed("Ada")]).await.unwrap();
    let waiting = tokio::spawn({
        let changeover = changeover.clone();
        async move { changeover.append(&stream("order"), Expected::Any, &[OrderEvent::Paid]).await }
    });
    let observer = database.client().await;
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { observer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1 }).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    tx.commit().await.unwrap();
    drop(client);
    eventually(SOON, || async {
        let status = changeover.status().await.unwrap();
        status.in_flight.is_empty() && status.horizon == status.newest
    })
    .await;
    for at in 0..20 {
        place(&changeover, &format!("after-{at}"), 1).await;
    }
    let sql = "SELECT count(*), count(*) FILTER (WHERE paid) FROM orders_v1.orders";
    let row = observer.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (22, 0));
}

/// An activation rests on it: the generation is set after the states were committed, by two statements sent together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_are_sent_together_run_one_after_the_other_behind_a_pooler() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let clients = (0..8).map(|_| {
        let config = pooler.config();
        tokio::spawn(async move {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            for _ in 0..20 {
                let first = "SELECT clock_timestamp() FROM pg_sleep(random() * 0.005)";
                let second = "SELECT statement_timestamp()";
                let (first, second) =
                    tokio::join!(client.query_typed(first, &[]), client.query_typed(second, &[]));
                let at = |rows: Result<Vec<Row>, _>| rows.unwrap()[0].get::<_, SystemTime>(0);
                assert!(at(first) <= at(second));
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_that_is_half_replayed_says_that_it_needs_a_direct_connection() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let direct = of::<2>(&database).await;
    fill(&client, 0.31, 20_000).await;
    let (names, slow) = ([accounts()], with(slowly(3, 20_000)));
    tokio::select! {
        done = direct.replay(&names, &slow, &|_| {}) => panic!("{done:?}"),
        () = eventually(SOON, || async {
            let sql = "SELECT count(*) FROM changeover.checkpoints WHERE shard > 0 AND position > 0";
            client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 3
        }) => {}
    }
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let through = pooled(&pooler, Configuration::new().fold(Accounts::<2>).unwrap()).await;
    let error = through.replay(&names, &with(cramped(3)), &|_| {}).await.unwrap_err();
    assert!(matches!(error, ReplayError::NeedsDirectConnection { .. }), "{error:?}");
    assert!(error.to_string().contains("not through a pooler"), "{error}");
    // Directly, it goes on.
    replay(&direct, &with(cramped(3))).await;
    is_whole(&client, 2).await;
    // What has no shards to wait for is replayed through a pooler as well.
    let third = pooled(&pooler, Configuration::new().fold(Accounts::<3>).unwrap()).await;
    replay(&third, &with(cramped(3))).await;
    assert_eq!(differences(&client, 2, 3).await, 0);
}
