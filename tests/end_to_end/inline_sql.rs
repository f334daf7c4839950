//! SQL projectors inline: which appends wait for one another, and that no update is lost.

use std::collections::BTreeMap;

use changeover::semver::Version;
use changeover::{
    AppendError, Batch, BoxError, Configuration, Delivery, Expected, Position, ProjectError, SqlProjector,
    StreamName, Transaction, Type,
};
use changeover_testkit::Database;

use crate::orders::{instance, stream};
use crate::projectors::{Booking, Numbers, closed, folded, moved, waiting_for_keys};

/// Sums, by SQL. Which appends may run side by side is all that the two differ in.
macro_rules! sums {
    ($($name:ident $text:literal $keys:expr;)*) => {$(
        struct $name;

        impl SqlProjector for $name {
            const NAME: &'static str = $text;
            const VERSION: Version = Version::new(1, 0, 0);
            const DELIVERY: Delivery = Delivery::Inline;
            const TABLES: &'static str =
                "CREATE TABLE {schema}.sums (account text PRIMARY KEY, cents bigint NOT NULL, last_position bigint)";
            const INDEXES: &'static str = "CREATE INDEX ON {schema}.sums (cents)";
            type Event = Booking;

            fn keys(event: &Booking, _stream: &StreamName) -> Option<Vec<String>> {
                $keys.then(|| match event {
                    Booking::Moved { from, to, .. } => vec![from.clone(), to.clone()],
                    Booking::Closed { account } => vec![account.clone()],
                })
            }

            async fn project(&self, batch: Batch<'_, Booking>, tx: &Transaction<'_>) -> Result<(), BoxError> {
                for event in batch.events() {
                    let Booking::Moved { from, to, cents } = &event.data else {
                        return Err("closing is not foreseen".into());
                    };
                    for (account, change) in [(from, -cents), (to, *cents)] {
                        // Read and written apart, so that only the locks on the keys keep them together.
                        let read = batch.sql("SELECT cents FROM {schema}.sums WHERE account = $1");
                        let before = tx.query_typed(&read, &[(account, Type::TEXT)]).await?;
                        let cents = before.first().map_or(0, |row| row.get::<_, i64>(0)) + change;
                        let write = batch.sql(
                            "INSERT INTO {schema}.sums VALUES ($1, $2, $3) ON CONFLICT (account)
                             DO UPDATE SET cents = excluded.cents, last_position = excluded.last_position",
                        );
                        let position = event.position.get();
                        let params: [(&(dyn changeover::ToSql + Sync), Type); 3] =
                            [(account, Type::TEXT), (&cents, Type::INT8), (&position, Type::INT8)];
                        tx.query_typed(&write, &params).await?;
                    }
                }
                Ok(())
            }
        }
    )*};
}

sums! {
    KeyedSums "keyed" true;
    Sums "unkeyed" false;
}

async fn sums(database: &Database, schema: &str) -> BTreeMap<String, i64> {
    let sql = format!("SELECT account, cents FROM {schema}_v1.sums");
    let rows = database.client().await.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_sql_projector_inline_waits_for_those_who_touch_the_same_keys_or_for_all() {
    let check = async |configuration: Configuration, projector: &str, keyed: bool| {
        let database = Database::fresh().await;
        let changeover = instance(&database, configuration).await;
        changeover.append(&stream("s"), Expected::Any, &[moved("a", "b", 1)]).await.unwrap();
        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.transaction().await.unwrap();
        changeover.append_in(&tx, &stream("one"), Expected::Any, &[moved("a", "b", 1)]).await.unwrap();
        let append = |name: &'static str, from: &'static str, to: &'static str| {
            let changeover = changeover.clone();
            tokio::spawn(async move {
                changeover.append(&stream(name), Expected::Any, &[moved(from, to, 10)]).await
            })
        };
        let (other, same) = (append("two", "c", "d"), append("three", "b", "e"));
        waiting_for_keys(&database, if keyed { 1 } else { 2 }).await;
        if keyed {
            other.await.unwrap().unwrap();
            tx.commit().await.unwrap();
        } else {
            tx.commit().await.unwrap();
            other.await.unwrap().unwrap();
        }
        same.await.unwrap().unwrap();
        let found = sums(&database, projector).await;
        let expected = [("a", -2), ("b", -8), ("c", -10), ("d", 10), ("e", 10)];
        assert_eq!(found, expected.map(|(name, cents)| (name.to_owned(), cents)).into());

        let failed =
            changeover.append(&stream("four"), Expected::Any, &[moved("a", "b", 1), closed("a")]).await;
        let Err(AppendError::Projector { source: ProjectError::Projector(_), .. }) = failed else {
            panic!("{failed:?}")
        };
        assert_eq!(sums(&database, projector).await, found, "nothing of a failed append is there");
        let read = changeover.read(Position::START, 100).next().await.unwrap();
        assert_eq!(read.len(), 4);
    };
    check(Configuration::new().sql(KeyedSums).unwrap(), "keyed", true).await;
    check(Configuration::new().sql(Sums).unwrap(), "unkeyed", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_projectors_inline_lose_no_update() {
    let database = Database::fresh().await;
    let configuration = Configuration::new().sql(KeyedSums).unwrap().sql(Sums).unwrap();
    let changeover = instance(&database, configuration).await;
    let appending = (0..6_u64).map(|at| {
        let changeover = changeover.clone();
        tokio::spawn(async move {
            let mut numbers = Numbers(at);
            for _ in 0..20 {
                let mut bookings = numbers.bookings();
                bookings.retain(|booking| matches!(booking, Booking::Moved { .. }));
                changeover.append(&stream(&format!("{at}")), Expected::Any, &bookings).await.unwrap();
            }
        })
    });
    for appending in appending.collect::<Vec<_>>() {
        appending.await.unwrap();
    }
    let (accounts, _) = folded(&changeover).await;
    let expected: BTreeMap<String, i64> =
        accounts.into_iter().map(|(name, account)| (name, account.cents)).collect();
    // A booking from an account to itself is one here and two there, and comes to nothing in neither.
    for projector in ["keyed", "unkeyed"] {
        let found = sums(&database, projector).await;
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(found.values().sum::<i64>(), 0);
        let own = database.client().await;
        let sql = "SELECT sum(CASE WHEN e.data->>'to' = $1 THEN (e.data->>'cents')::bigint ELSE 0 END
                            - CASE WHEN e.data->>'from' = $1 THEN (e.data->>'cents')::bigint ELSE 0 END)::bigint
                   FROM changeover.events e";
        for (account, cents) in found {
            assert_eq!(own.query_one(sql, &[&account]).await.unwrap().get::<_, i64>(0), cents, "{account}");
        }
    }
}
