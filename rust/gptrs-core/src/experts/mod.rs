//! The routed experts of a layer: each token goes through some of many gated layers, and their sum is weighted.
//!
//! ```text
//! rows of x, expert by expert ─up─▶ (gate | value) ─silu(gate)·value─▶ h ─down─▶ rows ─ Σ weight·row of a token ─▶ y
//! ```
//!
//! A task is an expert, with all of its products, forth or back, on one thread: what one product makes is still in the second
//! cache when the next one reads it, no thread waits for another between them, and nothing is as large as all experts' weights.
//! Nothing is kept of the forward pass: new memory for (gate | value) costs nearly as much as the product that makes it again.
//! A gradient of an expert's weights may be used up on the spot: see [`AdamW`]. Rows of a token are added in the order of its
//! choices, whatever the threads.

mod adamw;
mod backward;
mod elementwise;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub use self::adamw::AdamW;
pub use self::backward::{Gradients, Matrices, backward};
use crate::error::{Error, Result};
use crate::gemm::{Factor, Product};
use crate::parallel::Queue;
use crate::spare::Spare;

/// Numbers that tasks need for themselves.
static SPARE: Spare<f32> = Spare::new();

/// Tokens whose rows a task adds.
const TOKENS: usize = 64;

/// Has threads do some work, all of it by the time it returns.
pub type Threads<'t> = &'t dyn Fn(&(dyn Fn() + Sync));

/// How large all is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// N.
    pub n_tokens: usize,
    /// C, of a token's state.
    pub dim: usize,
    /// m, of an expert.
    pub width: usize,
    /// A, the experts of each token.
    pub n_choices: usize,
}

/// What goes where.
#[derive(Debug)]
pub struct Routes<'a> {
    sizes: Sizes,
    /// (N, A), how much of each choice.
    weights: &'a [f32],
    /// Places of (token, choice), expert by expert.
    order: &'a [i64],
    /// Where each expert's begin in `order`, and where the last one's end.
    starts: Vec<usize>,
    /// Where each place stands in `order`.
    back: Vec<u32>,
}

impl<'a> Routes<'a> {
    /// `order` holds the places of all (token, choice) in reading order, sorted by expert; `loads` how many each expert has.
    ///
    /// # Errors
    /// Argument when they do not fit together, or a place is missing.
    pub fn new(sizes: Sizes, weights: &'a [f32], order: &'a [i64], loads: &[i64]) -> Result<Self> {
        let n_places = sizes.n_tokens.saturating_mul(sizes.n_choices);
        if [sizes.dim, sizes.width, sizes.n_choices].contains(&0) {
            return Err(Error::Argument(format!("expected sizes of 1 or more, got {sizes:?}")));
        }
        let mut starts = vec![0_usize];
        for &load in loads {
            let start = usize::try_from(load).ok().and_then(|load| starts[starts.len() - 1].checked_add(load));
            starts.push(start.ok_or_else(|| Error::Argument(format!("expected loads of 0 or more, got {load}")))?);
        }
        let n_rows = starts[starts.len() - 1];
        if n_places >= u32::MAX as usize || [n_rows, order.len(), weights.len()] != [n_places; 3] {
            let (n, m) = (order.len(), weights.len());
            let expected = format!("expected {n_places} choices, got loads of {n_rows}, an order of {n}, {m} weights");
            return Err(Error::Argument(expected));
        }
        let mut back = vec![u32::MAX; n_places];
        for (at, &place) in order.iter().enumerate() {
            let free = usize::try_from(place).ok().and_then(|place| back.get_mut(place));
            match free {
                Some(free) if *free == u32::MAX => *free = at as u32,
                _ => {
                    return Err(Error::Argument(format!("expected each of {n_places} places once, got {place} again")));
                }
            }
        }
        Ok(Self { sizes, weights, order, starts, back })
    }

    fn n_experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// Where an expert's rows stand.
    fn rows(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// Experts, those with most rows first: what is left at the end is short.
    fn by_load(&self) -> Vec<usize> {
        let mut experts: Vec<usize> = (0..self.n_experts()).collect();
        experts.sort_by_key(|&expert| std::cmp::Reverse(self.rows(expert).len()));
        experts
    }

    /// The states of an expert's tokens, side by side.
    fn gather(&self, states: &[f32], expert: usize, out: &mut [f32]) {
        let Sizes { dim, n_choices, .. } = self.sizes;
        for (place, out) in self.order[self.rows(expert)].iter().zip(out.chunks_mut(dim)) {
            let token = *place as usize / n_choices;
            out.copy_from_slice(&states[token * dim..][..dim]);
        }
    }

    /// How much of its row each place of an expert adds.
    fn shares(&self, expert: usize) -> impl Iterator<Item = f32> + '_ {
        self.order[self.rows(expert)].iter().map(|&place| self.weights[place as usize])
    }

    /// Slices of what has `n` numbers for each row, by expert.
    fn cut<'s>(&self, mut numbers: &'s mut [f32], n: usize) -> Vec<Mutex<&'s mut [f32]>> {
        let mut parts = Vec::with_capacity(self.n_experts());
        for expert in 0..self.n_experts() {
            let (part, rest) = numbers.split_at_mut(self.rows(expert).len() * n);
            parts.push(Mutex::new(part));
            numbers = rest;
        }
        parts
    }

    /// Adds the rows of each token, times its weights or as they are.
    fn add(&self, rows: &[f32], is_weighted: bool, sums: &mut [f32], threads: Threads<'_>) {
        let Sizes { dim, n_choices, .. } = self.sizes;
        let parts: Vec<_> = sums.chunks_mut(TOKENS * dim).map(Mutex::new).collect();
        let queue = Queue::new(parts.len());
        threads(&|| {
            while let Some(task) = queue.take() {
                let mut sums = locked(&parts[task]);
                for (i, sum) in sums.chunks_mut(dim).enumerate() {
                    let first = (task * TOKENS + i) * n_choices;
                    sum.fill(0.0);
                    for place in first..first + n_choices {
                        let row = &rows[self.back[place] as usize * dim..][..dim];
                        let share = if is_weighted { self.weights[place] } else { 1.0 };
                        elementwise::add(sum, row, share);
                    }
                }
            }
        });
    }
}

/// The experts of all tokens: `y` (N, C) of `x` (N, C), `up` (E, 2·m, C) with rows (gate | value), and `down` (E, C, m).
///
/// `rows` (N·A, C) is left with each choice's row before it is weighted, in the order of the routes.
///
/// # Errors
/// Argument for memory of other sizes.
pub fn forward(
    routes: &Routes<'_>,
    x: &[f32],
    [up, down]: [&[f32]; 2],
    rows: &mut [f32],
    y: &mut [f32],
    threads: Threads<'_>,
) -> Result<()> {
    let Sizes { n_tokens, dim, width, .. } = routes.sizes;
    let (n_rows, n_experts) = (routes.order.len(), routes.n_experts());
    expect("x", x.len(), n_tokens * dim)?;
    expect("up", up.len(), n_experts * 2 * width * dim)?;
    expect("down", down.len(), n_experts * dim * width)?;
    expect("rows", rows.len(), n_rows * dim)?;
    expect("y", y.len(), n_tokens * dim)?;
    let outs = routes.cut(rows, dim);
    each_expert(routes, threads, |expert, own| {
        let n = routes.rows(expert).len();
        let [states, h, high] = own.cut([n * dim, n * width, n * 2 * width]);
        routes.gather(x, expert, states);
        let up = &up[expert * 2 * width * dim..][..2 * width * dim];
        multiply(by_rows(states, n, dim)?, by_rows(up, 2 * width, dim)?, high)?;
        elementwise::gated(high, width, h);
        let down = &down[expert * dim * width..][..dim * width];
        multiply(by_rows(h, n, width)?, by_rows(down, dim, width)?, &mut locked(&outs[expert]))
    })?;
    drop(outs);
    routes.add(rows, true, y, threads);
    Ok(())
}

/// Memory of a thread.
#[derive(Default)]
struct Own(Vec<f32>);

impl Own {
    /// Stretches of these lengths, with anything in them.
    fn cut<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let n = lengths.iter().sum();
        if self.0.len() < n {
            SPARE.give(std::mem::take(&mut self.0));
            self.0 = SPARE.take(n);
        }
        let mut rest = self.0.as_mut_slice();
        lengths.map(|n| {
            let (part, more) = std::mem::take(&mut rest).split_at_mut(n);
            rest = more;
            part
        })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        SPARE.give(std::mem::take(&mut self.0));
    }
}

/// Has threads work on experts, each of which is one's alone.
fn each_expert(
    routes: &Routes<'_>,
    threads: Threads<'_>,
    work: impl Fn(usize, &mut Own) -> Result<()> + Sync,
) -> Result<()> {
    let (experts, failed) = (routes.by_load(), Mutex::new(Ok(())));
    let queue = Queue::new(experts.len());
    threads(&|| {
        let mut own = Own::default();
        while let Some(task) = queue.take() {
            if let Err(error) = work(experts[task], &mut own) {
                *locked(&failed) = Err(error);
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Rows of numbers as lines.
fn by_rows(numbers: &[f32], n: usize, depth: usize) -> Result<Factor<'_>> {
    Factor::new(numbers, n, depth, (depth, 1))
}

/// Columns of rows of `n` numbers as lines.
fn by_columns(numbers: &[f32], n: usize, depth: usize) -> Result<Factor<'_>> {
    Factor::new(numbers, n, depth, (1, n))
}

/// Puts a product there, on this thread alone.
fn multiply(a: Factor<'_>, b: Factor<'_>, out: &mut [f32]) -> Result<()> {
    let step = b.n_lines();
    Product::new(a, b, out, step, false, 1)?.work();
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn expect(what: &str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Argument(format!("expected {expected} numbers of {what}, got {got}")))
}

#[cfg(test)]
mod tests;
