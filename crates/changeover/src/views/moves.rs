//! What becomes of one view: worked out from how it stands and what it should show. Pure.

use postgres_types::Json;
use tokio_postgres::Row;

use super::properties::Properties;
use crate::store::StoreError;
use crate::store::rows::word;
use crate::words::names::ProjectorName;

/// A column as far as a view cares: its name, and type, modifier and collation in one.
pub(crate) type ColumnKind = (String, String);

/// A view as it stands, beside the table that it should show. A row of `stable_views`.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) projector: ProjectorName,
    pub(crate) name: String,
    /// Whether the active version has a table of that name.
    pub(crate) wanted: bool,
    /// Whether the view of that name is ours.
    pub(crate) ours: bool,
    pub(crate) kept: Option<Properties>,
    /// The active major version.
    pub(crate) active: Option<u64>,
    pub(crate) schema_present: bool,
    /// Whatever has that name now.
    pub(crate) relation: Option<u32>,
    /// The major version that it shows, if it shows one at all.
    pub(crate) shows: Option<u64>,
    /// Its owner, if that one may not read the table.
    pub(crate) unreadable_by: Option<String>,
    pub(crate) table_columns: Vec<ColumnKind>,
    pub(crate) view_columns: Vec<ColumnKind>,
}

/// What becomes of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// It is as it should be.
    Keep,
    /// It is not there.
    Create,
    /// Its columns stay, more may come behind them.
    Replace,
    /// It has other columns: dropped, made again.
    MakeAnew,
    /// The active version has no such table.
    Drop,
    /// Something of that name is there and is not ours.
    Foreign,
}

impl Place {
    pub(crate) fn read(row: &Row) -> Result<Self, StoreError> {
        let major =
            |column: &str| row.get::<_, Option<i64>>(column).and_then(|major| u64::try_from(major).ok());
        let columns = |names: &str, kinds: &str| {
            let (names, kinds): (Vec<String>, Vec<String>) = (row.get(names), row.get(kinds));
            names.into_iter().zip(kinds).collect()
        };
        let kept: Option<Json<Properties>> = row.try_get("kept")?;
        Ok(Self {
            projector: word(row, "projector")?,
            name: row.get("name"),
            wanted: row.get("wanted"),
            ours: row.get("ours"),
            kept: kept.map(|kept| kept.0),
            active: major("active"),
            schema_present: row.get("schema_present"),
            relation: row.get("relation"),
            shows: major("shows"),
            unreadable_by: row.get("unreadable_by"),
            table_columns: columns("table_columns", "table_kinds"),
            view_columns: columns("view_columns", "view_kinds"),
        })
    }

    /// Its full name, for people.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.projector, self.name)
    }

    /// The names of the table's columns, in order.
    pub(crate) fn columns(&self) -> Vec<String> {
        self.table_columns.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn wanted_move(&self) -> Move {
        let shown = self.shows.filter(|_| self.ours);
        match (self.wanted, self.relation, shown) {
            (true, None, _) => Move::Create,
            (true, Some(_), None) => Move::Foreign,
            (true, Some(_), Some(shown)) => {
                if Some(shown) == self.active && self.table_columns == self.view_columns {
                    Move::Keep
                } else if self.table_columns.starts_with(&self.view_columns) {
                    Move::Replace
                } else {
                    Move::MakeAnew
                }
            }
            (false, Some(_), Some(_)) => Move::Drop,
            (false, ..) => Move::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(shows: Option<u64>, table: &[(&str, &str)], view: &[(&str, &str)]) -> Place {
        let columns = |list: &[(&str, &str)]| {
            list.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect::<Vec<_>>()
        };
        Place {
            projector: "orders".parse().unwrap(),
            name: "orders".to_owned(),
            wanted: true,
            ours: true,
            kept: None,
            active: Some(2),
            schema_present: true,
            relation: Some(7),
            shows,
            unreadable_by: None,
            table_columns: columns(table),
            view_columns: columns(view),
        }
    }

    #[test]
    fn a_view_is_moved_by_the_lightest_means_that_will_do() {
        let check = |place: Place, expected| assert_eq!(place.wanted_move(), expected, "{place:?}");
        let (a, b) = (("a", "25/-1/100"), ("b", "20/-1/0"));
        check(place(Some(2), &[a, b], &[a, b]), Move::Keep);
        check(place(Some(2), &[a, b], &[a]), Move::Replace);
        check(place(Some(1), &[a, b], &[a, b]), Move::Replace);
        check(place(Some(1), &[a, b], &[a]), Move::Replace);
        check(place(Some(3), &[a], &[a, b]), Move::MakeAnew);
        check(place(Some(1), &[a, b], &[b, a]), Move::MakeAnew);
        check(place(Some(1), &[("a", "20/-1/0"), b], &[a, b]), Move::MakeAnew);
        check(Place { relation: None, ..place(None, &[a], &[]) }, Move::Create);
        check(Place { ours: false, ..place(Some(1), &[a], &[a]) }, Move::Foreign);
        check(place(None, &[a], &[a]), Move::Foreign);
        let unwanted = Place { wanted: false, ..place(Some(1), &[], &[a]) };
        check(unwanted.clone(), Move::Drop);
        check(Place { ours: false, ..unwanted.clone() }, Move::Keep);
        check(Place { relation: None, ..unwanted.clone() }, Move::Keep);
        check(Place { shows: None, ..unwanted }, Move::Keep);
    }
}
