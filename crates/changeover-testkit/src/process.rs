//! A child process to be killed, frozen, and listened to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::waiting::INTERVAL;
use crate::{leash, processes, programs};

/// A child process that does not outlive this value, nor us when we are killed.
///
/// What it prints, on either output, goes to one file: a pipe that nobody reads would stop it. The file has
/// no name and so cannot stay behind. When a test panics, the end of the output is printed.
///
/// ```no_run
/// use std::process::Command;
/// use std::time::Duration;
/// use changeover_testkit::Process;
///
/// # async fn example() -> anyhow::Result<()> {
/// let mut serve = Command::new("target/debug/shop");
/// serve.args(["serve", "--port", "0"]);
/// let shop = Process::spawn(serve)?;
/// let line = shop.wait_for_line("listening on", Duration::from_secs(10)).await?;
///
/// shop.freeze()?; // It is in the middle of something, and knows nothing of what happens now.
/// shop.thaw()?;
/// shop.terminate()?;
/// assert!(shop.wait(Duration::from_secs(10)).await?.success());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    output: File,
}

impl Process {
    /// Starts it, with an empty standard input and a process group of its own.
    ///
    /// Program, arguments, directory and variables are taken from `command`; its `stdin`, `stdout`, `stderr`,
    /// `env_clear` and `process_group` are not.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn spawn(command: Command) -> Result<Self> {
        let program = programs::find(command.get_program())?;
        let output = tempfile::tempfile().context("cannot make a file for the output of a process")?;

        let mut tied = leash::command(&program, "KILL", None);
        tied.args(command.get_args()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        if let Some(directory) = command.get_current_dir() {
            tied.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => tied.env(name, value),
                None => tied.env_remove(name),
            };
        }
        drop(command);
        Ok(Self { name: program.display().to_string(), child: Mutex::new(leash::spawn(tied)?), output })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Kills it with `SIGKILL`, frozen or not, and waits until it is gone. Does nothing if it has ended by
    /// itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill_9(&self) -> Result<()> {
        let mut child = self.child();
        child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// Stops it where it stands (`SIGSTOP`), and returns once all of its threads have stopped.
    ///
    /// # Errors
    /// When it has ended.
    pub fn freeze(&self) -> Result<()> {
        self.while_it_runs(processes::freeze)
    }

    /// Lets it go on (`SIGCONT`).
    ///
    /// # Errors
    /// When it has ended.
    pub fn thaw(&self) -> Result<()> {
        self.while_it_runs(processes::thaw)
    }

    /// Asks it to end (`SIGTERM`), as an orchestrator does. [`wait`](Self::wait) tells when it did.
    ///
    /// # Errors
    /// When it has ended.
    pub fn terminate(&self) -> Result<()> {
        self.while_it_runs(|pid| processes::signal(pid, Signal::TERM))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it still runs after `limit`. It then goes on running.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        let ending = async {
            loop {
                if let Some(status) = self.child().try_wait()? {
                    return Ok(status);
                }
                sleep(INTERVAL).await;
            }
        };
        let waited = timeout(limit, ending).await;
        waited.unwrap_or_else(|_| {
            Err(anyhow!("{} still runs after {limit:?}; {}", self.name, self.last_words()))
        })
    }

    /// Waits until it has printed a whole line that contains `text`, and returns the first such line, also
    /// when it was printed before we asked.
    ///
    /// # Errors
    /// When it ends without printing it, or does not print it within `limit`. The error shows what it did
    /// print.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String> {
        let printing = async {
            loop {
                // In this order: what it printed just before it ended counts.
                let ended = self.child().try_wait()?;
                let output = self.output();
                let whole_lines =
                    output.split_inclusive('\n').filter(|line| ended.is_some() || line.ends_with('\n'));
                if let Some(line) = whole_lines.map(str::trim_end).find(|line| line.contains(text)) {
                    return Ok(line.to_owned());
                }
                if let Some(status) = ended {
                    bail!("{} ended, {status}, without printing `{text}`; {}", self.name, self.last_words());
                }
                sleep(INTERVAL).await;
            }
        };
        let waited = timeout(limit, printing).await;
        waited.unwrap_or_else(|_| {
            Err(anyhow!("no `{text}` from {} within {limit:?}; {}", self.name, self.last_words()))
        })
    }

    /// All it printed so far, on both outputs.
    pub fn output(&self) -> String {
        // Not by reading on from where we are: the process writes through the same place in the file.
        let mut text = Vec::new();
        let mut piece = [0; 8192];
        while let Ok(read @ 1..) = self.output.read_at(&mut piece, text.len() as u64) {
            text.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is held, and the process not reaped before we look: so the process id is certainly still its
    /// own.
    fn while_it_runs(&self, act: impl FnOnce(processes::Pid) -> Result<()>) -> Result<()> {
        let mut child = self.child();
        match child.try_wait()? {
            None => act(processes::pid_of(&child)),
            Some(status) => bail!("{} has ended, {status}; {}", self.name, self.last_words()),
        }
    }

    fn last_words(&self) -> String {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        match &lines[lines.len().saturating_sub(40)..] {
            [] => "it printed nothing".into(),
            last => format!("it printed:\n{}", last.join("\n")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{} (process {}): {}", self.name, self.pid(), self.last_words());
        }
        let mut child = self.child();
        let ended: io::Result<_> = child.kill().and_then(|()| child.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, "cannot end {}", self.name);
        }
    }
}
