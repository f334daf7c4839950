//! Projectors: what users write, and the one trait underneath that everything else calls.

pub(crate) mod configuration;
pub(crate) mod decoded;
pub(crate) mod fold;
mod hashed;
pub(crate) mod known;
pub(crate) mod parallel;
pub(crate) mod row;
pub(crate) mod split;
pub(crate) mod sql;

use std::sync::Arc;

use deadpool_postgres::Transaction;
use futures_util::future::BoxFuture;
use postgres_types::ToSql;
use semver::Version;
use tokio_postgres::Row;

use self::configuration::Built;
use crate::store::statements::Sql;
use crate::store::{Path, StoreError};
use crate::words::event::RawEvent;
use crate::words::names::ProjectorName;
use crate::words::plan::Target;
use crate::words::position::Position;

/// Why a projector could not project. Holds positions, types and names, never what an event holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProjectError {
    /// An event of this type does not decode into the projector's event type.
    #[error("event {position} ({event_type}) cannot be decoded: {reason}")]
    Undecodable {
        /// Its position; 0 if it has none yet.
        position: Position,
        /// Its type.
        event_type: String,
        /// Where its data does not fit.
        reason: String,
    },
    /// The projector's own code panicked.
    #[error("the projector panicked at event {position} ({event_type})")]
    Panicked {
        /// The position of the event.
        position: Position,
        /// Its type.
        event_type: String,
    },
    /// A fold returned a row with another key than the one that it was asked for.
    #[error("the fold of table {table} returned a row with another key at event {position} ({event_type})")]
    KeyChanged {
        /// The table.
        table: &'static str,
        /// The position of the event.
        position: Position,
        /// Its type.
        event_type: String,
    },
    /// A SQL projector was to be fed inside a transaction whose snapshot may be too old for what it reads.
    #[error(
        "a projector that runs its own SQL is fed inline only in READ COMMITTED, and this transaction is {isolation}: use READ COMMITTED, or feed the projector in the background"
    )]
    NeedsReadCommitted {
        /// The transaction's isolation level.
        isolation: String,
    },
    /// The database refused what the projector wrote or read.
    #[error("the database refused the projector's statement")]
    Store(#[from] StoreError),
    /// The projector returned an error of its own.
    #[error("the projector failed")]
    Projector(#[source] BoxError),
}

/// Any error, as a projector may return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl From<tokio_postgres::Error> for ProjectError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

impl ProjectError {
    /// The event that it names, if it names one.
    pub(crate) fn event(&self) -> Option<(Position, &str)> {
        match self {
            Self::Undecodable { position, event_type, .. }
            | Self::Panicked { position, event_type }
            | Self::KeyChanged { position, event_type, .. } => Some((*position, event_type)),
            Self::NeedsReadCommitted { .. } | Self::Store(_) | Self::Projector(_) => None,
        }
    }

    /// Whether the server could not, whatever was asked of it: neither the projector nor the event is at fault.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_outage(),
            Self::Projector(error) => {
                let causes =
                    std::iter::successors(Some(&**error as &(dyn std::error::Error + 'static)), |e| {
                        e.source()
                    });
                causes.filter_map(<dyn std::error::Error>::downcast_ref).any(crate::store::is_outage)
            }
            _ => false,
        }
    }

    /// Whether the transaction lost a race and may be run again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Projector(error) => error
                .downcast_ref::<tokio_postgres::Error>()
                .and_then(tokio_postgres::Error::code)
                .is_some_and(|code| ["40001", "40P01"].contains(&code.code())),
            _ => false,
        }
    }
}

/// An error and its causes in one line. A database error is put in words that hold no data.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        match error.downcast_ref::<tokio_postgres::Error>() {
            // Said already by the `StoreError` around it, or to be said once, in our words.
            Some(db) => {
                let said = crate::store::describe(db);
                if !text.contains(&said) {
                    text = format!("{text}: {said}");
                }
                break;
            }
            None => text = format!("{text}: {error}"),
        }
        next = error.source();
    }
    text
}

/// The one trait underneath: a projector whose types are erased.
pub(crate) trait Project: Send + Sync + 'static {
    /// Whether its batches want the caller's transaction in hand, and not just a connection on which one was begun.
    fn needs_transaction(&self) -> bool;
    /// How the bulk of the log is replayed.
    fn parallel(&self) -> &dyn parallel::Parallel;
    /// The statements with which its batches write rows, so that they can be made ready before.
    fn writes(&self) -> Vec<&Sql>;
    /// Decodes a batch and works out what it touches. The events are of the projector's types, in position order.
    fn decode<'p>(&'p self, events: &[RawEvent]) -> Result<Box<dyn Decoded + 'p>, ProjectError>;
}

/// A statement over the rows of a batch, with its parameters.
pub(crate) struct Load<'d> {
    pub(crate) sql: &'d Sql,
    pub(crate) params: Vec<Box<dyn ToSql + Sync + Send + 'd>>,
}

impl Load<'_> {
    /// The parameters, as a statement takes them.
    pub(crate) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.params.iter().map(|param| &**param as _).collect()
    }
}

/// A batch that was decoded: what it touches is known, nothing was read or written yet.
pub(crate) trait Decoded: Send + Sync {
    /// A stable hash for each row that the batch may change, for appends that must not change one row at once.
    fn row_locks(&self) -> Vec<u64>;
    /// The statements that load those rows; they may be sent together with others.
    fn loads(&self) -> Vec<Load<'_>>;
    /// How many those are, without making them.
    fn load_count(&self) -> usize;
    /// Statements that lock the rows which were loaded; each fails where the transaction's snapshot shows a row that somebody
    /// has changed or deleted since.
    fn holds(&self) -> Vec<Load<'_>>;
    /// Statements that count the rows which were touched, were not loaded, and are there all the same: rows that the
    /// transaction's snapshot is too old to see. To be run outside it, while the transaction holds the locks on the keys.
    fn unseen(&self, loaded: &[Vec<Row>]) -> Result<Vec<Load<'_>>, ProjectError>;
    /// The events' places, once the log has given them (an inline projector decodes before the append).
    fn place(&mut self, placed: &[RawEvent]);
    /// Folds the events into the rows that were loaded.
    fn fold(&mut self, loaded: &[Vec<Row>]) -> Result<(), ProjectError>;
    /// The statements that write the rows as the fold left them; they may be sent together.
    fn writes(&self) -> Vec<Load<'_>>;
    /// Runs SQL of the projector's own.
    fn run<'t>(&'t self, tx: &'t Transaction<'_>, path: Path) -> BoxFuture<'t, Result<(), ProjectError>>;
}

/// A projector version as this build registers it.
pub(crate) struct Registered {
    pub(crate) target: Target,
    /// The event types that it handles, sorted.
    pub(crate) event_types: Vec<String>,
    /// The schema of its tables.
    pub(crate) schema: String,
    /// What creates its tables in that schema.
    pub(crate) tables: String,
    /// What creates their secondary indexes.
    pub(crate) indexes: configuration::Indexes,
    pub(crate) projector: Box<dyn Project>,
    /// Makes it anew in a schema.
    pub(crate) build: Arc<dyn Fn(&str) -> Built + Send + Sync>,
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registered").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Registered {
    /// The same version, with its tables in another schema.
    pub(crate) fn elsewhere(&self, schema: &str) -> Self {
        let Built { tables, indexes, projector } = (self.build)(schema);
        Self {
            target: self.target.clone(),
            event_types: self.event_types.clone(),
            schema: schema.to_owned(),
            tables,
            indexes,
            projector,
            build: self.build.clone(),
        }
    }

    /// The projector and its version.
    pub(crate) fn id(&self) -> (ProjectorName, Version) {
        (self.target.projector.clone(), self.target.version.clone())
    }

    /// The major version, as the database keeps it.
    pub(crate) fn major(&self) -> i64 {
        i64::try_from(self.target.version.major).unwrap_or(i64::MAX)
    }

    pub(crate) fn handles(&self, event_type: &str) -> bool {
        self.event_types.binary_search_by(|own| own.as_str().cmp(event_type)).is_ok()
    }
}

/// Decodes the events of a batch into a projector's own event type.
pub(crate) fn decode_all<E: serde::de::DeserializeOwned>(
    events: &[RawEvent],
) -> Result<Vec<crate::words::event::Recorded<E>>, ProjectError> {
    events
        .iter()
        .map(|event| {
            let data =
                crate::codec::decode(&event.event_type, event.recorded.data.get()).map_err(|reason| {
                    ProjectError::Undecodable {
                        position: event.recorded.position,
                        event_type: event.event_type.clone(),
                        reason,
                    }
                })?;
            Ok(event.with_data(data))
        })
        .collect()
}

/// Gives decoded events the places of their raw ones.
pub(crate) fn place_all<E>(decoded: &mut [crate::words::event::Recorded<E>], placed: &[RawEvent]) {
    for (event, placed) in decoded.iter_mut().zip(placed) {
        event.position = placed.recorded.position;
        event.revision = placed.recorded.revision;
        event.recorded_at = placed.recorded.recorded_at;
    }
}
