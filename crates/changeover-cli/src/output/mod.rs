//! What is printed: results to standard output, everything else to standard error.

pub(crate) mod json;
mod lines;
pub(crate) mod progress;
pub(crate) mod tables;
pub(crate) mod upgrades;
pub(crate) mod verified;

use std::io::{self, Write};

use serde_json::Value;

use crate::exit::{Exit, Failure};

/// What a command has to say.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) exit: Exit,
    /// For people.
    pub(crate) text: String,
    /// For pipelines.
    pub(crate) json: Value,
}

impl Report {
    pub(crate) fn done(text: impl Into<String>, json: Value) -> Self {
        Self { exit: Exit::Done, text: text.into(), json }
    }
}

/// Prints a result.
pub(crate) fn finished(json: bool, report: &Report) -> Exit {
    let text = if json { json::document(&report.json) } else { report.text.clone() };
    match print(&text) {
        Ok(()) => report.exit,
        Err(error) => {
            let failure =
                Failure::new(Exit::Failed, "io", format!("the result could not be printed: {error}"));
            to_stderr(&failure.text());
            failure.exit
        }
    }
}

/// Prints why there is none.
pub(crate) fn failed(json: bool, failure: &Failure) -> Exit {
    to_stderr(&failure.text());
    if json {
        failed_json(failure);
    }
    failure.exit
}

/// The same, for pipelines alone.
pub(crate) fn failed_json(failure: &Failure) {
    // What failed is told by the exit code and on standard error as well.
    let _ = print(&json::document(&json::error(failure)));
}

/// Whoever reads may have read enough, as `head` has: that is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Nobody can be told that standard error is gone.
pub(crate) fn to_stderr(text: &str) {
    let _ = progress::bars().suspend(|| io::stderr().write_all(text.as_bytes()));
}

/// Text from elsewhere, in one line and without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
