//! End-to-end tests: one package, one binary, against a real PostgreSQL with a fresh database each.

mod isolation;
mod orders;
mod upgrade;
