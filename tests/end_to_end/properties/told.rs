//! The same description, followed by statements of a projector's own: one table, by the first of the rules.

use std::collections::{BTreeSet, HashMap};

use changeover::semver::Version;
use changeover::{
    Batch, BoxError, Delivery, Recorded, SplitBy, SplitKey, SqlProjector, StreamName, ToSql, Transaction,
    Type,
};

use super::described::{Cells, Happened, Keys, Place};

/// In a major version, split as it may be or not at all, inline or in the background.
pub(super) struct Told<const MAJOR: u64, const SPLIT: bool, const INLINE: bool>;

impl<const MAJOR: u64, const SPLIT: bool, const INLINE: bool> SqlProjector for Told<MAJOR, SPLIT, INLINE> {
    const NAME: &'static str = if INLINE { "told_inline" } else { "told" };
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    const DELIVERY: Delivery = if INLINE { Delivery::Inline } else { Delivery::Background };
    const TABLES: &'static str = "CREATE TABLE {schema}.numbers
        (id bigint PRIMARY KEY, events bigint NOT NULL, digest bigint NOT NULL, halves double precision NOT NULL, text text)";
    type Event = Happened;

    const SPLIT_BY: Option<SplitBy<Happened>> = if SPLIT { Some(split) } else { None };

    fn keys(event: &Happened, stream: &StreamName) -> Option<Vec<String>> {
        Some(event.keys(0, stream.as_str()).iter().map(ToString::to_string).collect())
    }

    async fn project(&self, batch: Batch<'_, Happened>, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let keys = |event: &Recorded<Happened>| -> BTreeSet<i64> {
            event.data.keys(0, event.stream.as_str()).into_iter().collect()
        };
        let touched: Vec<i64> = batch.events().iter().flat_map(keys).collect();
        let load =
            batch.sql("SELECT id, events, digest, halves, text FROM {schema}.numbers WHERE id = ANY ($1)");
        let mut rows: HashMap<i64, Cells> = HashMap::new();
        for row in tx.query_typed(&load, &[(&touched, Type::INT8_ARRAY)]).await? {
            let (events, digest, halves) = (row.get("events"), row.get("digest"), row.get("halves"));
            rows.insert(row.get("id"), Cells { events, digest, halves, text: row.get("text") });
        }
        for event in batch.events() {
            for key in keys(event) {
                let next = event.data.next(0, rows.remove(&key), &Place::of(event));
                rows.extend(next.map(|cells| (key, cells)));
            }
        }
        let forget = batch.sql("DELETE FROM {schema}.numbers WHERE id = ANY ($1)");
        tx.query_typed(&forget, &[(&touched, Type::INT8_ARRAY)]).await?;
        let write = batch.sql(
            "INSERT INTO {schema}.numbers
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::double precision[], $5::text[])",
        );
        let (ids, cells): (Vec<i64>, Vec<Cells>) = rows.into_iter().unzip();
        let events: Vec<i64> = cells.iter().map(|cells| cells.events).collect();
        let digests: Vec<i64> = cells.iter().map(|cells| cells.digest).collect();
        let halves: Vec<f64> = cells.iter().map(|cells| cells.halves).collect();
        let texts: Vec<Option<String>> = cells.into_iter().map(|cells| cells.text).collect();
        let params: [(&(dyn ToSql + Sync), Type); 5] = [
            (&ids, Type::INT8_ARRAY),
            (&events, Type::INT8_ARRAY),
            (&digests, Type::INT8_ARRAY),
            (&halves, Type::FLOAT8_ARRAY),
            (&texts, Type::TEXT_ARRAY),
        ];
        tx.query_typed(&write, &params).await?;
        Ok(())
    }
}

/// By the one row that an event touches. Where that may be several, all events belong together.
fn split(event: &Recorded<Happened>) -> SplitKey {
    let row = match event.data.rule(0).keys {
        Keys::Stream | Keys::Subject | Keys::Sometimes => event.data.keys(0, event.stream.as_str()).pop(),
        Keys::One | Keys::Both | Keys::Several(_) => None,
    };
    SplitKey::of(&row.unwrap_or_default().to_be_bytes())
}
