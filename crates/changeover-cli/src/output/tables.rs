//! Tables for people. Writing to a `String` cannot fail: what `write!` returns is let go.

use std::fmt::Write;

use changeover::{
    Activated, AdoptAt, Adopted, Blocker, CaughtUp, Fate, Holds, Instance, LostConfiguration, OpenActivation,
    Plan, ProjectorStatus, ProjectorViews, PrunePlan, Pruned, RetiredTables, StableView, Stall, Status, Step,
};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::plain;

/// Transactions younger than this are daily business.
const OLD_SECS: f64 = 1.0;

/// Columns without lines between them: they can be read, and cut.
pub(super) fn table(columns: &[&str], right: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.to_uppercase()));
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&columns[index]) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect()
}

/// Everything at a glance.
pub(crate) fn status(status: &Status) -> String {
    let (horizon, newest) = (status.horizon.get(), status.newest.get());
    let mut text =
        format!("Schema {}, generation {}, horizon {}", status.schema, status.generation, thousands(horizon));
    if newest > horizon {
        let _ = write!(text, " ({} drawn beyond it)", several(newest - horizon, "position"));
    }
    text.push_str("\n\n");
    text.push_str(&projectors(&status.projectors));
    for (projector, stall) in stalls(&status.projectors) {
        text.push_str(&stalled(projector, stall));
    }
    text.push_str(&behind(&status.views));
    text.push('\n');
    text.push_str(&activation(status.activation.as_ref()));
    text.push_str(&super::upgrades::replays(&status.replays));
    text.push_str(&in_flight(&status.in_flight));
    text.push('\n');
    text.push_str(&instances(&status.instances));
    text
}

fn projectors(projectors: &[ProjectorStatus]) -> String {
    if projectors.is_empty() {
        return "No projector was ever registered.\n".to_owned();
    }
    let columns = ["projector", "version", "state", "delivery", "position", "lag", "changed by"];
    table(
        &columns,
        &["position"],
        projectors.iter().map(|projector| {
            let state = projector.state.to_string();
            let tables = projector.tables.as_ref();
            vec![
                projector.projector.to_string(),
                projector.version.to_string(),
                match projector {
                    projector if projector.in_activation => format!("{state}, switching"),
                    projector if projector.followed => format!("{state}, followed"),
                    _ => state,
                },
                projector.delivery.to_string(),
                tables.map_or_else(String::new, |tables| thousands(tables.position.get())),
                tables.map_or_else(String::new, |tables| {
                    if tables.stalled.is_some() {
                        format!("{}, stalled", several(tables.lag_events, "event"))
                    } else if tables.inline {
                        "none: fed by appends".to_owned()
                    } else if tables.lag_events == 0 {
                        "none".to_owned()
                    } else {
                        format!("{}, {}", several(tables.lag_events, "event"), seconds(tables.lag_secs))
                    }
                }),
                plain(&projector.changed_by),
            ]
        }),
    )
}

/// Each stall once: the versions of one major share their tables.
fn stalls(projectors: &[ProjectorStatus]) -> Vec<(&ProjectorStatus, &Stall)> {
    let mut stalls: Vec<(&ProjectorStatus, &Stall)> = Vec::new();
    for projector in projectors {
        let Some(stall) = projector.tables.as_ref().and_then(|tables| tables.stalled.as_ref()) else {
            continue;
        };
        let known = stalls.iter_mut().find(|(other, _)| {
            other.projector == projector.projector && other.version.major == projector.version.major
        });
        match known {
            Some(known) if projector.state == changeover::ProjectorState::Active => {
                *known = (projector, stall);
            }
            Some(_) => {}
            None => stalls.push((projector, stall)),
        }
    }
    stalls
}

fn stalled(projector: &ProjectorStatus, stall: &Stall) -> String {
    let name = &projector.projector;
    let mut text = format!("\n{name} {} is stalled", projector.version);
    if let Some(position) = stall.position {
        let _ = write!(text, " at position {position}");
    }
    if let Some(event_type) = &stall.event_type {
        let _ = write!(text, " ({})", plain(event_type));
    }
    let _ = write!(text, ": {}\n  mend it and `retry {name}`", plain(&stall.error));
    if let Some(position) = stall.position {
        let _ = write!(text, ", or go on without this event: `skip {name} --position {position}`");
    }
    text.push('\n');
    text
}

/// The stable views that do not show what they should.
fn behind(views: &[StableView]) -> String {
    let mut text = String::new();
    for view in views.iter().filter(|view| view.lags_behind()) {
        let StableView { projector, view, shows, active } = view;
        let _ = match (shows, active) {
            (Some(shows), Some(active)) => write!(
                text,
                "\nView {projector}.{view} still shows version {shows}, and version {active} is active"
            ),
            (Some(shows), None) => write!(
                text,
                "\nView {projector}.{view} still shows version {shows}, whose place nothing has taken"
            ),
            (None, _) => write!(text, "\nView {projector}.{view} is missing, or is not ours"),
        };
        text.push_str(": `repoint-views` puts that right or says why not.\n");
    }
    text
}

fn activation(open: Option<&OpenActivation>) -> String {
    let Some(open) = open else { return "No activation is under way.\n".to_owned() };
    let (id, by, age) = (open.id, plain(&open.requested_by), seconds(open.age_secs));
    let mut text = format!("Activation {id} by {by} has been under way for {age}");
    if open.paused {
        text.push_str("; writers are paused");
        match open.pause_left_secs {
            Some(left) if left > 0.0 => text += &[", for ", &seconds(left), " more at most"].concat(),
            Some(_) => text.push_str(", and its deadline has passed: whoever looks next gives it back"),
            None => {}
        }
    }
    text.push_str(".\n");
    text
}

fn in_flight(blockers: &[Blocker]) -> String {
    let old: Vec<&Blocker> =
        blockers.iter().filter(|blocker| blocker.age_secs.is_none_or(|age| age >= OLD_SECS)).collect();
    if old.is_empty() {
        return "No transaction has been in flight for more than 1 s.\n".to_owned();
    }
    let columns = ["pid", "application", "holds", "age", "doing"];
    let rows = old.into_iter().map(|blocker| {
        vec![
            blocker.pid.map_or_else(|| "none".to_owned(), |pid| pid.to_string()),
            plain(blocker.application_name.as_deref().unwrap_or_default()),
            holds(blocker.holds).to_owned(),
            blocker.age_secs.map_or_else(String::new, seconds),
            plain(&blocker.doing),
        ]
    });
    format!("\nIn flight for more than 1 s:\n{}", table(&columns, &["age"], rows))
}

fn holds(holds: Holds) -> &'static str {
    match holds {
        Holds::Lease => "lease (append)",
        Holds::Presence => "presence (publish)",
        Holds::Tables => "locks on tables",
    }
}

fn instances(instances: &[Instance]) -> String {
    if instances.is_empty() {
        return "No instance was seen lately.\n".to_owned();
    }
    let columns = ["instance", "application", "version", "readiness", "seen", "address", "configuration"];
    table(
        &columns,
        &[],
        instances.iter().map(|instance| {
            let configuration: Vec<String> =
                instance.configuration.iter().map(|(name, version)| format!("{name} {version}")).collect();
            vec![
                instance.id.to_string(),
                plain(&instance.application),
                plain(&instance.application_version),
                plain(&instance.readiness),
                if instance.alive {
                    "alive".to_owned()
                } else {
                    format!("gone for {}", seconds(instance.silent_secs))
                },
                plain(instance.address.as_deref().unwrap_or_default()),
                configuration.join(", "),
            ]
        }),
    )
}

/// What an activation would do, and why not.
pub(crate) fn plan(plan: &Plan) -> String {
    let mut text = steps(plan);
    if !plan.obstacles.is_empty() {
        text.push_str("\nIn the way:\n");
        for obstacle in &plan.obstacles {
            let _ = writeln!(text, "  {}", plain(&obstacle.to_string()));
        }
    } else if plan.is_done() {
        text.push_str("\nThis configuration is the active one: there is nothing to do.\n");
    }
    text
}

fn steps(plan: &Plan) -> String {
    if plan.steps.is_empty() {
        return "Neither this configuration nor the active one has a projector.\n".to_owned();
    }
    let columns = ["action", "projector", "from", "to", "what happens"];
    let rows = plan.steps.iter().map(|step| {
        let none = || "none".to_owned();
        let (action, from, to, what) = match step {
            Step::Keep { version, .. } => {
                ("keep", version.to_string(), version.to_string(), "nothing".to_owned())
            }
            Step::Replay { version, replaces, from, .. } => (
                "replay",
                replaces.as_ref().map_or_else(none, ToString::to_string),
                version.to_string(),
                format!("replayed from position {}, then activated", thousands(from.get())),
            ),
            Step::Activate { version, replaces, .. } => {
                ("activate", replaces.to_string(), version.to_string(), "takes over in place".to_owned())
            }
            Step::Retire { version, .. } => {
                ("retire", version.to_string(), none(), "is fed no more; its tables are kept".to_owned())
            }
        };
        vec![action.to_owned(), step.projector().to_string(), from, to, what]
    });
    table(&columns, &[], rows)
}

/// What an activation did.
pub(crate) fn activated(activated: &Activated) -> String {
    let Some(activation) = activated.activation else {
        return plan(&activated.plan) + &views_moved(&activated.views);
    };
    let mut text = steps(&activated.plan);
    let _ = write!(text, "\nActivation {activation} switched");
    if let Some(horizon) = activated.horizon {
        let Activated { pause_ms, drain_ms, feed_ms, .. } = activated;
        let _ = write!(
            text,
            " at position {horizon}. Writers were paused for {pause_ms:.1} ms: {drain_ms:.1} ms until nothing was in flight, {feed_ms:.1} ms to feed the rest"
        );
    } else {
        text.push_str(" without a pause");
    }
    text.push_str(".\n");
    text + &views_moved(&activated.views)
}

/// What was adopted.
pub(crate) fn adopted(adopted: &Adopted) -> String {
    let Adopted { projector, version, position, moved, schema, activation } = adopted;
    let at = match position {
        AdoptAt::Position(position) => format!("at position {}", thousands(position.get())),
        AdoptAt::Horizon => "at the horizon".to_owned(),
    };
    let mut text = format!("{projector} {version} adopted the tables in {schema} {at}.\n");
    if !moved.is_empty() {
        let views = if moved.len() == 1 { "a view stands" } else { "views stand" };
        let _ = writeln!(text, "They came from {}, where {views} in their place.", moved.join(", "));
    }
    text.push('\n');
    text + &activated(activation)
}

/// What `repoint-views` did.
pub(crate) fn repointed(views: &[ProjectorViews]) -> String {
    let text = views_moved(views);
    if text.is_empty() {
        "The stable views show the active versions: there was nothing to do.\n".to_owned()
    } else {
        text
    }
}

fn views_moved(views: &[ProjectorViews]) -> String {
    let mut text = String::new();
    for views in views.iter().filter(|views| !views.changed.is_empty()) {
        let names = views.changed.join(", ");
        let one = views.changed.len() == 1;
        let _ = match (views.active, one) {
            (Some(major), true) => writeln!(text, "Stable view {names} now shows version {major}."),
            (Some(major), false) => writeln!(text, "Stable views {names} now show version {major}."),
            (None, true) => writeln!(text, "Stable view {names} was dropped: no version is active."),
            (None, false) => writeln!(text, "Stable views {names} were dropped: no version is active."),
        };
    }
    for problem in views.iter().flat_map(|views| &views.problems) {
        let _ = writeln!(text, "Note: {}.", plain(&problem.to_string()));
    }
    text
}

/// What was replayed.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
pub(crate) fn replayed(replayed: &[CaughtUp]) -> String {
    if replayed.is_empty() {
        return "There is nothing to replay.\n".to_owned();
    }
    let columns = ["projector", "version", "position", "lag", "events", "time", "events/s"];
    let rows = replayed.iter().map(|CaughtUp { progress, .. }| {
        let secs = progress.elapsed.as_secs_f64();
        vec![
            progress.projector.to_string(),
            progress.version.to_string(),
            thousands(progress.position.get()),
            thousands(progress.lag_events()),
            thousands(progress.events.try_into().unwrap_or(i64::MAX)),
            seconds(secs),
            if secs > 0.0 {
                thousands((progress.events as f64 / secs).round() as i64)
            } else {
                String::new()
            },
        ]
    });
    let mut text = table(&columns, &["position", "lag", "events", "time", "events/s"], rows);
    for CaughtUp { progress, .. } in replayed.iter().filter(|replayed| replayed.activated) {
        let _ = write!(text, "\n{} {} was activated.\n", progress.projector, progress.version);
    }
    text
}

/// What pruning would drop.
pub(crate) fn prune_plan(plan: &PrunePlan) -> String {
    if plan.tables.is_empty() {
        return "No version has tables of its own and has retired: there is nothing to prune.\n".to_owned();
    }
    let mut text = retired(plan.tables.iter());
    text.push_str(&lost(&plan.lost));
    text
}

/// What was pruned.
pub(crate) fn pruned(pruned: &Pruned) -> String {
    if pruned.dropped.is_empty() {
        return "There was nothing to prune.\n".to_owned();
    }
    let mut text = String::new();
    for tables in &pruned.dropped {
        let versions: Vec<String> = tables.versions.iter().map(ToString::to_string).collect();
        let (name, schema, size) = (&tables.projector, &tables.schema, bytes(tables.bytes));
        let _ = writeln!(text, "Dropped {schema}: the tables of {name} {}, {size}.", versions.join(", "));
    }
    text.push_str(&lost(&pruned.lost));
    text
}

fn retired<'a>(tables: impl Iterator<Item = &'a RetiredTables>) -> String {
    let columns = ["projector", "versions", "schema", "retired", "size", "instances", "what happens"];
    let rows = tables.map(|tables| {
        let versions: Vec<String> = tables.versions.iter().map(ToString::to_string).collect();
        vec![
            tables.projector.to_string(),
            versions.join(", "),
            tables.schema.clone(),
            format!("{} ago", seconds(tables.retired_secs)),
            bytes(tables.bytes),
            tables.instances.to_string(),
            match &tables.fate {
                Fate::Drop => "to be dropped".to_owned(),
                Fate::Newest => "kept, as one of the newest".to_owned(),
                Fate::Followed { instances } => {
                    format!(
                        "protected: followed by {}",
                        several((*instances).try_into().unwrap_or(i64::MAX), "instance")
                    )
                }
                Fate::InTheWay(foreign) => {
                    let foreign: Vec<String> = foreign.iter().map(|one| plain(&one.to_string())).collect();
                    format!("protected: {}", foreign.join(", "))
                }
                other => format!("{other:?}"),
            },
        ]
    });
    table(&columns, &["size", "instances"], rows)
}

/// The configurations that were active once, and that a replay from the beginning alone could bring back.
fn lost(lost: &[LostConfiguration]) -> String {
    if lost.is_empty() {
        return String::new();
    }
    let mut text = "\nOnly a replay from the beginning brings back:\n".to_owned();
    for one in lost {
        let versions: Vec<String> =
            one.configuration.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ = write!(text, "  {}, replaced {} ago", versions.join(", "), seconds(one.replaced_secs));
        text.push_str(if one.before { ": the configuration before the active one\n" } else { "\n" });
    }
    text
}

/// A size as people say it.
#[allow(clippy::cast_precision_loss)]
pub(super) fn bytes(bytes: i64) -> String {
    match bytes {
        bytes if bytes < 10 << 20 => format!("{} kB", thousands(bytes >> 10)),
        bytes if bytes < 10 << 30 => format!("{} MB", thousands(bytes >> 20)),
        bytes => format!("{} GB", thousands(bytes >> 30)),
    }
}

/// A number with its thousands apart.
pub(crate) fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things.
pub(super) fn several(number: i64, thing: &str) -> String {
    format!("{} {thing}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// A time as people say it.
pub(crate) fn seconds(secs: f64) -> String {
    match secs {
        secs if secs < 9.95 => format!("{:.1} s", secs.max(0.0)),
        secs if secs < 119.5 => format!("{secs:.0} s"),
        secs if secs < 119.5 * 60.0 => format!("{:.0} min", secs / 60.0),
        secs if secs < 47.5 * 3_600.0 => format!("{:.0} h", secs / 3_600.0),
        secs => format!("{:.0} days", secs / 86_400.0),
    }
}

#[cfg(test)]
mod tests;
