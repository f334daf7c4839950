//! End-to-end tests: one package, one binary, against a real PostgreSQL with a fresh database each.

mod isolation;
mod append;
mod orders;
mod upgrade;
