//! `retry`, `skip`, `abort` and `deactivate`.

use changeover::{AppendError, Expected, Refused};
use changeover_testkit::{Process, eventually};
use serde_json::json;

use crate::program::{Program, SOON, golden, instance, place, placed, release_1_is_active, stalled, stream};

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_projector_is_retried_or_moved_past_its_event() {
    let database = release_1_is_active(5).await;
    let changeover = Program::changeover().on(&database);
    golden("retry_of_what_is_not_stalled", changeover.run("retry totals --json").ended(1));
    assert_eq!(changeover.run("retry total --json").ended(1).kind(), "unknown_projector");
    assert_eq!(changeover.run("skip total --position 1 --json").ended(1).kind(), "unknown_projector");
    golden("skip_of_what_is_not_stalled", changeover.run("skip totals --position 3").ended(1));

    let serving = instance(&database, 1).await;
    let running = serving.start();
    serving.append(&stream("below"), Expected::Any, &[placed(-1)]).await.unwrap();
    place(&serving, 5..7).await;
    let position = stalled(&serving).await;
    running.stop().await;

    golden("skip_elsewhere", changeover.run("skip totals --position 3 --json").ended(1));
    golden("retry", changeover.run("retry totals").ended(0));
    golden("retry_again", changeover.run("retry totals").ended(1));
    // It makes no more sense than before.
    let serving = instance(&database, 1).await;
    let running = serving.start();
    assert_eq!(stalled(&serving).await, position);
    let skipped = changeover.run(&format!("skip totals --position {position} --json")).ended(0);
    assert_eq!(skipped.json(), json!({ "projector": "totals", "skipped": position }));
    let horizon = serving.horizon().await.unwrap();
    serving.wait_for(&"totals".parse().unwrap(), horizon, SOON).await.unwrap();
    let client = database.client().await;
    let cents: i64 = client.query_one("SELECT cents FROM totals_v1.total", &[]).await.unwrap().get(0);
    assert_eq!(cents, 700);
    let by: String =
        client.query_one("SELECT skipped_by FROM changeover.skipped_events", &[]).await.unwrap().get(0);
    assert_eq!(by, "tester");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abort_without_an_activation_is_done() {
    let database = release_1_is_active(1).await;
    let changeover = Program::changeover().on(&database);
    golden("abort_of_nothing", changeover.run("abort").ended(0));
    assert_eq!(changeover.run("abort --json").ended(0).json(), json!({ "aborted": [], "replays": [] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_is_deactivated_once() {
    let database = release_1_is_active(5).await;
    let changeover = Program::changeover().on(&database);
    golden("deactivate", changeover.run("deactivate totals").ended(0));
    golden("deactivate_again", changeover.run("deactivate totals --json").ended(1));
    assert_eq!(changeover.run("deactivate total --json").ended(1).kind(), "unknown_projector");
    golden("status_after_deactivate", changeover.run("status").ended(0));
    place(&instance(&database, 1).await, 5..6).await;

    let json = changeover.run("deactivate orders --json").ended(0).json();
    assert_eq!(json["plan"]["steps"][0]["action"], "retire");
    assert!(json["pause_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_blocks_a_deactivation() {
    let database = release_1_is_active(5).await;
    let serving = instance(&database, 1).await;
    let mut client = serving.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    serving.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let changeover = Program::changeover().on(&database);
    let line = "deactivate totals --pause-limit 200ms --drain-timeout 100ms";
    assert_eq!(changeover.run(&format!("{line} --json")).ended(1).kind(), "blocked");
    tx.rollback().await.unwrap();
    // Nothing was left behind.
    place(&serving, 5..6).await;
    let refused = instance(&database, 2).await.append(&stream("x"), Expected::Any, &[placed(1)]).await;
    assert!(
        matches!(refused, Err(AppendError::Refused(Refused::OlderProjectorIsActive { .. }))),
        "{refused:?}"
    );
    changeover.run("deactivate totals").ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivation_is_waited_for_unless_told_twice_to_stop() {
    let database = release_1_is_active(5).await;
    let serving = instance(&database, 1).await;
    let mut client = serving.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    serving.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let spawn =
        || Process::spawn(Program::changeover().on(&database).command("deactivate totals --pause-limit 5m"));
    let paused = || async { serving.status().await.unwrap().activation.is_some_and(|open| open.paused) };

    let deactivating = spawn().unwrap();
    eventually(SOON, paused).await;
    deactivating.terminate().unwrap();
    deactivating.wait_for_line("SIGTERM: the outcome is waited for", SOON).await.unwrap();
    deactivating.terminate().unwrap();
    assert_eq!(deactivating.wait(SOON).await.unwrap().code(), Some(3));
    assert!(paused().await, "it was left to its deadline");
    Program::changeover().on(&database).run("abort").ended(0);

    let deactivating = spawn().unwrap();
    eventually(SOON, paused).await;
    deactivating.terminate().unwrap();
    deactivating.wait_for_line("SIGTERM: the outcome is waited for", SOON).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(deactivating.wait(SOON).await.unwrap().code(), Some(0));
}
