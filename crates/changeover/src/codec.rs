//! Events to and from `(type, data)`: an enum's variant is the type, what it holds is the data.

mod finite;
mod limits;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, VariantAccess, Visitor};
use serde::ser::{self, Impossible, Serialize};
use serde_json::value::RawValue;

use self::limits::{DEEPEST, holds_nul, is_too_deep};

/// An event that cannot be written as `(type, data)`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Only the variants of an enum have a type of their own.
    #[error("an event must be a variant of an enum without #[serde(tag)] or #[serde(untagged)]")]
    NotAnEnum,
    /// The data is not JSON, say a map with keys that are no text.
    #[error("the data of {event_type} cannot be written as JSON")]
    Json {
        /// The type of the event.
        event_type: String,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// JSON has neither NaN nor infinities: it would be written as null, which no projector can read as a number.
    #[error(
        "the data or metadata of {event_type} holds a number that is NaN or infinite, which JSON cannot hold"
    )]
    NotFinite {
        /// The type of the event.
        event_type: String,
    },
    /// Nobody could decode it, whatever type it is decoded into.
    #[error(
        "the data or metadata of {event_type} is nested more than {DEEPEST} deep, which no projector could decode: flatten it"
    )]
    TooDeep {
        /// The type of the event.
        event_type: String,
    },
    /// No text column of any read model could hold it.
    #[error(
        "the data or metadata of {event_type} holds the character U+0000, which PostgreSQL's text cannot hold"
    )]
    HoldsNul {
        /// The type of the event.
        event_type: String,
    },
}

/// An event as the log stores it.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) event_type: String,
    pub(crate) data: Box<RawValue>,
}

pub(crate) fn encode(event: &impl Serialize) -> Result<Encoded, EncodeError> {
    let Variant { name, json } = event.serialize(VariantSerializer).map_err(|Unfit(inner)| match inner {
        Some((name, source)) => EncodeError::Json { event_type: name.to_owned(), source },
        None => EncodeError::NotAnEnum,
    })?;
    let data = readable_json(name, json)?;
    all_finite(name, data.get(), event)?;
    Ok(Encoded { event_type: name.to_owned(), data })
}

pub(crate) fn encode_metadata(metadata: &impl Serialize) -> Result<Box<RawValue>, EncodeError> {
    let unfit = |source| EncodeError::Json { event_type: "metadata".to_owned(), source };
    let json = readable_json("metadata", serde_json::to_string(metadata).map_err(unfit)?)?;
    // Readers take it for a value, so it must be one: raw JSON may hold numbers that none can hold.
    serde_json::from_str::<serde_json::Value>(json.get()).map_err(unfit)?;
    all_finite("metadata", json.get(), metadata)?;
    Ok(json)
}

/// serde_json writes what is not finite as null, so it is only looked for where there is one.
fn all_finite(event_type: &str, json: &str, value: &impl Serialize) -> Result<(), EncodeError> {
    if json.contains("null") && finite::holds_other(value) {
        return Err(EncodeError::NotFinite { event_type: event_type.to_owned() });
    }
    Ok(())
}

/// What PostgreSQL can hold and readers can decode.
fn readable_json(event_type: &str, json: String) -> Result<Box<RawValue>, EncodeError> {
    if holds_nul(&json) {
        return Err(EncodeError::HoldsNul { event_type: event_type.to_owned() });
    }
    if is_too_deep(&json) {
        return Err(EncodeError::TooDeep { event_type: event_type.to_owned() });
    }
    RawValue::from_string(json)
        .map_err(|source| EncodeError::Json { event_type: event_type.to_owned(), source })
}

/// Decodes an event. The error says where the data does not fit, never what it holds.
pub(crate) fn decode<E: DeserializeOwned>(event_type: &str, data: &str) -> Result<E, String> {
    E::deserialize(EventDeserializer { event_type, data }).map_err(|error| {
        let text = error.to_string();
        // serde quotes values in its other messages; this one names a field and nothing else.
        match text.strip_prefix("missing field ").and_then(|rest| rest.split('`').nth(1)) {
            Some(field) => format!("its data has no field `{field}`"),
            None => format!("its data does not fit at column {}", error.column()),
        }
    })
}

/// The names of an enum's variants: the event types that it can be decoded from.
pub(crate) fn event_types<E: DeserializeOwned>() -> Option<Vec<&'static str>> {
    match E::deserialize(VariantProbe) {
        Err(Probed(variants)) => variants.map(<[_]>::to_vec),
        Ok(_) => None,
    }
}

// --- encoding -------------------------------------------------------------------------------------------------------

struct Variant {
    name: &'static str,
    json: String,
}

/// Not a variant; or a variant whose data serde_json refuses.
#[derive(Debug)]
struct Unfit(Option<(&'static str, serde_json::Error)>);

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not an event")
    }
}

impl std::error::Error for Unfit {}

impl ser::Error for Unfit {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self(None)
    }
}

struct VariantSerializer;

/// Writes the data of a struct or tuple variant, field by field.
struct FieldsSerializer {
    name: &'static str,
    json: Vec<u8>,
    close: u8,
}

impl FieldsSerializer {
    fn new(name: &'static str, open: u8, close: u8) -> Self {
        Self { name, json: vec![open], close }
    }

    fn write(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Unfit> {
        serde_json::to_writer(&mut self.json, value).map_err(|error| Unfit(Some((self.name, error))))
    }

    fn separate(&mut self) {
        if self.json.len() > 1 {
            self.json.push(b',');
        }
    }

    fn finish(mut self) -> Variant {
        self.json.push(self.close);
        let json = String::from_utf8(self.json).expect("BUG: serde_json wrote something that is not UTF-8");
        Variant { name: self.name, json }
    }
}

impl ser::SerializeStructVariant for FieldsSerializer {
    type Ok = Variant;
    type Error = Unfit;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unfit> {
        self.separate();
        self.write(key)?;
        self.json.push(b':');
        self.write(value)
    }

    fn end(self) -> Result<Variant, Unfit> {
        Ok(self.finish())
    }
}

impl ser::SerializeTupleVariant for FieldsSerializer {
    type Ok = Variant;
    type Error = Unfit;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unfit> {
        self.separate();
        self.write(value)
    }

    fn end(self) -> Result<Variant, Unfit> {
        Ok(self.finish())
    }
}

macro_rules! not_a_variant {
    ($($method:ident($($ty:ty),*);)*) => {
        $(fn $method(self, $(_: $ty),*) -> Result<Variant, Unfit> {
            Err(Unfit(None))
        })*
    };
}

impl ser::Serializer for VariantSerializer {
    type Ok = Variant;
    type Error = Unfit;
    type SerializeSeq = Impossible<Variant, Unfit>;
    type SerializeTuple = Impossible<Variant, Unfit>;
    type SerializeTupleStruct = Impossible<Variant, Unfit>;
    type SerializeTupleVariant = FieldsSerializer;
    type SerializeMap = Impossible<Variant, Unfit>;
    type SerializeStruct = Impossible<Variant, Unfit>;
    type SerializeStructVariant = FieldsSerializer;

    not_a_variant! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Variant, Unfit> {
        Err(Unfit(None))
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Variant, Unfit> {
        Ok(Variant { name, json: "null".to_owned() })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Variant, Unfit> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<Variant, Unfit> {
        let json = serde_json::to_string(value).map_err(|error| Unfit(Some((name, error))))?;
        Ok(Variant { name, json })
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Unfit> {
        Err(Unfit(None))
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Unfit> {
        Err(Unfit(None))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Unfit> {
        Err(Unfit(None))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<FieldsSerializer, Unfit> {
        Ok(FieldsSerializer::new(name, b'[', b']'))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Unfit> {
        Err(Unfit(None))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, Unfit> {
        Err(Unfit(None))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<FieldsSerializer, Unfit> {
        Ok(FieldsSerializer::new(name, b'{', b'}'))
    }
}

// --- decoding -------------------------------------------------------------------------------------------------------

struct EventDeserializer<'a> {
    event_type: &'a str,
    data: &'a str,
}

impl<'de> de::Deserializer<'de> for EventDeserializer<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, serde_json::Error> {
        Err(de::Error::custom("an event must be a variant of an enum"))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, serde_json::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, serde_json::Error> {
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> de::EnumAccess<'de> for EventDeserializer<'de> {
    type Error = serde_json::Error;
    type Variant = DataDeserializer<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, DataDeserializer<'de>), serde_json::Error> {
        let variant = seed.deserialize(self.event_type.into_deserializer())?;
        Ok((variant, DataDeserializer(self.data)))
    }
}

struct DataDeserializer<'a>(&'a str);

impl<'de> VariantAccess<'de> for DataDeserializer<'de> {
    type Error = serde_json::Error;

    fn unit_variant(self) -> Result<(), serde_json::Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, serde_json::Error> {
        seed.deserialize(&mut serde_json::Deserializer::from_str(self.0))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, serde_json::Error> {
        de::Deserializer::deserialize_tuple(&mut serde_json::Deserializer::from_str(self.0), len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, serde_json::Error> {
        de::Deserializer::deserialize_struct(
            &mut serde_json::Deserializer::from_str(self.0),
            "",
            fields,
            visitor,
        )
    }
}

/// Asks a type for its variants and decodes nothing.
struct VariantProbe;

#[derive(Debug)]
struct Probed(Option<&'static [&'static str]>);

impl std::fmt::Display for Probed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("probed")
    }
}

impl std::error::Error for Probed {}

impl de::Error for Probed {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self(None)
    }
}

impl<'de> de::Deserializer<'de> for VariantProbe {
    type Error = Probed;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Probed> {
        Err(Probed(None))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Probed> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Probed> {
        Err(Probed(Some(variants)))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Event {
        Placed {
            customer: String,
            total: i64,
        },
        #[serde(rename = "Paid2")]
        Paid(u32),
        Moved(i32, i32),
        Closed,
    }

    #[test]
    fn every_kind_of_variant_comes_back_as_it_went() {
        let check = |event: Event, event_type: &str, data: &str| {
            let encoded = encode(&event).unwrap();
            assert_eq!((encoded.event_type.as_str(), encoded.data.get()), (event_type, data));
            assert_eq!(decode::<Event>(event_type, encoded.data.get()), Ok(event));
        };
        check(
            Event::Placed { customer: "a\"b".into(), total: 7 },
            "Placed",
            r#"{"customer":"a\"b","total":7}"#,
        );
        check(Event::Paid(3), "Paid2", "3");
        check(Event::Moved(1, -1), "Moved", "[1,-1]");
        check(Event::Closed, "Closed", "null");
    }

    #[test]
    fn a_type_knows_its_events() {
        assert_eq!(event_types::<Event>(), Some(vec!["Placed", "Paid2", "Moved", "Closed"]));
        assert_eq!(event_types::<String>(), None);
    }

    #[test]
    fn what_is_no_variant_is_refused() {
        #[derive(Serialize)]
        struct Lonely {
            id: u32,
        }
        assert!(matches!(encode(&Lonely { id: 1 }), Err(EncodeError::NotAnEnum)));
        assert!(matches!(encode(&"text"), Err(EncodeError::NotAnEnum)));
    }

    #[test]
    fn a_nul_is_refused_and_an_escaped_backslash_is_not() {
        let placed = |customer: &str| Event::Placed { customer: customer.into(), total: 0 };
        assert!(matches!(encode(&placed("a\0b")), Err(EncodeError::HoldsNul { .. })));
        assert!(encode(&placed("a\\u0000b")).is_ok());
        assert!(matches!(encode(&placed("a\\\0b")), Err(EncodeError::HoldsNul { .. })));
    }

    #[test]
    fn what_nobody_could_decode_is_refused_however_it_is_nested() {
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        enum Nested {
            Alone(serde_json::Value),
            Field { of: serde_json::Value },
        }
        let nested = |depth: usize, inside: fn(serde_json::Value) -> serde_json::Value| {
            (0..depth).fold(serde_json::json!("[[\\\"{"), |value, _| inside(value))
        };
        let kinds: [fn(serde_json::Value) -> serde_json::Value; 2] =
            [|value| serde_json::json!([value]), |value| serde_json::json!({ "a": value })];
        for kind in kinds {
            let deepest =
                [Nested::Alone(nested(DEEPEST, kind)), Nested::Field { of: nested(DEEPEST - 1, kind) }];
            for event in deepest {
                let Encoded { event_type, data } = encode(&event).unwrap();
                assert_eq!(decode::<Nested>(&event_type, data.get()), Ok(event));
            }
            encode_metadata(&nested(DEEPEST, kind)).unwrap();
            let deeper = nested(DEEPEST + 1, kind);
            for event in [Nested::Alone(deeper.clone()), Nested::Field { of: nested(DEEPEST, kind) }] {
                let refused = encode(&event).unwrap_err();
                assert!(matches!(refused, EncodeError::TooDeep { .. }), "{refused:?}");
                assert!(refused.to_string().contains("more than 127 deep"), "{refused}");
            }
            assert!(matches!(encode_metadata(&deeper), Err(EncodeError::TooDeep { .. })));
        }
        // Brackets beside each other, and in texts, are no depth.
        encode(&Nested::Alone(serde_json::json!(vec![[1]; 500]))).unwrap();
        encode(&Nested::Alone(serde_json::json!("[".repeat(500)))).unwrap();
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused_wherever_it_stands() {
        use std::collections::BTreeMap;

        #[derive(Serialize)]
        struct Point {
            at: Option<f64>,
            name: Option<&'static str>,
        }
        #[derive(Serialize)]
        enum Measured {
            Alone(f64),
            Both(f32, f32),
            Field { point: Point },
            All(Vec<Option<f64>>),
            Named(BTreeMap<String, f64>),
        }
        let point = |at| Point { at, name: None };
        let of = |number: f64| {
            [
                Measured::Alone(number),
                #[expect(clippy::cast_possible_truncation, reason = "it fits")]
                Measured::Both(1.0, number as f32),
                Measured::Field { point: point(Some(number)) },
                Measured::All(vec![None, Some(1.0), Some(number)]),
                Measured::Named(BTreeMap::from([("a".to_owned(), number)])),
            ]
        };
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for measured in of(number) {
                assert!(matches!(encode(&measured), Err(EncodeError::NotFinite { .. })));
            }
            assert!(matches!(encode_metadata(&point(Some(number))), Err(EncodeError::NotFinite { .. })));
        }
        for measured in of(0.5).into_iter().chain([Measured::Field { point: point(None) }]) {
            encode(&measured).unwrap();
        }
        encode_metadata(&point(None)).unwrap();
        encode_metadata(&RawValue::from_string("null".to_owned()).unwrap()).unwrap();
    }

    #[test]
    fn an_error_of_decoding_does_not_quote_the_data() {
        let data = RawValue::from_string(r#"{"customer":"Ada","total":"secret"}"#.into()).unwrap();
        let error = decode::<Event>("Placed", data.get()).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        let data = RawValue::from_string(r#"{"customer":"Ada"}"#.into()).unwrap();
        assert_eq!(decode::<Event>("Placed", data.get()).unwrap_err(), "its data has no field `total`");
    }
}
