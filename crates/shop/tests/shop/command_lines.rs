//! Every command line that the pages and the manifests show can be typed as it stands.

use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use shop::command_line::{Command, CommandLine};

fn read(file: &str) -> String {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

const JOB: &str = "deploy/kubernetes/activate-job.yaml";
const DEPLOYMENT: &str = "deploy/kubernetes/deployment.yaml";

/// Where a page says what is to be filled in, something is.
fn filled_in(word: &str) -> Option<String> {
    match word {
        "PROJECTOR" => Some("orders".to_owned()),
        "VERSION" => Some("1.0.0".to_owned()),
        "N" => Some("1".to_owned()),
        "[PROJECTOR].." => None,
        _ => Some(word.replace("$(POD_IP)", "10.0.0.7")),
    }
}

fn parse(line: &[String]) -> Result<CommandLine, clap::Error> {
    CommandLine::try_parse_from(std::iter::once("shop".to_owned()).chain(line.iter().cloned()))
}

/// What Changeover's own binary offers: what needs no projector.
fn parse_by(program: &str, words: &[&str]) -> Result<(), String> {
    let line: Vec<String> = words.iter().filter_map(|word| filled_in(word)).collect();
    let parsed = parse(&line).map_err(|error| error.to_string())?;
    match parsed.command {
        Command::Changeover(command) if program == "changeover" && command.needs_projectors() => {
            Err(format!("{} needs the shop's own binary", command.name()))
        }
        Command::Serve { .. } | Command::Demo(_) if program == "changeover" => {
            Err("only the shop's own binary has it".to_owned())
        }
        _ => Ok(()),
    }
}

fn is_command(name: &str) -> bool {
    CommandLine::command().get_subcommands().any(|command| command.get_name() == name)
}

fn is_option(name: &str) -> bool {
    let all = CommandLine::command();
    let has =
        |command: &clap::Command| command.get_arguments().any(|argument| argument.get_long() == Some(name));
    has(&all) || all.get_subcommands().any(has)
}

/// Whether what a page quotes can be typed, and whether it is a command line at all.
fn check(quoted: &str) -> Result<bool, String> {
    if let Some(list) = quoted.strip_prefix("args: ") {
        let words: Vec<String> = serde_json::from_str(list).map_err(|error| error.to_string())?;
        return parse_by("shop", &words.iter().map(String::as_str).collect::<Vec<_>>()).map(|()| true);
    }
    let words: Vec<&str> = quoted.split_whitespace().collect();
    match words[..] {
        [program @ ("shop" | "changeover"), ref line @ ..] if !line.is_empty() => {
            parse_by(program, line).map(|()| true)
        }
        // Alone it is a word; what else it takes is not said.
        [name] if is_command(name) => Ok(true),
        [name, ..] if is_command(name) => parse_by("shop", &words).map(|()| true),
        [option, ..] if option.starts_with("--") => {
            let name = option.trim_start_matches("--");
            if is_option(name) { Ok(true) } else { Err(format!("no command has an option {option}")) }
        }
        _ => Ok(false),
    }
}

/// What a page quotes: between backticks, and in its blocks for a shell, line by line.
fn quoted(page: &str) -> Vec<String> {
    let (mut quoted, mut block) = (Vec::new(), None);
    let mut text = String::new();
    for line in page.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(language), None) => block = Some(language),
            (Some(_), Some(_)) => block = None,
            (None, None) => text = text + line + "\n",
            // Of what else is typed there, others know the options.
            (None, Some("sh")) if line.starts_with("shop ") || line.starts_with("changeover ") => {
                quoted.push(line.split(" #").next().unwrap_or_default().trim().to_owned());
            }
            (None, Some(_)) => {}
        }
    }
    quoted.extend(text.split('`').skip(1).step_by(2).map(str::to_owned));
    quoted
}

#[test]
fn every_command_line_of_the_pages_can_be_typed() {
    for (page, at_least) in [("README.md", 40), ("deploy/README.md", 12), ("CHANGELOG.md", 20)] {
        let mut seen = 0;
        for quoted in quoted(&read(page)) {
            match check(&quoted) {
                Ok(is_one) => seen += usize::from(is_one),
                Err(error) => panic!("{page}: `{quoted}` cannot be typed as it stands: {error}"),
            }
        }
        assert!(seen >= at_least, "only {seen} were found in {page}: it is not read any more");
    }
}

#[test]
fn a_command_line_that_cannot_be_typed_is_found() {
    for wrong in [
        "shop promote",
        "changeover replay",
        "changeover serve",
        "skip orders",
        "adopt PROJECTOR",
        "--wait-for-pods",
        "args: [\"rolback\"]",
        "replay orders --restart --folow",
    ] {
        assert!(check(wrong).is_err(), "{wrong}");
    }
    assert_eq!(
        quoted("a `b` c\n```sh\nshop status # what\nmake --help\n```\n`d\n e`"),
        ["shop status", "b", "d\n e"]
    );
    assert_eq!(check("order_summary_v2"), Ok(false));
}

/// The rows of the README's table of commands, each with what it says of projectors.
#[test]
fn the_readme_says_of_every_command_whether_it_needs_projectors() {
    let readme = read("README.md");
    let rows =
        readme.lines().skip_while(|line| *line != "| command | what it does | needs projectors |").skip(2);
    let mut named = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let line = cells[0].trim_matches('`');
        let words: Vec<String> = line.split_whitespace().filter_map(filled_in).collect();
        let Command::Changeover(command) = parse(&words).unwrap().command else { panic!("{line}") };
        let said = match cells.get(2).copied().unwrap_or_default() {
            "yes" => true,
            "" => false,
            "yes; not with `--between`" => {
                let between = [&words[..], &["--between", "1.0.0", "2.0.0"].map(str::to_owned)].concat();
                let Command::Changeover(command) = parse(&between).unwrap().command else { panic!("{line}") };
                assert!(!command.needs_projectors());
                true
            }
            other => panic!("{line}: {other}"),
        };
        assert_eq!(command.needs_projectors(), said, "{line}");
        named.push(command.name());
    }
    let all = CommandLine::command();
    let missing = all.get_subcommands().map(clap::Command::get_name);
    let missing: Vec<&str> =
        missing.filter(|name| !["serve", "demo"].contains(name) && !named.contains(name)).collect();
    assert_eq!(missing, [""; 0]);
}

/// The lists of arguments in a manifest, and after how many spaces each begins: in one line, or one argument a line.
fn arguments(manifest: &str) -> Vec<Vec<String>> {
    let mut lists = Vec::new();
    let mut lines = manifest.lines().peekable();
    while let Some(line) = lines.next() {
        match line.trim_start().strip_prefix("args:").map(str::trim) {
            Some("") => {
                let deep = line.len() - line.trim_start().len();
                let mut list = Vec::new();
                while let Some(line) = lines.next_if(|line| line.len() - line.trim_start().len() > deep) {
                    if let Some(argument) = line.trim_start().strip_prefix("- ") {
                        list.push(argument.trim_matches('"').to_owned());
                    }
                }
                lists.push(list);
            }
            Some(list) => lists.push(serde_json::from_str(list).unwrap()),
            None => {}
        }
    }
    lists
}

fn value<'m>(manifest: &'m str, key: &str) -> &'m str {
    let mut found =
        manifest.lines().filter_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix(':'));
    let value = found.next().unwrap_or_else(|| panic!("no {key}")).trim();
    assert_eq!(found.next(), None, "{key} is there twice");
    value
}

#[test]
fn the_manifests_start_the_shop_with_what_it_understands() {
    let typed = |manifest: &str| -> Vec<CommandLine> {
        let lines = arguments(&read(manifest));
        let filled =
            lines.iter().map(|line| line.iter().filter_map(|word| filled_in(word)).collect::<Vec<_>>());
        filled
            .map(|line| parse(&line).unwrap_or_else(|error| panic!("{manifest}: {line:?}: {error}")))
            .collect()
    };
    let [migrate, activate] = &typed(JOB)[..] else { panic!("{JOB}") };
    assert!(matches!(migrate.command, Command::Changeover(changeover_cli::Command::Migrate)));
    let Command::Changeover(changeover_cli::Command::ActivateConfiguration(activate)) = &activate.command
    else {
        panic!("{activate:?}")
    };
    let [serve] = &typed(DEPLOYMENT)[..] else { panic!("{DEPLOYMENT}") };
    let Command::Serve { listen } = serve.command else { panic!("{serve:?}") };

    // Numbers that belong together.
    let (job, deployment) = (read(JOB), read(DEPLOYMENT));
    assert_eq!(value(&deployment, "containerPort"), listen.port().to_string());
    assert_eq!(value(&deployment, "maxSurge"), "100%");
    assert_eq!(value(&deployment, "replicas"), activate.switch.wait_for_instances.to_string());
    let memory = 1 << 30;
    assert!(job.contains("memory: 1Gi") && activate.switch.pace.memory < memory, "{activate:?}");
    let deadline = value(&job, "activeDeadlineSeconds");
    assert_eq!(deadline, value(&deployment, "progressDeadlineSeconds"));
    // Containers are told apart by name where it is decided whether to try again.
    for name in job.lines().filter_map(|line| line.trim().strip_prefix("containerName: ")) {
        assert!(job.contains(&format!("- name: {name}\n")), "{name}");
    }
}
