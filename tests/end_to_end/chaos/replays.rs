//! Replays beside everything else, in the ways in which they may go well or wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use changeover_testkit::Process;
use tokio::time::sleep;

use super::stage::Stage;
use super::story::{Chance, RELEASES, Role, projectors};

/// What may become of a replay.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Nothing in its way but the others.
    Alone,
    /// Killed in the middle, for whoever comes next to go on with.
    Killed,
    /// Started over in the middle, by somebody else.
    Restarted,
    /// Beside an activation of the same.
    Activated,
    /// Its rows are thrown away.
    Discarded,
}

impl Act {
    const ALL: [Self; 5] = [Self::Alone, Self::Killed, Self::Restarted, Self::Activated, Self::Discarded];
}

/// About how long a replay of the whole log is to take, so that something can happen in the middle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slowly(u64);

impl Slowly {
    fn any(chance: &mut Chance) -> Self {
        Self(200 + chance.below(600))
    }

    fn for_certain() -> Self {
        Self(2_000)
    }

    /// Any moment within it.
    fn moment(self, chance: &mut Chance) -> Duration {
        Duration::from_millis(chance.below(self.0))
    }
}

/// Tables whose shards got on by themselves.
pub(super) const APART: &str = "SELECT FROM changeover.checkpoints WHERE shard > 0
    GROUP BY projector, major HAVING count(DISTINCT position) > 1";

fn says(process: &Process, what: &str) -> bool {
    process.output().lines().any(|line| line.starts_with(what))
}

impl Stage<'_> {
    /// Replays, one after the other, beside all activations and whatever becomes of those: in each way once, and in any until it is
    /// over.
    pub(crate) async fn replay(&self, over: &AtomicBool, mut chance: Chance) {
        let mut to_do = chance.shuffled(Act::ALL);
        while !over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(chance.below(300))).await;
            let act = to_do.pop().unwrap_or_else(|| chance.any(Act::ALL));
            let (slowly, any) = (Slowly::any(&mut chance), 1 + chance.below(RELEASES));
            let active = self.active().await;
            let release =
                if chance.percent(70) || any == active { self.furthest_behind(active).await } else { any };
            match act {
                Act::Alone => self.replay_through(release, slowly).await,
                Act::Killed => self.kill_replay(release, slowly, &mut chance).await,
                Act::Restarted => self.restart_replay(release, slowly, &mut chance).await,
                Act::Activated => self.activate_beside_replay(release, slowly).await,
                Act::Discarded => self.discard_replay(release, slowly).await,
            }
        }
    }

    /// The release whose orders are the furthest behind, so that there is something to replay.
    async fn furthest_behind(&self, active: u64) -> u64 {
        let sql = "SELECT release FROM generate_series(1, $1::bigint) AS release
                   LEFT JOIN changeover.checkpoints c ON c.projector = 'orders' AND c.major = release AND c.shard = 0
                   WHERE release <> $2 ORDER BY coalesce(c.position, 0), release LIMIT 1";
        let (releases, active) = (RELEASES.cast_signed(), active.cast_signed());
        self.ask(sql, &[&releases, &active]).await[0].get::<_, i64>(0).cast_unsigned()
    }

    async fn replayer(&self, release: u64, restart: bool, Slowly(ms): Slowly) -> Process {
        let newest = "SELECT last_value FROM changeover.event_position";
        let events = self.ask(newest, &[]).await[0].get::<_, i64>(0).cast_unsigned();
        let events_per_sec = u32::try_from(events * 1_000 / ms).expect("a small number").max(200);
        self.play(release, Role::Replayer { restart, events_per_sec: Some(events_per_sec) })
    }

    /// A replay to the end of the log.
    async fn replay_through(&self, release: u64, slowly: Slowly) {
        let replayer = self.replayer(release, false, slowly).await;
        self.see_through(std::slice::from_ref(&replayer)).await;
        self.replays().through += i64::from(says(&replayer, "replayed"));
    }

    /// A replay whose process dies in the middle.
    async fn kill_replay(&self, release: u64, slowly: Slowly, chance: &mut Chance) {
        let replayer = self.replayer(release, false, slowly).await;
        let moment = slowly.moment(chance);
        if self.reaches(&replayer, "in the bulk").await {
            sleep(moment).await;
            replayer.kill_9().expect("it is killed");
            let shards =
                "SELECT FROM changeover.checkpoints WHERE projector = 'orders' AND major = $1 AND shard > 0";
            let shards = self.ask(shards, &[&release.cast_signed()]).await;
            let apart = self.ask(APART, &[]).await;
            let mut replays = self.replays();
            replays.killed += i64::from(!shards.is_empty() && !says(&replayer, "done"));
            replays.in_shards += i64::from(!apart.is_empty());
        }
    }

    /// A replay that somebody starts over while another process is in the middle of it.
    async fn restart_replay(&self, release: u64, slowly: Slowly, chance: &mut Chance) {
        let mut processes = vec![self.replayer(release, false, slowly).await];
        let moment = slowly.moment(chance) / 2;
        if self.reaches(&processes[0], "in the bulk").await {
            sleep(moment).await;
            processes.push(self.replayer(release, true, slowly).await);
        }
        self.see_through(&processes).await;
        let restarted = processes[0].output().contains("was started over by somebody else");
        self.replays().restarted += i64::from(restarted);
    }

    /// An activation of what another process is replaying at this moment.
    async fn activate_beside_replay(&self, release: u64, slowly: Slowly) {
        let replayer = self.replayer(release, false, slowly).await;
        let is_at_it = self.reaches(&replayer, "in the bulk").await;
        let processes = [replayer, self.operator(release, "beside a replayer", 0, 0)];
        self.see_through(&processes).await;
        let shared = is_at_it && says(&processes[1], "in the bulk");
        self.replays().shared += i64::from(shared);
    }

    /// A replay whose rows nobody wants after all.
    async fn discard_replay(&self, release: u64, slowly: Slowly) {
        self.replay_through(release, slowly).await;
        let discarder = self.play(release, Role::Discarder);
        self.see_through(std::slice::from_ref(&discarder)).await;
        self.replays().discarded += i64::from(says(&discarder, "discarded"));
    }

    /// What never happened until now, made certain: with nothing else in the way, and from the beginning of the log.
    pub(super) async fn replay_what_is_left(&self, active: u64, chance: &mut Chance) {
        let slowly = Slowly::for_certain();
        let left = *self.replays();
        self.see_through(&[self.play(active, Role::Pruner { keep: 0 })]).await;
        if left.through == 0 || left.discarded == 0 {
            self.discard_replay(self.furthest_behind(active).await, slowly).await;
        }
        if left.killed == 0 || left.in_shards == 0 {
            self.kill_replay(self.furthest_behind(active).await, slowly, chance).await;
        }
        if left.restarted == 0 {
            self.restart_replay(self.furthest_behind(active).await, slowly, chance).await;
        }
        if left.shared == 0 {
            self.activate_beside_replay(self.furthest_behind(active).await, slowly).await;
        }
    }

    /// Replays on what was left half replayed: until its shards have met, its rows are those of no position.
    pub(super) async fn meet(&self) {
        let apart = "SELECT projector, major FROM changeover.checkpoints WHERE parallel_to IS NOT NULL";
        for _ in 0..RELEASES {
            let apart = self.ask(apart, &[]).await;
            let Some(apart) = apart.first() else { return };
            let (name, major) = (apart.get::<_, &str>(0), apart.get::<_, i64>(1).cast_unsigned());
            let of = |release: &u64| projectors(*release).iter().any(|own| (own.0, own.1) == (name, major));
            let release = (1..=RELEASES).find(of).expect("a release with that version");
            let role = Role::Replayer { restart: false, events_per_sec: None };
            self.see_through(&[self.play(release, role)]).await;
        }
    }
}
