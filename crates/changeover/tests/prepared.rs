//! Prepared transactions: they outlive their session, and so does what they hold.

use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    ActivateError, ActivateOptions, ActivationProgress, Changeover, Configuration, Expected, Fold,
    FoldProjector, Recorded, Row, StreamName,
};
use changeover_testkit::{Cluster, Database};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

#[derive(Serialize, Deserialize)]
enum OrderEvent {
    Placed,
}

#[derive(Row, Clone)]
#[row(table = "orders")]
struct Order {
    #[row(key)]
    id: String,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(_: Option<Self>, id: &String, _: &Recorded<OrderEvent>) -> Option<Self> {
        Some(Order { id: id.clone() })
    }
}

struct Orders1;

impl FoldProjector for Orders1 {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order,);
}

struct Orders2;

impl FoldProjector for Orders2 {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(2, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order,);
}

async fn instance(database: &Database, configuration: Configuration) -> Changeover {
    let builder = Changeover::builder(database.config()).configuration(configuration);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

#[tokio::test]
async fn an_activation_waits_for_an_append_that_is_prepared_while_it_waits() {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "4").start().unwrap();
    let database = Database::fresh_on(&cluster).await;
    let old = instance(&database, Configuration::new().fold(Orders1).unwrap()).await;
    let stream = |name: &str| name.parse::<StreamName>().unwrap();
    let _ = old.append(&stream("order-1"), Expected::NoStream, &[OrderEvent::Placed]).await.unwrap();
    let new = instance(&database, Configuration::new().fold(Orders2).unwrap()).await;

    let mut client = old.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    let _ = old.append_in(&tx, &stream("order-2"), Expected::NoStream, &[OrderEvent::Placed]).await.unwrap();
    let (paused, mut pause) = watch::channel(false);
    let options = ActivateOptions { pause_limit: Duration::from_secs(1), ..ActivateOptions::default() };
    let activating = tokio::spawn(async move {
        let report =
            |progress| drop(matches!(progress, ActivationProgress::Paused).then(|| paused.send(true)));
        new.activate(&options, &report).await
    });
    pause.wait_for(|paused| *paused).await.unwrap();
    // By now it looks again and again at those that it saw at first; a few round trips make sure.
    for _ in 0..50 {
        tx.batch_execute("SELECT 1").await.unwrap();
    }
    tx.batch_execute("PREPARE TRANSACTION 'late'").await.unwrap();
    drop(tx);

    let outcome = activating.await.unwrap();
    assert!(
        matches!(&outcome, Err(ActivateError::Blocked { blockers, .. }) if blockers.len() == 1),
        "{outcome:?}"
    );
    database.client().await.batch_execute("COMMIT PREPARED 'late'").await.unwrap();
    let new = instance(&database, Configuration::new().fold(Orders2).unwrap()).await;
    let _ = new.activate(&ActivateOptions::default(), &|_| {}).await.unwrap();
    let orders =
        database.client().await.query_one("SELECT count(*) FROM orders_v2.orders", &[]).await.unwrap();
    assert_eq!(orders.get::<_, i64>(0), 2);
}
