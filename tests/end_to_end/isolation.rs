//! Inline projectors in isolation levels whose snapshot is older than the locks on the keys.

use changeover::deadpool_postgres::Transaction;
use changeover::semver::Version;
use changeover::tokio_postgres::IsolationLevel;
use changeover::{
    AppendError, Batch, BoxError, Changeover, Configuration, Delivery, Expected, Fold, FoldProjector,
    ProjectError, Recorded, Row, SqlProjector, StreamName,
};
use changeover_testkit::Database;
use serde::{Deserialize, Serialize};

use crate::orders::{instance, stream};

#[derive(Serialize, Deserialize)]
enum AccountEvent {
    Opened { account: String },
    Closed { account: String },
}

/// A row for each account that is open, whatever stream says so.
#[derive(Row, Clone)]
#[row(table = "accounts")]
struct Account {
    #[row(key)]
    account: String,
}

impl Fold for Account {
    type Event = AccountEvent;

    fn keys(event: &AccountEvent, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        let (AccountEvent::Opened { account } | AccountEvent::Closed { account }) = event;
        [account.clone()]
    }

    fn fold(_row: Option<Self>, account: &String, event: &Recorded<AccountEvent>) -> Option<Self> {
        matches!(event.data, AccountEvent::Opened { .. }).then(|| Account { account: account.clone() })
    }
}

struct Accounts;

impl FoldProjector for Accounts {
    const NAME: &'static str = "accounts";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    type Event = AccountEvent;
    type Tables = (Account,);
}

struct AccountsInSql;

impl SqlProjector for AccountsInSql {
    const NAME: &'static str = "accounts_in_sql";
    const VERSION: Version = Version::new(1, 0, 0);
    const DELIVERY: Delivery = Delivery::Inline;
    const TABLES: &'static str = "CREATE TABLE {schema}.openings (n bigint)";
    type Event = AccountEvent;

    async fn project(&self, batch: Batch<'_, AccountEvent>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        tx.batch_execute(&batch.sql("INSERT INTO {schema}.openings VALUES (1)")).await?;
        Ok(())
    }
}

fn opened() -> AccountEvent {
    AccountEvent::Opened { account: "a".to_owned() }
}

fn closed() -> AccountEvent {
    AccountEvent::Closed { account: "a".to_owned() }
}

/// Opens the account elsewhere after the snapshot of a transaction was taken, then closes it in that transaction.
async fn close_with_an_old_snapshot(
    changeover: &Changeover,
    level: IsolationLevel,
) -> Result<(), AppendError> {
    let mut client = changeover.pool().get().await.unwrap();
    let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
    tx.query_one("SELECT count(*) FROM accounts_v1.accounts", &[]).await.unwrap();
    changeover.append(&stream("opening"), Expected::Any, &[opened()]).await.unwrap();
    changeover.append_in(&tx, &stream("closing"), Expected::Any, &[closed()]).await?;
    tx.commit().await.unwrap();
    Ok(())
}

async fn open_accounts(database: &Database) -> i64 {
    let client = database.client().await;
    client.query_one("SELECT count(*) FROM accounts_v1.accounts", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_row_that_the_snapshot_is_too_old_to_see_is_not_taken_for_absent() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(Accounts).unwrap()).await;
    changeover.append(&stream("first"), Expected::Any, &[opened(), closed()]).await.unwrap();
    for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let refused = close_with_an_old_snapshot(&changeover, level).await.unwrap_err();
        assert!(
            matches!(refused, AppendError::StaleSnapshot { .. }) && refused.is_retryable(),
            "{refused:?}"
        );
        changeover.append(&stream("closing"), Expected::Any, &[closed()]).await.unwrap();
        assert_eq!(open_accounts(&database).await, 0);
    }
    close_with_an_old_snapshot(&changeover, IsolationLevel::ReadCommitted).await.unwrap();
    assert_eq!(open_accounts(&database).await, 0);
}

#[tokio::test]
async fn a_row_that_the_transaction_deleted_itself_is_absent() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().fold(Accounts).unwrap()).await;
    changeover.append(&stream("first"), Expected::Any, &[opened()]).await.unwrap();
    let mut client = changeover.pool().get().await.unwrap();
    let tx =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await.unwrap();
    for _ in 0..2 {
        changeover.append_in(&tx, &stream("closing"), Expected::Any, &[closed()]).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(open_accounts(&database).await, 0);
}

#[tokio::test]
async fn a_projector_with_its_own_sql_is_fed_inline_in_read_committed_alone() {
    let database = Database::fresh().await;
    let changeover = instance(&database, Configuration::new().sql(AccountsInSql).unwrap()).await;
    let mut client = changeover.pool().get().await.unwrap();
    let tx =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await.unwrap();
    let refused = changeover.append_in(&tx, &stream("s"), Expected::Any, &[opened()]).await.unwrap_err();
    assert!(
        matches!(&refused, AppendError::Projector { source: ProjectError::NeedsReadCommitted { .. }, .. }),
        "{refused:?}"
    );
    tx.rollback().await.unwrap();
    let tx = client.transaction().await.unwrap();
    changeover.append_in(&tx, &stream("s"), Expected::Any, &[opened()]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn an_append_of_its_own_does_not_depend_on_the_default_isolation_level() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let name = database.name();
    client
        .batch_execute(&format!(
            "ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
        ))
        .await
        .unwrap();
    let changeover = instance(&database, Configuration::new().fold(Accounts).unwrap()).await;
    let appends = (0..20).map(|n| {
        let changeover = changeover.clone();
        tokio::spawn(async move {
            let event = if n % 2 == 0 { opened() } else { closed() };
            changeover.append(&stream(&format!("s{n}")), Expected::Any, &[event]).await
        })
    });
    for append in appends.collect::<Vec<_>>() {
        append.await.unwrap().unwrap();
    }
}
