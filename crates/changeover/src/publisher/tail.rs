//! The end of the log, looked at by one task for all projectors of an instance.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::core::Core;
use crate::horizon::{self, Look};
use crate::projector::chain;
use crate::store::StoreError;
use crate::wake::{InFlight, sleep_for};
use crate::words::position::Position;

/// How long to wait before a log that could not be looked at is looked at again.
const AGAIN: Duration = Duration::from_millis(500);

/// A stretch longer than this is not searched for types: everybody is woken.
const LONG: i64 = 10_000;

/// Watches the end of the log.
pub(super) async fn watch(core: Arc<Core>, stop: CancellationToken) {
    let mut woken = core.waker.register();
    let mut seen = Position::START;
    let mut in_flight = InFlight::anew();
    let mut failing = false;
    while !stop.is_cancelled() {
        let looked = look(&core, seen).await;
        let pause = match looked {
            Ok(look) => {
                failing = false;
                if look.horizon > seen {
                    in_flight = InFlight::anew();
                }
                seen = look.horizon;
                if look.newest > look.horizon { Some(in_flight.pause()) } else { core.signals.timer }
            }
            Err(error) => {
                if !failing {
                    warn!(error = %chain(&error), "the log cannot be looked at");
                }
                failing = true;
                // The log may be another one when it can be looked at again.
                seen = Position::START;
                Some(AGAIN)
            }
        };
        tokio::select! {
            () = woken.woken(), if !failing => in_flight = InFlight::anew(),
            () = sleep_for(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Looks once, and tells the projectors that handle what is new.
async fn look(core: &Core, seen: Position) -> Result<Look, StoreError> {
    let client = core.background().await?;
    let look = horizon::look(&core.store, &client).await?;
    let horizon = look.horizon;
    if horizon > seen {
        if horizon.get() - seen.get() > LONG {
            core.due.wake(None);
        } else {
            let rows = core.store.query(&client, &core.store.sql.types_between, &[&seen, &horizon]).await?;
            let types: Vec<String> = rows.iter().map(|row| row.get("type")).collect();
            core.due.wake(Some(&types));
        }
    }
    client.give_back_untouched();
    Ok(look)
}
