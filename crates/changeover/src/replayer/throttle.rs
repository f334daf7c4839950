//! Throttling: what the bulk of a replay leaves to the live system.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::debug;

use super::options::Throttle;
use crate::store::{Store, StoreError};

/// How often the server is asked how it does.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// Holds a replay back.
pub(super) struct Throttled<'s> {
    store: &'s Store,
    throttle: &'s Throttle,
    /// The connection that asks; none where nothing is to be asked.
    client: Option<Client>,
    started: Instant,
    events: u64,
    probed: Option<Instant>,
}

impl<'s> Throttled<'s> {
    pub(super) async fn new(store: &'s Store, throttle: &'s Throttle) -> Result<Self, StoreError> {
        let asks = throttle.commit_latency.is_some() || throttle.replication_lag.is_some();
        let client = if asks { Some(store.single().await?) } else { None };
        Ok(Self { store, throttle, client, started: Instant::now(), events: 0, probed: None })
    }

    /// Waits until so many more events may be handed on.
    pub(super) async fn pass(&mut self, events: u64) -> Result<(), StoreError> {
        self.events += events;
        if let Some(limit) = self.throttle.events_per_sec {
            #[expect(clippy::cast_precision_loss, reason = "an estimate of how long they may take")]
            let due = Duration::from_secs_f64(self.events as f64 / f64::from(limit.max(1)));
            sleep(due.saturating_sub(self.started.elapsed())).await;
        }
        let Some(client) = &self.client else { return Ok(()) };
        while self.probed.is_none_or(|probed| probed.elapsed() >= PROBE_EVERY) {
            if !self.is_above(client).await? {
                self.probed = Some(Instant::now());
                break;
            }
            sleep(PROBE_EVERY).await;
        }
        Ok(())
    }

    async fn is_above(&self, client: &Client) -> Result<bool, StoreError> {
        if let Some(limit) = self.throttle.commit_latency {
            let asked = Instant::now();
            self.store.query_one(client, &self.store.sql.probe_commit, &[]).await?;
            let latency = asked.elapsed();
            if latency > limit {
                debug!(?latency, ?limit, "the server is busy: the replay pauses");
                return Ok(true);
            }
        }
        if let Some(limit) = self.throttle.replication_lag {
            let row = self.store.query_one(client, &self.store.sql.replication_lag, &[]).await?;
            let lag = row.get::<_, Option<f64>>("lag_secs").unwrap_or_default();
            if lag > limit.as_secs_f64() {
                debug!(lag, ?limit, "a standby lags behind: the replay pauses");
                return Ok(true);
            }
        }
        Ok(false)
    }
}
