//! What an operator does behind PgBouncer in transaction mode: it works, or is refused with what it takes.

use changeover::{Changeover, Configuration, OptimizeError, OptimizeOptions, Optimized, Path};
use changeover_testkit::{Database, PgBouncer};
use tokio_postgres::Client;

use crate::accounts::{Accounts, accounts, of};
use crate::parallel_breaking::{is_the_same, with_history};
use crate::pruning::{prune, there};
use crate::traps::activate;
use crate::verify::{scratch, small_pages, verify};
use crate::whole_upgrade;

const INDEX: &str = "accounts_v1.accounts_owner_idx";

/// An instance behind a pooler.
async fn through<const MAJOR: u64>(pooler: &PgBouncer) -> Changeover {
    let configuration = Configuration::new().fold(Accounts::<MAJOR>).unwrap();
    let instance = Changeover::builder(pooler.config()).configuration(configuration).connect().await.unwrap();
    assert_eq!(instance.path(), Path::Pooled);
    instance
}

async fn is_there(client: &Client, index: &str) -> bool {
    client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&index]).await.unwrap().get(0)
}

async fn optimize(instance: &Changeover) -> Result<Optimized, OptimizeError> {
    let mut done = instance.optimize(&[], &OptimizeOptions::default(), &|_| {}).await?;
    assert_eq!(done.len(), 1);
    Ok(done.remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_that_live_tables_lack_are_built_over_a_direct_connection_alone() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.81, 2_000).await;
    let direct = of::<1>(&database).await;
    activate(&direct).await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let behind = through::<1>(&pooler).await;
    // With nothing missing there is nothing that takes more than a transaction.
    let done = optimize(&behind).await.unwrap();
    assert_eq!((done.built.len(), done.analyzed.len()), (0, 3));
    client.batch_execute(&format!("DROP INDEX {INDEX}")).await.unwrap();
    for _ in 0..2 {
        let refused = optimize(&behind).await.unwrap_err();
        assert!(matches!(refused, OptimizeError::NeedsDirectConnection { .. }), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("accounts 1.0.0") && text.contains("direct connection"), "{text}");
        assert!(text.contains("run `optimize` with the server's own address"), "{text}");
        assert!(!is_there(&client, INDEX).await);
    }
    let done = optimize(&direct).await.unwrap();
    assert_eq!((&done.built[..], done.concurrently), (&[INDEX.to_owned()][..], true));
    assert_eq!(optimize(&behind).await.unwrap().built, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_upgrade_its_proof_and_a_prune_work_behind_a_pooler() {
    let database = Database::fresh().await;
    let client = with_history(&database, 0.82, 2_000).await;
    activate(&of::<1>(&database).await).await;
    let pooler = PgBouncer::start(&database.config()).unwrap();
    let behind = through::<2>(&pooler).await;
    let upgraded = behind.upgrade(&whole_upgrade::options(), &|_| {}).await.unwrap();
    assert!(upgraded.activated.activation.is_some());
    assert_eq!(upgraded.steps.len(), 5, "{:?}", upgraded.steps);
    assert!(upgraded.verified.iter().all(changeover::Verified::is_equal) && upgraded.verified.len() == 1);
    is_the_same(&client).await;

    // Of live tables, page by page, each in a transaction that may be on another connection.
    let equal = verify(&behind, "accounts", &small_pages()).await;
    assert!(equal.is_equal() && equal.rows() > 100, "{equal:?}");
    let wrong = "UPDATE accounts_v2.accounts SET cents = cents + 1
                 WHERE id = (SELECT max(id) FROM accounts_v2.accounts)";
    assert_eq!(client.execute(wrong, &[]).await.unwrap(), 1);
    assert_eq!(verify(&behind, "accounts", &small_pages()).await.differences(), 1);
    assert_eq!(scratch(&client).await, [""; 0]);

    assert_eq!(there(&client).await, ["accounts_v1", "accounts_v2"]);
    let pruned = prune(&behind, 0).await;
    assert_eq!(pruned.dropped.len(), 1);
    assert_eq!(there(&client).await, ["accounts_v2"]);
    assert_eq!(behind.status().await.unwrap().projectors[0].projector, accounts());
}
