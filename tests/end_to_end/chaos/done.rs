//! What came to pass: a run in which something never happened proves nothing of it.

use std::time::SystemTime;

use tokio_postgres::Client;

/// How many appends a run needs at least; more than it must have acknowledged.
const APPENDS: i64 = 200;

/// An instance that was frozen for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen {
    pub(super) release: u64,
    pub(super) from: SystemTime,
    pub(super) to: SystemTime,
}

/// What became of replays besides those of activations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Replays {
    /// They came to the end of the log.
    pub(crate) through: i64,
    /// Their process was killed while their shards stood apart.
    pub(crate) killed: i64,
    /// They were started over while another process was at them.
    pub(crate) restarted: i64,
    /// An activation and another process were at the bulk together.
    pub(crate) shared: i64,
    /// Their rows were thrown away.
    pub(crate) discarded: i64,
    /// How often somebody looked, and several shards of one replay had got somewhere.
    pub(crate) in_shards: i64,
}

/// What became of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) activated: i64,
    pub(crate) back: i64,
    pub(crate) followed: i64,
    /// In their pause.
    pub(crate) aborted: i64,
    /// In their pause, past its deadline.
    pub(crate) expired: i64,
    pub(crate) pruned: i64,
    /// Instances of what was active, from before a pause until after its switch.
    pub(crate) frozen: i64,
    pub(crate) replays: Replays,
    appends: i64,
}

impl Done {
    pub(super) async fn read(client: &Client, frozen: &[Frozen], replays: Replays) -> Self {
        let sql = "SELECT count(*) FILTER (WHERE a.outcome = 'activated'),
                          count(*) FILTER (WHERE a.outcome = 'activated' AND a.rollback),
                          count(*) FILTER (WHERE a.outcome = 'activated' AND a.keep_following AND NOT a.rollback),
                          count(*) FILTER (WHERE a.outcome = 'aborted' AND a.activating_at IS NOT NULL),
                          count(*) FILTER (WHERE a.outcome = 'expired' AND a.activating_at IS NOT NULL),
                          (SELECT count(*) FROM changeover.pruned_versions WHERE activated),
                          (SELECT count(DISTINCT (metadata ->> 'writer', metadata ->> 'number')) FROM changeover.events)
                   FROM changeover.activations a";
        let row = client.query_one(sql, &[]).await.expect("the activations");
        let [activated, back, followed, aborted, expired, pruned, appends] =
            std::array::from_fn(|at| row.get(at));
        // The server's clock is ours.
        let sql = "SELECT count(*)
                   FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS f (release, since, until)
                   WHERE EXISTS (
                       SELECT FROM changeover.activations a
                       WHERE a.outcome = 'activated' AND a.activating_at > f.since AND a.ended_at < f.until
                         AND split_part(a.from_configuration ->> 'orders', '.', 1)::bigint = f.release
                   )";
        let releases: Vec<i64> =
            frozen.iter().map(|frozen| i64::try_from(frozen.release).expect("a small number")).collect();
        let (from, to): (Vec<SystemTime>, Vec<SystemTime>) =
            frozen.iter().map(|frozen| (frozen.from, frozen.to)).unzip();
        let row = client.query_one(sql, &[&releases, &from, &to]).await.expect("the activations");
        let frozen = row.get(0);
        Self { activated, back, followed, aborted, expired, pruned, frozen, replays, appends }
    }

    /// Whether so many activations have taken place, and enough was written to be checked.
    pub(super) fn is_enough(&self, activations: i64) -> bool {
        self.activated >= activations && self.appends >= APPENDS
    }

    /// What never happened, of all that has to happen in a run.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let Replays { through, killed, restarted, shared, discarded, in_shards } = self.replays;
        let all = [
            ("going back", self.back),
            ("following", self.followed),
            ("an abort in a pause", self.aborted),
            ("a pause past its deadline", self.expired),
            ("pruning", self.pruned),
            ("an instance that was frozen across a switch", self.frozen),
            ("a replay to the end", through),
            ("a replay that was killed in its bulk", killed),
            ("a replay that was started over beside another process", restarted),
            ("a replay that an activation shared", shared),
            ("discarding", discarded),
            ("a bulk in several shards", in_shards),
        ];
        all.into_iter().filter(|(_, times)| *times == 0).map(|(what, _)| what).collect()
    }
}
