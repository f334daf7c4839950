//! Adopting: a read model that something else has fed becomes a projector's, and nothing is lost on the way.

mod refused;
mod resumed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use changeover::tokio_postgres::{Client, NoTls, Row};
use changeover::{
    ActivateError, ActivateOptions, ActivationProgress, AdoptAt, AdoptError, AdoptOptions, Adopted,
    AppendError, Changeover, Expected, Position, ProjectorName, PruneOptions, Refused, Type,
    WhenNothingIsActive,
};
use changeover_testkit::{Cluster, Database, PgBouncer, eventually};

use crate::ledger::ledger_on;
use crate::operator::Operator;
use crate::orders::{OrderEvent, place, placed, stream};
use crate::releases::{SOON, active, hasty, instance_of, release, wrong_rows};

/// The table of `orders`, as somebody else would have made it.
const TABLE: &str = "
    CREATE TABLE public.orders (
        id text NOT NULL UNIQUE, customer text NOT NULL, items integer NOT NULL DEFAULT 0, cents bigint NOT NULL,
        paid boolean NOT NULL, last_position bigint NOT NULL
    );
    CREATE INDEX by_customer ON public.orders (customer)";

/// How long a reader would wait at least who queues behind a lock request that waits for a long reader; on a slow machine
/// any other one waits for a while, too.
const QUEUED: Duration = Duration::from_secs(10);

/// Fills it with what the log says up to here.
const FILL: &str = "
    INSERT INTO public.orders
    SELECT stream, min(data ->> 'customer'), (count(*) FILTER (WHERE type = 'ItemAdded'))::integer,
           coalesce(sum((data ->> 'cents')::bigint) FILTER (WHERE type = 'ItemAdded'), 0)::bigint,
           bool_or(type = 'Paid'), max(position)
    FROM changeover.events GROUP BY stream HAVING bool_or(type = 'Placed')";

fn orders() -> ProjectorName {
    "orders".parse().unwrap()
}

fn from_public(at: impl Into<AdoptAt>) -> AdoptOptions {
    AdoptOptions { from_schema: Some("public".to_owned()), activation: hasty(), ..AdoptOptions::at(at) }
}

async fn adopt(changeover: &Changeover, options: &AdoptOptions) -> Result<Adopted, AdoptError> {
    changeover.adopt(&orders(), options, &|_| {}).await
}

/// An instance of a release that assumes nothing.
async fn humble(database: &Database, name: &str) -> Changeover {
    let builder = Changeover::builder(database.config())
        .configuration(release(name))
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

/// A log with some orders, which a process without projectors has appended, and a table that holds them; then some more orders.
async fn read_model_of_others(database: &Database) -> (Client, Changeover, Position) {
    let client = database.client().await;
    let none = instance_of(database, "none").await;
    for order in 0..20 {
        place(&none, &format!("order-{order}"), 3).await;
    }
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute(FILL).await.unwrap();
    let position = none.horizon().await.unwrap();
    for order in 15..25 {
        let more = [placed("Grace"), OrderEvent::ItemAdded { cents: 7 }, OrderEvent::Paid];
        let events = if order < 20 { &more[1..] } else { &more[..] };
        none.append(&stream(&format!("order-{order}")), Expected::Any, events).await.unwrap();
    }
    (client, none, position)
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Every relation outside the catalogs with its place, and every state: what an adoption may change.
async fn everything(client: &Client) -> String {
    let sql = "SELECT concat_ws(' | ',
        (SELECT string_agg(oid::regclass || ' ' || relkind::text, ', ' ORDER BY oid) FROM pg_class
         WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)),
        (SELECT string_agg(nspname, ', ' ORDER BY nspname) FROM pg_namespace),
        (SELECT string_agg(s::text, ', ') FROM changeover.projector_states s),
        (SELECT string_agg(c::text, ', ') FROM changeover.checkpoints c),
        (SELECT count(*) FROM changeover.activations))";
    text(client, sql).await
}

#[tokio::test]
async fn a_read_model_from_elsewhere_is_adopted_and_fed_from_there_on() {
    for name in ["1.0.0", "inline 1.0.0"] {
        let database = Database::fresh().await;
        let (client, none, position) = read_model_of_others(&database).await;
        let new = humble(&database, name).await;
        let adopted = adopt(&new, &from_public(position)).await.unwrap();
        assert_eq!(
            (&adopted.moved[..], adopted.schema.as_str()),
            (&["public.orders".to_owned()][..], "orders_v1")
        );
        assert_eq!(adopted.activation.horizon, Some(new.horizon().await.unwrap()));
        assert_eq!(adopted.activation.views[0].changed, ["orders.orders"]);
        assert_eq!(active(&client).await, "orders 1.0.0");
        assert_eq!(
            wrong_rows(&client, "orders_v1").await,
            0,
            "{name}: what came after {position} was replayed"
        );
        let at = text(&client, "SELECT adopted::text FROM changeover.checkpoints").await;
        assert_eq!(at, position.to_string());
        assert_eq!(
            text(
                &client,
                "SELECT string_agg(indexname, ', ' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'orders_v1'"
            )
            .await,
            "by_customer, orders_id_key"
        );

        // Whoever has no such projector has retired with this; whoever has it goes on.
        let refused = none.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap_err();
        assert!(
            matches!(refused, AppendError::Refused(Refused::UnknownProjectorIsActive { .. })),
            "{refused}"
        );
        let running = new.start();
        let last = place(&new, "order-new", 2).await.last().unwrap();
        new.wait_for(&orders(), last, SOON).await.unwrap();
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{name}");

        // Old code finds the table under its old name, and may write to it.
        assert_eq!(wrong_rows(&client, "public").await, 0);
        client
            .batch_execute(
                "INSERT INTO public.orders (id, customer, cents, paid, last_position) VALUES ('mine', 'Eve', 1, false, 0)
                     ON CONFLICT (id) DO NOTHING;
                 UPDATE public.orders SET cents = 2 WHERE id = 'mine' AND items = 0;
                 SELECT id FROM public.orders WHERE id = 'mine' FOR UPDATE;
                 DELETE FROM public.orders WHERE cents = 2",
            )
            .await
            .unwrap();
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{name}");
        running.stop().await;

        // It is a version like any other from now on.
        let next = humble(&database, if name == "1.0.0" { "2.0.0" } else { "inline 2.0.0" }).await;
        let _ = next.activate(&hasty(), &|_| {}).await.unwrap();
        place(&next, "order-next", 2).await;
        let next_running = next.start();
        next.wait_for(&orders(), next.horizon().await.unwrap(), SOON).await.unwrap();
        assert_eq!(wrong_rows(&client, "orders").await, 0, "{name}: the stable view shows the next version");
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
        next_running.stop().await;

        // It can be pruned like any other, once nobody uses the old names any more.
        let prune = PruneOptions { keep: 0, ..PruneOptions::default() };
        let refused = next.prune(&prune).await.unwrap_err();
        assert!(refused.to_string().contains("view public.orders"), "{refused}");
        client.batch_execute("DROP VIEW public.orders").await.unwrap();
        let _ = next.prune(&prune).await.unwrap();
        assert_eq!(
            text(&client, "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'orders_v1'").await,
            "0"
        );
    }
}

/// Somebody who appends and feeds the table in the same transaction, as an application would that knows nothing of
/// projectors, until it is told that a projector has taken over; then it only appends, as its next release does.
async fn legacy(
    name: String,
    old: Changeover,
    new: Changeover,
    stop: Arc<AtomicBool>,
    written: Arc<[AtomicUsize; 2]>,
) {
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let order = stream(&format!("{name}-{}", n / 4));
        let event = if n % 4 == 0 { placed(&name) } else { OrderEvent::ItemAdded { cents: n } };
        let mut client = old.pool().get().await.unwrap();
        let tx = client.transaction().await.unwrap();
        match old.append_in(&tx, &order, Expected::Any, std::slice::from_ref(&event)).await {
            Ok(appended) => {
                let position = appended.last().unwrap().get();
                let insert = "INSERT INTO public.orders (id, customer, cents, paid, last_position) VALUES ($1, $2, 0, false, $3)";
                let update = "UPDATE public.orders SET items = items + 1, cents = cents + $2, last_position = $3 WHERE id = $1";
                let id = order.as_str();
                let rows = match &event {
                    OrderEvent::Placed { customer } => {
                        tx.query_typed(
                            insert,
                            &[(&id, Type::TEXT), (customer, Type::TEXT), (&position, Type::INT8)],
                        )
                        .await
                    }
                    _ => {
                        tx.query_typed(
                            update,
                            &[(&id, Type::TEXT), (&n, Type::INT8), (&position, Type::INT8)],
                        )
                        .await
                    }
                };
                assert_eq!(rows.unwrap().len(), 0);
                tx.commit().await.unwrap();
                written[0].fetch_add(1, Ordering::Relaxed);
            }
            Err(AppendError::Refused(Refused::UnknownProjectorIsActive { .. })) => {
                tx.rollback().await.unwrap();
                new.append(&order, Expected::Any, &[event]).await.unwrap();
                written[1].fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_appends_keep_current_are_adopted_while_everybody_writes() {
    for name in ["inline 1.0.0", "1.0.0"] {
        let database = Database::fresh().await;
        let client = database.client().await;
        client.batch_execute(TABLE).await.unwrap();
        let (old, new) = (instance_of(&database, "none").await, humble(&database, name).await);
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicUsize; 2]>::default());
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let writer = legacy(format!("w{n}"), old.clone(), new.clone(), stop.clone(), written.clone());
                tokio::spawn(writer)
            })
            .collect();
        let more = async |side: usize| {
            let before = written[side].load(Ordering::Relaxed);
            eventually(SOON, || async { written[side].load(Ordering::Relaxed) > before + 20 }).await;
        };
        more(0).await;
        let adopted = adopt(&new, &from_public(AdoptAt::Horizon)).await.unwrap();
        more(1).await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let running = new.start();
        new.wait_for(&orders(), new.horizon().await.unwrap(), SOON).await.unwrap();
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{name}: {adopted:?}");
        let position: i64 =
            client.query_one("SELECT position FROM changeover.checkpoints", &[]).await.unwrap().get(0);
        assert!(Position::new(position) >= adopted.activation.horizon.unwrap());
        running.stop().await;
    }
}

#[tokio::test]
async fn tables_that_are_in_their_place_stay_there() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let none = instance_of(&database, "none").await;
    place(&none, "order-1", 0).await;
    client
        .batch_execute(
            "CREATE SCHEMA ledger_v1;
             CREATE TABLE ledger_v1.entries (id text PRIMARY KEY, customer text, major integer NOT NULL DEFAULT 1);
             CREATE TABLE ledger_v1.sums (one boolean PRIMARY KEY, orders bigint NOT NULL, major integer NOT NULL DEFAULT 1);
             CREATE TABLE ledger_v1.notes (text text);
             INSERT INTO ledger_v1.entries VALUES ('order-1', 'Ada'); INSERT INTO ledger_v1.sums VALUES (true, 1)",
        )
        .await
        .unwrap();
    place(&none, "order-2", 0).await;
    let oids = "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_class WHERE relnamespace = 'ledger_v1'::regnamespace";
    let before = text(&client, oids).await;
    let humble = Changeover::builder(database.config())
        .configuration(crate::ledger::ledger(1))
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    let one = humble.connect().await.unwrap();
    let projector: ProjectorName = "ledger".parse().unwrap();
    // Said or not: it is where they are.
    let options =
        AdoptOptions { from_schema: Some("ledger_v1".to_owned()), ..AdoptOptions::at(Position::new(1)) };
    let adopted = one.adopt(&projector, &options, &|_| {}).await.unwrap();
    assert_eq!(adopted.moved, [""; 0]);
    assert_eq!(text(&client, oids).await, before);
    assert_eq!(
        text(&client, "SELECT orders || ' ' || (SELECT count(*) FROM ledger.entries) FROM ledger.sums").await,
        "2 2"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_of_the_tables_is_waited_for_and_nobody_queues_behind() {
    let database = Database::fresh().await;
    let (client, none, position) = read_model_of_others(&database).await;
    let new = humble(&database, "1.0.0").await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM public.orders", &[]).await.unwrap();
    let pid: i32 = reading.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    let before = everything(&client).await;
    let stop = Arc::new(AtomicBool::new(false));
    let others = tokio::spawn({
        let (reader, stop) = (database.client().await, stop.clone());
        async move {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                reader.query_typed("SELECT FROM public.orders LIMIT 1", &[]).await.unwrap();
                longest = longest.max(asked.elapsed());
            }
            longest
        }
    });
    let options = AdoptOptions { move_timeout: Duration::from_secs(3), ..from_public(position) };
    let refused = adopt(&new, &options).await.unwrap_err();
    let AdoptError::Blocked { blockers, .. } = &refused else { panic!("{refused}") };
    assert!(blockers.iter().any(|blocker| blocker.pid == Some(pid)), "{refused}");
    assert_eq!(everything(&client).await, before);
    none.append(&stream("meanwhile"), Expected::Any, &[placed("Ada")]).await.unwrap();

    let (told, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let adopting = tokio::spawn(async move {
        let options = AdoptOptions { move_timeout: SOON, ..from_public(position) };
        let on_progress = |progress: ActivationProgress| {
            if let ActivationProgress::WaitingForReaders { readers, .. } = progress {
                told.send(readers.len()).unwrap();
            }
        };
        new.adopt(&orders(), &options, &on_progress).await
    });
    assert!(waiting.recv().await.is_some_and(|readers| readers > 0));
    reading.commit().await.unwrap();
    let adopted = adopting.await.unwrap().unwrap();
    stop.store(true, Ordering::Relaxed);
    assert_eq!(adopted.moved, ["public.orders"]);
    let longest = others.await.unwrap();
    assert!(longest < QUEUED, "a reader waited {longest:?} behind a lock request");
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}

#[tokio::test]
async fn an_adoption_that_was_killed_halfway_goes_on_when_it_is_asked_for_again() {
    for stop_at in ["started", "paused", "drained", "switched"] {
        let database = Database::fresh().await;
        let (client, none, position) = read_model_of_others(&database).await;
        let operator = Operator::adopt(&database, "inline 1.0.0", position.get(), stop_at).await;
        operator.kill_9();
        let new = humble(&database, "inline 1.0.0").await;
        if stop_at == "switched" {
            let refused = adopt(&new, &from_public(position)).await.unwrap_err();
            assert!(matches!(refused, AdoptError::AlreadyKnown { .. }), "{refused}");
            // Only the views are left to do.
            assert_eq!(new.repoint_views(SOON).await.unwrap()[0].changed, ["orders.orders"]);
        } else {
            // The process without the projector serves again, by itself, at the latest when the pause is over.
            let append = async || none.append(&stream("meanwhile"), Expected::Any, &[placed("Ada")]).await;
            eventually(SOON, || async { append().await.is_ok() }).await;
            let elsewhere = from_public(Position::new(position.get() - 1));
            let refused = adopt(&new, &elsewhere).await.unwrap_err();
            assert!(matches!(refused, AdoptError::AlreadyKnown { .. }), "{refused}");
            let adopted = adopt(&new, &from_public(position)).await.unwrap();
            assert_eq!(adopted.moved, [""; 0], "they were moved by the first call");
        }
        place(&new, "order-new", 2).await;
        assert_eq!(wrong_rows(&client, "orders").await, 0, "{stop_at}");
    }
}

#[tokio::test]
async fn an_adoption_that_is_blocked_says_so_and_keeps_what_it_has() {
    let database = Database::fresh().await;
    let (client, none, _) = read_model_of_others(&database).await;
    let new = humble(&database, "inline 1.0.0").await;
    client.batch_execute("TRUNCATE public.orders").await.unwrap();
    client.batch_execute(FILL).await.unwrap();
    let mut appending = none.pool().get().await.unwrap();
    let tx = appending.transaction().await.unwrap();
    none.append_in(&tx, &stream("open"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    tx.execute("INSERT INTO public.orders VALUES ('open', 'Ada', 0, 0, false, (SELECT last_value FROM changeover.event_position))", &[]).await.unwrap();
    let mut options = AdoptOptions { from_schema: None, ..from_public(AdoptAt::Horizon) };
    options.from_schema = Some("public".to_owned());
    // It writes to the table, so even the move has to wait for it.
    options.move_timeout = Duration::from_millis(300);
    let refused = adopt(&new, &options).await.unwrap_err();
    assert!(matches!(&refused, AdoptError::Blocked { blockers, .. } if blockers.len() == 1), "{refused}");
    tx.commit().await.unwrap();

    let tx = appending.transaction().await.unwrap();
    none.append_in(&tx, &stream("open too"), Expected::NoStream, &[OrderEvent::Paid]).await.unwrap();
    options.activation = ActivateOptions {
        pause_limit: Duration::from_millis(300),
        drain_timeout: Duration::from_millis(200),
        ..ActivateOptions::default()
    };
    let refused = adopt(&new, &options).await.unwrap_err();
    assert!(
        matches!(&refused, AdoptError::NotActivated { source: ActivateError::Blocked { .. }, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("run `adopt` again"), "{refused}");
    tx.commit().await.unwrap();
    let _ = adopt(&new, &options).await.unwrap();
    place(&new, "order-new", 2).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}

#[tokio::test]
async fn whoever_used_the_tables_finds_them_with_the_same_rights() {
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let (client, _none, position) = read_model_of_others(&database).await;
    client
        .batch_execute(
            "CREATE ROLE writing LOGIN; CREATE ROLE looking LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE owning;
             GRANT CREATE ON SCHEMA public TO owning;
             ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO nobody;
             REVOKE ALL ON public.orders FROM nobody;
             ALTER TABLE public.orders OWNER TO owning;
             GRANT SELECT, INSERT, UPDATE, DELETE ON public.orders TO writing;
             GRANT SELECT (id) ON public.orders TO looking;
             COMMENT ON TABLE public.orders IS 'by hand'; COMMENT ON COLUMN public.orders.paid IS 'in full';
             CREATE VIEW public.report AS SELECT id FROM public.orders",
        )
        .await
        .unwrap();
    let grants = "SELECT concat_ws(' | ', c.relowner::regrole, (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(c.relacl) x), obj_description(c.oid, 'pg_class'), (
            SELECT string_agg(a.attname || a.attacl::text, ',') FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL
        ), col_description(c.oid, 5))
        FROM pg_class c WHERE c.oid = 'public.orders'::regclass";
    let before = text(&client, grants).await;
    let mut old_code = Vec::new();
    for role in ["writing", "looking", "nobody"] {
        let (client, connection) =
            cluster.config().dbname(database.name()).user(role).connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        old_code.push(client);
    }
    let prepared =
        old_code[0].prepare("SELECT customer FROM public.orders WHERE id = 'order-1'").await.unwrap();
    assert_eq!(old_code[0].query(&prepared, &[]).await.unwrap().len(), 1);

    let new = humble(&database, "1.0.0").await;
    let _ = adopt(&new, &from_public(position)).await.unwrap();
    assert_eq!(text(&client, grants).await, before);
    assert_eq!(
        old_code[0].query(&prepared, &[]).await.unwrap().len(),
        1,
        "also where it was prepared before"
    );
    old_code[0]
        .batch_execute("UPDATE public.orders SET paid = paid; DELETE FROM orders_v1.orders WHERE id = 'x'")
        .await
        .unwrap();
    let refused = |result: Result<Vec<Row>, changeover::tokio_postgres::Error>| {
        assert_eq!(result.unwrap_err().code().unwrap().code(), "42501");
    };
    old_code[1].query("SELECT id FROM public.orders", &[]).await.unwrap();
    refused(old_code[1].query("SELECT customer FROM public.orders", &[]).await);
    refused(old_code[2].query("SELECT id FROM public.orders", &[]).await);
    client.query("SELECT id FROM public.report", &[]).await.unwrap();
}

#[tokio::test]
async fn tables_in_a_schema_of_the_projectors_name_leave_the_stable_views_behind() {
    let database = Database::fresh().await;
    let (client, _none, position) = read_model_of_others(&database).await;
    client.batch_execute("CREATE SCHEMA orders; ALTER TABLE public.orders SET SCHEMA orders").await.unwrap();
    let new = humble(&database, "1.0.0").await;
    let options = AdoptOptions { from_schema: Some("orders".to_owned()), ..AdoptOptions::at(position) };
    let adopted = adopt(&new, &options).await.unwrap();
    assert_eq!((&adopted.moved[..], adopted.activation.views.len()), (&["orders.orders".to_owned()][..], 0));
    assert_eq!(wrong_rows(&client, "orders").await, 0);
    let next = humble(&database, "2.0.0").await;
    let activated = next.activate(&hasty(), &|_| {}).await.unwrap();
    assert_eq!(activated.views[0].changed, ["orders.orders"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_way_is_replayed_in_parallel_onto_the_rows_that_are_there() {
    for at in [0, 40] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let none = instance_of(&database, "none").await;
        client.batch_execute(TABLE).await.unwrap();
        for order in 0..20 {
            let (name, item) = (stream(&format!("order-{order}")), OrderEvent::ItemAdded { cents: 100 });
            if at > 0 || order >= 10 {
                none.append(&name, Expected::NoStream, &[placed("Ada")]).await.unwrap();
            }
            none.append(&name, Expected::Any, std::slice::from_ref(&item)).await.unwrap();
            if at == 0 && order < 10 {
                // A row from before there was a log.
                let sql = "INSERT INTO public.orders VALUES ($1, 'Grace', 5, 500, false, 0)";
                client.execute(sql, &[&name.as_str()]).await.unwrap();
            }
        }
        if at > 0 {
            client.batch_execute(FILL).await.unwrap();
            assert_eq!(none.horizon().await.unwrap(), Position::new(at));
        }
        for order in 0..20 {
            let item = [OrderEvent::ItemAdded { cents: 100 }, OrderEvent::Paid];
            none.append(&stream(&format!("order-{order}")), Expected::Any, &item).await.unwrap();
        }
        let new = humble(&database, "1.0.0").await;
        let mut options = from_public(Position::new(at));
        options.activation.pace.parallel_above_events = 0;
        options.activation.pace.shards = Some(3);
        let _ = adopt(&new, &options).await.unwrap();
        if at > 0 {
            assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
            continue;
        }
        let sql = "SELECT string_agg(DISTINCT concat_ws(' ', customer, items, cents, paid), ', ' ORDER BY concat_ws(' ', customer, items, cents, paid))
             FROM orders_v1.orders";
        assert_eq!(text(&client, sql).await, "Ada 2 200 t, Grace 7 700 t");
    }
}

#[tokio::test]
async fn adopting_behind_a_pooler() {
    let database = Database::fresh().await;
    let (client, _none, position) = read_model_of_others(&database).await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let new = Changeover::builder(pooler.config())
        .configuration(release("inline 1.0.0"))
        .when_nothing_is_active(WhenNothingIsActive::Refuse)
        .connect()
        .await
        .unwrap();
    let _ = adopt(&new, &from_public(position)).await.unwrap();
    place(&new, "order-new", 2).await;
    assert_eq!((wrong_rows(&client, "orders_v1").await, wrong_rows(&client, "orders").await), (0, 0));
}

#[tokio::test]
async fn one_projector_is_adopted_beside_others_that_are_active() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let ledger = ledger_on(&database, 1).await;
    place(&ledger, "order-1", 2).await;
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute(FILL).await.unwrap();
    let configuration = release("1.0.0").sql(crate::ledger::Ledger::<1>).unwrap();
    let both = Changeover::builder(database.config()).configuration(configuration).connect().await.unwrap();
    place(&both, "order-2", 2).await;
    let adopted = adopt(&both, &from_public(Position::new(3))).await.unwrap();
    assert_eq!(adopted.activation.plan.steps.len(), 1, "the others are not touched");
    assert_eq!(active(&client).await, "ledger 1.0.0, orders 1.0.0");
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
    assert!(ledger.append(&stream("late"), Expected::Any, &[placed("Ada")]).await.is_err());
}
