//! Progress of long work, on standard error: bars on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use changeover::{ActivationProgress, ProjectorName, ReplayPhase, ReplayProgress, VerifyProgress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::pace::{Left, Pace};
use super::tables::{seconds, several, thousands};
use super::{plain, to_stderr};

/// How often the same thing is said in lines.
const EVERY: Duration = Duration::from_secs(3);

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
    pace: Pace,
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
    pub(crate) fn new(quiet: bool) -> Self {
        let style = match (quiet, stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Bars,
            (false, false) => Style::Lines,
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
                );
            }
            _ => {}
        }
    }

    fn feeding(&self, what: &str, progress: &ReplayProgress) {
        let mut shown = self.shown();
        let replay = shown.replays.entry(progress.projector.clone()).or_default();
        replay.pace.push(progress);
        let name = format!("{} {}", progress.projector, progress.version);
        let (position, horizon) = (progress.position.get(), progress.horizon.get());
        let pace = words(progress, &replay.pace);
        let what = match progress.phase {
            ReplayPhase::Following => "following",
            _ => what,
        };
        let line = format!("{what} {name}: at {} of {}, {pace}\n", thousands(position), thousands(horizon));
        replay.line = Some(line);
        // Another phase is told at once.
        let is_new = replay.phase.replace(progress.phase) != Some(progress.phase);
        match self.style {
            Style::Silent => {}
            Style::Lines => {
                if is_new || replay.said.as_ref().is_none_or(|(_, at)| at.elapsed() >= EVERY) {
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

    /// An activation has come further.
    pub(crate) fn activating(&self, progress: &ActivationProgress) {
        match progress {
            ActivationProgress::Started { activation } => {
                self.say(format!("activation {activation} has started"));
            }
            ActivationProgress::Replaying(progress) => self.replaying(progress),
            ActivationProgress::Verifying(progress) => self.verifying(progress),
            ActivationProgress::WaitingForInstances { seen, wanted } => {
                self.say(format!(
                    "waiting for instances of the new configuration: {seen} of {wanted} are alive"
                ));
            }
            ActivationProgress::WaitingForAppends(blockers) => {
                let who: Vec<String> = blockers.iter().map(ToString::to_string).collect();
                self.say_at_most_every(
                    EVERY,
                    "waiting for transactions",
                    format!("waiting for transactions that have been open for long: {}", who.join("; ")),
                );
            }
            ActivationProgress::WaitingForReaders { projector, readers } => {
                let who: Vec<String> = readers.iter().map(ToString::to_string).collect();
                self.say_at_most_every(
                    EVERY,
                    "waiting for readers",
                    format!("waiting for readers of {projector}: {}", who.join("; ")),
                );
            }
            // Nothing is written during the pause: a terminal that does not take it would prolong it.
            _ => {}
        }
    }

    /// What is not said again and again.
    pub(crate) fn say(&self, text: String) {
        self.say_at_most_every(Duration::ZERO, "", text);
    }

    fn say_at_most_every(&self, interval: Duration, what: &str, text: String) {
        let mut shown = self.shown();
        match self.style {
            Style::Silent => {}
            Style::Lines => {
                let lately =
                    shown.said.as_ref().is_some_and(|(said, at)| said == what && at.elapsed() < interval);
                if !lately {
                    shown.catch_up();
                    to_stderr(&format!("{text}\n"));
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
fn words(progress: &ReplayProgress, pace: &Pace) -> String {
    let mut words = Vec::new();
    #[allow(clippy::cast_possible_truncation)]
    words.extend(pace.events_per_sec().map(|rate| format!("{} events/s", thousands(rate.round() as i64))));
    let lag = progress.lag_events();
    words.push(if lag == 0 { "caught up".to_owned() } else { format!("{} behind", thousands(lag)) });
    match pace.left() {
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
            let mut pace = Pace::default();
            let mut last = None;
            for &(secs, events, position, horizon) in samples {
                let progress = ReplayProgress {
                    projector: "orders".parse().unwrap(),
                    version: "2.0.0".parse().unwrap(),
                    position: Position::new(position),
                    horizon: Position::new(horizon),
                    phase: changeover::ReplayPhase::Bulk,
                    events,
                    elapsed: Duration::from_secs(secs),
                };
                pace.push(&progress);
                last = Some(progress);
            }
            assert_eq!(words(&last.unwrap(), &pace), expected);
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
