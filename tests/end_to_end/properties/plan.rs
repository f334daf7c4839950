//! What a case is made of.

use std::time::Duration;

use changeover::{Pace, ProjectorName, ReplayOptions, Throttle};
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
    /// Processes that replay one after the other, and are killed.
    pub(super) killed: Vec<Kill>,
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

/// Which projectors are replayed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Who {
    Described,
    Told,
    Both,
}

impl Who {
    pub(crate) fn names(self) -> Vec<ProjectorName> {
        let names: &[&str] = match self {
            Self::Described => &["described"],
            Self::Told => &["told"],
            Self::Both => &["described", "told"],
        };
        names.iter().map(|name| name.parse().unwrap()).collect()
    }
}

/// A process that replays, and is killed so long after a signal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    leg: Leg,
    /// So slowly that something may be left to do.
    events_per_sec: u32,
    /// The signal: it begins, or it has read so many events.
    pub(super) after_events: u64,
    pub(super) delay_ms: u64,
}

/// A replay that is dropped after it was polled so many times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leg {
    pub(super) who: Who,
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
    pub(crate) who: Who,
    shards: u16,
    memory_bytes: usize,
    max_connections: usize,
    checkpoint_every_ms: u64,
    events_per_sec: u32,
}

impl Paced {
    pub(crate) fn options(&self) -> ReplayOptions {
        let Self { shards, memory_bytes, max_connections, checkpoint_every_ms, .. } = *self;
        with(Pace {
            parallel_above_events: 0,
            shards: Some(shards),
            memory_bytes,
            max_connections,
            checkpoint_every: Duration::from_millis(checkpoint_every_ms),
            throttle: Throttle { events_per_sec: Some(self.events_per_sec), ..Throttle::default() },
        })
    }
}

impl Kill {
    pub(super) fn pace(&self) -> Paced {
        let Leg { who, shards, memory_bytes, max_connections, checkpoint_every_ms, .. } = self.leg;
        let events_per_sec = self.events_per_sec;
        Paced { who, shards, memory_bytes, max_connections, checkpoint_every_ms, events_per_sec }
    }
}

impl Leg {
    pub(super) fn at_once() -> Self {
        let memory_bytes = Pace::default().memory_bytes;
        Self {
            who: Who::Both,
            polls: u32::MAX,
            parallel: true,
            shards: 2,
            memory_bytes,
            max_connections: 8,
            checkpoint_every_ms: 5_000,
        }
    }

    pub(super) fn of_both(self) -> Self {
        Self { who: Who::Both, ..self }
    }

    pub(super) fn serially() -> Self {
        Self { parallel: false, ..Self::at_once() }
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
    // A log without large gaps is read by one statement, one with them by many, and by several connections.
    let gaps = prop_oneof![1_u64..4, 30_u64..120];
    (100_u64..4_000, 0_u64..40, 1_u64..60, 1_u64..600, gaps).prop_map(
        |(history, appends, streams, subjects, gaps)| Log { history, appends, streams, subjects, gaps },
    )
}

/// Memory that holds everything, or next to nothing.
fn memory_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(64 << 20), 1_000_usize..1_000_000, 1_000_usize..60_000]
}

fn leg(parallel: bool) -> impl Strategy<Value = Leg> {
    // A replay of all there is takes about a hundred.
    let who = prop_oneof![1 => Just(Who::Described), 1 => Just(Who::Told), 2 => Just(Who::Both)];
    (who, 20_u32..140, 1_u16..7, memory_bytes(), 1_usize..14, 0_u64..40).prop_map(
        move |(who, polls, shards, memory_bytes, max_connections, checkpoint_every_ms)| Leg {
            who,
            polls,
            parallel,
            shards,
            memory_bytes,
            max_connections,
            checkpoint_every_ms,
        },
    )
}

fn kill() -> impl Strategy<Value = Kill> {
    (leg(true), 1_000_u32..20_000, prop_oneof![Just(0), 1_u64..3_000], 0_u64..120).prop_map(
        |(leg, events_per_sec, after_events, delay_ms)| Kill { leg, events_per_sec, after_events, delay_ms },
    )
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    use proptest::collection::vec;
    let legs =
        (vec(leg(true), 0..8), vec(leg(false), 0..5), 0_usize..4, vec(leg(true), 1..4), vec(kill(), 1..5));
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
