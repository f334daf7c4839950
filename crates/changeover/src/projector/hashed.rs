//! Keys whose hashes were computed where their events were decoded, so that no map computes them again.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use indexmap::Equivalent;

/// A key with its hash, which was computed where the event was decoded.
pub(super) struct Hashed<K> {
    pub(super) hash: u64,
    pub(super) key: K,
}

impl<K> Hash for Hashed<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K: Eq> PartialEq for Hashed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<K: Eq> Eq for Hashed<K> {}

/// The same, to look it up.
pub(super) struct Lookup<'k, K> {
    pub(super) hash: u64,
    pub(super) key: &'k K,
}

impl<K> Hash for Lookup<'_, K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<K: Eq> Equivalent<Hashed<K>> for Lookup<'_, K> {
    fn equivalent(&self, key: &Hashed<K>) -> bool {
        *self.key == key.key
    }
}

/// Hands on what is a hash already.
#[derive(Default)]
pub(super) struct Computed(u64);

impl Hasher for Computed {
    fn write(&mut self, _: &[u8]) {
        panic!("BUG: no hash was computed before");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// For maps and sets of what is hashed already.
pub(super) type ByHash = BuildHasherDefault<Computed>;
