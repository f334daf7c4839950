//! The map of the library in ARCHITECTURE.md: it names every module, and imports go from its bottom to its top, never back.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The modules of the table, in its order.
fn map() -> Vec<String> {
    let text = fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let table =
        text.split_once("Inside `crates/changeover/src`:\n\n").unwrap().1.split_once("\n\n").unwrap().0;
    let modules = table.lines().skip(2).flat_map(|line| {
        let names = line.trim_start_matches("| ").split(" | ").next().unwrap();
        names
            .split(", ")
            .map(|name| name.trim_matches('`').trim_end_matches('/').to_owned())
            .collect::<Vec<_>>()
    });
    modules.collect()
}

/// The files of the library, each with the module that it is in.
fn files(folder: &Path, module: Option<&str>, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = module.unwrap_or(&name);
        if path.is_dir() {
            files(&path, Some(module), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && module != "lib" {
            found.push((module.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The modules that a text imports: but for comments, and for tests of its own.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let code = code.lines().map(|line| line.split("//").next().unwrap());
    let name = |at: &str| at.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
    code.flat_map(|line| line.split("crate::").skip(1).map(name).collect::<Vec<_>>()).collect()
}

#[test]
fn the_map_names_every_module_and_imports_go_one_way() {
    let map = map();
    let place = |module: &str| map.iter().position(|known| known == module);
    let mut found = Vec::new();
    files(&workspace().join("crates/changeover/src"), None, &mut found);
    let modules: BTreeSet<&String> = found.iter().map(|(module, _)| module).collect();
    assert_eq!(modules, map.iter().collect(), "the modules, and those on the map");
    let mut back = Vec::new();
    for (module, text) in &found {
        for import in imports(text) {
            if modules.contains(&import) && place(&import) > place(module) {
                back.push(format!("{module} imports {import}, which stands below it"));
            }
        }
    }
    assert!(back.is_empty(), "{back:#?}");
}
