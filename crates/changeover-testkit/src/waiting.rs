//! Waiting for what offers no signal.
//!
//! A test that can wait for a signal (a notification, a channel, a lock) should. The rest is polled at a
//! short interval, here and nowhere else, always with a limit.

use std::future::Future;
use std::panic::Location;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Long enough to leave the CPU to whoever we are waiting for, short enough not to be noticed.
pub(crate) const INTERVAL: Duration = Duration::from_millis(5);

/// What a condition of [`eventually`] may return: a `bool`, or an `Option` whose value is then handed on.
pub trait Condition {
    /// What is known once the condition holds.
    type Found;

    /// The value, if the condition holds.
    fn found(self) -> Option<Self::Found>;
}

impl Condition for bool {
    type Found = ();

    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Condition for Option<T> {
    type Found = T;

    fn found(self) -> Option<T> {
        self
    }
}

/// Asks every few milliseconds until the condition holds, and returns what it found.
///
/// For things that offer no signal; where there is one, wait for that. The condition is asked at least once.
/// `timeout` covers the condition itself too, so one that hangs (a query to a frozen server) does not hang
/// the test.
///
/// # Panics
/// When the condition does not hold within `timeout`. The message names the line that called.
///
/// ```no_run
/// # use std::time::Duration;
/// # use changeover_testkit::eventually;
/// # async fn example(client: &tokio_postgres::Client) {
/// // A condition that is true or false ..
/// eventually(Duration::from_secs(5), || async { client.is_closed() }).await;
///
/// // .. and one that finds something.
/// let pid: i32 = eventually(Duration::from_secs(5), || async {
///     let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
///     client.query_opt(waiting, &[]).await.unwrap().map(|row| row.get(0))
/// })
/// .await;
/// # }
/// ```
#[track_caller]
pub fn eventually<F, Fut>(
    timeout: Duration,
    mut condition: F,
) -> impl Future<Output = <Fut::Output as Condition>::Found>
where
    F: FnMut() -> Fut,
    Fut: Future<Output: Condition>,
{
    let caller = Location::caller(); // Here and not in the future: that one is polled by the runtime.
    async move {
        let polling = async {
            loop {
                if let Some(found) = condition().await.found() {
                    return found;
                }
                tokio::time::sleep(INTERVAL).await;
            }
        };
        let found = tokio::time::timeout(timeout, polling).await;
        found.unwrap_or_else(|_| panic!("the condition at {caller} did not hold within {timeout:?}"))
    }
}

/// The same for the threads of our own and for destructors: it blocks, and reports `what` did not come.
pub(crate) fn block_until(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition() {
        ensure!(Instant::now() < deadline, "waited {timeout:?} in vain for {what}");
        thread::sleep(INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(40);

    #[tokio::test]
    async fn a_condition_is_asked_until_it_holds() {
        let mut asked = 0;
        let found = eventually(Duration::from_secs(5), || {
            asked += 1;
            std::future::ready((asked == 3).then_some("found"))
        })
        .await;
        assert_eq!((found, asked), ("found", 3));
    }

    #[tokio::test]
    #[should_panic(expected = "waiting.rs")]
    async fn a_condition_that_never_holds_panics_and_names_the_caller() {
        eventually(SHORT, || async { false }).await;
    }

    #[tokio::test]
    #[should_panic(expected = "did not hold within 40ms")]
    async fn a_condition_that_hangs_panics_too() {
        eventually(SHORT, std::future::pending::<bool>).await;
    }
}
