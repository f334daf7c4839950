//! Orders: what can happen to one, and what may be done with it when.

use changeover::{AppendError, Appended, Changeover, Expected, ReadError, Recorded, Revision, StreamName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What happens to an order. Each order has a stream of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderEvent {
    /// Somebody wants something.
    OrderPlaced {
        /// Who.
        customer: String,
    },
    /// And this as well.
    ItemAdded {
        /// What.
        sku: String,
        /// How many pieces.
        quantity: i32,
        /// The price of one piece.
        cents: i64,
    },
    /// The money has come in.
    OrderPaid,
    /// It is on its way.
    OrderShipped,
    /// Nobody wants it any more.
    OrderCancelled,
}

/// The stream of an order.
#[expect(clippy::missing_panics_doc, reason = "it never does")]
pub fn stream_of(order: Uuid) -> StreamName {
    format!("order-{order}").parse().expect("BUG: a short name without NUL is a stream's name")
}

/// The order that a stream belongs to; none if it is another kind of stream.
pub fn order_of(stream: &StreamName) -> Option<Uuid> {
    stream.as_str().strip_prefix("order-")?.parse().ok()
}

/// An order, as far as a decision needs it.
#[derive(Debug, Default)]
pub struct Order {
    revision: Revision,
    items: usize,
    paid: bool,
    shipped: bool,
    cancelled: bool,
}

impl Order {
    fn after(mut self, event: &Recorded<OrderEvent>) -> Self {
        match event.data {
            OrderEvent::OrderPlaced { .. } => {}
            OrderEvent::ItemAdded { .. } => self.items += 1,
            OrderEvent::OrderPaid => self.paid = true,
            OrderEvent::OrderShipped => self.shipped = true,
            OrderEvent::OrderCancelled => self.cancelled = true,
        }
        self.revision = event.revision;
        self
    }

    /// Adds an item.
    pub fn add_item(&self, item: OrderEvent) -> Result<OrderEvent, OrderError> {
        self.still_open()?;
        Ok(item)
    }

    /// Notes that it was paid.
    pub fn pay(&self) -> Result<OrderEvent, OrderError> {
        self.still_open()?;
        let empty = OrderError::Refused("the order is empty: there is nothing to pay");
        if self.items == 0 { Err(empty) } else { Ok(OrderEvent::OrderPaid) }
    }

    /// Notes that it was shipped.
    pub fn ship(&self) -> Result<OrderEvent, OrderError> {
        match (self.paid, self.shipped) {
            (true, false) => Ok(OrderEvent::OrderShipped),
            (false, _) => Err(OrderError::Refused("the order was not paid: it cannot be shipped")),
            (true, true) => Err(OrderError::Refused("the order was shipped already")),
        }
    }

    /// Cancels it.
    pub fn cancel(&self) -> Result<OrderEvent, OrderError> {
        self.still_open()?;
        Ok(OrderEvent::OrderCancelled)
    }

    fn still_open(&self) -> Result<(), OrderError> {
        if self.cancelled {
            return Err(OrderError::Refused("the order was cancelled"));
        }
        if self.paid { Err(OrderError::Refused("the order was paid already")) } else { Ok(()) }
    }
}

/// Why an order is as it was.
#[derive(Debug)]
pub enum OrderError {
    /// There is no such order.
    NotFound,
    /// The rules do not allow it.
    Refused(&'static str),
    /// It could not be read.
    Read(ReadError),
    /// Nothing could be appended.
    Append(AppendError),
}

/// Places an order, with all its items at once.
pub async fn place(changeover: &Changeover, id: Uuid, events: &[OrderEvent]) -> Result<Appended, OrderError> {
    changeover.append(&stream_of(id), Expected::NoStream, events).await.map_err(OrderError::Append)
}

/// Changes an order: reads it, decides, and appends what was decided, unless somebody else changed it in between; then
/// decides anew.
pub async fn change(
    changeover: &Changeover,
    id: Uuid,
    decide: impl Fn(&Order) -> Result<OrderEvent, OrderError>,
) -> Result<Appended, OrderError> {
    const TRIES: usize = 5;
    let stream = stream_of(id);
    let mut tries = 0;
    loop {
        let order = read(changeover, &stream).await?;
        let event = decide(&order)?;
        tries += 1;
        match changeover.append(&stream, Expected::Exactly(order.revision), &[event]).await {
            Err(AppendError::Conflict { .. }) if tries < TRIES => {}
            appended => return appended.map_err(OrderError::Append),
        }
    }
}

async fn read(changeover: &Changeover, stream: &StreamName) -> Result<Order, OrderError> {
    const PAGE: usize = 1_000;
    let mut order = Order::default();
    loop {
        let page = changeover.read_stream(stream, order.revision, PAGE).await.map_err(OrderError::Read)?;
        order = page.iter().fold(order, Order::after);
        if page.len() < PAGE {
            break;
        }
    }
    if order.revision == Revision::default() { Err(OrderError::NotFound) } else { Ok(order) }
}
