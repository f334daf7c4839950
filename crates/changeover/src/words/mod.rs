//! The words of the domain: pure, without SQL, clocks or tasks.

pub(crate) mod decision;
pub(crate) mod event;
pub(crate) mod fingerprint;
pub(crate) mod names;
pub(crate) mod plan;
pub(crate) mod position;
pub(crate) mod prune;
pub(crate) mod readiness;
pub(crate) mod state;
pub(crate) mod version;
pub(crate) mod way_back;
