//! Memory of results that are gone, for those to come: to a process that encodes again and again, new pages for each result
//! would be up to a third of the time.
//!
//! The system may have the pages back whenever it needs them; that they are held costs nobody else memory.

use std::sync::Mutex;

use crate::ids::Ids;
use crate::pages;

/// Bytes and arrays that are kept, at most, of each kind of ids.
const MOST: usize = 256 << 20;
const MOST_ARRAYS: usize = 16;

/// Arrays of ids that nobody uses, the oldest first.
pub(crate) struct Kept<I>(Mutex<Vec<Own<I>>>);

/// An empty array, and how many bytes of it have pages.
struct Own<I> {
    ids: Vec<I>,
    n_bytes: usize,
}

impl<I: Copy> Kept<I> {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The smallest array with room for `n`, unless much of it would be left over.
    ///
    /// A process may have been forked while the lock was held, so nobody waits for it.
    fn take(&self, n: usize) -> Option<Vec<I>> {
        let mut kept = self.0.try_lock().ok()?;
        let fitting = (0..kept.len()).filter(|&i| (n..=n.saturating_mul(2)).contains(&kept[i].ids.capacity()));
        let best = fitting.min_by_key(|&i| kept[i].ids.capacity())?;
        Some(kept.remove(best).ids)
    }

    /// Keeps the memory of `ids`, and lets go of what was kept longest if that is too much.
    fn give(&self, mut ids: Vec<I>) {
        let n_bytes = size_of_val(ids.as_slice());
        if n_bytes > MOST || !pages::leave(&mut ids) {
            return;
        }
        let Ok(mut kept) = self.0.try_lock() else { return };
        kept.push(Own { ids, n_bytes });
        while kept.len() > MOST_ARRAYS || kept.iter().map(|own| own.n_bytes).sum::<usize>() > MOST {
            kept.remove(0);
        }
    }
}

/// Ids of which arrays are kept.
pub(crate) trait Keep: Copy + 'static {
    fn kept() -> &'static Kept<Self>;
}

impl Keep for u16 {
    fn kept() -> &'static Kept<Self> {
        static KEPT: Kept<u16> = Kept::new();
        &KEPT
    }
}

impl Keep for u32 {
    fn kept() -> &'static Kept<Self> {
        static KEPT: Kept<u32> = Kept::new();
        &KEPT
    }
}

/// An empty array with room for `n`.
pub(crate) fn with_room<I: Keep>(n: usize) -> Vec<I> {
    I::kept().take(n).unwrap_or_else(|| pages::with_room(n))
}

/// Takes the memory of `ids` for results to come.
pub fn give_back(ids: Ids) {
    match ids {
        Ids::U16(ids) => u16::kept().give(ids),
        Ids::U32(ids) => u32::kept().give(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids that are enough to be kept, and half as many as well.
    const N: usize = pages::KEPT;

    fn filled(n: usize) -> Vec<u16> {
        let mut ids = pages::with_room(n);
        ids.resize(n, 7);
        ids
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_had_again_by_what_needs_most_of_it() {
        let kept = Kept::new();
        let arrays = [filled(2 * N), filled(N), filled(3 * N)];
        let places = arrays.each_ref().map(Vec::as_ptr);
        for ids in arrays {
            kept.give(ids);
        }
        let asked =
            [(3 * N + 1, None), (N / 2 - 1, None), (N + 1, Some(0)), (N + 1, None), (2 * N, Some(2)), (N / 2, Some(1))];
        for (n, of) in asked {
            let ids = kept.take(n);
            assert_eq!(ids.as_ref().map(Vec::as_ptr), of.map(|i: usize| places[i]), "{n}");
            assert!(ids.is_none_or(|ids| ids.is_empty() && ids.capacity() >= n));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn little_is_not_kept_nor_more_than_the_most() {
        let kept = Kept::new();
        kept.give(filled(N / 2 - 1));
        assert!(kept.take(N / 2 - 1).is_none());
        for _ in 0..=MOST_ARRAYS {
            kept.give(filled(N));
        }
        assert_eq!(std::iter::from_fn(|| kept.take(N)).count(), MOST_ARRAYS);
        let n = MOST / 8; // a fourth of what is kept
        let places: Vec<_> = (0..6)
            .map(|_| {
                let ids = filled(n);
                let place = ids.as_ptr();
                kept.give(ids);
                place
            })
            .collect();
        let left: Vec<_> = std::iter::from_fn(|| kept.take(n)).map(|ids| ids.as_ptr()).collect();
        assert_eq!(left.len(), 4);
        assert!(left.iter().all(|place| places.contains(place)));
        kept.give(filled(MOST / 2 + 1));
        assert!(kept.take(MOST / 2 + 1).is_none());
    }

    #[test]
    fn nobody_waits_for_the_lock() {
        let kept = Kept::new();
        let _held = kept.0.lock().unwrap();
        kept.give(filled(N));
        assert!(kept.take(N).is_none());
    }
}
