//! Stable views: readers outside the application always see the active version, and keep what they were granted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use changeover::tokio_postgres::Client;
use changeover::{
    ActivateOptions, Activated, ActivationProgress, Changeover, ProjectorViews, ViewProblem,
    WhenNothingIsActive,
};
use changeover_testkit::{Cluster, Database, PgBouncer, eventually};
use tokio::task::JoinHandle;

use crate::ledger::{ledger, ledger_on};
use crate::operator::Operator;
use crate::orders::place;
use crate::releases::{Held, SOON, active, instance_of, release};

/// Long enough for one more look behind a reader.
const MOMENT: Duration = Duration::from_millis(350);

async fn activate(changeover: &Changeover) -> Activated {
    changeover.activate(&ActivateOptions::default(), &|_| {}).await.unwrap()
}

async fn impatient(changeover: &Changeover) -> Activated {
    let options = ActivateOptions { views_timeout: MOMENT, ..ActivateOptions::default() };
    changeover.activate(&options, &|_| {}).await.unwrap()
}

/// A ledger of this version is active and has an order in it.
async fn ledger_is_active(major: u64) -> (Database, Client, Changeover) {
    let database = Database::fresh().await;
    let client = database.client().await;
    let changeover = ledger_on(&database, major).await;
    place(&changeover, "order-1", 0).await;
    let _ = activate(&changeover).await;
    let running = changeover.start();
    changeover.wait_for(&"ledger".parse().unwrap(), changeover.horizon().await.unwrap(), SOON).await.unwrap();
    running.stop().await;
    (database, client, changeover)
}

/// Which version the views of the ledger show, by their rows.
async fn shown(client: &Client) -> (i32, i32) {
    let row = client
        .query_one("SELECT e.major, s.major FROM ledger.entries e, ledger.sums s LIMIT 1", &[])
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

/// The views that lag behind, by name.
async fn lagging(changeover: &Changeover) -> Vec<String> {
    let views = changeover.status().await.unwrap().views;
    views.iter().filter(|view| view.lags_behind()).map(|view| view.view.clone()).collect()
}

fn the_problem(views: &[ProjectorViews]) -> &ViewProblem {
    let [ProjectorViews { problems, changed, .. }] = views else { panic!("{views:?}") };
    assert_eq!(changed, &[""; 0]);
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    problem
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn views_are_made_by_the_first_activation_and_by_the_first_instance_ever() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let humble = Changeover::builder(database.config())
        .configuration(release("1.0.0 totals"))
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    humble.migrate().await.unwrap();
    let activated = activate(&humble.connect().await.unwrap()).await;
    let made: Vec<&[String]> = activated.views.iter().map(|views| &views.changed[..]).collect();
    assert_eq!(made, [["orders.orders".to_owned()], ["totals.total".to_owned()]]);
    client.query("SELECT o.id, o.items, t.items FROM orders.orders o, totals.total t", &[]).await.unwrap();

    let database = Database::fresh().await;
    let client = database.client().await;
    let assuming = instance_of(&database, "inline 1.0.0 totals").await;
    place(&assuming, "order-1", 2).await;
    assert_eq!(text(&client, "SELECT id FROM orders.orders").await, "order-1");
    client.query("SELECT FROM totals.total", &[]).await.unwrap();
    assert_eq!(lagging(&assuming).await, [""; 0]);
}

#[tokio::test]
async fn views_follow_upgrades_and_the_way_back() {
    let (database, client, one) = ledger_is_active(1).await;
    assert_eq!(shown(&client).await, (1, 1));
    let (two, three) = (ledger_on(&database, 2).await, ledger_on(&database, 3).await);
    for (next, version) in [(&two, 2), (&one, 1), (&three, 3), (&one, 1), (&two, 2)] {
        let activated = activate(next).await;
        let [views] = &activated.views[..] else { panic!("{:?}", activated.views) };
        assert_eq!(views.changed, ["ledger.entries", "ledger.sums"]);
        assert_eq!((views.active, &views.problems[..]), (Some(u64::try_from(version).unwrap()), &[][..]));
        assert_eq!(shown(&client).await, (version, version));
        assert_eq!(lagging(next).await, [""; 0]);
        // Nothing is left to do, and nothing is done.
        let again = next.repoint_views(MOMENT).await.unwrap();
        assert!(again.iter().all(|views| views.changed.is_empty() && views.problems.is_empty()), "{again:?}");
        assert_eq!(activate(next).await.views, []);
    }
}

#[tokio::test]
async fn an_activation_that_is_aborted_leaves_the_views_where_the_states_are() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let options = ActivateOptions {
        wait_for_instances: 1,
        instances_timeout: Duration::from_millis(300),
        ..ActivateOptions::default()
    };
    two.activate(&options, &|_| {}).await.unwrap_err();
    assert_eq!((shown(&client).await, active(&client).await.as_str()), ((1, 1), "ledger 1.0.0"));
    let views = one.repoint_views(MOMENT).await.unwrap();
    assert!(views.iter().all(|views| views.changed.is_empty()), "{views:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_poll_during_activations_see_no_error_and_one_version_at_a_time() {
    let (database, _client, one) = ledger_is_active(1).await;
    let (two, three) = (ledger_on(&database, 2).await, ledger_on(&database, 3).await);
    let running = [one.start(), two.start(), three.start()];
    let stop = Arc::new(AtomicBool::new(false));
    let newest: Arc<[AtomicI32; 3]> = Arc::default();
    let mut readers = Vec::new();
    for number in 0..3 {
        let (reader, stop, newest) = (database.client().await, stop.clone(), newest.clone());
        readers.push(tokio::spawn(async move {
            let sql = "SELECT e.major AS entries, s.major AS sums FROM ledger.entries e, ledger.sums s WHERE e.id = 'order-1'";
            let statement = reader.prepare(sql).await.unwrap();
            let mut seen: Vec<i32> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let row = match number {
                    0 => reader.query_one(&statement, &[]).await.unwrap(),
                    _ => reader.query_typed_one(sql, &[]).await.unwrap(),
                };
                let (entries, sums): (i32, i32) = (row.get(0), row.get(1));
                assert_eq!(entries, sums, "a statement saw two versions");
                if seen.last() != Some(&entries) {
                    seen.push(entries);
                }
                newest[number].store(entries, Ordering::Relaxed);
            }
            seen
        }));
    }
    for (next, version) in [(&two, 2), (&one, 1), (&three, 3), (&one, 1), (&two, 2)] {
        let activated = activate(next).await;
        assert!(activated.views.iter().all(|views| views.problems.is_empty()), "{:?}", activated.views);
        let seen = || async {
            let all_see_it = newest.iter().all(|newest| newest.load(Ordering::Relaxed) == version);
            all_see_it || readers.iter().any(JoinHandle::is_finished)
        };
        eventually(SOON, seen).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), [1, 2, 1, 3, 1, 2]);
    }
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_holds_up_the_views_alone_and_nobody_queues_behind_them() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.sums", &[]).await.unwrap();
    let pid: i32 = reading.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    // Somebody who reads all the time meanwhile is never held up for long.
    let stop = Arc::new(AtomicBool::new(false));
    let others = tokio::spawn({
        let (reader, stop) = (database.client().await, stop.clone());
        async move {
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(shown(&reader).await, (1, 1));
                longest = longest.max(asked.elapsed());
            }
            longest
        }
    });
    let options = ActivateOptions { views_timeout: Duration::from_secs(2), ..ActivateOptions::default() };
    let activated = two.activate(&options, &|_| {}).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let longest = others.await.unwrap();
    assert!(longest < Duration::from_secs(1), "a reader waited {longest:?} behind a lock request");

    assert!(activated.activation.is_some() && activated.pause_ms < 1_000.0);
    assert_eq!(active(&client).await, "ledger 2.0.0");
    let ViewProblem::Blocked { blockers, .. } = the_problem(&activated.views) else {
        panic!("{:?}", activated.views)
    };
    assert_eq!(blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [Some(pid)]);
    let said = activated.views[0].problems[0].to_string();
    assert!(said.contains(&format!("pid {pid}")) && said.contains("`repoint-views`"), "{said}");
    // Both stay, though only one is read: never two versions at once.
    assert_eq!(shown(&client).await, (1, 1));
    assert_eq!(lagging(&one).await, ["entries", "sums"]);

    reading.commit().await.unwrap();
    let views = one.repoint_views(SOON).await.unwrap();
    assert_eq!(views[0].changed, ["ledger.entries", "ledger.sums"]);
    assert_eq!(shown(&client).await, (2, 2));
    assert_eq!(lagging(&one).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_views_move_as_soon_as_the_long_reader_is_done() {
    let (database, client, _one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let options = ActivateOptions { views_timeout: SOON, ..ActivateOptions::default() };
    let mut activating = Held::at("waiting for readers", &two, options);
    activating.reached().await;
    // The activation itself is over and done with.
    assert_eq!(active(&client).await, "ledger 2.0.0");
    reading.commit().await.unwrap();
    let activated = activating.outcome().await.unwrap();
    assert_eq!((activated.views[0].changed.len(), activated.views[0].problems.len()), (2, 0));
    assert_eq!(shown(&client).await, (2, 2));
}

#[tokio::test]
async fn whoever_is_killed_between_the_switch_and_the_views_leaves_them_to_the_next() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    place(&old, "order-1", 2).await;
    let new = instance_of(&database, "2.0.0").await;
    let shows = async || {
        text(&client, "SELECT DISTINCT view_schema::text || ' ' || table_schema::text FROM information_schema.view_table_usage WHERE view_schema = 'orders'").await
    };
    for by_hand in [true, false] {
        let activating = Operator::activate(&database, "2.0.0", "switched", Duration::from_secs(2)).await;
        assert_eq!(
            (active(&client).await.as_str(), shows().await.as_str()),
            ("orders 2.0.0", "orders orders_v1")
        );
        activating.kill_9();
        assert_eq!(lagging(&new).await, ["orders"]);
        if by_hand {
            assert_eq!(new.repoint_views(SOON).await.unwrap()[0].changed, ["orders.orders"]);
        } else {
            let activated = activate(&new).await;
            assert_eq!(
                (activated.activation, &activated.views[0].changed[..]),
                (None, &["orders.orders".to_owned()][..])
            );
        }
        assert_eq!(shows().await, "orders orders_v2");
        assert_eq!(lagging(&new).await, [""; 0]);
        let _ = activate(&old).await;
        assert_eq!(shows().await, "orders orders_v1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_operators_at_once_leave_the_views_where_the_states_are() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    for _ in 0..6 {
        let operators = [one.clone(), two.clone(), one.clone()].map(|changeover| {
            tokio::spawn(async move {
                // Whoever comes second may be told so.
                let _ = changeover.activate(&ActivateOptions::default(), &|_| {}).await;
                changeover.repoint_views(SOON).await.unwrap();
            })
        });
        for operator in operators {
            operator.await.unwrap();
        }
        let version = if active(&client).await == "ledger 1.0.0" { 1 } else { 2 };
        assert_eq!(shown(&client).await, (version, version));
    }
}

/// What a role may do with the entries, by a view or a table: a line for each grant.
async fn grants(client: &Client) -> Vec<String> {
    let sql = "
        SELECT concat_ws(' ', coalesce(a.attname, '*'), x.grantee::regrole, x.privilege_type, CASE WHEN x.is_grantable THEN 'and on' END)
        FROM pg_class c
        CROSS JOIN LATERAL (
            SELECT NULL::name AS attname, c.relacl AS acl
            UNION ALL SELECT a.attname, a.attacl FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
        ) a, aclexplode(a.acl) x
        WHERE c.oid = 'ledger.entries'::regclass AND x.grantee <> c.relowner
        ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// What is written beside the entries, the options of the view, and who owns it.
async fn beside(client: &Client) -> String {
    let sql = "
        SELECT concat_ws(' | ', c.relowner::regrole, c.reloptions::text, obj_description(c.oid, 'pg_class'), (
            SELECT string_agg(a.attname || ': ' || d.description, ', ' ORDER BY a.attname)
            FROM pg_description d JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
            WHERE d.objoid = c.oid AND d.objsubid > 0
        ))
        FROM pg_class c WHERE c.oid = 'ledger.entries'::regclass";
    text(client, sql).await
}

const ROLES: &str = "
    CREATE ROLE reporting LOGIN; CREATE ROLE partner LOGIN; CREATE ROLE owning;
    CREATE ROLE everybody; ALTER DEFAULT PRIVILEGES GRANT SELECT, DELETE ON TABLES TO everybody;";

/// A ledger on a server of its own, since roles belong to a whole server; with much given to its view.
async fn ledger_with_grants() -> (Cluster, Database, Client, Changeover) {
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    client.batch_execute(ROLES).await.unwrap();
    let one = ledger_on(&database, 1).await;
    place(&one, "order-1", 0).await;
    let _ = activate(&one).await;
    client
        .batch_execute(
            "GRANT USAGE ON SCHEMA ledger TO reporting, partner;
             GRANT CREATE, USAGE ON SCHEMA ledger TO owning;
             GRANT SELECT ON ALL TABLES IN SCHEMA ledger TO reporting WITH GRANT OPTION;
             REVOKE ALL ON ledger.entries FROM everybody;
             GRANT SELECT (id, customer) ON ledger.entries TO partner;
             COMMENT ON VIEW ledger.entries IS 'Ada''s \\ entries';
             COMMENT ON COLUMN ledger.entries.customer IS 'who';
             ALTER VIEW ledger.entries SET (security_barrier = true);
             SET ROLE reporting; GRANT SELECT ON ledger.sums TO PUBLIC; RESET ROLE",
        )
        .await
        .unwrap();
    (cluster, database, client, one)
}

#[tokio::test]
async fn grants_comments_and_options_are_kept_whatever_the_columns() {
    let (cluster, database, client, one) = ledger_with_grants().await;
    let before = (grants(&client).await, beside(&client).await);
    assert_eq!(
        before.0,
        ["* reporting SELECT and on", "customer partner SELECT", "id partner SELECT"],
        "what the test itself granted"
    );
    assert_eq!(before.1, "postgres | {security_barrier=true} | Ada's \\ entries | customer: who");
    let (two, three) = (ledger_on(&database, 2).await, ledger_on(&database, 3).await);
    // Columns in another order, then as before, then one more, then as before.
    for (next, version) in [(&two, 2), (&one, 1), (&three, 3), (&one, 1)] {
        let activated = activate(next).await;
        assert_eq!(activated.views[0].problems, []);
        assert_eq!((grants(&client).await, beside(&client).await), before, "{version}");
    }
    let mut reporting = cluster.config();
    reporting.user("reporting").dbname(database.name());
    let (reporting, connection) = reporting.connect(changeover::tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(shown(&reporting).await, (1, 1), "it reads through the view, without rights on the tables");
    let denied = reporting.query("SELECT FROM ledger_v1.entries", &[]).await.unwrap_err();
    assert_eq!(denied.code().unwrap().code(), "42501");
}

#[tokio::test]
async fn what_was_granted_on_a_view_outlives_its_projector() {
    let (_cluster, database, client, one) = ledger_with_grants().await;
    let before = (grants(&client).await, beside(&client).await);
    let four = ledger_on(&database, 4).await;
    let views = activate(&four).await.views;
    assert_eq!(views[0].changed, ["ledger.entries", "ledger.sums"]);
    assert_eq!(text(&client, "SELECT to_regclass('ledger.sums') IS NULL || ''").await, "true");

    let deactivated = four.deactivate(&"ledger".parse().unwrap(), &ActivateOptions::default()).await.unwrap();
    assert_eq!(
        (deactivated.views[0].active, &deactivated.views[0].changed[..]),
        (None, &["ledger.entries".to_owned()][..])
    );
    let gone = client.query("SELECT FROM ledger.entries", &[]).await.unwrap_err();
    assert_eq!(gone.code().unwrap().code(), "42P01", "it fails, and does not show rows of the past");
    assert_eq!(lagging(&one).await, [""; 0]);
    client.batch_execute("DROP OWNED BY partner; DROP ROLE partner").await.unwrap();

    let _ = activate(&one).await;
    let without_partner: Vec<String> =
        before.0.into_iter().filter(|grant| !grant.contains("partner")).collect();
    assert_eq!((grants(&client).await, beside(&client).await), (without_partner, before.1));
    let sums = text(&client, "SELECT relacl::text FROM pg_class WHERE oid = 'ledger.sums'::regclass").await;
    assert!(
        sums.contains("reporting=r*/") && sums.contains("{=r/") && sums.contains("everybody=rd/"),
        "{sums}"
    );
}

#[tokio::test]
async fn an_owner_of_ones_own_is_kept_and_must_be_able_to_read() {
    let (_cluster, database, client, one) = ledger_with_grants().await;
    client.batch_execute("ALTER VIEW ledger.entries OWNER TO owning").await.unwrap();
    let two = ledger_on(&database, 2).await;
    let views = activate(&two).await.views;
    let problem = the_problem(&views);
    assert_eq!(
        *problem,
        ViewProblem::Unreadable {
            view: "ledger.entries".to_owned(),
            owner: "owning".to_owned(),
            table: "ledger_v2.entries".to_owned()
        }
    );
    assert_eq!(lagging(&one).await, ["entries", "sums"], "all or none");
    client
        .batch_execute(
            "GRANT SELECT ON ledger_v2.entries TO owning; GRANT USAGE ON SCHEMA ledger_v2 TO owning",
        )
        .await
        .unwrap();
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].problems, []);
    assert!(beside(&client).await.starts_with("owning | "));
    assert_eq!(grants(&client).await.len(), 3);
}

#[tokio::test]
async fn a_view_that_gets_more_columns_is_not_dropped() {
    let (database, client, one) = ledger_is_active(1).await;
    let oid = "SELECT 'ledger.entries'::regclass::oid::text";
    let before = text(&client, oid).await;
    client.batch_execute("CREATE VIEW public.report AS SELECT id FROM ledger.entries").await.unwrap();
    let three = ledger_on(&database, 3).await;
    assert_eq!(activate(&three).await.views[0].problems, []);
    assert_eq!(text(&client, oid).await, before, "whoever depends on it stays");
    client.query("SELECT note FROM ledger.entries, public.report", &[]).await.unwrap();
    // The way back takes the column away again, which a view that others depend on cannot do.
    let views = activate(&one).await.views;
    assert!(
        matches!(the_problem(&views), ViewProblem::Dependents { dependents, .. } if dependents == &["view report"]),
        "{views:?}"
    );
}

#[tokio::test]
async fn what_would_be_lost_with_a_view_is_named_and_nothing_is_dropped() {
    let (database, client, one) = ledger_is_active(1).await;
    client
        .batch_execute(
            "CREATE SCHEMA reports;
             CREATE VIEW reports.daily AS SELECT customer FROM ledger.entries;
             CREATE MATERIALIZED VIEW reports.old AS SELECT * FROM ledger.entries;
             CREATE TABLE reports.typed (entry ledger.entries);
             CREATE FUNCTION reports.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER noting INSTEAD OF INSERT ON ledger.entries FOR EACH ROW EXECUTE FUNCTION reports.noted();
             CREATE RULE quiet AS ON DELETE TO ledger.entries DO INSTEAD NOTHING;
             ALTER VIEW ledger.entries ALTER customer SET DEFAULT 'nobody'",
        )
        .await
        .unwrap();
    let two = ledger_on(&database, 2).await;
    let views = activate(&two).await.views;
    assert_eq!(active(&client).await, "ledger 2.0.0");
    let ViewProblem::Dependents { view, dependents } = the_problem(&views) else { panic!("{views:?}") };
    assert_eq!(view, "ledger.entries");
    assert_eq!(
        *dependents,
        [
            "column entry of table reports.typed",
            "default value for column customer of view ledger.entries",
            "materialized view reports.old",
            "rule quiet on view ledger.entries",
            "trigger noting on view ledger.entries",
            "view reports.daily",
        ]
    );
    assert_eq!(shown(&client).await, (1, 1), "all or none");
    assert_eq!(lagging(&one).await, ["entries", "sums"]);
    client
        .batch_execute(
            "DROP SCHEMA reports CASCADE; DROP TRIGGER IF EXISTS noting ON ledger.entries;
             DROP RULE quiet ON ledger.entries; ALTER VIEW ledger.entries ALTER customer DROP DEFAULT",
        )
        .await
        .unwrap();
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries", "ledger.sums"]);
    assert_eq!(shown(&client).await, (2, 2));
}

#[tokio::test]
async fn a_schema_that_is_not_ours_is_not_touched() {
    let database = Database::fresh().await;
    let client = database.client().await;
    client.batch_execute("CREATE SCHEMA ledger; CREATE TABLE ledger.mine (id text)").await.unwrap();
    let one = ledger_on(&database, 1).await;
    place(&one, "order-1", 0).await;
    let before = "SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'ledger'::regnamespace";
    assert_eq!(text(&client, before).await, "mine", "nor by the first instance");
    let two = ledger_on(&database, 2).await;
    let activated = activate(&two).await;
    assert_eq!(
        *the_problem(&activated.views),
        ViewProblem::ForeignSchema { projector: "ledger".parse().unwrap() }
    );
    assert_eq!(text(&client, before).await, "mine");
    assert_eq!(lagging(&two).await, [""; 0], "it has no views, so none lags");
    client.batch_execute("ALTER SCHEMA ledger RENAME TO bookkeeping").await.unwrap();
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries", "ledger.sums"]);
}

#[tokio::test]
async fn a_relation_that_is_not_ours_is_not_touched() {
    let (database, client, one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    // Somebody takes a view's place; somebody gives the other one a condition.
    client
        .batch_execute(
            "DROP VIEW ledger.sums; CREATE TABLE ledger.sums (one boolean, major integer);
             CREATE OR REPLACE VIEW ledger.entries AS SELECT id, customer, major FROM ledger_v1.entries WHERE customer <> 'Ada'",
        )
        .await
        .unwrap();
    let definition = "SELECT pg_get_viewdef('ledger.entries'::regclass)";
    let before = text(&client, definition).await;
    let [views] = &activate(&two).await.views[..] else { panic!("no views") };
    assert_eq!(
        views.problems,
        [
            ViewProblem::ForeignRelation { relation: "ledger.sums".to_owned() },
            ViewProblem::Altered { view: "ledger.entries".to_owned() }
        ]
    );
    assert_eq!((text(&client, definition).await, views.changed.len()), (before, 0));
    client.query("SELECT one, major FROM ledger.sums", &[]).await.unwrap();

    client
        .batch_execute("ALTER VIEW ledger.entries RENAME TO entries_of_others; DROP TABLE ledger.sums")
        .await
        .unwrap();
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries", "ledger.sums"]);
    // Renamed columns are somebody's own doing as well.
    client.batch_execute("ALTER VIEW ledger.entries RENAME customer TO buyer").await.unwrap();
    let [views] = &activate(&one).await.views[..] else { panic!("no views") };
    assert_eq!(views.problems, [ViewProblem::Altered { view: "ledger.entries".to_owned() }]);
    // The definition that is not ours any more does not keep the others back.
    assert_eq!(views.changed, ["ledger.sums"]);
}

#[tokio::test]
async fn views_and_their_schema_come_back_if_somebody_dropped_them() {
    let (_database, client, one) = ledger_is_active(1).await;
    client.batch_execute("DROP VIEW ledger.sums").await.unwrap();
    assert_eq!(lagging(&one).await, ["sums"]);
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.sums"]);
    client.batch_execute("DROP SCHEMA ledger CASCADE").await.unwrap();
    assert_eq!(lagging(&one).await, ["entries", "sums"]);
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries", "ledger.sums"]);
    assert_eq!(shown(&client).await, (1, 1));
}

#[tokio::test]
async fn whoever_may_not_create_schemas_activates_all_the_same_and_is_told() {
    let cluster = Cluster::start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let one = ledger_on(&database, 1).await;
    place(&one, "order-1", 0).await;
    client
        .batch_execute(
            "CREATE ROLE deploying LOGIN;
             GRANT USAGE ON SCHEMA changeover, ledger_v1 TO deploying;
             GRANT ALL ON ALL TABLES IN SCHEMA changeover, ledger_v1 TO deploying;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA changeover TO deploying;
             DROP SCHEMA ledger CASCADE; DELETE FROM changeover.views",
        )
        .await
        .unwrap();
    let mut config = cluster.config();
    config.user("deploying").dbname(database.name());
    let deploying = Changeover::builder(config).configuration(ledger(1)).connect().await.unwrap();
    let activated = activate(&deploying).await;
    let ViewProblem::Refused { reason, .. } = the_problem(&activated.views) else { panic!("{activated:?}") };
    assert!(reason.contains("permission denied for database"), "{reason}");
    assert_eq!(one.repoint_views(SOON).await.unwrap()[0].changed.len(), 2);

    // Views that belong to somebody else are not moved, nor half moved.
    client
        .batch_execute("GRANT CREATE, USAGE ON SCHEMA ledger TO deploying; DROP VIEW ledger.entries")
        .await
        .unwrap();
    assert_eq!(deploying.repoint_views(SOON).await.unwrap()[0].changed, ["ledger.entries"]);
    client
        .batch_execute(
            "ALTER TABLE ledger_v1.entries ADD more text; ALTER TABLE ledger_v1.sums ADD more text",
        )
        .await
        .unwrap();
    let views = deploying.repoint_views(SOON).await.unwrap();
    assert!(
        matches!(the_problem(&views), ViewProblem::Refused { reason, .. } if reason.contains("must be owner of view sums")),
        "{views:?}"
    );
    client.query("SELECT FROM ledger.entries", &[]).await.unwrap();
}

#[tokio::test]
async fn views_can_be_turned_off_for_a_build_or_for_an_activation() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let builder = Changeover::builder(database.config()).configuration(ledger(1)).stable_views(false);
    builder.migrate().await.unwrap();
    let off = builder.connect().await.unwrap();
    place(&off, "order-1", 0).await;
    assert_eq!(activate(&off).await.views, []);
    let two = ledger_on(&database, 2).await;
    let options = ActivateOptions { repoint_views: false, ..ActivateOptions::default() };
    assert_eq!(two.activate(&options, &|_| {}).await.unwrap().views, []);
    assert_eq!(text(&client, "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'ledger'").await, "0");
    assert_eq!(activate(&two).await.views[0].changed.len(), 2);
}

#[tokio::test]
async fn views_follow_behind_a_pooler() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let through = async |major| {
        let builder = Changeover::builder(pooler.config()).configuration(ledger(major));
        builder.migrate().await.unwrap();
        builder.connect().await.unwrap()
    };
    let (one, two) = (through(1).await, through(2).await);
    place(&one, "order-1", 0).await;
    let _ = activate(&one).await;
    client.batch_execute("COMMENT ON VIEW ledger.entries IS 'kept'").await.unwrap();
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let blocked = impatient(&two).await;
    assert!(
        matches!(the_problem(&blocked.views), ViewProblem::Blocked { blockers, .. } if blockers.len() == 1)
    );
    reading.commit().await.unwrap();
    assert_eq!(two.repoint_views(SOON).await.unwrap()[0].changed.len(), 2);
    assert_eq!(text(&client, "SELECT obj_description('ledger.entries'::regclass, 'pg_class')").await, "kept");
    let status = two.status().await.unwrap().views;
    assert!(status.iter().all(|view| view.shows == Some(2) && view.active == Some(2)), "{status:?}");
    // Nothing of the attempts is left on the pooler's connections.
    assert_eq!(
        text(&through(2).await.pool().get().await.unwrap(), "SELECT current_setting('lock_timeout')").await,
        "0"
    );
}

#[tokio::test]
async fn the_views_are_moved_outside_the_pause() {
    let (database, _client, _one) = ledger_is_active(1).await;
    let two = ledger_on(&database, 2).await;
    let mut long = database.client().await;
    let reading = long.transaction().await.unwrap();
    reading.query("SELECT FROM ledger.entries", &[]).await.unwrap();
    let note = |progress: ActivationProgress| {
        if let ActivationProgress::WaitingForReaders { projector, readers } = progress {
            assert_eq!((projector.as_str(), readers.len()), ("ledger", 1));
        }
    };
    let options = ActivateOptions { views_timeout: Duration::from_secs(1), ..ActivateOptions::default() };
    let started = Instant::now();
    let activated = two.activate(&options, &note).await.unwrap();
    assert!(started.elapsed() > Duration::from_secs(1));
    assert!(activated.pause_ms < 700.0, "{} ms", activated.pause_ms);
    // Writers went on long before the views.
    place(&two, "order-2", 0).await;
    reading.rollback().await.unwrap();
}
