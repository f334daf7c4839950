//! What comes out: a line of JSON for each figure, and a table for people.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::measure::Samples;

/// Where the lines go, below the directory that `make` is run in.
const FILE: &str = "target/bench.jsonl";

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// The ratio is to be at least this.
    RatioAtLeast(f64),
    /// The ratio is to be at most this.
    RatioAtMost(f64),
    /// The value is to be at most this.
    AtMost(f64),
    /// It is there to be read beside the others.
    None,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: &'static str,
    params: Map<String, Value>,
    value: f64,
    unit: &'static str,
    /// The same, measured on the raw database or without what is being tried, in the same run.
    baseline: Option<f64>,
    ratio: Option<f64>,
    goal: Option<String>,
    met: Option<bool>,
    /// What the middle half of all rounds lies between: of the ratio where there is one, else of the value.
    spread: [f64; 2],
}

impl Figure {
    /// A figure that is compared: the medians, and the spread of the ratio from round to round.
    pub(crate) fn compared(
        name: &'static str,
        params: Value,
        unit: &'static str,
        (value, baseline): (&[f64], &[f64]),
        goal: Goal,
    ) -> Self {
        let spread = crate::measure::ratios(value, baseline).spread();
        let (value, baseline) =
            (Samples::new(value.to_vec()).median(), Samples::new(baseline.to_vec()).median());
        Self::new(name, params, (value, unit), Some(baseline), spread, goal)
    }

    /// A figure that was taken once from all rounds, perhaps with something to hold it against.
    pub(crate) fn new(
        name: &'static str,
        params: Value,
        (value, unit): (f64, &'static str),
        baseline: Option<f64>,
        spread: [f64; 2],
        goal: Goal,
    ) -> Self {
        let Value::Object(params) = params else { panic!("BUG: the conditions of a figure have names") };
        let ratio = baseline.map(|baseline| value / baseline);
        let (goal, met) = match goal {
            Goal::RatioAtLeast(goal) => (Some(format!("ratio >= {goal}")), ratio.map(|ratio| ratio >= goal)),
            Goal::RatioAtMost(goal) => (Some(format!("ratio <= {goal}")), ratio.map(|ratio| ratio <= goal)),
            Goal::AtMost(goal) => (Some(format!("value <= {goal}")), Some(value <= goal)),
            Goal::None => (None, None),
        };
        Self { name, params, value, unit, baseline, ratio, goal, met, spread }
    }
}

/// Collects the figures of a run.
pub(crate) struct Report {
    file: File,
    figures: Vec<Figure>,
}

impl Report {
    /// Begins a new file.
    pub(crate) fn begin() -> Result<Self> {
        fs::create_dir_all("target")?;
        let file = File::create(FILE).with_context(|| format!("cannot write {FILE}"))?;
        Ok(Self { file, figures: Vec::new() })
    }

    /// Writes a figure down at once: a run that is stopped keeps what it has measured.
    pub(crate) fn add(&mut self, figure: Figure) -> Result<()> {
        let line = serde_json::to_string(&figure)?;
        writeln!(self.file, "{line}")?;
        eprintln!("{}", row(&figure).join("  "));
        self.figures.push(figure);
        Ok(())
    }

    /// The table, and how many goals were met.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "figure",
            "conditions",
            "value",
            "raw or without",
            "ratio",
            "middle half",
            "goal",
            "",
        ]);
        for figure in &self.figures {
            table.add_row(row(figure));
        }
        for column in 2..=5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let judged = self.figures.iter().filter_map(|figure| figure.met);
        let (met, all) = judged.fold((0, 0), |(met, all), this| (met + usize::from(this), all + 1));
        format!("{table}\n{met} of {all} goals met; every figure is a line of {FILE}")
    }
}

fn row(figure: &Figure) -> [String; 8] {
    let conditions: Vec<String> = figure
        .params
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            value => format!("{name} {value}"),
        })
        .collect();
    let [low, high] = figure.spread;
    [
        figure.name.to_owned(),
        conditions.join(", "),
        format!("{} {}", number(figure.value), figure.unit),
        figure.baseline.map_or_else(String::new, number),
        figure.ratio.map_or_else(String::new, number),
        format!("{} .. {}", number(low), number(high)),
        figure.goal.clone().unwrap_or_default(),
        figure.met.map_or("", |met| if met { "yes" } else { "NO" }).to_owned(),
    ]
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
