//! Instances of a small application in two releases, and requests to their routers.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::routing::{get, post};
use axum::{Router, middleware};
use changeover::semver::Version;
use changeover::{Changeover, Configuration, Expected, Fold, FoldProjector, Recorded, Row, StreamName};
use changeover_http::Refusal;
use changeover_testkit::eventually;
use serde::{Deserialize, Serialize};
use tokio_postgres::Config;
use tower::ServiceExt;

pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum OrderEvent {
    OrderPaid {},
}

#[derive(Row, Clone)]
#[row(table = "orders")]
struct Order {
    #[row(key)]
    id: String,
}

impl Fold for Order {
    type Event = OrderEvent;

    fn keys(_event: &OrderEvent, stream: &StreamName) -> impl IntoIterator<Item = String> {
        [stream.to_string()]
    }

    fn fold(_row: Option<Self>, id: &String, _event: &Recorded<OrderEvent>) -> Option<Self> {
        Some(Order { id: id.clone() })
    }
}

struct Release<const MAJOR: u64>;

impl<const MAJOR: u64> FoldProjector for Release<MAJOR> {
    const NAME: &'static str = "orders";
    const VERSION: Version = Version::new(MAJOR, 0, 0);
    type Event = OrderEvent;
    type Tables = (Order,);
}

/// Not started: it does nothing by itself.
pub(crate) async fn instance<const MAJOR: u64>(config: Config) -> Changeover {
    let configuration = Configuration::new().fold(Release::<MAJOR>).unwrap();
    let builder = Changeover::builder(config)
        .application("http-tests", "1.0.0")
        .configuration(configuration)
        .activation_wait(PATIENCE);
    builder.migrate().await.unwrap();
    builder.connect().await.unwrap()
}

async fn pay(State(changeover): State<Changeover>) -> Result<(), Refusal> {
    changeover.append(&stream("order-1"), Expected::Any, &[OrderEvent::OrderPaid {}]).await?;
    Ok(())
}

/// An application as the documentation shows it.
pub(crate) fn app(changeover: &Changeover) -> Router {
    Router::new()
        .route("/orders", get(async || "from the read model"))
        .layer(middleware::from_fn_with_state(changeover.clone(), changeover_http::only_when_ready))
        .route("/pay", post(pay))
        .merge(changeover_http::router(changeover.clone()))
        .with_state(changeover.clone())
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn of(&self, field: &str) -> serde_json::Value {
        let json: serde_json::Value = serde_json::from_str(&self.text).unwrap();
        json[field].clone()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub(crate) async fn get_from(app: &Router, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

pub(crate) async fn post_to(app: &Router, path: &str) -> Answer {
    send(app, Request::post(path).body(Body::empty()).unwrap()).await
}

async fn send(app: &Router, request: Request<Body>) -> Answer {
    let answered = tokio::time::timeout(PATIENCE, app.clone().oneshot(request)).await;
    let (parts, body) = answered.expect("a request hangs").unwrap().into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// Waits until `/readyz` gives this state, and checks the whole answer.
pub(crate) async fn until_readyz_says(app: &Router, state: &str) -> Answer {
    let answer = eventually(PATIENCE, || async {
        let answer = get_from(app, "/readyz").await;
        (answer.of("state") == state).then_some(answer)
    })
    .await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    if state == "active" {
        assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::OK, None));
        assert_eq!(answer.of("reason"), "");
    } else {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{state}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{state}");
        assert!(answer.of("reason").as_str().unwrap().len() > 10, "{state}: {}", answer.text);
    }
    answer
}

pub(crate) fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}
