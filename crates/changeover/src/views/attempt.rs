//! One attempt to move the views of one projector: look, decide, then change everything in one statement that commits.

use std::collections::BTreeSet;

use postgres_types::Json;
use tokio_postgres::Client;

use super::moves::{Move, Place};
use super::properties::{Properties, Roles};
use super::{ProjectorViews, ViewProblem, places};
use crate::projector::chain;
use crate::store::quote::{ident, idents, relation};
use crate::store::{Store, StoreError};
use crate::words::names::ProjectorName;

/// What an attempt came to.
pub(super) enum Attempted {
    /// It ended, well or not.
    Done(ProjectorViews),
    /// Somebody holds one of these. Nothing was changed.
    Locked { active: Option<u64>, relations: Vec<u32> },
}

/// How long a request for a lock may wait, and with it everybody who comes after: short readers come to their end within it.
/// The other limit is for us: whoever stops in the middle, frozen or cut off, holds up nobody for longer.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '30ms'; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// Where a view is made to compare one of ours with.
const PROBE: &str = "changeover_probe";

/// What is known of the attempt when it fails.
#[derive(Default)]
struct Seen {
    active: Option<u64>,
    relations: Vec<u32>,
}

/// Makes an attempt. The connection is outside a transaction afterwards.
pub(super) async fn attempt(
    store: &Store,
    client: &Client,
    projector: &ProjectorName,
) -> Result<Attempted, StoreError> {
    let mut seen = Seen::default();
    let error = match attempting(store, client, projector, &mut seen).await {
        Ok(views) => return Ok(Attempted::Done(views)),
        Err(error) if error.is_disconnect() => return Err(error),
        Err(error) => error,
    };
    client.batch_execute("ROLLBACK").await?;
    let Seen { active, relations } = seen;
    if error.is_lock_not_available() {
        return Ok(Attempted::Locked { active, relations });
    }
    let problem = ViewProblem::Refused { projector: projector.clone(), reason: chain(&error) };
    let projector = projector.clone();
    Ok(Attempted::Done(ProjectorViews { projector, active, changed: vec![], problems: vec![problem] }))
}

async fn attempting(
    store: &Store,
    client: &Client,
    projector: &ProjectorName,
    seen: &mut Seen,
) -> Result<ProjectorViews, StoreError> {
    client.batch_execute(BEGIN).await?;
    store.query_one(client, &store.sql.lock_views, &[&projector.as_str()]).await?;
    // Looked at after the lock: whoever switches later comes after us, and looks again.
    let places = places(store, client, Some(projector)).await?;
    seen.active = places.iter().find_map(|place| place.active);
    let mut views = ProjectorViews {
        projector: projector.clone(),
        active: seen.active,
        changed: Vec::new(),
        problems: Vec::new(),
    };
    let schema_present = places.iter().any(|place| place.schema_present);
    if schema_present && !places.iter().any(|place| place.ours) {
        views.problems.push(ViewProblem::ForeignSchema { projector: projector.clone() });
        return undone(client, views).await;
    }
    let mut moves = Vec::new();
    for place in &places {
        match place.wanted_move() {
            Move::Keep => {}
            Move::Foreign => {
                views.problems.push(ViewProblem::ForeignRelation { relation: place.full_name() });
            }
            wanted => moves.push((place, wanted)),
        }
    }
    seen.relations = moves.iter().filter_map(|(place, _)| place.relation).collect();
    let mut ours = Vec::new();
    for (place, wanted) in moves {
        if is_as_made(store, client, place).await? {
            ours.push((place, wanted));
        } else {
            views.problems.push(ViewProblem::Altered { view: place.full_name() });
        }
    }
    // All or none: a statement that reads two views of a projector must not see two versions.
    let mut in_the_way = Vec::new();
    for (place, wanted) in &ours {
        in_the_way.extend(what_is_in_the_way(store, client, place, *wanted).await?);
    }
    if ours.is_empty() || !in_the_way.is_empty() {
        views.problems.extend(in_the_way);
        return undone(client, views).await;
    }
    let mut ddl = if schema_present {
        String::new()
    } else {
        format!("CREATE SCHEMA {};\n", ident(projector.as_str()))
    };
    for (place, wanted) in &ours {
        let changed = change(store, client, place, *wanted).await?;
        let params: [&(dyn postgres_types::ToSql + Sync); 3] =
            [&projector.as_str(), &place.name, &changed.kept.map(Json)];
        store.query_one(client, &store.sql.keep_view, &params).await?;
        ddl += &changed.ddl;
        views.changed.push(place.full_name());
    }
    // Sent with the commit: its locks last for as long as the server takes, whatever becomes of us.
    client.batch_execute(&format!("{ddl}COMMIT")).await?;
    Ok(views)
}

async fn undone(client: &Client, views: ProjectorViews) -> Result<ProjectorViews, StoreError> {
    client.batch_execute("ROLLBACK").await?;
    Ok(views)
}

/// Whether a view still says what we made it say: somebody may have given it a condition, which a new view would not have.
/// What we would have made is made beside it, compared, and undone.
async fn is_as_made(store: &Store, client: &Client, place: &Place) -> Result<bool, StoreError> {
    let (Some(view), Some(shows)) = (place.relation, place.shows) else { return Ok(true) };
    let probe = relation(place.projector.as_str(), PROBE);
    let columns: Vec<String> = place.view_columns.iter().map(|(name, _)| name.clone()).collect();
    let create = create("CREATE VIEW", &probe, "", &columns, &table(place, shows));
    match client.batch_execute(&format!("SAVEPOINT probing;\n{create}")).await {
        Ok(()) => {}
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_COLUMN) => {
            client.batch_execute("ROLLBACK TO SAVEPOINT probing").await?;
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    let same = store.query_one(client, &store.sql.same_view, &[&view, &probe]).await?.get("same");
    client.batch_execute("ROLLBACK TO SAVEPOINT probing").await?;
    Ok(same)
}

async fn what_is_in_the_way(
    store: &Store,
    client: &Client,
    place: &Place,
    wanted: Move,
) -> Result<Option<ViewProblem>, StoreError> {
    if let (Move::MakeAnew | Move::Drop, Some(view)) = (wanted, place.relation) {
        let rows = store.query(client, &store.sql.lost_with_view, &[&view]).await?;
        let dependents: Vec<String> = rows.iter().map(|row| row.get("what")).collect();
        if !dependents.is_empty() {
            return Ok(Some(ViewProblem::Dependents { view: place.full_name(), dependents }));
        }
    }
    if let Some(owner) = place.unreadable_by.clone() {
        let table =
            format!("{}.{}", place.projector.tables_schema(place.active.unwrap_or_default()), place.name);
        return Ok(Some(ViewProblem::Unreadable { view: place.full_name(), owner, table }));
    }
    Ok(None)
}

/// What changes a view, and what has to be kept of it.
struct Change {
    ddl: String,
    kept: Option<Properties>,
}

async fn change(store: &Store, client: &Client, place: &Place, wanted: Move) -> Result<Change, StoreError> {
    let view = relation(place.projector.as_str(), &place.name);
    let table = table(place, place.active.unwrap_or_default());
    let columns = place.columns();
    let had = match place.relation {
        Some(relation) => {
            let properties = properties_of(store, client, relation).await?;
            let columns: Vec<String> = place.view_columns.iter().map(|(name, _)| name.clone()).collect();
            Some(properties.and_of_other_columns(place.kept.clone(), &columns))
        }
        None => place.kept.clone(),
    };
    let roles = match &had {
        Some(had) => roles_of(store, client, had).await?,
        None => Roles::default(),
    };
    let options = had.as_ref().map_or_else(String::new, Properties::with_options);
    let given = had.as_ref().map_or_else(String::new, |had| had.give(&view, &columns, &roles));
    Ok(match wanted {
        Move::Create => {
            let ddl = create("CREATE VIEW", &view, &options, &columns, &table) + &given;
            Change { ddl, kept: None }
        }
        Move::Replace => {
            // A view that is replaced keeps everything but its options.
            let ddl = create("CREATE OR REPLACE VIEW", &view, &options, &columns, &table);
            let more: Vec<String> = columns.into_iter().skip(place.view_columns.len()).collect();
            let given = had.as_ref().map_or_else(String::new, |had| had.give_of(&view, &more, &roles));
            Change { ddl: ddl + &given, kept: None }
        }
        Move::MakeAnew => {
            let create = create("CREATE VIEW", &view, &options, &columns, &table);
            Change { ddl: format!("DROP VIEW {view};\n{create}{given}"), kept: had }
        }
        Move::Drop => Change { ddl: format!("DROP VIEW {view};\n"), kept: had },
        Move::Keep | Move::Foreign => panic!("BUG: {wanted:?} changes nothing"),
    })
}

fn table(place: &Place, major: u64) -> String {
    relation(&place.projector.tables_schema(major), &place.name)
}

/// What makes a view of a table. The columns are named: a column that comes later must not change what is read.
pub(crate) fn create(how: &str, view: &str, options: &str, columns: &[String], table: &str) -> String {
    let columns = idents(columns.iter().map(String::as_str));
    format!("{how} {view}{options} AS SELECT {columns} FROM {table};\n")
}

/// What people gave a relation.
pub(crate) async fn properties_of(
    store: &Store,
    client: &Client,
    relation: u32,
) -> Result<Properties, StoreError> {
    let row = store.query_one(client, &store.sql.relation_properties, &[&relation]).await?;
    let Json(properties) = row.try_get("properties")?;
    Ok(properties)
}

/// Who of those that some properties name is there.
pub(crate) async fn roles_of(
    store: &Store,
    client: &Client,
    properties: &Properties,
) -> Result<Roles, StoreError> {
    let named: BTreeSet<&str> = properties.roles().collect();
    let named: Vec<&str> = named.into_iter().collect();
    let row = store.query_one(client, &store.sql.grantees, &[&named]).await?;
    let set = |column: &str| row.get::<_, Vec<String>>(column).into_iter().collect();
    Ok(Roles { present: set("present"), by_default: set("by_default") })
}
