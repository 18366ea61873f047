//! Attention of float32 on tile units, on the threads of whoever calls.

use gptrs_core::Error;
use gptrs_core::attention::{Backward, Forward, Gradients, Inputs, View};
use numpy::{PyReadonlyArray1, PyReadonlyArray4, PyReadwriteArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::call::{detached, py_err};
use crate::gemm::run;

/// Queries, keys, values and the key that heads share, or None.
type Given<'py> = (
    PyReadonlyArray4<'py, f32>,
    PyReadonlyArray4<'py, f32>,
    PyReadonlyArray4<'py, f32>,
    Option<PyReadonlyArray4<'py, f32>>,
);

/// Gradients of the same.
type Made<'py> = (
    PyReadwriteArray1<'py, f32>,
    PyReadwriteArray1<'py, f32>,
    PyReadwriteArray1<'py, f32>,
    PyReadwriteArray1<'py, f32>,
);

/// Puts causal attention into `out` (B, T, H, V) and the log-sum-exp of its scores into `lse` (B, H, T), given q (B, H, T, D),
/// k (B, K, T, D1), v (B, K, T, V) and key (B, 1, T, D - D1). `threads` and `region` as in `multiply`.
#[pyfunction]
pub fn attend(
    py: Python<'_>,
    given: Given<'_>,
    scale: f32,
    mut out: PyReadwriteArray1<'_, f32>,
    mut lse: PyReadwriteArray1<'_, f32>,
    threads: usize,
    region: usize,
) -> PyResult<()> {
    let inputs = inputs(&given, scale)?;
    let (out, lse) = (out.as_slice_mut()?, lse.as_slice_mut()?);
    let threads = gptrs_core::parallel::resolve_threads(threads);
    detached(py, move || {
        let attention = Forward::new(inputs, out, lse)?;
        run(&|| attention.work(), threads, region);
        Ok(())
    })
}

/// Puts the gradients of q, k, v and key, (B, T, H, D), (B, T, K, D1), (B, T, K, V) and (B, T, K, D - D1), into `made`, given
/// `out` and its gradient (B, H, T, V).
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "what a gradient is made of")]
pub fn attend_backward(
    py: Python<'_>,
    given: Given<'_>,
    scale: f32,
    out: PyReadonlyArray4<'_, f32>,
    lse: PyReadonlyArray1<'_, f32>,
    d_out: PyReadonlyArray4<'_, f32>,
    mut made: Made<'_>,
    threads: usize,
    region: usize,
) -> PyResult<()> {
    let (inputs, out, d_out) = (inputs(&given, scale)?, view(&out)?, view(&d_out)?);
    let lse = lse.as_slice()?;
    let gradients = Gradients {
        q: made.0.as_slice_mut()?,
        k: made.1.as_slice_mut()?,
        v: made.2.as_slice_mut()?,
        key: made.3.as_slice_mut()?,
    };
    let threads = gptrs_core::parallel::resolve_threads(threads);
    detached(py, move || {
        let attention = Backward::new(inputs, out, lse, d_out, gradients)?;
        run(&|| attention.work(), threads, region);
        Ok(())
    })
}

fn inputs<'a>((q, k, v, key): &'a Given<'_>, scale: f32) -> PyResult<Inputs<'a>> {
    let key = key.as_ref().map(view).transpose()?;
    Inputs::new(view(q)?, view(k)?, view(v)?, key, scale).map_err(py_err)
}

fn view<'a>(array: &'a PyReadonlyArray4<'_, f32>) -> PyResult<View<'a>> {
    let shape: [usize; 4] = std::array::from_fn(|axis| array.shape()[axis]);
    let all = array.as_array();
    let steps = all.strides();
    let [Ok(batch), Ok(head), Ok(position)] = [0, 1, 2].map(|axis| usize::try_from(steps[axis])) else {
        return Err(py_err(Error::Argument("expected positions in order of memory".into())));
    };
    if steps[3] != 1 && shape[3] > 1 {
        return Err(py_err(Error::Argument("expected columns side by side".into())));
    }
    let steps = [batch, head, position];
    let extent = if shape.contains(&0) {
        0
    } else {
        1 + steps.iter().chain(&[1]).zip(shape).map(|(step, n)| step * (n - 1)).sum::<usize>()
    };
    // SAFETY: the array is borrowed for as long, and holds the numbers up to the last that its shape and steps name.
    let numbers = unsafe { std::slice::from_raw_parts(all.as_ptr(), extent) };
    View::new(numbers, shape, steps).map_err(py_err)
}
