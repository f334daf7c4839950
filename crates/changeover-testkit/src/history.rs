//! The history checker: what many writers believe they did, held against what the log and the tables say.
//!
//! It knows events only by where they lie and who wrote them, and rows only as text; which events a row is made
//! of is folded by the test, on its own. It takes plain values and says what is wrong with them, so it can
//! be tested with histories that are known to be bad.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Its place in the log.
    pub position: i64,
    /// The stream that it belongs to.
    pub stream: String,
    /// Its place in the stream.
    pub revision: i64,
    /// The append that wrote it.
    pub append: AppendId,
    /// The configuration that its writer ran.
    pub configuration: String,
}

/// One call of append, by its writer's own count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppendId {
    /// The writer, unique in the history.
    pub writer: String,
    /// Its count.
    pub number: u64,
}

/// What a writer knows of one append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Which append.
    pub append: AppendId,
    /// The transaction that it was part of, by the writer's own count.
    pub transaction: u64,
    /// The stream.
    pub stream: String,
    /// How many events it was to append.
    pub events: usize,
    /// What became of it.
    pub fate: Fate,
}

/// What became of an append, as far as its writer knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It was acknowledged: the events are in the log, there and nowhere else.
    Acknowledged {
        /// The positions that the writer was told.
        positions: Vec<i64>,
        /// The revision of the stream after it.
        revision: i64,
    },
    /// It was refused, or rolled back: nothing of it is in the log.
    NotAppended,
    /// The writer was killed, or lost its connection: all of its transaction is in the log, or nothing.
    Unknown,
}

/// A configuration that took over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// The horizon of the activation: the last position under the configuration before. 0 for the first one.
    pub horizon: i64,
    /// The configuration that counts from there on.
    pub configuration: String,
    /// When all that was begun under the one before had ended, in microseconds by the database's clock.
    pub at: i64,
}

/// An event on its way into rows that several configurations feed, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The event.
    pub position: i64,
    /// The configuration that whoever projected it ran.
    pub configuration: String,
    /// When it was projected, in microseconds by the database's clock.
    pub at: i64,
}

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The whole log, in any order.
    pub log: Vec<LoggedEvent>,
    /// All that was tried.
    pub writes: Vec<Write>,
    /// Every takeover, in the order in which they took place.
    pub takeovers: Vec<Takeover>,
    /// For each reader of the log that began at its start: the positions that it came by, in its order.
    pub readings: Vec<Vec<i64>>,
    /// What was projected after its commit, by whom.
    pub projections: Vec<Projection>,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wrong {
    /// An acknowledged append whose events are not in the log where the writer was told.
    Lost {
        /// Which.
        append: AppendId,
        /// Where they were said to be.
        told: Vec<i64>,
        /// Where they are.
        found: Vec<i64>,
    },
    /// An append that was refused or rolled back and is in the log all the same.
    NotUndone {
        /// Which.
        append: AppendId,
        /// Where it is.
        found: Vec<i64>,
    },
    /// An append, or a transaction, of which only a part is in the log.
    Torn {
        /// Which append, or the first of its transaction.
        append: AppendId,
    },
    /// An event that nobody wrote.
    FromNowhere {
        /// Where it is.
        position: i64,
    },
    /// An event written under a configuration that did not count at its position.
    Stale {
        /// Where it is.
        position: i64,
        /// What its writer ran.
        configuration: String,
        /// What counted there.
        active: String,
    },
    /// An event projected under a configuration that did not count then, or that lies beyond its horizon.
    Projected {
        /// Where it is.
        position: i64,
        /// What whoever projected it ran.
        configuration: String,
        /// What was to project it.
        active: String,
    },
    /// Takeovers whose horizons go backwards.
    OutOfOrder {
        /// The horizon that is below the one before it.
        horizon: i64,
    },
    /// A stream whose revisions are not 1, 2, 3, .. in the order of positions, or not those that were acknowledged.
    Revisions {
        /// Which stream.
        stream: String,
        /// Where it goes wrong.
        position: i64,
    },
    /// A reader that skipped an event or saw one twice or in another order.
    Misread {
        /// The reader, by its place in the list.
        reader: usize,
        /// Where the log and the reader part.
        position: i64,
    },
    /// A row that is not what the events make of it.
    Row {
        /// The table.
        table: String,
        /// The row's key.
        key: String,
        /// What the events make of it; none if there is to be no such row.
        expected: Option<String>,
        /// What the table holds.
        found: Option<String>,
    },
}

impl fmt::Display for AppendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "append {} of {}", self.number, self.writer)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { append, told, found } => {
                write!(f, "{append} was acknowledged at {told:?} and is in the log at {found:?}")
            }
            Self::NotUndone { append, found } => {
                write!(f, "{append} was refused or rolled back and is in the log at {found:?}")
            }
            Self::Torn { append } => write!(f, "only a part of the transaction of {append} is in the log"),
            Self::FromNowhere { position } => write!(f, "nobody wrote the event at {position}"),
            Self::Stale { position, configuration, active } => write!(
                f,
                "the event at {position} was appended under {configuration}, where {active} was active"
            ),
            Self::Projected { position, configuration, active } => write!(
                f,
                "the event at {position} was projected under {configuration}, where {active} was to do that"
            ),
            Self::OutOfOrder { horizon } => write!(f, "a takeover at horizon {horizon} follows a later one"),
            Self::Revisions { stream, position } => {
                write!(f, "stream {stream}: the revision at position {position} is not the next one")
            }
            Self::Misread { reader, position } => {
                write!(f, "reader {reader} and the log part at position {position}")
            }
            Self::Row { table, key, expected, found } => {
                let show = |row: &Option<String>| row.clone().unwrap_or_else(|| "no row".to_owned());
                write!(f, "{table}, {key}: expected {}, found {}", show(expected), show(found))
            }
        }
    }
}

impl History {
    /// All that is wrong; nothing if the history is sound.
    ///
    /// ```
    /// use changeover_testkit::history::{AppendId, Fate, History, Write, Wrong};
    ///
    /// let append = AppendId { writer: "w".into(), number: 1 };
    /// let fate = Fate::Acknowledged { positions: vec![7], revision: 1 };
    /// let write = Write { append, transaction: 1, stream: "s".into(), events: 1, fate };
    /// let history = History { writes: vec![write], ..History::default() };
    /// assert!(matches!(history.wrongs()[..], [Wrong::Lost { .. }]));
    /// ```
    pub fn wrongs(&self) -> Vec<Wrong> {
        let mut log: Vec<&LoggedEvent> = self.log.iter().collect();
        log.sort_by_key(|event| event.position);
        let mut wrongs = Vec::new();
        self.check_writes(&log, &mut wrongs);
        check_revisions(&log, &mut wrongs);
        self.check_takeovers(&log, &mut wrongs);
        self.check_readings(&log, &mut wrongs);
        self.check_projections(&mut wrongs);
        wrongs
    }

    /// The horizon, and so the last position at which a configuration counted: none while it does.
    fn check_takeovers(&self, log: &[&LoggedEvent], wrongs: &mut Vec<Wrong>) {
        for pair in self.takeovers.windows(2) {
            if pair[1].horizon < pair[0].horizon {
                wrongs.push(Wrong::OutOfOrder { horizon: pair[1].horizon });
            }
        }
        for event in log {
            let active = self.takeovers.iter().rev().find(|takeover| takeover.horizon < event.position);
            let active = active.map_or("nothing", |takeover| &takeover.configuration);
            if active != event.configuration {
                wrongs.push(Wrong::Stale {
                    position: event.position,
                    configuration: event.configuration.clone(),
                    active: active.to_owned(),
                });
            }
        }
    }

    /// Each under the configuration that counted at that time, and none that was appended after that had ended.
    fn check_projections(&self, wrongs: &mut Vec<Wrong>) {
        for Projection { position, configuration, at } in &self.projections {
            let begun = self.takeovers.partition_point(|takeover| takeover.at <= *at);
            let own = begun.checked_sub(1).map_or("nothing", |last| &self.takeovers[last].configuration);
            // What is appended after the next one took over is its own, whatever the time says.
            let beyond =
                self.takeovers.get(begun).filter(|next| own == configuration && next.horizon < *position);
            let active = beyond.map_or(own, |next| &next.configuration);
            if active != configuration {
                wrongs.push(Wrong::Projected {
                    position: *position,
                    configuration: configuration.clone(),
                    active: active.to_owned(),
                });
            }
        }
    }

    fn check_writes(&self, log: &[&LoggedEvent], wrongs: &mut Vec<Wrong>) {
        let mut found: HashMap<&AppendId, Vec<&LoggedEvent>> = HashMap::new();
        for event in log {
            found.entry(&event.append).or_default().push(event);
        }
        let mut unknown: BTreeMap<(&str, u64), Vec<(&AppendId, bool)>> = BTreeMap::new();
        for write in &self.writes {
            let events = found.remove(&write.append).unwrap_or_default();
            let positions: Vec<i64> = events.iter().map(|event| event.position).collect();
            let append = write.append.clone();
            if events.iter().any(|event| event.stream != write.stream) {
                wrongs.push(Wrong::FromNowhere { position: positions[0] });
            }
            match &write.fate {
                Fate::Acknowledged { positions: told, .. } if *told != positions => {
                    wrongs.push(Wrong::Lost { append, told: told.clone(), found: positions });
                }
                Fate::Acknowledged { revision, .. } => {
                    if let Some(last) = events.last().filter(|last| last.revision != *revision) {
                        wrongs
                            .push(Wrong::Revisions { stream: write.stream.clone(), position: last.position });
                    }
                }
                Fate::NotAppended if !positions.is_empty() => {
                    wrongs.push(Wrong::NotUndone { append, found: positions });
                }
                Fate::NotAppended => {}
                Fate::Unknown if positions.is_empty() || positions.len() == write.events => {
                    if write.events > 0 {
                        let transaction = (write.append.writer.as_str(), write.transaction);
                        unknown.entry(transaction).or_default().push((&write.append, !positions.is_empty()));
                    }
                }
                Fate::Unknown => wrongs.push(Wrong::Torn { append }),
            }
        }
        for appends in unknown.values() {
            if appends.iter().any(|(_, there)| *there != appends[0].1) {
                wrongs.push(Wrong::Torn { append: appends[0].0.clone() });
            }
        }
        let nobodys: BTreeSet<i64> = found.values().flatten().map(|event| event.position).collect();
        wrongs.extend(nobodys.into_iter().map(|position| Wrong::FromNowhere { position }));
    }

    fn check_readings(&self, log: &[&LoggedEvent], wrongs: &mut Vec<Wrong>) {
        for (reader, read) in self.readings.iter().enumerate() {
            let parted = read.iter().zip(log).find(|(read, event)| **read != event.position);
            let position = match parted {
                Some((read, event)) => Some(event.position.min(*read)),
                None => read.get(log.len()).copied(),
            };
            wrongs.extend(position.map(|position| Wrong::Misread { reader, position }));
        }
    }
}

fn check_revisions(log: &[&LoggedEvent], wrongs: &mut Vec<Wrong>) {
    let mut newest: HashMap<&str, i64> = HashMap::new();
    for event in log {
        let newest = newest.entry(&event.stream).or_default();
        *newest += 1;
        if event.revision != *newest {
            wrongs.push(Wrong::Revisions { stream: event.stream.clone(), position: event.position });
            *newest = event.revision;
        }
    }
}

/// Where the rows of a table differ from what they ought to be. Both by key, as text.
///
/// ```
/// use changeover_testkit::history::rows_wrong;
///
/// let expected = [("a".to_owned(), "1".to_owned())].into();
/// assert_eq!(rows_wrong("t", &expected, &expected.clone()), []);
/// assert_eq!(rows_wrong("t", &expected, &Default::default()).len(), 1);
/// ```
pub fn rows_wrong(
    table: &str,
    expected: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> Vec<Wrong> {
    let keys: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    keys.into_iter()
        .filter(|key| expected.get(*key) != found.get(*key))
        .map(|key| Wrong::Row {
            table: table.to_owned(),
            key: key.clone(),
            expected: expected.get(key).cloned(),
            found: found.get(key).cloned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> AppendId {
        AppendId { writer: "w".to_owned(), number }
    }

    fn event(position: i64, revision: i64, number: u64, configuration: &str) -> LoggedEvent {
        LoggedEvent {
            position,
            stream: "s".to_owned(),
            revision,
            append: id(number),
            configuration: configuration.to_owned(),
        }
    }

    fn write(number: u64, transaction: u64, events: usize, fate: Fate) -> Write {
        Write { append: id(number), transaction, stream: "s".to_owned(), events, fate }
    }

    fn acknowledged(positions: &[i64], revision: i64) -> Fate {
        Fate::Acknowledged { positions: positions.to_vec(), revision }
    }

    fn projection(position: i64, configuration: &str, at: i64) -> Projection {
        Projection { position, configuration: configuration.to_owned(), at }
    }

    /// Two configurations, four appends of which one was rolled back and one has an unknown fate, two readers.
    fn sound() -> History {
        History {
            log: vec![
                event(1, 1, 1, "one"),
                event(2, 2, 1, "one"),
                event(5, 3, 3, "two"),
                event(6, 4, 4, "two"),
            ],
            writes: vec![
                write(1, 1, 2, acknowledged(&[1, 2], 2)),
                write(2, 2, 1, Fate::NotAppended),
                write(3, 3, 1, Fate::Unknown),
                write(4, 3, 1, Fate::Unknown),
            ],
            takeovers: vec![
                Takeover { horizon: 0, configuration: "one".to_owned(), at: 0 },
                Takeover { horizon: 3, configuration: "two".to_owned(), at: 30 },
            ],
            readings: vec![vec![1, 2, 5, 6], vec![1, 2]],
            // The second event was left to the configuration that took over.
            projections: vec![projection(1, "one", 29), projection(2, "two", 30), projection(5, "two", 31)],
        }
    }

    #[test]
    fn a_sound_history_has_nothing_wrong() {
        assert_eq!(sound().wrongs(), []);
    }

    #[test]
    fn each_kind_of_wrong_is_found_and_nothing_else() {
        fn check(spoil: impl FnOnce(&mut History), expected: &[Wrong]) {
            let mut history = sound();
            spoil(&mut history);
            assert_eq!(history.wrongs(), expected);
        }
        let lost = |found: &[i64]| Wrong::Lost { append: id(1), told: vec![1, 2], found: found.to_vec() };
        let misread = |reader, position| Wrong::Misread { reader, position };
        let stale = |position, configuration: &str, active: &str| Wrong::Stale {
            position,
            configuration: configuration.to_owned(),
            active: active.to_owned(),
        };
        let projected = |position, configuration: &str, active: &str| Wrong::Projected {
            position,
            configuration: configuration.to_owned(),
            active: active.to_owned(),
        };
        let revisions = |position| Wrong::Revisions { stream: "s".to_owned(), position };

        // An acknowledged event is missing, one is elsewhere, one is there twice.
        check(|h| drop(h.log.remove(1)), &[lost(&[1]), revisions(5), misread(0, 2), misread(1, 2)]);
        check(|h| h.log[1].position = 3, &[lost(&[1, 3]), misread(0, 2), misread(1, 2)]);
        check(
            |h| {
                h.log.push(event(7, 5, 1, "two"));
                h.readings.clear();
            },
            &[lost(&[1, 2, 7])],
        );
        check(|h| h.writes[0].fate = acknowledged(&[1, 2], 9), &[revisions(2)]);
        // What was rolled back is there.
        check(|h| h.log.push(event(7, 5, 2, "two")), &[Wrong::NotUndone { append: id(2), found: vec![7] }]);
        // Half of an append, and half of a transaction.
        check(|h| h.writes[2].events = 2, &[Wrong::Torn { append: id(3) }]);
        check(
            |h| {
                h.log.pop();
                h.readings.clear();
            },
            &[Wrong::Torn { append: id(3) }],
        );
        // Nobody tried to.
        check(|h| drop(h.writes.remove(3)), &[Wrong::FromNowhere { position: 6 }]);
        check(|h| h.writes[0].stream = "t".to_owned(), &[Wrong::FromNowhere { position: 1 }]);
        // Above the horizon under the old configuration; below it under the new one; before the first.
        check(|h| h.log[2].configuration = "one".to_owned(), &[stale(5, "one", "two")]);
        check(|h| h.log[1].configuration = "two".to_owned(), &[stale(2, "two", "one")]);
        check(|h| h.takeovers[0].horizon = 1, &[stale(1, "one", "nothing")]);
        check(
            |h| h.takeovers[0].horizon = 4,
            &[Wrong::OutOfOrder { horizon: 3 }, stale(1, "one", "nothing"), stale(2, "one", "nothing")],
        );
        // A revision twice, and one left out.
        check(|h| h.log[2].revision = 2, &[revisions(5), revisions(6)]);
        check(|h| h.log[3].revision = 5, &[revisions(6)]);
        // A reader that skips, one that sees an event twice, one that sees what is not there.
        check(|h| h.readings[0].retain(|read| *read != 5), &[misread(0, 5)]);
        check(|h| h.readings[0].insert(1, 1), &[misread(0, 1)]);
        check(|h| h.readings[0].push(9), &[misread(0, 9)]);
        // The old configuration goes on after the new one took over, the new one begins before that, one before there was any.
        check(|h| h.projections[0].at = 30, &[projected(1, "one", "two")]);
        check(|h| h.projections[1].at = 29, &[projected(2, "two", "one")]);
        check(|h| h.projections[2].at = 29, &[projected(5, "two", "one")]);
        check(|h| h.projections[0].at = -1, &[projected(1, "one", "nothing")]);
        // In its own time, and beyond its horizon all the same.
        check(|h| h.projections.push(projection(6, "one", 29)), &[projected(6, "one", "two")]);
    }

    #[test]
    fn rows_are_compared_in_both_directions() {
        let table = |rows: &[(&str, &str)]| -> BTreeMap<String, String> {
            rows.iter().map(|(key, row)| ((*key).to_owned(), (*row).to_owned())).collect()
        };
        let wrong = |key: &str, expected: Option<&str>, found: Option<&str>| Wrong::Row {
            table: "t".to_owned(),
            key: key.to_owned(),
            expected: expected.map(str::to_owned),
            found: found.map(str::to_owned),
        };
        let expected = table(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(rows_wrong("t", &expected, &expected), []);
        assert_eq!(
            rows_wrong("t", &expected, &table(&[("a", "1"), ("b", "9"), ("d", "4")])),
            [wrong("b", Some("2"), Some("9")), wrong("c", Some("3"), None), wrong("d", None, Some("4"))]
        );
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let lost = Wrong::Lost { append: id(4), told: vec![7], found: vec![] };
        assert_eq!(lost.to_string(), "append 4 of w was acknowledged at [7] and is in the log at []");
        let row = Wrong::Row { table: "t".into(), key: "k".into(), expected: None, found: Some("1".into()) };
        assert_eq!(row.to_string(), "t, k: expected no row, found 1");
    }
}
