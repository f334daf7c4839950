//! Typed rows: real columns, a key, and the arrays in which a batch of them travels.

use std::fmt;
use std::hash::Hash;
use std::time::SystemTime;

use postgres_types::private::BytesMut;
use postgres_types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

/// A Rust type that is a column.
///
/// Implemented for `bool`, `i16`, `i32`, `i64`, `f32`, `f64`, `String`, `Vec<u8>`, [`uuid::Uuid`], [`SystemTime`],
/// [`serde_json::Value`] (as `jsonb`) and for an `Option` of each, which is a column that may be null.
pub trait Column: ToSql + for<'a> FromSql<'a> + Clone + Send + Sync + 'static {
    /// Its type in DDL.
    const SQL: &'static str;
    /// The type of an array of it.
    const ARRAY: Type;
    /// Whether the column may be null.
    const NULLABLE: bool = false;
}

macro_rules! columns {
    ($($ty:ty => $sql:literal $array:ident,)*) => {
        $(impl Column for $ty {
            const SQL: &'static str = $sql;
            const ARRAY: Type = Type::$array;
        })*
    };
}

columns! {
    bool => "boolean" BOOL_ARRAY,
    i16 => "smallint" INT2_ARRAY,
    i32 => "integer" INT4_ARRAY,
    i64 => "bigint" INT8_ARRAY,
    f32 => "real" FLOAT4_ARRAY,
    f64 => "double precision" FLOAT8_ARRAY,
    String => "text" TEXT_ARRAY,
    Vec<u8> => "bytea" BYTEA_ARRAY,
    uuid::Uuid => "uuid" UUID_ARRAY,
    SystemTime => "timestamptz" TIMESTAMPTZ_ARRAY,
    serde_json::Value => "jsonb" JSONB_ARRAY,
}

impl<T: Column> Column for Option<T> {
    const SQL: &'static str = T::SQL;
    const ARRAY: Type = T::ARRAY;
    const NULLABLE: bool = true;
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Its name.
    pub name: &'static str,
    /// Its type in DDL.
    pub sql: &'static str,
    /// The type of an array of it.
    pub array: Type,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether it is part of the key.
    pub key: bool,
    /// Whether it has a secondary index of its own.
    pub index: bool,
}

impl ColumnDefinition {
    /// The definition of a column of this Rust type; used by `#[derive(Row)]`.
    pub fn of<T: Column>(name: &'static str, key: bool, index: bool) -> Self {
        Self { name, sql: T::SQL, array: T::ARRAY, nullable: T::NULLABLE, key, index }
    }

    /// The type of one of its values.
    pub(crate) fn member(&self) -> Type {
        match self.array.kind() {
            Kind::Array(member) => member.clone(),
            _ => panic!("BUG: {} is no array", self.array),
        }
    }
}

/// A key: what tells one row of a table from another.
///
/// Implemented for the column types that can be compared exactly and for tuples of two to four of them.
pub trait Key: Clone + Eq + Hash + Send + Sync + fmt::Debug + 'static {
    /// The values, in the order of the key's columns.
    fn values(&self) -> Vec<&(dyn ToSql + Sync)>;
    /// Visits the same values, one after the other.
    fn visit(&self, visitor: &mut dyn FnMut(&(dyn ToSql + Sync))) {
        self.values().into_iter().for_each(visitor);
    }
}

macro_rules! single_keys {
    ($($ty:ty),*) => {$(
        impl Key for $ty {
            fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
                vec![self]
            }

            fn visit(&self, visitor: &mut dyn FnMut(&(dyn ToSql + Sync))) {
                visitor(self);
            }
        }
    )*};
}

single_keys!(bool, i16, i32, i64, String, Vec<u8>, uuid::Uuid, SystemTime);

macro_rules! tuple_keys {
    ($(($($part:ident $index:tt),*)),*) => {$(
        impl<$($part: Column + Key),*> Key for ($($part,)*) {
            fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
                vec![$(&self.$index),*]
            }

            fn visit(&self, visitor: &mut dyn FnMut(&(dyn ToSql + Sync))) {
                $(visitor(&self.$index);)*
            }
        }
    )*};
}

tuple_keys!((A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3));

/// A row of a read model. Derive it:
///
/// ```
/// use changeover::Row;
///
/// #[derive(Row, Clone)]
/// #[row(table = "orders")]
/// struct Order {
///     #[row(key)]
///     order_id: uuid::Uuid,
///     #[row(index)]
///     customer: String,
///     total_cents: i64,
///     shipped_at: Option<std::time::SystemTime>,
/// }
/// ```
///
/// A row without a key, or of something that is no column, does not compile:
///
/// ```compile_fail
/// #[derive(changeover::Row, Clone)]
/// #[row(table = "orders")]
/// struct Keyless {
///     customer: String,
/// }
/// ```
///
/// ```compile_fail
/// #[derive(changeover::Row, Clone)]
/// #[row(table = "orders")]
/// struct Order {
///     #[row(key)]
///     id: String,
///     items: Vec<String>, // No column type.
/// }
/// ```
pub trait Row: Clone + Send + Sync + 'static {
    /// What tells the rows apart.
    type Key: Key;
    /// The table's name, without a schema.
    const TABLE: &'static str;

    /// The columns, in the order of [`values`](Row::values).
    fn columns() -> Vec<ColumnDefinition>;
    /// This row's key.
    fn key(&self) -> Self::Key;
    /// Whether this row has a key.
    fn has_key(&self, key: &Self::Key) -> bool {
        self.key() == *key
    }
    /// This row's values.
    fn values(&self) -> Vec<&(dyn ToSql + Sync)>;
    /// The row that the database holds; the columns come in order.
    fn from_row(row: &tokio_postgres::Row) -> Result<Self, tokio_postgres::Error>;
}

/// The values of one column for a batch of rows, sent as an array.
pub(crate) struct ColumnArray<'a>(Vec<&'a (dyn ToSql + Sync)>);

impl<'a> ColumnArray<'a> {
    /// Turns rows of values into columns of values.
    pub(crate) fn transpose(rows: impl Iterator<Item = Vec<&'a (dyn ToSql + Sync)>>) -> Vec<Self> {
        let mut columns: Vec<Self> = Vec::new();
        for row in rows {
            columns.resize_with(row.len(), || Self(Vec::new()));
            for (column, value) in columns.iter_mut().zip(row) {
                column.0.push(value);
            }
        }
        columns
    }
}

impl fmt::Debug for ColumnArray<'_> {
    /// Says how many values there are, not which.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.0.len())
    }
}

impl ToSql for ColumnArray<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Kind::Array(member) = ty.kind() else {
            panic!("BUG: a column of values was bound to {ty}");
        };
        let dimension =
            postgres_protocol::types::ArrayDimension { len: i32::try_from(self.0.len())?, lower_bound: 1 };
        postgres_protocol::types::array_to_sql(
            Some(dimension),
            member.oid(),
            self.0.iter(),
            |value, out| {
                Ok(match value.to_sql_checked(member, out)? {
                    IsNull::Yes => postgres_protocol::IsNull::Yes,
                    IsNull::No => postgres_protocol::IsNull::No,
                })
            },
            out,
        )?;
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    to_sql_checked!();
}

/// A hash that any process, any release and any platform computes alike: XXH3 (Yann Collet), begun with a seed. 0 begins a
/// new one.
pub(crate) fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed)
}

/// The hash of a key, by its values as they go over the wire.
pub(crate) fn hash_of(seed: u64, key: &impl Key, types: &[Type]) -> u64 {
    hash_with(&mut BytesMut::new(), seed, key, types)
}

/// The same, with a buffer of the caller's for those values.
pub(crate) fn hash_with(bytes: &mut BytesMut, seed: u64, key: &impl Key, types: &[Type]) -> u64 {
    bytes.clear();
    let mut types = types.iter();
    key.visit(&mut |value| {
        let ty = types.next().expect("BUG: a key of more columns than its table has");
        bytes.extend_from_slice(&[0]);
        // What cannot be encoded here cannot be encoded in the load that follows, which then says so.
        let _ = value.to_sql_checked(ty, bytes);
    });
    stable_hash(seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_key_never_changes() {
        let of = |table: &str, key: i64| hash_of(stable_hash(0, table.as_bytes()), &key, &[Type::INT8]);
        assert_eq!(of("orders", 7), of("orders", 7));
        assert_ne!(of("orders", 7), of("orders", 8));
        assert_ne!(of("orders", 7), of("items", 7));
        // Pinned: another value here means that two releases would lock different buckets for one row.
        assert_eq!(stable_hash(0, b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(stable_hash(0, b"a"), 0xe6c6_32b6_1e96_4e1f);
        assert_eq!(hash_of(0, &("a".to_owned(), 7_i64), &[Type::TEXT, Type::INT8]), 0xfadc_eb43_07ba_3815);
    }
}
