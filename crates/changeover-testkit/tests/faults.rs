//! Faults on the wire, a pooler, and processes to kill and freeze.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use changeover_testkit::{Database, PgBouncer, Process, Proxy, eventually};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls};

const SOON: Duration = Duration::from_mins(1);
/// Long enough to be sure that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn shell(script: &str) -> Process {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]);
    Process::spawn(shell).unwrap()
}

#[tokio::test]
async fn a_cut_resets_every_connection_and_refuses_new_ones() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let through = proxy.config(&database.config());
    let client = connect(&through).await.unwrap();
    client.simple_query("SELECT 1").await.unwrap();
    assert_eq!((proxy.open_connections(), proxy.accepted_connections()), (1, 1));

    proxy.cut();
    assert_eq!(proxy.open_connections(), 0);
    let error = client.simple_query("SELECT 1").await.unwrap_err();
    assert!(error.is_closed() || format!("{error:?}").contains("ConnectionReset"), "{error:?}");
    let refused = connect(&through).await.expect_err("a cut proxy let somebody in");
    assert!(format!("{refused:?}").contains("ConnectionRefused"), "{refused:?}");

    proxy.resume();
    connect(&through).await.unwrap().simple_query("SELECT 1").await.unwrap();
    assert_eq!(proxy.accepted_connections(), 2);
}

#[tokio::test]
async fn a_cut_that_is_mended_at_once_is_a_cut() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let through = proxy.config(&database.config());
    for _ in 0..20 {
        let client = connect(&through).await.unwrap();
        proxy.cut();
        proxy.resume();
        eventually(SOON, || async { client.is_closed() }).await;
    }
}

#[test]
fn a_cut_is_mended_also_while_processes_are_started() {
    let proxy = Proxy::start("127.0.0.1:1").unwrap();
    let stop = AtomicBool::new(false);
    let mut failed = 0;
    std::thread::scope(|scope| {
        // Until such a process has become its program it holds whatever we have open.
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
        }
        for _ in 0..300 {
            proxy.cut();
            let refused = TcpStream::connect(proxy.addr());
            failed += i32::from(refused.is_ok());
            if std::panic::catch_unwind(AssertUnwindSafe(|| proxy.resume())).is_err() {
                failed += 1;
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(failed, 0, "a port was held by others");
}

#[tokio::test]
async fn a_stall_holds_everything_back_and_loses_nothing() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let through = proxy.config(&database.config());
    let client = connect(&through).await.unwrap();
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();

    proxy.stall();
    let mut inserting = Box::pin(client.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)"));
    let mut connecting = Box::pin(connect(&through));
    assert!(timeout(A_WHILE, &mut inserting).await.is_err(), "an answer came through a stalled wire");
    assert!(timeout(A_WHILE, &mut connecting).await.is_err(), "a stalled wire let somebody in");
    let direct = database.client().await;
    let count = "SELECT count(*) FROM t";
    assert_eq!(direct.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);

    proxy.resume();
    inserting.await.unwrap();
    let late = connecting.await.unwrap();
    assert_eq!(late.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 1000);
}

#[tokio::test]
async fn a_cut_is_a_reset_and_no_orderly_end() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    for stalled_before in [false, true].repeat(10) {
        if stalled_before {
            proxy.stall();
        }
        let mut client = TcpStream::connect(proxy.addr()).unwrap();
        eventually(SOON, || async { proxy.open_connections() == 1 }).await;
        proxy.cut();
        let end = client.read(&mut [0]);
        assert!(
            matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset),
            "stalled before: {stalled_before}: {end:?}"
        );
        proxy.resume();
    }
}

#[tokio::test]
async fn a_delay_delays_each_round_trip_and_not_each_byte() {
    let database = Database::fresh().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let client = connect(&proxy.config(&database.config())).await.unwrap();
    proxy.delay(Duration::from_millis(50));

    let started = Instant::now();
    let megabytes = client.query_typed("SELECT repeat('x', 40000000)", &[]).await.unwrap();
    assert_eq!(megabytes[0].get::<_, &str>(0).len(), 40_000_000);
    let took = started.elapsed();
    // Two minutes, if each piece had to wait for the one before.
    assert!((Duration::from_millis(100)..SOON).contains(&took), "{took:?}");
}

#[tokio::test]
async fn pgbouncer_pools_transactions() {
    let database = Database::fresh().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let (one, other) = (connect(&pooler.config()).await.unwrap(), connect(&pooler.config()).await.unwrap());

    // Two clients, one at a time: the same backend serves both, which no session would.
    let backend = "SELECT pg_backend_pid(), $1::text";
    let mut seen = Vec::new();
    for client in [&one, &other, &one] {
        let rows = client.query_typed(backend, &[(&"x", tokio_postgres::types::Type::TEXT)]).await.unwrap();
        seen.push(rows[0].get::<_, i32>(0));
    }
    assert!(seen.iter().all(|pid| *pid == seen[0]), "{seen:?}");

    let (client, connection) = tokio_postgres::connect(&pooler.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let row = &client.query_typed("SELECT current_database()::text", &[]).await.unwrap()[0];
    assert_eq!(row.get::<_, &str>(0), database.name());

    let address = pooler.config();
    drop(pooler);
    assert!(connect(&address).await.is_err());
}

#[tokio::test]
async fn a_frozen_process_does_nothing_until_it_is_thawed() {
    let process = shell("while :; do echo tick; sleep 0.01; done");
    process.wait_for_line("tick", SOON).await.unwrap();

    process.freeze().unwrap();
    let before = process.output();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(process.output(), before);

    process.thaw().unwrap();
    eventually(SOON, || async { process.output().len() > before.len() }).await;
    process.freeze().unwrap();
    process.kill_9().unwrap();
    assert!(process.thaw().is_err(), "it has ended");
}

#[tokio::test]
async fn a_process_is_asked_to_end_and_waited_for() {
    let process = shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done");
    assert_eq!(process.wait_for_line("up", SOON).await.unwrap(), "up");
    assert!(process.wait(Duration::from_millis(50)).await.is_err(), "it still runs");
    process.terminate().unwrap();
    assert_eq!(process.wait(SOON).await.unwrap().code(), Some(3));
    assert_eq!(process.output(), "up\nbye\n");
}

#[tokio::test]
async fn a_line_that_never_comes_is_an_error_that_shows_what_came() {
    let process = shell("echo one; echo two >&2; exit 1");
    let error = process.wait_for_line("three", SOON).await.unwrap_err().to_string();
    assert!(error.contains("exit status: 1") && error.contains("one\ntwo"), "{error}");

    let process = shell("echo one; sleep 60");
    let error = process.wait_for_line("three", A_WHILE).await.unwrap_err().to_string();
    assert!(error.contains("within 300ms") && error.contains("one"), "{error}");
}

#[tokio::test]
async fn a_dropped_process_is_gone() {
    let process = shell("exec sleep 60");
    let proc = format!("/proc/{}", process.pid());
    assert!(std::path::Path::new(&proc).exists());
    drop(process);
    assert!(!std::path::Path::new(&proc).exists());
}

#[test]
fn a_program_that_is_not_there_is_an_error_at_once() {
    let error = Process::spawn(Command::new("no-such-program")).unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");
}
