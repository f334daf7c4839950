//! `prune`: shows, and drops only where it is told to in so many words.

use changeover_testkit::Database;
use serde_json::json;

use crate::program::{Program, golden, release_1_is_active};

async fn release_2_took_over() -> (Database, Program) {
    let database = release_1_is_active(5).await;
    Program::host(2).on(&database).run("activate-configuration").ended(0);
    let changeover = Program::changeover().on(&database);
    (database, changeover)
}

async fn tables_are_there(database: &Database) -> bool {
    let client = database.client().await;
    let row = client.query_one("SELECT to_regclass('orders_v1.orders') IS NOT NULL", &[]).await.unwrap();
    row.get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_without_a_number_and_a_yes() {
    let (database, changeover) = release_2_took_over().await;
    let usage = changeover.run("prune").ended(2);
    assert!(usage.stderr.contains("--keep <N>"), "{usage}");
    let usage = changeover.run("prune --yes").ended(2);
    assert!(usage.stderr.contains("--keep <N>"), "{usage}");
    golden("prune_that_keeps_all", changeover.run("prune --keep 1").ended(0));
    // Something is due: whoever forgot the yes must not take it for done.
    golden("prune_without_a_yes", changeover.run("prune --keep 0").ended(1));
    golden("prune_dry_run", changeover.run("prune --keep 0 --dry-run").ended(0));
    let plan = changeover.run("prune --keep 0 --dry-run --json").ended(0).json();
    assert_eq!(
        (&plan["tables"][0]["schema"], &plan["tables"][0]["fate"]),
        (&json!("orders_v1"), &json!("drop"))
    );
    assert_eq!(
        (&plan["lost"][0]["before"], &plan["lost"][0]["configuration"]["orders"]),
        (&json!(true), &json!("1.0.0"))
    );
    assert!(tables_are_there(&database).await);

    golden("prune", changeover.run("prune --keep 0 --yes").ended(0));
    assert!(!tables_are_there(&database).await);
    golden("prune_again", changeover.run("prune --keep 0 --yes").ended(0));
    golden("prune_of_nothing", changeover.run("prune --keep 0").ended(0));
    golden("rollback_to_what_was_pruned", Program::host(1).on(&database).run("rollback").ended(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_named() {
    let (database, changeover) = release_2_took_over().await;
    let client = database.client().await;
    let view =
        "CREATE VIEW public.report AS SELECT customer, count(*) AS orders FROM orders_v1.orders GROUP BY 1";
    client.batch_execute(view).await.unwrap();
    golden("prune_dry_run_with_a_view", changeover.run("prune --keep 0 --dry-run").ended(1));
    golden("prune_with_a_view", changeover.run("prune --keep 0 --yes").ended(1));
    golden("prune_with_a_view_json", changeover.run("prune --keep 0 --yes --json").ended(1));
    client.batch_execute("DROP VIEW public.report").await.unwrap();
    client.batch_execute("BEGIN; SELECT FROM orders_v1.orders").await.unwrap();
    golden("prune_beside_a_reader", changeover.run("prune --keep 0 --yes --wait 300ms").ended(1));
    client.batch_execute("COMMIT").await.unwrap();
    assert!(tables_are_there(&database).await);
    let pruned = changeover.run("prune --keep 0 --yes --json").ended(0).json();
    assert_eq!(pruned["dropped"][0]["projector"], json!("orders"));
    assert!(!tables_are_there(&database).await);
}
