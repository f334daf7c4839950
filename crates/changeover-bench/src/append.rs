//! What an append costs beside the bare `INSERT` of the same rows.

use anyhow::Result;
use changeover::deadpool_postgres::Pool;
use changeover::{Changeover, Configuration, Expected};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::bare;
use crate::domain::{new_stream, order};
use crate::measure::{Effort, Variant, closed_loop, in_turn};
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, instance, with_setting};

/// Clients at once, in the cases that are measured.
pub(crate) const CLIENTS: [usize; 2] = [1, 8];

/// The group `append`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    for commit in ["on", "off"] {
        for events in [1, 10] {
            for clients in CLIENTS {
                one(server, effort, report, commit, events, clients).await?;
            }
        }
    }
    Ok(())
}

async fn one(
    server: &Server,
    effort: Effort,
    report: &mut Report,
    commit: &str,
    events: usize,
    clients: usize,
) -> Result<()> {
    let database = server.database().await;
    let config = with_setting(&database.config(), "synchronous_commit", commit);
    let changeover = instance(config.clone(), Configuration::new()).await?;
    bare::create(&config).await?;
    let fast = bare::pool(&config, clients)?;
    let [ours, bare, checked] = in_turn(
        effort.rounds,
        [
            appends(&changeover, Expected::NoStream, effort, events, clients),
            inserts(&fast, effort, events, clients),
            // The connection is asked whether it is clean before each INSERT, as Changeover's own pool does.
            inserts(changeover.pool(), effort, events, clients),
        ],
    )
    .await?;
    let params = |pool: &str| json!({"events": events, "clients": clients, "synchronous_commit": commit, "raw_pool": pool});
    // Without a disk to wait for it shows what the processor pays; the goal is about what was committed for good.
    let goal = if commit == "on" { Goal::RatioAtLeast(0.9) } else { Goal::None };
    report.add(Figure::compared("append", params("unchecked"), "events/s", (&ours, &bare), goal))?;
    report.add(Figure::compared("append", params("checked"), "events/s", (&ours, &checked), Goal::None))
}

/// Rounds of appends to new streams, in events a second.
pub(crate) fn appends<'v>(
    changeover: &Changeover,
    expected: Expected,
    effort: Effort,
    events: usize,
    clients: usize,
) -> Variant<'v, f64> {
    let changeover = changeover.clone();
    Box::new(move || {
        let changeover = changeover.clone();
        let append = move || {
            let changeover = changeover.clone();
            async move {
                changeover.append(&new_stream(), expected, &order(events)).await?;
                Ok(())
            }
        };
        per_event(closed_loop(clients, effort.round, append), events).boxed()
    })
}

/// Rounds of bare `INSERT`s of the same rows, in events a second.
pub(crate) fn inserts<'v>(pool: &Pool, effort: Effort, events: usize, clients: usize) -> Variant<'v, f64> {
    let pool = pool.clone();
    Box::new(move || {
        let pool = pool.clone();
        let insert = move || {
            let pool = pool.clone();
            async move { bare::insert(&pool, &new_stream(), &order(events)).await }
        };
        per_event(closed_loop(clients, effort.round, insert), events).boxed()
    })
}

async fn per_event(appends: impl Future<Output = Result<f64>>, events: usize) -> Result<f64> {
    let events = u32::try_from(events)?;
    Ok(appends.await? * f64::from(events))
}
