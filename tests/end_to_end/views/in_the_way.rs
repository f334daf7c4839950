//! What is in the way of a view is named, and never touched.

use changeover::ViewProblem;
use changeover_testkit::Database;

use super::{activate, lagging, ledger_is_active, shown, text, the_problem};
use crate::ledger::ledger_on;
use crate::orders::place;
use crate::releases::{SOON, active};

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
