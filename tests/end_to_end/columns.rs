//! Typed rows: every type of column there is, keys of several parts, and folds that break the rules.

use std::time::{Duration, SystemTime};

use changeover::semver::Version;
use changeover::{
    AppendError, Configuration, Delivery, Expected, Fold, FoldProjector, Recorded, Row, StreamName, WaitError,
};
use changeover_testkit::Database;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::orders::{instance, stream};
use crate::releases::SOON;

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
