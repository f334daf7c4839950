//! What `upgrade` and `optimize` are told.

use changeover::{ActivateOptions, OptimizeOptions, ProjectorName, UpgradeOptions, VerifyOptions};
use clap::Args;

use super::activate::SwitchArgs;
use super::options::Who;

/// What `upgrade` is told.
#[derive(Debug, Clone, Args)]
pub struct UpgradeArgs {
    /// Switch without having proved the rows of new versions against the log
    #[arg(long)]
    pub no_verify: bool,
    /// The switch.
    #[command(flatten)]
    pub switch: SwitchArgs,
}

impl UpgradeArgs {
    pub(crate) fn options(&self) -> UpgradeOptions {
        let verify = (!self.no_verify)
            .then(|| VerifyOptions { pace: self.switch.pace.pace(), ..VerifyOptions::default() });
        UpgradeOptions { activation: ActivateOptions { verify, ..self.switch.options() } }
    }
}

/// What `optimize` is told.
#[derive(Debug, Clone, Args)]
pub struct OptimizeArgs {
    /// The projectors whose tables to optimize; all that have tables unless given
    #[arg(value_name = "PROJECTOR")]
    pub projectors: Vec<ProjectorName>,
    /// How many indexes are built, or tables analyzed, at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: u16,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl OptimizeArgs {
    pub(crate) fn options(&self) -> OptimizeOptions {
        OptimizeOptions {
            requested_by: self.who.requested_by(),
            max_connections: usize::from(self.max_connections),
        }
    }
}
