//! What is left for tables that the version before goes on with, if nothing comes of the activation.
//!
//! A minor version takes over the tables as they are. Where it is fed inline and the one before was not, the rest of the log has to
//! be in them at the switch. It is the new code that projects it; so that is committed with the switch, or not at all.

use std::sync::Arc;
use std::time::Instant;

use deadpool_postgres::{Client, Transaction};
use postgres_types::ToSql;
use tokio::time::sleep;
use tracing::warn;

use super::ending::overtaken;
use super::pause::{DRAIN_POLL, deadline, has_switched};
use super::{ActivateError, Change, Started};
use crate::admission::Permit;
use crate::core::Core;
use crate::horizon::Look;
use crate::log::read::Limits;
use crate::projector::{Registered, chain};
use crate::replayer::{ReplayError, failed};
use crate::step::{self, StepError, Stepped, UpTo};
use crate::store::{StoreError, read_committed};
use crate::wake::Hint;

/// Feeds the rest of the log into the tables that are taken over, and switches, in one transaction; then sets the generation.
/// Returns when all was fed.
///
/// Nothing but the rows and checkpoints of these tables is locked before the switch, so the pause can be given back
/// meanwhile. Whoever stops between the switch and the commit is ended by the server: every batch sets a limit.
pub(super) async fn feed_and_switch(
    core: &Core,
    client: &Client,
    activation: Started,
    change: &Change,
    permit: Permit,
    look: Look,
) -> Result<Instant, ActivateError> {
    let mut feed = Feed { core, client, activation, permit, look, taken: 0, one_by_one_from: usize::MAX };
    loop {
        let mut own = core.background().await?;
        let tx = read_committed(&mut own).await?;
        match feed.all(&tx, &change.feed_in_place).await {
            Ok(()) => {}
            Err(Stopped::Again) => continue,
            Err(Stopped::For(error)) => return Err(error),
        }
        let all_in = Instant::now();
        let params: [&(dyn ToSql + Sync); 4] = [&activation.id, &activation.token, &look.newest, &look.at];
        let switched = core.store.query_one(&tx, &core.store.sql.switch, &params).await?;
        if !has_switched(&switched, change) {
            tx.rollback().await.map_err(StoreError::from)?;
            return Err(overtaken(core, client, activation).await?);
        }
        tx.commit().await.map_err(StoreError::from)?;
        announce(core, client).await;
        return Ok(all_in);
    }
}

/// The switch is committed: tells everybody. Without the new generation they look again a little later.
async fn announce(core: &Core, client: &Client) {
    if let Err(error) = core.store.query_one(client, &core.store.sql.set_generation, &[]).await {
        warn!(error = %chain(&error), "switched, but the generation was not set");
    }
    core.store.hint(client, Hint::States).await;
}

/// Why a transaction does not come to its switch.
enum Stopped {
    /// A batch failed and may succeed in another one, or shows there which event is at fault.
    Again,
    For(ActivateError),
}

impl<E: Into<ActivateError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::For(error.into())
    }
}

/// Feeding, in as many attempts as it takes.
struct Feed<'a> {
    core: &'a Core,
    client: &'a Client,
    activation: Started,
    permit: Permit,
    look: Look,
    /// How many batches this attempt has taken.
    taken: usize,
    /// From which batch on each event is a batch of its own, because that one failed.
    one_by_one_from: usize,
}

impl Feed<'_> {
    async fn all(&mut self, tx: &Transaction<'_>, tables: &[Arc<Registered>]) -> Result<(), Stopped> {
        self.taken = 0;
        for registered in tables {
            self.one(tx, registered).await?;
        }
        Ok(())
    }

    async fn one(&mut self, tx: &Transaction<'_>, registered: &Registered) -> Result<(), Stopped> {
        loop {
            let one_by_one = self.taken >= self.one_by_one_from;
            let limits = if one_by_one { Limits { rows: 1, ..Limits::BATCH } } else { Limits::BATCH };
            let up_to = UpTo::Exactly(self.look.newest);
            match step::take(&self.core.store, tx, self.permit, registered, up_to, limits).await {
                // Inline rows are current: appends kept them so, and none is in flight.
                Ok(Stepped::Nothing { .. } | Stepped::Inline) => return Ok(()),
                Ok(Stepped::Moved { .. }) => self.taken += 1,
                Ok(Stepped::Busy) => sleep(DRAIN_POLL).await,
                // Some other state changed; or the pause was given back, which this asks.
                Ok(Stepped::Stale(seen)) => {
                    let until = deadline(self.core, self.client, self.activation).await?;
                    self.permit = Permit { generation: seen, until: Some(until), attempt: None };
                }
                Ok(Stepped::Stalled(error)) => {
                    let (projector, version) = registered.id();
                    return Err(ReplayError::Stalled { projector, version, error }.into());
                }
                Err(StepError::Project { source, .. }) if source.is_retryable() => {
                    return Err(Stopped::Again);
                }
                Err(StepError::Project { source, events, .. }) if events > 1 && !source.is_outage() => {
                    self.one_by_one_from = self.taken;
                    return Err(Stopped::Again);
                }
                Err(error) => return Err(failed(registered, error).into()),
            }
        }
    }
}
