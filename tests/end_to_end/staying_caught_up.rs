//! A replay that is followed: it stays caught up until the version is activated.

use std::time::{Duration, Instant};

use changeover::semver::Version;
use changeover::{
    CaughtUp, Changeover, Configuration, Expected, Fold, FoldProjector, Position, ProjectorName, Recorded,
    ReplayError, ReplayOptions, ReplayPhase, Row, Signals, StreamName,
};
use changeover_testkit::{Database, eventually};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::orders::{OrderEvent, Orders2, instance, placed, stream};
use crate::releases::{Held, SOON, Writers, active, hasty, instance_of, more_events, wrong_rows};
use crate::traps::activate;

/// A replay of orders that is followed, in a task of its own.
struct Followed {
    task: JoinHandle<Result<Vec<CaughtUp>, ReplayError>>,
    phases: mpsc::UnboundedReceiver<ReplayPhase>,
}

impl Followed {
    /// Returns once it has caught up.
    async fn start(instance: &Changeover) -> Self {
        Self::start_all(instance, &["orders"]).await
    }

    /// The same, of several projectors.
    async fn start_all(instance: &Changeover, names: &[&str]) -> Self {
        let instance = instance.clone();
        let names: Vec<ProjectorName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let mut catching_up = names.len();
        let (tell, phases) = mpsc::unbounded_channel();
        let options = ReplayOptions { follow: true, lag_events: 100, ..ReplayOptions::default() };
        let task = tokio::spawn(async move {
            let on_progress = |progress: &changeover::ReplayProgress| {
                // Nobody listens any more once it follows.
                let _ = tell.send(progress.phase);
            };
            instance.replay(&names, &options, &on_progress).await
        });
        let mut followed = Self { task, phases };
        while catching_up > 0 {
            followed.reached(ReplayPhase::Following).await;
            catching_up -= 1;
        }
        followed
    }

    async fn reached(&mut self, phase: ReplayPhase) {
        while timeout(SOON, self.phases.recv()).await.unwrap() != Some(phase) {}
    }

    async fn end(self) -> Result<Vec<CaughtUp>, ReplayError> {
        timeout(SOON, self.task).await.unwrap().unwrap()
    }
}

/// How far the second version's rows have come.
async fn position(client: &Client) -> Position {
    let sql =
        "SELECT position FROM changeover.checkpoints WHERE projector = 'orders' AND major = 2 AND shard = 0";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_version_stays_caught_up_until_it_is_activated_and_that_is_its_end() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    let old_running = old.start();
    let writers = Writers::start(2, &[&old, &new]);
    more_events(&client, 200).await;
    // Two processes follow it: either of them may feed it.
    let followed =
        [Followed::start(&new).await, Followed::start(&instance_of(&database, "2.0.0").await).await];
    for _ in 0..3 {
        more_events(&client, 200).await;
        let end = old.horizon().await.unwrap();
        eventually(SOON, || async { position(&client).await >= end }).await;
    }
    // An activation that does not come about is not its end.
    let mut held = Held::at("paused", &new, hasty());
    held.reached().await;
    assert_eq!(new.abort("test").await.unwrap().len(), 1);
    held.outcome().await.unwrap_err();
    more_events(&client, 100).await;
    let end = old.horizon().await.unwrap();
    eventually(SOON, || async { position(&client).await >= end }).await;
    assert!(followed.iter().all(|followed| !followed.task.is_finished()));
    // This one is.
    activate(&new).await;
    for followed in followed {
        let done = followed.end().await.unwrap();
        assert!(done[0].activated && done[0].progress.phase == ReplayPhase::Following, "{done:?}");
    }
    let new_running = new.start();
    more_events(&client, 100).await;
    let written = writers.stop().await;
    assert_eq!((written.failed, active(&client).await.as_str()), (vec![], "orders 2.0.0"));
    let end = new.horizon().await.unwrap();
    new.wait_for(&"orders".parse().unwrap(), end, SOON).await.unwrap();
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    old_running.stop().await;
    new_running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_elsewhere_wakes_who_follows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let old = instance_of(&database, "1.0.0").await;
    let running = old.start();
    // Without a timer it would look twice a second.
    let signals = Signals { timer: None, ..Signals::default() };
    let new = Changeover::builder(database.config())
        .configuration(Configuration::new().fold(Orders2).unwrap())
        .signals(signals)
        .connect()
        .await
        .unwrap();
    let followed = Followed::start(&new).await;
    let (mut quick, name) = (0, stream("order"));
    for _ in 0..20 {
        let appended = old.append(&name, Expected::Any, &[placed("Ada")]).await.unwrap();
        let (at, last) = (Instant::now(), appended.last().unwrap());
        eventually(SOON, || async { position(&client).await >= last }).await;
        quick += usize::from(at.elapsed() < Duration::from_millis(150));
    }
    assert!(quick >= 12, "{quick} of 20");
    followed.task.abort();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_commits_late_reaches_who_follows() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (old, new) = (instance_of(&database, "1.0.0").await, instance_of(&database, "2.0.0").await);
    old.append(&stream("order"), Expected::Any, &[placed("Ada")]).await.unwrap();
    let followed = Followed::start(&new).await;
    let mut own = old.pool().get().await.unwrap();
    let tx = own.transaction().await.unwrap();
    let late = old.append_in(&tx, &stream("late"), Expected::Any, &[placed("Ada")]).await.unwrap();
    let next = old.append(&stream("order"), Expected::Any, &[OrderEvent::Paid]).await.unwrap();
    tx.commit().await.unwrap();
    eventually(SOON, || async { position(&client).await >= next.last().unwrap() }).await;
    assert!(late.last() < next.last());
    assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    // Whoever starts it over takes it away from who follows it.
    let over = ReplayOptions { restart: true, ..ReplayOptions::default() };
    let again = instance_of(&database, "2.0.0").await;
    let _ = again.replay(&["orders".parse().unwrap()], &over, &|_| {}).await.unwrap();
    old.append(&stream("order"), Expected::Any, &[OrderEvent::Paid]).await.unwrap();
    let ended = followed.end().await;
    assert!(matches!(ended, Err(ReplayError::StartedOver { .. })), "{ended:?}");
}

/// A projector that cannot project whatever Mallory places.
#[derive(Row, Clone)]
#[row(table = "placed")]
struct Placed {
    #[row(key)]
    customer: String,
}

impl Fold for Placed {
    type Event = OrderEvent;

    fn keys(event: &OrderEvent, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        match event {
            OrderEvent::Placed { customer } => Some(customer.clone()),
            _ => None,
        }
    }

    fn fold(_row: Option<Self>, customer: &String, _event: &Recorded<OrderEvent>) -> Option<Self> {
        assert_ne!(customer, "Mallory");
        Some(Self { customer: customer.clone() })
    }
}

struct Fragile<const N: usize>;

impl<const N: usize> FoldProjector for Fragile<N> {
    const NAME: &'static str = ["fragile", "frail"][N];
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = OrderEvent;
    type Tables = (Placed,);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_go_on_ends_alone_and_the_others_are_followed_to_the_end() {
    for failing in [&["fragile"][..], &["fragile", "frail"]] {
        let database = Database::fresh().await;
        let client = database.client().await;
        let old = instance_of(&database, "1.0.0").await;
        old.append(&stream("order"), Expected::Any, &[placed("Ada")]).await.unwrap();
        let all = Configuration::new().fold(Orders2).and_then(|all| all.fold(Fragile::<0>));
        let all = instance(&database, all.and_then(|all| all.fold(Fragile::<1>)).unwrap()).await;
        let names: Vec<&str> = ["orders"].iter().chain(failing).copied().collect();
        let mut followed = Followed::start_all(&all, &names).await;
        let spoilt = old.append(&stream("order"), Expected::Any, &[placed("Mallory")]).await.unwrap();
        for _ in failing {
            followed.reached(ReplayPhase::Ended).await;
        }
        let next = old.append(&stream("order"), Expected::Any, &[placed("Ada")]).await.unwrap();
        eventually(SOON, || async { position(&client).await >= next.last().unwrap() }).await;
        assert!(!followed.task.is_finished());
        activate(&instance_of(&database, "2.0.0").await).await;
        let ended = followed.end().await.unwrap_err();
        let failed = match &ended {
            ReplayError::Several(errors) => errors.iter().collect(),
            one => vec![one],
        };
        let at = failed.iter().map(|error| match error {
            ReplayError::Projector { projector, position, .. } => (projector.as_str(), *position),
            error => panic!("{error:?}"),
        });
        let expected: Vec<_> = failing.iter().map(|name| (*name, spoilt.last().unwrap())).collect();
        assert_eq!(at.collect::<Vec<_>>(), expected);
        assert!(failing.iter().all(|name| ended.to_string().contains(name)), "{ended}");
        assert_eq!(wrong_rows(&client, "orders_v2").await, 0);
    }
}
