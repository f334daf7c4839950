//! The watch: keeps an instance's decision fresh, so that it knows by itself, within milliseconds, that it has retired.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::core::Core;

/// How often the generation is looked at where nothing announces its changes.
const POLL: Duration = Duration::from_millis(50);
const UNREACHABLE_POLL: Duration = Duration::from_millis(500);

/// Of one look: a server that answers no more must not leave this instance ready.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) async fn watch(core: Arc<Core>, stop: CancellationToken) {
    let mut changed = core.states_changed.register();
    while !stop.is_cancelled() {
        let looked = tokio::select! {
            looked = tokio::time::timeout(LOOK_TIMEOUT, core.decider.look()) => looked,
            () = stop.cancelled() => return,
        };
        let pause = match looked {
            Ok(Ok(_)) => POLL,
            // The decider has written down why.
            Ok(Err(_)) => UNREACHABLE_POLL,
            Err(_) => {
                core.decider.gave_up(LOOK_TIMEOUT);
                POLL
            }
        };
        tokio::select! {
            () = changed.woken() => {}
            () = sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
