//! Private PostgreSQL clusters, poolers, faults on the wire and processes to kill, for tests.
//!
//! Tests here run against the real thing. Nothing of it outlives the test, not even one that is killed, and
//! every wait has a limit. Linux only: it reads `/proc`, and needs `setpriv` of util-linux.
//!
//! | what a test needs | |
//! |---|---|
//! | an empty database | [`Database::fresh`] |
//! | a server to kill or to freeze | [`Cluster`] |
//! | a pooler in between | [`PgBouncer`] |
//! | a network that fails | [`Proxy`] |
//! | another instance of the application | [`Process`] |
//! | to wait for what offers no signal | [`eventually`] |
//! | to know whether many writers were served well | [`history`] |
//!
//! ```no_run
//! use changeover_testkit::Database;
//!
//! # async fn example() -> Result<(), tokio_postgres::Error> {
//! let database = Database::fresh().await;
//! let rows = database.client().await.query("SELECT 1", &[]).await?;
//! # Ok(())
//! # }
//! ```
//!
//! It deliberately knows nothing of Changeover: a test says itself which schema it wants in its database.

mod address;
mod cluster;
mod database;
pub mod history;
mod home;
mod leash;
mod pgbouncer;
mod process;
mod processes;
mod programs;
mod proxy;
mod waiting;

pub use cluster::{Builder, Cluster};
pub use database::Database;
pub use pgbouncer::PgBouncer;
pub use process::Process;
pub use proxy::Proxy;
pub use waiting::{Condition, eventually};
