//! A server that is killed, frozen, and left behind by a killed test.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use changeover_testkit::{Cluster, Database, Process, eventually};

const SOON: Duration = Duration::from_mins(1);

#[tokio::test]
async fn what_was_committed_survives_kill_9() {
    let cluster = Cluster::builder().durable().start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").await.unwrap();
    client.batch_execute("BEGIN; INSERT INTO kept VALUES (2)").await.unwrap();

    cluster.kill_9().unwrap();
    eventually(SOON, || async { client.is_closed() }).await;
    assert!(database.config().connect(tokio_postgres::NoTls).await.is_err());

    cluster.restart().unwrap();
    let rows = database.client().await.query("SELECT n FROM kept", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1]);
    let log = fs::read_to_string(cluster.log_path().unwrap()).unwrap();
    assert!(log.contains("was not properly shut down"), "it was killed, so it must recover:\n{log}");
}

#[tokio::test]
async fn a_restart_keeps_port_and_data() {
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    database.client().await.batch_execute("CREATE TABLE kept ()").await.unwrap();
    let before = cluster.url("postgres");

    cluster.restart().unwrap();
    assert_eq!(cluster.url("postgres"), before);
    database.client().await.batch_execute("TABLE kept").await.unwrap();
    let log = fs::read_to_string(cluster.log_path().unwrap()).unwrap();
    assert!(!log.contains("was not properly shut down"), "it was stopped in good order:\n{log}");
}

#[test]
fn a_server_that_may_lose_data_is_not_for_crash_tests() {
    let error = Cluster::start().unwrap().kill_9().unwrap_err().to_string();
    assert!(error.contains("durable"), "{error}");
}

#[tokio::test]
async fn a_server_whose_files_are_limited_has_a_full_disk_until_it_is_given_room() {
    let error = Cluster::start().unwrap().limit_files(Some(2 << 20)).unwrap_err().to_string();
    assert!(error.contains("with_small_wal"), "{error}");

    let cluster = Cluster::builder().with_small_wal().start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let before = database.client().await;
    before.batch_execute("CREATE TABLE filled (n bigint, text text)").await.unwrap();
    let fill = "INSERT INTO filled SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 5000) AS n";
    cluster.limit_files(Some(2 << 20)).unwrap();
    // For connections that were there before as for new ones.
    for client in [&before, &database.client().await] {
        let error = client.batch_execute(fill).await.unwrap_err();
        assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("53100"), "{error:?}");
    }
    cluster.limit_files(None).unwrap();
    before.batch_execute(fill).await.unwrap();
    let rows = before.query_one("SELECT count(*) FROM filled", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 5_000);
}

#[tokio::test]
async fn a_frozen_server_answers_nobody_until_it_is_thawed() {
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;

    cluster.freeze().unwrap();
    let mut answer = Box::pin(client.simple_query("SELECT 1"));
    let waiting = tokio::time::timeout(Duration::from_millis(300), &mut answer).await;
    assert!(waiting.is_err(), "a frozen server answered");
    let connecting = tokio::time::timeout(Duration::from_millis(300), database.client()).await;
    assert!(connecting.is_err(), "a frozen server let somebody in");

    cluster.thaw().unwrap();
    answer.await.unwrap();
}

#[tokio::test]
async fn a_frozen_server_can_be_killed_and_dropped() {
    let cluster = Cluster::builder().durable().start().unwrap();
    let home = cluster.socket_dir().unwrap().to_owned();
    let client = Database::fresh_on(&cluster).await.client().await;

    cluster.freeze().unwrap();
    cluster.kill_9().unwrap();
    eventually(SOON, || async { client.is_closed() }).await;

    cluster.restart().unwrap();
    cluster.freeze().unwrap();
    drop(cluster);
    assert!(!home.exists());
}

#[test]
fn settings_reach_the_server_and_its_programs_are_found() {
    let cluster = Cluster::builder().setting("work_mem", "1234kB").start().unwrap();
    let show = |setting: &str| {
        let mut psql = Command::new(cluster.bin("psql"));
        let shown =
            psql.args(["-XAtc", &format!("SHOW {setting}"), &cluster.url("postgres")]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(show("work_mem"), "1234kB");
    assert_eq!(show("port"), cluster.port().to_string());
    assert_eq!(show("fsync"), "off");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = Cluster::builder().setting("shared_buffers", "plenty").start().unwrap_err();
    assert!(format!("{error:#}").contains("invalid value for parameter \"shared_buffers\""), "{error:#}");
}

#[tokio::test]
async fn a_killed_test_takes_all_it_started_along() {
    if let Ok(how) = env::var(HOLDER) {
        return hold_a_server(&how);
    }
    // As in a container, where the new parent of an orphan is of the same session.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    for how in ["private", "frozen", "shared"] {
        let (holder, held) = hold_in_another_process(how).await;
        assert!(held.home.exists() && runs(held.postmaster) && runs(held.child), "{how}");
        holder.kill_9().unwrap();
        held.is_gone().await;
    }
}

#[tokio::test]
async fn a_test_that_returns_leaves_nothing_behind() {
    let (holder, held) = hold_in_another_process("shared, for a moment").await;
    assert!(holder.wait(SOON).await.unwrap().success());
    held.is_gone().await;
}

/// Tells the process that [`hold_in_another_process`] starts what it is there for.
const HOLDER: &str = "CHANGEOVER_TESTKIT_HOLDER";

struct Held {
    home: PathBuf,
    postmaster: u32,
    /// A plain [`Process`].
    child: u32,
}

impl Held {
    async fn is_gone(&self) {
        eventually(SOON, || async { !runs(self.child) }).await;
        eventually(SOON, || async { !runs(self.postmaster) }).await;
        eventually(SOON, || async { !self.home.exists() }).await;
    }
}

/// Runs this test binary once more, as one to be killed.
async fn hold_in_another_process(how: &str) -> (Process, Held) {
    let mut again = Command::new(env::current_exe().unwrap());
    again.args(["--exact", "a_killed_test_takes_all_it_started_along", "--nocapture"]);
    again.env(HOLDER, how).env_remove("DATABASE_URL");
    let holder = Process::spawn(again).unwrap();
    let line = holder.wait_for_line("holding ", SOON).await.unwrap();
    let mut words = line.split_once("holding ").unwrap().1.split(' ');
    let mut next = || words.next().unwrap();
    let held =
        Held { home: next().into(), postmaster: next().parse().unwrap(), child: next().parse().unwrap() };
    (holder, held)
}

fn hold_a_server(how: &str) {
    let private;
    let cluster = if how.starts_with("shared") {
        Cluster::shared()
    } else {
        private = Cluster::start().unwrap();
        &private
    };
    if how == "frozen" {
        cluster.freeze().unwrap();
    }
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let child = Process::spawn(sleep).unwrap();

    let home = cluster.socket_dir().unwrap();
    let pid_file = fs::read_to_string(home.join("data/postmaster.pid")).unwrap();
    let postmaster = pid_file.lines().next().unwrap();
    println!("holding {} {postmaster} {}", home.display(), child.pid());
    if how != "shared, for a moment" {
        thread::sleep(Duration::from_mins(10)); // That is, until we are killed.
    }
}

fn runs(pid: u32) -> bool {
    // A zombie does not: in a container, nobody may ever reap it.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
