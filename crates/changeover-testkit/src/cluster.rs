//! A private PostgreSQL server for one process tree.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use tokio_postgres::Config;

use crate::home::Home;
use crate::leash::{self, Owner};
use crate::waiting::block_until;
use crate::{address, processes, programs};

/// A PostgreSQL server of our own: started in half a second, gone with its last user, harming nobody else's.
///
/// It listens on 127.0.0.1 and on a socket, trusts everybody who gets there, and keeps its data in a
/// directory of its own in `/tmp`. Whatever ends this process, `kill -9` included, ends the server and
/// removes the directory.
///
/// All methods block, the longest of them for about half a second. In a test that is fine.
///
/// [`Cluster::shared`] is what most tests want, through [`Database::fresh`](crate::Database::fresh). A test
/// that kills or freezes its server starts one for itself:
///
/// ```no_run
/// use changeover_testkit::{Cluster, Database};
///
/// # async fn example() -> anyhow::Result<()> {
/// let cluster = Cluster::builder().durable().setting("max_connections", "20").start()?;
/// let database = Database::fresh_on(&cluster).await;
/// database.client().await.batch_execute("CREATE TABLE kept ()").await?;
///
/// cluster.kill_9()?;
/// cluster.restart()?;
/// database.client().await.batch_execute("TABLE kept").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cluster(Server);

#[derive(Debug)]
enum Server {
    /// One that we started and may do anything to.
    Ours(Ours),
    /// The one that `DATABASE_URL` names. We make databases in it, and that is all.
    Given(Config),
}

#[derive(Debug)]
struct Ours {
    home: Home,
    owner: Option<Owner>,
    settings: Settings,
    port: u16,
    /// Other tests use it at this moment, so nobody may kill or freeze it.
    shared: bool,
    /// None when it was killed and not started again.
    postmaster: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts a server with the settings for tests: fast, and not durable.
    ///
    /// # Errors
    /// When there is no PostgreSQL to be found, or when it does not start; the error then shows its log.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Starts a server with other settings.
    pub fn builder() -> Builder {
        Builder { settings: Settings::for_tests(), shared: false }
    }

    /// The server that all tests of one binary share. It is started by whoever asks first.
    ///
    /// If `DATABASE_URL` is set, it stands for that server and starts nothing. Its user must be allowed to
    /// create databases.
    ///
    /// # Panics
    /// When the server does not start, or when `DATABASE_URL` cannot be read.
    ///
    /// ```no_run
    /// let url = changeover_testkit::Cluster::shared().url("postgres");
    /// ```
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let cluster = match env::var("DATABASE_URL") {
                Ok(url) => {
                    url.parse().map(|config| Self(Server::Given(config))).context("cannot read DATABASE_URL")
                }
                Err(_) => Builder { settings: Settings::for_tests(), shared: true }.start(),
            };
            cluster.unwrap_or_else(|error| panic!("no PostgreSQL server for the tests: {error:?}"))
        })
    }

    /// How to connect: over TCP, as the superuser, to the database `postgres`; or what `DATABASE_URL` says.
    pub fn config(&self) -> Config {
        match &self.0 {
            Server::Ours(ours) => ours.config(),
            Server::Given(config) => config.clone(),
        }
    }

    /// The same as a URL, for another database of this server.
    ///
    /// ```no_run
    /// # let cluster = changeover_testkit::Cluster::start().unwrap();
    /// assert!(cluster.url("shop").ends_with("/shop"));
    /// ```
    pub fn url(&self, dbname: &str) -> String {
        address::url(self.config().dbname(dbname))
    }

    /// The port it listens on, also after a [`restart`](Self::restart).
    pub fn port(&self) -> u16 {
        match &self.0 {
            Server::Ours(ours) => ours.port,
            Server::Given(config) => config.get_ports().first().copied().unwrap_or(5432),
        }
    }

    /// The TCP address it listens on, for a [`Proxy`](crate::Proxy) in front of it.
    ///
    /// # Errors
    /// When `DATABASE_URL` names a socket, or a host that has no address.
    pub fn addr(&self) -> Result<SocketAddr> {
        address::socket_addr(&self.config())
    }

    /// The directory of its Unix socket. None for a server that is not ours.
    pub fn socket_dir(&self) -> Option<&Path> {
        self.ours().map(|ours| ours.home.path())
    }

    /// The file it logs to. It goes with the server, so read it before. None for a server that is not ours.
    pub fn log_path(&self) -> Option<PathBuf> {
        self.ours().map(Ours::log_path)
    }

    /// One of PostgreSQL's programs (`psql`, `pg_dump`, ..) of the version that [`start`](Self::start)
    /// starts.
    ///
    /// # Panics
    /// When there is no such program.
    ///
    /// ```no_run
    /// # let cluster = changeover_testkit::Cluster::start().unwrap();
    /// let mut dump = std::process::Command::new(cluster.bin("pg_dump"));
    /// let dumped = dump.arg(cluster.url("shop")).output().unwrap();
    /// ```
    pub fn bin(&self, name: &str) -> PathBuf {
        let program = programs::of_postgresql().map(|folder| folder.join(name));
        match program {
            Ok(program) if program.exists() => program,
            Ok(program) => panic!("there is no {}", program.display()),
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Kills every process of the server at once, as if the machine had lost power, and waits until they are
    /// gone.
    ///
    /// Nothing is flushed, nobody says good-bye. [`restart`](Self::restart) brings it back through crash
    /// recovery.
    ///
    /// # Errors
    /// When the server is not durable (a crash test must be: ask for [`Builder::durable`]), when others share
    /// it, or when it does not run.
    pub fn kill_9(&self) -> Result<()> {
        let ours = self.ours_alone("kill_9")?;
        ensure!(
            ours.settings.is_on("fsync"),
            "a server to be killed must be durable: Cluster::builder().durable().start()"
        );
        let mut postmaster = ours.postmaster();
        kill_all(postmaster.as_mut().context("the server does not run: it was killed before")?)?;
        *postmaster = None;
        Ok(())
    }

    /// Starts the server again, on the same port and with the same data: after [`kill_9`](Self::kill_9), or
    /// after a shutdown that disconnects everybody and waits for a checkpoint.
    ///
    /// # Errors
    /// When it does not stop within three minutes or does not start, or when others share it.
    pub fn restart(&self) -> Result<()> {
        let ours = self.ours_alone("restart")?;
        let mut postmaster = ours.postmaster();
        if let Some(running) = postmaster.as_mut() {
            stop(running, Signal::INT)?;
        }
        *postmaster = None;
        // Whoever looks for a free port may be trying ours at this very moment.
        let mut attempts = 0;
        let booted = loop {
            attempts += 1;
            match ours.boot() {
                Err(error) if attempts < 10 && is_taken(&error) => thread::sleep(Duration::from_millis(200)),
                booted => break booted?,
            }
        };
        *postmaster = Some(booted);
        Ok(())
    }

    /// Stops every process of the server where it stands (`SIGSTOP`). Connections stay open and nothing
    /// answers, as when a virtual machine is paused. New connections are accepted by the kernel and hang.
    ///
    /// # Errors
    /// When it does not run, or when others share it.
    ///
    /// ```no_run
    /// # let cluster = changeover_testkit::Cluster::start().unwrap();
    /// cluster.freeze()?;
    /// // .. whoever waits for the server now must give up in time ..
    /// cluster.thaw()?;
    /// # anyhow::Ok(())
    /// ```
    pub fn freeze(&self) -> Result<()> {
        let ours = self.ours_alone("freeze")?;
        let postmaster = ours.postmaster();
        let postmaster = processes::pid_of(postmaster.as_ref().context("the server does not run")?);
        processes::freeze(postmaster)?; // First: from here on it has no new children.
        processes::children(postmaster)?.into_iter().try_for_each(processes::freeze)
    }

    /// Lets a frozen server go on. Does nothing to one that is not frozen.
    ///
    /// # Errors
    /// When it does not run, or when others share it.
    pub fn thaw(&self) -> Result<()> {
        let ours = self.ours_alone("thaw")?;
        thaw_all(ours.postmaster().as_ref().context("the server does not run")?)
    }

    /// Lets no file of the server's grow beyond so many bytes, for processes that run and for those to come: whoever needs more is
    /// told what a full disk tells him (SQLSTATE 53100). None lifts it. Files that are larger already can be read.
    ///
    /// # Errors
    /// When the server was not started [for this](Builder::with_small_wal), when the limit is below what the server needs for
    /// itself, when others share it, or when it does not run.
    ///
    /// ```no_run
    /// # let cluster = changeover_testkit::Cluster::builder().with_small_wal().start().unwrap();
    /// cluster.limit_files(Some(2 << 20))?;
    /// // .. whoever writes now must get on once there is room again ..
    /// cluster.limit_files(None)?;
    /// # anyhow::Ok(())
    /// ```
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        const PAGE: u64 = 8192;
        let ours = self.ours_alone("limit_files")?;
        ensure!(ours.settings.small_wal, "a server whose files are limited must be started with_small_wal");
        let limit = match bytes {
            // A page that fits in part is what a full disk looks like; one that does not fit at all is another error.
            Some(bytes) if bytes > SMALL_WAL_BYTES => (bytes / PAGE * PAGE + PAGE / 4).to_string(),
            Some(bytes) => bail!("with files of {bytes} bytes the server could not write its own log"),
            None => "unlimited".to_owned(),
        };
        let postmaster = ours.postmaster();
        let postmaster = processes::pid_of(postmaster.as_ref().context("the server does not run")?);
        // The one that forks first: its children inherit the limit.
        limit_files(postmaster, &limit, ours.owner.as_ref())?;
        for child in processes::children(postmaster)? {
            // It may have ended by now.
            if let Err(error) = limit_files(child, &limit, ours.owner.as_ref()) {
                ensure!(!processes::children(postmaster)?.contains(&child), error);
            }
        }
        Ok(())
    }

    /// Everything it needs goes when it goes: there is nothing to clean up in it.
    pub(crate) fn is_private(&self) -> bool {
        self.ours().is_some_and(|ours| !ours.shared)
    }

    fn ours(&self) -> Option<&Ours> {
        match &self.0 {
            Server::Ours(ours) => Some(ours),
            Server::Given(_) => None,
        }
    }

    fn ours_alone(&self, verb: &str) -> Result<&Ours> {
        let ours = self.ours().filter(|ours| !ours.shared);
        ours.with_context(|| {
            format!("{verb} would hurt others who use this server: start one with Cluster::start()")
        })
    }
}

/// A [`Cluster`] to be.
///
/// It starts from settings for tests: 1,000 connections, 20 prepared transactions, 64 MB of shared buffers, and
/// nothing forced to disk.
///
/// ```no_run
/// use changeover_testkit::Cluster;
///
/// let logical = Cluster::builder().durable().setting("wal_level", "logical").start()?;
/// # anyhow::Ok(())
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    settings: Settings,
    shared: bool,
}

impl Builder {
    /// Sets a parameter of the server, as in `postgresql.conf`. The last value counts.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.set(name, value);
        self
    }

    /// What was committed survives [`Cluster::kill_9`]: for crash tests and for benchmarks.
    #[must_use]
    pub fn durable(self) -> Self {
        self.setting("fsync", "on").setting("full_page_writes", "on").setting("synchronous_commit", "on")
    }

    /// For [`Cluster::limit_files`]: the segments of its write-ahead log are of 1 MiB, so that they stay below any limit.
    #[must_use]
    pub fn with_small_wal(mut self) -> Self {
        self.settings.small_wal = true;
        self
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Errors
    /// See [`Cluster::start`].
    pub fn start(self) -> Result<Cluster> {
        let owner = Owner::if_root()?;
        let home = Home::new(owner.as_ref())?;
        let Self { settings, shared } = self;
        init(&home, owner.as_ref(), settings.small_wal)?;
        let mut ours = Ours { home, owner, settings, port: 0, shared, postmaster: Mutex::new(None) };

        // Between us finding a free port and the server listening on it, another test's server may take it.
        let mut attempts = 0;
        let postmaster = loop {
            attempts += 1;
            ours.port = address::free_port()?;
            match ours.boot() {
                Err(error) if attempts < 5 && is_taken(&error) => {}
                booted => break booted?,
            }
        };
        *ours.postmaster() = Some(postmaster);
        Ok(Cluster(Server::Ours(ours)))
    }
}

#[derive(Debug, Clone)]
struct Settings {
    parameters: Vec<(String, String)>,
    small_wal: bool,
}

/// The smallest that there are.
const SMALL_WAL_BYTES: u64 = 1 << 20;

impl Settings {
    fn for_tests() -> Self {
        let settings = [
            // As many tests run at once as the machine has processors, each with pools of its own.
            ("max_connections", "1000"),
            ("max_prepared_transactions", "20"),
            ("shared_buffers", "64MB"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("log_line_prefix", "%m [%p] %a %d "),
            // Its segments are then in our directory and go with it, and are not limited by a container's
            // /dev/shm.
            ("dynamic_shared_memory_type", "mmap"),
        ];
        let parameters = settings.map(|(name, value)| (name.into(), value.into())).into();
        Self { parameters, small_wal: false }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.parameters.retain(|(known, _)| known != name);
        self.parameters.push((name.into(), value.into()));
    }

    fn is_on(&self, name: &str) -> bool {
        self.parameters
            .iter()
            .any(|(known, value)| known == name && ["on", "true", "yes", "1"].contains(&value.as_str()))
    }
}

impl Ours {
    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        config
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// A test that panicked while it held the lock leaves the child as it is, which is all we ask of it.
    fn postmaster(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `postgres` itself, not `pg_ctl`, so that it is our own child; returns once it takes
    /// connections.
    fn boot(&self) -> Result<Child> {
        let data = self.home.path().join("data");
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let log_start = log.metadata()?.len();

        // An immediate shutdown, when we die: it ends busy backends too, and leaves no shared memory behind.
        let mut command =
            leash::command(programs::of_postgresql()?.join("postgres"), "QUIT", self.owner.as_ref());
        command.env_clear().current_dir(&data).arg("-D").arg(&data);
        command.arg("-k").arg(self.home.path()).args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        for (name, value) in &self.settings.parameters {
            command.args(["-c", &format!("{name}={value}")]);
        }
        command.stdout(log.try_clone()?).stderr(log);
        let mut child = leash::spawn(command)?;

        let mut ended = None;
        let waited = block_until(Duration::from_mins(3), "PostgreSQL to start", || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || is_ready(&data, child.id())
        });
        let failure = match (waited, ended) {
            (Ok(()), None) => return Ok(child),
            (Ok(()), Some(status)) => anyhow!("PostgreSQL ended as it started, {status}"),
            (Err(error), _) => error,
        };
        let _ = child.kill();
        let _ = child.wait();
        let log = fs::read(self.log_path()).unwrap_or_default();
        let said = log.get(usize::try_from(log_start)?..).unwrap_or_default();
        Err(failure.context(String::from_utf8_lossy(said).into_owned()).context("cannot start PostgreSQL"))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let Some(mut postmaster) = self.postmaster().take() else { return };
        // Its data goes too, so there is no need for a checkpoint.
        if let Err(error) = stop(&mut postmaster, Signal::QUIT) {
            tracing::warn!("cannot stop PostgreSQL, so it is killed: {error:#}");
            let _ = kill_all(&mut postmaster);
        }
    }
}

fn stop(postmaster: &mut Child, how: Signal) -> Result<()> {
    thaw_all(postmaster)?;
    processes::signal(processes::pid_of(postmaster), how)?;
    block_until(Duration::from_mins(3), "PostgreSQL to stop", || matches!(postmaster.try_wait(), Ok(Some(_))))
}

/// The postmaster must not see its children die: it would start to recover. Once stopped it sees nothing,
/// reaps nobody, and so none of these process ids can belong to anybody else.
fn kill_all(postmaster: &mut Child) -> Result<()> {
    let pid = processes::pid_of(postmaster);
    processes::freeze(pid)?;
    let children = processes::children(pid)?;
    for child in &children {
        processes::signal(*child, Signal::KILL)?;
    }
    postmaster.kill()?;
    postmaster.wait()?;
    children.into_iter().try_for_each(processes::wait_until_gone)
}

fn thaw_all(postmaster: &Child) -> Result<()> {
    let postmaster = processes::pid_of(postmaster);
    processes::children(postmaster)?.into_iter().try_for_each(processes::thaw)?;
    processes::thaw(postmaster)
}

/// Whether it could not start because of somebody else on its port.
fn is_taken(error: &anyhow::Error) -> bool {
    format!("{error:?}").contains("Address already in use")
}

/// The server says so itself on line 8; the first line tells that it is not the file of a server that was
/// killed.
fn is_ready(data: &Path, pid: u32) -> bool {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = file.lines().map(str::trim);
    lines.next() == Some(&pid.to_string()) && lines.nth(6) == Some("ready")
}

/// As the server's own user: even root may not touch the limits of others everywhere.
fn limit_files(pid: processes::Pid, bytes: &str, owner: Option<&Owner>) -> Result<()> {
    let mut command = leash::command("prlimit", "KILL", owner);
    // The soft one alone, so that it can be lifted again.
    command.args([format!("--pid={}", pid.as_raw_nonzero()), format!("--fsize={bytes}:")]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let status = leash::spawn(command)?.wait()?;
    ensure!(status.success(), "prlimit (Debian package util-linux) failed, {status}");
    Ok(())
}

fn init(home: &Home, owner: Option<&Owner>, small_wal: bool) -> Result<()> {
    let mut command = leash::command(programs::of_postgresql()?.join("initdb"), "KILL", owner);
    // From an empty environment: a test must not depend on somebody's PGDATA, PGPORT or locale.
    command.env_clear().current_dir(home.path()).arg("-D").arg(home.path().join("data"));
    command.args(["--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-U", "postgres"]);
    if small_wal {
        command.arg(format!("--wal-segsize={}", SMALL_WAL_BYTES >> 20));
    }
    let log = home.path().join("initdb.log");
    let output = fs::File::create(&log)?;
    command.stdout(Stdio::null()).stderr(output);
    let status = leash::spawn(command)?.wait()?;
    if !status.success() {
        bail!("initdb failed, {status}: {}", fs::read_to_string(&log).unwrap_or_default());
    }
    Ok(())
}
