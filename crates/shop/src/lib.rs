//! The example: a small web shop on Changeover, in two releases of one code base.
//!
//! Read it in this order: [`orders`] is the domain and knows nothing of the web or of read models; [`release1`] and
//! [`release2`] are the projectors of the two releases, each with the routes that read from them, and [`bestsellers`] is
//! the one that both have; [`http`] puts the routes together; [`command_line`] is what can be
//! typed, and `main.rs` does it: it serves, and has Changeover's commands.
//!
//! [`demo`] is not part of the shop: it is what `make demo` shows.

pub mod bestsellers;
pub mod command_line;
pub mod demo;
pub mod http;
pub mod orders;
pub mod release1;
pub mod release2;

use axum::Router;
use changeover::{Changeover, Configuration, ConfigurationError};
use clap::ValueEnum;

/// Which of the two releases this process is. A real application has one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Release {
    /// The first one.
    #[value(name = "1")]
    One,
    /// With a changed table and a new projector.
    #[value(name = "2")]
    Two,
}

impl Release {
    /// The version of the application.
    pub fn version(self) -> &'static str {
        match self {
            Self::One => "1.0.0",
            Self::Two => "2.0.0",
        }
    }

    /// Its projectors.
    pub fn configuration(self) -> Result<Configuration, ConfigurationError> {
        match self {
            Self::One => release1::configuration(),
            Self::Two => release2::configuration(),
        }
    }

    /// The routes that read from its projectors.
    pub fn routes(self) -> Router<Changeover> {
        match self {
            Self::One => release1::routes(),
            Self::Two => release2::routes(),
        }
    }
}
