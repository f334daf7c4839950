//! What pruning would drop, worked out from what is known of retired tables.

use std::collections::BTreeMap;
use std::fmt;

use semver::Version;
use serde::Serialize;

use super::decision::Versions;
use super::names::ProjectorName;

/// The tables of a major version that has retired, with all its minor and patch versions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetiredTables {
    /// The projector.
    pub projector: ProjectorName,
    /// The major version that owns the tables.
    pub major: u64,
    /// Its versions that were ever registered.
    pub versions: Vec<Version>,
    /// The schema that holds the tables.
    pub schema: String,
    /// How long ago the last of its versions retired.
    pub retired_secs: f64,
    /// What tables and indexes take on disk.
    pub bytes: i64,
    /// The live instances that register one of its versions: they have retired, and may still read.
    pub instances: usize,
    /// What becomes of them.
    pub fate: Fate,
}

/// What pruning does with retired tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fate {
    /// They are dropped.
    Drop,
    /// They are among the newest of their projector, which are kept.
    Newest,
    /// Live instances keep them current.
    Followed {
        /// How many.
        instances: usize,
    },
    /// Something that is not the projector's stands on them, or among them.
    InTheWay(Vec<Foreign>),
}

/// Something that is not the projector's and that would go along with its tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Foreign {
    /// It stands elsewhere and depends on the tables: `view public.report`.
    Dependent(String),
    /// It stands in their schema and was not made by the projector: `table orders_v1.notes`.
    Stranger(String),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dependent(object) => write!(f, "{object} depends on them"),
            Self::Stranger(object) => write!(f, "{object} is among them and was not made by the projector"),
        }
    }
}

/// A configuration that was active once, and that needs tables which are dropped.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LostConfiguration {
    /// The configuration.
    pub configuration: Versions,
    /// How long ago another one replaced it.
    pub replaced_secs: f64,
    /// Whether it is the one that `rollback` leads to now.
    pub before: bool,
}

/// What pruning would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrunePlan {
    /// All retired tables, of each projector the newest first.
    pub tables: Vec<RetiredTables>,
    /// The configurations that nobody can go back to any more without a replay from the beginning.
    pub lost: Vec<LostConfiguration>,
}

impl PrunePlan {
    /// The tables that would be dropped.
    pub fn dropped(&self) -> impl Iterator<Item = &RetiredTables> {
        self.tables.iter().filter(|tables| tables.fate == Fate::Drop)
    }

    /// The tables that are due, and that something protects.
    pub fn protected(&self) -> impl Iterator<Item = &RetiredTables> {
        self.tables.iter().filter(|tables| matches!(tables.fate, Fate::Followed { .. } | Fate::InTheWay(_)))
    }
}

/// What becomes of retired tables, which come in the order of their projectors, of each the newest first: `keep` of each are
/// kept, of the others those that somebody follows (how many do so comes along).
pub(crate) fn fates<'a>(
    retired: impl IntoIterator<Item = (&'a ProjectorName, usize)>,
    keep: usize,
) -> Vec<Fate> {
    let mut seen = BTreeMap::new();
    let fate = |(projector, followers): (&'a ProjectorName, usize)| {
        let newer = seen.entry(projector).or_insert(0_usize);
        *newer += 1;
        if *newer <= keep {
            Fate::Newest
        } else if followers > 0 {
            Fate::Followed { instances: followers }
        } else {
            Fate::Drop
        }
    };
    retired.into_iter().map(fate).collect()
}

/// Whether a configuration needs tables of a list of projectors and major versions.
pub(crate) fn needs<'a>(
    configuration: &Versions,
    mut tables: impl Iterator<Item = (&'a ProjectorName, u64)>,
) -> bool {
    tables
        .any(|(projector, major)| configuration.get(projector).is_some_and(|version| version.major == major))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_projector_are_kept_and_of_the_rest_what_is_followed() {
        let check = |retired: &[(&str, usize)], keep: usize, expected: &[&str]| {
            let named: Vec<(ProjectorName, usize)> =
                retired.iter().map(|(name, followers)| (name.parse().unwrap(), *followers)).collect();
            let found = fates(named.iter().map(|(name, followers)| (name, *followers)), keep);
            let word = |fate: &Fate| match fate {
                Fate::Drop => "drop",
                Fate::Newest => "newest",
                Fate::Followed { .. } => "followed",
                Fate::InTheWay(_) => "in the way",
            };
            assert_eq!(found.iter().map(word).collect::<Vec<_>>(), expected, "{retired:?} {keep}");
        };
        check(&[], 0, &[]);
        check(&[("a", 0), ("a", 0), ("b", 0)], 0, &["drop", "drop", "drop"]);
        check(&[("a", 0), ("a", 0), ("b", 0)], 1, &["newest", "drop", "newest"]);
        check(&[("a", 0), ("a", 0), ("b", 0)], 2, &["newest", "newest", "newest"]);
        check(&[("a", 1), ("a", 2), ("b", 0)], 0, &["followed", "followed", "drop"]);
        check(&[("a", 0), ("a", 2), ("a", 0)], 1, &["newest", "followed", "drop"]);
    }

    #[test]
    fn a_configuration_needs_the_tables_of_its_major_versions() {
        let configuration: Versions = [("a".parse().unwrap(), Version::new(1, 4, 2))].into();
        let (a, b): (ProjectorName, ProjectorName) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(needs(&configuration, [(&b, 1), (&a, 1)].into_iter()));
        assert!(!needs(&configuration, [(&b, 1), (&a, 2)].into_iter()));
    }
}
