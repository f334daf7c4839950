//! A server without room: whoever writes is told so, keeps what is written, and goes on once there is room again. Nothing is lost,
//! nothing is there twice, and no projector is blamed for it.

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Changeover, Configuration, Expected, Fold, FoldProjector, Recorded, ReplayError, Row,
    SqlProjector, StreamName, Transaction, Type,
};
use changeover_testkit::{Cluster, Database, eventually};
use tokio_postgres::Client;

use crate::accounts::{
    AccountEvent, Closings, accounts, cramped, differences, is_whole, of, replay, serially, with,
};
use crate::orders::{instance, stream};
use crate::releases::SOON;
use crate::traps::published;

/// The largest file that there is room for.
const ROOM: u64 = 3 << 20;

/// It sorts in memory, not in files.
fn cluster() -> Cluster {
    Cluster::builder().with_small_wal().setting("work_mem", "64MB").start().unwrap()
}

/// An error with its causes.
fn in_full(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// Its checkpoints: of the shards where there are any.
async fn progress(client: &Client) -> i64 {
    let sql =
        "SELECT sum(position)::bigint FROM changeover.checkpoints WHERE projector = 'accounts' AND major = 2";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_finds_no_room_keeps_its_progress_and_goes_on_once_there_is_some() {
    let cluster = cluster();
    for options in [with(cramped(2)), serially()] {
        let database = Database::fresh_on(&cluster).await;
        let client = database.client().await;
        let second = of::<2>(&database).await;
        // Rows of more than a kilobyte each, twice as many as there is room for.
        let sql = "INSERT INTO changeover.events (position, stream, revision, type, data)
                   SELECT n, 'stream-' || n % 40, n / 40 + 1, 'Opened',
                          json_build_object('account', n, 'owner', repeat(md5(n::text), 40))
                   FROM generate_series(1, 5000) AS n;
                   SELECT setval('changeover.event_position', 5000)";
        client.batch_execute(sql).await.unwrap();
        // Whoever reads it has nothing to write.
        client.batch_execute("VACUUM (FREEZE, ANALYZE) changeover.events").await.unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();

        cluster.limit_files(Some(ROOM)).unwrap();
        let mut before = 0;
        for _ in 0..2 {
            let error = second.replay(&[accounts()], &options, &|_| {}).await.unwrap_err();
            assert!(matches!(error, ReplayError::Outage { .. }), "{error:?}");
            let said = in_full(error);
            assert!(said.contains("could not extend file") && said.contains("53100"), "{said}");
            let after = progress(&client).await;
            assert!(after > 0 && after >= before, "{before} and {after}");
            before = after;
        }
        cluster.limit_files(None).unwrap();
        replay(&second, &options).await;
        is_whole(&client, 2).await;
        let first = of::<1>(&database).await;
        replay(&first, &serially()).await;
        assert_eq!(differences(&client, 1, 2).await, 0);
    }
}

/// Rows that take up more room than the events that make them.
#[derive(Row, Clone)]
#[row(table = "rows")]
struct Wide {
    #[row(key)]
    id: i64,
    times: i64,
    text: String,
}

fn wide(id: i64) -> String {
    id.to_string().repeat(1_500).chars().take(1_500).collect()
}

impl Fold for Wide {
    type Event = AccountEvent;

    fn keys(event: &AccountEvent, _stream: &StreamName) -> impl IntoIterator<Item = i64> {
        match event {
            AccountEvent::Closed { account } => Some(*account),
            _ => None,
        }
    }

    fn fold(row: Option<Self>, id: &i64, _event: &Recorded<AccountEvent>) -> Option<Self> {
        Some(Self { id: *id, times: row.map_or(0, |row| row.times) + 1, text: wide(*id) })
    }
}

struct Folded;

impl FoldProjector for Folded {
    const NAME: &'static str = "folded";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = AccountEvent;
    type Tables = (Wide,);
}

/// The same by SQL: whoever projects an event twice has two rows of it.
struct Written;

impl SqlProjector for Written {
    const NAME: &'static str = "written";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "CREATE TABLE {schema}.rows (id bigint NOT NULL, text text NOT NULL)";
    type Event = AccountEvent;

    async fn project(&self, batch: Batch<'_, AccountEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let sql = batch.sql("INSERT INTO {schema}.rows VALUES ($1, $2)");
        for event in batch.events() {
            if let AccountEvent::Closed { account } = &event.data {
                tx.query_typed(&sql, &[(account, Type::INT8), (&wide(*account), Type::TEXT)])
                    .await
                    // As projectors do that wrap errors in their own.
                    .map_err(|error| anyhow::Error::from(error).context("a row was not written"))?;
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_with_sql_of_its_own_is_not_blamed_for_a_replay_that_finds_no_room() {
    let cluster = cluster();
    for options in [with(cramped(2)), serially()] {
        let database = Database::fresh_on(&cluster).await;
        let client = database.client().await;
        let written = instance(&database, Configuration::new().sql(Written).unwrap()).await;
        let sql = "INSERT INTO changeover.events (position, stream, revision, type, data)
                   SELECT n, 'closings', n, 'Closed', json_build_object('account', n) FROM generate_series(1, 5000) AS n;
                   SELECT setval('changeover.event_position', 5000)";
        client.batch_execute(sql).await.unwrap();
        cluster.limit_files(Some(ROOM)).unwrap();
        let names = ["written".parse().unwrap()];
        let error = written.replay(&names, &options, &|_| {}).await.unwrap_err();
        assert!(matches!(error, ReplayError::Outage { .. }), "{error:?}");
        let said = in_full(error);
        assert!(said.contains("could not extend file"), "{said}");
        cluster.limit_files(None).unwrap();
        let done = written.replay(&names, &options, &|_| {}).await.unwrap();
        assert!(done[0].progress.events < 5_000, "what was written before is kept");
        let sql = "SELECT count(*), count(DISTINCT id) FROM written_v1.rows";
        let row = client.query_one(sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (5_000, 5_000));
    }
}

/// Appends a thousand closings at a time.
async fn close(instance: &Changeover, thousand: i64) {
    let events: Vec<_> = (0..1_000).map(|n| AccountEvent::Closed { account: thousand * 1_000 + n }).collect();
    instance.append(&stream("closings"), Expected::Any, &events).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_that_finds_no_room_goes_on_by_itself_once_there_is_some() {
    const THOUSANDS: i64 = 5;
    let cluster = cluster();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let configuration =
        Configuration::new().fold(Folded).unwrap().sql(Written).unwrap().fold(Closings).unwrap();
    let live = instance(&database, configuration).await;
    let running = live.start();
    cluster.limit_files(Some(ROOM)).unwrap();
    for thousand in 0..THOUSANDS {
        close(&live, thousand).await;
    }
    // Who needs no room goes on.
    published(&live, "closings").await;
    // The others try, more often than a projector may fail that is at fault itself.
    for table in ["folded_v1.rows", "written_v1.rows"] {
        let sql = format!("SELECT pg_relation_filepath('{table}')");
        let file: String = client.query_one(&sql, &[]).await.unwrap().get(0);
        let refused = format!("could not extend file \"{file}\"");
        eventually(SOON, || async {
            std::fs::read_to_string(cluster.log_path().unwrap()).unwrap().matches(&refused).count() > 7
        })
        .await;
    }
    let status = live.status().await.unwrap();
    for projector in &status.projectors {
        let tables = projector.tables.as_ref().unwrap();
        assert!(tables.stalled.is_none(), "{projector:?}");
        assert_eq!(tables.lag_events == 0, projector.projector.as_str() == "closings", "{projector:?}");
    }

    cluster.limit_files(None).unwrap();
    close(&live, THOUSANDS).await;
    for projector in ["folded", "written", "closings"] {
        published(&live, projector).await;
    }
    let sql = "SELECT (SELECT count(*) FROM folded_v1.rows WHERE times = 1), (SELECT count(*) FROM folded_v1.rows),
                      (SELECT count(DISTINCT id) FROM written_v1.rows), (SELECT count(*) FROM written_v1.rows),
                      (SELECT count(*) FROM closings_v1.closings WHERE times = 1)";
    let row = client.query_one(sql, &[]).await.unwrap();
    let counts: Vec<i64> = (0..row.len()).map(|at| row.get(at)).collect();
    assert_eq!(counts, [1_000 * (THOUSANDS + 1); 5]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_finds_no_room_leaves_nothing_and_is_not_acknowledged() {
    let cluster = cluster();
    let database = Database::fresh_on(&cluster).await;
    let client = database.client().await;
    let live = instance(&database, Configuration::new().fold(Closings).unwrap()).await;
    let running = live.start();
    cluster.limit_files(Some(ROOM)).unwrap();
    let opened = |account| AccountEvent::Opened { account, owner: "of a long name ".repeat(100) };
    let events: Vec<_> = (0..200).map(opened).chain([AccountEvent::Closed { account: 1 }]).collect();
    let mut acknowledged = 0;
    let error = loop {
        match live.append(&stream("accounts"), Expected::Any, &events).await {
            Ok(appended) => acknowledged += i64::try_from(appended.positions.len()).unwrap(),
            Err(error) => break error,
        }
    };
    let said = in_full(error);
    assert!(said.contains("could not extend file") && said.contains("53100"), "{said}");
    assert!(acknowledged > 0);
    let in_the_log = "SELECT count(*), max(revision) FROM changeover.events";
    let row = client.query_one(in_the_log, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (acknowledged, acknowledged));
    // Nothing is left in flight, either.
    published(&live, "closings").await;

    cluster.limit_files(None).unwrap();
    let appended = live.append(&stream("accounts"), Expected::Any, &events).await.unwrap();
    assert_eq!(appended.revision.get(), acknowledged + 201);
    published(&live, "closings").await;
    let times: i64 = client.query_one("SELECT times FROM closings_v1.closings", &[]).await.unwrap().get(0);
    assert_eq!(times, (acknowledged + 201) / 201);
    running.stop().await;
}
