//! How it is measured: short rounds of everything that is compared, in turn, and the median of each.
//!
//! A machine is never alone, and it is not the same machine a minute later. Whatever is compared therefore takes turns, in
//! rounds so short that both meet the same weather.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::{BoxFuture, try_join_all};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Rounds of each variant in a comparison.
    pub(crate) rounds: usize,
    /// How long one round takes.
    pub(crate) round: Duration,
    /// Stretches of paced load for a latency, each with its own percentiles.
    pub(crate) stretches: usize,
    /// How long one of them takes.
    pub(crate) stretch: Duration,
    /// Upgrades for each size of the log.
    pub(crate) upgrades: u64,
    /// Events in the large log.
    pub(crate) large_log: i64,
}

impl Effort {
    /// What `make bench` spends.
    pub(crate) const FULL: Self = Self {
        rounds: 21,
        round: Duration::from_millis(500),
        stretches: 7,
        stretch: Duration::from_secs(3),
        upgrades: 12,
        large_log: 1_000_000,
    };

    /// Enough to see that everything runs; its figures mean little.
    pub(crate) const QUICK: Self = Self {
        rounds: 5,
        round: Duration::from_millis(200),
        stretches: 2,
        stretch: Duration::from_millis(1_500),
        upgrades: 3,
        large_log: 50_000,
    };
}

/// The values of several rounds.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// In ascending order.
    ///
    /// # Panics
    ///
    /// When there are none: a figure without a measurement is a mistake.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "BUG: nothing was measured");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The smallest value that at least this share of all values does not exceed.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    /// What the middle half lies between.
    pub(crate) fn spread(&self) -> [f64; 2] {
        [self.percentile(0.25), self.percentile(0.75)]
    }
}

/// One way of doing what is compared: runs one round of it and says what came out.
pub(crate) type Variant<'v, T> = Box<dyn Fn() -> BoxFuture<'v, Result<T>> + 'v>;

/// Takes `rounds` rounds of each variant, in turn, and one of each before that counts for nothing.
pub(crate) async fn in_turn<T, const N: usize>(
    rounds: usize,
    variants: [Variant<'_, T>; N],
) -> Result<[Vec<T>; N]> {
    let mut values = [const { Vec::new() }; N];
    for round in 0..=rounds {
        // Nobody is always the first, nor always the one after another.
        let mut order: Vec<usize> = (0..N).collect();
        order.rotate_left(round % N);
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let value = variants[at]().await?;
            if round > 0 {
                values[at].push(value);
            }
        }
    }
    Ok(values)
}

/// What one variant makes of another in the same round.
pub(crate) fn ratios(values: &[f64], baseline: &[f64]) -> Samples {
    Samples::new(values.iter().zip(baseline).map(|(value, baseline)| value / baseline).collect())
}

/// A number that no other call was ever given.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// So many clients, each doing one thing after the other: how many things they did in a second.
pub(crate) async fn closed_loop<F, Fut>(clients: usize, round: Duration, act: F) -> Result<f64>
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let started = Instant::now();
    let clients = (0..clients).map(|_| {
        let act = act.clone();
        tokio::spawn(async move {
            let mut done = 0_u32;
            while started.elapsed() < round {
                act().await?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for client in try_join_all(clients).await? {
        done += client?;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// So many things a second, begun on time whatever became of the ones before. Ends when all of them have.
pub(crate) async fn open_loop<F, Fut, T>(per_second: u32, stretch: Duration, act: F) -> Result<Vec<T>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut acts = JoinSet::new();
    let started = Instant::now();
    while started.elapsed() < stretch {
        ticks.tick().await;
        acts.spawn(act());
    }
    acts.join_all().await.into_iter().collect()
}

/// Open-loop load beside whatever is being watched, until it is told to stop.
pub(crate) struct Load<T> {
    stop: Arc<tokio::sync::Notify>,
    task: tokio::task::JoinHandle<Result<Vec<T>>>,
}

impl<T: Send + 'static> Load<T> {
    /// Starts so many things a second.
    pub(crate) fn start<F, Fut>(per_second: u32, act: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        let stop = Arc::new(tokio::sync::Notify::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut acts = JoinSet::new();
            loop {
                tokio::select! {
                    _ = ticks.tick() => drop(acts.spawn(act())),
                    () = stopped.notified() => break,
                }
            }
            acts.join_all().await.into_iter().collect()
        });
        Self { stop, task }
    }

    /// Stops, waits for what was begun, and gives what came out.
    pub(crate) async fn stop(self) -> Result<Vec<T>> {
        self.stop.notify_one();
        self.task.await?
    }
}

/// In milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
