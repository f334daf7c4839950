//! What is not adopted, why not, and that nothing was changed.

use changeover::{AdoptError, AdoptOptions, Expected, Position};
use changeover_testkit::Database;

use super::{TABLE, adopt, everything, from_public, humble, read_model_of_others};
use crate::orders::{placed, stream};

#[tokio::test]
async fn what_contradicts_an_adoption_is_refused_and_changes_nothing() {
    let database = Database::fresh().await;
    let (client, none, position) = read_model_of_others(&database).await;
    let new = humble(&database, "1.0.0").await;
    let before = everything(&client).await;

    let unknown = new.adopt(&"totals".parse().unwrap(), &from_public(position), &|_| {}).await.unwrap_err();
    assert!(matches!(unknown, AdoptError::NotOurs(_)), "{unknown}");
    let horizon = none.horizon().await.unwrap();
    let above = Position::new(horizon.get() + 1);
    let refused = adopt(&new, &from_public(above)).await.unwrap_err();
    assert!(
        matches!(refused, AdoptError::AboveHorizon { position, horizon: seen } if position == above && seen == horizon),
        "{refused}"
    );
    // An append in flight below it counts.
    let mut appending = none.pool().get().await.unwrap();
    let tx = appending.transaction().await.unwrap();
    none.append_in(&tx, &stream("open"), Expected::NoStream, &[placed("Ada")]).await.unwrap();
    let newest = new.status().await.unwrap().newest;
    assert!(matches!(adopt(&new, &from_public(newest)).await, Err(AdoptError::AboveHorizon { .. })));
    tx.rollback().await.unwrap();

    let elsewhere =
        AdoptOptions { from_schema: Some("no such \"schema\"".to_owned()), ..AdoptOptions::at(position) };
    for options in [AdoptOptions::at(position), elsewhere] {
        let refused = adopt(&new, &options).await.unwrap_err();
        let AdoptError::Different { differences, .. } = &refused else { panic!("{refused}") };
        assert!(
            differences.len() == 1 && differences[0].to_string().ends_with("orders is missing"),
            "{refused}"
        );
    }
    assert_eq!(everything(&client).await, before);

    client.batch_execute("CREATE SCHEMA orders_v1").await.unwrap();
    let refused = adopt(&new, &from_public(position)).await.unwrap_err();
    assert!(
        matches!(&refused, AdoptError::SchemaIsThere { schema, .. } if schema == "orders_v1"),
        "{refused}"
    );
    client.batch_execute("DROP SCHEMA orders_v1").await.unwrap();

    // Known already: in whatever state, whatever version.
    let _ = adopt(&new, &from_public(position)).await.unwrap();
    let before = everything(&client).await;
    for name in ["1.0.0", "2.0.0"] {
        let again = humble(&database, name).await;
        let refused = adopt(&again, &from_public(position)).await.unwrap_err();
        assert!(matches!(refused, AdoptError::AlreadyKnown { .. }), "{refused}");
    }
    assert_eq!(everything(&client).await, before);
}

#[tokio::test]
async fn tables_that_differ_are_refused_and_every_difference_is_named() {
    let check = async |change: &str, expected: &[&str]| {
        let database = Database::fresh().await;
        let client = database.client().await;
        let new = humble(&database, "1.0.0").await;
        client.batch_execute(TABLE).await.unwrap();
        client.batch_execute(change).await.unwrap();
        let before = everything(&client).await;
        let refused = adopt(&new, &from_public(Position::START)).await.unwrap_err();
        let AdoptError::Different { differences, .. } = &refused else { panic!("{refused}") };
        let differences: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(differences, expected, "{change}");
        assert_eq!(everything(&client).await, before);
    };
    check(
        "ALTER TABLE public.orders DROP customer, ALTER cents TYPE numeric(12, 2), ALTER paid DROP NOT NULL, ADD note text",
        &[
            "public.orders has no column customer",
            "public.orders.cents is numeric(12,2), not bigint",
            "public.orders.paid may be null",
            "public.orders has a column note, which is not in the definition",
        ],
    )
    .await;
    check(
        "DROP TABLE public.orders; CREATE VIEW public.orders AS SELECT 1 AS id",
        &["public.orders is not a table"],
    )
    .await;
    check(
        "ALTER TABLE public.orders DROP CONSTRAINT orders_id_key, ADD PRIMARY KEY (customer, id)",
        &["what is unique in public.orders is (customer, id), not (id)"],
    )
    .await;
    check(
        "CREATE UNIQUE INDEX ON public.orders (customer) WHERE paid",
        &["what is unique in public.orders is (customer) where paid and (id), not (id)"],
    )
    .await;
    check(
        "ALTER TABLE public.orders DROP CONSTRAINT orders_id_key, ADD UNIQUE (id) DEFERRABLE",
        &["what is unique in public.orders is (id) deferrable, not (id)"],
    )
    .await;
    check(
        "ALTER TABLE public.orders DROP items, ADD items integer NOT NULL GENERATED ALWAYS AS (1) STORED",
        &["public.orders.items is generated"],
    )
    .await;
    check(
        "ALTER TABLE public.orders DROP items, ADD items integer NOT NULL",
        &["the columns of public.orders stand in the order id, customer, cents, paid, last_position, items, \
           not id, customer, items, cents, paid, last_position"],
    )
    .await;
    check(
        "ALTER TABLE public.orders ENABLE ROW LEVEL SECURITY",
        &["public.orders has row-level security, which a view in its place would not have: move it by hand and adopt it there"],
    )
    .await;
}
