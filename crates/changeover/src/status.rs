//! Status: everything at a glance, read without any lock.

use std::time::SystemTime;

use serde::Serialize;
use tokio_postgres::{Client, Row};

use crate::expiry::SILENT_AFTER_SECS;
use crate::horizon;
use crate::in_flight::{self, Blocker};
use crate::instances::{self, Instance};
use crate::replayer::shown::{self, RunningReplay};
use crate::store::{Store, StoreError, rows};
use crate::views::{self, StableView};
use crate::words::names::ProjectorName;
use crate::words::position::{Generation, Position};
use crate::words::state::{Delivery, ProjectorState};

/// Everything at a glance.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The schema that it is about.
    pub schema: String,
    /// Changes whenever a projector's state does.
    pub generation: Generation,
    /// The position up to which readers read.
    pub horizon: Position,
    /// The newest position drawn.
    pub newest: Position,
    /// Every projector version.
    pub projectors: Vec<ProjectorStatus>,
    /// The stable views, of projectors that have any.
    pub views: Vec<StableView>,
    /// The activation that is under way, if there is one.
    pub activation: Option<OpenActivation>,
    /// Who replays, verifies or optimizes a version right now, and how far that is. Those who were killed are shown until somebody
    /// else begins; they are not alive.
    pub replays: Vec<RunningReplay>,
    /// Transactions in flight that append or publish, the oldest first.
    pub in_flight: Vec<Blocker>,
    /// The instances that were seen lately.
    pub instances: Vec<Instance>,
}

/// One projector version.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectorStatus {
    /// The projector.
    pub projector: ProjectorName,
    /// The version.
    pub version: semver::Version,
    /// Where it stands.
    pub state: ProjectorState,
    /// Whether an activation is switching it right now.
    pub in_activation: bool,
    /// Whether instances that register it keep its tables current though it has retired; how well they do is its lag.
    pub followed: bool,
    /// How it is fed.
    pub delivery: Delivery,
    /// Who changed its state last.
    pub changed_by: String,
    /// When.
    pub changed_at: SystemTime,
    /// The tables of its major version; none before they were created.
    pub tables: Option<TablesStatus>,
}

/// The tables of a projector's major version.
#[derive(Debug, Clone, Serialize)]
pub struct TablesStatus {
    /// The schema that they are in.
    pub schema: String,
    /// How far their rows have come.
    pub position: Position,
    /// Whether appends keep them current; then there is no lag.
    pub inline: bool,
    /// How many events they are behind, at most: positions have gaps, and not every event is handled.
    pub lag_events: i64,
    /// How old the first event is that they have not seen.
    pub lag_secs: f64,
    /// The error that stalled them.
    pub stalled: Option<Stall>,
}

/// Why a projector stands still.
#[derive(Debug, Clone, Serialize)]
pub struct Stall {
    /// Since when.
    pub since: SystemTime,
    /// What went wrong.
    pub error: String,
    /// The event that it cannot project.
    pub position: Option<Position>,
    /// That event's type.
    pub event_type: Option<String>,
}

/// An activation that has not ended.
#[derive(Debug, Clone, Serialize)]
pub struct OpenActivation {
    /// Its number.
    pub id: i64,
    /// Who performs it.
    pub requested_by: String,
    /// How long ago it started.
    pub age_secs: f64,
    /// Whether writers are paused for it.
    pub paused: bool,
    /// How long the pause may last still.
    pub pause_left_secs: Option<f64>,
}

/// Reads it all. Costs nine small statements.
pub(crate) async fn status(store: &Store, client: &Client) -> Result<Status, StoreError> {
    let generation = store.query_one(client, &store.sql.generation, &[]).await?.get("generation");
    let look = horizon::look(store, client).await?;
    let states = store.query(client, &store.sql.states, &[]).await?;
    let checkpoints = store.query(client, &store.sql.checkpoints, &[]).await?;
    let open = store.query_opt(client, &store.sql.open_activation, &[&SILENT_AFTER_SECS]).await?;
    Ok(Status {
        schema: store.schema.to_string(),
        generation,
        horizon: look.horizon,
        newest: look.newest,
        projectors: states
            .iter()
            .map(|row| projector(row, &checkpoints, look.horizon))
            .collect::<Result<_, _>>()?,
        views: views::all(store, client).await?,
        activation: open.map(|row| OpenActivation {
            id: row.get("id"),
            requested_by: row.get("requested_by"),
            age_secs: row.get("age_secs"),
            paused: row.get::<_, Option<SystemTime>>("activating_at").is_some(),
            pause_left_secs: row.get("left_secs"),
        }),
        replays: shown::all(store, client, look.horizon).await?,
        in_flight: in_flight::look(store, client).await?,
        instances: instances::all(store, client).await?,
    })
}

fn projector(row: &Row, checkpoints: &[Row], horizon: Position) -> Result<ProjectorStatus, StoreError> {
    let projector: ProjectorName = rows::word(row, "projector")?;
    let version: semver::Version = rows::word(row, "version")?;
    let own = checkpoints.iter().find(|checkpoint| {
        checkpoint.get::<_, &str>("projector") == projector.as_str()
            && rows::major(checkpoint) == version.major
    });
    Ok(ProjectorStatus {
        tables: own.map(|row| tables(row, projector.tables_schema(version.major), horizon)),
        state: rows::word(row, "state")?,
        in_activation: row.get("in_activation"),
        followed: row.get("follow"),
        delivery: rows::word(row, "delivery")?,
        changed_by: row.get("changed_by"),
        changed_at: row.get("changed_at"),
        projector,
        version,
    })
}

fn tables(row: &Row, schema: String, horizon: Position) -> TablesStatus {
    let (position, inline): (Position, bool) = (row.get("position"), row.get("inline"));
    let lag_events = if inline { 0 } else { (horizon.get() - position.get()).max(0) };
    let stalled = row.get::<_, Option<SystemTime>>("stalled_since").map(|since| Stall {
        since,
        error: row.get::<_, Option<String>>("error").unwrap_or_default(),
        position: row.get("error_position"),
        event_type: row.get("error_type"),
    });
    let lag_secs = if lag_events == 0 { 0.0 } else { row.get::<_, Option<f64>>("lag_secs").unwrap_or(0.0) };
    TablesStatus { schema, position, inline, lag_events, lag_secs, stalled }
}
