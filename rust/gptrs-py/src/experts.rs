//! Experts of a layer, on the threads of whoever calls.

use gptrs_core::Error;
use gptrs_core::experts::{self, AdamW, Gradients, Matrices, Routes, Sizes};
use numpy::{PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use numpy::{PyReadwriteArray2, PyReadwriteArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::call::{detached, py_err};
use crate::gemm::run;

/// Both moments of matrices, and the rate, β₁, β₂, ε, λ and number of a step.
type Step<'py> = (Bound<'py, PyArray3<f32>>, Bound<'py, PyArray3<f32>>, [f64; 6]);

/// The experts of all tokens, of float32: y (N, C) of x (N, C), up (E, 2·m, C), down (E, C, m), weights (N, A), order (N·A,)
/// and loads (E,). `rows` (N·A, C) is for the call.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "those of the operator, and memory")]
pub fn experts_forward(
    py: Python<'_>,
    x: PyReadonlyArray2<'_, f32>,
    up: Bound<'_, PyArray3<f32>>,
    down: Bound<'_, PyArray3<f32>>,
    weights: PyReadonlyArray2<'_, f32>,
    order: PyReadonlyArray1<'_, i64>,
    loads: PyReadonlyArray1<'_, i64>,
    mut rows: PyReadwriteArray2<'_, f32>,
    mut y: PyReadwriteArray2<'_, f32>,
    threads: usize,
    region: usize,
) -> PyResult<()> {
    let sizes = sizes(&x, &up, &weights);
    let (up, down) = (up.try_readonly()?, down.try_readonly()?);
    let (x, up, down) = (x.as_slice()?, up.as_slice()?, down.as_slice()?);
    let (weights, order, loads) = (weights.as_slice()?, order.as_slice()?, loads.as_slice()?);
    let (rows, y) = (rows.as_slice_mut()?, y.as_slice_mut()?);
    let threads = gptrs_core::parallel::resolve_threads(threads);
    detached(py, move || {
        let routes = Routes::new(sizes, weights, order, loads)?;
        experts::forward(&routes, x, [up, down], rows, y, &|work| run(work, threads, region))
    })
}

/// The gradients of `experts_forward` from that of its y, dy (N, C): of x into `d_x`, of weights into `d_weights`, and of up and
/// down into `d_up` and `d_down` where these are given. With `move_up` or `move_down` those matrices move by `AdamW` at once.
/// Returns the sums of squares of the gradients of matrices that moved.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "those of the operator, and memory")]
pub fn experts_backward(
    py: Python<'_>,
    dy: PyReadonlyArray2<'_, f32>,
    x: PyReadonlyArray2<'_, f32>,
    up: Bound<'_, PyArray3<f32>>,
    down: Bound<'_, PyArray3<f32>>,
    weights: PyReadonlyArray2<'_, f32>,
    order: PyReadonlyArray1<'_, i64>,
    loads: PyReadonlyArray1<'_, i64>,
    mut rows: PyReadwriteArray2<'_, f32>,
    mut d_x: PyReadwriteArray2<'_, f32>,
    mut d_weights: PyReadwriteArray2<'_, f32>,
    d_up: Option<PyReadwriteArray3<'_, f32>>,
    d_down: Option<PyReadwriteArray3<'_, f32>>,
    move_up: Option<Step<'_>>,
    move_down: Option<Step<'_>>,
    threads: usize,
    region: usize,
) -> PyResult<(f64, f64)> {
    let sizes = sizes(&x, &up, &weights);
    let (mut up, mut down) = (Borrowed::new(&up, d_up, move_up)?, Borrowed::new(&down, d_down, move_down)?);
    let (up, down) = (up.matrices()?, down.matrices()?);
    let (dy, x) = (dy.as_slice()?, x.as_slice()?);
    let (weights, order, loads) = (weights.as_slice()?, order.as_slice()?, loads.as_slice()?);
    let to = Gradients { x: d_x.as_slice_mut()?, weights: d_weights.as_slice_mut()?, rows: rows.as_slice_mut()? };
    let threads = gptrs_core::parallel::resolve_threads(threads);
    let [of_up, of_down] = detached(py, move || {
        let routes = Routes::new(sizes, weights, order, loads)?;
        experts::backward(&routes, dy, x, [up, down], to, &|work| run(work, threads, region))
    })?;
    Ok((of_up, of_down))
}

/// Arrays of one kind of matrices, for the length of a call.
enum Borrowed<'py> {
    Fixed(numpy::PyReadonlyArray3<'py, f32>),
    Taught(numpy::PyReadonlyArray3<'py, f32>, PyReadwriteArray3<'py, f32>),
    Moved([PyReadwriteArray3<'py, f32>; 3], AdamW),
}

impl<'py> Borrowed<'py> {
    fn new(
        numbers: &Bound<'py, PyArray3<f32>>,
        gradient: Option<PyReadwriteArray3<'py, f32>>,
        step: Option<Step<'py>>,
    ) -> PyResult<Self> {
        Ok(match (step, gradient) {
            (Some(_), Some(_)) => {
                return Err(py_err(Error::Argument("expected a gradient's place or a step, got both".into())));
            }
            (Some((first, second, [lr, b1, b2, eps, weight_decay, step])), None) => {
                let all = [numbers.try_readwrite()?, first.try_readwrite()?, second.try_readwrite()?];
                Self::Moved(all, AdamW { lr, betas: [b1, b2], eps, weight_decay, step })
            }
            (None, Some(gradient)) => Self::Taught(numbers.try_readonly()?, gradient),
            (None, None) => Self::Fixed(numbers.try_readonly()?),
        })
    }

    fn matrices(&mut self) -> PyResult<Matrices<'_>> {
        Ok(match self {
            Self::Fixed(numbers) => Matrices::Fixed(numbers.as_slice()?),
            Self::Taught(numbers, gradient) => Matrices::Taught(numbers.as_slice()?, gradient.as_slice_mut()?),
            Self::Moved([numbers, first, second], step) => {
                let moments = [first.as_slice_mut()?, second.as_slice_mut()?];
                Matrices::Moved(numbers.as_slice_mut()?, moments, *step)
            }
        })
    }
}

fn sizes(x: &PyReadonlyArray2<'_, f32>, up: &Bound<'_, PyArray3<f32>>, weights: &PyReadonlyArray2<'_, f32>) -> Sizes {
    Sizes { n_tokens: x.shape()[0], dim: x.shape()[1], width: up.shape()[1] / 2, n_choices: weights.shape()[1] }
}
