//! What the processes and the checker must agree on: the events, what is written down about them, and chance.

use serde::{Deserialize, Serialize};

/// What happens in the shop. Many streams feed the rows of one customer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ShopEvent {
    Placed {
        customer: i64,
        cents: i64,
    },
    ItemAdded {
        customer: i64,
        cents: i64,
    },
    /// Touches the rows of two customers.
    Moved {
        from: i64,
        to: i64,
    },
    Cancelled {
        customer: i64,
    },
    /// Deletes the customer's rows, until something creates them again.
    Closed {
        customer: i64,
    },
}

/// Attached to every event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) release: u64,
    pub(crate) writer: String,
    pub(crate) number: u64,
}

/// What a process writes down, in a file of its own, one line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Line {
    /// Before an append.
    Intends { number: u64, transaction: u64, stream: String, events: usize },
    /// After its commit.
    Acknowledged { number: u64, positions: Vec<i64>, revision: i64, at_ms: u128 },
    /// It was refused, or rolled back.
    NotAppended { number: u64, why: String },
    /// The reader of the log came by these positions.
    Read { positions: Vec<i64> },
}

/// How a process is to behave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    /// An instance of the application: it publishes, and writes with so many tasks.
    Instance { writers: u64, log: String },
    /// Activates the configuration of its release, lingering at two points of the pause.
    Operator {
        name: String,
        /// Whether it takes back what was active before, and nothing else.
        back: bool,
        keep_following: bool,
        pause_limit_ms: u64,
        linger_paused_ms: u64,
        linger_drained_ms: u64,
    },
    /// Replays what of its release is not active.
    Replayer { restart: bool, events_per_sec: Option<u32> },
    /// Drops the tables of what was replayed of its release and is not active.
    Discarder,
    /// Drops the tables of retired versions, but for so many of each projector.
    Pruner { keep: usize },
    /// Aborts every activation, so many times.
    Aborter { times: u32 },
}

/// The one argument of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) database: String,
    pub(crate) release: u64,
    pub(crate) seed: u64,
    pub(crate) role: Role,
}

/// Releases differ in every projector that is fed inline, and in some others.
pub(crate) const RELEASES: u64 = 10;

/// The projectors of a release: name, major, minor.
pub(crate) fn projectors(release: u64) -> Vec<(&'static str, u64, u64)> {
    let mut projectors = vec![
        // Inline folds, one row per order and one per customer.
        ("orders", release, 0),
        // A background fold whose tables change with every second release.
        ("customers", release / 2 + 1, 0),
        // A background SQL projector that is taken over in place.
        ("totals", 1, release),
    ];
    if release.is_multiple_of(2) {
        // Comes and goes.
        projectors.push(("trails", 1, 0));
    }
    if release.is_multiple_of(3) {
        // Inline SQL: comes and goes too.
        projectors.push(("ledger", 1, 0));
    }
    projectors
}

/// Chance, from a seed: splitmix64.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// In so many of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
