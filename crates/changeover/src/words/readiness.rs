//! Whether an instance may take traffic, and why not.

use std::fmt;

use serde::Serialize;

use super::decision::{NotFed, Refused, Verdict};

/// One word for the load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyState {
    /// It may take traffic.
    Active,
    /// Its configuration is not active yet.
    Waiting,
    /// A switch is under way.
    Activating,
    /// A newer configuration took over.
    Retired,
    /// It does not know yet, or the active configuration is not one that it knows.
    Unknown,
    /// The database cannot be reached, so nothing can be said.
    Unreachable,
}

impl ReadyState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Waiting => "waiting",
            Self::Activating => "activating",
            Self::Retired => "retired",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for ReadyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an instance may take traffic, with the reason in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// The word.
    pub state: ReadyState,
    /// The reason, for people; empty while active.
    pub reason: String,
}

impl Readiness {
    /// Before the first decision.
    pub(crate) fn unknown() -> Self {
        Self { state: ReadyState::Unknown, reason: "the projectors' states were not read yet".to_owned() }
    }

    /// The database did not answer.
    pub(crate) fn unreachable(reason: impl fmt::Display) -> Self {
        Self { state: ReadyState::Unreachable, reason: format!("the database cannot be reached: {reason}") }
    }

    /// The database answered, but not with states.
    pub(crate) fn undecided(reason: impl fmt::Display) -> Self {
        Self {
            state: ReadyState::Unknown,
            reason: format!("the projectors' states cannot be read: {reason}"),
        }
    }

    /// Whether the load balancer may send traffic.
    pub fn is_ready(&self) -> bool {
        self.state == ReadyState::Active
    }
}

impl From<&Verdict> for Readiness {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Admitted { not_fed, .. } if not_fed.is_empty() => {
                Self { state: ReadyState::Active, reason: String::new() }
            }
            Verdict::Admitted { not_fed, .. } => Self {
                state: ReadyState::Waiting,
                reason: not_fed.iter().map(why_not_fed).collect::<Vec<_>>().join("; "),
            },
            Verdict::Empty => Self::unknown(),
            Verdict::Refused(refused) => Self { state: refused_state(refused), reason: refused.to_string() },
        }
    }
}

fn why_not_fed(not_fed: &NotFed) -> String {
    let NotFed { projector, version, state } = not_fed;
    match state {
        Some(state) => format!("no version of {projector} is active: our {version} is {state}"),
        None => format!("no version of {projector} is active: our {version} was never replayed"),
    }
}

fn refused_state(refused: &Refused) -> ReadyState {
    match refused {
        Refused::NewerProjectorIsActive { .. } | Refused::SchemaIsNewer { .. } => ReadyState::Retired,
        Refused::OlderProjectorIsActive { .. }
        | Refused::NoConfigurationIsActive
        | Refused::HistoryIsMissing { .. }
        | Refused::CannotBeRegistered { .. } => ReadyState::Waiting,
        Refused::UnknownProjectorIsActive { .. } => ReadyState::Unknown,
        Refused::ProjectorIsActivating { .. } => ReadyState::Activating,
    }
}
