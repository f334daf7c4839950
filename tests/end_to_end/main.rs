//! End-to-end tests: one package, one binary, against a real PostgreSQL with a fresh database each.

mod activation;
mod admission;
mod append;
mod breaking;
mod chaos;
mod columns;
mod deploy;
mod faults;
mod golden;
mod inline_sql;
mod instances;
mod isolation;
mod migration;
mod old_appends;
mod operator;
mod orders;
mod parallel;
mod pooler;
mod projectors;
mod publisher;
mod read;
mod releases;
mod replaying;
mod traps;
mod traps_of_the_log;
mod upgrade;
