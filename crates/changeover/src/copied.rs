//! The log as `COPY` hands it over: the binary format, read where it lies.

use std::str;
use std::time::{Duration, SystemTime};

use crate::store::StoreError;
use crate::words::event::Recorded;
use crate::words::names::StreamName;
use crate::words::position::{Position, Revision};

/// The columns, in the order in which [`CopiedEvent::parse`] reads them.
pub(crate) const COLUMNS: &str =
    "e.position, e.stream, e.revision, e.type, e.recorded_at, e.metadata, e.data";

/// An event in a message of `COPY`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopiedEvent<'c> {
    pub(crate) position: Position,
    stream: &'c str,
    revision: Revision,
    pub(crate) event_type: &'c str,
    /// The place of its type among those that are read.
    pub(crate) of_type: u16,
    recorded_at: SystemTime,
    metadata: Option<&'c str>,
    pub(crate) data: &'c str,
}

/// What the binary format begins with: the signature, flags, and an extension that is empty.
const HEADER: usize = 19;

/// The bytes of the tuple in a message; none where it holds the header or the end alone.
pub(crate) fn tuple(message: &[u8], first: bool) -> Option<&[u8]> {
    let tuple = if first { message.get(HEADER..)? } else { message };
    let ends = tuple.len() < 2 || tuple[..2] == (-1_i16).to_be_bytes();
    (!ends).then_some(tuple)
}

/// The values of a tuple, in the order of the columns.
type Fields<'c> = [Option<&'c [u8]>; 7];

fn fields(tuple: &[u8]) -> Option<Fields<'_>> {
    let mut rest = tuple.get(2..)?;
    let mut fields = Fields::default();
    for field in &mut fields {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        // A length below zero stands for no value.
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            *field = Some(rest.get(..length)?);
            rest = &rest[length..];
        }
    }
    Some(fields)
}

impl<'c> CopiedEvent<'c> {
    /// The position in a tuple.
    pub(crate) fn position(tuple: &[u8]) -> Option<Position> {
        const AT: usize = 2 + 4;
        let position = tuple.get(AT..)?.first_chunk()?;
        Some(Position::new(i64::from_be_bytes(*position)))
    }

    /// Reads a tuple; none if the event is of none of these types, which are sorted.
    pub(crate) fn parse(tuple: &'c [u8], types: &'c [String]) -> Result<Option<Self>, StoreError> {
        let malformed =
            || StoreError::Unreadable("the log was not copied in the format asked for".to_owned());
        let fields = fields(tuple).ok_or_else(malformed)?;
        let [_, _, _, Some(event_type), ..] = fields else { return Err(malformed()) };
        // Text that is not looked at is not checked.
        match types.binary_search_by(|known| known.as_bytes().cmp(event_type)) {
            Ok(of_type) => Self::of(fields, types, of_type).ok_or_else(malformed).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn of(
        [position, stream, revision, _, recorded_at, metadata, data]: Fields<'c>,
        types: &'c [String],
        of_type: usize,
    ) -> Option<Self> {
        let number = |value: &[u8]| Some(i64::from_be_bytes(value.try_into().ok()?));
        let text = |value: &'c [u8]| str::from_utf8(value).ok();
        Some(Self {
            position: Position::new(number(position?)?),
            stream: text(stream?)?,
            revision: Revision::new(number(revision?)?),
            event_type: &types[of_type],
            of_type: u16::try_from(of_type).expect("BUG: more than 65,535 event types"),
            recorded_at: time(number(recorded_at?)?),
            metadata: match metadata {
                Some(metadata) => Some(text(metadata)?),
                None => None,
            },
            data: text(data?)?,
        })
    }

    /// The event, with its data decoded.
    pub(crate) fn recorded<D>(&self, data: D) -> Recorded<D> {
        Recorded {
            position: self.position,
            stream: StreamName::stored(self.stream),
            revision: self.revision,
            recorded_at: self.recorded_at,
            // Checked when it was appended.
            metadata: self.metadata.and_then(|metadata| serde_json::from_str(metadata).ok()),
            data,
        }
    }
}

/// Microseconds since the year 2000, which began 10,957 days after 1970 did.
fn time(micros: i64) -> SystemTime {
    const EPOCH: Duration = Duration::from_hours(24 * 10_957);
    let epoch = SystemTime::UNIX_EPOCH + EPOCH;
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { epoch - distance } else { epoch + distance }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tuple: &mut Vec<u8>, value: &[u8]) {
        tuple.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
        tuple.extend_from_slice(value);
    }

    fn tuple(event_type: &[u8], data: &[u8]) -> Vec<u8> {
        let mut tuple = 7_i16.to_be_bytes().to_vec();
        field(&mut tuple, &42_i64.to_be_bytes());
        field(&mut tuple, b"order-1");
        field(&mut tuple, &3_i64.to_be_bytes());
        field(&mut tuple, event_type);
        field(&mut tuple, &0_i64.to_be_bytes());
        tuple.extend_from_slice(&(-1_i32).to_be_bytes());
        field(&mut tuple, data);
        tuple
    }

    #[test]
    fn an_event_of_another_type_is_passed_over_and_still_has_its_position() {
        let types = ["Paid".to_owned(), "Placed".to_owned()];
        let placed = tuple(b"Placed", b"{}");
        let event = CopiedEvent::parse(&placed, &types).unwrap().unwrap();
        assert_eq!((event.position.get(), event.of_type, event.event_type), (42, 1, "Placed"));
        assert_eq!(
            (event.stream, event.revision.get(), event.metadata, event.data),
            ("order-1", 3, None, "{}")
        );
        for other in [tuple(b"Placed2", b"{}"), tuple(b"Pla", b"{}"), tuple(b"", b"\xff")] {
            assert!(CopiedEvent::parse(&other, &types).unwrap().is_none());
            assert_eq!(CopiedEvent::position(&other), Some(Position::new(42)));
        }
    }

    #[test]
    fn what_is_not_in_the_format_is_refused_at_whatever_byte_it_ends() {
        let types = ["Placed".to_owned()];
        let whole = tuple(b"Placed", b"{\"a\":1}");
        for end in 0..whole.len() {
            assert!(CopiedEvent::parse(&whole[..end], &types).is_err(), "cut off at byte {end}");
        }
        assert!(CopiedEvent::parse(&tuple(b"Placed", b"\xff"), &types).is_err());
    }
}
