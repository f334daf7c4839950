//! `status` and `plan`: what they show, and that they change nothing.

use std::fmt::Write;
use std::io::Read;
use std::process::Stdio;

use changeover::semver::Version;
use changeover::{
    ActivateOptions, Batch, BoxError, Changeover, Configuration, Expected, SqlProjector, Transaction,
};
use changeover_testkit::{Database, eventually};
use serde_json::json;

use crate::program::orders::OrderEvent;
use crate::program::{Program, SOON, golden, instance, place, placed, release_1_is_active, stalled, stream};

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_has_to_be_there() {
    let database = Database::fresh().await;
    let changeover = Program::changeover().on(&database);
    golden("status_without_schema", changeover.run("status --json").ended(1));
    golden("migrate", changeover.run("migrate").ended(0));
    golden("migrate_again", changeover.run("migrate").ended(0));
    golden("status_of_an_empty_schema", changeover.run("status").ended(0));
    assert_eq!(changeover.run("status --json").ended(0).json()["projectors"], json!([]));

    let elsewhere = changeover.run("--schema elsewhere --json migrate").ended(0).json();
    assert_eq!(elsewhere["applied"].as_array().unwrap()[0], 1);
    assert_eq!(changeover.run("--schema elsewhere --json status").ended(0).json()["schema"], "elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_everything_at_a_glance() {
    let database = release_1_is_active(20).await;
    let changeover = Program::changeover().on(&database);
    golden("status", changeover.run("status").ended(0));
    golden("status_json", changeover.run("status --json").ended(0));

    let serving = instance(&database, 1).await;
    let running = serving.start();
    eventually(SOON, || async { !serving.status().await.unwrap().instances.is_empty() }).await;
    serving.append(&stream("below"), Expected::Any, &[placed(-1)]).await.unwrap();
    stalled(&serving).await;
    // The other one goes on.
    let horizon = serving.horizon().await.unwrap();
    serving.wait_for(&"orders".parse().unwrap(), horizon, SOON).await.unwrap();
    eventually(SOON, || async {
        let readiness = &serving.status().await.unwrap().instances[0].readiness;
        readiness == "active"
    })
    .await;
    golden("status_of_a_stalled_projector", changeover.run("status").ended(0));
    golden("status_of_a_stalled_projector_json", changeover.run("status --json").ended(0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_the_transactions_that_have_been_open_for_long() {
    let database = release_1_is_active(1).await;
    let serving = instance(&database, 1).await;
    let mut client = serving.pool().get().await.unwrap();
    let tx = client.transaction().await.unwrap();
    serving.append_in(&tx, &stream("open"), Expected::Any, &[placed(1)]).await.unwrap();
    let ran = eventually(SOON, || async {
        let ran = Program::changeover().on(&database).run("status").ended(0);
        ran.stdout.contains("In flight for more than 1 s").then_some(ran)
    })
    .await;
    for expected in ["host 1.0.0", "lease (append)", "idle in transaction", "1 position drawn beyond it"] {
        assert!(ran.stdout.contains(expected), "{expected:?} in {ran}");
    }
    tx.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_says_what_would_happen_and_why_not() {
    let database = release_1_is_active(20).await;
    let (one, two) = (Program::host(1).on(&database), Program::host(2).on(&database));
    golden("plan", two.run("plan").ended(0));
    golden("plan_json", two.run("plan --json").ended(0));
    golden("plan_of_the_active_configuration", one.run("plan").ended(0));
    assert_eq!(one.run("plan --json").ended(0).json()["done"], true);

    let serving = instance(&database, 1).await;
    let running = serving.start();
    serving.append(&stream("below"), Expected::Any, &[placed(-1)]).await.unwrap();
    stalled(&serving).await;
    // While it is active, whoever publishes tries again; retired, it stands in the way of coming back.
    Program::changeover().on(&database).run("deactivate totals").ended(0);
    running.stop().await;
    golden("plan_with_an_obstacle", two.run("plan").ended(0));
    golden("plan_with_an_obstacle_json", two.run("plan --json").ended(0));
    golden("dry_run_with_an_obstacle", two.run("activate-configuration --dry-run").ended(1));
    golden("activation_with_an_obstacle", two.run("activate-configuration").ended(1));
    assert_eq!(two.run("activate-configuration --json").ended(1).kind(), "obstacles");
}

/// A projector of the very name and version of the example's.
struct OtherTotals;

impl SqlProjector for OtherTotals {
    const NAME: &'static str = "totals";
    const VERSION: Version = Version::new(1, 0, 0);
    const TABLES: &'static str = "CREATE TABLE {schema}.other ()";
    type Event = OrderEvent;

    async fn project(&self, _: Batch<'_, OrderEvent>, _: &Transaction<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_contradicts_what_was_registered_is_refused() {
    let database = Database::fresh().await;
    let configuration = Configuration::new().sql(OtherTotals).unwrap();
    let builder = Changeover::builder(database.config()).configuration(configuration);
    builder.migrate().await.unwrap();
    let other = builder.connect().await.unwrap();
    let activated = other.activate(&ActivateOptions::default(), &|_| {}).await.unwrap();
    assert!(activated.activation.is_some());
    let two = Program::host(2).on(&database);
    golden("another_definition", two.run("plan --json").ended(1));
    assert_eq!(two.run("activate-configuration --json").ended(1).kind(), "other_definition");
    // The operator's commands do not depend on any definition.
    Program::changeover().on(&database).run("status").ended(0);
}

/// Every row of every table, and every schema.
async fn everything(database: &Database) -> String {
    let client = database.client().await;
    let mut all = String::new();
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1";
    for table in client.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let rows = client.query(&format!("SELECT t::text FROM {table} t ORDER BY 1"), &[]).await.unwrap();
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        writeln!(all, "{table}: {rows:?}").unwrap();
    }
    let sequences = "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1";
    for row in client.query(sequences, &[]).await.unwrap() {
        writeln!(all, "{}: {:?}", row.get::<_, String>(0), row.get::<_, Option<i64>>(1)).unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_plan_change_nothing() {
    let migrated = Database::fresh().await;
    Program::changeover().on(&migrated).run("migrate").ended(0);
    for database in [migrated, release_1_is_active(3).await] {
        let before = everything(&database).await;
        let (one, two) = (Program::host(1).on(&database), Program::host(2).on(&database));
        for program in [one, two] {
            for line in ["status", "plan", "activate-configuration --dry-run", "status --json", "plan --json"]
            {
                program.run(line).ended(0);
            }
        }
        assert_eq!(everything(&database).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_reached_ends_with_3() {
    let nowhere = Program::host(2).at("postgres://ada:secret@localhost:1/none");
    for line in ["status", "plan", "migrate", "abort", "retry orders", "replay", "activate-configuration"] {
        let ran = nowhere.run(&format!("{line} --json")).ended(3);
        assert_eq!(ran.kind(), "database");
        assert!(ran.to_string().contains("onnection refused"), "{ran}");
        assert!(!ran.to_string().contains("secret"), "{ran}");
    }
    let database = Database::fresh().await;
    let missing = Program::changeover().at(&database.url().replace(database.name(), "not_there"));
    golden("a_database_that_does_not_exist", missing.run("status --json").ended(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_read_enough_is_no_failure() {
    let database = release_1_is_active(1).await;
    let mut command = Program::changeover().on(&database).command("status");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Gone before a connection to the database can have been made.
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_to_standard_error_as_far_as_asked_for() {
    let database = Database::fresh().await;
    let changeover = Program::changeover().on(&database);
    let ran = changeover.run("migrate --verbose --json").ended(0);
    assert!(ran.stderr.contains("schema migrated"), "{ran}");
    assert_eq!(ran.json()["applied"].as_array().unwrap()[0], 1);
    assert!(!ran.stderr.contains('\u{1b}'), "no color where no terminal is: {ran}");

    place(&instance(&database, 1).await, 0..1).await;
    let replaying = |line: &str, filter: &str| {
        let mut command = Program::host(2).on(&database).command(line);
        let output = tokio::task::block_in_place(|| command.env("CHANGEOVER_LOG", filter).output().unwrap());
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(replaying("replay --quiet", ""), "");
    assert!(replaying("replay", "").starts_with("replaying orders 2.0.0: at 1 of 1, caught up"));
    assert!(replaying("replay --quiet", "changeover=info").contains("caught up"));
    // The driver logs the parameters of statements: only where it is named.
    assert!(!replaying("replay", "trace").contains("tokio_postgres"));
    assert!(replaying("replay", "trace,tokio_postgres=debug").contains("DEBUG tokio_postgres"));
}
