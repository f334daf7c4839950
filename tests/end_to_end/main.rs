//! End-to-end tests: one package, one binary, against a real PostgreSQL with a fresh database each.

mod chaos;
mod deploy;
mod isolation;
mod append;
mod migration;
mod old_appends;
mod orders;
mod releases;
mod upgrade;
