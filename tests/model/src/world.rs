//! The state of the modelled world, the actions that change it, and the [`Model`] that ties them together.
//!
//! Everything that PostgreSQL keeps is in [`Database`]; everything that a process keeps in its own memory, and every
//! lock that lives and dies with its transaction, is in the process. So a crash is one line: the process forgets.
//!
//! The types are small on purpose (a world is some 130 bytes and `Copy`), because millions of them are compared.

use stateright::{Model, Path, Property};

use crate::activator::{Activator, Expirer};
use crate::appender::Appender;
use crate::properties;
use crate::publisher::Publisher;
use crate::reader::Reader;
use crate::rules::Rules;
use crate::scenes::Scene;

/// An event's place in the log; 0 stands for "before the first".
pub(crate) type Position = u8;
/// What `generation.last_value` says.
pub(crate) type Generation = u8;
/// Who marked a version activating: the activator's number plus one, 0 for nobody. Each activator marks once at most,
/// so a token is never used twice.
pub(crate) type Token = u8;

/// The two versions of the projector. Every instance registers one, so this also names the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Version {
    Old,
    New,
}

impl Version {
    pub(crate) fn other(self) -> Self {
        match self {
            Version::Old => Version::New,
            Version::New => Version::Old,
        }
    }
}

/// The state of a version, as `projector_states` keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Replaying,
    Activating,
    Active,
    Retired,
}

/// How a version is fed: in the append's transaction, or by the publisher after commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Inline,
    Background,
}

/// A set of positions, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Log(u16);

impl Log {
    pub(crate) const EMPTY: Log = Log(0);

    pub(crate) fn insert(&mut self, position: Position) {
        self.0 |= 1 << position;
    }

    pub(crate) fn extend(&mut self, other: Log) {
        self.0 |= other.0;
    }

    pub(crate) fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The positions above `from`, up to and with `to`.
    pub(crate) fn between(self, from: Position, to: Position) -> Log {
        let up_to = |position: Position| (2 << position) - 1_u16;
        Log(self.0 & up_to(to) & !up_to(from))
    }

    fn positions(self) -> impl Iterator<Item = Position> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let position = (left != 0).then(|| (left.trailing_zeros() & 0xf) as Position);
            left &= left.wrapping_sub(1);
            position
        })
    }

    /// Does it hold anything above `position`?
    pub(crate) fn reaches_past(self, position: Position) -> bool {
        self.0 >> position > 1
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.positions()).finish()
    }
}

/// The rows of a read model, reduced to what matters: which positions were projected into them, in which order.
///
/// One hexadecimal digit each, the latest last: `0x124` has seen 1, then 2, then 4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rows(u32);

impl Rows {
    pub(crate) const EMPTY: Rows = Rows(0);

    /// Projects a batch, in position order.
    pub(crate) fn project(&mut self, batch: Log) {
        for position in batch.positions() {
            self.0 = self.0 << 4 | u32::from(position);
        }
    }

    /// What a replay of `log` from its beginning leaves.
    pub(crate) fn replayed(log: Log) -> Rows {
        let mut rows = Rows::EMPTY;
        rows.project(log);
        rows
    }

    /// The position projected last.
    pub(crate) fn last(self) -> Position {
        (self.0 & 0xf) as Position
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The table `projector_states`, with the mark of the activation under way. Read as a whole, at the latest commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct States {
    pub(crate) of: [State; 2],
    pub(crate) token: Token,
    /// The deadline of the activation under way lies in the past, by the database's clock.
    pub(crate) deadline_passed: bool,
}

impl States {
    pub(crate) fn is(self, version: Version, state: State) -> bool {
        self.of[version as usize] == state
    }

    /// The version that is activating, if there is one.
    pub(crate) fn activating(self) -> Option<Version> {
        [Version::Old, Version::New].into_iter().find(|&version| self.is(version, State::Activating))
    }

    /// May an instance of this configuration append and publish? Not while anything is activating.
    pub(crate) fn admit(self, configuration: Version) -> bool {
        self.is(configuration, State::Active) && self.activating().is_none()
    }

    /// *activating* back to *replaying*: what abort and expiry do.
    pub(crate) fn put_back(&mut self) {
        if let Some(version) = self.activating() {
            self.of[version as usize] = State::Replaying;
        }
        self.token = 0;
        self.deadline_passed = false;
    }
}

/// What is committed, and the two sequences, which know no transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    /// `event_position.last_value`: the position drawn last, by whomever, committed or not.
    pub(crate) last_value: Position,
    /// `generation.last_value`, seen by everybody at once, whatever their snapshot.
    pub(crate) generation: Generation,
    pub(crate) states: States,
    /// The committed events.
    pub(crate) log: Log,
    /// By the tables' number, see [`Scene::tables_of`], as are the three below.
    pub(crate) rows: [Rows; 2],
    pub(crate) checkpoints: [Position; 2],
    /// Is its checkpoint row locked by a transaction?
    pub(crate) claimed: [bool; 2],
    /// Are the keys of its rows locked by an append? There is one key, the worst case.
    pub(crate) keys_locked: [bool; 2],
}

impl Database {
    /// Sets the generation to a value that was never used before.
    pub(crate) fn set_generation(&mut self) {
        self.generation += 1;
    }
}

/// What must never happen and shows only in the moment it happens: the model writes it down for the properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Breach {
    /// An append committed whose configuration is not the active one.
    StaleAppend,
    /// A batch was published by an instance whose configuration is not the active one.
    StalePublish,
    /// A version was made active that lacks an event, or has one too many.
    WrongAtSwitch,
}

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) database: Database,
    /// Sorted: two appenders that are in the same situation are interchangeable, and nothing else refers to either.
    pub(crate) appenders: [Appender; 4],
    /// Sorted, for the same reason. Replayers are among them.
    pub(crate) publishers: [Publisher; 3],
    /// Sorted where both are to activate the same version.
    pub(crate) activators: [Activator; 2],
    pub(crate) expirer: Expirer,
    pub(crate) reader: Reader,
    /// The tables of the active version hold what a version projected that is not active.
    pub(crate) fed_in_place: bool,
    pub(crate) breach: Option<Breach>,
}

impl World {
    /// A look at the horizon with `last_value` read before: the smaller of it and the leases that exist now.
    pub(crate) fn horizon(&self, last_value: Position) -> Position {
        self.appenders.iter().filter_map(|appender| appender.lease).fold(last_value, Position::min)
    }

    /// Notes the first breach: what follows from it is not worth looking at.
    pub(crate) fn breach(&mut self, breach: Breach) {
        self.breach.get_or_insert(breach);
    }
}

/// One step of one process, or of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// An appender makes its next step.
    Append(usize),
    /// An appender's transaction rolls back: by choice, by an error, because the process or its connection died.
    RollBack(usize),
    /// A publisher or replayer makes its next step.
    Publish(usize),
    /// A publisher dies in the middle of a batch; a new one comes up in its place and knows nothing.
    KillPublisher(usize),
    /// An activator makes its next step.
    Activate(usize),
    /// An activator gives up and puts the states back.
    Abort(usize),
    /// An activator dies.
    KillActivator(usize),
    /// The reader of the log makes its next step.
    Read,
    /// Time passes, up to the deadline of the activation under way.
    DeadlinePasses,
    /// Somebody puts an activation back whose deadline has passed.
    Expire,
    /// Whoever expired it sets the generation.
    SetGenerationAfterExpiry,
    /// Whoever expired it dies before it sets the generation.
    KillExpirer,
}

/// The model: a [`Scene`] (who takes part) under [`Rules`] (the protocol, or a changed one).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changeover {
    pub(crate) scene: &'static Scene,
    pub(crate) rules: Rules,
}

/// A counterexample, step by step.
pub(crate) fn tell(path: Path<World, Action>) -> String {
    let mut story = String::new();
    for (world, action) in path.into_vec() {
        let line = match action {
            Some(Action::Append(i)) => format!("appender: {:?}", world.appenders[i]),
            Some(Action::RollBack(i)) => format!("rolls back: {:?}", world.appenders[i]),
            Some(Action::Publish(i)) => format!("publisher: {:?}", world.publishers[i]),
            Some(Action::KillPublisher(i)) => format!("dies: {:?}", world.publishers[i]),
            Some(Action::Activate(i)) => format!("activator: {:?}", world.activators[i]),
            Some(Action::Abort(i)) => format!("aborts: {:?}", world.activators[i]),
            Some(Action::KillActivator(i)) => format!("dies: {:?}", world.activators[i]),
            Some(Action::Read) => format!("reader: {:?}", world.reader),
            Some(other) => format!("{other:?}"),
            None => format!("then {:?}, {:#?}", world.breach, world.database),
        };
        story.push_str(&line);
        story.push('\n');
    }
    story
}

impl Model for Changeover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.scene.opening(self.rules)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (i, appender) in world.appenders.iter().enumerate() {
            // Of two in the same situation one is enough: the next world is the same, once sorted.
            if i > 0 && world.appenders[i - 1] == *appender {
                continue;
            }
            if appender.can_step(world, self) {
                actions.push(Action::Append(i));
            }
            if appender.is_in_transaction() {
                actions.push(Action::RollBack(i));
            }
        }
        for (i, publisher) in world.publishers.iter().enumerate() {
            if i > 0 && world.publishers[i - 1] == *publisher {
                continue;
            }
            if publisher.can_step(world, self) {
                actions.push(Action::Publish(i));
            }
            if publisher.is_in_transaction() {
                actions.push(Action::KillPublisher(i));
            }
        }
        for (i, activator) in world.activators.iter().enumerate() {
            if activator.can_step(world) {
                actions.push(Action::Activate(i));
            }
            if activator.is_under_way() {
                actions.push(Action::KillActivator(i));
                if activator.holds(world.database.states) {
                    actions.push(Action::Abort(i));
                }
            }
        }
        if world.reader.can_step(world) {
            actions.push(Action::Read);
        }
        actions.extend(Expirer::can_do(world, self.rules));
        if world.expirer.has_to_set_generation {
            actions.push(Action::SetGenerationAfterExpiry);
            actions.push(Action::KillExpirer);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = *world;
        match action {
            Action::Append(i) => Appender::step(&mut next, i, self),
            Action::RollBack(i) => Appender::roll_back(&mut next, i, self),
            Action::Publish(i) => Publisher::step(&mut next, i, self),
            Action::KillPublisher(i) => Publisher::kill(&mut next, i, self),
            Action::Activate(i) => Activator::step(&mut next, i, self),
            Action::Abort(i) => Activator::abort(&mut next, i, self),
            Action::KillActivator(i) => Activator::kill(&mut next, i, self),
            Action::Read => Reader::step(&mut next, self.rules),
            Action::DeadlinePasses => next.database.states.deadline_passed = true,
            Action::Expire => Expirer::expire(&mut next, self.rules),
            Action::SetGenerationAfterExpiry => Expirer::set_generation(&mut next),
            Action::KillExpirer => next.expirer.has_to_set_generation = false,
        }
        // Before the others, which refer to them.
        if self.scene.activators_are_alike() {
            Activator::sort(&mut next);
        }
        next.appenders.sort_unstable();
        next.publishers.sort_unstable();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
