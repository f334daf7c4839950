//! The load: customers who order, look at their orders, pay, and sometimes change their minds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use uuid::Uuid;

use super::balancer::Balancer;
use super::dice::Dice;
use super::ledger::{Acknowledged, Ledger};
use super::timeline::Timeline;

/// How many customers there are at once.
const CUSTOMERS: u64 = 32;
/// After a pause that long no attempt is made to catch up on what was not sent.
const CATCH_UP: Duration = Duration::from_secs(1);
const FAILURES_SHOWN: usize = 5;

#[derive(Debug)]
pub(crate) struct Load {
    balancer: Arc<Balancer>,
    ledger: Arc<Ledger>,
    timeline: Timeline,
    stop: AtomicBool,
    pace: Mutex<Instant>,
    every: Duration,
    requests: AtomicU64,
    failed: AtomicU64,
    stale_reads: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Starts customers who together send so many requests a second.
    pub(crate) fn start(
        balancer: Arc<Balancer>,
        ledger: Arc<Ledger>,
        timeline: Timeline,
        rate: u32,
    ) -> (Arc<Self>, JoinSet<()>) {
        let load = Arc::new(Self {
            balancer,
            ledger,
            timeline,
            stop: AtomicBool::new(false),
            pace: Mutex::new(Instant::now()),
            every: Duration::from_secs(1) / rate.max(1),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stale_reads: AtomicU64::new(0),
            failures: Mutex::default(),
        });
        let mut customers = JoinSet::new();
        for customer in 0..CUSTOMERS {
            let load = load.clone();
            customers.spawn(async move {
                let mut dice = Dice::new(1_000 + customer);
                while !load.stop.load(Relaxed) {
                    if let Err(error) = load.visit(&mut dice).await {
                        load.note_failure(format!("{error:#}"));
                    }
                }
            });
        }
        (load, customers)
    }

    /// The customers finish what they are at, and come no more.
    pub(crate) async fn stop(&self, mut customers: JoinSet<()>) -> Result<()> {
        self.stop.store(true, Relaxed);
        while let Some(customer) = customers.join_next().await {
            customer.context("a customer panicked")?;
        }
        Ok(())
    }

    fn note_failure(&self, failure: String) {
        self.failed.fetch_add(1, Relaxed);
        let mut failures = self.failures.lock().expect("nobody panics here");
        if failures.len() < FAILURES_SHOWN {
            self.timeline.say("FAILED", &failure);
            failures.push(failure);
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Reads that did not show what the same customer had written before.
    pub(crate) fn stale_reads(&self) -> u64 {
        self.stale_reads.load(Relaxed)
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("nobody panics here").clone()
    }

    /// One customer, from the first look to the last. The first request that fails ends the visit.
    async fn visit(&self, dice: &mut Dice) -> Result<()> {
        let customer = dice.customer();
        let items: Vec<Value> = (0..dice.roll(3)).map(|_| item(dice)).collect();
        let placed = json!({ "customer": customer, "items": items });
        let (order, mut revision) = self.write("/orders", &placed, StatusCode::CREATED).await?;
        self.look_at(order, revision).await?;
        let added = item(dice);
        revision = self.write(&format!("/orders/{order}/items"), &added, StatusCode::OK).await?.1;
        self.look_at(order, revision).await?;
        if dice.roll(8) == 0 {
            self.write(&format!("/orders/{order}/cancel"), &Value::Null, StatusCode::OK).await?;
        } else {
            revision = self.write(&format!("/orders/{order}/pay"), &Value::Null, StatusCode::OK).await?.1;
            self.look_at(order, revision).await?;
            self.write(&format!("/orders/{order}/ship"), &Value::Null, StatusCode::OK).await?;
        }
        self.read(&format!("/customers/{}", customer.replace(' ', "%20"))).await?;
        self.read("/bestsellers").await?;
        Ok(())
    }

    async fn write(&self, path: &str, body: &Value, expected: StatusCode) -> Result<(Uuid, i64)> {
        let body = self.request(&Method::POST, path, body, expected).await?;
        let number = |value: &Value| value.as_i64().context("a write was answered without what it wrote");
        let order: Uuid = body["id"].as_str().unwrap_or_default().parse().context("no id in the answer")?;
        let revision = number(&body["revision"])?;
        let positions = body["positions"].as_array().context("no positions in the answer")?;
        let positions = positions.iter().map(number).collect::<Result<_>>()?;
        self.ledger.note_write(Acknowledged { order, revision, positions });
        Ok((order, revision))
    }

    /// A customer sees what was just written, whichever instance of whichever release answers. An instance that has
    /// retired hears of it within milliseconds; what it answers until then may be old.
    async fn look_at(&self, order: Uuid, revision: i64) -> Result<()> {
        let seen = self.read(&format!("/orders/{order}")).await?;
        if seen["revision"].as_i64() != Some(revision) {
            self.stale_reads.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    async fn read(&self, path: &str) -> Result<Value> {
        self.request(&Method::GET, path, &Value::Null, StatusCode::OK).await
    }

    async fn request(
        &self,
        method: &Method,
        path: &str,
        body: &Value,
        expected: StatusCode,
    ) -> Result<Value> {
        self.my_turn().await;
        self.requests.fetch_add(1, Relaxed);
        let served = self.balancer.send(method, path, body).await?;
        ensure!(served.status == expected, "{method} {path}: {} ({})", served.status, served.body);
        Ok(served.body)
    }

    /// Requests are spread evenly over time, whatever the answers take.
    async fn my_turn(&self) {
        let turn = {
            let mut pace = self.pace.lock().expect("nobody panics here");
            let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(*pace);
            *pace = (*pace + self.every).max(earliest);
            *pace
        };
        sleep_until(turn.into()).await;
    }
}

fn item(dice: &mut Dice) -> Value {
    let (sku, quantity, cents) = (dice.sku(), dice.roll(4) + 1, dice.roll(9_900) + 100);
    json!({ "sku": sku, "quantity": quantity, "cents": cents })
}
