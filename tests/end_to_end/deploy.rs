//! The SQL in `deploy/`: under its roles the pipeline migrates and activates, and instances create nothing.

use std::process::Command;

use changeover::tokio_postgres::NoTls;
use changeover::{
    ActivateOptions, Blocker, Builder, Changeover, Configuration, Expected, Holds, ReadyState,
    WhenNothingIsActive,
};
use changeover_testkit::{Cluster, eventually};

use crate::orders::{Orders1, Orders2, placed, stream};
use crate::releases::{SOON, hasty};

fn as_role(cluster: &Cluster, role: &str, configuration: Configuration) -> Builder {
    let mut config = cluster.config();
    config.user(role).dbname("shop");
    Changeover::builder(config)
        .application(role, "1.0.0")
        .configuration(configuration)
        .when_nothing_is_active(WhenNothingIsActive::Refuse)
}

/// Without the batches that are being published meanwhile.
async fn appends_in_flight(changeover: &Changeover) -> Vec<Blocker> {
    let mut in_flight = changeover.status().await.unwrap().in_flight;
    in_flight.retain(|blocker| blocker.holds == Holds::Lease);
    in_flight
}

#[tokio::test]
async fn with_the_roles_of_the_deployment_instances_create_nothing() {
    // One of its own: roles belong to a whole server.
    let cluster = Cluster::start().unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/sql/01-database.sql");
    for _ in 0..2 {
        let mut psql = Command::new(cluster.bin("psql"));
        let ran =
            psql.args(["-q", "-v", "database=shop", "-f", file, &cluster.url("postgres")]).output().unwrap();
        assert!(ran.status.success() && ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    let release = |role: &str| as_role(&cluster, role, Configuration::new().fold(Orders1).unwrap());
    let next_release = |role: &str| as_role(&cluster, role, Configuration::new().fold(Orders2).unwrap());

    assert!(release("shop_app").migrate().await.is_err(), "an instance may create our schema");
    release("shop_deploy").migrate().await.unwrap();
    let instance = release("shop_app").connect().await.unwrap();
    let running = instance.start();
    let pipeline = release("shop_deploy").connect().await.unwrap();
    let _ = pipeline.activate(&hasty(), &|_| {}).await.unwrap();
    eventually(SOON, || async { instance.readiness().state == ReadyState::Active }).await;

    let appended = instance.append(&stream("order-1"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let projector = "orders".parse().unwrap();
    instance.wait_for(&projector, appended.last().unwrap(), SOON).await.unwrap();

    // Whoever reads from outside is given the stable views, once, and has no right to anything else.
    let admin = cluster.config().dbname("shop").connect(NoTls).await.unwrap();
    tokio::spawn(admin.1);
    admin
        .0
        .batch_execute("CREATE ROLE reporting LOGIN; GRANT CONNECT ON DATABASE shop TO reporting")
        .await
        .unwrap();
    let owner = pipeline.pool().get().await.unwrap();
    let grants =
        "GRANT USAGE ON SCHEMA orders TO reporting; GRANT SELECT ON ALL TABLES IN SCHEMA orders TO reporting";
    owner.batch_execute(grants).await.unwrap();
    drop(owner);
    let reporting = cluster.config().dbname("shop").user("reporting").connect(NoTls).await.unwrap();
    tokio::spawn(reporting.1);
    let reads = async || -> i64 {
        reporting.0.query_one("SELECT count(*) FROM orders.orders", &[]).await.unwrap().get(0)
    };
    assert_eq!(reads().await, 1);
    // An instance may not move the views; nothing of it is an error, and the pipeline has done so anyway.
    let views = instance.repoint_views(std::time::Duration::ZERO).await.unwrap();
    assert!(views.iter().all(|views| views.changed.is_empty() && views.problems.is_empty()), "{views:?}");

    // Who blocks an activation is known to the pipeline, with its age, though it runs under another role.
    let mut client = instance.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    instance.append_in(&tx, &stream("order-2"), Expected::NoStream, &[placed("Grace")]).await.unwrap();
    let seen = appends_in_flight(&pipeline).await;
    assert!(matches!(&seen[..], [blocker] if blocker.age_secs.is_some()), "{seen:?}");
    tx.commit().await.unwrap();

    // The other way round an instance may not see everything, and still gets its answer.
    let mut client = pipeline.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    pipeline.append_in(&tx, &stream("order-3"), Expected::NoStream, &[placed("Edsger")]).await.unwrap();
    let seen = appends_in_flight(&instance).await;
    assert!(matches!(&seen[..], [blocker] if blocker.age_secs.is_none()), "{seen:?}");
    tx.commit().await.unwrap();

    let next = next_release("shop_app").connect().await.unwrap();
    let next_running = next.start();
    let pipeline = next_release("shop_deploy").connect().await.unwrap();
    let options = ActivateOptions { wait_for_instances: 1, ..hasty() };
    let activated = pipeline.activate(&options, &|_| {}).await.unwrap();
    assert_eq!(
        (&activated.views[0].changed[..], &activated.views[0].problems[..]),
        (&["orders.orders".to_owned()][..], &[][..])
    );
    eventually(SOON, || async { instance.readiness().state == ReadyState::Retired }).await;
    let appended = next.append(&stream("order-4"), Expected::NoStream, &[placed("Barbara")]).await.unwrap();
    next.wait_for(&projector, appended.last().unwrap(), SOON).await.unwrap();
    let client = next.pool().get().await.unwrap();
    let orders = client.query_one("SELECT count(*) FROM orders_v2.orders", &[]).await.unwrap();
    assert_eq!(orders.get::<_, i64>(0), 4);
    assert_eq!(reads().await, 4, "through the view, by the grants of before");
    let refused = reporting.0.query("SELECT FROM orders_v2.orders", &[]).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "42501", "{refused}");
    let owner: String = client
        .query_one("SELECT relowner::regrole::text FROM pg_class WHERE oid = 'orders.orders'::regclass", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(owner, "shop_owner");
    let refused = client.batch_execute("CREATE SCHEMA mine").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "42501", "an instance may create schemas: {refused}");
    running.stop().await;
    next_running.stop().await;
}
