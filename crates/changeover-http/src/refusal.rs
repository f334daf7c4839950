//! Refusals: what a handler answers when the library does not do as asked.

use std::error::Error;
use std::fmt::Display;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use changeover::{
    AppendError, EncodeError, ReadError, Readiness, ReadyState, Refused, StoreError, WaitError,
};
use serde_json::json;
use tracing::error;

/// When to try again: elsewhere at once, here not before.
pub(crate) const RETRY_AFTER_SECS: &str = "1";

/// The answer to a request that was not served. Nothing was written.
///
/// Handlers return it as their error and use `?` on the library's calls:
///
/// | what went wrong | status | `error` in the body |
/// |---|---|---|
/// | [`Refused`]: not the active configuration | 503 with `Retry-After` | [`Refused::name`], say `NewerProjectorIsActive` |
/// | the instance is not ready | 503 with `Retry-After` | `NotReady` |
/// | another writer got in between | 503 with `Retry-After` | `Contended` |
/// | [`AppendError::Conflict`] | 409 | `Conflict` |
/// | a text with U+0000 | 422 | `HoldsNul` |
/// | data nested more than 127 deep | 422 | `TooDeep` |
/// | too many bytes at once | 413 | `TooLarge` |
/// | the read model is behind | 504 | `Timeout` |
/// | anything else | 500 | `Internal`; the details are logged, not sent |
///
/// The body is `{"error":"..","message":"..","retryable":true}`: *retryable* tells whether this very instance may succeed
/// in a moment. A 503 that is not retryable is worth trying on another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    error: &'static str,
    message: String,
    retryable: bool,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, message: &dyn Display, retryable: bool) -> Self {
        Self { status, error, message: message.to_string(), retryable }
    }

    fn contended(lost_race: &dyn Error) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Contended", &lost_race, true)
    }

    fn internal(cause: &dyn Error) -> Self {
        error!(error = %chain(cause), "a request failed");
        let message = "the request could not be served; the log of this instance says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", &message, false)
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The name of what went wrong, as in the body.
    pub fn error(&self) -> &'static str {
        self.error
    }

    /// Whether this instance may succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error, message, retryable } = self;
        let body = Json(json!({ "error": error, "message": message, "retryable": retryable }));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            (status, [(header::RETRY_AFTER, RETRY_AFTER_SECS)], body).into_response()
        } else {
            (status, body).into_response()
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, refused.name(), &refused, refused.is_retryable())
    }
}

impl From<Readiness> for Refusal {
    fn from(readiness: Readiness) -> Self {
        let message = format!("this instance is {}: {}", readiness.state, readiness.reason);
        // A switch is over in a moment; any other state takes more than waiting.
        let retryable = readiness.state == ReadyState::Activating;
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "NotReady", &message, retryable)
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        match &error {
            AppendError::Refused(refused) => refused.clone().into(),
            AppendError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "Conflict", &error, false),
            AppendError::Encode(EncodeError::HoldsNul { .. }) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "HoldsNul", &error, false)
            }
            AppendError::Encode(EncodeError::TooDeep { .. }) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "TooDeep", &error, false)
            }
            AppendError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", &error, false)
            }
            error if error.is_retryable() => Self::contended(error),
            error => Self::internal(error),
        }
    }
}

impl From<WaitError> for Refusal {
    fn from(error: WaitError) -> Self {
        match &error {
            WaitError::Timeout { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", &error, true),
            error => Self::internal(error),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if error.is_retryable() { Self::contended(&error) } else { Self::internal(&error) }
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => error.into(),
            error => Self::internal(&error),
        }
    }
}

/// From an application's own queries on [`Changeover::pool`](changeover::Changeover::pool).
impl From<changeover::tokio_postgres::Error> for Refusal {
    fn from(error: changeover::tokio_postgres::Error) -> Self {
        StoreError::from(error).into()
    }
}

/// From an application's own use of [`Changeover::pool`](changeover::Changeover::pool).
impl From<changeover::deadpool_postgres::PoolError> for Refusal {
    fn from(error: changeover::deadpool_postgres::PoolError) -> Self {
        StoreError::from(error).into()
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
