//! For which projectors there is something in the log.
//!
//! Whoever watches the end of the log tells for all processes. An append of this process tells at once, without a look: it knows its
//! events.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::projector::Registered;
use crate::projector::configuration::Configuration;
use crate::wake::{Waker, Woken};
use crate::words::position::Position;
use crate::words::state::Delivery;

/// The background projectors of an instance, each with what wakes it.
#[derive(Debug)]
pub(crate) struct Due {
    projectors: Vec<(Arc<Registered>, Waker)>,
    /// The newest event that was appended here.
    newest: AtomicI64,
}

impl Due {
    pub(crate) fn of(configuration: &Configuration) -> Self {
        let background = configuration
            .projectors
            .values()
            .filter(|registered| registered.target.delivery == Delivery::Background);
        Self {
            projectors: background.map(|registered| (registered.clone(), Waker::new())).collect(),
            newest: AtomicI64::new(Position::START.get()),
        }
    }

    /// Registers interest in what is there for a projector. Nobody tells one that appends keep current.
    pub(crate) fn register(&self, registered: &Registered) -> Woken {
        let own = self.projectors.iter().find(|(own, _)| own.target.projector == registered.target.projector);
        own.map_or_else(Waker::new, |(_, waker)| waker.clone()).register()
    }

    /// There are events of these types; of any, if none are named.
    pub(crate) fn wake(&self, types: Option<&[String]>) {
        for (registered, waker) in &self.projectors {
            let is_concerned =
                types.is_none_or(|types| types.iter().any(|event_type| registered.handles(event_type)));
            if is_concerned {
                waker.wake();
            }
        }
    }

    /// Events of these types, up to a position, were committed here.
    pub(crate) fn appended(&self, types: &[String], up_to: Position) {
        self.newest.fetch_max(up_to.get(), Ordering::Relaxed);
        self.wake(Some(types));
    }

    /// The log may be another one when it can be looked at again.
    pub(crate) fn forget(&self) {
        self.newest.store(Position::START.get(), Ordering::Relaxed);
    }

    /// Whether an event was committed here that lies above a horizon: then an append before it is in flight.
    pub(crate) fn lies_above(&self, horizon: Position) -> bool {
        self.newest.load(Ordering::Relaxed) > horizon.get()
    }
}
