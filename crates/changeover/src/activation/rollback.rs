//! Going back: the configuration that was active before becomes active again, by the steps of any activation.

use postgres_types::Json;
use semver::Version;
use serde::Serialize;
use tokio_postgres::Client;

use super::{
    ActivateError, ActivateOptions, Activated, ActivationProgress, OnActivation, Pause, Way, activate_from,
    before, repoint,
};
use crate::core::Core;
use crate::registration::{self, Registry};
use crate::store::{Store, StoreError, rows};
use crate::words::decision::Versions;
use crate::words::names::ProjectorName;
use crate::words::plan::{Plan, plan};
use crate::words::way_back::{NoWayBack, Switched, WayBack, way_back};

/// Why it was not gone back. But for [`ActivateError::Unknown`], the configuration that was active is active still.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollbackError {
    /// The history does not lead from the active configuration to that of this build.
    #[error("not rolled back: {0}")]
    NoWayBack(NoWayBack),
    /// The way back is known, but tables that it needs are gone.
    #[error(
        "not rolled back: {}; to replay what is gone from the beginning, run `activate-configuration` of this build",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Gone(Vec<GoneVersion>),
    /// The activation did not happen.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

impl From<StoreError> for RollbackError {
    fn from(error: StoreError) -> Self {
        Self::Activate(error.into())
    }
}

/// A version whose tables are not there any more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GoneVersion {
    /// The projector.
    pub projector: ProjectorName,
    /// The version.
    pub version: Version,
    /// The schema that held its tables.
    pub schema: String,
    /// Who pruned them, if they were pruned.
    pub pruned_by: Option<String>,
    /// How long ago.
    pub pruned_age_secs: Option<f64>,
}

impl std::fmt::Display for GoneVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { projector, version, schema, pruned_by, pruned_age_secs } = self;
        write!(f, "the tables of {projector} {version} ({schema}) are gone")?;
        if let (Some(by), Some(age)) = (pruned_by, pruned_age_secs) {
            write!(f, ": {by} pruned them {age:.0} s ago")?;
        }
        Ok(())
    }
}

/// Activates the configuration of this build, if it is the one that was active before.
pub(crate) async fn rollback(
    core: &Core,
    options: &ActivateOptions,
    on_progress: OnActivation<'_>,
) -> Result<Activated, RollbackError> {
    let client = core.store.single().await?;
    let registry = before(core, &client).await?;
    if look_back(core, &client, &registry).await? == WayBack::Gone {
        let plan = plan(&core.configuration.targets(), &registry.known, &registry.tables);
        on_progress(ActivationProgress::Planned(plan.clone()));
        let views = repoint(core, &plan, options, on_progress).await;
        return Ok(Activated::of(None, plan, Pause::default(), views));
    }
    // Were another configuration activated meanwhile, the mark would not find what is planned for here.
    Ok(activate_from(core, client, options, Way::Back, &registry, on_progress).await?)
}

/// Works out what going back would do.
pub(crate) async fn plan_back(core: &Core) -> Result<Plan, RollbackError> {
    let client = core.store.single().await?;
    let registry = registration::registry(&core.store, &client).await?;
    look_back(core, &client, &registry).await?;
    Ok(plan(&core.configuration.targets(), &registry.known, &registry.tables))
}

/// Whether the way back is open, and all that it needs is there.
async fn look_back(core: &Core, client: &Client, registry: &Registry) -> Result<WayBack, RollbackError> {
    let store = &core.store;
    let newest = newest_switch(store, client).await?;
    let way = way_back(&core.configuration.versions(), &registry.active(), newest.as_ref())
        .map_err(RollbackError::NoWayBack)?;
    if way == WayBack::Open {
        let gone = gone(core, client, registry).await?;
        if !gone.is_empty() {
            return Err(RollbackError::Gone(gone));
        }
    }
    Ok(way)
}

/// The newest switch that the history tells of.
pub(crate) async fn newest_switch(store: &Store, client: &Client) -> Result<Option<Switched>, StoreError> {
    let row = store.query_opt(client, &store.sql.newest_activated, &[]).await?;
    Ok(row.map(|row| Switched {
        from: row.get::<_, Json<Versions>>("from_configuration").0,
        to: row.get::<_, Json<Versions>>("to_configuration").0,
        back: row.get("rollback"),
    }))
}

/// The versions of this build whose tables are not there.
async fn gone(core: &Core, client: &Client, registry: &Registry) -> Result<Vec<GoneVersion>, StoreError> {
    let store = &core.store;
    let mut gone = Vec::new();
    for registered in core.configuration.projectors.values() {
        let known = registry.tables_of(&registered.target).is_some();
        let row = store.query_one(client, &store.sql.schema_exists, &[&registered.schema]).await?;
        if known && row.get("present") {
            continue;
        }
        let (projector, version) = registered.id();
        let schema = registered.schema.clone();
        gone.push(GoneVersion { projector, version, schema, pruned_by: None, pruned_age_secs: None });
    }
    if !gone.is_empty() {
        for row in store.query(client, &store.sql.pruned_versions, &[]).await? {
            let (projector, version): (ProjectorName, Version) =
                (rows::word(&row, "projector")?, rows::word(&row, "version")?);
            for gone in gone.iter_mut().filter(|gone| gone.projector == projector && gone.version == version)
            {
                gone.pruned_by = row.get("pruned_by");
                gone.pruned_age_secs = row.get("age_secs");
            }
        }
    }
    Ok(gone)
}
