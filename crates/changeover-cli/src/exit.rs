//! How it ends: exit codes, and errors as people and pipelines read them.

use std::error::Error;
use std::process::ExitCode;

use changeover::{
    ActivateError, AdoptError, Blocker, ConnectError, DiscardError, MigrateError, NoWayBack, NotPruned,
    Obstacle, OptimizeError, PruneError, Pruned, RegisterError, ReplayError, RollbackError, SkipError,
    StoreError, TableDifference, UpgradeError, Verified, VerifyError,
};
use serde::Serialize;

use crate::output::plain;
use crate::output::verified::in_short;

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
    pub(crate) next: Option<Box<str>>,
    #[serde(flatten)]
    pub(crate) in_the_way: Option<InTheWay>,
}

/// Who or what stands in the way, one by one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InTheWay {
    Blockers(Vec<Blocker>),
    Verified(Vec<Verified>),
    Obstacles(Vec<Obstacle>),
    Differences(Vec<TableDifference>),
    Prune(Box<Protected>),
}

/// What was not pruned, and what was all the same.
#[derive(Debug, Serialize)]
pub(crate) struct Protected {
    pruned: Pruned,
    left: Vec<NotPruned>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, kind: &'static str, message: impl Into<String>) -> Self {
        Self { exit, kind, message: message.into(), causes: Vec::new(), next: None, in_the_way: None }
    }

    pub(crate) fn refused(kind: &'static str, message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, kind, message)
    }

    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "interrupted", message)
    }

    #[must_use]
    pub(crate) fn next(mut self, next: &str) -> Self {
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
        let mut lines = vec![format!("error: {}", self.message)];
        match &self.in_the_way {
            None => {}
            Some(InTheWay::Obstacles(list)) => {
                lines.extend(list.iter().map(|one| format!("  in the way: {one}")));
            }
            Some(InTheWay::Differences(list)) => {
                lines.extend(list.iter().map(|one| format!("  different: {one}")));
            }
            Some(InTheWay::Verified(list)) => {
                lines.extend(list.iter().flat_map(in_short).map(|line| format!("  {line}")));
            }
            Some(InTheWay::Blockers(list)) => {
                lines.extend(list.iter().map(|one| format!("  blocked by: {one}")));
            }
            Some(InTheWay::Prune(protected)) => {
                let Protected { pruned, left } = &**protected;
                lines.extend(left.iter().map(|one| format!("  {one}")));
                let dropped = pruned.dropped.iter();
                lines.extend(
                    dropped
                        .map(|one| format!("  dropped: {} v{} ({})", one.projector, one.major, one.schema)),
                );
            }
        }
        lines.extend(self.causes.iter().map(|cause| format!("cause: {cause}")));
        lines.extend(self.next.iter().map(|next| format!("next: {next}")));
        lines.iter().flat_map(|line| [plain(line), "\n".to_owned()]).collect()
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
        ReplayError::StartedOver { .. } => (Exit::Refused, "started_over"),
        ReplayError::NotStartedOver { .. } => (Exit::Refused, "not_started_over"),
        ReplayError::InUse { .. } => (Exit::Refused, "in_use"),
        ReplayError::NeedsDirectConnection { .. } => (Exit::Refused, "needs_direct_connection"),
        ReplayError::NotEmpty { .. } => (Exit::Refused, "not_empty"),
        ReplayError::Altered { .. } => (Exit::Refused, "altered"),
        ReplayError::OtherSplit { .. } => (Exit::Refused, "other_split"),
        ReplayError::Aborted { .. } => (Exit::Refused, "aborted"),
        ReplayError::Rows { .. } => (Exit::Refused, "rows"),
        ReplayError::Outage { .. } => (Exit::Failed, "outage"),
        ReplayError::Several(errors) if errors.iter().all(|one| of_replay(one).0 == Exit::Refused) => {
            (Exit::Refused, "several")
        }
        ReplayError::Several(_) => (Exit::Failed, "several"),
        _ => DATABASE,
    }
}

fn of_verify(error: &VerifyError) -> (Exit, &'static str) {
    match error {
        VerifyError::NotOurs(_) => (Exit::Refused, "unknown_projector"),
        VerifyError::NotThere { .. } => (Exit::Refused, "no_tables"),
        VerifyError::InShards { .. } => (Exit::Refused, "in_shards"),
        VerifyError::OtherTable { .. } => (Exit::Refused, "other_tables"),
        VerifyError::Ddl { .. } => (Exit::Failed, "ddl"),
        VerifyError::Fold(error) => of_replay(error),
        VerifyError::HeldUp { .. } => (Exit::Refused, "held_up"),
        VerifyError::WentBack { .. } => (Exit::Refused, "went_back"),
        VerifyError::Apart { .. } => (Exit::Refused, "apart"),
        VerifyError::NotComparable { .. } => (Exit::Refused, "not_comparable"),
        VerifyError::Aborted { .. } => (Exit::Refused, "aborted"),
        VerifyError::Expression { .. } => (Exit::Refused, "expression"),
        _ => DATABASE,
    }
}

fn of_optimize(error: &OptimizeError) -> (Exit, &'static str) {
    match error {
        OptimizeError::NotOurs(_) => (Exit::Refused, "unknown_projector"),
        OptimizeError::NotThere { .. } => (Exit::Refused, "no_tables"),
        OptimizeError::InBulk { .. } => (Exit::Refused, "in_shards"),
        OptimizeError::OtherIndex { .. } => (Exit::Refused, "other_index"),
        OptimizeError::Unique { .. } => (Exit::Refused, "unique_index"),
        OptimizeError::NeedsDirectConnection { .. } => (Exit::Refused, "needs_direct_connection"),
        OptimizeError::Ddl { .. } => (Exit::Failed, "ddl"),
        OptimizeError::Replay(error) => of_replay(error),
        OptimizeError::Aborted { .. } => (Exit::Refused, "aborted"),
        _ => DATABASE,
    }
}

fn of_activate(error: &ActivateError) -> (Exit, &'static str) {
    match error {
        ActivateError::Obstacles(_) => (Exit::Refused, "obstacles"),
        ActivateError::Replay(error) => of_replay(error),
        ActivateError::Register(error) => of_register(error),
        ActivateError::Verify(error) => of_verify(error),
        ActivateError::Differs(_) => (Exit::Refused, "differs"),
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
            ConnectError::SchemaTaken { .. } => (Exit::Refused, "schema_taken"),
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
                failure.next = Some(format!("end what blocks it, {end}, or try again later").into());
                failure.in_the_way = Some(InTheWay::Blockers(blockers));
            }
            ActivateError::Differs(verified) => {
                "not activated: rows are not what the log makes of them".clone_into(&mut failure.message);
                failure.next = rows_to_see(&verified);
                failure.in_the_way = Some(InTheWay::Verified(verified));
            }
            ActivateError::Obstacles(obstacles) => {
                "not activated: something stands in the way".clone_into(&mut failure.message);
                failure.in_the_way = Some(InTheWay::Obstacles(obstacles));
            }
            _ => {}
        }
        failure
    }
}

impl From<OptimizeError> for Failure {
    fn from(error: OptimizeError) -> Self {
        Self::of(of_optimize(&error), &error)
    }
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        let kind = match &error {
            UpgradeError::Replay(error) => of_replay(error),
            UpgradeError::Optimize(error) => of_optimize(error),
            UpgradeError::Verify(error) => of_verify(error),
            UpgradeError::Differs(_) => (Exit::Refused, "differs"),
            _ => DATABASE,
        };
        let mut failure = match error {
            UpgradeError::Activate(error) => return error.into(),
            ref error => Self::of(kind, error),
        };
        if let UpgradeError::Differs(verified) = error {
            "not upgraded: rows are not what the log makes of them".clone_into(&mut failure.message);
            failure.next = rows_to_see(&verified);
            failure.in_the_way = Some(InTheWay::Verified(verified));
        }
        failure
    }
}

impl From<DiscardError> for Failure {
    fn from(error: DiscardError) -> Self {
        let kind = match &error {
            DiscardError::NotThere { .. } => (Exit::Refused, "never_replayed"),
            DiscardError::NotAbandoned { .. } => (Exit::Refused, "not_abandoned"),
            DiscardError::Left(_) => (Exit::Refused, "not_discarded"),
            _ => DATABASE,
        };
        Self::of(kind, &error)
    }
}

/// What to do about rows of tables that are to be adopted: they cannot be replayed from the beginning.
const MEND_WHAT_IS_ADOPTED: &str =
    "mend the rows, or the projector where those are right, then run `adopt` again with the same options";

/// What to do about rows that differ.
fn rows_to_see(verified: &[Verified]) -> Option<Box<str>> {
    let first = &verified.first()?.projector;
    let all: Vec<&str> = verified.iter().map(|verified| verified.projector.as_str()).collect();
    let next = format!(
        "see all of it with `verify {first}`, mend the projector, and start over with `replay {} --restart`; nothing was changed",
        all.join(" ")
    );
    Some(next.into())
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        Self::of(of_verify(&error), &error)
    }
}

impl From<RollbackError> for Failure {
    fn from(error: RollbackError) -> Self {
        let kind = match &error {
            RollbackError::Activate(_) => "",
            RollbackError::NoWayBack(NoWayBack::NothingBefore { .. }) => "nothing_before",
            RollbackError::NoWayBack(NoWayBack::AlreadyActive { .. }) => "already_active",
            RollbackError::NoWayBack(NoWayBack::OtherConfiguration { .. }) => "other_configuration",
            RollbackError::Gone(_) => "gone",
            _ => "rollback",
        };
        match error {
            RollbackError::Activate(error) => error.into(),
            error => Self::of((Exit::Refused, kind), &error),
        }
    }
}

impl From<PruneError> for Failure {
    fn from(error: PruneError) -> Self {
        match error {
            PruneError::Left { pruned, left } => {
                let what = if left.len() == 1 { "schema was" } else { "schemas were" };
                let mut failure = Self::refused("not_pruned", format!("{} {what} not pruned", left.len()));
                failure.in_the_way = Some(InTheWay::Prune(Box::new(Protected { pruned, left })));
                failure
            }
            error => Self::of(DATABASE, &error),
        }
    }
}

impl From<AdoptError> for Failure {
    fn from(error: AdoptError) -> Self {
        let kind = match &error {
            AdoptError::NotOurs(_) => (Exit::Refused, "unknown_projector"),
            AdoptError::AlreadyKnown { .. } => (Exit::Refused, "already_known"),
            AdoptError::AboveHorizon { .. } => (Exit::Refused, "above_horizon"),
            AdoptError::Different { .. } => (Exit::Refused, "other_tables"),
            AdoptError::SchemaIsThere { .. } => (Exit::Refused, "foreign_tables"),
            AdoptError::Ddl { .. } => (Exit::Failed, "ddl"),
            AdoptError::Differs(_) => (Exit::Refused, "differs"),
            AdoptError::Verify(error) => of_verify(error),
            AdoptError::Blocked { .. } => (Exit::Refused, "blocked"),
            AdoptError::NotActivated { source, .. } => of_activate(source),
            _ => DATABASE,
        };
        let mut failure = Self::of(kind, &error);
        match error {
            AdoptError::Different { projector, version, differences } => {
                failure.message = format!("not adopted: the tables are not those of {projector} {version}");
                failure.next = Some("change the tables or the definition".into());
                failure.in_the_way = Some(InTheWay::Differences(differences));
            }
            AdoptError::Differs(verified) => {
                "not adopted: rows are not what the log makes of them".clone_into(&mut failure.message);
                failure.next = Some(MEND_WHAT_IS_ADOPTED.into());
                failure.in_the_way = Some(InTheWay::Verified(vec![*verified]));
            }
            AdoptError::NotActivated { source: ActivateError::Differs(verified), .. } => {
                failure.causes.clear();
                failure.next = Some(MEND_WHAT_IS_ADOPTED.into());
                failure.in_the_way = Some(InTheWay::Verified(verified));
            }
            AdoptError::Blocked { blockers, .. } if !blockers.is_empty() => {
                "not adopted: the tables could not be moved".clone_into(&mut failure.message);
                failure.next = Some("end what blocks it, or try again later".into());
                failure.in_the_way = Some(InTheWay::Blockers(blockers));
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
        let taken = ConnectError::SchemaTaken { projector: name(), schema: "changeover".to_owned() };
        check(taken.into(), Exit::Refused, "schema_taken");
        check(ActivateError::Obstacles(vec![other()]).into(), Exit::Refused, "obstacles");
        check(ActivateError::NotActive(name()).into(), Exit::Refused, "not_active");
        check(ActivateError::Overtaken { by: "ci".to_owned() }.into(), Exit::Refused, "overtaken");
        check(ActivateError::Store(slow()).into(), Exit::Failed, "database");
        check(ActivateError::Replay(ReplayError::Store(slow())).into(), Exit::Failed, "database");
        let unknown = changeover::NotRegistered { projector: name(), registered: Vec::new() };
        check(ActivateError::Replay(unknown.into()).into(), Exit::Refused, "unknown_projector");
        check(ReplayError::Register(RegisterError::Store(slow())).into(), Exit::Failed, "database");
        let source = || changeover::ProjectError::Store(slow());
        let rows = || ReplayError::Rows { projector: name(), version: version(), source: source() };
        let outage = || ReplayError::Outage { projector: name(), version: version(), source: source() };
        check(rows().into(), Exit::Refused, "rows");
        check(outage().into(), Exit::Failed, "outage");
        check(ReplayError::Several(vec![rows(), rows()]).into(), Exit::Refused, "several");
        check(ReplayError::Several(vec![rows(), outage()]).into(), Exit::Failed, "several");
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

    #[tokio::test]
    async fn what_the_server_says_of_values_is_not_repeated() {
        let database = changeover_testkit::Database::fresh().await;
        let client = database.client().await;
        let refused = async |sql: &str| client.query(sql, &[]).await.unwrap_err();
        let cast = "SELECT 'secret'::text::integer";
        let plain = Failure::from(StoreError::from(refused(cast).await));
        assert_eq!(plain.text(), "error: data exception (SQLSTATE 22P02)\n");

        client
            .batch_execute("CREATE TABLE t (x text PRIMARY KEY); INSERT INTO t VALUES ('secret')")
            .await
            .unwrap();
        for sql in [cast, "INSERT INTO t VALUES ('secret')"] {
            let of_the_projector = Failure::from(ReplayError::Projector {
                projector: "orders".parse().unwrap(),
                version: "2.0.0".parse().unwrap(),
                position: changeover::Position::new(7),
                event_type: "Placed".to_owned(),
                source: changeover::ProjectError::Projector(refused(sql).await.into()),
            });
            assert!(of_the_projector.text().contains("(SQLSTATE 2"), "{}", of_the_projector.text());
            assert!(!of_the_projector.text().contains("secret"), "{}", of_the_projector.text());
        }
    }
}
