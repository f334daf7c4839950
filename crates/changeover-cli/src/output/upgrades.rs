//! What is under way, what a whole upgrade did and what was optimized, for people.

use std::fmt::Write;

use changeover::{Abandoned, Optimized, ReplayPhase, RunningReplay, Upgraded};

use super::plain;
use super::tables::{activated, bytes, seconds, several, table, thousands};

/// Who replays, verifies or optimizes what.
pub(super) fn replays(replays: &[RunningReplay]) -> String {
    if replays.is_empty() {
        return String::new();
    }
    let columns = [
        "under way",
        "projector",
        "version",
        "phase",
        "events",
        "events/s",
        "lag",
        "left",
        "process",
        "application",
        "asked by",
        "seen",
    ];
    let rows = replays.iter().map(|replay| {
        let mut phase = plain(&replay.phase);
        if phase == ReplayPhase::Paused.as_str() {
            phase.push_str(": the server is busy");
        }
        if let (Some(built), Some(of)) = (replay.indexes_built, replay.indexes) {
            let _ = write!(phase, ", {built} of {of}");
        }
        vec![
            plain(&replay.purpose),
            replay.projector.to_string(),
            replay.version.to_string(),
            phase,
            thousands(replay.events),
            rate(replay.events_per_sec),
            thousands(replay.lag_events),
            replay.left_secs.map_or_else(String::new, seconds),
            process(replay),
            plain(&format!("{} {}", replay.application, replay.application_version)),
            plain(replay.requested_by.as_deref().unwrap_or_default()),
            match (&replay.aborted_by, replay.alive) {
                (Some(by), true) => format!("now, aborted by {}", plain(by)),
                (None, true) => "now".to_owned(),
                (_, false) => format!("{} ago: gone", seconds(replay.silent_secs)),
            },
        ]
    });
    format!("\n{}\n", table(&columns, &["events", "events/s", "lag", "left"], rows))
}

/// Events each second, as far as that is known.
#[allow(clippy::cast_possible_truncation)]
fn rate(events_per_sec: Option<f64>) -> String {
    events_per_sec.map_or_else(String::new, |rate| thousands(rate.round() as i64))
}

/// What was told to end.
pub(crate) fn aborted(activations: &[i64], replays: &[RunningReplay]) -> String {
    let mut text = match activations {
        [] if replays.is_empty() => return "Nothing was under way.\n".to_owned(),
        [] => String::new(),
        [one] => format!("Activation {one} was aborted.\n"),
        many => {
            let many: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("Activations {} were aborted.\n", many.join(", "))
        }
    };
    for replay in replays {
        let RunningReplay { projector, version, purpose, .. } = replay;
        let (purpose, process) = (plain(purpose), process(replay));
        let when =
            if replay.alive { "within about a second" } else { "if it wakes up: it was not seen lately" };
        let _ =
            writeln!(text, "Told to end the {purpose} of {projector} {version}: process {process}, {when}.");
    }
    text
}

fn process(replay: &RunningReplay) -> String {
    match &replay.host {
        Some(host) => format!("{} on {}", replay.pid, plain(host)),
        None => replay.pid.to_string(),
    }
}

/// What discarding would drop.
pub(crate) fn abandoned(abandoned: &Abandoned) -> String {
    let mut text = of(abandoned);
    let instances = i64::try_from(abandoned.instances).unwrap_or(i64::MAX);
    if instances > 0 {
        let instances = several(instances, "live instance");
        let _ = writeln!(text, "Note: {instances} wait for it to be activated.");
    }
    if abandoned.in_the_way.is_empty() {
        text.push_str("\nNothing was dropped: this shows what --yes would drop.\n");
    } else {
        let foreign: Vec<String> = abandoned.in_the_way.iter().map(|one| plain(&one.to_string())).collect();
        let _ = write!(
            text,
            "\nNothing can be dropped: {}; drop that or move it elsewhere first.\n",
            foreign.join(", ")
        );
    }
    text
}

/// What was dropped.
pub(crate) fn discarded(dropped: &Abandoned) -> String {
    format!("{}All of it was dropped.\n", of(dropped))
}

fn of(abandoned: &Abandoned) -> String {
    let Abandoned { projector, versions, schema, position, bytes: size, untouched_secs, .. } = abandoned;
    let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
    format!(
        "{projector} {}: replayed up to position {} and never activated; last touched {} ago.\nIts tables are in {schema}, {}.\n",
        versions.join(", "),
        thousands(position.get()),
        seconds(*untouched_secs),
        bytes(*size),
    )
}

/// What an upgrade did, step by step. Writing to a `String` cannot fail: what `write!` returns is let go.
pub(crate) fn upgraded(upgraded: &Upgraded) -> String {
    let columns = ["step", "time"];
    let steps = upgraded.steps.iter().map(|taken| vec![taken.step.to_string(), seconds(taken.secs)]);
    let mut text = table(&columns, &["time"], steps);
    for optimized in upgraded.optimized.iter().filter(|optimized| !optimized.built.is_empty()) {
        let _ = write!(text, "\n{}", built(optimized));
    }
    for verified in &upgraded.verified {
        let _ = write!(text, "\n{}.\n", plain(&verified.to_string()));
    }
    text.push('\n');
    text.push_str(&activated(&upgraded.activated));
    text
}

/// What was optimized.
pub(crate) fn optimized(optimized: &[Optimized]) -> String {
    if optimized.is_empty() {
        return "No projector of this build has tables: there is nothing to optimize.\n".to_owned();
    }
    optimized.iter().map(built).collect()
}

fn built(optimized: &Optimized) -> String {
    let Optimized { projector, version, built, concurrently, analyzed, .. } = optimized;
    let built: Vec<String> = built.iter().map(|index| plain(index)).collect();
    let how = if *concurrently { ", beside whoever uses the tables" } else { "" };
    let what = match &built[..] {
        [] => "no index was missing".to_owned(),
        [one] => format!("built index {one}{how}"),
        many => format!("built indexes {}{how}", many.join(", ")),
    };
    let tables = several(i64::try_from(analyzed.len()).unwrap_or(i64::MAX), "table");
    format!("{projector} {version}: {what}; {tables} analyzed.\n")
}
