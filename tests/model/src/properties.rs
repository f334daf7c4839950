//! The promises, as properties of the model.

use stateright::{Model, Property};

use crate::activator::Expirer;
use crate::world::{Breach, Changeover, Delivery, Rows, State, Version, World};

pub(crate) const P1: &str = "P1: nothing stale is appended or published";
pub(crate) const P2: &str = "P2: projected exactly once, in position order";
pub(crate) const P2_SWITCH: &str = "P2: the version that is made active lacks nothing";
pub(crate) const P3: &str = "P3: the reader skips nothing";
pub(crate) const P4: &str = "P4: exactly one version is active";
pub(crate) const P4_END: &str = "P4: no activation is left half done";
pub(crate) const P4_FREEZE: &str = "P4: a frozen activator is not needed to end its activation";
pub(crate) const P4_SERVES: &str = "P4: once an activation is over, the active version serves";
pub(crate) const P4_WHOLE: &str =
    "P4: an activation that did not happen left nothing in the active version's tables";
pub(crate) const P4_LIMIT: &str = "P4: no activation waits for a batch that nobody ends";
pub(crate) const P4_PAUSE: &str = "P4: no activation waits for somebody who waits for it";

/// Not a promise: it must be found.
pub(crate) const WHOLE_STORY: &str = "every event is appended and the last activation succeeds";

const VERSIONS: [Version; 2] = [Version::Old, Version::New];

/// Every property of every scene.
pub(crate) fn all() -> Vec<Property<Changeover>> {
    vec![
        Property::always(P1, |_, world: &World| {
            !matches!(world.breach, Some(Breach::StaleAppend | Breach::StalePublish))
        }),
        Property::always(P2, |model: &Changeover, world: &World| {
            VERSIONS.into_iter().all(|version| is_projected_exactly_once(model, world, version))
        }),
        Property::always(P2_SWITCH, |_, world: &World| world.breach != Some(Breach::WrongAtSwitch)),
        Property::always(P3, |_, world: &World| {
            world.reader.seen == world.database.log.between(0, world.reader.position)
        }),
        Property::always(P4, |_, world: &World| {
            VERSIONS.into_iter().filter(|&version| world.database.states.is(version, State::Active)).count()
                == 1
        }),
        Property::always(P4_END, |model: &Changeover, world: &World| {
            world.database.states.activating().is_none() || goes_on(model, world)
        }),
        Property::always(P4_FREEZE, |model: &Changeover, world: &World| {
            world.database.states.activating().is_none() || Expirer::can_do(world, model.rules).is_some()
        }),
        Property::always(P4_SERVES, |model: &Changeover, world: &World| {
            let states = world.database.states;
            world.appenders.iter().all(|appender| !appender.is_kept_waiting(states)) || goes_on(model, world)
        }),
        Property::always(P4_PAUSE, |_, world: &World| {
            world.appenders.iter().all(|appender| !appender.waits_for_its_waiter())
        }),
        Property::always(P4_WHOLE, |_, world: &World| {
            !world.fed_in_place || world.database.states.activating().is_some()
        }),
        Property::always(P4_LIMIT, |model: &Changeover, world: &World| {
            let published = world.publishers.iter().map(|publisher| publisher.awaited_by);
            let fed = world.activators.iter().map(|activator| activator.awaited_by);
            model.rules.limit_batches() || published.chain(fed).all(|awaited_by| awaited_by == 0)
        }),
        // Without these the properties above might hold only because nothing ever happens.
        Property::sometimes(WHOLE_STORY, |model: &Changeover, world: &World| {
            world.database.log == model.scene.whole_log()
                && !goes_on(model, world)
                && model.scene.went_all_the_way(world)
        }),
    ]
}

/// The rows of a version are what a replay of the committed events leaves: up to its checkpoint, or a little further
/// where the rows of a batch are committed and its checkpoint is not yet.
///
/// An event that commits late, below a checkpoint, violates this in that moment. So it says three things at once:
/// nothing is skipped, nothing is projected twice, nothing out of order. An inline version that is active has seen
/// everything, always.
fn is_projected_exactly_once(model: &Changeover, world: &World, version: Version) -> bool {
    let database = &world.database;
    let tables = model.scene.tables_of(version);
    let rows = database.rows[tables];
    let up_to = database.checkpoints[tables].max(rows.last());
    let is_fed_inline = VERSIONS.into_iter().any(|active| {
        model.scene.tables_of(active) == tables
            && model.scene.delivery[active as usize] == Delivery::Inline
            && database.states.is(active, State::Active)
    });
    let seen = if is_fed_inline { database.log } else { database.log.between(0, up_to) };
    rows == Rows::replayed(seen)
}

/// Can anything still happen?
fn goes_on(model: &Changeover, world: &World) -> bool {
    let mut actions = Vec::new();
    model.actions(world, &mut actions);
    !actions.is_empty()
}
