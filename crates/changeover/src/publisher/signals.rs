//! NOTIFY and LISTEN: how processes tell each other that something was appended, or that the states changed.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::core::Core;
use crate::projector::chain;
use crate::store::{Path, StoreError};
use crate::wake::Hint;

/// Starts the signals that the instance is configured for, as far as the path to the server carries them.
pub(super) fn start(core: &Arc<Core>, tasks: &TaskTracker, stop: &CancellationToken) {
    let Some(interval) = core.signals.notify else { return };
    tasks.spawn(announce(core.clone(), interval, stop.clone()));
    match core.store.path {
        Path::Direct => drop(tasks.spawn(listen(core.clone(), stop.clone()))),
        Path::Pooled => info!("behind a pooler: nothing is listened to, the timer looks instead"),
    }
}

/// Sends a NOTIFY for appends of this process, outside their transactions, at most once an interval.
async fn announce(core: Arc<Core>, interval: Duration, stop: CancellationToken) {
    let mut next = Instant::now();
    while !stop.is_cancelled() {
        tokio::select! {
            () = core.announce.notified() => {}
            () = stop.cancelled() => return,
        }
        sleep_until(next).await;
        next = Instant::now() + interval;
        match core.background().await {
            Ok(client) => {
                core.store.hint(&client, Hint::Appended(core.identity.id)).await;
                client.give_back_untouched();
            }
            Err(error) => debug!(error = %chain(&error), "a notification was not sent"),
        }
    }
}

const CONNECT: Duration = Duration::from_secs(10);
const RECONNECT: Duration = Duration::from_secs(1);

/// Listens until it is told to stop.
async fn listen(core: Arc<Core>, stop: CancellationToken) {
    tokio::select! {
        never = hear(&core) => match never {},
        () = stop.cancelled() => {}
    }
}

/// Listens for as long as it is polled, where that can be done at all, and wakes whoever waits here.
pub(crate) async fn hear(core: &Core) -> Infallible {
    if core.signals.notify.is_none() || core.store.path == Path::Pooled {
        return pending().await;
    }
    loop {
        if let Err(error) = listen_once(core).await {
            warn!(error = %chain(&error), "listening ended, the timer looks meanwhile");
        }
        sleep(RECONNECT).await;
    }
}

async fn listen_once(core: &Core) -> Result<(), StoreError> {
    let connecting = tokio::time::timeout(CONNECT, core.store.config.connect(NoTls));
    let (client, mut connection) =
        connecting.await.map_err(|_| StoreError::Timeout { what: "connecting", after: CONNECT })??;
    let states = Hint::States.to_payload();
    // What was appended here, who waits here has heard of already.
    let own = core.signals.in_process.then(|| Hint::Appended(core.identity.id).to_payload());
    let hearing = async {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message? {
                AsyncMessage::Notification(heard) if heard.payload() == states => core.states_changed.wake(),
                AsyncMessage::Notification(heard) if Some(heard.payload()) == own.as_deref() => {}
                AsyncMessage::Notification(_) => core.waker.wake(),
                _ => {}
            }
        }
        Ok(())
    };
    let asking = async {
        client.batch_execute(&format!("LISTEN {}", core.store.channel())).await?;
        // What was announced before we listened.
        core.waker.wake();
        core.states_changed.wake();
        pending().await
    };
    tokio::select! {
        ended = hearing => ended,
        ended = asking => ended,
    }
}
