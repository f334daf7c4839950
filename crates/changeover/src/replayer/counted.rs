//! Events that went through the bulk of a replay, each counted once.

use std::collections::BTreeMap;

use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// Events that went through, by projector.
pub(super) type Events = BTreeMap<ProjectorName, Counted>;

/// Events that one projector has handled.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) events: u64,
    /// Up to here. What is read once more, since shards were shared out anew, does not count again.
    pub(super) up_to: Position,
}

impl Counted {
    /// Takes note of events that were not counted before, and of how far that was.
    pub(super) fn count(&mut self, events: u64, reached: Position) {
        self.events += events;
        self.up_to = self.up_to.max(reached);
    }
}
