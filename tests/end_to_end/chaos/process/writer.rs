//! One writer: appends in every way there is, and writes down what it was told.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use changeover::deadpool_postgres::{Pool, Transaction};
use changeover::tokio_postgres::IsolationLevel;
use changeover::{AppendError, Appended, Changeover, Expected, Position, Revision, StreamName};
use tokio::time::{sleep, timeout};

use crate::story::{Chance, Line, Mark, ShopEvent};

/// Streams and customers are few, so that they are fought for.
const ORDERS: u64 = 40;
const CUSTOMERS: u64 = 16;

/// What the process writes down. A line is one write, so that a killed process leaves whole lines.
pub(crate) struct Journal {
    file: File,
    writer: String,
    number: AtomicU64,
}

impl Journal {
    pub(crate) fn create(path: &str) -> anyhow::Result<Self> {
        let file = File::options().append(true).create_new(true).open(path)?;
        let writer =
            std::path::Path::new(path).file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        Ok(Self { file, writer, number: AtomicU64::new(0) })
    }

    fn number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, line: &Line) {
        let mut text = serde_json::to_string(line).expect("a line");
        text.push('\n');
        (&self.file).write_all(text.as_bytes()).expect("the journal can be written");
    }

    fn not_appended(&self, numbers: &[u64], why: &str) {
        for number in numbers {
            self.note(&Line::NotAppended { number: *number, why: why.to_owned() });
        }
    }

    fn acknowledged(&self, number: u64, appended: &Appended) {
        let positions = appended.positions.iter().map(|position| position.get()).collect();
        let at_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis());
        self.note(&Line::Acknowledged { number, positions, revision: appended.revision.get(), at_ms });
    }
}

/// Reads the whole log from its start, again and again up to the horizon.
pub(crate) async fn read(changeover: Changeover, journal: Arc<Journal>) {
    let mut reader = changeover.read(Position::START, 500);
    loop {
        match reader.next().await {
            Ok(events) if !events.is_empty() => {
                let positions = events.iter().map(|event| event.recorded.position.get()).collect();
                journal.note(&Line::Read { positions });
            }
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Writes until it is killed.
pub(crate) async fn write(changeover: Changeover, release: u64, journal: Arc<Journal>, chance: Chance) {
    let mut writer = Writer { changeover, release, journal, chance };
    loop {
        let done = match writer.chance.below(10) {
            0..3 => writer.alone().await,
            3 => writer.given_up().await,
            _ => writer.transaction().await,
        };
        let pause = if done { 2 + writer.chance.below(30) } else { 30 + writer.chance.below(60) };
        sleep(Duration::from_millis(pause)).await;
    }
}

struct Writer {
    changeover: Changeover,
    release: u64,
    journal: Arc<Journal>,
    chance: Chance,
}

/// One append to be.
struct Intent {
    number: u64,
    stream: StreamName,
    expected: Expected,
    events: Vec<ShopEvent>,
    mark: Mark,
}

/// Whether it is certain that nothing was committed.
fn nothing_happened(error: &changeover::tokio_postgres::Error) -> bool {
    // What the server says while it goes down may be said of a commit that took place.
    error.as_db_error().is_some_and(|db| !db.code().code().starts_with("57"))
}

impl Writer {
    fn customer(&mut self) -> i64 {
        i64::try_from(self.chance.below(CUSTOMERS)).expect("a small number")
    }

    fn event(&mut self) -> ShopEvent {
        let cents = i64::try_from(self.chance.below(1_000)).expect("a small number");
        let customer = self.customer();
        match self.chance.below(20) {
            0..6 => ShopEvent::Placed { customer, cents },
            6..12 => ShopEvent::ItemAdded { customer, cents },
            12..15 => ShopEvent::Moved { from: customer, to: self.customer() },
            15..18 => ShopEvent::Cancelled { customer },
            _ => ShopEvent::Closed { customer },
        }
    }

    async fn intend(&mut self, transaction: u64) -> Intent {
        let stream: StreamName = format!("order-{}", self.chance.below(ORDERS)).parse().expect("a name");
        let expected = match self.chance.below(8) {
            0 => Expected::NoStream,
            1..4 => Expected::Exactly(self.revision(&stream).await),
            _ => Expected::Any,
        };
        let events: Vec<ShopEvent> = (0..=self.chance.below(3)).map(|_| self.event()).collect();
        let number = self.journal.number();
        self.journal.note(&Line::Intends {
            number,
            transaction,
            stream: stream.to_string(),
            events: events.len(),
        });
        let mark = Mark { release: self.release, writer: self.journal.writer.clone(), number };
        Intent { number, stream, expected, events, mark }
    }

    /// The stream's newest revision; likely the one before the next append, as is usual.
    async fn revision(&self, stream: &StreamName) -> Revision {
        let read = self.changeover.read_stream::<ShopEvent>(stream, Revision::default(), 100_000).await;
        read.ok().and_then(|events| events.last().map(|last| last.revision)).unwrap_or_default()
    }

    /// An append of its own.
    async fn alone(&mut self) -> bool {
        let transaction = self.journal.number();
        let Intent { number, stream, expected, events, mark } = self.intend(transaction).await;
        let appended = self.changeover.append_with(&stream, expected, &events, &mark).await;
        self.told(number, appended)
    }

    /// An append that nobody waits for any more.
    async fn given_up(&mut self) -> bool {
        let limit = Duration::from_micros(self.chance.below(8_000));
        let transaction = self.journal.number();
        let Intent { number, stream, expected, events, mark } = self.intend(transaction).await;
        match timeout(limit, self.changeover.append_with(&stream, expected, &events, &mark)).await {
            Ok(appended) => self.told(number, appended),
            Err(_) => true,
        }
    }

    fn told(&self, number: u64, appended: Result<Appended, AppendError>) -> bool {
        match appended {
            Ok(appended) => {
                self.journal.acknowledged(number, &appended);
                true
            }
            Err(error) => {
                let certain = match &error {
                    AppendError::Store(changeover::StoreError::Database(error)) => nothing_happened(error),
                    AppendError::Store(_) | AppendError::Unknown { .. } => false,
                    _ => true,
                };
                if certain {
                    self.journal.not_appended(&[number], &format!("{:#}", anyhow::Error::from(error)));
                }
                false
            }
        }
    }

    /// Several appends in one transaction, some of them behind savepoints, in any isolation level.
    async fn transaction(&mut self) -> bool {
        let pool: Pool = self.changeover.pool().clone();
        let Ok(mut client) = pool.get().await else { return false };
        let isolation = match self.chance.below(4) {
            0 => IsolationLevel::RepeatableRead,
            1 => IsolationLevel::Serializable,
            _ => IsolationLevel::ReadCommitted,
        };
        let Ok(mut tx) = client.build_transaction().isolation_level(isolation).start().await else {
            return false;
        };
        if self.chance.percent(50) {
            // Takes its snapshot, long before it appends.
            drop(tx.query("SELECT 1", &[]).await);
            self.dawdle().await;
        }
        let transaction = self.journal.number();
        let mut open: Vec<(u64, Appended)> = Vec::new();
        for _ in 0..=self.chance.below(3) {
            let step = if self.chance.percent(25) {
                self.behind_savepoint(&mut tx, transaction, &mut open).await
            } else {
                self.append_in(&tx, transaction, &mut open).await
            };
            if !step {
                let numbers: Vec<u64> = open.iter().map(|(number, _)| *number).collect();
                self.journal.not_appended(&numbers, "rolled back after an error");
                drop(tx.rollback().await);
                return false;
            }
            self.dawdle().await;
        }
        let numbers: Vec<u64> = open.iter().map(|(number, _)| *number).collect();
        if self.chance.percent(15) {
            self.journal.not_appended(&numbers, "rolled back");
            drop(tx.rollback().await);
            return true;
        }
        match tx.commit().await {
            Ok(()) => {
                for (number, appended) in &open {
                    self.journal.acknowledged(*number, appended);
                }
                true
            }
            Err(error) => {
                if nothing_happened(&error) {
                    self.journal.not_appended(&numbers, "the commit failed");
                }
                false
            }
        }
    }

    /// Appends; returns whether the transaction may go on.
    async fn append_in(
        &mut self,
        tx: &Transaction<'_>,
        transaction: u64,
        open: &mut Vec<(u64, Appended)>,
    ) -> bool {
        let Intent { number, stream, expected, events, mark } = self.intend(transaction).await;
        match self.changeover.append_in_with(tx, &stream, expected, &events, &mark).await {
            Ok(appended) => {
                open.push((number, appended));
                true
            }
            Err(error) => {
                // After these two the transaction is as it was before: what it appended until now may be committed.
                let intact = matches!(error, AppendError::Refused(_) | AppendError::Conflict { .. });
                self.journal.not_appended(&[number], &format!("{:#}", anyhow::Error::from(error)));
                intact && self.chance.percent(60)
            }
        }
    }

    async fn behind_savepoint(
        &mut self,
        tx: &mut Transaction<'_>,
        transaction: u64,
        open: &mut Vec<(u64, Appended)>,
    ) -> bool {
        let Ok(savepoint) = tx.savepoint("chaos").await else { return false };
        let mut inner = Vec::new();
        let appended = self.append_in(&savepoint, transaction, &mut inner).await;
        self.dawdle().await;
        let numbers: Vec<u64> = inner.iter().map(|(number, _)| *number).collect();
        if !appended || self.chance.percent(60) {
            self.journal.not_appended(&numbers, "rolled back to the savepoint");
            // Whatever failed behind the savepoint is undone with it.
            return savepoint.rollback().await.is_ok();
        }
        open.append(&mut inner);
        savepoint.commit().await.is_ok()
    }

    async fn dawdle(&mut self) {
        if self.chance.percent(40) {
            sleep(Duration::from_millis(self.chance.below(12))).await;
        }
    }
}
