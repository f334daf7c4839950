//! Appending: what goes in comes back, what cannot is refused with nothing written, and nothing is ever half there.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use changeover::tokio_postgres::IsolationLevel;
use changeover::{
    AppendError, Appended, Changeover, Configuration, EncodeError, Expected, Position, Recorded, Revision,
    StreamName,
};
use changeover_testkit::{Database, eventually};
use serde::{Deserialize, Serialize};

use crate::orders::{InlineOrders1, OrderEvent, instance, placed, stream};
use crate::releases::SOON;

async fn log_only(database: &Database) -> Changeover {
    instance(database, Configuration::new()).await
}

fn items(count: usize) -> Vec<OrderEvent> {
    (0..count).map(|at| OrderEvent::ItemAdded { cents: i64::try_from(at).unwrap() }).collect()
}

async fn events_in(database: &Database) -> i64 {
    database.client().await.query_one("SELECT count(*) FROM changeover.events", &[]).await.unwrap().get(0)
}

/// Nothing is in flight any more, seen without the application's pool.
async fn nothing_in_flight(changeover: &Changeover) {
    eventually(SOON, || async {
        let status = changeover.status().await.unwrap();
        status.in_flight.is_empty() && status.horizon == status.newest
    })
    .await;
}

// --- revisions ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_expected_revision_decides() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let check = async |there: usize, expected: Expected, outcome: Result<i64, i64>| {
        let name = stream(&format!("{there} {expected}"));
        changeover.append(&name, Expected::Any, &items(there)).await.unwrap();
        let appended = changeover.append(&name, expected, &items(2)).await;
        let found = match appended {
            Ok(Appended { positions, revision }) => {
                assert_eq!(positions.len(), 2);
                assert!(positions[0] < positions[1]);
                Ok(revision.get())
            }
            Err(AppendError::Conflict { expected: said, found, .. }) => {
                assert_eq!(said, expected);
                Err(found.get())
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, outcome, "{there} events there, expected {expected}");
        let rest = changeover.read_stream::<OrderEvent>(&name, Revision::default(), 100).await.unwrap();
        assert_eq!(rest.len(), if outcome.is_ok() { there + 2 } else { there });
    };
    let exactly = |revision| Expected::Exactly(Revision::new(revision));
    check(0, Expected::Any, Ok(2)).await;
    check(3, Expected::Any, Ok(5)).await;
    check(0, Expected::NoStream, Ok(2)).await;
    check(3, Expected::NoStream, Err(3)).await;
    check(0, exactly(0), Ok(2)).await;
    check(3, exactly(3), Ok(5)).await;
    check(3, exactly(2), Err(3)).await;
    check(3, exactly(4), Err(3)).await;
    check(0, exactly(1), Err(0)).await;
}

#[tokio::test]
async fn a_conflict_says_what_was_expected_and_what_was_found() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let name = stream("order-1");
    changeover.append(&name, Expected::NoStream, &items(2)).await.unwrap();
    let conflict =
        changeover.append(&name, Expected::Exactly(Revision::new(5)), &items(1)).await.unwrap_err();
    let text = conflict.to_string();
    assert!(text.starts_with("stream \"order-1\": expected revision 5, found revision 2"), "{text}");
    assert!(!conflict.is_retryable(), "the same append again cannot succeed");
}

#[tokio::test]
async fn an_append_of_nothing_writes_nothing_and_checks_the_revision_all_the_same() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let name = stream("order-1");
    changeover.append(&name, Expected::NoStream, &items(1)).await.unwrap();
    for expected in [Expected::Any, Expected::Exactly(Revision::new(1))] {
        let appended = changeover.append::<OrderEvent>(&name, expected, &[]).await.unwrap();
        assert_eq!(appended, Appended { positions: vec![], revision: Revision::new(1) });
        assert_eq!(appended.last(), None);
    }
    let conflict = changeover.append::<OrderEvent>(&name, Expected::NoStream, &[]).await.unwrap_err();
    assert!(matches!(conflict, AppendError::Conflict { .. }), "{conflict}");
    assert_eq!(events_in(&database).await, 1);
}

// --- sizes ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn ten_thousand_events_are_appended_at_once_and_in_order() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let name = stream("order-1");
    let mut events = vec![placed("Ada")];
    events.extend(items(9_999));
    let appended = changeover.append(&name, Expected::NoStream, &events).await.unwrap();
    assert_eq!((appended.positions.len(), appended.revision), (10_000, Revision::new(10_000)));
    assert!(appended.positions.is_sorted());

    let read = changeover.read_stream::<OrderEvent>(&name, Revision::default(), 20_000).await.unwrap();
    let places = read.iter().map(|event| (event.position, event.revision.get()));
    assert!(places.eq(appended.positions.iter().copied().zip(1..)));
    assert!(read.into_iter().map(|event| event.data).eq(events));
    let row = database.client().await.query_one("SELECT items FROM orders_v1.orders", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 9_999);
}

#[tokio::test]
async fn an_event_of_five_mebibytes_comes_back_whole() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    // Not the same character over and over: the server would compress it to nothing.
    let text: String = (0_u64..)
        .flat_map(|at| format!("{:x}", at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes())
        .map(char::from)
        .take(5 << 20)
        .collect();
    let name = stream("large");
    changeover.append(&name, Expected::NoStream, &[placed(&text), placed("small")]).await.unwrap();
    let read = changeover.read_stream::<OrderEvent>(&name, Revision::default(), 10).await.unwrap();
    assert!(read[0].data == placed(&text));
    let mut reader = changeover.read(Position::START, 10);
    let batch = reader.next().await.unwrap();
    assert_eq!(batch.len(), 2);
    assert!(batch[0].decode::<OrderEvent>().unwrap().data == placed(&text));
}

#[tokio::test]
async fn an_append_beyond_the_limit_is_refused_and_nothing_is_written() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    // Each of the events carries it.
    let metadata = "x".repeat(1 << 20);
    let refused =
        changeover.append_with(&stream("s"), Expected::Any, &items(257), &metadata).await.unwrap_err();
    assert!(matches!(refused, AppendError::TooLarge { limit, .. } if limit == 256 << 20), "{refused}");
    assert_eq!(events_in(&database).await, 0);
}

// --- content --------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Anything {
    Unit,
    Newtype(String),
    Tuple(i64, bool),
    Text { text: String },
    Numbers { most: u64, least: i64, huge: u128, tiny: f64, third: f64, exact: f64 },
    Optional { some: Option<i32>, none: Option<i32> },
    Map { entries: BTreeMap<String, Vec<String>> },
}

#[tokio::test]
async fn an_event_comes_back_as_it_was_written() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let name = stream("s");
    let events = vec![
        Anything::Unit,
        Anything::Newtype("new".into()),
        Anything::Tuple(-1, true),
        Anything::Text { text: "Zoë 🦊 \u{10ffff} \u{7f} \u{1} \\ \" ' \n\t \\u0000 e\u{301}".into() },
        Anything::Numbers {
            most: u64::MAX,
            least: i64::MIN,
            huge: u128::MAX,
            tiny: f64::MIN_POSITIVE,
            third: 1.0 / 3.0,
            exact: 9_007_199_254_740_993.0,
        },
        Anything::Optional { some: Some(0), none: None },
        Anything::Map { entries: [("a\"b".to_owned(), vec![String::new()])].into() },
    ];
    changeover.append(&name, Expected::NoStream, &events).await.unwrap();
    let read = changeover.read_stream::<Anything>(&name, Revision::default(), 100).await.unwrap();
    assert_eq!(read.into_iter().map(|event| event.data).collect::<Vec<_>>(), events);
    let types: Vec<String> = changeover
        .read(Position::START, 100)
        .next()
        .await
        .unwrap()
        .into_iter()
        .map(|event| event.event_type)
        .collect();
    assert_eq!(types, ["Unit", "Newtype", "Tuple", "Text", "Numbers", "Optional", "Map"]);
}

#[tokio::test]
async fn metadata_comes_back_with_every_event_of_its_append() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let name = stream("s");
    let metadata = serde_json::json!({"who": "Ada", "because_of": [1, null, {"deep": "Zoë"}]});
    changeover.append_with(&name, Expected::Any, &items(2), &metadata).await.unwrap();
    changeover.append(&name, Expected::Any, &items(1)).await.unwrap();
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    changeover.append_in_with(&tx, &name, Expected::Any, &items(1), &"in").await.unwrap();
    let inside = changeover.read_stream_in::<OrderEvent>(&tx, &name, Revision::new(3), 10).await.unwrap();
    assert_eq!(inside.len(), 1, "a transaction sees what it appended itself");
    tx.commit().await.unwrap();
    let read: Vec<Recorded<OrderEvent>> =
        changeover.read_stream(&name, Revision::default(), 10).await.unwrap();
    let found: Vec<_> = read.into_iter().map(|event| event.metadata).collect();
    assert_eq!(found, [Some(metadata.clone()), Some(metadata), None, Some("in".into())]);
}

#[tokio::test]
async fn the_character_nul_is_refused_and_nothing_is_written() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let name = stream("s");
    let good = Anything::Text { text: "written \\u0000 as text, escaped".into() };
    let check = async |bad: Anything| {
        let refused = changeover.append(&name, Expected::Any, &[good.clone(), bad]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Encode(_)), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("U+0000") && !text.contains("secret"), "{text}");
        assert!(!refused.is_retryable());
    };
    check(Anything::Text { text: "secret\0".into() }).await;
    check(Anything::Newtype("\\\0secret".into())).await;
    check(Anything::Map { entries: [("secret\0".to_owned(), vec![])].into() }).await;
    check(Anything::Map { entries: [("a".to_owned(), vec!["secret\0".to_owned()])].into() }).await;
    for metadata in [serde_json::json!({"who": "secret\0"}), serde_json::json!({"\0": 1})] {
        let refused =
            changeover.append_with(&name, Expected::Any, std::slice::from_ref(&good), &metadata).await;
        assert!(matches!(refused, Err(AppendError::Encode(_))), "{refused:?}");
    }
    assert_eq!(events_in(&database).await, 0);
    changeover.append(&name, Expected::Any, &[good]).await.unwrap();
}

#[tokio::test]
async fn what_is_not_an_event_is_refused() {
    #[derive(Serialize)]
    struct NoEnum {
        text: &'static str,
    }
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let refused = changeover.append(&stream("s"), Expected::Any, &[NoEnum { text: "x" }]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Encode(_)), "{refused}");
    assert_eq!(events_in(&database).await, 0);
}

#[tokio::test]
async fn nearly_any_name_is_a_streams_name() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let longest = "x".repeat(StreamName::MAX_BYTES);
    let three_hundred = "é'\"".repeat(100);
    for name in ["'; DROP TABLE changeover.events; --", "\"quoted\"", " ", "%_\\", &three_hundred, &longest] {
        let name = stream(name);
        changeover.append(&name, Expected::NoStream, &items(1)).await.unwrap();
        changeover.append(&name, Expected::Any, &items(1)).await.unwrap();
        let read = changeover.read_stream::<OrderEvent>(&name, Revision::default(), 10).await.unwrap();
        assert_eq!(read.iter().filter(|event| event.stream == name).count(), 2);
    }
    for bad in ["", "a\0b", &format!("{longest}x")] {
        assert!(bad.parse::<StreamName>().is_err(), "{bad:?}");
    }
    assert_eq!(events_in(&database).await, 12);
}

// --- side by side ---------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_expect_nothing_all_succeed_and_of_those_that_do_one() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let check = async |expected: Expected, winners: usize| {
        let name = stream(&format!("expecting {expected}"));
        let writers = (0..12).map(|_| {
            let (changeover, name) = (changeover.clone(), name.clone());
            tokio::spawn(async move { changeover.append(&name, expected, &items(3)).await })
        });
        let mut won = 0;
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Ok(_) => won += 1,
                Err(AppendError::Conflict { found, .. }) => assert!(found.get() > 0),
                Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
            }
        }
        assert_eq!(won, winners, "expecting {expected}");
        let read = changeover.read_stream::<OrderEvent>(&name, Revision::default(), 100).await.unwrap();
        let revisions: Vec<i64> = read.iter().map(|event| event.revision.get()).collect();
        assert!(revisions.iter().copied().eq(1..=3 * i64::try_from(winners).unwrap()), "{revisions:?}");
        assert!(read.is_sorted_by_key(|event| event.position), "revisions and positions must agree");
    };
    check(Expected::Any, 12).await;
    check(Expected::NoStream, 1).await;
    check(Expected::Exactly(Revision::default()), 1).await;
}

#[tokio::test]
async fn the_later_of_two_transactions_on_one_stream_is_told_by_the_isolation_level() {
    let database = Database::fresh().await;
    let changeover = log_only(&database).await;
    let check = async |level: IsolationLevel, expected: Expected, outcome: &str| {
        let name = stream(&format!("{level:?} {expected}"));
        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
        tx.query_one("SELECT count(*) FROM changeover.events", &[]).await.unwrap(); // The snapshot, where it is kept.
        changeover.append(&name, Expected::NoStream, &items(1)).await.unwrap();
        let found = match changeover.append_in(&tx, &name, expected, &items(1)).await {
            Ok(_) => "done",
            Err(AppendError::Conflict { .. }) => "conflict",
            Err(error) if error.is_retryable() => "retry",
            Err(error) => panic!("{error}"),
        };
        if found == "done" {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
        assert_eq!(found, outcome, "{level:?}, expecting {expected}");
        // What was told to run again can do so, and is then told what is so.
        if outcome == "retry" {
            let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            match changeover.append_in(&tx, &name, expected, &items(1)).await {
                Ok(_) => assert_eq!(expected, Expected::Any),
                Err(AppendError::Conflict { found, .. }) => assert_eq!(found, Revision::new(1)),
                Err(error) => panic!("{error}"),
            }
            tx.commit().await.unwrap();
        }
    };
    check(IsolationLevel::ReadCommitted, Expected::Any, "done").await;
    check(IsolationLevel::ReadCommitted, Expected::NoStream, "conflict").await;
    for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        check(level, Expected::Any, "retry").await;
        check(level, Expected::NoStream, "retry").await;
    }
}

// --- in the caller's transaction ------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_rolled_back_was_never_there_and_holds_nothing_up() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let mut client = changeover.pool().get().await.unwrap();

    let tx = client.transaction().await.unwrap();
    changeover.append_in(&tx, &stream("gone"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let status = changeover.status().await.unwrap();
    assert!(status.horizon < status.newest, "an append in flight holds up the horizon");
    assert_eq!(status.in_flight.len(), 1);
    tx.rollback().await.unwrap();
    nothing_in_flight(&changeover).await;
    assert_eq!(events_in(&database).await, 0);

    let mut tx = client.transaction().await.unwrap();
    let savepoint = tx.savepoint("before").await.unwrap();
    changeover.append_in(&savepoint, &stream("gone"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    savepoint.rollback().await.unwrap();
    let status = changeover.status().await.unwrap();
    assert_eq!(
        (status.horizon, status.in_flight.len()),
        (status.newest, 0),
        "the lease went with the savepoint"
    );
    changeover.append_in(&tx, &stream("kept"), Expected::NoStream, &[placed("Eve")]).await.unwrap();
    tx.commit().await.unwrap();
    nothing_in_flight(&changeover).await;
    let rows = database.client().await.query("SELECT id, customer FROM orders_v1.orders", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["kept"]);
    assert_eq!(events_in(&database).await, 1);
}

#[tokio::test]
async fn several_appends_in_one_transaction_are_one() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    let (a, b) = (stream("a"), stream("b"));
    changeover.append_in(&tx, &a, Expected::NoStream, &[placed("Ada")]).await.unwrap();
    changeover.append_in(&tx, &b, Expected::NoStream, &[placed("Eve")]).await.unwrap();
    changeover.append_in(&tx, &a, Expected::Exactly(Revision::new(1)), &items(2)).await.unwrap();
    let conflict = changeover.append_in(&tx, &b, Expected::NoStream, &items(1)).await.unwrap_err();
    assert!(matches!(conflict, AppendError::Conflict { found, .. } if found == Revision::new(1)));
    // A conflict that was seen, and not run into, leaves the transaction as it was.
    changeover.append_in(&tx, &b, Expected::Any, &items(1)).await.unwrap();
    let other = changeover.read_stream::<OrderEvent>(&a, Revision::default(), 10).await.unwrap();
    assert!(other.is_empty(), "nobody else sees it before the commit");
    tx.commit().await.unwrap();
    let sql = "SELECT id, items FROM orders_v1.orders ORDER BY id";
    let rows = database.client().await.query(sql, &[]).await.unwrap();
    let rows: Vec<(String, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
}

// --- dropped halfway ------------------------------------------------------------------------------------------------

/// Polls a future at most so many times, then drops it. None if it was dropped.
async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        if polls == times {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            // Asked again at once where it was the last time, so that it is dropped in the middle of it.
            Poll::Pending if polls == times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn an_append_that_is_dropped_halfway_leaves_nothing_half_done() {
    let database = Database::fresh().await;
    let configuration = Configuration::new().fold(InlineOrders1).unwrap();
    let builder = Changeover::builder(database.config()).configuration(configuration).pool_size(1);
    builder.migrate().await.unwrap();
    let changeover = builder.connect().await.unwrap();
    changeover.append(&stream("first"), Expected::Any, &[placed("Ada")]).await.unwrap();
    let client = database.client().await;
    let check = async |expected: Expected, what: &str| {
        let (mut dropped, mut at_all) = (0, 0);
        for times in 1.. {
            let name = stream(&format!("{what}-{times}"));
            let events = [placed("Ada"), OrderEvent::ItemAdded { cents: 1 }];
            let done = polled(times, Box::pin(changeover.append(&name, expected, &events))).await;
            // Before anybody takes the connection again: it must not sit in the pool with an append in flight.
            nothing_in_flight(&changeover).await;
            let sql = "SELECT count(*) FROM changeover.events WHERE stream = $1";
            let written: i64 = client.query_one(sql, &[&name.as_str()]).await.unwrap().get(0);
            let sql = "SELECT count(*) FROM orders_v1.orders WHERE id = $1 AND items = 1";
            let projected: i64 = client.query_one(sql, &[&name.as_str()]).await.unwrap().get(0);
            assert_eq!(written, 2 * projected, "{what}: events and inline rows belong together");
            at_all += written;
            match done {
                Some(appended) => {
                    assert_eq!((appended.unwrap().revision.get(), written), (2, 2));
                    break;
                }
                None => dropped += 1,
            }
            // The next one on the same connection is committed, not swallowed by a transaction that was left open.
            let name = stream(&format!("{what}-after-{times}"));
            changeover.append(&name, Expected::NoStream, &[placed("Eve")]).await.unwrap();
            let sql = "SELECT count(*) FROM orders_v1.orders WHERE id = $1";
            assert_eq!(client.query_one(sql, &[&name.as_str()]).await.unwrap().get::<_, i64>(0), 1);
        }
        assert!(dropped >= 3 && at_all >= 2, "{what}: dropped at {dropped} points");
    };
    Box::pin(check(Expected::Any, "any")).await;
    Box::pin(check(Expected::NoStream, "new")).await;
}

#[tokio::test]
async fn an_append_that_is_dropped_while_it_waits_for_another_leaves_nothing_half_done() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let name = stream("order-1");
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    changeover.append_in(&tx, &name, Expected::Any, &[placed("Ada")]).await.unwrap();
    let other = changeover.clone();
    let waiting = {
        let name = name.clone();
        tokio::spawn(async move { other.append(&name, Expected::Any, &items(1)).await })
    };
    let observer = database.client().await;
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { observer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1 }).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    tx.commit().await.unwrap();
    nothing_in_flight(&changeover).await;
    assert_eq!(events_in(&database).await, 1);
    changeover.append(&name, Expected::Exactly(Revision::new(1)), &items(1)).await.unwrap();
}

#[derive(Debug, Serialize, Deserialize)]
enum Weighed {
    Weighed { kilos: f64, tare: Option<f64> },
}

#[tokio::test]
async fn a_number_that_json_cannot_hold_is_refused_and_nothing_is_appended() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new()).await;
    let scale = stream("scale");
    for kilos in [f64::NAN, f64::INFINITY] {
        // Written as null it could be read by no projector any more.
        let events = [Weighed::Weighed { kilos: 1.5, tare: None }, Weighed::Weighed { kilos, tare: None }];
        let refused = changeover.append(&scale, Expected::Any, &events).await.unwrap_err();
        assert!(matches!(refused, AppendError::Encode(EncodeError::NotFinite { .. })), "{refused:?}");
        assert!(refused.to_string().contains("Weighed holds a number that is NaN or infinite"), "{refused}");
    }
    let fine = [Weighed::Weighed { kilos: 1.5, tare: None }];
    assert_eq!(
        changeover.append(&scale, Expected::NoStream, &fine).await.unwrap().revision,
        Revision::new(1)
    );
}
