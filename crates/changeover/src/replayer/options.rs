//! How a replay is to go about it.

use std::time::Duration;

/// What a replay is to do, and how.
///
/// ```
/// use changeover::{Pace, ReplayOptions, Throttle};
///
/// let gentle = ReplayOptions {
///     requested_by: "the night shift".into(),
///     pace: Pace {
///         memory_bytes: 128 << 20,
///         throttle: Throttle { events_per_sec: Some(50_000), ..Throttle::default() },
///         ..Pace::default()
///     },
///     ..ReplayOptions::default()
/// };
/// assert_eq!(gentle.pace.max_connections, 8);
/// ```
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Who asks for it; written down with the version.
    pub requested_by: String,
    /// Caught up is who has at most so many events left.
    pub lag_events: i64,
    /// How long catching up may take once the bulk of the log is replayed; none for as long as it takes.
    pub limit: Option<Duration>,
    /// How fast, and at whose expense.
    pub pace: Pace,
    /// Stay caught up until the versions are activated, and end then. Wakes by the signals that wake a publisher.
    pub follow: bool,
    /// Start over: for a mended build of the same version. Empties the tables and replays them from the first event. Refused for tables
    /// of a version that is active or has retired.
    pub restart: bool,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            requested_by: "unnamed".to_owned(),
            lag_events: 0,
            limit: None,
            pace: Pace::default(),
            follow: false,
            restart: false,
        }
    }
}

/// How fast a replay goes, and at whose expense. The defaults suit a server that has power to spare.
#[derive(Debug, Clone)]
pub struct Pace {
    /// About how much memory rows and events may take up. Rows that find no room are written and loaded again.
    pub memory_bytes: usize,
    /// How many connections the bulk may keep busy; it takes at least three. Besides these a replay has three that are hardly ever
    /// busy, to ask how things stand and to show how far it is, and a fourth where the throttle asks the server.
    pub max_connections: usize,
    /// How often rows and checkpoints are written: what a process that is killed costs at most.
    pub checkpoint_every: Duration,
    /// A lag above this is replayed in parallel.
    pub parallel_above_events: i64,
    /// Into how many shards the rows are split by key; none for as many as there are processors. Fixed when a parallel
    /// replay begins; processes that share one share its shards.
    pub shards: Option<u16>,
    /// What the live system keeps.
    pub throttle: Throttle,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            max_connections: 8,
            checkpoint_every: Duration::from_secs(5),
            parallel_above_events: 20_000,
            shards: None,
            throttle: Throttle::default(),
        }
    }
}

/// What a replay leaves to the live system: in its bulk, while it catches up, and where a verification folds the log. What merely
/// follows the end of the log is not held back, nor is the feeding in an activation's pause.
///
/// A replay that pauses says so: [`ReplayPhase::Paused`](crate::ReplayPhase::Paused).
#[derive(Debug, Clone, Default)]
pub struct Throttle {
    /// No more events a second than this, at every moment: time that was lost to a pause is not made up for. Rows are then written in
    /// small pieces as well, with breaks in between, so a replay that has many of them to write stays below it.
    pub events_per_sec: Option<u32>,
    /// Pause while the commit of a small write takes longer.
    pub commit_latency: Option<Duration>,
    /// Pause while a standby lags further behind in replaying. That is seen by roles with `pg_read_all_stats` alone; where there is
    /// no standby, or none that the role may see, the log has a warning and nothing pauses.
    pub replication_lag: Option<Duration>,
}
