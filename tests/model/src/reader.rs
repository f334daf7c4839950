//! A reader of the log: it reads up to the horizon, in rounds, and must never miss an event.

use crate::rules::Rules;
use crate::world::{Log, Position, World};

/// How events are read, by the reader as by every publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    ReadLastValue,
    LookAtLeases,
    /// Takes a snapshot and reads what it shows.
    TakeSnapshot,
}

/// A look at the log under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Look {
    /// First `last_value`, then, after the look at the leases, the horizon.
    pub(crate) horizon: Position,
    /// The events that the snapshot shows.
    pub(crate) snapshot: Log,
}

impl Look {
    pub(crate) const NONE: Look = Look { horizon: 0, snapshot: Log::EMPTY };

    pub(crate) fn make(&mut self, step: Step, world: &World) {
        match step {
            Step::ReadLastValue => self.horizon = world.database.last_value,
            Step::LookAtLeases => self.horizon = world.horizon(self.horizon),
            Step::TakeSnapshot => self.snapshot = world.database.log,
        }
    }
}

/// A reader that keeps its position in its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    /// `None`: nobody reads in this scene.
    next: Option<Step>,
    look: Look,
    pub(crate) position: Position,
    pub(crate) seen: Log,
}

impl Reader {
    pub(crate) const ABSENT: Reader = Reader { next: None, look: Look::NONE, position: 0, seen: Log::EMPTY };

    pub(crate) fn new(rules: Rules) -> Self {
        Reader { next: Some(rules.read()[0]), ..Reader::ABSENT }
    }

    /// A round is begun only when a position was drawn that it has not passed: any other finds nothing.
    pub(crate) fn can_step(self, world: &World) -> bool {
        self.next.is_some() && world.database.last_value > self.position
    }

    pub(crate) fn step(world: &mut World, rules: Rules) {
        let mut reader = world.reader;
        let step = reader.next.expect("BUG: an absent reader made a step");
        reader.look.make(step, world);
        reader.next = rules.read_after(step);
        if reader.next.is_none() {
            let read = std::mem::replace(&mut reader.look, Look::NONE);
            // A lease may be older than what was read already: the horizon goes back at times, the reader never does.
            if read.horizon > reader.position {
                reader.seen.extend(read.snapshot.between(reader.position, read.horizon));
                reader.position = read.horizon;
            }
            reader.next = Some(rules.read()[0]);
        }
        world.reader = reader;
    }
}
