//! Events as they go into the log and as they come out of it.

use std::time::SystemTime;

use serde_json::value::RawValue;

use super::names::StreamName;
use super::position::{Position, Revision};

/// What the writer of a stream believes its newest revision to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expected {
    /// It does not matter: append after whatever is there.
    Any,
    /// The stream does not exist yet.
    NoStream,
    /// Exactly this revision.
    Exactly(Revision),
}

impl Expected {
    /// The revision that must be found; none if any will do.
    pub(crate) fn revision(self) -> Option<Revision> {
        match self {
            Self::Any => None,
            Self::NoStream => Some(Revision::default()),
            Self::Exactly(revision) => Some(revision),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any revision"),
            Self::NoStream => f.write_str("no stream"),
            Self::Exactly(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// An event with its place in the log and in its stream.
///
/// `D` is the event's own type, or [`RawValue`] in a box where nobody asked for one.
#[derive(Debug, Clone)]
pub struct Recorded<D> {
    /// Its place in the whole log.
    pub position: Position,
    /// The stream that it belongs to.
    pub stream: StreamName,
    /// Its place in that stream.
    pub revision: Revision,
    /// When the database recorded it.
    pub recorded_at: SystemTime,
    /// What the writer attached to it: who, why, because of what.
    pub metadata: Option<serde_json::Value>,
    /// The event itself.
    pub data: D,
}

/// An event as the log holds it, not decoded yet.
#[derive(Debug, Clone)]
pub struct RawEvent {
    /// Its type: the name of the enum's variant.
    pub event_type: String,
    /// Everything else; the data as JSON text.
    pub recorded: Recorded<Box<RawValue>>,
}

impl RawEvent {
    /// The same event with its data decoded.
    pub(crate) fn with_data<D>(&self, data: D) -> Recorded<D> {
        let Recorded { position, stream, revision, recorded_at, metadata, data: _ } = &self.recorded;
        Recorded {
            position: *position,
            stream: stream.clone(),
            revision: *revision,
            recorded_at: *recorded_at,
            metadata: metadata.clone(),
            data,
        }
    }
}
