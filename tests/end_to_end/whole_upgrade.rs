//! `upgrade`: all of it in one call, which goes on wherever it was killed, whoever goes on.

use std::sync::Mutex;

use changeover::{
    ActivateOptions, Changeover, ReplayPhase, UpgradeError, UpgradeOptions, UpgradeProgress, UpgradeStep,
    Upgraded, VerifyOptions,
};
use changeover_testkit::{Database, eventually};
use tokio_postgres::Client;

use crate::accounts::{at_once, cramped, of, replay, with};
use crate::operator::Operator;
use crate::parallel_breaking::{claims, is_the_same, with_history};
use crate::releases::SOON;

const ALL: [UpgradeStep; 5] = [
    UpgradeStep::Replay,
    UpgradeStep::Optimize,
    UpgradeStep::CatchUp,
    UpgradeStep::Verify,
    UpgradeStep::Activate,
];

/// As an operator does it here: in parallel, and with a pause that no slow machine outlasts.
pub(crate) fn options() -> UpgradeOptions {
    let activation = ActivateOptions {
        requested_by: "test".to_owned(),
        pace: at_once(),
        verify: Some(VerifyOptions::default()),
        pause_limit: SOON,
        ..ActivateOptions::default()
    };
    UpgradeOptions { activation }
}

fn unproved() -> UpgradeOptions {
    UpgradeOptions { activation: ActivateOptions { verify: None, ..options().activation } }
}

/// Upgrades, and counts the events that its bulk projects.
async fn upgrade(instance: &Changeover) -> (Upgraded, u64) {
    let bulk = Mutex::new(0);
    let on_progress = |progress: UpgradeProgress| {
        if let UpgradeProgress::Replaying(progress) = progress
            && progress.phase == ReplayPhase::Bulk
        {
            *bulk.lock().unwrap() = progress.events;
        }
    };
    let upgraded = instance.upgrade(&options(), &on_progress).await.unwrap();
    (upgraded, bulk.into_inner().unwrap())
}

async fn active(client: &Client) -> Vec<String> {
    let sql = "SELECT version FROM changeover.projector_states WHERE state = 'active' ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn switches(client: &Client) -> i64 {
    let sql = "SELECT count(*) FROM changeover.activations WHERE outcome = 'activated'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The first version is active, the second one is not known yet.
async fn before(seed: f64) -> (Database, Client) {
    let database = Database::fresh().await;
    let client = with_history(&database, seed, 20_000).await;
    let (upgraded, _) = upgrade(&of::<1>(&database).await).await;
    assert!(upgraded.activated.activation.is_some());
    assert_eq!(active(&client).await, ["1.0.0"]);
    (database, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_takes_its_steps_in_order_and_the_next_one_finds_it_done() {
    let (database, client) = before(0.51).await;
    let instance = of::<2>(&database).await;
    let steps = Mutex::new(Vec::new());
    let on_progress = |progress: UpgradeProgress| {
        if let UpgradeProgress::Step(step) = progress {
            steps.lock().unwrap().push(step);
        }
    };
    let upgraded = instance.upgrade(&options(), &on_progress).await.unwrap();
    assert_eq!(*steps.lock().unwrap(), ALL);
    assert_eq!(upgraded.steps.iter().map(|taken| taken.step).collect::<Vec<_>>(), ALL);
    assert!(upgraded.verified.len() == 1 && upgraded.verified[0].is_equal(), "{upgraded:?}");
    assert_eq!(upgraded.optimized[0].analyzed.len(), 3);
    assert!(upgraded.activated.pause_ms > 0.0);
    assert_eq!((active(&client).await, switches(&client).await), (vec!["2.0.0".to_owned()], 2));
    is_the_same(&client).await;
    let (again, bulk) = upgrade(&instance).await;
    assert_eq!(again.steps.iter().map(|taken| taken.step).collect::<Vec<_>>(), [UpgradeStep::Activate]);
    assert_eq!((again.activated.activation, bulk, switches(&client).await), (None, 0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_is_killed_at_any_step_goes_on_from_there() {
    for (at, step) in ALL.into_iter().enumerate() {
        let seed = 0.52 + f64::from(u8::try_from(at).unwrap()) / 100.0;
        let (database, client) = before(seed).await;
        let killed = Operator::upgrade(&database, "accounts 2", step.as_str()).await;
        killed.kill_9();
        eventually(SOON, || async { claims(&client).await.is_empty() }).await;
        assert_eq!(active(&client).await, ["1.0.0"], "killed at {step}");
        let (upgraded, bulk) = upgrade(&of::<2>(&database).await).await;
        // A bulk that was finished is not done again.
        assert_eq!(bulk > 0, step == UpgradeStep::Replay, "killed at {step}: {bulk} events in bulk");
        assert!(upgraded.activated.activation.is_some(), "killed at {step}");
        assert_eq!(active(&client).await, ["2.0.0"], "killed at {step}");
        is_the_same(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_who_upgrade_at_once_switch_once_and_both_are_done() {
    let (database, client) = before(0.58).await;
    let (one, other) = (of::<2>(&database).await, of::<2>(&database).await);
    let options = UpgradeOptions { activation: ActivateOptions { pace: cramped(4), ..options().activation } };
    let (first, second) =
        tokio::join!(Box::pin(one.upgrade(&options, &|_| {})), Box::pin(other.upgrade(&options, &|_| {})));
    let (first, second) = (first.unwrap(), second.unwrap());
    let switched = [&first, &second].iter().filter(|one| one.activated.activation.is_some()).count();
    assert_eq!((switched, switches(&client).await), (1, 2), "{first:?} {second:?}");
    assert_eq!(active(&client).await, ["2.0.0"]);
    is_the_same(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_rows_are_never_switched_to_unless_nobody_wants_them_proved() {
    let (database, client) = before(0.59).await;
    let instance = of::<2>(&database).await;
    replay(&instance, &with(at_once())).await;
    client.batch_execute("UPDATE accounts_v2.whole SET events = events + 1").await.unwrap();
    let refused = instance.upgrade(&options(), &|_| {}).await.unwrap_err();
    let UpgradeError::Differs(differ) = &refused else { panic!("{refused:?}") };
    assert_eq!((differ.len(), differ[0].is_equal()), (1, false));
    assert_eq!(active(&client).await, ["1.0.0"]);
    let upgraded = instance.upgrade(&unproved(), &|_| {}).await.unwrap();
    assert_eq!((upgraded.verified.len(), active(&client).await), (0, vec!["2.0.0".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_between_the_bulk_and_the_switch_is_caught_up_with() {
    let (database, client) = before(0.6).await;
    let killed = Operator::upgrade(&database, "accounts 2", UpgradeStep::CatchUp.as_str()).await;
    // A log that goes on while nobody is at it.
    let more = "INSERT INTO changeover.events (position, stream, revision, type, data)
                SELECT nextval('changeover.event_position'), 'late', n, 'Opened', json_build_object('account', n, 'owner', 'late')
                FROM generate_series(1, 300) AS n";
    client.batch_execute(more).await.unwrap();
    killed.kill_9();
    let old = of::<1>(&database).await;
    let running = old.start();
    let horizon = old.horizon().await.unwrap();
    old.wait_for(&crate::accounts::accounts(), horizon, SOON).await.unwrap();
    running.stop().await;
    let (upgraded, bulk) = upgrade(&of::<2>(&database).await).await;
    assert!(upgraded.verified[0].is_equal() && bulk <= 300, "{bulk}");
    is_the_same(&client).await;
    let sql = "SELECT count(*) FROM accounts_v2.accounts WHERE owner = 'late'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 300);
}
