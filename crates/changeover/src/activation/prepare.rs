//! Before the pause: everything that can be done while everybody writes.

use std::sync::Arc;
use std::time::Instant;

use postgres_types::ToSql;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::debug;

use super::ending::overtaken;
use super::{ActivateError, ActivateOptions, ActivationProgress, OnActivation, Started};
use crate::core::Core;
use crate::in_flight::{self, Blocker};
use crate::instances;
use crate::projector::{Registered, chain};
use crate::registration::{self, Registry};
use crate::replayer::{self, ReplayProgress};
use crate::store::StoreError;
use crate::verify::VerifyProgress;
use crate::words::names::ProjectorName;
use crate::words::plan::{KnownTables, Plan, Step};

/// How often is looked whether what we wait for has happened.
const POLL: std::time::Duration = std::time::Duration::from_millis(200);

/// How often whoever prepares an activation says that it is there.
const SEEN: std::time::Duration = std::time::Duration::from_secs(2);

/// Says, for as long as it is polled, that somebody prepares an activation. Returns why it was ended, if somebody did.
pub(super) async fn stay_seen(core: &Core, activation: Started) -> ActivateError {
    loop {
        sleep(SEEN).await;
        match seen(core, activation).await {
            Ok(None) => {}
            Ok(Some(ended)) => return ended,
            // If it cannot be said, the preparation will hear of that as well.
            Err(error) => debug!(error = %chain(&error), "an activation could not say that it is prepared"),
        }
    }
}

async fn seen(core: &Core, activation: Started) -> Result<Option<ActivateError>, StoreError> {
    let client = core.background().await?;
    let params: [&(dyn ToSql + Sync); 2] = [&activation.id, &activation.token];
    let seen = core.store.query_opt(&client, &core.store.sql.see_activation, &params).await?.is_some();
    let ended = if seen { None } else { Some(overtaken(core, &client, activation).await?) };
    client.give_back_untouched();
    Ok(ended)
}

/// Everything that can be done while everybody writes.
pub(super) async fn prepare(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    plan: &Plan,
    registry: &Registry,
    on_progress: OnActivation<'_>,
) -> Result<(), ActivateError> {
    for step in &plan.steps {
        if let Step::Activate { projector, .. } = step {
            let registered = &core.configuration.projectors[projector];
            registration::register(&core.store, client, registered, &options.requested_by).await?;
        }
    }
    catch_up(core, options, plan, registry, on_progress).await?;
    verify(core, options, plan, on_progress).await?;
    wait_for_instances(core, client, options, on_progress).await?;
    loop {
        wait_for_old_appends(core, client, options, on_progress).await?;
        // Instances may have taken long to show up; and what came after an old append can be read only now that it ended.
        catch_up(core, options, plan, registry, on_progress).await?;
        if old_appends(core, client, options).await?.is_empty() {
            return Ok(());
        }
    }
}

async fn catch_up(
    core: &Core,
    options: &ActivateOptions,
    plan: &Plan,
    registry: &Registry,
    on_progress: OnActivation<'_>,
) -> Result<(), ActivateError> {
    let report = |progress: &ReplayProgress| on_progress(ActivationProgress::Replaying(progress.clone()));
    let replayed = to_replay(core, plan, registry);
    let _ = replayer::replay(core, &replayed, &options.replay(), &report).await?;
    Ok(())
}

/// The versions that have to be fed before a plan's activation.
pub(super) fn to_replay(core: &Core, plan: &Plan, registry: &Registry) -> Vec<Arc<Registered>> {
    // Adopted, and kept current by whoever appends until the switch.
    let is_current = |projector: &ProjectorName, major| {
        let own = |row: &&KnownTables| row.projector == *projector && row.major == major;
        registry.tables.iter().find(own).is_some_and(|row| row.inline)
    };
    let replayed = plan.steps.iter().filter_map(|step| match step {
        Step::Replay { projector, version, .. } if !is_current(projector, version.major) => {
            Some(core.configuration.projectors[projector].clone())
        }
        _ => None,
    });
    replayed.collect()
}

/// Proves the rows of the versions that have tables of their own, if that is asked for.
async fn verify(
    core: &Core,
    options: &ActivateOptions,
    plan: &Plan,
    on_progress: OnActivation<'_>,
) -> Result<(), ActivateError> {
    let Some(verify) = &options.verify else { return Ok(()) };
    let report = |progress: VerifyProgress| on_progress(ActivationProgress::Verifying(progress));
    let own = plan.steps.iter().filter_map(|step| match step {
        Step::Replay { projector, .. } => Some(core.configuration.projectors[projector].clone()),
        _ => None,
    });
    let own: Vec<Arc<Registered>> = own.collect();
    let mut differ = crate::verify::each(core, &own, verify, &report).await?;
    differ.retain(|verified| !verified.is_equal());
    if differ.is_empty() { Ok(()) } else { Err(ActivateError::Differs(differ)) }
}

async fn wait_for_instances(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    on_progress: OnActivation<'_>,
) -> Result<(), ActivateError> {
    let wanted = options.wait_for_instances;
    if wanted == 0 {
        return Ok(());
    }
    let (configuration, started) = (core.configuration.versions(), Instant::now());
    let mut reported = None;
    loop {
        let seen = instances::alive_with(&core.store, client, &configuration).await?;
        if reported != Some(seen) {
            on_progress(ActivationProgress::WaitingForInstances { seen, wanted });
            reported = Some(seen);
        }
        if seen >= wanted {
            return Ok(());
        }
        if started.elapsed() > options.instances_timeout {
            return Err(ActivateError::Instances { configuration, seen, wanted, after: started.elapsed() });
        }
        sleep(POLL).await;
    }
}

/// A transaction that has been open for long would likely outlast the pause.
async fn old_appends(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
) -> Result<Vec<Blocker>, ActivateError> {
    let limit = options.pause_limit.as_secs_f64() / 2.0;
    let mut old = in_flight::look(&core.store, client).await?;
    // Locks and sessions are looked at one after the other: without an age, whoever is idle has ended its transaction in
    // between. Where the age is merely not for us to see, neither is the state.
    old.retain(|blocker| blocker.age_secs.map_or(blocker.doing != "idle", |age| age > limit));
    Ok(old)
}

async fn wait_for_old_appends(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    on_progress: OnActivation<'_>,
) -> Result<(), ActivateError> {
    let started = Instant::now();
    loop {
        let old = old_appends(core, client, options).await?;
        if old.is_empty() {
            return Ok(());
        }
        if started.elapsed() > options.drain_timeout {
            return Err(ActivateError::Blocked { blockers: old, after: started.elapsed() });
        }
        on_progress(ActivationProgress::WaitingForAppends(old));
        sleep(POLL).await;
    }
}
