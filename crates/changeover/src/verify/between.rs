//! Comparing the tables of two versions with each other: by SQL alone, without the code of either.
//!
//! Both must stand at one position, or with no event in between, and every page is compared in one snapshot in which they do.
//! What is meant to differ is declared, column by column; what is neither the same nor declared is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use postgres_types::ToSql;
use semver::Version;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::info;

use super::compare::{self, Column, Comparison, Page, Side, Telling};
use super::shape::{self, Shape};
use super::verdict::{Against, TableVerdict, Verified};
use super::{OnVerify, VerifyError, VerifyProgress};
use crate::store::quote::relation;
use crate::store::{On, Store, StoreError};
use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// How two versions are to be compared.
///
/// ```
/// use changeover::{BetweenOptions, Declared};
/// let options = BetweenOptions {
///     declared: vec![
///         Declared::Mapped { table: "orders".into(), column: "cents".into(), expression: "euros * 100".into() },
///         Declared::LeftOut { table: "orders".into(), column: Some("euros".into()) },
///     ],
///     ..BetweenOptions::default()
/// };
/// ```
#[derive(Debug, Clone)]
pub struct BetweenOptions {
    /// What is meant to differ.
    pub declared: Vec<Declared>,
    /// How many rows of each version are compared at once.
    pub page_rows: usize,
    /// How many of the rows that differ are named in each table.
    pub examples: usize,
    /// Whether their values are told as well, not just their keys and the names of the columns.
    pub show_values: bool,
    /// How long to wait for a moment at which both stand at one position.
    pub patience: Duration,
}

impl Default for BetweenOptions {
    fn default() -> Self {
        Self {
            declared: Vec::new(),
            page_rows: 20_000,
            examples: 10,
            show_values: false,
            patience: Duration::from_secs(30),
        }
    }
}

/// A difference that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// A table, or a column of it, is not compared.
    LeftOut {
        /// The table.
        table: String,
        /// The column; none for the whole table.
        column: Option<String>,
    },
    /// A column of the second version is compared with an expression over the columns of the first one.
    Mapped {
        /// The table.
        table: String,
        /// The column of the second version.
        column: String,
        /// What it should be, in SQL.
        expression: String,
    },
}

/// Compares the tables of `version` with those of `with`: those should be its rows, but for what is declared.
pub(crate) async fn between(
    store: &Store,
    projector: &ProjectorName,
    with: &Version,
    version: &Version,
    options: &BetweenOptions,
    on_progress: OnVerify<'_>,
) -> Result<Verified, VerifyError> {
    let started = Instant::now();
    let refused = |reasons: Vec<String>| VerifyError::NotComparable {
        projector: projector.clone(),
        versions: [with.clone(), version.clone()],
        reasons,
    };
    if with.major == version.major {
        return Err(refused(vec!["they share their tables".to_owned()]));
    }
    let client = store.single().await?;
    let two = Two { store, client: &client, projector, versions: [with, version], options };
    let mut standing = two.snapshot().await?;
    let schemas = [with, version].map(|version| projector.tables_schema(version.major));
    let tables = [
        shape::tables(store, &client, &schemas[0]).await?,
        shape::tables(store, &client, &schemas[1]).await?,
    ];
    let comparisons = declared(&tables, &schemas, &options.declared).map_err(refused)?;
    two.try_expressions().await?;
    two.execute("COMMIT").await?;
    let from = standing.position;
    let mut verdicts = Vec::with_capacity(comparisons.len());
    for comparison in &comparisons {
        let mut verdict = TableVerdict { table: comparison.table.clone(), ..TableVerdict::default() };
        let mut page = Page::default();
        loop {
            standing = two.snapshot().await?;
            page.up_to = two.bound(comparison, &page).await?;
            let telling = Telling { examples: options.examples, values: options.show_values };
            comparison.compare(On::from(&client), &page, false, telling, &mut verdict).await?;
            two.execute("COMMIT").await?;
            on_progress(VerifyProgress::Comparing {
                projector: projector.clone(),
                version: version.clone(),
                table: verdict.table.clone(),
                rows: verdict.rows,
                position: standing.position,
            });
            let Some(last) = page.up_to.take() else { break };
            page.after = Some(last);
        }
        verdicts.push(verdict);
    }
    let verified = Verified {
        projector: projector.clone(),
        version: version.clone(),
        against: Against::Version(with.clone()),
        from,
        to: standing.position,
        events: 0,
        skipped_events: standing.skipped,
        tables: verdicts,
        elapsed: started.elapsed(),
    };
    info!(%verified, rows = verified.rows(), "verified");
    Ok(verified)
}

/// Two versions of a projector.
struct Two<'a> {
    store: &'a Store,
    client: &'a Client,
    projector: &'a ProjectorName,
    versions: [&'a Version; 2],
    options: &'a BetweenOptions,
}

/// Where both stand.
#[derive(Debug, Clone, Copy)]
struct Standing {
    position: Position,
    skipped: usize,
}

/// Where one of them stands.
#[derive(Debug, Clone, Copy)]
struct Stands {
    position: Position,
    /// How many events it does without.
    skipped: usize,
    /// Its shards stand at several positions.
    in_shards: bool,
    /// The two cannot be compared.
    apart: bool,
}

impl Two<'_> {
    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Begins a snapshot in which both stand at one position.
    async fn snapshot(&self) -> Result<Standing, VerifyError> {
        let started = Instant::now();
        loop {
            // Whatever an expression does, it changes nothing.
            self.execute(&format!("{}; SET TRANSACTION READ ONLY", super::SNAPSHOT)).await?;
            let [one, other] = self.stand().await?;
            if !one.apart && !other.apart {
                let position = one.position.max(other.position);
                return Ok(Standing { position, skipped: one.skipped + other.skipped });
            }
            self.execute("ROLLBACK").await?;
            if started.elapsed() > self.options.patience {
                return Err(self.apart([one, other], started.elapsed()));
            }
            sleep(super::AGAIN).await;
        }
    }

    fn apart(&self, stand: [Stands; 2], after: Duration) -> VerifyError {
        let projector = self.projector.clone();
        match stand.iter().zip(self.versions).find(|(stands, _)| stands.in_shards) {
            Some((_, version)) => VerifyError::InShards { projector, version: version.clone() },
            None => VerifyError::Apart {
                projector,
                versions: self.versions.map(Clone::clone),
                positions: stand.map(|stands| stands.position),
                after,
            },
        }
    }

    /// Where each of them stands.
    async fn stand(&self) -> Result<[Stands; 2], VerifyError> {
        let majors = self.versions.map(|version| i64::try_from(version.major).unwrap_or(i64::MAX));
        let params: [&(dyn ToSql + Sync); 3] = [&self.projector.as_str(), &majors[0], &majors[1]];
        let rows = self.store.query(self.client, &self.store.sql.verified_between, &params).await?;
        let mut stand = Vec::with_capacity(majors.len());
        for (version, major) in self.versions.into_iter().zip(majors) {
            let (projector, version) = (self.projector.clone(), version.clone());
            let row = rows.iter().find(|row| row.get::<_, i64>("major") == major);
            let Some(row) = row else { return Err(VerifyError::NotThere { projector, version }) };
            let in_shards = row.get("in_shards");
            stand.push(Stands {
                position: row.get("position"),
                skipped: usize::try_from(row.get::<_, i64>("skipped")).unwrap_or_default(),
                in_shards,
                apart: in_shards || row.get("apart"),
            });
        }
        Ok([stand[0], stand[1]])
    }

    /// Says which of the expressions is wrong, if one is.
    async fn try_expressions(&self) -> Result<(), VerifyError> {
        for declared in &self.options.declared {
            let Declared::Mapped { table, column, expression } = declared else { continue };
            let of = relation(&self.projector.tables_schema(self.versions[0].major), table);
            let sql = format!("SELECT ({expression}) FROM {of} LIMIT 0");
            if let Err(source) = compare::run(On::from(self.client), sql, &[]).await {
                let (table, column) = (table.clone(), column.clone());
                return Err(VerifyError::Expression { table, column, source });
            }
        }
        Ok(())
    }

    /// The last key of a page on which neither side has more rows than a page may have. None for the last page.
    async fn bound(&self, comparison: &Comparison, page: &Page) -> Result<Option<Vec<String>>, StoreError> {
        if comparison.key.is_empty() {
            return Ok(None);
        }
        let mut bounds = Vec::new();
        for side in [Side::Found, Side::Expected] {
            let (sql, params) = comparison.key_at(page, side, self.options.page_rows);
            let rows = compare::run(On::from(self.client), sql, &params).await?;
            bounds.extend(rows.first().map(|row| row.get::<_, Vec<String>>("key")));
        }
        let [one, other] = &bounds[..] else { return Ok(bounds.pop()) };
        let (sql, params) = comparison.is_before(one, other);
        let before: bool = compare::run(On::from(self.client), sql, &params).await?[0].get("before");
        Ok(Some(if before { one.clone() } else { other.clone() }))
    }
}

/// What is compared with what, or everything that is neither the same nor declared.
fn declared(
    tables: &[BTreeMap<String, Shape>; 2],
    schemas: &[String; 2],
    declared: &[Declared],
) -> Result<Vec<Comparison>, Vec<String>> {
    let mut unused: BTreeSet<usize> = (0..declared.len()).collect();
    let mut reasons = Vec::new();
    let mut find = |table: &str, column: Option<&str>| {
        let at = declared.iter().position(|declared| match declared {
            Declared::LeftOut { table: own, column: of } => own == table && of.as_deref() == column,
            Declared::Mapped { table: own, column: of, .. } => own == table && Some(of.as_str()) == column,
        })?;
        unused.remove(&at);
        Some(&declared[at])
    };
    let mut comparisons = Vec::new();
    let names: BTreeSet<&String> = tables.iter().flat_map(BTreeMap::keys).collect();
    for table in names {
        if find(table, None).is_some() {
            continue;
        }
        let [Some(first), Some(second)] = tables.each_ref().map(|tables| tables.get(table)) else {
            reasons.push(format!("only one of them has a table {table}"));
            continue;
        };
        // One that was adopted need not call it primary.
        let key = if first.key.is_empty() { &second.key } else { &first.key };
        let in_order = [first, second].iter().all(|shape| shape.key.is_empty() || shape.key == *key);
        if !in_order || !first.has_key(key) || !second.has_key(key) {
            reasons.push(format!("table {table} has another primary key in each"));
            continue;
        }
        let mut columns = Vec::new();
        let names: BTreeSet<&String> = first.columns.keys().chain(second.columns.keys()).collect();
        for name in names {
            let is_key = key.contains(name);
            let declared = find(table, Some(name));
            match (declared, first.columns.get(name), second.columns.get(name)) {
                (Some(_), ..) if is_key => {
                    reasons.push(format!("{table}.{name} is part of the key, which must be the same"));
                }
                (Some(Declared::LeftOut { .. }), ..) => {}
                (Some(Declared::Mapped { expression, .. }), _, Some(column)) => {
                    let same = column.same(name);
                    columns.push(Column { expected: expression.clone(), ..same });
                }
                (Some(Declared::Mapped { .. }), _, None) => {
                    reasons
                        .push(format!("{table}.{name} is mapped, and the second version has no such column"));
                }
                (None, Some(one), Some(other)) if one.sql_type == other.sql_type => {
                    if !is_key {
                        columns.push(other.same(name));
                    }
                }
                (None, Some(one), Some(other)) => reasons.push(format!(
                    "{table}.{name} is {} in the first version and {} in the second: map it or leave it out",
                    one.sql_type, other.sql_type
                )),
                (None, ..) => {
                    reasons.push(format!("only one of them has {table}.{name}: map it or leave it out"));
                }
            }
        }
        comparisons.push(Comparison {
            table: table.clone(),
            found: relation(&schemas[1], table),
            expected: relation(&schemas[0], table),
            key: second.key_columns(key, &schemas[1], &schemas[0]),
            columns,
        });
    }
    for at in unused {
        let (Declared::LeftOut { table, .. } | Declared::Mapped { table, .. }) = &declared[at];
        let column = match &declared[at] {
            Declared::LeftOut { column, .. } => column.as_deref(),
            Declared::Mapped { column, .. } => Some(column.as_str()),
        };
        let column = column.map_or_else(String::new, |column| format!(".{column}"));
        reasons.push(format!("{table}{column} is declared, and is in neither, or declared twice"));
    }
    if reasons.is_empty() { Ok(comparisons) } else { Err(reasons) }
}

#[cfg(test)]
mod tests {
    use super::super::compare::As;
    use super::*;

    /// Tables as `table: *key type, column type; ..`, with `+` where the key is not called primary.
    fn tables(text: &str) -> BTreeMap<String, Shape> {
        text.split("; ").filter(|text| !text.is_empty()).map(table).collect()
    }

    fn table(text: &str) -> (String, Shape) {
        let (name, columns) = text.split_once(": ").unwrap();
        let (mut shape, mut unique) = (Shape::default(), BTreeSet::new());
        for column in columns.split(", ") {
            let (marked, sql_type) = column.split_once(' ').unwrap();
            let name = marked.trim_start_matches(['*', '+']);
            if marked.starts_with('*') {
                shape.key.push(name.to_owned());
            }
            if marked != name {
                unique.insert(name.to_owned());
            }
            shape.columns.insert(name.to_owned(), shape::column(sql_type, As::Value));
        }
        shape.unique.push(unique);
        (name.to_owned(), shape)
    }

    fn out(table: &str, column: Option<&str>) -> Declared {
        Declared::LeftOut { table: table.to_owned(), column: column.map(str::to_owned) }
    }

    fn mapped(table: &str, column: &str, expression: &str) -> Declared {
        Declared::Mapped {
            table: table.to_owned(),
            column: column.to_owned(),
            expression: expression.to_owned(),
        }
    }

    fn check(one: &str, other: &str, declared: &[Declared], expected: Result<&[&str], &[&str]>) {
        let schemas = ["v1".to_owned(), "v2".to_owned()];
        let compared = super::declared(&[tables(one), tables(other)], &schemas, declared);
        let compared = compared.map(|comparisons| {
            let columns = comparisons.iter().flat_map(|comparison| {
                comparison
                    .columns
                    .iter()
                    .map(|column| format!("{}.{} = {}", comparison.table, column.name, column.expected))
            });
            columns.collect::<Vec<_>>()
        });
        match (compared, expected) {
            (Ok(compared), Ok(expected)) => assert_eq!(compared, expected),
            (Err(reasons), Err(expected)) => assert_eq!(reasons, expected),
            (compared, _) => panic!("{compared:?}"),
        }
    }

    #[test]
    fn what_is_neither_the_same_nor_declared_is_refused() {
        check("a: *id text, n int", "a: *id text, n int", &[], Ok(&["a.n = \"n\""]));
        let (old, new) = ("a: *id text, n int, o int; b: *id text", "a: *id text, n bigint, p int");
        check(
            old,
            new,
            &[],
            Err(&[
                "a.n is int in the first version and bigint in the second: map it or leave it out",
                "only one of them has a.o: map it or leave it out",
                "only one of them has a.p: map it or leave it out",
                "only one of them has a table b",
            ]),
        );
        let all = [mapped("a", "n", "n"), out("a", Some("o")), mapped("a", "p", "o + 1"), out("b", None)];
        check(old, new, &all, Ok(&["a.n = n", "a.p = o + 1"]));
        check("a: *id text, n int", "a: *id text, n int", &[mapped("a", "n", "n + 1")], Ok(&["a.n = n + 1"]));
    }

    #[test]
    fn what_is_declared_must_be_there() {
        let same = "a: *id text, n int";
        check(same, same, &[out("b", None)], Err(&["b is declared, and is in neither, or declared twice"]));
        check(
            same,
            same,
            &[out("a", Some("m"))],
            Err(&["a.m is declared, and is in neither, or declared twice"]),
        );
        let twice = [out("a", Some("n")), mapped("a", "n", "1")];
        check(same, same, &twice, Err(&["a.n is declared, and is in neither, or declared twice"]));
        check(
            "a: *id text, n int",
            "a: *id text",
            &[mapped("a", "n", "1")],
            Err(&["a.n is mapped, and the second version has no such column"]),
        );
    }

    #[test]
    fn keys_are_the_same() {
        let other = "table a has another primary key in each";
        check("a: *id text", "a: id text", &[], Err(&[other]));
        check("a: *id text, *n int", "a: *n int, *id text", &[], Err(&[other]));
        check("a: +id text, n int", "a: *id text, n int", &[], Ok(&["a.n = \"n\""]));
        check("a: *id text, n int", "a: +id text, n int", &[], Ok(&["a.n = \"n\""]));
        check("a: *id text, n int", "a: +id text, +n int", &[], Err(&[other]));
        check(
            "a: *id text",
            "a: *id text",
            &[out("a", Some("id"))],
            Err(&["a.id is part of the key, which must be the same"]),
        );
        check(
            "a: *id text",
            "a: *id uuid",
            &[],
            Err(&["a.id is text in the first version and uuid in the second: map it or leave it out"]),
        );
    }
}
