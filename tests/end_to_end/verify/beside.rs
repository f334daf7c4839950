//! Beside others, and what is left of one that was killed.

use std::sync::{Mutex, mpsc};

use changeover::{Changeover, Expected, ReplayOptions, Verified, VerifyError, VerifyOptions, VerifyProgress};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use super::{count, name, replayed_accounts, scratch, small_pages, verify};
use crate::accounts::{at_once, with};
use crate::orders::{OrderEvent, place, stream};
use crate::releases::{SOON, hasty, instance_of};

/// A verification that stops whenever it has compared a page, until it is let go on.
struct Stepwise {
    task: tokio::task::JoinHandle<Result<Verified, VerifyError>>,
    paged: tokio::sync::mpsc::UnboundedReceiver<u64>,
    go: Option<mpsc::Sender<()>>,
}

impl Stepwise {
    fn start(instance: &Changeover, projector: &str, options: VerifyOptions) -> Self {
        let (tell, paged) = tokio::sync::mpsc::unbounded_channel();
        let (go, gate) = mpsc::channel::<()>();
        let (instance, projector, gate) = (instance.clone(), name(projector), Mutex::new(gate));
        let task = tokio::spawn(async move {
            let on_progress = |progress: VerifyProgress| {
                if let VerifyProgress::Comparing { rows, .. } = progress
                    && tell.send(rows).is_ok()
                {
                    let gate = gate.lock().unwrap();
                    // An error: it was let go for good.
                    tokio::task::block_in_place(|| gate.recv()).unwrap_or_default();
                }
            };
            instance.verify(&projector, &options, &on_progress).await
        });
        Self { task, paged, go: Some(go) }
    }

    /// Waits for a page.
    async fn page(&mut self) -> u64 {
        tokio::time::timeout(SOON, self.paged.recv()).await.unwrap().expect("it ended before")
    }

    async fn outcome(mut self) -> Result<Verified, VerifyError> {
        self.go = None;
        drop(self.paged);
        tokio::time::timeout(SOON, &mut self.task).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_neither_waits_for_readers_nor_locks_anything_between_pages() {
    let database = Database::fresh().await;
    let mut client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.5, 3_000).await;
    let watcher = database.client().await;
    // A long reader, whose snapshot is of before.
    let reader = client.transaction().await.unwrap();
    reader.execute("SELECT count(*) FROM accounts_v1.accounts", &[]).await.unwrap();
    let mut verifying = Stepwise::start(&instance, "accounts", small_pages());
    assert_eq!(verifying.page().await, 50);
    reader.commit().await.unwrap();
    let lock = "BEGIN; LOCK TABLE accounts_v1.accounts, accounts_v1.kinds, changeover.events, changeover.checkpoints IN ACCESS EXCLUSIVE MODE NOWAIT; ROLLBACK";
    watcher.batch_execute(lock).await.unwrap();
    // Nor does it hold any old snapshot.
    let old = "SELECT query, state FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
                 AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)";
    let old = watcher.query(old, &[]).await.unwrap();
    let old: Vec<(String, String)> = old.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(old, []);
    assert!(verifying.outcome().await.unwrap().is_equal());
}

/// The marks of verifications in this database.
const AT_IT: &str = "FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND d.datname = current_database()";

/// Waits until the server has seen that nobody verifies any more.
async fn nobody_at_it(client: &Client) {
    let at_it = format!("SELECT count(*) {AT_IT}");
    eventually(SOON, || async { client.query_one(&at_it, &[]).await.unwrap().get::<_, i64>(0) == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_verification_leaves_is_dropped_by_the_next_and_nothing_else() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.6, 3_000).await;
    let mut left_behind = Vec::new();
    for _ in 0..2 {
        let mut killed = Stepwise::start(&instance, "accounts", small_pages());
        killed.page().await;
        left_behind = scratch(&client).await;
        killed.task.abort();
        drop(killed.go.take());
        assert!(killed.task.await.is_err_and(|error| error.is_cancelled()));
        // The server sees that nobody is at it any more.
        nobody_at_it(&client).await;
    }
    assert_eq!(left_behind.len(), 1, "what the first one left went with the second: {left_behind:?}");
    // Others of such a name, with tables like them, and one that something depends on.
    client
        .batch_execute(
            "CREATE SCHEMA accounts_v1_verify_0123abcd; CREATE TABLE accounts_v1_verify_0123abcd.accounts ()",
        )
        .await
        .unwrap();
    let mut other = Stepwise::start(&instance, "accounts", small_pages());
    other.page().await;
    let now = scratch(&client).await;
    assert_eq!(now.len(), 2, "{now:?}");
    assert!(
        !now.contains(&left_behind[0]) && now.contains(&"accounts_v1_verify_0123abcd".to_owned()),
        "{now:?}"
    );
    // One that is at work is left alone.
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert_eq!(scratch(&client).await, now);
    assert!(other.outcome().await.unwrap().is_equal());

    let mut killed = Stepwise::start(&instance, "accounts", small_pages());
    killed.page().await;
    let schema = scratch(&client).await.into_iter().find(|schema| !schema.ends_with("0123abcd")).unwrap();
    client
        .batch_execute(&format!("CREATE VIEW public.mine AS SELECT id FROM {schema}.accounts"))
        .await
        .unwrap();
    killed.task.abort();
    drop(killed.go.take());
    assert!(killed.task.await.is_err());
    nobody_at_it(&client).await;
    // Somebody's view keeps it, whole; verifying goes on.
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert!(scratch(&client).await.contains(&schema));
    client.batch_execute("SELECT * FROM public.mine; DROP VIEW public.mine").await.unwrap();
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert_eq!(scratch(&client).await, ["accounts_v1_verify_0123abcd"]);
    assert_eq!(count(&client, "accounts_v1_verify_0123abcd.accounts").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_when_the_connection_was_lost_that_kept_the_tables() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.7, 3_000).await;
    let mut verifying = Stepwise::start(&instance, "accounts", small_pages());
    verifying.page().await;
    let cut = format!("SELECT count(pg_terminate_backend(pid)) {AT_IT}");
    let cut = cut.as_str();
    assert_eq!(client.query_one(cut, &[]).await.unwrap().get::<_, i64>(0), 1);
    let error = verifying.outcome().await.unwrap_err();
    assert!(matches!(error, VerifyError::ScratchLost { .. }), "{error:?}");
    assert!(verify(&instance, "accounts", &small_pages()).await.is_equal());
    assert_eq!(scratch(&client).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_in_the_middle_changes_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    for order in 0..40 {
        place(&old, &format!("o-{order}"), 1).await;
    }
    let new = instance_of(&database, "inline 2.0.0").await;
    new.replay(&[name("orders")], &with(at_once()), &|_| {}).await.unwrap();
    let options = VerifyOptions { page_rows: 10, ..small_pages() };
    // One that is retired meanwhile, and one that appends feed from then on.
    let mut retiring = Stepwise::start(&old, "orders", options.clone());
    let mut taking_over = Stepwise::start(&new, "orders", options);
    retiring.page().await;
    taking_over.page().await;
    let _ = new.activate(&hasty(), &|_| {}).await.unwrap();
    for order in 0..40 {
        new.append(&stream(&format!("o-{order}")), Expected::Any, &[OrderEvent::Paid]).await.unwrap();
    }
    for verifying in [retiring, taking_over] {
        let verified = verifying.outcome().await.unwrap();
        assert!(verified.is_equal() && verified.rows() == 40, "{verified:?}");
    }
    assert_eq!(count(&client, "orders_v2.orders WHERE paid").await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_started_over_in_the_middle_is_told() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.8, 3_000).await;
    let mut verifying = Stepwise::start(&instance, "accounts", small_pages());
    verifying.page().await;
    let restart = ReplayOptions { restart: true, ..with(at_once()) };
    instance.replay(&[name("accounts")], &restart, &|_| {}).await.unwrap();
    // Replayed again to where it was: what was compared before is worth as much as what comes now.
    assert!(verifying.outcome().await.unwrap().is_equal());

    // A page whose snapshot is older than the emptying would show no rows.
    let mut verifying = Stepwise::start(&instance, "accounts", small_pages());
    verifying.page().await;
    let mut other = database.client().await;
    let held = other.transaction().await.unwrap();
    held.batch_execute(
        "LOCK TABLE accounts_v1.accounts, accounts_v1.kinds, accounts_v1.whole IN ACCESS EXCLUSIVE MODE;
         TRUNCATE accounts_v1.accounts, accounts_v1.kinds, accounts_v1.whole;
         UPDATE changeover.checkpoints SET position = 0, attempt = attempt + 1",
    )
    .await
    .unwrap();
    let outcome = tokio::spawn(verifying.outcome());
    let waits = "SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                 WHERE NOT l.granted AND c.relname = 'accounts' AND c.relnamespace = 'accounts_v1'::regnamespace";
    eventually(SOON, || async { !client.query(waits, &[]).await.unwrap().is_empty() }).await;
    held.commit().await.unwrap();
    let error = outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, VerifyError::WentBack { .. }), "{error:?}");
    assert_eq!(scratch(&client).await, [""; 0]);
}
