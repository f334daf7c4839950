//! The protocol with one rule broken at a time, and with one rule left out that is not needed.
//!
//! A model that cannot fail proves nothing. So each mutant must be caught, by the promise that its rule is for.

use crate::properties::{
    P1, P2, P2_SWITCH, P3, P4, P4_END, P4_FREEZE, P4_LIMIT, P4_PAUSE, P4_SERVES, P4_WHOLE,
};
use crate::rules::Change;
use crate::scenes::{
    APPENDING, COMPETING, GOING_BACK, MENDING, RACING_BEHIND, RACING_REPLAYING, RACING_SMALL, REPLAYING,
    Scene, TAKING_OVER,
};

/// A rule broken.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    pub(crate) change: Change,
    /// Where it hurts.
    pub(crate) scene: &'static Scene,
    /// The promise that it breaks.
    pub(crate) caught_by: &'static str,
}

const fn mutant(
    name: &'static str,
    change: Change,
    scene: &'static Scene,
    caught_by: &'static str,
) -> Mutant {
    Mutant { name, change, scene, caught_by }
}

/// What appenders, publishers and readers could do wrong, then what activators could.
#[rustfmt::skip]
pub(crate) static MUTANTS: [Mutant; 37] = [
    mutant("check before lease", Change::CheckBeforeLease, &APPENDING, P1),
    mutant("check before presence", Change::CheckBeforePresence, &COMPETING, P1),
    mutant("positions before lease", Change::PositionsBeforeLease, &APPENDING, P3),
    mutant("positions before keys", Change::PositionsBeforeKeys, &REPLAYING, P2),
    mutant("keys not locked", Change::KeysNotLocked, &REPLAYING, P2),
    mutant("lease dropped before the commit", Change::LeaseDroppedBeforeCommit, &APPENDING, P3),
    mutant("lease kept while waiting for an activation", Change::LeaseKeptWhileWaiting, &APPENDING, P4_PAUSE),
    mutant("states read before the generation", Change::StatesReadBeforeGeneration, &APPENDING, P1),
    mutant("waiting for the generation to move, without a timer", Change::WokenByTheGenerationOnly, &APPENDING, P4_SERVES),
    mutant("no lease in the horizon", Change::NoLeaseInTheHorizon, &APPENDING, P3),
    mutant("snapshot taken before the horizon look", Change::SnapshotBeforeHorizon, &APPENDING, P3),
    mutant("checkpoint not claimed", Change::CheckpointNotClaimed, &COMPETING, P2),
    mutant("checkpoint moved in another transaction than the rows", Change::CheckpointInAnotherTransaction, &COMPETING, P2),
    mutant("replayer not admitted", Change::ReplayerNotAdmitted, &REPLAYING, P2),
    mutant("publisher not admitted", Change::PublisherNotAdmitted, &COMPETING, P1),
    mutant("publisher without presence", Change::PublisherNotPresent, &COMPETING, P1),
    mutant("batches without a limit", Change::BatchesWithoutLimit, &COMPETING, P4_LIMIT),
    mutant("generation set before the states commit", Change::GenerationSetBeforeMark, &APPENDING, P1),
    mutant("generation not set after the mark", Change::GenerationNotSet, &APPENDING, P1),
    mutant("generation used twice", Change::GenerationUsedTwice, &RACING_BEHIND, P1),
    mutant("leases looked at before the generation is set", Change::LookedBeforeGeneration, &APPENDING, P1),
    mutant("no waiting for leases", Change::LeasesNotWaitedFor, &APPENDING, P1),
    mutant("no waiting for presences", Change::PresencesNotWaitedFor, &COMPETING, P1),
    mutant("tail not fed", Change::TailNotFed, &APPENDING, P2_SWITCH),
    mutant("token not looked at before the tail is fed", Change::TailFedWithoutToken, &APPENDING, P2),
    mutant("token looked at before the horizon is read", Change::TokenCheckedBeforeTheHorizon, &APPENDING, P2),
    mutant("tail neither claimed nor its checkpoint moved conditionally", Change::TailFedTwiceOver, &RACING_REPLAYING, P2),
    mutant("tail fed in place before the switch", Change::TailFedInPlaceBeforeTheSwitch, &TAKING_OVER, P4_WHOLE),
    mutant("tail fed to the leases, but only once", Change::TailFedToTheLeasesOnce, &APPENDING, P2_SWITCH),
    mutant("tail of an inline version fed without the token, to the leases", Change::TailFedToTheLeases, &RACING_SMALL, P2),
    mutant("tail fed into tables that both versions share", Change::TailFedIntoSharedTables, &MENDING, P2),
    mutant("states locked while the tail is fed", Change::StatesLockedToFeed, &APPENDING, P4_FREEZE),
    mutant("inline version retired without the horizon as its checkpoint", Change::RetiredWithoutItsHorizon, &GOING_BACK, P2),
    mutant("no token", Change::NoToken, &RACING_BEHIND, P1),
    mutant("no deadline", Change::NoDeadline, &APPENDING, P4_END),
    mutant("switch not conditional on the activation not having ended", Change::SwitchUnconditional, &APPENDING, P1),
    mutant("switch in two transactions", Change::SwitchInTwoTransactions, &APPENDING, P4),
];

/// A rule left out, or replaced by another, that breaks no promise.
pub(crate) struct Variation {
    pub(crate) name: &'static str,
    pub(crate) change: Change,
    pub(crate) scenes: &'static [&'static Scene],
    pub(crate) why: &'static str,
}

/// These must hold: they say which part of the protocol is comfort, and which alternatives are open.
pub(crate) static VARIATIONS: [Variation; 9] = [
    Variation {
        name: "last generation not set",
        change: Change::LastGenerationNotSet,
        scenes: &[&APPENDING, &RACING_SMALL, &RACING_BEHIND, &COMPETING, &REPLAYING, &GOING_BACK, &MENDING],
        why: "nobody holds an admission that the states do not give, and those who wait look at the states again",
    },
    Variation {
        name: "switch after the deadline, unless somebody has expired it",
        change: Change::SwitchAfterTheDeadline,
        scenes: &[&APPENDING, &RACING_SMALL, &GOING_BACK, &MENDING],
        why: "the token is still there, so the pause went on; the deadline only bounds it",
    },
    Variation {
        name: "keys locked before the lease",
        change: Change::KeysBeforeLease,
        scenes: &[&REPLAYING, &GOING_BACK, &MENDING],
        why: "only the positions must come after the keys; an append that waits for keys then holds no horizon back",
    },
    Variation {
        name: "checkpoint not claimed, but moved only from where it was read",
        change: Change::CheckpointNotClaimedButMovedConditionally,
        scenes: &[&COMPETING, &REPLAYING],
        why: "whoever commits second rolls back; the claim only saves it the work",
    },
    Variation {
        name: "tail of a background version fed without the token, to the leases, until nothing is left of it",
        change: Change::TailFedToTheLeases,
        scenes: &[&APPENDING, &RACING_BEHIND, &COMPETING],
        why: "what lies below every lease is final, whoever reads it and when",
    },
    Variation {
        name: "tail not claimed",
        change: Change::TailNotClaimed,
        scenes: &[&RACING_REPLAYING, &GOING_BACK],
        why: "the checkpoint moves only from where it was read, so whoever commits second rolls back",
    },
    Variation {
        name: "checkpoint moved by the feeder from wherever it stands, but claimed",
        change: Change::TailFedUnconditionally,
        scenes: &[&RACING_REPLAYING, &TAKING_OVER],
        why: "nobody moves a checkpoint that somebody else has claimed",
    },
    Variation {
        name: "feeder without presence",
        change: Change::FeederNotPresent,
        scenes: &[&RACING_REPLAYING, &TAKING_OVER],
        why: "what it feeds is final, and whoever activates next waits for its claim anyway",
    },
    Variation {
        name: "feeder not admitted",
        change: Change::FeederNotAdmitted,
        scenes: &[&RACING_REPLAYING, &TAKING_OVER],
        why: "what it feeds is final, the token was looked at after the horizon was read; the checkpoint says what is left of it",
    },
];
