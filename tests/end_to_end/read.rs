//! Reading: up to the horizon and not beyond it, without ever missing what commits late, held up by appends alone.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use changeover::{Appended, Changeover, Configuration, Expected, Holds, Position, RawEvent, Transaction};
use changeover_testkit::{Cluster, Database, Process, eventually};

use crate::orders::{OrderEvent, Orders1, Orders2, instance, place, placed, stream};
use crate::releases::{SOON, hasty};

async fn append_in(changeover: &Changeover, tx: &Transaction<'_>, name: &str) -> Appended {
    changeover.append_in(tx, &stream(name), Expected::Any, &[placed("Ada")]).await.unwrap()
}

fn streams(events: &[RawEvent]) -> Vec<&str> {
    events.iter().map(|event| event.recorded.stream.as_str()).collect()
}

#[tokio::test]
async fn a_reader_stops_before_an_append_in_flight_and_reads_it_when_it_commits_late() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new()).await;
    let check = async |commits: bool, then: &[&str]| {
        let mut reader = changeover.read(changeover.horizon().await.unwrap(), 100);
        place(&changeover, &format!("before {commits}"), 0).await;
        assert_eq!(reader.next().await.unwrap().len(), 1);
        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.transaction().await.unwrap();
        let late = append_in(&changeover, &tx, "late").await.last().unwrap();
        let early = changeover
            .append(&stream("early"), Expected::Any, &[placed("Eve")])
            .await
            .unwrap()
            .last()
            .unwrap();
        assert!(late < early);
        assert!(changeover.horizon().await.unwrap() < late);
        assert!(reader.next().await.unwrap().is_empty(), "what is later in the log has to wait");
        assert!(reader.position() < late);
        if commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
        assert_eq!(streams(&reader.next().await.unwrap()), then);
        assert_eq!((reader.position(), changeover.horizon().await.unwrap()), (early, early));
        assert!(reader.next().await.unwrap().is_empty());
    };
    check(true, &["late", "early"]).await;
    check(false, &["early"]).await;
}

#[tokio::test]
async fn a_reader_goes_on_over_gaps_in_batches_of_the_size_it_was_given() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new()).await;
    let mut client = changeover.pool().get().await.unwrap();
    let mut expected = Vec::new();
    for at in 0..10 {
        let tx = client.transaction().await.unwrap();
        let appended = append_in(&changeover, &tx, &format!("s{at}")).await;
        if at % 3 == 1 {
            tx.rollback().await.unwrap();
        } else {
            tx.commit().await.unwrap();
            expected.extend(appended.positions);
        }
    }
    for size in [1, 2, 7, 100] {
        let mut reader = changeover.read(Position::START, size);
        let mut read = Vec::new();
        loop {
            let batch = reader.next().await.unwrap();
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= size);
            read.extend(batch.iter().map(|event| event.recorded.position));
            assert!(read.len() <= expected.len(), "in batches of {size}: {read:?}");
        }
        assert_eq!(read, expected, "in batches of {size}");
        assert_eq!(reader.position(), changeover.horizon().await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_missed_and_none_read_twice_beside_appenders_that_commit_in_any_order() {
    const APPENDERS: usize = 10;
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new()).await;
    let at_work = Arc::new(AtomicUsize::new(APPENDERS));
    // The reader has to read while they append, so they go on until it has.
    let batches = Arc::new(AtomicUsize::new(0));
    let appenders: Vec<_> = (0..APPENDERS)
        .map(|appender| {
            let (changeover, at_work, batches) = (changeover.clone(), at_work.clone(), batches.clone());
            tokio::spawn(async move {
                for turn in 0.. {
                    if turn >= 40 && batches.load(Ordering::SeqCst) > 20 {
                        break;
                    }
                    let mut client = changeover.pool().get().await.unwrap();
                    let tx = client.transaction().await.unwrap();
                    for _ in 0..=turn % 3 {
                        append_in(&changeover, &tx, &format!("{appender}-{turn}")).await;
                        // So that others commit in between, later positions before earlier ones.
                        let delay = "SELECT pg_sleep(random() * 0.004)";
                        tx.execute(delay, &[]).await.unwrap();
                    }
                    if turn % 4 == 3 {
                        tx.rollback().await.unwrap();
                    } else {
                        tx.commit().await.unwrap();
                    }
                }
                at_work.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    let mut reader = changeover.read(Position::START, 50);
    let mut read = Vec::new();
    loop {
        let done = at_work.load(Ordering::SeqCst) == 0;
        let batch = reader.next().await.unwrap();
        if batch.is_empty() && done {
            break;
        }
        batches.fetch_add(usize::from(!batch.is_empty()), Ordering::SeqCst);
        read.extend(batch.iter().map(|event| event.recorded.position.get()));
    }
    for appender in appenders {
        appender.await.unwrap();
    }
    let sql = "SELECT position FROM changeover.events ORDER BY position";
    let rows = database.client().await.query(sql, &[]).await.unwrap();
    let there: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(read, there);
}

// --- who holds the horizon up, and who does not ---------------------------------------------------------------------

/// The horizon moves to the end, events are published, and a configuration is activated.
async fn all_goes_on(old: &Changeover, new: &Changeover) {
    let last = place(old, "all goes on", 2).await.last().unwrap();
    assert_eq!(old.horizon().await.unwrap(), last);
    old.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
    // Nothing but batches, which come and go.
    eventually(SOON, || async { old.status().await.unwrap().in_flight.is_empty() }).await;
    let activated = new.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(activated.horizon, Some(last));
    let last = place(new, "and on", 2).await.last().unwrap();
    new.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
}

async fn old_and_new(database: &Database) -> (Changeover, Changeover) {
    let old = instance(database, Configuration::new().fold(Orders1).unwrap()).await;
    let new = instance(database, Configuration::new().fold(Orders2).unwrap()).await;
    place(&old, "first", 1).await;
    (old, new)
}

#[tokio::test]
async fn a_transaction_that_appends_nothing_holds_nothing_up() {
    let database = Database::fresh().await;
    let (old, new) = old_and_new(&database).await;
    let running = (old.start(), new.start());

    // One that writes, one that looked at the log and sits idle, one that keeps an old snapshot.
    let mut clients = [database.client().await, database.client().await, database.client().await];
    clients[0].batch_execute("CREATE TABLE elsewhere (n bigint)").await.unwrap();
    let [writer, idle, report] = &mut clients;
    let writer = writer.transaction().await.unwrap();
    writer.execute("INSERT INTO elsewhere VALUES (1)", &[]).await.unwrap();
    writer.execute("SELECT pg_advisory_xact_lock(1)", &[]).await.unwrap();
    let idle = idle.transaction().await.unwrap();
    idle.query("SELECT * FROM changeover.events", &[]).await.unwrap();
    let report = report.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let report = report.start().await.unwrap();
    report.query("SELECT * FROM orders_v1.orders", &[]).await.unwrap();

    all_goes_on(&old, &new).await;
    for open in [writer, idle, report] {
        open.commit().await.unwrap();
    }
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test]
async fn an_append_in_another_database_holds_nothing_up() {
    let (database, elsewhere) = (Database::fresh().await, Database::fresh().await);
    let (old, new) = old_and_new(&database).await;
    let running = (old.start(), new.start());
    let other = instance(&elsewhere, Configuration::new()).await;
    let mut client = other.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    append_in(&other, &tx, "open").await;
    // The tables of both databases were made by the same steps: give them the same identity, if chance did not.
    let oid = "SELECT 'changeover.events'::regclass::oid";
    let oid: u32 = database.client().await.query_one(oid, &[]).await.unwrap().get(0);
    tx.execute("SELECT pg_advisory_xact_lock_shared($1::oid::integer, 0)", &[&oid]).await.unwrap();

    all_goes_on(&old, &new).await;
    assert!(other.status().await.unwrap().horizon < other.status().await.unwrap().newest);
    tx.commit().await.unwrap();
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test]
async fn a_running_dump_holds_nothing_up() {
    let database = Database::fresh().await;
    let (old, new) = old_and_new(&database).await;
    let running = (old.start(), new.start());

    // It has taken its snapshot and locked our tables, and now waits for the last one.
    let mut client = database.client().await;
    client.batch_execute("CREATE TABLE public.last (n bigint)").await.unwrap();
    let blocker = client.transaction().await.unwrap();
    blocker.batch_execute("LOCK TABLE public.last IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut dump = Command::new(Cluster::shared().bin("pg_dump"));
    dump.args(["--schema-only", &database.url()]);
    let dump = Process::spawn(dump).unwrap();
    let observer = database.client().await;
    let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
               WHERE a.application_name = 'pg_dump' AND a.datname = current_database() AND NOT l.granted
                 AND EXISTS (SELECT FROM pg_locks own WHERE own.pid = l.pid AND own.granted
                             AND own.relation = 'changeover.events'::regclass)";
    eventually(SOON, || async { observer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1 }).await;

    all_goes_on(&old, &new).await;
    assert_eq!(observer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1, "the dump still runs");
    blocker.commit().await.unwrap();
    let status = dump.wait(SOON).await.unwrap();
    assert!(status.success(), "{}", dump.output());
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test]
async fn a_prepared_transaction_that_appended_holds_the_horizon_and_is_named() {
    // Not every server that DATABASE_URL may name allows prepared transactions.
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let changeover = instance(&database, Configuration::new()).await;
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    let late = append_in(&changeover, &tx, "prepared").await.last().unwrap();
    tx.batch_execute("PREPARE TRANSACTION 'left behind'").await.unwrap();
    drop(tx);
    let newest = place(&changeover, "after", 1).await.last();

    let status = changeover.status().await.unwrap();
    assert!(status.horizon < late && Some(status.newest) == newest);
    let [blocker] = &status.in_flight[..] else { panic!("{:?}", status.in_flight) };
    assert_eq!((blocker.pid, blocker.holds), (None, Holds::Lease));
    let text = blocker.to_string();
    assert!(text.contains("prepared transaction left behind") && blocker.age_secs.is_some(), "{text}");

    // It outlives the server, and so does what it holds up.
    cluster.restart().unwrap();
    let restarted = instance(&database, Configuration::new()).await;
    assert!(restarted.horizon().await.unwrap() < late);
    database.client().await.batch_execute("COMMIT PREPARED 'left behind'").await.unwrap();
    assert_eq!(Some(restarted.horizon().await.unwrap()), newest);
    let read = restarted.read(Position::START, 100).next().await.unwrap();
    assert_eq!(streams(&read), ["prepared", "after", "after"]);
}

// --- positions ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_horizon_is_right_where_the_low_half_of_a_position_wraps() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new()).await;
    let observer = database.client().await;
    for wrap in [1_i64 << 31, 1 << 32, (1 << 32) + (1 << 31), 1 << 33, 1 << 62] {
        for before in 0..4 {
            let start = wrap - 3 + before;
            // Backwards now and then, which only a test may do: nothing is in flight.
            observer.execute("DELETE FROM changeover.events", &[]).await.unwrap();
            observer.execute("SELECT setval('changeover.event_position', $1)", &[&start]).await.unwrap();
            let mut clients =
                [changeover.pool().get().await.unwrap(), changeover.pool().get().await.unwrap()];
            let [first, second] = &mut clients;
            let first = first.transaction().await.unwrap();
            append_in(&changeover, &first, "first").await;
            append_in(&changeover, &first, "first").await;
            let second = second.transaction().await.unwrap();
            append_in(&changeover, &second, "second").await;
            append_in(&changeover, &second, "second").await;
            let horizon = async || changeover.horizon().await.unwrap().get();
            assert_eq!(horizon().await, start, "from {start}");
            first.commit().await.unwrap();
            assert_eq!(horizon().await, start + 2, "from {start}");
            second.commit().await.unwrap();
            assert_eq!(horizon().await, start + 4, "from {start}");
            let read = changeover.read(Position::new(start), 10).next().await.unwrap();
            assert_eq!(streams(&read), ["first", "first", "second", "second"]);
        }
    }
}

#[tokio::test]
async fn positions_go_on_after_dump_and_restore() {
    let (database, restored) = (Database::fresh().await, Database::fresh().await);
    let before = instance(&database, Configuration::new().fold(Orders1).unwrap()).await;
    let running = before.start();
    let last = place(&before, "order-1", 3).await.last().unwrap();
    before.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
    running.stop().await;

    let file = std::env::temp_dir().join(format!("{}.sql", database.name()));
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(Cluster::shared().bin(program)).args(args).output().unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    };
    let path = file.to_str().unwrap();
    run("pg_dump", &["--file", path, &database.url()]);
    run("psql", &["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file", path, &restored.url()]);
    std::fs::remove_file(&file).unwrap();

    let after = instance(&restored, Configuration::new().fold(Orders1).unwrap()).await;
    let running = after.start();
    assert_eq!(after.horizon().await.unwrap(), last);
    let next = after.append(&stream("order-1"), Expected::Any, &[OrderEvent::Paid]).await.unwrap();
    assert_eq!((next.revision.get(), next.last().unwrap() > last), (5, true));
    after.wait_for(&"orders".parse().unwrap(), next.last().unwrap(), SOON).await.unwrap();
    let sql = "SELECT items, paid FROM orders_v1.orders";
    let row = restored.client().await.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, bool>(1)), (3, true));
    running.stop().await;
}
