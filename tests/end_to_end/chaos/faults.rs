//! What befalls the instances: they are killed, and frozen for shorter and for longer than a pause.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::sleep;

use super::done::Frozen;
use super::stage::{PATIENCE, Stage, WRITERS};
use super::story::Chance;

/// That an instance is frozen.
pub(super) struct Sleep {
    since: SystemTime,
    until: Instant,
}

impl Stage<'_> {
    /// Kills instances and freezes them, for shorter and for longer than a pause, and starts others.
    pub(crate) async fn disturb(&self, over: &AtomicBool, mut chance: Chance) {
        while !over.load(Ordering::Relaxed) {
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
                2..5 if actor.frozen.is_none() => {
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
                    let until = Instant::now() + Duration::from_millis(chance.below(longest));
                    actor.frozen = Some(Sleep { since: SystemTime::now(), until });
                }
                _ => {}
            }
        }
        self.thaw_all();
    }

    pub(super) fn thaw_all(&self) {
        self.thaw(Instant::now() + Duration::from_hours(1));
    }

    fn thaw(&self, now: Instant) {
        for actor in self.actors().iter_mut() {
            if let Some(Sleep { since, .. }) = actor.frozen.take_if(|sleep| sleep.until <= now) {
                self.was_frozen(Frozen { release: actor.release, from: since, to: SystemTime::now() });
                actor.process.thaw().expect("it goes on");
            }
        }
    }

    /// An instance of what is active sleeps while another release takes over, unless it was in the middle of an append, for which that
    /// would have to wait.
    pub(super) async fn sleep_through_a_switch(&self, active: u64, next: u64) {
        let actor = self.actor(active, 1);
        actor.process.wait_for_line("serving", PATIENCE).await.expect("it serves");
        actor.process.freeze().expect("it is frozen");
        let from = SystemTime::now();
        self.see_through(&[self.undisturbed(next, false, 2_000, 0)]).await;
        self.was_frozen(Frozen { release: active, from, to: SystemTime::now() });
        actor.process.thaw().expect("it goes on");
        self.actors().push(actor);
    }
}
