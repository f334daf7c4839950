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

use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio_postgres::Client;
use tracing::info;

use self::shape::TableDifference;
use crate::activation::{self, ActivateError, ActivateOptions, Activated, OnActivation};
use crate::core::Core;
use crate::horizon;
use crate::in_flight::Blocker;
use crate::projector::{BoxError, Registered};
use crate::registration;
use crate::store::{Store, StoreError};
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
    #[error("this build registers no projector {0}")]
    NotOurs(ProjectorName),
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
    #[error("not adopted: the rows of {projector} {version} were not proved")]
    NotProved {
        /// The projector.
        projector: ProjectorName,
        /// The version of this build.
        version: semver::Version,
        /// Why.
        #[source]
        source: BoxError,
    },
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

/// The tables whose rows are to be proved, before anything is changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToProve<'a> {
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever proves rows"))]
    pub(crate) registered: &'a Arc<Registered>,
    /// The schema that they are in at the moment.
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever proves rows"))]
    pub(crate) schema: &'a str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever proves rows"))]
    pub(crate) position: AdoptAt,
}

/// Proves rows, or says why they are wrong. It is called while nothing is locked and nothing is changed.
pub(crate) type Prove<'p> =
    &'p (dyn for<'a> Fn(ToProve<'a>) -> BoxFuture<'a, Result<(), BoxError>> + Send + Sync);

/// Adopts the tables of one projector of this configuration.
pub(crate) async fn adopt(
    core: &Core,
    registered: &Arc<Registered>,
    options: &AdoptOptions,
    prove: Option<Prove<'_>>,
    on_progress: OnActivation<'_>,
) -> Result<Adopted, AdoptError> {
    let client = core.store.single().await?;
    let (projector, version) = registered.id();
    let elsewhere = options.from_schema.as_deref().filter(|schema| *schema != registered.schema);
    let moved = match standing(&core.store, &client, registered, options.position).await? {
        Standing::Adopted => Vec::new(),
        Standing::Unknown => {
            let horizon = horizon::look(&core.store, &client).await?.horizon;
            if let AdoptAt::Position(position) = options.position
                && position > horizon
            {
                return Err(AdoptError::AboveHorizon { position, horizon });
            }
            let tables = take_over::check(&core.store, &client, registered, elsewhere).await?;
            if let Some(prove) = prove {
                let schema = elsewhere.unwrap_or(&registered.schema);
                let to_prove = ToProve { registered, schema, position: options.position };
                prove(to_prove).await.map_err(|source| AdoptError::NotProved {
                    projector: projector.clone(),
                    version: version.clone(),
                    source,
                })?;
            }
            take_over::take_over(core, &client, registered, options, elsewhere, &tables, horizon, on_progress)
                .await?
        }
    };
    drop(client);
    info!(%projector, %version, ?moved, "tables adopted");
    let activation = activation::activate_one(core, registered, &options.activation, on_progress)
        .await
        .map_err(|source| AdoptError::NotActivated {
            projector: projector.clone(),
            version: version.clone(),
            source,
        })?;
    let (position, schema) = (options.position, registered.schema.clone());
    Ok(Adopted { projector, version, position, moved, schema, activation })
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use changeover_testkit::Database;
    use futures_util::FutureExt;

    use super::*;
    use crate::{Batch, Changeover, Configuration, Expected, SqlProjector, Transaction, WhenNothingIsActive};

    #[derive(serde::Serialize, serde::Deserialize)]
    enum CounterEvent {
        Counted,
    }

    struct Counters;

    impl SqlProjector for Counters {
        const NAME: &'static str = "counters";
        const VERSION: semver::Version = semver::Version::new(1, 0, 0);
        const TABLES: &'static str = "CREATE TABLE {schema}.counters (id text PRIMARY KEY)";
        type Event = CounterEvent;

        async fn project(&self, _: Batch<'_, CounterEvent>, _: &Transaction<'_>) -> Result<(), BoxError> {
            Ok(())
        }
    }

    /// Says what kind of closure it is.
    fn proving<F>(prove: F) -> F
    where
        F: for<'a> Fn(ToProve<'a>) -> BoxFuture<'a, Result<(), BoxError>> + Send + Sync,
    {
        prove
    }

    #[tokio::test]
    async fn rows_that_are_to_be_proved_are_so_before_anything_is_changed() {
        let database = Database::fresh().await;
        let client = database.client().await;
        client.batch_execute("CREATE TABLE public.counters (id text PRIMARY KEY)").await.unwrap();
        let builder = Changeover::builder(database.config());
        builder.migrate().await.unwrap();
        let none = builder.clone().connect().await.unwrap();
        let counted = [CounterEvent::Counted];
        none.append(&"counter".parse().unwrap(), Expected::NoStream, &counted).await.unwrap();
        let changeover = builder
            .configuration(Configuration::new().sql(Counters).unwrap())
            .when_nothing_is_active(WhenNothingIsActive::Refuse)
            .connect()
            .await
            .unwrap();
        let registered = changeover.core.configuration.projectors.values().next().unwrap().clone();
        let options =
            AdoptOptions { from_schema: Some("public".to_owned()), ..AdoptOptions::at(Position::new(1)) };
        let asked = Mutex::new(Vec::new());
        let adopting = async |right: bool| {
            let prove = proving(|of| {
                let name = of.registered.target.projector.to_string();
                asked.lock().unwrap().push((name, of.schema.to_owned(), of.position));
                async move { if right { Ok(()) } else { Err("1 row is missing".into()) } }.boxed()
            });
            adopt(&changeover.core, &registered, &options, Some(&prove), &|_| {}).await
        };
        let refused = adopting(false).await.unwrap_err();
        assert!(
            matches!(&refused, AdoptError::NotProved { source, .. } if source.to_string() == "1 row is missing")
        );
        assert!(changeover.status().await.unwrap().projectors.is_empty());
        client.batch_execute("INSERT INTO public.counters VALUES ('it is a table still')").await.unwrap();
        assert_eq!(adopting(true).await.unwrap().moved, ["public.counters"]);
        let asked = asked.into_inner().unwrap();
        let expected = ("counters".to_owned(), "public".to_owned(), AdoptAt::Position(Position::new(1)));
        assert_eq!(asked, [expected.clone(), expected]);
    }
}
