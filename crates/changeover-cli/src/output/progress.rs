//! Progress of long work, on standard error: bars on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use changeover::{
    ActivationProgress, Indexing, Left, ProjectorName, ReplayPhase, ReplayProgress, Speed, UpgradeProgress,
    VerifyProgress,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::tables::{seconds, several, thousands};
use super::{lines, plain, to_stderr};
use crate::command::ProgressStyle as Asked;

/// How often the same thing is said in lines.
const EVERY: Duration = Duration::from_secs(3);

/// How often machines are told.
const EVERY_JSON: Duration = Duration::from_secs(1);

/// All bars of this process. What else is written to standard error is written between them.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Silent,
    Lines,
    /// For machines.
    Json,
    Bars,
}

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    style: Style,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    replays: BTreeMap<ProjectorName, Replay>,
    waiting: Option<ProgressBar>,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

#[derive(Debug, Default)]
struct Replay {
    speed: Speed,
    phase: Option<ReplayPhase>,
    bar: Option<ProgressBar>,
    /// The newest line, until it is said.
    line: Option<String>,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl Shown {
    /// Says how far the replays have come, before anything else is said.
    fn catch_up(&mut self) {
        for replay in self.replays.values_mut() {
            replay.say();
        }
    }
}

impl Replay {
    fn say(&mut self) {
        let Some(line) = self.line.take() else { return };
        if self.said.as_ref().is_none_or(|(said, _)| *said != line) {
            to_stderr(&line);
            self.said = Some((line, Instant::now()));
        }
    }
}

impl Progress {
    pub(crate) fn new(asked: Option<Asked>, quiet: bool) -> Self {
        let usual = if stderr().is_terminal() { Style::Bars } else { Style::Lines };
        let style = match asked {
            None if !quiet => usual,
            None | Some(Asked::None) => Style::Silent,
            Some(Asked::Json) => Style::Json,
            Some(Asked::Lines) => Style::Lines,
            Some(Asked::Bars) => Style::Bars,
        };
        Self { style, shown: Mutex::default() }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        // What is shown is nothing that a panic could leave half done.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replay has come further.
    pub(crate) fn replaying(&self, progress: &ReplayProgress) {
        self.feeding("replaying", progress);
    }

    /// A verification has come further.
    pub(crate) fn verifying(&self, progress: &VerifyProgress) {
        match progress {
            VerifyProgress::Folding(progress) => self.feeding("folding", progress),
            VerifyProgress::Comparing { projector, version, table, rows, .. } => {
                let rows = several(i64::try_from(*rows).unwrap_or(i64::MAX), "row");
                let table = plain(table);
                self.say_at_most_every(
                    EVERY,
                    "comparing",
                    format!("comparing {projector} {version}: {rows} of {table}"),
                    || lines::comparing(progress),
                );
            }
            _ => {}
        }
    }

    fn feeding(&self, what: &str, progress: &ReplayProgress) {
        let mut shown = self.shown();
        let replay = shown.replays.entry(progress.projector.clone()).or_default();
        replay.speed.push(progress);
        let name = format!("{} {}", progress.projector, progress.version);
        let (position, horizon) = (progress.position.get(), progress.horizon.get());
        let pace = words(progress, &replay.speed);
        let what = match progress.phase {
            ReplayPhase::Following => "following",
            ReplayPhase::Indexing => "indexing",
            _ => what,
        };
        let line = match progress.indexing {
            Some(_) => format!("{what} {name}: {pace}\n"),
            None => format!("{what} {name}: at {} of {}, {pace}\n", thousands(position), thousands(horizon)),
        };
        replay.line = Some(match self.style {
            Style::Json => lines::replaying(what, progress, &replay.speed),
            _ => line,
        });
        // Another phase is told at once.
        let is_new = replay.phase.replace(progress.phase) != Some(progress.phase);
        match self.style {
            Style::Silent => {}
            Style::Lines | Style::Json => {
                let every = if self.style == Style::Json { EVERY_JSON } else { EVERY };
                if is_new || replay.said.as_ref().is_none_or(|(_, at)| at.elapsed() >= every) {
                    replay.say();
                }
            }
            Style::Bars => {
                let bar = replay.bar.get_or_insert_with(|| {
                    let style = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3}%  {msg}");
                    let style = style.expect("BUG: a constant template must parse");
                    bars().add(ProgressBar::new(0)).with_style(style).with_prefix(name)
                });
                bar.set_length(number(horizon));
                bar.set_position(number(position));
                bar.set_message(pace);
            }
        }
    }

    /// An upgrade has come further.
    pub(crate) fn upgrading(&self, progress: &UpgradeProgress) {
        match progress {
            UpgradeProgress::Step(step) => {
                self.say_at_most_every(Duration::ZERO, "", format!("step: {step}"), || lines::step(*step));
            }
            UpgradeProgress::Replaying(progress) => self.replaying(progress),
            UpgradeProgress::Verifying(progress) => self.verifying(progress),
            UpgradeProgress::Activating(progress) => self.activating(progress),
            _ => {}
        }
    }

    /// An activation has come further.
    pub(crate) fn activating(&self, progress: &ActivationProgress) {
        match progress {
            ActivationProgress::Started { activation } => {
                let text = format!("activation {activation} has started");
                self.say_at_most_every(Duration::ZERO, "", text, || lines::started(*activation));
            }
            ActivationProgress::Replaying(progress) => self.replaying(progress),
            ActivationProgress::Verifying(progress) => self.verifying(progress),
            ActivationProgress::WaitingForInstances { seen, wanted } => {
                let text =
                    format!("waiting for instances of the new configuration: {seen} of {wanted} are alive");
                self.say_at_most_every(Duration::ZERO, "", text, || {
                    lines::waiting_for_instances(*seen, *wanted)
                });
            }
            ActivationProgress::WaitingForAppends(blockers) => {
                let who: Vec<String> = blockers.iter().map(ToString::to_string).collect();
                self.say_at_most_every(
                    EVERY,
                    "waiting for transactions",
                    format!("waiting for transactions that have been open for long: {}", who.join("; ")),
                    || lines::waiting("appends", blockers),
                );
            }
            ActivationProgress::WaitingForReaders { projector, readers } => {
                let who: Vec<String> = readers.iter().map(ToString::to_string).collect();
                self.say_at_most_every(
                    EVERY,
                    "waiting for readers",
                    format!("waiting for readers of {projector}: {}", who.join("; ")),
                    || lines::waiting("readers", readers),
                );
            }
            // Nothing is written during the pause: a terminal that does not take it would prolong it.
            _ => {}
        }
    }

    /// What is not said again and again.
    pub(crate) fn say(&self, text: String) {
        let note = text.clone();
        self.say_at_most_every(Duration::ZERO, "", text, || lines::note(&note));
    }

    fn say_at_most_every(&self, interval: Duration, what: &str, text: String, json: impl FnOnce() -> String) {
        let mut shown = self.shown();
        match self.style {
            Style::Silent => {}
            Style::Lines | Style::Json => {
                let lately =
                    shown.said.as_ref().is_some_and(|(said, at)| said == what && at.elapsed() < interval);
                if !lately {
                    shown.catch_up();
                    match self.style {
                        Style::Json => to_stderr(&json()),
                        _ => to_stderr(&format!("{text}\n")),
                    }
                    shown.said = Some((what.to_owned(), Instant::now()));
                }
            }
            Style::Bars => {
                let bar = shown.waiting.get_or_insert_with(|| {
                    let bar = bars().add(ProgressBar::new_spinner());
                    bar.enable_steady_tick(Duration::from_millis(120));
                    bar
                });
                bar.set_message(text);
            }
        }
    }
}

impl Drop for Progress {
    /// Bars go, the last line stays: how far it came, also where it ended with an error.
    fn drop(&mut self) {
        let mut shown = self.shown();
        for bar in shown.replays.values().filter_map(|replay| replay.bar.as_ref()).chain(&shown.waiting) {
            bar.finish_and_clear();
        }
        if self.style != Style::Silent {
            shown.catch_up();
        }
    }
}

fn number(position: i64) -> u64 {
    u64::try_from(position).unwrap_or_default()
}

/// How fast, how far behind, how long still.
fn words(progress: &ReplayProgress, speed: &Speed) -> String {
    if let Some(Indexing { built, of, percent }) = progress.indexing {
        let next =
            if built < of && percent > 0 { format!(", {percent} % of the next") } else { String::new() };
        let indexes = if of == 1 { "index" } else { "indexes" };
        return format!("{built} of {of} {indexes} built{next}");
    }
    let mut words = Vec::new();
    match progress.phase {
        ReplayPhase::Paused => words.push("paused: the server is busy".to_owned()),
        ReplayPhase::Ended => words.push("cannot go on".to_owned()),
        _ => {}
    }
    #[allow(clippy::cast_possible_truncation)]
    words.extend(speed.events_per_sec().map(|rate| format!("{} events/s", thousands(rate.round() as i64))));
    let lag = progress.lag_events();
    words.push(if lag == 0 { "caught up".to_owned() } else { format!("{} behind", thousands(lag)) });
    match speed.left() {
        Left::About(left) if !left.is_zero() => {
            words.push(format!("about {} left", seconds(left.as_secs_f64())));
        }
        Left::Never => words.push("not catching up".to_owned()),
        Left::About(_) | Left::Unknown => {}
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use changeover::Position;

    use super::*;

    #[test]
    fn the_words_say_what_is_known() {
        let check = |samples: &[(u64, u64, i64, i64)], expected: &str| {
            let mut speed = Speed::default();
            let mut last = None;
            for &(secs, events, position, horizon) in samples {
                let progress = ReplayProgress {
                    projector: "orders".parse().unwrap(),
                    version: "2.0.0".parse().unwrap(),
                    position: Position::new(position),
                    horizon: Position::new(horizon),
                    phase: changeover::ReplayPhase::Bulk,
                    events,
                    indexing: None,
                    elapsed: Duration::from_secs(secs),
                };
                speed.push(&progress);
                last = Some(progress);
            }
            assert_eq!(words(last.as_ref().unwrap(), &speed), expected);
            let paused = ReplayProgress { phase: ReplayPhase::Paused, ..last.unwrap() };
            assert_eq!(words(&paused, &speed), format!("paused: the server is busy, {expected}"));
        };
        check(&[(0, 0, 0, 90_000)], "90,000 behind");
        check(
            &[(0, 0, 0, 90_000), (2, 6_000, 6_000, 90_000)],
            "3,000 events/s, 84,000 behind, about 28 s left",
        );
        check(&[(0, 0, 0, 90_000), (2, 10, 10, 99_000)], "5 events/s, 98,990 behind, not catching up");
        check(&[(0, 0, 0, 100), (1, 100, 100, 100)], "100 events/s, caught up");
    }
}
