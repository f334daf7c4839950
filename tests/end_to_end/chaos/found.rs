//! What the chaos found, or a close look at what it might find: each made certain, without chance.

use std::sync::mpsc;

use changeover::semver::Version;
use changeover::{
    ActivateError, ActivateOptions, ActivationProgress, AppendError, Batch, BoxError, Configuration,
    Delivery, Expected, Fold, FoldProjector, Recorded, Refused, Revision, Row, SqlProjector, StreamName,
    Transaction,
};
use changeover_testkit::{Database, eventually};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, IsolationLevel};

use crate::orders::{InlineOrders1, InlineOrders2, OrderEvent, instance, placed, stream};
use crate::releases::{SOON, hasty};

/// A row that many streams feed, that comes and goes.
#[derive(Debug, Serialize, Deserialize)]
enum Visit {
    Entered { room: String },
    Greeted { room: String },
    Moved { from: String, to: String },
    Emptied { room: String },
}

#[derive(Row, Clone)]
#[row(table = "rooms")]
struct Room {
    #[row(key)]
    name: String,
    events: i64,
}

impl Fold for Room {
    type Event = Visit;

    fn keys(event: &Visit, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        match event {
            Visit::Entered { room } | Visit::Greeted { room } | Visit::Emptied { room } => vec![room.clone()],
            Visit::Moved { from, to } => vec![from.clone(), to.clone()],
        }
    }

    fn fold(row: Option<Self>, name: &String, event: &Recorded<Visit>) -> Option<Self> {
        let row = match event.data {
            Visit::Entered { .. } => Some(row.unwrap_or_else(|| Self { name: name.clone(), events: 0 })),
            Visit::Greeted { .. } | Visit::Moved { .. } => row,
            Visit::Emptied { .. } => None,
        };
        row.map(|row| Self { events: row.events + 1, ..row })
    }
}

struct Rooms;

impl FoldProjector for Rooms {
    const NAME: &'static str = "rooms";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = Visit;
    type Tables = (Room,);
}

async fn rooms(client: &Client) -> Vec<(String, i64)> {
    let rows = client.query("SELECT name, events FROM rooms_v1.rooms ORDER BY name", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn hall() -> String {
    "hall".to_owned()
}

#[tokio::test]
async fn an_event_that_names_a_key_twice_touches_its_row_once() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(Rooms).unwrap()).await;
    let events = [Visit::Entered { room: hall() }, Visit::Moved { from: hall(), to: hall() }];
    changeover.append(&stream("ada"), Expected::Any, &events).await.unwrap();
    assert_eq!(rooms(&database.client().await).await, [(hall(), 2)]);
}

#[tokio::test]
async fn a_row_that_was_deleted_after_the_snapshot_does_not_come_back() {
    for isolation in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let database = Database::fresh().await;
        let changeover = instance(&database, Configuration::new().fold(Rooms).unwrap()).await;
        changeover.append(&stream("ada"), Expected::Any, &[Visit::Entered { room: hall() }]).await.unwrap();

        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.build_transaction().isolation_level(isolation).start().await.unwrap();
        tx.query("SELECT FROM rooms_v1.rooms", &[]).await.unwrap();
        changeover.append(&stream("bob"), Expected::Any, &[Visit::Emptied { room: hall() }]).await.unwrap();
        let late = [Visit::Greeted { room: hall() }];
        let refused = changeover.append_in(&tx, &stream("eve"), Expected::Any, &late).await.unwrap_err();
        assert!(refused.is_retryable(), "{refused}");
        tx.rollback().await.unwrap();
        assert_eq!(rooms(&database.client().await).await, []);
    }
}

#[tokio::test]
async fn a_transaction_that_lost_a_race_for_a_stream_is_not_said_to_be_intact() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new()).await;
    let (mut first, mut second) =
        (changeover.pool().get().await.unwrap(), changeover.pool().get().await.unwrap());
    let (winner, loser) = (first.transaction().await.unwrap(), second.transaction().await.unwrap());
    changeover.append_in(&winner, &stream("fought"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    changeover.append_in(&loser, &stream("own"), Expected::NoStream, &[placed("Bob")]).await.unwrap();

    let fought = stream("fought");
    let (lost, ()) = tokio::join!(
        changeover.append_in(&loser, &fought, Expected::NoStream, &[OrderEvent::Paid]),
        async {
            let observer = database.client().await;
            let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            eventually(SOON, || async { !observer.query(waiting, &[]).await.unwrap().is_empty() }).await;
            winner.commit().await.unwrap();
        }
    );
    // Whoever is told of a conflict may go on and commit: then the transaction must not be broken.
    let lost = lost.unwrap_err();
    assert!(matches!(lost, AppendError::Contended { .. }) && lost.is_retryable(), "{lost}");
    assert!(loser.query("SELECT", &[]).await.is_err(), "it is broken, and was said to be");
    loser.rollback().await.unwrap();

    // In a transaction of its own nothing is broken, so the conflict is one.
    let conflict = changeover.append(&fought, Expected::NoStream, &[OrderEvent::Paid]).await.unwrap_err();
    assert!(matches!(conflict, AppendError::Conflict { .. }), "{conflict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_at_the_very_moment_of_the_mark_leaves_nothing_in_the_middle() {
    let database = Database::fresh().await;
    let old = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    old.append(&stream("a"), Expected::Any, &[placed("Ada")]).await.unwrap();
    let new = instance(&database, Configuration::new().fold(InlineOrders2).unwrap()).await;

    // Somebody looks at the activation so closely that both the mark and the abort have to wait for it.
    let (started, starts) = mpsc::channel();
    let (looked, looks) = mpsc::channel::<()>();
    let looks = std::sync::Mutex::new(looks);
    let activating = tokio::spawn(async move {
        let wait = || tokio::task::block_in_place(|| looks.lock().unwrap().recv().unwrap());
        let progress = |progress| match progress {
            ActivationProgress::Started { activation } => {
                started.send(activation).unwrap();
                wait();
            }
            // Else it might be through before the abort gets a processor, and that is another story.
            ActivationProgress::Paused => wait(),
            _ => {}
        };
        new.activate(&hasty(), &progress).await
    });
    let activation: i64 = tokio::task::spawn_blocking(move || starts.recv().unwrap()).await.unwrap();
    let (observer, mut holder) = (database.client().await, database.client().await);
    let waiting = |count: usize| {
        let observer = &observer;
        eventually(SOON, move || async move {
            let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            observer.query(waiting, &[]).await.unwrap().len() == count
        })
    };
    let held = holder.transaction().await.unwrap();
    held.query("SELECT FROM changeover.activations WHERE id = $1 FOR UPDATE", &[&activation]).await.unwrap();
    looked.send(()).unwrap();
    waiting(1).await;
    let aborting = tokio::spawn({
        let old = old.clone();
        async move { old.abort("somebody else").await }
    });
    waiting(2).await;
    held.commit().await.unwrap();

    assert_eq!(aborting.await.unwrap().unwrap(), [activation]);
    let _ = looked.send(());
    let ended = activating.await.unwrap().unwrap_err();
    assert!(matches!(ended, ActivateError::Ended { .. }), "{ended}");
    let middle =
        "SELECT FROM changeover.projector_states WHERE state = 'activating' OR activation IS NOT NULL";
    assert_eq!(observer.query(middle, &[]).await.unwrap().len(), 0);
    old.append(&stream("a"), Expected::Any, &[OrderEvent::Paid]).await.unwrap();
}

/// It lets an error of the database pass.
struct Careless;

impl SqlProjector for Careless {
    const NAME: &'static str = "careless";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    const TABLES: &'static str = "CREATE TABLE {schema}.nothing ()";
    type Event = OrderEvent;

    async fn project(&self, _batch: Batch<'_, OrderEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        drop(tx.query_typed("SELECT 1 / 0", &[]).await);
        Ok(())
    }
}

#[tokio::test]
async fn an_append_is_not_acknowledged_where_an_inline_projector_swallows_an_error() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().sql(Careless).unwrap()).await;
    let refused = changeover.append(&stream("a"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Projector { .. }), "{refused}");
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    let refused = changeover.append_in(&tx, &stream("a"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Projector { .. }), "{refused}");
}

#[tokio::test]
async fn who_waits_for_an_activation_holds_up_nobody_whom_the_activation_waits_for() {
    let database = Database::fresh().await;
    let configuration = || Configuration::new().fold(InlineOrders1).unwrap();
    // Not started, so they learn of the activation only when they append.
    let (one, other) =
        (instance(&database, configuration()).await, instance(&database, configuration()).await);
    for (instance, name) in [(&one, "a"), (&other, "b")] {
        instance.append(&stream(name), Expected::Any, &[placed("Ada")]).await.unwrap();
    }
    let new = instance(&database, Configuration::new().fold(InlineOrders2).unwrap()).await;
    let (mut in_flight, mut late) = (one.pool().get().await.unwrap(), other.pool().get().await.unwrap());
    let (in_flight, late) = (in_flight.transaction().await.unwrap(), late.transaction().await.unwrap());
    one.append_in(&in_flight, &stream("a"), Expected::Any, &[OrderEvent::Paid]).await.unwrap();

    let (pause_began, mut pause) = tokio::sync::mpsc::unbounded_channel();
    let activating = tokio::spawn(async move {
        let progress = |progress| {
            if let ActivationProgress::Paused = progress {
                pause_began.send(()).unwrap();
            }
        };
        new.activate(&ActivateOptions { pause_limit: SOON, ..hasty() }, &progress).await
    });
    pause.recv().await.unwrap();
    let observer = database.client().await;
    let fought = stream("fought");
    let events = [placed("Bob")];
    let waiting = other.append_in(&late, &fought, Expected::Any, &events);
    let in_flight = async {
        let asked = "SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '-- holds_lease%'";
        eventually(SOON, || async { !observer.query(asked, &[]).await.unwrap().is_empty() }).await;
        // The activation waits for this transaction, so this one may wait for nobody who waits for the activation.
        let events = [placed("Eve")];
        let appending = one.append_in(&in_flight, &fought, Expected::Any, &events);
        let refused = tokio::time::timeout(SOON / 3, appending).await.expect("it need not wait").unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::ProjectorIsActivating { .. })), "{refused}");
        in_flight.commit().await.unwrap();
        activating.await.unwrap().unwrap()
    };
    let (waited, activated) = tokio::join!(waiting, in_flight);
    assert!(activated.pause_ms < (SOON / 2).as_secs_f64() * 1_000.0, "{activated:?}");
    let refused = waited.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NewerProjectorIsActive { .. })), "{refused}");
}

#[tokio::test]
async fn an_append_that_was_given_up_while_it_waited_keeps_no_other_from_the_pool() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let fought = stream("fought");
    changeover.append(&fought, Expected::Any, &[placed("Ada")]).await.unwrap();
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    changeover.append_in(&tx, &fought, Expected::Any, &[OrderEvent::Paid]).await.unwrap();

    // It waits for the transaction above, and is given up meanwhile.
    let observer = database.client().await;
    tokio::select! {
        appended = changeover.append(&fought, Expected::Any, &[OrderEvent::Cancelled]) => panic!("{appended:?}"),
        () = eventually(SOON, || async {
            let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            !observer.query(waiting, &[]).await.unwrap().is_empty()
        }) => {}
    }
    let read = changeover.read_stream::<OrderEvent>(&fought, Revision::default(), 10);
    let read = tokio::time::timeout(SOON, read).await.expect("reading waits for nobody");
    assert_eq!(read.unwrap().len(), 1);
    tx.commit().await.unwrap();

    // Nothing of it is left, neither events nor locks.
    let locks = "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
        WHERE d.datname = current_database() AND l.locktype = 'advisory'";
    eventually(SOON, || async { observer.query(locks, &[]).await.unwrap().is_empty() }).await;
    assert_eq!(
        changeover.read_stream::<OrderEvent>(&fought, Revision::default(), 10).await.unwrap().len(),
        2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_aborts_everything_holds_no_activation_while_waiting_for_another() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let (observer, mut holder) = (database.client().await, database.client().await);
    let open = "INSERT INTO changeover.activations (token, requested_by, from_configuration, to_configuration, rollback, keep_following)
                SELECT gen_random_uuid(), 'somebody', '{}', '{}', false, false FROM generate_series(1, 2) RETURNING id";
    let ids: Vec<i64> = observer.query(open, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();

    // A switch of the later one, which is to wait for somebody who waits for the earlier one.
    let held = holder.transaction().await.unwrap();
    let lock = "SELECT ended_at IS NOT NULL FROM changeover.activations WHERE id = $1 FOR UPDATE";
    held.query_one(lock, &[&ids[1]]).await.unwrap();
    let aborting = tokio::spawn(async move { changeover.abort("somebody else").await });
    let waiting =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(SOON, || async { observer.query(waiting, &[]).await.unwrap().len() == 1 }).await;
    let earlier = tokio::time::timeout(SOON, held.query_one(lock, &[&ids[0]])).await.unwrap().unwrap();
    assert!(earlier.get::<_, bool>(0), "it has ended by now");
    held.commit().await.unwrap();
    assert_eq!(aborting.await.unwrap().unwrap(), ids);
}
