//! How fast a replay is and when it will be done: said only as far as it is known.

use std::collections::VecDeque;
use std::time::Duration;

use super::{ReplayPhase, ReplayProgress};

/// What the estimates look back on.
const WINDOW: Duration = Duration::from_secs(10);
/// Estimates from less than this would jump about.
const ENOUGH: Duration = Duration::from_millis(500);

/// The last seconds of a replay: how fast it is, and when it will have caught up.
///
/// ```
/// use changeover::{Left, Speed};
///
/// let mut speed = Speed::default();
/// // To be fed with what a replay reports, each projector by itself.
/// assert_eq!((speed.events_per_sec(), speed.left()), (None, Left::Unknown));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Speed {
    samples: VecDeque<Sample>,
    phase: Option<ReplayPhase>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    events: u64,
    lag_events: i64,
}

/// When a replay will have caught up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Left {
    /// Nobody can say yet.
    Unknown,
    /// If it goes on like this.
    About(Duration),
    /// The log grows at least as fast.
    Never,
}

impl Speed {
    /// Takes note of how far it has come.
    pub fn push(&mut self, progress: &ReplayProgress) {
        let sample =
            Sample { at: progress.elapsed, events: progress.events, lag_events: progress.lag_events() };
        // One phase says nothing of the next; a pause is part of the one that it interrupts.
        if progress.phase != ReplayPhase::Paused && self.phase.replace(progress.phase) != Some(progress.phase)
        {
            self.samples.clear();
        }
        // Another replay of the same projector counts from the beginning.
        if self.samples.back().is_some_and(|last| last.at > sample.at || last.events > sample.events) {
            self.samples.clear();
        }
        self.samples.push_back(sample);
        // One sample at or beyond the window's edge is kept, to have all of the window.
        while self.samples.get(1).is_some_and(|second| sample.at.saturating_sub(second.at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    fn ends(&self) -> Option<(Sample, Sample, f64)> {
        let (first, last) = (*self.samples.front()?, *self.samples.back()?);
        let between = last.at.saturating_sub(first.at);
        (between >= ENOUGH).then_some((first, last, between.as_secs_f64()))
    }

    /// Events projected each second, over the last ten seconds; none before that can be told.
    #[allow(clippy::cast_precision_loss)]
    pub fn events_per_sec(&self) -> Option<f64> {
        self.ends().map(|(first, last, secs)| (last.events - first.events) as f64 / secs)
    }

    /// When the lag will be gone, by how fast it shrinks: what is appended meanwhile counts too.
    #[allow(clippy::cast_precision_loss)]
    pub fn left(&self) -> Left {
        let Some((first, last, secs)) = self.ends() else { return Left::Unknown };
        let shrinks = (first.lag_events - last.lag_events) as f64 / secs;
        if last.lag_events == 0 {
            Left::About(Duration::ZERO)
        } else if shrinks <= 0.0 {
            Left::Never
        } else {
            Duration::try_from_secs_f64(last.lag_events as f64 / shrinks).map_or(Left::Never, Left::About)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::position::Position;

    /// Each sample: milliseconds, events, position, horizon.
    fn speed(samples: &[(u64, u64, i64, i64)]) -> Speed {
        let mut speed = Speed::default();
        for &(millis, events, position, horizon) in samples {
            speed.push(&ReplayProgress {
                projector: "orders".parse().unwrap(),
                version: "2.0.0".parse().unwrap(),
                position: Position::new(position),
                horizon: Position::new(horizon),
                phase: ReplayPhase::Bulk,
                events,
                indexing: None,
                elapsed: Duration::from_millis(millis),
            });
        }
        speed
    }

    #[test]
    fn an_estimate_counts_what_is_appended_meanwhile() {
        let check = |samples: &[(u64, u64, i64, i64)], expected: Left| {
            assert_eq!(speed(samples).left(), expected, "{samples:?}");
        };
        check(&[], Left::Unknown);
        check(&[(0, 0, 0, 1_000)], Left::Unknown);
        check(&[(0, 0, 0, 1_000), (100, 100, 100, 1_000)], Left::Unknown);
        check(&[(0, 0, 0, 1_000), (1_000, 100, 100, 1_000)], Left::About(Duration::from_secs(9)));
        // 100 done each second, 50 appended.
        check(&[(0, 0, 0, 1_000), (1_000, 100, 100, 1_050)], Left::About(Duration::from_secs(19)));
        check(&[(0, 0, 0, 1_000), (1_000, 100, 100, 1_100)], Left::Never);
        check(&[(0, 0, 0, 1_000), (1_000, 100, 100, 9_100)], Left::Never);
        check(&[(0, 0, 0, 1_000), (1_000, 1_000, 1_000, 1_000)], Left::About(Duration::ZERO));
    }

    #[test]
    fn only_the_last_seconds_count() {
        let slow_then_fast =
            [(0, 0, 0, 100_000), (20_000, 20, 20, 100_000), (30_000, 10_020, 10_020, 100_000)];
        assert_eq!(speed(&slow_then_fast).events_per_sec(), Some(1_000.0));
        assert_eq!(speed(&[(0, 0, 0, 10), (5_000, 10, 10, 10)]).events_per_sec(), Some(2.0));
    }

    #[test]
    fn a_replay_that_begins_anew_is_not_compared_with_the_one_before() {
        let twice =
            [(0, 0, 0, 1_000), (9_000, 900, 900, 1_000), (100, 10, 910, 1_000), (1_100, 20, 920, 1_000)];
        assert_eq!(speed(&twice).events_per_sec(), Some(10.0));
    }
}
