//! Verifying: proves that rows are what the projector makes of the log, or shows which are not.
//!
//! The log is folded afresh into tables of the verification's own ([`scratch`]), and those are compared with the ones that are
//! there, a page of keys at a time, beside whoever feeds and reads them. A page is copied in one short statement together with
//! the position at which its rows stand ([`live`]); then the log is folded on to exactly that position; then both are compared
//! in one statement ([`compare`]). So every row is compared at one exact position, whatever is written meanwhile, and nothing is
//! locked but for the reading of one page.
//!
//! What this does not do: tell which of two sides is right. A fold that depends on anything but its events differs from itself.

mod between;
mod compare;
mod live;
mod scratch;
mod shape;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

pub(crate) use self::between::between;
pub use self::between::{BetweenOptions, Declared};
use self::compare::{Comparison, Page, Side, Telling};
use self::live::{Live, Snapshot};
use self::scratch::Scratch;
use self::shape::Shape;
pub(crate) use self::verdict::to_mend;
pub use self::verdict::{Against, RowDifference, RowDiffers, TableVerdict, Values, Verified};
use crate::core::Core;
use crate::in_flight::Blocker;
use crate::projector::Registered;
use crate::projector::configuration::NotRegistered;
use crate::replayer::shown::{Purpose, Shown};
use crate::replayer::{Pace, ReplayError, ReplayProgress};
use crate::store::quote::relation;
use crate::store::{On, StoreError};
use crate::words::names::ProjectorName;
use crate::words::position::Position;

/// How tables are to be verified.
///
/// ```
/// use changeover::VerifyOptions;
/// let options = VerifyOptions { examples: 3, ..VerifyOptions::default() };
/// assert!(!options.show_values);
/// ```
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// How fast the log is folded, and at whose expense.
    pub pace: Pace,
    /// How many rows are read and compared at once.
    pub page_rows: usize,
    /// How many of the rows that differ are named in each table.
    pub examples: usize,
    /// Whether their values are told as well, not just their keys and the names of the columns.
    pub show_values: bool,
    /// How long to wait where appends that stay open hold up the horizon of an inline projector.
    pub patience: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            pace: Pace::default(),
            page_rows: 20_000,
            examples: 10,
            show_values: false,
            patience: Duration::from_secs(30),
        }
    }
}

/// What a verification is at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyProgress {
    /// It folds the log.
    Folding(ReplayProgress),
    /// It compares.
    Comparing {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The table.
        table: String,
        /// The rows of that table that were compared so far.
        rows: u64,
        /// Where they stood.
        position: Position,
    },
}

/// Why nothing could be said. Nothing was changed, but for tables of the verification's own, which the next one drops if this
/// one did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The configuration holds no such projector.
    #[error(transparent)]
    NotOurs(#[from] NotRegistered),
    /// The version has no tables.
    #[error("{projector} {version} has no tables yet: replay it first")]
    NotThere {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// Its rows stand at several positions.
    #[error(
        "{projector} {version} is being replayed by several shards, and each of them stands elsewhere: let `replay` come to its end first"
    )]
    InShards {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// The tables are not as the version defines them.
    #[error(
        "table {table} of {projector} {version} is not as it is defined: {}; put that back, or raise its version",
        .differences.join("; ")
    )]
    OtherTable {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// The table.
        table: String,
        /// How it differs.
        differences: Vec<String>,
    },
    /// Somebody ended it.
    #[error(
        "the verification of {projector} {version} was aborted by {by}: nothing can be said of its rows until `verify` is run again"
    )]
    Aborted {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Who ended it.
        by: String,
    },
    /// The projector's DDL failed.
    #[error(
        "the tables to compare those of {projector} {version} with cannot be created: mend what the database names (its DDL, or the right to create a schema), then run `verify` again"
    )]
    Ddl {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// What the database says.
        #[source]
        source: StoreError,
    },
    /// The log could not be folded.
    #[error("the log could not be folded afresh")]
    Fold(#[from] ReplayError),
    /// Too many events are visible above the horizon.
    #[error(
        "{projector} {version} could not be verified: for {after:.1?} appends that stay open held up the log ({}); end them, or try again later",
        blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    HeldUp {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
        /// Who.
        blockers: Vec<Blocker>,
        /// How long it waited.
        after: Duration,
    },
    /// The tables were replayed from the beginning, or restored, meanwhile.
    #[error("the checkpoint of {projector} {version} went back meanwhile: verify it again")]
    WentBack {
        /// The projector.
        projector: ProjectorName,
        /// Its version.
        version: semver::Version,
    },
    /// The two versions never stood at one position.
    #[error(
        "{projector} {} is at position {} and {} at {}, with events in between, and that did not change in {after:.1?}: bring both to the end of the log, and compare them while nothing is appended",
        versions[0], positions[0], versions[1], positions[1]
    )]
    Apart {
        /// The projector.
        projector: ProjectorName,
        /// The two versions.
        versions: [semver::Version; 2],
        /// Where they stood at last.
        positions: [Position; 2],
        /// How long it waited.
        after: Duration,
    },
    /// Two versions differ in more than what was declared.
    #[error("{projector} {} and {} cannot be compared: {}", versions[0], versions[1], reasons.join("; "))]
    NotComparable {
        /// The projector.
        projector: ProjectorName,
        /// The two versions.
        versions: [semver::Version; 2],
        /// Everything that is neither the same nor declared.
        reasons: Vec<String>,
    },
    /// An expression that a column is mapped to cannot be run.
    #[error("the expression for {table}.{column} cannot be run over the first version's columns")]
    Expression {
        /// The table.
        table: String,
        /// The column of the second version.
        column: String,
        /// What the database says.
        #[source]
        source: StoreError,
    },
    /// The connection that kept the tables to compare with was lost.
    #[error("the connection was lost, and with it perhaps rows to compare with: verify it again")]
    ScratchLost {
        /// How.
        #[source]
        source: StoreError,
    },
    /// The database did not do as asked.
    #[error("the database refused")]
    Store(#[from] StoreError),
}

/// Begins a snapshot, for a few short statements.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// How long to wait between looks at something that is to change.
const AGAIN: Duration = Duration::from_millis(20);

/// Whoever wants to see progress.
pub(crate) type OnVerify<'a> = &'a (dyn Fn(VerifyProgress) + Send + Sync);

/// Tables that are to be verified.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The version whose tables they are.
    pub(crate) registered: &'a Arc<Registered>,
    /// The schema that they are in.
    pub(crate) schema: &'a str,
    /// How is known where their rows stand.
    pub(crate) standing: Standing,
}

/// How is known where the rows of tables stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// As it is written down: by their checkpoint, or appends keep them.
    Registered,
    /// They hold everything up to there, and nobody feeds them.
    At(Position),
    /// Appends keep them.
    ByAppends,
}

impl<'a> Subject<'a> {
    /// The tables of a version as they are registered.
    pub(crate) fn registered(registered: &'a Arc<Registered>) -> Self {
        Self { registered, schema: &registered.schema, standing: Standing::Registered }
    }
}

/// Compares the tables of several projectors, one after the other.
pub(crate) async fn each(
    core: &Core,
    wanted: &[Arc<Registered>],
    options: &VerifyOptions,
    on_progress: OnVerify<'_>,
) -> Result<Vec<Verified>, VerifyError> {
    let mut verified = Vec::with_capacity(wanted.len());
    for registered in wanted {
        verified.push(verify(core, Subject::registered(registered), options, on_progress).await?);
    }
    Ok(verified)
}

/// Compares tables with what this build makes of the log.
pub(crate) async fn verify(
    core: &Core,
    subject: Subject<'_>,
    options: &VerifyOptions,
    on_progress: OnVerify<'_>,
) -> Result<Verified, VerifyError> {
    let started = Instant::now();
    let store = &core.store;
    let live = Live { store, subject: &subject, patience: options.patience, client: store.single().await? };
    // Before anything is made: there may be nothing to compare.
    let first = live.snapshot(None).await?;
    let mut scratch = Scratch::make(core, subject.registered, &options.pace).await?;
    let shown = Shown::begin(core, Purpose::Verify, std::slice::from_ref(&scratch.registered), None).await;
    let report = |progress: VerifyProgress| {
        if let VerifyProgress::Folding(progress) = &progress {
            shown.note(progress);
        }
        on_progress(progress);
    };
    let comparing = Box::pin(compare(&live, &mut scratch, first, options, &report));
    let aborted = |projector, version, by| VerifyError::Aborted { projector, version, by };
    let compared = shown.until(comparing, aborted).await;
    shown.end().await;
    let whole = scratch.is_whole().await;
    let (events, skipped_events) = (scratch.events, scratch.skipped.len());
    let dropped = scratch.drop().await;
    let Compared { from, to, tables } = compared?;
    whole?;
    dropped?;
    let (projector, version) = subject.registered.id();
    let verified = Verified {
        projector,
        version,
        against: Against::Log,
        from,
        to,
        events,
        skipped_events,
        tables,
        elapsed: started.elapsed(),
    };
    info!(%verified, from = %from, to = %to, rows = verified.rows(), "verified");
    Ok(verified)
}

/// What was compared.
struct Compared {
    from: Position,
    to: Position,
    tables: Vec<TableVerdict>,
}

async fn compare(
    live: &Live<'_>,
    scratch: &mut Scratch<'_>,
    first: Snapshot,
    options: &VerifyOptions,
    on_progress: OnVerify<'_>,
) -> Result<Compared, VerifyError> {
    let Subject { registered, schema, .. } = *live.subject;
    let own = scratch.registered.schema.clone();
    let defined = shape::tables(live.store, &live.client, &own).await?;
    let there = shape::tables(live.store, &live.client, schema).await?;
    for (table, shape) in &defined {
        let differences = match there.get(table) {
            Some(found) => shape.differences(found),
            None => vec!["it is not there".to_owned()],
        };
        if !differences.is_empty() {
            let (projector, version) = registered.id();
            return Err(VerifyError::OtherTable { projector, version, table: table.clone(), differences });
        }
    }
    scratch.skipped = first.skipped;
    scratch.fold(first.position, &options.pace, on_progress).await?;
    let (mut from, mut to) = (None, first.position);
    let mut tables = Vec::with_capacity(defined.len());
    for (number, (table, shape)) in defined.iter().enumerate() {
        let mut paging = Paging::new(schema, &own, table, shape, number);
        paging.make(live).await?;
        while let Some(page) = paging.next(live, scratch, options, on_progress).await? {
            from.get_or_insert(page);
            to = page;
        }
        tables.push(paging.verdict);
    }
    Ok(Compared { from: from.unwrap_or(to), to, tables })
}

/// A table on its way from its first key to its last.
struct Paging {
    verdict: TableVerdict,
    /// The rows that are there.
    live: Comparison,
    /// The copy of a page of them, with those that should be there.
    copied: Comparison,
    /// The table that takes the copy.
    copy: String,
    /// The last key that was compared.
    after: Option<Vec<String>>,
    ended: bool,
}

impl Paging {
    fn new(schema: &str, own: &str, table: &str, shape: &Shape, number: usize) -> Self {
        // No projector's table is called so by chance.
        let copy = relation(own, &format!("changeover: a page of table {number}"));
        let comparison = |found: String, found_schema: &str| Comparison {
            table: table.to_owned(),
            found,
            expected: relation(own, table),
            key: shape.key_columns(&shape.key, found_schema, own),
            columns: shape.other_columns(),
        };
        let verdict = TableVerdict { table: table.to_owned(), ..TableVerdict::default() };
        let (live, copied) = (comparison(relation(schema, table), schema), comparison(copy.clone(), own));
        Self { verdict, live, copied, copy, after: None, ended: false }
    }

    /// Makes the table that takes the copies.
    async fn make(&self, live: &Live<'_>) -> Result<(), StoreError> {
        let (read, _) = self.live.read(&Page::default(), Side::Found, Some(0));
        let make = format!("CREATE UNLOGGED TABLE {} AS {read}", self.copy);
        Ok(live.client.batch_execute(&make).await?)
    }

    /// Compares the next page, and tells where its rows stood. None after the last one.
    async fn next(
        &mut self,
        live: &Live<'_>,
        scratch: &mut Scratch<'_>,
        options: &VerifyOptions,
        on_progress: OnVerify<'_>,
    ) -> Result<Option<Position>, VerifyError> {
        if self.ended {
            return Ok(None);
        }
        live.client.batch_execute(&format!("TRUNCATE {}", self.copy)).await.map_err(StoreError::from)?;
        let mut page = Page { after: self.after.take(), up_to: None };
        let keyed = !self.live.key.is_empty();
        let (read, params) = self.live.read(&page, Side::Found, keyed.then_some(options.page_rows));
        let copying = (format!("INSERT INTO {} {read}", self.copy), params);
        let Snapshot { position, beyond, skipped, .. } = live.snapshot(Some(copying)).await?;
        self.ended = true;
        if keyed {
            let last = self.last(live, options.page_rows).await?;
            self.ended = last.is_none();
            page.up_to.clone_from(&last);
            self.after = last;
        }
        scratch.skipped = skipped;
        scratch.advance(position, on_progress).await?;
        let telling = Telling { examples: options.examples, values: options.show_values };
        let (copied, verdict) = (&self.copied, &mut self.verdict);
        let comparing = async |tx: &deadpool_postgres::Transaction<'_>| {
            copied.compare(On::from(tx), &page, true, telling, verdict).await
        };
        scratch.with(&beyond, comparing).await?;
        let (projector, version) = live.subject.registered.id();
        let (table, rows) = (self.copied.table.clone(), self.verdict.rows);
        on_progress(VerifyProgress::Comparing { projector, version, table, rows, position });
        Ok(Some(position))
    }

    /// The last key of the copy, if it is full; else there are no rows after it.
    async fn last(&self, live: &Live<'_>, full: usize) -> Result<Option<Vec<String>>, StoreError> {
        let key = self.copied.key.iter().map(|key| key.column.found.as_str());
        let order = self.copied.key.iter().map(|key| match key.column.compared_as {
            // The copy holds text, and its order is that of the type.
            compare::As::Text => format!("{}::{} DESC", key.column.found, key.found_type),
            _ => format!("{} DESC", key.column.found),
        });
        let texts: Vec<String> = key.map(|key| format!("{key}::text")).collect();
        let sql = format!(
            "SELECT ARRAY[{}] AS key FROM {copy} WHERE (SELECT count(*) FROM {copy}) >= {full} ORDER BY {} LIMIT 1",
            texts.join(", "),
            order.collect::<Vec<_>>().join(", "),
            copy = self.copy,
        );
        let rows = compare::run(On::from(&live.client), sql, &[]).await?;
        Ok(rows.first().map(|row| row.get("key")))
    }
}
