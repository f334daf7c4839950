//! What can be typed: the shop's own commands, and Changeover's among them.

use std::net::SocketAddr;

use clap::Parser;

use crate::{Release, demo};

/// A small web shop, in two releases.
#[derive(Debug, Parser)]
#[command(name = "shop", version, max_term_width = 110)]
pub struct CommandLine {
    /// What all commands share.
    #[command(flatten)]
    pub options: changeover_cli::Options,
    /// Which of its two releases the shop is.
    #[arg(long, global = true, value_enum, default_value = "2")]
    pub release: Release,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the shop can be told to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Serve the shop
    Serve {
        /// Where
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
    },
    /// Show an upgrade from release 1 to release 2 under load
    Demo(demo::Arguments),
    /// Changeover's own.
    #[command(flatten)]
    Changeover(changeover_cli::Command),
}
