//! Zero-downtime upgrades of event-sourced applications on PostgreSQL.
//!
//! An application keeps an append-only log of events and derives read models from it with *projectors*. With Changeover the
//! old and the new version of a projector run side by side: the new one is replayed beside the live one, and at one moment
//! all projectors of a configuration switch. Old code notices by itself, since every append and every published batch is
//! admitted only under the configuration that is active.
//!
//! Start at [`Changeover`]; write projectors as [`FoldProjector`] or [`SqlProjector`]; put them into a [`Configuration`].

// `#[derive(Row)]` names this crate, also where it is used inside.
#[allow(unused_extern_crates)]
extern crate self as changeover;

mod activation;
mod admission;
mod adopt;
mod builder;
mod codec;
mod copied;
mod core;
mod decider;
mod discard;
mod due;
mod expiry;
mod front;
mod horizon;
mod in_flight;
mod instances;
mod log;
mod objects;
mod optimize;
mod projector;
mod prune;
mod publisher;
mod registration;
mod replayer;
mod status;
mod step;
mod store;
mod upgrade;
mod verify;
mod views;
mod wake;
mod watch;
mod words;

pub use changeover_derive::Row;
pub use deadpool_postgres::{Pool, Transaction};
pub use postgres_types::{ToSql, Type};
pub use {deadpool_postgres, semver, tokio_postgres};

pub use crate::activation::rollback::{GoneVersion, RollbackError};
pub use crate::activation::{ActivateError, ActivateOptions, Activated, ActivationProgress};
pub use crate::adopt::shape::TableDifference;
pub use crate::adopt::{AdoptAt, AdoptError, AdoptOptions, Adopted};
pub use crate::builder::{Builder, ConnectError};
pub use crate::codec::EncodeError;
pub use crate::decider::WhenNothingIsActive;
pub use crate::discard::{Abandoned, DiscardError, DiscardOptions};
pub use crate::front::{Changeover, Running, SkipError, WaitError};
pub use crate::in_flight::{Blocker, Holds};
pub use crate::instances::Instance;
pub use crate::log::append::Appended;
pub use crate::log::error::AppendError;
pub use crate::log::read::{ReadError, Reader};
pub use crate::optimize::{OptimizeError, OptimizeOptions, Optimized};
pub use crate::projector::configuration::{Configuration, ConfigurationError, NotRegistered};
pub use crate::projector::fold::{Fold, FoldProjector, FoldTables};
pub use crate::projector::row::{Column, ColumnDefinition, Key, Row};
pub use crate::projector::split::{SplitBy, SplitKey};
pub use crate::projector::sql::{Batch, Prepared, SqlProjector};
pub use crate::projector::{BoxError, ProjectError};
pub use crate::prune::{NotPruned, PruneError, PruneOptions, Pruned, WhyNotPruned};
pub use crate::registration::RegisterError;
pub use crate::replayer::shown::{Purpose, RunningReplay};
pub use crate::replayer::{
    CaughtUp, Indexing, Left, Pace, ReplayError, ReplayOptions, ReplayPhase, ReplayProgress, Speed, Throttle,
};
pub use crate::status::{OpenActivation, ProjectorStatus, Stall, Status, TablesStatus};
pub use crate::store::migrate::MigrateError;
pub use crate::store::{Path, StoreError};
pub use crate::upgrade::{StepTaken, UpgradeError, UpgradeOptions, UpgradeProgress, UpgradeStep, Upgraded};
pub use crate::verify::{
    Against, BetweenOptions, Declared, RowDifference, RowDiffers, TableVerdict, Values, Verified,
    VerifyError, VerifyOptions, VerifyProgress,
};
pub use crate::views::{ProjectorViews, StableView, ViewProblem};
pub use crate::wake::{Signals, Waker};
pub use crate::words::decision::{NotFed, Refused, Verdict, VersionState, Versions, decide};
pub use crate::words::event::{Expected, RawEvent, Recorded};
pub use crate::words::fingerprint::Fingerprint;
pub use crate::words::names::{InvalidName, ProjectorName, SchemaName, StreamName};
pub use crate::words::plan::{Known, KnownTables, Obstacle, Plan, Step, Target, plan};
pub use crate::words::position::{Generation, Position, Revision};
pub use crate::words::prune::{Fate, Foreign, LostConfiguration, PrunePlan, RetiredTables};
pub use crate::words::readiness::{Readiness, ReadyState};
pub use crate::words::state::{Delivery, IllegalMove, Move, ProjectorState};
pub use crate::words::version::{Difference, difference};
pub use crate::words::way_back::{Differing, NoWayBack};

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
