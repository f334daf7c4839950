//! All SQL of ours: the statements, the connections that carry them, and the rows that come back.

pub(crate) mod connect;
pub(crate) mod migrate;
pub(crate) mod open;
pub(crate) mod quote;
pub(crate) mod rows;
pub(crate) mod statements;

use std::time::Duration;

use deadpool_postgres::{Client, Pool, PoolError, Transaction};
use postgres_types::{ToSql, Type};
use tokio_postgres::{Config, IsolationLevel, Row, Statement};
use tracing::debug;

pub use self::connect::Path;
use self::connect::Untouched;
use self::statements::{Sql, Statements};
use crate::wake::Hint;
use crate::words::names::SchemaName;

/// What went wrong between us and the database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The server refused a statement, or the connection broke.
    #[error("{}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// No connection could be had from the pool.
    #[error("no connection from the pool: {0}")]
    Pool(String),
    /// It took too long.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// What took so long.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The database holds a word that this release does not know.
    #[error("the database holds something that this release cannot read: {0}")]
    Unreadable(String),
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::Database(error),
            other => Self::Pool(other.to_string()),
        }
    }
}

impl StoreError {
    /// Whether the same transaction, run again, may well succeed: it lost a race, nothing is wrong with it.
    pub fn is_retryable(&self) -> bool {
        use tokio_postgres::error::SqlState;
        match self {
            Self::Database(error) => error.code().is_some_and(|code| {
                [&SqlState::T_R_SERIALIZATION_FAILURE, &SqlState::T_R_DEADLOCK_DETECTED].contains(&code)
            }),
            _ => false,
        }
    }

    /// Whether the server could not, whatever was asked of it: it is gone or going, read-only, or out of room. Nothing is wrong
    /// with the transaction, and nothing needs mending but the server.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Database(error) => is_outage(error),
            Self::Pool(_) | Self::Timeout { .. } => true,
            Self::Unreadable(_) => false,
        }
    }

    /// Whether a lock was not to be had in time, or only by a deadlock.
    pub(crate) fn is_lock_not_available(&self) -> bool {
        use tokio_postgres::error::SqlState;
        match self {
            Self::Database(error) => error.code().is_some_and(|code| {
                [&SqlState::LOCK_NOT_AVAILABLE, &SqlState::T_R_DEADLOCK_DETECTED].contains(&code)
            }),
            _ => false,
        }
    }

    /// Whether the connection is gone, and with it all that was believed about the server.
    pub(crate) fn is_disconnect(&self) -> bool {
        use tokio_postgres::error::SqlState;
        match self {
            Self::Database(error) => {
                error.is_closed()
                    || error.code().is_none()
                    || error.code().is_some_and(|code| {
                        [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW]
                            .contains(&code)
                    })
            }
            Self::Timeout { .. } => true,
            Self::Pool(_) | Self::Unreadable(_) => false,
        }
    }
}

/// See [`StoreError::is_outage`].
pub(crate) fn is_outage(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;
    // No connection, no room, shutting down, broken hardware; after a failover, a standby.
    const CLASSES: [&str; 4] = ["08", "53", "57P", "58"];
    let Some(code) = error.code() else {
        let source = std::error::Error::source(error);
        return error.is_closed() || source.is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
    };
    *code == SqlState::READ_ONLY_SQL_TRANSACTION || CLASSES.iter().any(|class| code.code().starts_with(class))
}

/// A database error in words that hold none of the data: what the server says of values stays out.
///
/// Class 22 (data exceptions) quotes the value in the message itself, the other classes in the detail.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        let source = std::error::Error::source(error).map(|source| format!(": {source}"));
        return format!("{error}{}", source.unwrap_or_default());
    };
    let code = db.code().code();
    let text = if code.starts_with("22") {
        format!("data exception (SQLSTATE {code})")
    } else {
        format!("{} (SQLSTATE {code})", db.message())
    };
    [("table", db.table()), ("column", db.column()), ("constraint", db.constraint())]
        .into_iter()
        .filter_map(|(what, name)| Some(format!(", {what} {}", name?)))
        .fold(text, |text, place| text + &place)
}

/// The database as the library sees it. Cheap to share, never cloned.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) schema: SchemaName,
    pub(crate) path: Path,
    pub(crate) sql: Statements,
    pub(crate) pool: Pool,
    untouched: Untouched,
}

/// Begins a transaction whose statements each see what was committed before them, whatever the session's default is.
pub(crate) async fn read_committed(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    Ok(client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?)
}

/// How long a connection may take to answer what nobody waits for any more, before it is closed instead.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(10);

/// A connection that goes back to the pool only once the server has answered everything that was sent on it.
///
/// An append that was given up halfway may be waiting for a lock. Whoever took its connection next would wait along, perhaps
/// for a lock of their own.
pub(crate) struct Lent {
    client: Option<Client>,
    untouched: Untouched,
}

impl Lent {
    /// A connection of a pool that knows which of its own are untouched.
    pub(crate) async fn from(pool: &Pool, untouched: &Untouched) -> Result<Self, StoreError> {
        Ok(Self { client: Some(pool.get().await?), untouched: untouched.clone() })
    }

    /// Gives it back. To be called when the work is done, however it went.
    pub(crate) fn give_back(mut self) {
        drop(self.client.take());
    }

    /// Gives it back as it was: only statements of ours ran on it, and all of them are done.
    pub(crate) fn give_back_untouched(self) {
        if let Some(client) = &self.client {
            self.untouched.note(client);
        }
        self.give_back();
    }
}

impl std::ops::Deref for Lent {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("BUG: given back only in the end")
    }
}

impl std::ops::DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("BUG: given back only in the end")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            drop(Client::take(client));
            return;
        };
        runtime.spawn(async move {
            // Answered after everything before it.
            let answered = tokio::time::timeout(UNANSWERED_LIMIT, client.batch_execute("")).await;
            if !matches!(answered, Ok(Ok(()))) {
                drop(Client::take(client));
            }
        });
    }
}

/// Where a statement runs.
#[derive(Clone, Copy)]
pub(crate) enum On<'a> {
    /// On a pooled connection, outside a transaction.
    Client(&'a Client),
    /// In a transaction.
    Transaction(&'a Transaction<'a>),
    /// On a connection of its own, always unnamed.
    Single(&'a tokio_postgres::Client),
}

impl<'a> From<&'a Client> for On<'a> {
    fn from(client: &'a Client) -> Self {
        Self::Client(client)
    }
}

impl<'a> From<&'a Lent> for On<'a> {
    fn from(lent: &'a Lent) -> Self {
        Self::Client(lent)
    }
}

impl<'a> From<&'a Transaction<'_>> for On<'a> {
    fn from(tx: &'a Transaction<'_>) -> Self {
        Self::Transaction(tx)
    }
}

impl<'a> From<&'a tokio_postgres::Client> for On<'a> {
    fn from(client: &'a tokio_postgres::Client) -> Self {
        Self::Single(client)
    }
}

/// A statement that can be sent without another round trip before it, so that several can be sent at once.
pub(crate) enum Ready<'s> {
    Named(Statement),
    Unnamed(&'s Sql),
}

impl Ready<'_> {
    /// Sends it at the first poll.
    pub(crate) async fn query(
        &self,
        on: On<'_>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StoreError> {
        let rows = match (self, on) {
            (Self::Named(statement), On::Client(client)) => client.query(statement, params).await,
            (Self::Named(statement), On::Transaction(tx)) => tx.query(statement, params).await,
            (Self::Named(statement), On::Single(client)) => client.query(statement, params).await,
            (Self::Unnamed(sql), on) => {
                let typed: Vec<(&(dyn ToSql + Sync), Type)> =
                    params.iter().copied().zip(sql.types.iter().cloned()).collect();
                match on {
                    On::Client(client) => client.query_typed(&sql.text, &typed).await,
                    On::Transaction(tx) => tx.query_typed(&sql.text, &typed).await,
                    On::Single(client) => client.query_typed(&sql.text, &typed).await,
                }
            }
        };
        Ok(rows?)
    }
}

impl Store {
    /// Connects, finds out what lies in between, and renders the statements.
    pub(crate) async fn open(
        config: Config,
        schema: SchemaName,
        pool_size: usize,
    ) -> Result<Self, StoreError> {
        let path = connect::probe(&config).await?;
        let untouched = Untouched::default();
        let pool = connect::pool(&config, pool_size, untouched.clone())?;
        Ok(Self { path, sql: Statements::render(&schema), pool, untouched, config, schema })
    }

    /// A connection from the pool.
    pub(crate) async fn client(&self) -> Result<Client, StoreError> {
        Ok(self.pool.get().await?)
    }

    /// A connection from the pool for work that its caller may give up halfway.
    pub(crate) async fn lent(&self) -> Result<Lent, StoreError> {
        Lent::from(&self.pool, &self.untouched).await
    }

    /// A connection of its own.
    pub(crate) async fn single(&self) -> Result<tokio_postgres::Client, StoreError> {
        connect::single(&self.config).await
    }

    /// A connection of its own that keeps its statements: for what runs the same ones again.
    pub(crate) async fn own(&self) -> Result<Client, StoreError> {
        Ok(connect::pool(&self.config, 1, Untouched::default())?.get().await?)
    }

    /// A connection of its own whose statements may take as long as they do; behind a pooler, as long as it lets them.
    pub(crate) async fn patient(&self) -> Result<tokio_postgres::Client, StoreError> {
        match self.path {
            Path::Direct => connect::single(&connect::without_limit(&self.config)).await,
            Path::Pooled => self.single().await,
        }
    }

    /// The channel on which processes hear of each other.
    pub(crate) fn channel(&self) -> String {
        format!("changeover_{}", self.schema)
    }

    /// Tells the other processes. Whoever does not hear of it looks by itself.
    pub(crate) async fn hint(&self, on: impl Into<On<'_>>, hint: Hint) {
        let told = self.query(on, &self.sql.notify, &[&self.channel(), &hint.to_payload()]).await;
        if let Err(error) = told {
            debug!(%error, "a notification was not sent");
        }
    }

    /// Makes a statement ready to be sent.
    pub(crate) async fn ready<'s>(
        &self,
        on: impl Into<On<'_>>,
        sql: &'s Sql,
    ) -> Result<Ready<'s>, StoreError> {
        Ok(match (self.path, on.into()) {
            (Path::Pooled, _) | (_, On::Single(_)) => Ready::Unnamed(sql),
            (Path::Direct, On::Client(client)) => {
                Ready::Named(client.prepare_typed_cached(&sql.text, &sql.types).await?)
            }
            (Path::Direct, On::Transaction(tx)) => {
                Ready::Named(tx.prepare_typed_cached(&sql.text, &sql.types).await?)
            }
        })
    }

    /// Runs a statement.
    pub(crate) async fn query(
        &self,
        on: impl Into<On<'_>>,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StoreError> {
        let on = on.into();
        self.ready(on, sql).await?.query(on, params).await
    }

    /// Runs a statement that gives one row or none.
    pub(crate) async fn query_opt(
        &self,
        on: impl Into<On<'_>>,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(on, sql, params).await?.into_iter().next())
    }

    /// Runs a statement that always gives one row.
    pub(crate) async fn query_one(
        &self,
        on: impl Into<On<'_>>,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, StoreError> {
        let row = self.query_opt(on, sql, params).await?;
        Ok(row.unwrap_or_else(|| panic!("BUG: no row from {}", sql.text.lines().next().unwrap_or_default())))
    }
}
