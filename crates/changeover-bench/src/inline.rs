//! An append that feeds an inline projector: how often it waits for the server, and what it costs.

use std::time::{Duration, Instant};

use anyhow::Result;
use changeover::{Changeover, Expected};
use changeover_testkit::Proxy;
use serde_json::json;

use crate::append::{CLIENTS, appends, inserts};
use crate::bare;
use crate::domain::{inline, new_stream, order};
use crate::measure::{Effort, Samples, in_turn};
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, instance};

/// The group `inline`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    round_trips(server, report).await?;
    for events in [1, 10] {
        for clients in CLIENTS {
            let database = server.database().await;
            let config = database.config();
            let changeover = instance(config.clone(), inline()).await?;
            bare::create(&config).await?;
            let pool = bare::pool(&config, clients)?;
            let [ours, bare] = in_turn(
                effort.rounds,
                [
                    appends(&changeover, Expected::NoStream, effort, events, clients),
                    inserts(&pool, effort, events, clients),
                ],
            )
            .await?;
            let goal = Goal::RatioAtLeast(if clients == 1 { 0.5 } else { 0.4 });
            let params = json!({"events": events, "clients": clients});
            report.add(Figure::compared("append_inline", params, "events/s", (&ours, &bare), goal))?;
        }
    }
    Ok(())
}

/// On a slow line nothing but round trips takes time, so the time of an append tells how many it takes. That counts
/// what is waited for, not what is sent: statements that travel together cost one.
async fn round_trips(server: &Server, report: &mut Report) -> Result<()> {
    const ONE_WAY: Duration = Duration::from_millis(25);
    let database = server.database().await;
    let proxy = Proxy::in_front_of(&database.config())?;
    let changeover = instance(proxy.config(&database.config()), inline()).await?;
    for events in [1, 10, 100] {
        // Statements are prepared once for each connection.
        append(&changeover, events).await?;
        proxy.delay(ONE_WAY);
        let mut trips = Vec::new();
        for _ in 0..5 {
            trips.push(append(&changeover, events).await?.as_secs_f64() / (2 * ONE_WAY).as_secs_f64());
        }
        proxy.delay(Duration::ZERO);
        let trips = Samples::new(trips);
        report.add(Figure::new(
            "append_inline_round_trips",
            json!({"events": events, "checking_the_connection": "included"}),
            (trips.median().round(), "round trips"),
            None,
            trips.spread(),
            Goal::AtMost(3.0),
        ))?;
    }
    Ok(())
}

async fn append(changeover: &Changeover, events: usize) -> Result<Duration> {
    let (stream, events) = (new_stream(), order(events));
    let started = Instant::now();
    changeover.append(&stream, Expected::NoStream, &events).await?;
    Ok(started.elapsed())
}
