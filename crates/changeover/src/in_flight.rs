//! Who is in flight: the transactions that an activation has to wait for, and that hold up the horizon.

use std::fmt;

use serde::Serialize;
use tokio_postgres::Row;

use crate::store::{On, Store, StoreError};

/// What a transaction holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// An append in flight.
    Lease,
    /// A batch that is being published or replayed.
    Presence,
    /// Locks on tables or views that are to be moved or dropped, or on what goes with them.
    Tables,
}

/// A transaction in flight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Blocker {
    /// The server's process; none for a prepared transaction.
    pub pid: Option<i32>,
    /// The name that its connection gave.
    pub application_name: Option<String>,
    /// What it holds.
    pub holds: Holds,
    /// How long its transaction has been open, if the server says.
    pub age_secs: Option<f64>,
    /// What it is doing, in the server's words.
    pub doing: String,
    /// The server's name for the transaction.
    #[serde(skip)]
    pub(crate) transaction: String,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("a prepared transaction")?,
        }
        if let Some(name) = self.application_name.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " ({name})")?;
        }
        let holds = match self.holds {
            Holds::Lease => "an append",
            Holds::Presence => "a batch being published",
            Holds::Tables => "locks on the tables",
        };
        write!(f, " holds {holds}")?;
        if let Some(age) = self.age_secs {
            write!(f, " for {age:.1} s")?;
        }
        write!(f, ", {}", self.doing)
    }
}

/// Everybody in flight, the oldest first.
pub(crate) async fn look(store: &Store, on: impl Into<On<'_>>) -> Result<Vec<Blocker>, StoreError> {
    let rows = store.query(on, &store.sql.in_flight, &[]).await?;
    let holds = |row: &Row| {
        if row.get::<_, &str>("holds") == "lease" { Holds::Lease } else { Holds::Presence }
    };
    Ok(rows.iter().map(|row| blocker(row, holds(row))).collect())
}

/// Everybody who holds a lock on something in a schema, or makes a session wait right now.
pub(crate) async fn in_the_way(
    store: &Store,
    on: impl Into<On<'_>>,
    schema: &str,
    pid: i32,
) -> Result<Vec<Blocker>, StoreError> {
    let rows = store.query(on, &store.sql.in_the_way, &[&schema, &pid]).await?;
    Ok(rows.iter().map(|row| blocker(row, Holds::Tables)).collect())
}

/// Everybody who holds a lock on one of some relations, the oldest first.
pub(crate) async fn lock_holders(
    store: &Store,
    on: impl Into<On<'_>>,
    relations: &[u32],
) -> Result<Vec<Blocker>, StoreError> {
    let rows = store.query(on, &store.sql.lock_holders, &[&relations]).await?;
    Ok(rows.iter().map(|row| blocker(row, Holds::Tables)).collect())
}

fn blocker(row: &Row, holds: Holds) -> Blocker {
    Blocker {
        pid: row.get("pid"),
        application_name: row.get("application_name"),
        holds,
        age_secs: row.get("age_secs"),
        doing: row.get("doing"),
        transaction: row.get("transaction"),
    }
}
