//! An append: decide, then lease, admission, positions, commit.
//!
//! In the product the three are one statement; here every part of it is a step of its own, and anything may happen
//! between two steps. A process that is frozen is one that makes no step for long, so all freezes are covered.

use crate::rules::Rules;
use crate::world::{
    Breach, Changeover, Delivery, Generation, Log, Position, Rows, State, States, Version, World,
};

/// What an appender does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    ReadGeneration,
    ReadStates,
    /// Not admitted by the states: waits until they may have changed.
    Wait,
    ReadLastValue,
    TakeLease,
    /// Compares the generation with the one decided upon.
    Admit,
    /// Locks the keys of the rows that the events touch (inline projectors only), and loads those rows.
    LockKeys,
    /// Draws one position and inserts one event; repeated for every event of the append.
    Draw,
    /// Never before the commit, except where a mutant does so.
    DropLease,
    Commit,
    Ended,
}

/// One append of one transaction. An instance that appends twice with the same decision is no other case than one that
/// was frozen between decision and append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Appender {
    configuration: Version,
    /// How many events it appends.
    events: u8,
    pub(crate) next: Step,
    /// The generation it has decided upon.
    decided: Generation,
    /// `event_position.last_value`, as read for the lease.
    last_value: Position,
    pub(crate) lease: Option<Position>,
    has_keys: bool,
    drawn: Log,
    /// The rows as they were when the keys were locked: a fold writes back what it loaded, changed.
    loaded: Rows,
    /// The activators that saw the lease and wait for its end, one bit each.
    pub(crate) awaited_by: u8,
}

impl Appender {
    /// One that ended. Nothing about it matters any more, so all of them look the same.
    pub(crate) const GONE: Appender = Appender {
        configuration: Version::Old,
        events: 0,
        next: Step::Ended,
        decided: 0,
        last_value: 0,
        lease: None,
        has_keys: false,
        drawn: Log::EMPTY,
        loaded: Rows::EMPTY,
        awaited_by: 0,
    };

    pub(crate) fn new(configuration: Version, events: u8, rules: Rules) -> Self {
        Appender { configuration, events, next: rules.append()[0], ..Appender::GONE }
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.lease.is_some() || self.has_keys || self.drawn != Log::EMPTY
    }

    /// Does it wait for the states to change, while an activation waits for its lease?
    pub(crate) fn waits_for_its_waiter(&self) -> bool {
        self.next == Step::Wait && self.awaited_by != 0
    }

    /// Does it wait although its configuration is the active one?
    pub(crate) fn is_kept_waiting(&self, states: States) -> bool {
        self.next == Step::Wait && states.admit(self.configuration)
    }

    pub(crate) fn can_step(&self, world: &World, model: &Changeover) -> bool {
        match self.next {
            // It looks again whenever the generation moves, and on a timer underneath: waking is a hint only. A look
            // that would find the same again is left out.
            Step::Wait => {
                world.database.generation != self.decided
                    || (model.rules.look_again_on_a_timer()
                        && world.database.states.admit(self.configuration))
            }
            Step::LockKeys => !world.database.keys_locked[model.scene.tables_of(self.configuration)],
            Step::Ended => false,
            _ => true,
        }
    }

    pub(crate) fn step(world: &mut World, i: usize, model: &Changeover) {
        let mut appender = world.appenders[i];
        appender.make_step(world, model);
        world.appenders[i] = appender;
    }

    /// The transaction ends without a commit and the request with it.
    pub(crate) fn roll_back(world: &mut World, i: usize, model: &Changeover) {
        let mut appender = world.appenders[i];
        appender.end_transaction(world, model);
        world.appenders[i] = Appender::GONE;
    }

    fn make_step(&mut self, world: &mut World, model: &Changeover) {
        let rules = model.rules;
        let tables = model.scene.tables_of(self.configuration);
        match self.next {
            Step::ReadGeneration => self.decided = world.database.generation,
            Step::ReadStates => {
                if !world.database.states.admit(self.configuration) {
                    self.next = Step::Wait;
                    return;
                }
            }
            Step::Wait => return self.decide_again(world, model),
            Step::ReadLastValue => self.last_value = world.database.last_value,
            Step::TakeLease => self.lease = Some(std::mem::take(&mut self.last_value)),
            Step::Admit => {
                if world.database.generation != self.decided {
                    // The product rolls back first: an append that waits for an activation with its lease in hand waits
                    // for something that waits for it.
                    if rules.keep_the_lease_while_waiting() {
                        self.next = Step::Wait;
                        return;
                    }
                    return self.decide_again(world, model);
                }
                self.decided = 0;
            }
            Step::LockKeys => {
                self.has_keys = rules.lock_keys();
                world.database.keys_locked[tables] |= self.has_keys;
                self.loaded = world.database.rows[tables];
            }
            Step::Draw => {
                world.database.last_value += 1;
                self.drawn.insert(world.database.last_value);
                if self.drawn.count() < u32::from(self.events) {
                    return;
                }
            }
            Step::DropLease => {
                self.lease = None;
                self.awaited_by = 0;
            }
            Step::Commit => {
                self.commit(world, model);
                *self = Appender::GONE;
                return;
            }
            Step::Ended => unreachable!("BUG: an append that ended makes no step"),
        }
        self.next = rules.append_after(self.next, model.scene.delivery[self.configuration as usize]);
    }

    fn commit(&mut self, world: &mut World, model: &Changeover) {
        if !world.database.states.is(self.configuration, State::Active) {
            world.breach(Breach::StaleAppend);
        }
        world.database.log.extend(self.drawn);
        if model.scene.delivery[self.configuration as usize] == Delivery::Inline {
            self.loaded.project(self.drawn);
            world.database.rows[model.scene.tables_of(self.configuration)] = self.loaded;
        }
        self.end_transaction(world, model);
    }

    /// Rolls back and starts over with a new decision.
    fn decide_again(&mut self, world: &mut World, model: &Changeover) {
        self.end_transaction(world, model);
        *self = Appender::new(self.configuration, self.events, model.rules);
    }

    /// What PostgreSQL does at the end of a transaction, however it ends.
    fn end_transaction(&mut self, world: &mut World, model: &Changeover) {
        if self.has_keys {
            world.database.keys_locked[model.scene.tables_of(self.configuration)] = false;
        }
    }
}
