//! What happens, as it happens.

use std::time::{Duration, Instant};

const PLAIN: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const RELEASES: [&str; 2] = ["\x1b[33m", "\x1b[32m"];

/// Prints lines with the time since the start, who, and what. Colours are left out where the output is not a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeline {
    started: Instant,
    silent: bool,
}

impl Timeline {
    pub(crate) fn start(silent: bool) -> Self {
        Self { started: Instant::now(), silent }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Something happened.
    pub(crate) fn say(&self, who: &str, what: &str) {
        let colour = match who.strip_prefix("release ") {
            Some(release) if release.starts_with('1') => RELEASES[0],
            Some(_) => RELEASES[1],
            None => BOLD,
        };
        self.line(colour, who, what);
    }

    /// How many requests each release served in the last second.
    pub(crate) fn traffic(&self, served: [u64; 2], failed: u64) {
        const WIDTH: u64 = 48;
        let all = served[0] + served[1];
        // A full bar for 480 requests; a second of more is not shown longer.
        let scale = 480.max(all);
        let [one, two] =
            served.map(|n| "█".repeat(usize::try_from((n * WIDTH).div_ceil(scale)).unwrap_or(0)));
        let failed = if failed == 0 { String::new() } else { format!("  {failed} FAILED") };
        let bars = format!("{}{one}{}{two}{PLAIN}", RELEASES[0], RELEASES[1]);
        self.line(DIM, "", &format!("{all:>5} requests/s {bars}{failed}"));
    }

    fn line(&self, colour: &str, who: &str, what: &str) {
        if !self.silent {
            let at = self.elapsed().as_secs_f64();
            anstream::println!("{DIM}{at:>6.2} s{PLAIN}  {colour}{who:<11}{PLAIN} {what}");
        }
    }
}
