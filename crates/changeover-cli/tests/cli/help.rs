//! Help, version and usage.

use changeover_cli::Command;
use changeover_cli::clap::{self, Subcommand};

use crate::program::{Program, golden};

fn names() -> Vec<String> {
    let all = Command::augment_subcommands(clap::Command::new("all"));
    all.get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_explains_itself() {
    let host = Program::host(2);
    golden("help", host.run("--help").ended(0).stdout);
    for name in names() {
        let help = host.run(&format!("{name} --help")).ended(0);
        assert!(help.stdout.contains(changeover_cli::EXIT_CODES), "{help}");
        golden(&format!("help_{name}"), help.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_offers_what_needs_no_projector() {
    let changeover = Program::changeover();
    let help = changeover.run("--help").ended(0).stdout;
    golden("help_of_the_binary", &help);
    golden(
        "help_of_the_binary_for_a_command_of_the_application",
        changeover.run("plan --help").ended(0).stdout,
    );
    assert_eq!(
        changeover.run("--version").ended(0).stdout,
        format!("changeover {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_projector_is_a_usage_error_of_the_binary() {
    let changeover = Program::changeover().at("postgres://nobody@localhost:1/none");
    for line in ["plan", "replay orders", "activate-configuration --dry-run", "adopt orders --position 1"] {
        let ran = changeover.run(line).ended(2);
        let name = line.split(' ').next().unwrap();
        assert!(ran.stderr.contains(&format!("run `{name}` of the application's own binary")), "{ran}");
        assert_eq!(ran.stdout, "");
    }
    golden("usage_error_of_the_binary", changeover.run("plan --json").ended(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_cannot_be_understood_ends_with_2() {
    let check = |program: Program, line: &str, expected: &str| {
        let ran = program.run(line).ended(2);
        assert!(ran.stderr.contains(expected), "{ran}");
        assert_eq!(ran.stdout, "", "{ran}");
    };
    let somewhere = || Program::changeover().at("postgres://nobody@localhost:1/none");
    check(somewhere(), "", "Usage: changeover");
    check(somewhere(), "promote", "unrecognized subcommand 'promote'");
    check(somewhere(), "skip orders", "--position <N>");
    check(somewhere(), "abort --no-such-option", "--no-such-option");
    check(Program::changeover(), "status", "set DATABASE_URL");
    check(Program::host(2), "status", "set DATABASE_URL");
    check(Program::changeover().at("postgres://ada:secret@:x/shop"), "status", "cannot be read");
    check(Program::host(2), "activate-configuration --pause-limit 2", "examples: 500ms, 30s, 2m");

    let ran = Program::changeover().run("--json status").ended(2);
    assert_eq!(ran.kind(), "usage");
    let secret = Program::changeover().at("postgres://ada:secret@:x/shop").run("--json status").ended(2);
    assert!(!secret.to_string().contains("secret"), "{secret}");
    let help = somewhere().run("status --help").ended(0);
    assert!(!help.to_string().contains("localhost:1"), "{help}");
}
