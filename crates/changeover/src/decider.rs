//! The decision of this instance: made from the states, kept together with the generation that it was made at, and kept
//! only until an admission fails or the connection that it was made on is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use deadpool_postgres::Client;
use futures_util::future::join;
use tokio::sync::{Mutex, watch};
use tracing::info;

use crate::expiry;
use crate::projector::Registered;
use crate::projector::configuration::Configuration;
use crate::registration;
use crate::store::{On, Store, StoreError, migrate, rows};
use crate::views;
use crate::words::decision::{Refused, Verdict, VersionState, decide, followed};
use crate::words::names::ProjectorName;
use crate::words::plan::Target;
use crate::words::position::Generation;
use crate::words::readiness::Readiness;
use crate::words::state::Delivery;

/// What an instance does while nothing was ever activated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenNothingIsActive {
    /// It makes its own configuration the active one: for tests, and for the first release ever.
    #[default]
    AssumeOurs,
    /// It refuses to append and to publish until a configuration is activated.
    Refuse,
}

/// A decision and the generation that it holds for.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) generation: Generation,
    pub(crate) verdict: Verdict,
    /// The inline projectors that this instance feeds.
    pub(crate) inline: Vec<Arc<Registered>>,
    /// The projectors whose retired tables this instance keeps current, whatever the verdict.
    followed: BTreeSet<ProjectorName>,
    /// Taken before the states were read: the decision is at least as new as this.
    as_of: Instant,
}

impl Decided {
    /// Whether this instance publishes to a projector: it feeds it in the background, or follows with it after it retired.
    pub(crate) fn publishes(&self, registered: &Registered) -> bool {
        let Target { projector, delivery, .. } = &registered.target;
        let fed = matches!(&self.verdict, Verdict::Admitted { fed, .. } if fed.contains(projector));
        (fed && *delivery == Delivery::Background) || self.followed.contains(projector)
    }

    fn is_activating(&self) -> bool {
        matches!(self.verdict, Verdict::Refused(Refused::ProjectorIsActivating { .. }))
    }
}

/// Why there is no admission.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecideError {
    #[error(transparent)]
    Refused(Refused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How often an instance that waits for an activation looks again.
const ACTIVATING_POLL: Duration = Duration::from_millis(3);

/// Of one look at the generation, and of one decision, which may create tables.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
const DECIDE_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Decider {
    store: Arc<Store>,
    configuration: Configuration,
    when_nothing_is_active: WhenNothingIsActive,
    stable_views: bool,
    current: ArcSwapOption<Decided>,
    /// A connection of its own that keeps its statements: never a caller's transaction, whose snapshot may be old, and never one of the pool's, all
    /// of which may be taken by transactions that wait for this very decision.
    connection: Mutex<Option<Client>>,
    readiness: watch::Sender<Readiness>,
    /// Changes with every decision that is made at another generation.
    decisions: watch::Sender<Generation>,
}

impl Decider {
    pub(crate) fn new(
        store: Arc<Store>,
        configuration: Configuration,
        when_nothing_is_active: WhenNothingIsActive,
        stable_views: bool,
    ) -> Self {
        Self {
            store,
            configuration,
            when_nothing_is_active,
            stable_views,
            current: ArcSwapOption::empty(),
            connection: Mutex::new(None),
            readiness: watch::Sender::new(Readiness::unknown()),
            decisions: watch::Sender::new(Generation::default()),
        }
    }

    /// The readiness, and whenever it changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// The generation of the newest decision, and whenever it changes.
    pub(crate) fn decisions(&self) -> watch::Receiver<Generation> {
        self.decisions.subscribe()
    }

    /// The decision as it is kept, made now if there is none.
    pub(crate) async fn decided(&self) -> Result<Arc<Decided>, StoreError> {
        match self.current.load_full() {
            Some(decided) => Ok(decided),
            None => self.refresh(Instant::now()).await,
        }
    }

    /// Forgets the decision: the server that it came from may be another one now.
    pub(crate) fn forget(&self) {
        self.current.store(None);
    }

    /// A decision that admits this instance. A kept refusal is never trusted: it may be history. While a projector of
    /// ours is being switched, waits up to `wait` for the outcome.
    pub(crate) async fn admit(&self, wait: Duration) -> Result<Arc<Decided>, DecideError> {
        let started = Instant::now();
        let mut decided = self.decided().await?;
        if let Verdict::Refused(_) = decided.verdict {
            decided = self.refresh(started).await?;
        }
        while decided.is_activating() && started.elapsed() < wait {
            tokio::time::sleep(ACTIVATING_POLL).await;
            // All who wait share one look: each with one of its own would keep from work the very server that is to switch.
            let lately = Instant::now().checked_sub(ACTIVATING_POLL).unwrap_or(started);
            decided = self.refresh(lately.max(started)).await?;
        }
        match &decided.verdict {
            Verdict::Refused(refused) => Err(DecideError::Refused(refused.clone())),
            Verdict::Empty => panic!("BUG: an empty table was left undecided"),
            Verdict::Admitted { .. } => Ok(decided),
        }
    }

    /// The decision after an admission showed another generation than ours.
    pub(crate) async fn after(&self, seen: Generation) -> Result<Arc<Decided>, StoreError> {
        match self.current.load_full() {
            Some(decided) if decided.generation == seen => Ok(decided),
            _ => self.refresh(Instant::now()).await,
        }
    }

    /// Decides anew if the generation moved. What the watch calls, over and over.
    pub(crate) async fn look(&self) -> Result<Arc<Decided>, StoreError> {
        let started = Instant::now();
        let mut connection = self.connection.lock().await;
        let client = self.connected(&mut connection).await?;
        let row = limited(LOOK_TIMEOUT, self.store.query_one(client, &self.store.sql.generation, &[])).await;
        let row = self.or_lost(&mut connection, row)?;
        drop(connection);
        let decided = self.after(row.get("generation")).await?;
        // While an activation is in its pause its deadline may pass without the generation moving.
        if decided.is_activating() { self.refresh(started).await } else { Ok(decided) }
    }

    /// Reads the states and decides, unless somebody else did so since `asked`.
    async fn refresh(&self, asked: Instant) -> Result<Arc<Decided>, StoreError> {
        let mut connection = self.connection.lock().await;
        if let Some(decided) = self.current.load_full().filter(|decided| decided.as_of >= asked) {
            return Ok(decided);
        }
        let client = self.connected(&mut connection).await?;
        let decided = limited(DECIDE_TIMEOUT, self.decide(client)).await;
        let decided = Arc::new(self.or_lost(&mut connection, decided)?);
        self.keep(&decided);
        Ok(decided)
    }

    async fn connected<'c>(&self, connection: &'c mut Option<Client>) -> Result<&'c Client, StoreError> {
        if connection.as_ref().is_some_and(|client| client.is_closed()) {
            *connection = None;
            self.forget();
        }
        if connection.is_none() {
            *connection = Some(
                self.store.own().await.inspect_err(|error| self.ready_as(Readiness::unreachable(error)))?,
            );
        }
        Ok(connection.as_ref().expect("BUG: connected a line ago"))
    }

    fn or_lost<T>(
        &self,
        connection: &mut Option<Client>,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            *connection = None;
            self.forget();
            if error.is_disconnect() {
                self.ready_as(Readiness::unreachable(error));
            } else {
                self.ready_as(Readiness::undecided(error));
            }
        })
    }

    fn ready_as(&self, next: Readiness) {
        self.readiness.send_if_modified(|readiness| {
            let changed = *readiness != next;
            if readiness.state != next.state {
                info!(state = %next.state, reason = %next.reason, "readiness changed");
            }
            *readiness = next;
            changed
        });
    }

    async fn decide(&self, client: &Client) -> Result<Decided, StoreError> {
        let mut read = Read::now(&self.store, client).await?;
        if let Some(refused) = read.outdated {
            let Read { generation, as_of, .. } = read;
            let (verdict, inline, followed) = (Verdict::Refused(refused), Vec::new(), BTreeSet::new());
            return Ok(Decided { generation, verdict, inline, followed, as_of });
        }
        if read.states.iter().any(|row| row.in_activation) && expiry::expire(&self.store, client).await? {
            read = Read::now(&self.store, client).await?;
        }
        let ours = self.configuration.versions();
        let mut verdict = decide(&ours, &read.states);
        if verdict == Verdict::Empty {
            verdict = match self.when_nothing_is_active {
                WhenNothingIsActive::Refuse => Verdict::Refused(Refused::NoConfigurationIsActive),
                WhenNothingIsActive::AssumeOurs => {
                    let assumed = registration::assume(&self.store, client, &self.configuration).await?;
                    if assumed == Ok(true) && self.stable_views {
                        views::follow_once(&self.store, client).await?;
                    }
                    read = Read::now(&self.store, client).await?;
                    assumed.err().map_or_else(|| decide(&ours, &read.states), Verdict::Refused)
                }
            };
        }
        if verdict == Verdict::Empty {
            // Still no states: a configuration without projectors, which there is nothing to write down of.
            verdict = Verdict::Admitted { fed: [].into(), not_fed: Vec::new() };
        }
        let Read { generation, as_of, .. } = read;
        let inline = match &verdict {
            Verdict::Admitted { fed, .. } => {
                let ours = self.configuration.projectors.values();
                ours.filter(|p| p.target.delivery == Delivery::Inline && fed.contains(&p.target.projector))
                    .cloned()
                    .collect()
            }
            _ => Vec::new(),
        };
        let followed = followed(&ours, &read.states);
        Ok(Decided { generation, verdict, inline, followed, as_of })
    }

    fn keep(&self, decided: &Arc<Decided>) {
        self.current.store(Some(decided.clone()));
        self.decisions
            .send_if_modified(|known| std::mem::replace(known, decided.generation) != decided.generation);
        self.ready_as(Readiness::from(&decided.verdict));
    }
}

/// A server that answers no more must not leave this instance ready, nor hold up whoever asks for admission.
async fn limited<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = StoreError::Timeout { what: "asking for the projectors' states", after: limit };
    tokio::time::timeout(limit, asking).await.unwrap_or(Err(late))
}

/// The states as they were read, and when.
struct Read {
    generation: Generation,
    states: Vec<VersionState>,
    /// Why they are not for this release to interpret, if they are not.
    outdated: Option<Refused>,
    /// Before the reading.
    as_of: Instant,
}

impl Read {
    async fn now(store: &Store, client: &Client) -> Result<Self, StoreError> {
        let as_of = Instant::now();
        // Sent together, run one after the other: whoever migrates sets the generation afterwards.
        let compatibility = store.query_one(client, &store.sql.compatibility, &[]);
        let (read, compatibility) = join(read_states(store, client), compatibility).await;
        let ((generation, states), compatibility) = (read?, compatibility?);
        let (needs, ours) = (compatibility.get("needs"), migrate::newest());
        let outdated = (needs > ours).then(|| Refused::SchemaIsNewer {
            schema: store.schema.clone(),
            found: compatibility.get("version"),
            needs,
            ours,
        });
        Ok(Self { generation, states, outdated, as_of })
    }
}

/// The generation first, then the states: what is decided from them is at least as new as the generation it is kept with.
pub(crate) async fn read_states(
    store: &Store,
    on: impl Into<On<'_>>,
) -> Result<(Generation, Vec<VersionState>), StoreError> {
    let on = on.into();
    let generation = store.ready(on, &store.sql.generation).await?;
    let states = store.ready(on, &store.sql.states).await?;
    // Sent together, run one after the other.
    let (generation, states) = join(generation.query(on, &[]), states.query(on, &[])).await;
    let generation = generation?;
    let states = states?.iter().map(rows::version_state).collect::<Result<_, _>>()?;
    Ok((generation.first().expect("BUG: no generation").get("generation"), states))
}
