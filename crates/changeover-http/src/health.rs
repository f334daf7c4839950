//! Health: what a load balancer and an orchestrator ask, again and again.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use changeover::{Changeover, Readiness};

use crate::refusal::RETRY_AFTER_SECS;

/// `/livez` and `/readyz` of an instance, to be merged into the host's own router.
///
/// | route | answers |
/// |---|---|
/// | `/livez` | 200 as long as the process serves requests at all. It depends neither on the database nor on any lag: an orchestrator that restarts an instance for those makes things worse. |
/// | `/readyz` | 200 while the instance may take traffic; otherwise 503 with `Retry-After`. The body says why: `{"state":"waiting","reason":".."}`; the states are those of [`ReadyState`](changeover::ReadyState). |
///
/// Neither costs a query, so thousands of polls a second are nothing to the database. The instance keeps its readiness
/// fresh from [`Changeover::start`] on; before that it is `unknown`.
///
/// For the tens of milliseconds in which an activation pauses the writers, *every* instance is `activating`: let a
/// load balancer wait for the second failed check in a row before it believes that nobody is left. Requests that arrive
/// meanwhile wait, and are not refused.
pub fn router<S: Clone + Send + Sync + 'static>(changeover: Changeover) -> Router<S> {
    Router::new()
        .route("/livez", get(async || not_stored("ok")))
        .route("/readyz", get(async move || readyz(changeover.readiness())))
}

fn readyz(readiness: Readiness) -> Response {
    if readiness.is_ready() {
        not_stored(Json(readiness))
    } else {
        let retry_after = [(header::RETRY_AFTER, RETRY_AFTER_SECS)];
        not_stored((StatusCode::SERVICE_UNAVAILABLE, retry_after, Json(readiness)))
    }
}

/// What was true a moment ago must not be had from a cache.
fn not_stored(response: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], response).into_response()
}
