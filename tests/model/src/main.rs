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
//!   step: to mark, to switch, to put back, to commit a batch, each with the condition in its `WHERE`. Feeding the tail is
//!   taken apart as the product does it: the horizon, the token, presence, admission, claim, and the commit, which is
//!   conditional on the checkpoint and not on the token.
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
//! shards and several keys, an empty table of states, a version that is started over or pruned, a crash or failover of the
//! database itself, and how long anything takes. Nor the flag `inline` of a checkpoint: it guards once more what the token
//! and admission guard here alone.
//!
//! It takes some minutes of one core, less on several, where this crate is optimised (`opt-level = 2`), and several
//! times that where it is not. A counterexample is printed step by step with the test's failure: each line is a
//! process as it was *before* the step named by its `next`.

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
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use stateright::{Checker, HasDiscoveries, Model};

use crate::mutants::{MUTANTS, VARIATIONS};
use crate::properties::WHOLE_STORY;
use crate::rules::{Change, Rules};
use crate::scenes::{SCENES, Scene};
use crate::world::Changeover;

/// Prints past the test harness, which keeps what a passing test prints to itself.
macro_rules! say {
    ($($text:tt)*) => {
        writeln!(std::io::stdout(), $($text)*).expect("standard output can be written to")
    };
}

#[test]
fn the_protocol_holds_and_every_mutant_is_caught() {
    let mut states = 0;
    let explored = in_parallel(&SCENES, |scene| explore(scene, None));
    for (scene, explored) in SCENES.iter().zip(explored) {
        say!("scene \"{}\": {explored} states explored, 0 violations", scene.name);
        states += explored;
    }
    say!("model: {states} states explored, 0 violations");

    let explored = in_parallel(&MUTANTS, |mutant| catch(mutant.scene, mutant.change, mutant.caught_by));
    for (mutant, explored) in MUTANTS.iter().zip(explored) {
        say!("mutant \"{}\": caught by \"{}\" after {explored} states", mutant.name, mutant.caught_by);
    }

    let explored = in_parallel(&VARIATIONS, |variation| {
        variation.scenes.iter().map(|scene| explore(scene, Some(variation.change))).sum::<usize>()
    });
    for (variation, explored) in VARIATIONS.iter().zip(explored) {
        say!("safe variation \"{}\": {explored} states explored, 0 violations", variation.name);
        say!("    because {}", variation.why);
    }

    say!(
        "model: {states} states explored, 0 violations; {caught} of {caught} mutants caught; {safe} safe variations hold",
        caught = MUTANTS.len(),
        safe = VARIATIONS.len()
    );
}

/// Explores a scene to its end and asserts that no promise is broken. Returns the number of its states.
///
/// Depth first: every state is visited either way, and this way fewer of them wait in memory.
fn explore(scene: &'static Scene, change: Option<Change>) -> usize {
    let model = Changeover { scene, rules: Rules { change } };
    let checker = model.checker().spawn_dfs().join();
    for (property, path) in checker.discoveries() {
        let story = world::tell(path);
        assert_eq!(property, WHOLE_STORY, "broken in scene \"{}\" under {change:?}:\n{story}", scene.name);
    }
    assert!(
        checker.discovery(WHOLE_STORY).is_some(),
        "scene \"{}\" under {change:?} never comes to its good end",
        scene.name
    );
    checker.unique_state_count()
}

/// Explores a scene under a broken rule until the promise is broken that the rule is for, and asserts that it is.
/// Returns the number of states that were seen until then.
///
/// Breadth first, so that the number means something: what is nearer to the beginning was seen before.
fn catch(scene: &'static Scene, change: Change, caught_by: &'static str) -> usize {
    let model = Changeover { scene, rules: Rules { change: Some(change) } };
    let until = HasDiscoveries::AnyOf(BTreeSet::from([caught_by]));
    let checker = model.checker().finish_when(until).spawn_bfs().join();
    assert!(
        checker.discovery(caught_by).is_some(),
        "the mutant {change:?} survives in scene \"{}\": \"{caught_by}\" still holds",
        scene.name
    );
    checker.unique_state_count()
}

/// Runs every job, as many at once as there are cores, and returns what they return, in the order of the jobs.
///
/// One job to a core, not one checker on all cores: a checker's threads spend most of the gain on sharing their states,
/// and with one thread the numbers are the same every time.
fn in_parallel<Job: Sync, Outcome: Send>(jobs: &[Job], run: impl Fn(&Job) -> Outcome + Sync) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(i) else { return done };
            done.push((i, run(job)));
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, Outcome)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a job failed, see above")).collect()
    });
    done.sort_by_key(|&(i, _)| i);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}
