//! The publisher: feeds the background projectors of an instance, one transaction for each batch; and whatever has retired
//! and is followed.
//!
//! Any number of instances compete for a checkpoint; who commits did the work, so there is no leader to elect. One task
//! looks at the end of the log and wakes the projectors that handle what is new there; each projector has a task of its
//! own, so that one which is slow or stalled holds up no other.

pub(crate) mod signals;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::admission::{Permit, SHARD};
use crate::core::Core;
use crate::log::read::Limits;
use crate::projector::{Registered, chain};
use crate::step::{StepError, Stepped, UpTo, step};
use crate::store::StoreError;
use crate::wake::{InFlight, sleep_for};
use crate::words::position::Position;
use crate::words::state::Delivery;

/// How often a batch is tried before its projector is stalled, and how long the first pause between two tries is; it
/// doubles each time.
const TRIES: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// How long a projector waits before it looks again whether it may be fed at all.
const REFUSED_POLL: Duration = Duration::from_millis(500);

/// Starts publishing. The tasks end when `stop` is cancelled.
pub(crate) fn start(core: &Arc<Core>, tasks: &TaskTracker, stop: &CancellationToken) {
    let all = core.configuration.projectors.values().cloned();
    let (background, inline): (Vec<Arc<Registered>>, Vec<Arc<Registered>>) =
        all.partition(|registered| registered.target.delivery == Delivery::Background);
    signals::start(core, tasks, stop);
    // Appends keep these current while they are active; should they be followed once they have retired, they look by themselves.
    for registered in inline {
        tasks.spawn(feed(core.clone(), registered, stop.clone()));
    }
    if background.is_empty() {
        return;
    }
    tasks.spawn(tail::watch(core.clone(), stop.clone()));
    for registered in background {
        tasks.spawn(feed(core.clone(), registered, stop.clone()));
    }
}

/// What became of one try to publish.
enum Published {
    /// The checkpoint moved, and there is more.
    Some,
    /// There is nothing more up to the horizon. What comes after it is told.
    All { moved: bool, horizon: Position },
    /// Not now: another instance is at it.
    Busy,
    /// Not by us, or not until somebody retries: the states or an operator must change something.
    Refused,
}

/// Feeds one projector until it is told to stop.
async fn feed(core: Arc<Core>, registered: Arc<Registered>, stop: CancellationToken) {
    let mut due = core.due.register(&registered);
    let mut failures = Failures::default();
    let mut decisions = core.decider.decisions();
    let mut in_flight = InFlight::anew();
    while !stop.is_cancelled() {
        // Before the work: what becomes due during it must not be lost.
        due.served();
        decisions.mark_unchanged();
        let pause = match publish_next(&core, &registered, failures.limits()).await {
            Ok(Published::Some) => {
                failures.over();
                core.published.wake();
                continue;
            }
            Ok(Published::All { moved, horizon }) => {
                if moved {
                    failures.over();
                    core.published.wake();
                    in_flight = InFlight::anew();
                }
                match registered.target.delivery {
                    Delivery::Inline => Some(FOLLOWING),
                    Delivery::Background if core.due.lies_above(horizon, &registered) => {
                        Some(in_flight.pause())
                    }
                    Delivery::Background => core.signals.timer.map(|timer| timer.max(IDLE)),
                }
            }
            Ok(Published::Busy) => Some(BUSY),
            Ok(Published::Refused) => Some(REFUSED_POLL),
            Err(failed) => failures.note(&core, &registered, failed).await,
        };
        tokio::select! {
            _ = decisions.changed() => {}
            () = due.woken(), if !failures.waiting() => {}
            () = sleep_for(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// How often a projector without work moves its checkpoint to the horizon.
const IDLE: Duration = Duration::from_secs(1);

/// How often retired tables that appends kept current before are looked after.
const FOLLOWING: Duration = Duration::from_millis(100);

/// How long to wait for another instance at the same checkpoint before looking again.
const BUSY: Duration = Duration::from_millis(25);

async fn publish_next(core: &Core, registered: &Registered, limits: Limits) -> Result<Published, StepError> {
    let decided = core.decider.decided().await?;
    if !decided.publishes(registered) {
        return Ok(Published::Refused);
    }
    let client = core.background().await?;
    let permit = Permit { generation: decided.generation, until: None, attempt: None };
    Ok(match step(&core.store, client, permit, registered, UpTo::Horizon, limits).await? {
        Stepped::Moved { events, to, horizon } => {
            debug!(projector = %registered.target.projector, events, position = %to, "published");
            if to >= horizon { Published::All { moved: true, horizon } } else { Published::Some }
        }
        Stepped::Nothing { horizon } => Published::All { moved: false, horizon },
        Stepped::Busy => Published::Busy,
        Stepped::Inline | Stepped::Stalled(_) => Published::Refused,
        Stepped::Stale(seen) => {
            let decided = core.decider.after(seen).await?;
            if decided.publishes(registered) { Published::Some } else { Published::Refused }
        }
    })
}

/// What went wrong lately with one projector.
#[derive(Default)]
struct Failures {
    /// How often in a row, whoever was at fault.
    tries: u32,
    /// How often it was the projector or an event.
    at_fault: u32,
    /// A batch failed: this many events are tried one by one, so that the one at fault is named and the ones before it
    /// get in.
    one_by_one: usize,
}

impl Failures {
    fn limits(&self) -> Limits {
        if self.one_by_one > 0 { Limits { rows: 1, ..Limits::BATCH } } else { Limits::BATCH }
    }

    /// A batch got in.
    fn over(&mut self) {
        (self.tries, self.at_fault) = (0, 0);
        self.one_by_one = self.one_by_one.saturating_sub(1);
    }

    fn waiting(&self) -> bool {
        self.tries > 0
    }

    /// Notes a failure and says how long to wait before the next try.
    async fn note(&mut self, core: &Core, registered: &Registered, failed: StepError) -> Option<Duration> {
        let projector = &registered.target.projector;
        match failed {
            StepError::Store(failed) => {
                if failed.is_disconnect() {
                    core.forget();
                }
                self.tries = (self.tries + 1).min(TRIES);
                warn!(%projector, error = %chain(&failed), "publishing failed, trying again");
            }
            StepError::Project { source, .. } if source.is_retryable() => {
                self.tries = (self.tries + 1).min(TRIES);
                debug!(%projector, error = %chain(&source), "a batch lost a race, trying again");
            }
            // However long that lasts: no projector and no event is to blame for a disk that is full.
            StepError::Project { source, .. } if source.is_outage() => {
                core.forget();
                self.tries = (self.tries + 1).min(TRIES);
                warn!(%projector, error = %chain(&source), "publishing failed, trying again");
            }
            StepError::Project { events, .. } if events > 1 => {
                self.one_by_one = events;
                return Some(Duration::ZERO);
            }
            StepError::Project { after, first, source, .. } => {
                self.tries = (self.tries + 1).min(TRIES);
                self.at_fault += 1;
                if self.at_fault < TRIES {
                    warn!(%projector, position = %first.0, error = %chain(&source), "a batch failed, trying again");
                } else {
                    let (position, event_type) = source.event().map_or(first.clone(), |(p, t)| {
                        (if p == Position::START { first.0 } else { p }, t.to_owned())
                    });
                    self.stall(core, registered, after, position, &event_type, &chain(&source)).await;
                }
            }
        }
        Some(FIRST_BACKOFF * 2_u32.pow(self.tries.saturating_sub(1).min(TRIES)))
    }

    async fn stall(
        &mut self,
        core: &Core,
        registered: &Registered,
        after: Position,
        position: Position,
        event_type: &str,
        reason: &str,
    ) {
        let projector = &registered.target.projector;
        match stall(core, registered, after, position, event_type, reason).await {
            Ok(()) => {
                error!(%projector, %position, event_type, reason, "stalled: mend it and run retry, or skip the event");
                *self = Self::default();
            }
            Err(failed) => {
                info!(%projector, error = %chain(&failed), "the stall could not be written down yet");
            }
        }
    }
}

async fn stall(
    core: &Core,
    registered: &Registered,
    after: Position,
    position: Position,
    event_type: &str,
    reason: &str,
) -> Result<(), StoreError> {
    let client = core.background().await?;
    let projector = registered.target.projector.as_str();
    core.store
        .query(
            &client,
            &core.store.sql.stall,
            &[&projector, &registered.major(), &SHARD, &after, &reason, &position, &event_type],
        )
        .await?;
    client.give_back_untouched();
    Ok(())
}
