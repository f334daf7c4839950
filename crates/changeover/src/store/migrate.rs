//! Our own schema: brought up to date by refinery, under a lock of our own.

use std::time::Duration;

use changeover_migrations::MIGRATIONS;
use refinery::{Migration, Runner};
use tokio_postgres::{Client, Config};
use tracing::info;

use super::statements::Statements;
use super::{StoreError, connect};
use crate::words::names::SchemaName;

/// Why the schema was not brought up to date.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
    /// A migration failed, or one that was applied differs from ours.
    #[error(
        "a migration of schema {schema} failed: mend what the reason names, then run `migrate` again, which goes on from there"
    )]
    Migration {
        /// The schema.
        schema: SchemaName,
        /// What refinery says.
        #[source]
        source: Box<refinery::Error>,
    },
    /// Somebody else has been migrating for too long.
    #[error(
        "another migration of schema {schema} has held the lock for {after:?}: {holder}; end it, or try again"
    )]
    Locked {
        /// The schema.
        schema: SchemaName,
        /// Who holds the lock, as far as the server says.
        holder: String,
        /// How long we waited.
        after: Duration,
    },
    /// The schema is newer than this release, and says that this release cannot work with it.
    #[error(
        "schema {schema} is at version {found} and needs a release that knows version {needs}; this one knows {ours}: upgrade the application"
    )]
    SchemaIsNewer {
        /// The schema.
        schema: SchemaName,
        /// Its version.
        found: i32,
        /// What a release must know.
        needs: i32,
        /// What this one knows.
        ours: i32,
    },
    /// The schema is older than this release needs, or not there.
    #[error("schema {schema} is at version {found} and this release needs {ours}: run `changeover migrate`")]
    SchemaIsOlder {
        /// The schema.
        schema: SchemaName,
        /// Its version; 0 where there is none.
        found: i32,
        /// What this release needs.
        ours: i32,
    },
}

/// The version of the schema that this release knows.
pub(crate) fn newest() -> i32 {
    MIGRATIONS.last().map_or(0, |migration| migration.version)
}

/// How long to wait for somebody else's migration.
const LOCK_TIMEOUT: Duration = Duration::from_mins(2);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Brings the schema up to date. Any number of processes may do so at once. Returns the versions that were applied.
pub(crate) async fn migrate(config: &Config, schema: &SchemaName) -> Result<Vec<i32>, MigrateError> {
    let mut client = connect::single(config).await?;
    // A transaction holds the lock, since a pooler may hand a session's lock to somebody else; a try is repeated, since a
    // waiting lock request would hold back a CREATE INDEX CONCURRENTLY for as long as it waits.
    let mut locker = connect::single(config).await?;
    let lock = lock(&mut locker, schema).await?;
    client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await.map_err(StoreError::from)?;
    check_not_newer(&client, schema).await?;
    let migrations: Vec<Migration> = MIGRATIONS
        .iter()
        .map(|m| {
            let sql = m.sql.replace("{schema}", schema.as_str());
            Migration::unapplied(&format!("V{}__{}", m.version, m.name), &sql)
        })
        .collect::<Result<_, _>>()
        .map_err(|source| MigrateError::Migration { schema: schema.clone(), source: Box::new(source) })?;
    let mut runner = Runner::new(&migrations).set_abort_divergent(true).set_abort_missing(false);
    runner.set_migration_table_name(format!("{schema}.migrations"));
    let report = runner
        .run_async(&mut client)
        .await
        .map_err(|source| MigrateError::Migration { schema: schema.clone(), source: Box::new(source) })?;
    let applied: Vec<i32> = report.applied_migrations().iter().map(refinery::Migration::version).collect();
    if !applied.is_empty() {
        // Whoever runs decides anew, and finds out whether it can work with the schema as it is now.
        let set = Statements::render(schema).set_generation;
        client.query_typed_one(&set.text, &[]).await.map_err(StoreError::from)?;
    }
    lock.commit().await.map_err(StoreError::from)?;
    if !applied.is_empty() {
        info!(%schema, ?applied, "schema migrated");
    }
    Ok(applied)
}

async fn lock<'a>(
    locker: &'a mut Client,
    schema: &SchemaName,
) -> Result<tokio_postgres::Transaction<'a>, MigrateError> {
    let lock = locker.transaction().await.map_err(StoreError::from)?;
    // It sits there for as long as the migrations take.
    lock.batch_execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        .await
        .map_err(StoreError::from)?;
    let key = format!("changeover migrations of {schema}");
    let started = tokio::time::Instant::now();
    loop {
        let row = lock
            .query_typed_one(
                "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))",
                &[(&key, tokio_postgres::types::Type::TEXT)],
            )
            .await
            .map_err(StoreError::from)?;
        if row.get(0) {
            return Ok(lock);
        }
        let waited = started.elapsed();
        if waited > LOCK_TIMEOUT {
            let holder = lock_holder(&lock, &key).await?;
            return Err(MigrateError::Locked { schema: schema.clone(), holder, after: waited });
        }
        // A transaction for each try: a CREATE INDEX CONCURRENTLY that saw one in the middle of it waits for its end.
        lock.batch_execute("ROLLBACK; BEGIN").await.map_err(StoreError::from)?;
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn lock_holder(lock: &tokio_postgres::Transaction<'_>, key: &str) -> Result<String, StoreError> {
    let row = lock
        .query_typed_opt(
            "SELECT format('pid %s, application %s', l.pid, a.application_name)
             FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
               AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($1, 0)",
            &[(&key, tokio_postgres::types::Type::TEXT)],
        )
        .await?;
    Ok(row.map_or_else(|| "a session that just ended".to_owned(), |row| row.get(0)))
}

/// How far the schema has come, and what it asks of a release; none where it is not there.
async fn found(client: &Client, schema: &SchemaName) -> Result<Option<(i32, i32)>, StoreError> {
    let there = format!(
        "SELECT to_regclass('{schema}.compatibility') IS NOT NULL AND to_regclass('{schema}.migrations') IS NOT NULL"
    );
    if !client.query_typed_one(&there, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_typed_one(&Statements::render(schema).compatibility.text, &[]).await?;
    Ok(Some((row.get("version"), row.get("needs"))))
}

async fn check_not_newer(client: &Client, schema: &SchemaName) -> Result<Option<i32>, MigrateError> {
    let Some((found, needs)) = found(client, schema).await? else { return Ok(None) };
    let ours = newest();
    if needs > ours {
        return Err(MigrateError::SchemaIsNewer { schema: schema.clone(), found, needs, ours });
    }
    Ok(Some(found))
}

/// Whether this release can work with the schema as it is.
pub(crate) async fn check(config: &Config, schema: &SchemaName) -> Result<(), MigrateError> {
    let client = connect::single(config).await?;
    let found = check_not_newer(&client, schema).await?.unwrap_or(0);
    let ours = newest();
    if found < ours {
        return Err(MigrateError::SchemaIsOlder { schema: schema.clone(), found, ours });
    }
    Ok(())
}
