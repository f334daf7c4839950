//! `verify`, from the command line.

use changeover::Changeover;
use changeover_testkit::{Database, Process};
use serde_json::json;

use crate::program::{Program, SOON, golden, instance, place, release_1_is_active, stalled};

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_right_are_proved_so() {
    let database = release_1_is_active(20).await;
    let one = Program::host(1).on(&database);
    golden("verify", one.run("verify orders").ended(0));
    golden("verify_json", one.run("verify totals --json").ended(0));
    assert_eq!(one.run("verify orders --json").ended(0).json()["equal"], true);
    // Release 2 was never replayed, and knows no other projector.
    golden("verify_without_tables", Program::host(2).on(&database).run("verify orders").ended(1));
    assert_eq!(one.run("verify other --json").ended(1).kind(), "unknown_projector");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_wrong_are_named_without_their_values() {
    let database = release_1_is_active(20).await;
    let client = database.client().await;
    client
        .batch_execute(
            "DELETE FROM orders_v1.orders WHERE id = 'order-3';
             UPDATE orders_v1.orders SET customer = E'Eve\\x1b[2J 7731' WHERE id IN ('order-4', 'order-14');
             INSERT INTO orders_v1.orders VALUES ('order-x', 'Eve 7731')",
        )
        .await
        .unwrap();
    let one = Program::host(1).on(&database);
    let different = one.run("verify orders").ended(1);
    assert!(!different.stdout.contains("7731"), "{different}");
    golden("verify_of_wrong_rows", different);
    let different = one.run("verify orders --json --quiet").ended(1);
    assert!(!different.stdout.contains("7731"), "{different}");
    assert_eq!(different.json()["equal"], false);
    golden("verify_of_wrong_rows_json", different);
    golden("verify_with_values", one.run("verify orders --show-values --examples 3 --quiet").ended(1));
    let shown = one.run("verify orders --show-values --json").ended(1).json();
    let example = &shown["tables"][0]["examples"][1];
    assert_eq!(example["key"], json!({ "id": "order-3" }));
    assert_eq!(example["values"], json!([{ "column": "customer", "found": null, "expected": "Ada" }]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_skipped_is_said() {
    let database = release_1_is_active(2).await;
    let serving = instance(&database, 1).await;
    let running = serving.start();
    let below = crate::program::stream("below");
    serving.append(&below, changeover::Expected::Any, &[crate::program::placed(-1)]).await.unwrap();
    let position = stalled(&serving).await;
    let changeover = Program::changeover().on(&database);
    changeover.run(&format!("skip totals --position {position}")).ended(0);
    place(&serving, 2..3).await;
    let end = serving.horizon().await.unwrap();
    serving.wait_for(&"totals".parse().unwrap(), end, SOON).await.unwrap();
    running.stop().await;
    golden("verify_without_an_event", Program::host(1).on(&database).run("verify totals").ended(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_compared_by_the_binary_too() {
    let database = release_1_is_active(20).await;
    Program::host(2).on(&database).run("replay --lag-events 0").ended(0);
    let changeover = Program::changeover().on(&database);
    golden("verify_between_undeclared", changeover.run("verify orders --between 1.0.0 2.0.0").ended(1));
    let line = "verify orders --between 1.0.0 2.0.0 --leave-out orders.cents";
    golden("verify_between", changeover.run(line).ended(0));
    let mapped =
        changeover.run("verify orders --between 1.0.0 2.0.0 --map orders.cents=99+1 --json").ended(0);
    assert_eq!(
        (&mapped.json()["equal"], &mapped.json()["against"]),
        (&json!(true), &json!({ "version": "1.0.0" }))
    );
    let wrong = changeover.run("verify orders --between 1.0.0 2.0.0 --map orders.cents=length(id)").ended(1);
    golden("verify_between_different", wrong);
    let line = "verify orders --between 1.0.0 2.0.0 --map orders.cents=pounds --json";
    assert_eq!(changeover.run(line).ended(1).kind(), "expression");
    let unknown = changeover.run("verify other --between 1.0.0 2.0.0 --json").ended(1);
    assert_eq!(unknown.kind(), "unknown_projector");
    place(&instance(&database, 1).await, 20..21).await;
    let running = instance(&database, 1).await;
    let publishing = running.start();
    let end = running.horizon().await.unwrap();
    running.wait_for(&"orders".parse().unwrap(), end, SOON).await.unwrap();
    publishing.stop().await;
    let line = "verify orders --between 1.0.0 2.0.0 --leave-out orders.cents --patience 10ms";
    golden("verify_between_versions_that_stand_apart", changeover.run(line).ended(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_and_an_adoption_refuse_rows_that_are_wrong() {
    let database = release_1_is_active(20).await;
    let two = Program::host(2).on(&database);
    two.run("replay --lag-events 0").ended(0);
    let client = database.client().await;
    client.batch_execute("UPDATE orders_v2.orders SET cents = 7731 WHERE id = 'order-7'").await.unwrap();
    golden("activation_to_wrong_rows", two.run("activate-configuration --verify").ended(1));
    let refused = two.run("activate-configuration --verify --json").ended(1);
    assert_eq!(refused.kind(), "differs");
    assert_eq!(refused.json()["error"]["verified"][0]["tables"][0]["different"], 1);
    client.batch_execute("UPDATE orders_v2.orders SET cents = 100 WHERE id = 'order-7'").await.unwrap();
    golden("activation_to_proved_rows", two.run("activate-configuration --verify").ended(0));

    let database = Database::fresh().await;
    let builder = Changeover::builder(database.config());
    builder.migrate().await.unwrap();
    place(&builder.connect().await.unwrap(), 0..5).await;
    let client = database.client().await;
    client
        .batch_execute(
            "CREATE TABLE public.orders (id text PRIMARY KEY, customer text NOT NULL);
             INSERT INTO public.orders SELECT stream, 'Eve' FROM changeover.events WHERE position <= 3",
        )
        .await
        .unwrap();
    let one = Program::host(1).on(&database);
    let line = "adopt orders --position 3 --from-schema public --verify";
    golden("adopt_wrong_rows", one.run(line).ended(1));
    client.batch_execute("UPDATE public.orders SET customer = 'Ada'").await.unwrap();
    one.run(line).ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_is_stopped_says_so() {
    let database = release_1_is_active(5).await;
    let serving = instance(&database, 1).await;
    // Whoever holds the table holds up the reading of its first page.
    let mut client = database.client().await;
    let held = client.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE orders_v1.orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let one = Program::host(1).on(&database);
    let verifying = Process::spawn(one.command("verify orders")).unwrap();
    verifying.wait_for_line("folding orders 1.0.0", SOON).await.unwrap();
    verifying.terminate().unwrap();
    assert_eq!(verifying.wait(SOON).await.unwrap().code(), Some(3));
    let output = verifying.output();
    assert!(output.contains("SIGTERM: nothing can be said of orders"), "{output}");
    held.rollback().await.unwrap();
    one.run("verify orders").ended(0);
    drop(serving);
    let client = database.client().await;
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%\\_verify\\_%'";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
}
