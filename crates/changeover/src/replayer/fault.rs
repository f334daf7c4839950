//! What a round of the bulk has found to be at fault: an event, or rows that the server refuses.
//!
//! Rows are written together with those of many other events. Which event made them so that the server refuses them is found by
//! rounds that write earlier, up to the middle of what was refused, until one event is left.

use tokio_postgres::Client;

use super::ReplayError;
use super::bulk::Open;
use crate::core::Core;
use crate::log::read::{self, Limits};
use crate::projector::ProjectError;
use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// How a round ended.
pub(super) enum Ended {
    Done,
    Failed(Failed),
    Refused(Refused),
}

/// Rows that the server refuses. Which event made them so is found by writing more often.
pub(super) struct Refused {
    pub(super) projector: ProjectorName,
    pub(super) version: semver::Version,
    pub(super) shard: i32,
    /// Up to here they are written.
    pub(super) after: Position,
    /// Up to here they were refused.
    pub(super) up_to: Position,
    pub(super) source: ProjectError,
}

impl Refused {
    pub(super) fn is_one(&self) -> bool {
        self.up_to.get() - self.after.get() == 1
    }

    fn middle(&self) -> Position {
        Position::new(self.after.get() + (self.up_to.get() - self.after.get()) / 2)
    }

    /// The one event that is left.
    pub(super) async fn named(self, core: &Core, client: &Client) -> Result<Ended, ReplayError> {
        let batch = read::next(&core.store, client, self.after, self.up_to, None, Limits::BATCH).await?;
        let Some(event) = batch.events.into_iter().next() else { return Err(self.into()) };
        let Self { projector, version, up_to: position, source, .. } = self;
        Ok(Ended::Failed(Failed { projector, version, position, event_type: event.event_type, source }))
    }
}

impl From<Refused> for ReplayError {
    fn from(refused: Refused) -> Self {
        Self::rows((refused.projector, refused.version), refused.source)
    }
}

/// An event that a projector cannot project.
pub(super) struct Failed {
    pub(super) projector: ProjectorName,
    pub(super) version: semver::Version,
    pub(super) position: Position,
    pub(super) event_type: String,
    pub(super) source: ProjectError,
}

impl From<Failed> for ReplayError {
    fn from(failed: Failed) -> Self {
        let Failed { projector, version, position, event_type, source } = failed;
        Self::Projector { projector, version, position, event_type, source }
    }
}

/// What the next round is for, and up to where; none where everything has arrived.
pub(super) fn next(open: Vec<Open>, refused: &mut Option<Refused>) -> Option<(Vec<Open>, Position)> {
    if let Some(at_fault) = refused {
        let own = open.iter().position(|open| open.registered.id().0 == at_fault.projector);
        let shard = own.and_then(|own| open[own].shards.iter().find(|(shard, _)| *shard == at_fault.shard));
        if let (Some(own), Some(&(_, written))) = (own, shard)
            && written < at_fault.up_to
        {
            at_fault.after = written;
            return Some((open.into_iter().skip(own).take(1).collect(), at_fault.middle()));
        }
        // Somebody else has written them.
        *refused = None;
    }
    let up_to = open.iter().map(|open| open.up_to).min()?;
    Some((open.into_iter().filter(|open| open.up_to == up_to).collect(), up_to))
}
