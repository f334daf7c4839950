//! The measurements: what Changeover costs beside the raw database, in the same run.
//!
//! `make bench` prints a table and writes a line of JSON for each figure into `target/bench.jsonl`. It starts a private
//! PostgreSQL that forces its commits to disk, unless `DATABASE_URL` names a server.

mod activation;
mod append;
mod bare;
mod domain;
mod inline;
mod latency;
mod measure;
mod memory;
mod registry;
mod replay;
mod report;
mod server;
mod subjects;
mod verify;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use self::measure::Effort;
use self::report::Report;
use self::server::Server;

/// Measures what Changeover costs beside the raw database.
#[derive(Debug, Parser)]
struct Options {
    /// A few short rounds: whether it runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only this group; may be given several times.
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Group>,
    /// What a process does that is looked at from outside: replays what is in this database, and waits to be killed.
    #[arg(long, hide = true, value_name = "URL")]
    replay_alone: Option<String>,
    /// With so much memory.
    #[arg(long, hide = true, requires = "replay_alone")]
    memory_mib: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Append beside the bare INSERT.
    Append,
    /// Append with an inline projector.
    Inline,
    /// From commit to visible row.
    Latency,
    /// The pause of an activation.
    Activation,
    /// Many projectors, many versions.
    Registry,
    /// Back to the release before.
    Rollback,
    /// History into new tables.
    Replay,
    /// The proof of what was replayed, and what a throttled replay costs those who write.
    Verify,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(url) = options.replay_alone {
        return memory::child(&url, options.memory_mib).await;
    }
    let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    let mut report = Report::begin()?;
    let server = Server::start()?;
    let conditions = server.conditions().await?;
    println!("{conditions}");
    for group in Group::value_variants() {
        if !options.only.is_empty() && !options.only.contains(group) {
            continue;
        }
        match group {
            Group::Append => append::run(&server, effort, &mut report).await?,
            Group::Inline => inline::run(&server, effort, &mut report).await?,
            Group::Latency => latency::run(&server, effort, &mut report).await?,
            Group::Activation => activation::run(&server, effort, &mut report).await?,
            Group::Registry => registry::run(&server, effort, &mut report).await?,
            Group::Rollback => activation::go_back(&server, effort, &mut report).await?,
            Group::Verify => verify::run(&server, effort, &mut report).await?,
            Group::Replay => replay::run(&server, effort, &mut report).await?,
        }
    }
    println!("{}", report.table());
    Ok(())
}
