//! The shop's one binary: it serves, and has Changeover's commands for the pipeline that deploys it.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use changeover::{Builder, Changeover, WhenNothingIsActive};
use clap::Parser;
use shop::command_line::{Command, CommandLine};
use shop::{Release, demo, http};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

#[tokio::main]
async fn main() -> ExitCode {
    let shop = CommandLine::parse();
    shop.options.init_logging();
    if let Command::Demo(arguments) = &shop.command {
        return demo::main(arguments).await;
    }
    let builder = shop.options.builder().unwrap_or_else(|error| error.exit());
    let configuration = shop.release.configuration().expect("BUG: the shop's projectors must fit together");
    let builder = builder.application("shop", shop.release.version()).configuration(configuration);
    let served = match shop.command {
        Command::Serve { listen } => serve(builder, shop.release, listen).await,
        Command::Changeover(command) => return changeover_cli::run(command, &shop.options, builder).await,
        Command::Demo(_) => unreachable!("BUG: the demo has ended before"),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const CONNECTIONS: usize = 8;

/// Opens all connections before anybody waits for one: at the switch this instance gets the whole load in one moment.
async fn open_connections(changeover: &Changeover) -> Result<()> {
    let mut open = Vec::with_capacity(CONNECTIONS);
    while open.len() < CONNECTIONS {
        open.push(changeover.pool().get().await?);
    }
    Ok(())
}

async fn serve(builder: Builder, release: Release, listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let changeover = builder
        .address(&format!("http://{address}"))
        .pool_size(CONNECTIONS)
        // Which release counts is for the pipeline to say, not for whoever happens to start first.
        .when_nothing_is_active(WhenNothingIsActive::Refuse)
        .connect()
        .await
        .context("the shop cannot be set up")?;
    open_connections(&changeover).await.context("the shop has no connections")?;
    let running = changeover.start();
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on {address}");
    axum::serve(listener, http::app(release, changeover))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
            info!("finishing the requests in hand");
        })
        .await?;
    running.stop().await;
    Ok(())
}
