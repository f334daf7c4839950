//! Logs go to standard error, never to standard output.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use crate::command::Options;
use crate::output::progress;

const VARIABLE: &str = "CHANGEOVER_LOG";

impl Options {
    /// Installs a subscriber that logs to standard error as the options say. Does nothing where the host has installed one.
    ///
    /// The variable `CHANGEOVER_LOG` holds another filter, in the syntax of
    /// [`tracing_subscriber`](tracing_subscriber::EnvFilter).
    pub fn init_logging(&self) {
        let given = std::env::var(VARIABLE).ok().filter(|filter| !filter.trim().is_empty());
        let (filter, wrong) = self.filter(given.as_deref());
        let installed = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_writer(|| BesideBars)
            .try_init()
            .is_ok();
        if let Some(wrong) = wrong.filter(|_| installed) {
            tracing::warn!("{VARIABLE} was ignored: {wrong}");
        }
    }

    fn filter(&self, given: Option<&str>) -> (EnvFilter, Option<String>) {
        let default = match (self.quiet, self.verbose) {
            (true, _) => "error",
            // How an activation ended is what the command itself reports.
            (false, 0) => "warn,changeover::expiry=error",
            (false, 1) => "info",
            (false, 2) => "debug",
            (false, _) => "trace",
        };
        let parsed = given.map(EnvFilter::try_new);
        let (filter, wrong) = match parsed {
            Some(Ok(filter)) => (filter, None),
            Some(Err(error)) => (EnvFilter::new(default), Some(error.to_string())),
            None => (EnvFilter::new(default), None),
        };
        if given.is_some_and(|given| given.contains("tokio_postgres")) {
            return (filter, wrong);
        }
        // It logs the parameters of statements, hence what events hold.
        let quieter: Directive = "tokio_postgres=info".parse().expect("BUG: a constant directive must parse");
        let louder =
            filter.max_level_hint().is_none_or(|level| level > tracing::level_filters::LevelFilter::INFO);
        (if louder { filter.add_directive(quieter) } else { filter }, wrong)
    }
}

/// Writes between the progress bars, not through them.
struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        progress::bars().suspend(|| io::stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_statements_are_not_logged_by_accident() {
        let check = |verbose: u8, quiet: bool, given: Option<&str>, expected: &str| {
            let options = Options { verbose, quiet, ..Options::default() };
            assert_eq!(options.filter(given).0.to_string(), expected);
        };
        check(0, false, None, "changeover::expiry=error,warn");
        check(0, true, None, "error");
        check(1, false, None, "info");
        check(2, false, None, "tokio_postgres=info,debug");
        check(0, false, Some("trace"), "tokio_postgres=info,trace");
        check(0, false, Some("tokio_postgres=debug"), "tokio_postgres=debug");
        let (filter, wrong) = Options::default().filter(Some("no=such=filter"));
        assert_eq!(filter.to_string(), "changeover::expiry=error,warn");
        assert!(wrong.is_some());
    }
}
