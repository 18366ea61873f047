//! `HostMemory` and `HostRing`: batches on the CPU, in memory that is used again once nobody holds any of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gptrs_core::Result;
use gptrs_core::loader::{Buffers, Marks, Prefetch};
use numpy::Element;
use numpy::PyArray;
use numpy::ndarray::{ArrayViewMut, Dimension, Ix1, Ix2};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::call::{POLL, detached, py_err, quick};
use crate::loader::Loader;

/// The memory of one microbatch.
#[derive(Debug, Default)]
struct Block {
    /// (2, B, T): tokens, then targets.
    both: Vec<i64>,
    /// (B, T), or none.
    positions: Vec<i32>,
    /// (B * n + 1), or none.
    cu_seqlens: Vec<i32>,
}

impl Buffers for Block {
    fn fill(&mut self, loader: &gptrs_core::loader::Loader, next_sample: u64) -> Result<()> {
        let n = self.both.len() / 2;
        let (tokens, targets) = self.both.split_at_mut(n);
        let mut marks = Marks { positions: &mut self.positions, cu_seqlens: &mut self.cu_seqlens };
        loader.fill_marked(next_sample, tokens, targets, &mut marks)
    }
}

/// Blocks that nobody holds. Fresh memory costs more than filling it: the system maps and clears each page at the first
/// touch.
#[derive(Debug)]
struct Pool {
    shape: (usize, usize),
    /// Elements of `cu_seqlens`, 0 for neither it nor positions.
    n_marks: usize,
    n_kept: usize,
    free: Mutex<Vec<Block>>,
}

impl Pool {
    /// A block, the one that was given back last if there is one.
    fn take(&self) -> PyResult<Block> {
        if let Some(block) = self.free.try_lock().ok().and_then(|mut free| free.pop()) {
            return Ok(block);
        }
        self.fresh().ok_or_else(|| {
            let (rows, columns) = self.shape;
            PyMemoryError::new_err(format!(
                "no memory for a batch of {rows} x {columns} tokens and targets; hint: use a smaller micro_batch"
            ))
        })
    }

    /// A zeroed block, if there is memory for it.
    fn fresh(&self) -> Option<Block> {
        let n = self.shape.0.checked_mul(self.shape.1)?;
        let n_positions = if self.n_marks == 0 { 0 } else { n };
        let (both, positions) = (zeroed(n.checked_mul(2)?)?, zeroed(n_positions)?);
        Some(Block { both, positions, cu_seqlens: zeroed(self.n_marks)? })
    }

    /// Keeps `block` for the next one that asks. Never waits: a forked child may find the lock held for ever.
    fn give_back(&self, block: Block) {
        if let Ok(mut free) = self.free.try_lock()
            && free.len() < self.n_kept
        {
            free.push(block);
        }
    }
}

/// `n` zeros, if there is memory for them.
fn zeroed<T: Default + Clone>(n: usize) -> Option<Vec<T>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(n).ok()?;
    zeros.resize(n, T::default());
    Some(zeros)
}

/// A delivered block: what the arrays in it hold instead of owning their memory.
#[pyclass(module = "gptrs._core")]
struct Delivered {
    block: Block,
    pool: Arc<Pool>,
}

impl Drop for Delivered {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.block));
    }
}

/// Memory for microbatches of one shape.
#[pyclass(frozen, module = "gptrs._core")]
pub struct HostMemory {
    pool: Arc<Pool>,
    from_numpy: Option<Py<PyAny>>,
}

#[pymethods]
impl HostMemory {
    /// `n_kept` blocks at most wait to be used again; `from_numpy` makes what is delivered of each array.
    #[new]
    #[pyo3(signature = (micro_batch, seq_len, n_marks=0, n_kept=0, from_numpy=None))]
    fn new(micro_batch: usize, seq_len: usize, n_marks: usize, n_kept: usize, from_numpy: Option<Py<PyAny>>) -> Self {
        let free = Mutex::new(Vec::new());
        Self { pool: Arc::new(Pool { shape: (micro_batch, seq_len), n_marks, n_kept, free }), from_numpy }
    }

    /// Blocks that wait to be used again.
    #[getter]
    fn n_free(&self) -> usize {
        self.pool.free.try_lock().map_or(0, |free| free.len())
    }

    /// The microbatches from `next_sample` on, up to `prefetch` of them filled ahead.
    fn start(slf: Bound<'_, Self>, loader: &Loader, next_sample: u64, prefetch: usize) -> PyResult<HostRing> {
        let ahead = Prefetch::new(loader.0.clone(), next_sample).map_err(py_err)?;
        Ok(HostRing { ahead, memory: slf.unbind(), n_ahead: prefetch })
    }

    /// The microbatch at `next_sample`, read now.
    fn read<'py>(&self, py: Python<'py>, loader: &Loader, next_sample: u64) -> PyResult<Bound<'py, PyTuple>> {
        let mut block = self.pool.take()?;
        detached(py, || block.fill(&loader.0, next_sample))?;
        self.deliver(py, block)
    }
}

impl HostMemory {
    /// Tokens and targets in `block`, and positions and `cu_seqlens` where there are any.
    fn deliver<'py>(&self, py: Python<'py>, block: Block) -> PyResult<Bound<'py, PyTuple>> {
        let delivered = Bound::new(py, Delivered { block, pool: Arc::clone(&self.pool) })?;
        let mut owned = delivered.borrow_mut();
        let Block { both, positions, cu_seqlens } = &mut owned.block;
        let (rows, columns) = self.pool.shape;
        let (tokens, targets) = both.split_at_mut(rows * columns);
        let shape = Ix2(rows, columns);
        let pair = [self.view(&delivered, tokens, shape)?, self.view(&delivered, targets, shape)?];
        if cu_seqlens.is_empty() {
            return PyTuple::new(py, pair);
        }
        let n_marks = Ix1(cu_seqlens.len());
        let marks = [self.view(&delivered, positions, shape)?, self.view(&delivered, cu_seqlens, n_marks)?];
        PyTuple::new(py, pair.into_iter().chain(marks).collect::<Vec<_>>())
    }

    fn view<'py, T: Element, D: Dimension>(
        &self,
        owner: &Bound<'py, Delivered>,
        memory: &mut [T],
        shape: D,
    ) -> PyResult<Bound<'py, PyAny>> {
        let view = ArrayViewMut::from_shape(shape, memory).expect("`Pool::fresh` made the block of this shape");
        // SAFETY: `memory` is in the block of `owner`, which the array holds; a block in a `Delivered` is not moved to
        // and not touched before it is dropped. The array may write: its pointer comes from a `&mut`, and `deliver`
        // gives each of the up to four arrays of a block a part of its own.
        let array = unsafe { PyArray::borrow_from_array(&view, owner.clone().into_any()) };
        match &self.from_numpy {
            None => Ok(array.into_any()),
            Some(from_numpy) => from_numpy.bind(owner.py()).call1((array,)),
        }
    }
}

/// Microbatches in order, filled ahead by a thread.
#[pyclass(module = "gptrs._core")]
pub struct HostRing {
    ahead: Prefetch<Block>,
    memory: Py<HostMemory>,
    n_ahead: usize,
}

#[pymethods]
impl HostRing {
    /// Waits for the next microbatch: tokens and targets, and positions and `cu_seqlens` where there are any.
    fn next<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let memory = self.memory.get();
        for _ in 0..quick(|| self.ahead.n_missing(self.n_ahead))? {
            let block = memory.pool.take()?;
            quick(|| self.ahead.submit(block))?;
        }
        let block = wait(py, &mut self.ahead)?;
        memory.deliver(py, block)
    }
}

impl Drop for HostRing {
    fn drop(&mut self) {
        close(&mut self.ahead);
    }
}

/// Waits until the oldest buffers are filled; Ctrl-C ends the wait.
pub fn wait<B: Buffers>(py: Python<'_>, ahead: &mut Prefetch<B>) -> PyResult<B> {
    if let Some(buffers) = quick(|| ahead.next_within(Duration::ZERO))? {
        return Ok(buffers);
    }
    loop {
        if let Some(buffers) = detached(py, || ahead.next_within(POLL))? {
            return Ok(buffers);
        }
        py.check_signals()?;
    }
}

/// Ends the thread, which may be in the middle of a read: waits for it without the GIL.
pub fn close<B: Buffers>(ahead: &mut Prefetch<B>) {
    Python::try_attach(|py| py.detach(|| ahead.close()));
}
