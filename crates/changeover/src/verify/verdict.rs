//! What a verification found: pure words.

use std::collections::BTreeMap;
use std::time::Duration;

use semver::Version;
use serde::Serialize;

use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[must_use]
pub struct Verified {
    /// The projector.
    pub projector: ProjectorName,
    /// The version whose tables were compared.
    pub version: Version,
    /// What they were compared with.
    pub against: Against,
    /// Where the tables stood when their first rows were compared.
    pub from: Position,
    /// Where they stood when their last ones were. Every row was compared at one position in between.
    pub to: Position,
    /// The events that were folded to compare with.
    pub events: u64,
    /// The events that the tables do without, since somebody skipped them: they were not folded either.
    pub skipped_events: usize,
    /// Each table.
    pub tables: Vec<TableVerdict>,
    /// How long it took.
    #[serde(rename = "elapsed_secs", serialize_with = "secs")]
    pub elapsed: Duration,
}

/// What tables were compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// With what this build makes of the log.
    Log,
    /// With the tables of another version.
    Version(Version),
}

/// What was found in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TableVerdict {
    /// Its name, without a schema.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
    /// How many it should have.
    pub expected_rows: u64,
    /// Rows that should be there and are not.
    pub missing: u64,
    /// Rows that are there and should not.
    pub extra: u64,
    /// Rows that are there with other values than they should have.
    pub different: u64,
    /// In how many rows each column differs; those that differ in none are not named.
    pub columns: BTreeMap<String, u64>,
    /// The first rows that differ, by key.
    pub examples: Vec<RowDifference>,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowDifference {
    /// How.
    pub difference: RowDiffers,
    /// Its key: each column with its value as text. Empty in a table that has no primary key.
    #[serde(serialize_with = "by_name")]
    pub key: Vec<(String, String)>,
    /// The columns that differ.
    pub columns: Vec<String>,
    /// The values of those columns, or of all of them where the row is on one side only. Asked for, or not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Values>>,
}

/// The values of a column on both sides, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Values {
    /// The column.
    pub column: String,
    /// What is there; none for null, and where there is no row.
    pub found: Option<String>,
    /// What should be.
    pub expected: Option<String>,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowDiffers {
    /// It should be there and is not.
    Missing,
    /// It is there and should not.
    Extra,
    /// It has other values.
    Different,
}

impl Verified {
    /// Whether nothing differs.
    pub fn is_equal(&self) -> bool {
        self.differences() == 0
    }

    /// How many rows differ, in whatever way.
    pub fn differences(&self) -> u64 {
        self.tables.iter().map(TableVerdict::differences).sum()
    }

    /// How many rows the tables have.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

impl TableVerdict {
    /// How many rows differ, in whatever way.
    pub fn differences(&self) -> u64 {
        self.missing + self.extra + self.different
    }
}

/// In one line: `orders 2.0.0 differs from the log in 3 rows (orders: 1 missing, 2 different)`.
impl std::fmt::Display for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { projector, version, .. } = self;
        let against = match &self.against {
            Against::Log => "the log".to_owned(),
            Against::Version(version) => version.to_string(),
        };
        if self.is_equal() {
            return write!(f, "{projector} {version} is equal to {against}");
        }
        let tables = self.tables.iter().filter(|table| table.differences() > 0).map(|table| {
            let TableVerdict { table: name, missing, extra, different, .. } = table;
            let counts = [(missing, "missing"), (extra, "extra"), (different, "different")];
            let counts: Vec<String> = counts
                .into_iter()
                .filter(|(count, _)| **count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            format!("{name}: {}", counts.join(", "))
        });
        let (rows, tables) = (self.differences(), tables.collect::<Vec<_>>().join("; "));
        let noun = if rows == 1 { "row" } else { "rows" };
        write!(f, "{projector} {version} differs from {against} in {rows} {noun} ({tables})")
    }
}

/// What to do where rows of versions differ that are not active yet.
pub(crate) fn to_mend(differ: &[Verified]) -> String {
    let names: Vec<&str> = differ.iter().map(|verified| verified.projector.as_str()).collect();
    let first = names.first().copied().unwrap_or_default();
    format!(
        "see all of it with `verify {first}`, mend the projector, and start over with `replay {} --restart`",
        names.join(" ")
    )
}

fn secs<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn by_name<S: serde::Serializer>(key: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(key.iter().map(|(column, value)| (column, value)))
}
