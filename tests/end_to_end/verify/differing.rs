//! Rows that are wrong are found.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use changeover::semver::Version;
use changeover::{
    Changeover, Configuration, Fold, FoldProjector, Recorded, Row, RowDifference, RowDiffers, StreamName,
    VerifyOptions,
};
use changeover_testkit::Database;

use super::{name, replayed_accounts, small_pages, table, verify};
use crate::accounts::{at_once, with};
use crate::orders::{OrderEvent, instance, place};
use crate::releases::instance_of;

/// A difference as the tests write it down: how, the key, the columns.
fn told(difference: &RowDifference) -> (RowDiffers, Vec<&str>, Vec<&str>) {
    let key = difference.key.iter().map(|(_, value)| value.as_str()).collect();
    (difference.difference, key, difference.columns.iter().map(String::as_str).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_that_is_wrong_is_found_and_counted() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let instance = replayed_accounts(&database, &client, 0.2, 30_000).await;
    let plant = "
        DELETE FROM accounts_v1.accounts WHERE id IN (SELECT id FROM accounts_v1.accounts ORDER BY id OFFSET 20 LIMIT 3);
        UPDATE accounts_v1.accounts SET owner = 'Mallory-7731'
            WHERE id IN (SELECT id FROM accounts_v1.accounts ORDER BY id DESC LIMIT 2);
        UPDATE accounts_v1.accounts SET owner = NULL, cents = cents + 1
            WHERE id = (SELECT id FROM accounts_v1.accounts WHERE owner IS NOT NULL ORDER BY id LIMIT 1);
        INSERT INTO accounts_v1.accounts VALUES (-5, NULL, 0, 'none'), (100000, 'Eve-7731', 1, 'none'), (100001, 'Eve-7731', 1, 'none'), (100002, 'Eve-7731', 1, 'none');
        INSERT INTO accounts_v1.kinds VALUES ('it''s \"new\"', 'other', 1, 1);
        DELETE FROM accounts_v1.whole";
    client.batch_execute(plant).await.unwrap();
    for options in [
        VerifyOptions { pace: at_once(), examples: 100, ..VerifyOptions::default() },
        VerifyOptions { examples: 100, ..small_pages() },
    ] {
        let verified = verify(&instance, "accounts", &options).await;
        assert!(!verified.is_equal());
        let accounts = table(&verified, "accounts");
        assert_eq!((accounts.missing, accounts.extra, accounts.different), (3, 4, 3), "{accounts:?}");
        assert_eq!(accounts.rows + 3 - 4, accounts.expected_rows);
        let columns = BTreeMap::from([("owner".to_owned(), 3), ("cents".to_owned(), 1)]);
        assert_eq!(accounts.columns, columns);
        let told: Vec<_> = accounts.examples.iter().map(told).collect();
        assert_eq!(told.len(), 10, "{told:?}");
        let extra = |id: &'static str| (RowDiffers::Extra, vec![id], vec![]);
        assert_eq!(told[0], extra("-5"));
        assert_eq!(told[7..], [extra("100000"), extra("100001"), extra("100002")]);
        let of = |how: RowDiffers| told.iter().filter(move |(what, ..)| *what == how);
        assert_eq!(of(RowDiffers::Missing).count(), 3, "{told:?}");
        let different: Vec<_> = of(RowDiffers::Different).map(|(_, _, columns)| columns.clone()).collect();
        assert_eq!(different, [vec!["cents", "owner"], vec!["owner"], vec!["owner"]]);
        assert_eq!(accounts.examples[0].key[0].0, "id");
        let kinds = table(&verified, "kinds");
        assert_eq!((kinds.missing, kinds.extra, kinds.different), (0, 1, 0));
        assert_eq!(
            kinds.examples[0].key,
            [("stream".into(), "it's \"new\"".into()), ("what".into(), "other".into())]
        );
        let whole = table(&verified, "whole");
        assert_eq!((whole.rows, whole.expected_rows, whole.missing), (0, 1, 1));
        assert_eq!(
            verified.to_string(),
            "accounts 1.0.0 differs from the log in 12 rows (accounts: 3 missing, 4 extra, 3 different; kinds: 1 extra; whole: 1 missing)"
        );
        // No value is told but those of keys.
        assert!(!format!("{verified:?}").contains("7731"), "{verified:?}");
    }
    let options = VerifyOptions { examples: 2, show_values: true, ..small_pages() };
    let verified = verify(&instance, "accounts", &options).await;
    let accounts = table(&verified, "accounts");
    assert_eq!((accounts.differences(), accounts.examples.len()), (10, 2));
    let values = accounts.examples[1].values.as_ref().unwrap();
    assert_eq!(accounts.examples[1].difference, RowDiffers::Different);
    let owner = values.iter().find(|value| value.column == "owner").unwrap();
    assert!(
        owner.found.is_none() && owner.expected.as_ref().is_some_and(|was| was.starts_with("It's")),
        "{values:?}"
    );
}

/// What changes in code that depends on more than the event.
static FOLDS: AtomicI64 = AtomicI64::new(0);

macro_rules! counters {
    ($($row:ident $projector:ident $value:expr;)*) => {$(
        #[derive(Row, Clone)]
        #[row(table = "counted")]
        struct $row {
            #[row(key)]
            id: String,
            value: i64,
        }

        impl Fold for $row {
            type Event = OrderEvent;

            fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
                [stream.to_string()]
            }

            fn fold(_row: Option<Self>, id: &String, event: &Recorded<OrderEvent>) -> Option<Self> {
                let value: fn(&Recorded<OrderEvent>) -> i64 = $value;
                Some(Self { id: id.clone(), value: value(event) })
            }
        }

        struct $projector;

        impl FoldProjector for $projector {
            const NAME: &'static str = "counted";
            const VERSION: Version = Version::new(1, 0, 0);
            type Event = OrderEvent;
            type Tables = ($row,);
        }
    )*};
}

counters! {
    Moody MoodyCounter |_| FOLDS.fetch_add(1, Ordering::Relaxed);
    Sound SoundCounter |event| event.position.get();
    // What somebody changed without telling.
    Changed ChangedCounter |event| event.position.get() / 3 * 3;
}

async fn counted(database: &Database, configuration: Configuration) -> Changeover {
    let counted = instance(database, configuration).await;
    counted.replay(&[name("counted")], &with(at_once()), &|_| {}).await.unwrap();
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fold_that_depends_on_more_than_its_events_is_caught() {
    let database = Database::fresh().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..20 {
        place(&writer, &format!("o-{order}"), 1).await;
    }
    let counted = counted(&database, Configuration::new().fold(MoodyCounter).unwrap()).await;
    let verified = verify(&counted, "counted", &small_pages()).await;
    assert_eq!(verified.tables[0].different, 20, "{verified:?}");
    assert_eq!(verified.tables[0].columns, BTreeMap::from([("value".to_owned(), 20)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_was_changed_without_its_version_is_caught() {
    let database = Database::fresh().await;
    let writer = instance_of(&database, "none").await;
    for order in 0..20 {
        place(&writer, &format!("o-{order}"), 0).await;
    }
    let before = counted(&database, Configuration::new().fold(SoundCounter).unwrap()).await;
    assert!(verify(&before, "counted", &small_pages()).await.is_equal());
    let after = instance(&database, Configuration::new().fold(ChangedCounter).unwrap()).await;
    let verified = verify(&after, "counted", &small_pages()).await;
    // Positions 1 to 20, of which 3, 6, .. 18 are what they were.
    assert_eq!(verified.tables[0].different, 14, "{verified:?}");
}
