//! The demo in small: the same processes, commands, load and checks; a short log and a few seconds.

use std::path::PathBuf;

use clap::Parser;
use serde_json::Value;
use shop::demo::{Arguments, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_load_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = Arguments {
        events: 3_000,
        rate: 100,
        seconds: 1.0,
        report: folder.path().join("target/demo.json"),
        shop: Some(PathBuf::from(env!("CARGO_BIN_EXE_shop"))),
        silent: true,
    };
    let report = run(&arguments).await.unwrap();
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.is_clean(), "{:?}", report.findings);

    // Zeros say nothing where nothing happened.
    let findings = &report.findings;
    assert!(findings.events_appended > report.events_in_log_before_replay, "{findings:?}");
    assert!(report.events_in_log_before_replay >= 3_000);
    assert_eq!(findings.events_appended, findings.events_projected);
    assert_eq!(findings.read_models.len(), 4);
    assert!(findings.read_models.iter().all(|model| model.rows > 0), "{findings:?}");
    assert!(report.activation_pause_ms > 0.0 && report.write_pause_ms > 0.0);
    // From the first request on: until then the instances start.
    let mut slices = report.releases.iter().filter(|slice| slice.release_1 + slice.release_2 > 0);
    let (first, last) = (slices.next().unwrap(), slices.next_back().unwrap());
    assert!(first.release_1 > 0 && first.release_2 == 0, "{first:?}");
    assert!(last.release_1 == 0 && last.release_2 > 0, "{last:?}");
    let served: u64 = report.releases.iter().map(|slice| slice.release_1 + slice.release_2).sum();
    assert_eq!(served, report.requests);
    // Who was sent on had waited as long as is said.
    assert!(report.retried == 0 || report.longest_wait_ms >= 100.0, "{report:?}");

    // The figures agree with each other. There was load from one of these phases to the other.
    let names: Vec<_> = report.phases.iter().map(|phase| phase.name).collect();
    let (begin, end) = ("release 1 serves", "release 2 serves");
    let [begin, end] = [begin, end].map(|name| names.iter().position(|known| *known == name).unwrap());
    let loaded: f64 = report.phases[begin..=end].iter().map(|phase| phase.secs).sum();
    let counted = report.requests_per_sec * loaded / f64::from(u32::try_from(report.requests).unwrap());
    assert!((0.9..=1.1).contains(&counted), "{counted}: {report:?}");
    // Nobody sends more than was asked for, but for a second that is made up for.
    assert!(report.requests_per_sec <= f64::from(arguments.rate) * (1.0 + 1.0 / loaded), "{report:?}");
    let all: f64 = report.phases.iter().map(|phase| phase.secs).sum();
    assert!(all <= report.duration_secs && report.duration_secs < all * 1.1, "{report:?}");

    let written: Value = serde_json::from_slice(&std::fs::read(&arguments.report).unwrap()).unwrap();
    for zero in ["failed", "lost", "duplicated", "rows_wrong"] {
        assert_eq!(written[zero], 0, "{zero}");
    }
    for figure in ["requests", "events_appended", "events_projected", "write_pause_ms", "releases"] {
        assert!(!written[figure].is_null(), "{figure}");
    }
}

/// What `make demo` shows unless it is told otherwise. Whether a machine is fast enough for it is not for a test to say.
#[test]
fn the_demo_that_is_shown_has_a_long_log_and_much_load_and_little_waiting() {
    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        arguments: Arguments,
    }
    let Demo { arguments } = Demo::parse_from(["demo"]);
    assert!(arguments.events >= 100_000 && arguments.rate >= 200, "{arguments:?}");
    // The rest of the minute is for what it shows.
    assert!(2.0 * arguments.seconds <= 20.0, "{arguments:?}");
}
