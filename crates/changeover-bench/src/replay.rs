//! The replay of a log, beside what the database itself takes to hand the log out and to take the rows in.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use changeover::tokio_postgres::{Client, Config, Statement};
use changeover::{Changeover, Configuration, ProjectorName, ReplayOptions};
use changeover_testkit::Database;
use futures_util::future::{try_join, try_join_all};
use futures_util::{FutureExt as _, SinkExt as _, TryStreamExt as _};
use serde_json::json;

use crate::measure::{Effort, Samples, Variant, in_turn};
use crate::memory;
use crate::report::{Figure, Goal, Report};
use crate::server::{Server, client, migrated};
use crate::subjects::{BigOrders, Customers, OrderEvent, Orders, OrdersSql, Wide};

/// How the log is filled: orders of ten events each, a hundred of them open at any time. Only here in a way that no application
/// has: nobody is looking, no append is in flight.
const FILL: &str = "
    INSERT INTO changeover.events (position, stream, revision, type, data)
    SELECT n + 1, 'order-' || lpad(id::text, 10, '0'), step + 1,
           CASE WHEN step = 0 THEN 'OrderPlaced' WHEN step < 8 THEN 'ItemAdded'
                WHEN step = 8 THEN 'OrderPaid' ELSE 'OrderShipped' END,
           CASE WHEN step = 0 THEN
                    json_build_object('customer', 'customer-' || (id * 7919 % 5000),
                                      'note', 'to be delivered to the neighbours at number ' || id)
                WHEN step < 8 THEN
                    json_build_object('article', 'article ' || (id * 31 + step) % 10007 || ' of the catalogue of spring',
                                      'cents', 100 + (id + step) % 900, 'customer', 'customer-' || (id * 7919 % 5000))
                WHEN step = 8 THEN
                    json_build_object('customer', 'customer-' || (id * 7919 % 5000), 'by', 'a card that ends with ' || id % 10000,
                                      'at', 'the till of the web shop')
                ELSE json_build_object('customer', 'customer-' || (id * 7919 % 5000), 'carrier', 'the post, as a parcel',
                                       'parcel', 'parcel ' || id)
           END
    FROM (
        SELECT n, (n / 1000) * 100 + n % 100 AS id, n % 1000 / 100 AS step
        FROM generate_series(0::bigint, $1::bigint - 1) AS n
    ) numbered";

/// Events for the hand-written loops, which are slow.
const LOOP_EVENTS: i64 = 100_000;

/// The group `replay`.
pub(crate) async fn run(server: &Server, effort: Effort, report: &mut Report) -> Result<()> {
    let database = server.database().await;
    let log = Log::empty(&database, effort.large_log.max(100_000)).await?;
    log.fill().await?;
    log.against_the_database(effort, report).await?;
    log.against_loops(effort, report).await?;
    log.together(effort, report).await?;
    memory::run(server, effort, report).await
}

/// A log, and whoever may do anything to it.
pub(crate) struct Log {
    pub(crate) admin: Client,
    pub(crate) config: Config,
    pub(crate) events: i64,
}

pub(crate) fn options() -> ReplayOptions {
    ReplayOptions { requested_by: "bench".to_owned(), ..ReplayOptions::default() }
}

/// Events that are made anew; what goes beyond them are copies.
const MADE: i64 = 100_000;

/// The same orders once more, under other numbers.
const COPY: &str = "
    INSERT INTO changeover.events (position, stream, revision, type, data)
    SELECT position + $1, 'order-' || lpad((substr(stream, 7)::bigint + $1 / 10)::text, 10, '0'), revision, type, data
    FROM changeover.events WHERE position <= $2";

impl Log {
    /// A log to be.
    pub(crate) async fn empty(database: &Database, events: i64) -> Result<Self> {
        let config = database.config();
        Changeover::builder(config.clone()).migrate().await?;
        Ok(Self { admin: client(&config).await?, config, events })
    }

    /// Fills it: with events that are made, then with copies, which is faster.
    pub(crate) async fn fill(&self) -> Result<()> {
        let made = self.events.min(MADE);
        self.admin.execute(FILL, &[&made]).await?;
        let mut there = made;
        while there < self.events {
            let more = there.min(self.events - there);
            self.admin.execute(COPY, &[&there, &more]).await?;
            there += more;
        }
        self.admin.query_one("SELECT setval('changeover.event_position', $1)", &[&self.events]).await?;
        self.admin.batch_execute("VACUUM ANALYZE changeover.events").await?;
        Ok(self.admin.batch_execute("CHECKPOINT").await?)
    }

    /// Forgets everything that was replayed.
    pub(crate) async fn forget(&self) -> Result<()> {
        let schemas = "SELECT nspname FROM pg_namespace WHERE nspname ~ '_v[0-9]+$'";
        for schema in self.admin.query(schemas, &[]).await? {
            self.admin.batch_execute(&format!("DROP SCHEMA {} CASCADE", schema.get::<_, &str>(0))).await?;
        }
        let forget =
            "DELETE FROM changeover.checkpoints; DELETE FROM changeover.projector_states; CHECKPOINT";
        Ok(self.admin.batch_execute(forget).await?)
    }

    /// Replays projectors and says how many seconds that took.
    pub(crate) async fn replay(&self, configuration: &Configuration, options: &ReplayOptions) -> Result<f64> {
        self.forget().await?;
        let changeover = migrated(self.config.clone(), configuration.clone()).await?;
        let names: Vec<ProjectorName> = configuration.versions().into_keys().collect();
        let started = Instant::now();
        changeover.replay(&names, options, &|_| {}).await?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// What the database takes to hand the log out and the finished rows of a table in, in seconds.
    async fn raw(&self, rows: &[Bytes], table: &str) -> Result<f64> {
        self.admin
            .batch_execute(&format!(
                "DROP SCHEMA IF EXISTS bare CASCADE; CREATE SCHEMA bare;
                 CREATE TABLE bare.rows (LIKE {table} INCLUDING CONSTRAINTS INCLUDING INDEXES)"
            ))
            .await?;
        self.admin.batch_execute("CHECKPOINT").await?;
        // A connection of its own, as a replay has: one that has seen the pages before is faster.
        let client = client(&self.config).await?;
        let started = Instant::now();
        let sql = "COPY (SELECT position, stream, revision, type, data, metadata, recorded_at FROM changeover.events
                         ORDER BY position) TO STDOUT (FORMAT binary)";
        let mut events = pin!(client.copy_out(sql).await?);
        let mut bytes = 0;
        while let Some(message) = events.try_next().await? {
            bytes += message.len();
        }
        anyhow::ensure!(bytes > 0, "the log is empty");
        let mut sink = pin!(client.copy_in("COPY bare.rows FROM STDIN (FORMAT binary)").await?);
        for message in rows {
            sink.feed(message.clone()).await?;
        }
        sink.finish().await?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// The rows of a table, as `COPY` hands them out.
    async fn rows(&self, table: &str) -> Result<Vec<Bytes>> {
        let sql = format!("COPY {table} TO STDOUT (FORMAT binary)");
        Ok(self.admin.copy_out(&sql).await?.try_collect().await?)
    }

    async fn against_the_database(&self, effort: Effort, report: &mut Report) -> Result<()> {
        let cases = [
            ("a row for each order", Configuration::new().fold(Orders)?, "orders_v1.orders"),
            (
                "a row for each of 5,000 customers",
                Configuration::new().fold(Customers)?,
                "customers_v1.customers",
            ),
        ];
        for (rows, configuration, table) in &cases {
            self.replay(configuration, &options()).await?;
            self.admin.batch_execute("DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept").await?;
            let kept = format!(
                "CREATE TABLE kept.rows (LIKE {table} INCLUDING ALL); INSERT INTO kept.rows TABLE {table}"
            );
            self.admin.batch_execute(&kept).await?;
            let finished = self.rows("kept.rows").await?;
            let (rounds, finished) = (effort.rounds.min(7), &finished);
            let [ours, raw] = in_turn(
                rounds,
                [
                    Box::new(move || self.rate(configuration, options()).boxed()) as Variant<'_, f64>,
                    Box::new(move || {
                        async move { Ok(self.per_sec(self.raw(finished, "kept.rows").await?)) }.boxed()
                    }),
                ],
            )
            .await?;
            let params = json!({"events": self.events, "rows": rows, "beside": "COPY of the log out, COPY of the rows in"});
            report.add(Figure::compared(
                "replay",
                params,
                "events/s",
                (&ours, &raw),
                Goal::RatioAtLeast(0.8),
            ))?;
        }
        let several = [("three tables, several keys for each event", Configuration::new().fold(Wide)?)];
        for (rows, configuration) in &several {
            let mut rates = Vec::new();
            for _ in 0..effort.rounds.min(3) {
                rates.push(self.rate(configuration, options()).await?);
            }
            let rates = Samples::new(rates);
            let params = json!({"events": self.events, "rows": rows});
            report.add(Figure::new(
                "replay",
                params,
                (rates.median(), "events/s"),
                None,
                rates.spread(),
                Goal::None,
            ))?;
        }
        Ok(())
    }

    #[allow(clippy::cast_precision_loss)]
    fn per_sec(&self, secs: f64) -> f64 {
        self.events as f64 / secs
    }

    async fn rate(&self, configuration: &Configuration, options: ReplayOptions) -> Result<f64> {
        Ok(self.per_sec(self.replay(configuration, &options).await?))
    }

    // --- loops as one writes them by hand -----------------------------------------------------------------------------

    async fn against_loops(&self, effort: Effort, report: &mut Report) -> Result<()> {
        let rounds = effort.rounds.min(5);
        let orders = &Configuration::new().fold(Orders)?;
        let [ours, each, batches] = in_turn(
            rounds,
            [
                Box::new(move || self.rate(orders, options()).boxed()) as Variant<'_, f64>,
                Box::new(move || self.upsert_each().boxed()),
                Box::new(move || self.fold_batches().boxed()),
            ],
        )
        .await?;
        for (beside, baseline, goal) in [
            ("one pipelined upsert for each event", &each, 12.0),
            ("batches of 1,000 folded by hand, one upsert each", &batches, 2.5),
        ] {
            let params = json!({"events": self.events, "rows": "a row for each order", "beside": beside});
            report.add(Figure::compared(
                "replay_loop",
                params,
                "events/s",
                (&ours, baseline),
                Goal::RatioAtLeast(goal),
            ))?;
        }
        self.in_sql(rounds.min(3), report).await
    }

    async fn in_sql(&self, rounds: usize, report: &mut Report) -> Result<()> {
        let batches = &Configuration::new().sql(OrdersSql::<false, false>)?;
        let split_batches = &Configuration::new().sql(OrdersSql::<false, true>)?;
        let each = &Configuration::new().sql(OrdersSql::<true, false>)?;
        let split_each = &Configuration::new().sql(OrdersSql::<true, true>)?;
        let [batches, split_batches, each, split_each, careful, one_by_one] = in_turn(
            rounds,
            [
                Box::new(move || self.rate(batches, options()).boxed()) as Variant<'_, f64>,
                Box::new(move || self.rate(split_batches, options()).boxed()),
                Box::new(move || self.rate(each, options()).boxed()),
                Box::new(move || self.rate(split_each, options()).boxed()),
                Box::new(move || self.each_read_ahead().boxed()),
                Box::new(move || self.statement_each().boxed()),
            ],
        )
        .await?;
        let careful = ("one statement for each event, pipelined, the next ones read ahead", &careful);
        let slow = ("one statement for each event, one after the other", &one_by_one);
        let goal = Goal::RatioAtLeast(1.5);
        for (statements, ours, (beside, baseline), goal) in [
            ("one for each batch", &batches, careful, goal),
            ("one for each batch, split by order", &split_batches, careful, goal),
            ("one for each event, pipelined", &each, careful, Goal::None),
            ("one for each event, pipelined, split by order", &split_each, careful, Goal::None),
            ("one for each batch", &batches, slow, goal),
        ] {
            let params = json!({"events": self.events, "statements": statements, "beside": beside});
            report.add(Figure::compared("replay_sql", params, "events/s", (ours, baseline), goal))?;
        }
        Ok(())
    }

    async fn bare_orders(&self) -> Result<Client> {
        let ddl = "DROP SCHEMA IF EXISTS bare CASCADE; CREATE SCHEMA bare;
                   CREATE TABLE bare.orders (id text PRIMARY KEY, customer text NOT NULL, items integer NOT NULL,
                                             cents bigint NOT NULL, status text NOT NULL)";
        self.admin.batch_execute(ddl).await?;
        client(&self.config).await
    }

    /// Events of the loops, in batches of a thousand.
    async fn batch(&self, reader: &Client, after: i64) -> Result<Vec<(String, OrderEvent)>> {
        let sql = "SELECT stream, type, data::text FROM changeover.events WHERE position > $1 ORDER BY position LIMIT 1000";
        let rows = reader.query(sql, &[&after]).await?;
        rows.iter()
            .map(|row| {
                let text = format!("{{\"{}\":{}}}", row.get::<_, &str>(1), row.get::<_, &str>(2));
                Ok((row.get(0), serde_json::from_str(&text)?))
            })
            .collect()
    }

    /// One upsert for each event; those of a batch are sent together.
    async fn upsert_each(&self) -> Result<f64> {
        self.each(true).await
    }

    /// One statement for each event, each after the one before.
    async fn statement_each(&self) -> Result<f64> {
        self.each(false).await
    }

    async fn each(&self, pipelined: bool) -> Result<f64> {
        let writer = self.bare_orders().await?;
        let statements = Statements::prepare(&writer).await?;
        let started = Instant::now();
        let mut done = 0;
        while done < LOOP_EVENTS {
            let batch = self.batch(&self.admin, done).await?;
            writer.batch_execute("BEGIN").await?;
            if pipelined {
                try_join_all(batch.iter().map(|event| statements.write(&writer, event))).await?;
            } else {
                for event in &batch {
                    statements.write(&writer, event).await?;
                }
            }
            writer.batch_execute("COMMIT").await?;
            done += i64::try_from(batch.len())?;
        }
        Ok(loop_rate(started))
    }

    /// One statement for each event, those of a batch sent together, while the next batch is read; and commits that do not wait for
    /// the disk, as ours.
    async fn each_read_ahead(&self) -> Result<f64> {
        let writer = self.bare_orders().await?;
        writer.batch_execute("SET synchronous_commit = off").await?;
        let statements = Statements::prepare(&writer).await?;
        let started = Instant::now();
        let mut done = 0;
        let mut batch = self.batch(&self.admin, done).await?;
        while done < LOOP_EVENTS {
            done += i64::try_from(batch.len())?;
            let writing = async {
                writer.batch_execute("BEGIN").await?;
                try_join_all(batch.iter().map(|event| statements.write(&writer, event))).await?;
                anyhow::Ok(writer.batch_execute("COMMIT").await?)
            };
            let ((), next) = try_join(writing, self.batch(&self.admin, done)).await?;
            batch = next;
        }
        Ok(loop_rate(started))
    }

    /// A batch of a thousand events is folded by hand, and its rows are written by one upsert, while the next batch is read; commits
    /// do not wait for the disk.
    async fn fold_batches(&self) -> Result<f64> {
        let writer = self.bare_orders().await?;
        // A plan that is made while the table is nearly empty would look at every row of it for ever.
        writer.batch_execute("SET synchronous_commit = off; SET enable_seqscan = off").await?;
        let load = "SELECT id, customer, items, cents, status FROM bare.orders WHERE id = ANY ($1)";
        let load = writer.prepare(load).await?;
        let upsert = "INSERT INTO bare.orders SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::text[])
                      ON CONFLICT (id) DO UPDATE SET items = excluded.items, cents = excluded.cents, status = excluded.status";
        let upsert = writer.prepare(upsert).await?;
        let started = Instant::now();
        let mut done = 0;
        let mut batch = self.batch(&self.admin, done).await?;
        while done < LOOP_EVENTS {
            done += i64::try_from(batch.len())?;
            let writing = fold_batch(&writer, &load, &upsert, &batch);
            let ((), next) = try_join(writing, self.batch(&self.admin, done)).await?;
            batch = next;
        }
        Ok(loop_rate(started))
    }

    // --- more projectors, more events ---------------------------------------------------------------------------------

    async fn together(&self, effort: Effort, report: &mut Report) -> Result<()> {
        let alone = [
            Configuration::new().fold(Orders)?,
            Configuration::new().fold(Customers)?,
            Configuration::new().fold(Wide)?,
            Configuration::new().fold(BigOrders)?,
        ];
        let four = Configuration::new().fold(Orders)?.fold(Customers)?.fold(Wide)?.fold(BigOrders)?;
        let (mut slowest, mut together) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds.min(3) {
            let mut secs = Vec::new();
            for configuration in &alone {
                secs.push(self.replay(configuration, &options()).await?);
            }
            slowest.push(Samples::new(secs).percentile(1.0));
            together.push(self.replay(&four, &options()).await?);
        }
        let params = json!({"events": self.events, "projectors": 4, "beside": "the slowest of them alone"});
        report.add(Figure::compared(
            "replay_together",
            params,
            "s",
            (&together, &slowest),
            Goal::RatioAtMost(1.8),
        ))
    }
}

/// The statements of the loops that are written by hand.
struct Statements {
    placed: Statement,
    added: Statement,
    status: Statement,
}

impl Statements {
    async fn prepare(writer: &Client) -> Result<Self> {
        let added = "UPDATE bare.orders SET items = items + 1, cents = cents + $2 WHERE id = $1";
        Ok(Self {
            placed: writer.prepare("INSERT INTO bare.orders VALUES ($1, $2, 0, 0, 'placed')").await?,
            added: writer.prepare(added).await?,
            status: writer.prepare("UPDATE bare.orders SET status = $2 WHERE id = $1").await?,
        })
    }

    async fn write(&self, writer: &Client, (id, event): &(String, OrderEvent)) -> Result<u64> {
        let written = match event {
            OrderEvent::OrderPlaced { customer, .. } => writer.execute(&self.placed, &[id, customer]).await,
            OrderEvent::ItemAdded { cents, .. } => writer.execute(&self.added, &[id, cents]).await,
            OrderEvent::OrderPaid { .. } => writer.execute(&self.status, &[id, &"paid"]).await,
            OrderEvent::OrderShipped { .. } => writer.execute(&self.status, &[id, &"shipped"]).await,
        };
        Ok(written?)
    }
}

/// One batch of the loop that folds by hand.
async fn fold_batch(
    writer: &Client,
    load: &Statement,
    upsert: &Statement,
    batch: &[(String, OrderEvent)],
) -> Result<()> {
    writer.batch_execute("BEGIN").await?;
    let ids: Vec<&String> = batch.iter().map(|(id, _)| id).collect();
    let mut rows: HashMap<String, (String, i32, i64, String)> = HashMap::new();
    for row in writer.query(load, &[&ids]).await? {
        rows.insert(row.get(0), (row.get(1), row.get(2), row.get(3), row.get(4)));
    }
    for (id, event) in batch {
        if let OrderEvent::OrderPlaced { customer, .. } = event {
            rows.insert(id.clone(), (customer.clone(), 0, 0, "placed".to_owned()));
            continue;
        }
        let row = rows.get_mut(id).context("BUG: an order without a beginning")?;
        match event {
            OrderEvent::ItemAdded { cents, .. } => (row.1, row.2) = (row.1 + 1, row.2 + cents),
            OrderEvent::OrderPaid { .. } => "paid".clone_into(&mut row.3),
            _ => "shipped".clone_into(&mut row.3),
        }
    }
    let ids: Vec<&String> = rows.keys().collect();
    let customers: Vec<&String> = rows.values().map(|row| &row.0).collect();
    let items: Vec<i32> = rows.values().map(|row| row.1).collect();
    let cents: Vec<i64> = rows.values().map(|row| row.2).collect();
    let status: Vec<&String> = rows.values().map(|row| &row.3).collect();
    writer.execute(upsert, &[&ids, &customers, &items, &cents, &status]).await?;
    Ok(writer.batch_execute("COMMIT").await?)
}

#[allow(clippy::cast_precision_loss)]
fn loop_rate(started: Instant) -> f64 {
    LOOP_EVENTS as f64 / started.elapsed().as_secs_f64()
}
