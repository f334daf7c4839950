//! What is proved before a switch, and before tables are adopted.

use std::collections::BTreeSet;
use std::sync::Mutex;

use changeover::{
    ActivateError, ActivateOptions, AdoptError, AdoptOptions, Position, RowDiffers, VerifyOptions,
    WhenNothingIsActive,
};
use changeover_testkit::Database;

use super::{name, scratch, small_pages};
use crate::accounts::{at_once, with};
use crate::orders::place;
use crate::releases::{
    SOON, Writers, active, hasty, instance_of, more_events, newest_outcome, phase, release, wrong_rows,
};

fn proving() -> ActivateOptions {
    ActivateOptions { verify: Some(small_pages()), ..hasty() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_switches_to_rows_that_are_wrong() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    let running = old.start();
    for order in 0..120 {
        place(&old, &format!("o-{order}"), 1).await;
    }
    let new = instance_of(&database, "2.0.0").await;
    new.replay(&[name("orders")], &with(at_once()), &|_| {}).await.unwrap();
    client.batch_execute("UPDATE orders_v2.orders SET cents = 1 WHERE id IN ('o-7', 'o-70')").await.unwrap();

    let phases = Mutex::new(BTreeSet::new());
    let note = |progress| {
        phases.lock().unwrap().insert(phase(&progress));
    };
    let error = new.activate(&proving(), &note).await.unwrap_err();
    let ActivateError::Differs(verified) = &error else { panic!("{error:?}") };
    let orders = &verified[0].tables[0];
    assert_eq!((verified.len(), orders.different), (1, 2));
    assert_eq!(orders.examples[0].difference, RowDiffers::Different);
    assert_eq!(
        error.to_string(),
        "not activated: orders 2.0.0 differs from the log in 2 rows (orders: 2 different); see all of it with `verify orders`, \
         mend the projector, and start over with `replay orders --restart`"
    );
    let phases = phases.into_inner().unwrap();
    assert!(phases.contains("verifying") && !phases.contains("paused"), "{phases:?}");
    assert_eq!(active(&client).await, "orders 1.0.0");
    assert_eq!(newest_outcome(&client).await.as_deref(), Some("failed"));
    place(&old, "still", 1).await;

    // Without being asked it is not looked at; put right, it goes, beside those who write.
    client
        .batch_execute("UPDATE orders_v2.orders SET cents = 100 WHERE id IN ('o-7', 'o-70')")
        .await
        .unwrap();
    let writers = Writers::start(2, &[&old, &new]);
    more_events(&client, 50).await;
    let _ = new.activate(&ActivateOptions { catch_up_lag_events: 50, ..proving() }, &|_| {}).await.unwrap();
    let written = writers.stop().await;
    assert_eq!(written.failed, [""; 0]);
    running.stop().await;
    let running = new.start();
    new.wait_for(&name("orders"), new.horizon().await.unwrap(), SOON).await.unwrap();
    assert_eq!((active(&client).await.as_str(), wrong_rows(&client, "orders_v2").await), ("orders 2.0.0", 0));
    assert_eq!(scratch(&client).await, [""; 0]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_whose_rows_are_wrong_are_not_adopted() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..120 {
        place(&writer, &format!("o-{order}"), 1).await;
    }
    let adopted = Position::new(200);
    client
        .batch_execute(
            "CREATE TABLE public.orders (id text PRIMARY KEY, customer text NOT NULL, items integer NOT NULL,
                 cents bigint NOT NULL, paid boolean NOT NULL, last_position bigint NOT NULL);
             CREATE INDEX ON public.orders (customer);
             INSERT INTO public.orders
             SELECT stream, 'Ada', count(*) - 1, (count(*) - 1) * 100, false, max(position)
             FROM changeover.events WHERE position <= 200 GROUP BY stream;
             UPDATE public.orders SET customer = 'Eve' WHERE id = 'o-50'",
        )
        .await
        .unwrap();
    let builder = changeover::Changeover::builder(database.config())
        .configuration(release("1.0.0"))
        .when_nothing_is_active(WhenNothingIsActive::Refuse);
    let changeover = builder.connect().await.unwrap();
    let options = AdoptOptions {
        from_schema: Some("public".to_owned()),
        verify: Some(VerifyOptions { page_rows: 30, ..VerifyOptions::default() }),
        ..AdoptOptions::at(adopted)
    };
    let error = changeover.adopt(&name("orders"), &options, &|_| {}).await.unwrap_err();
    let AdoptError::Differs(verified) = &error else { panic!("{error:?}") };
    let orders = &verified.tables[0];
    assert_eq!((orders.different, orders.rows, verified.to), (1, 100, adopted), "{verified:?}");
    assert_eq!(orders.examples[0].key, [("id".to_owned(), "o-50".to_owned())]);
    assert!(changeover.status().await.unwrap().projectors.is_empty());
    client.batch_execute("UPDATE public.orders SET customer = 'Ada' WHERE id = 'o-50'").await.unwrap();
    let adopted = changeover.adopt(&name("orders"), &options, &|_| {}).await.unwrap();
    assert_eq!(adopted.moved, ["public.orders"]);
    assert_eq!((active(&client).await.as_str(), wrong_rows(&client, "orders_v1").await), ("orders 1.0.0", 0));
    assert_eq!(scratch(&client).await, [""; 0]);
}
