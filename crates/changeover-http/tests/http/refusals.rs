//! What handlers answer when the library does not do as asked.

use axum::body::to_bytes;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use changeover::{
    ActivateOptions, AppendError, EncodeError, Expected, Readiness, ReadyState, Refused, Revision, StoreError,
};
use changeover_http::Refusal;
use changeover_testkit::Database;

use crate::instances::{OrderEvent, PATIENCE, app, instance, post_to, stream};

#[tokio::test]
async fn an_append_by_a_retired_instance_is_answered_with_503_and_the_reason() {
    let database = Database::fresh().await;
    let old = instance::<1>(database.config()).await;
    let app = app(&old);
    assert_eq!(post_to(&app, "/pay").await.status, StatusCode::OK);
    let new = instance::<2>(database.config()).await;
    let options = ActivateOptions { pause_limit: PATIENCE, ..ActivateOptions::default() };
    let _ = new.activate(&options, &|_| {}).await.unwrap();

    let refused = post_to(&app, "/pay").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.of("error"), "NewerProjectorIsActive");
    assert_eq!(refused.of("retryable"), false);
    let message = refused.of("message");
    assert!(
        message.as_str().unwrap().starts_with("orders 2.0.0 is active and newer than our 1.0.0"),
        "{message}"
    );
}

#[tokio::test]
async fn a_conflict_is_409() {
    let database = Database::fresh().await;
    let changeover = instance::<1>(database.config()).await;
    let events = [OrderEvent::OrderPaid {}];
    let expected = Expected::Exactly(Revision::new(7));
    let error = changeover.append(&stream("order-1"), expected, &events).await.unwrap_err();
    let refusal = Refusal::from(error);
    assert_eq!((refusal.status(), refusal.error()), (StatusCode::CONFLICT, "Conflict"));
    assert!(!refusal.is_retryable());
}

#[test]
fn every_error_has_its_status() {
    let check = |error: AppendError, status: u16, name: &str, retryable: bool| {
        let refusal = Refusal::from(error);
        assert_eq!(
            (refusal.status().as_u16(), refusal.error(), refusal.is_retryable()),
            (status, name, retryable)
        );
    };
    let projector = || "orders".parse().unwrap();
    let version = || "1.0.0".parse().unwrap();
    let activating = Refused::ProjectorIsActivating { projector: projector(), version: version() };
    check(activating.into(), 503, "ProjectorIsActivating", true);
    check(Refused::NoConfigurationIsActive.into(), 503, "NoConfigurationIsActive", false);
    let missing = Refused::HistoryIsMissing { projector: projector(), version: version() };
    check(missing.into(), 503, "HistoryIsMissing", false);
    check(AppendError::Contended { stream: stream("order-1") }, 503, "Contended", true);
    let newer = Refused::SchemaIsNewer { schema: "ours".parse().unwrap(), found: 9, needs: 9, ours: 2 };
    check(newer.into(), 503, "SchemaIsNewer", false);
    check(EncodeError::TooDeep { event_type: "Placed".to_owned() }.into(), 422, "TooDeep", false);
    check(AppendError::TooLarge { bytes: 2, limit: 1 }, 413, "TooLarge", false);
    check(StoreError::Pool("secret".to_owned()).into(), 500, "Internal", false);
}

#[test]
fn an_instance_that_is_not_ready_says_whether_a_moment_helps() {
    let check = |state: ReadyState, retryable: bool| {
        let refusal = Refusal::from(Readiness { state, reason: "a reason".to_owned() });
        assert_eq!((refusal.status().as_u16(), refusal.error()), (503, "NotReady"));
        assert_eq!(refusal.is_retryable(), retryable, "{state}");
    };
    check(ReadyState::Activating, true);
    for state in [ReadyState::Waiting, ReadyState::Retired, ReadyState::Unknown, ReadyState::Unreachable] {
        check(state, false);
    }
}

#[tokio::test]
async fn an_internal_error_keeps_its_details_to_itself() {
    let error = StoreError::Unreadable("password=hunter2".to_owned());
    let response = Refusal::from(error).into_response();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(response.headers().get("retry-after").is_none());
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(!body.contains("hunter2"), "{body}");
    assert!(body.contains(r#""error":"Internal""#), "{body}");
}
