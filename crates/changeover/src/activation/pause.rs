//! The pause: mark, drain, feed, switch.

use std::time::{Duration, Instant};

use futures_util::future::{join, try_join_all};
use postgres_types::ToSql;
use tokio::time::sleep;
use tokio_postgres::{Client, Row};
use tracing::warn;

use super::ending::overtaken;
use super::{
    ActivateError, ActivateOptions, ActivationProgress, Change, OnActivation, Pause, Started, in_place,
};
use crate::admission::Permit;
use crate::core::Core;
use crate::horizon::{self, Look};
use crate::in_flight;
use crate::projector::{Registered, chain};
use crate::replayer::{ReplayError, step_or_name};
use crate::semver::Version;
use crate::step::{Stepped, UpTo};
use crate::store::StoreError;
use crate::wake::Hint;
use crate::words::names::ProjectorName;
use crate::words::position::{Generation, Position};

/// How often the transactions in flight are looked at.
pub(super) const DRAIN_POLL: Duration = Duration::from_millis(1);

fn texts(versions: &[(ProjectorName, Version)]) -> (Vec<&str>, Vec<String>) {
    versions.iter().map(|(projector, version)| (projector.as_str(), version.to_string())).unzip()
}

/// The pause: mark, drain, feed, switch.
pub(super) async fn pause(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    activation: Started,
    change: &Change,
    on_progress: OnActivation<'_>,
) -> Result<Pause, ActivateError> {
    let began = Instant::now();
    let generation = mark(core, client, options, activation, change).await?;
    on_progress(ActivationProgress::Paused);
    let look = drain(core, client, options).await?;
    let drained = Instant::now();
    let horizon = look.newest;
    on_progress(ActivationProgress::Drained { horizon });
    // Asked after the look: had anyone given the pause back before it, appends might be in flight below that position.
    let until = deadline(core, client, activation).await?;
    let permit = Permit { generation, until: Some(until), attempt: None };
    let feeding = change.feed.iter().map(|fed| feed(core, client, activation, fed, permit, horizon));
    try_join_all(feeding).await?;
    let fed = if change.feed_in_place.is_empty() {
        let fed = Instant::now();
        switch(core, client, activation, change, look).await?;
        fed
    } else {
        in_place::feed_and_switch(core, client, activation, change, permit, look).await?
    };
    Ok(Pause { horizon: Some(horizon), whole: began.elapsed(), drain: drained - began, feed: fed - drained })
}

/// Marks and commits, then sets the generation: sent together, so that nothing on our side can stop in between.
async fn mark(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    activation: Started,
    change: &Change,
) -> Result<Generation, ActivateError> {
    let sql = &core.store.sql;
    let ((incoming, in_versions), (outgoing, out_versions)) =
        (texts(&change.incoming), texts(&change.outgoing));
    let limit = options.pause_limit.as_secs_f64();
    let params: [&(dyn ToSql + Sync); 7] =
        [&activation.id, &activation.token, &limit, &incoming, &in_versions, &outgoing, &out_versions];
    let marked = core.store.query(client, &sql.mark_activating, &params);
    let set = core.store.query_one(client, &sql.set_generation, &[]);
    let (marked, set) = join(marked, set).await;
    let marked = match marked {
        Ok(rows) => rows.len(),
        Err(StoreError::Database(error)) if is_constraint(&error, "activations_one_at_a_time") => 0,
        Err(error) => return Err(error.into()),
    };
    let planned = change.incoming.len() + change.outgoing.len();
    if marked != planned {
        return Err(overtaken(core, client, activation).await?);
    }
    core.store.hint(client, Hint::States).await;
    Ok(set?.get("generation"))
}

/// Waits until everything that was admitted before the mark has ended. Who is admitted later is so by the new states.
async fn drain(core: &Core, client: &Client, options: &ActivateOptions) -> Result<Look, ActivateError> {
    let started = Instant::now();
    let mut waited_for: Option<Vec<String>> = None;
    loop {
        let mut left = in_flight::look(&core.store, client).await?;
        if let Some(before) = &waited_for {
            left.retain(|blocker| before.contains(&blocker.transaction));
        }
        if left.is_empty() {
            return Ok(horizon::look(&core.store, client).await?);
        }
        // Some time must be left to feed and to switch.
        if started.elapsed() > options.pause_limit.mul_f64(0.8) {
            return Err(ActivateError::Blocked { blockers: left, after: started.elapsed() });
        }
        waited_for = Some(left.into_iter().map(|blocker| blocker.transaction).collect());
        sleep(DRAIN_POLL).await;
    }
}

/// When the pause ends, by the database's clock, on ours.
pub(super) async fn deadline(
    core: &Core,
    client: &Client,
    activation: Started,
) -> Result<Instant, ActivateError> {
    let params: [&(dyn ToSql + Sync); 2] = [&activation.id, &activation.token];
    match core.store.query_opt(client, &core.store.sql.pause_left, &params).await? {
        Some(row) => Ok(Instant::now() + Duration::from_secs_f64(row.get("secs"))),
        None => Err(overtaken(core, client, activation).await?),
    }
}

/// Feeds the rest of the log to a new version.
async fn feed(
    core: &Core,
    client: &Client,
    activation: Started,
    fed: &Registered,
    mut permit: Permit,
    horizon: Position,
) -> Result<(), ActivateError> {
    loop {
        match step_or_name(core, permit, fed, UpTo::Exactly(horizon)).await? {
            // Inline rows are current: appends kept them so, and none is in flight.
            Stepped::Nothing { .. } | Stepped::Inline => return Ok(()),
            Stepped::Moved { .. } => {}
            Stepped::Busy => sleep(DRAIN_POLL).await,
            // Some other state changed, say a version was registered; or the pause was given back, which this asks.
            Stepped::Stale(seen) => {
                permit = Permit {
                    generation: seen,
                    until: Some(deadline(core, client, activation).await?),
                    attempt: None,
                };
            }
            Stepped::Stalled(error) => {
                let (projector, version) = fed.id();
                return Err(ReplayError::Stalled { projector, version, error }.into());
            }
        }
    }
}

/// Switches and commits, then sets the generation.
async fn switch(
    core: &Core,
    client: &Client,
    activation: Started,
    change: &Change,
    look: Look,
) -> Result<(), ActivateError> {
    let sql = &core.store.sql;
    let params: [&(dyn ToSql + Sync); 4] = [&activation.id, &activation.token, &look.newest, &look.at];
    let switched = core.store.query_one(client, &sql.switch, &params);
    let set = core.store.query_one(client, &sql.set_generation, &[]);
    let (switched, set) = join(switched, set).await;
    if !has_switched(&switched?, change) {
        return Err(overtaken(core, client, activation).await?);
    }
    announce(core, client, set).await;
    Ok(())
}

/// Whether the statement that switches did so; if not, it changed nothing.
pub(super) fn has_switched(switched: &Row, change: &Change) -> bool {
    if switched.get::<_, i64>("done") == 0 {
        return false;
    }
    let moved = usize::try_from(switched.get::<_, i64>("moved")).unwrap_or_default();
    assert_eq!(
        moved,
        change.incoming.len() + change.outgoing.len(),
        "BUG: a switch moved other rows than it marked"
    );
    true
}

/// The switch is committed: tells everybody. Without the new generation they look again a little later.
pub(super) async fn announce(core: &Core, client: &Client, set: Result<Row, StoreError>) {
    if let Err(error) = set {
        warn!(error = %chain(&error), "switched, but the generation was not set");
    }
    core.store.hint(client, Hint::States).await;
}

/// Patches write the same rows: no pause.
pub(super) async fn switch_patches(
    core: &Core,
    client: &Client,
    activation: Started,
    change: &Change,
) -> Result<Pause, ActivateError> {
    let ((incoming, in_versions), (outgoing, out_versions)) =
        (texts(&change.incoming), texts(&change.outgoing));
    let params: [&(dyn ToSql + Sync); 6] =
        [&activation.id, &activation.token, &incoming, &in_versions, &outgoing, &out_versions];
    let switched = core.store.query(client, &core.store.sql.switch_patches, &params);
    let set = core.store.query_one(client, &core.store.sql.set_generation, &[]);
    let (switched, _set) = join(switched, set).await;
    if switched?.len() != change.incoming.len() + change.outgoing.len() {
        return Err(overtaken(core, client, activation).await?);
    }
    core.store.hint(client, Hint::States).await;
    Ok(Pause::default())
}

fn is_constraint(error: &tokio_postgres::Error, name: &str) -> bool {
    error.as_db_error().and_then(|db| db.constraint()) == Some(name)
}
