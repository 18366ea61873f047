//! Causal attention of float32 on tile units, as exact as float32 allows, and its gradients.
//!
//! A task is one head of keys and values with the query heads that read it. Products go by three bfloat16 for each number
//! (`crate::gemm`): keys and values are split once a task, queries panel by panel, weights tile by tile as they are made.
//!
//! ```text
//! q ─ 32 rows ─┐
//! k ─ panels ──┴─ 32 × 32 scores ─ up to the diagonal ─▶ exp ─ split ─┐
//! v ─ panels ─────────────────────────────────────────────────────────┴─▶ out, log-sum-exp of scores
//! ```
//!
//! A head's key may be in two stretches, one of its own and one that all heads share, as latent attention has: they become
//! one panel, and are never joined in memory. The backward pass makes the weights again from queries, keys and the
//! log-sum-exp. Every sum is taken in one order, whatever the threads.
//!
//! Source of the log-sum-exp and of the gradients: arXiv 2205.14135, section 3.1 and appendix B.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use self::backward::{Backward, Gradients};
pub use self::forward::Forward;
use crate::error::{Error, Result};
use crate::gemm::{DEPTH, Factor, Kind, Line, SIDE, STEP, Tile, Wide};

/// Numbers by batch, head, position and column, the columns side by side.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    numbers: &'a [f32],
    shape: [usize; 4],
    /// How far apart batches, heads and positions are.
    steps: [usize; 3],
}

impl<'a> View<'a> {
    /// The number of column `i` is `numbers[b * steps[0] + h * steps[1] + t * steps[2] + i]`.
    ///
    /// # Errors
    /// Argument for too few numbers.
    pub fn new(numbers: &'a [f32], shape: [usize; 4], steps: [usize; 3]) -> Result<Self> {
        let last = |n: usize, step: usize| (n - 1).checked_mul(step);
        let needed = if shape.contains(&0) {
            Some(0)
        } else {
            shape
                .iter()
                .zip(steps.into_iter().chain([1]))
                .try_fold(1_usize, |sum, (&n, step)| sum.checked_add(last(n, step)?))
        };
        if needed.is_none_or(|n| n > numbers.len()) {
            let len = numbers.len();
            return Err(Error::Argument(format!("expected numbers for {shape:?}, {steps:?} apart, got {len}")));
        }
        Ok(Self { numbers, shape, steps })
    }

    /// Some columns of a head: its positions are lines.
    fn columns(&self, batch: usize, head: usize, columns: Range<usize>) -> Factor<'a> {
        let [_, _, positions, width] = self.shape;
        debug_assert!(batch < self.shape[0] && head < self.shape[1] && columns.end <= width);
        let at = batch * self.steps[0] + head * self.steps[1] + columns.start;
        Factor::new(&self.numbers[at..], positions, columns.len(), (self.steps[2], 1))
            .expect("`new` has seen all numbers")
    }

    /// A row of a head.
    fn row(&self, batch: usize, head: usize, position: usize) -> &'a [f32] {
        let at = batch * self.steps[0] + head * self.steps[1] + position * self.steps[2];
        &self.numbers[at..][..self.shape[3]]
    }
}

/// What attention is of: queries (B, H, T, D), keys (B, K, T, D1), values (B, K, T, V), and, where D is larger than D1, keys
/// (B, 1, T, D - D1) that all heads share, behind their own.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    key: Option<View<'a>>,
    scale: f32,
}

impl<'a> Inputs<'a> {
    /// Inputs of which scores are multiplied by `scale`. Query head `h` reads kv head `h / (H / K)`.
    ///
    /// # Errors
    /// Argument for shapes that do not fit together.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, key: Option<View<'a>>, scale: f32) -> Result<Self> {
        let ([b, h, t, d], [k_b, n, k_t, own], [v_b, v_n, v_t, value]) = (q.shape, k.shape, v.shape);
        let shared = key.map_or(0, |key| key.shape[3]);
        let are_equal = k_b == b && v_b == b && k_t == t && v_t == t && v_n == n;
        let is_key_equal = key.is_none_or(|key| key.shape[..3] == [b, 1, t] && shared > 0);
        let has_all = n > 0 && h > 0 && h.is_multiple_of(n.max(1)) && t > 0 && own > 0 && value > 0;
        if !(are_equal && is_key_equal && has_all && own.checked_add(shared) == Some(d)) {
            let key = key.map(|key| key.shape);
            return Err(Error::Argument(format!(
                "expected q (B, H, T, D), k (B, K, T, D1), v (B, K, T, V) and a shared key (B, 1, T, D - D1), got {:?}, \
                 {:?}, {:?} and {key:?}",
                q.shape, k.shape, v.shape
            )));
        }
        if !scale.is_finite() {
            return Err(Error::Argument(format!("expected a finite scale, got {scale}")));
        }
        Ok(Self { q, k, v, key, scale })
    }

    fn shape(&self) -> Shape {
        let ([batches, heads, positions, _], [_, kv_heads, _, own]) = (self.q.shape, self.k.shape);
        let shared = self.key.map_or(0, |key| key.shape[3]);
        Shape { batches, heads, kv_heads, positions, own, shared, value: self.v.shape[3] }
    }

    fn queries(&self, batch: usize, head: usize) -> Head<'a> {
        let Shape { own, shared, .. } = self.shape();
        let second = (shared > 0).then(|| self.q.columns(batch, head, own..own + shared));
        Head { first: self.q.columns(batch, head, 0..own), second }
    }

    fn keys(&self, batch: usize, kv_head: usize) -> Head<'a> {
        let second = self.key.map(|key| key.columns(batch, 0, 0..key.shape[3]));
        Head { first: self.k.columns(batch, kv_head, 0..self.k.shape[3]), second }
    }

    fn values(&self, batch: usize, kv_head: usize) -> Head<'a> {
        Head { first: self.v.columns(batch, kv_head, 0..self.v.shape[3]), second: None }
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    batches: usize,
    heads: usize,
    kv_heads: usize,
    positions: usize,
    /// Columns of a head's own keys, of those that heads share, and of values.
    own: usize,
    shared: usize,
    value: usize,
}

impl Shape {
    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Panels of all positions.
    fn panels(&self) -> usize {
        self.positions.div_ceil(SIDE)
    }

    /// Panels of the columns of queries and keys, and of values.
    fn widths(&self) -> (usize, usize) {
        (self.own.div_ceil(SIDE) + self.shared.div_ceil(SIDE), self.value.div_ceil(SIDE))
    }

    /// Batch and kv head of a task.
    fn task(&self, task: usize) -> (usize, usize) {
        (task / self.kv_heads, task % self.kv_heads)
    }

    fn tasks(&self) -> usize {
        self.batches * self.kv_heads
    }

    /// Fails unless there are so many numbers for all positions of so many `heads`.
    fn check(&self, name: &str, got: usize, heads: usize, width: usize) -> Result<()> {
        let sizes = [self.batches, self.positions, heads, width];
        let expected = sizes.into_iter().try_fold(1_usize, usize::checked_mul);
        if expected == Some(got) {
            return Ok(());
        }
        Err(Error::Argument(format!("expected {sizes:?} numbers of {name}, got {got}")))
    }

    /// Rows (B, T, heads, width) by kv head: of each the rows of all its heads, position by position.
    fn by_task<'o>(&self, numbers: &'o mut [f32], heads: usize, width: usize) -> Vec<Vec<&'o mut [f32]>> {
        let per = heads / self.kv_heads;
        let mut parts: Vec<_> = (0..self.tasks()).map(|_| Vec::with_capacity(self.positions * per)).collect();
        let mut rows = numbers.chunks_mut(width);
        for parts in parts.chunks_mut(self.kv_heads) {
            for _ in 0..self.positions {
                for part in &mut *parts {
                    part.extend(rows.by_ref().take(per));
                }
            }
        }
        parts
    }
}

/// Positions of a head, in one or two stretches of columns, each of which is filled up to whole panels.
#[derive(Debug)]
struct Head<'a> {
    first: Factor<'a>,
    second: Option<Factor<'a>>,
}

impl Head<'_> {
    /// Panels of which positions are the lines, those from `first` on, all columns deep.
    fn split_positions(&self, kind: Kind, first: usize, panels: &mut [Line]) {
        let n_steps = |factor: &Factor<'_>| factor.depth().div_ceil(DEPTH) * STEP;
        let depth = n_steps(&self.first) + self.second.as_ref().map_or(0, n_steps);
        if self.second.is_none() {
            return self.first.split(kind, first, 0..self.first.depth(), depth, panels);
        }
        for (i, panel) in panels.chunks_mut(depth).enumerate() {
            let mut rest = panel;
            for factor in std::iter::once(&self.first).chain(&self.second) {
                let (own, behind) = rest.split_at_mut(n_steps(factor));
                factor.split(kind, first + i * SIDE, 0..factor.depth(), own.len(), own);
                rest = behind;
            }
        }
    }

    /// Panels of which columns are the lines, with some positions as their depth.
    fn split_columns(&self, kind: Kind, positions: Range<usize>, panels: &mut [Line]) {
        let depth = positions.len().div_ceil(DEPTH) * STEP;
        let mut rest = panels;
        for factor in std::iter::once(&self.first).chain(&self.second) {
            let (own, behind) = rest.split_at_mut(factor.depth().div_ceil(SIDE) * depth);
            factor.turned().split(kind, 0, positions.clone(), depth, own);
            rest = behind;
        }
    }
}

/// Adds up 16 numbers.
#[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
#[inline(always)]
fn sum(mut lanes: [f32; 16]) -> f32 {
    for n in [8, 4, 2, 1] {
        (0..n).for_each(|i| lanes[i] += lanes[i + n]);
    }
    lanes[0]
}
