//! End-to-end tests: one package, one binary, against a real PostgreSQL with a fresh database each.

mod chaos;
mod isolation;
mod append;
mod migration;
mod orders;
mod releases;
mod upgrade;
