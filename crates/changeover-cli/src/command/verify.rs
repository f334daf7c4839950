//! What `verify` is told.

use std::str::FromStr;
use std::time::Duration;

use changeover::semver::Version;
use changeover::{BetweenOptions, Declared, ProjectorName, VerifyOptions};
use clap::Args;

use super::PaceArgs;
use super::values::duration;

/// What `verify` is told.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The projector
    pub projector: ProjectorName,
    /// Compare the tables of NEW with those of OLD instead, by SQL alone; both must stand at one position
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    pub between: Option<Vec<Version>>,
    /// What a column of NEW should be, as an expression over the columns of OLD
    #[arg(long, value_name = "TABLE.COLUMN=SQL", requires = "between")]
    map: Vec<Mapping>,
    /// A table, or a column, that is not compared
    #[arg(long, value_name = "TABLE[.COLUMN]", requires = "between")]
    leave_out: Vec<Place>,
    /// How many of the rows that differ are named in each table
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub examples: usize,
    /// Show the values of those rows as well, not just their keys and the columns that differ
    #[arg(long)]
    pub show_values: bool,
    /// How long to wait where appends that stay open hold the log up, or until two versions stand at one position
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub patience: Duration,
    /// How fast.
    #[command(flatten)]
    pub pace: PaceArgs,
}

/// A table, or a column of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    table: String,
    column: Option<String>,
}

/// A column and what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    table: String,
    column: String,
    expression: String,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (table, column) = match text.split_once('.') {
            Some((table, column)) => (table, Some(column)),
            None => (text, None),
        };
        if table.is_empty() || column.is_some_and(str::is_empty) {
            return Err("examples: orders, orders.note".to_owned());
        }
        Ok(Self { table: table.to_owned(), column: column.map(str::to_owned) })
    }
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(place, expression)| {
            let Place { table, column } = place.trim().parse().ok()?;
            Some(Self { table, column: column?, expression: expression.trim().to_owned() })
        });
        let is_whole = |mapping: &Self| !mapping.expression.is_empty();
        parts.filter(is_whole).ok_or_else(|| "an example: orders.cents=euros * 100".to_owned())
    }
}

impl VerifyArgs {
    pub(crate) fn options(&self) -> VerifyOptions {
        VerifyOptions {
            pace: self.pace.pace(),
            examples: self.examples,
            show_values: self.show_values,
            patience: self.patience,
            ..VerifyOptions::default()
        }
    }

    /// The two versions that are to be compared with each other, and how.
    pub(crate) fn between(&self) -> Option<(&Version, &Version, BetweenOptions)> {
        let [old, new] = self.between.as_deref()? else { return None };
        let mapped = self.map.iter().cloned().map(|Mapping { table, column, expression }| Declared::Mapped {
            table,
            column,
            expression,
        });
        let left_out =
            self.leave_out.iter().cloned().map(|Place { table, column }| Declared::LeftOut { table, column });
        let options = BetweenOptions {
            declared: mapped.chain(left_out).collect(),
            examples: self.examples,
            show_values: self.show_values,
            patience: self.patience,
            ..BetweenOptions::default()
        };
        Some((old, new, options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_columns_are_told_apart() {
        let check = |text: &str, expected: Option<(&str, Option<&str>)>| {
            let place: Result<Place, _> = text.parse();
            let found = place.as_ref().ok().map(|place| (place.table.as_str(), place.column.as_deref()));
            assert_eq!(found, expected, "{text}");
        };
        check("orders", Some(("orders", None)));
        check("orders.note", Some(("orders", Some("note"))));
        check("orders.a.b", Some(("orders", Some("a.b"))));
        check("orders.", None);
        check(".note", None);
        check("", None);
    }

    #[test]
    fn an_expression_is_everything_after_the_first_equals_sign() {
        let check = |text: &str, expected: Option<(&str, &str, &str)>| {
            let mapping: Result<Mapping, _> = text.parse();
            let found = mapping.as_ref().ok();
            let found = found.map(|m| (m.table.as_str(), m.column.as_str(), m.expression.as_str()));
            assert_eq!(found, expected, "{text}");
        };
        check("orders.cents=euros * 100", Some(("orders", "cents", "euros * 100")));
        check("orders.same = a = b", Some(("orders", "same", "a = b")));
        check("orders=1", None);
        check("orders.cents", None);
        check("orders.cents= ", None);
    }
}
