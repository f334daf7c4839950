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

/// The background projectors of an instance.
#[derive(Debug)]
pub(crate) struct Due(Vec<OfOne>);

#[derive(Debug)]
struct OfOne {
    registered: Arc<Registered>,
    waker: Waker,
    /// The newest event that was appended here and that it handles.
    newest: AtomicI64,
}

impl Due {
    pub(crate) fn of(configuration: &Configuration) -> Self {
        let background = configuration
            .projectors
            .values()
            .filter(|registered| registered.target.delivery == Delivery::Background);
        let nothing = |registered: &Arc<Registered>| OfOne {
            registered: registered.clone(),
            waker: Waker::new(),
            newest: AtomicI64::new(Position::START.get()),
        };
        Self(background.map(nothing).collect())
    }

    fn own(&self, registered: &Registered) -> Option<&OfOne> {
        self.0.iter().find(|own| own.registered.target.projector == registered.target.projector)
    }

    /// Those that handle one of these types; all of them, if none are named.
    fn concerned<'d>(&'d self, types: Option<&'d [String]>) -> impl Iterator<Item = &'d OfOne> {
        self.0.iter().filter(move |own| {
            types.is_none_or(|types| types.iter().any(|event_type| own.registered.handles(event_type)))
        })
    }

    /// Registers interest in what is there for a projector. Nobody tells one that appends keep current.
    pub(crate) fn register(&self, registered: &Registered) -> Woken {
        self.own(registered).map_or_else(Waker::new, |own| own.waker.clone()).register()
    }

    /// There are events of these types; of any, if none are named.
    pub(crate) fn wake(&self, types: Option<&[String]>) {
        self.concerned(types).for_each(|own| own.waker.wake());
    }

    /// Events of these types, up to a position, were committed here.
    pub(crate) fn appended(&self, types: &[String], up_to: Position) {
        for own in self.concerned(Some(types)) {
            own.newest.fetch_max(up_to.get(), Ordering::Relaxed);
            own.waker.wake();
        }
    }

    /// Whether an event for a projector was committed here that lies above a horizon: then an append before it is in flight.
    pub(crate) fn lies_above(&self, horizon: Position, registered: &Registered) -> bool {
        self.own(registered).is_some_and(|own| own.newest.load(Ordering::Relaxed) > horizon.get())
    }

    /// The log may be another one when it can be looked at again.
    pub(crate) fn forget(&self) {
        self.0.iter().for_each(|own| own.newest.store(Position::START.get(), Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projector::fold::{Fold, FoldProjector};
    use crate::words::event::Recorded;
    use crate::words::names::StreamName;

    #[derive(serde::Deserialize)]
    enum Placed {
        Placed {},
    }

    #[derive(serde::Deserialize)]
    enum Paid {
        Paid {},
    }

    macro_rules! projectors {
        ($($row:ident $projector:ident $event:ident $name:literal)*) => {$(
            #[derive(changeover::Row, Clone)]
            #[row(table = "counts")]
            struct $row {
                #[row(key)]
                id: String,
            }

            impl Fold for $row {
                type Event = $event;

                fn keys($event::$event {}: &$event, stream: &StreamName) -> impl IntoIterator<Item = String> {
                    [stream.to_string()]
                }

                fn fold(_: Option<Self>, id: &String, _: &Recorded<$event>) -> Option<Self> {
                    Some(Self { id: id.clone() })
                }
            }

            struct $projector;

            impl FoldProjector for $projector {
                const NAME: &'static str = $name;
                const VERSION: semver::Version = semver::Version::new(1, 0, 0);
                type Event = $event;
                type Tables = ($row,);
            }
        )*};
    }

    projectors! {
        PlacedRow OfPlaced Placed "placed"
        PaidRow OfPaid Paid "paid"
    }

    #[tokio::test]
    async fn an_append_concerns_those_alone_who_handle_one_of_its_events() {
        let configuration = Configuration::new().fold(OfPlaced).unwrap().fold(OfPaid).unwrap();
        let due = Due::of(&configuration);
        let of = |name: &str| configuration.projectors[&name.parse().unwrap()].clone();
        let (placed, paid) = (of("placed"), of("paid"));
        let (mut for_placed, mut for_paid) = (due.register(&placed), due.register(&paid));
        let [before, at] = [6, 7].map(Position::new);
        due.appended(&["Paid".to_owned(), "Unheard".to_owned()], at);
        for_paid.woken().await;
        assert!(due.lies_above(before, &paid) && !due.lies_above(at, &paid));
        assert!(!due.lies_above(before, &placed));
        let asleep = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(asleep, for_placed.woken()).await.is_err());
        due.wake(None);
        for_placed.woken().await;
        due.forget();
        assert!(!due.lies_above(before, &paid));
    }
}
