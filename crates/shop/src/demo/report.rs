//! The report: what the demo ends with, for people and for pipelines.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::check::Findings;

/// All figures of one demo.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests that customers sent, not counting the retries.
    pub requests: u64,
    /// Requests without the answer that they should have had, also after the one retry.
    pub failed: u64,
    /// Requests that the balancer sent a second time, since the first instance answered 503.
    pub retried: u64,
    /// The longest time for which the balancer held a request back: because nobody was ready, which it puts up with for two
    /// seconds, or before it sent it a second time, which it does a tenth of a second after the 503.
    pub longest_wait_ms: f64,
    /// Reads, sent to the old release in the moment of the switch, that did not show what the same customer had just written
    /// through the new one.
    pub stale_reads: u64,
    /// Requests a second while there was load.
    pub requests_per_sec: f64,
    /// What the checker found.
    #[serde(flatten)]
    pub findings: Findings,
    /// The longest gap between two acknowledged writes around the switch.
    pub write_pause_ms: f64,
    /// How long the activation itself held up the writers, as it says.
    pub activation_pause_ms: f64,
    /// Events that were replayed beside the live read models, before the switch.
    pub events_in_log_before_replay: u64,
    /// How many requests each release served, over time.
    pub releases: Vec<Slice>,
    /// How long each phase took.
    pub phases: Vec<Phase>,
    /// How long all of it took.
    pub duration_secs: f64,
    /// The first few requests that failed, in words.
    pub failures: Vec<String>,
}

/// Requests served in half a second.
#[derive(Debug, Clone, Serialize)]
pub struct Slice {
    /// When it began, counted from the first request.
    pub at_ms: u64,
    /// By release 1.
    pub release_1: u64,
    /// By release 2.
    pub release_2: u64,
}

/// One phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub secs: f64,
}

impl Report {
    /// Whether the promise was kept.
    pub fn is_clean(&self) -> bool {
        self.failed == 0 && self.findings.is_clean()
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().context("the report needs a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn print(&self) {
        let Findings { events_appended, events_projected, lost, duplicated, rows_wrong, .. } = &self.findings;
        let [release_1, release_2] = self
            .releases
            .iter()
            .fold([0, 0], |[one, two], slice| [one + slice.release_1, two + slice.release_2]);
        let table = table(&[
            ("requests", format!("{} ({:.0} a second)", self.requests, self.requests_per_sec)),
            ("  served by release 1", release_1.to_string()),
            ("  served by release 2", release_2.to_string()),
            ("  sent a second time after a 503", self.retried.to_string()),
            ("  held back by the balancer at most", format!("{:.1} ms", self.longest_wait_ms)),
            ("  that read what was old", self.stale_reads.to_string()),
            ("failed", self.failed.to_string()),
            ("events in the log", events_appended.to_string()),
            ("events projected", events_projected.to_string()),
            ("lost", lost.to_string()),
            ("duplicated", duplicated.to_string()),
            ("rows wrong", rows_wrong.to_string()),
            ("longest gap between two writes", format!("{:.1} ms", self.write_pause_ms)),
            ("  of which the activation", format!("{:.1} ms", self.activation_pause_ms)),
        ]);
        anstream::println!("\n{table}\n");
        let models: Vec<(&str, String)> = self
            .findings
            .read_models
            .iter()
            .map(|model| (model.table.as_str(), said_of(model.rows, model.rows_wrong)))
            .collect();
        anstream::println!("{}\n", self::table(&models));
        let phases: Vec<(&str, String)> =
            self.phases.iter().map(|phase| (phase.name, format!("{:.1} s", phase.secs))).collect();
        anstream::println!("{}\n", self::table(&phases));
        for wrong in self.failures.iter().chain(&self.findings.examples) {
            anstream::println!("  \x1b[31m{wrong}\x1b[0m");
        }
        let verdict = if self.is_clean() {
            "\x1b[32mNo request failed, nothing was lost, nothing was projected twice, every row is right.\x1b[0m"
        } else {
            "\x1b[31mThe promise was broken.\x1b[0m"
        };
        anstream::println!("{verdict}");
    }
}

fn said_of(rows: u64, wrong: u64) -> String {
    if wrong == 0 {
        format!("{rows} rows, all as the log says")
    } else {
        format!("{rows} rows, {wrong} wrong")
    }
}

fn table(rows: &[(&str, String)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    for (what, value) in rows {
        table.add_row([*what, value.as_str()]);
    }
    if let Some(values) = table.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    table
}
