//! Fingerprints: what a version must not change without saying so.

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// A short digest of a definition. Two builds that disagree about it must not share a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The digest of some parts. Each is preceded by its length, so that no two lists run together.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let whole: [u8; 32] = digest.finalize().into();
        let half = u128::from_be_bytes(whole[..16].try_into().expect("BUG: half of 32 is not 16"));
        Self(format!("{half:032x}"))
    }

    /// As text: 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    #[test]
    fn parts_do_not_run_together() {
        assert_eq!(Fingerprint::of(["a", "b"]), Fingerprint::of(["a", "b"]));
        assert_ne!(Fingerprint::of(["ab", ""]), Fingerprint::of(["a", "b"]));
        assert_ne!(Fingerprint::of(["ab"]), Fingerprint::of(["a", "b"]));
    }
}
