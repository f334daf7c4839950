//! Publishing: whatever wakes it, whoever competes, every event is projected once and in order, or a stall says why not.

use std::future::poll_fn;
use std::time::{Duration, Instant, SystemTime};

use changeover::semver::Version;
use changeover::tokio_postgres::{AsyncMessage, Client, NoTls};
use changeover::{
    Batch, BoxError, Changeover, Configuration, Expected, Position, ProjectorName, Signals, SkipError,
    SqlProjector, Stall, Transaction, Type, WaitError,
};
use changeover_testkit::{Database, eventually};
use serde::Deserialize;

use crate::orders::{InlineOrders1, OrderEvent, Orders1, Totals, instance, place, placed, stream};
use crate::releases::SOON;

/// Writes down every placed order, with the name of the connection that did. Waits while the test holds the gate, and fails
/// in the way that the table `poison` says.
struct Entries;

#[derive(Deserialize)]
enum PlacedOnly {
    Placed { customer: String },
}

const GATE: i64 = 4711;

impl SqlProjector for Entries {
    const NAME: &'static str = "entries";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "
        CREATE TABLE {schema}.entries (
            at bigint GENERATED ALWAYS AS IDENTITY, position bigint NOT NULL, customer text NOT NULL, by text NOT NULL
        );
        CREATE TABLE {schema}.poison (customer text PRIMARY KEY, how text NOT NULL);
        CREATE SEQUENCE {schema}.tasted";
    type Event = PlacedOnly;

    async fn project(&self, batch: Batch<'_, PlacedOnly>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        tx.query_typed("SELECT pg_advisory_xact_lock_shared($1)", &[(&GATE, Type::INT8)]).await?;
        for event in batch.events() {
            let PlacedOnly::Placed { customer } = &event.data;
            let poison = batch.sql("SELECT how FROM {schema}.poison WHERE customer = $1");
            let poison = tx.query_typed(&poison, &[(customer, Type::TEXT)]).await?;
            if !poison.is_empty() {
                // No rollback takes that back.
                tx.query_typed(&batch.sql("SELECT nextval('{schema}.tasted')"), &[]).await?;
            }
            match poison.first().map(|row| row.get(0)) {
                None => {}
                Some("an error") => return Err("the till is shut".into()),
                Some("a panic") => panic!("the till is on fire"),
                Some("a value") => {
                    tx.query_typed("SELECT $1::integer", &[(customer, Type::TEXT)]).await?;
                }
                Some("a constraint") => {
                    let sql = batch.sql("INSERT INTO {schema}.poison VALUES ($1, 'again')");
                    tx.query_typed(&sql, &[(customer, Type::TEXT)]).await?;
                }
                Some(other) => return Err(other.to_owned().into()),
            }
            let sql = batch.sql(
                "INSERT INTO {schema}.entries (position, customer, by)
                 VALUES ($1, $2, current_setting('application_name'))",
            );
            tx.query_typed(&sql, &[(&event.position.get(), Type::INT8), (customer, Type::TEXT)]).await?;
        }
        Ok(())
    }
}

fn entries() -> Configuration {
    Configuration::new().sql(Entries).unwrap()
}

fn name(projector: &str) -> ProjectorName {
    projector.parse().unwrap()
}

async fn publishing(database: &Database, configuration: Configuration, signals: Signals) -> Changeover {
    let builder = Changeover::builder(database.config()).configuration(configuration).signals(signals);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

async fn append(changeover: &Changeover, customer: &str) -> Position {
    let appended = changeover.append(&stream("s"), Expected::Any, &[placed(customer)]).await;
    appended.unwrap().last().unwrap()
}

/// As another process might, of which this one hears nothing. Under a lease, as every append: without one the horizon might
/// pass it before it is committed.
pub(crate) async fn append_by_hand(client: &Client, data: &str) -> Position {
    let sql = "WITH lease AS MATERIALIZED (
                   SELECT pg_advisory_xact_lock_shared(
                       'changeover.events'::regclass::oid::integer, p.last_value::bit(32)::integer)::text AS held
                   FROM changeover.event_position p
               )
               INSERT INTO changeover.events (position, stream, revision, type, data)
               SELECT nextval('changeover.event_position'), gen_random_uuid()::text, 1, 'Placed', $1::text::json
               FROM lease WHERE held IS NOT NULL
               RETURNING position";
    Position::new(client.query_one(sql, &[&data]).await.unwrap().get(0))
}

/// The customers in the order in which they were written down.
async fn written(client: &Client) -> Vec<String> {
    let rows = client.query("SELECT customer FROM entries_v1.entries ORDER BY at", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Until so many transactions wait at the gate.
async fn at_the_gate(client: &Client, count: i64) {
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(SOON, || async { client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == count }).await;
}

async fn stalled(changeover: &Changeover, projector: &str) -> Option<Stall> {
    let status = changeover.status().await.unwrap();
    let projector = status.projectors.into_iter().find(|status| status.projector == name(projector))?;
    let tables = projector.tables?;
    assert!(tables.stalled.is_none() || tables.lag_events > 0, "what is stalled is behind");
    tables.stalled
}

// --- wake-ups -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn any_combination_of_signals_publishes() {
    let database = Database::fresh().await;
    let check = async |in_process: bool, notify: bool, timer: bool| {
        let short = Some(Duration::from_millis(5));
        let signals =
            Signals { in_process, notify: short.filter(|_| notify), timer: short.filter(|_| timer) };
        let changeover = publishing(&database, entries(), signals).await;
        let running = changeover.start();
        // Several times, so that the later ones find everybody asleep.
        for turn in 0..3 {
            let last = append(&changeover, "Ada").await;
            if !(in_process || notify || timer) {
                // Without any, the host has signals of its own.
                changeover.waker().wake();
            }
            let reached = changeover.wait_for(&name("entries"), last, SOON).await;
            assert!(reached.is_ok(), "{signals:?}, turn {turn}: {reached:?}");
        }
        running.stop().await;
    };
    for at in 0..8 {
        check(at & 1 != 0, at & 2 != 0, at & 4 != 0).await;
    }
}

#[tokio::test]
async fn another_process_is_heard_by_notification_alone_and_by_the_timer_alone() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let short = Some(Duration::from_millis(5));
    for (notify, timer) in [(short, None), (None, short)] {
        let signals = Signals { in_process: false, notify, timer };
        let changeover = publishing(&database, entries(), signals).await;
        let running = changeover.start();
        for _ in 0..3 {
            let last = append_by_hand(&client, r#"{"customer": "Ada"}"#).await;
            client.execute("SELECT pg_notify('changeover_changeover', 'appended')", &[]).await.unwrap();
            let reached = changeover.wait_for(&name("entries"), last, SOON).await;
            assert!(reached.is_ok(), "{signals:?}: {reached:?}");
        }
        running.stop().await;
    }
}

/// The channel on which processes hear of each other, listened to.
struct Channel {
    listening: Client,
    hearing: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Channel {
    async fn of(database: &Database) -> Self {
        let (listening, mut connection) = database.config().connect(NoTls).await.unwrap();
        let (heard, hearing) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = heard.send(notification.payload().to_owned());
                }
            }
        });
        listening.batch_execute("LISTEN changeover_changeover").await.unwrap();
        Self { listening, hearing }
    }

    async fn next(&mut self) -> String {
        tokio::time::timeout(SOON, self.hearing.recv()).await.unwrap().unwrap()
    }

    /// What was said and not heard yet. What is sent now comes after all that was sent before.
    async fn all_so_far(&mut self) -> Vec<String> {
        self.listening.batch_execute("NOTIFY changeover_changeover, 'end'").await.unwrap();
        let mut heard = Vec::new();
        loop {
            match self.next().await {
                end if end == "end" => return heard,
                said => heard.push(said),
            }
        }
    }
}

/// What the only instance that runs announces its appends with.
async fn announcement(database: &Database) -> String {
    let sql = "SELECT 'appended ' || id FROM changeover.instances";
    database.client().await.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn appends_are_announced_to_other_processes_if_the_signals_say_so() {
    let database = Database::fresh().await;
    let mut channel = Channel::of(&database).await;
    for notify in [None, Some(Duration::from_millis(1))] {
        let signals = Signals { notify, ..Signals::default() };
        let changeover = publishing(&database, entries(), signals).await;
        let running = changeover.start();
        let last = append(&changeover, "Ada").await;
        changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
        if notify.is_some() {
            assert_eq!(channel.next().await, announcement(&database).await);
        }
        running.stop().await;
        let others = channel.all_so_far().await;
        assert!(notify.is_some() || others.is_empty(), "{others:?}");
    }
}

#[tokio::test]
async fn appends_are_announced_at_most_once_an_interval() {
    let database = Database::fresh().await;
    let mut channel = Channel::of(&database).await;
    let interval = Duration::from_millis(300);
    let signals = Signals { notify: Some(interval), ..Signals::default() };
    let changeover = publishing(&database, entries(), signals).await;
    let running = changeover.start();
    let started = Instant::now();
    for _ in 0..50 {
        append(&changeover, "Ada").await;
    }
    assert_eq!(channel.next().await, announcement(&database).await);
    running.stop().await;
    let most = started.elapsed().div_duration_f64(interval).ceil() + 1.0;
    let heard = 1 + u32::try_from(channel.all_so_far().await.len()).unwrap();
    assert!(f64::from(heard) <= most, "{heard} announcements, {most} at most");
}

/// Inside the append's transaction an announcement would serialize the commits of the whole server.
#[tokio::test]
async fn an_append_itself_announces_nothing() {
    let database = Database::fresh().await;
    let mut channel = Channel::of(&database).await;
    let not_started = publishing(&database, entries(), Signals::default()).await;
    append(&not_started, "alone").await;
    let mut client = not_started.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    not_started.append_in(&tx, &stream("s"), Expected::Any, &[placed("Ada")]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(channel.all_so_far().await, Vec::<String>::new());
}

/// Nothing but appends of its own wakes this instance, and nobody tells it how that of another process ends.
#[tokio::test]
async fn what_an_append_in_flight_elsewhere_holds_back_comes_as_soon_as_that_has_ended() {
    let signals = Signals { in_process: true, notify: None, timer: None };
    for commits in [true, false] {
        let database = Database::fresh().await;
        let (client, elsewhere) = (database.client().await, database.client().await);
        let changeover = publishing(&database, entries(), signals).await;
        let running = changeover.start();
        let first = append(&changeover, "first").await;
        changeover.wait_for(&name("entries"), first, SOON).await.unwrap();
        elsewhere.batch_execute("BEGIN").await.unwrap();
        let _ = append_by_hand(&elsewhere, r#"{"customer": "elsewhere"}"#).await;
        let now = "SELECT clock_timestamp()";
        let before: SystemTime = client.query_one(now, &[]).await.unwrap().get(0);
        append(&changeover, "held back").await;
        // Once a batch of nothing has been given up, what was appended here has been looked for.
        let looked = "SELECT FROM pg_stat_activity
                      WHERE datname = current_database() AND query = 'ROLLBACK' AND state = 'idle' AND query_start > $1";
        eventually(SOON, || async { !client.query(looked, &[&before]).await.unwrap().is_empty() }).await;
        assert_eq!(written(&client).await, ["first"]);
        elsewhere.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
        let expected: &[&str] =
            if commits { &["first", "elsewhere", "held back"] } else { &["first", "held back"] };
        eventually(SOON, || async { written(&client).await == expected }).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn losing_the_listening_connection_costs_latency_only() {
    let database = Database::fresh().await;
    let signals = Signals { in_process: false, timer: None, ..Signals::default() };
    let changeover = publishing(&database, entries(), signals).await;
    let running = changeover.start();
    let last = append(&changeover, "before").await;
    changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
    let client = database.client().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE 'LISTEN %'";
    // Its first event may have got through before it listened.
    eventually(SOON, || async { client.query_one(end, &[]).await.unwrap().get::<_, i64>(0) == 1 }).await;
    let last = append(&changeover, "after").await;
    changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
    let last = append(&changeover, "listening again").await;
    changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
    running.stop().await;
}

// --- many at it -----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_compete_project_nothing_twice_and_all_in_order() {
    let database = Database::fresh().await;
    let mut instances = Vec::new();
    for _ in 0..4 {
        instances.push(instance(&database, entries()).await);
    }
    let running: Vec<_> = instances.iter().map(Changeover::start).collect();
    let appending = instances.iter().enumerate().map(|(at, changeover)| {
        let changeover = changeover.clone();
        tokio::spawn(async move {
            let mut last = Position::START;
            for order in 0..75 {
                let name = stream(&format!("{at}-{order}"));
                let appended = changeover.append(&name, Expected::NoStream, &[placed("Ada")]).await;
                last = appended.unwrap().last().unwrap();
            }
            last
        })
    });
    let mut last = Position::START;
    for appending in appending.collect::<Vec<_>>() {
        last = last.max(appending.await.unwrap());
    }
    instances[0].wait_for(&name("entries"), last, SOON).await.unwrap();
    let client = database.client().await;
    let positions = async |sql: &str| -> Vec<i64> {
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let projected = positions("SELECT position FROM entries_v1.entries ORDER BY at").await;
    assert_eq!(projected, positions("SELECT position FROM changeover.events ORDER BY position").await);
    assert_eq!(projected.len(), 300);
    for running in running {
        running.stop().await;
    }
}

#[tokio::test]
async fn who_found_another_instance_at_work_looks_again() {
    let database = Database::fresh().await;
    // Neither hears of the other's appends.
    let signals = Signals { in_process: true, notify: None, timer: None };
    let (one, two) =
        (publishing(&database, entries(), signals).await, publishing(&database, entries(), signals).await);
    let mut gate = database.client().await;
    let client = database.client().await;
    let last = append(&one, "before").await;
    let running = (one.start(), two.start());
    one.wait_for(&name("entries"), last, SOON).await.unwrap();
    let closed = gate.transaction().await.unwrap();
    closed.execute("SELECT pg_advisory_xact_lock($1)", &[&GATE]).await.unwrap();
    append(&one, "first").await;
    at_the_gate(&client, 1).await;
    // Two wakes up for this one, finds one at the checkpoint, and one never learns of it.
    let last = append(&two, "second").await;
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '-- enter:%'";
    eventually(SOON, || async { client.query_one(busy, &[]).await.unwrap().get::<_, i64>(0) >= 1 }).await;
    closed.commit().await.unwrap();
    two.wait_for(&name("entries"), last, SOON).await.unwrap();
    assert_eq!(written(&client).await, ["before", "first", "second"]);
    running.0.stop().await;
    running.1.stop().await;
}

#[tokio::test]
async fn a_batch_in_progress_holds_up_neither_status_nor_appends_nor_other_projectors() {
    let database = Database::fresh().await;
    let changeover = instance(&database, entries().sql(Totals).unwrap()).await;
    let client = database.client().await;
    let mut gate = database.client().await;
    let running = changeover.start();
    let closed = gate.transaction().await.unwrap();
    closed.execute("SELECT pg_advisory_xact_lock($1)", &[&GATE]).await.unwrap();
    let first = append(&changeover, "first").await;
    at_the_gate(&client, 1).await;
    let last = place(&changeover, "order-1", 2).await.last().unwrap();
    changeover.wait_for(&name("totals"), last, SOON).await.unwrap();
    // The other projector may be about to move its checkpoint.
    let status = eventually(SOON, || async {
        let status = changeover.status().await.unwrap();
        (status.in_flight.len() == 1).then_some(status)
    })
    .await;
    assert_eq!(status.horizon, last, "a batch is no append: it holds up no reader");
    let tables = status.projectors[0].tables.as_ref().unwrap();
    assert!(tables.lag_events >= last.get() - first.get(), "{tables:?}");

    // A stop finishes what is in progress.
    let stopping = tokio::spawn(running.stop());
    closed.commit().await.unwrap();
    tokio::time::timeout(SOON, stopping).await.unwrap().unwrap();
    assert_eq!(written(&client).await[0], "first");
}

// --- reading one's own writes ---------------------------------------------------------------------------------------

#[tokio::test]
async fn waiting_for_a_projector_ends_with_its_rows_or_says_why_not() {
    let database = Database::fresh().await;
    let configuration = entries().sql(Totals).unwrap().fold(InlineOrders1).unwrap();
    let changeover = instance(&database, configuration).await;
    let last = append(&changeover, "Ada").await;
    let short = Duration::from_millis(60);

    // Nobody publishes. Its checkpoint never moves, and need not: no event that it handles lies in between.
    changeover.wait_for(&name("totals"), last, SOON).await.unwrap();
    changeover.wait_for(&name("orders"), last, SOON).await.unwrap();
    let started = Instant::now();
    let timeout = changeover.wait_for(&name("entries"), last, short).await.unwrap_err();
    assert!(started.elapsed() >= short);
    let text = timeout.to_string();
    assert!(text.starts_with("entries 1.0.0 is at position 0") && text.contains("`status`"), "{text}");
    let WaitError::Timeout { at, wanted, .. } = timeout else { panic!("{timeout}") };
    assert_eq!((at, wanted), (Position::START, last));
    let unknown = changeover.wait_for(&name("nobody"), last, short).await.unwrap_err();
    assert!(matches!(unknown, WaitError::NotOurs(_)), "{unknown}");
    let text = unknown.to_string();
    assert_eq!(text, "this build registers no projector nobody; it has entries, orders, totals");

    let client = database.client().await;
    client.execute("INSERT INTO entries_v1.poison VALUES ('Eve', 'an error')", &[]).await.unwrap();
    let running = changeover.start();
    changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
    assert_eq!(written(&client).await, ["Ada"]);
    let poison = append(&changeover, "Eve").await;
    let waiting = changeover.wait_for(&name("entries"), poison, SOON).await.unwrap_err();
    assert!(matches!(waiting, WaitError::Stalled { .. }), "{waiting}");
    let text = waiting.to_string();
    assert!(text.contains("entries 1.0.0 is stalled (") && text.contains("the till is shut"), "{text}");
    assert!(text.contains("run `retry entries`, or give the event up with `skip`"), "{text}");
    changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
    running.stop().await;
}

// --- stalls ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_projector_that_fails_is_stalled_with_the_reason_while_the_others_go_on() {
    let database = Database::fresh().await;
    let changeover = instance(&database, entries().fold(Orders1).unwrap()).await;
    append(&changeover, "first").await;
    let client = database.client().await;
    let running = changeover.start();
    let mut expected = vec!["first".to_owned()];
    let mut check = async |how: &str, said: &str| {
        let secret = format!("secret {how}");
        let sql = "INSERT INTO entries_v1.poison VALUES ($1, $2)";
        client.execute(sql, &[&secret, &how]).await.unwrap();
        let name_of = |customer: &str| stream(&format!("{how} {customer}"));
        let batch = [placed("a"), OrderEvent::Paid, placed("b"), placed(&secret), placed("c")];
        let appended = changeover.append(&name_of("batch"), Expected::NoStream, &batch).await.unwrap();
        let last = appended.last().unwrap();
        let stall = eventually(SOON, || stalled(&changeover, "entries")).await;
        assert_eq!(
            (stall.position, stall.event_type.as_deref()),
            (Some(appended.positions[3]), Some("Placed"))
        );
        assert!(stall.error.contains(said), "{how}: {}", stall.error);
        assert!(!stall.error.contains("secret"), "{how}: {}", stall.error);
        expected.extend(["a".to_owned(), "b".to_owned()]);
        assert_eq!(written(&client).await, expected, "{how}: what comes before it is projected");
        changeover.wait_for(&name("orders"), last, SOON).await.unwrap();

        client.execute("DELETE FROM entries_v1.poison", &[]).await.unwrap();
        assert!(changeover.retry(&name("entries")).await.unwrap());
        changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
        expected.extend([secret, "c".to_owned()]);
        assert_eq!(written(&client).await, expected, "{how}");
        assert!(!changeover.retry(&name("entries")).await.unwrap(), "it is not stalled any more");
        assert!(stalled(&changeover, "entries").await.is_none());
    };
    check("an error", "the till is shut").await;
    check("a panic", "panicked").await;
    check("a value", "22P02").await;
    check("a constraint", "poison_pkey").await;
    running.stop().await;
}

#[tokio::test]
async fn an_event_that_does_not_decode_stalls_and_its_data_is_not_in_the_error() {
    let database = Database::fresh().await;
    let changeover = instance(&database, entries()).await;
    append(&changeover, "first").await;
    let client = database.client().await;
    let running = changeover.start();
    let check = async |data: &str, said: &str| {
        let position = append_by_hand(&client, data).await;
        changeover.waker().wake();
        let stall = eventually(SOON, || stalled(&changeover, "entries")).await;
        assert_eq!(stall.position, Some(position));
        assert!(stall.error.contains(said) && !stall.error.contains("secret"), "{}", stall.error);
        changeover.skip(&name("entries"), position, "test").await.unwrap();
    };
    check(r#"{"customer": {"secret": 1}}"#, "does not fit").await;
    check(r#"{"secret": "secret"}"#, "no field `customer`").await;
    check(r#""secret""#, "does not fit").await;
    let last = append(&changeover, "last").await;
    changeover.wait_for(&name("entries"), last, SOON).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_skip_moves_past_exactly_the_event_that_stalls_and_is_written_down() {
    let database = Database::fresh().await;
    let changeover = instance(&database, entries()).await;
    append(&changeover, "first").await;
    let client = database.client().await;
    let running = changeover.start();
    let entries = name("entries");
    client
        .batch_execute("INSERT INTO entries_v1.poison VALUES ('x', 'an error'), ('y', 'an error')")
        .await
        .unwrap();
    let events = ["a", "x", "y", "b"].map(placed);
    let at = changeover.append(&stream("skip"), Expected::NoStream, &events).await.unwrap().positions;
    eventually(SOON, || stalled(&changeover, "entries")).await;

    for elsewhere in [at[0], at[2], at[3]] {
        let refused = changeover.skip(&entries, elsewhere, "Ada").await.unwrap_err();
        let SkipError::NotStalledThere { stalled_at, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*stalled_at, Some(at[1]));
        assert!(refused.to_string().contains(&at[1].to_string()), "{refused}");
    }
    let refused = changeover.skip(&name("nobody"), at[1], "Ada").await.unwrap_err();
    assert!(matches!(refused, SkipError::NotStalledThere { stalled_at: None, .. }), "{refused}");

    changeover.skip(&entries, at[1], "Ada").await.unwrap();
    let stall = eventually(SOON, || stalled(&changeover, "entries")).await;
    assert_eq!(stall.position, Some(at[2]), "the next one is not skipped with it");
    assert!(changeover.skip(&entries, at[1], "Ada").await.is_err(), "it is not stalled there any more");
    changeover.skip(&entries, at[2], "Eve").await.unwrap();
    changeover.wait_for(&entries, at[3], SOON).await.unwrap();
    assert_eq!(written(&client).await, ["first", "a", "b"]);
    let sql = "SELECT projector, major, position, error, skipped_by FROM changeover.skipped_events ORDER BY position";
    let rows = client.query(sql, &[]).await.unwrap();
    let rows: Vec<(&str, i64, i64, bool, &str)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get::<_, &str>(3).contains("till"), row.get(4)))
        .collect();
    assert_eq!(rows, [("entries", 1, at[1].get(), true, "Ada"), ("entries", 1, at[2].get(), true, "Eve")]);
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_failed_is_not_tried_again_whole_after_each_of_its_events() {
    let database = Database::fresh().await;
    let changeover = instance(&database, entries()).await;
    append(&changeover, "first").await;
    let client = database.client().await;
    let running = changeover.start();
    client.execute("INSERT INTO entries_v1.poison VALUES ('x', 'an error')", &[]).await.unwrap();
    let mut events = vec![placed("a"); 100];
    events.push(placed("x"));
    let last = changeover.append(&stream("many"), Expected::NoStream, &events).await.unwrap().last();
    let stall = eventually(SOON, || stalled(&changeover, "entries")).await;
    assert_eq!(stall.position, last);
    assert_eq!(written(&client).await.len(), 101);
    let tasted = async || {
        let sql = "SELECT last_value FROM entries_v1.tasted";
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let before = tasted().await;
    assert!((2..20).contains(&before), "tried {before} times");

    // Nothing was mended: it is tried as often as the first time, and stalls again at the same event.
    assert!(changeover.retry(&name("entries")).await.unwrap());
    let again = eventually(SOON, || stalled(&changeover, "entries")).await;
    assert!(again.since > stall.since && again.position == stall.position);
    assert!((2..20).contains(&(tasted().await - before)));
    running.stop().await;
}
