//! The tables of a version as the catalog describes them.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::types::Json;

use super::compare::{As, Column, KeyColumn};
use crate::store::quote::ident;
use crate::store::{Store, StoreError};

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Its columns by name.
    pub(super) columns: BTreeMap<String, ColumnShape>,
    /// Those of its primary key, in the key's order.
    pub(super) key: Vec<String>,
    /// That one, and what would do as one: unique, and never null.
    pub(super) unique: Vec<BTreeSet<String>>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColumnShape {
    /// Its type. One that the projector made itself is named without its schema.
    pub(super) sql_type: String,
    /// Whether it is such a one.
    own_type: bool,
    pub(super) compared_as: As,
}

/// The tables of a schema by name.
pub(super) async fn tables(
    store: &Store,
    client: &Client,
    schema: &str,
) -> Result<BTreeMap<String, Shape>, StoreError> {
    let rows = store.query(client, &store.sql.compared_tables, &[&schema]).await?;
    let own = [format!("{schema}."), format!("{}.", ident(schema))];
    let mut tables: BTreeMap<String, Shape> = BTreeMap::new();
    let mut keys: BTreeMap<String, BTreeMap<i32, String>> = BTreeMap::new();
    for row in &rows {
        let table: String = row.get("table_name");
        let shape = tables.entry(table.clone()).or_insert_with(|| {
            let unique = row.get::<_, Option<Json<_>>>("unique_keys").map(|Json(keys)| keys);
            Shape { unique: unique.unwrap_or_default(), ..Shape::default() }
        });
        let Some(name) = row.get::<_, Option<String>>("column_name") else { continue };
        if let Some(place) = row.get::<_, Option<i32>>("key_place") {
            keys.entry(table).or_default().insert(place, name.clone());
        }
        let sql_type: String = row.get("sql_type");
        let stripped = own.iter().find_map(|own| sql_type.strip_prefix(own.as_str()));
        let (sql_type, own_type) = (stripped.unwrap_or(&sql_type).to_owned(), stripped.is_some());
        let compared_as = match row.get("compared_as") {
            "json" => As::Json,
            "value" => As::Value,
            _ => As::Text,
        };
        shape.columns.insert(name, ColumnShape { sql_type, own_type, compared_as });
    }
    for (table, key) in keys {
        if let Some(shape) = tables.get_mut(&table) {
            shape.key = key.into_values().collect();
        }
    }
    Ok(tables)
}

impl Shape {
    /// What is not the same in another table.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (name, column) in &self.columns {
            match other.columns.get(name) {
                None => differences.push(format!("it has no column {name}")),
                Some(found) if found.sql_type != column.sql_type => {
                    differences.push(format!("{name} is {}, not {}", found.sql_type, column.sql_type));
                }
                Some(_) => {}
            }
        }
        let more = other.columns.keys().filter(|name| !self.columns.contains_key(*name));
        differences.extend(more.map(|name| format!("{name} is not in the definition")));
        if differences.is_empty() && !other.has_key(&self.key) {
            differences.push("it has another primary key".to_owned());
        }
        differences
    }

    /// Whether these columns tell its rows apart, as they do in another table; none do not in either.
    pub(super) fn has_key(&self, key: &[String]) -> bool {
        let columns: BTreeSet<String> = key.iter().cloned().collect();
        if columns.is_empty() { self.key.is_empty() } else { self.unique.contains(&columns) }
    }

    /// A key, by which two tables are compared that both have it.
    pub(super) fn key_columns(
        &self,
        key: &[String],
        found_schema: &str,
        expected_schema: &str,
    ) -> Vec<KeyColumn> {
        let key = key.iter().map(|name| {
            let column = &self.columns[name];
            let of = |schema: &str| {
                let schema = if column.own_type { format!("{}.", ident(schema)) } else { String::new() };
                format!("{schema}{}", column.sql_type)
            };
            KeyColumn {
                column: column.same(name),
                found_type: of(found_schema),
                expected_type: of(expected_schema),
            }
        });
        key.collect()
    }

    /// The other columns, each compared with the one of its name.
    pub(super) fn other_columns(&self) -> Vec<Column> {
        let others = self.columns.iter().filter(|(name, _)| !self.key.contains(name));
        others.map(|(name, column)| column.same(name)).collect()
    }
}

impl ColumnShape {
    /// A column that is compared with the one of its name.
    pub(super) fn same(&self, name: &str) -> Column {
        let (found, expected) = (ident(name), ident(name));
        Column { name: name.to_owned(), found, expected, compared_as: self.compared_as }
    }
}

#[cfg(test)]
pub(super) fn column(sql_type: &str, compared_as: As) -> ColumnShape {
    ColumnShape { sql_type: sql_type.to_owned(), own_type: false, compared_as }
}
