//! A small load balancer: it sends requests to whoever says on `/readyz` that it may take them, in turns, and asks another
//! one, once, where the answer is 503.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::timeline::Timeline;

/// How often everybody is asked how they are.
const POLL: Duration = Duration::from_millis(50);
const POLL_WHILE_WAITING: Duration = Duration::from_millis(5);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request waits for somebody to be ready.
const NOBODY_READY: Duration = Duration::from_secs(10);
/// How long a request that was refused waits for an instance of another release: milliseconds, unless the machine stands still.
const OTHER_RELEASE_FIRST: Duration = Duration::from_secs(5);
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
        let first = self.pick(None).await?;
        let mut by = first.clone();
        let mut served = self.request(&first, method, path, body).await?;
        if served.status == StatusCode::SERVICE_UNAVAILABLE {
            self.retried.fetch_add(1, Relaxed);
            by = self.pick(Some(&first)).await?;
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

    /// The next one in turn that is ready. While nobody is, the request waits, and everybody is asked more often.
    async fn pick(&self, refused: Option<&Backend>) -> Result<Arc<Backend>> {
        if let Some(found) = self.pick_now(refused, Duration::ZERO) {
            return Ok(found);
        }
        let started = Instant::now();
        if self.waiting.fetch_add(1, Relaxed) == 0 {
            self.hurry.notify_one();
        }
        let found = loop {
            sleep(POLL_WHILE_WAITING).await;
            let waited = started.elapsed();
            match self.pick_now(refused, waited) {
                Some(found) => break Ok(found),
                None if waited > NOBODY_READY => break Err(anyhow!("nobody was ready for {NOBODY_READY:?}")),
                None => {}
            }
        };
        self.waiting.fetch_sub(1, Relaxed);
        found
    }

    /// Who refused is not asked again. Others of the same release will most likely refuse as well, whatever they said of
    /// themselves a moment ago: they are asked only if nobody of another release gets ready soon.
    fn pick_now(&self, refused: Option<&Backend>, waited: Duration) -> Option<Arc<Backend>> {
        let mut backends = self.backends();
        if let Some(refused) = refused {
            backends.retain(|backend| backend.name != refused.name);
            let others = backends.iter().any(|backend| backend.release != refused.release);
            if others && waited < OTHER_RELEASE_FIRST {
                backends.retain(|backend| backend.release != refused.release);
            }
        }
        backends.retain(|backend| backend.is_ready());
        let turn = self.turn.fetch_add(1, Relaxed);
        (!backends.is_empty()).then(|| backends.swap_remove(turn % backends.len()))
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
