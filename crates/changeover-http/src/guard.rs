//! The guard: keeps requests from an instance that must not answer them.
//!
//! Appends are guarded by the library, in the same statement that writes. Reads are not: a retired instance would answer
//! from tables that nobody feeds any more, a waiting one from tables that are still being replayed.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use changeover::{Changeover, ReadyState};
use tokio::time::timeout;

use crate::refusal::Refusal;

/// How long a request waits for the outcome of an activation; as long as the pause of one may last by default.
const ACTIVATION_WAIT: Duration = Duration::from_secs(2);

/// Lets a handler go on only while the instance may take traffic. Costs no query.
///
/// While an activation pauses the writers, it waits for the outcome, up to two seconds: the instance may be the one that
/// serves afterwards.
///
/// # Errors
///
/// A [`Refusal`] with 503 that says what the instance is instead.
///
/// ```
/// # use changeover::Changeover;
/// # use changeover_http::Refusal;
/// async fn order(changeover: Changeover) -> Result<String, Refusal> {
///     changeover_http::require_ready(&changeover).await?;
///     Ok("from the read model".to_owned())
/// }
/// ```
pub async fn require_ready(changeover: &Changeover) -> Result<(), Refusal> {
    let mut readiness = changeover.watch_readiness();
    if readiness.borrow().state == ReadyState::Activating {
        let outcome = readiness.wait_for(|readiness| readiness.state != ReadyState::Activating);
        // Whether it came or not: what holds now is looked at below.
        let _ = timeout(ACTIVATION_WAIT, outcome).await;
    }
    let readiness = readiness.borrow().clone();
    if readiness.is_ready() { Ok(()) } else { Err(readiness.into()) }
}

/// [`require_ready`] as a layer for all routes of a router, with `axum::middleware::from_fn_with_state`.
///
/// Writes are admitted by the library in any case; with the layer in front, those that would be refused do not reach the
/// database at all.
pub async fn only_when_ready(State(changeover): State<Changeover>, request: Request, next: Next) -> Response {
    match require_ready(&changeover).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}
