//! Numbers split into three parts, in the order that tiles want.
//!
//! A panel holds 32 lines: rows of the left factor, or columns of the right one. For each 32 numbers of their depth there are
//! six tiles of 1 KiB: the first parts of lines 0 to 15 and of 16 to 31, then the second parts, then the third. A tile has 16
//! rows of 16 pairs of numbers that follow each other in depth: of the left factor a row is a line and a column a pair, of the
//! right one a row is a pair and a column a line.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::simd::prefetch_far;

/// Lines of a panel.
pub(crate) const SIDE: usize = 32;

/// Numbers of a line in a tile.
pub(crate) const DEPTH: usize = 32;

/// Rows of the six tiles that hold [`DEPTH`] numbers of all lines of a panel.
pub(crate) const STEP: usize = 6 * TILE;

/// Rows of a tile.
const TILE: usize = 16;

/// A row of a tile: 16 pairs of bfloat16, the one that is first in depth in the lower half.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(align(64))]
pub(crate) struct Line([u32; 16]);

/// Which way round tiles are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// A row of a tile is a line.
    Rows,
    /// A column of a tile is a line.
    Columns,
}

/// A factor as lines of numbers to be multiplied with those of the other one: rows of the left, columns of the right.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    numbers: &'a [f32],
    n_lines: usize,
    depth: usize,
    /// How far apart lines are, and the numbers of one; one of both is 1.
    steps: (usize, usize),
}

impl<'a> Factor<'a> {
    /// `n_lines` lines of `depth` numbers: the number `i` of line `l` is `numbers[l * steps.0 + i * steps.1]`.
    ///
    /// # Errors
    /// Argument for too few numbers, and when neither lines nor the numbers of one stand side by side.
    pub fn new(numbers: &'a [f32], n_lines: usize, depth: usize, steps: (usize, usize)) -> Result<Self> {
        let last = |n: usize, step: usize| (n - 1).checked_mul(step);
        let needed = if n_lines == 0 || depth == 0 {
            Some(0)
        } else {
            last(n_lines, steps.0).zip(last(depth, steps.1)).and_then(|(a, b)| a.checked_add(b)?.checked_add(1))
        };
        if needed.is_none_or(|n| n > numbers.len()) {
            let len = numbers.len();
            let expected = format!("expected numbers for {n_lines} lines of {depth}, {steps:?} apart, got {len}");
            return Err(Error::Argument(expected));
        }
        if (steps.0 != 1 && n_lines > 1) && (steps.1 != 1 && depth > 1) {
            return Err(Error::Argument(format!("expected rows or columns side by side, got {steps:?} apart")));
        }
        Ok(Self { numbers, n_lines, depth, steps })
    }

    /// The rows of a tile as lines.
    pub(crate) fn of_tile(tile: &'a super::Tile) -> Self {
        Self { numbers: &tile.0, n_lines: SIDE, depth: SIDE, steps: (SIDE, 1) }
    }

    /// The same numbers, lines and places in depth exchanged.
    pub(crate) fn turned(&self) -> Self {
        let Self { numbers, n_lines, depth, steps } = *self;
        Self { numbers, n_lines: depth, depth: n_lines, steps: (steps.1, steps.0) }
    }

    pub(crate) fn n_lines(&self) -> usize {
        self.n_lines
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Splits the numbers at these places in depth, of the lines from `first` on, to panels of `n` tile rows each; lines and
    /// numbers that are missing are zeros.
    pub(crate) fn split(&self, kind: Kind, first: usize, depth: Range<usize>, n: usize, panels: &mut [Line]) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if super::amx::is_available() {
            return super::amx::split(self, kind, first, depth, n, panels);
        }
        self.split_each(kind, first, depth, n, panels);
    }

    /// [`Factor::split`] number by number.
    pub(super) fn split_each(&self, kind: Kind, first: usize, depth: Range<usize>, n: usize, panels: &mut [Line]) {
        for (step, tiles) in panels.chunks_mut(STEP).enumerate() {
            let (panel, step) = (step / (n / STEP), step % (n / STEP));
            for line in 0..SIDE {
                for pair in 0..DEPTH / 2 {
                    let at = depth.start + step * DEPTH + 2 * pair;
                    let [low, high] =
                        [at, at + 1].map(|at| parts(self.number(first + panel * SIDE + line, at, depth.end)));
                    for part in 0..3 {
                        let tile = TILE * (2 * part + line / TILE);
                        let (row, column) = match kind {
                            Kind::Rows => (line % TILE, pair),
                            Kind::Columns => (pair, line % TILE),
                        };
                        tiles[tile + row].0[column] = u32::from(low[part]) | u32::from(high[part]) << 16;
                    }
                }
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn number(&self, line: usize, at: usize, end: usize) -> f32 {
        if line < self.n_lines && at < end { self.numbers[line * self.steps.0 + at * self.steps.1] } else { 0.0 }
    }

    /// 16 numbers of a line from `at` on; zeros behind `end` and the last line, put together in `room`.
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    pub(super) fn along<'r>(&'r self, line: usize, at: usize, end: usize, room: &'r mut [f32; 16]) -> &'r [f32; 16] {
        if line < self.n_lines
            && at + 16 <= end
            && let Some(numbers) = self.numbers.get(line * self.steps.0 + at..).and_then(|all| all.first_chunk())
        {
            return numbers;
        }
        *room = std::array::from_fn(|i| self.number(line, at + i, end));
        room
    }

    /// The numbers of 16 lines at one place in depth; as above.
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    pub(super) fn across<'r>(&'r self, line: usize, at: usize, end: usize, room: &'r mut [f32; 16]) -> &'r [f32; 16] {
        if line + 16 <= self.n_lines
            && at < end
            && let Some(numbers) = self.numbers.get(line + at * self.steps.1..).and_then(|all| all.first_chunk())
        {
            return numbers;
        }
        *room = std::array::from_fn(|i| self.number(line + i, at, end));
        room
    }

    /// Asks for the [`DEPTH`] numbers from `at` on of a panel's lines.
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    pub(super) fn prefetch(&self, first: usize, at: usize) {
        for i in 0..SIDE {
            let start = if self.is_along() { (first + i) * self.steps.0 + at } else { first + (at + i) * self.steps.1 };
            if let Some(numbers) = self.numbers.get(start..start + SIDE) {
                prefetch_far(numbers);
            }
        }
    }

    /// Whether the numbers of a line stand side by side.
    pub(super) fn is_along(&self) -> bool {
        self.steps.1 == 1 || self.depth == 1
    }
}

/// Three bfloat16 whose sum is `x`, the largest first. What is infinite or would be when rounded is one part; numbers and rests
/// below the smallest normal one are zeros.
pub(super) fn parts(x: f32) -> [u16; 3] {
    let rounded = |x: f32| {
        let bits = x.to_bits();
        let top = if x.is_nan() { bits | 0x40_0000 } else { bits + 0x7FFF + (bits >> 16 & 1) } & 0xFFFF_0000;
        f32::from_bits(if x.abs() < f32::MIN_POSITIVE { bits & 0x8000_0000 } else { top })
    };
    let first = rounded(x);
    let rest = if first.is_finite() { x - first } else { 0.0 };
    let second = rounded(rest);
    [first, second, rounded(rest - second)].map(|part| (part.to_bits() >> 16) as u16)
}

/// The sums of 32 rows with 32 columns, number by number, in 64 bits: as exact as tiles, whose order is another.
pub(super) fn multiply(a: &[Line], b: &[Line], tile: &mut super::Tile) {
    let number = |pair: u32, half: usize| f64::from(f32::from_bits(pair >> (16 * half) << 16));
    for (at, sum) in tile.0.iter_mut().enumerate() {
        let (row, column) = (at / SIDE, at % SIDE);
        let mut total = 0.0;
        for (a, b) in a.chunks(STEP).zip(b.chunks(STEP)) {
            for (i, j) in [(0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)] {
                let a = &a[TILE * (2 * i + row / TILE) + row % TILE].0;
                let b = &b[TILE * (2 * j + column / TILE)..][..TILE];
                for (pair, b) in a.iter().zip(b) {
                    for half in 0..2 {
                        total += number(*pair, half) * number(b.0[column % TILE], half);
                    }
                }
            }
        }
        *sum = total as f32;
    }
}
