//! Children that cannot outlive us, also when we are killed with `SIGKILL` and no destructor runs.
//!
//! The kernel does it (`PR_SET_PDEATHSIG`). Setting it from Rust takes a `pre_exec` hook, hence `unsafe`;
//! `setpriv` of util-linux sets it for us and then *becomes* the program, so the process id stays the same.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context, Result};

/// A command for `program` that gets `signal` when we die, and runs as `owner` where there is one.
///
/// It has a process group of its own: Ctrl-C reaches us only, and we decide what becomes of our children.
pub(crate) fn command(program: impl AsRef<OsStr>, signal: &str, owner: Option<&Owner>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--pdeathsig={signal}"));
    if let Some(Owner { uid, gid }) = owner {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    }
    command.arg("--").arg(program).process_group(0).stdin(Stdio::null());
    command
}

/// Spawns a [`command`].
///
/// The kernel ties a child to the *thread* that spawned it, and a test's thread ends with its test, long
/// before a shared server may. So one thread, which lives as long as the process, spawns them all.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name(SPAWNER_NAME.into())
            .spawn(move || {
                for Order { mut command, reply } in inbox {
                    // Whoever asked may have panicked meanwhile; its child is then dropped here, and lives
                    // until we end.
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("BUG: cannot start the thread that spawns children");
        orders
    });

    let (reply, child) = mpsc::channel();
    SPAWNER.send(Order { command, reply }).expect("BUG: the spawning thread ended");
    let child = child
        .recv()
        .expect("BUG: the spawning thread ended")
        .context("cannot run setpriv (Debian package util-linux)")?;
    wait_until_leashed(child.id());
    Ok(child)
}

/// Waits until setpriv has become the program that it was asked for: it is only on the leash from then on. One that is
/// slower than the limit is left alone; whoever uses it will see what is the matter.
fn wait_until_leashed(pid: u32) {
    let started = Instant::now();
    let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // Before `setpriv` runs, the child still has our own thread's name.
    while matches!(name().trim_end(), "setpriv" | SPAWNER_NAME) && started.elapsed() < Duration::from_mins(1)
    {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Fifteen bytes, as the kernel keeps of a name.
const SPAWNER_NAME: &str = "testkit-spawner";

struct Order {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// The unprivileged user that servers run as when we are root: neither PostgreSQL nor PgBouncer runs as root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The user `postgres` when we are root; nobody in particular when we are not.
    pub(crate) fn if_root() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        Self::named("postgres", &users)
            .context("we are root, and there is no user `postgres` to run servers as (run .ci/setup)")
            .map(Some)
    }

    fn named(name: &str, passwd: &str) -> Option<Self> {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        Some(Self { uid: ids.next()?.ok()?, gid: ids.next()?.ok()? })
    }

    /// Hands `path` over to this user.
    pub(crate) fn take(self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot chown {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_from_passwd_by_its_whole_name() {
        let passwd = "postgres2:x:7:8::/:/bin/sh\npostgres:x:101:102:,,,:/var/lib:/bin/sh\n";
        let owner = Owner::named("postgres", passwd).unwrap();
        assert_eq!((owner.uid, owner.gid), (101, 102));
        assert!(Owner::named("nobody", passwd).is_none());
    }
}
