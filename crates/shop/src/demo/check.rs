//! The checker: reads the log, works out by itself what every read model must hold, and compares row by row.
//!
//! It shares no code with the projectors, on purpose: plain SQL, plain loops, its own idea of what the events mean.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Client;

use super::ledger::Acknowledged;

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Events in the log.
    pub events_appended: u64,
    /// Events that went into the summaries of the orders, as these say themselves.
    pub events_projected: u64,
    /// Events that were acknowledged and are not in the log, or that are in the log and not in a read model.
    pub lost: u64,
    /// Events that are in the log though nobody was told so, or that went into a read model more than once.
    pub duplicated: u64,
    /// Rows of read models that are missing, too many, or other than the log says.
    pub rows_wrong: u64,
    /// Each read model of the active configuration.
    pub read_models: Vec<ReadModel>,
    /// The first few things that are wrong, in words.
    pub examples: Vec<String>,
}

/// One read model.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ReadModel {
    /// Its table.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
    /// How many of them are wrong, counting those that are missing.
    pub rows_wrong: u64,
}

const EXAMPLES: usize = 8;

impl Findings {
    /// Whether everything is as it must be.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.rows_wrong == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

struct Event {
    position: i64,
    stream: String,
    revision: i64,
    kind: String,
    data: Value,
    day: String,
    micros: i64,
}

/// Checks the log against what was acknowledged, and the read models of the active configuration against the log.
///
/// `outcomes_unknown` says that some requests got no answer: they may have been appended without anybody having been told.
pub async fn check(
    client: &Client,
    acknowledged: &[Acknowledged],
    outcomes_unknown: bool,
) -> Result<Findings> {
    let log = read_log(client).await?;
    let mut findings = Findings { events_appended: log.len() as u64, ..Findings::default() };
    check_log(&mut findings, &log, acknowledged, outcomes_unknown);
    let active = "SELECT projector, split_part(version, '.', 1) FROM changeover.projector_states WHERE state = 'active'
        ORDER BY projector";
    for row in client.query(active, &[]).await.context("cannot read which projectors are active")? {
        match (row.get(0), row.get(1)) {
            ("order_summary", "1") => order_summary_v1(&mut findings, client, &log).await?,
            ("order_summary", "2") => order_summary_v2(&mut findings, client, &log).await?,
            ("bestsellers", "1") => bestsellers(&mut findings, client, &log).await?,
            ("daily_revenue", "1") => daily_revenue(&mut findings, client, &log).await?,
            (projector, major) => bail!("nobody told the checker what {projector} {major} must hold"),
        }
    }
    Ok(findings)
}

async fn read_log(client: &Client) -> Result<Vec<Event>> {
    let sql = "SELECT position, stream, revision, type, data::text,
            to_char(recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), (extract(epoch FROM recorded_at) * 1000000)::bigint
        FROM changeover.events ORDER BY position";
    let rows = client.query(sql, &[]).await.context("cannot read the log")?;
    rows.iter()
        .map(|row| {
            Ok(Event {
                position: row.get(0),
                stream: row.get(1),
                revision: row.get(2),
                kind: row.get(3),
                data: serde_json::from_str(row.get(4))?,
                day: row.get(5),
                micros: row.get(6),
            })
        })
        .collect()
}

fn check_log(findings: &mut Findings, log: &[Event], acknowledged: &[Acknowledged], outcomes_unknown: bool) {
    let by_position: HashMap<i64, &Event> = log.iter().map(|event| (event.position, event)).collect();
    let mut seen = HashSet::new();
    for append in acknowledged {
        let stream = format!("order-{}", append.order);
        let first = append.revision - i64::try_from(append.positions.len()).unwrap_or(i64::MAX) + 1;
        for (position, revision) in append.positions.iter().zip(first..) {
            let found = by_position.get(position);
            if !found.is_some_and(|event| event.stream == stream && event.revision == revision) {
                findings.lost += 1;
                findings.example(format!(
                    "{stream} revision {revision} was acknowledged at {position} and is not there"
                ));
            } else if !seen.insert(*position) {
                findings.duplicated += 1;
                findings.example(format!("position {position} was acknowledged twice"));
            }
        }
    }
    for event in log.iter().filter(|event| !seen.contains(&event.position) && !outcomes_unknown) {
        findings.duplicated += 1;
        findings.example(format!("position {} ({}) was never acknowledged", event.position, event.kind));
    }
}

/// A row as text, and how many events it says are in it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    columns: String,
    events: i64,
}

type Rows = BTreeMap<String, Row>;

/// Reads a table. The first column of `select` is the key, the second the number of events, the third everything.
async fn read_rows(client: &Client, select: &str) -> Result<Rows> {
    let rows = client.query(select, &[]).await.with_context(|| format!("cannot run {select}"))?;
    Ok(rows.iter().map(|row| (row.get(0), Row { events: row.get(1), columns: row.get(2) })).collect())
}

fn compare(findings: &mut Findings, table: &str, expected: &Rows, found: &Rows) {
    let mut wrong = 0;
    for (key, row) in expected {
        match found.get(key) {
            Some(same) if same == row => continue,
            Some(other) => {
                let missing = row.events - other.events;
                findings.lost += u64::try_from(missing).unwrap_or(0);
                findings.duplicated += u64::try_from(-missing).unwrap_or(0);
                findings.example(format!("{table}: {} should be {}", other.columns, row.columns));
            }
            None => {
                findings.lost += u64::try_from(row.events).unwrap_or(0);
                findings.example(format!("{table}: {} is missing", row.columns));
            }
        }
        wrong += 1;
    }
    for (_, row) in found.iter().filter(|(key, _)| !expected.contains_key(*key)) {
        findings.example(format!("{table}: {} should not be there", row.columns));
        wrong += 1;
    }
    findings.rows_wrong += wrong;
    findings.read_models.push(ReadModel {
        table: table.to_owned(),
        rows: found.len() as u64,
        rows_wrong: wrong,
    });
}

fn number(event: &Event, field: &str) -> i64 {
    event.data[field].as_i64().unwrap_or_default()
}

/// An order as all that happened makes it.
#[derive(Default)]
struct Order {
    customer: String,
    status: &'static str,
    items: i64,
    pieces: i64,
    cents: i64,
    placed: i64,
    paid_on: Option<String>,
    events: i64,
}

fn orders(log: &[Event]) -> BTreeMap<String, Order> {
    let mut orders: BTreeMap<String, Order> = BTreeMap::new();
    for event in log {
        let order = orders.entry(event.stream.trim_start_matches("order-").to_owned()).or_default();
        order.events += 1;
        match event.kind.as_str() {
            "OrderPlaced" => {
                event.data["customer"].as_str().unwrap_or_default().clone_into(&mut order.customer);
                order.placed = event.micros;
                order.status = "open";
            }
            "ItemAdded" => {
                order.items += 1;
                order.pieces += number(event, "quantity");
                order.cents += number(event, "quantity") * number(event, "cents");
            }
            "OrderPaid" => {
                order.status = "paid";
                order.paid_on = Some(event.day.clone());
            }
            "OrderShipped" => order.status = "shipped",
            "OrderCancelled" => order.status = "cancelled",
            _ => order.status = "unheard of",
        }
    }
    orders
}

async fn order_summary_v1(findings: &mut Findings, client: &Client, log: &[Event]) -> Result<()> {
    let expected =
        orders(log).into_iter().filter(|(_, order)| order.status != "cancelled").map(|(id, order)| {
            let Order { customer, items, cents, events, paid_on, .. } = order;
            let columns = format!("{id} {customer} {items} {cents} {} {events}", paid_on.is_some());
            (id, Row { columns, events })
        });
    let sql = "SELECT id::text, revision, concat_ws(' ', id, customer, items, cents, paid::text, revision)
        FROM order_summary_v1.orders";
    let found = read_rows(client, sql).await?;
    findings.events_projected = sum(&found);
    compare(findings, "order_summary_v1.orders", &expected.collect(), &found);
    Ok(())
}

async fn order_summary_v2(findings: &mut Findings, client: &Client, log: &[Event]) -> Result<()> {
    let expected = orders(log).into_iter().map(|(id, order)| {
        let Order { customer, status, items, pieces, cents, placed, events, .. } = order;
        let columns = format!("{id} {customer} {status} {items} {pieces} {cents} {placed} {events}");
        (id, Row { columns, events })
    });
    let sql = "SELECT id::text, revision, concat_ws(' ', id, customer, status, items, pieces, cents,
            (extract(epoch FROM placed_at) * 1000000)::bigint, revision)
        FROM order_summary_v2.orders";
    let found = read_rows(client, sql).await?;
    findings.events_projected = sum(&found);
    compare(findings, "order_summary_v2.orders", &expected.collect(), &found);
    Ok(())
}

fn sum(rows: &Rows) -> u64 {
    rows.values().map(|row| u64::try_from(row.events).unwrap_or(0)).sum()
}

async fn bestsellers(findings: &mut Findings, client: &Client, log: &[Event]) -> Result<()> {
    let mut articles: BTreeMap<String, [i64; 3]> = BTreeMap::new();
    for event in log.iter().filter(|event| event.kind == "ItemAdded") {
        let sku = event.data["sku"].as_str().unwrap_or_default().to_owned();
        let [lines, pieces, cents] = articles.entry(sku).or_default();
        *lines += 1;
        *pieces += number(event, "quantity");
        *cents += number(event, "quantity") * number(event, "cents");
    }
    let expected = articles.into_iter().map(|(sku, [lines, pieces, cents])| {
        let columns = format!("{sku} {lines} {pieces} {cents}");
        (sku, Row { columns, events: lines })
    });
    let sql = "SELECT sku, lines, concat_ws(' ', sku, lines, pieces, cents) FROM bestsellers_v1.articles";
    compare(findings, "bestsellers_v1.articles", &expected.collect(), &read_rows(client, sql).await?);
    Ok(())
}

async fn daily_revenue(findings: &mut Findings, client: &Client, log: &[Event]) -> Result<()> {
    let (mut unpaid, mut days) = (Rows::new(), BTreeMap::<String, [i64; 3]>::new());
    for (id, order) in orders(log) {
        if let Some(day) = order.paid_on {
            let [orders, items, cents] = days.entry(day).or_default();
            *orders += 1;
            *items += order.items;
            *cents += order.cents;
        } else if order.status == "open" && order.items > 0 {
            let columns = format!("{id} {} {}", order.items, order.cents);
            unpaid.insert(id, Row { columns, events: order.items });
        }
    }
    let days = days.into_iter().map(|(day, [orders, items, cents])| {
        let columns = format!("{day} {orders} {items} {cents}");
        (day, Row { columns, events: orders })
    });
    let sql = "SELECT id::text, items, concat_ws(' ', id, items, cents) FROM daily_revenue_v1.unpaid";
    compare(findings, "daily_revenue_v1.unpaid", &unpaid, &read_rows(client, sql).await?);
    let sql =
        "SELECT day::text, orders, concat_ws(' ', day, orders, items, cents) FROM daily_revenue_v1.days";
    compare(findings, "daily_revenue_v1.days", &days.collect(), &read_rows(client, sql).await?);
    Ok(())
}
