//! How it ends: exit codes, and errors as people and pipelines read them.

use std::error::Error;
use std::process::ExitCode;

use changeover::{
    ActivateError, Blocker, ConnectError, MigrateError, Obstacle, RegisterError, ReplayError, SkipError,
    StoreError,
};
use serde::Serialize;

/// The exit codes, for the help of a host: `#[command(after_help = changeover_cli::EXIT_CODES)]`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done, or there was nothing to do
  1  refused: it contradicts the state of the database or of a projector; the reason says what to do
  2  usage: the command line cannot be understood
  3  failed: the database, the network or a signal; trying again may help";

/// How a command ended.
///
/// ```
/// use changeover_cli::Exit;
/// assert_eq!(Exit::Refused.code(), 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It is done, or there was nothing to do.
    Done,
    /// What was asked contradicts the state of the database or of a projector.
    Refused,
    /// The command line cannot be understood.
    Usage,
    /// The database, the network or a signal.
    Failed,
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Failed => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do what it was asked, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    #[serde(skip)]
    pub(crate) exit: Exit,
    /// One stable word.
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    /// What lies beneath, outermost first.
    pub(crate) causes: Vec<String>,
    /// What to do, where the message does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) blockers: Vec<Blocker>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) obstacles: Vec<Obstacle>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, kind: &'static str, message: impl Into<String>) -> Self {
        let (causes, next, blockers, obstacles) = <_>::default();
        Self { exit, kind, message: message.into(), causes, next, blockers, obstacles }
    }

    pub(crate) fn refused(kind: &'static str, message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, kind, message)
    }

    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "interrupted", message)
    }

    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    fn of((exit, kind): (Exit, &'static str), error: &(dyn Error + 'static)) -> Self {
        let mut texts = chain(error).into_iter();
        let mut failure = Self::new(exit, kind, texts.next().unwrap_or_default());
        failure.causes = texts.collect();
        failure
    }

    /// As people read it, in one line or a few.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        for obstacle in &self.obstacles {
            text.push_str(&format!("  in the way: {obstacle}\n"));
        }
        for blocker in &self.blockers {
            text.push_str(&format!("  blocked by: {blocker}\n"));
        }
        for cause in &self.causes {
            text.push_str(&format!("cause: {cause}\n"));
        }
        if let Some(next) = &self.next {
            text.push_str(&format!("next: {next}\n"));
        }
        text
    }
}

/// The texts of an error and of what lies beneath it, each once.
///
/// It ends where the database driver begins: what the server says of values may hold what an event holds, and the library
/// has said the rest already.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        let text = match error.downcast_ref::<tokio_postgres::Error>() {
            Some(error) => error.as_db_error().map(said_by_the_server),
            None => Some(error.to_string()),
        };
        texts.extend(text.filter(|text| !texts.iter().any(|said| said.contains(text))));
        next = error.source().filter(|_| !error.is::<tokio_postgres::Error>());
    }
    texts
}

/// Class 22 quotes values in the message itself, all others in the detail, which stays out.
fn said_by_the_server(error: &tokio_postgres::error::DbError) -> String {
    let code = error.code().code();
    if code.starts_with("22") {
        format!("data exception (SQLSTATE {code})")
    } else {
        format!("{} (SQLSTATE {code})", error.message())
    }
}

const DATABASE: (Exit, &str) = (Exit::Failed, "database");

fn of_obstacle(obstacle: &Obstacle) -> (Exit, &'static str) {
    let kind = match obstacle {
        Obstacle::OtherDefinition { .. } => "other_definition",
        Obstacle::OtherTables { .. } => "other_tables",
        Obstacle::Stalled { .. } => "stalled",
        _ => "obstacle",
    };
    (Exit::Refused, kind)
}

fn of_migrate(error: &MigrateError) -> (Exit, &'static str) {
    match error {
        MigrateError::SchemaIsOlder { .. } => (Exit::Refused, "schema_is_older"),
        MigrateError::SchemaIsNewer { .. } => (Exit::Refused, "schema_is_newer"),
        MigrateError::Locked { .. } => (Exit::Refused, "locked"),
        MigrateError::Migration { .. } => (Exit::Failed, "migration"),
        _ => DATABASE,
    }
}

fn of_register(error: &RegisterError) -> (Exit, &'static str) {
    match error {
        RegisterError::Obstacle(obstacle) => of_obstacle(obstacle),
        RegisterError::ForeignTables { .. } => (Exit::Refused, "foreign_tables"),
        RegisterError::Ddl { .. } => (Exit::Failed, "ddl"),
        _ => DATABASE,
    }
}

fn of_replay(error: &ReplayError) -> (Exit, &'static str) {
    match error {
        ReplayError::Register(error) => of_register(error),
        ReplayError::NotOurs(_) => (Exit::Refused, "unknown_projector"),
        ReplayError::Projector { .. } => (Exit::Refused, "projector_failed"),
        ReplayError::Stalled { .. } => (Exit::Refused, "stalled"),
        ReplayError::NotReplaying { .. } => (Exit::Refused, "not_replaying"),
        ReplayError::TooSlow { .. } => (Exit::Refused, "too_slow"),
        _ => DATABASE,
    }
}

fn of_activate(error: &ActivateError) -> (Exit, &'static str) {
    match error {
        ActivateError::Obstacles(_) => (Exit::Refused, "obstacles"),
        ActivateError::Replay(error) => of_replay(error),
        ActivateError::Register(error) => of_register(error),
        ActivateError::Instances { .. } => (Exit::Refused, "instances"),
        ActivateError::Blocked { .. } => (Exit::Refused, "blocked"),
        ActivateError::Overtaken { .. } => (Exit::Refused, "overtaken"),
        ActivateError::Ended { .. } => (Exit::Refused, "ended"),
        ActivateError::NotActive(_) => (Exit::Refused, "not_active"),
        ActivateError::Unknown { .. } => (Exit::Failed, "unknown_outcome"),
        _ => DATABASE,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::of(DATABASE, &error)
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        Self::of(of_migrate(&error), &error)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::Schema(error) => of_migrate(error),
            ConnectError::Obstacle(obstacle) => of_obstacle(obstacle),
            _ => DATABASE,
        };
        Self::of(kind, &error)
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Self {
        Self::of(of_replay(&error), &error)
    }
}

impl From<ActivateError> for Failure {
    fn from(error: ActivateError) -> Self {
        let mut failure = Self::of(of_activate(&error), &error);
        match error {
            // People read a list better than a long line.
            ActivateError::Blocked { blockers, after } => {
                let count = blockers.len();
                let transactions = if count == 1 { "transaction" } else { "transactions" };
                failure.message = format!("not activated: {count} {transactions} blocked it for {after:.1?}");
                let end = blockers.iter().find_map(|blocker| blocker.pid).map_or_else(
                    || "with COMMIT PREPARED or ROLLBACK PREPARED".to_owned(),
                    |pid| format!("for instance with SELECT pg_terminate_backend({pid})"),
                );
                failure.next = Some(format!("end what blocks it, {end}, or try again later"));
                failure.blockers = blockers;
            }
            ActivateError::Obstacles(obstacles) => {
                failure.message = "not activated: something stands in the way".to_owned();
                failure.obstacles = obstacles;
            }
            _ => {}
        }
        failure
    }
}

impl From<SkipError> for Failure {
    fn from(error: SkipError) -> Self {
        let kind = match error {
            SkipError::NotStalledThere { .. } => (Exit::Refused, "not_stalled_there"),
            _ => DATABASE,
        };
        Self::of(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_the_state_refuses_is_told_from_what_failed() {
        let check = |failure: Failure, exit: Exit, kind: &str| {
            assert_eq!((failure.exit, failure.kind), (exit, kind), "{}", failure.message);
        };
        let name = || "orders".parse().unwrap();
        let version = || "2.0.0".parse().unwrap();
        let slow = || StoreError::Timeout { what: "connecting", after: Duration::from_secs(10) };
        check(slow().into(), Exit::Failed, "database");
        check(ConnectError::Store(slow()).into(), Exit::Failed, "database");
        let older = MigrateError::SchemaIsOlder { schema: "x".parse().unwrap(), found: 0, ours: 2 };
        check(ConnectError::Schema(older).into(), Exit::Refused, "schema_is_older");
        let other = || Obstacle::OtherDefinition { projector: name(), version: version() };
        check(ConnectError::Obstacle(other()).into(), Exit::Refused, "other_definition");
        check(ActivateError::Obstacles(vec![other()]).into(), Exit::Refused, "obstacles");
        check(ActivateError::NotActive(name()).into(), Exit::Refused, "not_active");
        check(ActivateError::Overtaken { by: "ci".to_owned() }.into(), Exit::Refused, "overtaken");
        check(ActivateError::Store(slow()).into(), Exit::Failed, "database");
        check(ActivateError::Replay(ReplayError::Store(slow())).into(), Exit::Failed, "database");
        check(ActivateError::Replay(ReplayError::NotOurs(name())).into(), Exit::Refused, "unknown_projector");
        check(ReplayError::Register(RegisterError::Store(slow())).into(), Exit::Failed, "database");
        let skip = SkipError::NotStalledThere {
            projector: name(),
            position: changeover::Position::new(1),
            stalled_at: None,
        };
        check(skip.into(), Exit::Refused, "not_stalled_there");
    }

    #[test]
    fn the_whole_chain_is_told_and_nothing_twice() {
        let slow = StoreError::Timeout { what: "connecting", after: Duration::from_secs(10) };
        let failure = Failure::from(ActivateError::Replay(ReplayError::Store(slow)));
        assert_eq!(
            failure.text(),
            "error: not activated: replaying failed\ncause: the database refused\ncause: connecting took longer than 10s\n"
        );
        let stalled = Obstacle::Stalled {
            projector: "orders".parse().unwrap(),
            version: "2.0.0".parse().unwrap(),
            error: "boom".to_owned(),
        };
        let failure = Failure::from(ConnectError::Obstacle(stalled));
        assert_eq!(failure.causes, [""; 0]);
    }
}
