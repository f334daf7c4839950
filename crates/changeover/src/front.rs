//! The front: what an application holds.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Pool, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::activation::rollback::{self, RollbackError};
use crate::activation::{self, ActivateError, ActivateOptions, Activated, ActivationProgress};
use crate::adopt::{self, AdoptError, AdoptOptions, Adopted};
use crate::codec;
use crate::core::Core;
use crate::expiry;
use crate::instances;
use crate::log::append::{Appended, Appending, NewEvents};
use crate::log::error::AppendError;
use crate::log::read::{self, ReadError, Reader};
use crate::prune::{self, PruneError, PruneOptions, Pruned};
use crate::publisher;
use crate::replayer::{self, CaughtUp, ReplayError, ReplayOptions, ReplayProgress};
use crate::status::{Status, status};
use crate::store::{Path, StoreError};
use crate::verify::{self, BetweenOptions, Subject, Verified, VerifyError, VerifyOptions, VerifyProgress};
use crate::views::{self, ProjectorViews};
use crate::wake::Waker;
use crate::words::event::{Expected, Recorded};
use crate::words::names::{ProjectorName, StreamName};
use crate::words::plan::Plan;
use crate::words::position::{Position, Revision};
use crate::words::prune::PrunePlan;
use crate::words::readiness::Readiness;

/// An instance: appends, reads, publishes, replays and activates. Cheap to clone.
///
/// ```no_run
/// use changeover::{Changeover, Configuration, Expected};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// enum OrderEvent {
///     OrderPlaced { customer: String },
/// }
///
/// # async fn example(configuration: Configuration) -> Result<(), Box<dyn std::error::Error>> {
/// let builder = Changeover::builder("host=localhost dbname=shop".parse()?)
///     .application("shop", "2.3.0")
///     .configuration(configuration);
/// builder.migrate().await?;
/// let changeover = builder.connect().await?;
/// let running = changeover.start();
///
/// let placed = OrderEvent::OrderPlaced { customer: "Ada".into() };
/// changeover.append(&"order-1".parse()?, Expected::NoStream, &[placed]).await?;
///
/// running.stop().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Changeover {
    pub(crate) core: Arc<Core>,
}

impl Changeover {
    /// Starts what an instance does by itself: publish to its background projectors, watch its readiness, and say that it
    /// is there. Runs until [`Running::stop`]; if the returned value is dropped, the tasks are told to stop as well.
    pub fn start(&self) -> Running {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(crate::watch::watch(self.core.clone(), stop.clone()));
        tasks.spawn(instances::heartbeat(self.core.clone(), stop.clone()));
        publisher::start(&self.core, &tasks, &stop);
        tasks.close();
        Running { tasks, _guard: stop.clone().drop_guard(), stop }
    }

    /// The application's pool: for its own tables, and for transactions in which it appends.
    ///
    /// A connection comes back from it without settings, session locks or an open transaction; checking that costs one
    /// round trip for each time a connection is taken.
    pub fn pool(&self) -> &Pool {
        &self.core.store.pool
    }

    /// What was found between this process and the server.
    pub fn path(&self) -> Path {
        self.core.store.path
    }

    /// Wakes the publisher: for signals of the host's own.
    pub fn waker(&self) -> Waker {
        self.core.waker.clone()
    }

    /// The id of this instance, as in the list of instances.
    pub fn instance_id(&self) -> Uuid {
        self.core.identity.id
    }

    // --- the log ----------------------------------------------------------------------------------------------------

    /// Appends events to a stream, in a transaction of its own.
    ///
    /// One round trip; two for [`Expected::Any`], which waits for its turn at the stream; three where inline folds handle the
    /// events.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]. Nothing was written, unless the connection was lost: then the stream has to be read to know.
    pub async fn append<E: Serialize>(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
    ) -> Result<Appended, AppendError> {
        self.append_alone(stream, expected, &NewEvents::encode(events, None)?).await
    }

    /// Like [`append`](Self::append), with metadata for each of the events: who, why, because of what.
    pub async fn append_with<E: Serialize>(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
        metadata: &impl Serialize,
    ) -> Result<Appended, AppendError> {
        let metadata = codec::encode_metadata(metadata)?;
        self.append_alone(stream, expected, &NewEvents::encode(events, Some(metadata))?).await
    }

    async fn append_alone(
        &self,
        stream: &StreamName,
        expected: Expected,
        new: &NewEvents,
    ) -> Result<Appended, AppendError> {
        let mut lent = self.core.store.lent().await?;
        let appended = self.appending(stream, expected, new).alone(lent.client()).await;
        if appended.is_err() || self.core.configuration.runs_sql_inline() {
            lent.give_back();
        } else {
            lent.give_back_untouched();
        }
        let appended = appended?;
        self.core.appended();
        Ok(appended)
    }

    /// Appends events to a stream inside the caller's transaction, whatever its isolation level.
    ///
    /// One round trip; two where inline folds handle the events. The caller commits, soon: while the transaction is
    /// open, readers of the log stop before its events, and an activation waits for it.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]. Roll the transaction back.
    pub async fn append_in<E: Serialize>(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
    ) -> Result<Appended, AppendError> {
        self.append_within(tx, stream, expected, &NewEvents::encode(events, None)?).await
    }

    /// Like [`append_in`](Self::append_in), with metadata for each of the events.
    pub async fn append_in_with<E: Serialize>(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        expected: Expected,
        events: &[E],
        metadata: &impl Serialize,
    ) -> Result<Appended, AppendError> {
        let metadata = codec::encode_metadata(metadata)?;
        self.append_within(tx, stream, expected, &NewEvents::encode(events, Some(metadata))?).await
    }

    async fn append_within(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        expected: Expected,
        new: &NewEvents,
    ) -> Result<Appended, AppendError> {
        let appended = self.appending(stream, expected, new).within(tx).await?;
        // It is not committed yet: whoever looks now sees it in flight, and looks again soon.
        self.core.appended();
        Ok(appended)
    }

    fn appending<'a>(
        &'a self,
        stream: &'a StreamName,
        expected: Expected,
        new: &'a NewEvents,
    ) -> Appending<'a> {
        let Core { store, decider, activation_wait, .. } = &*self.core;
        Appending { store, decider, activation_wait: *activation_wait, stream, expected, new }
    }

    /// The events of a stream after a revision, at most `limit`.
    pub async fn read_stream<E: DeserializeOwned>(
        &self,
        stream: &StreamName,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Recorded<E>>, ReadError> {
        let client = self.core.store.client().await?;
        read::stream(&self.core.store, &client, stream, after, limit).await
    }

    /// Like [`read_stream`](Self::read_stream), inside a transaction.
    pub async fn read_stream_in<E: DeserializeOwned>(
        &self,
        tx: &Transaction<'_>,
        stream: &StreamName,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Recorded<E>>, ReadError> {
        read::stream(&self.core.store, tx, stream, after, limit).await
    }

    /// Reads the whole log after a position, in batches of at most `batch` events, up to the horizon.
    pub fn read(&self, after: Position, batch: usize) -> Reader {
        Reader::new(self.core.store.clone(), after, batch)
    }

    /// The position at and below which no append is in flight any more.
    pub async fn horizon(&self) -> Result<Position, StoreError> {
        let client = self.core.store.client().await?;
        Ok(crate::horizon::look(&self.core.store, &client).await?.horizon)
    }

    // --- read models ------------------------------------------------------------------------------------------------

    /// Waits until a projector's rows hold everything up to a position: to read one's own writes.
    ///
    /// # Errors
    ///
    /// The projector is none of ours, is stalled, or did not get there in time.
    pub async fn wait_for(
        &self,
        projector: &ProjectorName,
        position: Position,
        timeout: Duration,
    ) -> Result<(), WaitError> {
        let registered = self
            .core
            .configuration
            .projectors
            .get(projector)
            .ok_or_else(|| WaitError::NotOurs(projector.clone()))?;
        let deadline = tokio::time::Instant::now() + timeout;
        let mut published = self.core.published.register();
        let mut pause = Duration::from_millis(2);
        loop {
            let client = self.core.store.client().await?;
            let sql = &self.core.store.sql.reached;
            let params: [&(dyn postgres_types::ToSql + Sync); 4] =
                [&projector.as_str(), &registered.major(), &position, &registered.event_types];
            let row = self.core.store.query_opt(&client, sql, &params).await?;
            drop(client);
            let at = match &row {
                Some(row) if row.get("reached") => return Ok(()),
                Some(row) => row.get("position"),
                None => Position::START,
            };
            if let Some(error) = row.and_then(|row| row.get::<_, Option<String>>("error")) {
                return Err(WaitError::Stalled { projector: projector.clone(), error });
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(WaitError::Timeout {
                    projector: projector.clone(),
                    at,
                    wanted: position,
                    after: timeout,
                });
            }
            tokio::select! {
                () = published.woken() => {}
                () = tokio::time::sleep(pause) => pause = Duration::from_millis(50).min(pause * 2),
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// The schema that holds the tables of a projector of this build.
    pub fn tables_schema(&self, projector: &ProjectorName) -> Option<&str> {
        self.core.configuration.projectors.get(projector).map(|registered| registered.schema.as_str())
    }

    // --- readiness --------------------------------------------------------------------------------------------------

    /// Whether this instance may take traffic, as it knows right now. Costs no query; kept fresh by [`start`](Self::start).
    pub fn readiness(&self) -> Readiness {
        self.core.decider.readiness().borrow().clone()
    }

    /// The readiness, and whenever it changes.
    pub fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.core.decider.readiness()
    }

    // --- operations -------------------------------------------------------------------------------------------------

    /// Everything at a glance, read without any lock.
    pub async fn status(&self) -> Result<Status, StoreError> {
        let client = self.core.store.single().await?;
        status(&self.core.store, &client).await
    }

    /// What activating this configuration would do, and what stands in its way.
    pub async fn plan(&self) -> Result<Plan, StoreError> {
        activation::plan_for(&self.core).await
    }

    /// Feeds history to projectors of this configuration, beside the versions that are active, until at most
    /// `options.lag_events` are left. Goes on where an earlier call stopped. Several projectors read the log once.
    ///
    /// # Errors
    ///
    /// See [`ReplayError`]. What was replayed until then is kept.
    pub async fn replay(
        &self,
        projectors: &[ProjectorName],
        options: &ReplayOptions,
        on_progress: &(dyn Fn(&ReplayProgress) + Send + Sync),
    ) -> Result<Vec<CaughtUp>, ReplayError> {
        let own = &self.core.configuration.projectors;
        let mut wanted = Vec::with_capacity(projectors.len());
        for name in projectors {
            wanted.push(own.get(name).cloned().ok_or_else(|| ReplayError::NotOurs(name.clone()))?);
        }
        replayer::replay(&self.core, &wanted, options, on_progress).await
    }

    /// Compares the tables of a projector of this build with what this build makes of the log, beside whoever feeds and
    /// reads them: every row, at one exact position. Finds rows that are missing, extra or different, whatever made them so: a
    /// hand that changed them, code that changed without its version, a fold that depends on more than its events.
    ///
    /// Values are equal if their type says so: numbers by value whatever their scale, `json` and `jsonb` without regard to
    /// spaces and to the order of keys, `NaN` to itself; types without an equality of that kind as text. Rows of tables without a
    /// primary key are compared as a whole and counted.
    ///
    /// Costs about as much as a replay, in time, in reading and in space: the log is folded afresh into tables of its own, which
    /// are dropped in the end; after a kill, by the next call. The tables that are there are locked for no longer than
    /// it takes to read `page_rows` rows of them, or one table whole that has no primary key.
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), Box<dyn std::error::Error>> {
    /// use changeover::VerifyOptions;
    /// let verified = changeover.verify(&"order_summary".parse()?, &VerifyOptions::default(), &|_| {}).await?;
    /// assert!(verified.is_equal(), "{verified}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`VerifyError`]: nothing can be said. That rows differ is no error.
    pub async fn verify(
        &self,
        projector: &ProjectorName,
        options: &VerifyOptions,
        on_progress: &(dyn Fn(VerifyProgress) + Send + Sync),
    ) -> Result<Verified, VerifyError> {
        let registered = self.core.configuration.projectors.get(projector);
        let registered = registered.ok_or_else(|| VerifyError::NotOurs(projector.clone()))?;
        verify::verify(&self.core, Subject::registered(registered), options, on_progress).await
    }

    /// Compares the tables of two versions of a projector with each other, but for differences that are declared: the rows of
    /// `version` should be those of `with`. By SQL alone, so it needs the code of neither. Both have to stand at one position,
    /// which is waited for as long as [`BetweenOptions::patience`] says.
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), Box<dyn std::error::Error>> {
    /// use changeover::{BetweenOptions, Declared};
    /// let cents = Declared::Mapped {
    ///     table: "orders".into(),
    ///     column: "cents".into(),
    ///     expression: "euros * 100".into(),
    /// };
    /// let euros = Declared::LeftOut { table: "orders".into(), column: Some("euros".into()) };
    /// let options = BetweenOptions { declared: vec![cents, euros], ..BetweenOptions::default() };
    /// let (with, version) = ("1.4.0".parse()?, "2.0.0".parse()?);
    /// let verified = changeover.verify_between(&"orders".parse()?, &with, &version, &options, &|_| {}).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`VerifyError`]: nothing can be said. That rows differ is no error.
    pub async fn verify_between(
        &self,
        projector: &ProjectorName,
        with: &semver::Version,
        version: &semver::Version,
        options: &BetweenOptions,
        on_progress: &(dyn Fn(VerifyProgress) + Send + Sync),
    ) -> Result<Verified, VerifyError> {
        verify::between(&self.core.store, projector, with, version, options, on_progress).await
    }

    /// Makes this configuration the active one: replays what has to be replayed, catches up, and switches all projectors
    /// at one moment.
    pub async fn activate(
        &self,
        options: &ActivateOptions,
        on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
    ) -> Result<Activated, ActivateError> {
        activation::activate(&self.core, options, on_progress).await
    }

    /// Goes back: makes the configuration that was active before the active one again, if it is the one of this build. So it
    /// is run from the build of the old release, which holds the old projectors' code.
    ///
    /// Feeds the retired versions what happened since they retired, then switches, by the same steps and with the same pause
    /// as [`activate`](Self::activate); nothing that was written in between is lost. Goes on where an earlier call was
    /// killed. Does nothing where it was gone back already.
    ///
    /// # Errors
    ///
    /// This build's configuration is not the one that was active before; tables that it needs were pruned; the activation
    /// did not happen.
    ///
    /// ```no_run
    /// # async fn example(old_release: changeover::Changeover) -> Result<(), changeover::RollbackError> {
    /// use changeover::ActivateOptions;
    ///
    /// let options = ActivateOptions { requested_by: "ada".to_owned(), ..ActivateOptions::default() };
    /// let back = old_release.rollback(&options, &|_| {}).await?;
    /// println!("writers were paused for {} ms", back.pause_ms);
    /// # Ok(()) }
    /// ```
    pub async fn rollback(
        &self,
        options: &ActivateOptions,
        on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
    ) -> Result<Activated, RollbackError> {
        rollback::rollback(&self.core, options, on_progress).await
    }

    /// What going back would do, and what stands in its way.
    ///
    /// # Errors
    ///
    /// As [`rollback`](Self::rollback), but for the obstacles, which are in the plan.
    pub async fn plan_rollback(&self) -> Result<Plan, RollbackError> {
        rollback::plan_back(&self.core).await
    }

    /// Ends every activation that has not switched yet; the active configuration stays. Returns their numbers.
    pub async fn abort(&self, requested_by: &str) -> Result<Vec<i64>, StoreError> {
        let client = self.core.store.single().await?;
        let reason = format!("aborted by {requested_by}");
        expiry::give_back(&self.core.store, &client, None, "aborted", &reason, false).await
    }

    /// Ends one activation, if it has not switched yet: what whoever performs it does when told to stop. Returns whether it
    /// was still open.
    pub async fn abort_one(&self, activation: i64, requested_by: &str) -> Result<bool, StoreError> {
        let client = self.core.store.single().await?;
        let reason = format!("aborted by {requested_by}");
        let ended =
            expiry::give_back(&self.core.store, &client, Some(activation), "aborted", &reason, false).await?;
        Ok(!ended.is_empty())
    }

    /// Makes tables that are there already the active version of a projector of this configuration: those of a read model that
    /// something else has fed until now.
    ///
    /// The tables must be as the version defines them. They are moved into the schema of their version, with a view in each
    /// one's place that can be read and written like the table, by the same people; or they are there already. What came after
    /// [`AdoptOptions::position`] is then replayed, and an activation of this projector alone makes the version active: from
    /// there on it is fed like any other. Instances without this projector retire at that moment, as with every activation that
    /// adds one.
    ///
    /// Up to where the rows are right is the caller's to know. [`AdoptAt::Position`](crate::AdoptAt::Position) says that whoever fed them has stopped
    /// there; it works for every projector, whoever appends meanwhile. [`AdoptAt::Horizon`](crate::AdoptAt::Horizon) is for tables that the
    /// appending transactions themselves keep current: nothing is replayed, and the pause waits for all of those transactions.
    ///
    /// The tables are locked for as long as it takes to move them, and never asked for longer than a moment at a time. If
    /// this is interrupted or fails after they were taken over, the same call goes on from there.
    ///
    /// ```no_run
    /// use changeover::{AdoptOptions, Position};
    ///
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), changeover::AdoptError> {
    /// let options = AdoptOptions {
    ///     from_schema: Some("public".to_owned()),
    ///     ..AdoptOptions::at(Position::new(120_000))
    /// };
    /// let projector = "order_summary".parse().expect("a name");
    /// let adopted = changeover.adopt(&projector, &options, &|_| {}).await?;
    /// println!("{} {} is active", adopted.projector, adopted.version);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`AdoptError`]: the projector is known already, the tables differ, the position is above the horizon.
    pub async fn adopt(
        &self,
        projector: &ProjectorName,
        options: &AdoptOptions,
        on_progress: &(dyn Fn(ActivationProgress) + Send + Sync),
    ) -> Result<Adopted, AdoptError> {
        let registered = self
            .core
            .configuration
            .projectors
            .get(projector)
            .ok_or_else(|| AdoptError::NotOurs(projector.clone()))?;
        adopt::adopt(&self.core, registered, options, on_progress).await
    }

    /// Makes the stable views `<projector>.<table>` show the active versions, of all projectors. An activation does that by
    /// itself; this puts right what it could not do, because readers held a view for too long, something was in the way, or its
    /// process was killed right after the switch. [`status`](Self::status) shows views that lag behind.
    ///
    /// All views of one projector move in one transaction. It never waits for a reader for longer than a moment at a time, so
    /// that no other reader queues behind it, and tries until `timeout` has passed. Needs no projector's code: it takes the names of
    /// the tables from the database.
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), changeover::StoreError> {
    /// for views in changeover.repoint_views(std::time::Duration::from_secs(10)).await? {
    ///     for problem in views.problems {
    ///         eprintln!("{problem}");
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn repoint_views(&self, timeout: Duration) -> Result<Vec<ProjectorViews>, StoreError> {
        let client = self.core.store.single().await?;
        views::follow(&self.core.store, &client, timeout, &|_, _| {}).await
    }

    /// Retires one projector without another version in its place, by the same pause as an activation. Its tables and its
    /// checkpoint are kept; its stable views are dropped, and come back with what was granted on them if a version of it is
    /// activated again.
    pub async fn deactivate(
        &self,
        projector: &ProjectorName,
        options: &ActivateOptions,
    ) -> Result<Activated, ActivateError> {
        activation::deactivate(&self.core, projector, options).await
    }

    /// What [`prune`](Self::prune) would drop, and what protects the rest.
    pub async fn plan_prune(&self, keep: usize) -> Result<PrunePlan, StoreError> {
        prune::plan(&self.core.store, keep).await
    }

    /// Drops the tables of retired versions, with their states and checkpoints, but for those of the newest
    /// [`keep`](PruneOptions::keep) major versions of each projector. Needs no projector code.
    ///
    /// Tables that a version uses which is active, being replayed or being activated are never dropped, and neither are those
    /// that a live instance follows. Nothing goes along: where a view, a foreign key or anything else of somebody else's
    /// depends on tables, or stands in their schema, that schema is left as it is, whole. Takes exclusive locks on
    /// the tables that it drops, for as long as that takes, and never queues for them.
    ///
    /// # Errors
    ///
    /// Something that was due could not be dropped; what could be, was.
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), changeover::PruneError> {
    /// use changeover::PruneOptions;
    ///
    /// println!("{:?}", changeover.plan_prune(1).await?);
    /// let options = PruneOptions { requested_by: "ada".to_owned(), keep: 1, ..PruneOptions::default() };
    /// let pruned = changeover.prune(&options).await?;
    /// println!("{} schemas were dropped", pruned.dropped.len());
    /// # Ok(()) }
    /// ```
    pub async fn prune(&self, options: &PruneOptions) -> Result<Pruned, PruneError> {
        prune::prune(&self.core.store, options).await
    }

    /// Lets a stalled projector try again. Returns whether it was stalled.
    pub async fn retry(&self, projector: &ProjectorName) -> Result<bool, StoreError> {
        let client = self.core.store.single().await?;
        let rows = self.core.store.query(&client, &self.core.store.sql.retry, &[&projector.as_str()]).await?;
        self.core.waker.wake();
        Ok(!rows.is_empty())
    }

    /// Moves a stalled projector past the event that stalls it. That event is never projected into it, and is written
    /// down as skipped.
    ///
    /// # Errors
    ///
    /// The projector is not stalled, or at another position.
    pub async fn skip(
        &self,
        projector: &ProjectorName,
        position: Position,
        requested_by: &str,
    ) -> Result<(), SkipError> {
        let client = self.core.store.single().await?;
        let sql = &self.core.store.sql;
        let params: [&(dyn postgres_types::ToSql + Sync); 3] =
            [&projector.as_str(), &position, &requested_by];
        if self.core.store.query(&client, &sql.skip, &params).await?.is_empty() {
            let stalls = self.core.store.query(&client, &sql.stalls, &[&projector.as_str()]).await?;
            let stalled_at = stalls.first().and_then(|row| row.get::<_, Option<Position>>("error_position"));
            return Err(SkipError::NotStalledThere { projector: projector.clone(), position, stalled_at });
        }
        self.core.waker.wake();
        Ok(())
    }
}

/// Why waiting for a projector ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The configuration holds no such projector.
    #[error("this build registers no projector {0}")]
    NotOurs(ProjectorName),
    /// It stands still at an event that it cannot project.
    #[error("{projector} is stalled: {error}")]
    Stalled {
        /// The projector.
        projector: ProjectorName,
        /// What stalled it.
        error: String,
    },
    /// It did not get there in time.
    #[error("{projector} is at position {at} after {after:?}, not at {wanted} yet")]
    Timeout {
        /// The projector.
        projector: ProjectorName,
        /// Where it is.
        at: Position,
        /// Where it should be.
        wanted: Position,
        /// How long it was waited for.
        after: Duration,
    },
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

/// Why nothing was skipped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipError {
    /// Only the event that stalls a projector can be skipped.
    #[error("{projector} is not stalled at position {position}{}: nothing was skipped", stalled_elsewhere(*.stalled_at))]
    NotStalledThere {
        /// The projector.
        projector: ProjectorName,
        /// Where it was believed to be stalled.
        position: Position,
        /// Where it is stalled, if it is.
        stalled_at: Option<Position>,
    },
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

fn stalled_elsewhere(at: Option<Position>) -> String {
    at.map_or_else(String::new, |at| format!(", but at {at}"))
}

/// What an instance does by itself.
#[derive(Debug)]
#[must_use = "when it is dropped, the instance stops publishing and watching"]
pub struct Running {
    tasks: TaskTracker,
    stop: CancellationToken,
    _guard: tokio_util::sync::DropGuard,
}

impl Running {
    /// Tells the tasks to stop and waits for them: a batch in flight is finished, the instance says goodbye.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}
