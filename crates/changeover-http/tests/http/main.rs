//! Health, guard and refusals of real instances on a real database.

mod health;
mod instances;
mod refusals;
