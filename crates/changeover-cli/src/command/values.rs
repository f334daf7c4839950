//! How what is typed is read.

use std::time::Duration;

use changeover::{AdoptAt, Position};

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; examples: 500ms, 30s, 2m"))
}

pub(super) fn duration_above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// A number of bytes, with a unit if it is not plain bytes.
pub(super) fn size(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, usize); 8] = [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1_000),
        ("B", 1),
        ("", 1),
    ];
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit)).expect("the last one fits");
    let number = text[..text.len() - unit.len()].trim();
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(*factor));
    match bytes {
        Some(bytes) if bytes >= 16 << 20 => Ok(bytes),
        Some(_) => Err("at least 16MiB".to_owned()),
        None => Err("examples: 512MiB, 2GiB".to_owned()),
    }
}

pub(super) fn adopt_at(text: &str) -> Result<AdoptAt, String> {
    if text == "horizon" {
        return Ok(AdoptAt::Horizon);
    }
    match text.parse() {
        Ok(position) if position >= 0 => Ok(AdoptAt::Position(Position::new(position))),
        Ok(_) => Err("positions begin at 1; 0 stands before the first".to_owned()),
        Err(error) => Err(format!("{error}; give a position or the word horizon")),
    }
}

pub(super) fn position(text: &str) -> Result<Position, String> {
    let position: i64 = text.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    if position < 1 {
        return Err("positions begin at 1".to_owned());
    }
    Ok(Position::new(position))
}
