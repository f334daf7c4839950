//! `discard`: what is left of a replay that was never activated goes, and nothing else.

use changeover::semver::Version;
use changeover::{
    ActivateOptions, Changeover, DiscardError, DiscardOptions, Expected, Pace, PruneOptions, WhyNotPruned,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::accounts::{AccountEvent, accounts, at_once, cramped, of, replay, with};
use crate::operator::Operator;
use crate::orders::stream;
use crate::parallel_breaking::{claims, end_transactions, handled_after, is_the_same, with_history};
use crate::releases::SOON;

fn version(major: u64) -> Version {
    Version::new(major, 0, 0)
}

async fn discard(instance: &Changeover, major: u64) -> Result<changeover::Abandoned, DiscardError> {
    let options = DiscardOptions { requested_by: "ada".to_owned(), wait: SOON };
    instance.discard(&accounts(), &version(major), &options).await
}

/// Why it was not discarded.
async fn refused(instance: &Changeover, major: u64) -> String {
    let planned = instance.plan_discard(&accounts(), &version(major)).await.unwrap_err();
    let refused = discard(instance, major).await.unwrap_err();
    assert!(matches!(refused, DiscardError::NotAbandoned { .. }), "{refused:?}");
    assert_eq!(planned.to_string(), refused.to_string());
    refused.to_string()
}

/// What the database still knows of the second version: states, checkpoints, schemas.
async fn known(client: &Client) -> (i64, i64, i64) {
    let sql = "SELECT (SELECT count(*) FROM changeover.projector_states WHERE version = '2.0.0'),
                      (SELECT count(*) FROM changeover.checkpoints WHERE major = 2),
                      (SELECT count(*) FROM pg_namespace WHERE nspname = 'accounts_v2')";
    let row = client.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

async fn attempt(client: &Client) -> i32 {
    let sql = "SELECT attempt FROM changeover.checkpoints WHERE major = 2 AND shard = 0";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Whoever was seen a moment ago was not seen for a minute.
pub(crate) async fn silence(client: &Client) {
    let sql = "UPDATE changeover.replays SET last_seen = last_seen - interval '1 minute'";
    assert_eq!(client.execute(sql, &[]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_nobody_goes_on_with_is_discarded_and_may_begin_anew() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.71, 20_000).await;
    let instance = of::<2>(&database).await;
    assert!(matches!(discard(&instance, 2).await.unwrap_err(), DiscardError::NotThere { .. }));
    let there = Operator::replay_in_bulk(&database, "accounts 2", 4, 20_000, 3_000);
    there.stopped().await;
    // Frozen or not: it is there.
    let why = refused(&instance, 2).await;
    assert!(why.contains(&format!("process {}", there.pid())) && why.contains("`abort` ends that"), "{why}");
    silence(&client).await;
    let why = refused(&instance, 2).await;
    assert!(why.contains("holds shards of it, perhaps frozen"), "{why}");
    there.kill_9();
    eventually(SOON, || async { claims(&client).await.is_empty() }).await;
    let planned = instance.plan_discard(&accounts(), &version(2)).await.unwrap();
    assert_eq!((&planned.schema[..], &planned.versions[..]), ("accounts_v2", &[version(2)][..]));
    assert!(planned.bytes > 0 && planned.position.get() >= 0 && planned.in_the_way.is_empty(), "{planned:?}");
    let dropped = discard(&instance, 2).await.unwrap();
    assert_eq!(dropped.schema, planned.schema);
    assert_eq!(known(&client).await, (0, 0, 0));
    let sql = "SELECT pruned_by, activated FROM changeover.pruned_versions";
    let history = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((history.get::<_, &str>(0), history.get::<_, bool>(1)), ("ada", false));
    // It begins with the first event, and it is another attempt.
    assert_eq!(replay(&instance, &with(cramped(2))).await, handled_after(&client, 0).await);
    assert_eq!(attempt(&client).await, 2);
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_active_is_not_taken_for_that_because_it_was_discarded() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = of::<2>(&database).await;
    replay(&instance, &with(at_once())).await;
    let _ = discard(&instance, 2).await.unwrap();
    assert_eq!(known(&client).await, (0, 0, 0));
    // As on the first day: whoever comes first assumes that its configuration is the active one.
    let opened = AccountEvent::Opened { account: 1, owner: "Ada".to_owned() };
    instance.append(&stream("first"), Expected::NoStream, &[opened]).await.unwrap();
    assert_eq!(known(&client).await, (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wakes_up_after_its_replay_was_discarded_does_no_harm() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.72, 20_000).await;
    let instance = of::<2>(&database).await;
    let late = Operator::replay_in_bulk(&database, "accounts 2", 4, 20_000, 3_000);
    late.stopped().await;
    silence(&client).await;
    // The server takes it for dead; it is not.
    end_transactions(&client).await;
    eventually(SOON, || async { claims(&client).await.is_empty() }).await;
    let _ = discard(&instance, 2).await.unwrap();
    // Rows are split into as many shards as before, but these are not the same.
    let pace = Pace { shards: Some(4), ..at_once() };
    replay(&instance, &with(pace)).await;
    let said = late.thaw().await;
    assert!(said.starts_with("end: refused"), "{said}");
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_counts_or_counted_is_not_discarded() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.73, 1_000).await;
    let (one, two) = (of::<1>(&database).await, of::<2>(&database).await);
    let options = ActivateOptions { pause_limit: SOON, ..ActivateOptions::default() };
    let _ = one.activate(&options, &|_| {}).await.unwrap();
    let why = refused(&two, 1).await;
    assert!(why.contains("accounts 1.0.0 was not discarded: it is active"), "{why}");
    let _ = two.activate(&options, &|_| {}).await.unwrap();
    let why = refused(&two, 1).await;
    assert!(why.contains("it is retired; `prune`"), "{why}");
    // Whoever began to go back and did not get there has left it being replayed: it is the way back all the same.
    replay(&one, &with(at_once())).await;
    let why = refused(&two, 1).await;
    assert!(why.contains("it was active before, and its rows are the way back"), "{why}");
    // Tables that came from elsewhere are not ours to throw away.
    let sql = "UPDATE changeover.checkpoints SET adopted = position WHERE major = 1";
    client.batch_execute(sql).await.unwrap();
    let why = refused(&two, 1).await;
    assert!(why.contains("its rows were adopted"), "{why}");
    let _ = two.plan_prune(PruneOptions::default().keep).await.unwrap();
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_on_the_tables_keeps_them_all() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.74, 1_000).await;
    let instance = of::<2>(&database).await;
    replay(&instance, &with(at_once())).await;
    client.batch_execute("CREATE VIEW public.theirs AS SELECT * FROM accounts_v2.whole").await.unwrap();
    let planned = instance.plan_discard(&accounts(), &version(2)).await.unwrap();
    assert_eq!(planned.in_the_way.len(), 1);
    let refused = discard(&instance, 2).await.unwrap_err();
    let DiscardError::Left(left) = &refused else { panic!("{refused:?}") };
    assert!(matches!(left.why, WhyNotPruned::InTheWay(_)), "{refused}");
    is_the_same(&client).await;
    client.batch_execute("DROP VIEW public.theirs").await.unwrap();
    // A reader is waited for, and not for ever.
    let mut reader = database.client().await;
    let reading = reader.transaction().await.unwrap();
    reading.batch_execute("SELECT FROM accounts_v2.whole").await.unwrap();
    let hasty = DiscardOptions { wait: std::time::Duration::from_millis(300), ..DiscardOptions::default() };
    let refused = instance.discard(&accounts(), &version(2), &hasty).await.unwrap_err();
    assert!(
        matches!(&refused, DiscardError::Left(left) if matches!(left.why, WhyNotPruned::Blocked { .. })),
        "{refused:?}"
    );
    assert_eq!(known(&client).await, (1, 1, 1));
    reading.commit().await.unwrap();
    let _ = discard(&instance, 2).await.unwrap();
    assert_eq!(known(&client).await, (0, 0, 0));
}
