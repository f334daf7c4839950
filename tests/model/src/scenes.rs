//! Who takes part: the bounds of the model.
//!
//! One world with everybody in it is too large to be explored in minutes, so there are several, each with those
//! whose steps can hurt one another. Every scene begins with the old version active, the new one replaying and an
//! empty log. Nothing but the cast is bounded: anything may roll back, die, abort, expire at every step.
//!
//! | scene | appenders (events) | publishers (batches) | activators | the promises it is for |
//! |---|---|---|---|---|
//! | appending | old (2), old (1), new (1), and a reader | | 1 | P1, P3, P4 |
//! | racing, *inline* | old (1), old (1), new (1) | | 2 | P1, P2, P4 |
//! | racing, small, *inline* | old (1), new (1) | | 2 | the same, for mutants |
//! | racing behind | old (1), new (1) | | 2 | the same |
//! | publishing | old (1), old (1), new (1) | old (2), new (1) | 1 | P1, P2, P3 |
//! | competing | old (1), new (1) | old (2), old (1), new (1) | 1 | P2 |
//! | replaying, *inline* | old (1), old (1), new (1) | replayer (2) | 1 | P2 |
//! | going back, *old inline, new not* | old (1), old (1), new (1) | | 1 there, 1 back | P2, P5 |
//! | mending, *inline, shared tables* | old (1), old (1), new (1) | | 1 | P1, P2 |
//! | mending behind, *shared tables* | old (1), old (1), new (1) | old (1), new (1) | 1 | P1, P2 |
//! | taking over, *new inline, shared tables* | old (1), new (1) | old (1) | 2 | P1, P2, P4 |
//! | racing beside a replayer, *inline* | old (1), new (1) | replayer (1) | 2 | P2 |

use crate::activator::{Activator, Expirer};
use crate::appender::Appender;
use crate::publisher::{Publisher, Purpose};
use crate::reader::Reader;
use crate::rules::Rules;
use crate::world::Delivery::{Background, Inline};
use crate::world::Version::{New, Old};
use crate::world::{Database, Delivery, Log, Rows, State, States, Version, World};

/// Which tables the versions have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// Another major version: tables, rows and checkpoint of its own.
    Own,
    /// Another minor version: it takes over the tables as they are.
    Shared,
}

/// How the tail of the log comes into the tables of a version before it is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feeding {
    /// Not at all: they are current, or the publisher simply goes on under the new code.
    None,
    /// Into tables that are nobody else's.
    Own,
    /// Into tables that the version before is fed in the background: from the switch on, appends keep them current.
    InPlace,
}

/// A cast.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// How the old and the new version are fed.
    pub(crate) delivery: [Delivery; 2],
    pub(crate) tables: Tables,
    /// Configuration, and the number of events of its one append.
    appenders: &'static [(Version, u8)],
    /// Version, purpose, and number of batches.
    publishers: &'static [(Version, Purpose, u8)],
    /// The version that each is to activate. `Old` is a way back: it begins once the old version has retired.
    activators: &'static [Version],
    has_reader: bool,
}

/// Appends against one activation, and a reader of the log.
pub(crate) static APPENDING: Scene = Scene {
    name: "appending",
    delivery: [Background, Background],
    tables: Tables::Own,
    appenders: &[(Old, 2), (Old, 1), (New, 1)],
    publishers: &[],
    activators: &[New],
    has_reader: true,
};

/// Two activators that race for the same version, fed inline.
pub(crate) static RACING: Scene = Scene {
    name: "racing",
    delivery: [Inline, Inline],
    appenders: &[(Old, 1), (Old, 1), (New, 1)],
    activators: &[New, New],
    has_reader: false,
    ..APPENDING
};

/// The same, small enough to be explored again and again.
pub(crate) static RACING_SMALL: Scene =
    Scene { name: "racing, small", appenders: &[(Old, 1), (New, 1)], ..RACING };

/// The same in the background.
pub(crate) static RACING_BEHIND: Scene =
    Scene { name: "racing behind", delivery: [Background, Background], ..RACING_SMALL };

/// One publisher of each configuration, and events that commit late.
pub(crate) static PUBLISHING: Scene = Scene {
    name: "publishing",
    appenders: &[(Old, 1), (Old, 1), (New, 1)],
    publishers: &[(Old, Purpose::Publish, 2), (New, Purpose::Publish, 1)],
    has_reader: false,
    ..APPENDING
};

/// Two publishers that compete for the same checkpoint.
pub(crate) static COMPETING: Scene = Scene {
    name: "competing",
    appenders: &[(Old, 1), (New, 1)],
    publishers: &[(Old, Purpose::Publish, 2), (Old, Purpose::Publish, 1), (New, Purpose::Publish, 1)],
    ..PUBLISHING
};

/// A replayer that goes on while its version is activated.
pub(crate) static REPLAYING: Scene =
    Scene { name: "replaying", publishers: &[(New, Purpose::Replay, 2)], activators: &[New], ..RACING };

/// There and back again, and from one delivery to the other.
pub(crate) static GOING_BACK: Scene =
    Scene { name: "going back", delivery: [Inline, Background], activators: &[New, Old], ..RACING };

/// A minor version takes over the tables of an inline one.
pub(crate) static MENDING: Scene =
    Scene { name: "mending", tables: Tables::Shared, activators: &[New], ..RACING };

/// The same in the background: both versions move one checkpoint.
pub(crate) static MENDING_BEHIND: Scene = Scene {
    name: "mending behind",
    tables: Tables::Shared,
    publishers: &[(Old, Purpose::Publish, 1), (New, Purpose::Publish, 1)],
    ..PUBLISHING
};

/// A minor version takes over the tables of one that is fed in the background, and is fed inline itself.
pub(crate) static TAKING_OVER: Scene = Scene {
    name: "taking over",
    delivery: [Background, Inline],
    tables: Tables::Shared,
    publishers: &[(Old, Purpose::Publish, 1)],
    ..RACING_SMALL
};

/// A replayer beside two activators: three who feed the same tables.
pub(crate) static RACING_REPLAYING: Scene =
    Scene { name: "racing beside a replayer", publishers: &[(New, Purpose::Replay, 1)], ..RACING_SMALL };

/// All of them, the largest first.
pub(crate) static SCENES: [&Scene; 12] = [
    &RACING,
    &APPENDING,
    &RACING_SMALL,
    &RACING_BEHIND,
    &PUBLISHING,
    &COMPETING,
    &REPLAYING,
    &GOING_BACK,
    &MENDING,
    &MENDING_BEHIND,
    &TAKING_OVER,
    &RACING_REPLAYING,
];

impl Scene {
    pub(crate) fn opening(&self, rules: Rules) -> World {
        let mut world = World {
            database: Database {
                last_value: 0,
                generation: 1,
                states: States { of: [State::Active, State::Replaying], token: 0, deadline_passed: false },
                log: Log::EMPTY,
                rows: [Rows::EMPTY; 2],
                checkpoints: [0; 2],
                claimed: [false; 2],
                keys_locked: [false; 2],
            },
            appenders: [Appender::GONE; 4],
            publishers: [Publisher::GONE; 3],
            activators: [Activator::GONE; 2],
            expirer: Expirer::IDLE,
            reader: if self.has_reader { Reader::new(rules) } else { Reader::ABSENT },
            fed_in_place: false,
            breach: None,
        };
        for (appender, &(configuration, events)) in world.appenders.iter_mut().zip(self.appenders) {
            *appender = Appender::new(configuration, events, rules);
        }
        for (publisher, &(version, purpose, batches)) in world.publishers.iter_mut().zip(self.publishers) {
            *publisher = Publisher::new(version, purpose, batches, rules);
        }
        for ((number, activator), &target) in (0..).zip(&mut world.activators).zip(self.activators) {
            *activator = Activator::new(target, number, rules);
        }
        world.appenders.sort_unstable();
        world.publishers.sort_unstable();
        world
    }

    /// The number of the tables, and with them of the checkpoint, that a version writes.
    pub(crate) fn tables_of(&self, version: Version) -> usize {
        match self.tables {
            Tables::Own => version as usize,
            Tables::Shared => 0,
        }
    }

    /// Are two activators that are in the same situation interchangeable?
    pub(crate) fn activators_are_alike(&self) -> bool {
        matches!(self.activators, [one, other] if one == other)
    }

    /// How the tail comes into the tables of a version that is activated.
    pub(crate) fn feeding(&self, target: Version) -> Feeding {
        let delivery = (self.delivery[target.other() as usize], self.delivery[target as usize]);
        match (self.tables, delivery) {
            (Tables::Own, _) => Feeding::Own,
            (Tables::Shared, (Background, Inline)) => Feeding::InPlace,
            (Tables::Shared, _) => Feeding::None,
        }
    }

    /// The log when every append has committed and none has rolled back.
    pub(crate) fn whole_log(&self) -> Log {
        let events = self.appenders.iter().map(|&(_, events)| events).sum();
        let mut log = Log::EMPTY;
        for position in 1..=events {
            log.insert(position);
        }
        log
    }

    /// Did the last activation succeed?
    pub(crate) fn went_all_the_way(&self, world: &World) -> bool {
        self.activators.last().is_some_and(|&target| world.database.states.is(target, State::Active))
    }
}
