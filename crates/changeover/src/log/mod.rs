//! The log: append and read.

pub(crate) mod append;
pub(crate) mod read;
