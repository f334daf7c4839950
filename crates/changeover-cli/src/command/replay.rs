//! What `replay` is told, and at what pace anything is replayed.

use std::time::Duration;

use changeover::{Pace, ProjectorName, ReplayOptions, Throttle};
use clap::Args;

use super::options::Who;
use super::values::{duration_above_zero, size};

/// What `replay` is told.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The projectors to replay; all that an activation would replay unless given
    #[arg(value_name = "PROJECTOR")]
    pub projectors: Vec<ProjectorName>,
    /// Start over: empty the tables of these projectors and replay them from the first event
    ///
    /// For a mended build of the same version. Refused for tables of a version that is active or has retired.
    #[arg(long, requires = "projectors")]
    pub restart: bool,
    /// Stay caught up until the versions are activated; ends with 0 then, and when told to stop once it has caught up
    #[arg(long)]
    pub follow: bool,
    /// Stop once at most this many events are left
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(i64).range(0..))]
    pub lag_events: i64,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
    /// How fast. Last, since its heading stands over whatever follows.
    #[command(flatten)]
    pub pace: PaceArgs,
}

impl ReplayArgs {
    pub(crate) fn options(&self) -> ReplayOptions {
        ReplayOptions {
            requested_by: self.who.requested_by(),
            lag_events: self.lag_events,
            limit: None,
            pace: self.pace.pace(),
            follow: self.follow,
            restart: self.restart,
        }
    }
}

/// The heading of what follows, in the help.
const PACE: &str = "Pace of a replay";

/// How fast a replay goes, and at whose expense.
#[derive(Debug, Clone, Args)]
pub struct PaceArgs {
    /// About how much memory its rows and events may take up, such as 512MiB
    #[arg(long, help_heading = PACE, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    pub memory: usize,
    /// How many connections its bulk may keep busy
    #[arg(long, help_heading = PACE, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(3..))]
    pub max_connections: u16,
    /// How often rows and checkpoints are written: what a process that is killed costs at most
    #[arg(long, help_heading = PACE, value_name = "DURATION", default_value = "5s", value_parser = duration_above_zero)]
    pub checkpoint_every: Duration,
    /// No more events a second than this; any number unless given
    #[arg(long, help_heading = PACE, value_name = "EVENTS/S", value_parser = clap::value_parser!(u32).range(1..))]
    pub throttle: Option<u32>,
    /// Pause while the commit of a small write takes longer than this
    #[arg(long, help_heading = PACE, value_name = "DURATION", value_parser = duration_above_zero)]
    pub pause_above_commit_latency: Option<Duration>,
    /// Pause while a standby lags further behind than this
    #[arg(long, help_heading = PACE, value_name = "DURATION", value_parser = duration_above_zero)]
    pub pause_above_replication_lag: Option<Duration>,
}

impl PaceArgs {
    pub(super) fn pace(&self) -> Pace {
        Pace {
            memory_bytes: self.memory,
            max_connections: usize::from(self.max_connections),
            checkpoint_every: self.checkpoint_every,
            throttle: Throttle {
                events_per_sec: self.throttle,
                commit_latency: self.pause_above_commit_latency,
                replication_lag: self.pause_above_replication_lag,
            },
            ..Pace::default()
        }
    }
}
