//! One batch of a publisher: presence, admission, claim, read up to the horizon, project, move the checkpoint, commit.
//!
//! A replayer is the same with another question to the states: it may go on while its version is *replaying*.

use crate::reader::{self, Look};
use crate::rules::Rules;
use crate::world::{Breach, Changeover, Database, Generation, Position, State, Version, World};

/// What a publisher is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Purpose {
    /// Feeds the active version, in the background.
    Publish,
    /// Feeds a version that is not active yet.
    Replay,
}

/// What a publisher does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    ReadGeneration,
    ReadStates,
    /// Not admitted by the states: waits until they may have changed.
    Wait,
    TakePresence,
    /// Compares the generation with the one decided upon.
    Admit,
    /// `FOR UPDATE SKIP LOCKED` on the checkpoint row.
    Claim,
    Read(reader::Step),
    /// Rows and checkpoint, in one transaction.
    Commit,
    /// The second transaction of the mutant that needs two.
    MoveCheckpoint,
    Ended,
}

/// A process that publishes batches. It decides anew for every batch: one that relies on an older decision is no other
/// case than one that was frozen in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Publisher {
    version: Version,
    purpose: Purpose,
    /// How many batches it may still begin; one that is killed or finds the checkpoint claimed has used one up.
    batches: u8,
    next: Step,
    decided: Generation,
    is_present: bool,
    has_claim: bool,
    /// The checkpoint that the batch begins after.
    from: Position,
    look: Look,
    /// The activators that saw the presence and wait for its end, one bit each.
    pub(crate) awaited_by: u8,
}

impl Publisher {
    /// One that has no batches left. Nothing about it matters any more.
    pub(crate) const GONE: Publisher = Publisher {
        version: Version::Old,
        purpose: Purpose::Publish,
        batches: 0,
        next: Step::Ended,
        decided: 0,
        is_present: false,
        has_claim: false,
        from: 0,
        look: Look::NONE,
        awaited_by: 0,
    };

    pub(crate) fn new(version: Version, purpose: Purpose, batches: u8, rules: Rules) -> Self {
        let next = rules.publish(purpose)[0];
        Publisher { version, purpose, batches, next, ..Publisher::GONE }
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.is_present || self.has_claim || self.next == Step::MoveCheckpoint
    }

    pub(crate) fn is_present(&self) -> bool {
        self.is_present
    }

    fn admitted_by(&self, database: &Database) -> bool {
        match self.purpose {
            Purpose::Publish => database.states.admit(self.version),
            Purpose::Replay => database.states.is(self.version, State::Replaying),
        }
    }

    pub(crate) fn can_step(&self, world: &World, model: &Changeover) -> bool {
        let database = &world.database;
        match self.next {
            // A batch is begun only when there is something to publish.
            Step::ReadGeneration => {
                database.log.reaches_past(database.checkpoints[model.scene.tables_of(self.version)])
            }
            Step::Wait => {
                database.generation != self.decided
                    || (model.rules.look_again_on_a_timer() && self.admitted_by(database))
            }
            Step::Ended => false,
            _ => true,
        }
    }

    pub(crate) fn step(world: &mut World, i: usize, model: &Changeover) {
        let mut publisher = world.publishers[i];
        publisher.make_step(world, model);
        world.publishers[i] = publisher;
    }

    pub(crate) fn kill(world: &mut World, i: usize, model: &Changeover) {
        let mut publisher = world.publishers[i];
        publisher.end_batch(world, model);
        world.publishers[i] = publisher;
    }

    fn make_step(&mut self, world: &mut World, model: &Changeover) {
        let rules = model.rules;
        let database = &mut world.database;
        let tables = model.scene.tables_of(self.version);
        match self.next {
            Step::ReadGeneration => self.decided = database.generation,
            Step::ReadStates => {
                if !self.admitted_by(database) {
                    self.next = Step::Wait;
                    return;
                }
            }
            Step::Wait => return self.decide_again(world, model),
            Step::TakePresence => self.is_present = true,
            Step::Admit => {
                if database.generation != self.decided {
                    return self.decide_again(world, model);
                }
                self.decided = 0;
            }
            Step::Claim => {
                if rules.claim_the_checkpoint() {
                    if database.claimed[tables] {
                        return self.end_batch(world, model);
                    }
                    database.claimed[tables] = true;
                    self.has_claim = true;
                }
                self.from = database.checkpoints[tables];
            }
            Step::Read(step) => self.look.make(step, world),
            Step::Commit => {
                if self.commit(world, model) && !rules.move_the_checkpoint_with_the_rows() {
                    self.release(world, model);
                    self.next = Step::MoveCheckpoint;
                    return;
                }
                return self.end_batch(world, model);
            }
            Step::MoveCheckpoint => {
                database.checkpoints[tables] = self.look.horizon;
                return self.end_batch(world, model);
            }
            Step::Ended => unreachable!("BUG: a publisher without batches made a step"),
        }
        self.next = rules.publish_after(self.next, self.purpose);
    }

    /// Projects what the snapshot showed, up to the horizon. Says whether there was anything to do.
    ///
    /// The rows are changed as SQL would change them (`SET total = total + 1`), not written back as they were loaded:
    /// so a batch that is projected twice always shows.
    fn commit(&self, world: &mut World, model: &Changeover) -> bool {
        let rules = model.rules;
        let tables = model.scene.tables_of(self.version);
        let moved_meanwhile = world.database.checkpoints[tables] != self.from;
        if self.look.horizon <= self.from || (moved_meanwhile && rules.move_the_checkpoint_conditionally()) {
            return false;
        }
        if self.purpose == Purpose::Publish && !world.database.states.is(self.version, State::Active) {
            world.breach(Breach::StalePublish);
        }
        world.database.rows[tables].project(self.look.snapshot.between(self.from, self.look.horizon));
        if rules.move_the_checkpoint_with_the_rows() {
            world.database.checkpoints[tables] = self.look.horizon;
        }
        true
    }

    /// Rolls back and starts over with a new decision.
    fn decide_again(&mut self, world: &mut World, model: &Changeover) {
        self.release(world, model);
        *self = Publisher::new(self.version, self.purpose, self.batches, model.rules);
    }

    /// The batch is over, however it ended.
    fn end_batch(&mut self, world: &mut World, model: &Changeover) {
        self.release(world, model);
        *self = match self.batches {
            0 | 1 => Publisher::GONE,
            more => Publisher::new(self.version, self.purpose, more - 1, model.rules),
        };
    }

    /// What PostgreSQL does at the end of a transaction, however it ends.
    fn release(&mut self, world: &mut World, model: &Changeover) {
        if std::mem::take(&mut self.has_claim) {
            world.database.claimed[model.scene.tables_of(self.version)] = false;
        }
        self.is_present = false;
        self.awaited_by = 0;
    }
}
