//! Why nothing was appended.

use crate::codec::EncodeError;
use crate::decider::DecideError;
use crate::projector::ProjectError;
use crate::store::StoreError;
use crate::words::decision::Refused;
use crate::words::event::Expected;
use crate::words::names::{ProjectorName, StreamName};
use crate::words::position::Revision;

/// Why nothing was appended.
///
/// After a refusal, a conflict, and events that cannot be encoded or are too large, the caller's transaction has written
/// nothing and may go on, soon: it may hold a lease. After anything else it is to be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The instance's configuration is not the active one.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The stream is not where the writer believed it to be.
    #[error(
        "stream {:?}: expected {expected}, found revision {found} or newer; read it again and decide anew",
        .stream.as_str()
    )]
    Conflict {
        /// The stream.
        stream: StreamName,
        /// What was expected.
        expected: Expected,
        /// The newest revision that was seen; 0 where there is no stream.
        found: Revision,
    },
    /// An event cannot be written down.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The events are too large to be appended at once.
    #[error("{bytes} bytes of events in one append are more than the limit of {limit}: split them")]
    TooLarge {
        /// What was to be appended.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// An inline projector could not project the events. The transaction is to be rolled back.
    #[error("inline projector {projector} could not project the events; roll the transaction back")]
    Projector {
        /// The projector.
        projector: ProjectorName,
        /// Why.
        #[source]
        source: ProjectError,
    },
    /// Another writer of the stream kept winning. The transaction is to be rolled back, and may be run again.
    #[error(
        "stream {:?}: another writer appended at the same moment; roll the transaction back and run it again",
        .stream.as_str()
    )]
    Contended {
        /// The stream.
        stream: StreamName,
    },
    /// Somebody changed a row of an inline projector after this transaction took its snapshot. The transaction is to be
    /// rolled back, and may be run again; in READ COMMITTED this does not happen.
    #[error(
        "this transaction's snapshot is older than a row that inline projector {projector} has to change; roll it back and run it again"
    )]
    StaleSnapshot {
        /// The projector.
        projector: ProjectorName,
    },
    /// The connection was lost before the outcome was known: the events are in the log, or none of them is.
    #[error(
        "the connection was lost while events were appended to stream {:?}: read the stream to know whether they are there",
        .stream.as_str()
    )]
    Unknown {
        /// The stream.
        stream: StreamName,
        /// How the connection was lost.
        #[source]
        source: StoreError,
    },
    /// The database did not do as asked. The transaction is to be rolled back.
    #[error("the database refused the append")]
    Store(#[from] StoreError),
}

impl AppendError {
    /// Whether the same transaction, rolled back and run again, may well succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refused) => refused.is_retryable(),
            Self::Contended { .. } | Self::StaleSnapshot { .. } => true,
            Self::Store(error) => error.is_retryable(),
            Self::Projector { source, .. } => source.is_retryable(),
            Self::Conflict { .. } | Self::Encode(_) | Self::TooLarge { .. } | Self::Unknown { .. } => false,
        }
    }
}

impl From<DecideError> for AppendError {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::Refused(refused) => Self::Refused(refused),
            DecideError::Store(error) => Self::Store(error),
        }
    }
}
