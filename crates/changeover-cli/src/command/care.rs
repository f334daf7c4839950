//! What the commands are told that put something right or away.

use std::time::Duration;

use changeover::semver::Version;
use changeover::{DiscardOptions, Position, ProjectorName, PruneOptions};
use clap::Args;

use super::options::Who;
use super::values::{duration, position};

/// What `abort` is told.
#[derive(Debug, Clone, Args)]
pub struct AbortArgs {
    /// End only what is replayed, verified or optimized of these projectors; every activation and everything else unless given
    #[arg(value_name = "PROJECTOR")]
    pub projectors: Vec<ProjectorName>,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

/// What `prune` is told.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Keep the tables of this many retired major versions of each projector: those that retired last
    #[arg(long, value_name = "N")]
    pub keep: usize,
    /// Drop what is due; without this, it is only shown
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Only show what would be dropped; ends with 1 where something that is due is protected
    #[arg(long)]
    pub dry_run: bool,
    /// How long to try for the locks that dropping takes; nobody has to wait behind us meanwhile
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub wait: Duration,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl PruneArgs {
    pub(crate) fn options(&self) -> PruneOptions {
        PruneOptions { requested_by: self.who.requested_by(), keep: self.keep, wait: self.wait }
    }
}

/// What `discard` is told.
#[derive(Debug, Clone, Args)]
pub struct DiscardArgs {
    /// The projector
    pub projector: ProjectorName,
    /// The version that was replayed and never activated
    pub version: Version,
    /// Drop its tables; without this, it is only shown what would be dropped
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Only show what would be dropped; ends with 1 where something protects it
    #[arg(long)]
    pub dry_run: bool,
    /// How long to try for the locks that dropping takes; nobody has to wait behind us meanwhile
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub wait: Duration,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl DiscardArgs {
    pub(crate) fn options(&self) -> DiscardOptions {
        DiscardOptions { requested_by: self.who.requested_by(), wait: self.wait }
    }
}

/// What `retry` is told.
#[derive(Debug, Clone, Args)]
pub struct RetryArgs {
    /// The stalled projector
    pub projector: ProjectorName,
}

/// What `skip` is told.
#[derive(Debug, Clone, Args)]
pub struct SkipArgs {
    /// The stalled projector
    pub projector: ProjectorName,
    /// The position of the event that stalls it, as `status` shows it: no other event is ever skipped
    #[arg(long, value_name = "N", value_parser = position)]
    pub position: Position,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}
