//! Runs a command: a verb of the library for each, and what it has to say.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use changeover::{
    ActivateOptions, Activated, ActivationProgress, Builder, CaughtUp, Changeover, Position, ProjectorName,
    ReplayPhase, ReplayProgress, Status, Step, UpgradeProgress,
};
use serde_json::json;
use tokio::time::timeout;

use crate::command::{
    AbortArgs, ActivateArgs, AdoptArgs, Command, DeactivateArgs, DiscardArgs, OptimizeArgs, Options,
    PruneArgs, ReplayArgs, RepointArgs, RetryArgs, SkipArgs, UpgradeArgs, VerifyArgs,
};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::progress::Progress;
use crate::output::{self, Report, json as documents, tables, upgrades, verified};

/// Runs one of Changeover's commands for the instance that `builder` sets up: its database, its configuration, its name.
///
/// The configuration must be the one that the application serves with: `plan`, `replay` and `activate-configuration` are
/// about it. Prints, and returns what the process is to end with.
///
/// ```no_run
/// # async fn example(command: changeover_cli::Command, options: changeover_cli::Options, configuration: changeover::Configuration) -> Result<(), Box<dyn std::error::Error>> {
/// let builder = options.builder()?.application("shop", "2.3.0").configuration(configuration);
/// let exit: std::process::ExitCode = changeover_cli::run(command, &options, builder).await;
/// # Ok(()) }
/// ```
pub async fn run(command: Command, options: &Options, builder: Builder) -> ExitCode {
    let progress = Progress::new(options.progress, options.quiet);
    // What all commands need together is too much for the stack of a caller.
    let done = Box::pin(perform(command, builder, &progress)).await;
    // What is left of it must not stand below the result.
    drop(progress);
    let exit = match done {
        Ok(report) => output::finished(options.json, &report),
        Err(failure) => output::failed(options.json, &failure),
    };
    exit.into()
}

async fn perform(command: Command, builder: Builder, progress: &Progress) -> Result<Report, Failure> {
    if let Command::Migrate = command {
        return migrate(&builder).await;
    }
    let changeover = &builder.connect().await?;
    match command {
        Command::Migrate => unreachable!("BUG: needs no connection and was handled"),
        Command::Status => status(changeover).await,
        Command::Plan => plan(changeover, Exit::Done).await,
        Command::Replay(args) => replay(changeover, &args, progress).await,
        Command::ActivateConfiguration(args) if args.switch.dry_run => plan(changeover, Exit::Refused).await,
        Command::ActivateConfiguration(args) => activate(changeover, &args, Way::Forward, progress).await,
        Command::Upgrade(args) if args.switch.dry_run => plan(changeover, Exit::Refused).await,
        Command::Upgrade(args) => upgrade(changeover, &args, progress).await,
        Command::Optimize(args) => optimize(changeover, &args, progress).await,
        Command::Rollback(args) if args.switch.dry_run => plan_rollback(changeover).await,
        Command::Rollback(args) => activate(changeover, &args, Way::Back, progress).await,
        Command::Adopt(args) => adopt(changeover, &args, progress).await,
        Command::Verify(args) => verify(changeover, &args, progress).await,
        Command::Abort(args) => abort(changeover, &args).await,
        Command::Prune(args) => prune(changeover, &args).await,
        Command::Discard(args) => discard(changeover, &args).await,
        Command::Retry(args) => retry(changeover, &args).await,
        Command::Skip(args) => skip(changeover, &args).await,
        Command::Deactivate(args) => deactivate(changeover, &args, progress).await,
        Command::RepointViews(args) => repoint_views(changeover, &args).await,
    }
}

async fn migrate(builder: &Builder) -> Result<Report, Failure> {
    let applied = builder.migrate().await?;
    let text = match &applied[..] {
        [] => "The schema is up to date: there was nothing to apply.\n".to_owned(),
        versions => {
            let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
            format!("Applied to the schema: {}.\n", versions.join(", "))
        }
    };
    Ok(Report::done(text, json!({ "applied": applied })))
}

async fn status(changeover: &Changeover) -> Result<Report, Failure> {
    let status = changeover.status().await?;
    Ok(Report::done(tables::status(&status), documents::status(&status)))
}

async fn plan(changeover: &Changeover, in_the_way: Exit) -> Result<Report, Failure> {
    let plan = changeover.plan().await?;
    let exit = if plan.obstacles.is_empty() { Exit::Done } else { in_the_way };
    Ok(Report { exit, text: tables::plan(&plan), json: documents::plan(&plan) })
}

async fn replay(changeover: &Changeover, args: &ReplayArgs, progress: &Progress) -> Result<Report, Failure> {
    let mut interrupts = interrupts()?;
    let mut projectors = args.projectors.clone();
    if projectors.is_empty() {
        let plan = changeover.plan().await?;
        let replayed = plan.steps.iter().filter(|step| matches!(step, Step::Replay { .. }));
        projectors.extend(replayed.map(|step| step.projector().clone()));
    }
    let followed: Mutex<BTreeMap<ProjectorName, ReplayProgress>> = Mutex::default();
    let on_progress = |replayed: &ReplayProgress| {
        progress.replaying(replayed);
        let mut followed = followed.lock().unwrap_or_else(PoisonError::into_inner);
        match replayed.phase {
            ReplayPhase::Following => drop(followed.insert(replayed.projector.clone(), replayed.clone())),
            ReplayPhase::Ended => drop(followed.remove(&replayed.projector)),
            _ => {}
        }
    };
    let options = args.options();
    // What it did not commit is rolled back; the checkpoint says where to go on.
    let replayed = tokio::select! {
        caught_up = changeover.replay(&projectors, &options, &on_progress) => caught_up?,
        signal = interrupts.next() => {
            let followed = followed.lock().unwrap_or_else(PoisonError::into_inner);
            if args.follow && followed.len() == projectors.len() {
                // That is how following ends where nobody activates.
                progress.say(format!("{signal}: followed until here"));
                let caught_up = followed.values().map(|at| CaughtUp { progress: at.clone(), activated: false });
                let caught_up: Vec<CaughtUp> = caught_up.collect();
                return Ok(Report::done(tables::replayed(&caught_up), documents::replayed(&caught_up)));
            }
            let names: Vec<&str> = projectors.iter().map(ProjectorName::as_str).collect();
            return Err(Failure::interrupted(format!("{signal}: the replay of {} was stopped", names.join(", ")))
                .next("run `replay` again: it goes on from there"));
        }
    };
    Ok(Report::done(tables::replayed(&replayed), documents::replayed(&replayed)))
}

async fn verify(changeover: &Changeover, args: &VerifyArgs, progress: &Progress) -> Result<Report, Failure> {
    let mut interrupts = interrupts()?;
    let projector = &args.projector;
    let on_progress = |at| progress.verifying(&at);
    let verifying = async {
        match args.between() {
            Some((old, new, options)) => {
                known(&changeover.status().await?, projector)?;
                Ok(changeover.verify_between(projector, old, new, &options, &on_progress).await?)
            }
            None => Ok::<_, Failure>(changeover.verify(projector, &args.options(), &on_progress).await?),
        }
    };
    let found = tokio::select! {
        found = verifying => found?,
        signal = interrupts.next() => {
            return Err(Failure::interrupted(format!("{signal}: nothing can be said of {projector}"))
                .next("run `verify` again; it drops the tables that this one has made"));
        }
    };
    let exit = if found.is_equal() { Exit::Done } else { Exit::Refused };
    Ok(Report { exit, text: verified::verified(&found), json: documents::verified(&found) })
}

async fn plan_rollback(changeover: &Changeover) -> Result<Report, Failure> {
    let plan = changeover.plan_rollback().await?;
    let exit = if plan.obstacles.is_empty() { Exit::Done } else { Exit::Refused };
    Ok(Report { exit, text: tables::plan(&plan), json: documents::plan(&plan) })
}

/// Which verb of the library an activation is.
#[derive(Debug, Clone, Copy)]
enum Way {
    Forward,
    Back,
}

async fn activate(
    changeover: &Changeover,
    args: &ActivateArgs,
    way: Way,
    progress: &Progress,
) -> Result<Report, Failure> {
    let (options, watch) = (args.options(), Watch::new(progress));
    let on_progress = |at| watch.note(&at);
    let performing = Box::pin(async {
        let done = match way {
            Way::Forward => changeover.activate(&options, &on_progress).await?,
            Way::Back => changeover.rollback(&options, &on_progress).await?,
        };
        Ok(activated(&done))
    });
    let kept = "what was active before is active still, what was replayed is kept";
    or_stopped(changeover, &options, &watch, kept, performing).await
}

async fn upgrade(
    changeover: &Changeover,
    args: &UpgradeArgs,
    progress: &Progress,
) -> Result<Report, Failure> {
    let (options, watch) = (args.options(), Watch::new(progress));
    let on_progress = |at| match &at {
        UpgradeProgress::Activating(at) => watch.note(at),
        at => progress.upgrading(at),
    };
    let performing = Box::pin(async {
        let upgraded = changeover.upgrade(&options, &on_progress).await?;
        Ok(Report::done(upgrades::upgraded(&upgraded), documents::upgraded(&upgraded)))
    });
    let kept = "what was active before is active still; run `upgrade` again: it goes on from there";
    or_stopped(changeover, &options.activation, &watch, kept, performing).await
}

async fn optimize(
    changeover: &Changeover,
    args: &OptimizeArgs,
    progress: &Progress,
) -> Result<Report, Failure> {
    let mut interrupts = interrupts()?;
    let options = args.options();
    let on_progress = |at: &ReplayProgress| progress.replaying(at);
    let optimized = tokio::select! {
        optimized = changeover.optimize(&args.projectors, &options, &on_progress) => optimized?,
        signal = interrupts.next() => {
            return Err(Failure::interrupted(format!("{signal}: not everything was optimized"))
                .next("run `optimize` again: it goes on from there"));
        }
    };
    Ok(Report::done(upgrades::optimized(&optimized), documents::optimized(&optimized)))
}

async fn adopt(changeover: &Changeover, args: &AdoptArgs, progress: &Progress) -> Result<Report, Failure> {
    let (options, watch) = (args.options(), Watch::new(progress));
    let on_progress = |at| watch.note(&at);
    let performing = Box::pin(async {
        let adopted = changeover.adopt(&args.projector, &options, &on_progress).await?;
        Ok(Report::done(tables::adopted(&adopted), documents::adopted(&adopted)))
    });
    let kept = "the tables stay adopted, and are not active yet; run `adopt` again with the same options";
    or_stopped(changeover, &options.activation, &watch, kept, performing).await
}

/// How far an activation has come, for whoever has to stop it.
struct Watch<'p> {
    progress: &'p Progress,
    started: OnceLock<i64>,
    switched: OnceLock<()>,
}

impl<'p> Watch<'p> {
    fn new(progress: &'p Progress) -> Self {
        Self { progress, started: OnceLock::new(), switched: OnceLock::new() }
    }

    fn note(&self, at: &ActivationProgress) {
        match at {
            // Set once: an activation has one number, and one switch.
            ActivationProgress::Started { activation } => {
                let _ = self.started.set(*activation);
            }
            ActivationProgress::Switched => {
                let _ = self.switched.set(());
            }
            _ => {}
        }
        self.progress.activating(at);
    }
}

/// Performs something that contains an activation; told to stop, aborts the activation, unless it has switched already.
async fn or_stopped(
    changeover: &Changeover,
    options: &ActivateOptions,
    watch: &Watch<'_>,
    kept: &str,
    mut performing: impl Future<Output = Result<Report, Failure>> + Unpin,
) -> Result<Report, Failure> {
    /// How long after the pause's limit we wait for an outcome that is certain already.
    const CONCLUDING: Duration = Duration::from_secs(5);
    let mut interrupts = interrupts()?;
    let signal = tokio::select! {
        done = &mut performing => return done,
        signal = interrupts.next() => signal,
    };
    let Some(&activation) = watch.started.get() else {
        return Err(Failure::interrupted(format!(
            "{signal}: nothing was activated; what was replayed is kept"
        )));
    };
    if watch.switched.get().is_some() {
        return Ok(left_after_the_switch(signal, activation));
    }
    watch.progress.say(format!("{signal}: aborting activation {activation}"));
    let aborting = async {
        let aborted = changeover.abort_one(activation, &options.requested_by).await?;
        Ok::<_, Failure>(aborted)
    };
    let aborted = tokio::select! {
        // It goes on meanwhile: if it switches first, that is the result.
        done = &mut performing => match done {
            Ok(done) => return Ok(done),
            Err(_) => true,
        },
        aborted = aborting => aborted?,
        _ = interrupts.next() => {
            let text = format!("activation {activation} was left as it is: if writers are paused, its deadline ends that");
            return Err(Failure::interrupted(text).next("see `status`"));
        }
    };
    if !aborted {
        if let Ok(Ok(done)) = timeout(options.pause_limit + CONCLUDING, performing).await {
            return Ok(done);
        }
        if watch.switched.get().is_some() {
            return Ok(left_after_the_switch(signal, activation));
        }
    }
    Err(Failure::interrupted(format!("{signal}: activation {activation} was aborted; {kept}")))
}

/// What was asked for is done; what comes after it was not waited for.
fn left_after_the_switch(signal: &str, activation: i64) -> Report {
    let text = format!(
        "{signal}: activation {activation} has switched. Whether the stable views followed was not waited for: `repoint-views` makes sure.\n"
    );
    Report::done(text, json!({ "activation": activation, "switched": true, "views": null }))
}

async fn repoint_views(changeover: &Changeover, args: &RepointArgs) -> Result<Report, Failure> {
    let views = changeover.repoint_views(args.timeout).await?;
    let right = views.iter().all(|views| views.problems.is_empty());
    let exit = if right { Exit::Done } else { Exit::Refused };
    Ok(Report { exit, text: tables::repointed(&views), json: documents::repointed(&views) })
}

fn activated(activated: &Activated) -> Report {
    Report::done(tables::activated(activated), documents::activated(activated))
}

async fn abort(changeover: &Changeover, args: &AbortArgs) -> Result<Report, Failure> {
    let who = args.who.requested_by();
    if !args.projectors.is_empty() {
        let status = changeover.status().await?;
        args.projectors.iter().try_for_each(|projector| known(&status, projector))?;
    }
    // First, so that an activation whose replay ends is known to have been aborted.
    let activations = if args.projectors.is_empty() { changeover.abort(&who).await? } else { Vec::new() };
    let replays = changeover.abort_replays(&args.projectors, &who).await?;
    let json = json!({ "aborted": activations, "replays": documents::replays(&replays) });
    Ok(Report::done(upgrades::aborted(&activations, &replays), json))
}

async fn discard(changeover: &Changeover, args: &DiscardArgs) -> Result<Report, Failure> {
    let DiscardArgs { projector, version, .. } = args;
    if args.yes {
        let dropped = changeover.discard(projector, version, &args.options()).await?;
        let json = json!({ "discarded": true, "abandoned": documents::abandoned(&dropped) });
        return Ok(Report::done(upgrades::discarded(&dropped), json));
    }
    let abandoned = changeover.plan_discard(projector, version).await?;
    // Whoever forgot to say yes must not believe that it is done.
    let exit = if args.dry_run && abandoned.in_the_way.is_empty() { Exit::Done } else { Exit::Refused };
    let json = json!({ "discarded": false, "abandoned": documents::abandoned(&abandoned) });
    Ok(Report { exit, text: upgrades::abandoned(&abandoned), json })
}

async fn prune(changeover: &Changeover, args: &PruneArgs) -> Result<Report, Failure> {
    if args.yes {
        let pruned = changeover.prune(&args.options()).await?;
        return Ok(Report::done(tables::pruned(&pruned), documents::pruned(&pruned)));
    }
    let plan = changeover.plan_prune(args.keep).await?;
    let protected = plan.protected().next().is_some();
    let due = plan.dropped().next().is_some();
    // Whoever forgot to say yes must not believe that it is done.
    let exit = if protected || (due && !args.dry_run) { Exit::Refused } else { Exit::Done };
    let mut text = tables::prune_plan(&plan);
    if due {
        text.push_str("\nNothing was dropped: this shows what --yes would drop.\n");
    }
    Ok(Report { exit, text, json: documents::prune_plan(&plan) })
}

async fn retry(changeover: &Changeover, args: &RetryArgs) -> Result<Report, Failure> {
    let projector = &args.projector;
    if !changeover.retry(projector).await? {
        known(&changeover.status().await?, projector)?;
        return Err(Failure::refused(
            "not_stalled",
            format!("{projector} is not stalled: there is nothing to retry"),
        ));
    }
    let text = format!("{projector} is tried again by the next instance that publishes.\n");
    Ok(Report::done(text, json!({ "projector": projector, "retried": true })))
}

async fn skip(changeover: &Changeover, args: &SkipArgs) -> Result<Report, Failure> {
    let SkipArgs { projector, position, who } = args;
    let position: Position = *position;
    if let Err(error) = changeover.skip(projector, position, &who.requested_by()).await {
        let failure = Failure::from(error);
        if failure.exit == Exit::Refused {
            known(&changeover.status().await?, projector)?;
        }
        return Err(failure);
    }
    let text = format!(
        "{projector} goes on after position {position}; the event there was skipped, and is written down as such.\n"
    );
    Ok(Report::done(text, json!({ "projector": projector, "skipped": position })))
}

async fn deactivate(
    changeover: &Changeover,
    args: &DeactivateArgs,
    progress: &Progress,
) -> Result<Report, Failure> {
    let mut interrupts = interrupts()?;
    known(&changeover.status().await?, &args.projector)?;
    let options = args.options();
    let mut deactivating = pin!(changeover.deactivate(&args.projector, &options));
    let signal = tokio::select! {
        done = &mut deactivating => return Ok(activated(&done?)),
        signal = interrupts.next() => signal,
    };
    progress.say(format!(
        "{signal}: the outcome is waited for; once more, and the pause is left to its deadline"
    ));
    tokio::select! {
        done = deactivating => Ok(activated(&done?)),
        signal = interrupts.next() => {
            Err(Failure::interrupted(format!("{signal}: left to its deadline")).next("see `status`"))
        }
    }
}

/// A name that nobody ever registered is a mistake of whoever typed it.
fn known(status: &Status, projector: &ProjectorName) -> Result<(), Failure> {
    if status.projectors.iter().any(|known| known.projector == *projector) {
        return Ok(());
    }
    let mut names: Vec<&str> = status.projectors.iter().map(|known| known.projector.as_str()).collect();
    names.dedup();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Failure::refused(
        "unknown_projector",
        format!("no projector {projector} was ever registered; there is: {there}"),
    ))
}

fn interrupts() -> Result<Interrupts, Failure> {
    let failed =
        |error: io::Error| Failure::new(Exit::Failed, "io", format!("signals cannot be watched: {error}"));
    Interrupts::watch().map_err(failed)
}
