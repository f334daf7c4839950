//! Whatever the projector, the log, the pace, and whoever stops in between: the rows are those of a fold of the log, one event after
//! the other, whether folds or statements made them, inline, by a publisher, by one replay or by many, in parallel or serially, resumed,
//! started over or shared.
//!
//! Every case has a seed of its own, one after the other from a fixed one, and names it when it fails.
//! `CHANGEOVER_PROPERTY_SEED` is the first (or the only one that is of interest), `CHANGEOVER_PROPERTY_CASES` says how many there
//! are. A seed repeats the projector, the log and the plan, and not the timing, which is the machine's.

mod described;
mod plan;
mod told;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use changeover::{ActivateOptions, Changeover, Expected, ReplayError, ReplayOptions};
use changeover_testkit::Database;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

pub(crate) use self::described::described;
use self::described::{difference, expected, found, inline_beside};
pub(crate) use self::plan::Paced;
use self::plan::{Case, Kill, Leg, Log, Who, cases};
use crate::chaos::{Chance, from_environment};
use crate::operator::Operator;
use crate::orders::{instance, stream};
use crate::releases::{SOON, hasty};
use crate::traps::published;

/// The first seed, and how many follow from it, unless the environment says otherwise.
const SEED: u64 = 20_008;
const CASES: u64 = 4;

/// What happened in the cases, since chance may have left out what they are there for.
#[derive(Debug, Default)]
struct Happenings {
    /// Processes that were killed while their shards stood apart.
    killed_in_the_middle: AtomicU64,
    /// Logs that take several statements to read.
    long: AtomicU64,
}

/// More positions than two statements of a replay look at.
const LONG: i64 = 70_000;

#[test]
fn rows_are_those_of_the_log_however_they_came_about() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seed = from_environment("CHANGEOVER_PROPERTY_SEED", SEED);
    let (cases_in_all, happened) =
        (from_environment("CHANGEOVER_PROPERTY_CASES", CASES), Happenings::default());
    for seed in seed..seed + cases_in_all {
        println!("CHANGEOVER_PROPERTY_SEED={seed} CHANGEOVER_PROPERTY_CASES=1");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 30,
            max_shrink_time: 60_000,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let ran = runner.run(&cases(), |case| {
            runtime.block_on(check(&case, &happened));
            Ok(())
        });
        match ran {
            Ok(()) => {}
            Err(TestError::Fail(reason, case)) => {
                panic!("seed {seed}: {reason}; the least that fails is {case:#?}")
            }
            Err(aborted) => panic!("seed {seed}: {aborted}"),
        }
    }
    println!("{happened:?}");
    let all = [&happened.killed_in_the_middle, &happened.long];
    assert!(
        cases_in_all < CASES || all.iter().all(|times| times.load(Ordering::Relaxed) > 0),
        "something never happened: {happened:?}"
    );
}

/// All the ways in which rows come about, side by side, while the log grows.
async fn check(case: &Case, happened: &Happenings) {
    let Case { rules, tables, log, legs, serial_legs, over_after, shared, killed, seed } = case;
    let database = Database::fresh().await;
    let client = database.client().await;
    let of = async |major| instance(&database, described(*tables, major)).await;
    let live = of(1).await;
    let mut chance = Chance::new(*seed);
    log.fill(&client, rules, &mut chance).await;
    let running = live.start();

    let writers = (0..2).map(|_| log.append(&live, rules, Chance::new(chance.next())));
    let appended = async {
        for appending in writers.map(tokio::spawn).collect::<Vec<_>>() {
            appending.await.unwrap();
        }
    };
    let (resumed, serial, over) = (of(2).await, of(3).await, of(4).await);
    let newest = "SELECT max(position) FROM changeover.events";
    let is_long = client.query_one(newest, &[]).await.unwrap().get::<_, i64>(0) > LONG;
    happened.long.fetch_add(u64::from(is_long), Ordering::Relaxed);
    let apart = "SELECT FROM changeover.checkpoints WHERE major = 6 AND shard > 0";
    let kills = async {
        for kill in killed {
            let Kill { after_events, delay_ms, .. } = *kill;
            let replaying = Operator::replay_described(&database, *tables, &kill.pace(), after_events);
            replaying.under_way_or_done().await;
            // Any moment is as good as any other.
            sleep(Duration::from_millis(delay_ms)).await;
            replaying.kill_9();
            let in_the_middle = !client.query(apart, &[]).await.unwrap().is_empty();
            happened.killed_in_the_middle.fetch_add(u64::from(in_the_middle), Ordering::Relaxed);
        }
    };
    tokio::join!(
        appended,
        by_legs(&resumed, legs),
        by_legs(&serial, serial_legs),
        async {
            let (before, after) = legs.split_at(legs.len().min(*over_after));
            by_legs(&over, before).await;
            let first = after.first().copied().unwrap_or(Leg::at_once());
            let anew = ReplayOptions { restart: true, ..first.options() };
            until_through(&over, first.who, &anew).await;
            by_legs(&over, after).await;
        },
        kills
    );
    published_both(&live).await;
    running.stop().await;

    // A release that appends feed takes over, with what was there before.
    let last = legs.last().copied().unwrap_or(Leg::at_once()).of_both();
    let inline = instance(&database, inline_beside(*tables)).await;
    let taking_over = ActivateOptions { pace: last.options().pace, repoint_views: false, ..hasty() };
    let _ = inline.activate(&taking_over, &|_| {}).await.unwrap();
    let running = inline.start();
    let writers = (0..2).map(|_| log.append(&inline, rules, Chance::new(chance.next())));
    for appending in writers.map(tokio::spawn).collect::<Vec<_>>() {
        appending.await.unwrap();
    }
    published_both(&inline).await;

    // And to the end.
    through(&resumed, &last).await;
    through(&serial, &Leg::serially()).await;
    through(&over, &last).await;
    let sharing: Vec<_> = futures_util::future::join_all(shared.iter().map(|_| of(5))).await;
    futures_util::future::join_all(
        sharing.iter().zip(shared).map(async |(one, leg)| through(one, &leg.of_both()).await),
    )
    .await;
    through(&of(6).await, &last).await;
    running.stop().await;

    let expected = expected(&client, *tables).await;
    let ways =
        [(1, "published"), (2, "resumed"), (3, "serial"), (4, "started over"), (5, "shared"), (6, "killed")];
    let ways = ways.iter().flat_map(|(major, way)| {
        [(format!("described_v{major}"), *tables, *way), (format!("told_v{major}"), 1, *way)]
    });
    let inline = [("described_inline_v1", *tables), ("told_inline_v1", 1)];
    let inline = inline.map(|(schema, tables)| (schema.to_owned(), tables, "inline"));
    let mut wrong = Vec::new();
    for (schema, tables, way) in ways.chain(inline) {
        let difference = difference(&expected, &found(&client, &schema, tables).await);
        wrong.extend(difference.map(|difference| format!("{schema}, {way}: {difference}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Replays, and is dropped wherever it then is, leg by leg.
async fn by_legs(instance: &Changeover, legs: &[Leg]) {
    for leg in legs {
        let (instance, options) = (instance.clone(), leg.options());
        let names = leg.who.names();
        let replaying = async move { instance.replay(&names, &options, &|_| {}).await };
        // In a task of its own, where nobody else wakes it.
        let dropped = tokio::spawn(polled(leg.polls, replaying));
        if let Some(replayed) = timeout(SOON, dropped).await.unwrap().unwrap() {
            can_go_on(replayed);
        }
    }
}

async fn published_both(instance: &Changeover) {
    published(instance, "described").await;
    published(instance, "told").await;
}

/// Replays to the end of the log.
async fn through(instance: &Changeover, leg: &Leg) {
    until_through(instance, leg.who, &leg.options()).await;
    for done in instance.replay(&leg.who.names(), &leg.options(), &|_| {}).await.unwrap() {
        assert_eq!(done.progress.lag_events(), 0);
    }
}

async fn until_through(instance: &Changeover, who: Who, options: &ReplayOptions) {
    let names = who.names();
    let replaying = async {
        while !can_go_on(instance.replay(&names, options, &|_| {}).await) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, replaying).await.unwrap();
}

/// Whether it is through. One that was dropped may still be at the tables, since the server has not heard of it yet.
fn can_go_on(replayed: Result<Vec<changeover::CaughtUp>, ReplayError>) -> bool {
    match replayed {
        Ok(_) => true,
        Err(ReplayError::InUse { .. }) => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// A future that is polled so many times at most, and dropped then: at any of its awaits.
async fn polled<F: Future>(times: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|context| {
        left = left.saturating_sub(1);
        match future.as_mut().poll(context) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            polled => polled.map(Some),
        }
    })
    .await
}

impl Log {
    /// History, as if it had been appended long ago.
    async fn fill(&self, client: &Client, rules: &[described::Rule; described::TABLES], chance: &mut Chance) {
        let (mut positions, mut streams, mut revisions) = (Vec::new(), Vec::new(), Vec::new());
        let (mut types, mut data) = (Vec::new(), Vec::new());
        let mut newest = std::collections::HashMap::<u64, i64>::new();
        let mut position = 0;
        for _ in 0..self.history {
            position += 1 + i64::try_from(chance.below(self.gaps)).unwrap();
            let stream = chance.below(self.streams);
            let revision = newest.entry(stream).or_default();
            *revision += 1;
            let happened = serde_json::to_value(self.event(rules, chance)).unwrap();
            let (event_type, what) = happened.as_object().unwrap().iter().next().unwrap();
            positions.push(position);
            streams.push(format!("stream-{stream}"));
            revisions.push(*revision);
            types.push(if chance.percent(10) { "Unheard".to_owned() } else { event_type.clone() });
            data.push(what.to_string());
        }
        let sql = "INSERT INTO changeover.events (position, stream, revision, type, data)
                   SELECT p, s, r, t, d::json FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[])
                       AS u (p, s, r, t, d)";
        client.execute(sql, &[&positions, &streams, &revisions, &types, &data]).await.unwrap();
        client
            .query_one("SELECT setval('changeover.event_position', $1)", &[&position.max(1)])
            .await
            .unwrap();
    }

    /// What happens while everything is replayed, one append after the other.
    fn append(
        &self,
        live: &Changeover,
        rules: &[described::Rule; described::TABLES],
        mut chance: Chance,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (log, live, rules) = (self.clone(), live.clone(), *rules);
        async move {
            for _ in 0..log.appends {
                let events: Vec<_> = (0..=chance.below(4)).map(|_| log.event(&rules, &mut chance)).collect();
                let name = stream(&format!("stream-{}", chance.below(log.streams)));
                live.append(&name, Expected::Any, &events).await.unwrap();
            }
        }
    }

    fn event(
        &self,
        rules: &[described::Rule; described::TABLES],
        chance: &mut Chance,
    ) -> described::Happened {
        let mut subject = || i64::try_from(chance.below(self.subjects)).unwrap();
        let what = described::What { subject: subject(), other: subject(), rules: *rules };
        described::Happened::of(chance.next(), what)
    }
}
