//! A past for the shop: a log that was there before the first projector.

use std::sync::Arc;

use anyhow::Result;
use changeover::{Changeover, Expected};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::dice::Dice;
use super::ledger::{Acknowledged, Ledger};
use crate::orders::{OrderEvent, stream_of};

const CLIENTS: u64 = 4;
const ORDERS_PER_TRANSACTION: usize = 40;

/// Appends at least so many events, many orders in one transaction and several transactions at once.
pub(crate) async fn fill(changeover: &Changeover, ledger: &Arc<Ledger>, events: u64) -> Result<()> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (changeover, ledger) = (changeover.clone(), ledger.clone());
        let share = events.div_ceil(CLIENTS);
        clients.spawn(async move { fill_share(&changeover, &ledger, client, share).await });
    }
    while let Some(filled) = clients.join_next().await {
        filled??;
    }
    Ok(())
}

async fn fill_share(changeover: &Changeover, ledger: &Ledger, client: u64, events: u64) -> Result<()> {
    let mut dice = Dice::new(client + 1);
    let mut left = events;
    let mut connection = changeover.pool().get().await?;
    while left > 0 {
        let tx = connection.transaction().await?;
        let mut appended = Vec::with_capacity(ORDERS_PER_TRANSACTION);
        while appended.len() < ORDERS_PER_TRANSACTION && left > 0 {
            let (order, history) = (Uuid::now_v7(), history(&mut dice));
            let done = changeover.append_in(&tx, &stream_of(order), Expected::NoStream, &history).await?;
            left = left.saturating_sub(history.len() as u64);
            let positions = done.positions.iter().map(|position| position.get()).collect();
            appended.push(Acknowledged { order, revision: done.revision.get(), positions });
        }
        tx.commit().await?;
        for appended in appended {
            ledger.note(appended);
        }
    }
    Ok(())
}

/// What happened to one order.
fn history(dice: &mut Dice) -> Vec<OrderEvent> {
    let mut events = vec![OrderEvent::OrderPlaced { customer: dice.customer() }];
    for _ in 0..=dice.roll(12) {
        let (sku, quantity) = (dice.sku(), dice.roll(4).cast_signed() + 1);
        events.push(OrderEvent::ItemAdded { sku, quantity, cents: i64::from(dice.roll(9_900)) + 100 });
    }
    match dice.roll(10) {
        0 => events.push(OrderEvent::OrderCancelled),
        1 => {}
        2 => events.push(OrderEvent::OrderPaid),
        _ => events.extend([OrderEvent::OrderPaid, OrderEvent::OrderShipped]),
    }
    events
}
