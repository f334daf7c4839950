//! The log: append and read.

pub(crate) mod append;
pub(crate) mod error;
mod inline;
pub(crate) mod read;
pub(crate) mod warm;
