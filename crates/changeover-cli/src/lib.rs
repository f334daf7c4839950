//! Changeover's commands: a clap library that a host embeds, and the `changeover` binary.
//!
//! `plan`, `replay`, `activate-configuration`, `upgrade`, `rollback`, `optimize`, `adopt` and `verify` run the projectors' code, so
//! they belong into the application's own binary: the same build that serves also replays and activates. The other commands
//! need no projector, and neither does `verify --between`; the `changeover` binary has them too, for operators.
//!
//! What a replay may take of memory, connections and the server's time is bounded by [`PaceArgs`]: `--memory`, `--max-connections`,
//! `--checkpoint-every`, `--throttle`, `--pause-above-commit-latency` and `--pause-above-replication-lag`.
//!
//! # In an application
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use changeover::Configuration;
//! use changeover_cli::clap::{self, Parser};
//!
//! /// A web shop.
//! #[derive(Parser)]
//! #[command(version)]
//! struct Shop {
//!     #[command(flatten)]
//!     options: changeover_cli::Options,
//!     #[command(subcommand)]
//!     command: Command,
//! }
//!
//! #[derive(clap::Subcommand)]
//! enum Command {
//!     /// Serve the shop
//!     Serve,
//!     #[command(flatten)]
//!     Changeover(changeover_cli::Command),
//! }
//!
//! #[tokio::main]
//! async fn main() -> ExitCode {
//!     let shop = Shop::parse();
//!     shop.options.init_logging();
//!     let builder = shop.options.builder().unwrap_or_else(|error| error.exit());
//!     let builder = builder.application("shop", env!("CARGO_PKG_VERSION")).configuration(configuration());
//!     match shop.command {
//!         Command::Serve => serve(builder).await,
//!         Command::Changeover(command) => changeover_cli::run(command, &shop.options, builder).await,
//!     }
//! }
//!
//! # fn configuration() -> Configuration { Configuration::new() }
//! # async fn serve(builder: changeover::Builder) -> ExitCode { ExitCode::SUCCESS }
//! ```
//!
//! A binary that has no commands of its own is one line, see [`main_with`].
//!
//! # What is printed where
//!
//! The result goes to standard output: tables for people, or one JSON document with `--json`. Everything else goes to
//! standard error: logs (`--verbose`, `--quiet`, or a filter in `CHANGEOVER_LOG`), the error, and the progress of long work, as bars on
//! a terminal and as a line every few seconds elsewhere. With `--json` a failure is told on standard output as well, as
//! `{"error": {"kind": .., "message": .., "causes": [..]}}`, where `kind` is one stable word.
//!
//! # Exit codes
//!
//! | code | |
//! |---|---|
//! | 0 | done, or there was nothing to do |
//! | 1 | refused: it contradicts the state of the database or of a projector (obstacles, blocked, overtaken, not stalled there, not active, ..); the reason says what to do |
//! | 2 | usage: the command line cannot be understood |
//! | 3 | failed: the database, the network or a signal; trying again may help |
//!
//! # Signals
//!
//! Told to stop by Ctrl-C or SIGTERM, `activate-configuration`, `upgrade` and `rollback` abort their activation at once, so that nobody is paused until the
//! deadline; `adopt` does the same, and keeps what it took over. If the switch took place already, each says so and ends with 0, also where
//! stable views are still to be moved. `replay` and `optimize` stop, and go on from there the next time. `verify` stops, and the next one drops the tables that it made.
//! `deactivate` is over within its drain timeout and its pause limit and is waited for. A second signal ends each of them where
//! it stands.

mod command;
mod exit;
mod interrupt;
mod logging;
mod output;
mod program;
mod run;

pub use clap;

pub use crate::command::{
    AbortArgs, ActivateArgs, AdoptArgs, Command, DeactivateArgs, DiscardArgs, OptimizeArgs, Options,
    PaceArgs, PauseArgs, ProgressStyle, PruneArgs, ReplayArgs, RepointArgs, RetryArgs, SkipArgs, SwitchArgs,
    UpgradeArgs, VerifyArgs, ViewArgs, Who,
};
pub use crate::exit::{EXIT_CODES, Exit};
pub use crate::program::{main_with, main_without_projectors};
pub use crate::run::run;
