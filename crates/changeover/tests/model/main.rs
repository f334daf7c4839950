//! An exhaustive model of the protocol: every interleaving of its steps, within bounds.
//!
//! A test sees some interleavings, this sees all of them, of a small world: two versions of one projector, up to four
//! events, up to three appenders, three publishers and two activators. The bounds are in [`scenes`].
//!
//! # What is modelled
//!
//! - **PostgreSQL** ([`world`]): what is committed (log, rows, checkpoints, states), the two sequences, which know no
//!   transactions, and the locks, which end with theirs. A commit is one step: the rows are visible and the locks are
//!   gone. (In PostgreSQL the locks go a moment later, which only makes others wait.)
//! - **Appends** ([`appender`]), **batches** of publishers and replayers ([`publisher`]), **readers** of the log
//!   ([`reader`]), **activations** and their expiry ([`activator`]), each as a list of steps. What the product does in
//!   one statement is taken apart, so nothing here depends on a statement being atomic. What must be atomic is one
//!   step: to mark, to switch, to put back, to commit a batch, each with the condition in its `WHERE`.
//! - **Deaths and roll-backs** at every step; **freezes** at every step, because any process may make no step while all
//!   others make theirs. The deadline may pass at any moment, so an activator may always wake up too late.
//!
//! # What must hold
//!
//! The promises P1 to P4, as written down in [`properties`], in every state that can be reached. Then every rule of the
//! protocol is broken once ([`rules`], [`mutants`]) and the promise must break that the rule is for. Some rules can
//! be left out; these variations must hold as well.
//!
//! # What is not modelled
//!
//! Several projectors in one configuration, patch versions (both may write, so there is nothing to keep apart), several
//! shards and several keys, an empty table of states, a crash or failover of the database itself, and how long anything
//! takes.
//!
//! A counterexample is printed step by step with the test's failure: each line is a process as it was *before* the step
//! named by its `next`.

mod activator;
mod appender;
mod mutants;
mod properties;
mod publisher;
mod reader;
mod rules;
mod scenes;
mod world;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use crate::mutants::{MUTANTS, VARIATIONS};
use crate::properties::WHOLE_STORY;
use crate::rules::{Change, Rules};
use crate::scenes::{SCENES, Scene};
use crate::world::Changeover;

#[test]
fn the_protocol_holds_and_every_mutant_is_caught() {
    let mut states = 0;
    for scene in SCENES {
        let explored = explore(scene, None);
        println!("scene \"{}\": {explored} states explored, 0 violations", scene.name);
        states += explored;
    }
    println!("model: {states} states explored, 0 violations");

    for mutant in &MUTANTS {
        let explored = catch(mutant.scene, mutant.change, mutant.caught_by);
        println!("mutant \"{}\": caught by \"{}\" after {explored} states", mutant.name, mutant.caught_by);
    }

    for variation in &VARIATIONS {
        let explored: usize =
            variation.scenes.iter().map(|scene| explore(scene, Some(variation.change))).sum();
        println!(
            "safe variation \"{}\": {explored} states explored, 0 violations ({})",
            variation.name, variation.why
        );
    }

    println!(
        "model: {states} states explored, 0 violations; {} of {} mutants caught; {} safe variations hold",
        MUTANTS.len(),
        MUTANTS.len(),
        VARIATIONS.len()
    );
}

/// Explores a scene to its end and asserts that no promise is broken. Returns the number of its states.
fn explore(scene: &'static Scene, change: Option<Change>) -> usize {
    let model = Changeover { scene, rules: Rules { change } };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = model.checker().threads(threads).spawn_bfs().join();
    for (property, path) in checker.discoveries() {
        assert_eq!(property, WHOLE_STORY, "scene \"{}\", {change:?}:\n{}", scene.name, world::tell(path));
    }
    assert!(
        checker.discovery(WHOLE_STORY).is_some(),
        "scene \"{}\" under {change:?} never comes to its good end",
        scene.name
    );
    checker.unique_state_count()
}

/// Explores a scene under a broken rule until the promise is broken that the rule is for, and asserts that it is. Returns
/// the number of states that were looked at.
///
/// One thread, so that the number is the same every time.
fn catch(scene: &'static Scene, change: Change, caught_by: &'static str) -> usize {
    let model = Changeover { scene, rules: Rules { change: Some(change) } };
    let until = HasDiscoveries::AnyOf(BTreeSet::from([caught_by]));
    let checker = model.checker().finish_when(until).spawn_bfs().join();
    assert!(
        checker.discovery(caught_by).is_some(),
        "the mutant {change:?} survives in scene \"{}\": {caught_by} holds",
        scene.name
    );
    checker.unique_state_count()
}
