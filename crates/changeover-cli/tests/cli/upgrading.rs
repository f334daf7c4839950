//! `upgrade`, `optimize`, `abort` and `discard`, and what machines are told of progress.

use changeover_testkit::{Process, eventually};
use serde_json::{Value, json};

use crate::program::{Program, Ran, SOON, golden, instance, place, release_1_is_active};

/// The lines for machines on standard error.
#[track_caller]
fn lines(ran: &Ran) -> Vec<Value> {
    let of =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}: {ran}"));
    ran.stderr.lines().map(of).collect()
}

/// What an upgrade said but for how long things took, and for how far its replays were in between.
fn but_for_the_pace(ran: &Ran) -> String {
    const STEPS: [&str; 6] = ["STEP", "replay", "optimize", "catch up", "verify", "activate"];
    let step = |line: &str| STEPS.into_iter().find(|step| line.starts_with(step));
    let (steps, rest) = ran.stdout.split_once("\n\n").unwrap_or_else(|| panic!("{ran}"));
    let steps = steps.lines().map(|line| step(line).unwrap_or(line));
    let out: Vec<&str> = steps.chain([""]).chain(rest.lines()).collect();
    let said = |line: &&str| line.starts_with("step: ") || line.starts_with("activation ");
    let said: Vec<&str> = ran.stderr.lines().filter(said).collect();
    format!("$ {}\n{}\n--- stderr\n{}\n", ran.line, out.join("\n"), said.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_says_which_step_it_is_at_and_the_next_one_that_it_is_done() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    golden("upgrade_dry_run", two.run("upgrade --dry-run").ended(0));
    golden("upgrade", but_for_the_pace(&two.run("upgrade").ended(0)));
    golden("upgrade_again", but_for_the_pace(&two.run("upgrade").ended(0)));
    golden("optimize", two.run("optimize").ended(0));
    golden("optimize_json", two.run("optimize orders --json").ended(0));
    assert_eq!(two.run("optimize missing --json").ended(1).kind(), "unknown_projector");
    assert_eq!(
        Program::host(1).on(&database).run("discard orders 2.0.0 --json").ended(1).kind(),
        "not_abandoned"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_told_of_progress_in_lines_and_of_the_result_in_one_document() {
    let database = release_1_is_active(5).await;
    let two = Program::host(2).on(&database);
    let ran = two.run("upgrade --json --progress json").ended(0);
    let done = ran.json();
    let steps: Vec<&str> =
        done["steps"].as_array().unwrap().iter().map(|taken| taken["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["replay", "optimize", "catch_up", "verify", "activate"]);
    assert_eq!((&done["verified"][0]["equal"], &done["activated"]["activation"]), (&json!(true), &json!(1)));
    let lines = lines(&ran);
    let told: Vec<&Value> =
        lines.iter().filter(|line| line["progress"] == "step").map(|line| &line["step"]).collect();
    assert_eq!(
        told,
        [&json!("replay"), &json!("optimize"), &json!("catch_up"), &json!("verify"), &json!("activate")]
    );
    let replaying = lines.iter().find(|line| line["progress"] == "replaying").unwrap();
    for field in [
        "projector",
        "version",
        "phase",
        "position",
        "horizon",
        "events",
        "events_per_sec",
        "lag_events",
        "left_secs",
    ] {
        assert!(replaying.get(field).is_some(), "{field} in {replaying}");
    }
    assert!(lines.iter().any(|line| line["progress"] == "folding"), "{ran}");
    // Only where it was asked for; and nothing at all where that was.
    assert_eq!(two.run("upgrade --json --progress none").ended(0).stderr, "");
    assert_eq!(lines_of_a_quiet_one(&two), [json!({ "progress": "step", "step": "activate" })]);
}

/// What was asked for is shown, though nothing else is.
fn lines_of_a_quiet_one(program: &Program) -> Vec<Value> {
    lines(&program.run("upgrade --quiet --progress json").ended(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_seen_in_status_and_aborted_from_elsewhere() {
    let database = release_1_is_active(5).await;
    let (two, other) = (Program::host(2).on(&database), Program::changeover().on(&database));
    golden("abort_of_nothing", other.run("abort").ended(0));
    let following = Process::spawn(two.command("replay --follow --lag-events 0")).unwrap();
    following.wait_for_line("following orders 2.0.0: at ", SOON).await.unwrap();
    let status = eventually(SOON, || async {
        let status = other.run("status --json").ended(0).json();
        (status["replays"][0]["phase"] == "following").then_some(status)
    })
    .await;
    let replay = &status["replays"][0];
    assert_eq!((&replay["projector"], &replay["pid"]), (&json!("orders"), &json!(following.pid())));
    assert_eq!((&replay["alive"], &replay["lag_events"]), (&json!(true), &json!(0)));
    let text = other.run("status").ended(0).stdout;
    let line = text.lines().find(|line| line.starts_with("replay ")).unwrap_or_else(|| panic!("{text}"));
    for word in ["orders", "2.0.0", "following", &following.pid().to_string(), "host 2.0.0", "tester", "now"]
    {
        assert!(line.contains(word), "{word} in {text}");
    }
    assert_eq!(other.run("discard orders 2.0.0 --yes --json").ended(1).kind(), "not_abandoned");
    assert_eq!(other.run("abort missing --json").ended(1).kind(), "unknown_projector");
    assert_eq!(other.run("abort totals --json").ended(0).json()["replays"], json!([]));
    let aborted = other.run("abort orders").ended(0).stdout;
    assert!(aborted.starts_with("Told to end the replay of orders 2.0.0: process "), "{aborted}");
    assert_eq!(following.wait(SOON).await.unwrap().code(), Some(1), "{}", following.output());
    assert!(following.output().contains("was aborted by tester"), "{}", following.output());

    let ran = other.run("discard orders 2.0.0").ended(1);
    assert!(ran.stdout.contains("Nothing was dropped: this shows what --yes would drop."), "{ran}");
    other.run("discard orders 2.0.0 --dry-run").ended(0);
    let ran = other.run("discard orders 2.0.0 --yes").ended(0);
    assert!(ran.stdout.contains("Its tables are in orders_v2, "), "{ran}");
    assert!(ran.stdout.ends_with("All of it was dropped.\n"), "{ran}");
    golden("discard_of_nothing", other.run("discard orders 2.0.0 --yes").ended(1));
    // It may be replayed again.
    place(&instance(&database, 1).await, 5..8).await;
    two.run("upgrade").ended(0);
}
