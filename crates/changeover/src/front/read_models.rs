//! The front of the read models: wait for them, prove them, care for their tables.

use std::time::Duration;

use super::Changeover;
use crate::discard::{self, Abandoned, DiscardError, DiscardOptions};
use crate::projector::configuration::NotRegistered;
use crate::prune::{self, PruneError, PruneOptions, Pruned};
use crate::store::StoreError;
use crate::verify::{self, BetweenOptions, Subject, Verified, VerifyError, VerifyOptions, VerifyProgress};
use crate::views::{self, ProjectorViews};
use crate::words::names::ProjectorName;
use crate::words::position::Position;
use crate::words::prune::PrunePlan;

impl Changeover {
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
        let registered = self.core.configuration.get(projector)?;
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
                let (projector, version) = registered.id();
                return Err(WaitError::Stalled { projector, version, error });
            }
            if tokio::time::Instant::now() >= deadline {
                let (projector, version) = registered.id();
                let (wanted, after) = (position, timeout);
                return Err(WaitError::Timeout { projector, version, at, wanted, after });
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
        let registered = self.core.configuration.get(projector)?;
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

    /// What [`discard`](Self::discard) would drop.
    ///
    /// # Errors
    ///
    /// As [`discard`](Self::discard), but for what stands in the way of dropping the tables, which is told.
    pub async fn plan_discard(
        &self,
        projector: &ProjectorName,
        version: &semver::Version,
    ) -> Result<Abandoned, DiscardError> {
        discard::plan(&self.core.store, projector, version).await
    }

    /// Drops the tables of a version that was replayed and never activated, with its state and its checkpoints; and with those of
    /// other versions that share its tables, if none of them was ever activated. Needs no projector code. Replayed again, it begins
    /// with the first event.
    ///
    /// Refused while anybody is at it: a process that replays or verifies it, an activation that is to activate it; refused for
    /// tables that were adopted. As with [`prune`](Self::prune), nothing goes along, and no lock is queued for.
    ///
    /// # Errors
    ///
    /// See [`DiscardError`]. Everything is as it was then.
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), changeover::DiscardError> {
    /// use changeover::DiscardOptions;
    ///
    /// let (projector, version) = ("orders".parse().expect("a name"), changeover::semver::Version::new(2, 0, 0));
    /// println!("{:?}", changeover.plan_discard(&projector, &version).await?);
    /// let dropped = changeover.discard(&projector, &version, &DiscardOptions::default()).await?;
    /// println!("{} is gone", dropped.schema);
    /// # Ok(()) }
    /// ```
    pub async fn discard(
        &self,
        projector: &ProjectorName,
        version: &semver::Version,
        options: &DiscardOptions,
    ) -> Result<Abandoned, DiscardError> {
        discard::discard(&self.core.store, projector, version, options).await
    }
}

/// Why waiting for a projector ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The configuration holds no such projector.
    #[error(transparent)]
    NotOurs(#[from] NotRegistered),
    /// It stands still at an event that it cannot project.
    #[error(
        "{projector} {version} is stalled ({error}): mend it and run `retry {projector}`, or give the event up with `skip`"
    )]
    Stalled {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What stalled it.
        error: String,
    },
    /// It did not get there in time.
    #[error(
        "{projector} {version} is at position {at} after {after:?}, not at {wanted} yet: wait longer, or see `status` for whether anybody publishes"
    )]
    Timeout {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
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
    #[error("{projector} is not stalled at position {position}{}: nothing was skipped; `status` shows what is stalled, and where", stalled_elsewhere(*.stalled_at))]
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
