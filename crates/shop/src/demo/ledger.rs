//! The ledger: every append that was acknowledged. What is in it must be in the log, once, and in every read model.

use std::sync::Mutex;
use std::time::Instant;

use uuid::Uuid;

/// Events of one stream whose append was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The order.
    pub order: Uuid,
    /// The revision of the last of the events.
    pub revision: i64,
    /// Their positions, in order.
    pub positions: Vec<i64>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Mutex<Vec<Acknowledged>>,
    writes: Mutex<Vec<Instant>>,
}

impl Ledger {
    /// Notes an append.
    pub(crate) fn note(&self, acknowledged: Acknowledged) {
        self.entries.lock().expect("nobody panics here").push(acknowledged);
    }

    /// Notes an append that a client waited for, and when it was acknowledged.
    pub(crate) fn note_write(&self, acknowledged: Acknowledged) {
        self.note(acknowledged);
        self.writes.lock().expect("nobody panics here").push(Instant::now());
    }

    pub(crate) fn entries(&self) -> Vec<Acknowledged> {
        self.entries.lock().expect("nobody panics here").clone()
    }

    /// The longest gap between two writes, one acknowledged after the other, of those that touch a span of time.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> f64 {
        let mut writes = self.writes.lock().expect("nobody panics here").clone();
        writes.sort_unstable();
        let gaps = writes.windows(2).filter(|gap| gap[1] >= from && gap[0] <= to);
        gaps.map(|gap| (gap[1] - gap[0]).as_secs_f64() * 1_000.0).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_longest_gap_is_the_one_around_the_switch() {
        let ledger = Ledger::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        // Acknowledgements come in any order; a longer gap long before has nothing to do with the switch.
        ledger.writes.lock().unwrap().extend([0, 500, 510, 520, 600, 530, 610].map(at));
        let gap = ledger.longest_gap(at(540), at(560));
        assert!((gap - 70.0).abs() < 0.001, "{gap}");
        assert!((ledger.longest_gap(at(400), at(560)) - 500.0).abs() < 0.001);
        assert!(ledger.longest_gap(at(700), at(800)).abs() < 0.001);
    }
}
