//! What is proved of tables that are adopted, also by a second call; and who is still at tables that were there before.

use std::time::Duration;

use changeover::{
    ActivateError, AdoptAt, AdoptError, AdoptOptions, Changeover, DiscardOptions, Expected, Transaction,
    VerifyOptions,
};
use changeover_testkit::Database;

use super::{FILL, adopt, everything, from_public, humble, orders, read_model_of_others};
use crate::discarding::silence;
use crate::operator::Operator;
use crate::orders::{OrderEvent, place, placed, stream};
use crate::releases::{active, wrong_rows};

const WRONG: &str = "SET customer = 'Eve' WHERE id = 'order-3'";
const RIGHT: &str = "SET customer = 'Ada' WHERE id = 'order-3'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_call_did_not_prove_the_second_one_does() {
    for name in ["1.0.0", "inline 1.0.0"] {
        let database = Database::fresh().await;
        let (client, _none, position) = read_model_of_others(&database).await;
        client.batch_execute(&format!("UPDATE public.orders {WRONG}")).await.unwrap();
        // It proves nothing, and takes them over.
        let first = Operator::adopt(&database, name, position.get(), "started").await;
        first.kill_9();
        let new = humble(&database, name).await;
        let proved = AdoptOptions { verify: Some(VerifyOptions::default()), ..from_public(position) };
        for _ in 0..2 {
            let refused = adopt(&new, &proved).await.unwrap_err();
            let AdoptError::NotActivated { source: ActivateError::Differs(verified), .. } = &refused else {
                panic!("{refused:?}")
            };
            assert_eq!((verified.len(), verified[0].differences()), (1, 1), "{verified:?}");
            assert!(refused.to_string().contains("run `adopt` again"), "{refused}");
            assert_eq!(active(&client).await, "");
        }
        client.batch_execute(&format!("UPDATE orders_v1.orders {RIGHT}")).await.unwrap();
        let _ = adopt(&new, &proved).await.unwrap();
        assert_eq!(active(&client).await, "orders 1.0.0");
        assert_eq!(wrong_rows(&client, "orders_v1").await, 0, "{name}");
    }
}

/// Appends to a stream and feeds the table in the same transaction, as somebody does who knows nothing of projectors.
async fn feed(appending: &Changeover, tx: &Transaction<'_>, order: &str) {
    let appended = appending.append_in(tx, &stream(order), Expected::NoStream, &[placed("Ada")]).await;
    let position = appended.unwrap().last().unwrap();
    let row = format!("INSERT INTO public.orders VALUES ('{order}', 'Ada', 0, 0, false, {position})");
    tx.batch_execute(&row).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_appends_keep_current_are_proved_as_they_stand_before_they_are_adopted() {
    let database = Database::fresh().await;
    let (client, none, _) = read_model_of_others(&database).await;
    client.batch_execute("TRUNCATE public.orders").await.unwrap();
    client.batch_execute(FILL).await.unwrap();
    let new = humble(&database, "inline 1.0.0").await;
    let proved = AdoptOptions {
        verify: Some(VerifyOptions::default()),
        move_timeout: Duration::from_millis(300),
        ..from_public(AdoptAt::Horizon)
    };
    // An append in flight, and a later one that is committed: the table holds more than what is below the horizon.
    let (mut one, mut other) = (none.pool().get().await.unwrap(), none.pool().get().await.unwrap());
    let open = one.transaction().await.unwrap();
    feed(&none, &open, "open").await;
    let later = other.transaction().await.unwrap();
    feed(&none, &later, "later").await;
    later.commit().await.unwrap();
    let status = new.status().await.unwrap();
    assert!(status.horizon.get() + 2 <= status.newest.get(), "{status:?}");

    client.batch_execute(&format!("UPDATE public.orders {WRONG}")).await.unwrap();
    let before = everything(&client).await;
    let refused = adopt(&new, &proved).await.unwrap_err();
    let AdoptError::Differs(verified) = &refused else { panic!("{refused:?}") };
    assert_eq!((verified.differences(), verified.tables[0].different), (1, 1), "{verified:?}");
    assert_eq!(everything(&client).await, before);

    // Right, they go on to the move, which whoever appends is in the way of.
    client.batch_execute(&format!("UPDATE public.orders {RIGHT}")).await.unwrap();
    let refused = adopt(&new, &proved).await.unwrap_err();
    assert!(matches!(refused, AdoptError::Blocked { .. }), "{refused:?}");
    open.commit().await.unwrap();
    let _ = adopt(&new, &proved).await.unwrap();
    place(&new, "order-new", 2).await;
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wakes_up_after_its_replay_was_discarded_does_not_feed_tables_that_were_adopted_since()
{
    let database = Database::fresh().await;
    let (client, none, position) = read_model_of_others(&database).await;
    let items = vec![OrderEvent::ItemAdded { cents: 1 }; 3_000];
    none.append(&stream("order-1"), Expected::Any, &items).await.unwrap();
    let late = Operator::replay(&database, "1.0.0", "orders", 1).await;
    let new = humble(&database, "1.0.0").await;
    silence(&client).await;
    let version = "1.0.0".parse().unwrap();
    let _ = new.discard(&orders(), &version, &DiscardOptions::default()).await.unwrap();
    // The tables are there again, and are being replayed again; but these are others.
    let adopting = Operator::adopt(&database, "1.0.0", position.get(), "started").await;
    adopting.kill_9();
    let said = late.thaw().await;
    assert!(said.starts_with("end: refused: StartedOver"), "{said}");
    let sql = "SELECT position, attempt FROM changeover.checkpoints";
    let checkpoint = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((checkpoint.get::<_, i64>(0), checkpoint.get::<_, i32>(1)), (position.get(), 2));
    let _ = adopt(&new, &from_public(position)).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v1").await, 0);
}
