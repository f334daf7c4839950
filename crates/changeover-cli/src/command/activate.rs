//! What everything that switches is told: how the pause may go, and what becomes of the stable views.

use std::time::Duration;

use changeover::{ActivateOptions, AdoptAt, AdoptOptions, ProjectorName, VerifyOptions};
use clap::Args;

use super::options::Who;
use super::replay::PaceArgs;
use super::values::{adopt_at, duration, duration_above_zero};

/// What `activate-configuration` and `rollback` are told.
#[derive(Debug, Clone, Args)]
pub struct ActivateArgs {
    /// Prove the rows of new versions against the log before the switch, and refuse to switch where any differ
    #[arg(long)]
    pub verify: bool,
    /// The switch.
    #[command(flatten)]
    pub switch: SwitchArgs,
}

impl ActivateArgs {
    pub(crate) fn options(&self) -> ActivateOptions {
        let verify =
            self.verify.then(|| VerifyOptions { pace: self.switch.pace.pace(), ..VerifyOptions::default() });
        ActivateOptions { verify, ..self.switch.options() }
    }
}

/// What everything is told that switches a whole configuration.
#[derive(Debug, Clone, Args)]
pub struct SwitchArgs {
    /// Wait until this many instances of the new configuration are alive
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub wait_for_instances: usize,
    /// How long to wait for them
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub instances_timeout: Duration,
    /// How long the new versions may take to come close to the end of the log
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub catch_up_timeout: Duration,
    /// Let instances of the old release that still run keep its tables current, so that going back replays nothing
    #[arg(long)]
    pub keep_following: bool,
    /// Only show what would be done; ends with 1 where something stands in the way
    #[arg(long)]
    pub dry_run: bool,
    /// The pause.
    #[command(flatten)]
    pub pause: PauseArgs,
    /// The stable views.
    #[command(flatten)]
    pub views: ViewArgs,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
    /// How fast what has to be replayed is replayed. Last, since its heading stands over whatever follows.
    #[command(flatten)]
    pub pace: PaceArgs,
}

impl SwitchArgs {
    pub(crate) fn options(&self) -> ActivateOptions {
        ActivateOptions {
            wait_for_instances: self.wait_for_instances,
            instances_timeout: self.instances_timeout,
            catch_up_timeout: self.catch_up_timeout,
            pace: self.pace.pace(),
            keep_following: self.keep_following,
            ..self.pause.options(&self.views, &self.who)
        }
    }
}

/// What `adopt` is told.
#[derive(Debug, Clone, Args)]
pub struct AdoptArgs {
    /// The projector whose tables they are to be
    pub projector: ProjectorName,
    /// The tables hold everything up to this position and nothing after it; or the word horizon, if the very transactions that append
    /// keep them current
    #[arg(long, value_name = "N|horizon", value_parser = adopt_at)]
    pub position: AdoptAt,
    /// Move the tables from this schema, and leave views in their places
    #[arg(long, value_name = "NAME")]
    pub from_schema: Option<String>,
    /// Prove the rows against the log first, and refuse where any differ; nothing is changed then
    ///
    /// Where an earlier call has taken the tables over already, they are proved right before the switch.
    #[arg(long)]
    pub verify: bool,
    /// How long to try to move the tables while somebody holds them
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub move_timeout: Duration,
    /// How long the tables may take to come close to the end of the log
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub catch_up_timeout: Duration,
    /// The pause.
    #[command(flatten)]
    pub pause: PauseArgs,
    /// The stable views.
    #[command(flatten)]
    pub views: ViewArgs,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
    /// How fast what came since is replayed, and the rows are proved. Last, since its heading stands over whatever follows.
    #[command(flatten)]
    pub pace: PaceArgs,
}

impl AdoptArgs {
    pub(crate) fn options(&self) -> AdoptOptions {
        let pace = self.pace.pace();
        AdoptOptions {
            from_schema: self.from_schema.clone(),
            verify: self.verify.then(|| VerifyOptions { pace: pace.clone(), ..VerifyOptions::default() }),
            move_timeout: self.move_timeout,
            activation: ActivateOptions {
                catch_up_timeout: self.catch_up_timeout,
                pace,
                ..self.pause.options(&self.views, &self.who)
            },
            ..AdoptOptions::at(self.position)
        }
    }
}

/// What `deactivate` is told.
#[derive(Debug, Clone, Args)]
pub struct DeactivateArgs {
    /// The projector to retire
    pub projector: ProjectorName,
    /// The pause.
    #[command(flatten)]
    pub pause: PauseArgs,
    /// The stable views.
    #[command(flatten)]
    pub views: ViewArgs,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl DeactivateArgs {
    pub(crate) fn options(&self) -> ActivateOptions {
        self.pause.options(&self.views, &self.who)
    }
}

/// How a pause may go.
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// How long to wait, before the pause, until no append has been open for long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// How long writers may be paused; past it the old configuration serves again
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration_above_zero)]
    pub pause_limit: Duration,
}

impl PauseArgs {
    pub(crate) fn options(&self, views: &ViewArgs, who: &Who) -> ActivateOptions {
        ActivateOptions {
            requested_by: who.requested_by(),
            drain_timeout: self.drain_timeout,
            pause_limit: self.pause_limit,
            repoint_views: !views.no_views,
            views_timeout: views.views_timeout,
            ..ActivateOptions::default()
        }
    }
}

/// What becomes of the stable views.
#[derive(Debug, Clone, Args)]
pub struct ViewArgs {
    /// Neither make nor move the stable views PROJECTOR.TABLE
    #[arg(long)]
    pub no_views: bool,
    /// How long to try to move the stable views, after the switch, while readers hold them
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub views_timeout: Duration,
}

/// What `repoint-views` is told.
#[derive(Debug, Clone, Args)]
pub struct RepointArgs {
    /// How long to try while readers hold the views
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
}
