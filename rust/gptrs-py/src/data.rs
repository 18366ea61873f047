//! `prepare`, `Dataset`, `Loader` and `Ring`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gptrs_core::loader::{Buffers, LoaderOptions, Prefetch};
use gptrs_core::prepare::PrepareOptions;
use gptrs_core::{Error, Result, permute};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::call::{POLL, detached, py_err, quick, watched};
use crate::tokenizer::Tokenizer;

/// Encodes files into shards.
#[pyfunction]
#[pyo3(signature = (paths, tokenizer, out, *, text_field, shard_tokens, append_eot, threads=0, progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn prepare(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tokenizer: &Tokenizer,
    out: PathBuf,
    text_field: String,
    shard_tokens: u64,
    append_eot: bool,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Dataset> {
    let options = PrepareOptions { text_field, shard_tokens, append_eot, threads, ..PrepareOptions::default() };
    watched(py, progress, |control| gptrs_core::prepare::prepare(&paths, &*tokenizer.0, &out, &options, control))
        .map(|dataset| Dataset(Arc::new(dataset)))
}

/// A folder of shards, read only.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Dataset(Arc<gptrs_core::dataset::Dataset>);

#[pymethods]
impl Dataset {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || gptrs_core::dataset::Dataset::open(&path)).map(|dataset| Self(Arc::new(dataset)))
    }

    fn n_rows(&self, seq_len: usize) -> u64 {
        self.0.n_rows(seq_len)
    }

    fn read<'py>(&self, py: Python<'py>, start: u64, n_tokens: usize) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let ids = detached(py, || self.filled(n_tokens, |out| self.0.read(start, out)))?;
        Ok(ids.into_pyarray(py))
    }

    fn doc_ids<'py>(&self, py: Python<'py>, start: u64, n_tokens: usize) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let ids = detached(py, || self.filled(n_tokens, |out: &mut [u64]| self.0.doc_ids(start, out)))?;
        Ok(ids.into_iter().map(|id| id as i64).collect::<Vec<_>>().into_pyarray(py))
    }

    #[pyo3(signature = (threads=0, progress=None))]
    fn verify(&self, py: Python<'_>, threads: usize, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        watched(py, progress, |control| self.0.verify(threads, control))
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.0.dir().to_owned()
    }

    #[getter]
    fn n_tokens(&self) -> u64 {
        self.0.n_tokens()
    }

    #[getter]
    fn n_documents(&self) -> u64 {
        self.0.n_documents()
    }

    #[getter]
    fn vocab_size(&self) -> u64 {
        self.0.vocab_size()
    }

    #[getter]
    fn dtype(&self) -> String {
        format!("uint{}", 8 * self.0.dtype().size())
    }

    #[getter]
    fn eot_id(&self) -> Option<u32> {
        self.0.eot_id()
    }

    #[getter]
    fn tokenizer_digest(&self) -> &str {
        &self.0.manifest().recipe.tokenizer
    }

    #[getter]
    fn fingerprint(&self) -> &str {
        self.0.fingerprint()
    }
}

impl Dataset {
    /// `n` elements that `fill` wrote; never more than there are tokens, so that a wrong length cannot ask for memory.
    fn filled<T: Clone + Default>(&self, n: usize, fill: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Vec<T>> {
        if n as u64 > self.0.n_tokens() {
            let has = self.0.n_tokens();
            return Err(Error::Argument(format!("expected at most the {has} tokens of the dataset, got {n}")));
        }
        let mut out = vec![T::default(); n];
        fill(&mut out).map(|()| out)
    }
}

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

    /// Fills the caller's arrays now.
    #[pyo3(signature = (next_sample, *arrays))]
    fn fill(&self, py: Python<'_>, next_sample: u64, arrays: &Bound<'_, PyTuple>) -> PyResult<()> {
        let mut lent = Lent::new(arrays)?;
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
    /// Lends arrays; the caller leaves them alone until `next` has come round to them.
    #[pyo3(signature = (*arrays))]
    fn submit(&mut self, arrays: &Bound<'_, PyTuple>) -> PyResult<()> {
        let lent = Lent::new(arrays)?;
        quick(|| self.0.submit(lent))
    }

    /// Waits until the oldest arrays are filled and gives them back.
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

/// Arrays of the caller, kept alive and pinned in place by their buffer exports until they are dropped.
enum Lent {
    /// Tokens and targets.
    Wide(PyBuffer<i64>, PyBuffer<i64>),
    /// Rows as in the shards.
    Rows16(PyBuffer<u16>),
    /// Rows as in the shards.
    Rows32(PyBuffer<u32>),
}

impl Lent {
    fn new(arrays: &Bound<'_, PyTuple>) -> PyResult<Self> {
        if arrays.len() == 2 {
            let (tokens, targets) = (writable(&arrays.get_item(0)?)?, writable(&arrays.get_item(1)?)?);
            let ends =
                |buffer: &PyBuffer<i64>| (buffer.buf_ptr() as usize, buffer.buf_ptr() as usize + buffer.len_bytes());
            let (a, b) = (ends(&tokens), ends(&targets));
            if a.0 < b.1 && b.0 < a.1 {
                return Err(py_err(Error::Argument("expected two arrays, got overlapping ones".to_owned())));
            }
            return Ok(Self::Wide(tokens, targets));
        }
        let (rows,): (Bound<'_, PyAny>,) = arrays.extract()?;
        writable(&rows).map(Self::Rows16).or_else(|_| writable(&rows).map(Self::Rows32))
    }
}

impl Buffers for Lent {
    fn fill(&mut self, loader: &gptrs_core::loader::Loader, next_sample: u64) -> Result<()> {
        match self {
            Self::Wide(tokens, targets) => loader.fill(next_sample, memory(tokens), memory(targets)),
            Self::Rows16(rows) => loader.fill_rows(next_sample, memory(rows)),
            Self::Rows32(rows) => loader.fill_rows(next_sample, memory(rows)),
        }
    }
}

/// The buffer of an array that may be written as one slice.
fn writable<T: Element>(array: &Bound<'_, PyAny>) -> PyResult<PyBuffer<T>> {
    let buffer = PyBuffer::get(array)?;
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return Err(py_err(Error::Argument("expected a writable, C-contiguous array".to_owned())));
    }
    Ok(buffer)
}

/// The memory of a buffer that `writable` made.
fn memory<T: Element>(buffer: &mut PyBuffer<T>) -> &mut [T] {
    let mut slice = buffer.as_slice_ptr().expect("`writable` took only C-contiguous buffers");
    // SAFETY: `writable` checked that the memory is contiguous and may be written, PyBuffer that it is aligned and of
    // type T (any bits are a value); the export keeps it in place while the buffer lives. It is borrowed once: `buffer`
    // is unique here, `Lent::new` refuses arrays that overlap, and Python leaves lent arrays alone until `Ring::next`.
    unsafe { slice.as_mut() }
}
