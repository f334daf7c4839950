//! Whoever performs an activation, and whoever puts one back that did not end in time.

use crate::rules::{Rules, SwitchCondition};
use crate::scenes::{Feeding, Tables};
use crate::world::{
    Action, Breach, Changeover, Delivery, Generation, Log, Position, Rows, State, States, Token, Version,
    World,
};

/// What an activator does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// *retired → replaying*, the first step of going back.
    Replay,
    /// *replaying → activating*, with token and deadline, and commit: one round trip.
    Mark,
    SetGeneration,
    /// Notes which leases and presences exist.
    Look,
    /// Waits until the last of them is gone.
    WaitOut,
    /// Reads `last_value`.
    ReadHorizon,
    /// Lowers the horizon to the lowest lease: not needed by an activator that looks at its token afterwards.
    LookAtLeases,
    /// Is the activation still the one under way, before its deadline? Asked *after* the horizon was read: then no append
    /// was in flight at or below it, and none will be, whatever becomes of the activation.
    CheckToken,
    /// From here to the commit it is a batch like those of a publisher, and whoever activates next waits for it.
    TakePresence,
    /// Compares the generation with the one that it set itself. Another one: the token is looked at again.
    Admit,
    /// `FOR UPDATE SKIP LOCKED` on the checkpoint row of the new version; then the tail is read. Where it is
    /// claimed already, everything from the presence on is done again.
    Claim,
    /// Projects the tail and moves the checkpoint from where it was read, and only from there; then commits.
    Feed,
    /// The first of two transactions, in the mutant that needs two to switch.
    RetireOther,
    /// *activating → active* and *active → retired*, in one transaction; where the tail was fed into tables that the
    /// other version goes on with if nothing comes of it, in that one.
    Switch,
    /// Sets the generation for the last time: it wakes those who wait.
    Wake,
    Ended,
}

/// One attempt to activate one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Activator {
    target: Version,
    token: Token,
    next: Step,
    /// The generation that it set, which admits its batch; in one mutant the one before, to compute the next from it.
    permit: Generation,
    horizon: Position,
    is_present: bool,
    has_claim: bool,
    /// The checkpoint that the tail begins after.
    from: Position,
    /// The events that it has read and not fed yet.
    tail: Log,
    /// The other activators that saw its presence and wait for its end, one bit each.
    pub(crate) awaited_by: u8,
}

impl Activator {
    pub(crate) const GONE: Activator = Activator {
        target: Version::Old,
        token: 0,
        next: Step::Ended,
        permit: 0,
        horizon: 0,
        is_present: false,
        has_claim: false,
        from: 0,
        tail: Log::EMPTY,
        awaited_by: 0,
    };

    pub(crate) fn new(target: Version, number: u8, rules: Rules) -> Self {
        let next = match target {
            Version::New => rules.activate()[0],
            Version::Old => Step::Replay,
        };
        Activator { target, token: number + 1, next, ..Activator::GONE }
    }

    /// It has begun and not ended.
    pub(crate) fn is_under_way(&self) -> bool {
        !matches!(self.next, Step::Replay | Step::Mark | Step::Ended)
    }

    /// Is the activation under way, by the states, the one that this activator began?
    pub(crate) fn holds(&self, states: States) -> bool {
        states.token == self.token && states.is(self.target, State::Activating)
    }

    fn bit(&self) -> u8 {
        1 << self.token
    }

    pub(crate) fn can_step(&self, world: &World) -> bool {
        match self.next {
            Step::Replay => world.database.states.is(self.target, State::Retired),
            Step::WaitOut => {
                let appends = world.appenders.iter().map(|appender| appender.awaited_by);
                let publishes = world.publishers.iter().map(|publisher| publisher.awaited_by);
                let feeds = world.activators.iter().map(|activator| activator.awaited_by);
                appends.chain(publishes).chain(feeds).all(|awaited_by| awaited_by & self.bit() == 0)
            }
            Step::Ended => false,
            _ => true,
        }
    }

    /// Puts the two in an order that says nothing of which is which, and renumbers them wherever they are referred to: worlds
    /// that differ in the numbers alone are then one.
    pub(crate) fn sort(world: &mut World) {
        let nameless = |activator: Activator| Activator { token: 0, awaited_by: 0, ..activator };
        let [one, other] = world.activators.map(nameless);
        if one <= other {
            return;
        }
        world.activators.swap(0, 1);
        let renumber = |token: &mut Token| *token = [0, 2, 1][usize::from(*token)];
        let renumber_bits = |bits: &mut u8| *bits = (*bits & 0b010) << 1 | (*bits & 0b100) >> 1;
        renumber(&mut world.database.states.token);
        for activator in &mut world.activators {
            renumber(&mut activator.token);
            renumber_bits(&mut activator.awaited_by);
        }
        world.appenders.iter_mut().for_each(|appender| renumber_bits(&mut appender.awaited_by));
        world.publishers.iter_mut().for_each(|publisher| renumber_bits(&mut publisher.awaited_by));
    }

    pub(crate) fn step(world: &mut World, i: usize, model: &Changeover) {
        let mut activator = world.activators[i];
        activator.make_step(world, model);
        world.activators[i] = activator;
    }

    /// The activator ends, or dies: its locks go, what it committed stays.
    pub(crate) fn kill(world: &mut World, i: usize, model: &Changeover) {
        let mut activator = world.activators[i];
        activator.end(world, model);
        world.activators[i] = activator;
    }

    /// Puts the states back, then wakes those who wait.
    pub(crate) fn abort(world: &mut World, i: usize, model: &Changeover) {
        let mut activator = world.activators[i];
        activator.end(world, model);
        world.database.states.put_back();
        if model.rules.wake() {
            activator.next = Step::Wake;
        }
        world.activators[i] = activator;
    }

    fn make_step(&mut self, world: &mut World, model: &Changeover) {
        let rules = model.rules;
        let target = self.target as usize;
        let tables = model.scene.tables_of(self.target);
        match self.next {
            Step::Replay => {
                world.database.states.of[target] = State::Replaying;
                self.next = rules.activate()[0];
                return;
            }
            Step::Mark => {
                let states = &mut world.database.states;
                let is_free =
                    states.is(self.target, State::Replaying) && states.is(self.target.other(), State::Active);
                if !is_free {
                    return self.end(world, model);
                }
                states.of[target] = State::Activating;
                states.token = self.token;
                states.deadline_passed = false;
                if rules.compute_the_generation() {
                    self.permit = world.database.generation;
                }
            }
            Step::SetGeneration => {
                if rules.compute_the_generation() {
                    world.database.generation = self.permit + 1;
                } else {
                    world.database.set_generation();
                }
                self.permit = world.database.generation;
            }
            Step::Look => self.look(world, rules),
            Step::WaitOut => {}
            Step::ReadHorizon => self.horizon = world.database.last_value,
            Step::LookAtLeases => self.horizon = world.horizon(self.horizon),
            Step::CheckToken => {
                if !self.holds(world.database.states) || world.database.states.deadline_passed {
                    return self.end(world, model);
                }
            }
            Step::TakePresence => self.is_present = true,
            Step::Admit => {
                if world.database.generation != self.permit {
                    self.roll_back(world, model);
                    self.permit = world.database.generation;
                    self.next = rules.after_another_generation();
                    return;
                }
            }
            Step::Claim => {
                if rules.claim_to_feed() && world.database.claimed[tables] {
                    self.roll_back(world, model);
                    self.next = rules.begin_the_feed();
                    return;
                }
                self.claim(world, model);
                if self.horizon <= self.from && model.scene.tables == Tables::Own {
                    // Nothing is left to feed.
                    self.roll_back(world, model);
                    self.next = rules.after_the_feed();
                    return;
                }
            }
            Step::Feed => {
                if !self.feed(world, model) {
                    return self.end(world, model);
                }
                self.roll_back(world, model);
            }
            Step::RetireOther => {
                if !self.may_switch(world.database.states, rules) {
                    return self.end(world, model);
                }
                world.database.states.of[self.target.other() as usize] = State::Retired;
            }
            Step::Switch => {
                if !self.may_switch(world.database.states, rules) {
                    return self.end(world, model);
                }
                if model.scene.tables == Tables::Own
                    && rules.feed_until_nothing_is_left()
                    && world.database.checkpoints[tables] != world.database.last_value
                {
                    self.next = Step::ReadHorizon;
                    return;
                }
                if rules.feed_with_the_switch(model.scene.feeding(self.target)) && !self.feed(world, model) {
                    return self.end(world, model);
                }
                self.switch(world, model);
                self.roll_back(world, model);
            }
            Step::Wake => {
                world.database.set_generation();
                return self.end(world, model);
            }
            Step::Ended => unreachable!("BUG: an activator that ended made a step"),
        }
        match rules.activate_after(self.next, model.scene.feeding(self.target)) {
            Some(next) => self.next = next,
            None => self.end(world, model),
        }
    }

    fn look(&self, world: &mut World, rules: Rules) {
        if rules.wait_for_leases() {
            for appender in world.appenders.iter_mut().filter(|appender| appender.lease.is_some()) {
                appender.awaited_by |= self.bit();
            }
        }
        if rules.wait_for_presences() {
            for publisher in world.publishers.iter_mut().filter(|publisher| publisher.is_present()) {
                publisher.awaited_by |= self.bit();
            }
            for activator in world.activators.iter_mut().filter(|activator| activator.is_present) {
                activator.awaited_by |= self.bit();
            }
        }
    }

    /// Claims the checkpoint and reads the tail.
    fn claim(&mut self, world: &mut World, model: &Changeover) {
        let database = &mut world.database;
        let tables = model.scene.tables_of(self.target);
        self.permit = 0;
        self.has_claim = model.rules.claim_to_feed();
        database.claimed[tables] |= self.has_claim;
        self.from = database.checkpoints[tables];
        self.tail = database.log.between(self.from, self.horizon);
    }

    /// Projects the tail, as SQL would, and moves the checkpoint. Says whether it still stood where it was read.
    fn feed(&mut self, world: &mut World, model: &Changeover) -> bool {
        let database = &mut world.database;
        let tables = model.scene.tables_of(self.target);
        let checkpoint = &mut database.checkpoints[tables];
        if *checkpoint != self.from && model.rules.feed_conditionally() {
            return false;
        }
        *checkpoint = self.horizon.max(*checkpoint);
        database.rows[tables].project(self.tail);
        if model.scene.tables == Tables::Shared && !self.holds(database.states) {
            world.breach(Breach::StalePublish);
        }
        world.fed_in_place |= model.scene.feeding(self.target) == Feeding::InPlace;
        true
    }

    fn may_switch(&self, states: States, rules: Rules) -> bool {
        match rules.switch_condition() {
            SwitchCondition::TokenAndDeadline => self.holds(states) && !states.deadline_passed,
            SwitchCondition::Token => self.holds(states),
            SwitchCondition::AnyActivation => {
                states.is(self.target, State::Activating) && !states.deadline_passed
            }
            SwitchCondition::None => true,
        }
    }

    fn switch(&self, world: &mut World, model: &Changeover) {
        let database = &mut world.database;
        let other = self.target.other();
        database.states.of[self.target as usize] = State::Active;
        database.states.of[other as usize] = State::Retired;
        database.states.token = 0;
        database.states.deadline_passed = false;
        // An inline version has no checkpoint of its own while it is active: it has seen everything, up to here.
        if model.scene.delivery[other as usize] == Delivery::Inline && model.rules.retire_at_the_horizon() {
            database.checkpoints[model.scene.tables_of(other)] = self.horizon;
        }
        // Shared tables are fed by whoever was active so far; a background version may lag, as it did before.
        let rows = database.rows[model.scene.tables_of(self.target)];
        if model.scene.feeding(self.target) != Feeding::None && rows != Rows::replayed(database.log) {
            world.breach(Breach::WrongAtSwitch);
        }
        world.fed_in_place = false;
    }

    fn end(&mut self, world: &mut World, model: &Changeover) {
        self.roll_back(world, model);
        for appender in &mut world.appenders {
            appender.awaited_by &= !self.bit();
        }
        for publisher in &mut world.publishers {
            publisher.awaited_by &= !self.bit();
        }
        for activator in &mut world.activators {
            activator.awaited_by &= !self.bit();
        }
        *self = Activator::GONE;
    }

    /// What PostgreSQL does at the end of a transaction, however it ends; and the process forgets the batch.
    fn roll_back(&mut self, world: &mut World, model: &Changeover) {
        if std::mem::take(&mut self.has_claim) {
            world.database.claimed[model.scene.tables_of(self.target)] = false;
        }
        self.is_present = false;
        self.from = 0;
        self.tail = Log::EMPTY;
        self.awaited_by = 0;
    }
}

/// Anyone who finds an activation past its deadline. There is always somebody: one that dies is followed by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Expirer {
    /// It has put the states back and not yet set the generation.
    pub(crate) has_to_set_generation: bool,
}

impl Expirer {
    pub(crate) const IDLE: Expirer = Expirer { has_to_set_generation: false };

    /// What time and anybody can do about the activation under way, without its activator.
    pub(crate) fn can_do(world: &World, rules: Rules) -> Option<Action> {
        let states = &world.database.states;
        if states.activating().is_none() || !rules.have_a_deadline() {
            None
        } else if !states.deadline_passed {
            Some(Action::DeadlinePasses)
        } else if rules.lock_the_states_to_feed()
            && world.activators.iter().any(|activator| activator.has_claim)
        {
            None
        } else {
            Some(Action::Expire)
        }
    }

    pub(crate) fn expire(world: &mut World, rules: Rules) {
        world.database.states.put_back();
        world.expirer.has_to_set_generation = rules.wake();
    }

    pub(crate) fn set_generation(world: &mut World) {
        world.database.set_generation();
        world.expirer.has_to_set_generation = false;
    }
}
