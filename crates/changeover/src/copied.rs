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

impl<'c> CopiedEvent<'c> {
    /// Reads a tuple.
    pub(crate) fn parse(tuple: &'c [u8]) -> Result<Self, StoreError> {
        Self::fields(tuple).ok_or_else(|| {
            StoreError::Unreadable("the log was not copied in the format asked for".to_owned())
        })
    }

    fn fields(tuple: &'c [u8]) -> Option<Self> {
        let mut rest = tuple.get(2..)?;
        let mut field = || -> Option<Option<&'c [u8]>> {
            let (length, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else { return Some(None) };
            let value = rest.get(..length)?;
            rest = &rest[length..];
            Some(Some(value))
        };
        let number = |value: &[u8]| Some(i64::from_be_bytes(value.try_into().ok()?));
        let text = |value: &'c [u8]| str::from_utf8(value).ok();
        Some(Self {
            position: Position::new(number(field()??)?),
            stream: text(field()??)?,
            revision: Revision::new(number(field()??)?),
            event_type: text(field()??)?,
            recorded_at: time(number(field()??)?),
            metadata: match field()? {
                Some(metadata) => Some(text(metadata)?),
                None => None,
            },
            data: text(field()??)?,
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
