//! Rows that the server does not take: the event that made them so is named, and what comes before it is kept.

use changeover::semver::Version;
use changeover::{
    Changeover, Configuration, Fold, FoldProjector, ProjectorName, Recorded, ReplayError, ReplayOptions, Row,
    StreamName,
};
use changeover_testkit::Database;
use serde::Deserialize;
use tokio_postgres::Client;

use crate::accounts::{at_once, cramped, serially, with};
use crate::orders::instance;

#[derive(Debug, Deserialize)]
enum NameEvent {
    Named { name: String, note: String },
}

#[derive(Row, Clone)]
#[row(table = "names")]
struct Named {
    #[row(key)]
    name: String,
    note: String,
    times: i64,
}

impl Fold for Named {
    type Event = NameEvent;

    fn keys(
        NameEvent::Named { name, .. }: &NameEvent,
        _stream: &StreamName,
    ) -> impl IntoIterator<Item = String> {
        [name.clone()]
    }

    fn fold(row: Option<Self>, name: &String, event: &Recorded<NameEvent>) -> Option<Self> {
        let NameEvent::Named { note, .. } = &event.data;
        // What no text of the database can hold.
        let note = if note == "nothing" { "\0".to_owned() } else { note.clone() };
        Some(Self { name: name.clone(), note, times: row.map_or(0, |row| row.times) + 1 })
    }
}

struct Names;

impl FoldProjector for Names {
    const NAME: &'static str = "names";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = NameEvent;
    type Tables = (Named,);
}

const EVENTS: i64 = 30_000;
const AT_FAULT: i64 = 20_001;

async fn fill(client: &Client) {
    let sql = format!(
        "INSERT INTO changeover.events (position, stream, revision, type, data)
         SELECT n, 'names', n, 'Named', json_build_object('name', 'name-' || n % 700, 'note', n::text)
         FROM generate_series(1, {EVENTS}) AS n;
         SELECT setval('changeover.event_position', {EVENTS})"
    );
    client.batch_execute(&sql).await.unwrap();
}

async fn try_replay(instance: &Changeover, options: &ReplayOptions) -> Result<(), ReplayError> {
    let names: [ProjectorName; 1] = ["names".parse().unwrap()];
    instance.replay(&names, options, &|_| {}).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_row_the_server_does_not_take_is_named_and_everything_before_it_is_kept() {
    // A key that no index takes, and a text that no column takes.
    let long = "json_build_object('name', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200) AS n), 'note', 'secret')";
    let nul = "json_build_object('name', 'odd', 'note', 'nothing')";
    for (data, said) in [(long, "54000"), (nul, "22021")] {
        for options in [with(cramped(3)), with(at_once()), serially()] {
            let database = Database::fresh().await;
            let client = database.client().await;
            let names = instance(&database, Configuration::new().fold(Names).unwrap()).await;
            fill(&client).await;
            let spoil = format!("UPDATE changeover.events SET data = {data} WHERE position = {AT_FAULT}");
            client.batch_execute(&spoil).await.unwrap();
            for _ in 0..2 {
                let error = try_replay(&names, &options).await.unwrap_err();
                let ReplayError::Projector { position, event_type, .. } = &error else { panic!("{error:?}") };
                assert_eq!((position.get(), &event_type[..]), (AT_FAULT, "Named"));
                let told = format!("{:#}", anyhow::Error::from(error));
                assert!(told.contains(said) && !told.contains("secret"), "{told}");
                // Each shard stands right before it, or beyond it where it has nothing to do with it.
                let sql = "SELECT max(position) FROM (
                               SELECT min(position) AS position FROM changeover.checkpoints GROUP BY shard > 0
                           ) checkpoints";
                let position: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
                assert_eq!(position, AT_FAULT - 1);
            }
            // Mended, it goes on.
            let mend = format!("UPDATE changeover.events SET type = 'Unheard' WHERE position = {AT_FAULT}");
            client.batch_execute(&mend).await.unwrap();
            try_replay(&names, &options).await.unwrap();
            let sql = "SELECT count(*) FROM (
                           SELECT data ->> 'name' AS name, max(position)::text AS note, count(*) AS times
                           FROM changeover.events WHERE type = 'Named' GROUP BY 1
                       ) e FULL JOIN names_v1.names n USING (name)
                       WHERE (e.note, e.times) IS DISTINCT FROM (n.note, n.times)";
            assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
        }
    }
}
