//! Products of float32 on tile units, on the threads of whoever calls.

use std::ffi::{c_uint, c_void};

use gptrs_core::Error;
use gptrs_core::gemm::{Factor, Product, is_available};
use numpy::ndarray::ArrayView2;
use numpy::{PyReadonlyArray2, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::call::{detached, py_err};

/// `GOMP_parallel`: runs a function with an argument on so many threads, this one among them, and waits for all.
type Region = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Whether this processor has tile units, without which `multiply` is slow.
#[pyfunction]
pub fn can_multiply() -> bool {
    is_available()
}

/// Puts or adds `a · b` to `out`, of float32. With `region`, the address of OpenMP's `GOMP_parallel`, the threads of that
/// library are used, which may still be spinning behind its last region; with 0 new ones.
#[pyfunction]
pub fn multiply(
    py: Python<'_>,
    a: PyReadonlyArray2<'_, f32>,
    b: PyReadonlyArray2<'_, f32>,
    mut out: PyReadwriteArray2<'_, f32>,
    is_added: bool,
    threads: usize,
    region: usize,
) -> PyResult<()> {
    let (left, right) = (steps(&a.as_array().view())?, steps(&b.as_array().view())?);
    let (((step, 1), _) | ((step, _), 1)) = (steps(&out.as_array().view())?, out.shape()[1]) else {
        return Err(py_err(Error::Argument("expected rows of numbers side by side".into())));
    };
    let (m, k, n) = (a.shape()[0], a.shape()[1], b.shape()[1]);
    if [m, n] != *out.shape() || k != b.shape()[0] {
        let (a, b, out) = (a.shape(), b.shape(), out.shape());
        let message = format!("expected (m, k) times (k, n) into (m, n), got {a:?}, {b:?} and {out:?}");
        return Err(py_err(Error::Argument(message)));
    }
    // SAFETY: the arrays are borrowed for this call, and hold the numbers up to the last that their shape and steps name.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.as_array().as_ptr(), extent((m, k), left)),
            std::slice::from_raw_parts(b.as_array().as_ptr(), extent((k, n), right)),
        )
    };
    // SAFETY: as above; this array is borrowed mutably.
    let out = unsafe { std::slice::from_raw_parts_mut(out.as_array_mut().as_mut_ptr(), extent((m, n), (step, 1))) };
    let threads = gptrs_core::parallel::resolve_threads(threads);
    detached(py, move || {
        let (a, b) = (Factor::new(a, m, k, left)?, Factor::new(b, n, k, (right.1, right.0))?);
        let product = Product::new(a, b, out, step, is_added, threads)?;
        run(&|| product.work(), threads, region);
        Ok(())
    })
}

/// How far apart rows and columns are.
fn steps(array: &ArrayView2<'_, f32>) -> PyResult<(usize, usize)> {
    let step = |axis: usize| match usize::try_from(array.strides()[axis]) {
        Ok(step) => Ok(step),
        Err(_) => Err(py_err(Error::Argument("expected rows and columns in order of memory".into()))),
    };
    Ok((step(0)?, step(1)?))
}

/// Numbers from the first of an array to its last.
fn extent(shape: (usize, usize), steps: (usize, usize)) -> usize {
    if shape.0 == 0 || shape.1 == 0 { 0 } else { (shape.0 - 1) * steps.0 + (shape.1 - 1) * steps.1 + 1 }
}

/// Has so many threads do `work`, this one among them, and waits for all.
pub(crate) fn run(work: &(dyn Fn() + Sync), threads: usize, region: usize) {
    extern "C" fn begin(work: *mut c_void) {
        // SAFETY: `run` holds what it was given until all threads have returned.
        let work = unsafe { *work.cast::<&(dyn Fn() + Sync)>() };
        work();
    }
    if threads > 1 && region != 0 {
        let threads = c_uint::try_from(threads).unwrap_or(1);
        // SAFETY: the address is that of `GOMP_parallel` in a library that is loaded for good: the caller looked it up there.
        unsafe {
            let region = std::mem::transmute::<usize, Region>(region);
            region(begin, std::ptr::from_ref(&work).cast_mut().cast(), threads, 0);
        }
        return;
    }
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
}
