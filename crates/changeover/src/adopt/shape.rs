//! Tables as they are and as a definition says they should be: the differences, named. Pure.

use serde::Serialize;
use tokio_postgres::Row;

/// A table, as far as a definition says. A row of `table_shapes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) relation: u32,
    pub(crate) is_table: bool,
    pub(crate) row_security: bool,
    pub(crate) columns: Vec<ColumnShape>,
    pub(crate) keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnShape {
    pub(crate) name: String,
    pub(crate) sql: String,
    pub(crate) nullable: bool,
    pub(crate) generated: bool,
}

impl Shape {
    pub(crate) fn read(row: &Row) -> Self {
        let (names, types): (Vec<String>, Vec<String>) = (row.get("names"), row.get("types"));
        let (nullable, generated): (Vec<bool>, Vec<bool>) = (row.get("nullable"), row.get("generated"));
        let columns = names
            .into_iter()
            .zip(types)
            .zip(nullable.into_iter().zip(generated))
            .map(|((name, sql), (nullable, generated))| ColumnShape { name, sql, nullable, generated })
            .collect();
        Self {
            name: row.get("name"),
            relation: row.get("relation"),
            is_table: row.get("is_table"),
            row_security: row.get("row_security"),
            columns,
            keys: row.get("keys"),
        }
    }

    pub(crate) fn column_names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }
}

/// How a table differs from what a projector's version defines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "difference", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TableDifference {
    /// There is no such table.
    #[error("{table} is missing")]
    Missing {
        /// The table's full name.
        table: String,
    },
    /// Something else has its name.
    #[error("{table} is not a table")]
    NotATable {
        /// Its full name.
        table: String,
    },
    /// A column is missing.
    #[error("{table} has no column {column}")]
    MissingColumn {
        /// The table's full name.
        table: String,
        /// The column.
        column: String,
    },
    /// There is a column that the definition does not have.
    #[error("{table} has a column {column}, which is not in the definition")]
    AnotherColumn {
        /// The table's full name.
        table: String,
        /// The column.
        column: String,
    },
    /// The columns are the same, their order is not.
    #[error("the columns of {table} stand in the order {}, not {}", found.join(", "), defined.join(", "))]
    Order {
        /// The table's full name.
        table: String,
        /// As they stand.
        found: Vec<String>,
        /// As they are defined.
        defined: Vec<String>,
    },
    /// A column has another type.
    #[error("{table}.{column} is {found}, not {defined}")]
    Type {
        /// The table's full name.
        table: String,
        /// The column.
        column: String,
        /// The type that it has.
        found: String,
        /// The type that it should have.
        defined: String,
    },
    /// A column may be null and must not, or the other way round.
    #[error("{table}.{column} {}", if *found { "may be null" } else { "may not be null" })]
    Nullable {
        /// The table's full name.
        table: String,
        /// The column.
        column: String,
        /// Whether it may be null.
        found: bool,
    },
    /// A column is computed by the database, so nobody can write it; or should be, and is not.
    #[error("{table}.{column} {}", if *found { "is generated" } else { "is not generated" })]
    Generated {
        /// The table's full name.
        table: String,
        /// The column.
        column: String,
        /// Whether it is generated.
        found: bool,
    },
    /// Other columns tell its rows apart.
    #[error(
        "what is unique in {table} is {}, not {}",
        if found.is_empty() { "nothing".to_owned() } else { found.join(" and ") },
        if defined.is_empty() { "nothing".to_owned() } else { defined.join(" and ") }
    )]
    Keys {
        /// The table's full name.
        table: String,
        /// What is unique in it.
        found: Vec<String>,
        /// What is defined to be.
        defined: Vec<String>,
    },
    /// The table shows its readers different rows, which a view in its place would not.
    #[error(
        "{table} has row-level security, which a view in its place would not have: move it by hand and adopt it there"
    )]
    RowSecurity {
        /// The table's full name.
        table: String,
    },
}

/// How the tables of a schema differ from the defined ones. `moving`: views are to stand in their places.
pub(crate) fn differences(
    schema: &str,
    defined: &[Shape],
    found: &[Shape],
    moving: bool,
) -> Vec<TableDifference> {
    let mut differences = Vec::new();
    for defined in defined {
        let table = format!("{schema}.{}", defined.name);
        match found.iter().find(|found| found.name == defined.name) {
            None => differences.push(TableDifference::Missing { table }),
            Some(found) if !found.is_table => differences.push(TableDifference::NotATable { table }),
            Some(found) => {
                of_columns(&table, defined, found, &mut differences);
                if found.keys != defined.keys {
                    let (found, defined) = (found.keys.clone(), defined.keys.clone());
                    differences.push(TableDifference::Keys { table: table.clone(), found, defined });
                }
                if moving && found.row_security {
                    differences.push(TableDifference::RowSecurity { table });
                }
            }
        }
    }
    differences
}

fn of_columns(table: &str, defined: &Shape, found: &Shape, differences: &mut Vec<TableDifference>) {
    let before = differences.len();
    let of = |shape: &Shape, name: &str| shape.columns.iter().find(|column| column.name == name).cloned();
    for column in &defined.columns {
        let (table, name) = (table.to_owned(), column.name.clone());
        let Some(is) = of(found, &name) else {
            differences.push(TableDifference::MissingColumn { table, column: name });
            continue;
        };
        if is.sql != column.sql {
            let (table, column_name) = (table.clone(), name.clone());
            let (found, defined) = (is.sql, column.sql.clone());
            differences.push(TableDifference::Type { table, column: column_name, found, defined });
        }
        if is.nullable != column.nullable {
            let (table, column) = (table.clone(), name.clone());
            differences.push(TableDifference::Nullable { table, column, found: is.nullable });
        }
        if is.generated != column.generated {
            differences.push(TableDifference::Generated { table, column: name, found: is.generated });
        }
    }
    for column in found.column_names() {
        if of(defined, &column).is_none() {
            differences.push(TableDifference::AnotherColumn { table: table.to_owned(), column });
        }
    }
    // Where columns are missing their order is no news. It counts: a projector's own SQL may insert without naming columns.
    let (found, defined) = (found.column_names(), defined.column_names());
    if differences.len() == before && found != defined {
        differences.push(TableDifference::Order { table: table.to_owned(), found, defined });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns as `name type`, with `?` behind the type where it may be null and `=` where it is generated.
    fn shape(name: &str, columns: &[&str], keys: &[&str]) -> Shape {
        let column = |text: &&str| {
            let (name, sql) = text.split_once(' ').unwrap();
            let generated = sql.ends_with('=');
            let nullable = sql.ends_with('?');
            ColumnShape {
                name: name.to_owned(),
                sql: sql.trim_end_matches(['?', '=']).to_owned(),
                nullable,
                generated,
            }
        };
        Shape {
            name: name.to_owned(),
            relation: 7,
            is_table: true,
            row_security: false,
            columns: columns.iter().map(column).collect(),
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        }
    }

    #[test]
    fn every_difference_is_named() {
        let defined = [shape("orders", &["id text", "cents bigint", "note text?"], &["(id)"])];
        let check = |found: &[Shape], expected: &[&str]| {
            let differences = differences("public", &defined, found, true);
            let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected);
        };
        check(&defined, &[]);
        check(&[], &["public.orders is missing"]);
        let view = Shape { is_table: false, ..defined[0].clone() };
        check(&[view], &["public.orders is not a table"]);
        check(
            &[shape("orders", &["id text", "note text?", "cents bigint"], &["(id)"])],
            &["the columns of public.orders stand in the order id, note, cents, not id, cents, note"],
        );
        check(
            &[shape(
                "orders",
                &["id uuid", "cents bigint?", "more text", "note text="],
                &["(cents)", "(id)"],
            )],
            &[
                "public.orders.id is uuid, not text",
                "public.orders.cents may be null",
                "public.orders.note may not be null",
                "public.orders.note is generated",
                "public.orders has a column more, which is not in the definition",
                "what is unique in public.orders is (cents) and (id), not (id)",
            ],
        );
        check(
            &[shape("orders", &["id text", "cents bigint"], &[])],
            &["public.orders has no column note", "what is unique in public.orders is nothing, not (id)"],
        );
        let secured = Shape { row_security: true, ..defined[0].clone() };
        assert_eq!(differences("orders_v1", &defined, std::slice::from_ref(&secured), false), []);
        check(
            &[secured],
            &[
                "public.orders has row-level security, which a view in its place would not have: move it by hand and adopt it there",
            ],
        );
    }

    #[test]
    fn other_tables_beside_them_do_not_matter() {
        let orders = shape("orders", &["id text"], &["(id)"]);
        let found = [shape("customers", &["id text"], &[]), orders.clone()];
        assert_eq!(differences("public", &[orders], &found, true), []);
    }
}
