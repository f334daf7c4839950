//! Comparing rows with rows: one set-based statement for each page of keys, made for each table, as the statements of a fold
//! projector are.

use std::fmt::Write;

use postgres_types::{ToSql, Type};

use super::verdict::{RowDifference, RowDiffers, TableVerdict, Values};
use crate::store::quote::ident;
use crate::store::statements::Sql;
use crate::store::{On, Ready, StoreError};

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// By their type's own equality.
    Value,
    /// As text: their type has no equality, or one that lets differences pass.
    Text,
    /// As `jsonb`, unless it cannot be turned into that.
    Json,
}

/// A column on both sides.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// What it is in the rows that are there.
    pub(super) found: String,
    /// What it is in the rows that should be.
    pub(super) expected: String,
    pub(super) compared_as: As,
}

/// A column of the key, which has the same name on both sides.
#[derive(Debug, Clone)]
pub(super) struct KeyColumn {
    pub(super) column: Column,
    /// Its type on the two sides, for the bounds of a page.
    pub(super) found_type: String,
    pub(super) expected_type: String,
}

/// Two tables that should hold the same rows.
#[derive(Debug)]
pub(super) struct Comparison {
    /// What it is called.
    pub(super) table: String,
    /// The relation with the rows that are there.
    pub(super) found: String,
    /// The relation with those that should be.
    pub(super) expected: String,
    /// What tells rows apart; nothing where the tables have no primary key.
    pub(super) key: Vec<KeyColumn>,
    /// The other columns.
    pub(super) columns: Vec<Column>,
}

/// A stretch of keys, in text: above the first, up to the second.
#[derive(Debug, Clone, Default)]
pub(super) struct Page {
    pub(super) after: Option<Vec<String>>,
    pub(super) up_to: Option<Vec<String>>,
}

/// Which of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Found,
    Expected,
}

/// What of the rows that differ is to be told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Telling {
    pub(super) examples: usize,
    pub(super) values: bool,
}

/// A value in the form in which it is compared.
pub(super) fn comparable(expression: &str, compared_as: As) -> String {
    match compared_as {
        As::Value | As::Json => format!("({expression})"),
        As::Text => format!("({expression})::text"),
    }
}

/// Whether two values differ.
fn differs(found: &str, expected: &str, compared_as: As) -> String {
    match compared_as {
        As::Value | As::Text => format!("({found} IS DISTINCT FROM {expected})"),
        As::Json => format!(
            "(CASE WHEN {found}::text IS NOT DISTINCT FROM {expected}::text THEN false ELSE {} IS DISTINCT FROM {} END)",
            canonical(found),
            canonical(expected)
        ),
    }
}

/// JSON as text without regard to spaces and to the order of keys. `jsonb` holds no NUL.
fn canonical(json: &str) -> String {
    format!("CASE WHEN strpos({json}::text, E'\\\\u0000') > 0 THEN {json}::text ELSE {json}::jsonb::text END")
}

impl Comparison {
    /// The condition that a row of one side is on a page, with the parameters that it takes.
    fn on(&self, page: &Page, side: Side, params: &mut Vec<String>) -> String {
        let names: Vec<&str> = self
            .key
            .iter()
            .map(|key| match side {
                Side::Found => key.column.found.as_str(),
                Side::Expected => key.column.expected.as_str(),
            })
            .collect();
        let mut conditions = Vec::new();
        for (operator, bound) in [(">", &page.after), ("<=", &page.up_to)] {
            let Some(bound) = bound else { continue };
            let bounds = self.key.iter().zip(bound).map(|(key, value)| {
                params.push(value.clone());
                let sql_type = match side {
                    Side::Found => &key.found_type,
                    Side::Expected => &key.expected_type,
                };
                format!("${}::text::{sql_type}", params.len())
            });
            let bounds: Vec<String> = bounds.collect();
            conditions.push(format!("({}) {operator} ({})", names.join(", "), bounds.join(", ")));
        }
        if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) }
    }

    /// Reads a page of one side in the order of keys, as it is compared; with at most so many rows.
    pub(super) fn read(&self, page: &Page, side: Side, rows: Option<usize>) -> (String, Vec<String>) {
        let mut params = Vec::new();
        let relation = self.relation(side);
        let columns = self.key.iter().map(|key| &key.column).chain(&self.columns).map(|column| {
            let value = comparable(column.on(side), column.compared_as);
            format!("{value} AS {}", ident(&column.name))
        });
        let mut sql = format!(
            "SELECT {} FROM {relation} AS page{}",
            columns.collect::<Vec<_>>().join(", "),
            self.on(page, side, &mut params)
        );
        if !self.key.is_empty() {
            // With the alias: the names alone would be those of what is read, which may be text.
            let order = self.key.iter().map(|key| format!("page.{}", ident(&key.column.name)));
            let order: Vec<String> = order.collect();
            // Writing to a `String` cannot fail.
            let _ = write!(sql, " ORDER BY {}", order.join(", "));
        }
        if let Some(rows) = rows {
            let _ = write!(sql, " LIMIT {rows}");
        }
        (sql, params)
    }

    /// The key of the last row of a full page, from its lower bound on. No row: fewer are left.
    pub(super) fn key_at(&self, page: &Page, side: Side, rows: usize) -> (String, Vec<String>) {
        let mut params = Vec::new();
        let after = Page { after: page.after.clone(), up_to: None };
        let keys = || self.key.iter().map(|key| format!("page.{}", ident(&key.column.name)));
        let texts: Vec<String> = keys().map(|key| format!("{key}::text")).collect();
        let sql = format!(
            "SELECT ARRAY[{}] AS key FROM {} AS page{} ORDER BY {} OFFSET {} LIMIT 1",
            texts.join(", "),
            self.relation(side),
            self.on(&after, side, &mut params),
            keys().collect::<Vec<_>>().join(", "),
            rows.saturating_sub(1)
        );
        (sql, params)
    }

    /// Whether one key comes before another one.
    pub(super) fn is_before(&self, one: &[String], other: &[String]) -> (String, Vec<String>) {
        let mut params = Vec::new();
        let mut row = |values: &[String]| {
            let values = self.key.iter().zip(values).map(|(key, value)| {
                params.push(value.clone());
                format!("${}::text::{}", params.len(), key.found_type)
            });
            values.collect::<Vec<_>>().join(", ")
        };
        let (one, other) = (row(one), row(other));
        (format!("SELECT ({one}) < ({other}) AS before"), params)
    }

    fn relation(&self, side: Side) -> &str {
        match side {
            Side::Found => &self.found,
            Side::Expected => &self.expected,
        }
    }

    /// Compares a page, of which `found` alone may be known to hold nothing else.
    pub(super) async fn compare(
        &self,
        on: On<'_>,
        page: &Page,
        found_is_page: bool,
        telling: Telling,
        verdict: &mut TableVerdict,
    ) -> Result<(), StoreError> {
        let (joined, params) =
            if self.key.is_empty() { self.multisets() } else { self.joined(page, found_is_page) };
        let counts = format!(
            "SELECT coalesce(sum(f), 0)::bigint AS rows, coalesce(sum(e), 0)::bigint AS expected_rows,
                    coalesce(sum(e - f) FILTER (WHERE e > f), 0)::bigint AS missing,
                    coalesce(sum(f - e) FILTER (WHERE f > e), 0)::bigint AS extra,
                    count(*) FILTER (WHERE f = e AND differs) AS different
             FROM ({joined}) joined"
        );
        let row = run(on, counts, &params).await?.remove(0);
        let count = |column: &str| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default();
        let different = count("different");
        verdict.rows += count("rows");
        verdict.expected_rows += count("expected_rows");
        verdict.missing += count("missing");
        verdict.extra += count("extra");
        verdict.different += different;
        if different > 0 {
            self.count_columns(on, &joined, &params, verdict).await?;
        }
        let room = telling.examples.saturating_sub(verdict.examples.len());
        if count("missing") + count("extra") + different > 0
            && room > 0
            && (!self.key.is_empty() || telling.values)
        {
            self.tell(on, &joined, &params, Telling { examples: room, ..telling }, verdict).await?;
        }
        Ok(())
    }

    /// Both sides, joined by key: how many rows each has of it (one or none), whether they differ, and the columns.
    fn joined(&self, page: &Page, found_is_page: bool) -> (String, Vec<String>) {
        let mut params = Vec::new();
        let side =
            |side: Side, condition: &str| {
                let keys = self.key.iter().map(|key| &key.column).enumerate().map(|(at, column)| {
                    format!("{} AS k{at}", comparable(column.on(side), column.compared_as))
                });
                let columns = self.columns.iter().enumerate().map(|(at, column)| {
                    format!("{} AS c{at}", comparable(column.on(side), column.compared_as))
                });
                let values: Vec<String> =
                    std::iter::once("1::bigint AS one".to_owned()).chain(keys).chain(columns).collect();
                format!("SELECT {} FROM {}{condition}", values.join(", "), self.relation(side))
            };
        let whole = Page::default();
        let found = self.on(if found_is_page { &whole } else { page }, Side::Found, &mut params);
        let found = side(Side::Found, &found);
        let expected = self.on(page, Side::Expected, &mut params);
        let expected = side(Side::Expected, &expected);
        let by_key: Vec<String> =
            (0..self.key.len()).map(|at| format!("found.k{at} = expected.k{at}")).collect();
        let differ = self.columns.iter().enumerate().map(|(at, column)| {
            differs(&format!("found.c{at}"), &format!("expected.c{at}"), column.compared_as)
        });
        let differ: Vec<String> = std::iter::once("false".to_owned()).chain(differ).collect();
        let keys = (0..self.key.len()).map(|at| format!("coalesce(found.k{at}, expected.k{at}) AS k{at}"));
        let columns =
            (0..self.columns.len()).map(|at| format!("found.c{at} AS f{at}, expected.c{at} AS e{at}"));
        let rest: Vec<String> = keys.chain(columns).collect();
        let joined = format!(
            "SELECT coalesce(found.one, 0) AS f, coalesce(expected.one, 0) AS e, ({}) AS differs, {}
             FROM ({found}) found FULL JOIN ({expected}) expected ON {}",
            differ.join(" OR "),
            rest.join(", "),
            by_key.join(" AND ")
        );
        (joined, params)
    }

    /// Both sides without a key: every row that there is, as text, and how often each side has it.
    fn multisets(&self) -> (String, Vec<String>) {
        let side = |side: Side| {
            let columns = self.columns.iter().map(|column| match column.compared_as {
                As::Json => canonical(&comparable(column.on(side), As::Json)),
                compared_as => format!("{}::text", comparable(column.on(side), compared_as)),
            });
            let columns: Vec<String> = columns.collect();
            format!(
                "SELECT whole, count(*) AS n FROM (SELECT ARRAY[{}]::text[] AS whole FROM {}) rows GROUP BY whole",
                columns.join(", "),
                self.relation(side)
            )
        };
        let columns: Vec<String> = (0..self.columns.len())
            .map(|at| format!("found.whole[{n}] AS f{at}, expected.whole[{n}] AS e{at}", n = at + 1))
            .collect();
        let columns = if columns.is_empty() { "NULL AS f0".to_owned() } else { columns.join(", ") };
        let joined = format!(
            "SELECT coalesce(found.n, 0) AS f, coalesce(expected.n, 0) AS e, false AS differs, {columns}
             FROM ({}) found FULL JOIN ({}) expected ON found.whole = expected.whole",
            side(Side::Found),
            side(Side::Expected)
        );
        (joined, Vec::new())
    }

    fn differ(&self, at: usize) -> String {
        differs(&format!("f{at}"), &format!("e{at}"), self.columns[at].compared_as)
    }

    async fn count_columns(
        &self,
        on: On<'_>,
        joined: &str,
        params: &[String],
        verdict: &mut TableVerdict,
    ) -> Result<(), StoreError> {
        let counts: Vec<String> = (0..self.columns.len())
            .map(|at| format!("count(*) FILTER (WHERE {})", self.differ(at)))
            .collect();
        let sql = format!(
            "SELECT ARRAY[{}] AS counts FROM ({joined}) joined WHERE f = e AND differs",
            counts.join(", ")
        );
        let row = run(on, sql, params).await?.remove(0);
        for (column, count) in self.columns.iter().zip(row.get::<_, Vec<i64>>("counts")) {
            if count > 0 {
                *verdict.columns.entry(column.name.clone()).or_default() += count.unsigned_abs();
            }
        }
        Ok(())
    }

    /// Tells the first rows that differ.
    async fn tell(
        &self,
        on: On<'_>,
        joined: &str,
        params: &[String],
        telling: Telling,
        verdict: &mut TableVerdict,
    ) -> Result<(), StoreError> {
        let array = |items: Vec<String>, of: &str| format!("ARRAY[{}]::{of}[]", items.join(", "));
        let columns = || 0..self.columns.len();
        let key = array((0..self.key.len()).map(|at| format!("k{at}::text")).collect(), "text");
        let differ = array(columns().map(|at| self.differ(at)).collect(), "boolean");
        let values = |side: &str| {
            let values = columns().filter(|_| telling.values).map(|at| format!("{side}{at}::text"));
            array(values.collect(), "text")
        };
        let order = match self.key.len() {
            0 => "found, expected".to_owned(),
            keys => (0..keys).map(|at| format!("k{at}")).collect::<Vec<_>>().join(", "),
        };
        let sql = format!(
            "SELECT f, e, {key} AS key, {differ} AS differ, {} AS found, {} AS expected
             FROM ({joined}) joined WHERE f <> e OR differs ORDER BY {order} LIMIT {}",
            values("f"),
            values("e"),
            telling.examples
        );
        for row in run(on, sql, params).await? {
            let difference = match row.get::<_, i64>("f").cmp(&row.get("e")) {
                std::cmp::Ordering::Less => RowDiffers::Missing,
                std::cmp::Ordering::Greater => RowDiffers::Extra,
                std::cmp::Ordering::Equal => RowDiffers::Different,
            };
            let differ: Vec<Option<bool>> = row.get("differ");
            let told = |at: usize| difference != RowDiffers::Different || differ[at] == Some(true);
            let names = columns().filter(|at| difference == RowDiffers::Different && told(*at));
            let key: Vec<String> = row.get("key");
            let values = telling.values.then(|| {
                let found: Vec<Option<String>> = row.get("found");
                let expected: Vec<Option<String>> = row.get("expected");
                let told = columns().filter(|at| told(*at));
                told.map(|at| Values {
                    column: self.columns[at].name.clone(),
                    found: found[at].clone(),
                    expected: expected[at].clone(),
                })
                .collect()
            });
            verdict.examples.push(RowDifference {
                difference,
                key: self.key.iter().map(|key| key.column.name.clone()).zip(key).collect(),
                columns: names.map(|at| self.columns[at].name.clone()).collect(),
                values,
            });
        }
        Ok(())
    }
}

impl Column {
    fn on(&self, side: Side) -> &str {
        match side {
            Side::Found => &self.found,
            Side::Expected => &self.expected,
        }
    }
}

/// Runs a statement that was made for these tables alone: unnamed, so that it stays in no cache.
pub(super) async fn run(
    on: On<'_>,
    text: String,
    params: &[String],
) -> Result<Vec<tokio_postgres::Row>, StoreError> {
    let sql = Sql { text, types: vec![Type::TEXT; params.len()] };
    let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param as _).collect();
    Ready::Unnamed(&sql).query(on, &params).await
}
