//! Where the programs are that we run.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

/// A program on the `PATH`, or among those for administrators, which Debian leaves out of it. A path is taken
/// as it is.
pub(crate) fn find(name: impl AsRef<Path>) -> Result<PathBuf> {
    let name = name.as_ref();
    if name.components().count() > 1 {
        return Ok(name.into());
    }
    path()
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("there is no program `{}` here (run .ci/setup)", name.display()))
}

/// The folder of the server's programs: of the server on the `PATH`, or else the newest of Debian's.
pub(crate) fn of_postgresql() -> Result<PathBuf> {
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort_unstable_by(|a, b| b.cmp(a));
    path()
        .chain(debian.into_iter().map(|(_, folder)| folder))
        // On the PATH there may be no more than a link to the server: the rest is where it leads to.
        .filter_map(|folder| Some(folder.join("postgres").canonicalize().ok()?.parent()?.to_owned()))
        .find(|folder| folder.join("initdb").is_file())
        .context(
            "there is no PostgreSQL here: `postgres` and `initdb` are neither on the PATH \
             nor in /usr/lib/postgresql (run .ci/setup)",
        )
}

fn path() -> impl Iterator<Item = PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>().into_iter()
}
