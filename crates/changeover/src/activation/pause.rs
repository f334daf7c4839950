//! The pause: mark, drain, feed, switch.

use std::time::{Duration, Instant, SystemTime};

use deadpool_postgres::Client;
use futures_util::future::{join3, try_join_all};
use postgres_types::ToSql;
use tokio::time::sleep;
use tokio_postgres::Row;
use tracing::warn;
use uuid::Uuid;

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
use crate::store::statements::Sql;
use crate::store::{On, StoreError};
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
    options: &ActivateOptions,
    activation: Started,
    change: &Change,
    on_progress: OnActivation<'_>,
) -> Result<Pause, ActivateError> {
    let client = &rehearsed(core).await?;
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

/// A connection that has run every statement of a pause once, where it changes nothing: for an activation that is none. A server
/// process that has never seen them takes longer to plan them, and to learn of what they are about, than to run them, and in the
/// pause everybody would wait for that.
async fn rehearsed(core: &Core) -> Result<Client, StoreError> {
    let (store, sql) = (&core.store, &core.store.sql);
    let client = store.own().await?;
    let nobodys = Started { id: 0, token: Uuid::nil() };
    let none: [&str; 0] = [];
    let mark: [&(dyn ToSql + Sync); 7] =
        [&nobodys.id, &nobodys.token, &0.0, &&none[..], &&none[..], &&none[..], &&none[..]];
    store.query(&client, &sql.mark_activating, &mark).await?;
    in_flight::look(store, &client).await?;
    horizon::look(store, &client).await?;
    store.query(&client, &sql.pause_left, &[&nobodys.id, &nobodys.token]).await?;
    let switch: [&(dyn ToSql + Sync); 4] =
        [&nobodys.id, &nobodys.token, &Position::START, &SystemTime::UNIX_EPOCH];
    store.query(&client, &sql.switch, &switch).await?;
    // These two would be noticed: they are only made ready.
    store.ready(&client, &sql.set_generation).await?;
    store.ready(&client, &sql.notify).await?;
    Ok(client)
}

/// Runs a statement that changes states, commits, then sets the generation and tells everybody: sent together, so that nothing on
/// our side can stop in between. Returns the rows, and what became of the generation.
async fn change_states(
    core: &Core,
    client: &Client,
    sql: &Sql,
    params: &[&(dyn ToSql + Sync)],
) -> Result<(Vec<Row>, Result<Generation, StoreError>), StoreError> {
    let (store, on) = (&core.store, On::from(client));
    // All of them before the first is sent: none may overtake another.
    let change = store.ready(on, sql).await?;
    let set = store.ready(on, &store.sql.set_generation).await?;
    store.ready(on, &store.sql.notify).await?;
    let (changed, set, ()) =
        join3(change.query(on, params), set.query(on, &[]), store.hint(on, Hint::States)).await;
    let set = set.map(|rows| rows.first().map(|row| row.get("generation")).expect("BUG: no generation"));
    Ok((changed?, set))
}

/// Marks and commits, then sets the generation.
async fn mark(
    core: &Core,
    client: &Client,
    options: &ActivateOptions,
    activation: Started,
    change: &Change,
) -> Result<Generation, ActivateError> {
    let ((incoming, in_versions), (outgoing, out_versions)) =
        (texts(&change.incoming), texts(&change.outgoing));
    let limit = options.pause_limit.as_secs_f64();
    let params: [&(dyn ToSql + Sync); 7] =
        [&activation.id, &activation.token, &limit, &incoming, &in_versions, &outgoing, &out_versions];
    let planned = change.incoming.len() + change.outgoing.len();
    match change_states(core, client, &core.store.sql.mark_activating, &params).await {
        Ok((marked, set)) if marked.len() == planned => Ok(set?),
        Ok(_) => Err(overtaken(core, client, activation).await?),
        Err(StoreError::Database(error)) if is_constraint(&error, "activations_one_at_a_time") => {
            Err(overtaken(core, client, activation).await?)
        }
        Err(error) => Err(error.into()),
    }
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
            Stepped::Moved { to, .. } if to >= horizon => return Ok(()),
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
    let params: [&(dyn ToSql + Sync); 4] = [&activation.id, &activation.token, &look.newest, &look.at];
    let (switched, set) = change_states(core, client, &core.store.sql.switch, &params).await?;
    let switched = switched.first().expect("BUG: a switch that does not say what became of it");
    if !has_switched(switched, change) {
        return Err(overtaken(core, client, activation).await?);
    }
    // The switch is committed. Without the new generation everybody looks again a little later.
    if let Err(error) = set {
        warn!(error = %chain(&error), "switched, but the generation was not set");
    }
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

/// Patches write the same rows: no pause.
pub(super) async fn switch_patches(
    core: &Core,
    activation: Started,
    change: &Change,
) -> Result<Pause, ActivateError> {
    let client = &core.store.own().await?;
    let ((incoming, in_versions), (outgoing, out_versions)) =
        (texts(&change.incoming), texts(&change.outgoing));
    let params: [&(dyn ToSql + Sync); 6] =
        [&activation.id, &activation.token, &incoming, &in_versions, &outgoing, &out_versions];
    let (switched, _set) = change_states(core, client, &core.store.sql.switch_patches, &params).await?;
    if switched.len() != change.incoming.len() + change.outgoing.len() {
        return Err(overtaken(core, client, activation).await?);
    }
    Ok(Pause::default())
}

fn is_constraint(error: &tokio_postgres::Error, name: &str) -> bool {
    error.as_db_error().and_then(|db| db.constraint()) == Some(name)
}
