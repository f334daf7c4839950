//! Checking the tables, and taking them over: one transaction, whose locks last for one statement sent with its commit.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};

use futures_util::future::join;
use postgres_types::{Json, ToSql};
use tokio::time::sleep;
use tokio_postgres::Client;

use super::shape::{Shape, differences};
use super::{AdoptAt, AdoptError, AdoptOptions, Standing, standing};
use crate::activation::{ActivationProgress, OnActivation};
use crate::core::Core;
use crate::in_flight::{Blocker, lock_holders};
use crate::objects;
use crate::projector::Registered;
use crate::store::quote::{ident, relation};
use crate::store::{Store, StoreError};
use crate::views;
use crate::views::properties::Properties;
use crate::wake::Hint;
use crate::words::position::Position;
use crate::words::state::ProjectorState;

/// As for the views: short readers come to their end, and nobody queues for long.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '30ms'; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// How often whoever holds a table is looked at.
const POLL: Duration = Duration::from_millis(100);

/// What the schema is called while the definition's own tables are in its place.
const ASIDE: &str = "changeover_adopting";

/// Tables that are as they are defined.
pub(super) struct Tables {
    shapes: Vec<Shape>,
    /// What is ours of the schema, once they are: what the definition makes there, of which a move brings the tables alone.
    objects: Vec<String>,
}

/// Holds the tables against what the version's own DDL makes, in a transaction that is undone. Returns them as they are.
pub(super) async fn check(
    store: &Store,
    client: &Client,
    registered: &Registered,
    elsewhere: Option<&str>,
) -> Result<Tables, AdoptError> {
    client.batch_execute(BEGIN).await?;
    let checked = checking(store, client, registered, elsewhere).await;
    client.batch_execute("ROLLBACK").await?;
    checked
}

async fn checking(
    store: &Store,
    client: &Client,
    registered: &Registered,
    elsewhere: Option<&str>,
) -> Result<Tables, AdoptError> {
    let (projector, version) = registered.id();
    let schema = &registered.schema;
    let present: bool = store.query_one(client, &store.sql.schema_exists, &[schema]).await?.get("present");
    if present && elsewhere.is_some() {
        return Err(AdoptError::SchemaIsThere { schema: schema.clone(), projector, version });
    }
    if present {
        client.batch_execute(&format!("ALTER SCHEMA {} RENAME TO {}", ident(schema), ident(ASIDE))).await?;
    }
    let ddl = format!("CREATE SCHEMA {};\n{}{}", ident(schema), registered.tables, registered.indexes.all());
    client.batch_execute(&ddl).await.map_err(|source| AdoptError::Ddl {
        projector: projector.clone(),
        version: version.clone(),
        source: source.into(),
    })?;
    let defined = shapes(store, client, schema, None).await?;
    let names: Vec<&str> = defined.iter().map(|shape| shape.name.as_str()).collect();
    let found = shapes(store, client, elsewhere.unwrap_or(ASIDE), Some(&names)).await?;
    let differences = differences(elsewhere.unwrap_or(schema), &defined, &found, elsewhere.is_some());
    if !differences.is_empty() {
        return Err(AdoptError::Different { projector, version, differences });
    }
    let objects = objects::all(store, client, schema).await?;
    let ours = objects.iter().filter(|object| elsewhere.is_none() || object.kind == "TABLE");
    Ok(Tables { shapes: found, objects: ours.map(ToString::to_string).collect() })
}

async fn shapes(
    store: &Store,
    client: &Client,
    schema: &str,
    names: Option<&[&str]>,
) -> Result<Vec<Shape>, StoreError> {
    let rows = store.query(client, &store.sql.table_shapes, &[&schema, &names]).await?;
    Ok(rows.iter().map(Shape::read).collect())
}

/// Takes the tables over. Returns the names of those that were moved.
#[expect(clippy::too_many_arguments, reason = "it is one thought, and has one caller")]
pub(super) async fn take_over(
    core: &Core,
    client: &Client,
    registered: &Registered,
    options: &AdoptOptions,
    elsewhere: Option<&str>,
    tables: &Tables,
    horizon: Position,
    on_progress: OnActivation<'_>,
) -> Result<Vec<String>, AdoptError> {
    let relations: Vec<u32> = tables.shapes.iter().map(|table| table.relation).collect();
    let started = Instant::now();
    let mut held: Vec<Blocker> = Vec::new();
    loop {
        let asked = held.is_empty();
        if asked {
            let taken = once(core, client, registered, options, elsewhere, tables, horizon).await;
            match taken {
                Ok(moved) => return Ok(moved),
                Err(AdoptError::Store(error)) if error.is_lock_not_available() => {}
                Err(error) => return Err(error),
            }
        }
        // Whoever held a table when it was asked for: while one of them does still, asking again would only hold up others.
        let mut now = lock_holders(&core.store, client, &relations).await?;
        if !asked {
            now.retain(|now| held.iter().any(|then| then.transaction == now.transaction));
        }
        if started.elapsed() >= options.move_timeout {
            return Err(AdoptError::Blocked { blockers: now, after: started.elapsed() });
        }
        if !now.is_empty() {
            let projector = registered.target.projector.clone();
            on_progress(ActivationProgress::WaitingForReaders { projector, readers: now.clone() });
        }
        held = now;
        sleep(POLL).await;
    }
}

async fn once(
    core: &Core,
    client: &Client,
    registered: &Registered,
    options: &AdoptOptions,
    elsewhere: Option<&str>,
    tables: &Tables,
    horizon: Position,
) -> Result<Vec<String>, AdoptError> {
    client.batch_execute(BEGIN).await?;
    let prepared = prepare(core, client, registered, options, elsewhere, tables, horizon).await;
    let (ddl, moved) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            client.batch_execute("ROLLBACK").await?;
            return Err(error);
        }
    };
    // Sent together: nobody can stop in between on our side, neither with the tables locked nor before the generation is set.
    let last = format!("{ddl}COMMIT");
    let committed = client.batch_execute(&last);
    let set = core.store.query_one(client, &core.store.sql.set_generation, &[]);
    let (committed, set) = join(committed, set).await;
    if let Err(error) = committed {
        client.batch_execute("ROLLBACK").await?;
        return Err(error.into());
    }
    set?;
    core.store.hint(client, Hint::States).await;
    Ok(moved)
}

async fn prepare(
    core: &Core,
    client: &Client,
    registered: &Registered,
    options: &AdoptOptions,
    elsewhere: Option<&str>,
    tables: &Tables,
    horizon: Position,
) -> Result<(String, Vec<String>), AdoptError> {
    let store = &core.store;
    store.query_one(client, &store.sql.lock_registration, &[]).await?;
    if let Standing::Adopted = standing(store, client, registered, options.position).await? {
        return Ok((String::new(), Vec::new()));
    }
    let target = &registered.target;
    let (projector, version) = (target.projector.as_str(), target.version.to_string());
    let (position, current) = match options.position {
        AdoptAt::Position(position) => (position, false),
        AdoptAt::Horizon => (horizon, true),
    };
    let checkpoint: [&(dyn ToSql + Sync); 6] = [
        &projector,
        &registered.major(),
        &position,
        &current,
        &target.tables_fingerprint.as_str(),
        &tables.objects,
    ];
    store.query_one(client, &store.sql.adopt_checkpoint, &checkpoint).await?;
    let state: [&(dyn ToSql + Sync); 6] = [
        &projector,
        &version,
        &ProjectorState::Replaying.as_str(),
        &target.delivery.as_str(),
        &target.fingerprint.as_str(),
        &options.activation.requested_by,
    ];
    store.query_one(client, &store.sql.register_version, &state).await?;
    let Some(elsewhere) = elsewhere else { return Ok((String::new(), Vec::new())) };

    let mut ddl = format!("CREATE SCHEMA {};\n", ident(&registered.schema));
    let mut users = BTreeSet::new();
    for table in &tables.shapes {
        let properties = views::properties_of(store, client, table.relation).await?;
        users.extend(
            properties
                .grants
                .iter()
                .filter(|grant| grant.column.is_none())
                .map(|grant| grant.grantee.clone()),
        );
        ddl += &moving(store, client, registered, elsewhere, table, &properties).await?;
        // Then the views that are left in their places are the stable ones.
        if elsewhere == projector && core.stable_views {
            let kept: Option<Json<Properties>> = None;
            store.query_one(client, &store.sql.keep_view, &[&projector, &table.name, &kept]).await?;
        }
    }
    for user in users {
        let user = user.map_or_else(|| "PUBLIC".to_owned(), |user| ident(&user));
        // Writing to a `String` cannot fail.
        let _ = writeln!(ddl, "GRANT USAGE ON SCHEMA {} TO {user};", ident(&registered.schema));
    }
    let moved = tables.shapes.iter().map(|table| format!("{elsewhere}.{}", table.name)).collect();
    Ok((ddl, moved))
}

/// Moves a table, and leaves a view in its place that can be read and written like it, by the same people.
async fn moving(
    store: &Store,
    client: &Client,
    registered: &Registered,
    elsewhere: &str,
    table: &Shape,
    properties: &Properties,
) -> Result<String, StoreError> {
    let (before, after) = (relation(elsewhere, &table.name), relation(&registered.schema, &table.name));
    let columns = table.column_names();
    let roles = views::roles_of(store, client, properties).await?;
    let view = views::create("CREATE VIEW", &before, "", &columns, &after);
    let given = properties.give(&before, &columns, &roles);
    Ok(format!("ALTER TABLE {before} SET SCHEMA {};\n{view}{given}", ident(&registered.schema)))
}
