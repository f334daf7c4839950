//! What an append costs while many projectors are registered, and many versions of them are remembered.

use std::time::Duration;

use anyhow::Result;
use changeover::{Changeover, Configuration, Expected, ProjectorName, Readiness, Running};
use changeover_testkit::Database;
use futures_util::FutureExt as _;
use serde_json::json;

use crate::append::appends;
use crate::domain::{background, sixteen, sixteen_alike};
use crate::measure::{Effort, Variant, in_turn};
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, client, instance};

/// Rows that many upgrades leave behind.
const STATES: i32 = 200;

/// The group `registry`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let one = Subject::start(server, background()).await?;
    let sixteen = Subject::start(server, sixteen()).await?;
    let alike = Subject::start(server, sixteen_alike()).await?;
    let upgraded = Subject::start(server, background()).await?;
    upgraded.remember_versions().await?;
    for clients in [1, 8] {
        let [one, sixteen, alike, upgraded] = in_turn(
            effort.rounds,
            [&one, &sixteen, &alike, &upgraded].map(|subject| subject.rounds(effort, clients)),
        )
        .await?;
        let compared = [
            (16, "one handles them", 16, &sixteen, Goal::RatioAtMost(1.1)),
            (16, "all handle them", 16, &alike, Goal::None),
            (1, "it handles them", STATES, &upgraded, Goal::RatioAtMost(1.1)),
        ];
        for (projectors, events, states, cost, goal) in compared {
            let params = json!({"projectors": projectors, "the_events": events, "rows_in_projector_states": states,
                                "clients": clients, "beside": "1 projector, 1 row"});
            report.add(Figure::compared("registry", params, "µs each append", (cost, &one), goal))?;
        }
    }
    for subject in [one, sixteen, alike, upgraded] {
        subject.running.stop().await;
    }
    Ok(())
}

/// An instance that publishes, with its database.
struct Subject {
    database: Database,
    changeover: Changeover,
    running: Running,
    projectors: Vec<ProjectorName>,
}

impl Subject {
    async fn start(server: &Server, configuration: Configuration) -> Result<Self> {
        let database = server.database().await;
        let projectors = configuration.versions().into_keys().collect();
        let changeover = instance(database.config(), configuration).await?;
        let running = changeover.start();
        // The first instance makes its configuration the active one, unless it finds that others were.
        changeover.watch_readiness().wait_for(Readiness::is_ready).await?;
        Ok(Self { database, changeover, running, projectors })
    }

    /// Rounds of appends, in microseconds for each.
    fn rounds(&self, effort: Effort, clients: usize) -> Variant<'_, f64> {
        let appends = appends(&self.changeover, Expected::NoStream, effort, 1, clients);
        Box::new(move || {
            let appended = appends();
            async move {
                // A closed loop: what one append takes of the server, however many clients share it.
                let cost = 1e6 / appended.await?;
                // What it left to publish is not to burden whoever is next.
                self.published().await?;
                Ok(cost)
            }
            .boxed()
        })
    }

    /// Waits until every projector holds what was appended.
    async fn published(&self) -> Result<()> {
        let horizon = self.changeover.horizon().await?;
        for projector in &self.projectors {
            self.changeover.wait_for(projector, horizon, Duration::from_mins(5)).await?;
        }
        Ok(())
    }

    /// As if so many versions had been active before.
    async fn remember_versions(&self) -> Result<()> {
        let client = client(&self.database.config()).await?;
        let sql = "INSERT INTO changeover.projector_states (projector, version, state, delivery, fingerprint, changed_by)
                   SELECT 'orders', '0.' || n || '.0', 'retired', 'background', 'of a version long gone', 'bench'
                   FROM generate_series(2, $1::integer) AS n";
        client.execute(sql, &[&STATES]).await?;
        client
            .query_one(
                "SELECT setval('changeover.generation', last_value + 1) FROM changeover.generation",
                &[],
            )
            .await?;
        Ok(())
    }
}
