//! Admission: what the states let an instance do, checked on every append and on every batch, in every isolation level.

use std::fmt::Write;
use std::time::{Duration, Instant};

use changeover::semver::Version;
use changeover::tokio_postgres::{Client, IsolationLevel};
use changeover::{
    AppendError, Changeover, Configuration, ConnectError, Delivery, Expected, Fold, FoldProjector, Obstacle,
    ReadyState, Recorded, Refused, Row, StreamName, WhenNothingIsActive,
};
use changeover_testkit::{Database, Proxy, eventually};
use serde::Deserialize;

use crate::orders::{
    InlineOrders1, OrderEvent, Orders1, Orders1Minor, Orders1Patched, Orders2, instance, place, placed,
    stream,
};
use crate::releases::{SOON, hasty};

pub(crate) const LEVELS: [IsolationLevel; 3] =
    [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable];

pub(crate) fn orders1() -> Configuration {
    Configuration::new().fold(Orders1).unwrap()
}

/// Puts the states there by hand: each a projector, a version, a state, and `switching` if an activation is at it. Then a
/// generation that was never used, as whoever changes the states does.
pub(crate) async fn set_states(client: &Client, states: &[&str]) {
    let mut sql = "BEGIN; DELETE FROM changeover.projector_states; DELETE FROM changeover.activations;
        INSERT INTO changeover.activations (token, requested_by, from_configuration, to_configuration, activating_at, deadline)
        VALUES (gen_random_uuid(), 'test', '{}', '{}', now(), now() + interval '1 hour');"
        .to_owned();
    for state in states {
        let words: Vec<&str> = state.split(' ').collect();
        let switching = words[2] == "activating" || words.get(3) == Some(&"switching");
        let activation = if switching { "(SELECT id FROM changeover.activations)" } else { "NULL" };
        write!(
            sql,
            "INSERT INTO changeover.projector_states
                 (projector, version, state, delivery, fingerprint, activation, changed_by)
             VALUES ('{}', '{}', '{}', 'background', 'by hand', {activation}, 'test');",
            words[0], words[1], words[2]
        )
        .unwrap();
    }
    sql.push_str(
        "COMMIT; SELECT setval('changeover.generation', last_value + 1) FROM changeover.generation;",
    );
    client.batch_execute(&sql).await.unwrap();
}

/// An append in words: done, or the refusal's name.
pub(crate) fn outcome(appended: Result<changeover::Appended, AppendError>) -> &'static str {
    match appended {
        Ok(_) => "done",
        Err(AppendError::Refused(refused)) => refused.name(),
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

pub(crate) async fn append(changeover: &Changeover) -> &'static str {
    outcome(changeover.append(&stream("s"), Expected::Any, &[placed("Ada")]).await)
}

#[tokio::test]
async fn a_transaction_whose_snapshot_is_older_than_the_activation_is_refused() {
    for level in LEVELS {
        let database = Database::fresh().await;
        let old = instance(&database, orders1()).await;
        let new = instance(&database, Configuration::new().fold(Orders2).unwrap()).await;
        place(&old, "first", 1).await;
        let mut client = old.pool().get().await.unwrap();
        let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
        tx.query("SELECT * FROM changeover.projector_states", &[]).await.unwrap();
        let activated = new.activate(&hasty(), &|_| {}).await.unwrap();
        assert!(activated.activation.is_some());
        let refused = old.append_in(&tx, &stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        let AppendError::Refused(refused) = refused else { panic!("{refused}") };
        assert!(!refused.is_retryable());
        let text = refused.to_string();
        let named = ["orders", "2.0.0", "1.0.0", "retired"];
        assert!(named.iter().all(|word| text.contains(word)), "{level:?}: {text}");
        tx.commit().await.unwrap();
        assert_eq!(append(&new).await, "done");
    }
}

// --- while a projector is being switched ----------------------------------------------------------------------------

async fn patient(database: &Database, wait: Duration) -> Changeover {
    let builder = Changeover::builder(database.config()).configuration(orders1()).activation_wait(wait);
    builder.migrate().await.unwrap();
    let changeover = builder.connect().await.unwrap();
    place(&changeover, "first", 1).await;
    changeover
}

async fn until_activating(changeover: &Changeover) {
    let mut readiness = changeover.watch_readiness();
    let activating = readiness.wait_for(|readiness| readiness.state == ReadyState::Activating);
    tokio::time::timeout(SOON, activating).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_append_waits_for_the_outcome_of_an_activation() {
    let database = Database::fresh().await;
    let changeover = patient(&database, SOON).await;
    let admin = database.client().await;
    let check = async |in_transaction: bool, states: &[&str], expected: &str| {
        set_states(&admin, &["orders 1.0.0 active"]).await;
        assert_eq!(append(&changeover).await, "done");
        set_states(&admin, &["orders 1.0.0 active switching", "orders 2.0.0 activating"]).await;
        let waiting = {
            let changeover = changeover.clone();
            tokio::spawn(async move {
                let mut client = changeover.pool().get().await.unwrap();
                if !in_transaction {
                    return append(&changeover).await;
                }
                let tx = client.transaction().await.unwrap();
                let appended = changeover.append_in(&tx, &stream("s"), Expected::Any, &[placed("Ada")]).await;
                tx.commit().await.unwrap();
                outcome(appended)
            })
        };
        until_activating(&changeover).await;
        assert!(!waiting.is_finished());
        set_states(&admin, states).await;
        let found = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
        assert_eq!(found, expected, "in a transaction: {in_transaction}, {states:?}");
    };
    for in_transaction in [false, true] {
        check(in_transaction, &["orders 1.0.0 active"], "done").await;
        let switched = ["orders 1.0.0 retired", "orders 2.0.0 active"];
        check(in_transaction, &switched, "NewerProjectorIsActive").await;
    }
}

#[tokio::test]
async fn an_append_that_has_waited_long_enough_is_refused_and_may_be_tried_again() {
    let database = Database::fresh().await;
    let wait = Duration::from_millis(80);
    let changeover = patient(&database, wait).await;
    let admin = database.client().await;
    set_states(&admin, &["orders 1.0.0 active switching"]).await;
    let started = Instant::now();
    let refused = changeover.append(&stream("s"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(started.elapsed() >= wait);
    assert!(matches!(refused, AppendError::Refused(Refused::ProjectorIsActivating { .. })), "{refused}");
    assert!(refused.is_retryable());
}

#[tokio::test]
async fn a_transaction_that_has_appended_already_is_refused_at_once_and_never_waits() {
    let database = Database::fresh().await;
    let changeover = patient(&database, Duration::from_hours(1)).await;
    let admin = database.client().await;
    for seen_before in [false, true] {
        set_states(&admin, &["orders 1.0.0 active"]).await;
        assert_eq!(append(&changeover).await, "done");
        let mut client = changeover.pool().get().await.unwrap();
        let tx = client.transaction().await.unwrap();
        let (name, events) = (stream("own"), [placed("Ada")]);
        changeover.append_in(&tx, &name, Expected::Any, &events).await.unwrap();
        set_states(&admin, &["orders 1.0.0 active switching", "orders 2.0.0 activating"]).await;
        // Another append of this instance may have found out already, and waits.
        let waiting = {
            let changeover = changeover.clone();
            tokio::spawn(async move { if seen_before { append(&changeover).await } else { "done" } })
        };
        if seen_before {
            until_activating(&changeover).await;
        }
        let second = changeover.append_in(&tx, &name, Expected::Any, &events);
        let refused = tokio::time::timeout(SOON, second).await.expect("it must not wait").unwrap_err();
        assert!(matches!(refused, AppendError::Refused(Refused::ProjectorIsActivating { .. })), "{refused}");
        assert!(refused.is_retryable());
        tx.rollback().await.unwrap();
        set_states(&admin, &["orders 1.0.0 active"]).await;
        assert_eq!(waiting.await.unwrap(), "done");
    }
}

// --- definitions ----------------------------------------------------------------------------------------------------

/// The same name as the projectors of `orders`, and something else in it each time.
#[derive(Row, Clone)]
#[row(table = "orders")]
struct OtherOrder {
    #[row(key)]
    id: String,
    note: Option<String>,
}

#[derive(Deserialize)]
enum FewerEvents {
    Placed {},
}

impl Fold for OtherOrder {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(_row: Option<Self>, id: &String, _event: &Recorded<OrderEvent>) -> Option<Self> {
        Some(Self { id: id.clone(), note: None })
    }
}

/// The columns of `Order`, fed by fewer events.
#[derive(Row, Clone)]
#[row(table = "orders")]
struct SameColumns {
    #[row(key)]
    id: String,
    #[row(index)]
    customer: String,
    items: i32,
    cents: i64,
    paid: bool,
    last_position: i64,
}

impl Fold for SameColumns {
    type Event = FewerEvents;

    fn keys(_event: &FewerEvents, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(_row: Option<Self>, id: &String, event: &Recorded<FewerEvents>) -> Option<Self> {
        let FewerEvents::Placed {} = event.data;
        let (customer, last_position) = (String::new(), event.position.get());
        Some(Self { id: id.clone(), customer, items: 0, cents: 0, paid: false, last_position })
    }
}

macro_rules! orders_too {
    ($($name:ident $version:expr, $delivery:ident, $event:ty, $row:ty;)*) => {$(
        struct $name;

        impl FoldProjector for $name {
            const NAME: &'static str = "orders";
            const VERSION: Version = $version;
            const DELIVERY: Delivery = Delivery::$delivery;
            type Event = $event;
            type Tables = ($row,);
        }
    )*};
}

orders_too! {
    OtherTables Version::new(1, 0, 0), Background, OrderEvent, OtherOrder;
    OtherTablesPatch Version::new(1, 0, 7), Background, OrderEvent, OtherOrder;
    OtherTablesMinor Version::new(1, 7, 0), Background, OrderEvent, OtherOrder;
    OtherTablesMajor Version::new(2, 0, 0), Background, OrderEvent, OtherOrder;
    OtherEvents Version::new(1, 0, 0), Background, FewerEvents, SameColumns;
    OtherEventsPatch Version::new(1, 0, 7), Background, FewerEvents, SameColumns;
    OtherEventsMinor Version::new(1, 7, 0), Background, FewerEvents, SameColumns;
    OtherDeliveryPatch Version::new(1, 0, 7), Inline, OrderEvent, crate::orders::Order;
    OtherDeliveryMinor Version::new(1, 7, 0), Inline, OrderEvent, crate::orders::Order;
}

#[tokio::test]
async fn a_version_with_another_definition_is_refused_at_start_up() {
    let database = Database::fresh().await;
    let first = instance(&database, orders1()).await;
    place(&first, "first", 1).await;
    let check = async |what: &str, configuration: Configuration, expected: &str| {
        let builder = Changeover::builder(database.config()).configuration(configuration);
        let found = match builder.connect().await {
            Ok(_) => "connected",
            Err(ConnectError::Obstacle(obstacle)) => {
                let text = obstacle.to_string();
                assert!(text.contains("orders") && text.contains("raise its"), "{what}: {text}");
                match obstacle {
                    Obstacle::OtherDefinition { .. } => "other definition",
                    Obstacle::OtherTables { .. } => "other tables",
                    obstacle => panic!("{obstacle}"),
                }
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, expected, "{what}");
    };
    let new = Configuration::new;
    check("the same", orders1(), "connected").await;
    check("a patch", new().fold(Orders1Patched).unwrap(), "connected").await;
    check("a minor", new().fold(Orders1Minor).unwrap(), "connected").await;
    check("a major", new().fold(Orders2).unwrap(), "connected").await;
    check("other tables", new().fold(OtherTables).unwrap(), "other definition").await;
    check("other events", new().fold(OtherEvents).unwrap(), "other definition").await;
    check("other delivery", new().fold(InlineOrders1).unwrap(), "other definition").await;
    check("other tables in a patch", new().fold(OtherTablesPatch).unwrap(), "other definition").await;
    check("other events in a patch", new().fold(OtherEventsPatch).unwrap(), "other definition").await;
    check("other delivery in a patch", new().fold(OtherDeliveryPatch).unwrap(), "other definition").await;
    check("other tables in a minor", new().fold(OtherTablesMinor).unwrap(), "other tables").await;
    check("other events in a minor", new().fold(OtherEventsMinor).unwrap(), "connected").await;
    check("other delivery in a minor", new().fold(OtherDeliveryMinor).unwrap(), "connected").await;
    check("other tables in a major", new().fold(OtherTablesMajor).unwrap(), "connected").await;
}

// --- nothing active -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn where_nothing_is_active_a_configuration_is_assumed_or_refused_as_the_host_says() {
    let database = Database::fresh().await;
    let refusing = Changeover::builder(database.config())
        .configuration(orders1())
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    refusing.migrate().await.unwrap();
    let refusing = refusing.connect().await.unwrap();
    assert_eq!(refusing.readiness().state, ReadyState::Unknown);
    let refused = refusing.append(&stream("s"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::NoConfigurationIsActive)), "{refused}");
    assert!(refused.to_string().contains("activate-configuration"), "{refused}");
    assert_eq!(refusing.readiness().state, ReadyState::Waiting);
    assert!(refusing.status().await.unwrap().projectors.is_empty(), "it assumed nothing");

    let assuming = instance(&database, orders1()).await;
    assert_eq!(append(&assuming).await, "done");
    assert_eq!(append(&refusing).await, "done");
    assert_eq!(refusing.readiness().state, ReadyState::Active);
}

#[tokio::test]
async fn an_inline_projector_is_not_assumed_on_a_log_that_has_history_already() {
    let database = Database::fresh().await;
    let log_only = instance(&database, Configuration::new()).await;
    place(&log_only, "first", 2).await;
    let inline = instance(&database, Configuration::new().fold(InlineOrders1).unwrap()).await;
    let refused = inline.append(&stream("s"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Refused::HistoryIsMissing { .. })), "{refused}");
    assert!(refused.to_string().contains("activate-configuration"), "{refused}");
    assert_eq!(inline.readiness().state, ReadyState::Waiting);
    assert!(inline.status().await.unwrap().projectors.is_empty(), "nothing is left of the try");
    // What it was told to do helps.
    let activated = inline.activate(&hasty(), &|_| {}).await.unwrap();
    assert!(activated.activation.is_some());
    assert_eq!(append(&inline).await, "done");
    let row =
        database.client().await.query_one("SELECT sum(items) FROM orders_v1.orders", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2);

    // A background projector simply projects the history.
    let database = Database::fresh().await;
    let log_only = instance(&database, Configuration::new()).await;
    let last = place(&log_only, "first", 2).await.last().unwrap();
    let background = instance(&database, orders1()).await;
    let running = background.start();
    background.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_configurations_that_start_at_once_on_an_empty_database_one_is_assumed() {
    for _ in 0..3 {
        let database = Database::fresh().await;
        let mut instances = Vec::new();
        for at in 0..8 {
            let configuration =
                if at % 2 == 0 { orders1() } else { Configuration::new().fold(Orders2).unwrap() };
            instances.push(instance(&database, configuration).await);
        }
        let appending =
            instances.into_iter().map(|changeover| tokio::spawn(async move { append(&changeover).await }));
        let mut outcomes = Vec::new();
        for appending in appending.collect::<Vec<_>>() {
            outcomes.push(appending.await.unwrap());
        }
        let client = database.client().await;
        let rows = client.query("SELECT version, state FROM changeover.projector_states", &[]).await.unwrap();
        let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let expected = match rows[..] {
            [("1.0.0", "active")] => ["done", "NewerOrOlder"],
            [("2.0.0", "active")] => ["NewerOrOlder", "done"],
            _ => panic!("{rows:?}"),
        };
        for (at, outcome) in outcomes.into_iter().enumerate() {
            let refused = ["OlderProjectorIsActive", "NewerProjectorIsActive"].contains(&outcome);
            assert_eq!(if refused { "NewerOrOlder" } else { outcome }, expected[at % 2], "{rows:?}");
        }
        let events: i64 =
            client.query_one("SELECT count(*) FROM changeover.events", &[]).await.unwrap().get(0);
        assert_eq!(events, 4);
    }
}

// --- connections lost -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_instance_that_was_cut_off_says_so_and_decides_anew_when_it_is_back() {
    let database = Database::fresh().await;
    let admin = database.client().await;
    let proxy = Proxy::in_front_of(&database.config()).unwrap();
    let builder = Changeover::builder(proxy.config(&database.config())).configuration(orders1());
    builder.migrate().await.unwrap();
    let changeover = builder.connect().await.unwrap();
    let running = changeover.start();
    assert_eq!(append(&changeover).await, "done");
    let mut readiness = changeover.watch_readiness();
    let mut until = async |state: ReadyState| {
        let reached = readiness.wait_for(|readiness| readiness.state == state);
        tokio::time::timeout(SOON, reached).await.unwrap().unwrap().clone()
    };
    until(ReadyState::Active).await;

    proxy.cut();
    let unreachable = until(ReadyState::Unreachable).await;
    assert!(unreachable.reason.contains("cannot be reached"), "{}", unreachable.reason);
    // On a connection that was not seen to be lost yet, whether it was written is unknown; then there are none left.
    eventually(SOON, || async {
        match changeover.append(&stream("s"), Expected::Any, &[placed("Ada")]).await.unwrap_err() {
            AppendError::Store(_) => true,
            AppendError::Unknown { .. } => false,
            error => panic!("{error}"),
        }
    })
    .await;
    // Another server answers next time, with the generation that is known here and other states: what was decided before
    // must not be believed.
    admin.execute("UPDATE changeover.projector_states SET version = '3.0.0'", &[]).await.unwrap();
    proxy.resume();
    assert_eq!(append(&changeover).await, "NewerProjectorIsActive");
    until(ReadyState::Retired).await;
    running.stop().await;
}

#[tokio::test]
async fn connections_that_the_server_ends_are_replaced() {
    let database = Database::fresh().await;
    let admin = database.client().await;
    let changeover = instance(&database, orders1()).await;
    let running = changeover.start();
    for turn in 0..3 {
        assert_eq!(append(&changeover).await, "done");
        let end = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let ended = admin.query(end, &[]).await.unwrap();
        let ended: Vec<i32> = ended.iter().map(|row| row.get(0)).collect();
        assert!(ended.len() >= 2, "turn {turn}: {} ended", ended.len());
        // All of them: one that is about to end would still take an append.
        let left = "SELECT FROM pg_stat_activity WHERE pid = ANY ($1)";
        eventually(SOON, || async { admin.query(left, &[&ended]).await.unwrap().is_empty() }).await;
        eventually(SOON, || async {
            let appended = changeover.append(&stream("s"), Expected::Any, &[placed("Ada")]).await;
            matches!(appended, Ok(_) | Err(AppendError::Refused(_)))
        })
        .await;
        let last = place(&changeover, &format!("after {turn}"), 1).await.last().unwrap();
        changeover.wait_for(&"orders".parse().unwrap(), last, SOON).await.unwrap();
        eventually(SOON, || async { changeover.readiness().state == ReadyState::Active }).await;
    }
    running.stop().await;
}
