//! How often an append waits for the server. On a slow line nothing but that takes time.

use std::time::{Duration, Instant};

use changeover::{Changeover, Configuration, Expected, StreamName};
use changeover_testkit::{Database, Proxy};

use crate::orders::{InlineOrders1, placed, stream};

/// Far more than an append takes besides, so that what is left over after division is no round trip.
const ONE_WAY: Duration = Duration::from_millis(40);

async fn append(changeover: &Changeover, name: &StreamName, expected: Expected) -> Duration {
    let started = Instant::now();
    changeover.append(name, expected, &[placed("Ada")]).await.unwrap();
    started.elapsed()
}

/// The fewest round trips of some appends: the machine may stand still in one of them, but hardly in all.
async fn round_trips(changeover: &Changeover, proxy: &Proxy, kind: &str) -> u128 {
    let mut fewest = Duration::MAX;
    for at in 0..4 {
        let name = stream(&format!("{kind} {at}"));
        let expected = match kind {
            "new" => Expected::NoStream,
            "at" => {
                let begun = changeover.append(&name, Expected::NoStream, &[placed("Ada")]).await.unwrap();
                Expected::Exactly(begun.revision)
            }
            _ => Expected::Any,
        };
        // The first one prepares its statements, once for its connection.
        proxy.delay(if at == 0 { Duration::ZERO } else { ONE_WAY });
        let took = append(changeover, &name, expected).await;
        proxy.delay(Duration::ZERO);
        fewest = if at == 0 { fewest } else { fewest.min(took) };
    }
    fewest.as_millis() / (2 * ONE_WAY).as_millis()
}

#[tokio::test]
async fn an_append_takes_one_round_trip_and_two_with_an_inline_fold() {
    let configurations = [(Configuration::new(), 1), (Configuration::new().fold(InlineOrders1).unwrap(), 2)];
    for (configuration, expected) in configurations {
        let database = Database::fresh().await;
        let proxy = Proxy::in_front_of(&database.config()).unwrap();
        let builder = Changeover::builder(proxy.config(&database.config())).configuration(configuration);
        builder.migrate().await.unwrap();
        let changeover = builder.connect().await.unwrap();
        for kind in ["new", "at", "any"] {
            assert_eq!(round_trips(&changeover, &proxy, kind).await, expected, "{kind}");
        }
    }
}
