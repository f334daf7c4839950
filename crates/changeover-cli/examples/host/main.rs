//! A host: an application with commands of its own beside Changeover's, in two releases of one code base.
//!
//! ```text
//! host --release 1 migrate
//! host --release 1 place 1000
//! host --release 1 activate-configuration
//! host --release 2 plan
//! host --release 2 activate-configuration
//! ```

mod orders;

use std::process::ExitCode;

use changeover::{Builder, Expected};
use changeover_cli::clap::{self, Parser};

use crate::orders::OrderEvent;

/// An application that takes orders.
#[derive(Parser)]
#[command(version, after_help = changeover_cli::EXIT_CODES)]
struct Host {
    /// The release that this process is
    #[arg(long, default_value_t = 2)]
    release: u8,
    #[command(flatten)]
    options: changeover_cli::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Place orders
    Place { count: u32 },
    /// Publish to the projectors until Ctrl-C
    Serve,
    #[command(flatten)]
    Changeover(changeover_cli::Command),
}

#[tokio::main]
async fn main() -> ExitCode {
    let host = Host::parse();
    host.options.init_logging();
    let configuration = orders::configuration(host.release).expect("the projectors' names are valid");
    let builder = host.options.builder().unwrap_or_else(|error| error.exit());
    let builder = builder.application("host", &format!("{}.0.0", host.release)).configuration(configuration);
    let done = match host.command {
        Command::Place { count } => place(builder, count).await,
        Command::Serve => serve(builder).await,
        Command::Changeover(command) => return changeover_cli::run(command, &host.options, builder).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn place(builder: Builder, count: u32) -> Result<(), Box<dyn std::error::Error>> {
    let changeover = builder.connect().await?;
    for _ in 0..count {
        let placed = OrderEvent::Placed { customer: "Ada".to_owned(), cents: 1_250 };
        let stream = format!("order-{}", changeover.instance_id()).parse()?;
        changeover.append(&stream, Expected::Any, &[placed]).await?;
    }
    Ok(())
}

async fn serve(builder: Builder) -> Result<(), Box<dyn std::error::Error>> {
    let running = builder.connect().await?.start();
    tokio::signal::ctrl_c().await?;
    running.stop().await;
    Ok(())
}
