//! What a difference between two versions of a projector means.

use std::cmp::Ordering;

use semver::Version;

/// How a version differs from another one, by the part of it that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Difference {
    /// The tables or the meaning of the rows differ: tables of its own, replayed.
    Major,
    /// The same tables, other code: it takes over in place.
    Minor,
    /// The same rows come out: both may write.
    Patch,
    /// Nothing that counts (build metadata does not).
    None,
}

/// The part by which two versions differ. Pre-releases of one patch version differ as patches do.
///
/// ```
/// use changeover::{Difference, difference};
/// use semver::Version;
/// assert_eq!(difference(&Version::new(1, 4, 0), &Version::new(2, 0, 0)), Difference::Major);
/// assert_eq!(difference(&Version::new(1, 4, 0), &Version::new(1, 4, 1)), Difference::Patch);
/// ```
pub fn difference(a: &Version, b: &Version) -> Difference {
    if a.major != b.major {
        Difference::Major
    } else if a.minor != b.minor {
        Difference::Minor
    } else if a.cmp_precedence(b) != Ordering::Equal {
        Difference::Patch
    } else {
        Difference::None
    }
}

/// Whether two versions may feed the same rows side by side: the same major and minor.
pub(crate) fn may_share_rows(a: &Version, b: &Version) -> bool {
    matches!(difference(a, b), Difference::Patch | Difference::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_part_that_differs_counts() {
        let check = |a: &str, b: &str, expected| {
            assert_eq!(difference(&a.parse().unwrap(), &b.parse().unwrap()), expected, "{a} {b}");
            assert_eq!(difference(&b.parse().unwrap(), &a.parse().unwrap()), expected, "{b} {a}");
        };
        check("1.2.3", "2.2.3", Difference::Major);
        check("1.2.3", "1.3.3", Difference::Minor);
        check("1.2.3", "1.2.4", Difference::Patch);
        check("1.2.3", "1.2.3", Difference::None);
        check("1.2.3-rc.1", "1.2.3", Difference::Patch);
        check("1.2.3+a", "1.2.3+b", Difference::None);
    }
}
