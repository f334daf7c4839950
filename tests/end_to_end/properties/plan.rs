//! What a case is made of.

use std::time::Duration;

use changeover::{Pace, ReplayOptions};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::described::{Effect, Keys, Rule, TABLES};
use crate::accounts::with;

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) tables: usize,
    pub(super) rules: [Rule; TABLES],
    pub(super) log: Log,
    /// How the version that is resumed gets on before it may run to the end.
    pub(super) legs: Vec<Leg>,
    pub(super) serial_legs: Vec<Leg>,
    /// After how many of the legs another one is started over.
    pub(super) over_after: usize,
    /// The processes that share a replay.
    pub(super) shared: Vec<Leg>,
    /// Those of a process that is killed once it is under way.
    pub(super) killed: Vec<Leg>,
    /// Of what chance has left to say.
    pub(super) seed: u64,
}

/// How the log comes about.
#[derive(Debug, Clone)]
pub(super) struct Log {
    /// Events that are there at the start.
    pub(super) history: u64,
    /// Appends of each writer, meanwhile.
    pub(super) appends: u64,
    pub(super) streams: u64,
    pub(super) subjects: u64,
    /// How many positions it takes from one event to the next, at most.
    pub(super) gaps: u64,
}

/// A replay that is dropped after it was polled so many times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leg {
    pub(super) polls: u32,
    parallel: bool,
    shards: u16,
    memory_bytes: usize,
    max_connections: usize,
    checkpoint_every_ms: u64,
}

/// How a process of its own is to go about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Paced {
    shards: u16,
    memory_bytes: usize,
    max_connections: usize,
    checkpoint_every_ms: u64,
}

impl Paced {
    pub(crate) fn options(&self) -> ReplayOptions {
        let Self { shards, memory_bytes, max_connections, checkpoint_every_ms } = *self;
        Leg { polls: 0, parallel: true, shards, memory_bytes, max_connections, checkpoint_every_ms }.options()
    }
}

impl Leg {
    pub(super) fn at_once() -> Self {
        let memory_bytes = Pace::default().memory_bytes;
        Self {
            polls: u32::MAX,
            parallel: true,
            shards: 2,
            memory_bytes,
            max_connections: 8,
            checkpoint_every_ms: 5_000,
        }
    }

    pub(super) fn serially() -> Self {
        Self { parallel: false, ..Self::at_once() }
    }

    pub(super) fn pace(&self) -> Paced {
        let Self { shards, memory_bytes, max_connections, checkpoint_every_ms, .. } = *self;
        Paced { shards, memory_bytes, max_connections, checkpoint_every_ms }
    }

    pub(super) fn options(&self) -> ReplayOptions {
        with(Pace {
            parallel_above_events: if self.parallel { 0 } else { i64::MAX },
            shards: Some(self.shards),
            memory_bytes: self.memory_bytes,
            max_connections: self.max_connections,
            checkpoint_every: Duration::from_millis(self.checkpoint_every_ms),
            ..Pace::default()
        })
    }
}

fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![
        Just(Keys::Subject),
        Just(Keys::Stream),
        Just(Keys::Both),
        (0_u8..6).prop_map(Keys::Several),
        Just(Keys::Sometimes),
        Just(Keys::One),
    ]
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        3 => Just(Effect::Put),
        2 => Just(Effect::Change),
        2 => Just(Effect::Delete),
        1 => Just(Effect::Flip),
        1 => Just(Effect::Leave),
    ]
}

/// Its first kind of event makes rows, so that there are some.
fn rule() -> impl Strategy<Value = Rule> {
    (keys(), [effect(), effect(), effect()], 0_u16..300).prop_map(|(keys, [second, third, fourth], text)| {
        Rule { keys, effects: [Effect::Put, second, third, fourth], text }
    })
}

fn log() -> impl Strategy<Value = Log> {
    (100_u64..4_000, 0_u64..40, 1_u64..60, 1_u64..600, 1_u64..4).prop_map(
        |(history, appends, streams, subjects, gaps)| Log { history, appends, streams, subjects, gaps },
    )
}

/// Memory that holds everything, or next to nothing.
fn memory_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(64 << 20), 1_000_usize..1_000_000, 1_000_usize..60_000]
}

fn leg(parallel: bool) -> impl Strategy<Value = Leg> {
    // A replay of all there is takes about a hundred.
    (20_u32..140, 1_u16..7, memory_bytes(), 1_usize..9, 0_u64..40).prop_map(
        move |(polls, shards, memory_bytes, max_connections, checkpoint_every_ms)| Leg {
            polls,
            parallel,
            shards,
            memory_bytes,
            max_connections,
            checkpoint_every_ms,
        },
    )
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    use proptest::collection::vec;
    let legs =
        (vec(leg(true), 0..8), vec(leg(false), 0..5), 0_usize..4, vec(leg(true), 1..4), vec(leg(true), 0..2));
    (1_usize..=TABLES, [rule(), rule(), rule()], log(), legs, any::<u64>()).prop_map(
        |(tables, rules, log, (legs, serial_legs, over_after, shared, killed), seed)| Case {
            tables,
            rules,
            log,
            legs,
            serial_legs,
            over_after,
            shared,
            killed,
            seed,
        },
    )
}
