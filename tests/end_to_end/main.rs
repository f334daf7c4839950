//! End-to-end tests: one package, one binary, against a real PostgreSQL with a fresh database each.

mod chaos;
mod deploy;
mod isolation;
mod append;
mod migration;
mod old_appends;
mod orders;
mod releases;
mod activation;
mod breaking;
mod golden;
mod instances;
mod operator;
mod replaying;
mod traps;
mod traps_of_the_log;
mod upgrade;
mod read;
mod admission;
mod pooler;
mod publisher;
mod projectors;
mod columns;
mod inline_sql;
mod faults;
