//! Accounts: the domain of the tests of a parallel replay. Rows that come and go, rows that many streams feed, one row that every
//! event touches, events that touch several rows or none; and how two versions of them are compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use changeover::semver::Version;
use changeover::{
    Changeover, Configuration, Fold, FoldProjector, Pace, ProjectorName, Recorded, ReplayOptions, Row,
    StreamName, Throttle,
};
use changeover_testkit::Database;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::orders::instance;

/// What happens to accounts. An event names one account, two, or none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AccountEvent {
    Opened { account: i64, owner: String },
    Moved { from: i64, to: i64, cents: i64 },
    Closed { account: i64 },
    Poisoned { account: i64 },
    Nothing {},
}

impl AccountEvent {
    fn accounts(&self) -> Vec<i64> {
        match self {
            Self::Opened { account, .. } | Self::Closed { account } | Self::Poisoned { account } => {
                vec![*account]
            }
            Self::Moved { from, to, .. } => vec![*from, *to, *from],
            Self::Nothing {} => Vec::new(),
        }
    }
}

/// A row for each account, fed by many streams; it comes and goes. The trace depends on the order of events.
#[derive(Row, Clone)]
#[row(table = "accounts")]
pub(crate) struct Account {
    #[row(key)]
    id: i64,
    #[row(index)]
    owner: Option<String>,
    cents: i64,
    trace: String,
}

/// While this is not 0, the account of this number cannot be poisoned without a panic.
pub(crate) static POISON: AtomicU64 = AtomicU64::new(0);

impl Fold for Account {
    type Event = AccountEvent;

    fn keys(event: &AccountEvent, _stream: &StreamName) -> impl IntoIterator<Item = i64> {
        event.accounts()
    }

    fn fold(row: Option<Self>, account: &i64, event: &Recorded<AccountEvent>) -> Option<Self> {
        let mut row =
            row.unwrap_or_else(|| Self { id: *account, owner: None, cents: 0, trace: String::new() });
        match &event.data {
            AccountEvent::Opened { owner, .. } => row.owner = Some(owner.clone()),
            AccountEvent::Moved { from, to, cents } => {
                row.cents +=
                    if account == to { *cents } else { 0 } - if account == from { *cents } else { 0 };
            }
            AccountEvent::Closed { .. } => return None,
            AccountEvent::Poisoned { .. } => {
                assert_ne!(POISON.load(Ordering::Relaxed), account.unsigned_abs(), "poison");
            }
            AccountEvent::Nothing {} => {}
        }
        row.trace = format!("{:.40}", format!("{} {}", event.position, row.trace));
        Some(row)
    }
}

/// A row for each stream and kind of event, with a key of two parts.
#[derive(Row, Clone)]
#[row(table = "kinds")]
pub(crate) struct Kind {
    #[row(key)]
    stream: String,
    #[row(key)]
    what: String,
    events: i64,
    last: i64,
}

impl Fold for Kind {
    type Event = AccountEvent;

    fn keys(event: &AccountEvent, stream: &StreamName) -> impl IntoIterator<Item = (String, String)> {
        let kind = match event {
            AccountEvent::Nothing {} => return None,
            AccountEvent::Moved { .. } => "moved",
            _ => "other",
        };
        Some((stream.to_string(), kind.to_owned()))
    }

    fn fold(
        row: Option<Self>,
        (stream, kind): &(String, String),
        event: &Recorded<AccountEvent>,
    ) -> Option<Self> {
        let events = row.map_or(0, |row| row.events) + 1;
        Some(Self { stream: stream.clone(), what: kind.clone(), events, last: event.revision.get() })
    }
}

/// The one row that every event touches.
#[derive(Row, Clone)]
#[row(table = "whole")]
pub(crate) struct Whole {
    #[row(key)]
    one: bool,
    events: i64,
    checksum: i64,
}

impl Fold for Whole {
    type Event = AccountEvent;

    fn keys(_event: &AccountEvent, _stream: &StreamName) -> impl IntoIterator<Item = bool> {
        [true]
    }

    fn fold(row: Option<Self>, one: &bool, event: &Recorded<AccountEvent>) -> Option<Self> {
        let (events, checksum) = row.map_or((0, 0), |row| (row.events, row.checksum));
        let checksum = checksum.wrapping_mul(31).wrapping_add(event.position.get());
        Some(Self { one: *one, events: events + 1, checksum })
    }
}

pub(crate) struct Accounts<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for Accounts<MAJOR> {
    const NAME: &'static str = "accounts";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    type Event = AccountEvent;
    type Tables = (Account, Kind, Whole);
}

const TABLES: [&str; 3] = ["accounts", "kinds", "whole"];

/// A projector of its own beside it, that handles few of the types.
#[derive(Debug, Deserialize)]
pub(crate) enum ClosingEvent {
    Closed { account: i64 },
}

#[derive(Row, Clone)]
#[row(table = "closings")]
pub(crate) struct Closing {
    #[row(key)]
    account: i64,
    times: i64,
}

impl Fold for Closing {
    type Event = ClosingEvent;

    fn keys(
        ClosingEvent::Closed { account }: &ClosingEvent,
        _stream: &StreamName,
    ) -> impl IntoIterator<Item = i64> {
        [*account]
    }

    fn fold(row: Option<Self>, account: &i64, _event: &Recorded<ClosingEvent>) -> Option<Self> {
        Some(Self { account: *account, times: row.map_or(0, |row| row.times) + 1 })
    }
}

pub(crate) struct Closings;

impl FoldProjector for Closings {
    const NAME: &'static str = "closings";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = ClosingEvent;
    type Tables = (Closing,);
}

/// One that reads the very events of the accounts, and handles all of them.
pub(crate) struct Kinds;

impl FoldProjector for Kinds {
    const NAME: &'static str = "kinds";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = AccountEvent;
    type Tables = (Kind,);
}

pub(crate) fn accounts() -> ProjectorName {
    "accounts".parse().unwrap()
}

/// A random log: its numbers come from the seed alone.
pub(crate) async fn fill(client: &Client, seed: f64, events: i64) {
    let sql = format!(
        "SELECT setseed({seed});
         INSERT INTO changeover.events (position, stream, revision, type, data)
         SELECT n * 2, stream, row_number() OVER (PARTITION BY stream ORDER BY n), type,
                (CASE type
                     WHEN 'Opened' THEN json_build_object('account', a, 'owner', 'It''s ' || b)
                     WHEN 'Moved' THEN json_build_object('from', a, 'to', b, 'cents', b * 7)
                     WHEN 'Nothing' THEN json_build_object()
                     ELSE json_build_object('account', a) END)
         FROM (
             SELECT n, 'stream-' || (random() * 40)::int AS stream, (random() * random() * 900)::int AS a,
                    (random() * 900)::int AS b,
                    (ARRAY['Opened', 'Moved', 'Moved', 'Moved', 'Closed', 'Nothing', 'Unheard', 'Moved'])[1 + (random() * 7)::int]
                    AS type
             FROM generate_series(1, {events}) AS n
         ) random;
         SELECT setval('changeover.event_position', {events} * 2)"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// The rows of one version that another one has not got, in any table, in both directions.
pub(crate) async fn differences(client: &Client, one: u64, other: u64) -> i64 {
    let mut differences = 0;
    for table in TABLES {
        let (one, other) = (format!("accounts_v{one}.{table}"), format!("accounts_v{other}.{table}"));
        let sql = format!(
            "SELECT count(*) FROM ((TABLE {one} EXCEPT ALL TABLE {other}) UNION ALL (TABLE {other} EXCEPT ALL TABLE {one})) d"
        );
        differences += client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0);
    }
    differences
}

pub(crate) async fn rows(client: &Client, major: u64) -> i64 {
    let sql = format!(
        "SELECT (SELECT count(*) FROM accounts_v{major}.accounts) + (SELECT events FROM accounts_v{major}.whole)"
    );
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

pub(crate) fn serially() -> ReplayOptions {
    with(Pace { parallel_above_events: i64::MAX, ..Pace::default() })
}

pub(crate) fn with(pace: Pace) -> ReplayOptions {
    ReplayOptions { requested_by: "test".to_owned(), pace, ..ReplayOptions::default() }
}

/// Everything as small as it gets, so that everything happens: rows are written, forgotten and loaded again all the time.
pub(crate) fn cramped(shards: u16) -> Pace {
    Pace {
        parallel_above_events: 0,
        shards: Some(shards),
        memory_bytes: 40_000 * usize::from(shards),
        checkpoint_every: Duration::from_millis(5),
        max_connections: 6,
        ..Pace::default()
    }
}

/// The same, so slowly that something can happen in the middle.
pub(crate) fn slowly(shards: u16, events_per_sec: u32) -> Pace {
    let throttle = Throttle { events_per_sec: Some(events_per_sec), ..Throttle::default() };
    Pace { throttle, ..cramped(shards) }
}

pub(crate) fn at_once() -> Pace {
    Pace { parallel_above_events: 0, ..Pace::default() }
}

pub(crate) async fn replay(instance: &Changeover, options: &ReplayOptions) -> u64 {
    let done = instance.replay(&[accounts()], options, &|_| {}).await.unwrap();
    assert_eq!(done[0].progress.position, instance.horizon().await.unwrap());
    done[0].progress.events
}

pub(crate) async fn of<const MAJOR: u64>(database: &Database) -> Changeover {
    instance(database, Configuration::new().fold(Accounts::<MAJOR>).unwrap()).await
}

/// No trace of shards is left, and the indexes are there.
pub(crate) async fn is_whole(client: &Client, major: i64) {
    let sql =
        "SELECT count(*), bool_and(indexed AND parallel_to IS NULL AND shard = 0) FROM changeover.checkpoints
               WHERE projector = 'accounts' AND major = $1";
    let row = client.query_one(sql, &[&major]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<bool>>(1)), (1, Some(true)));
    let sql = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'accounts_v' || $1::bigint AND indexname = 'accounts_owner_idx'";
    assert_eq!(client.query_one(sql, &[&major]).await.unwrap().get::<_, i64>(0), 1);
}
