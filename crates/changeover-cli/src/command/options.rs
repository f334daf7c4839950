//! What all commands share.

use std::fmt;

use changeover::{Builder, Changeover, SchemaName};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, ValueEnum};

/// What all commands share, to be flattened into a host's parser. They may stand before or after the command.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Options for every command")]
pub struct Options {
    /// The database, as a URL or as key=value pairs
    #[arg(long, global = true, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// The schema that holds Changeover's own tables
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "CHANGEOVER_SCHEMA",
        hide_env_values = true,
        default_value_t
    )]
    pub schema: SchemaName,
    /// Print the result as one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Show progress on standard error as bars, lines, json or none; bars on a terminal and lines elsewhere unless given
    #[arg(long, global = true, value_name = "HOW", value_enum, hide_possible_values = true)]
    pub progress: Option<ProgressStyle>,
    /// Log more to standard error; twice for even more [env: CHANGEOVER_LOG=FILTER]
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Show no progress, unless it was asked for, and log errors alone
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// How the progress of long commands is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressStyle {
    /// Bars that move
    Bars,
    /// Lines for people, every few seconds
    Lines,
    /// Lines for machines: a JSON object each, at most one a second for each projector
    Json,
    /// Nothing
    None,
}

impl fmt::Debug for Options {
    /// Without the database's URL: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("schema", &self.schema)
            .field("json", &self.json)
            .field("verbose", &self.verbose)
            .field("quiet", &self.quiet)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Begins to set up an instance for the database and the schema that were named.
    ///
    /// # Errors
    ///
    /// No database was named, or its URL cannot be read: a usage error, to be ended with [`clap::Error::exit`].
    /// The URL itself is not part of the error, since it may hold a password.
    pub fn builder(&self) -> Result<Builder, clap::Error> {
        let usage = |kind, text: String| clap::Error::raw(kind, format!("{text}\n"));
        let url = self.database_url.as_deref().filter(|url| !url.is_empty()).ok_or_else(|| {
            let text = "no database was named: give --database-url or set DATABASE_URL";
            usage(ErrorKind::MissingRequiredArgument, text.to_owned())
        })?;
        let config = url.parse().map_err(|error| {
            // Backticks are for commands.
            let text = crate::exit::chain(&error).join(": ").replace('`', "'");
            usage(ErrorKind::ValueValidation, format!("the database's URL cannot be read: {text}"))
        })?;
        Ok(Changeover::builder(config).schema(self.schema.clone()))
    }
}

/// Who asks for a change, for the history.
#[derive(Debug, Clone, Args)]
pub struct Who {
    /// Who asks for it, for the history; user and host unless given
    #[arg(long, value_name = "NAME", env = "CHANGEOVER_REQUESTED_BY", hide_env_values = true)]
    requested_by: Option<String>,
}

impl Who {
    /// The name that goes into the history.
    pub fn requested_by(&self) -> String {
        self.requested_by.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| {
            let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
            let host =
                std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or(std::env::var("HOSTNAME").ok());
            match (user, host.as_deref().map(str::trim).filter(|host| !host.is_empty())) {
                (Some(user), Some(host)) => format!("{user}@{host}"),
                (Some(user), None) => user,
                (None, Some(host)) => host.to_owned(),
                (None, None) => "unnamed".to_owned(),
            }
        })
    }
}
