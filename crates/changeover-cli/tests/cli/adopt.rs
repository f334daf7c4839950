//! `adopt`, from the command line.

use changeover::{Changeover, Expected};
use changeover_testkit::{Database, Process, eventually};
use serde_json::json;

use crate::program::{Program, SOON, golden, placed, stream};

/// A log that a process without projectors has filled, and tables of release 1 that somebody else has.
async fn tables_of_others() -> Database {
    let database = Database::fresh().await;
    let builder = Changeover::builder(database.config());
    builder.migrate().await.unwrap();
    let none = builder.connect().await.unwrap();
    for order in 0..5 {
        none.append(&stream(&format!("order-{order}")), Expected::Any, &[placed(100)]).await.unwrap();
    }
    let client = database.client().await;
    client
        .batch_execute(
            "CREATE TABLE public.orders (id text PRIMARY KEY, customer text NOT NULL);
             INSERT INTO public.orders SELECT stream, 'Ada' FROM changeover.events WHERE position <= 3;
             CREATE SCHEMA totals_v1;
             CREATE TABLE totals_v1.total (one boolean PRIMARY KEY, cents bigint NOT NULL);
             INSERT INTO totals_v1.total VALUES (true, 500)",
        )
        .await
        .unwrap();
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_others_become_the_projectors() {
    let database = tables_of_others().await;
    let one = Program::host(1).on(&database);
    golden("adopt", one.run("adopt orders --position 3 --from-schema public").ended(0));
    let totals = one.run("adopt totals --position horizon --json").ended(0);
    golden("adopt_json", &totals);
    assert_eq!(totals.json()["position"], "horizon");
    golden("adopt_again", one.run("adopt orders --position 3 --from-schema public").ended(1));
    let client = database.client().await;
    let row = client
        .query_one("SELECT count(*), (SELECT cents FROM totals.total) FROM orders.orders", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (5, 500));
    golden("status_after_adoption", one.run("status").ended(0));
    assert_eq!(one.run("plan --json").ended(0).json()["done"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_differ_are_told_one_by_one() {
    let database = tables_of_others().await;
    let two = Program::host(2).on(&database);
    golden("adopt_other_tables", two.run("adopt orders --position 3 --from-schema public").ended(1));
    let differ = two.run("adopt orders --position 3 --from-schema public --json").ended(1);
    assert_eq!(differ.kind(), "other_tables");
    assert_eq!(
        differ.json()["error"]["differences"],
        json!([{ "difference": "missing_column", "table": "public.orders", "column": "cents" }])
    );
    assert_eq!(two.run("adopt orders --position 6 --json").ended(1).kind(), "above_horizon");
    assert_eq!(two.run("adopt missing --position 1 --json").ended(1).kind(), "unknown_projector");
    let mut reader = database.client().await;
    let reading = reader.transaction().await.unwrap();
    reading.query("SELECT FROM public.orders", &[]).await.unwrap();
    let line = "adopt orders --position 3 --from-schema public --move-timeout 200ms";
    golden("adopt_behind_a_reader", Program::host(1).on(&database).run(line).ended(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adoption_that_is_told_to_stop_goes_on_later() {
    let database = tables_of_others().await;
    let one = Program::host(1).on(&database);
    let line = "adopt orders --position 3 --from-schema public --pause-limit 5m";
    let none = Changeover::builder(database.config()).connect().await.unwrap();
    let mut appending = none.pool().get().await.unwrap();
    let tx = appending.transaction().await.unwrap();
    none.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let adopting = Process::spawn(one.command(line)).unwrap();
    let paused = || async { none.status().await.unwrap().activation.is_some_and(|open| open.paused) };
    eventually(SOON, paused).await;
    adopting.terminate().unwrap();
    assert_eq!(adopting.wait(SOON).await.unwrap().code(), Some(3));
    let said = adopting.output();
    assert!(said.contains("the tables stay adopted, and are not active yet"), "{said}");
    // Whoever wrote before writes on.
    none.append(&stream("more"), Expected::Any, &[placed(1)]).await.unwrap();
    tx.commit().await.unwrap();
    let adopted = one.run(&format!("{line} --json")).ended(0).json();
    assert_eq!((&adopted["moved"], &adopted["activation"]["horizon"]), (&json!([]), &json!(7)));
}
