//! A directory that goes when we go, however we go.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::leash::Owner;

/// The private directory of one server.
///
/// A janitor (a shell of three lines) waits at a pipe whose other end only we hold. It reads the end of file
/// when this value is dropped, when the process returns from `main` with this value in a `static`, and when
/// the process is killed. Then it removes the directory. One way to clean up, hence one that is exercised by
/// every test.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    janitor: Child,
}

/// A frozen server cannot act upon the signal that our death sends it, so it is woken up. (The kernel wakes
/// up stopped orphans, but not those whose new parent is of the same session, as is usual in a container.)
/// The file may be one that a killed server left behind, but `CONT` does no harm to whoever has its process
/// id now.
const JANITOR: &str = r#"
read -r _
if read -r postmaster <"$1/data/postmaster.pid"; then kill -CONT "$postmaster"; fi
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" && exit; sleep 0.5; done
"#;

impl Home {
    /// Makes the directory, in `/tmp` whatever `TMPDIR` says: the path of a socket ends at 107 bytes, and the
    /// user `postgres` must be able to get there.
    pub(crate) fn new(owner: Option<&Owner>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("changeover-")
            .tempdir_in("/tmp")
            .context("cannot make a directory in /tmp")?;
        if let Some(owner) = owner {
            owner.take(directory.path())?;
        }
        let janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(directory.path())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C must not take the janitor along.
            .spawn()
            .context("cannot run /bin/sh")?;
        Ok(Self { path: directory.keep(), janitor })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // `wait` closes the pipe first, which is what the janitor waits for.
        if let Err(error) = self.janitor.wait() {
            tracing::warn!(%error, path = %self.path.display(), "cannot wait for a directory to be removed");
        }
    }
}
