//! The gradients of a layer of experts, and what becomes of them.

use std::sync::Mutex;

use super::adamw::AdamW;
use super::{Routes, Sizes, Threads, by_columns, by_rows, each_expert, elementwise, expect, locked, multiply};
use crate::error::Result;

/// The matrices of all experts, and what the gradient of each is for.
#[derive(Debug)]
pub enum Matrices<'a> {
    /// They stay as they are, and no gradient is asked for.
    Fixed(&'a [f32]),
    /// The gradient is put there.
    Taught(&'a [f32], &'a mut [f32]),
    /// The matrices move at once, with both moments; nobody ever holds their gradient.
    Moved(&'a mut [f32], [&'a mut [f32]; 2], AdamW),
}

/// What the gradients of states and weights are put into, and memory for them.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// (N, C).
    pub x: &'a mut [f32],
    /// (N, A).
    pub weights: &'a mut [f32],
    /// (N·A, C), left with the gradient of each choice's states.
    pub rows: &'a mut [f32],
}

impl Matrices<'_> {
    fn expect(&self, what: &str, n: usize) -> Result<()> {
        let lengths = match self {
            Self::Fixed(numbers) => vec![numbers.len()],
            Self::Taught(numbers, gradient) => vec![numbers.len(), gradient.len()],
            Self::Moved(numbers, [first, second], _) => vec![numbers.len(), first.len(), second.len()],
        };
        lengths.into_iter().try_for_each(|length| expect(what, length, n))
    }

    /// Those of each expert.
    fn cut(self, n_experts: usize, n: usize) -> Vec<Mutex<Self>> {
        let n = n.max(1);
        let one: Vec<Self> = match self {
            Self::Fixed(numbers) => numbers.chunks(n).map(Self::Fixed).collect(),
            Self::Taught(numbers, gradient) => {
                numbers.chunks(n).zip(gradient.chunks_mut(n)).map(|(numbers, to)| Self::Taught(numbers, to)).collect()
            }
            Self::Moved(numbers, [first, second], step) => {
                let moments = first.chunks_mut(n).zip(second.chunks_mut(n));
                let all = numbers.chunks_mut(n).zip(moments);
                all.map(|(numbers, (first, second))| Self::Moved(numbers, [first, second], step)).collect()
            }
        };
        debug_assert!(one.len() == n_experts || one.is_empty());
        one.into_iter().map(Mutex::new).collect()
    }

    fn numbers(&self) -> &[f32] {
        match self {
            Self::Fixed(numbers) | Self::Taught(numbers, _) => numbers,
            Self::Moved(numbers, ..) => numbers,
        }
    }

    /// Has the gradient made where it belongs, and uses it; the sum of its squares where it is used up.
    fn teach(&mut self, room: &mut [f32], make: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<f64> {
        match self {
            Self::Fixed(_) => Ok(0.0),
            Self::Taught(_, gradient) => make(gradient).map(|()| 0.0),
            Self::Moved(numbers, [first, second], step) => {
                let gradient = &mut room[..numbers.len()];
                make(gradient)?;
                Ok(step.make_step(numbers, [first, second], gradient))
            }
        }
    }

    fn is_moved(&self) -> bool {
        matches!(self, Self::Moved(..))
    }
}

/// Puts the gradients of [`super::forward`] where they belong, from `dy` (N, C), that of its `y`.
///
/// Returns the sums of squares of the gradients of `up` and `down`, where these are moved, else 0.
///
/// # Errors
/// Argument for memory of other sizes.
pub fn backward(
    routes: &Routes<'_>,
    dy: &[f32],
    x: &[f32],
    [up, down]: [Matrices<'_>; 2],
    to: Gradients<'_>,
    threads: Threads<'_>,
) -> Result<[f64; 2]> {
    let Sizes { n_tokens, dim, width, .. } = routes.sizes;
    let (n_rows, n_experts) = (routes.order.len(), routes.n_experts());
    let Gradients { x: d_x, weights: d_weights, rows } = to;
    expect("x", x.len(), n_tokens * dim)?;
    expect("dy", dy.len(), n_tokens * dim)?;
    expect("rows", rows.len(), n_rows * dim)?;
    expect("d_x", d_x.len(), n_tokens * dim)?;
    expect("d_weights", d_weights.len(), n_rows)?;
    up.expect("up", n_experts * 2 * width * dim)?;
    down.expect("down", n_experts * dim * width)?;
    let room = if up.is_moved() || down.is_moved() { 2 * width * dim } else { 0 };
    let (ups, downs) = (up.cut(n_experts, 2 * width * dim), down.cut(n_experts, dim * width));
    let outs = routes.cut(rows, dim);
    let mut shares = vec![0.0; n_rows];
    let d_shares = routes.cut(&mut shares, 1);
    let squares = Mutex::new(vec![[0.0; 2]; n_experts]);
    each_expert(routes, threads, |expert, own| {
        let n = routes.rows(expert).len();
        let (Some(up), Some(down)) = (ups.get(expert), downs.get(expert)) else { return Ok(()) };
        let (mut up, mut down) = (locked(up), locked(down));
        let [x_states, states, high, d_h, d_high, room] =
            own.cut([n * dim, n * dim, n * 2 * width, n * width, n * 2 * width, room]);
        routes.gather(x, expert, x_states);
        multiply(by_rows(x_states, n, dim)?, by_rows(up.numbers(), 2 * width, dim)?, high)?;
        routes.gather(dy, expert, states);
        multiply(by_rows(states, n, dim)?, by_columns(down.numbers(), width, dim)?, d_h)?;
        let rows = high.chunks(2 * width).zip(d_h.chunks_mut(width)).zip(d_high.chunks_mut(2 * width));
        for ((((high, d_h), d_high), share), d_share) in
            rows.zip(routes.shares(expert)).zip(locked(&d_shares[expert]).iter_mut())
        {
            *d_share = elementwise::gated_backward(high, share, d_h, d_high);
        }
        let h = d_h; // times its share
        let of_down =
            down.teach(room, |gradient| multiply(by_columns(states, dim, n)?, by_columns(h, width, n)?, gradient))?;
        multiply(
            by_rows(d_high, n, 2 * width)?,
            by_columns(up.numbers(), dim, 2 * width)?,
            &mut locked(&outs[expert]),
        )?;
        let of_up = up.teach(room, |gradient| {
            multiply(by_columns(d_high, 2 * width, n)?, by_columns(x_states, dim, n)?, gradient)
        })?;
        locked(&squares)[expert] = [of_up, of_down];
        Ok(())
    })?;
    drop((outs, d_shares));
    routes.add(rows, false, d_x, threads);
    for (&place, share) in routes.order.iter().zip(shares) {
        d_weights[place as usize] = share;
    }
    let squares = squares.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok([0, 1].map(|i| squares.iter().map(|of| of[i]).sum()))
}
