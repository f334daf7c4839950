//! What an activation would do, worked out from the states alone.

use semver::Version;
use serde::Serialize;

use super::fingerprint::Fingerprint;
use super::names::ProjectorName;
use super::position::Position;
use super::state::{Delivery, ProjectorState};
use super::version::may_share_rows;

/// A projector version of the configuration that is to become active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The projector.
    pub projector: ProjectorName,
    /// The version.
    pub version: Version,
    /// How that version is fed.
    pub delivery: Delivery,
    /// Of the whole registration.
    pub fingerprint: Fingerprint,
    /// Of its tables alone.
    pub tables_fingerprint: Fingerprint,
}

/// A projector version as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The projector.
    pub projector: ProjectorName,
    /// The version.
    pub version: Version,
    /// Where it stands.
    pub state: ProjectorState,
    /// Of the registration that made the row.
    pub fingerprint: String,
}

/// The checkpoint of a projector's major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownTables {
    /// The projector.
    pub projector: ProjectorName,
    /// The major version that owns the tables.
    pub major: u64,
    /// How far its rows have come.
    pub position: Position,
    /// Whether appends keep the rows current themselves.
    pub inline: bool,
    /// Of the tables as they were created.
    pub tables_fingerprint: String,
    /// The error that stalled it, if it is stalled.
    pub stalled: Option<String>,
}

/// What happens to one projector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Step {
    /// It is the active version already.
    Keep {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
    },
    /// Its tables are fed up to the horizon, then it is activated.
    Replay {
        /// The projector.
        projector: ProjectorName,
        /// The version that takes over.
        version: Version,
        /// The version that it replaces, if there is one.
        replaces: Option<Version>,
        /// Where its rows stand now.
        from: Position,
    },
    /// It takes over in place: the tables are those of the active version.
    Activate {
        /// The projector.
        projector: ProjectorName,
        /// The version that takes over.
        version: Version,
        /// The version that it replaces.
        replaces: Version,
    },
    /// It is active and not part of the configuration any more.
    Retire {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
    },
}

/// Why a configuration cannot be activated as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "obstacle", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Obstacle {
    /// The same version was registered with something else in it.
    #[error(
        "{projector} {version} was registered with another definition (tables, keys, event types or delivery): raise its version"
    )]
    OtherDefinition {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
    },
    /// The tables of this major version were created from another definition.
    #[error(
        "the tables of {projector} v{major} were created with other definitions than those of {version}: raise its major version"
    )]
    OtherTables {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
        /// The major version that owns the tables.
        major: u64,
    },
    /// It stopped at an event that it could not project.
    #[error("{projector} {version} is stalled ({error}): mend it and run retry, or skip the event")]
    Stalled {
        /// The projector.
        projector: ProjectorName,
        /// The version.
        version: Version,
        /// What stalled it.
        error: String,
    },
}

/// What an activation would do, and what stands in its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One step a projector, in order of name.
    pub steps: Vec<Step>,
    /// While there is one, nothing is activated.
    pub obstacles: Vec<Obstacle>,
}

impl Plan {
    /// Whether the configuration is the active one already.
    pub fn is_done(&self) -> bool {
        self.obstacles.is_empty() && self.steps.iter().all(|step| matches!(step, Step::Keep { .. }))
    }

    /// Whether old and new code may write side by side, so that nobody needs to pause.
    pub(crate) fn needs_no_pause(&self) -> bool {
        self.steps.iter().all(|step| match step {
            Step::Keep { .. } => true,
            Step::Activate { version, replaces, .. } => may_share_rows(version, replaces),
            Step::Replay { .. } | Step::Retire { .. } => false,
        })
    }
}

/// Works out what activating `targets` takes.
pub fn plan(targets: &[Target], known: &[Known], tables: &[KnownTables]) -> Plan {
    let active = |name: &ProjectorName| {
        known.iter().find(|row| row.projector == *name && row.state == ProjectorState::Active)
    };
    let mut steps: Vec<Step> = targets
        .iter()
        .map(|target| {
            let Target { projector, version, .. } = target.clone();
            let replaces = active(&projector).map(|row| row.version.clone());
            match replaces {
                Some(replaces) if replaces == version => Step::Keep { projector, version },
                Some(replaces) if replaces.major == version.major => {
                    Step::Activate { projector, version, replaces }
                }
                replaces => {
                    let from = tables_of(tables, target).map_or(Position::START, |tables| tables.position);
                    Step::Replay { projector, version, replaces, from }
                }
            }
        })
        .collect();
    steps.extend(
        known
            .iter()
            .filter(|row| row.state == ProjectorState::Active)
            .filter(|row| targets.iter().all(|target| target.projector != row.projector))
            .map(|row| Step::Retire { projector: row.projector.clone(), version: row.version.clone() }),
    );
    steps.sort_by(|a, b| a.projector().cmp(b.projector()));
    let defined = targets.iter().filter_map(|target| obstacle(target, known, tables));
    let stalled = targets.iter().filter_map(|target| stalled(target, &steps, tables));
    Plan { obstacles: defined.chain(stalled).collect(), steps }
}

impl Step {
    /// The projector that the step is about.
    pub fn projector(&self) -> &ProjectorName {
        match self {
            Self::Keep { projector, .. }
            | Self::Replay { projector, .. }
            | Self::Activate { projector, .. }
            | Self::Retire { projector, .. } => projector,
        }
    }
}

fn tables_of<'a>(tables: &'a [KnownTables], target: &Target) -> Option<&'a KnownTables> {
    tables.iter().find(|row| row.projector == target.projector && row.major == target.version.major)
}

/// What stands in the way of registering one projector version: another definition.
pub(crate) fn obstacle(target: &Target, known: &[Known], tables: &[KnownTables]) -> Option<Obstacle> {
    let Target { projector, version, .. } = target.clone();
    // Patches write side by side, so they must agree in everything that is in the fingerprint.
    let other = |row: &&Known| {
        row.projector == projector
            && may_share_rows(&row.version, &version)
            && row.fingerprint != target.fingerprint.as_str()
    };
    if known.iter().any(|row| other(&row)) {
        return Some(Obstacle::OtherDefinition { projector, version });
    }
    let own = tables_of(tables, target)?;
    if own.tables_fingerprint != target.tables_fingerprint.as_str() {
        return Some(Obstacle::OtherTables { projector, version, major: own.major });
    }
    None
}

/// A stall is in the way of tables that have to reach the horizon before the switch. Elsewhere it is none: taking over in
/// place may well be what mends it, and a projector that is kept is not touched.
fn stalled(target: &Target, steps: &[Step], tables: &[KnownTables]) -> Option<Obstacle> {
    let Target { projector, version, delivery, .. } = target.clone();
    let fed = steps.iter().any(|step| match step {
        Step::Replay { projector: own, .. } => *own == projector,
        Step::Activate { projector: own, .. } => *own == projector && delivery == Delivery::Inline,
        Step::Keep { .. } | Step::Retire { .. } => false,
    });
    let error = tables_of(tables, target).filter(|_| fed)?.stalled.clone()?;
    Some(Obstacle::Stalled { projector, version, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(projector: &str, version: &str) -> Target {
        Target {
            projector: projector.parse().unwrap(),
            version: version.parse().unwrap(),
            delivery: Delivery::Background,
            fingerprint: Fingerprint::of(["whole"]),
            tables_fingerprint: Fingerprint::of(["tables"]),
        }
    }

    fn known(projector: &str, version: &str, state: ProjectorState) -> Known {
        Known {
            projector: projector.parse().unwrap(),
            version: version.parse().unwrap(),
            state,
            fingerprint: Fingerprint::of(["whole"]).to_string(),
        }
    }

    fn tables(projector: &str, major: u64) -> KnownTables {
        KnownTables {
            projector: projector.parse().unwrap(),
            major,
            position: Position::new(7),
            inline: false,
            tables_fingerprint: Fingerprint::of(["tables"]).to_string(),
            stalled: None,
        }
    }

    fn words(plan: &Plan) -> Vec<String> {
        plan.steps
            .iter()
            .map(|step| {
                let word = serde_json::to_value(step).unwrap();
                format!(
                    "{} {} {}",
                    word["action"].as_str().unwrap(),
                    step.projector(),
                    word["version"].as_str().unwrap()
                )
            })
            .collect()
    }

    #[test]
    fn a_projector_is_kept_replayed_activated_or_retired() {
        use ProjectorState::{Active, Replaying, Retired};
        let plan = plan(
            &[
                target("same", "1.0.0"),
                target("minor", "1.1.0"),
                target("major", "2.0.0"),
                target("new", "1.0.0"),
            ],
            &[
                known("same", "1.0.0", Active),
                known("minor", "1.0.0", Active),
                known("major", "1.0.0", Active),
                known("major", "2.0.0", Replaying),
                known("gone", "3.0.0", Active),
                known("older", "3.0.0", Retired),
            ],
            &[tables("major", 2)],
        );
        assert_eq!(
            words(&plan),
            [
                "retire gone 3.0.0",
                "replay major 2.0.0",
                "activate minor 1.1.0",
                "replay new 1.0.0",
                "keep same 1.0.0"
            ]
        );
        assert!(plan.obstacles.is_empty());
        assert!(!plan.is_done());
        assert!(!plan.needs_no_pause());
    }

    #[test]
    fn patches_need_no_pause_and_the_active_configuration_needs_nothing() {
        let active = [known("a", "1.0.0", ProjectorState::Active)];
        let same = plan(&[target("a", "1.0.0")], &active, &[]);
        assert!(same.is_done());
        let patch = plan(&[target("a", "1.0.1")], &active, &[]);
        assert!(!patch.is_done() && patch.needs_no_pause());
        let minor = plan(&[target("a", "1.1.0")], &active, &[]);
        assert!(!minor.needs_no_pause());
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let mut other = known("a", "1.0.0", ProjectorState::Active);
        other.fingerprint = "other".to_owned();
        let found = plan(&[target("a", "1.0.0")], &[other], &[]).obstacles;
        assert!(matches!(found[..], [Obstacle::OtherDefinition { .. }]));

        let mut other = tables("a", 1);
        other.tables_fingerprint = "other".to_owned();
        let found = plan(&[target("a", "1.1.0")], &[], &[other]).obstacles;
        assert!(matches!(found[..], [Obstacle::OtherTables { major: 1, .. }]));

        let mut stalled = tables("a", 1);
        stalled.stalled = Some("boom".to_owned());
        let found = plan(&[target("a", "1.1.0")], &[], std::slice::from_ref(&stalled)).obstacles;
        assert!(matches!(found[..], [Obstacle::Stalled { .. }]));
        let active = [known("a", "1.0.0", ProjectorState::Active)];
        assert!(plan(&[target("a", "1.1.0")], &active, &[stalled]).obstacles.is_empty());
    }
}
