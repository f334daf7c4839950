//! The subject of the measurements: orders, and projectors of them.

use changeover::semver::Version;
use changeover::{Configuration, Delivery, Fold, FoldProjector, Recorded, Row, StreamName};
use serde::{Deserialize, Serialize};

/// What happens to an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum OrderEvent {
    OrderPlaced { customer: String, note: String },
    ItemAdded { article: String, cents: i64 },
}

/// An order with so many events.
pub(crate) fn order(events: usize) -> Vec<OrderEvent> {
    let placed = OrderEvent::OrderPlaced {
        customer: "Ada Lovelace".to_owned(),
        note: "to be delivered to the neighbours if nobody answers the door".to_owned(),
    };
    let item = |number: usize| OrderEvent::ItemAdded {
        article: format!("article {number}, as described in the catalogue of this year's spring"),
        cents: 1_995,
    };
    std::iter::once(placed).chain((1..events).map(item)).collect()
}

/// A name that no stream has.
pub(crate) fn new_stream() -> StreamName {
    format!("order-{:012}", crate::measure::unique()).parse().expect("BUG: a name of ours is none")
}

/// One row for each order.
#[derive(Row, Clone, Debug)]
#[row(table = "orders")]
pub(crate) struct Order {
    #[row(key)]
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) items: i32,
    pub(crate) cents: i64,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
        match &event.data {
            OrderEvent::OrderPlaced { customer, .. } => {
                Some(Order { id: id.clone(), customer: customer.clone(), items: 0, cents: 0 })
            }
            OrderEvent::ItemAdded { cents, .. } => {
                row.map(|row| Order { items: row.items + 1, cents: row.cents + cents, ..row })
            }
        }
    }
}

/// Orders in the background, in as many versions as there are numbers.
pub(crate) struct Orders<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for Orders<MAJOR> {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order,);
}

/// The same inline.
pub(crate) struct InlineOrders<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for InlineOrders<MAJOR> {
    const NAME: &'static str = "inline_orders";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = OrderEvent;
    type Tables = (Order,);
}

/// One projector of orders in the background.
pub(crate) fn background() -> Configuration {
    fold(Configuration::new(), Orders::<1>)
}

/// One projector of orders inline.
pub(crate) fn inline() -> Configuration {
    fold(Configuration::new(), InlineOrders::<1>)
}

fn fold(configuration: Configuration, projector: impl FoldProjector) -> Configuration {
    configuration.fold(projector).expect("BUG: a projector of ours does not fit a configuration")
}

/// How many releases [`release`] knows.
pub(crate) const RELEASES: u64 = 16;

/// A release of the application: both projectors, in the major version of that number.
pub(crate) fn release(number: u64) -> Configuration {
    macro_rules! releases {
        ($($major:literal)*) => {
            match number {
                $($major => fold(fold(Configuration::new(), Orders::<$major>), InlineOrders::<$major>),)*
                _ => panic!("BUG: there is no release {number}"),
            }
        };
    }
    releases!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
}

/// What happens elsewhere in the application.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum VisitEvent {
    Visited { page: String },
}

/// One row for each visitor.
#[derive(Row, Clone, Debug)]
#[row(table = "visitors")]
pub(crate) struct Visitor {
    #[row(key)]
    pub(crate) id: String,
    pub(crate) pages: i32,
}

impl Fold for Visitor {
    type Event = VisitEvent;

    fn keys(_event: &VisitEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(row: Option<Self>, id: &String, event: &Recorded<VisitEvent>) -> Option<Self> {
        let VisitEvent::Visited { .. } = &event.data;
        let pages = row.map_or(0, |row| row.pages);
        Some(Visitor { id: id.clone(), pages: pages + 1 })
    }
}

macro_rules! fifteen_more {
    ($($name:literal $projector:ident $of_visits:ident)*) => {
        $(
            struct $projector;

            impl FoldProjector for $projector {
                const NAME: &'static str = $name;
                const VERSION: Version = Version::new(1, 0, 0);
                type Event = OrderEvent;
                type Tables = (Order,);
            }

            struct $of_visits;

            impl FoldProjector for $of_visits {
                const NAME: &'static str = $name;
                const VERSION: Version = Version::new(1, 0, 0);
                type Event = VisitEvent;
                type Tables = (Visitor,);
            }
        )*

        /// Sixteen projectors in the background, of which one handles what happens to orders.
        pub(crate) fn sixteen() -> Configuration {
            let configuration = background();
            $(let configuration = fold(configuration, $of_visits);)*
            configuration
        }

        /// Sixteen projectors in the background, all of which handle what happens to orders.
        pub(crate) fn sixteen_alike() -> Configuration {
            let configuration = background();
            $(let configuration = fold(configuration, $projector);)*
            configuration
        }
    };
}

fifteen_more! {
    "more_1" Orders1 Visits1
    "more_2" Orders2 Visits2
    "more_3" Orders3 Visits3
    "more_4" Orders4 Visits4
    "more_5" Orders5 Visits5
    "more_6" Orders6 Visits6
    "more_7" Orders7 Visits7
    "more_8" Orders8 Visits8
    "more_9" Orders9 Visits9
    "more_10" Orders10 Visits10
    "more_11" Orders11 Visits11
    "more_12" Orders12 Visits12
    "more_13" Orders13 Visits13
    "more_14" Orders14 Visits14
    "more_15" Orders15 Visits15
}
