//! Projectors after a description: which rows an event touches, and what becomes of them. These are folds; `told` has others.
//!
//! Folds have no state, and other processes fold as well, so the description travels in every event. What is said here of one event
//! and one row, the projectors and the model share; how the events of a log come together, they do not.

use std::collections::BTreeMap;

use changeover::semver::Version;
use changeover::{Configuration, Delivery, Fold, FoldProjector, Recorded, Row, StreamName};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::told::Told;

/// How many tables a description describes; a projector may have fewer.
pub(super) const TABLES: usize = 3;

/// Which rows of a table an event touches.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Keys {
    /// That of its stream.
    Stream,
    /// The one that all touch.
    One,
    /// That of its subject, whatever the stream.
    Subject,
    /// Those of both of its subjects, the first of them named twice.
    Both,
    /// So many.
    Several(u8),
    /// One or none.
    Sometimes,
}

/// What an event does to a row that it touches.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Effect {
    /// Makes it, or changes it.
    Put,
    /// Changes it if it is there.
    Change,
    /// Deletes it.
    Delete,
    /// Deletes it or makes it, as its contents have it.
    Flip,
    /// Leaves it as it is.
    Leave,
}

/// How one table comes about.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Rule {
    pub(super) keys: Keys,
    /// For each kind of event.
    pub(super) effects: [Effect; 4],
    /// How long a row's text is.
    pub(super) text: u16,
}

/// What every event holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct What {
    pub(super) subject: i64,
    pub(super) other: i64,
    pub(super) rules: [Rule; TABLES],
}

/// What happens. There are events of other types in the log as well.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Happened {
    Alpha(What),
    Beta(What),
    Gamma(What),
    Delta(What),
}

impl Happened {
    pub(super) fn of(kind: u64, what: What) -> Self {
        match kind % 4 {
            0 => Self::Alpha(what),
            1 => Self::Beta(what),
            2 => Self::Gamma(what),
            _ => Self::Delta(what),
        }
    }

    fn parts(&self) -> (usize, &What) {
        match self {
            Self::Alpha(what) => (0, what),
            Self::Beta(what) => (1, what),
            Self::Gamma(what) => (2, what),
            Self::Delta(what) => (3, what),
        }
    }

    pub(super) fn rule(&self, table: usize) -> Rule {
        self.parts().1.rules[table]
    }

    /// The numbers of the rows of a table that it touches.
    pub(super) fn keys(&self, table: usize, stream: &str) -> Vec<i64> {
        let (_, What { subject, other, rules }) = self.parts();
        match rules[table].keys {
            Keys::Stream => vec![stream.bytes().fold(7, |sum, byte| sum * 31 % 65_537 + i64::from(byte))],
            Keys::One => vec![0],
            Keys::Subject => vec![*subject],
            Keys::Both => vec![*subject, *other, *subject],
            Keys::Several(keys) => (0..i64::from(keys)).map(|key| subject + key * other).collect(),
            Keys::Sometimes => (subject % 3 > 0).then_some(*other).into_iter().collect(),
        }
    }

    /// What becomes of a row.
    pub(super) fn next(&self, table: usize, before: Option<Cells>, at: &Place<'_>) -> Option<Cells> {
        let (kind, What { rules, .. }) = self.parts();
        let Rule { effects, text, .. } = rules[table];
        let before = match effects[kind] {
            Effect::Leave => return before,
            Effect::Delete => return None,
            Effect::Change => before?,
            Effect::Put => before.unwrap_or_default(),
            Effect::Flip => match before {
                Some(cells) if cells.digest % 2 == 1 => return None,
                before => before.unwrap_or_default(),
            },
        };
        // Depends on every event that made the row, and on their order.
        let seen = at.position * 7 + at.revision * 3 + i64::try_from(kind + at.stream.len()).unwrap();
        let digest = (before.digest * 31 + seen) % 1_000_000_007;
        let text = (digest % 3 > 0)
            .then(|| digest.to_string().chars().cycle().take(usize::from(text)).collect::<String>());
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let halves = before.halves + (digest % 8) as f64 / 2.0;
        Some(Cells { events: before.events + 1, digest, halves, text })
    }
}

/// Where an event stands.
pub(super) struct Place<'e> {
    position: i64,
    revision: i64,
    stream: &'e str,
}

impl<'e> Place<'e> {
    pub(super) fn of(event: &'e Recorded<Happened>) -> Self {
        let stream = event.stream.as_str();
        Self { position: event.position.get(), revision: event.revision.get(), stream }
    }
}

/// A row without its key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cells {
    pub(super) events: i64,
    pub(super) digest: i64,
    pub(super) halves: f64,
    pub(super) text: Option<String>,
}

/// Tables with keys of different types, all made of a number.
macro_rules! tables {
    ($($row:ident $name:literal $at:literal [$($key:ident: $ty:ty),*] $number:ident => $made:expr, $of:expr;)*) => {
        $(
            #[derive(Row, Clone)]
            #[row(table = $name)]
            struct $row {
                $(#[row(key)] $key: $ty,)*
                events: i64,
                #[row(index)]
                digest: i64,
                halves: f64,
                text: Option<String>,
            }

            impl Fold for $row {
                type Event = Happened;

                fn keys(event: &Happened, stream: &StreamName) -> impl IntoIterator<Item = <Self as Row>::Key> {
                    event.keys($at, stream.as_str()).into_iter().map(|$number| $made)
                }

                #[allow(unused_parens)]
                fn fold(row: Option<Self>, key: &<Self as Row>::Key, event: &Recorded<Happened>) -> Option<Self> {
                    let before = row.map(|row| {
                        Cells { events: row.events, digest: row.digest, halves: row.halves, text: row.text }
                    });
                    let Cells { events, digest, halves, text } =
                        event.data.next($at, before, &Place::of(event))?;
                    let ($($key),*) = key.clone();
                    Some(Self { $($key,)* events, digest, halves, text })
                }
            }
        )*

        /// Name, key and how the model writes that.
        type Described = (&'static str, &'static str, fn(i64) -> String);
        const DESCRIBED: [Described; TABLES] = [$(($name, $of, |$number| tables!(@text $($key)* = $made))),*];
    };
    (@text $one:ident = $made:expr) => { $made.to_string() };
    (@text $one:ident $other:ident = $made:expr) => {{
        let ($one, $other) = $made;
        format!("{}|{}", $one, $other)
    }};
}

tables! {
    Number "numbers" 0 [id: i64] number => number, "id::text";
    Pair "pairs" 1 [part: String, id: i32] number
        => (format!("part {}", number % 5), i32::try_from(number).unwrap()), "concat_ws('|', part, id)";
    Word "words" 2 [id: String] number => format!("it's “{number}”"), "id";
}

macro_rules! projectors {
    ($($name:ident [$($table:ident),*];)*) => {$(
        struct $name<const MAJOR: u64, const INLINE: bool>;

        impl<const MAJOR: u64, const INLINE: bool> FoldProjector for $name<MAJOR, INLINE> {
            const NAME: &'static str = if INLINE { "described_inline" } else { "described" };
            const VERSION: Version = Version::new(MAJOR, 0, 0);
            const DELIVERY: Delivery = if INLINE { Delivery::Inline } else { Delivery::Background };
            type Event = Happened;
            type Tables = ($($table,)*);
        }
    )*};
}

projectors! {
    OneTable [Number];
    TwoTables [Number, Pair];
    ThreeTables [Number, Pair, Word];
}

/// Whether the statements of a major version declare how they may be split.
const fn is_split(major: u64) -> bool {
    major.is_multiple_of(2)
}

/// The projectors `described`, with so many tables, and `told`, in a major version.
pub(crate) fn described(tables: usize, major: u64) -> Configuration {
    macro_rules! majors {
        ($($major:literal)*) => {
            match (tables, major) {
                $(
                    (1, $major) => majors!(@of $major OneTable),
                    (2, $major) => majors!(@of $major TwoTables),
                    (3, $major) => majors!(@of $major ThreeTables),
                )*
                _ => panic!("no {tables} tables in version {major}"),
            }
        };
        (@of $major:literal $tables:ident) => {
            Configuration::new()
                .fold($tables::<$major, false>)
                .and_then(|c| c.sql(Told::<$major, { is_split($major) }, false>))
        };
    }
    majors!(1 2 3 4 5 6).unwrap()
}

/// The first version of both, and beside them both of them as appends feed them.
pub(super) fn inline_beside(tables: usize) -> Configuration {
    let beside = described(tables, 1);
    let beside = match tables {
        1 => beside.fold(OneTable::<1, true>),
        2 => beside.fold(TwoTables::<1, true>),
        _ => beside.fold(ThreeTables::<1, true>),
    };
    beside.and_then(|c| c.sql(Told::<1, false, true>)).unwrap()
}

// --- what the rows ought to be ----------------------------------------------------------------------------------------

/// The rows of each table, by key, as text.
pub(super) type Rows = Vec<BTreeMap<String, String>>;

/// What the log says, one event after the other, by nothing of the library.
pub(super) async fn expected(client: &Client, tables: usize) -> Rows {
    let sql = "SELECT position, stream, revision, type, data::text FROM changeover.events ORDER BY position";
    let mut rows: Vec<BTreeMap<i64, Cells>> = vec![BTreeMap::new(); tables];
    for event in client.query(sql, &[]).await.unwrap() {
        let (position, stream, revision): (i64, &str, i64) = (event.get(0), event.get(1), event.get(2));
        let text = format!("{{\"{}\":{}}}", event.get::<_, &str>(3), event.get::<_, &str>(4));
        let Ok(happened) = serde_json::from_str::<Happened>(&text) else {
            assert_eq!(event.get::<_, &str>(3), "Unheard");
            continue;
        };
        let place = Place { position, revision, stream };
        for (table, rows) in rows.iter_mut().enumerate() {
            let mut keys = happened.keys(table, stream);
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                if let Some(cells) = happened.next(table, rows.remove(&key), &place) {
                    rows.insert(key, cells);
                }
            }
        }
    }
    let text = |table: usize, rows: &BTreeMap<i64, Cells>| {
        let (_, _, key) = DESCRIBED[table];
        let cells = |cells: &Cells| {
            let text = cells.text.as_deref().unwrap_or("none");
            format!("{} {} {} {text}", cells.events, cells.digest, cells.halves)
        };
        rows.iter().map(|(number, row)| (key(*number), cells(row))).collect()
    };
    rows.iter().enumerate().map(|(table, rows)| text(table, rows)).collect()
}

/// What the tables of a projector's version hold.
pub(super) async fn found(client: &Client, schema: &str, tables: usize) -> Rows {
    let mut found = Rows::new();
    for (table, key, _) in &DESCRIBED[..tables] {
        let sql = format!(
            "SELECT {key}, concat_ws(' ', events, digest, halves, coalesce(text, 'none')) FROM {schema}.{table}"
        );
        let rows = client.query(&sql, &[]).await.unwrap();
        found.push(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
    }
    found
}

/// In words, what of one is not in the other; none where they are equal.
pub(super) fn difference(expected: &Rows, found: &Rows) -> Option<String> {
    expected.iter().zip(found).zip(DESCRIBED).find_map(|((expected, found), (table, ..))| {
        let missing = expected.keys().filter(|key| !found.contains_key(*key)).count();
        let extra = found.keys().filter(|key| !expected.contains_key(*key)).count();
        let mut other = expected.iter().filter(|(key, row)| found.get(*key).is_some_and(|own| own != *row));
        let first =
            other.next().map(|(key, row)| format!("{key}: {row:.60} expected, {:.60} found", found[key]));
        let other = other.count() + usize::from(first.is_some());
        (missing + extra + other > 0).then(|| {
            let (all, first) = (expected.len(), first.unwrap_or_default());
            format!(
                "{table}: of {all} rows {missing} are missing, {extra} too many, {other} different; {first}"
            )
        })
    })
}
