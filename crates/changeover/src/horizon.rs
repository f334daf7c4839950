//! The horizon: the position at and below which no append is in flight any more. Readers stop there.
//!
//! First the newest position drawn is read, then the leases are looked at. An append that takes its lease after that look
//! draws its positions later still, so they lie above the mark; one that took it before is seen. Transactions that append
//! nothing hold no lease and hold nothing up.

use std::time::SystemTime;

use crate::store::{On, Store, StoreError};
use crate::words::position::Position;

/// One look at the log's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// No append at or below this is in flight.
    pub(crate) horizon: Position,
    /// The newest position drawn; above the horizon while appends are in flight.
    pub(crate) newest: Position,
    /// When, by the database's clock.
    pub(crate) at: SystemTime,
}

/// Looks. Costs one statement that reads the server's lock table: 0.4 ms with 40 backends.
pub(crate) async fn look(store: &Store, on: impl Into<On<'_>>) -> Result<Look, StoreError> {
    let row = store.query_one(on, &store.sql.horizon, &[]).await?;
    Ok(Look { horizon: row.get("horizon"), newest: row.get("newest"), at: row.get("looked_at") })
}
