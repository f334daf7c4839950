//! A whole program out of the commands: for hosts that have none of their own, and for the `changeover` binary.

use std::ffi::OsString;
use std::process::ExitCode;

use changeover::Configuration;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::command::{Command, Options};
use crate::exit::{EXIT_CODES, Exit, Failure};
use crate::{output, run};

/// Zero-downtime upgrades of event-sourced applications on PostgreSQL.
#[derive(Debug, Parser)]
#[command(after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 110)]
struct Program {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// The `main` of a binary that has Changeover's commands and no others.
///
/// ```no_run
/// # fn configuration() -> changeover::Configuration { changeover::Configuration::new() }
/// fn main() -> std::process::ExitCode {
///     changeover_cli::main_with("shop-admin", env!("CARGO_PKG_VERSION"), configuration())
/// }
/// ```
///
/// Parses the command line, logs to standard error, and runs the command on a runtime of its own.
pub fn main_with(name: &'static str, version: &'static str, configuration: Configuration) -> ExitCode {
    let parser = Program::command().name(name).version(version);
    start(parser, name, version, Some(configuration))
}

/// The `main` of the `changeover` binary: the commands that need no projector.
///
/// The others are known, so that whoever types them is told where they are.
pub fn main_without_projectors(name: &'static str, version: &'static str) -> ExitCode {
    start(without_projectors(name, version), name, version, None)
}

fn without_projectors(name: &'static str, version: &'static str) -> clap::Command {
    let hidden = ["plan", "replay", "activate-configuration", "upgrade", "rollback", "optimize", "adopt"];
    hidden.into_iter().fold(Program::command().name(name).version(version), |parser, name| {
        parser.mut_subcommand(name, |command| {
            let elsewhere =
                format!("Needs the projectors' code: run `{name}` of the application's own binary");
            command.hide(true).about(elsewhere.clone()).long_about(elsewhere)
        })
    })
}

fn start(
    mut parser: clap::Command,
    name: &'static str,
    version: &'static str,
    configuration: Option<Configuration>,
) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let parsed = parse(&mut parser, &arguments).and_then(|program| {
        if configuration.is_none() && program.command.needs_projectors() {
            let command = program.command.name();
            let text = format!(
                "`{command}` runs the projectors' code, which {name} does not have: run `{command}` of the application's own binary"
            );
            return Err(parser.error(ErrorKind::InvalidSubcommand, text));
        }
        let builder = program.options.builder().map_err(|error| error.format(&mut parser))?;
        Ok((program, builder.application(name, version)))
    });
    let (program, builder) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, &arguments),
    };
    program.options.init_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::new(Exit::Failed, "io", format!("no runtime could be started: {error}"));
            return output::failed(program.options.json, &failure).into();
        }
    };
    let builder = builder.configuration(configuration.unwrap_or_default());
    runtime.block_on(run(program.command, &program.options, builder))
}

fn parse(parser: &mut clap::Command, arguments: &[OsString]) -> Result<Program, clap::Error> {
    let mut matches = parser.try_get_matches_from_mut(arguments)?;
    Program::from_arg_matches_mut(&mut matches).map_err(|error| error.format(parser))
}

/// Help, the version, or what is wrong with the command line; the latter also as JSON where that was asked for.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    // Whether it is read or not changes nothing any more.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Done.into();
    }
    if arguments.iter().any(|argument| argument == "--json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        output::failed_json(&Failure::new(Exit::Usage, "usage", message));
    }
    Exit::Usage.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_are_sound() {
        Program::command().debug_assert();
        without_projectors("changeover", "1.0.0").debug_assert();
    }

    #[test]
    fn exactly_the_commands_that_need_projectors_are_hidden() {
        let parser = without_projectors("changeover", "1.0.0");
        for command in parser.get_subcommands() {
            let arguments = match command.get_name() {
                "retry" | "deactivate" => vec!["orders"],
                "prune" => vec!["--keep", "1"],
                "skip" | "adopt" => vec!["orders", "--position", "1"],
                "discard" => vec!["orders", "2.0.0"],
                "verify" => vec!["orders", "--between", "1.0.0", "2.0.0"],
                _ => vec![],
            };
            let line = ["changeover", command.get_name()].into_iter().chain(arguments);
            let program = Program::try_parse_from(line).unwrap();
            assert_eq!(command.is_hide_set(), program.command.needs_projectors(), "{}", command.get_name());
        }
    }
}
