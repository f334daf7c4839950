//! Other processes: who they are, what state they are in, signals to them. From `/proc`, hence Linux only.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::waiting::block_until;

pub(crate) use rustix::process::Pid;

/// How long the kernel may take to stop or to end a process. It takes microseconds, except on a machine that
/// is busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// The id of a process that we spawned.
pub(crate) fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_child(child)
}

/// Sends a signal. To a process that has just ended it makes no difference.
pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot send {signal:?} to {}", pid.as_raw_nonzero()))
        }
    }
}

/// Stops a process, and returns once each of its threads has stopped: until then it could still send
/// something.
pub(crate) fn freeze(pid: Pid) -> Result<()> {
    signal(pid, Signal::STOP)?;
    block_until(PATIENCE, "a process to stop", || {
        thread_states(pid).iter().all(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
    })
}

pub(crate) fn thaw(pid: Pid) -> Result<()> {
    signal(pid, Signal::CONT)
}

/// Returns once a process is gone. A zombie is: in a container nobody may ever reap an orphan.
pub(crate) fn wait_until_gone(pid: Pid) -> Result<()> {
    block_until(PATIENCE, "a killed process to end", || {
        thread_states(pid).iter().all(|state| matches!(state, 'Z' | 'X'))
    })
}

/// The direct children of a process, as of now.
pub(crate) fn children(parent: Pid) -> Result<Vec<Pid>> {
    let parent = parent.as_raw_nonzero().get();
    Ok(fs::read_dir("/proc")
        .context("cannot read /proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(&format!("/proc/{pid}/stat")).is_some_and(|(_, its_parent)| its_parent == parent))
        .filter_map(Pid::from_raw)
        .collect())
}

/// One letter per thread; none at all when there is no such process.
fn thread_states(pid: Pid) -> Vec<char> {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| Some(thread.ok()?.path().join("stat")))
        .filter_map(|path| Some(stat(path.to_str()?)?.0))
        .collect()
}

/// State and parent of a process or thread.
fn stat(path: &str) -> Option<(char, i32)> {
    parse_stat(&fs::read_to_string(path).ok()?)
}

/// `4711 (name) S 4242 ..`, where the name may hold blanks and brackets too, so we look from its last bracket
/// on.
fn parse_stat(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_parent_are_found_behind_any_name() {
        assert_eq!(parse_stat("12 (postgres) S 34 12 12 0"), Some(('S', 34)));
        assert_eq!(parse_stat("12 (a) R 1) T 34 12 12 0"), Some(('T', 34)));
        assert_eq!(parse_stat("12 (cut off"), None);
    }
}
