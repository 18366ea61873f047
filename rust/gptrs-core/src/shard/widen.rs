//! Stored tokens to the type that they are delivered as.

use std::ops::Range;

use super::{Dtype, Token};
use crate::simd::{CACHE_LINE, Level};

/// Tokens that are widened at a time.
const STRETCH: usize = 128;

/// Writes the stored tokens of `bytes` to `out`, one for one, with the widest instructions of this processor.
#[inline]
pub(crate) fn widen<T: Token>(dtype: Dtype, bytes: &[u8], out: &mut [T]) {
    widen_at(Level::detected(), dtype, bytes, out);
}

/// Writes the first tokens of `bytes` to `tokens` and those from the second on to `targets`; calls `beside` with each
/// stretch of them that is done, so that what comes next is fetched while the processor stores.
pub(crate) fn widen_row<T: Token>(
    dtype: Dtype,
    bytes: &[u8],
    tokens: &mut [T],
    targets: &mut [T],
    mut beside: impl FnMut(Range<usize>),
) {
    let (level, size) = (Level::detected(), dtype.size());
    for stretch in stretches(tokens) {
        let (first, second) = (stretch.start * size, (stretch.start + 1) * size);
        widen_at(level, dtype, bytes.get(first..).unwrap_or_default(), &mut tokens[stretch.clone()]);
        widen_at(level, dtype, bytes.get(second..).unwrap_or_default(), &mut targets[stretch.clone()]);
        beside(stretch);
    }
}

/// Cuts `out` at borders of cache lines, across which a store takes as long as two.
fn stretches<T>(out: &[T]) -> impl Iterator<Item = Range<usize>> + use<T> {
    let n = out.len();
    let first = out.as_ptr().align_offset(CACHE_LINE).min(n);
    let others = (first..n).step_by(STRETCH).map(move |start| start..n.min(start + STRETCH));
    std::iter::once(0..first).chain(others)
}

fn widen_at<T: Token>(level: Level, dtype: Dtype, bytes: &[u8], out: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    match level {
        // SAFETY: this processor was found to have the level.
        Level::Avx512 => return unsafe { widen_avx512(dtype, bytes, out) },
        // SAFETY: this processor was found to have the level.
        Level::Avx2 => return unsafe { widen_avx2(dtype, bytes, out) },
        Level::Scalar => {}
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    each(dtype, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn widen_avx2<T: Token>(dtype: Dtype, bytes: &[u8], out: &mut [T]) {
    each(dtype, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn widen_avx512<T: Token>(dtype: Dtype, bytes: &[u8], out: &mut [T]) {
    each(dtype, bytes, out);
}

/// Plain loops over fixed-size chunks, which the compiler turns into vector loads, widenings and stores.
#[allow(clippy::inline_always, reason = "each caller compiles it for its own instructions")]
#[inline(always)]
fn each<T: Token>(dtype: Dtype, bytes: &[u8], out: &mut [T]) {
    match dtype {
        Dtype::U16 => {
            let bytes = bytes.as_chunks().0;
            let n = bytes.len().min(out.len());
            for (id, &bytes) in out[..n].iter_mut().zip(&bytes[..n]) {
                *id = T::from_u16(u16::from_le_bytes(bytes));
            }
        }
        Dtype::U32 => {
            for (id, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *id = T::from_u32(u32::from_le_bytes(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token `i`, byte by byte.
    fn id(dtype: Dtype, bytes: &[u8], i: usize) -> u32 {
        match dtype {
            Dtype::U16 => u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).into(),
            Dtype::U32 => u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
        }
    }

    fn check<T: Token + PartialEq + std::fmt::Debug>(dtype: Dtype, of: fn(u32) -> T) {
        let bytes: Vec<u8> = (0..4 * 300u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for n in (0..70).chain([255, 256, 257]) {
            // Every phase of the bytes, and room for fewer and for more than there are.
            for from in 0..4 {
                let bytes = &bytes[from..][..=n * dtype.size()];
                for room in [n.saturating_sub(3), n, n + 2] {
                    let mut expected = vec![T::default(); room];
                    for (i, expected) in expected.iter_mut().enumerate().take(n) {
                        *expected = of(id(dtype, bytes, i));
                    }
                    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                        let mut got = vec![T::default(); room];
                        widen_at(level, dtype, bytes, &mut got);
                        assert_eq!(got, expected, "{level} {n} {from} {room}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_widens_each_token_to_its_number() {
        check(Dtype::U16, |id| id as u16);
        for dtype in [Dtype::U16, Dtype::U32] {
            check(dtype, |id| id);
            check(dtype, |id| id as i32);
            check(dtype, i64::from);
        }
    }

    #[test]
    fn targets_are_one_token_further() {
        for n in [1, 8, STRETCH - 1, STRETCH, STRETCH + 1, 3 * STRETCH + 5] {
            let bytes: Vec<u8> = (0..=n as u16).flat_map(u16::to_le_bytes).collect();
            // Every place in a cache line.
            for from in 0..CACHE_LINE / size_of::<i64>() {
                let (mut tokens, mut targets, mut done) = (vec![-1i64; from + n], vec![-1i64; from + n], 0..0);
                widen_row(Dtype::U16, &bytes, &mut tokens[from..], &mut targets[from..], |stretch| {
                    assert_eq!(done.end, stretch.start);
                    done.end = stretch.end;
                });
                assert_eq!(done, 0..n);
                assert!(tokens[..from].iter().chain(&targets[..from]).all(|&id| id == -1));
                assert!(tokens.into_iter().skip(from).eq(0..n as i64));
                assert!(targets.into_iter().skip(from).eq(1..=n as i64));
            }
        }
    }

    #[test]
    fn stretches_end_at_borders_of_cache_lines() {
        let out = vec![0i64; 5 * STRETCH];
        for from in 0..20 {
            let out = &out[from..];
            let borders: Vec<_> = stretches(out).map(|stretch| out[stretch].as_ptr().addr()).skip(1).collect();
            assert!(borders.len() >= 5 && borders.iter().all(|border| border % CACHE_LINE == 0), "{from}");
        }
    }
}
