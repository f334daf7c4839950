//! Throttling: what a replay leaves to the live system.
//!
//! A rate is kept at every moment and not just on average: what goes through at once is worth a moment of it, and time that was lost,
//! to a pause above all, is not made up for. Otherwise a replay would run at full speed just when the server had been busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::options::Throttle;
use crate::store::{Store, StoreError};

/// How often the server is asked how it does.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// What is handed on at once is worth so much time.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Positions that are read in one go.
pub(super) const SHORT_SPAN: usize = 4_096;

/// Fewer positions are not worth a statement.
const SHORTEST_SPAN: usize = 256;

/// So much of the time that was lost is made up for: sleeping takes longer than it is asked to.
const CREDIT: Duration = Duration::from_millis(40);

impl Throttle {
    /// How many events may go through at once; none for as many as there are.
    pub(crate) fn at_once(&self) -> Option<usize> {
        let limit = u128::from(self.events_per_sec?);
        let events = limit * AT_ONCE.as_millis() / Duration::from_secs(1).as_millis();
        Some(usize::try_from(events).unwrap_or(usize::MAX).max(1))
    }

    /// How many positions one statement looks at, of as many as it may. One that is in the middle of them during a pause keeps its
    /// snapshot, and with it every row that is deleted anywhere; so it is to be short enough to be read in one go.
    pub(super) fn span(&self, most: usize) -> usize {
        match self.at_once() {
            Some(events) => most.min(events.max(SHORTEST_SPAN)),
            None if self.commit_latency.is_some() || self.replication_lag.is_some() => most.min(SHORT_SPAN),
            None => most,
        }
    }
}

/// When events may go through.
#[derive(Debug)]
struct Schedule {
    events_per_sec: f64,
    /// Everything until then is spent.
    spent: Instant,
}

impl Schedule {
    fn new(events_per_sec: u32, now: Instant) -> Self {
        Self { events_per_sec: f64::from(events_per_sec.max(1)), spent: now }
    }

    /// How long so many more have to wait.
    fn wait(&mut self, events: u64, now: Instant) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "how long they may take")]
        let worth = Duration::from_secs_f64(events as f64 / self.events_per_sec);
        let begin = now.checked_sub(CREDIT).map_or(self.spent, |earliest| self.spent.max(earliest));
        self.spent = begin + worth;
        self.spent.saturating_duration_since(now)
    }
}

/// Holds a replay back.
pub(crate) struct Throttled {
    store: Arc<Store>,
    throttle: Throttle,
    schedule: Option<Schedule>,
    /// The connection that asks; none while nothing is to be asked.
    client: Option<Arc<Client>>,
    /// The question that is not answered yet.
    asking: Option<AbortOnDropHandle<Result<bool, StoreError>>>,
    asked: Option<Instant>,
}

impl Throttled {
    /// Tells where a throttle can never hold anything back.
    pub(crate) async fn new(store: &Arc<Store>, throttle: &Throttle) -> Result<Self, StoreError> {
        let schedule = throttle.events_per_sec.map(|limit| Schedule::new(limit, Instant::now()));
        let throttled = Self {
            store: store.clone(),
            throttle: throttle.clone(),
            schedule,
            client: None,
            asking: None,
            asked: None,
        };
        if throttle.replication_lag.is_some() {
            let client = store.single().await?;
            let row = store.query_one(&client, &store.sql.replication_lag, &[]).await?;
            match (row.get::<_, i64>("standbys"), row.get::<_, i64>("seen")) {
                (0, _) => warn!("no standby is connected: while that is so, the replay never pauses for one"),
                (standbys, seen) if seen < standbys => warn!(
                    standbys,
                    seen,
                    "this role may not see how far all standbys are, and the replay does not pause for those: grant it pg_read_all_stats"
                ),
                _ => {}
            }
        }
        Ok(throttled)
    }

    /// What it holds back by.
    pub(crate) fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Waits until so many more events may go through.
    pub(crate) async fn wait(&mut self, events: u64) {
        if let Some(schedule) = &mut self.schedule {
            sleep(schedule.wait(events, Instant::now())).await;
        }
    }

    /// Whether the server is busy. Then it has been left alone for a moment: ask again.
    pub(crate) async fn pauses(&mut self) -> Result<bool, StoreError> {
        let asks = self.throttle.commit_latency.is_some() || self.throttle.replication_lag.is_some();
        if !asks || self.asked.is_some_and(|asked| asked.elapsed() < PROBE_EVERY) {
            return Ok(false);
        }
        let asking = match &mut self.asking {
            Some(asking) => asking,
            none => {
                let client = match &self.client {
                    Some(client) if !client.is_closed() => client,
                    _ => self.client.insert(Arc::new(self.store.patient().await?)),
                };
                let probe = is_above(self.store.clone(), client.clone(), self.throttle.clone());
                none.insert(AbortOnDropHandle::new(tokio::spawn(probe)))
            }
        };
        // An answer that takes longer is one.
        let patience = self.throttle.commit_latency.unwrap_or_default().max(PROBE_EVERY);
        let Ok(answer) = timeout(patience, asking).await else { return Ok(true) };
        self.asking = None;
        let is_above = answer.expect("BUG: asking the server panicked")?;
        if is_above {
            sleep(PROBE_EVERY).await;
        } else {
            self.asked = Some(Instant::now());
        }
        Ok(is_above)
    }
}

/// Asks the server.
async fn is_above(store: Arc<Store>, client: Arc<Client>, throttle: Throttle) -> Result<bool, StoreError> {
    if let Some(limit) = throttle.commit_latency {
        let asked = Instant::now();
        store.query_one(&*client, &store.sql.probe_commit, &[]).await?;
        let latency = asked.elapsed();
        if latency > limit {
            debug!(?latency, ?limit, "the server is busy: the replay pauses");
            return Ok(true);
        }
    }
    if let Some(limit) = throttle.replication_lag {
        let row = store.query_one(&*client, &store.sql.replication_lag, &[]).await?;
        let lag = row.get::<_, Option<f64>>("lag_secs").unwrap_or_default();
        if lag > limit.as_secs_f64() {
            debug!(lag, ?limit, "a standby lags behind: the replay pauses");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets the live system breathe while shards write: one shard at a time, small pieces of work, and after each of them nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Breaths(Arc<Mutex<()>>);

/// For every moment of work, so many of rest.
const REST: u32 = 1;

/// Whoever waited for a lock has not worked all the time.
const LONGEST_REST: Duration = Duration::from_millis(100);

impl Breaths {
    /// Waits for its turn, in no transaction: the server knows nothing of turns, so whoever waited for one with a lock in hand
    /// might wait for ever for somebody who waits for that lock.
    pub(super) async fn turn(&self) -> Turn {
        Turn { _turn: self.0.clone().lock_owned().await }
    }
}

/// That it is a shard's turn to write.
pub(super) struct Turn {
    _turn: OwnedMutexGuard<()>,
}

impl Turn {
    /// Does a small piece of work, and rests.
    pub(super) async fn take<T>(&self, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        sleep((begun.elapsed() * REST).min(LONGEST_REST)).await;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes through at a thousand events a second, in so many milliseconds from `from` on, by pieces of 20.
    fn through(schedule: &mut Schedule, started: Instant, from: u64, millis: u64) -> u64 {
        let end = started + Duration::from_millis(from + millis);
        let mut now = started + Duration::from_millis(from);
        let mut events = 0;
        loop {
            now += schedule.wait(20, now);
            if now > end {
                return events;
            }
            events += 20;
        }
    }

    #[test]
    fn time_that_was_lost_is_not_made_up_for() {
        let started = Instant::now();
        let mut schedule = Schedule::new(1_000, started);
        assert_eq!(through(&mut schedule, started, 0, 1_000), 1_000);
        // The last of those waits until 1,020. Then nothing for a minute.
        assert_eq!(through(&mut schedule, started, 60_000, 1_000), 1_000 + 40);
        // Sleeping took a little longer: that is made up for.
        let now = started + Duration::from_mins(2);
        schedule.wait(20, now);
        let late = schedule.wait(20, now) + Duration::from_millis(30);
        assert_eq!(schedule.wait(20, now + late), Duration::ZERO);
    }

    #[test]
    fn what_goes_through_at_once_is_worth_a_moment() {
        let at_once = |events_per_sec| Throttle { events_per_sec, ..Throttle::default() }.at_once();
        assert_eq!(at_once(None), None);
        assert_eq!(at_once(Some(1)), Some(1));
        assert_eq!(at_once(Some(50_000)), Some(1_000));
        let span = |events_per_sec, commit_latency, most| {
            Throttle { events_per_sec, commit_latency, replication_lag: None }.span(most)
        };
        assert_eq!(span(None, None, 32_768), 32_768);
        assert_eq!(span(None, Some(AT_ONCE), 32_768), 4_096);
        assert_eq!(span(Some(50_000), Some(AT_ONCE), 32_768), 1_000);
        assert_eq!((span(Some(1), None, 32_768), span(Some(1), None, 100)), (256, 100));
    }
}
