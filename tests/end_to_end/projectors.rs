//! Projectors: what they leave is what a fold of the log in position order leaves, however appends and batches fall.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use changeover::semver::Version;
use changeover::tokio_postgres::IsolationLevel;
use changeover::{
    AppendError, Batch, BoxError, Changeover, Configuration, Delivery, Expected, Fold, FoldProjector, Position,
    ProjectError, Recorded, Row, SqlProjector, StreamName, Transaction, Type, WaitError,
};
use changeover_testkit::{Database, eventually};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::orders::{instance, stream};

const SOON: Duration = Duration::from_secs(10);

// --- accounts: rows fed by many streams, several keys for an event, several tables -----------------------------------

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Booking {
    Moved { from: String, to: String, cents: i64 },
    Closed { account: String },
}

fn moved(from: &str, to: &str, cents: i64) -> Booking {
    Booking::Moved { from: from.to_owned(), to: to.to_owned(), cents }
}

fn closed(account: &str) -> Booking {
    Booking::Closed { account: account.to_owned() }
}

/// There from the first booking on, gone when it is closed, there again with the next booking.
#[derive(Row, Clone, Debug, PartialEq)]
#[row(table = "accounts")]
struct Account {
    #[row(key)]
    name: String,
    cents: i64,
    last_counterpart: Option<String>,
    /// Another order of the same events gives another number.
    history: i64,
    last_position: i64,
}

/// A key of two parts, of which one may be anything.
#[derive(Row, Clone, Debug, PartialEq)]
#[row(table = "odd \"name\"")]
struct Pair {
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

type Tables = (BTreeMap<String, Account>, BTreeMap<(String, String), Pair>);

/// What the log comes to, folded one event after the other, with nothing of the library but the reading.
async fn folded(changeover: &Changeover) -> Tables {
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
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn booking(&mut self) -> Booking {
        let accounts = ["a", "b", "c", "d"];
        let mut account = || accounts[usize::try_from(self.below(4)).unwrap()];
        let (from, to) = (account(), account());
        if self.below(4) == 0 { closed(from) } else { moved(from, to, i64::try_from(self.below(1_000)).unwrap()) }
    }

    fn bookings(&mut self) -> Vec<Booking> {
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
                    let level = if old_snapshot { IsolationLevel::Serializable } else { IsolationLevel::ReadCommitted };
                    let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
                    match changeover.append_in(&tx, &name, Expected::Any, &numbers.bookings()).await {
                        Ok(_) if turn == 10 => tx.rollback().await.unwrap(),
                        Ok(_) => tx.commit().await.unwrap(),
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
async fn waiting_for_keys(database: &Database, count: i64) {
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
        if first_commits { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
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
    let levels = [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable];
    for level in levels {
        for in_savepoint in [false, true] {
            let mut client = changeover.pool().get().await.unwrap();
            let mut tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            let append = async |tx: &Transaction<'_>, booking: Booking| {
                let name = stream("own");
                let appended = changeover.append_in(tx, &name, Expected::Any, std::slice::from_ref(&booking)).await;
                assert!(appended.is_ok(), "{level:?}, in a savepoint: {in_savepoint}, {booking:?}: {appended:?}");
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

// --- columns --------------------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize)]
enum Stored {
    Stored { seed: i64 },
}

/// Every type of column there is, each also as one that may be null.
#[derive(Row, Clone, Debug, PartialEq)]
#[row(table = "every")]
struct Every {
    #[row(key)]
    seed: i64,
    rounds: i32,
    truth: bool,
    small: i16,
    int: i32,
    #[row(index)]
    big: i64,
    real: f32,
    double: f64,
    text: String,
    bytes: Vec<u8>,
    uuid: Uuid,
    at: SystemTime,
    json: serde_json::Value,
    r#type: String,
    no_truth: Option<bool>,
    no_small: Option<i16>,
    no_int: Option<i32>,
    no_big: Option<i64>,
    no_real: Option<f32>,
    no_double: Option<f64>,
    no_text: Option<String>,
    no_bytes: Option<Vec<u8>>,
    no_uuid: Option<Uuid>,
    no_at: Option<SystemTime>,
    no_json: Option<serde_json::Value>,
}

impl Every {
    fn of(seed: i64, rounds: i32) -> Self {
        let even = seed % 2 == 0;
        let text = if even { String::new() } else { "Zoë 🦊 {\"a\",NULL} ' \" \\ \n".to_owned() };
        let bytes = if even { vec![] } else { vec![0, 255, b'\\'] };
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(if even { 0 } else { 1_795_000_000_123_456 });
        let json = serde_json::json!({"seed": seed, "deep": [null, true, {"é": text}]});
        let uuid = if even { Uuid::nil() } else { Uuid::max() };
        Self {
            seed,
            rounds,
            truth: even,
            small: if even { i16::MIN } else { i16::MAX },
            int: if even { i32::MIN } else { i32::MAX },
            big: if even { i64::MIN } else { i64::MAX },
            real: if even { f32::MIN_POSITIVE } else { f32::INFINITY },
            double: if even { -1.0 / 3.0 } else { f64::MAX },
            no_truth: even.then_some(true),
            no_small: even.then_some(-1),
            no_int: even.then_some(-1),
            no_big: even.then_some(-1),
            no_real: even.then_some(-1.5),
            no_double: even.then_some(-1.5),
            no_text: even.then(|| "NULL".to_owned()),
            no_bytes: even.then(|| bytes.clone()),
            no_uuid: even.then_some(uuid),
            no_at: even.then_some(at),
            no_json: even.then_some(serde_json::Value::Null),
            r#type: text.clone(),
            text,
            bytes,
            uuid,
            at,
            json,
        }
    }
}

impl Fold for Every {
    type Event = Stored;

    fn keys(event: &Stored, _stream: &StreamName) -> impl IntoIterator<Item = i64> {
        let Stored::Stored { seed } = event;
        [*seed]
    }

    fn fold(row: Option<Self>, seed: &i64, _event: &Recorded<Stored>) -> Option<Self> {
        let rounds = row.as_ref().map_or(0, |row| row.rounds);
        assert!(row.is_none_or(|row| row == Self::of(*seed, rounds)), "it came back otherwise");
        Some(Self::of(*seed, rounds + 1))
    }
}

macro_rules! every {
    ($($name:ident $text:literal $delivery:ident;)*) => {$(
        struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = $text;
            const VERSION: Version = Version::new(1, 0, 0);
            const DELIVERY: Delivery = Delivery::$delivery;
            type Event = Stored;
            type Tables = (Every,);
        }
    )*};
}

every! {
    InlineEvery "inline_every" Inline;
    BackgroundEvery "background_every" Background;
}

#[tokio::test]
async fn every_type_of_column_comes_back_as_it_was_written() {
    let database = Database::fresh().await;
    let configuration = Configuration::new().fold(InlineEvery).unwrap().fold(BackgroundEvery).unwrap();
    let changeover = instance(&database, configuration).await;
    let running = changeover.start();
    for _ in 0..3 {
        let events = [4, 5, 6, 7].map(|seed| Stored::Stored { seed });
        let last = changeover.append(&stream("s"), Expected::Any, &events).await.unwrap().last().unwrap();
        changeover.wait_for(&"background_every".parse().unwrap(), last, SOON).await.unwrap();
    }
    let client = database.client().await;
    for schema in ["inline_every_v1", "background_every_v1"] {
        let rows = client.query(&format!("SELECT * FROM {schema}.every ORDER BY seed"), &[]).await.unwrap();
        let rows: Vec<Every> = rows.iter().map(|row| Every::from_row(row).unwrap()).collect();
        assert_eq!(rows, [4, 5, 6, 7].map(|seed| Every::of(seed, 3)), "{schema}");
        let sql = "SELECT is_nullable = 'YES' AS nullable, column_name LIKE 'no\\_%' AS option
                   FROM information_schema.columns WHERE table_schema = $1";
        for column in client.query(sql, &[&schema]).await.unwrap() {
            assert_eq!(column.get::<_, bool>("nullable"), column.get::<_, bool>("option"));
        }
        let sql = "SELECT count(*) FROM pg_indexes WHERE schemaname = $1 AND indexdef LIKE '%(big)'";
        assert_eq!(client.query_one(sql, &[&schema]).await.unwrap().get::<_, i64>(0), 1);
    }
    running.stop().await;
}

// --- keys of four parts, and folds that break the rules -------------------------------------------------------------

#[derive(Serialize, Deserialize)]
enum Ruled {
    Kept,
    KeyChanged,
    Panicked,
    KeysPanicked,
}

#[derive(Row, Clone)]
#[row(table = "rules")]
struct Rule {
    #[row(key)]
    stream: String,
    #[row(key)]
    number: i32,
    #[row(key)]
    truth: bool,
    #[row(key)]
    id: Uuid,
}

impl Fold for Rule {
    type Event = Ruled;

    fn keys(event: &Ruled, stream: &StreamName) -> impl IntoIterator<Item = (String, i32, bool, Uuid)> {
        assert!(!matches!(event, Ruled::KeysPanicked), "the keys panic");
        // Twice the same, and one that differs in one part alone.
        let key = (stream.to_string(), 1, true, Uuid::nil());
        [key.clone(), key.clone(), (key.0, 2, key.2, key.3)]
    }

    fn fold(_row: Option<Self>, key: &(String, i32, bool, Uuid), event: &Recorded<Ruled>) -> Option<Self> {
        let (stream, number, truth, id) = key.clone();
        match event.data {
            Ruled::Panicked => panic!("the fold panics"),
            Ruled::KeyChanged => Some(Self { stream, number: number + 1, truth, id }),
            Ruled::Kept | Ruled::KeysPanicked => Some(Self { stream, number, truth, id }),
        }
    }
}

macro_rules! rules {
    ($($name:ident $text:literal $delivery:ident;)*) => {$(
        struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = $text;
            const VERSION: Version = Version::new(1, 0, 0);
            const DELIVERY: Delivery = Delivery::$delivery;
            type Event = Ruled;
            type Tables = (Rule,);
        }
    )*};
}

rules! {
    InlineRules "inline_rules" Inline;
    BackgroundRules "background_rules" Background;
}

#[tokio::test]
async fn a_fold_that_breaks_the_rules_fails_the_append_it_is_inline_with_and_nothing_is_written() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineRules).unwrap()).await;
    changeover.append(&stream("s"), Expected::Any, &[Ruled::Kept, Ruled::Kept]).await.unwrap();
    let check = async |event: Ruled, said: &str| {
        let failed = changeover.append(&stream("s"), Expected::Any, &[Ruled::Kept, event]).await.unwrap_err();
        let AppendError::Projector { projector, source } = &failed else { panic!("{failed}") };
        assert_eq!(projector.as_str(), "inline_rules");
        assert!(source.to_string().contains(said) && !failed.is_retryable(), "{source}");
    };
    check(Ruled::KeyChanged, "another key").await;
    check(Ruled::Panicked, "panicked").await;
    check(Ruled::KeysPanicked, "panicked").await;
    assert!(changeover.status().await.unwrap().in_flight.is_empty());
    let client = database.client().await;
    let sql = "SELECT (SELECT count(*) FROM changeover.events), (SELECT count(*) FROM inline_rules_v1.rules)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 2));
}

#[tokio::test]
async fn a_fold_that_breaks_the_rules_stalls_in_the_background() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(BackgroundRules).unwrap()).await;
    let running = changeover.start();
    let projector = "background_rules".parse().unwrap();
    let check = async |event: Ruled, said: &str| {
        let events = [Ruled::Kept, event, Ruled::Kept];
        let positions = changeover.append(&stream("s"), Expected::Any, &events).await.unwrap().positions;
        changeover.wait_for(&projector, positions[0], SOON).await.unwrap();
        let stalled = changeover.wait_for(&projector, positions[1], SOON).await.unwrap_err();
        let WaitError::Stalled { error, .. } = &stalled else { panic!("{stalled}") };
        assert!(error.contains(said) && error.contains(&positions[1].to_string()), "{error}");
        changeover.skip(&projector, positions[1], "test").await.unwrap();
        changeover.wait_for(&projector, positions[2], SOON).await.unwrap();
    };
    check(Ruled::KeyChanged, "another key").await;
    check(Ruled::Panicked, "panicked").await;
    check(Ruled::KeysPanicked, "panicked").await;
    running.stop().await;
}

// --- SQL, inline ----------------------------------------------------------------------------------------------------

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

        let failed = changeover.append(&stream("four"), Expected::Any, &[moved("a", "b", 1), closed("a")]).await;
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
