//! Wake-up signals: hints that something may have happened. Losing one costs latency and nothing else.

use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

/// Which signals wake a publisher. Any combination works; the default is all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signals {
    /// Appends of this process wake its own publisher.
    pub in_process: bool,
    /// Appends are announced to other processes by NOTIFY, at most once in this interval, and theirs are listened to.
    /// Behind a transaction pooler nothing is delivered: then it is left out by itself.
    pub notify: Option<Duration>,
    /// The log is looked at in this interval whatever else happens.
    pub timer: Option<Duration>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            in_process: true,
            notify: Some(Duration::from_millis(2)),
            timer: Some(Duration::from_millis(100)),
        }
    }
}

/// What one process tells the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something was appended, by this instance.
    Appended(Uuid),
    /// The states of projectors changed.
    States,
}

impl Hint {
    /// The words, as a notification carries them.
    pub(crate) fn to_payload(self) -> String {
        match self {
            Self::Appended(by) => format!("appended {by}"),
            Self::States => "states".to_owned(),
        }
    }
}

/// Wakes a publisher: for signals of the host's own.
///
/// ```no_run
/// # async fn example(changeover: changeover::Changeover) {
/// let waker = changeover.waker();
/// // Whatever the host hears of:
/// waker.wake();
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Waker {
    count: watch::Sender<u64>,
}

impl Waker {
    pub(crate) fn new() -> Self {
        Self { count: watch::Sender::new(0) }
    }

    /// Something may have been appended.
    pub fn wake(&self) {
        self.count.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Registers interest. To be called before the query: a wake-up during it is then not lost.
    pub(crate) fn register(&self) -> Woken {
        let mut receiver = self.count.subscribe();
        receiver.mark_unchanged();
        Woken(receiver)
    }
}

/// An interest in wake-ups.
#[derive(Debug)]
pub(crate) struct Woken(watch::Receiver<u64>);

impl Woken {
    /// What was woken for until now is about to be looked at.
    pub(crate) fn served(&mut self) {
        self.0.mark_unchanged();
    }

    /// Returns at the first wake-up since the interest was registered or last served.
    pub(crate) async fn woken(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody can wake us any more; whoever waits has a timer or a stop beside this.
            std::future::pending::<()>().await;
        }
    }
}

/// The pauses between two looks for the end of an append in flight, which nobody tells: they double, from 1 to 50 ms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InFlight(Duration);

impl InFlight {
    const MOST: Duration = Duration::from_millis(50);
    const FIRST: Duration = Duration::from_millis(1);

    /// Something happened: from the shortest one on.
    pub(crate) fn anew() -> Self {
        Self(Self::FIRST)
    }

    /// The next one.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = Self::MOST.min(pause * 2);
        pause
    }
}

/// Sleeps for a time, or for ever.
pub(crate) async fn sleep_for(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_all_three_signals_wake() {
        let Signals { in_process, notify, timer } = Signals::default();
        assert!(in_process && notify.is_some() && timer.is_some());
    }

    #[test]
    fn the_end_of_an_append_in_flight_is_looked_for_less_and_less_often() {
        let mut in_flight = InFlight::anew();
        let pauses: Vec<u128> = (0..8).map(|_| in_flight.pause().as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 50, 50]);
        assert_eq!(InFlight::anew().pause().as_millis(), 1);
    }

    #[tokio::test]
    async fn a_wake_up_between_registering_and_waiting_is_not_lost() {
        let waker = Waker::new();
        let mut woken = waker.register();
        waker.wake();
        woken.woken().await;
    }

    #[tokio::test]
    async fn a_wake_up_before_registering_is_not_seen() {
        let waker = Waker::new();
        waker.wake();
        let mut woken = waker.register();
        let waited = tokio::time::timeout(Duration::from_millis(1), woken.woken()).await;
        assert!(waited.is_err());
    }
}
