//! What can be typed: the commands, their arguments, and the options that all of them share.

mod verify;

use std::fmt;
use std::time::Duration;

use changeover::{
    ActivateOptions, AdoptAt, AdoptOptions, Builder, Changeover, Pace, Position, ProjectorName, PruneOptions,
    ReplayOptions, SchemaName, Throttle, VerifyOptions,
};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, Subcommand};

pub use self::verify::VerifyArgs;
use crate::exit::EXIT_CODES;

/// Changeover's commands, to be flattened into the commands of a host.
///
/// See [`run`](crate::run) for an example.
#[derive(Debug, Clone, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Bring Changeover's schema up to date
    ///
    /// Any number of processes may do so at once. A migration only adds, so the release that is running goes on.
    #[command(display_order = 101, after_help = EXIT_CODES)]
    Migrate,
    /// Show projectors, lag, the activation under way, and who is there
    ///
    /// Reads only, takes no lock, and waits for nobody.
    #[command(display_order = 102, after_help = EXIT_CODES)]
    Status,
    /// Show what an activation would do, and why not
    ///
    /// Changes nothing. Ends with 0 also where something stands in the way; to fail a pipeline there, use the dry run of
    /// the activation.
    #[command(display_order = 103, after_help = EXIT_CODES)]
    Plan,
    /// Feed history to new versions, beside the active ones
    ///
    /// Goes on where an earlier replay stopped, also one that was killed. Several processes may share the work.
    #[command(display_order = 104, after_help = EXIT_CODES)]
    Replay(ReplayArgs),
    /// Replay what has to be replayed, catch up, and switch all projectors at one moment
    ///
    /// Happens whole or not at all. Told to stop (Ctrl-C, SIGTERM) it aborts: the old configuration serves on, and what was
    /// replayed is kept.
    #[command(display_order = 105, after_help = EXIT_CODES)]
    ActivateConfiguration(Box<ActivateArgs>),
    /// Go back to the configuration that was active before: run it from that release's build
    ///
    /// Feeds the retired versions what happened since, then switches, by the steps of an activation; nothing that was
    /// written in between is lost. Refuses where this build's configuration is not the one before. Told to stop (Ctrl-C,
    /// SIGTERM) it aborts: what is active serves on.
    #[command(display_order = 106, after_help = EXIT_CODES)]
    Rollback(Box<ActivateArgs>),
    /// Make tables that are there already the active version of a projector
    ///
    /// Those of a read model that something else has fed until now. They must be as the projector's version defines them. With
    /// --from-schema they are moved, and views that can be read and written stay in their places. What came after the
    /// position is replayed; then this projector is activated. Interrupted, it goes on from there the next time.
    #[command(display_order = 114, after_help = EXIT_CODES)]
    Adopt(AdoptArgs),
    /// Prove that a projector's rows are what it makes of the log, or show which are not
    ///
    /// Folds the log afresh into tables of its own, which it drops in the end, and compares every row with the one that is
    /// there, at one exact position, beside whoever writes. With --between it compares the tables of two versions with each
    /// other. Ends with 1 where rows differ, and names their keys and columns, never other values unless told so.
    #[command(display_order = 112, after_help = EXIT_CODES)]
    Verify(VerifyArgs),
    /// End every activation that has not switched yet; the active configuration stays
    #[command(display_order = 107, after_help = EXIT_CODES)]
    Abort(AbortArgs),
    /// Drop the tables of retired versions, but for the newest of each projector
    ///
    /// Shows what it would drop, and drops it with --yes alone. Never touches tables that an active version uses or one that
    /// is being replayed, activated or followed. What somebody else's view or foreign key stands on is left as it is, whole,
    /// and named. Ends with 1 where something is due and --yes is missing, and where something could not be dropped.
    #[command(display_order = 108, after_help = EXIT_CODES)]
    Prune(PruneArgs),
    /// Let a stalled projector try again
    #[command(display_order = 109, after_help = EXIT_CODES)]
    Retry(RetryArgs),
    /// Move a stalled projector past the event that stalls it
    ///
    /// The event is never projected into it, and is written down as skipped.
    #[command(display_order = 110, after_help = EXIT_CODES)]
    Skip(SkipArgs),
    /// Retire a projector without another version in its place
    ///
    /// By the same pause as an activation. Its tables and its checkpoint are kept, its stable views are dropped. Instances
    /// that register the projector serve on without feeding it, and are not ready.
    #[command(display_order = 111, after_help = EXIT_CODES)]
    Deactivate(DeactivateArgs),
    /// Make the stable views, PROJECTOR.TABLE, show the active versions
    ///
    /// An activation does so by itself. This puts right what it could not do: because readers held a view for too long,
    /// because something was in the way, or because it was killed right after the switch. Ends with 1 where a view
    /// still does not show the active version.
    #[command(display_order = 113, after_help = EXIT_CODES)]
    RepointViews(RepointArgs),
}

impl Command {
    /// Whether it needs the code of the projectors, hence the application's own binary.
    pub fn needs_projectors(&self) -> bool {
        match self {
            Self::Plan
            | Self::Replay(_)
            | Self::ActivateConfiguration(_)
            | Self::Rollback(_)
            | Self::Adopt(_) => true,
            Self::Verify(args) => args.between.is_none(),
            _ => false,
        }
    }

    /// Its name, as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Status => "status",
            Self::Plan => "plan",
            Self::Replay(_) => "replay",
            Self::ActivateConfiguration(_) => "activate-configuration",
            Self::Rollback(_) => "rollback",
            Self::Adopt(_) => "adopt",
            Self::Verify(_) => "verify",
            Self::Abort(_) => "abort",
            Self::Prune(_) => "prune",
            Self::Retry(_) => "retry",
            Self::Skip(_) => "skip",
            Self::Deactivate(_) => "deactivate",
            Self::RepointViews(_) => "repoint-views",
        }
    }
}

/// What `replay` is told.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The projectors to replay; all that an activation would replay unless given
    #[arg(value_name = "PROJECTOR")]
    pub projectors: Vec<ProjectorName>,
    /// Start over: empty the tables of these projectors and replay them from the first event
    ///
    /// For a mended build of the same version. Refused for tables of a version that is active or has retired.
    #[arg(long, requires = "projectors")]
    pub restart: bool,
    /// Stay caught up until the versions are activated; ends with 0 then, and when told to stop once it has caught up
    #[arg(long)]
    pub follow: bool,
    /// Stop once at most this many events are left
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(i64).range(0..))]
    pub lag_events: i64,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
    /// How fast. Last, since its heading stands over whatever follows.
    #[command(flatten)]
    pub pace: PaceArgs,
}

impl ReplayArgs {
    pub(crate) fn options(&self) -> ReplayOptions {
        ReplayOptions {
            requested_by: self.who.requested_by(),
            lag_events: self.lag_events,
            limit: None,
            pace: self.pace.pace(),
            follow: self.follow,
            restart: self.restart,
        }
    }
}

/// The heading of what follows, in the help.
const PACE: &str = "Pace of a replay";

/// How fast a replay goes, and at whose expense.
#[derive(Debug, Clone, Args)]
pub struct PaceArgs {
    /// About how much memory its rows and events may take up, such as 512MiB
    #[arg(long, help_heading = PACE, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    pub memory: usize,
    /// How many connections its bulk may keep busy
    #[arg(long, help_heading = PACE, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(3..))]
    pub max_connections: u16,
    /// How often rows and checkpoints are written: what a process that is killed costs at most
    #[arg(long, help_heading = PACE, value_name = "DURATION", default_value = "5s", value_parser = duration_above_zero)]
    pub checkpoint_every: Duration,
    /// No more events a second than this; any number unless given
    #[arg(long, help_heading = PACE, value_name = "EVENTS/S", value_parser = clap::value_parser!(u32).range(1..))]
    pub throttle: Option<u32>,
    /// Pause while the commit of a small write takes longer than this
    #[arg(long, help_heading = PACE, value_name = "DURATION", value_parser = duration_above_zero)]
    pub pause_above_commit_latency: Option<Duration>,
    /// Pause while a standby lags further behind than this
    #[arg(long, help_heading = PACE, value_name = "DURATION", value_parser = duration_above_zero)]
    pub pause_above_replication_lag: Option<Duration>,
}

impl PaceArgs {
    fn pace(&self) -> Pace {
        Pace {
            memory_bytes: self.memory,
            max_connections: usize::from(self.max_connections),
            checkpoint_every: self.checkpoint_every,
            throttle: Throttle {
                events_per_sec: self.throttle,
                commit_latency: self.pause_above_commit_latency,
                replication_lag: self.pause_above_replication_lag,
            },
            ..Pace::default()
        }
    }
}

/// What `activate-configuration` and `rollback` are told.
#[derive(Debug, Clone, Args)]
pub struct ActivateArgs {
    /// Wait until this many instances of the new configuration are alive
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub wait_for_instances: usize,
    /// How long to wait for them
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub instances_timeout: Duration,
    /// How long the new versions may take to come close to the end of the log
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub catch_up_timeout: Duration,
    /// Prove the rows of new versions against the log before the switch, and refuse to switch where any differ
    #[arg(long)]
    pub verify: bool,
    /// Let instances of the old release that still run keep its tables current, so that going back replays nothing
    #[arg(long)]
    pub keep_following: bool,
    /// Only show what would be done; ends with 1 where something stands in the way
    #[arg(long)]
    pub dry_run: bool,
    /// The pause.
    #[command(flatten)]
    pub pause: PauseArgs,
    /// The stable views.
    #[command(flatten)]
    pub views: ViewArgs,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
    /// How fast what has to be replayed is replayed. Last, since its heading stands over whatever follows.
    #[command(flatten)]
    pub pace: PaceArgs,
}

impl ActivateArgs {
    pub(crate) fn options(&self) -> ActivateOptions {
        ActivateOptions {
            wait_for_instances: self.wait_for_instances,
            instances_timeout: self.instances_timeout,
            catch_up_timeout: self.catch_up_timeout,
            verify: self.verify.then(|| VerifyOptions { pace: self.pace.pace(), ..VerifyOptions::default() }),
            pace: self.pace.pace(),
            keep_following: self.keep_following,
            ..self.pause.options(&self.views, &self.who)
        }
    }
}

/// What `adopt` is told.
#[derive(Debug, Clone, Args)]
pub struct AdoptArgs {
    /// The projector whose tables they are to be
    pub projector: ProjectorName,
    /// The tables hold everything up to this position and nothing after it; or the word horizon, if the very transactions that append
    /// keep them current
    #[arg(long, value_name = "N|horizon", value_parser = adopt_at)]
    pub position: AdoptAt,
    /// Move the tables from this schema, and leave views in their places
    #[arg(long, value_name = "NAME")]
    pub from_schema: Option<String>,
    /// Prove the rows against the log first, and refuse where any differ; nothing is changed then
    #[arg(long)]
    pub verify: bool,
    /// How long to try to move the tables while somebody holds them
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub move_timeout: Duration,
    /// How long the tables may take to come close to the end of the log
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub catch_up_timeout: Duration,
    /// The pause.
    #[command(flatten)]
    pub pause: PauseArgs,
    /// The stable views.
    #[command(flatten)]
    pub views: ViewArgs,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl AdoptArgs {
    pub(crate) fn options(&self) -> AdoptOptions {
        AdoptOptions {
            from_schema: self.from_schema.clone(),
            verify: self.verify.then(VerifyOptions::default),
            move_timeout: self.move_timeout,
            activation: ActivateOptions {
                catch_up_timeout: self.catch_up_timeout,
                ..self.pause.options(&self.views, &self.who)
            },
            ..AdoptOptions::at(self.position)
        }
    }
}

/// How a pause may go.
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// How long to wait, before the pause, until no append has been open for long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// How long writers may be paused; past it the old configuration serves again
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration_above_zero)]
    pub pause_limit: Duration,
}

impl PauseArgs {
    pub(crate) fn options(&self, views: &ViewArgs, who: &Who) -> ActivateOptions {
        ActivateOptions {
            requested_by: who.requested_by(),
            drain_timeout: self.drain_timeout,
            pause_limit: self.pause_limit,
            repoint_views: !views.no_views,
            views_timeout: views.views_timeout,
            ..ActivateOptions::default()
        }
    }
}

/// What becomes of the stable views.
#[derive(Debug, Clone, Args)]
pub struct ViewArgs {
    /// Neither make nor move the stable views PROJECTOR.TABLE
    #[arg(long)]
    pub no_views: bool,
    /// How long to try to move the stable views, after the switch, while readers hold them
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub views_timeout: Duration,
}

/// What `repoint-views` is told.
#[derive(Debug, Clone, Args)]
pub struct RepointArgs {
    /// How long to try while readers hold the views
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
}

/// What `abort` is told.
#[derive(Debug, Clone, Args)]
pub struct AbortArgs {
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

/// What `prune` is told.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Keep the tables of this many retired major versions of each projector: those that retired last
    #[arg(long, value_name = "N")]
    pub keep: usize,
    /// Drop what is due; without this, it is only shown
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Only show what would be dropped; ends with 1 where something that is due is protected
    #[arg(long)]
    pub dry_run: bool,
    /// How long to try for the locks that dropping takes; nobody has to wait behind us meanwhile
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub wait: Duration,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl PruneArgs {
    pub(crate) fn options(&self) -> PruneOptions {
        PruneOptions { requested_by: self.who.requested_by(), keep: self.keep, wait: self.wait }
    }
}

/// What `retry` is told.
#[derive(Debug, Clone, Args)]
pub struct RetryArgs {
    /// The stalled projector
    pub projector: ProjectorName,
}

/// What `skip` is told.
#[derive(Debug, Clone, Args)]
pub struct SkipArgs {
    /// The stalled projector
    pub projector: ProjectorName,
    /// The position of the event that stalls it, as `status` shows it: no other event is ever skipped
    #[arg(long, value_name = "N", value_parser = position)]
    pub position: Position,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

/// What `deactivate` is told.
#[derive(Debug, Clone, Args)]
pub struct DeactivateArgs {
    /// The projector to retire
    pub projector: ProjectorName,
    /// The pause.
    #[command(flatten)]
    pub pause: PauseArgs,
    /// The stable views.
    #[command(flatten)]
    pub views: ViewArgs,
    /// Who asks.
    #[command(flatten)]
    pub who: Who,
}

impl DeactivateArgs {
    pub(crate) fn options(&self) -> ActivateOptions {
        self.pause.options(&self.views, &self.who)
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
    /// Log more to standard error; twice for even more [env: CHANGEOVER_LOG=FILTER]
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Show no progress, and log errors alone
    #[arg(short, long, global = true)]
    pub quiet: bool,
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

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; examples: 500ms, 30s, 2m"))
}

fn duration_above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// A number of bytes, with a unit if it is not plain bytes.
fn size(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, usize); 8] = [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1_000),
        ("B", 1),
        ("", 1),
    ];
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit)).expect("the last one fits");
    let number = text[..text.len() - unit.len()].trim();
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(*factor));
    match bytes {
        Some(bytes) if bytes >= 16 << 20 => Ok(bytes),
        Some(_) => Err("at least 16MiB".to_owned()),
        None => Err("examples: 512MiB, 2GiB".to_owned()),
    }
}

fn adopt_at(text: &str) -> Result<AdoptAt, String> {
    if text == "horizon" {
        return Ok(AdoptAt::Horizon);
    }
    match text.parse() {
        Ok(position) if position >= 0 => Ok(AdoptAt::Position(Position::new(position))),
        Ok(_) => Err("positions begin at 1; 0 stands before the first".to_owned()),
        Err(error) => Err(format!("{error}; give a position or the word horizon")),
    }
}

fn position(text: &str) -> Result<Position, String> {
    let position: i64 = text.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    if position < 1 {
        return Err("positions begin at 1".to_owned());
    }
    Ok(Position::new(position))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Host {
        #[command(flatten)]
        options: Options,
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Host, clap::Error> {
        Host::try_parse_from(["host"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn every_command_knows_its_name() {
        let check = |line: &str, needs_projectors: bool| {
            let command = parse(line).unwrap().command;
            assert_eq!(command.name(), line.split(' ').next().unwrap());
            assert_eq!(command.needs_projectors(), needs_projectors, "{line}");
        };
        check("migrate", false);
        check("status", false);
        check("plan", true);
        check("replay", true);
        check("activate-configuration", true);
        check("adopt orders --position 7", true);
        check("abort", false);
        check("retry orders", false);
        check("skip orders --position 7", false);
        check("prune --keep 1", false);
        check("rollback", true);
        check("deactivate orders", false);
        check("repoint-views", false);
        check("verify orders", true);
        check("verify orders --between 1.4.0 2.0.0 --map a.b=c+1 --leave-out a.d", false);
    }

    #[test]
    fn what_makes_no_sense_is_refused_where_it_is_typed() {
        let check = |line: &str, expected: &str| {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{line}: {error}");
        };
        check("skip orders --position 0", "positions begin at 1");
        check("skip orders", "--position <N>");
        check("prune", "--keep <N>");
        check("prune --yes", "--keep <N>");
        check("prune --keep 1 --yes --dry-run", "cannot be used with");
        check("prune --keep all", "invalid digit");
        check("adopt orders", "--position <N|horizon>");
        check("adopt orders --position=-1", "0 stands before the first");
        check("adopt orders --position end", "the word horizon");
        check("retry Orders", "lower-case");
        check("verify orders --between 1.4.0", "2 values required");
        check("verify orders --between 1.4 2.0.0", "unexpected end of input");
        check("verify orders --map a.b=c", "--between <OLD> <NEW>");
        check("verify orders --between 1.0.0 2.0.0 --map a.b", "euros * 100");
        check("verify orders --between 1.0.0 2.0.0 --leave-out a.", "examples: orders");
        check("activate-configuration --pause-limit 0s", "more than nothing");
        check("activate-configuration --pause-limit 3", "examples: 500ms");
        check("replay --lag-events=-1", "-1 is not in 0..");
        check("replay --restart", "<PROJECTOR>");
        check("status --schema pg_x", "was refused");
        check("status -q -v", "cannot be used with");
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let Command::ActivateConfiguration(args) = parse("activate-configuration").unwrap().command else {
            panic!("another command");
        };
        let (ours, theirs) = (args.options(), ActivateOptions::default());
        assert_eq!(ours.wait_for_instances, theirs.wait_for_instances);
        assert_eq!(ours.instances_timeout, theirs.instances_timeout);
        assert_eq!(ours.catch_up_timeout, theirs.catch_up_timeout);
        assert_eq!(ours.keep_following, theirs.keep_following);
        assert_eq!(ours.drain_timeout, theirs.drain_timeout);
        assert_eq!(ours.pause_limit, theirs.pause_limit);
        assert_eq!(ours.repoint_views, theirs.repoint_views);
        assert_eq!(ours.views_timeout, theirs.views_timeout);
        let args = "activate-configuration --no-views --views-timeout 1m --pause-limit 500ms --drain-timeout 2m --requested-by ci";
        let Command::ActivateConfiguration(args) = parse(args).unwrap().command else {
            panic!("another command");
        };
        assert_eq!(args.options().pause_limit, Duration::from_millis(500));
        assert_eq!(args.options().drain_timeout, Duration::from_mins(2));
        assert_eq!(args.options().requested_by, "ci");
        assert_eq!(
            (args.options().repoint_views, args.options().views_timeout),
            (false, Duration::from_mins(1))
        );
    }

    #[test]
    fn what_is_to_be_adopted_is_told_to_the_library() {
        let Command::Adopt(args) = parse("adopt orders --position 0").unwrap().command else {
            panic!("another command");
        };
        let (ours, theirs) = (args.options(), AdoptOptions::at(Position::START));
        assert_eq!((ours.position, ours.from_schema), (theirs.position, theirs.from_schema));
        assert_eq!(ours.move_timeout, theirs.move_timeout);
        assert_eq!(ours.activation.catch_up_timeout, theirs.activation.catch_up_timeout);
        let line = "adopt orders --position horizon --from-schema public --pause-limit 9s --requested-by ci";
        let Command::Adopt(args) = parse(line).unwrap().command else { panic!("another command") };
        let ours = args.options();
        assert_eq!((ours.position, ours.from_schema.as_deref()), (AdoptAt::Horizon, Some("public")));
        assert_eq!(ours.activation.pause_limit, Duration::from_secs(9));
        assert_eq!(ours.activation.requested_by, "ci");
    }

    #[test]
    fn a_url_that_cannot_be_read_is_not_repeated() {
        let options =
            Options { database_url: Some("postgres://ada:secret@:x/shop".to_owned()), ..Options::default() };
        let error = options.builder().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("cannot be read: "), "{error}");
        assert!(!error.to_string().contains("secret") && !format!("{options:?}").contains("secret"));
        let error = Options::default().builder().unwrap_err();
        assert!(error.to_string().contains("--database-url"), "{error}");
    }
}
