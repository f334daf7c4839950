//! Running the programs and looking at what they say.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use changeover::{Changeover, Expected, StreamName};
use changeover_testkit::{Database, eventually};
use serde_json::Value;

// The very projectors of the example that the tests run.
#[path = "../../examples/host/orders.rs"]
pub(crate) mod orders;

use self::orders::OrderEvent;
use crate::hints;

pub(crate) const SOON: Duration = Duration::from_mins(1);

/// A program to be run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    url: Option<String>,
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) line: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    /// The `changeover` binary.
    pub(crate) fn changeover() -> Self {
        Self { path: env!("CARGO_BIN_EXE_changeover").into(), arguments: Vec::new(), url: None }
    }

    /// The example host, in one of its releases. `cargo test` builds it beside the binary, unless told to build one test
    /// target alone.
    pub(crate) fn host(release: u8) -> Self {
        let path = Path::new(env!("CARGO_BIN_EXE_changeover")).with_file_name("examples").join("host");
        assert!(path.exists(), "{} is missing: cargo build --example host", path.display());
        Self { path, arguments: vec!["--release".to_owned(), release.to_string()], url: None }
    }

    pub(crate) fn on(mut self, database: &Database) -> Self {
        self.url = Some(database.url());
        self
    }

    pub(crate) fn at(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// To be spawned in whatever way.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).args(line.split_whitespace());
        // On a machine that stands still for a while, a pause that is to end well must not end by its deadline.
        let pauses =
            ["activate-configuration", "deactivate ", "upgrade"].iter().any(|verb| line.starts_with(verb));
        if pauses && self.url.is_some() && !line.contains("--pause-limit") {
            command.args(["--pause-limit", "10s"]);
        }
        for name in ["DATABASE_URL", "CHANGEOVER_SCHEMA", "CHANGEOVER_LOG", "COLUMNS"] {
            command.env_remove(name);
        }
        if let Some(url) = &self.url {
            command.env("DATABASE_URL", url);
        }
        command.env("CHANGEOVER_REQUESTED_BY", "tester").stdin(Stdio::null());
        command
    }

    /// Runs it to its end. Whatever it hints at must exist.
    pub(crate) fn run(&self, line: &str) -> Ran {
        let mut command = self.command(line);
        let output = tokio::task::block_in_place(|| command.output());
        let Output { status, stdout, stderr } = output.expect("the program must start");
        let text = |bytes| String::from_utf8(bytes).expect("what is printed must be text");
        let ran =
            Ran { line: line.to_owned(), code: status.code(), stdout: text(stdout), stderr: text(stderr) };
        hints::check(&ran.stdout);
        hints::check(&ran.stderr);
        ran
    }
}

impl Ran {
    /// Asserts how it ended.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// The one document on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// The stable word for what went wrong.
    #[track_caller]
    pub(crate) fn kind(&self) -> String {
        self.json()["error"]["kind"].as_str().unwrap_or_else(|| panic!("no error in {self}")).to_owned()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, code, stdout, stderr } = self;
        write!(
            f,
            "$ {line}\nexit code {}\n",
            code.map_or_else(|| "none".to_owned(), |code| code.to_string())
        )?;
        write!(f, "--- stdout\n{stdout}--- stderr\n{stderr}")
    }
}

/// Compares with the reviewed file; `INSTA_UPDATE=always` writes it anew. What differs from run to run is taken out.
pub(crate) fn golden(name: &str, text: impl std::fmt::Display) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (varies, stands_for) in [
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[id]"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "[time]"),
        (r#""(\w+_(?:ms|secs))": [0-9.e-]+"#, r#""$1": [number]"#),
        (r#""(generation|pid)": -?\d+"#, r#""$1": [number]"#),
        (r"generation -?\d+", "generation [number]"),
        (r"pid \d+", "pid [number]"),
        (r"pg_terminate_backend\(\d+\)", "pg_terminate_backend([number])"),
        (r"\d+\.\d+ ?ms", "[time]"),
        (r"\d+(\.\d+)?m?s: ", "[time]: "),
        // The column with it is as wide as it is.
        (r"\d+(\.\d)? (?:s|min) ago", "[time] ago"),
        (r"RETIRED +SIZE", "RETIRED     SIZE"),
        (r"\d+\.\d s", "[time]"),
        (r"( +)\[time\] +[\d,]+\n", "  [time]  [number]\n"),
    ] {
        settings.add_filter(varies, stands_for);
    }
    let text = without_pace(&text.to_string());
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Progress is said again after some seconds, and with its pace where that can be told: on a slow machine.
fn without_pace(text: &str) -> String {
    let what = |line: &str| {
        let waits =
            ["replaying ", "folding ", "waiting for transactions"].iter().any(|what| line.starts_with(what));
        waits.then(|| line.split(':').next().unwrap_or_default().to_owned())
    };
    let mut lines: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n') {
        let mut line = line.to_owned();
        if let Some(said) = what(&line) {
            if lines.last().and_then(|last| what(last)) == Some(said) {
                lines.pop();
            }
            let parts = line.split(", ").filter(|part| !part.ends_with("events/s"));
            line = parts.collect::<Vec<_>>().join(", ");
        }
        lines.push(line);
    }
    lines.concat()
}

#[test]
fn the_pace_of_a_machine_is_in_no_golden_file() {
    let slow = "a\nreplaying orders 2.0.0: at 0 of 1,300, 1,300 behind\n\
        replaying orders 2.0.0: at 1,300 of 1,300, 1,200 events/s, caught up\nreplaying totals 1.0.0: at 1 of 1, caught up\n";
    let fast = "a\nreplaying orders 2.0.0: at 1,300 of 1,300, caught up\nreplaying totals 1.0.0: at 1 of 1, caught up\n";
    assert_eq!(without_pace(slow), fast);
    assert_eq!(without_pace(fast), fast);
}

/// An instance of a release, in this process; the schema is there.
pub(crate) async fn instance(database: &Database, release: u8) -> Changeover {
    let builder = Changeover::builder(database.config())
        .application("host", &format!("{release}.0.0"))
        .configuration(orders::configuration(release).unwrap());
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

pub(crate) fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

pub(crate) fn placed(cents: i64) -> OrderEvent {
    OrderEvent::Placed { customer: "Ada".to_owned(), cents }
}

pub(crate) async fn place(changeover: &Changeover, orders: std::ops::Range<u32>) {
    for order in orders {
        changeover.append(&stream(&format!("order-{order}")), Expected::Any, &[placed(100)]).await.unwrap();
    }
}

/// A database on which release 1 is active and caught up with some orders.
pub(crate) async fn release_1_is_active(orders: u32) -> Database {
    let database = Database::fresh().await;
    let changeover = instance(&database, 1).await;
    let running = changeover.start();
    place(&changeover, 0..orders).await;
    caught_up(&changeover).await;
    running.stop().await;
    database
}

pub(crate) async fn caught_up(changeover: &Changeover) {
    let horizon = changeover.horizon().await.unwrap();
    for projector in ["orders", "totals"] {
        changeover.wait_for(&projector.parse().unwrap(), horizon, SOON).await.unwrap();
    }
}

/// Waits until `totals` stands still at an order that it cannot project, and returns that order's position.
pub(crate) async fn stalled(changeover: &Changeover) -> i64 {
    eventually(SOON, || async {
        let status = changeover.status().await.unwrap();
        let mut stalls =
            status.projectors.iter().filter_map(|projector| projector.tables.as_ref()?.stalled.clone());
        stalls.find_map(|stall| stall.position).map(changeover::Position::get)
    })
    .await
}
