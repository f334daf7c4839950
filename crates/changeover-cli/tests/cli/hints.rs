//! A hint never names a command that does not exist.

use std::fs;
use std::path::{Path, PathBuf};

use changeover_cli::clap::{self, Parser, Subcommand};
use changeover_cli::{Command, Options};

/// A host that has Changeover's commands alone.
#[derive(Debug, Parser)]
#[command(name = "host")]
struct Host {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

fn exists(name: &str) -> bool {
    let all = Command::augment_subcommands(clap::Command::new("all"));
    all.get_subcommands().any(|command| command.get_name() == name)
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Asserts that what is quoted in a text can be typed as it stands, and does what it says.
#[track_caller]
pub(crate) fn check(text: &str) {
    for hint in quoted(text) {
        let line = hint.strip_prefix("changeover ").unwrap_or(hint);
        let name = line.split(' ').next().unwrap_or_default();
        assert!(exists(name), "`{hint}` names a command that does not exist: {text}");
        if line != name {
            let parsed = Host::try_parse_from(["host"].into_iter().chain(line.split(' ')));
            assert!(parsed.is_ok(), "`{hint}` cannot be typed as it stands: {parsed:?}");
        }
    }
}

/// All of the program's texts: what stands between double quotes in code that is not a test's.
fn texts(file: &Path) -> Vec<String> {
    let source = fs::read_to_string(file).unwrap();
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let (mut texts, mut text, mut escaped) = (Vec::new(), None::<String>, false);
    let code = code.join("\n").replace("'\"'", "''");
    for c in code.chars() {
        match (&mut text, c) {
            (None, '"') => text = Some(String::new()),
            (Some(_), '"') if !escaped => texts.extend(text.take()),
            (Some(text), c) => text.push(c),
            (None, _) => {}
        }
        escaped = c == '\\' && !escaped;
    }
    texts
}

fn sources(of: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The commands that a text tells its reader to run or to see, quoted or not.
fn told(text: &str) -> Vec<String> {
    let mut told = Vec::new();
    for verb in ["run ", "see ", "waits for "] {
        for (at, _) in text.match_indices(verb) {
            let before = text[..at].chars().next_back();
            let rest = text[at + verb.len()..].trim_start_matches('`');
            let rest = rest.strip_prefix("changeover ").unwrap_or(rest);
            let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            let quoted = text[at + verb.len()..].starts_with('`');
            // Without backticks it may be an ordinary word.
            if before.is_none_or(|c| !c.is_alphanumeric())
                && (quoted && !rest.starts_with('{') || name.contains('-'))
            {
                told.push(name);
            }
        }
    }
    told
}

#[test]
fn no_text_of_the_library_or_of_the_commands_names_a_command_that_does_not_exist() {
    let mut seen = 0;
    for file in ["changeover", "changeover-cli", "changeover-http"].iter().flat_map(|of| sources(of)) {
        for text in texts(&file) {
            for name in told(&text) {
                seen += 1;
                assert!(exists(&name), "{}: {text:?} tells to run {name:?}", file.display());
            }
            for hint in quoted(&text).into_iter().filter(|hint| !hint.starts_with('{')) {
                let line = hint.strip_prefix("changeover ").unwrap_or(hint);
                let name = line.split(' ').next().unwrap();
                seen += 1;
                assert!(exists(name), "{}: {text:?} names {hint:?}", file.display());
            }
        }
    }
    assert!(seen > 10, "only {seen} hints were found: the texts are not read any more");
}

#[test]
fn a_hint_that_leads_nowhere_is_found() {
    let found = |text: &str| std::panic::catch_unwind(|| check(text)).is_err();
    assert!(found("see `statsu`"));
    assert!(found("run `changeover promote`"));
    assert!(found("run `skip orders`"));
    assert!(!found("run `skip orders --position 7`, `retry orders`, `changeover migrate`, or see `status`"));
    assert_eq!(told("run `promote`, then waits for activate-everything"), ["promote", "activate-everything"]);
    assert_eq!(told("run it; rerun this"), [""; 0]);
}
