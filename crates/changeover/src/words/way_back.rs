//! Whether a build may take the configuration back that was active before, worked out from the history alone.

use std::fmt;

use semver::Version;
use serde::Serialize;

use super::decision::Versions;
use super::names::ProjectorName;

/// The newest switch, as the history tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Switched {
    pub(crate) from: Versions,
    pub(crate) to: Versions,
    /// Whether it went back itself.
    pub(crate) back: bool,
}

/// A way back that is open to a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WayBack {
    /// Its configuration was active before the one that is.
    Open,
    /// It was gone already.
    Gone,
}

/// Why a build cannot take back what was active before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoWayBack {
    /// The history holds no switch to the configuration that is active: it is the first one, or came about in another way.
    #[error(
        "there is nothing to go back to: the history tells of no configuration that was active before {}",
        Named(active)
    )]
    NothingBefore {
        /// The configuration that is active.
        active: Versions,
    },
    /// This build is the one to go back from.
    #[error(
        "the configuration of this build is the active one, and before it there was {}: run `rollback` of the build that has that",
        Named(before)
    )]
    AlreadyActive {
        /// The configuration that was active before.
        before: Versions,
    },
    /// This build has another configuration than the one that was active before.
    #[error(
        "before the active configuration there was {}, which is not that of this build ({}): run `rollback` of the build that has it",
        Named(before),
        differing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    OtherConfiguration {
        /// The configuration that was active before.
        before: Versions,
        /// Where this build differs from it.
        differing: Vec<Differing>,
    },
}

/// A projector of which another version is needed than the one that a build has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Differing {
    /// The projector.
    pub projector: ProjectorName,
    /// The version that was active before; none where the projector was not there.
    pub needed: Option<Version>,
    /// The version that this build has.
    pub ours: Option<Version>,
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { projector, needed, ours } = self;
        match (needed, ours) {
            (Some(needed), Some(ours)) => write!(f, "{projector} {needed} is needed, this build has {ours}"),
            (Some(needed), None) => write!(f, "{projector} {needed} is needed, this build has none"),
            (None, ours) => {
                let ours = ours.as_ref().map(|ours| format!(" {ours}")).unwrap_or_default();
                write!(f, "this build has {projector}{ours}, which was not active")
            }
        }
    }
}

/// A configuration in words.
pub(crate) struct Named<'a>(pub(crate) &'a Versions);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a configuration without projectors");
        }
        for (at, (projector, version)) in self.0.iter().enumerate() {
            write!(f, "{}{projector} {version}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Works out whether a build may go back: exactly what was active before the active configuration is its own.
pub(crate) fn way_back(
    ours: &Versions,
    active: &Versions,
    newest: Option<&Switched>,
) -> Result<WayBack, NoWayBack> {
    // A history whose last switch led elsewhere does not tell how what is active came about.
    let Some(switched) = newest.filter(|switched| switched.to == *active && !switched.from.is_empty()) else {
        return Err(NoWayBack::NothingBefore { active: active.clone() });
    };
    let before = switched.from.clone();
    if ours == active {
        return if switched.back { Ok(WayBack::Gone) } else { Err(NoWayBack::AlreadyActive { before }) };
    }
    let differing: Vec<Differing> = before
        .keys()
        .chain(ours.keys().filter(|name| !before.contains_key(*name)))
        .filter(|name| before.get(*name) != ours.get(*name))
        .map(|name| Differing {
            projector: name.clone(),
            needed: before.get(name).cloned(),
            ours: ours.get(name).cloned(),
        })
        .collect();
    if differing.is_empty() {
        return Ok(WayBack::Open);
    }
    Err(NoWayBack::OtherConfiguration { before, differing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(text: &str) -> Versions {
        let pairs = text.split(", ").filter(|text| !text.is_empty());
        pairs
            .map(|pair| pair.split_once(' ').unwrap())
            .map(|(name, version)| (name.parse().unwrap(), version.parse().unwrap()))
            .collect()
    }

    fn check(ours: &str, active: &str, newest: Option<(&str, &str, bool)>, expected: Result<WayBack, &str>) {
        let newest = newest.map(|(from, to, back)| Switched { from: versions(from), to: versions(to), back });
        let found = way_back(&versions(ours), &versions(active), newest.as_ref());
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected),
            (Err(found), Err(expected)) => {
                assert!(found.to_string().contains(expected), "{found} does not say {expected:?}");
            }
            _ => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn exactly_what_was_active_before_may_go_back() {
        let upgrade = Some(("a 1.0.0, b 1.0.0", "a 2.0.0, b 1.0.0", false));
        check("a 1.0.0, b 1.0.0", "a 2.0.0, b 1.0.0", upgrade, Ok(WayBack::Open));
        let other = |expected| Err(expected);
        check(
            "a 3.0.0, b 1.0.0",
            "a 2.0.0, b 1.0.0",
            upgrade,
            other("a 1.0.0 is needed, this build has 3.0.0"),
        );
        check(
            "a 1.0.1, b 1.0.0",
            "a 2.0.0, b 1.0.0",
            upgrade,
            other("a 1.0.0 is needed, this build has 1.0.1"),
        );
        check("b 1.0.0", "a 2.0.0, b 1.0.0", upgrade, other("a 1.0.0 is needed, this build has none"));
        check(
            "a 1.0.0, b 1.0.0, c 1.0.0",
            "a 2.0.0, b 1.0.0",
            upgrade,
            other("this build has c 1.0.0, which was not active"),
        );
        check("a 2.0.0, b 1.0.0", "a 2.0.0, b 1.0.0", upgrade, other("there was a 1.0.0, b 1.0.0: run"));
    }

    #[test]
    fn going_back_twice_is_done_already_and_the_way_forward_is_a_way_back_too() {
        let back = Some(("a 2.0.0", "a 1.0.0", true));
        check("a 1.0.0", "a 1.0.0", back, Ok(WayBack::Gone));
        check("a 2.0.0", "a 1.0.0", back, Ok(WayBack::Open));
    }

    #[test]
    fn a_projector_that_was_removed_or_added_goes_along() {
        check("a 1.0.0, b 1.0.0", "a 1.0.0", Some(("a 1.0.0, b 1.0.0", "a 1.0.0", false)), Ok(WayBack::Open));
        check("a 1.0.0", "a 1.0.0, b 1.0.0", Some(("a 1.0.0", "a 1.0.0, b 1.0.0", false)), Ok(WayBack::Open));
    }

    #[test]
    fn where_the_history_does_not_tell_there_is_no_way_back() {
        check("a 1.0.0", "a 2.0.0", None, Err("nothing to go back to"));
        check("a 1.0.0", "a 1.0.0", Some(("", "a 1.0.0", false)), Err("active before a 1.0.0"));
        check("a 1.0.0", "a 3.0.0", Some(("a 1.0.0", "a 2.0.0", false)), Err("active before a 3.0.0"));
        check("a 1.0.0", "", None, Err("before a configuration without projectors"));
    }
}
