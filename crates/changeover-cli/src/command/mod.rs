//! What can be typed: the commands, their arguments, and the options that all of them share.

mod activate;
mod care;
mod options;
mod replay;
mod upgrade;
mod values;
mod verify;

use clap::Subcommand;

pub use self::activate::{
    ActivateArgs, AdoptArgs, DeactivateArgs, PauseArgs, RepointArgs, SwitchArgs, ViewArgs,
};
pub use self::care::{AbortArgs, DiscardArgs, PruneArgs, RetryArgs, SkipArgs};
pub use self::options::{Options, ProgressStyle, Who};
pub use self::replay::{PaceArgs, ReplayArgs};
pub use self::upgrade::{OptimizeArgs, UpgradeArgs};
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
    /// The whole upgrade: replay, optimize, catch up, verify, activate
    ///
    /// Each step is kept by itself: killed or stopped at any of them, it goes on there the next time, whoever began it. Rows of new
    /// versions are proved against the log before the switch unless --no-verify is given. Told to stop (Ctrl-C, SIGTERM) before the
    /// switch, what is active serves on.
    #[command(display_order = 105, after_help = EXIT_CODES)]
    Upgrade(Box<UpgradeArgs>),
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
    Adopt(Box<AdoptArgs>),
    /// Build the indexes that tables should have and that are missing, and let the planner know of their rows
    ///
    /// A replay does so after its bulk. This is for an index that a version has got since or that somebody dropped, and for tables
    /// that were adopted. Beside whoever uses the tables, indexes are built without holding anybody up. Interrupted, it goes on
    /// from there the next time.
    #[command(display_order = 112, after_help = EXIT_CODES)]
    Optimize(OptimizeArgs),
    /// Prove that a projector's rows are what it makes of the log, or show which are not
    ///
    /// Folds the log afresh into tables of its own, which it drops in the end, and compares every row with the one that is
    /// there, at one exact position, beside whoever writes. With --between it compares the tables of two versions with each
    /// other. Ends with 1 where rows differ, and names their keys and columns, never other values unless told so.
    #[command(display_order = 112, after_help = EXIT_CODES)]
    Verify(VerifyArgs),
    /// End what is under way: activations that have not switched yet, and whatever is replayed, verified or optimized
    ///
    /// By any process, on any machine: each ends within about a second, and says who ended it. The active configuration stays, and
    /// what was replayed is kept.
    #[command(display_order = 107, after_help = EXIT_CODES)]
    Abort(AbortArgs),
    /// Drop the tables of retired versions, but for the newest of each projector
    ///
    /// Shows what it would drop, and drops it with --yes alone. Never touches tables that an active version uses or one that
    /// is being replayed, activated or followed. What somebody else's view or foreign key stands on is left as it is, whole,
    /// and named. Ends with 1 where something is due and --yes is missing, and where something could not be dropped.
    #[command(display_order = 108, after_help = EXIT_CODES)]
    Prune(PruneArgs),
    /// Drop the tables of a version that was replayed and never activated
    ///
    /// Shows what it would drop, and drops it with --yes alone. Refused while anybody replays, verifies or activates the version, and for
    /// tables that were adopted. What somebody else's view or foreign key stands on is left as it is, whole, and named. Ends
    /// with 1 where --yes is missing.
    #[command(display_order = 108, after_help = EXIT_CODES)]
    Discard(DiscardArgs),
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
            | Self::Upgrade(_)
            | Self::Optimize(_)
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
            Self::Upgrade(_) => "upgrade",
            Self::Rollback(_) => "rollback",
            Self::Adopt(_) => "adopt",
            Self::Optimize(_) => "optimize",
            Self::Verify(_) => "verify",
            Self::Abort(_) => "abort",
            Self::Prune(_) => "prune",
            Self::Discard(_) => "discard",
            Self::Retry(_) => "retry",
            Self::Skip(_) => "skip",
            Self::Deactivate(_) => "deactivate",
            Self::RepointViews(_) => "repoint-views",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use changeover::{ActivateOptions, AdoptAt, AdoptOptions, Position};
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
        check("upgrade", true);
        check("optimize", true);
        check("optimize orders --max-connections 2", true);
        check("adopt orders --position 7", true);
        check("abort", false);
        check("abort orders totals", false);
        check("discard orders 2.0.0", false);
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
        check("discard orders", "<VERSION>");
        check("discard orders 2", "unexpected end of input");
        check("discard orders 2.0.0 --yes --dry-run", "cannot be used with");
        check("status --progress loud", "bars, lines, json, none");
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
    fn an_upgrade_proves_the_rows_unless_it_is_told_not_to() {
        let check = |line: &str, proves: bool| {
            let Command::Upgrade(args) = parse(line).unwrap().command else { panic!("another command") };
            let ours = args.options();
            assert_eq!(ours.activation.verify.is_some(), proves, "{line}");
            ours.activation
        };
        let proved = check("upgrade --memory 64MiB --requested-by ci --pause-limit 9s", true);
        assert_eq!(proved.verify.unwrap().pace.memory_bytes, 64 << 20);
        assert_eq!((proved.pace.memory_bytes, &proved.requested_by[..]), (64 << 20, "ci"));
        assert_eq!(proved.pause_limit, Duration::from_secs(9));
        check("upgrade --no-verify", false);
        let error = parse("upgrade --verify").unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
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
        assert_eq!((ours.activation.requested_by.as_str(), ours.verify.is_none()), ("ci", true));
        let line = "adopt orders --position 7 --verify --throttle 500 --memory 64MiB";
        let Command::Adopt(args) = parse(line).unwrap().command else { panic!("another command") };
        let ours = args.options();
        for pace in [ours.activation.pace, ours.verify.unwrap().pace] {
            assert_eq!((pace.throttle.events_per_sec, pace.memory_bytes), (Some(500), 64 << 20));
        }
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
