//! What an instance may do, given its configuration and the states of all projectors: the table *Decision* of
//! `ARCHITECTURE.md`, as code.

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;

use super::names::{ProjectorName, SchemaName};
use super::state::ProjectorState;
use super::version::may_share_rows;

/// The projectors of one build of the application, each with its version.
pub type Versions = BTreeMap<ProjectorName, Version>;

/// One row of `projector_states`, as far as a decision needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionState {
    /// The projector.
    pub projector: ProjectorName,
    /// The version.
    pub version: Version,
    /// Where that version stands.
    pub state: ProjectorState,
    /// Whether an activation is switching this row right now, in or out.
    pub in_activation: bool,
    /// Whether instances that register this version keep its tables current though it does not count any more.
    pub followed: bool,
}

/// Why an instance must not append or publish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A newer configuration took over: the instance has retired and should be stopped.
    #[error(
        "{projector} {active} is active and newer than our {ours}: this instance has retired; send its traffic to the new release and stop it"
    )]
    NewerProjectorIsActive {
        /// The projector.
        projector: ProjectorName,
        /// The version that this instance registered.
        ours: Version,
        /// The version that counts.
        active: Version,
    },
    /// The instance is ahead of the active configuration: it waits to be activated.
    #[error(
        "{projector} {active} is active and older than our {ours}: this instance waits for activate-configuration"
    )]
    OlderProjectorIsActive {
        /// The projector.
        projector: ProjectorName,
        /// The version that this instance registered.
        ours: Version,
        /// The version that counts.
        active: Version,
    },
    /// The active configuration holds a projector that this instance does not have.
    #[error(
        "{projector} {version} is {state} and this instance does not know it: start the build that has it, or, to remove it for good, run activate-configuration of one without it"
    )]
    UnknownProjectorIsActive {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: Version,
        /// Active, or about to be.
        state: ProjectorState,
    },
    /// An activation is under way; trying again is worth it.
    #[error("{projector} is being switched to another version: try again in a moment")]
    ProjectorIsActivating {
        /// The projector.
        projector: ProjectorName,
        /// The version that is being switched, in or out.
        version: Version,
    },
    /// No configuration was ever activated, and the instance was told not to assume that its own is the active one.
    #[error(
        "no configuration is active and this instance may not assume its own: run activate-configuration"
    )]
    NoConfigurationIsActive,
    /// The first instance ever could not create the tables of a projector.
    #[error("{projector} {version} cannot be made active, as the first version ever: {reason}")]
    CannotBeRegistered {
        /// The projector.
        projector: ProjectorName,
        /// The version that this instance registered.
        version: Version,
        /// What went wrong.
        reason: String,
    },
    /// The database was migrated by a release that this one cannot work beside.
    #[error(
        "schema {schema} is at version {found} and needs a release that knows version {needs}; this one knows {ours}: send its traffic to the new release and stop it"
    )]
    SchemaIsNewer {
        /// The schema.
        schema: SchemaName,
        /// Its version.
        found: i32,
        /// What a release must know.
        needs: i32,
        /// What this one knows.
        ours: i32,
    },
    /// An inline projector has no history, the log has: assuming it active would leave its rows silently incomplete.
    #[error(
        "{projector} {version} is inline and was never activated, and the log already holds events: run activate-configuration"
    )]
    HistoryIsMissing {
        /// The projector.
        projector: ProjectorName,
        /// The version that this instance registered.
        version: Version,
    },
}

impl Refused {
    /// Whether the same instance may succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::ProjectorIsActivating { .. })
    }

    /// The refusal's name, as metrics, logs and HTTP bodies print it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NewerProjectorIsActive { .. } => "NewerProjectorIsActive",
            Self::OlderProjectorIsActive { .. } => "OlderProjectorIsActive",
            Self::UnknownProjectorIsActive { .. } => "UnknownProjectorIsActive",
            Self::ProjectorIsActivating { .. } => "ProjectorIsActivating",
            Self::NoConfigurationIsActive => "NoConfigurationIsActive",
            Self::HistoryIsMissing { .. } => "HistoryIsMissing",
            Self::CannotBeRegistered { .. } => "CannotBeRegistered",
            Self::SchemaIsNewer { .. } => "SchemaIsNewer",
        }
    }
}

/// A projector of ours that is not fed, because no version of it is active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFed {
    /// The projector.
    pub projector: ProjectorName,
    /// The version that this instance registered.
    pub version: Version,
    /// Where that version stands; none where it was never replayed.
    pub state: Option<ProjectorState>,
}

/// What the states say to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may append and publish.
    Admitted {
        /// The projectors that it feeds.
        fed: BTreeSet<ProjectorName>,
        /// The projectors that it does not feed: while there is one, the instance is not ready.
        not_fed: Vec<NotFed>,
    },
    /// There are no states at all: nothing was ever activated.
    Empty,
    /// It may not.
    Refused(Refused),
}

/// Decides. The rules stand in the order in which they win.
///
/// ```
/// use changeover::{ProjectorState, Refused, Verdict, VersionState, decide};
/// let ours = [("orders".parse().unwrap(), "1.0.0".parse().unwrap())].into();
/// let newer = VersionState {
///     projector: "orders".parse().unwrap(),
///     version: "2.0.0".parse().unwrap(),
///     state: ProjectorState::Active,
///     in_activation: false,
///     followed: false,
/// };
/// assert!(matches!(
///     decide(&ours, &[newer]),
///     Verdict::Refused(Refused::NewerProjectorIsActive { .. })
/// ));
/// ```
pub fn decide(ours: &Versions, states: &[VersionState]) -> Verdict {
    if states.is_empty() {
        return Verdict::Empty;
    }
    let unknown = |state| unknown(ours, states, state);
    // A release that also adds a projector makes its predecessors retire like any other release; and while it is being
    // switched to, they wait for the outcome like for any other.
    unknown(ProjectorState::Active)
        .map(|unknown| newer(ours, states).unwrap_or(unknown))
        .or_else(|| activating(ours, states))
        .or_else(|| unknown(ProjectorState::Activating))
        .or_else(|| newer(ours, states))
        .or_else(|| older(ours, states))
        .map_or_else(|| admitted(ours, states), Verdict::Refused)
}

fn unknown(ours: &Versions, states: &[VersionState], state: ProjectorState) -> Option<Refused> {
    states.iter().find(|row| row.state == state && !ours.contains_key(&row.projector)).map(|row| {
        Refused::UnknownProjectorIsActive {
            projector: row.projector.clone(),
            version: row.version.clone(),
            state: row.state,
        }
    })
}

fn activating(ours: &Versions, states: &[VersionState]) -> Option<Refused> {
    states
        .iter()
        .find(|row| {
            (row.in_activation || row.state == ProjectorState::Activating)
                && ours.contains_key(&row.projector)
        })
        .map(|row| Refused::ProjectorIsActivating {
            projector: row.projector.clone(),
            version: row.version.clone(),
        })
}

fn newer(ours: &Versions, states: &[VersionState]) -> Option<Refused> {
    replaced(ours, states).find(|(_, ours, active)| active > ours).map(|(projector, ours, active)| {
        Refused::NewerProjectorIsActive {
            projector: projector.clone(),
            ours: ours.clone(),
            active: active.clone(),
        }
    })
}

fn older(ours: &Versions, states: &[VersionState]) -> Option<Refused> {
    replaced(ours, states).next().map(|(projector, ours, active)| Refused::OlderProjectorIsActive {
        projector: projector.clone(),
        ours: ours.clone(),
        active: active.clone(),
    })
}

/// Our projectors of which another major or minor version is active: ours, then the active one.
fn replaced<'a>(
    ours: &'a Versions,
    states: &'a [VersionState],
) -> impl Iterator<Item = (&'a ProjectorName, &'a Version, &'a Version)> {
    states.iter().filter(|row| row.state == ProjectorState::Active).filter_map(|row| {
        let (projector, ours) = ours.get_key_value(&row.projector)?;
        (!may_share_rows(ours, &row.version)).then_some((projector, ours, &row.version))
    })
}

fn admitted(ours: &Versions, states: &[VersionState]) -> Verdict {
    let active: BTreeSet<&ProjectorName> =
        states.iter().filter(|row| row.state == ProjectorState::Active).map(|row| &row.projector).collect();
    let fed = ours.keys().filter(|name| active.contains(name)).cloned().collect();
    let not_fed = ours
        .iter()
        .filter(|(name, _)| !active.contains(name))
        .map(|(projector, version)| NotFed {
            projector: projector.clone(),
            version: version.clone(),
            state: states
                .iter()
                .find(|row| row.projector == *projector && row.version == *version)
                .map(|row| row.state),
        })
        .collect();
    Verdict::Admitted { fed, not_fed }
}

/// The projectors whose tables an instance keeps current though they do not count any more, so that going back to them
/// takes no replay. Tables that the active version shares are current anyway, and not this instance's to feed.
pub(crate) fn followed(ours: &Versions, states: &[VersionState]) -> BTreeSet<ProjectorName> {
    let follows = |row: &&VersionState| {
        let version = ours.get(&row.projector);
        row.followed
            && matches!(row.state, ProjectorState::Retired | ProjectorState::Replaying)
            && version.is_some_and(|version| may_share_rows(version, &row.version))
    };
    let live = |followed: &VersionState| {
        states.iter().any(|row| {
            row.projector == followed.projector
                && row.version.major == followed.version.major
                && matches!(row.state, ProjectorState::Active | ProjectorState::Activating)
        })
    };
    states.iter().filter(follows).filter(|row| !live(row)).map(|row| row.projector.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(list: &[&str]) -> Versions {
        list.iter()
            .map(|item| {
                let (name, version) = item.split_once(' ').unwrap();
                (name.parse().unwrap(), version.parse().unwrap())
            })
            .collect()
    }

    fn states(list: &[&str]) -> Vec<VersionState> {
        list.iter()
            .map(|item| {
                let words: Vec<&str> = item.split(' ').collect();
                VersionState {
                    projector: words[0].parse().unwrap(),
                    version: words[1].parse().unwrap(),
                    state: words[2].parse().unwrap(),
                    in_activation: words.contains(&"switching"),
                    followed: words.contains(&"followed"),
                }
            })
            .collect()
    }

    /// The verdict in a word or two: the refusal's name, `empty`, or what is fed and what is not.
    fn verdict(ours_list: &[&str], states_list: &[&str]) -> String {
        match decide(&ours(ours_list), &states(states_list)) {
            Verdict::Empty => "empty".to_owned(),
            Verdict::Refused(refused) => refused.name().to_owned(),
            Verdict::Admitted { fed, not_fed } => {
                let fed: Vec<&str> = fed.iter().map(ProjectorName::as_str).collect();
                let not_fed: Vec<&str> = not_fed.iter().map(|n| n.projector.as_str()).collect();
                format!("feeds {} not {}", fed.join(","), not_fed.join(","))
            }
        }
    }

    #[test]
    fn every_row_of_the_table() {
        let check = |ours: &[&str], states: &[&str], expected: &str| {
            assert_eq!(verdict(ours, states), expected, "{ours:?} {states:?}");
        };
        let one = &["a 1.2.3"][..];
        check(one, &[], "empty");
        check(one, &["a 1.2.3 active"], "feeds a not ");
        check(one, &["a 1.2.9 active"], "feeds a not ");
        check(one, &["a 1.2.0 active"], "feeds a not ");
        check(one, &["a 1.3.0 active"], "NewerProjectorIsActive");
        check(one, &["a 2.0.0 active"], "NewerProjectorIsActive");
        check(one, &["a 1.1.9 active"], "OlderProjectorIsActive");
        check(one, &["a 0.9.0 active"], "OlderProjectorIsActive");
        check(one, &["a 1.2.3 replaying"], "feeds  not a");
        check(one, &["a 1.2.3 retired"], "feeds  not a");
        check(one, &["b 1.0.0 replaying"], "feeds  not a");
        check(one, &["a 1.2.3 active", "a 2.0.0 replaying"], "feeds a not ");
        check(one, &["a 1.2.3 active", "a 2.0.0 activating"], "ProjectorIsActivating");
        check(one, &["a 1.2.3 active switching"], "ProjectorIsActivating");
        check(one, &["a 1.2.3 active", "b 1.0.0 active"], "UnknownProjectorIsActive");
        check(one, &["a 1.2.3 active", "b 1.0.0 activating"], "UnknownProjectorIsActive");
        check(one, &["a 1.2.3 active", "b 1.0.0 replaying"], "feeds a not ");
        check(one, &["a 1.2.3 active", "b 1.0.0 retired"], "feeds a not ");
        check(&[], &["b 1.0.0 retired"], "feeds  not ");
    }

    #[test]
    fn what_is_followed_has_retired_and_shares_nothing_with_what_is_active() {
        let check = |ours_list: &[&str], states_list: &[&str], expected: &[&str]| {
            let found = followed(&ours(ours_list), &states(states_list));
            let found: Vec<&str> = found.iter().map(ProjectorName::as_str).collect();
            assert_eq!(found, expected, "{ours_list:?} {states_list:?}");
        };
        let one = &["a 1.2.3", "b 1.0.0"][..];
        check(one, &["a 1.2.3 retired followed", "a 2.0.0 active", "b 1.0.0 active"], &["a"]);
        check(one, &["a 1.2.3 retired", "a 2.0.0 active"], &[]);
        // A patch writes the same rows, a minor or a major version does not.
        check(one, &["a 1.2.4 retired followed", "a 2.0.0 active"], &["a"]);
        check(one, &["a 1.3.0 retired followed", "a 2.0.0 active"], &[]);
        check(one, &["a 2.0.0 retired followed", "a 1.2.3 active"], &[]);
        // On its way back it is followed until the pause; then whoever activates it feeds it, and afterwards everybody.
        check(one, &["a 1.2.3 replaying followed", "a 2.0.0 active"], &["a"]);
        check(one, &["a 1.2.3 activating followed", "a 2.0.0 active switching"], &[]);
        check(one, &["a 1.2.3 active followed"], &[]);
        // The tables are those of the active version, or about to be.
        check(one, &["a 1.2.3 retired followed", "a 1.3.0 active"], &[]);
        check(one, &["a 1.2.3 retired followed", "a 1.3.0 activating", "a 2.0.0 active"], &[]);
        // Removed projectors too.
        check(one, &["a 1.2.3 active", "b 1.0.0 retired followed"], &["b"]);
        check(&["c 1.0.0"], &["a 1.2.3 retired followed", "a 2.0.0 active"], &[]);
    }

    #[test]
    fn the_rules_win_in_order() {
        let check = |states: &[&str], expected: &str| {
            assert_eq!(verdict(&["a 1.0.0", "b 1.0.0"], states), expected, "{states:?}");
        };
        check(&["a 2.0.0 active", "b 0.1.0 active"], "NewerProjectorIsActive");
        check(&["b 2.0.0 active", "a 0.1.0 active"], "NewerProjectorIsActive");
        check(&["a 2.0.0 active", "b 1.0.0 activating"], "ProjectorIsActivating");
        check(&["a 1.0.0 activating", "c 1.0.0 active"], "UnknownProjectorIsActive");
        // A release with a changed projector and a new one: during its switch, and after.
        check(&["a 1.0.0 active switching", "c 1.0.0 activating"], "ProjectorIsActivating");
        check(&["a 2.0.0 active", "c 1.0.0 active"], "NewerProjectorIsActive");
        check(&["a 0.9.0 active", "c 1.0.0 active"], "UnknownProjectorIsActive");
        check(&["a 2.0.0 active", "c 1.0.0 activating"], "UnknownProjectorIsActive");
    }

    #[test]
    fn a_brand_new_projector_does_not_stop_the_others() {
        assert_eq!(verdict(&["a 1.0.0", "b 1.0.0"], &["a 1.0.0 active"]), "feeds a not b");
    }

    #[test]
    fn replaying_the_version_that_is_active_elsewhere_is_no_refusal() {
        assert_eq!(verdict(&["a 1.0.0"], &["a 1.0.0 replaying", "a 0.9.0 retired"]), "feeds  not a");
    }
}
