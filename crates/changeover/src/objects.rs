//! What stands in a schema, and how it is dropped: only that, and nothing along with it.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::store::{Store, StoreError};

/// Something that stands in a schema by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    /// As it is dropped: `TABLE`.
    pub(crate) kind: String,
    /// Its name, quoted where it has to be: `orders_v1.orders`.
    pub(crate) identity: String,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.to_lowercase(), self.identity)
    }
}

/// What stands in a schema by itself.
pub(crate) async fn all(store: &Store, client: &Client, schema: &str) -> Result<Vec<Object>, StoreError> {
    let rows = store.query(client, &store.sql.objects, &[&schema]).await?;
    Ok(rows.iter().map(|row| Object { kind: row.get("kind"), identity: row.get("identity") }).collect())
}

/// What stands on others comes before them, as far as that can be told by its kind.
const KINDS: [&str; 7] =
    ["VIEW", "MATERIALIZED VIEW", "TABLE", "FOREIGN TABLE", "SEQUENCE", "ROUTINE", "TYPE"];

/// Drops what nothing else among the objects depends on, and returns the rest. An error if that is all.
pub(crate) async fn drop_free(client: &Client, objects: Vec<Object>) -> Result<Vec<Object>, StoreError> {
    let (before, mut left) = (objects.len(), Vec::new());
    let mut refused = None;
    for kind in KINDS {
        let of_kind: Vec<Object> = objects.iter().filter(|object| object.kind == kind).cloned().collect();
        // Together, since they may refer to each other; else one by one, since others may refer to some of them.
        if of_kind.is_empty() || dropped(client, &of_kind).await?.is_ok() {
            continue;
        }
        for object in of_kind {
            if let Err(error) = dropped(client, std::slice::from_ref(&object)).await? {
                refused = Some(error);
                left.push(object);
            }
        }
    }
    match refused {
        Some(error) if left.len() == before => Err(error),
        _ => Ok(left),
    }
}

/// Drops objects of one kind, unless something else depends on them.
async fn dropped(client: &Client, objects: &[Object]) -> Result<Result<(), StoreError>, StoreError> {
    let names: Vec<&str> = objects.iter().map(|object| object.identity.as_str()).collect();
    let statement = format!("SAVEPOINT own; DROP {} {} RESTRICT", objects[0].kind, names.join(", "));
    match client.batch_execute(&statement).await.map_err(StoreError::from) {
        Ok(()) => {
            client.batch_execute("RELEASE SAVEPOINT own").await?;
            Ok(Ok(()))
        }
        Err(error) if is_depended_on(&error) => {
            client.batch_execute("ROLLBACK TO SAVEPOINT own; RELEASE SAVEPOINT own").await?;
            Ok(Err(error))
        }
        Err(error) => Err(error),
    }
}

fn is_depended_on(error: &StoreError) -> bool {
    let StoreError::Database(error) = error else { return false };
    error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST)
}
