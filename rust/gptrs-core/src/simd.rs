//! Which vector instructions the scanners use.

use std::fmt;

/// Vector instructions, from none to the widest; each level needs more of the processor than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// None beyond what the build's target has.
    Scalar,
    /// AVX2 and the bit instructions of its time (`x86-64-v3`).
    Avx2,
    /// AVX-512 with byte instructions, VBMI2 and the counts of leading zeros (CD).
    Avx512,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The highest level this processor has.
    pub fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vbmi2")
                && is_x86_feature_detected!("avx512cd");
            match (has_avx2, has_avx512) {
                (true, true) => return Self::Avx512,
                (true, false) => return Self::Avx2,
                _ => {}
            }
        }
        Self::Scalar
    }

    /// Whether this processor has the level.
    pub fn is_available(self) -> bool {
        self <= Self::detected()
    }
}

/// Bytes that come near together.
pub(crate) const CACHE_LINE: usize = 64;

/// Asks for `items[at]`, so that it is near when it is needed.
#[inline]
pub(crate) fn prefetch<T>(items: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it reads and writes nothing the program can see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, at);
}

/// Asks for `items`, which will be read in a while: as far as the second cache, to which more can be on its way at once.
#[inline]
pub(crate) fn prefetch_far<T>(items: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in items.chunks((CACHE_LINE / size_of::<T>().max(1)).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it reads and writes nothing the program can see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = items;
}

/// Whole registers from arrays and back.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_storeu_si512};

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn load(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: the array is 64 readable bytes, and the load asks for no alignment.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn load_words(words: &[u32; 16]) -> __m512i {
        // SAFETY: the array is 64 readable bytes, and the load asks for no alignment.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn store(words: __m512i, to: &mut [u32; 16]) {
        // SAFETY: the array is 64 writable bytes, and the store asks for no alignment.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefetch_of_any_place_changes_nothing() {
        let items = [3, 1, 2];
        for at in [0, 2, 3, usize::MAX] {
            prefetch(&items, at);
        }
        prefetch::<u64>(&[], 0);
        assert_eq!(items, [3, 1, 2]);
    }
}
