//! The raw database: the same rows into a table like the log's, through the same driver, and nothing else.

use anyhow::Result;
use changeover::StreamName;
use changeover::deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use changeover::tokio_postgres::types::{Json, Type};
use changeover::tokio_postgres::{Config, NoTls};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::OrderEvent;

/// A table like the log's, with its constraints and indexes, and a sequence like the log's.
const TABLE: &str = "
    CREATE SCHEMA bare;
    CREATE TABLE bare.events (LIKE changeover.events INCLUDING ALL);
    CREATE SEQUENCE bare.event_position AS bigint MINVALUE 0 START 0 CACHE 1;
    CREATE TABLE bare.orders (id text PRIMARY KEY, customer text NOT NULL, items integer NOT NULL, cents bigint NOT NULL)";

const ONE: &str = "
    INSERT INTO bare.events (position, stream, revision, type, data, metadata)
    VALUES (nextval('bare.event_position'), $1, $2, $3, $4, $5)";

const MANY: &str = "
    INSERT INTO bare.events (position, stream, revision, type, data, metadata)
    SELECT nextval('bare.event_position'), $1, e.ordinal, e.type, e.data, e.metadata
    FROM unnest($2::text[], $3::json[], $4::json[]) WITH ORDINALITY AS e (type, data, metadata, ordinal)";

const ROW: &str = "INSERT INTO bare.orders (id, customer, items, cents) VALUES ($1, 'Ada Lovelace', 0, 0)";

/// Makes the tables, beside a migrated schema of Changeover's.
pub(crate) async fn create(config: &Config) -> Result<()> {
    Ok(crate::server::client(config).await?.batch_execute(TABLE).await?)
}

/// A pool that does as little as a pool can.
pub(crate) fn pool(config: &Config, size: usize) -> Result<Pool> {
    let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(config.clone(), NoTls, manager);
    Ok(Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1).build()?)
}

/// The type and the data of an event, as the log stores them.
fn row(event: &OrderEvent) -> serde_json::Result<(&'static str, Box<RawValue>)> {
    #[derive(Serialize)]
    struct OrderPlaced<'e> {
        customer: &'e str,
        note: &'e str,
    }
    #[derive(Serialize)]
    struct ItemAdded<'e> {
        article: &'e str,
        cents: i64,
    }
    Ok(match event {
        OrderEvent::OrderPlaced { customer, note } => {
            ("OrderPlaced", to_raw_value(&OrderPlaced { customer, note })?)
        }
        OrderEvent::ItemAdded { article, cents } => {
            ("ItemAdded", to_raw_value(&ItemAdded { article, cents: *cents })?)
        }
    })
}

/// The rows of an append to a new stream, in one round trip: `VALUES` for one, `unnest` for several.
pub(crate) async fn insert(pool: &Pool, stream: &StreamName, events: &[OrderEvent]) -> Result<()> {
    let client = pool.get().await?;
    let stream = stream.as_str();
    let rows: Vec<_> = events.iter().map(row).collect::<Result<_, _>>()?;
    let inserted = if let [(event_type, data)] = &rows[..] {
        let types = [Type::TEXT, Type::INT8, Type::TEXT, Type::JSON, Type::JSON];
        let statement = client.prepare_typed_cached(ONE, &types).await?;
        let metadata: Option<Json<&RawValue>> = None;
        client.execute(&statement, &[&stream, &1_i64, event_type, &Json(&**data), &metadata]).await?
    } else {
        let (types, data): (Vec<_>, Vec<_>) = rows.iter().map(|(ty, data)| (*ty, Json(&**data))).unzip();
        let metadata: Vec<Option<Json<&RawValue>>> = rows.iter().map(|_| None).collect();
        let parameters = [Type::TEXT, Type::TEXT_ARRAY, Type::JSON_ARRAY, Type::JSON_ARRAY];
        let statement = client.prepare_typed_cached(MANY, &parameters).await?;
        client.execute(&statement, &[&stream, &types, &data, &metadata]).await?
    };
    assert_eq!(inserted, rows.len() as u64, "BUG: the raw INSERT inserted other rows");
    Ok(())
}

/// One row of a read model, committed.
pub(crate) async fn insert_order(pool: &Pool, stream: &StreamName) -> Result<()> {
    let client = pool.get().await?;
    let statement = client.prepare_typed_cached(ROW, &[Type::TEXT]).await?;
    client.execute(&statement, &[&stream.as_str()]).await?;
    Ok(())
}
