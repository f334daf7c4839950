//! The watch: keeps an instance's decision fresh, so that it knows by itself, within milliseconds, that it has retired.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::core::Core;

/// How often the generation is looked at where nothing announces its changes.
const POLL: Duration = Duration::from_millis(50);
const UNREACHABLE_POLL: Duration = Duration::from_millis(500);

pub(crate) async fn watch(core: Arc<Core>, stop: CancellationToken) {
    let mut changed = core.states_changed.register();
    while !stop.is_cancelled() {
        let looked = tokio::select! {
            looked = core.decider.look() => looked,
            () = stop.cancelled() => return,
        };
        // What went wrong is in the readiness.
        let pause = if looked.is_ok() { POLL } else { UNREACHABLE_POLL };
        tokio::select! {
            () = changed.woken() => {}
            () = sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
