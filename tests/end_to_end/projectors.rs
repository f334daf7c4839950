//! Projectors: what they leave is what a fold of the log in position order leaves, however appends and batches fall.

use std::collections::BTreeMap;

use changeover::semver::Version;
use changeover::tokio_postgres::IsolationLevel;
use changeover::tokio_postgres::error::SqlState;
use changeover::{
    Changeover, Configuration, Delivery, Expected, Fold, FoldProjector, Position, Recorded, Row, StreamName,
    Transaction,
};
use changeover_testkit::{Database, eventually};
use serde::{Deserialize, Serialize};

use crate::orders::{instance, stream};
use crate::releases::SOON;

// --- accounts: rows fed by many streams, several keys for an event, several tables -----------------------------------

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Booking {
    Moved { from: String, to: String, cents: i64 },
    Closed { account: String },
}

pub(crate) fn moved(from: &str, to: &str, cents: i64) -> Booking {
    Booking::Moved { from: from.to_owned(), to: to.to_owned(), cents }
}

pub(crate) fn closed(account: &str) -> Booking {
    Booking::Closed { account: account.to_owned() }
}

/// There from the first booking on, gone when it is closed, there again with the next booking.
#[derive(Row, Clone, Debug, PartialEq)]
#[row(table = "accounts")]
pub(crate) struct Account {
    #[row(key)]
    name: String,
    pub(crate) cents: i64,
    last_counterpart: Option<String>,
    /// Another order of the same events gives another number.
    history: i64,
    last_position: i64,
}

/// A key of two parts, of which one may be anything.
#[derive(Row, Clone, Debug, PartialEq)]
#[row(table = "odd \"name\"")]
pub(crate) struct Pair {
    #[row(key, column = "from")]
    from: String,
    bookings: i32,
    #[row(key, column = "to\"")]
    to: String,
    last_position: i64,
}

impl Fold for Account {
    type Event = Booking;

    fn keys(event: &Booking, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        match event {
            Booking::Moved { from, to, .. } => vec![from.clone(), to.clone()],
            Booking::Closed { account } => vec![account.clone()],
        }
    }

    fn fold(row: Option<Self>, name: &String, event: &Recorded<Booking>) -> Option<Self> {
        let (cents, last_counterpart, history) =
            row.map_or((0, None, 0), |row| (row.cents, row.last_counterpart, row.history));
        let (cents, last_counterpart) = match &event.data {
            Booking::Moved { from, to, cents: moved } if from == name => (cents - moved, Some(to.clone())),
            Booking::Moved { cents: moved, .. } => (cents + moved, last_counterpart),
            Booking::Closed { .. } => return None,
        };
        let last_position = event.position.get();
        let history = history.wrapping_mul(31).wrapping_add(last_position);
        Some(Self { name: name.clone(), cents, last_counterpart, history, last_position })
    }
}

impl Fold for Pair {
    type Event = Booking;

    fn keys(event: &Booking, _stream: &StreamName) -> impl IntoIterator<Item = (String, String)> {
        match event {
            Booking::Moved { from, to, .. } => Some((from.clone(), to.clone())),
            Booking::Closed { .. } => None,
        }
    }

    fn fold(row: Option<Self>, (from, to): &(String, String), event: &Recorded<Booking>) -> Option<Self> {
        let bookings = row.map_or(0, |row| row.bookings) + 1;
        Some(Self { from: from.clone(), to: to.clone(), bookings, last_position: event.position.get() })
    }
}

macro_rules! accounts {
    ($($name:ident $text:literal $delivery:ident;)*) => {$(
        struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = $text;
            const VERSION: Version = Version::new(1, 0, 0);
            const DELIVERY: Delivery = Delivery::$delivery;
            type Event = Booking;
            type Tables = (Account, Pair);
        }
    )*};
}

accounts! {
    InlineAccounts "inline" Inline;
    BackgroundAccounts "background" Background;
}

fn accounts() -> Configuration {
    Configuration::new().fold(InlineAccounts).unwrap().fold(BackgroundAccounts).unwrap()
}

pub(crate) type Tables = (BTreeMap<String, Account>, BTreeMap<(String, String), Pair>);

/// What the log comes to, folded one event after the other, with nothing of the library but the reading.
pub(crate) async fn folded(changeover: &Changeover) -> Tables {
    let (mut accounts, mut pairs): Tables = Default::default();
    let mut reader = changeover.read(Position::START, 1_000);
    loop {
        let events = reader.next().await.unwrap();
        if events.is_empty() {
            return (accounts, pairs);
        }
        for event in events {
            let event = event.decode::<Booking>().unwrap();
            let at = event.position.get();
            match event.data {
                Booking::Closed { account } => drop(accounts.remove(&account)),
                Booking::Moved { from, to, cents } => {
                    let mut book = |name: &String, change: i64, counterpart: Option<&String>| {
                        let account = accounts.entry(name.clone()).or_insert_with(|| Account {
                            name: name.clone(),
                            cents: 0,
                            last_counterpart: None,
                            history: 0,
                            last_position: 0,
                        });
                        account.cents += change;
                        account.last_counterpart =
                            counterpart.cloned().or_else(|| account.last_counterpart.take());
                        account.history = account.history.wrapping_mul(31).wrapping_add(at);
                        account.last_position = at;
                    };
                    book(&from, -cents, Some(&to));
                    if to != from {
                        book(&to, cents, None);
                    }
                    let key = (from.clone(), to.clone());
                    let pair = pairs.entry(key).or_insert(Pair { from, to, bookings: 0, last_position: 0 });
                    pair.bookings += 1;
                    pair.last_position = at;
                }
            }
        }
    }
}

async fn tables(database: &Database, schema: &str) -> Tables {
    let client = database.client().await;
    let sql = format!("SELECT name, cents, last_counterpart, history, last_position FROM {schema}.accounts");
    let accounts = client.query(&sql, &[]).await.unwrap();
    let accounts = accounts.iter().map(|row| Account::from_row(row).unwrap());
    let sql = format!(r#"SELECT "from", bookings, "to""", last_position FROM {schema}."odd ""name""""#);
    let pairs = client.query(&sql, &[]).await.unwrap();
    let pairs = pairs.iter().map(|row| Pair::from_row(row).unwrap());
    (
        accounts.map(|row| (row.name.clone(), row)).collect(),
        pairs.map(|row| ((row.from.clone(), row.to.clone()), row)).collect(),
    )
}

async fn as_the_log_says(database: &Database, changeover: &Changeover) {
    let end = changeover.horizon().await.unwrap();
    let expected = folded(changeover).await;
    for projector in ["inline", "background"] {
        changeover.wait_for(&projector.parse().unwrap(), end, SOON).await.unwrap();
        assert_eq!(tables(database, &format!("{projector}_v1")).await, expected, "{projector}");
    }
}

/// Any numbers, the same in each run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn booking(&mut self) -> Booking {
        let accounts = ["a", "b", "c", "d"];
        let mut account = || accounts[usize::try_from(self.below(4)).unwrap()];
        let (from, to) = (account(), account());
        if self.below(4) == 0 {
            closed(from)
        } else {
            moved(from, to, i64::try_from(self.below(1_000)).unwrap())
        }
    }

    pub(crate) fn bookings(&mut self) -> Vec<Booking> {
        (0..=self.below(4)).map(|_| self.booking()).collect()
    }
}

#[tokio::test]
async fn rows_are_created_changed_deleted_and_created_again_within_a_batch_and_across() {
    let database = Database::fresh().await;
    let changeover = instance(&database, accounts()).await;
    let check = async |batch: &[Booking], there: &[&str]| {
        changeover.append(&stream("s"), Expected::Any, batch).await.unwrap();
        as_the_log_says(&database, &changeover).await;
        let (accounts, _) = tables(&database, "inline_v1").await;
        assert_eq!(accounts.keys().collect::<Vec<_>>(), there, "after {batch:?}");
    };
    let running = changeover.start();
    check(&[closed("a")], &[]).await;
    check(&[moved("a", "b", 1)], &["a", "b"]).await;
    check(&[moved("a", "b", 1), closed("a")], &["b"]).await;
    check(&[moved("a", "b", 1), closed("a"), moved("a", "a", 1)], &["a", "b"]).await;
    check(&[closed("a"), closed("b"), closed("b")], &[]).await;
    check(&[moved("a", "b", 1), closed("a"), closed("b")], &[]).await;
    check(&[moved("a", "a", 1)], &["a"]).await;
    check(&[closed("a"), moved("a", "c", 1), moved("c", "a", 1)], &["a", "c"]).await;
    let mut numbers = Numbers(1);
    for _ in 0..60 {
        changeover.append(&stream("s"), Expected::Any, &numbers.bookings()).await.unwrap();
    }
    as_the_log_says(&database, &changeover).await;
    running.stop().await;

    // The same log in one batch.
    let again = Database::fresh().await;
    let other = instance(&again, Configuration::new().fold(BackgroundAccounts).unwrap()).await;
    let mut reader = changeover.read(Position::START, 1_000);
    let events: Vec<Booking> =
        reader.next().await.unwrap().iter().map(|event| event.decode().unwrap().data).collect();
    let last = other.append(&stream("s"), Expected::Any, &events).await.unwrap().last().unwrap();
    let running = other.start();
    other.wait_for(&"background".parse().unwrap(), last, SOON).await.unwrap();
    assert_eq!(tables(&again, "background_v1").await, folded(&other).await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_side_by_side_leave_what_a_fold_in_position_order_leaves() {
    let database = Database::fresh().await;
    let changeover = instance(&database, accounts()).await;
    let running = changeover.start();
    let appending = (0..8_u64).map(|at| {
        let changeover = changeover.clone();
        tokio::spawn(async move {
            let mut numbers = Numbers(at);
            for turn in 0..25 {
                let name = stream(&format!("{}", numbers.below(3)));
                if turn % 5 != 0 {
                    // Whatever rows they touch, in whatever order, appends of their own wait and never fail.
                    changeover.append(&name, Expected::Any, &numbers.bookings()).await.unwrap();
                    continue;
                }
                let mut client = changeover.pool().get().await.unwrap();
                let old_snapshot = turn % 2 == 1;
                loop {
                    let level = if old_snapshot {
                        IsolationLevel::Serializable
                    } else {
                        IsolationLevel::ReadCommitted
                    };
                    let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
                    match changeover.append_in(&tx, &name, Expected::Any, &numbers.bookings()).await {
                        Ok(_) if turn == 10 => tx.rollback().await.unwrap(),
                        // It may turn out only now that it cannot be put in an order with the others.
                        Ok(_) => match tx.commit().await {
                            Err(error)
                                if old_snapshot
                                    && error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) =>
                            {
                                continue;
                            }
                            committed => committed.unwrap(),
                        },
                        Err(error) if error.is_retryable() && old_snapshot => continue,
                        Err(error) => panic!("{level:?}: {error}: {:?}", std::error::Error::source(&error)),
                    }
                    break;
                }
            }
        })
    });
    for appending in appending.collect::<Vec<_>>() {
        appending.await.unwrap();
    }
    as_the_log_says(&database, &changeover).await;
    running.stop().await;
}

/// Until so many appends wait for the keys of others.
pub(crate) async fn waiting_for_keys(database: &Database, count: i64) {
    let client = database.client().await;
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == count }).await;
}

#[tokio::test]
async fn two_appends_to_one_row_lose_no_update_also_where_there_is_no_row_yet() {
    let database = Database::fresh().await;
    let changeover = instance(&database, accounts()).await;
    let running = changeover.start();
    changeover.append(&stream("s"), Expected::Any, &[moved("z", "z", 1)]).await.unwrap();
    for (account, first_commits) in [("new", true), ("new", true), ("newer", false), ("newer", true)] {
        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.transaction().await.unwrap();
        changeover.append_in(&tx, &stream("one"), Expected::Any, &[moved(account, "x", 1)]).await.unwrap();
        let second = {
            let changeover = changeover.clone();
            tokio::spawn(async move {
                let events = [moved("y", account, 10), moved("x", account, 10)];
                changeover.append(&stream("two"), Expected::Any, &events).await
            })
        };
        waiting_for_keys(&database, 1).await;
        if first_commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
        second.await.unwrap().unwrap();
        as_the_log_says(&database, &changeover).await;
    }
    let (accounts, _) = tables(&database, "inline_v1").await;
    assert_eq!((accounts["new"].cents, accounts["newer"].cents), (38, 39));
    running.stop().await;
}

#[tokio::test]
async fn transactions_that_append_twice_in_opposite_orders_are_told_to_run_again() {
    let database = Database::fresh().await;
    let changeover = instance(&database, accounts()).await;
    let running = changeover.start();
    let mut clients = [changeover.pool().get().await.unwrap(), changeover.pool().get().await.unwrap()];
    let [one, two] = &mut clients;
    let one = one.transaction().await.unwrap();
    let two = two.transaction().await.unwrap();
    let append = async |tx: &Transaction<'_>, name: &str, account: &str| {
        changeover.append_in(tx, &stream(name), Expected::Any, &[moved(account, account, 1)]).await
    };
    append(&one, "one", "a").await.unwrap();
    append(&two, "two", "b").await.unwrap();
    let (first, second) = tokio::join!(append(&one, "one", "b"), async {
        waiting_for_keys(&database, 1).await;
        let appended = append(&two, "two", "a").await;
        if appended.is_err() {
            two.rollback().await.unwrap();
        } else {
            two.commit().await.unwrap();
        }
        appended
    });
    if first.is_ok() {
        one.commit().await.unwrap();
    } else {
        one.rollback().await.unwrap();
    }
    let failed = [first, second].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    let [failed] = &failed[..] else { panic!("one has to give way: {failed:?}") };
    assert!(failed.is_retryable(), "{failed}");
    as_the_log_says(&database, &changeover).await;
    running.stop().await;
}

// --- snapshots older than the rows ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_snapshot_older_than_the_rows_never_leaves_other_rows_than_the_log() {
    let database = Database::fresh().await;
    let changeover = instance(&database, accounts()).await;
    let running = changeover.start();
    let check = async |before: &[Booking], elsewhere: &[Booking], inside: &[Booking]| {
        for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
            changeover.append(&stream("before"), Expected::Any, before).await.unwrap();
            let mut client = changeover.pool().get().await.unwrap();
            let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            tx.query("SELECT * FROM inline_v1.accounts", &[]).await.unwrap();
            changeover.append(&stream("elsewhere"), Expected::Any, elsewhere).await.unwrap();
            match changeover.append_in(&tx, &stream("inside"), Expected::Any, inside).await {
                Ok(_) => panic!("{level:?}: {elsewhere:?} was not seen by {inside:?}"),
                Err(error) => assert!(error.is_retryable(), "{level:?}, {elsewhere:?}, {inside:?}: {error}"),
            }
            tx.rollback().await.unwrap();
            let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            changeover.append_in(&tx, &stream("inside"), Expected::Any, inside).await.unwrap();
            tx.commit().await.unwrap();
            as_the_log_says(&database, &changeover).await;
        }
    };
    check(&[moved("a", "a", 1)], &[moved("a", "b", 1)], &[moved("c", "a", 1)]).await;
    check(&[moved("a", "a", 1)], &[moved("a", "b", 1)], &[closed("a")]).await;
    check(&[moved("a", "a", 1)], &[closed("a")], &[moved("c", "a", 1)]).await;
    check(&[moved("a", "a", 1)], &[closed("a"), moved("a", "b", 1)], &[closed("a")]).await;
    check(&[closed("a")], &[moved("a", "b", 1)], &[moved("c", "a", 1)]).await;
    check(&[closed("a")], &[moved("a", "b", 1)], &[closed("a")]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_transaction_sees_the_rows_that_it_made_and_deleted_itself() {
    let database = Database::fresh().await;
    let changeover = instance(&database, accounts()).await;
    let running = changeover.start();
    changeover.append(&stream("before"), Expected::Any, &[moved("a", "a", 1)]).await.unwrap();
    let levels =
        [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable];
    for level in levels {
        for in_savepoint in [false, true] {
            let mut client = changeover.pool().get().await.unwrap();
            let mut tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            let append = async |tx: &Transaction<'_>, booking: Booking| {
                let name = stream("own");
                let appended =
                    changeover.append_in(tx, &name, Expected::Any, std::slice::from_ref(&booking)).await;
                assert!(
                    appended.is_ok(),
                    "{level:?}, in a savepoint: {in_savepoint}, {booking:?}: {appended:?}"
                );
            };
            if in_savepoint {
                let savepoint = tx.savepoint("own").await.unwrap();
                append(&savepoint, closed("a")).await;
                append(&savepoint, moved("new", "new", 1)).await;
                savepoint.commit().await.unwrap();
            } else {
                append(&tx, closed("a")).await;
                append(&tx, moved("new", "new", 1)).await;
            }
            append(&tx, closed("a")).await;
            append(&tx, moved("a", "new", 1)).await;
            append(&tx, closed("new")).await;
            tx.commit().await.unwrap();
            as_the_log_says(&database, &changeover).await;
        }
    }
    running.stop().await;
}
