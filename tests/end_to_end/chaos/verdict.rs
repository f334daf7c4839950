//! What the run left behind, held against what it ought to be.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use changeover_testkit::Database;
use changeover_testkit::history::{
    AppendId, Fate, History, LoggedEvent, Projection, Takeover, Write, Wrong, rows_wrong,
};
use tokio_postgres::{Client, Row};

use super::done::Done;
use super::story::{Line, Mark, ShopEvent};

/// An event as the log holds it.
struct Event {
    position: i64,
    stream: String,
    data: ShopEvent,
}

/// Checks everything, prints what there was, and panics with all that is wrong.
pub(crate) async fn check(database: &Database, journals: &Path, seed: u64, done: &Done) {
    let client = database.client().await;
    let (history, events) = history(&client, journals).await;
    let mut wrongs = history.wrongs();
    let tables = tables_wrong(&client, &events, &mut wrongs).await;
    let checkpoints = checkpoints_wrong(&client).await;

    let acknowledged =
        history.writes.iter().filter(|write| matches!(write.fate, Fate::Acknowledged { .. })).count();
    let unknown = history.writes.iter().filter(|write| write.fate == Fate::Unknown).count();
    let outcomes = client
        .query(
            "SELECT coalesce(outcome, 'open'), count(*) FROM changeover.activations GROUP BY 1 ORDER BY 1",
            &[],
        )
        .await
        .expect("the activations");
    let outcomes: Vec<String> =
        outcomes.iter().map(|row| format!("{} {}", row.get::<_, i64>(1), row.get::<_, &str>(0))).collect();
    println!(
        "seed {seed}: {} events, {} appends of which {acknowledged} acknowledged and {unknown} unknown; activations: {}, \
         of which {} back and {} followed, {} aborted and {} expired in their pause; {} versions pruned; {} frozen across a switch; \
         {:?}; {tables} tables; {} wrong",
        events.len(),
        history.writes.len(),
        outcomes.join(", "),
        done.back,
        done.followed,
        done.aborted,
        done.expired,
        done.pruned,
        done.frozen,
        done.replays,
        wrongs.len() + checkpoints.len(),
    );
    let failures = client
        .query("SELECT id, requested_by, outcome, error FROM changeover.activations WHERE error IS NOT NULL ORDER BY 1", &[])
        .await
        .expect("the activations");
    for row in failures {
        let (id, by, outcome, error): (i64, &str, &str, &str) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        println!("  activation {id} ({by}) {outcome}: {error}");
    }
    let mut said: Vec<String> = wrongs.iter().map(ToString::to_string).collect();
    said.extend(checkpoints);
    if !said.is_empty() {
        said.truncate(40);
        panic!("seed {seed}, journals in {}:\n{}", journals.display(), said.join("\n"));
    }
    assert!(acknowledged > 50 && history.takeovers.len() > 2, "too little happened to prove anything");
    std::fs::remove_dir_all(journals).expect("the journals are removed");
}

async fn history(client: &Client, journals: &Path) -> (History, Vec<Event>) {
    let rows = client
        .query(
            "SELECT position, stream, revision, type, data::text, metadata::text FROM changeover.events ORDER BY position",
            &[],
        )
        .await
        .expect("the log");
    let mut history = History::default();
    let mut events = Vec::new();
    for row in rows {
        let (position, stream, revision) = (row.get(0), row.get::<_, String>(1), row.get(2));
        let mark: Mark = serde_json::from_str(row.get(5)).expect("a mark");
        let append = AppendId { writer: mark.writer, number: mark.number };
        let configuration = format!("release {}", mark.release);
        history.log.push(LoggedEvent { position, stream: stream.clone(), revision, append, configuration });
        let data: serde_json::Value = serde_json::from_str(row.get(4)).expect("json");
        let data = serde_json::Value::from_iter([(row.get::<_, String>(3), data)]);
        events.push(Event { position, stream, data: serde_json::from_value(data).expect("an event") });
    }
    for journal in std::fs::read_dir(journals).expect("the journals") {
        read_journal(&journal.expect("a journal").path(), &mut history);
    }
    history.takeovers = takeovers(client).await;
    history.projections = projections(client).await;
    (history, events)
}

fn read_journal(path: &Path, history: &mut History) {
    let writer = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
    let mut appends: BTreeMap<u64, Write> = BTreeMap::new();
    let mut read = Vec::new();
    for line in std::fs::read_to_string(path).expect("a journal").lines() {
        match serde_json::from_str(line).expect("a line") {
            Line::Intends { number, transaction, stream, events } => {
                let append = AppendId { writer: writer.clone(), number };
                appends.insert(number, Write { append, transaction, stream, events, fate: Fate::Unknown });
            }
            Line::Acknowledged { number, positions, revision, .. } => {
                appends.get_mut(&number).expect("an intent").fate =
                    Fate::Acknowledged { positions, revision };
            }
            Line::NotAppended { number, .. } => {
                appends.get_mut(&number).expect("an intent").fate = Fate::NotAppended;
            }
            Line::Read { positions } => read.extend(positions),
        }
    }
    history.writes.extend(appends.into_values());
    history.readings.push(read);
}

/// What the totals say of who fed them: each release took over from the other in place.
async fn projections(client: &Client) -> Vec<Projection> {
    let sql = "SELECT position, release, (extract(epoch FROM at) * 1000000)::bigint FROM totals_v1.projected";
    let rows = client.query(sql, &[]).await.expect("the totals");
    let projection = |row: &Row| Projection {
        position: row.get(0),
        configuration: format!("release {}", row.get::<_, i64>(1)),
        at: row.get(2),
    };
    rows.iter().map(projection).collect()
}

/// The first release was assumed at the start; every other one took over at the horizon of its activation, once nothing was in
/// flight any more that the one before had begun.
async fn takeovers(client: &Client) -> Vec<Takeover> {
    let rows = client
        .query(
            "SELECT horizon, (to_configuration ->> 'orders'), (extract(epoch FROM drained_at) * 1000000)::bigint
             FROM changeover.activations
             WHERE outcome = 'activated' ORDER BY ended_at",
            &[],
        )
        .await
        .expect("the activations");
    let first = Takeover { horizon: 0, configuration: "release 1".to_owned(), at: 0 };
    let took_over = rows.iter().map(|row| {
        let major = row.get::<_, &str>(1).split('.').next().expect("a version").to_owned();
        Takeover { horizon: row.get(0), configuration: format!("release {major}"), at: row.get(2) }
    });
    [first].into_iter().chain(took_over).collect()
}

/// Rows by key, as text.
type Rows = BTreeMap<String, String>;

fn digest(before: i64, position: i64) -> i64 {
    (before * 31 + position) % 1_000_000_007
}

fn orders(events: &[Event]) -> Rows {
    let mut rows: HashMap<&str, (i64, i32, i64, i64)> = HashMap::new();
    for Event { position, stream, data } in events {
        match *data {
            ShopEvent::Placed { customer, cents } => {
                rows.insert(stream, (customer, 1, cents, digest(0, *position)));
            }
            ShopEvent::ItemAdded { cents, .. } => {
                if let Some(row) = rows.get_mut(stream.as_str()) {
                    *row = (row.0, row.1 + 1, row.2 + cents, digest(row.3, *position));
                }
            }
            ShopEvent::Cancelled { .. } => drop(rows.remove(stream.as_str())),
            ShopEvent::Moved { .. } | ShopEvent::Closed { .. } => {}
        }
    }
    rows.into_iter().map(|(id, (a, b, c, d))| (id.to_owned(), format!("{a}|{b}|{c}|{d}"))).collect()
}

fn accounts(events: &[Event]) -> Rows {
    let mut rows: BTreeMap<i64, (i64, i64, i64)> = BTreeMap::new();
    for Event { position, data, .. } in events {
        let closes = match *data {
            ShopEvent::Closed { customer } => Some(customer),
            ShopEvent::Cancelled { customer } => {
                rows.get(&customer).filter(|row| row.0 <= 1).map(|_| customer)
            }
            _ => None,
        };
        if let Some(customer) = closes {
            rows.remove(&customer);
            continue;
        }
        // Whose row, whether it is created, and by how much it changes.
        let changes = match *data {
            ShopEvent::Placed { customer, cents } => vec![(customer, true, 1, cents)],
            ShopEvent::ItemAdded { customer, cents } => vec![(customer, false, 0, cents)],
            // A move to oneself is a move away: the row is touched once.
            ShopEvent::Moved { from, to } if from == to => vec![(from, false, 0, -1)],
            ShopEvent::Moved { from, to } => vec![(from, false, 0, -1), (to, true, 0, 1)],
            ShopEvent::Cancelled { customer } => vec![(customer, false, -1, 0)],
            ShopEvent::Closed { .. } => vec![],
        };
        for (customer, create, orders, cents) in changes {
            if create {
                rows.entry(customer).or_default();
            }
            if let Some(row) = rows.get_mut(&customer) {
                *row = (row.0 + orders, row.1 + cents, digest(row.2, *position));
            }
        }
    }
    rows.into_iter().map(|(customer, (a, b, c))| (customer.to_string(), format!("{a}|{b}|{c}"))).collect()
}

fn trails(events: &[Event]) -> Rows {
    let mut rows: HashMap<&str, (i64, i64)> = HashMap::new();
    for Event { position, stream, .. } in events {
        let row = rows.entry(stream).or_default();
        *row = (row.0 + 1, digest(row.1, *position));
    }
    rows.into_iter().map(|(stream, (a, b))| (stream.to_owned(), format!("{a}|{b}"))).collect()
}

fn sales(events: &[Event], rows_at_most: i64) -> Rows {
    let mut rows: HashMap<i64, (i64, i64, i64)> = HashMap::new();
    for Event { position, data, .. } in events {
        if let ShopEvent::Placed { customer, cents } | ShopEvent::ItemAdded { customer, cents } = *data {
            let row = rows.entry(customer % rows_at_most).or_default();
            *row = (row.0 + 1, row.1 + cents, digest(row.2, *position));
        }
    }
    rows.into_iter().map(|(customer, (a, b, c))| (customer.to_string(), format!("{a}|{b}|{c}"))).collect()
}

fn sold(events: &[Event]) -> Rows {
    let is_sale =
        |event: &&Event| matches!(event.data, ShopEvent::Placed { .. } | ShopEvent::ItemAdded { .. });
    events.iter().filter(is_sale).map(|event| (event.position.to_string(), "once".to_owned())).collect()
}

/// A table, its columns, and the fold that it ought to be.
type Expectation = (&'static str, &'static str, &'static str, fn(&[Event]) -> Rows);

fn expectations(projector: &str) -> Vec<Expectation> {
    let accounts: Expectation =
        ("accounts", "customer::text", "concat_ws('|', orders, cents, digest)", accounts);
    match projector {
        "orders" => {
            vec![("orders", "id", "concat_ws('|', customer, items, cents, digest)", orders), accounts]
        }
        "customers" => vec![accounts],
        "trails" => vec![("trails", "stream", "concat_ws('|', events, digest)", trails)],
        "totals" => {
            let sales: Expectation =
                ("sales", "customer::text", "concat_ws('|', events, cents, digest)", |events| {
                    sales(events, 2)
                });
            vec![sales, ("projected", "position::text", "'once'", sold)]
        }
        "ledger" => {
            vec![("sales", "customer::text", "concat_ws('|', events, cents, digest)", |events| {
                sales(events, i64::MAX)
            })]
        }
        other => panic!("BUG: nothing is known of {other}"),
    }
}

/// Every table of every version: those that appends keep current against the whole log, all others against the log up to
/// their checkpoint.
async fn tables_wrong(client: &Client, events: &[Event], wrongs: &mut Vec<Wrong>) -> usize {
    let checkpoints = client
        .query("SELECT projector, major, position, inline FROM changeover.checkpoints ORDER BY 1, 2", &[])
        .await
        .expect("the checkpoints");
    let mut tables = 0;
    for row in checkpoints {
        let (projector, major): (&str, i64) = (row.get(0), row.get(1));
        let up_to: i64 = if row.get(3) { i64::MAX } else { row.get(2) };
        let seen = &events[..events.partition_point(|event| event.position <= up_to)];
        for (table, key, columns, fold) in expectations(projector) {
            let table = format!("{projector}_v{major}.{table}");
            let rows =
                client.query(&format!("SELECT {key}, {columns} FROM {table}"), &[]).await.expect("the rows");
            let found: Rows = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            wrongs.extend(rows_wrong(&table, &fold(seen), &found));
            tables += 1;
        }
    }
    tables
}

/// What is fed by appends has the horizon of its activation as its checkpoint, also once it has retired; what is fed in the
/// background has caught up, and did not go on once it had retired, unless it was followed. What is replayed has no bound: but whatever
/// was replayed since it retired does not say any more that it has.
async fn checkpoints_wrong(client: &Client) -> Vec<String> {
    let activations = client
        .query(
            "SELECT horizon, from_configuration::text, to_configuration::text, keep_following FROM changeover.activations
             WHERE outcome = 'activated' ORDER BY ended_at",
            &[],
        )
        .await
        .expect("the activations");
    // The horizon at which each version was last switched in or out, and whether it was followed on from there.
    let mut switched: HashMap<(String, i64), (i64, bool)> = HashMap::new();
    for row in &activations {
        let versions = |column| -> BTreeMap<String, String> {
            serde_json::from_str(row.get(column)).expect("a configuration")
        };
        let (from, to) = (versions(1), versions(2));
        let out = from.iter().filter(|(name, version)| to.get(*name) != Some(version));
        let into = to.iter().filter(|(name, version)| from.get(*name) != Some(version));
        let (out, into) = (out.map(|out| (out, row.get(3))), into.map(|into| (into, false)));
        for ((projector, version), followed) in out.chain(into) {
            let major = version.split('.').next().and_then(|major| major.parse().ok()).expect("a version");
            switched.insert((projector.clone(), major), (row.get(0), followed));
        }
    }
    let newest: i64 = activations.last().map_or(0, |row| row.get(0));
    let rows = client
        .query(
            "SELECT c.projector, c.major, c.position, c.inline, s.state, s.delivery, s.version, c.error,
                    (SELECT last_value FROM changeover.event_position), s.follow, c.shard = 0 AND c.parallel_to IS NULL,
                    EXISTS (SELECT FROM changeover.projector_states o
                            WHERE o.projector = s.projector AND o.state = 'active'
                              AND split_part(o.version, '.', 1)::bigint = c.major)
             FROM changeover.checkpoints c
             JOIN changeover.projector_states s
               ON s.projector = c.projector AND split_part(s.version, '.', 1)::bigint = c.major",
            &[],
        )
        .await
        .expect("the checkpoints");
    let mut wrongs = Vec::new();
    for row in &rows {
        let (projector, major, position): (&str, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let (inline, state, delivery): (bool, &str, &str) = (row.get(3), row.get(4), row.get(5));
        let mut wrong =
            |what: String| wrongs.push(format!("{projector} {} ({state}): {what}", row.get::<_, &str>(6)));
        if let Some(error) = row.get::<_, Option<&str>>(7) {
            wrong(format!("stalled: {error}"));
        }
        if !row.get::<_, bool>(10) {
            wrong("its shards have not met".to_owned());
        }
        let (is_followed, is_shared): (bool, bool) = (row.get(9), row.get(11));
        match (delivery, state) {
            ("inline", "active" | "retired") => {
                let (horizon, followed) =
                    switched.get(&(projector.to_owned(), major)).copied().unwrap_or_default();
                if position < horizon || (position > horizon && !followed) {
                    wrong(format!("its checkpoint is {position}, its activation's horizon {horizon}"));
                }
                if inline != (state == "active") {
                    wrong(format!("appends keep it current: {inline}"));
                }
            }
            ("background", "active") if position != row.get::<_, i64>(8) => {
                wrong(format!("its checkpoint is {position}, the log ends at {}", row.get::<_, i64>(8)));
            }
            ("background", "retired") if !is_shared && !is_followed => {
                let (horizon, followed) =
                    switched.get(&(projector.to_owned(), major)).copied().unwrap_or_default();
                // Nobody follows across two switches.
                let most = if followed { newest } else { horizon };
                if position > most {
                    wrong(format!("its checkpoint is {position}, and nobody was to feed it beyond {most}"));
                }
            }
            _ if state == "activating" => wrong("left in the middle".to_owned()),
            _ => {}
        }
    }
    wrongs
}
