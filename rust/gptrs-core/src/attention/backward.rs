//! Gradients of attention, in blocks of 128 queries and 128 keys.
//!
//! ```text
//! P = exp(q·kᵀ·scale - lse)    dP = dout·vᵀ    delta = Σ dout∘out    dS = P∘(dP - delta)·scale
//! dq = dS·k                    dk = dSᵀ·q      dv = Pᵀ·dout
//! ```
//!
//! Here tiles have keys as rows and queries as columns: Pᵀ and dSᵀ are then split as they are, and dS as the right factor of
//! dqᵀ = kᵀ·dSᵀ. Nothing but dqᵀ has to be turned, once all keys are summed.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{Head, Inputs, Shape, Tile, View, Wide, sum};
use crate::error::{Error, Result};
use crate::exp::exp;
use crate::gemm::{Kind, Line, Many, SIDE, SPARE, STEP, by_wide_registers, multiply_many, put_rows};
use crate::parallel::Queue;
use crate::simd::prefetch_far;

/// Panels of a block: what is split of it stays in the second cache.
const BLOCK: usize = 4;

/// Where gradients go: dq (B, T, H, D), dk (B, T, K, D1), dv (B, T, K, V), and that of the shared key for each kv head,
/// (B, T, K, D - D1).
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the queries.
    pub q: &'a mut [f32],
    /// Of the keys.
    pub k: &'a mut [f32],
    /// Of the values.
    pub v: &'a mut [f32],
    /// Of the shared key; empty where there is none.
    pub key: &'a mut [f32],
}

/// Gradients under way: any number of threads may work on them at once.
#[derive(Debug)]
pub struct Backward<'a> {
    inputs: Inputs<'a>,
    out: View<'a>,
    d_out: View<'a>,
    lse: &'a [f32],
    shape: Shape,
    parts: Vec<Mutex<Part<'a>>>,
    queue: Queue,
}

/// What a task writes: rows by position and head.
#[derive(Debug, Default)]
struct Part<'a> {
    q: Vec<&'a mut [f32]>,
    k: Vec<&'a mut [f32]>,
    v: Vec<&'a mut [f32]>,
    key: Vec<&'a mut [f32]>,
}

/// Panels of keys and values: with keys as lines, with columns of keys, and values with keys.
struct Split<'r> {
    keys: &'r mut [Line],
    key_columns: &'r mut [Line],
    values: &'r mut [Line],
}

/// Panels of a block of queries and of the gradients of what they gave; and what is made of them.
struct Block<'r> {
    queries: &'r mut [Line],
    query_columns: &'r mut [Line],
    d_out: &'r mut [Line],
    d_out_columns: &'r mut [Line],
    /// Pᵀ, dSᵀ and dS: the first two by panels of keys, the last by panels of queries.
    weights: &'r mut [Line],
    d_scores: &'r mut [Line],
    d_scores_turned: &'r mut [Line],
}

/// Memory of one thread: panels, dqᵀ of a block by panels of queries, and Pᵀ and dSᵀ of 32 keys before they are split.
struct Room {
    lines: Vec<Line>,
    d_queries: Vec<Tile>,
    /// dk and dv by panels of keys.
    d_keys: Vec<Tile>,
    d_values: Vec<Tile>,
    weights: [Tile; BLOCK],
    d_scores: [Tile; BLOCK],
}

impl<'a> Backward<'a> {
    /// Gradients of what made `out` and `lse` by [`super::Forward`], given that of `out`; both (B, H, T, V).
    ///
    /// # Errors
    /// Argument for what does not fit.
    pub fn new(
        inputs: Inputs<'a>,
        out: View<'a>,
        lse: &'a [f32],
        d_out: View<'a>,
        gradients: Gradients<'a>,
    ) -> Result<Self> {
        let shape = inputs.shape();
        let expected = [shape.batches, shape.heads, shape.positions, shape.value];
        if out.shape != expected || d_out.shape != expected {
            let (out, d_out) = (out.shape, d_out.shape);
            return Err(Error::Argument(format!("expected out and its gradient {expected:?}, got {out:?}, {d_out:?}")));
        }
        shape.check("log-sum-exps", lse.len(), shape.heads, 1)?;
        let Gradients { q, k, v, key } = gradients;
        shape.check("dq", q.len(), shape.heads, shape.own + shape.shared)?;
        shape.check("dk", k.len(), shape.kv_heads, shape.own)?;
        shape.check("dv", v.len(), shape.kv_heads, shape.value)?;
        shape.check("the shared key's gradient", key.len(), shape.kv_heads, shape.shared)?;
        let q = shape.by_task(q, shape.heads, shape.own + shape.shared);
        let k = shape.by_task(k, shape.kv_heads, shape.own);
        let v = shape.by_task(v, shape.kv_heads, shape.value);
        let parts = q.into_iter().zip(k).zip(v).map(|((q, k), v)| Part { q, k, v, ..Part::default() });
        let mut parts: Vec<_> = parts.collect();
        if shape.shared > 0 {
            let key = shape.by_task(key, shape.kv_heads, shape.shared);
            parts.iter_mut().zip(key).for_each(|(part, key)| part.key = key);
        }
        let parts = parts.into_iter().map(Mutex::new).collect();
        Ok(Self { inputs, out, d_out, lse, shape, parts, queue: Queue::new(shape.tasks()) })
    }

    /// As [`super::Forward::work`].
    pub fn work(&self) {
        let (n, (width, value)) = (self.shape.panels(), self.shape.widths());
        let n_lines = STEP * (n * (2 * width + value) + 2 * BLOCK * (width + value) + 3 * BLOCK * BLOCK);
        let tiles = |n: usize| vec![Tile::ZERO; n];
        let mut room = Room {
            lines: SPARE.take(n_lines),
            d_queries: tiles(BLOCK * width),
            d_keys: tiles(n * width),
            d_values: tiles(n * value),
            weights: [Tile::ZERO; BLOCK],
            d_scores: [Tile::ZERO; BLOCK],
        };
        while let Some(task) = self.queue.take() {
            let mut part = self.parts[task].lock().unwrap_or_else(PoisonError::into_inner);
            self.go_back(task, &mut part, &mut room);
        }
        SPARE.give(room.lines);
    }

    fn go_back(&self, task: usize, part: &mut Part<'_>, room: &mut Room) {
        let (batch, kv_head) = self.shape.task(task);
        let (n, (width, value), group) = (self.shape.panels(), self.shape.widths(), self.shape.group());
        let mut rest = &mut room.lines[..];
        let mut take = |n: usize| rest.split_off_mut(..n * STEP).expect("`work` has made room for all");
        let split = Split { keys: take(n * width), key_columns: take(n * width), values: take(n * value) };
        let mut block = Block {
            queries: take(BLOCK * width),
            query_columns: take(BLOCK * width),
            d_out: take(BLOCK * value),
            d_out_columns: take(BLOCK * value),
            weights: take(BLOCK * BLOCK),
            d_scores: take(BLOCK * BLOCK),
            d_scores_turned: take(BLOCK * BLOCK),
        };
        let (keys, values) = (self.inputs.keys(batch, kv_head), self.inputs.values(batch, kv_head));
        keys.split_positions(Kind::Rows, 0, split.keys);
        keys.split_columns(Kind::Rows, 0..self.shape.positions, split.key_columns);
        values.split_positions(Kind::Rows, 0, split.values);
        for one in 0..group {
            for first in (0..n).step_by(BLOCK) {
                let queries = first..n.min(first + BLOCK);
                let columns = self.split_block(batch, kv_head * group + one, &queries, &mut block);
                for first in (0..queries.end).step_by(BLOCK) {
                    let keys = first..queries.end.min(first + BLOCK);
                    let tiles = (&mut room.weights[..], &mut room.d_scores[..]);
                    self.make_tiles(&queries, &keys, &split, &mut block, &columns, tiles);
                    self.sum_queries(&queries, &keys, &split, &block, &mut room.d_queries);
                    let is_added = one > 0 || queries.start > keys.start;
                    let tiles = (&mut room.d_keys[..], &mut room.d_values[..]);
                    self.sum_keys(&queries, &keys, &block, is_added, tiles);
                }
                self.put_queries(&queries, one, part, &room.d_queries, &mut room.weights[0]);
            }
        }
        self.put_keys(part, &room.d_keys, &room.d_values);
    }

    /// Splits a block of a head's queries and of their gradients. Returns what else is known of them.
    fn split_block(&self, batch: usize, head: usize, panels: &Range<usize>, block: &mut Block<'_>) -> Columns {
        let (width, value) = self.shape.widths();
        let (n, positions) = (panels.len(), panels.start * SIDE..self.shape.positions.min(panels.end * SIDE));
        positions.clone().for_each(|position| prefetch_far(self.out.row(batch, head, position)));
        let queries = self.inputs.queries(batch, head);
        let d_out = Head { first: self.d_out.columns(batch, head, 0..self.shape.value), second: None };
        queries.split_positions(Kind::Columns, positions.start, &mut block.queries[..n * width * STEP]);
        queries.split_columns(Kind::Columns, positions.clone(), &mut block.query_columns[..n * width * STEP]);
        d_out.split_positions(Kind::Columns, positions.start, &mut block.d_out[..n * value * STEP]);
        d_out.split_columns(Kind::Columns, positions.clone(), &mut block.d_out_columns[..n * value * STEP]);
        // Queries behind the last position have no weights.
        let mut columns = Columns { lse: [f32::INFINITY; BLOCK * SIDE], delta: [0.0; BLOCK * SIDE] };
        let at = (batch * self.shape.heads + head) * self.shape.positions;
        columns.lse[..positions.len()].copy_from_slice(&self.lse[at..][positions.clone()]);
        let pairs = positions.map(|i| (self.d_out.row(batch, head, i), self.out.row(batch, head, i)));
        let mut lanes = [[0.0; 16]; BLOCK * SIDE];
        by_wide_registers(Products { pairs, lanes: &mut lanes });
        columns.delta = lanes.map(sum);
        columns
    }

    /// Makes Pᵀ and dSᵀ of a block, tile by tile from the diagonal on, and splits them.
    fn make_tiles(
        &self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        split: &Split<'_>,
        block: &mut Block<'_>,
        columns: &Columns,
        (weights, d_scores): (&mut [Tile], &mut [Tile]),
    ) {
        let (width, value) = self.shape.widths();
        for j in keys.clone() {
            let first = j.saturating_sub(queries.start);
            let n = queries.len() - first;
            let multiply = |a: &[Line], b: &[Line], depth: usize, tiles: &mut [Tile]| {
                let (a, b) = (&a[j * depth * STEP..], &b[first * depth * STEP..]);
                multiply_many(&Many { a, a_step: 0, b, b_step: depth, depth, is_added: false }, tiles);
            };
            multiply(split.keys, block.queries, width, &mut weights[..n]);
            multiply(split.values, block.d_out, value, &mut d_scores[..n]);
            for (i, (weights, d_scores)) in (first..).zip(weights[..n].iter_mut().zip(&mut d_scores[..n])) {
                by_wide_registers(Differentials {
                    lse: columns.lse.as_chunks().0[i],
                    delta: columns.delta.as_chunks().0[i],
                    scale: self.inputs.scale,
                    is_diagonal: queries.start + i == j,
                    weights,
                    d_scores,
                });
                let (at, turned) = ((j - keys.start) * BLOCK + i, i * BLOCK + j - keys.start);
                weights.split(&mut block.weights[at * STEP..], None);
                d_scores.split(&mut block.d_scores[at * STEP..], Some(&mut block.d_scores_turned[turned * STEP..]));
            }
        }
    }

    /// Adds kᵀ·dSᵀ of a block to the gradients of its queries.
    fn sum_queries(
        &self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        split: &Split<'_>,
        block: &Block<'_>,
        d_queries: &mut [Tile],
    ) {
        let (n, (width, _)) = (self.shape.panels(), self.shape.widths());
        for (i, tiles) in queries.clone().zip(d_queries.chunks_mut(width)) {
            let a = &split.key_columns[keys.start * STEP..];
            let b = &block.d_scores_turned[(i - queries.start) * BLOCK * STEP..];
            let depth = (i + 1).min(keys.end) - keys.start;
            multiply_many(&Many { a, a_step: n, b, b_step: 0, depth, is_added: keys.start > 0 }, tiles);
        }
    }

    /// Puts the gradients of a block's queries, of which the tiles have columns as rows.
    fn put_queries(
        &self,
        queries: &Range<usize>,
        one: usize,
        part: &mut Part<'_>,
        d_queries: &[Tile],
        room: &mut Tile,
    ) {
        let ((width, _), group) = (self.shape.widths(), self.shape.group());
        for (i, tiles) in queries.clone().zip(d_queries.chunks(width)) {
            for (panel, tile) in tiles.iter().enumerate() {
                tile.turn(room);
                let columns = self.columns_of(panel);
                let rows = part.q[i * SIDE * group..].iter_mut().skip(one).step_by(group).take(SIDE);
                put_rows(rows.map(|row| &mut row[columns.clone()]), room, false);
            }
        }
    }

    /// Adds dSᵀ·q and Pᵀ·dout of a block to the gradients of its keys and values, or puts them there.
    fn sum_keys(
        &self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        block: &Block<'_>,
        is_added: bool,
        (d_keys, d_values): (&mut [Tile], &mut [Tile]),
    ) {
        let (n, (width, value)) = (queries.len(), self.shape.widths());
        for j in keys.clone() {
            let first = j.saturating_sub(queries.start);
            let multiply = |a: &[Line], b: &[Line], tiles: &mut [Tile]| {
                let (a, b) = (&a[((j - keys.start) * BLOCK + first) * STEP..], &b[first * STEP..]);
                multiply_many(&Many { a, a_step: 0, b, b_step: n, depth: n - first, is_added }, tiles);
            };
            multiply(block.d_scores, block.query_columns, &mut d_keys[j * width..][..width]);
            multiply(block.weights, block.d_out_columns, &mut d_values[j * value..][..value]);
        }
    }

    /// Puts the gradients of keys and values.
    fn put_keys(&self, part: &mut Part<'_>, d_keys: &[Tile], d_values: &[Tile]) {
        let ((width, value), own) = (self.shape.widths(), self.shape.own);
        for (j, (d_keys, d_values)) in d_keys.chunks(width).zip(d_values.chunks(value)).enumerate() {
            for (panel, tile) in d_keys.iter().enumerate() {
                let columns = self.columns_of(panel);
                let (rows, columns) = match columns.start.checked_sub(own) {
                    Some(start) => (&mut part.key, start..columns.end - own),
                    None => (&mut part.k, columns),
                };
                put_rows(rows[j * SIDE..].iter_mut().take(SIDE).map(|row| &mut row[columns.clone()]), tile, false);
            }
            for (panel, tile) in d_values.iter().enumerate() {
                let columns = panel * SIDE..self.shape.value.min((panel + 1) * SIDE);
                put_rows(part.v[j * SIDE..].iter_mut().take(SIDE).map(|row| &mut row[columns.clone()]), tile, false);
            }
        }
    }

    /// The columns of queries that a panel of them holds.
    fn columns_of(&self, panel: usize) -> Range<usize> {
        let Shape { own, shared, .. } = self.shape;
        match panel.checked_sub(own.div_ceil(SIDE)) {
            Some(panel) => own + panel * SIDE..own + shared.min((panel + 1) * SIDE),
            None => panel * SIDE..own.min((panel + 1) * SIDE),
        }
    }
}

/// What is known of each query of a block.
struct Columns {
    lse: [f32; BLOCK * SIDE],
    delta: [f32; BLOCK * SIDE],
}

/// Products of two rows each, summed in 16 lanes.
struct Products<'t, Pairs> {
    pairs: Pairs,
    lanes: &'t mut [[f32; 16]],
}

impl<'o, Pairs: Iterator<Item = (&'o [f32], &'o [f32])>> Wide for Products<'_, Pairs> {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn run(self) {
        for ((a, b), lanes) in self.pairs.zip(self.lanes) {
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
            for (a, b) in a.iter().zip(b) {
                *lanes = std::array::from_fn(|i| a[i].mul_add(b[i], lanes[i]));
            }
            lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(lane, (a, b))| *lane += a * b);
        }
    }
}

/// Pᵀ of k·qᵀ, and dSᵀ of v·doutᵀ, each in its place; both are zero for later keys.
struct Differentials<'t> {
    weights: &'t mut Tile,
    d_scores: &'t mut Tile,
    lse: [f32; SIDE],
    delta: [f32; SIDE],
    scale: f32,
    is_diagonal: bool,
}

impl Wide for Differentials<'_> {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn run(self) {
        for (row, (weights, d_scores)) in self.weights.rows_mut().zip(self.d_scores.rows_mut()).enumerate() {
            let n_unseen = if self.is_diagonal { row } else { 0 };
            for i in 0..SIDE {
                let weight = exp(weights[i] * self.scale - self.lse[i]);
                let d_score = weight * (d_scores[i] - self.delta[i]) * self.scale;
                weights[i] = if i < n_unseen { 0.0 } else { weight };
                d_scores[i] = if i < n_unseen { 0.0 } else { d_score };
            }
        }
    }
}
