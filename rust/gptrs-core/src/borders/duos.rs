//! Characters side by side that are a token each, and one together.

use std::hint::select_unpredictable;

use super::hashed_bit;
use crate::simd;

/// No entry: no pair of characters is two zeros.
const FREE: u64 = 0;

/// By the codes of two characters what their tokens merge into. Nearly all that is asked for is here, or its bucket has room
/// for it: one look at a small table answers, where that of all merges is ten times as large.
#[derive(Debug, Clone)]
pub(super) struct Duos {
    /// Codes in the upper half, 16 bits each, the id in the lower.
    buckets: Vec<[u64; 2]>,
    shift: u32,
}

/// What two characters together are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Duo {
    pub(super) id: u32,
    /// Whether they merge at all.
    pub(super) is_there: bool,
    /// Whether that is certain: there may have been no room for them.
    pub(super) is_sure: bool,
}

impl Duos {
    /// Those of `(left, right, id)`, codes below 2¹⁶.
    pub(super) fn new(duos: &[(u32, u32, u32)]) -> Self {
        let n_buckets = duos.len().next_power_of_two().max(2);
        let shift = u64::BITS - n_buckets.trailing_zeros();
        let mut buckets = vec![[FREE; 2]; n_buckets];
        for &(left, right, id) in duos {
            let bucket = &mut buckets[hashed_bit((left, right), shift)];
            if let Some(entry) = bucket.iter_mut().find(|entry| **entry == FREE) {
                *entry = u64::from(key(left, right)) << 32 | u64::from(id);
            }
        }
        Self { buckets, shift }
    }

    #[inline]
    pub(super) fn prefetch(&self, left: u32, right: u32) {
        simd::prefetch(&self.buckets, hashed_bit((left, right), self.shift));
    }

    /// Whether two characters merge cannot be foreseen: no branch is taken.
    #[inline]
    pub(super) fn find(&self, left: u32, right: u32) -> Duo {
        let [first, second] = self.buckets[hashed_bit((left, right), self.shift)];
        let key = key(left, right);
        let entry = select_unpredictable((second >> 32) as u32 == key, second, first);
        let is_there = (entry >> 32) as u32 == key;
        Duo { id: entry as u32, is_there, is_sure: is_there || second == FREE }
    }
}

#[inline]
fn key(left: u32, right: u32) -> u32 {
    left << 16 | right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_is_true_and_little_is_not() {
        let all: Vec<_> = (0..5000).map(|i| (0x4E00 + i * 7 % 997, 0x3040 + i * 31 % 1009, 300 + i)).collect();
        let duos = Duos::new(&all);
        let mut n_unsure = 0;
        for &(left, right, id) in &all {
            let duo = duos.find(left, right);
            assert!(if duo.is_there { duo.id == id } else { !duo.is_sure }, "{left} {right}: {duo:?}");
            n_unsure += u32::from(!duo.is_sure);
        }
        assert!((1..500).contains(&n_unsure), "{n_unsure} of 5,000 are not here");
        let others = (0..5000).map(|i| duos.find(0x5E00 + i % 997, 0x3040 + i % 1009));
        let n_unsure = others.inspect(|duo| assert!(!duo.is_there)).filter(|duo| !duo.is_sure).count();
        assert!((1..2000).contains(&n_unsure), "{n_unsure} of 5,000 others are not certain");
        assert_eq!(Duos::new(&[]).find(0x4E00, 0x4E01), Duo { id: 0, is_there: false, is_sure: true });
    }
}
