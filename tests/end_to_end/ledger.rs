//! A projector whose tables differ from version to version, and whose rows tell which version wrote them.

use changeover::semver::Version;
use changeover::{Batch, BoxError, Changeover, Configuration, SqlProjector, Transaction, Type};
use changeover_testkit::Database;
use serde::Deserialize;

use crate::orders::instance;

/// Version 2 has other columns than 1, version 3 has one more than 1, version 4 has one table less.
pub(crate) struct Ledger<const MAJOR: u64>;

#[derive(Deserialize)]
pub(crate) enum PlacedEvent {
    Placed { customer: String },
}

impl<const MAJOR: u64> SqlProjector for Ledger<MAJOR> {
    const NAME: &'static str = "ledger";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    const TABLES: &'static str = match MAJOR {
        1 => {
            "CREATE TABLE {schema}.entries (id text PRIMARY KEY, customer text, major integer NOT NULL DEFAULT 1);
             CREATE TABLE {schema}.sums (one boolean PRIMARY KEY, orders bigint NOT NULL, major integer NOT NULL DEFAULT 1)"
        }
        2 => {
            "CREATE TABLE {schema}.entries (id text PRIMARY KEY, major integer NOT NULL DEFAULT 2, customer text);
             CREATE TABLE {schema}.sums (one boolean PRIMARY KEY, orders bigint NOT NULL, major integer NOT NULL DEFAULT 2)"
        }
        3 => {
            "CREATE TABLE {schema}.entries (id text PRIMARY KEY, customer text, major integer NOT NULL DEFAULT 3, note text);
             CREATE TABLE {schema}.sums (one boolean PRIMARY KEY, orders bigint NOT NULL, major integer NOT NULL DEFAULT 3)"
        }
        _ => "CREATE TABLE {schema}.entries (id text PRIMARY KEY, customer text, major integer NOT NULL DEFAULT 4)",
    };
    type Event = PlacedEvent;

    async fn project(&self, batch: Batch<'_, PlacedEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let entry =
            batch.sql("INSERT INTO {schema}.entries (id, customer) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        let sum = batch.sql(
            "INSERT INTO {schema}.sums AS s (one, orders) VALUES (true, 1)
             ON CONFLICT (one) DO UPDATE SET orders = s.orders + 1",
        );
        for event in batch.events() {
            let PlacedEvent::Placed { customer } = &event.data;
            tx.query_typed(&entry, &[(&event.stream.as_str(), Type::TEXT), (customer, Type::TEXT)]).await?;
            if MAJOR != 4 {
                tx.query_typed(&sum, &[]).await?;
            }
        }
        Ok(())
    }
}

/// The configuration of a release.
pub(crate) fn ledger(major: u64) -> Configuration {
    match major {
        1 => Configuration::new().sql(Ledger::<1>),
        2 => Configuration::new().sql(Ledger::<2>),
        3 => Configuration::new().sql(Ledger::<3>),
        _ => Configuration::new().sql(Ledger::<4>),
    }
    .unwrap()
}

/// A migrated instance of a release.
pub(crate) async fn ledger_on(database: &Database, major: u64) -> Changeover {
    instance(database, ledger(major)).await
}
