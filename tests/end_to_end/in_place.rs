//! A minor version that is fed inline takes over from one that was fed in the background: the rest of the log comes into the
//! tables that both of them use, together with the switch.

use changeover::{ActivateError, ActivateOptions, ReplayError};
use changeover_testkit::Database;
use tokio_postgres::Client;

use crate::orders::place;
use crate::publisher::append_by_hand;
use crate::releases::{SOON, active, hasty, instance_of, newest_outcome, wrong_rows};

/// How many rows there are, and where the checkpoint stands.
async fn fed(client: &Client) -> (i64, i64) {
    let sql = "SELECT (SELECT count(*) FROM orders_v1.orders), position FROM changeover.checkpoints WHERE projector = 'orders'";
    let row = client.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

/// The old version goes on with these tables: what the new one made of the rest of the log must not stay in them.
#[tokio::test]
async fn a_switch_in_place_that_does_not_come_about_leaves_nothing_in_the_tables() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    for order in 0..5 {
        place(&old, &format!("order-{order}"), 2).await;
    }
    let new = instance_of(&database, "inline 1.1.0").await;
    client
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON changeover.activations FOR EACH ROW
             WHEN (NEW.outcome = 'activated') EXECUTE FUNCTION refuse()",
        )
        .await
        .unwrap();
    let error = new.activate(&hasty(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, ActivateError::Store(_)), "{error:?}");
    assert_eq!(newest_outcome(&client).await.as_deref(), Some("failed"));
    assert_eq!((active(&client).await.as_str(), fed(&client).await), ("orders 1.0.0", (0, 0)));

    client.batch_execute("DROP TRIGGER refuse ON changeover.activations").await.unwrap();
    let running = old.start();
    old.wait_for(&"orders".parse().unwrap(), old.horizon().await.unwrap(), SOON).await.unwrap();
    running.stop().await;
    place(&old, "order-5", 2).await;
    let activated = new.activate(&hasty(), &|_| {}).await.unwrap();
    let horizon = old.horizon().await.unwrap();
    assert_eq!(activated.horizon, Some(horizon));
    assert_eq!((active(&client).await.as_str(), fed(&client).await), ("orders 1.1.0", (6, horizon.get())));
    place(&new, "order-6", 2).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}

#[tokio::test]
async fn an_event_that_the_new_version_cannot_project_in_place_is_named_and_nothing_changes() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    for order in 0..5 {
        place(&old, &format!("order-{order}"), 2).await;
    }
    let culprit = append_by_hand(&client, r#"{"customer": 7}"#).await;
    place(&old, "order-5", 2).await;
    let new = instance_of(&database, "inline 1.1.0").await;
    let options = ActivateOptions { pause_limit: SOON, ..hasty() };
    let error = new.activate(&options, &|_| {}).await.unwrap_err();
    let ActivateError::Replay(ReplayError::Projector { position, event_type, .. }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!((*position, event_type.as_str()), (culprit, "Placed"));
    assert_eq!((active(&client).await.as_str(), fed(&client).await), ("orders 1.0.0", (0, 0)));
    place(&old, "order-6", 2).await;
}
