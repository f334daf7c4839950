//! The processes, and what is done to them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use changeover::Changeover;
use changeover_testkit::{Database, Process, eventually};
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::story::{Chance, Part, RELEASES, Role, projectors};

/// How long a pause may last here: short, since many are left to their deadline.
const PAUSE_LIMIT_MS: u64 = 400;
const WRITERS: u64 = 3;
const INSTANCES: usize = 4;
const PATIENCE: Duration = Duration::from_mins(2);
/// How many appends a run needs at least; more than it must have acknowledged.
const APPENDS: i64 = 200;

/// An instance of the application.
struct Actor {
    release: u64,
    process: Process,
    frozen_until: Option<Instant>,
}

pub(crate) struct Stage<'d> {
    database: &'d Database,
    folder: PathBuf,
    seeds: Mutex<Chance>,
    actors: Mutex<Vec<Actor>>,
    started: AtomicU64,
}

impl<'d> Stage<'d> {
    /// An empty database, and instances of the first release that all assume their configuration at once.
    pub(crate) async fn set(database: &'d Database, chance: &mut Chance) -> Stage<'d> {
        Changeover::builder(database.config()).migrate().await.expect("the schema");
        let folder = std::env::temp_dir().join(format!("changeover-chaos-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).expect("a folder for the journals");
        let stage = Self {
            database,
            folder,
            seeds: Mutex::new(Chance::new(chance.next())),
            actors: Mutex::default(),
            started: AtomicU64::new(0),
        };
        for _ in 0..INSTANCES {
            stage.enter(1, WRITERS);
        }
        stage
    }

    pub(crate) fn journals(&self) -> PathBuf {
        self.folder.clone()
    }

    fn actors(&self) -> MutexGuard<'_, Vec<Actor>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn play(&self, release: u64, role: Role) -> Process {
        let seed = self.seeds.lock().unwrap_or_else(PoisonError::into_inner).next();
        let part = Part { database: self.database.url(), release, seed, role };
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
        command.arg(serde_json::to_string(&part).expect("a part"));
        command.env("RUST_BACKTRACE", "1");
        Process::spawn(command).expect("a process")
    }

    fn enter(&self, release: u64, writers: u64) {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("instance-{number}-release-{release}.jsonl"));
        let log = log.to_str().expect("a path").to_owned();
        let process = self.play(release, Role::Instance { writers, log });
        self.actors().push(Actor { release, process, frozen_until: None });
    }

    fn operator(&self, release: u64, name: &str, linger_paused_ms: u64, linger_drained_ms: u64) -> Process {
        self.operate(release, name, false, linger_paused_ms, linger_drained_ms)
    }

    fn operate(
        &self,
        release: u64,
        name: &str,
        back: bool,
        linger_paused_ms: u64,
        linger_drained_ms: u64,
    ) -> Process {
        let name = name.to_owned();
        let keep_following = self.seeds.lock().unwrap_or_else(PoisonError::into_inner).percent(40);
        let pause_limit_ms = PAUSE_LIMIT_MS;
        let role = Role::Operator {
            name,
            back,
            keep_following,
            pause_limit_ms,
            linger_paused_ms,
            linger_drained_ms,
        };
        self.play(release, role)
    }

    /// Upgrades, and sometimes goes back, in all the ways in which it may go well or wrong.
    pub(crate) async fn upgrade(&self, until: Instant, mut chance: Chance) {
        while Instant::now() < until {
            let active = self.active().await;
            let next = if chance.percent(75) { active % RELEASES + 1 } else { 1 + chance.below(RELEASES) };
            if next == active {
                continue;
            }
            self.staff(active, next);
            self.activate(next, &mut chance).await;
            sleep(Duration::from_millis(chance.below(300))).await;
        }
    }

    /// Upgrades without any disturbance, until so many activations have taken place in all, and enough was written to be
    /// checked, however slow the machine is.
    pub(crate) async fn complete(&self, activations: i64) {
        let until = Instant::now() + 2 * PATIENCE;
        loop {
            let done = "SELECT (SELECT count(*) FROM changeover.activations WHERE outcome = 'activated'),
                               (SELECT count(DISTINCT (metadata ->> 'writer', metadata ->> 'number')) FROM changeover.events)";
            let done = self.database.client().await.query_one(done, &[]).await.expect("the activations");
            if done.get::<_, i64>(0) >= activations && done.get::<_, i64>(1) >= APPENDS {
                return;
            }
            assert!(Instant::now() < until, "nothing disturbs it, and nothing is activated: {done:?}");
            let active = self.active().await;
            let next = active % RELEASES + 1;
            self.staff(active, next);
            let name = "undisturbed".to_owned();
            let role = Role::Operator {
                name,
                back: false,
                keep_following: false,
                pause_limit_ms: 2_000,
                linger_paused_ms: 0,
                linger_drained_ms: 0,
            };
            self.see_through(&[self.play(next, role)]).await;
        }
    }

    /// Old and new instances side by side; the ones of neither release go.
    fn staff(&self, active: u64, next: u64) {
        let mut actors = self.actors();
        let of =
            |release: u64, actors: &[Actor]| actors.iter().filter(|actor| actor.release == release).count();
        while actors.len() >= INSTANCES {
            let stale = actors.iter().position(|actor| ![active, next].contains(&actor.release));
            let Some(stale) = stale.filter(|at| actors[*at].frozen_until.is_none()) else { break };
            actors.swap_remove(stale).process.kill_9().expect("it is killed");
        }
        let missing = [active, next].map(|release| 2_usize.saturating_sub(of(release, &actors)));
        drop(actors);
        for (release, missing) in [active, next].into_iter().zip(missing) {
            for _ in 0..missing {
                self.enter(release, WRITERS);
            }
        }
    }

    async fn activate(&self, next: u64, chance: &mut Chance) {
        let limit = PAUSE_LIMIT_MS;
        match chance.below(14) {
            // Nothing in its way but the others.
            0..4 => self.see_through(&[self.operator(next, "alone", 0, 0)]).await,
            // Two at once, for the same release or for different ones.
            4..6 => {
                let other = if chance.percent(50) { next } else { 1 + chance.below(RELEASES) };
                let lingering = self.operator(next, "first", chance.below(100), chance.below(100));
                self.see_through(&[lingering, self.operator(other, "second", 0, 0)]).await;
            }
            // Aborted in its pause, or around it.
            6 => {
                let operator = self.operator(next, "aborted", chance.below(200), chance.below(50));
                let aborter = self.play(next, Role::Aborter { times: 20 });
                self.see_through(&[operator, aborter]).await;
            }
            // Killed in its pause.
            7 => {
                let operator = self.operator(next, "killed", limit, limit);
                if self.reaches(&operator, if chance.percent(50) { "paused" } else { "drained" }).await {
                    sleep(Duration::from_millis(chance.below(20))).await;
                    operator.kill_9().expect("it is killed");
                }
            }
            // Frozen in its pause, for longer than that may last, or for shorter.
            8 => {
                let operator = self.operator(next, "frozen", 30, 30);
                if self.reaches(&operator, if chance.percent(50) { "paused" } else { "drained" }).await {
                    drop(operator.freeze());
                    sleep(Duration::from_millis(chance.below(3 * limit))).await;
                    drop(operator.thaw());
                    self.see_through(&[operator]).await;
                }
            }
            // Back to what was active before, seen through or killed in its pause.
            9..12 => {
                let before = self.before().await.unwrap_or(next);
                self.staff(self.active().await, before);
                if chance.percent(70) {
                    let lingering = chance.below(50);
                    self.see_through(&[self.operate(before, "back", true, lingering, lingering)]).await;
                } else {
                    let operator = self.operate(before, "back and killed", true, limit, limit);
                    let point = if chance.percent(50) { "paused" } else { "drained" };
                    if self.reaches(&operator, point).await {
                        operator.kill_9().expect("it is killed");
                    }
                }
            }
            // Beside somebody who drops what retired, and perhaps dies in the middle of it.
            12 => {
                let keep = usize::try_from(chance.below(3)).expect("a small number");
                let pruner = self.play(next, Role::Pruner { keep });
                let operator = self.operator(next, "beside a pruner", 0, 0);
                if chance.percent(30) {
                    sleep(Duration::from_millis(chance.below(200))).await;
                    pruner.kill_9().expect("it is killed");
                    self.see_through(&[operator]).await;
                } else {
                    self.see_through(&[operator, pruner]).await;
                }
            }
            // Starved until about the deadline.
            _ => {
                let (paused, drained) = (chance.below(limit), chance.below(limit));
                self.see_through(&[self.operator(next, "starved", paused, drained)]).await;
            }
        }
    }

    /// The release that was active before the one that is, if the newest activation tells.
    async fn before(&self) -> Option<u64> {
        let orders =
            "SELECT split_part(from_configuration ->> 'orders', '.', 1)::bigint FROM changeover.activations
                      WHERE outcome = 'activated' ORDER BY ended_at DESC LIMIT 1";
        let row = self.database.client().await.query_opt(orders, &[]).await.expect("the activations")?;
        row.get::<_, Option<i64>>(0).and_then(|release| u64::try_from(release).ok())
    }

    async fn see_through(&self, operators: &[Process]) {
        for operator in operators {
            if let Err(error) = operator.wait(PATIENCE).await {
                panic!("an operator hangs: {error:#}");
            }
            let said = operator.output();
            assert!(!said.contains("panicked") && !said.contains("BUG"), "an operator panicked: {said}");
        }
    }

    /// Whether the operator came to this point; it may have been refused before.
    async fn reaches(&self, operator: &Process, point: &str) -> bool {
        operator.wait_for_line(point, PATIENCE).await.is_ok()
    }

    /// Kills instances and freezes them, for shorter and for longer than a pause, and starts others.
    pub(crate) async fn disturb(&self, until: Instant, mut chance: Chance) {
        while Instant::now() < until {
            sleep(Duration::from_millis(50 + chance.below(250))).await;
            self.thaw(Instant::now());
            let mut actors = self.actors();
            let Some(at) = chance.next().checked_rem(actors.len() as u64) else { continue };
            let at = usize::try_from(at).expect("a small number");
            let actor = &mut actors[at];
            match chance.below(10) {
                0..2 => {
                    let killed = actors.swap_remove(at);
                    drop(actors);
                    killed.process.kill_9().expect("it is killed");
                    self.enter(killed.release, WRITERS);
                }
                2..5 if actor.frozen_until.is_none() => {
                    let longest = if chance.percent(80) { 150 } else { 2_000 };
                    if let Err(error) = actor.process.freeze() {
                        // One that found no connection in time has ended, as any application would.
                        let ended = actors.swap_remove(at);
                        drop(actors);
                        let said = ended.process.output();
                        assert!(said.contains("Error: ") && !said.contains("panicked"), "{error:#}");
                        self.enter(ended.release, WRITERS);
                        continue;
                    }
                    actor.frozen_until = Some(Instant::now() + Duration::from_millis(chance.below(longest)));
                }
                _ => {}
            }
        }
        self.thaw(Instant::now() + Duration::from_hours(1));
    }

    fn thaw(&self, now: Instant) {
        for actor in
            self.actors().iter_mut().filter(|actor| actor.frozen_until.is_some_and(|until| until <= now))
        {
            actor.process.thaw().expect("it goes on");
            actor.frozen_until = None;
        }
    }

    /// Looks, over and over, whether the active versions are those of one release, whole.
    pub(crate) async fn watch(&self, until: Instant) {
        let client = self.database.client().await;
        let mut looks = 0;
        while Instant::now() < until {
            looks += usize::from(active_release(&client).await.expect("the states").is_some());
            sleep(Duration::from_millis(5)).await;
        }
        assert!(looks > 0, "no release was ever active");
    }

    async fn active(&self) -> u64 {
        // The server may just be coming back.
        eventually(PATIENCE, || async {
            let (client, connection) = self.database.config().connect(NoTls).await.ok()?;
            let connection = tokio::spawn(connection);
            let active = active_release(&client).await.ok()?;
            connection.abort();
            active
        })
        .await
    }

    /// Lets everybody finish or kills them, then lets one instance of the active release catch up.
    pub(crate) async fn settle(&self) {
        self.thaw(Instant::now() + Duration::from_hours(1));
        // Those that were frozen are to wake up after the switch, so they get some time.
        sleep(Duration::from_millis(500)).await;
        for actor in self.actors().iter() {
            let said = actor.process.output();
            assert!(!said.contains("panicked") && !said.contains("BUG"), "an instance panicked: {said}");
        }
        for actor in self.actors().drain(..) {
            actor.process.kill_9().expect("it is killed");
        }
        let client = self.database.client().await;
        let in_flight = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        eventually(PATIENCE, || async {
            client.query_one(in_flight, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;

        let active = self.active().await;
        self.enter(active, 0);
        // An activation that was left in its pause is given back by whoever looks past its deadline.
        let unsettled = "SELECT (SELECT count(*) FROM changeover.projector_states s
                                 WHERE s.state = 'activating' OR s.activation IS NOT NULL)
            + (SELECT count(*)
               FROM changeover.projector_states s
               JOIN changeover.checkpoints c
                 ON c.projector = s.projector AND c.major = split_part(s.version, '.', 1)::bigint
               WHERE s.state = 'active' AND NOT c.inline
                 AND c.position < (SELECT last_value FROM changeover.event_position))";
        eventually(PATIENCE, || async {
            client.query_one(unsettled, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        for actor in self.actors().drain(..) {
            actor.process.kill_9().expect("it is killed");
        }
    }
}

/// The release whose projectors are active, all of them and no others. None while nothing was ever activated.
async fn active_release(client: &Client) -> Result<Option<u64>, tokio_postgres::Error> {
    let states = "SELECT projector, version FROM changeover.projector_states WHERE state = 'active'";
    let rows = client.query(states, &[]).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut active: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    active.sort();
    let release = (1..=RELEASES).find(|release| {
        let mut own: Vec<(String, String)> = projectors(*release)
            .into_iter()
            .map(|(name, major, minor)| (name.to_owned(), format!("{major}.{minor}.0")))
            .collect();
        own.sort();
        own == active
    });
    Ok(Some(release.unwrap_or_else(|| panic!("what is active is no release: {active:?}"))))
}
