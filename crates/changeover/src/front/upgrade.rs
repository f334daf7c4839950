//! The front of an upgrade: see, replay, activate, go back, adopt.

use super::Changeover;
use crate::activation::rollback::{self, RollbackError};
use crate::activation::{self, ActivateError, ActivateOptions, Activated, ActivationProgress};
use crate::adopt::{self, AdoptError, AdoptOptions, Adopted};
use crate::expiry;
use crate::optimize::{self, OptimizeError, OptimizeOptions, Optimized};
use crate::replayer::shown::{self, RunningReplay};
use crate::replayer::{self, CaughtUp, ReplayError, ReplayOptions, ReplayProgress};
use crate::status::{Status, status};
use crate::store::StoreError;
use crate::upgrade::{self, UpgradeError, UpgradeOptions, UpgradeProgress, Upgraded};
use crate::words::names::ProjectorName;
use crate::words::plan::Plan;

impl Changeover {
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
        let mut wanted = Vec::with_capacity(projectors.len());
        for name in projectors {
            wanted.push(self.core.configuration.get(name)?.clone());
        }
        replayer::replay(&self.core, &wanted, options, on_progress).await
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

    /// Builds the secondary indexes that these projectors of this configuration should have and that are missing, and lets the
    /// planner know of their rows; of every projector that has tables, if none is named. A replay does so after its bulk; this is
    /// for an index that a version has got since, or that somebody dropped, and for tables that were adopted.
    ///
    /// Where the version only replays, indexes are built several at once. Where its tables are live they are built beside whoever
    /// reads and writes them, by `CREATE INDEX CONCURRENTLY`, which holds nobody up and waits for transactions that are open;
    /// a unique one is refused there. Goes on where an earlier call was killed: what it left half built is built anew. Of a projector that
    /// runs its own SQL, only the indexes among its definitions are looked at. Costs one sequential read of a table for each
    /// index, and one sample of each table.
    ///
    /// # Errors
    ///
    /// See [`OptimizeError`].
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), changeover::OptimizeError> {
    /// use changeover::OptimizeOptions;
    ///
    /// for optimized in changeover.optimize(&[], &OptimizeOptions::default(), &|_| {}).await? {
    ///     println!("{}: built {:?}", optimized.projector, optimized.built);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn optimize(
        &self,
        projectors: &[ProjectorName],
        options: &OptimizeOptions,
        on_progress: &(dyn Fn(&ReplayProgress) + Send + Sync),
    ) -> Result<Vec<Optimized>, OptimizeError> {
        let mut wanted = Vec::with_capacity(projectors.len());
        for name in projectors {
            wanted.push(self.core.configuration.get(name)?.clone());
        }
        if projectors.is_empty() {
            wanted = optimize::there(&self.core).await?;
        }
        optimize::optimize(&self.core, &wanted, options, on_progress).await
    }

    /// The whole upgrade to this configuration: replays what has to be replayed, optimizes and catches up, proves the rows against
    /// the log, and activates.
    ///
    /// Each step is kept by itself: called again after it was killed or stopped, it goes on where it was, whoever began it. Several
    /// processes may do so at once: they share the replay, one of them switches, and the others find that it is done.
    ///
    /// # Errors
    ///
    /// See [`UpgradeError`].
    ///
    /// ```no_run
    /// # async fn example(changeover: changeover::Changeover) -> Result<(), changeover::UpgradeError> {
    /// use changeover::{UpgradeOptions, UpgradeProgress};
    ///
    /// let on_progress = |progress| {
    ///     if let UpgradeProgress::Step(step) = progress {
    ///         println!("{step}");
    ///     }
    /// };
    /// let upgraded = changeover.upgrade(&UpgradeOptions::default(), &on_progress).await?;
    /// println!("writers were paused for {} ms", upgraded.activated.pause_ms);
    /// # Ok(()) }
    /// ```
    pub async fn upgrade(
        &self,
        options: &UpgradeOptions,
        on_progress: &(dyn Fn(UpgradeProgress) + Send + Sync),
    ) -> Result<Upgraded, UpgradeError> {
        upgrade::upgrade(&self.core, options, on_progress).await
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

    /// Ends what is replayed, verified or optimized right now, by any process: of these projectors, or of all of them if none is named.
    /// Returns what was told to end; it does so within about a second, with [`ReplayError::Aborted`] or its like, and everything
    /// that was replayed is kept. Who works on several projectors at once ends with all of them. A process that is frozen ends
    /// when it wakes up.
    pub async fn abort_replays(
        &self,
        projectors: &[ProjectorName],
        requested_by: &str,
    ) -> Result<Vec<RunningReplay>, StoreError> {
        let client = self.core.store.single().await?;
        let projectors = Some(projectors).filter(|projectors| !projectors.is_empty());
        shown::abort(&self.core.store, &client, projectors, requested_by).await
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
        let registered = self.core.configuration.get(projector)?;
        adopt::adopt(&self.core, registered, options, on_progress).await
    }
}
