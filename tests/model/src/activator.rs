//! Whoever performs an activation, and whoever puts one back that did not end in time.

use crate::rules::{Rules, SwitchCondition};
use crate::scenes::Tables;
use crate::world::{
    Action, Breach, Changeover, Delivery, Generation, Position, Rows, State, States, Token, Version, World,
};

/// What an activator does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Lowers the horizon to the lowest lease: not needed by an activator that feeds under its token.
    LookAtLeases,
    /// Claims the checkpoint of the new version, waiting for it, and reads the tail with a snapshot taken after.
    Claim,
    /// Projects the tail, moves the checkpoint and commits.
    ///
    /// Under the token, and the commit with it: an activator that wakes up late would otherwise take `last_value`
    /// for the horizon while appends are in flight again, or feed an inline version that is active by now.
    Feed,
    /// The first of two transactions, in the mutant that needs two to switch.
    RetireOther,
    /// *activating → active* and *active → retired*, in one transaction.
    Switch,
    /// Sets the generation for the last time: it wakes those who wait.
    Wake,
    Ended,
}

/// One attempt to activate one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Activator {
    target: Version,
    token: Token,
    next: Step,
    horizon: Position,
    has_claim: bool,
    /// The rows as they will be with the tail that it has read and not committed yet.
    fed: Rows,
    /// The generation before its own, noted by the one mutant that computes the next from it.
    noted_generation: Generation,
}

impl Activator {
    pub(crate) const GONE: Activator = Activator {
        target: Version::Old,
        token: 0,
        next: Step::Ended,
        horizon: 0,
        has_claim: false,
        fed: Rows::EMPTY,
        noted_generation: 0,
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

    pub(crate) fn can_step(&self, world: &World, model: &Changeover) -> bool {
        match self.next {
            Step::Replay => world.database.states.is(self.target, State::Retired),
            Step::WaitOut => {
                let appends = world.appenders.iter().map(|appender| appender.awaited_by);
                let publishes = world.publishers.iter().map(|publisher| publisher.awaited_by);
                appends.chain(publishes).all(|awaited_by| awaited_by & self.bit() == 0)
            }
            Step::Claim => {
                !world.database.claimed[model.scene.tables_of(self.target)] || !model.rules.claim_to_feed()
            }
            Step::Ended => false,
            _ => true,
        }
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
                    self.noted_generation = world.database.generation;
                }
            }
            Step::SetGeneration if rules.compute_the_generation() => {
                world.database.generation = std::mem::take(&mut self.noted_generation) + 1;
            }
            Step::SetGeneration => world.database.set_generation(),
            Step::Look => self.look(world, rules),
            Step::WaitOut => {}
            Step::ReadHorizon => self.horizon = world.database.last_value,
            Step::LookAtLeases => self.horizon = world.horizon(self.horizon),
            Step::Claim => {
                self.has_claim = rules.claim_to_feed();
                world.database.claimed[tables] |= self.has_claim;
                let tail = world.database.log.between(world.database.checkpoints[tables], self.horizon);
                self.fed = world.database.rows[tables];
                self.fed.project(tail);
            }
            Step::Feed => {
                if rules.feed_under_the_token() && !self.holds(world.database.states) {
                    return self.end(world, model);
                }
                world.database.rows[tables] = std::mem::replace(&mut self.fed, Rows::EMPTY);
                let checkpoint = &mut world.database.checkpoints[tables];
                *checkpoint = self.horizon.max(*checkpoint);
                self.release(world, model);
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
                self.switch(world, model);
            }
            Step::Wake => {
                world.database.set_generation();
                return self.end(world, model);
            }
            Step::Ended => unreachable!("BUG: an activator that ended made a step"),
        }
        match rules.activate_after(self.next, model.scene.tables) {
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
        }
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
        if model.scene.tables == Tables::Own && rows != Rows::replayed(database.log) {
            world.breach(Breach::WrongAtSwitch);
        }
    }

    fn end(&mut self, world: &mut World, model: &Changeover) {
        self.release(world, model);
        for appender in &mut world.appenders {
            appender.awaited_by &= !self.bit();
        }
        for publisher in &mut world.publishers {
            publisher.awaited_by &= !self.bit();
        }
        *self = Activator::GONE;
    }

    fn release(&mut self, world: &mut World, model: &Changeover) {
        if std::mem::take(&mut self.has_claim) {
            world.database.claimed[model.scene.tables_of(self.target)] = false;
        }
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
