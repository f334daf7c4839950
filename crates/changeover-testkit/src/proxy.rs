//! Faults on the wire.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, tcp};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Config;

use crate::address;
use crate::waiting::block_until;

/// A TCP proxy in front of a server that can be cut, stalled and slowed down.
///
/// It runs on a thread of its own, so it works while the test blocks, and its methods take effect before they
/// return.
///
/// ```no_run
/// use changeover_testkit::{Cluster, Database, Proxy};
///
/// # async fn example() -> anyhow::Result<()> {
/// let database = Database::fresh().await;
/// let proxy = Proxy::in_front_of(&database.config())?;
/// let (client, connection) = proxy.config(&database.config()).connect(tokio_postgres::NoTls).await?;
/// tokio::spawn(connection);
///
/// proxy.stall(); // A partition: the client waits, and so does the server.
/// proxy.resume();
/// proxy.cut(); // Connection reset.
/// assert!(client.simple_query("SELECT 1").await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Orders {
    wire: Wire,
    delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Flowing,
    Stalled,
    Cut,
    /// The proxy itself ends.
    Removed,
}

#[derive(Debug, Default)]
struct Counts {
    listening: AtomicUsize,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`, on a port of its own on 127.0.0.1.
    ///
    /// # Errors
    /// When `upstream` cannot be resolved, or there is no port left.
    ///
    /// ```no_run
    /// use changeover_testkit::{Cluster, Proxy};
    ///
    /// let proxy = Proxy::start(Cluster::shared().addr()?)?;
    /// # anyhow::Ok(())
    /// ```
    pub fn start(upstream: impl ToSocketAddrs) -> Result<Self> {
        let upstream =
            upstream.to_socket_addrs()?.next().context("the server to stand in front of has no address")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = address::listener()?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (orders, inbox) = watch::channel(Orders { wire: Wire::Flowing, delay: Duration::ZERO });
        let counts = Arc::new(Counts { listening: AtomicUsize::new(1), ..Counts::default() });

        let own_counts = Arc::clone(&counts);
        let thread = thread::Builder::new().name("testkit-proxy".into()).spawn(move || {
            let ended = runtime.block_on(listen(listener, address, upstream, inbox, own_counts));
            if let Err(error) = ended {
                tracing::error!(%error, "a proxy ended"); // Its port was taken while it was cut.
            }
        })?;
        Ok(Self { address, orders, counts, thread: Some(thread) })
    }

    /// Starts a proxy in front of the server that `config` names.
    ///
    /// # Errors
    /// See [`Proxy::start`]; also when `config` names a socket.
    pub fn in_front_of(config: &Config) -> Result<Self> {
        Self::start(address::socket_addr(config)?)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// `config`, pointed at this proxy.
    pub fn config(&self, config: &Config) -> Config {
        address::pointed_at(config, self.address)
    }

    /// Resets every connection, on both sides, and refuses new ones until [`resume`](Self::resume).
    ///
    /// # Panics
    /// When connections are not gone within a minute, which is a mistake of ours.
    pub fn cut(&self) {
        self.set(Wire::Cut);
        self.await_counts(0); // So that no connection can miss it when `resume` follows at once.
    }

    /// A partition: bytes stop flowing in both directions, nothing is closed, new connections hang.
    ///
    /// The kernel still acknowledges what it takes in, and still completes the handshake of a new connection;
    /// so neither keepalives nor `tcp_user_timeout` notice, as they would in a partition of some minutes.
    /// Only a limit of one's own does.
    pub fn stall(&self) {
        self.set(Wire::Stalled);
    }

    /// Mends it after [`cut`](Self::cut) or [`stall`](Self::stall). What was held back is delivered, in
    /// order.
    ///
    /// # Panics
    /// When the port is not to be had back, because another process took it.
    pub fn resume(&self) {
        self.set(Wire::Flowing);
        self.await_counts(1);
    }

    /// Holds every byte back for this long, in each direction: a round trip takes twice as long. The
    /// bandwidth stays.
    pub fn delay(&self, delay: Duration) {
        self.orders.send_modify(|orders| orders.delay = delay);
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.counts.open.load(SeqCst)
    }

    /// How many connections there have been, open ones included.
    pub fn accepted_connections(&self) -> usize {
        self.counts.accepted.load(SeqCst)
    }

    fn set(&self, wire: Wire) {
        self.orders.send_modify(|orders| orders.wire = wire);
    }

    fn await_counts(&self, listening: usize) {
        let settled = block_until(Duration::from_mins(1), "the proxy to do as it was told", || {
            self.counts.listening.load(SeqCst) == listening && (listening > 0 || self.open_connections() == 0)
        });
        settled.expect("BUG: the proxy hangs");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Wire::Removed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // The runtime goes with it, and with the runtime every connection.
        }
    }
}

/// Accepts connections while the wire is not cut.
async fn listen(
    listener: std::net::TcpListener,
    address: SocketAddr,
    upstream: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    counts: Arc<Counts>,
) -> Result<()> {
    let mut listener = Some(TcpListener::from_std(listener)?);
    loop {
        let wire = orders.borrow_and_update().wire;
        match (wire, &listener) {
            (Wire::Removed, _) => return Ok(()),
            (Wire::Cut, Some(open)) => {
                // Closing it is not enough: a process that is being started at this moment holds it too, until it has become
                // its program, and so the port.
                rustix::net::shutdown(open, rustix::net::Shutdown::Both)?;
                listener = None; // Those who were not accepted yet are reset by the kernel.
                counts.listening.store(0, SeqCst);
            }
            (Wire::Flowing | Wire::Stalled, None) => {
                listener = Some(listen_again(address)?);
                counts.listening.store(1, SeqCst);
            }
            _ => {}
        }
        tokio::select! {
            told = orders.changed() => told?,
            accepted = accept(listener.as_ref()) => {
                let (client, _) = accepted?;
                counts.accepted.fetch_add(1, SeqCst);
                counts.open.fetch_add(1, SeqCst);
                let (orders, counts) = (orders.clone(), Arc::clone(&counts));
                tokio::spawn(async move {
                    if let Err(error) = relay(client, upstream, orders).await {
                        tracing::debug!(%error, "a connection through the proxy ended");
                    }
                    counts.open.fetch_sub(1, SeqCst);
                });
            }
        }
    }
}

/// Without a listener nobody ever comes.
async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

fn listen_again(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// One connection, until either side closes it or the wire is cut.
async fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut orders: watch::Receiver<Orders>,
) -> Result<()> {
    let mut own_orders = orders.clone();
    let mut server = None;
    let flowing = async {
        until_flowing(&mut orders).await?;
        let server = server.insert(TcpStream::connect(upstream).await?);
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::try_join!(pump(from_client, to_server, orders.clone()), pump(from_server, to_client, orders))?;
        Ok(())
    };
    let ended = tokio::select! {
        told = own_orders.wait_for(|orders| orders.wire == Wire::Cut) => told.map(drop).map_err(Into::into),
        ended = flowing => ended,
    };
    // Not told by which branch was first: the cut ends the flow too.
    if own_orders.borrow().wire == Wire::Cut {
        // Closed without lingering: what both sides get is a reset, not an orderly end.
        client.set_zero_linger()?;
        server.map_or(Ok(()), |server| server.set_zero_linger())?;
    }
    ended
}

/// One direction of one connection, until its end is reached and passed on.
///
/// Reading and writing go on side by side, each piece with the time it is due: so a delay delays, and does
/// not throttle.
async fn pump(
    mut from: tcp::ReadHalf<'_>,
    mut to: tcp::WriteHalf<'_>,
    orders: watch::Receiver<Orders>,
) -> Result<()> {
    let (sender, mut pieces) = mpsc::channel(64); // What a stalled wire holds at most, in pieces of 16 kB.
    let mut until_due = orders.clone();
    let read = async move {
        loop {
            let mut piece = Vec::with_capacity(16 * 1024);
            from.read_buf(&mut piece).await?;
            let ended = piece.is_empty();
            let due = Instant::now() + orders.borrow().delay;
            if sender.send((due, piece)).await.is_err() || ended {
                return anyhow::Ok(());
            }
        }
    };
    let write = async {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            until_flowing(&mut until_due).await?;
            if piece.is_empty() {
                break;
            }
            to.write_all(&piece).await?;
        }
        Ok(to.shutdown().await?)
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

async fn until_flowing(orders: &mut watch::Receiver<Orders>) -> Result<()> {
    let orders = orders.wait_for(|orders| orders.wire != Wire::Stalled).await?;
    ensure!(orders.wire == Wire::Flowing, "the wire was cut");
    Ok(())
}
