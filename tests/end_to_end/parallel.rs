//! The parallel replay gives the rows of a serial one: whatever the log, the shards, the memory, and whoever stops in between.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use changeover::{Configuration, Pace, ReplayError, ReplayOptions};
use changeover_testkit::{Database, eventually};
use tokio::time::timeout;

use crate::accounts::{
    Accounts, Closings, Kinds, POISON, accounts, at_once, cramped, differences, fill, is_whole, of, replay,
    rows, serially, with,
};
use crate::orders::instance;
use crate::parallel_breaking::handled_after;
use crate::publisher::append_by_hand;
use crate::releases::{SOON, instance_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_those_of_a_serial_replay_whatever_the_shards_and_the_memory() {
    for (seed, shards) in [(0.1, 1), (0.2, 2), (0.3, 5)] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let serial = of::<1>(&database).await;
        fill(&client, seed, 40_000).await;
        replay(&serial, &serially()).await;
        let roomy = of::<2>(&database).await;
        assert!(replay(&roomy, &with(at_once())).await > 20_000);
        assert_eq!(differences(&client, 1, 2).await, 0, "seed {seed}, at once");
        is_whole(&client, 2).await;
        let narrow = of::<3>(&database).await;
        replay(&narrow, &with(cramped(shards))).await;
        assert_eq!(differences(&client, 1, 3).await, 0, "seed {seed}, {shards} shards");
        is_whole(&client, 3).await;
        assert!(rows(&client, 3).await > 30_000);
        // Live publishing goes on where the shards met.
        replay(&narrow, &serially()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_that_nobody_handles_are_left_out_also_where_the_server_sends_everything() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1>(&database).await;
    fill(&client, 0.45, 130_000).await;
    // Without gaps; and what is read first holds nothing that is not handled, so that nobody asks the server to choose.
    let sql = "UPDATE changeover.events SET position = -position / 2; UPDATE changeover.events SET position = -position;
               UPDATE changeover.events SET type = 'Nothing', data = '{}' WHERE type = 'Unheard' AND position <= 70000";
    client.batch_execute(sql).await.unwrap();
    client.query_one("SELECT setval('changeover.event_position', 130000)", &[]).await.unwrap();
    let heard = handled_after(&client, 0).await;
    assert!(heard < 129_000);
    replay(&serial, &serially()).await;
    let parallel = of::<2>(&database).await;
    let pace = Pace { shards: Some(2), max_connections: 4, ..at_once() };
    assert_eq!(replay(&parallel, &with(pace)).await, heard);
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_dropped_again_and_again_ends_with_the_same_rows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1>(&database).await;
    fill(&client, 0.4, 60_000).await;
    replay(&serial, &serially()).await;
    let parallel = of::<2>(&database).await;
    let mut checkpoints = BTreeSet::new();
    for stop_after in (5_000..).step_by(5_000).take(8) {
        let (stop, names) = (tokio::sync::Notify::new(), [accounts()]);
        let on_progress = |progress: &changeover::ReplayProgress| {
            if progress.events >= stop_after {
                stop.notify_one();
            }
        };
        let pace = cramped(3);
        let throttle = changeover::Throttle { events_per_sec: Some(60_000), ..Default::default() };
        let options = with(Pace { throttle, ..pace });
        tokio::select! {
            _ = parallel.replay(&names, &options, &on_progress) => break,
            () = stop.notified() => {}
        }
        let sql = "SELECT min(position) FROM changeover.checkpoints WHERE projector = 'accounts' AND major = 2 AND shard > 0";
        checkpoints.insert(client.query_one(sql, &[]).await.unwrap().get::<_, Option<i64>>(0));
    }
    assert!(checkpoints.len() > 2, "it got on: {checkpoints:?}");
    replay(&parallel, &with(cramped(3))).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_a_parallel_replay_and_do_nothing_twice() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let serial = of::<1>(&database).await;
    fill(&client, 0.5, 60_000).await;
    replay(&serial, &serially()).await;
    let throttle = changeover::Throttle { events_per_sec: Some(100_000), ..Default::default() };
    let options = with(Pace { throttle, ..cramped(4) });
    let processes = [of::<2>(&database).await, of::<2>(&database).await, of::<2>(&database).await];
    futures_util::future::join_all(processes.iter().map(|process| replay(process, &options))).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
    is_whole(&client, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projectors_that_are_replayed_together_read_the_log_once() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let all = Configuration::new().fold(Accounts::<2>).unwrap().fold(Closings).unwrap().fold(Kinds).unwrap();
    let all = instance(&database, all).await;
    fill(&client, 0.6, 40_000).await;
    // Rows that an index led to: the log is filled and checked without one.
    let sql = "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE schemaname = 'changeover' AND relname = 'events'";
    let read = async || client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let before = read().await;
    let names = ["accounts", "closings", "kinds"].map(|name| name.parse().unwrap());
    let done = all.replay(&names, &with(at_once()), &|_| {}).await.unwrap();
    // A connection that ends says what it has read.
    eventually(SOON, || async { read().await - before > 30_000 }).await;
    assert!(read().await - before < 60_000, "{before} and now {}", read().await);

    // Each counts the events that it handles, and nobody else's.
    let handled = handled_after(&client, 0).await;
    let closed = "SELECT count(*) FROM changeover.events WHERE type = 'Closed'";
    let closed: i64 = client.query_one(closed, &[]).await.unwrap().get(0);
    let counted: Vec<u64> = done.iter().map(|done| done.progress.events).collect();
    assert_eq!(counted, [handled, closed.unsigned_abs(), handled]);

    let sql = "SELECT count(*) FROM ((TABLE kinds_v1.kinds EXCEPT ALL TABLE accounts_v2.kinds)
                   UNION ALL (TABLE accounts_v2.kinds EXCEPT ALL TABLE kinds_v1.kinds)) d";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    let sql = "SELECT count(*) FROM (
                   SELECT (data ->> 'account')::bigint AS account, count(*) AS times
                   FROM changeover.events WHERE type = 'Closed' GROUP BY 1
               ) e FULL JOIN closings_v1.closings c USING (account) WHERE e.times IS DISTINCT FROM c.times";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    let serial = of::<1>(&database).await;
    replay(&serial, &serially()).await;
    assert_eq!(differences(&client, 1, 2).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_projected_stops_it_there_and_everything_before_is_kept() {
    let poisons = [
        // A fold that panics, and data that does not decode.
        ("json_build_object('account', 7)", "Poisoned", "panicked"),
        ("json_build_object('account', 'seven')", "Closed", "cannot be decoded"),
    ];
    for (data, event_type, reason) in poisons {
        let database = Database::fresh().await;
        let client = database.client().await;
        let writer = instance_of(&database, "none").await;
        fill(&client, 0.7, 40_000).await;
        let poison = format!(
            "UPDATE changeover.events SET type = '{event_type}', data = {data} WHERE position = 50000"
        );
        client.batch_execute(&poison).await.unwrap();
        let parallel = of::<2>(&database).await;
        POISON.store(7, Ordering::Relaxed);
        for _ in 0..2 {
            let error = parallel.replay(&[accounts()], &with(cramped(3)), &|_| {}).await.unwrap_err();
            let ReplayError::Projector { position, event_type: at, source, .. } = &error else {
                panic!("{error:?}")
            };
            assert_eq!((position.get(), at.as_str()), (50_000, event_type));
            assert!(source.to_string().contains(reason), "{source}");
            // Each shard stands right before it, or beyond it where it has nothing to do with it.
            let sql = "SELECT min(position) FROM changeover.checkpoints WHERE major = 2 AND shard > 0";
            assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 49_999);
        }
        // Nobody can activate what is not whole.
        let error = parallel.activate(&crate::releases::hasty(), &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains("50000") || format!("{error:?}").contains("50000"), "{error:?}");
        // Mended, it goes on.
        POISON.store(0, Ordering::Relaxed);
        client
            .batch_execute(
                "UPDATE changeover.events SET type = 'Nothing', data = '{}' WHERE position = 50000",
            )
            .await
            .unwrap();
        replay(&parallel, &with(cramped(3))).await;
        let serial = of::<1>(&database).await;
        replay(&serial, &serially()).await;
        // The poisoned account itself was touched by an event that is another one now.
        assert_eq!(differences(&client, 1, 2).await, 0);
        is_whole(&client, 2).await;
        drop(writer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_grows_as_fast_as_its_bulk_is_replayed_is_left_to_steps() {
    let database = Database::fresh().await;
    let client = database.client().await;
    // Two, whose bulks begin and end at different ends of the log, so that there is always one that could begin anew.
    let both = Configuration::new().fold(Accounts::<2>).unwrap().fold(Kinds).unwrap();
    let instance = instance(&database, both).await;
    fill(&client, 0.27, 2_000).await;
    let elsewhere = database.client().await;
    let appending = tokio::spawn(async move {
        loop {
            let _ = append_by_hand(&elsewhere, r#"{"customer": "Ada"}"#).await;
        }
    });
    // Nothing is too little for a bulk, and there is always something.
    let options =
        ReplayOptions { lag_events: 1_000, ..with(Pace { parallel_above_events: 0, ..cramped(2) }) };
    let names = [accounts(), "kinds".parse().unwrap()];
    let done = timeout(SOON, instance.replay(&names, &options, &|_| {})).await.unwrap().unwrap();
    assert!(done.iter().all(|done| done.progress.lag_events() <= 1_000) && !appending.is_finished());
    appending.abort();
}
