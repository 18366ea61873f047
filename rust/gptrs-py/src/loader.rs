//! `Loader` and `Ring`.

use std::sync::Arc;
use std::time::Duration;

use gptrs_core::loader::{Buffers, LoaderOptions, Prefetch};
use gptrs_core::{Error, Result, permute};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::prelude::*;

use crate::call::{POLL, detached, py_err, quick};
use crate::dataset::Dataset;

/// Which rows a rank gets, and their tokens.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Loader(gptrs_core::loader::Loader);

#[pymethods]
impl Loader {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        dataset: &Dataset,
        seq_len: usize,
        global_batch: usize,
        micro_batch: usize,
        rank: usize,
        world_size: usize,
        seed: u64,
        shuffle: bool,
    ) -> PyResult<Self> {
        let options = LoaderOptions { seq_len, global_batch, micro_batch, rank, world_size, seed, shuffle };
        gptrs_core::loader::Loader::new(Arc::clone(&dataset.0), options).map(Self).map_err(py_err)
    }

    /// The first token of each row of the microbatch.
    fn row_starts<'py>(&self, py: Python<'py>, next_sample: u64) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows = quick(|| self.0.microbatch(next_sample))?;
        let seq_len = self.0.options().seq_len as i64;
        Ok(rows.into_iter().map(|row| row as i64 * seq_len).collect::<Vec<_>>().into_pyarray(py))
    }

    /// Fills the caller's array now.
    fn fill(&self, py: Python<'_>, next_sample: u64, array: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut lent = Lent::new(array)?;
        detached(py, || lent.fill(&self.0, next_sample))
    }

    /// Fills arrays ahead, from `next_sample` on.
    fn ring(&self, next_sample: u64) -> PyResult<Ring> {
        Prefetch::new(self.0.clone(), next_sample).map(Ring).map_err(py_err)
    }

    #[getter]
    fn n_rows(&self) -> u64 {
        self.0.n_rows()
    }

    #[getter]
    fn order(&self) -> &'static str {
        if self.0.options().shuffle { permute::NAME } else { "sequential" }
    }
}

/// A thread that fills the arrays lent to it, oldest first.
#[pyclass(module = "gptrs._core")]
pub struct Ring(Prefetch<Lent>);

#[pymethods]
impl Ring {
    /// Lends an array; the caller leaves it alone until `next` has come round to it.
    fn submit(&mut self, array: &Bound<'_, PyAny>) -> PyResult<()> {
        let lent = Lent::new(array)?;
        quick(|| self.0.submit(lent))
    }

    /// Waits until the oldest array is filled and gives it back.
    fn next(&mut self, py: Python<'_>) -> PyResult<()> {
        if quick(|| self.0.next_within(Duration::ZERO))?.is_some() {
            return Ok(());
        }
        while detached(py, || self.0.next_within(POLL))?.is_none() {
            py.check_signals()?;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The thread may be in the middle of a read: wait for it without the GIL.
        Python::try_attach(|py| py.detach(|| self.0.close()));
    }
}

/// An array of the caller, kept alive and in place by its buffer export until it is dropped.
enum Lent {
    /// (2, B, T): tokens, then targets.
    Wide(PyBuffer<i64>),
    /// (B, T + 1): rows as in the shards.
    Rows16(PyBuffer<u16>),
    /// (B, T + 1): rows as in the shards.
    Rows32(PyBuffer<u32>),
}

impl Lent {
    fn new(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(array)?;
        if buffer.readonly() || !buffer.is_c_contiguous() {
            return Err(py_err(Error::Argument("expected a writable, C-contiguous array".to_owned())));
        }
        match buffer.item_size() {
            2 => buffer.into_typed().map(Self::Rows16),
            4 => buffer.into_typed().map(Self::Rows32),
            _ => buffer.into_typed().map(Self::Wide),
        }
    }
}

impl Buffers for Lent {
    fn fill(&mut self, loader: &gptrs_core::loader::Loader, next_sample: u64) -> Result<()> {
        match self {
            Self::Wide(both) => {
                let both = memory(both);
                let (tokens, targets) = both.split_at_mut(both.len() / 2);
                loader.fill(next_sample, tokens, targets)
            }
            Self::Rows16(rows) => loader.fill_rows(next_sample, memory(rows)),
            Self::Rows32(rows) => loader.fill_rows(next_sample, memory(rows)),
        }
    }
}

/// The memory of a buffer that [`Lent::new`] took.
fn memory<T: Element>(buffer: &mut PyBuffer<T>) -> &mut [T] {
    let mut slice = buffer.as_slice_ptr().expect("`Lent::new` takes only C-contiguous buffers");
    // SAFETY: `Lent::new` checked that the memory is contiguous and may be written, `into_typed` that it is aligned and
    // of type T (any bits are a value); the export keeps it in place while the buffer lives. Only this thread has it:
    // `buffer` is unique, and Python leaves a lent array alone until `Ring::next` has come round to it.
    unsafe { slice.as_mut() }
}
