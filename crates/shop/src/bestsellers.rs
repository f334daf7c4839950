//! What sells best: a projector in the background, whose rows are fed by the streams of many orders. Both releases have it
//! in the same version, so an upgrade leaves it alone.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use changeover::semver::Version;
use changeover::{Changeover, Fold, FoldProjector, Recorded, Row, StreamName};
use changeover_http::Refusal;
use serde::{Deserialize, Serialize};

/// The projector.
pub struct Bestsellers;

impl FoldProjector for Bestsellers {
    const NAME: &'static str = "bestsellers";
    const VERSION: Version = Version::new(1, 0, 0);
    type Event = Event;
    type Tables = (Article,);
}

/// Of all that happens to orders, the projector reads what it needs.
#[derive(Debug, Deserialize)]
pub enum Event {
    /// Some pieces of an article were ordered.
    ItemAdded {
        /// Which.
        sku: String,
        /// How many.
        quantity: i32,
        /// The price of one.
        cents: i64,
    },
}

/// How an article sells.
#[derive(Debug, Clone, Row, Serialize)]
#[row(table = "articles")]
pub struct Article {
    /// Which article.
    #[row(key)]
    pub sku: String,
    /// How often it was ordered.
    pub lines: i64,
    /// How many pieces of it.
    #[row(index)]
    pub pieces: i64,
    /// For how much.
    pub cents: i64,
}

impl Fold for Article {
    type Event = Event;

    fn keys(Event::ItemAdded { sku, .. }: &Event, _stream: &StreamName) -> impl IntoIterator<Item = String> {
        [sku.clone()]
    }

    fn fold(row: Option<Self>, sku: &String, event: &Recorded<Event>) -> Option<Self> {
        let Event::ItemAdded { quantity, cents, .. } = event.data;
        let quantity = i64::from(quantity);
        let row = row.unwrap_or(Article { sku: sku.clone(), lines: 0, pieces: 0, cents: 0 });
        Some(Article {
            lines: row.lines + 1,
            pieces: row.pieces + quantity,
            cents: row.cents + quantity * cents,
            ..row
        })
    }
}

/// `GET /bestsellers`
pub fn routes() -> Router<Changeover> {
    Router::new().route("/bestsellers", get(bestsellers))
}

async fn bestsellers(State(changeover): State<Changeover>) -> Result<Json<Vec<Article>>, Refusal> {
    let client = changeover.pool().get().await?;
    let sql =
        "SELECT sku, lines, pieces, cents FROM bestsellers_v1.articles ORDER BY pieces DESC, sku LIMIT 10";
    let rows = client.query_typed(sql, &[]).await?;
    Ok(Json(rows.iter().map(Article::from_row).collect::<Result<_, _>>()?))
}
