//! Whether a value holds numbers that JSON cannot: a serializer that writes nothing and looks at floats.

use serde::ser::{
    self, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};

/// Whether a float in it is NaN or infinite. What cannot be serialized at all is for others to say.
pub(super) fn holds_other(value: &(impl Serialize + ?Sized)) -> bool {
    matches!(value.serialize(Looking), Err(Stopped { at_other: true }))
}

struct Looking;

#[derive(Debug)]
struct Stopped {
    at_other: bool,
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not finite")
    }
}

impl std::error::Error for Stopped {}

impl ser::Error for Stopped {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self { at_other: false }
    }
}

type Looked = Result<(), Stopped>;

fn look(finite: bool) -> Looked {
    if finite { Ok(()) } else { Err(Stopped { at_other: true }) }
}

macro_rules! nothing_in {
    ($($method:ident($($ty:ty),*);)*) => {
        $(fn $method(self, $(_: $ty),*) -> Looked {
            Ok(())
        })*
    };
}

macro_rules! on_into {
    ($($method:ident($($ty:ty),*) -> $next:ident;)*) => {
        $(fn $method(self, $(_: $ty),*) -> Result<Self::$next, Stopped> {
            Ok(self)
        })*
    };
}

impl ser::Serializer for Looking {
    type Ok = ();
    type Error = Stopped;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    nothing_in! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    fn serialize_f32(self, number: f32) -> Looked {
        look(number.is_finite())
    }

    fn serialize_f64(self, number: f64) -> Looked {
        look(number.is_finite())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Looked {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Looked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Looked {
        value.serialize(self)
    }

    on_into! {
        serialize_seq(Option<usize>) -> SerializeSeq;
        serialize_tuple(usize) -> SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> SerializeTupleVariant;
        serialize_map(Option<usize>) -> SerializeMap;
        serialize_struct(&'static str, usize) -> SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> SerializeStructVariant;
    }
}

macro_rules! each {
    ($($kind:ident $method:ident($($key:ty)?);)*) => {
        $(impl $kind for Looking {
            type Ok = ();
            type Error = Stopped;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $key,)? value: &T) -> Looked {
                value.serialize(Looking)
            }

            fn end(self) -> Looked {
                Ok(())
            }
        })*
    };
}

each! {
    SerializeSeq serialize_element();
    SerializeTuple serialize_element();
    SerializeTupleStruct serialize_field();
    SerializeTupleVariant serialize_field();
    SerializeStruct serialize_field(&'static str);
    SerializeStructVariant serialize_field(&'static str);
}

impl SerializeMap for Looking {
    type Ok = ();
    type Error = Stopped;

    /// A key is text in JSON, also that of a float; serde_json refuses one that is not finite by itself.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Looked {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Looked {
        value.serialize(Looking)
    }

    fn end(self) -> Looked {
        Ok(())
    }
}
