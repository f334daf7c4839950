//! Why a replay stops.

use std::time::Duration;

use crate::in_flight::Blocker;
use crate::projector::configuration::NotRegistered;
use crate::projector::{ProjectError, chain};
use crate::registration::RegisterError;
use crate::store::StoreError;
use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// Why a replay stopped. What was replayed before stays; the same call goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The version cannot be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The configuration holds no such projector.
    #[error(transparent)]
    NotOurs(#[from] NotRegistered),
    /// The projector cannot project an event.
    #[error(
        "{projector} {version} cannot project the event at position {position} ({event_type}): mend it and replay again; everything before it is kept"
    )]
    Projector {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The position of the event.
        position: Position,
        /// Its type.
        event_type: String,
        /// Why.
        #[source]
        source: ProjectError,
    },
    /// It stalled at an event before.
    #[error("{projector} {version} is stalled ({error}): mend it and run `retry`, or skip the event")]
    Stalled {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What stalled it.
        error: String,
    },
    /// It is not being replayed any more: somebody activated or retired it meanwhile.
    #[error(
        "{projector} {version} is {state} now and is not to be replayed: `plan` shows what is left to do"
    )]
    NotReplaying {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Where it stands.
        state: String,
    },
    /// It did not come close enough to the end of the log in time.
    #[error(
        "{projector} {version} is still {lag_events} events behind after {after:?}: give it more time, or replay it beforehand"
    )]
    TooSlow {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// How far it is behind, at most.
        lag_events: i64,
        /// How long it tried.
        after: Duration,
    },
    /// The server could not, whatever was asked of it: it has no room, goes down, or is gone.
    #[error(
        "the server could not go on with {projector} {version}: nothing is wrong with the projector; what was replayed is kept: run `replay` again once the server can"
    )]
    Outage {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What the server says.
        #[source]
        source: ProjectError,
    },
    /// The rows cannot be written or read back.
    #[error("the rows of {projector} {version} cannot be written: mend it and replay again")]
    Rows {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Why.
        #[source]
        source: ProjectError,
    },
    /// Somebody has started over since: what this process does is of an earlier attempt.
    #[error(
        "the replay of {projector} {version} was started over by somebody else: run `replay` again to join it"
    )]
    StartedOver {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// Its rows are not to be thrown away.
    #[error("the replay of {projector} {version} was not started over: {why}")]
    NotStartedOver {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Why not.
        why: String,
    },
    /// Somebody uses its tables, so they cannot be emptied.
    #[error(
        "the replay of {projector} {version} was not started over: its tables were in use for {after:?}{}; try again later",
        blocked_by(.blockers)
    )]
    InUse {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Who, as far as that can be seen.
        blockers: Vec<Blocker>,
        /// How long it waited.
        after: Duration,
    },
    /// Shards of a parallel replay have to go on first, and that is nothing for a pooler.
    #[error(
        "the bulk of {projector} {version} is half replayed, which only goes on over a direct connection and not through a pooler: run `replay` with the server's own address"
    )]
    NeedsDirectConnection {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// Nothing was replayed yet, and there are rows all the same.
    #[error(
        "{table} holds rows that no replay of {projector} {version} has written: start over with `replay {projector} --restart`, or raise its version"
    )]
    NotEmpty {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The table.
        table: String,
    },
    /// Its tables are not as its DDL made them.
    #[error(
        "the tables of {projector} {version} were altered: {difference}; put that back, or raise its version"
    )]
    Altered {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What is different.
        difference: String,
    },
    /// Another process replays the same rows, and was faster.
    #[error("another process has moved checkpoint {shard} of {projector} {version} meanwhile: replay again")]
    Overtaken {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The shard.
        shard: i32,
    },
    /// Its shards were begun by a build that splits the events otherwise, so nobody knows which of them this one has to project.
    #[error(
        "the replay of {projector} {version} was begun in {shards} shards by a build that splits its events otherwise: go on with that build, or start over with `replay {projector} --restart`"
    )]
    OtherSplit {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// How many shards there are.
        shards: usize,
    },
    /// Somebody ended it.
    #[error(
        "the replay of {projector} {version} was aborted by {by}; what was replayed is kept: `replay` goes on from there"
    )]
    Aborted {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Who ended it.
        by: String,
    },
    /// Several projectors could not be followed any more, each for a reason of its own.
    #[error("several replays ended: {}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<ReplayError>),
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

impl ReplayError {
    /// Rows cannot be written or read back.
    pub(super) fn rows((projector, version): (ProjectorName, semver::Version), source: ProjectError) -> Self {
        if source.is_outage() {
            Self::Outage { projector, version, source }
        } else {
            Self::Rows { projector, version, source }
        }
    }
}

fn blocked_by(blockers: &[Blocker]) -> String {
    let blockers: Vec<String> = blockers.iter().map(ToString::to_string).collect();
    if blockers.is_empty() { String::new() } else { format!(" by {}", blockers.join("; ")) }
}
