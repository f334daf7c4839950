//! The checker must notice what it is there to notice: each kind of damage is done on purpose.

use changeover::Changeover;
use changeover_testkit::Database;
use shop::Release;
use shop::demo::check::{Findings, check};
use shop::demo::ledger::Acknowledged;
use shop::orders::OrderEvent;

use crate::shops::{active_shop, item, order, wait_for};

/// A small shop with a past, all of it projected.
struct Checked {
    database: Database,
    acknowledged: Vec<Acknowledged>,
    _changeover: Changeover,
}

impl Checked {
    async fn new(release: Release) -> Self {
        let database = Database::fresh().await;
        let changeover = active_shop(&database, release).await;
        let running = changeover.start();
        let histories = [
            vec![item("tea", 2, 450), item("cup", 1, 1_200), OrderEvent::OrderPaid, OrderEvent::OrderShipped],
            vec![item("tea", 1, 450), OrderEvent::OrderCancelled],
            vec![item("cup", 3, 1_100), item("cup", 1, 1_100), OrderEvent::OrderPaid],
            vec![item("tea", 5, 400)],
            vec![],
        ];
        let mut acknowledged = Vec::new();
        let mut last = None;
        for history in histories {
            let (order, appended) = order(&changeover, "Ada", &history).await;
            last = appended.last();
            let positions = appended.positions.iter().map(|position| position.get()).collect();
            acknowledged.push(Acknowledged { order, revision: appended.revision.get(), positions });
        }
        let projectors: Vec<String> =
            release.configuration().unwrap().versions().keys().map(|name| name.as_str().to_owned()).collect();
        let projectors: Vec<&str> = projectors.iter().map(String::as_str).collect();
        wait_for(&changeover, last.unwrap(), &projectors).await;
        // Nothing moves any more while it is being damaged.
        running.stop().await;
        Self { database, acknowledged, _changeover: changeover }
    }

    async fn findings(&self) -> Findings {
        check(&self.database.client().await, &self.acknowledged, false).await.unwrap()
    }

    /// Lost, duplicated and wrong rows after one statement, which is then undone.
    async fn after(&self, damage: &str) -> [u64; 3] {
        let client = self.database.client().await;
        client.batch_execute("BEGIN").await.unwrap();
        let damaged = client.execute(damage, &[]).await.unwrap();
        assert_eq!(damaged, 1, "{damage} must damage one row");
        let findings = check(&client, &self.acknowledged, false).await.unwrap();
        client.batch_execute("ROLLBACK").await.unwrap();
        let found = [findings.lost, findings.duplicated, findings.rows_wrong];
        assert_eq!(findings.is_clean(), found == [0, 0, 0]);
        assert_eq!(findings.examples.is_empty(), findings.is_clean(), "{damage}: {:?}", findings.examples);
        found
    }
}

#[tokio::test]
async fn a_shop_that_was_not_damaged_is_clean() {
    for release in [Release::One, Release::Two] {
        let shop = Checked::new(release).await;
        let findings = shop.findings().await;
        assert!(findings.is_clean(), "{findings:?}");
        assert_eq!(findings.events_appended, 15);
        // Release 1 forgets the order that was cancelled, with its three events.
        let (projected, tables) = if release == Release::One { (12, 2) } else { (15, 4) };
        assert_eq!(findings.events_projected, projected);
        assert_eq!(findings.read_models.len(), tables);
        assert!(findings.read_models.iter().all(|model| model.rows > 0), "{findings:?}");
    }
}

#[tokio::test]
async fn damage_to_the_log_is_found() {
    let shop = Checked::new(Release::Two).await;
    let [lost, ..] = shop
        .after("DELETE FROM changeover.events WHERE position = (SELECT max(position) FROM changeover.events)")
        .await;
    assert_eq!(lost, 1, "an event that was acknowledged and is gone");
    let [lost, duplicated, _] = shop
        .after("UPDATE changeover.events SET revision = 99 WHERE position = (SELECT max(position) FROM changeover.events)")
        .await;
    assert_eq!((lost, duplicated), (1, 1), "an event in another place than was acknowledged");
    let copy = "INSERT INTO changeover.events (position, stream, revision, type, data)
        SELECT position + 1000, stream, revision + 1000, type, data FROM changeover.events WHERE type = 'OrderShipped'";
    let [lost, duplicated, wrong] = shop.after(copy).await;
    // Nobody was told of it, and no read model has it.
    assert_eq!((lost, duplicated, wrong), (1, 1, 1), "an event that is there twice");
}

#[tokio::test]
async fn damage_to_a_read_model_is_found() {
    let shop = Checked::new(Release::Two).await;
    let check = async |damage: &str, expected: [u64; 3]| {
        assert_eq!(shop.after(damage).await, expected, "{damage}");
    };
    // A row that is missing takes its events along; one that is too many is wrong; so is one with another value.
    check("DELETE FROM order_summary_v2.orders WHERE status = 'shipped'", [5, 0, 1]).await;
    check("UPDATE order_summary_v2.orders SET status = 'paid' WHERE status = 'shipped'", [0, 0, 1]).await;
    check(
        "UPDATE order_summary_v2.orders SET placed_at = placed_at - interval '1 us' WHERE status = 'shipped'",
        [0, 0, 1],
    )
    .await;
    check("UPDATE order_summary_v2.orders SET revision = revision - 1 WHERE status = 'shipped'", [1, 0, 1])
        .await;
    let twice = "UPDATE order_summary_v2.orders SET items = items + 1, revision = revision + 1 WHERE status = 'open' AND items = 1";
    check(twice, [0, 1, 1]).await;
    let one_more = "INSERT INTO order_summary_v2.orders
        SELECT gen_random_uuid(), customer, status, items, pieces, cents, placed_at, revision
        FROM order_summary_v2.orders WHERE status = 'shipped'";
    check(one_more, [0, 0, 1]).await;

    check("DELETE FROM bestsellers_v1.articles WHERE sku = 'tea'", [3, 0, 1]).await;
    check("UPDATE bestsellers_v1.articles SET lines = lines + 2 WHERE sku = 'tea'", [0, 2, 1]).await;
    check("UPDATE bestsellers_v1.articles SET cents = cents + 1 WHERE sku = 'tea'", [0, 0, 1]).await;
    check("INSERT INTO bestsellers_v1.articles VALUES ('mug', 1, 1, 1)", [0, 0, 1]).await;

    // One, also if midnight came in between.
    let newest = "WHERE day = (SELECT max(day) FROM daily_revenue_v1.days)";
    check(&format!("UPDATE daily_revenue_v1.days SET cents = cents + 1 {newest}"), [0, 0, 1]).await;
    check(&format!("UPDATE daily_revenue_v1.days SET orders = orders - 1 {newest}"), [1, 0, 1]).await;
    check("DELETE FROM daily_revenue_v1.unpaid", [1, 0, 1]).await;
    check("INSERT INTO daily_revenue_v1.unpaid VALUES (gen_random_uuid(), 1, 1)", [0, 0, 1]).await;
}

#[tokio::test]
async fn damage_to_a_read_model_of_release_1_is_found() {
    let shop = Checked::new(Release::One).await;
    let one = "WHERE paid AND items = 2 AND cents = 2100";
    assert_eq!(
        shop.after(&format!("UPDATE order_summary_v1.orders SET paid = false {one}")).await,
        [0, 0, 1]
    );
    assert_eq!(shop.after(&format!("DELETE FROM order_summary_v1.orders {one}")).await, [5, 0, 1]);
}

#[tokio::test]
async fn requests_without_an_answer_are_not_held_against_the_log() {
    let mut shop = Checked::new(Release::Two).await;
    let untold = shop.acknowledged.pop().unwrap();
    let client = shop.database.client().await;
    let told = check(&client, &shop.acknowledged, false).await.unwrap();
    assert_eq!(told.duplicated, untold.positions.len() as u64);
    let unknown = check(&client, &shop.acknowledged, true).await.unwrap();
    assert!(unknown.is_clean(), "{unknown:?}");
    shop.acknowledged.push(shop.acknowledged[0].clone());
    let twice = check(&client, &shop.acknowledged, true).await.unwrap();
    assert_eq!(twice.duplicated, shop.acknowledged[0].positions.len() as u64);
}

#[tokio::test]
async fn an_active_projector_that_the_checker_does_not_know_is_no_success() {
    let shop = Checked::new(Release::One).await;
    let client = shop.database.client().await;
    let sql = "INSERT INTO changeover.projector_states (projector, version, state, delivery, fingerprint, changed_by)
        VALUES ('surprise', '1.0.0', 'active', 'inline', '', 'the test')";
    client.execute(sql, &[]).await.unwrap();
    let error = check(&client, &shop.acknowledged, false).await.unwrap_err();
    assert!(error.to_string().contains("surprise"), "{error}");
}
