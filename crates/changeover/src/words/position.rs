//! Counters that must not be mistaken for one another.

use std::fmt;

use postgres_types::{FromSql, IsNull, ToSql, Type, private::BytesMut};
use serde::{Deserialize, Serialize};

type SqlError = Box<dyn std::error::Error + Sync + Send>;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The counter with this value.
            pub const fn new(value: i64) -> Self {
                Self(value)
            }

            /// The value.
            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromSql<'_> for $name {
            fn from_sql(ty: &Type, raw: &[u8]) -> Result<Self, SqlError> {
                i64::from_sql(ty, raw).map(Self)
            }

            fn accepts(ty: &Type) -> bool {
                *ty == Type::INT8
            }
        }

        impl ToSql for $name {
            fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
                self.0.to_sql(ty, out)
            }

            fn accepts(ty: &Type) -> bool {
                *ty == Type::INT8
            }

            postgres_types::to_sql_checked!();
        }
    };
}

counter! {
    /// An event's place in the whole log: increasing, with gaps, from 1. Zero stands before the first event.
    ///
    /// ```
    /// use changeover::Position;
    /// assert!(Position::START < Position::new(1));
    /// ```
    Position
}

counter! {
    /// A stream's own count, without gaps, from 1. Zero is a stream that does not exist yet.
    ///
    /// ```
    /// use changeover::Revision;
    /// assert_eq!(Revision::new(3).to_string(), "3");
    /// ```
    Revision
}

counter! {
    /// A number that changes whenever the projectors' states change. Only equality means anything.
    ///
    /// ```
    /// use changeover::Generation;
    /// assert_ne!(Generation::new(1), Generation::new(2));
    /// ```
    Generation
}

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);
}
