//! Panels by AVX-512 and AMX.
//!
//! Source: Intel Architecture Instruction Set Extensions and Future Features, chapter 3 (AMX); the tiles' layout there.

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, __m512, __m512bh, __m512i, _CMP_LT_OQ, _mm512_abs_ps, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_extracti64x4_epi64, _mm512_loadu_ps, _mm512_maskz_sub_ps, _mm512_permutex2var_epi16,
    _mm512_permutex2var_epi32, _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32,
    _mm512_slli_epi32, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;
use std::sync::OnceLock;

use super::panel::{DEPTH, Factor, Kind, Line, SIDE, STEP};
use super::{Asked, Many, Tile, Wide};
use crate::simd::Level;
use crate::simd::avx512::load_words;

/// Whether the processor has tiles and bfloat16 on them, and the system lets this process use them: it has to be asked once.
pub(super) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        const TILES: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        const ASK_FOR_STATE: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        let has_tiles = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (TILES | BF16) == TILES | BF16;
        // SAFETY: the call takes two numbers and changes nothing but what this process may use.
        has_tiles
            && Level::Avx512.is_available()
            && is_x86_feature_detected!("avx512bf16")
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) } == 0
    })
}

/// How many steps before numbers are split they are asked for.
const AHEAD: usize = 8;

/// What each tile is: 16 rows of 64 bytes.
static SHAPE: [u8; 64] = {
    let mut bytes = [0_u8; 64];
    bytes[0] = 1; // palette
    let mut tile = 0;
    while tile < 8 {
        (bytes[16 + 2 * tile], bytes[48 + tile]) = (64, 16);
        tile += 1;
    }
    bytes
};

/// The sums of one panel of rows with one of columns.
///
/// Four tiles hold sums, two the panel of rows, two that of columns: of each the parts are loaded in an order in which one of
/// both stays, the smallest products first. The panels must be of one length.
pub(super) fn multiply(a: &[Line], b: &[Line], asked: &Asked<'_>, tile: &mut Tile) {
    let n_steps = a.len() / STEP;
    assert!(is_available() && n_steps > 0 && a.len() == b.len() && a.len().is_multiple_of(STEP));
    let ahead = if asked.ahead.is_empty() { 0 } else { (STEP / asked.nth.max(1)) * size_of::<Line>() };
    // SAFETY: tiles are there. Each step reads `STEP` lines of both panels, which have `n_steps` times as many. Four tiles are
    // stored, 2 × 2, to rows of 128 bytes of `tile`, which has 32. The shape's 64 bytes are read. What is asked for need not be
    // readable. All tiles are released and marked as overwritten; nothing else changes but the registers named.
    unsafe {
        asm!(
            "ldtilecfg [{shape}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tileloadd tmm6, [{b} + {row} + 4096]",
            "tileloadd tmm7, [{b} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {row} + 2048]",
            "tileloadd tmm7, [{b} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row} + 2048]",
            "tileloadd tmm5, [{a} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "lea {end}, [{ahead} + {n_ahead}]",
            "cmp {ahead}, {end}",
            "jae 4f",
            "3:",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            "cmp {ahead}, {end}",
            "jb 3b",
            "4:",
            "sub {n_rows}, 2",
            "jl 5f",
            "prefetchw [{out}]",
            "prefetchw [{out} + 64]",
            "add {out}, {step}",
            "prefetchw [{out}]",
            "prefetchw [{out} + 64]",
            "add {out}, {step}",
            "5:",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row} + 4096]",
            "tileloadd tmm5, [{a} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 6144",
            "add {b}, 6144",
            "dec {n}",
            "jnz 2b",
            "mov {row}, 128",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + 64], tmm1",
            "add {sums}, 2048",
            "tilestored [{sums} + {row}], tmm2",
            "tilestored [{sums} + {row} + 64], tmm3",
            "tilerelease",
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            ahead = inout(reg) asked.ahead.as_ptr() => _,
            n_ahead = in(reg) ahead,
            out = inout(reg) asked.out.first => _,
            step = in(reg) asked.out.step * size_of::<f32>(),
            n_rows = inout(reg) asked.out.count => _,
            end = out(reg) _,
            n = inout(reg) n_steps => _,
            row = inout(reg) 64_usize => _,
            sums = inout(reg) tile.0.as_mut_ptr() => _,
            shape = in(reg) SHAPE.as_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
    const { assert!(STEP * size_of::<Line>() == 6144 && SIDE == 32 && DEPTH == 32) };
}

/// The sums of so many panels of rows with so many of columns, one pair after the other, as [`multiply`] has them, put into tiles or
/// added to what is there. The shape of tiles is set once for all: that takes as long as a quarter of a short product.
pub(super) fn multiply_many(many: &Many<'_>, tiles: &mut [Tile]) {
    let (n_steps, steps) = (many.depth, [many.a_step, many.b_step].map(|step| step.wrapping_sub(many.depth)));
    let holds = |lines: &[Line], step: usize| (tiles.len() - 1) * step + n_steps <= lines.len() / STEP;
    assert!(
        is_available() && n_steps > 0 && !tiles.is_empty() && holds(many.a, many.a_step) && holds(many.b, many.b_step)
    );
    let [a_next, b_next] = steps.map(|step| step.wrapping_mul(STEP * size_of::<Line>()));
    // SAFETY: tiles are there. Of each pair `n_steps` steps of `STEP` lines are read, and `holds` has seen the last pair's end in
    // both slices. Of each of `tiles` its 32 rows of 128 bytes are read and written. The shape's 64 bytes are read. All tiles
    // are released and marked as overwritten; nothing else changes but the registers named.
    unsafe {
        asm!(
            "ldtilecfg [{shape}]",
            "2:",
            "test {is_added}, {is_added}",
            "jz 3f",
            "mov {n}, 128",
            "tileloadd tmm0, [{sums} + {n}]",
            "tileloadd tmm1, [{sums} + {n} + 64]",
            "tileloadd tmm2, [{sums} + {n} + 2048]",
            "tileloadd tmm3, [{sums} + {n} + 2112]",
            "jmp 4f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "4:",
            "mov {n}, {n_steps}",
            "5:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tileloadd tmm6, [{b} + {row} + 4096]",
            "tileloadd tmm7, [{b} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {row} + 2048]",
            "tileloadd tmm7, [{b} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row} + 2048]",
            "tileloadd tmm5, [{a} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row} + 4096]",
            "tileloadd tmm5, [{a} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 6144",
            "add {b}, 6144",
            "dec {n}",
            "jnz 5b",
            "mov {n}, 128",
            "tilestored [{sums} + {n}], tmm0",
            "tilestored [{sums} + {n} + 64], tmm1",
            "tilestored [{sums} + {n} + 2048], tmm2",
            "tilestored [{sums} + {n} + 2112], tmm3",
            "add {sums}, 4096",
            "add {a}, {a_next}",
            "add {b}, {b_next}",
            "dec {n_tiles}",
            "jnz 2b",
            "tilerelease",
            a = inout(reg) many.a.as_ptr() => _,
            b = inout(reg) many.b.as_ptr() => _,
            a_next = in(reg) a_next,
            b_next = in(reg) b_next,
            n_steps = in(reg) n_steps,
            n = out(reg) _,
            n_tiles = inout(reg) tiles.len() => _,
            is_added = in(reg) usize::from(many.is_added),
            row = in(reg) 64_usize,
            sums = inout(reg) tiles.as_mut_ptr() => _,
            shape = in(reg) SHAPE.as_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
    const { assert!(size_of::<Tile>() == 4096) };
}

/// Work compiled for wide registers.
pub(super) fn by_wide_registers(work: impl Wide) {
    #[target_feature(enable = "avx512f")]
    fn run(work: impl Wide) {
        work.run();
    }
    assert!(is_available());
    // SAFETY: what is available includes these instructions.
    unsafe { run(work) }
}

/// [`Factor::split`] by registers of 16 numbers, in the order in which they stand in memory.
pub(super) fn split(factor: &Factor<'_>, kind: Kind, first: usize, depth: Range<usize>, n: usize, panels: &mut [Line]) {
    assert!(is_available());
    let (n_panels, n_steps) = (panels.len() / n, n / STEP);
    for i in 0..n_panels * n_steps {
        let place =
            |i: usize| if factor.is_along() { (i / n_steps, i % n_steps) } else { (i % n_panels, i / n_panels) };
        let (panel, step) = place(i + AHEAD);
        factor.prefetch(first + panel * SIDE, depth.start + step * DEPTH);
        let (panel, step) = place(i);
        let (line, at) = (first + panel * SIDE, depth.start + step * DEPTH);
        let tiles = &mut panels[panel * n + step * STEP..][..STEP];
        // SAFETY: what is available includes these instructions.
        unsafe { split_step(factor, kind, line, at, depth.end, tiles) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_step(factor: &Factor<'_>, kind: Kind, first: usize, at: usize, end: usize, tiles: &mut [Line]) {
    let is_along = factor.is_along();
    let tiles = tiles.first_chunk_mut::<STEP>().expect("a step is so long");
    let is_turned = is_along == (kind == Kind::Columns);
    for half in 0..2 {
        let line = first + 16 * half;
        // For each part 16 registers of pairs: a register for each line, or for each pair.
        let mut rows = [[_mm512_set1_epi32(0); 16]; 3];
        for i in 0..16 {
            let (mut one, mut two) = ([0.0; 16], [0.0; 16]);
            let pairs = if is_along {
                let low = load(factor.along(line + i, at, end, &mut one));
                let high = load(factor.along(line + i, at + 16, end, &mut two));
                parts(low, high)
            } else {
                let low = load(factor.across(line, at + 2 * i, end, &mut one));
                let high = load(factor.across(line, at + 2 * i + 1, end, &mut two));
                let [first, second, third] = parts(low, high);
                [alternating(first), alternating(second), alternating(third)]
            };
            for (part, pairs) in pairs.into_iter().enumerate() {
                if is_turned {
                    rows[part][i] = pairs;
                } else {
                    store_line(pairs, &mut tiles[16 * (2 * part + half) + i]);
                }
            }
        }
        if is_turned {
            for (part, rows) in rows.iter().enumerate() {
                store(&turned(rows), &mut tiles[16 * (2 * part + half)..][..16]);
            }
        }
    }
}

/// The rows of a tile as a step of a panel of rows, and its columns as one of a panel of columns. Neither has to be turned.
pub(super) fn split_tile(tile: &Tile, rows: &mut [Line], columns: Option<&mut [Line]>) {
    assert!(is_available());
    let rows = rows.first_chunk_mut().expect("a step is so long");
    let columns = columns.map(|columns| columns.first_chunk_mut().expect("a step is so long"));
    // SAFETY: what is available includes these instructions.
    unsafe { split_rows(tile, rows, columns) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_rows(tile: &Tile, rows: &mut [Line; STEP], mut columns: Option<&mut [Line; STEP]>) {
    let halves: [[u32; 16]; 2] = std::array::from_fn(|half| {
        std::array::from_fn(|i| (16 * half + i) as u32 | ((16 * half + i + 32) as u32) << 16)
    });
    let halves = [load_words(&halves[0]), load_words(&halves[1])];
    for (pair, numbers) in tile.0.as_chunks::<16>().0.as_chunks::<4>().0.iter().enumerate() {
        let first = parts(load(&numbers[0]), load(&numbers[1]));
        let second = parts(load(&numbers[2]), load(&numbers[3]));
        let at = 16 * (pair / 8) + 2 * (pair % 8);
        for part in 0..3 {
            store_line(first[part], &mut rows[32 * part + at]);
            store_line(second[part], &mut rows[32 * part + at + 1]);
            if let Some(columns) = &mut columns {
                for (half, &index) in halves.iter().enumerate() {
                    let pairs = _mm512_permutex2var_epi16(first[part], index, second[part]);
                    store_line(pairs, &mut columns[16 * (2 * part + half) + pair]);
                }
            }
        }
    }
}

/// A tile with rows and columns exchanged.
pub(super) fn turn(tile: &Tile, to: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    fn turn(tile: &Tile, to: &mut Tile) {
        let from = tile.0.as_chunks::<16>().0;
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut rows = [_mm512_set1_epi32(0); 16];
            for (i, words) in rows.iter_mut().enumerate() {
                *words = _mm512_castps_si512(load(&from[2 * (16 * row + i) + column]));
            }
            for (i, words) in turned(&rows).into_iter().enumerate() {
                let place = &mut to.0.as_chunks_mut::<16>().0[2 * (16 * column + i) + row];
                // SAFETY: the array is 64 writable bytes, and the store asks for no alignment.
                unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), words) };
            }
        }
    }
    assert!(is_available());
    // SAFETY: what is available includes these instructions.
    unsafe { turn(tile, to) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(numbers: &[f32; 16]) -> __m512 {
    // SAFETY: the array is 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(rows: &[__m512i; 16], tile: &mut [Line]) {
    for (row, line) in rows.iter().zip(tile) {
        store_line(*row, line);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_line(words: __m512i, line: &mut Line) {
    // SAFETY: a line is 64 writable bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(std::ptr::from_mut(line).cast(), words) };
}

/// [`super::panel::parts`] of 32 numbers, those of each part side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn parts(low: __m512, high: __m512) -> [__m512i; 3] {
    let largest = _mm512_set1_ps(f32::from_bits(0x7F7F_8000));
    let is_small = [low, high].map(|x| _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), largest));
    let first = rounded(low, high);
    let [a, b] = widened(first);
    let (low, high) = (_mm512_maskz_sub_ps(is_small[0], low, a), _mm512_maskz_sub_ps(is_small[1], high, b));
    let second = rounded(low, high);
    let [a, b] = widened(second);
    [first, second, rounded(_mm512_sub_ps(low, a), _mm512_sub_ps(high, b))]
}

/// The nearest bfloat16, of two the even one.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are registers of 64 bytes of any content.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// 32 bfloat16 as float32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(numbers: __m512i) -> [__m512; 2] {
    [_mm512_castsi512_si256(numbers), _mm512_extracti64x4_epi64::<1>(numbers)]
        .map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))))
}

/// Halfwords of the lower and the upper half in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn alternating(numbers: __m512i) -> __m512i {
    let index: [u32; 16] = std::array::from_fn(|i| i as u32 | (i as u32 + 16) << 16);
    _mm512_permutexvar_epi16(load_words(&index), numbers)
}

/// Rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned(rows: &[__m512i; 16]) -> [__m512i; 16] {
    // Within quarters of registers: four rows of four words become columns.
    let mut quads = [rows[0]; 16];
    for i in (0..16).step_by(4) {
        let (a, b) = (_mm512_unpacklo_epi32(rows[i], rows[i + 1]), _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]));
        let (c, d) = (_mm512_unpackhi_epi32(rows[i], rows[i + 1]), _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]));
        quads[i] = _mm512_unpacklo_epi64(a, b);
        quads[i + 1] = _mm512_unpackhi_epi64(a, b);
        quads[i + 2] = _mm512_unpacklo_epi64(c, d);
        quads[i + 3] = _mm512_unpackhi_epi64(c, d);
    }
    // Then the quarters themselves: quads[4·i + j] has, in its quarter q, column 4·q + j of rows 4·i to 4·i + 3.
    let even = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    let odd = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    let mut columns = [rows[0]; 16];
    for j in 0..4 {
        let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
        for (first, index) in [(j, even), (4 + j, odd)] {
            // Quarters q and q + 2 of each pair of registers, then of both pairs.
            let (ab, cd) = (_mm512_permutex2var_epi32(a, index, b), _mm512_permutex2var_epi32(c, index, d));
            columns[first] = _mm512_permutex2var_epi32(ab, even, cd);
            columns[8 + first] = _mm512_permutex2var_epi32(ab, odd, cd);
        }
    }
    columns
}
