//! A Changeover instance over HTTP, for axum: health for load balancers, and answers for what is refused.
//!
//! ```
//! use axum::extract::{Path, State};
//! use axum::routing::post;
//! use axum::{Json, Router, middleware};
//! use changeover::{Changeover, Expected};
//! use changeover_http::Refusal;
//!
//! #[derive(serde::Serialize)]
//! enum OrderEvent {
//!     OrderPaid,
//! }
//!
//! async fn pay(State(changeover): State<Changeover>, Path(id): Path<u64>) -> Result<Json<i64>, Refusal> {
//!     let stream = format!("order-{id}").parse().expect("a short name without NUL");
//!     let appended = changeover.append(&stream, Expected::Any, &[OrderEvent::OrderPaid]).await?;
//!     Ok(Json(appended.revision.get()))
//! }
//!
//! fn app(changeover: Changeover) -> Router {
//!     Router::new()
//!         .route("/orders/{id}/pay", post(pay))
//!         // An instance that has retired must not answer from read models that nobody feeds any more.
//!         .layer(middleware::from_fn_with_state(changeover.clone(), changeover_http::only_when_ready))
//!         // After the layer, which therefore does not stand before it.
//!         .merge(changeover_http::router(changeover.clone()))
//!         .with_state(changeover)
//! }
//! ```
//!
//! It holds no SQL and asks the database nothing: all that it says, the instance knows already.

mod guard;
mod health;
mod refusal;

pub use crate::guard::{only_when_ready, require_ready};
pub use crate::health::router;
pub use crate::refusal::Refusal;
