//! Activation as it should go: every kind of change, at one moment, with everybody else at work.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use changeover::{
    ActivateError, ActivateOptions, Activated, ActivationProgress, AppendError, Changeover, Expected, Plan,
    ReadyState, Refused, WhenNothingIsActive,
};
use changeover_testkit::{Database, eventually};

use crate::orders::{OrderEvent, place, placed, stream};
use crate::releases::{
    Held, SOON, Writers, active, hasty, instance_of, more_events, newest_outcome, phase, release, wrong_rows,
};

async fn activate(changeover: &Changeover) -> Activated {
    changeover.activate(&hasty(), &|_| {}).await.unwrap()
}

/// The steps of a plan: `replay orders 2.0.0`, `keep totals 1.0.0`.
fn words(plan: &Plan) -> Vec<String> {
    let steps = serde_json::to_value(&plan.steps).unwrap();
    let word = |step: &serde_json::Value, field: &str| step[field].as_str().unwrap().to_owned();
    let line =
        |step| format!("{} {} {}", word(step, "action"), word(step, "projector"), word(step, "version"));
    steps.as_array().unwrap().iter().map(line).collect()
}

/// An instance that may not assume anything.
async fn humble(database: &Database, name: &str) -> Changeover {
    let builder = Changeover::builder(database.config())
        .configuration(release(name))
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

#[tokio::test]
async fn the_first_activation_on_an_empty_log_is_one_like_any_other() {
    for name in ["1.0.0", "inline 1.0.0", "1.0.0 totals"] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let instance = humble(&database, name).await;
        let refused = instance.append(&stream("early"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::NoConfigurationIsActive)), "{refused}");
        let activated = activate(&instance).await;
        assert_eq!(activated.horizon.unwrap().get(), 0);
        let running = instance.start();
        let last = place(&instance, "order", 2).await.last().unwrap();
        if !name.starts_with("inline") {
            instance.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
        }
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{name}");
        running.stop().await;
    }
}

#[tokio::test]
async fn the_first_activation_on_a_filled_log_brings_the_history_along() {
    for name in ["1.0.0 totals", "inline 1.0.0 totals"] {
        let database = Database::fresh().await;
        let client = database.client().await;
        // A process without projectors filled the log before anybody thought of read models.
        let before = instance_of(&database, "none").await;
        for order in 0..30 {
            place(&before, &format!("order-{order}"), 3).await;
        }
        let instance = humble(&database, name).await;
        assert_eq!(words(&instance.plan().await.unwrap()), ["replay orders 1.0.0", "replay totals 1.0.0"]);
        let activated = activate(&instance).await;
        assert_eq!(activated.horizon, Some(instance.horizon().await.unwrap()));
        let refused = before.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(
            matches!(refused, AppendError::Refused(Refused::UnknownProjectorIsActive { .. })),
            "{refused}"
        );
        let running = instance.start();
        let last = place(&instance, "order-30", 3).await.last().unwrap();
        for projector in ["orders", "totals"] {
            instance.wait_for(&projector.parse().unwrap(), last, SOON).await.unwrap();
        }
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{name}");
        let total = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
        assert_eq!(total.get::<_, i64>(0), 31 * 3);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_never_sees_a_mix_of_two_configurations() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "fan 1").await;
    // Before the other one is there: of two that find nothing active either might assume its own.
    place(&old, "first", 1).await;
    let new = instance_of(&database, "fan 2").await;
    let (old_running, new_running) = (old.start(), new.start());
    let writers = Writers::start(2, &[&old, &new]);
    more_events(&client, 10).await;
    let stop = Arc::new(AtomicBool::new(false));
    let observer = database.client().await;
    let stopping = stop.clone();
    let begun = Arc::new(tokio::sync::Notify::new());
    let beginning = begun.clone();
    let observing = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            // Asked before the look, so that the last look comes after the stop.
            let last = stopping.load(Ordering::Relaxed);
            let now = active(&observer).await;
            if seen.last() != Some(&now) {
                seen.push(now);
            }
            beginning.notify_one();
            if last {
                return seen;
            }
        }
    });
    begun.notified().await;
    let activated = activate(&new).await;
    assert_eq!(activated.plan.steps.len(), 9);
    more_events(&client, 10).await;
    stop.store(true, Ordering::Relaxed);
    let written = writers.stop().await;
    assert_eq!(written.failed, Vec::<String>::new());
    let all_at = |major| (0..9).map(|n| format!("fan_{n} {major}.0.0")).collect::<Vec<_>>().join(", ");
    assert_eq!(observing.await.unwrap(), [all_at(1), all_at(2)]);
    let end = new.horizon().await.unwrap();
    for n in 0..9 {
        new.wait_for(&format!("fan_{n}").parse().unwrap(), end, SOON).await.unwrap();
        assert_eq!(wrong_rows(&client, &format!("fan_{n}_v2")).await, 0, "fan_{n}");
    }
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test]
async fn projectors_are_added_and_removed_in_the_same_step() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0 totals").await;
    for order in 0..5 {
        place(&old, &format!("order-{order}"), 2).await;
    }
    let new = instance_of(&database, "orders and fan_1").await;
    let plan = new.plan().await.unwrap();
    assert_eq!(words(&plan), ["replay fan_1 1.0.0", "keep orders 1.0.0", "retire totals 1.0.0"]);
    assert!(activate(&new).await.activation.is_some());
    assert_eq!(active(&client).await, "fan_1 1.0.0, orders 1.0.0");
    assert_eq!(wrong_rows(&client, "fan_1_v1").await, 0);
    let refused = old.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::UnknownProjectorIsActive { .. })), "{refused}");
    place(&new, "order-new", 1).await;
    // And back: the removed one catches up with what it missed, the added one goes.
    assert_eq!(
        words(&old.plan().await.unwrap()),
        ["retire fan_1 1.0.0", "keep orders 1.0.0", "replay totals 1.0.0"]
    );
    let _ = activate(&old).await;
    place(&old, "order-back", 1).await;
    let running = old.start();
    old.wait_for(&"totals".parse().unwrap(), old.horizon().await.unwrap(), SOON).await.unwrap();
    let total = client.query_one("SELECT items FROM totals_v1.total", &[]).await.unwrap();
    assert_eq!(total.get::<_, i64>(0), 5 * 2 + 2);
    running.stop().await;
}

/// Upgrades from one release to another with writers at work, and checks that nobody's request failed, that the rows are
/// right, and how the activation went.
async fn upgrade(from: &str, to: &str, check: impl FnOnce(&Activated, &BTreeSet<&'static str>)) {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, from).await;
    let old_running = old.start();
    let mut writers = Writers::start(4, &[&old]);
    more_events(&client, 100).await;
    let new = instance_of(&database, to).await;
    let new_running = new.start();
    let written = writers.stop().await;
    assert_eq!(written.failed, Vec::<String>::new(), "{from} to {to}, before");
    writers = Writers::start(4, &[&old, &new]);
    more_events(&client, 50).await;
    let phases = std::sync::Mutex::new(BTreeSet::new());
    let note = |progress: ActivationProgress| {
        phases.lock().unwrap().insert(phase(&progress));
    };
    let activated = new.activate(&hasty(), &note).await.unwrap();
    more_events(&client, 50).await;
    let written = writers.stop().await;
    assert_eq!(written.failed, Vec::<String>::new(), "{from} to {to}");
    let version = to.trim_start_matches("inline ");
    assert_eq!(active(&client).await, format!("orders {version}"));
    let major = &version[..1];
    let end = new.horizon().await.unwrap();
    new.wait_for(&"orders".parse().unwrap(), end, SOON).await.unwrap();
    assert_eq!(wrong_rows(&client, &format!("orders_v{major}")).await, 0, "{from} to {to}");
    let phases = phases.into_inner().unwrap();
    check(&activated, &phases);
    if phases.contains("paused") {
        assert!(written.by[1] > 0, "{from} to {to}: nobody wrote through the new instance");
        eventually(SOON, || async { old.readiness().state != ReadyState::Active }).await;
        let refused = old.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    }
    eventually(SOON, || async { new.readiness().state == ReadyState::Active }).await;
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_major_upgrade_under_load_fails_no_request() {
    let mut pauses = Vec::new();
    for (from, to) in [
        ("1.0.0", "2.0.0"),
        ("inline 1.0.0", "inline 2.0.0"),
        ("1.0.0", "inline 2.0.0"),
        ("inline 1.0.0", "2.0.0"),
    ] {
        upgrade(from, to, |activated, phases| {
            assert_eq!(words(&activated.plan), ["replay orders 2.0.0"]);
            assert!(phases.contains("replaying") && phases.contains("paused"), "{phases:?}");
            assert!(activated.pause_ms > 0.0, "{activated:?}");
            pauses.push(activated.pause_ms);
        })
        .await;
    }
    // The machine may stand still in one of them, but hardly in all.
    assert!(pauses.iter().any(|pause_ms| *pause_ms < 1_000.0), "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minor_upgrade_takes_over_in_place_and_replays_nothing() {
    for (from, to) in [
        ("1.0.0", "1.1.0"),
        ("inline 1.0.0", "inline 1.1.0"),
        ("1.0.0", "inline 1.1.0"),
        ("inline 1.1.0", "1.2.0"),
    ] {
        upgrade(from, to, |activated, phases| {
            assert_eq!(
                words(&activated.plan)[0],
                format!("activate orders {}", to.trim_start_matches("inline "))
            );
            assert!(!phases.contains("replaying") && phases.contains("paused"), "{phases:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_upgrade_pauses_nobody() {
    for (from, to) in [("1.0.0", "1.0.1"), ("inline 1.0.0", "inline 1.0.1")] {
        upgrade(from, to, |activated, phases| {
            assert!((activated.pause_ms, activated.horizon) == (0.0, None), "{activated:?}");
            assert!(!phases.contains("paused") && !phases.contains("replaying"), "{phases:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn old_and_new_code_of_a_patch_both_write_before_and_after() {
    for (from, to) in [("1.0.0", "1.0.1"), ("inline 1.0.0", "inline 1.0.1")] {
        let database = Database::fresh().await;
        let client = database.client().await;
        // Whoever waits for an activation at all is told so at once: nobody may have to.
        let impatient = |name: &str| {
            Changeover::builder(database.config())
                .configuration(release(name))
                .activation_wait(Duration::ZERO)
        };
        impatient(from).migrate().await.unwrap();
        let old = impatient(from).connect().await.unwrap();
        place(&old, "order-0", 1).await;
        let new = impatient(to).connect().await.unwrap();
        place(&new, "order-1", 1).await;
        let writing = async {
            for n in 0..40 {
                place(&old, &format!("old-{n}"), 1).await;
                place(&new, &format!("new-{n}"), 1).await;
            }
        };
        let ((), activated) = tokio::join!(writing, activate(&new));
        assert_eq!(words(&activated.plan), ["activate orders 1.0.1"]);
        place(&old, "order-2", 1).await;
        let last = place(&new, "order-3", 1).await.last().unwrap();
        // The old one publishes too.
        let running = old.start();
        old.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
        eventually(SOON, || async { old.readiness().state == ReadyState::Active }).await;
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
        running.stop().await;
    }
}

#[tokio::test]
async fn going_back_and_forward_again_loses_nothing() {
    for kind in ["", "inline "] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let old = instance_of(&database, &format!("{kind}1.0.0")).await;
        place(&old, "first", 2).await;
        let new = instance_of(&database, &format!("{kind}2.0.0")).await;
        let _ = activate(&new).await;
        for order in 0..20 {
            place(&new, &format!("between-{order}"), 3).await;
        }
        // Back to the old release, by the same verb.
        let back = activate(&old).await;
        assert_eq!(words(&back.plan), ["replay orders 1.0.0"]);
        let from = serde_json::to_value(&back.plan.steps[0]).unwrap()["from"].as_i64().unwrap();
        assert!(
            from >= 3 || kind.is_empty(),
            "an inline version goes on at the horizon of its retirement: {from}"
        );
        let refused = new.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::OlderProjectorIsActive { .. })), "{refused}");
        place(&old, "after", 2).await;
        let running = old.start();
        old.wait_for(&"orders".parse().unwrap(), old.horizon().await.unwrap(), SOON).await.unwrap();
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{kind}");
        running.stop().await;
        // And forward again: the new tables are still there, and only the difference is fed.
        let _ = activate(&new).await;
        place(&new, "last", 2).await;
        let running = new.start();
        new.wait_for(&"orders".parse().unwrap(), new.horizon().await.unwrap(), SOON).await.unwrap();
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0, "{kind}");
        running.stop().await;
    }
}

#[tokio::test]
async fn an_activation_that_is_done_already_changes_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance_of(&database, "1.0.0 totals").await;
    place(&instance, "order", 1).await;
    let everything = || async {
        let sql = "SELECT (SELECT last_value FROM changeover.generation)::text || (SELECT count(*) FROM changeover.activations)
                          || (SELECT string_agg(s::text, ';' ORDER BY projector) FROM changeover.projector_states s)";
        client.query_one(sql, &[]).await.unwrap().get::<_, String>(0)
    };
    let before = everything().await;
    let done = activate(&instance).await;
    assert_eq!((done.activation, done.horizon), (None, None));
    assert_eq!(words(&done.plan), ["keep orders 1.0.0", "keep totals 1.0.0"]);
    assert!(done.plan.is_done());
    assert_eq!(everything().await, before);
}

#[tokio::test]
async fn a_plan_says_what_would_happen_and_changes_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0 totals").await;
    place(&old, "order", 1).await;
    let check = async |name: &str, expected: &[&str]| {
        let instance = instance_of(&database, name).await;
        assert_eq!(words(&instance.plan().await.unwrap()), expected, "{name}");
    };
    check("1.0.0 totals", &["keep orders 1.0.0", "keep totals 1.0.0"]).await;
    check("2.0.0 totals", &["replay orders 2.0.0", "keep totals 1.0.0"]).await;
    check("1.0.1", &["activate orders 1.0.1", "retire totals 1.0.0"]).await;
    check("1.1.0", &["activate orders 1.1.0", "retire totals 1.0.0"]).await;
    check(
        "pair 1 1",
        &["replay fan_1 1.0.0", "replay fan_3 1.0.0", "retire orders 1.0.0", "retire totals 1.0.0"],
    )
    .await;
    check("none", &["retire orders 1.0.0", "retire totals 1.0.0"]).await;
    assert_eq!(active(&client).await, "orders 1.0.0, totals 1.0.0");
    let rows = client.query_one("SELECT count(*) FROM changeover.projector_states", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 2, "a plan registered something");
}

#[tokio::test]
async fn an_activation_waits_for_instances_of_the_new_configuration() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    let old_running = old.start();
    place(&old, "order", 1).await;
    let operator = instance_of(&database, "2.0.0").await;
    let options =
        ActivateOptions { wait_for_instances: 2, instances_timeout: Duration::from_millis(500), ..hasty() };
    let first = instance_of(&database, "2.0.0").await;
    let first_running = first.start();
    // Both have said that they are there.
    eventually(SOON, || async { operator.status().await.unwrap().instances.len() == 2 }).await;
    let refused = operator.activate(&options, &|_| {}).await.unwrap_err();
    // The old release's instance does not count.
    assert!(matches!(refused, ActivateError::Instances { seen: 1, wanted: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("1 of 2 instances with orders 2.0.0 are alive"), "{refused}");
    assert_eq!(active(&client).await, "orders 1.0.0");
    assert_eq!(newest_outcome(&client).await.unwrap(), "failed");

    let second = instance_of(&database, "2.0.0").await;
    let seen = std::sync::Mutex::new(Vec::new());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let options = ActivateOptions { instances_timeout: SOON, ..options };
    let note = |progress: ActivationProgress| {
        if let ActivationProgress::WaitingForInstances { seen: now, wanted } = progress {
            seen.lock().unwrap().push((now, wanted));
            tell.send(()).unwrap();
        }
    };
    let starting = async {
        told.recv().await.unwrap();
        second.start()
    };
    let (activated, second_running) = tokio::join!(operator.activate(&options, &note), starting);
    assert!(activated.unwrap().activation.is_some());
    assert_eq!(seen.into_inner().unwrap(), [(1, 2), (2, 2)]);
    for running in [old_running, first_running, second_running] {
        running.stop().await;
    }
}

#[tokio::test]
async fn a_deactivated_projector_leaves_its_instances_unready_and_keeps_its_rows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = instance_of(&database, "inline 1.0.0 totals").await;
    let running = instance.start();
    place(&instance, "before", 2).await;
    let unknown = instance.deactivate(&"nonsense".parse().unwrap(), &hasty()).await.unwrap_err();
    assert!(matches!(&unknown, ActivateError::NotActive(name) if name.as_str() == "nonsense"), "{unknown}");

    let gone = instance.deactivate(&"orders".parse().unwrap(), &hasty()).await.unwrap();
    assert_eq!(
        (words(&gone.plan), gone.activation.is_some()),
        (vec!["retire orders 1.0.0".to_owned()], true)
    );
    assert_eq!(active(&client).await, "totals 1.0.0");
    eventually(SOON, || async { instance.readiness().state == ReadyState::Waiting }).await;
    assert!(
        instance.readiness().reason.contains("no version of orders is active"),
        "{}",
        instance.readiness().reason
    );
    // What is left goes on, and the retired rows stand still.
    let last = place(&instance, "after", 2).await.last().unwrap();
    instance.wait_for(&"totals".parse().unwrap(), last, SOON).await.unwrap();
    let rows = client.query("SELECT id FROM orders_v1.orders", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<&str>>(), ["before"]);
    let again = instance.deactivate(&"orders".parse().unwrap(), &hasty()).await.unwrap_err();
    assert!(matches!(again, ActivateError::NotActive(_)), "{again}");

    // And it can be taken back, with what it missed.
    let _ = activate(&instance).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    eventually(SOON, || async { instance.readiness().is_ready() }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_abort_ends_an_activation_before_and_in_its_pause() {
    for held_at in ["replaying", "paused", "drained"] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
        place(&old, "first", 2).await;
        let mut held = Held::at(held_at, &new, ActivateOptions { pause_limit: SOON, ..hasty() });
        held.reached().await;
        let ended = old.abort("Grace").await.unwrap();
        assert_eq!(ended.len(), 1, "{held_at}");
        // Not after the deadline, which is far away: now.
        let started = Instant::now();
        place(&old, "second", 2).await;
        assert!(started.elapsed() < SOON / 3, "{held_at}: {:?}", started.elapsed());
        let error = held.outcome().await.unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ActivateError::Ended { .. }), "{held_at}: {error:?}");
        assert!(said.contains("aborted") && said.contains("Grace"), "{held_at}: {said}");
        assert_eq!(active(&client).await, "orders 1.0.0", "{held_at}");
        assert_eq!(newest_outcome(&client).await.unwrap(), "aborted");
        assert_eq!(old.abort("Grace").await.unwrap(), Vec::<i64>::new());
        // The next one finds everything as it should be.
        let _ = activate(&new).await;
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0, "{held_at}");
    }
}

#[tokio::test]
async fn an_append_in_flight_finishes_before_the_activation() {
    for kind in ["", "inline "] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let old = instance_of(&database, &format!("{kind}1.0.0")).await;
        let new = instance_of(&database, &format!("{kind}2.0.0")).await;
        place(&old, "first", 1).await;
        let mut connection = old.pool().get().await.unwrap();
        let tx = connection.transaction().await.unwrap();
        let events = [placed("Ada"), OrderEvent::Paid];
        let open = old.append_in(&tx, &stream("open"), Expected::NoStream, &events).await.unwrap();
        let (tell, mut paused) = tokio::sync::mpsc::unbounded_channel();
        let note = |progress: ActivationProgress| {
            if phase(&progress) == "paused" {
                tell.send(()).unwrap();
            }
        };
        let options = ActivateOptions { pause_limit: SOON, ..hasty() };
        let activating = new.activate(&options, &note);
        let finishing = async {
            tokio::time::timeout(SOON, paused.recv()).await.expect("there was no pause").unwrap();
            // The lag is 0, the mark is set, and still this transaction is waited for. One that would write more is told to
            // come back: it must not wait for whom it holds up.
            let started = Instant::now();
            let refused = old.append_in(&tx, &stream("open"), Expected::Any, &events[1..]).await.unwrap_err();
            assert!(
                matches!(refused, AppendError::Refused(Refused::ProjectorIsActivating { .. })),
                "{refused}"
            );
            assert!(started.elapsed() < SOON / 3);
            assert_eq!(active(&client).await, "orders 1.0.0");
            tx.commit().await.unwrap();
        };
        let (activated, ()) = tokio::join!(activating, finishing);
        let activated = activated.unwrap();
        assert!(activated.horizon.unwrap() >= open.last().unwrap());
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0, "{kind}");
        let open =
            client.query_one("SELECT paid FROM orders_v2.orders WHERE id = 'open'", &[]).await.unwrap();
        assert!(open.get::<_, bool>(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn new_appends_wait_during_the_pause_and_go_on() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "inline 1.0.0").await;
    let new = instance_of(&database, "inline 2.0.0").await;
    place(&old, "first", 1).await;
    let mut held = Held::at("drained", &new, ActivateOptions { pause_limit: SOON, ..hasty() });
    held.reached().await;
    let append = |instance: &Changeover, name: &str| {
        let (instance, name) = (instance.clone(), stream(name));
        tokio::spawn(async move { instance.append(&name, Expected::NoStream, &[placed("Ada")]).await })
    };
    let (by_old, by_new) = (append(&old, "by-old"), append(&new, "by-new"));
    eventually(SOON, || async {
        // Both have read the states and wait; neither holds anything that the activation would wait for.
        old.readiness().state == ReadyState::Activating && new.readiness().state == ReadyState::Activating
    })
    .await;
    assert!(!by_old.is_finished() && !by_new.is_finished());
    let _ = held.outcome().await.unwrap();
    let refused = by_old.await.unwrap().unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
    by_new.await.unwrap().unwrap();
    let streams =
        client.query("SELECT stream FROM changeover.events WHERE stream LIKE 'by-%'", &[]).await.unwrap();
    assert_eq!(streams.iter().map(|row| row.get(0)).collect::<Vec<&str>>(), ["by-new"]);
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
}
