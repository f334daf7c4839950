//! Whether this build splits the events of a SQL projector as the one did that began the replay.
//!
//! A shard's checkpoint says of the events that are its own how far they were projected. By another split other events would be
//! its own: some would be projected twice, some never. Nobody can tell one function from another; so what the events of a
//! sample are split by is written down with the shards, and has to be the same for whoever goes on.

use tokio_postgres::Client;

use super::ReplayError;
use crate::projector::Registered;
use crate::store::{Store, StoreError, rows};
use crate::words::event::RawEvent;
use crate::words::position::Position;

/// What a sample of the events between two positions is split by; none if nobody declared how they are.
pub(super) async fn sample(
    store: &Store,
    client: &Client,
    registered: &Registered,
    (after, up_to): (Position, Position),
) -> Result<Option<Vec<Option<i64>>>, StoreError> {
    let parallel = registered.projector.parallel();
    if !registered.projector.needs_transaction() || parallel.most_shards() == 1 {
        return Ok(None);
    }
    let params: [&(dyn postgres_types::ToSql + Sync); 3] = [&after, &up_to, &registered.event_types];
    let events = store.query(client, &store.sql.sample, &params).await?;
    let events: Vec<RawEvent> = events.iter().map(rows::event).collect::<Result<_, _>>()?;
    Ok(Some(parallel.split(&events)))
}

/// Refuses shards that were begun by another split than this build's.
pub(super) async fn is_ours(
    store: &Store,
    client: &Client,
    registered: &Registered,
    (after, up_to): (Position, Position),
    begun_with: Option<Vec<Option<i64>>>,
    shards: usize,
) -> Result<(), ReplayError> {
    // All events belong to the one shard, whatever they are split by.
    if !registered.projector.needs_transaction() || shards == 1 {
        return Ok(());
    }
    let ours = sample(store, client, registered, (after, up_to)).await?;
    let same = match (&begun_with, &ours) {
        (Some(theirs), Some(ours)) => is_same(theirs, ours),
        _ => false,
    };
    if same {
        return Ok(());
    }
    let (projector, version) = registered.id();
    Err(ReplayError::OtherSplit { projector, version, shards })
}

/// Whether the same events are split by the same. An event that one build could not decode says nothing: mended, it has a key.
fn is_same(theirs: &[Option<i64>], ours: &[Option<i64>]) -> bool {
    theirs.len() == ours.len()
        && theirs.iter().zip(ours).all(|pair| !matches!(pair, (Some(theirs), Some(ours)) if theirs != ours))
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn only_events_that_both_builds_can_tell_of_are_compared() {
        assert!(is_same(&[Some(1), Some(2)], &[Some(1), Some(2)]));
        assert!(is_same(&[Some(1), None], &[Some(1), Some(2)]));
        assert!(!is_same(&[Some(1), Some(2)], &[Some(1), Some(3)]));
        assert!(!is_same(&[Some(1)], &[Some(1), Some(2)]));
        assert!(is_same(&[], &[]));
    }
}
