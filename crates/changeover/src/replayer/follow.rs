//! Following: versions that have caught up stay so, until they are activated.
//!
//! What wakes it is what wakes a publisher: notifications, appends of this process, a timer underneath. Nothing is polled but
//! the end of an append that is in flight, since nobody tells when that commits.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tracing::{info, warn};

use super::begun::Begun;
use super::{
    BUSY, CaughtUp, OnProgress, ReplayError, ReplayPhase, ReplayProgress, position, refusal, step_or_name,
};
use crate::admission::Permit;
use crate::core::Core;
use crate::decider::read_states;
use crate::horizon;
use crate::projector::chain;
use crate::publisher::signals;
use crate::step::{Stepped, UpTo};
use crate::wake::{InFlight, sleep_for};
use crate::words::state::ProjectorState;

/// How often the states are looked at where no notification arrives.
const STATES: Duration = Duration::from_millis(500);

/// Follows all of them until the last one is activated. One that cannot go on ends alone; in the end it is told why.
pub(super) async fn all(
    core: &Core,
    begun: &[Begun],
    caught_up: Vec<CaughtUp>,
    on_progress: OnProgress<'_>,
) -> Result<Vec<CaughtUp>, ReplayError> {
    let following = begun.iter().zip(caught_up).map(async |(one, mut at)| {
        let followed = follow(core, one, &mut at, on_progress).await;
        if let Err(error) = &followed
            && begun.len() > 1
        {
            let (projector, version) = one.registered.id();
            // The others may go on for long.
            warn!(%projector, %version, error = %chain(error), "is followed no more; the others are");
            on_progress(&ReplayProgress { phase: ReplayPhase::Ended, ..at.progress.clone() });
        }
        followed.map(|()| CaughtUp { activated: true, ..at })
    });
    let followed = tokio::select! {
        followed = join_all(following) => followed,
        never = signals::hear(core) => match never {},
    };
    let (mut ended, mut failed) = (Vec::new(), Vec::new());
    for followed in followed {
        match followed {
            Ok(followed) => ended.push(followed),
            Err(error) => failed.push(error),
        }
    }
    match failed.len() {
        0 => Ok(ended),
        1 => Err(failed.remove(0)),
        _ => Err(ReplayError::Several(failed)),
    }
}

/// Follows one version until it is activated.
async fn follow(
    core: &Core,
    begun: &Begun,
    at: &mut CaughtUp,
    on_progress: OnProgress<'_>,
) -> Result<(), ReplayError> {
    let client = core.store.single().await?;
    let (projector, version) = begun.registered.id();
    let (started, earlier) = (Instant::now(), at.progress.elapsed);
    // Before the first look: what happens during it must not be lost.
    let (mut woken, mut states) = (core.waker.register(), core.states_changed.register());
    let mut due = core.due.register(&begun.registered);
    let mut in_flight = InFlight::anew();
    at.progress.phase = ReplayPhase::Following;
    on_progress(&at.progress);
    let mut permit: Option<(Permit, Instant)> = None;
    loop {
        if permit.is_none_or(|(_, looked)| looked.elapsed() >= STATES) {
            let (generation, states) = read_states(&core.store, &client).await?;
            let own = states.iter().find(|row| row.projector == projector && row.version == version);
            permit = match own.map(|row| row.state) {
                Some(ProjectorState::Active) => {
                    info!(%projector, %version, position = %at.progress.position, "activated: followed to the end");
                    return Ok(());
                }
                // It becomes active, or is to be fed again.
                Some(ProjectorState::Activating) => None,
                _ => {
                    if let Some(refusal) = refusal(&begun.registered, &states) {
                        return Err(refusal);
                    }
                    begun.still(&core.store, &client).await?;
                    let granted = Permit { generation, until: None, attempt: Some(begun.attempt) };
                    Some((granted, Instant::now()))
                }
            };
        }
        let mut pause = STATES;
        if let Some((granted, _)) = permit {
            let look = horizon::look(&core.store, &client).await?;
            let stepped = if look.horizon > at.progress.position {
                step_or_name(core, granted, &begun.registered, UpTo::Horizon).await?
            } else {
                Stepped::Nothing { horizon: at.progress.position }
            };
            at.progress.elapsed = earlier + started.elapsed();
            match stepped {
                Stepped::Moved { events, to, horizon } => {
                    at.progress.events += events as u64;
                    (at.progress.position, at.progress.horizon) = (to, horizon);
                    on_progress(&at.progress);
                    in_flight = InFlight::anew();
                    continue;
                }
                Stepped::Nothing { horizon } => {
                    (at.progress.position, at.progress.horizon) = (horizon, horizon);
                    pause = pause.min(core.signals.timer.unwrap_or(STATES));
                    if look.newest > look.horizon {
                        pause = pause.min(in_flight.pause());
                    }
                }
                Stepped::Busy => {
                    begun.still(&core.store, &client).await?;
                    at.progress.position = position(core, &client, &begun.registered).await?;
                    pause = BUSY;
                }
                Stepped::Stale(_) => {
                    permit = None;
                    continue;
                }
                Stepped::Stalled(error) => return Err(ReplayError::Stalled { projector, version, error }),
                Stepped::Inline => {
                    let state = "fed by appends".to_owned();
                    return Err(ReplayError::NotReplaying { projector, version, state });
                }
            }
        }
        tokio::select! {
            () = woken.woken() => in_flight = InFlight::anew(),
            () = due.woken() => in_flight = InFlight::anew(),
            () = states.woken() => permit = None,
            () = sleep_for(Some(pause)) => {}
        }
    }
}
