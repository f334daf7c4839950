//! A replay that has begun: which attempt at the tables it is, and that they are the version's own, as they were made.

use std::sync::Arc;

use postgres_types::ToSql;
use tokio_postgres::{Client, Row};

use super::ReplayError;
use crate::projector::Registered;
use crate::registration::{TableColumn, columns, filled};
use crate::store::{Store, StoreError};
use crate::words::position::Position;

/// A version that is being replayed.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(super) registered: Arc<Registered>,
    /// Which attempt at its tables this is. Whoever starts over begins another one, and what is still at this one is refused.
    pub(super) attempt: i32,
}

impl Begun {
    /// Joins the attempt that the tables are at.
    ///
    /// # Errors
    ///
    /// The tables hold rows that nobody replayed, or are not as they were made.
    pub(crate) async fn join(
        store: &Store,
        client: &Client,
        registered: &Arc<Registered>,
    ) -> Result<Self, ReplayError> {
        let (projector, version) = registered.id();
        let Some(first) = read(store, client, registered).await? else {
            let state = "not registered".to_owned();
            return Err(ReplayError::NotReplaying { projector, version, state });
        };
        unaltered(store, client, registered, &first).await?;
        // In this order: rows that are there now come with a checkpoint that is there then.
        let filled = filled(client, &first.get::<_, Vec<String>>("objects")).await?;
        let Some(row) = read(store, client, registered).await? else {
            return Err(ReplayError::StartedOver { projector, version });
        };
        let is_new = row.get::<_, Position>("furthest") == Position::START;
        let came_with_rows = row.get::<_, bool>("seeded") || row.get::<_, bool>("adopted");
        if let Some(table) = filled.into_iter().next().filter(|_| is_new && !came_with_rows) {
            return Err(ReplayError::NotEmpty { projector, version, table });
        }
        Ok(Self { registered: registered.clone(), attempt: row.get("attempt") })
    }

    /// Refuses where somebody has started over since.
    pub(super) async fn still(&self, store: &Store, client: &Client) -> Result<(), ReplayError> {
        still(store, client, &self.registered, self.attempt).await
    }
}

/// Refuses where an attempt is not the one that the tables are at.
pub(super) async fn still(
    store: &Store,
    client: &Client,
    registered: &Registered,
    attempt: i32,
) -> Result<(), ReplayError> {
    let row = read(store, client, registered).await?;
    if row.is_some_and(|row| row.get::<_, i32>("attempt") == attempt) {
        return Ok(());
    }
    let (projector, version) = registered.id();
    Err(ReplayError::StartedOver { projector, version })
}

pub(super) async fn read(
    store: &Store,
    client: &Client,
    registered: &Registered,
) -> Result<Option<Row>, StoreError> {
    let params: [&(dyn ToSql + Sync); 2] = [&registered.target.projector.as_str(), &registered.major()];
    store.query_opt(client, &store.sql.begun, &params).await
}

/// Refuses tables whose columns are not those that the version's DDL made.
pub(super) async fn unaltered(
    store: &Store,
    client: &Client,
    registered: &Registered,
    begun: &Row,
) -> Result<(), ReplayError> {
    let made: Vec<String> = begun.get("columns");
    let found = columns(store, client, &registered.schema).await?;
    let Some(difference) = difference(&made, &found) else { return Ok(()) };
    let (projector, version) = registered.id();
    Err(ReplayError::Altered { projector, version, difference })
}

/// How tables differ from what was made. A column more is no difference where rows can do without it.
fn difference(made: &[String], found: &[TableColumn]) -> Option<String> {
    let made: Vec<(&str, &str)> = made.iter().filter_map(|column| column.split_once(": ")).collect();
    let table = |name: &str| name.rsplit_once('.').map_or("", |(table, _)| table).to_owned();
    let changed =
        made.iter().find_map(|(name, was)| match found.iter().find(|column| column.name == *name) {
            None => Some(format!("column {name} is gone")),
            Some(column) if column.definition != *was => {
                Some(format!("column {name} is {}, and was made as {was}", column.definition))
            }
            Some(_) => None,
        });
    let ours = |column: &&TableColumn| made.iter().any(|(name, _)| table(name) == table(&column.name));
    let added = || {
        found.iter().filter(ours).find(|column| {
            let needed = column.definition.contains(" not null")
                && !column.definition.contains(" with a default")
                && !column.definition.contains(" generated");
            needed && made.iter().all(|(name, _)| *name != column.name)
        })
    };
    changed.or_else(|| added().map(|column| format!("column {} was added, and must be filled", column.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_rows_can_do_without_is_no_difference() {
        let check = |found: &[(&str, &str)], expected: Option<&str>| {
            let made = ["orders.id: text not null and number 1 of the primary key", "orders.cents: bigint"];
            let made: Vec<String> = made.into_iter().map(str::to_owned).collect();
            let found: Vec<TableColumn> = found
                .iter()
                .map(|(name, definition)| TableColumn {
                    name: (*name).to_owned(),
                    definition: (*definition).to_owned(),
                })
                .collect();
            assert_eq!(difference(&made, &found).as_deref(), expected);
        };
        let id = ("orders.id", "text not null and number 1 of the primary key");
        let cents = ("orders.cents", "bigint");
        check(&[id, cents], None);
        check(&[cents, id], None);
        check(&[id], Some("column orders.cents is gone"));
        check(
            &[id, ("orders.cents", "integer")],
            Some("column orders.cents is integer, and was made as bigint"),
        );
        check(
            &[("orders.id", "text not null"), cents],
            Some(
                "column orders.id is text not null, and was made as text not null and number 1 of the primary key",
            ),
        );
        check(&[id, cents, ("orders.note", "text")], None);
        check(&[id, cents, ("orders.note", "text not null with a default")], None);
        check(&[id, cents, ("orders.search", "tsvector not null generated")], None);
        check(&[id, cents, ("theirs.note", "text not null")], None);
        check(
            &[id, cents, ("orders.note", "text not null")],
            Some("column orders.note was added, and must be filled"),
        );
    }
}
