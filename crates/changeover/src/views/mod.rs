//! Stable views: `<projector>.<table>` shows the table of the version that is active, for readers outside the application.
//!
//! They follow the states, and never lead: whoever has switched moves them afterwards, outside the pause, by what the states
//! say at that moment. So it does not matter who does it, how often, or whether somebody was killed in between. All views
//! of a projector move in one transaction, whose locks last for one statement sent together with its commit, and are asked for
//! only briefly: behind a lock request that waits, every other reader would wait as well.

mod attempt;
mod moves;
pub(crate) mod properties;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::{info, warn};

use self::attempt::{Attempted, attempt};
pub(crate) use self::attempt::{create, properties_of, roles_of};
use self::moves::Place;
use crate::in_flight::{Blocker, lock_holders};
use crate::projector::chain;
use crate::store::{Store, StoreError};
use crate::words::names::ProjectorName;

/// What became of the stable views of a projector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProjectorViews {
    /// The projector.
    pub projector: ProjectorName,
    /// The major version that is active, whose tables the views should show; none where no version is.
    pub active: Option<u64>,
    /// The views that were made, moved or dropped just now, by their full names.
    pub changed: Vec<String>,
    /// Why there are views that do not show that version.
    pub problems: Vec<ViewProblem>,
}

impl ProjectorViews {
    /// Of a projector whose views could not even be looked at.
    pub(crate) fn unknown(projector: &ProjectorName, error: &StoreError) -> Self {
        let problem = ViewProblem::Refused { projector: projector.clone(), reason: chain(error) };
        Self { projector: projector.clone(), active: None, changed: vec![], problems: vec![problem] }
    }
}

/// Why a stable view does not show the active version.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ViewProblem {
    /// A schema of the projector's name is there, and is not ours.
    #[error(
        "schema {projector} is there and is not ours: it was not touched, so {projector} has no stable views; rename it and run `repoint-views`, or turn the views off"
    )]
    ForeignSchema {
        /// The projector.
        projector: ProjectorName,
    },
    /// Something of a view's name is there, and is not ours.
    #[error("{relation} is there and is not ours: it was not touched; rename it, then run `repoint-views`")]
    ForeignRelation {
        /// Its full name.
        relation: String,
    },
    /// A view of ours is not as we made it any more.
    #[error(
        "view {view} is not as it was made any more: it was not touched; drop it or rename it, then run `repoint-views`"
    )]
    Altered {
        /// Its full name.
        view: String,
    },
    /// A view must be dropped, for good or to be made with other columns, and something would be lost with it.
    #[error(
        "view {view} cannot be dropped and made anew, so the views of its projector stay as they are: {} would be lost; drop that, run `repoint-views`, then make it again",
        dependents.join(", ")
    )]
    Dependents {
        /// Its full name.
        view: String,
        /// What depends on it, or hangs on it, in the server's words.
        dependents: Vec<String>,
    },
    /// The owner of a view may not read the new table, so nobody could read it through the view.
    #[error(
        "{owner}, who owns view {view}, may not read {table}: grant SELECT on it or change the owner, then run `repoint-views`"
    )]
    Unreadable {
        /// The view's full name.
        view: String,
        /// Its owner.
        owner: String,
        /// The table's full name.
        table: String,
    },
    /// Readers held the views for too long.
    #[error(
        "the views of {projector} were not moved in {after_secs:.1} s: {}; end that, then run `repoint-views`",
        if blockers.is_empty() { "they are being moved by somebody else, or are locked again and again".to_owned() }
        else { blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ") }
    )]
    Blocked {
        /// The projector.
        projector: ProjectorName,
        /// Who.
        blockers: Vec<Blocker>,
        /// How long was tried.
        after_secs: f64,
    },
    /// The database did not do as asked.
    #[error(
        "the views of {projector} were not moved: {reason}; mend that and run `repoint-views`, or turn the views off"
    )]
    Refused {
        /// The projector.
        projector: ProjectorName,
        /// What it says.
        reason: String,
    },
}

/// A stable view as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StableView {
    /// The projector.
    pub projector: ProjectorName,
    /// The view's name, in the schema of the projector's name.
    pub view: String,
    /// The major version that it shows; none where it is not there or is not ours.
    pub shows: Option<u64>,
    /// The major version that it should show; none where it should not be there.
    pub active: Option<u64>,
}

impl StableView {
    /// Whether it does not show what it should: whoever moved the states was stopped before it moved the views, or could not.
    pub fn lags_behind(&self) -> bool {
        self.shows != self.active
    }
}

/// How often whoever holds a view is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Whoever wants to know who is waited for.
pub(crate) type OnWait<'a> = &'a (dyn Fn(&ProjectorName, Vec<Blocker>) + Send + Sync);

/// All stable views as they stand, of projectors that have any.
pub(crate) async fn all(store: &Store, client: &Client) -> Result<Vec<StableView>, StoreError> {
    let places = places(store, client, None).await?;
    let has_any = |projector: &ProjectorName| places.iter().any(|p| p.projector == *projector && p.ours);
    Ok(places
        .iter()
        .filter(|place| has_any(&place.projector) && (place.wanted || place.relation.is_some()))
        .map(|place| StableView {
            projector: place.projector.clone(),
            view: place.name.clone(),
            shows: place.shows.filter(|_| place.ours),
            active: place.active.filter(|_| place.wanted),
        })
        .collect())
}

async fn places(
    store: &Store,
    client: &Client,
    projector: Option<&ProjectorName>,
) -> Result<Vec<Place>, StoreError> {
    let projector = projector.map(ProjectorName::as_str);
    let rows = store.query(client, &store.sql.stable_views, &[&projector]).await?;
    rows.iter().map(Place::read).collect()
}

/// Makes the stable views show what the states say, each projector for itself, until `timeout` has passed. Tries once at
/// least.
pub(crate) async fn follow(
    store: &Store,
    client: &Client,
    timeout: Duration,
    on_wait: OnWait<'_>,
) -> Result<Vec<ProjectorViews>, StoreError> {
    let started = Instant::now();
    let mut done = BTreeMap::new();
    let mut open: BTreeMap<ProjectorName, Option<Held>> =
        places(store, client, None).await?.into_iter().map(|place| (place.projector, None)).collect();
    loop {
        for (projector, held) in &mut open {
            // Whoever held a view then and holds it still would let us wait in vain, and everybody behind us.
            if let Some(held) = held
                && held.is_still(store, client).await?
            {
                on_wait(projector, held.by.clone());
                continue;
            }
            match attempt(store, client, projector).await? {
                Attempted::Done(views) => {
                    done.insert(projector.clone(), views);
                }
                Attempted::Locked { active, relations } => {
                    let by = lock_holders(store, client, &relations).await?;
                    *held = Some(Held { active, relations, by });
                }
            }
        }
        open.retain(|projector, _| !done.contains_key(projector));
        if open.is_empty() || started.elapsed() >= timeout {
            break;
        }
        sleep(POLL.min(timeout)).await;
    }
    for (projector, held) in open {
        let Held { active, by: blockers, .. } = held.unwrap_or_default();
        let blocked = ViewProblem::Blocked {
            projector: projector.clone(),
            blockers,
            after_secs: started.elapsed().as_secs_f64(),
        };
        let views =
            ProjectorViews { projector: projector.clone(), active, changed: vec![], problems: vec![blocked] };
        done.insert(projector, views);
    }
    Ok(done.into_values().inspect(tell).collect())
}

/// The same for an instance, which may lack the rights: tries once, and what does not go is told in the log alone.
pub(crate) async fn follow_once(store: &Store, client: &Client) -> Result<(), StoreError> {
    match follow(store, client, Duration::ZERO, &|_, _| {}).await {
        Err(error) if error.is_disconnect() => Err(error),
        Err(error) => {
            warn!(error = %chain(&error), "stable views were not made");
            Ok(())
        }
        Ok(views) => {
            for ProjectorViews { projector, problems, .. } in views {
                for problem in problems {
                    warn!(%projector, %problem, "stable views were not made");
                }
            }
            Ok(())
        }
    }
}

/// Why an attempt had to wait.
#[derive(Debug, Default)]
struct Held {
    active: Option<u64>,
    relations: Vec<u32>,
    by: Vec<Blocker>,
}

impl Held {
    /// Whether somebody who held a view then holds it now. Forgets the others.
    async fn is_still(&mut self, store: &Store, client: &Client) -> Result<bool, StoreError> {
        let now = lock_holders(store, client, &self.relations).await?;
        let then = |blocker: &Blocker| self.by.iter().any(|then| then.transaction == blocker.transaction);
        let still: Vec<Blocker> = now.into_iter().filter(then).collect();
        if still.is_empty() {
            return Ok(false);
        }
        self.by = still;
        Ok(true)
    }
}

fn tell(views: &ProjectorViews) {
    let ProjectorViews { projector, active, changed, .. } = views;
    if !changed.is_empty() {
        info!(%projector, active, ?changed, "stable views show the active version");
    }
}
