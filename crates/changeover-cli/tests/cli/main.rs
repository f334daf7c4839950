//! The commands as they are typed: real processes, a real PostgreSQL, a fresh database each.

mod activation;
mod adopt;
mod going_back;
mod help;
mod hints;
mod operations;
mod program;
mod pruning;
mod reading;
mod replaying;
mod upgrading;
mod verifying;
mod views;
