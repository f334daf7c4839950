//! A connection pooler in front of a server.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio_postgres::Config;

use crate::home::Home;
use crate::leash::{self, Owner};
use crate::waiting::block_until;
use crate::{address, programs};

/// PgBouncer in transaction pooling mode, as many run it in production: what holds for a *session* does not
/// hold here.
///
/// It serves every database of the server behind it, trusts everybody, and is not otherwise configured, so it
/// also has the limits of its version: Debian's 1.18 knows no prepared statements (use `query_typed`).
///
/// ```no_run
/// use changeover_testkit::{Database, PgBouncer};
///
/// # async fn example() -> anyhow::Result<()> {
/// let database = Database::fresh().await;
/// let pooler = PgBouncer::start(&database.config())?;
/// let (client, connection) = pooler.config().connect(tokio_postgres::NoTls).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PgBouncer {
    child: Child,
    config: Config,
    /// Last: it is removed once the process is gone.
    _home: Home,
}

impl PgBouncer {
    /// Starts it in front of the server that `server` names, and waits until it listens, which takes about 20
    /// ms.
    ///
    /// # Errors
    /// When it is not installed or does not start; the error then shows its log.
    pub fn start(server: &Config) -> Result<Self> {
        let program = programs::find("pgbouncer")?;
        let upstream = address::socket_addr(server).context("PgBouncer needs a server with a TCP address")?;
        let owner = Owner::if_root()?;
        let home = Home::new(owner.as_ref())?;

        // Between us finding a free port and PgBouncer listening on it, somebody else may take it.
        let mut attempts = 0;
        loop {
            attempts += 1;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, address::free_port()?));
            let settings = home.path().join("pgbouncer.ini");
            fs::write(home.path().join("users"), users(server))?;
            fs::write(&settings, ini(server, upstream, address, &home))?;

            let log = home.path().join("log");
            let output = fs::File::create(&log)?;
            let mut command = leash::command(&program, "KILL", owner.as_ref());
            command
                .env_clear()
                .current_dir(home.path())
                .arg(&settings)
                .stdout(output.try_clone()?)
                .stderr(output);
            let mut child = leash::spawn(command)?;

            let mut ended = None;
            let waited = block_until(Duration::from_mins(1), "PgBouncer to listen", || {
                ended = child.try_wait().ok().flatten();
                ended.is_some() || TcpStream::connect(address).is_ok()
            });
            let failure = match (waited, ended) {
                (Ok(()), None) => {
                    return Ok(Self { child, config: address::pointed_at(server, address), _home: home });
                }
                (Ok(()), Some(status)) => anyhow!("PgBouncer ended as it started, {status}"),
                (Err(error), _) => error,
            };
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(&log).unwrap_or_default();
            if attempts == 5 || !log.contains("Address already in use") {
                return Err(failure.context(log).context("cannot start PgBouncer"));
            }
        }
    }

    /// How to connect to the same database through it.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        address::url(&self.config)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, "cannot end PgBouncer");
        }
    }
}

fn ini(server: &Config, upstream: SocketAddr, address: SocketAddr, home: &Home) -> String {
    let mut behind = format!("host={} port={}", upstream.ip(), upstream.port());
    if let Some(user) = server.get_user() {
        write!(behind, " user={}", quoted(user)).expect("a String takes everything");
    }
    if let Some(password) = server.get_password() {
        write!(behind, " password={}", quoted(&String::from_utf8_lossy(password)))
            .expect("a String takes everything");
    }
    let (home, ip, port) = (home.path().display(), address.ip(), address.port());
    format!(
        "[databases]\n* = {behind}\n\
         [pgbouncer]\nlisten_addr = {ip}\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = {home}/users\n\
         pool_mode = transaction\nmax_client_conn = 1000\ndefault_pool_size = 20\n"
    )
}

/// Trusting everybody still means to know them.
fn users(server: &Config) -> String {
    format!("\"{}\" \"\"\n", server.get_user().unwrap_or("postgres").replace('"', "\"\""))
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
