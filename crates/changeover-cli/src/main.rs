//! The `changeover` binary: what an operator can do without the application.

use std::process::ExitCode;

fn main() -> ExitCode {
    changeover_cli::main_without_projectors("changeover", env!("CARGO_PKG_VERSION"))
}
