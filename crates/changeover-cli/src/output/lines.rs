//! Progress for machines: a JSON object in each line, told apart by its `progress`.

use changeover::{Blocker, Left, ReplayProgress, Speed, UpgradeStep, VerifyProgress};
use serde_json::{Value, json};

use super::json::value;

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// How far a version is that is being fed, folded or indexed. How fast, and how long still, is null until it can be told.
pub(super) fn replaying(what: &str, progress: &ReplayProgress, speed: &Speed) -> String {
    let left = match speed.left() {
        Left::About(left) if progress.indexing.is_none() => Some(left.as_secs_f64()),
        _ => None,
    };
    line(&json!({
        "progress": what,
        "projector": progress.projector,
        "version": progress.version,
        "phase": value(&progress.phase),
        "position": progress.position,
        "horizon": progress.horizon,
        "events": progress.events,
        "events_per_sec": speed.events_per_sec(),
        "lag_events": progress.lag_events(),
        "left_secs": left,
        "indexing": progress.indexing.as_ref().map(value),
        "elapsed_secs": progress.elapsed.as_secs_f64(),
    }))
}

/// How far a verification is that compares.
pub(super) fn comparing(progress: &VerifyProgress) -> String {
    let VerifyProgress::Comparing { projector, version, table, rows, position } = progress else {
        return String::new();
    };
    line(&json!({
        "progress": "comparing",
        "projector": projector,
        "version": version,
        "table": table,
        "rows": rows,
        "position": position,
    }))
}

/// A step of an upgrade begins.
pub(super) fn step(step: UpgradeStep) -> String {
    line(&json!({ "progress": "step", "step": value(&step) }))
}

/// An activation has its number.
pub(super) fn started(activation: i64) -> String {
    line(&json!({ "progress": "activating", "activation": activation }))
}

/// It waits for instances.
pub(super) fn waiting_for_instances(seen: usize, wanted: usize) -> String {
    line(&json!({ "progress": "waiting", "for": "instances", "seen": seen, "wanted": wanted }))
}

/// It waits for somebody's transactions.
pub(super) fn waiting(what: &str, blockers: &[Blocker]) -> String {
    line(&json!({ "progress": "waiting", "for": what, "blockers": value(&blockers) }))
}

/// Anything else that is said.
pub(super) fn note(text: &str) -> String {
    line(&json!({ "progress": "note", "message": text }))
}
