//! The states of a projector version, and the moves between them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a projector version stands.
///
/// ```text
/// replaying ──caught up──> activating ──> active ──> retired
///     ^                        │                        │
///     └── deadline, abort ─────┘                        │
///     └───────────── replay from its checkpoint ────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectorState {
    /// It is fed history beside the version that counts.
    Replaying,
    /// An activation has paused the writers and is about to switch to it.
    Activating,
    /// It is the version that counts.
    Active,
    /// Another version took over; its tables and its checkpoint are kept.
    Retired,
}

/// What happens to a projector version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// History is fed to it, again or for the first time.
    Replay,
    /// An activation marks it.
    Mark,
    /// The activation switches to it.
    Switch,
    /// The activation was aborted, or its deadline passed.
    GiveBack,
    /// Another version took over, or the projector was removed.
    Retire,
}

/// A move that a state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a projector version that is {from} cannot {wanted:?}")]
pub struct IllegalMove {
    from: ProjectorState,
    wanted: Move,
}

impl ProjectorState {
    /// The state after a move.
    ///
    /// ```
    /// use changeover::{Move, ProjectorState};
    /// assert_eq!(ProjectorState::Replaying.after(Move::Mark), Ok(ProjectorState::Activating));
    /// assert!(ProjectorState::Retired.after(Move::Switch).is_err());
    /// ```
    pub fn after(self, wanted: Move) -> Result<Self, IllegalMove> {
        match (self, wanted) {
            (Self::Replaying | Self::Retired, Move::Replay) | (Self::Activating, Move::GiveBack) => {
                Ok(Self::Replaying)
            }
            (Self::Replaying, Move::Mark) => Ok(Self::Activating),
            (Self::Activating, Move::Switch) => Ok(Self::Active),
            (Self::Active, Move::Retire) => Ok(Self::Retired),
            (from, wanted) => Err(IllegalMove { from, wanted }),
        }
    }

    /// The word, as in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaying => "replaying",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

impl fmt::Display for ProjectorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a word of this release of changeover")]
pub struct UnknownWord(String);

impl FromStr for ProjectorState {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        [Self::Replaying, Self::Activating, Self::Active, Self::Retired]
            .into_iter()
            .find(|state| state.as_str() == word)
            .ok_or_else(|| UnknownWord(word.to_owned()))
    }
}

/// When a projector is fed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Inside the append's transaction: readers see events and rows at the same moment.
    Inline,
    /// By the publisher, soon after the commit: the append does not wait for it.
    #[default]
    Background,
}

impl Delivery {
    /// The word, as in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Background => "background",
        }
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Delivery {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        [Self::Inline, Self::Background]
            .into_iter()
            .find(|delivery| delivery.as_str() == word)
            .ok_or_else(|| UnknownWord(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::Move::{GiveBack, Mark, Replay, Retire, Switch};
    use super::ProjectorState::{Activating, Active, Replaying, Retired};
    use super::*;

    #[test]
    fn only_legal_moves_are_allowed() {
        let legal = [
            (Replaying, Replay, Replaying),
            (Retired, Replay, Replaying),
            (Replaying, Mark, Activating),
            (Activating, GiveBack, Replaying),
            (Activating, Switch, Active),
            (Active, Retire, Retired),
        ];
        for from in [Replaying, Activating, Active, Retired] {
            for wanted in [Replay, Mark, Switch, GiveBack, Retire] {
                let expected = legal
                    .iter()
                    .find(|(f, w, _)| *f == from && *w == wanted)
                    .map(|(_, _, to)| *to)
                    .ok_or(IllegalMove { from, wanted });
                assert_eq!(from.after(wanted), expected, "{from} {wanted:?}");
            }
        }
    }

    #[test]
    fn words_are_read_back() {
        for state in [Replaying, Activating, Active, Retired] {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        for delivery in [Delivery::Inline, Delivery::Background] {
            assert_eq!(delivery.to_string().parse(), Ok(delivery));
        }
        assert!("promoting".parse::<ProjectorState>().is_err());
    }
}
