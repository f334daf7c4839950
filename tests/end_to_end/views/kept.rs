//! What people give a view stays with it, whatever becomes of its columns, and of its projector.

use changeover::tokio_postgres::Client;
use changeover::{Changeover, ViewProblem};
use changeover_testkit::{Cluster, Database};

use super::{activate, lagging, shown, text, the_problem};
use crate::ledger::ledger_on;
use crate::orders::place;
use crate::releases::{SOON, hasty};

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

    let deactivated = four.deactivate(&"ledger".parse().unwrap(), &hasty()).await.unwrap();
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
