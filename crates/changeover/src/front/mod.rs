//! The front: what an application holds.

mod log;
mod read_models;
mod upgrade;

use std::sync::Arc;

use deadpool_postgres::Pool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use self::read_models::{SkipError, WaitError};
use crate::core::Core;
use crate::instances;
use crate::log::warm;
use crate::publisher;
use crate::store::Path;
use crate::wake::Waker;
use crate::words::readiness::Readiness;

/// An instance: appends, reads, publishes, replays and activates. Cheap to clone.
///
/// ```no_run
/// use changeover::{Changeover, Configuration, Expected};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// enum OrderEvent {
///     OrderPlaced { customer: String },
/// }
///
/// # async fn example(configuration: Configuration) -> Result<(), Box<dyn std::error::Error>> {
/// let builder = Changeover::builder("host=localhost dbname=shop".parse()?)
///     .application("shop", "2.3.0")
///     .configuration(configuration);
/// builder.migrate().await?;
/// let changeover = builder.connect().await?;
/// let running = changeover.start();
///
/// let placed = OrderEvent::OrderPlaced { customer: "Ada".into() };
/// changeover.append(&"order-1".parse()?, Expected::NoStream, &[placed]).await?;
///
/// running.stop().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Changeover {
    pub(crate) core: Arc<Core>,
}

impl Changeover {
    /// Starts what an instance does by itself: publish to its background projectors, watch its readiness, say that it
    /// is there, and keep connections ready. Runs until [`Running::stop`]; if the returned value is dropped, the tasks are told to stop as well.
    pub fn start(&self) -> Running {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(crate::watch::watch(self.core.clone(), stop.clone()));
        tasks.spawn(instances::heartbeat(self.core.clone(), stop.clone()));
        publisher::start(&self.core, &tasks, &stop);
        tasks.spawn(warm::warm(self.core.clone(), stop.clone()));
        tasks.close();
        Running { tasks, _guard: stop.clone().drop_guard(), stop }
    }

    /// The application's pool: for its own tables, and for transactions in which it appends.
    ///
    /// A connection comes back from it without settings, session locks or an open transaction; checking that costs one
    /// round trip for each time a connection is taken.
    pub fn pool(&self) -> &Pool {
        &self.core.store.pool
    }

    /// What was found between this process and the server.
    pub fn path(&self) -> Path {
        self.core.store.path
    }

    /// Wakes the publisher: for signals of the host's own.
    pub fn waker(&self) -> Waker {
        self.core.waker.clone()
    }

    /// The id of this instance, as in the list of instances.
    pub fn instance_id(&self) -> Uuid {
        self.core.identity.id
    }

    /// Whether this instance may take traffic, as it knows right now. Costs no query; kept fresh by [`start`](Self::start).
    pub fn readiness(&self) -> Readiness {
        self.core.decider.readiness().borrow().clone()
    }

    /// The readiness, and whenever it changes.
    pub fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.core.decider.readiness()
    }
}

/// What an instance does by itself.
#[derive(Debug)]
#[must_use = "when it is dropped, the instance stops publishing and watching"]
pub struct Running {
    tasks: TaskTracker,
    stop: CancellationToken,
    _guard: tokio_util::sync::DropGuard,
}

impl Running {
    /// Tells the tasks to stop and waits for them: a batch in flight is finished, the instance says goodbye.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}
