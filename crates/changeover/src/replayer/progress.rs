//! How far a replay has come.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// What a replay is at, in this order, unless it pauses or cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReplayPhase {
    /// The tables are made, or emptied to start over.
    Beginning,
    /// The bulk of the log, in parallel.
    Bulk,
    /// Secondary indexes, and what the planner knows of the tables.
    Indexing,
    /// What is left of the log, by the step that live publishing takes.
    CatchingUp,
    /// It has caught up, and stays so.
    Following,
    /// It has stopped for as long as the server is busy, by its [throttle](crate::Throttle); then it goes on with what it was at.
    Paused,
    /// It could not go on following. Others that are followed by the same call do; why it could not is told when they have ended.
    Ended,
}

impl ReplayPhase {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Beginning => "beginning",
            Self::Bulk => "bulk",
            Self::Indexing => "indexing",
            Self::CatchingUp => "catching up",
            Self::Following => "following",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for ReplayPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a replay has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayProgress {
    /// The projector.
    pub projector: ProjectorName,
    /// Its version.
    pub version: semver::Version,
    /// Its checkpoint.
    pub position: Position,
    /// The end of the log.
    pub horizon: Position,
    /// What it is at.
    pub phase: ReplayPhase,
    /// Events projected by this call so far.
    pub events: u64,
    /// How far the indexes are, while they are built.
    pub indexing: Option<Indexing>,
    /// How long this call has been at it.
    pub elapsed: Duration,
}

impl ReplayProgress {
    /// How many events it is behind, at most: positions have gaps.
    pub fn lag_events(&self) -> i64 {
        (self.horizon.get() - self.position.get()).max(0)
    }
}

/// How far the secondary indexes of a version's tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Indexing {
    /// How many of them are built.
    pub built: u32,
    /// How many are to be built.
    pub of: u32,
    /// How far those are that are being built, as the server tells.
    pub percent: u8,
}

/// A version whose checkpoint has reached a horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct CaughtUp {
    /// Where the replay ended.
    pub progress: ReplayProgress,
    /// Whether it was followed until it was activated.
    pub activated: bool,
}
