//! A small load balancer: it sends requests to whoever says on `/readyz` that it may take them, in turns, and asks another
//! one, once, where the answer is 503. It knows no more than any other balancer does: which release a backend is of is noted
//! for whoever starts and stops them, and for the figures; no request is sent by it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::timeline::Timeline;

/// How often everybody is asked how they are.
const POLL: Duration = Duration::from_millis(50);
/// The same while requests wait: what HAProxy calls `fastinter`.
const POLL_WHILE_WAITING: Duration = Duration::from_millis(10);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request that was refused waits before it is sent once more: the next round of questions, and the instances
/// themselves, have heard of a switch by then.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How long a request waits at most for somebody to be ready: as long as an activation may pause the writers.
const NOBODY_READY: Duration = Duration::from_secs(2);
/// How long a request may take, far beyond what a user would wait for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How finely requests are counted.
pub(crate) const SLICE: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Backend {
    release: usize,
    name: String,
    url: String,
    /// What it last said of itself.
    state: Mutex<String>,
}

impl Backend {
    fn is_ready(&self) -> bool {
        *self.state.lock().expect("nobody panics here") == "active"
    }
}

/// An answer that got through.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

#[derive(Debug)]
pub(crate) struct Balancer {
    client: Client<HttpConnector, Full<Bytes>>,
    backends: RwLock<Vec<Arc<Backend>>>,
    turn: AtomicUsize,
    retried: AtomicUsize,
    waiting: AtomicUsize,
    longest_wait_micros: AtomicU64,
    /// How many rounds of questions have been answered.
    rounds: watch::Sender<u64>,
    /// The first request that waits does not wait for the next round of questions as well.
    hurry: Notify,
    timeline: Timeline,
    started: Instant,
    slices: Mutex<Vec<[u64; 2]>>,
}

impl Balancer {
    pub(crate) fn new(timeline: Timeline) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .build_http(),
            backends: RwLock::default(),
            turn: AtomicUsize::new(0),
            retried: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            longest_wait_micros: AtomicU64::new(0),
            rounds: watch::Sender::new(0),
            hurry: Notify::new(),
            timeline,
            started: Instant::now(),
            slices: Mutex::default(),
        }
    }

    pub(crate) fn add(&self, release: usize, name: &str, address: &str) {
        let (name, url) = (name.to_owned(), format!("http://{address}"));
        let backend = Backend { release, name, url, state: Mutex::new("unknown".to_owned()) };
        self.backends.write().expect("nobody panics here").push(Arc::new(backend));
    }

    pub(crate) fn remove(&self, release: usize) {
        self.backends.write().expect("nobody panics here").retain(|backend| backend.release != release);
    }

    /// Asks everybody how they are, over and over.
    pub(crate) async fn poll(self: Arc<Self>) {
        loop {
            self.refresh().await;
            self.rounds.send_modify(|rounds| *rounds += 1);
            let pause = if self.waiting.load(Relaxed) > 0 { POLL_WHILE_WAITING } else { POLL };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.hurry.notified() => {}
            }
        }
    }

    /// Waits until every instance of a release is in a state.
    pub(crate) async fn until(&self, release: usize, state: &str, limit: Duration) -> Result<()> {
        let reached = async {
            while !self
                .backends()
                .iter()
                .filter(|backend| backend.release == release)
                .all(|backend| *backend.state.lock().expect("nobody panics here") == state)
            {
                sleep(POLL / 5).await;
            }
        };
        timeout(limit, reached)
            .await
            .with_context(|| format!("release {release} is not {state} after {limit:?}"))
    }

    /// Sends a request to somebody who is ready; once more, to somebody else, where the answer is 503.
    pub(crate) async fn send(&self, method: &Method, path: &str, body: &Value) -> Result<Served> {
        let first = match self.pick(None) {
            Some(ready) => ready,
            None => self.wait_for(None).await?,
        };
        let mut by = first.clone();
        let mut served = self.request(&first, method, path, body).await?;
        if served.status == StatusCode::SERVICE_UNAVAILABLE {
            self.retried.fetch_add(1, Relaxed);
            by = self.wait_for(Some(&first)).await?;
            served = self.request(&by, method, path, body).await?;
        }
        if served.status.is_server_error() {
            bail!("{method} {path}: {} from {} ({})", served.status, by.name, served.body);
        }
        self.count(by.release);
        Ok(served)
    }

    pub(crate) fn retried(&self) -> usize {
        self.retried.load(Relaxed)
    }

    /// The longest time for which a request was held back: because nobody was ready, or before it was sent once more.
    pub(crate) fn longest_wait_ms(&self) -> f64 {
        Duration::from_micros(self.longest_wait_micros.load(Relaxed)).as_secs_f64() * 1_000.0
    }

    /// Requests served by each release, one entry for each slice of time.
    pub(crate) fn slices(&self) -> Vec<[u64; 2]> {
        self.slices.lock().expect("nobody panics here").clone()
    }

    fn count(&self, release: usize) {
        let slice =
            usize::try_from(self.started.elapsed().as_millis() / SLICE.as_millis()).unwrap_or(usize::MAX);
        let mut slices = self.slices.lock().expect("nobody panics here");
        while slices.len() <= slice {
            slices.push([0, 0]);
        }
        slices[slice][release - 1] += 1;
    }

    fn backends(&self) -> Vec<Arc<Backend>> {
        self.backends.read().expect("nobody panics here").clone()
    }

    /// The next one in turn that was ready when it was asked last. Who has refused is not asked again.
    fn pick(&self, refused: Option<&Backend>) -> Option<Arc<Backend>> {
        let mut backends = self.backends();
        backends.retain(|backend| backend.is_ready());
        backends.retain(|backend| refused.is_none_or(|refused| refused.name != backend.name));
        let turn = self.turn.fetch_add(1, Relaxed);
        (!backends.is_empty()).then(|| backends.swap_remove(turn % backends.len()))
    }

    /// The next one that gets ready; after a refusal not before a while has passed and everybody was asked anew. While
    /// requests wait, everybody is asked more often.
    async fn wait_for(&self, refused: Option<&Backend>) -> Result<Arc<Backend>> {
        let started = Instant::now();
        if self.waiting.fetch_add(1, Relaxed) == 0 {
            self.hurry.notify_one();
        }
        let mut rounds = self.rounds.subscribe();
        let ready = timeout(NOBODY_READY, async {
            if refused.is_some() {
                sleep(RETRY_AFTER).await;
                // The questions of the round that is under way may have been asked before.
                let answered = *rounds.borrow();
                rounds.wait_for(|rounds| *rounds >= answered + 2).await?;
            }
            loop {
                if let Some(ready) = self.pick(refused) {
                    break anyhow::Ok(ready);
                }
                rounds.changed().await?;
            }
        });
        let ready = ready.await;
        self.waiting.fetch_sub(1, Relaxed);
        let waited = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest_wait_micros.fetch_max(waited, Relaxed);
        ready.unwrap_or_else(|_| Err(anyhow!("nobody was ready for {NOBODY_READY:?}")))
    }

    async fn refresh(&self) {
        let mut polls = JoinSet::new();
        for backend in self.backends() {
            let client = self.client.clone();
            polls.spawn(async move {
                let said = timeout(POLL_TIMEOUT, ask(&client, &backend.url)).await;
                let (state, reason) = match said {
                    Ok(Ok(body)) => (text(&body, "state"), text(&body, "reason")),
                    Ok(Err(_)) | Err(_) => ("gone".to_owned(), "it does not answer".to_owned()),
                };
                (backend, state, reason)
            });
        }
        while let Some(Ok((backend, state, reason))) = polls.join_next().await {
            let before =
                std::mem::replace(&mut *backend.state.lock().expect("nobody panics here"), state.clone());
            let still_there = self.backends().iter().any(|known| Arc::ptr_eq(known, &backend));
            if before != state && still_there {
                let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
                self.timeline.say(&backend.name, &format!("/readyz says {state}{reason}"));
            }
        }
    }

    async fn request(&self, to: &Backend, method: &Method, path: &str, body: &Value) -> Result<Served> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", to.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let answered = timeout(REQUEST_TIMEOUT, async {
            let (parts, body) = self.client.request(request).await?.into_parts();
            anyhow::Ok((parts.status, body.collect().await?.to_bytes()))
        });
        let (status, bytes) = answered
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer within {REQUEST_TIMEOUT:?}")))
            .with_context(|| format!("{method} {path} to {}", to.name))?;
        Ok(Served { status, body: serde_json::from_slice(&bytes).unwrap_or_default() })
    }
}

async fn ask(client: &Client<HttpConnector, Full<Bytes>>, url: &str) -> Result<Value> {
    let answer = client.get(format!("{url}/readyz").parse()?).await?;
    Ok(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?)
}

fn text(body: &Value, field: &str) -> String {
    body[field].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use axum::Router;
    use axum::extract::State;
    use axum::routing::get;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    /// An instance that says one thing on `/readyz` and does another, as one does that has just retired.
    #[derive(Debug, Default)]
    struct Instance {
        says_ready: AtomicBool,
        serves: AtomicBool,
        asked: AtomicUsize,
        /// Gets ready when this one refuses.
        successor: Option<Arc<Instance>>,
    }

    impl Instance {
        fn new(says_ready: bool, serves: bool, successor: Option<&Arc<Instance>>) -> Arc<Self> {
            let (says_ready, serves) = (AtomicBool::new(says_ready), AtomicBool::new(serves));
            Arc::new(Self { says_ready, serves, asked: AtomicUsize::new(0), successor: successor.cloned() })
        }

        #[expect(clippy::unused_async, reason = "what axum calls is async")]
        async fn readyz(State(instance): State<Arc<Self>>) -> axum::Json<Value> {
            let state = if instance.says_ready.load(Relaxed) { "active" } else { "waiting" };
            axum::Json(json!({ "state": state }))
        }

        #[expect(clippy::unused_async, reason = "what axum calls is async")]
        async fn order(State(instance): State<Arc<Self>>) -> StatusCode {
            instance.asked.fetch_add(1, Relaxed);
            if instance.serves.load(Relaxed) {
                return StatusCode::OK;
            }
            if let Some(successor) = &instance.successor {
                successor.says_ready.store(true, Relaxed);
            }
            StatusCode::SERVICE_UNAVAILABLE
        }

        fn asked(&self) -> usize {
            self.asked.load(Relaxed)
        }
    }

    async fn in_front_of(instances: &[(usize, &Arc<Instance>)]) -> (Arc<Balancer>, JoinSet<()>) {
        let balancer = Arc::new(Balancer::new(Timeline::start(true)));
        let mut tasks = JoinSet::new();
        for (at, (release, instance)) in instances.iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            balancer.add(*release, &at.to_string(), &listener.local_addr().unwrap().to_string());
            let app = Router::new()
                .route("/readyz", get(Instance::readyz))
                .route("/order", get(Instance::order))
                .with_state((*instance).clone());
            tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        }
        let polled = balancer.clone();
        tasks.spawn(async move { polled.poll().await });
        (balancer, tasks)
    }

    async fn send(balancer: &Balancer) -> Result<Served> {
        balancer.send(&Method::GET, "/order", &Value::Null).await
    }

    #[tokio::test]
    async fn a_request_that_is_refused_is_sent_once_more_to_somebody_else_who_is_ready_by_then() {
        let new = Instance::new(false, true, None);
        let old = Instance::new(true, false, Some(&new));
        let (balancer, _tasks) = in_front_of(&[(1, &old), (2, &new)]).await;
        assert_eq!(send(&balancer).await.unwrap().status, StatusCode::OK);
        assert_eq!((balancer.retried(), old.asked(), new.asked()), (1, 1, 1));
        assert!(balancer.longest_wait_ms() >= 100.0);
        // Releases are nothing to it: another instance of the same one will do.
        let (old, twin) = (Instance::new(true, false, None), Instance::new(true, true, None));
        let (balancer, _tasks) = in_front_of(&[(1, &old), (1, &twin)]).await;
        for _ in 0..2 {
            assert_eq!(send(&balancer).await.unwrap().status, StatusCode::OK);
        }
        assert_eq!(twin.asked(), 2);
    }

    #[tokio::test]
    async fn a_request_that_is_refused_twice_has_failed() {
        let (one, other) = (Instance::new(true, false, None), Instance::new(true, false, None));
        let (balancer, _tasks) = in_front_of(&[(1, &one), (1, &other)]).await;
        assert!(send(&balancer).await.is_err());
        assert_eq!((balancer.retried(), one.asked(), other.asked()), (1, 1, 1));
    }

    #[tokio::test]
    async fn who_has_refused_is_not_asked_again_though_nobody_else_is_ready() {
        let (alone, waiting) = (Instance::new(true, false, None), Instance::new(false, true, None));
        let (balancer, _tasks) = in_front_of(&[(1, &alone), (2, &waiting)]).await;
        let error = send(&balancer).await.unwrap_err().to_string();
        assert_eq!(error, "nobody was ready for 2s");
        assert_eq!((alone.asked(), waiting.asked()), (1, 0));
    }
}
