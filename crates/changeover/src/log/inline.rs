//! Inline projectors: what an append of ours or of a caller's makes of their rows.

use deadpool_postgres::Transaction;
use futures_util::future::join_all;
use tokio_postgres::Row;

use super::append::{Appending, Logged};
use super::error::AppendError;
use crate::decider::Decided;
use crate::projector::{Decoded, Load, ProjectError, Registered};
use crate::store::statements::Sql;
use crate::store::{On, Ready, Store, StoreError};
use crate::words::event::RawEvent;
use crate::words::position::Revision;

/// Row keys are locked by bucket, so that an append of any size holds a bounded number of locks.
const KEY_BUCKETS: u64 = 256;

/// The inline projectors that an append feeds.
pub(super) struct Inline<'d> {
    events: Vec<RawEvent>,
    batches: Vec<InlineBatch<'d>>,
}

struct InlineBatch<'d> {
    registered: &'d Registered,
    /// Which of the append's events are of its types.
    picked: Vec<usize>,
    decoded: Box<dyn Decoded + 'd>,
}

impl<'d> Inline<'d> {
    pub(super) fn decode(appending: &Appending<'_>, decided: &'d Decided) -> Result<Self, AppendError> {
        if decided.inline.is_empty() {
            return Ok(Self { events: Vec::new(), batches: Vec::new() });
        }
        let events = appending.new.unplaced(appending.stream)?;
        let mut batches = Vec::new();
        for registered in &decided.inline {
            let picked: Vec<usize> =
                (0..events.len()).filter(|at| registered.handles(&events[*at].event_type)).collect();
            if picked.is_empty() {
                continue;
            }
            let own: Vec<RawEvent> = picked.iter().map(|at| events[*at].clone()).collect();
            let batch = registered.projector.decode(&own).map_err(|source| failed(registered, source))?;
            batches.push(InlineBatch { registered, picked, decoded: batch });
        }
        Ok(Self { events, batches })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether a projector wants the transaction in hand.
    pub(super) fn needs_transaction(&self) -> bool {
        self.batches.iter().any(|batch| batch.registered.projector.needs_transaction())
    }

    /// In one sorted order, whatever the order of the events: two appends cannot wait for one another.
    pub(super) fn buckets(&self) -> Vec<i32> {
        let locks = self.batches.iter().flat_map(|batch| batch.decoded.row_locks());
        let mut buckets: Vec<i32> =
            locks.map(|lock| i32::try_from(lock % KEY_BUCKETS).expect("a small number")).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    }

    pub(super) fn loads(&self) -> Vec<Load<'_>> {
        self.batches.iter().flat_map(|batch| batch.decoded.loads()).collect()
    }

    /// In an isolation level with one snapshot for the whole transaction, a row that somebody committed after that snapshot
    /// cannot be seen. Changing one that was changed since fails by itself. One that was deleted since would be made anew, so
    /// what was loaded is locked, which fails then; and one that was made since would be taken for absent, so whether it is
    /// there is asked outside.
    pub(super) async fn check_snapshot(
        &self,
        store: &Store,
        on: On<'_>,
        isolation: &str,
        mut loaded: &[Vec<Row>],
    ) -> Result<(), AppendError> {
        let mut outside = None;
        for InlineBatch { registered, decoded, .. } in &self.batches {
            if registered.projector.needs_transaction() {
                let isolation = isolation.to_owned();
                return Err(failed(registered, ProjectError::NeedsReadCommitted { isolation }));
            }
            for hold in decoded.holds() {
                store.query(on, hold.sql, &hold.params()).await?;
            }
            let (own, rest) = loaded.split_at(decoded.load_count());
            loaded = rest;
            for load in decoded.unseen(own).map_err(|source| failed(registered, source))? {
                let client = match &outside {
                    Some(client) => client,
                    None => outside.insert(store.single().await?),
                };
                let count = store.query_one(client, load.sql, &load.params()).await?;
                if count.get::<_, i64>("rows") > 0 {
                    return Err(AppendError::StaleSnapshot {
                        projector: registered.target.projector.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Folds the events, which have their places now, into the rows that were loaded.
    pub(super) fn fold(&mut self, logged: &Logged) -> Result<(), AppendError> {
        let Logged { appended, recorded_at, loaded, .. } = logged;
        let first = appended.revision.get() - i64::try_from(appended.positions.len()).unwrap_or(i64::MAX) + 1;
        for ((event, position), revision) in self.events.iter_mut().zip(&appended.positions).zip(first..) {
            event.recorded.position = *position;
            event.recorded.revision = Revision::new(revision);
            event.recorded.recorded_at = *recorded_at;
        }
        let mut loaded = &loaded[..];
        for InlineBatch { registered, picked, decoded } in &mut self.batches {
            let placed: Vec<RawEvent> = picked.iter().map(|at| self.events[*at].clone()).collect();
            decoded.place(&placed);
            let (own, rest) = loaded.split_at(decoded.load_count());
            loaded = rest;
            decoded.fold(own).map_err(|source| failed(registered, source))?;
        }
        Ok(())
    }

    /// Makes ready what [`write`](Self::write) may have to send.
    pub(super) async fn ready_writes(
        &self,
        store: &Store,
        on: On<'_>,
    ) -> Result<Vec<(&'d Sql, Ready<'d>)>, StoreError> {
        let mut ready = Vec::new();
        for sql in self.batches.iter().flat_map(|batch| batch.registered.projector.writes()) {
            ready.push((sql, store.ready(on, sql).await?));
        }
        Ok(ready)
    }

    /// Writes the rows that were folded. Everything is sent at the first poll: different tables, or different rows of one.
    pub(super) async fn write(&self, on: On<'_>, ready: &[(&Sql, Ready<'_>)]) -> Result<(), AppendError> {
        let writes = self
            .batches
            .iter()
            .flat_map(|batch| batch.decoded.writes().into_iter().map(move |write| (batch.registered, write)));
        let sent = writes.map(|(registered, write)| async move {
            let ready = ready.iter().find(|(sql, _)| std::ptr::eq(*sql, write.sql));
            let (_, ready) = ready.expect("BUG: a write was not made ready");
            ready.query(on, &write.params()).await.map_err(|error| match error {
                // The commit may have been sent along: it is not the projector that failed.
                error if error.is_disconnect() => AppendError::Store(error),
                error => failed(registered, error.into()),
            })
        });
        for written in join_all(sent).await {
            written?;
        }
        Ok(())
    }

    /// Runs the projectors that want the transaction in hand.
    pub(super) async fn run(&self, store: &Store, tx: &Transaction<'_>) -> Result<(), AppendError> {
        for InlineBatch { registered, decoded, .. } in &self.batches {
            if registered.projector.needs_transaction() {
                decoded.run(tx, store.path).await.map_err(|source| failed(registered, source))?;
                // A projector that lets an error of the database pass leaves a broken transaction, whose commit would
                // report no error. Any statement tells.
                let alive = store.query_one(tx, &store.sql.holds_lease, &[]).await;
                alive.map_err(|source| failed(registered, ProjectError::Store(source)))?;
            }
        }
        Ok(())
    }
}

fn failed(registered: &Registered, source: ProjectError) -> AppendError {
    AppendError::Projector { projector: registered.target.projector.clone(), source }
}
