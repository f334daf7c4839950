//! An append that has been open for long holds the horizon up, so what was appended after it cannot be replayed before it
//! ends. That must not become part of the pause.

use std::time::Duration;

use changeover::{ActivateOptions, ActivationProgress, Configuration, Expected, Position};
use changeover_testkit::{Database, eventually};
use tokio::sync::mpsc;

use crate::orders::{Orders1, Orders2, instance, place, placed, stream};
use crate::releases::SOON;

#[tokio::test]
async fn what_came_after_an_old_append_is_caught_up_with_before_the_pause() {
    const LAG: i64 = 100;
    // As long as a machine may stand still in the middle of it.
    const PAUSE: Duration = Duration::from_secs(4);
    let database = Database::fresh().await;
    let old = instance(&database, Configuration::new().fold(Orders1).unwrap()).await;
    let new = instance(&database, Configuration::new().fold(Orders2).unwrap()).await;
    let mut client = old.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    let _ = old.append_in(&tx, &stream("old"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    for at in 0..20 {
        place(&old, &format!("after-{at}"), 99).await;
    }
    // Older than half the limit of the pause: as old as to be waited for.
    eventually(SOON, || async {
        old.status()
            .await
            .unwrap()
            .in_flight
            .iter()
            .any(|append| append.age_secs > Some(PAUSE.as_secs_f64() / 2.0))
    })
    .await;

    let (told, mut progress) = mpsc::unbounded_channel();
    let activating = tokio::spawn(async move {
        let options =
            ActivateOptions { pause_limit: PAUSE, catch_up_lag_events: LAG, ..ActivateOptions::default() };
        let tell = |at| told.send(at).expect("somebody listens");
        new.activate(&options, &tell).await
    });
    let mut tx = Some(tx);
    let (mut caught_up_at, mut waited) = (Position::START, false);
    while let Some(at) = progress.recv().await {
        match at {
            ActivationProgress::WaitingForAppends(_) => {
                waited = true;
                if let Some(tx) = tx.take() {
                    tx.commit().await.unwrap();
                }
            }
            ActivationProgress::Replaying(replay) => caught_up_at = replay.position,
            ActivationProgress::Drained { horizon } => {
                let left = horizon.get() - caught_up_at.get();
                assert!(waited, "the append was not old enough to be waited for");
                assert!(left <= LAG, "{left} events were left to be fed in the pause");
            }
            _ => {}
        }
    }
    let activated = activating.await.unwrap().unwrap();
    assert_eq!(activated.horizon, Some(Position::new(2_001)));
}
