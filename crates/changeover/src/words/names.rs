//! Names that are checked once, where they enter, and trusted from then on.

use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} was refused: {rule}")]
pub struct InvalidName {
    what: &'static str,
    given: String,
    rule: &'static str,
}

fn invalid(what: &'static str, given: &str, rule: &'static str) -> InvalidName {
    let given = given.chars().take(80).collect();
    InvalidName { what, given, rule }
}

const IDENTIFIER_RULE: &str =
    "a lower-case letter, then lower-case letters, digits and underscores, at most 40 in all";
const SYSTEM_RULE: &str = "PostgreSQL keeps what begins with pg_, and information_schema, for itself";
const RESERVED_RULE: &str = "SQL reserves this word";
const PUBLIC_RULE: &str =
    "its stable views stand in a schema of its name, and the schema public is everybody's";

/// The words that cannot stand in SQL as the name of a schema without quotes, in any PostgreSQL from 12 to 18.
#[rustfmt::skip] // Nobody reads it as a list of lines.
const RESERVED: [&str; 101] = [
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary", "both",
    "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create", "cross",
    "current_catalog", "current_date", "current_role", "current_schema", "current_time", "current_timestamp",
    "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end", "except", "false", "fetch", "for",
    "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike", "in", "initially", "inner", "intersect",
    "into", "is", "isnull", "join", "lateral", "leading", "left", "like", "limit", "localtime", "localtimestamp",
    "natural", "not", "notnull", "null", "offset", "on", "only", "or", "order", "outer", "overlaps", "placing",
    "primary", "references", "returning", "right", "select", "session_user", "similar", "some", "symmetric",
    "system_user", "table", "tablesample", "then", "to", "trailing", "true", "union", "unique", "user", "using",
    "variadic", "verbose", "when", "where", "window", "with",
];

fn is_systems_own(name: &str) -> bool {
    name.starts_with("pg_") || name == "information_schema"
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 40
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The stable name of a projector, also the stem of its tables' schema (`<projector>_v<major>`).
///
/// ```
/// use changeover::ProjectorName;
/// let name: ProjectorName = "order_summary".parse().unwrap();
/// assert_eq!(name.as_str(), "order_summary");
/// assert!("Order Summary".parse::<ProjectorName>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectorName(String);

impl ProjectorName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The schema that holds the tables of one major version.
    ///
    /// ```
    /// let name: changeover::ProjectorName = "order_summary".parse().unwrap();
    /// assert_eq!(name.tables_schema(2), "order_summary_v2");
    /// ```
    pub fn tables_schema(&self, major: u64) -> String {
        format!("{}_v{major}", self.0)
    }

    /// Whether a schema of that name would hold the tables of some major version.
    pub(crate) fn keeps_tables_in(&self, schema: &str) -> bool {
        let major = schema.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix("_v"));
        major.is_some_and(|major| !major.is_empty() && major.bytes().all(|b| b.is_ascii_digit()))
    }
}

impl FromStr for ProjectorName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        if !is_identifier(name) {
            Err(invalid("projector name", name, IDENTIFIER_RULE))
        } else if is_systems_own(name) {
            // Its schemas are named after it: that of its tables, and that of its stable views.
            Err(invalid("projector name", name, SYSTEM_RULE))
        } else if name == "public" {
            Err(invalid("projector name", name, PUBLIC_RULE))
        } else {
            Ok(Self(name.to_owned()))
        }
    }
}

/// The database schema that holds Changeover's own tables. The default is `changeover`.
///
/// ```
/// use changeover::SchemaName;
/// assert_eq!(SchemaName::default().as_str(), "changeover");
/// assert!("drop table".parse::<SchemaName>().is_err());
/// let error = "order".parse::<SchemaName>().unwrap_err();
/// assert_eq!(error.to_string(), "schema name \"order\" was refused: SQL reserves this word");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchemaName(String);

impl SchemaName {
    /// The name as text; an identifier that needs no quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SchemaName {
    fn default() -> Self {
        Self("changeover".to_owned())
    }
}

impl FromStr for SchemaName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        if !is_identifier(name) {
            Err(invalid("schema name", name, IDENTIFIER_RULE))
        } else if is_systems_own(name) {
            Err(invalid("schema name", name, SYSTEM_RULE))
        } else if RESERVED.contains(&name) {
            Err(invalid("schema name", name, RESERVED_RULE))
        } else {
            Ok(Self(name.to_owned()))
        }
    }
}

/// The name of a stream: any text from 1 to [`StreamName::MAX_BYTES`] bytes without a NUL.
///
/// ```
/// use changeover::StreamName;
/// let stream: StreamName = "order-'42'".parse().unwrap();
/// assert_eq!(stream.as_str(), "order-'42'");
/// assert!("".parse::<StreamName>().is_err());
/// assert!("a\0b".parse::<StreamName>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(CompactString);

impl StreamName {
    /// The longest name in bytes: what an index entry of the log holds with room to spare.
    pub const MAX_BYTES: usize = 1_000;

    /// A name that the log holds: it was checked when it was written.
    pub(crate) fn stored(name: &str) -> Self {
        Self(CompactString::new(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StreamName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() {
            Err(invalid("stream name", name, "it must not be empty"))
        } else if name.len() > Self::MAX_BYTES {
            Err(invalid("stream name", name, "at most 1000 bytes"))
        } else if name.contains('\0') {
            Err(invalid("stream name", name, "PostgreSQL's text holds no NUL"))
        } else {
            Ok(Self::stored(name))
        }
    }
}

macro_rules! text_name {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                name.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    )*};
}

text_name!(ProjectorName, SchemaName, StreamName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projector_name_is_an_identifier_that_needs_no_quotes() {
        let check = |name: &str, ok: bool| assert_eq!(name.parse::<ProjectorName>().is_ok(), ok, "{name:?}");
        check("a", true);
        check("order_summary2", true);
        check(&"a".repeat(40), true);
        check(&"a".repeat(41), false);
        for bad in ["", "_a", "1a", "A", "a-b", "a b", "a\"b", "é", "a;drop"] {
            check(bad, false);
        }
        // Its schemas are `user_v1` and a quoted "user".
        check("user", true);
        check("pg_user", false);
        check("information_schema", false);
        check("public", false);
    }

    #[test]
    fn a_projector_keeps_its_tables_in_schemas_that_are_numbered() {
        let orders: ProjectorName = "orders".parse().unwrap();
        for (schema, keeps) in [
            ("orders_v1", true),
            ("orders_v12", true),
            ("orders", false),
            ("orders_v", false),
            ("orders_v1x", false),
            ("orders_v_1", false),
            ("my_orders_v1", false),
        ] {
            assert_eq!(orders.keeps_tables_in(schema), keeps, "{schema}");
        }
        assert!(orders.keeps_tables_in(&orders.tables_schema(7)));
    }

    #[test]
    fn a_schema_name_needs_no_quotes_and_is_not_the_systems_own() {
        let check = |name: &str, said: Option<&str>| {
            let refused = name.parse::<SchemaName>().err().map(|error| error.to_string());
            let expected = said.map(|rule| format!("schema name {name:?} was refused: {rule}"));
            assert_eq!(refused, expected);
        };
        check("ours", None);
        check("users", None);
        check("a-b", Some(IDENTIFIER_RULE));
        check("pg_ours", Some(SYSTEM_RULE));
        check("information_schema", Some(SYSTEM_RULE));
        check("user", Some(RESERVED_RULE));
        check("left", Some(RESERVED_RULE));
    }

    #[test]
    fn a_stream_name_is_nearly_any_text() {
        let check = |name: &str, ok: bool| assert_eq!(name.parse::<StreamName>().is_ok(), ok, "{name:?}");
        check("order-'\"; drop table x; --", true);
        check(&"é".repeat(300), true);
        check(&"x".repeat(1_000), true);
        check(&"x".repeat(1_001), false);
        check("", false);
        check("a\0", false);
    }
}
