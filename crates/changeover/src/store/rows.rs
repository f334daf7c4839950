//! Rows into words.

use std::str::FromStr;

use semver::Version;
use tokio_postgres::Row;

use super::StoreError;
use crate::words::decision::VersionState;
use crate::words::event::{RawEvent, Recorded};
use crate::words::plan::{Known, KnownTables};

/// A text column as one of our words.
pub(crate) fn word<T>(row: &Row, column: &str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    row.get::<_, &str>(column).parse().map_err(|error: T::Err| StoreError::Unreadable(error.to_string()))
}

/// A row of `states`, as a decision reads it.
pub(crate) fn version_state(row: &Row) -> Result<VersionState, StoreError> {
    Ok(VersionState {
        projector: word(row, "projector")?,
        version: word::<Version>(row, "version")?,
        state: word(row, "state")?,
        in_activation: row.get("in_activation"),
        followed: row.get("follow"),
    })
}

/// A row of `states`, as a plan reads it.
pub(crate) fn known(row: &Row) -> Result<Known, StoreError> {
    Ok(Known {
        projector: word(row, "projector")?,
        version: word(row, "version")?,
        state: word(row, "state")?,
        fingerprint: row.get("fingerprint"),
    })
}

/// A row of `checkpoints`, as a plan reads it.
pub(crate) fn known_tables(row: &Row) -> Result<KnownTables, StoreError> {
    Ok(KnownTables {
        projector: word(row, "projector")?,
        major: major(row),
        position: row.get("position"),
        inline: row.get("inline"),
        tables_fingerprint: row.get("tables_fingerprint"),
        stalled: row
            .get::<_, Option<std::time::SystemTime>>("stalled_since")
            .and_then(|_| row.get::<_, Option<String>>("error")),
    })
}

/// The column `major`: never negative, we wrote it ourselves.
pub(crate) fn major(row: &Row) -> u64 {
    u64::try_from(row.get::<_, i64>("major")).unwrap_or_default()
}

/// A row of `read` or `read_stream`.
pub(crate) fn event(row: &Row) -> Result<RawEvent, StoreError> {
    let json = |column: &str| -> Result<_, StoreError> {
        let value: Option<postgres_types::Json<Box<serde_json::value::RawValue>>> = row.try_get(column)?;
        Ok(value.map(|json| json.0))
    };
    let metadata: Option<postgres_types::Json<serde_json::Value>> = row.try_get("metadata")?;
    Ok(RawEvent {
        event_type: row.get("type"),
        recorded: Recorded {
            position: row.get("position"),
            stream: word(row, "stream")?,
            revision: row.get("revision"),
            recorded_at: row.get("recorded_at"),
            metadata: metadata.map(|json| json.0),
            data: json("data")?.unwrap_or_default(),
        },
    })
}
