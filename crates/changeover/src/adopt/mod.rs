//! Adopting: tables that are there already become the active version of a projector.
//!
//! Whoever filled them until now says how far: up to a position, or up to the moment, because the very transactions that
//! append keep them current. The tables are held against the version's own definition, which is made in a transaction for the
//! purpose and undone. Then they are taken over in one transaction: moved, if they are elsewhere, with a view left in each one's
//! place, and registered as a version that is being replayed from that position. What remains is an activation like any other,
//! of this one projector: it feeds what came since, pauses, and switches. So nobody appends under another configuration at that
//! moment, an inline projector misses nothing, and a kill in between is made up for by the same call.

pub(crate) mod shape;
mod take_over;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;
use tracing::info;

use self::shape::TableDifference;
use crate::activation::{self, ActivateError, ActivateOptions, Activated, ActivationProgress, OnActivation};
use crate::core::Core;
use crate::horizon;
use crate::in_flight::Blocker;
use crate::projector::Registered;
use crate::projector::configuration::NotRegistered;
use crate::registration;
use crate::store::{Store, StoreError};
use crate::verify::{self, Verified, VerifyError, VerifyOptions, VerifyProgress};
use crate::words::names::ProjectorName;
use crate::words::position::Position;
use crate::words::state::ProjectorState;

/// Up to where the rows of tables hold what the events made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdoptAt {
    /// Everything up to this position and nothing after it: whoever fed them has stopped there.
    Position(Position),
    /// Everything that is committed: the transactions that append feed them as well, all of them, until the switch. Then what is
    /// written before the switch is theirs, and what is written after it is the projector's.
    Horizon,
}

impl From<Position> for AdoptAt {
    fn from(position: Position) -> Self {
        Self::Position(position)
    }
}

/// How tables are to be adopted.
///
/// ```
/// use changeover::{AdoptOptions, Position};
/// let options = AdoptOptions {
///     from_schema: Some("public".to_owned()),
///     ..AdoptOptions::at(Position::new(120_000))
/// };
/// assert_eq!(options.activation.pause_limit.as_secs(), 2);
/// ```
#[derive(Debug, Clone)]
pub struct AdoptOptions {
    /// Up to where the rows are right.
    pub position: AdoptAt,
    /// The schema that the tables are in now. They are moved into the schema of their version, and a view is left in each
    /// one's place. None where they are in the schema of their version already.
    pub from_schema: Option<String>,
    /// Whether, and how, the rows are proved before anything is changed: held against what this build makes of the log. Where an
    /// earlier call has taken the tables over and came no further, they are proved right before the switch.
    pub verify: Option<VerifyOptions>,
    /// How long to try to move the tables while somebody else holds them.
    pub move_timeout: Duration,
    /// How the activation goes that follows.
    pub activation: ActivateOptions,
}

impl AdoptOptions {
    /// Tables that are in their place already and hold everything up to there.
    pub fn at(position: impl Into<AdoptAt>) -> Self {
        Self {
            position: position.into(),
            from_schema: None,
            verify: None,
            move_timeout: Duration::from_secs(10),
            activation: ActivateOptions::default(),
        }
    }
}

/// Tables that were adopted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[must_use]
pub struct Adopted {
    /// The projector.
    pub projector: ProjectorName,
    /// The version that is active now.
    pub version: semver::Version,
    /// Up to where the rows were right.
    pub position: AdoptAt,
    /// The names that the tables had before they were moved, where views stand now.
    pub moved: Vec<String>,
    /// The schema that they are in.
    pub schema: String,
    /// The activation that followed.
    pub activation: Activated,
}

/// Why tables were not adopted. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The configuration holds no such projector.
    #[error(transparent)]
    NotOurs(#[from] NotRegistered),
    /// A version of the projector was registered before, so its rows came from the log.
    #[error(
        "not adopted: {projector} {version} is {state} already; only a projector that was never registered can adopt tables"
    )]
    AlreadyKnown {
        /// The projector.
        projector: ProjectorName,
        /// The version that is known.
        version: semver::Version,
        /// Where it stands.
        state: ProjectorState,
    },
    /// The log does not reach that far, or appends below it are still in flight.
    #[error(
        "not adopted: position {position} is above the horizon, {horizon}: no row can hold what has not happened yet"
    )]
    AboveHorizon {
        /// The position that was given.
        position: Position,
        /// The horizon.
        horizon: Position,
    },
    /// The tables are not as the version defines them.
    #[error(
        "not adopted: the tables are not those of {projector} {version}: {}; change them or the definition",
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Different {
        /// The projector.
        projector: ProjectorName,
        /// The version of this build.
        version: semver::Version,
        /// Every difference.
        differences: Vec<TableDifference>,
    },
    /// Tables are to be moved to where others are.
    #[error(
        "not adopted: schema {schema}, where the tables of {projector} {version} belong, is there already: drop or rename it, or, if it holds the tables, adopt them without naming another schema"
    )]
    SchemaIsThere {
        /// The schema.
        schema: String,
        /// The projector.
        projector: ProjectorName,
        /// The version of this build.
        version: semver::Version,
    },
    /// The projector's own DDL, with which the tables are compared, failed.
    #[error("not adopted: the tables of {projector} {version}, to compare those with, cannot be created")]
    Ddl {
        /// The projector.
        projector: ProjectorName,
        /// The version of this build.
        version: semver::Version,
        /// What the database says.
        #[source]
        source: StoreError,
    },
    /// The rows are not what the log makes of them.
    #[error(
        "not adopted: {0}; mend the rows, or the projector where those are right, then run `adopt` again"
    )]
    Differs(Box<Verified>),
    /// Whether they are could not be told.
    #[error("not adopted: verifying failed")]
    Verify(#[from] VerifyError),
    /// Somebody held the tables for too long.
    #[error(
        "not adopted: the tables could not be moved in {after:.1?}: {}; end that, or try again later",
        if blockers.is_empty() { "they are locked again and again".to_owned() }
        else { blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ") }
    )]
    Blocked {
        /// Who.
        blockers: Vec<Blocker>,
        /// How long was tried.
        after: Duration,
    },
    /// The tables are adopted, and not active yet.
    #[error(
        "the tables of {projector} {version} are adopted, and not active yet; run `adopt` again with the same options, it goes on from there"
    )]
    NotActivated {
        /// The projector.
        projector: ProjectorName,
        /// The version of this build.
        version: semver::Version,
        /// Why.
        #[source]
        source: ActivateError,
    },
    /// The database did not do as asked.
    #[error("not adopted: the database refused")]
    Store(#[from] StoreError),
}

impl From<tokio_postgres::Error> for AdoptError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Adopts the tables of one projector of this configuration.
pub(crate) async fn adopt(
    core: &Core,
    registered: &Arc<Registered>,
    options: &AdoptOptions,
    on_progress: OnActivation<'_>,
) -> Result<Adopted, AdoptError> {
    let client = core.store.single().await?;
    let (projector, version) = registered.id();
    let elsewhere = options.from_schema.as_deref().filter(|schema| *schema != registered.schema);
    let mut switching = options.activation.clone();
    let moved = match standing(&core.store, &client, registered, options.position).await? {
        Standing::Adopted => {
            // The call that took them over may have proved nothing. Now their rows may be half replayed: what can be proved is
            // what the switch would lead to.
            switching.verify = switching.verify.or_else(|| options.verify.clone());
            Vec::new()
        }
        Standing::Unknown => {
            let horizon = horizon::look(&core.store, &client).await?.horizon;
            if let AdoptAt::Position(position) = options.position
                && position > horizon
            {
                return Err(AdoptError::AboveHorizon { position, horizon });
            }
            let tables = take_over::check(&core.store, &client, registered, elsewhere).await?;
            if let Some(verify) = &options.verify {
                let schema = elsewhere.unwrap_or(&registered.schema);
                prove(core, registered, schema, options.position, verify, on_progress).await?;
            }
            take_over::take_over(core, &client, registered, options, elsewhere, &tables, horizon, on_progress)
                .await?
        }
    };
    drop(client);
    info!(%projector, %version, ?moved, "tables adopted");
    let activation =
        activation::activate_one(core, registered, &switching, on_progress).await.map_err(|source| {
            AdoptError::NotActivated { projector: projector.clone(), version: version.clone(), source }
        })?;
    let (position, schema) = (options.position, registered.schema.clone());
    Ok(Adopted { projector, version, position, moved, schema, activation })
}

/// Proves the rows, while nothing is locked and nothing is changed.
async fn prove(
    core: &Core,
    registered: &Arc<Registered>,
    schema: &str,
    at: AdoptAt,
    options: &VerifyOptions,
    on_progress: OnActivation<'_>,
) -> Result<(), AdoptError> {
    let standing = match at {
        AdoptAt::Position(position) => verify::Standing::At(position),
        AdoptAt::Horizon => verify::Standing::ByAppends,
    };
    let report = |progress: VerifyProgress| on_progress(ActivationProgress::Verifying(progress));
    let subject = verify::Subject { registered, schema, standing };
    let verified = verify::verify(core, subject, options, &report).await?;
    if verified.is_equal() { Ok(()) } else { Err(AdoptError::Differs(Box::new(verified))) }
}

/// What the database knows of the projector.
enum Standing {
    /// Nothing.
    Unknown,
    /// An earlier call has adopted the same tables at the same position, and came no further.
    Adopted,
}

async fn standing(
    store: &Store,
    client: &Client,
    registered: &Registered,
    at: AdoptAt,
) -> Result<Standing, AdoptError> {
    let registry = registration::registry(store, client).await?;
    let target = &registered.target;
    let mut known = registry.known.iter().filter(|row| row.projector == target.projector);
    let Some(first) = known.next() else { return Ok(Standing::Unknown) };
    let (projector, major) = (target.projector.as_str(), registered.major());
    let adopted = store.query_opt(client, &store.sql.adopted, &[&projector, &major]).await?;
    let adopted_there = adopted.is_some_and(|row| match (row.get("inline"), at) {
        (false, AdoptAt::Position(position)) => row.get::<_, Position>("adopted") == position,
        (true, AdoptAt::Horizon) => true,
        _ => false,
    });
    let same = first.version == target.version && first.fingerprint == target.fingerprint.as_str();
    if same && known.next().is_none() && first.state == ProjectorState::Replaying && adopted_there {
        return Ok(Standing::Adopted);
    }
    let (version, state) = (first.version.clone(), first.state);
    Err(AdoptError::AlreadyKnown { projector: target.projector.clone(), version, state })
}
