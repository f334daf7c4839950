//! A fresh database each, and none left behind.

use changeover_testkit::{Cluster, Database};
use tokio_postgres::NoTls;

#[tokio::test]
async fn a_fresh_database_is_empty_and_private() {
    let (one, other) = tokio::join!(Database::fresh(), Database::fresh());
    one.client().await.batch_execute("CREATE TABLE here ()").await.unwrap();

    for (database, expected) in [(&one, 1_i64), (&other, 0)] {
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        let row = database.client().await.query_one(tables, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), expected);
    }
}

#[tokio::test]
async fn a_database_is_dropped_although_somebody_is_in_it() {
    let database = Database::fresh().await;
    let name = database.name().to_owned();
    let client = database.client().await;
    client.batch_execute("BEGIN; CREATE TABLE unfinished ()").await.unwrap();
    drop(database);

    let (admin, connection) = Cluster::shared().config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let left = admin.query("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await.unwrap();
    assert!(left.is_empty(), "{name} is still there");
    assert!(client.simple_query("SELECT 1").await.is_err());
}

#[tokio::test]
async fn a_url_leads_to_the_same_database() {
    let database = Database::fresh().await;
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let name: String = client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    assert_eq!(name, database.name());
    assert_eq!(database.url(), Cluster::shared().url(database.name()));
}

#[test]
fn the_shared_server_is_harmed_by_nobody() {
    let shared = Cluster::shared();
    for refused in [shared.kill_9(), shared.restart(), shared.freeze(), shared.thaw()] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("would hurt others"), "{error}");
    }
}
