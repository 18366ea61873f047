//! Values weighted by the exponentials of scores.

use std::sync::{Mutex, PoisonError};

use super::{Inputs, Shape, Tile, Wide, sum};
use crate::error::Result;
use crate::exp::exp;
use crate::gemm::{Kind, Line, Many, SIDE, SPARE, STEP, by_wide_registers, multiply_many};
use crate::parallel::Queue;

/// Panels of keys multiplied at once: their scores stay in the first cache.
const NEAR: usize = 4;

/// Attention under way: any number of threads may work on it at once.
#[derive(Debug)]
pub struct Forward<'a> {
    inputs: Inputs<'a>,
    shape: Shape,
    parts: Vec<Mutex<Part<'a>>>,
    queue: Queue,
}

/// What a task writes: rows of out by position and query head, log-sum-exps by query head and position.
#[derive(Debug)]
struct Part<'a> {
    out: Vec<&'a mut [f32]>,
    lse: &'a mut [f32],
}

/// Memory of one thread: panels, and scores of 32 queries.
struct Room {
    lines: Vec<Line>,
    scores: Vec<Tile>,
    /// One for each panel of values.
    tiles: Vec<Tile>,
}

impl<'a> Forward<'a> {
    /// Attention to be put into `out` (B, T, H, V), and the log-sum-exp of scores into `lse` (B, H, T).
    ///
    /// # Errors
    /// Argument for results of another size.
    pub fn new(inputs: Inputs<'a>, out: &'a mut [f32], lse: &'a mut [f32]) -> Result<Self> {
        let shape = inputs.shape();
        shape.check("out", out.len(), shape.heads, shape.value)?;
        shape.check("log-sum-exps", lse.len(), shape.heads, 1)?;
        let lse = lse.chunks_mut(shape.group() * shape.positions);
        let parts = shape.by_task(out, shape.heads, shape.value).into_iter().zip(lse);
        let parts = parts.map(|(out, lse)| Mutex::new(Part { out, lse })).collect();
        Ok(Self { inputs, shape, parts, queue: Queue::new(shape.tasks()) })
    }

    /// Works on what is left, and returns when there is nothing more to begin. Each thread calls this; attention is done when
    /// the last of them has returned.
    pub fn work(&self) {
        let (n, (width, value)) = (self.shape.panels(), self.shape.widths());
        let n_lines = STEP * (n * (width + value) + width + n);
        let mut room = Room { lines: SPARE.take(n_lines), scores: vec![Tile::ZERO; n], tiles: vec![Tile::ZERO; value] };
        while let Some(task) = self.queue.take() {
            let mut part = self.parts[task].lock().unwrap_or_else(PoisonError::into_inner);
            self.attend(task, &mut part, &mut room);
        }
        SPARE.give(room.lines);
    }

    fn attend(&self, task: usize, part: &mut Part<'_>, room: &mut Room) {
        let (batch, kv_head) = self.shape.task(task);
        let (n, (width, value), group) = (self.shape.panels(), self.shape.widths(), self.shape.group());
        let (keys, rest) = room.lines.split_at_mut(n * width * STEP);
        let (values, rest) = rest.split_at_mut(n * value * STEP);
        let (queries, rest) = rest.split_at_mut(width * STEP);
        let weights = &mut rest[..n * STEP];
        self.inputs.keys(batch, kv_head).split_positions(Kind::Columns, 0, keys);
        self.inputs.values(batch, kv_head).split_columns(Kind::Columns, 0..self.shape.positions, values);
        for (one, lse) in part.lse.chunks_mut(self.shape.positions).enumerate() {
            let head = self.inputs.queries(batch, kv_head * group + one);
            for (i, lse) in lse.chunks_mut(SIDE).enumerate() {
                head.split_positions(Kind::Rows, i * SIDE, queries);
                let (scores, weights) = (&mut room.scores[..=i], &mut weights[..(i + 1) * STEP]);
                let mut tops = [[f32::NEG_INFINITY; 16]; SIDE];
                for (first, some) in scores.chunks_mut(NEAR).enumerate() {
                    let first = first * NEAR;
                    let (b, scale) = (&keys[first * width * STEP..], self.inputs.scale);
                    let many = Many { a: queries, a_step: 0, b, b_step: width, depth: width, is_added: false };
                    multiply_many(&many, some);
                    for (j, tile) in some.iter_mut().enumerate() {
                        by_wide_registers(Scores { tile, tops: &mut tops, scale, is_diagonal: first + j == i });
                    }
                }
                let inverse = weigh(scores, &tops, weights, lse);
                let rows = part.out[i * SIDE * group..].iter_mut().skip(one).step_by(group);
                let mut rows: Vec<&mut [f32]> = rows.take(SIDE).map(|row| &mut **row).collect();
                let many = Many { a: weights, a_step: 0, b: values, b_step: n, depth: i + 1, is_added: false };
                multiply_many(&many, &mut room.tiles);
                for (column, tile) in room.tiles.iter().enumerate() {
                    let columns = rows.iter_mut().map(|row| {
                        let end = row.len().min((column + 1) * SIDE);
                        &mut row[column * SIDE..end]
                    });
                    by_wide_registers(Divided { rows: columns, tile, inverse: &inverse });
                }
            }
        }
    }
}

/// Makes weights of scores, not yet of sum 1, and splits them. Returns by what they are to be multiplied.
fn weigh(scores: &mut [Tile], tops: &[[f32; 16]; SIDE], panel: &mut [Line], lse: &mut [f32]) -> [f32; SIDE] {
    let tops = tops.map(|lanes| lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut sums = [[0.0; 16]; SIDE];
    for (scores, lines) in scores.iter_mut().zip(panel.chunks_mut(STEP)) {
        by_wide_registers(Exponentials { scores, tops: &tops, sums: &mut sums });
        scores.split(lines, None);
    }
    let sums = sums.map(sum);
    lse.iter_mut().zip(tops.iter().zip(&sums)).for_each(|(lse, (top, sum))| *lse = top + sum.ln());
    sums.map(f32::recip)
}

/// Multiplies scores by the scale, those of later keys become none, and keeps each row's largest in 16 lanes.
struct Scores<'t> {
    tile: &'t mut Tile,
    tops: &'t mut [[f32; 16]; SIDE],
    scale: f32,
    is_diagonal: bool,
}

impl Wide for Scores<'_> {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn run(self) {
        for (row, (numbers, tops)) in self.tile.rows_mut().zip(self.tops).enumerate() {
            for number in &mut *numbers {
                *number *= self.scale;
            }
            if self.is_diagonal {
                numbers[row + 1..].fill(f32::NEG_INFINITY);
            }
            for numbers in numbers.as_chunks::<16>().0 {
                *tops = std::array::from_fn(|i| if numbers[i] > tops[i] { numbers[i] } else { tops[i] });
            }
        }
    }
}

/// Exponentials of scores over the largest of their row, whose sums are kept in 16 lanes.
struct Exponentials<'t> {
    scores: &'t mut Tile,
    tops: &'t [f32; SIDE],
    sums: &'t mut [[f32; 16]; SIDE],
}

impl Wide for Exponentials<'_> {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn run(self) {
        for ((numbers, top), sums) in self.scores.rows_mut().zip(self.tops).zip(self.sums) {
            for numbers in numbers.as_chunks_mut::<16>().0 {
                for i in 0..16 {
                    numbers[i] = exp(numbers[i] - top);
                    sums[i] += numbers[i];
                }
            }
        }
    }
}

/// Puts the rows of a tile, each multiplied by its number.
struct Divided<'t, Rows> {
    rows: Rows,
    tile: &'t Tile,
    inverse: &'t [f32; SIDE],
}

impl<'o, Rows: Iterator<Item = &'o mut [f32]>> Wide for Divided<'_, Rows> {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn run(self) {
        for ((out, sums), inverse) in self.rows.zip(self.tile.0.as_chunks::<SIDE>().0).zip(self.inverse) {
            if let Some(out) = out.first_chunk_mut::<SIDE>() {
                *out = std::array::from_fn(|i| sums[i] * inverse);
            } else {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
            }
        }
    }
}
