//! `Loader`, `Ring` and `Plan`.

use std::sync::Arc;

use gptrs_core::loader::{Buffers, LoaderOptions, Marks, Prefetch, RowSource, room};
use gptrs_core::mixture::{self, Mixture, Stage};
use gptrs_core::order::{self, BlockShape, OrderKind};
use gptrs_core::{Error, Result, pack};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::prelude::*;

use crate::call::{detached, hex, py_err, quick, watched};
use crate::dataset::Dataset;
use crate::host::{close, wait};

/// The rows of a dataset, packed from whole documents.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Plan(Arc<pack::Plan>);

#[pymethods]
impl Plan {
    #[new]
    #[pyo3(signature = (dataset, seq_len, threads=0, progress=None))]
    fn new(
        py: Python<'_>,
        dataset: &Dataset,
        seq_len: usize,
        threads: usize,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let plan = watched(py, progress, |control| pack::Plan::cached(&dataset.0, seq_len, threads, control))?;
        Ok(Self(Arc::new(plan)))
    }

    #[getter]
    fn n_rows(&self) -> u64 {
        self.0.n_rows()
    }

    #[getter]
    fn padding(&self) -> u64 {
        self.0.padding()
    }

    #[getter]
    fn max_pieces(&self) -> usize {
        self.0.max_pieces()
    }

    #[getter]
    fn digest(&self) -> String {
        hex(self.0.digest())
    }
}

/// The most documents that a row of the stream holds.
#[pyfunction]
#[pyo3(signature = (dataset, seq_len, threads=0, progress=None))]
pub fn max_documents(
    py: Python<'_>,
    dataset: &Dataset,
    seq_len: usize,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<usize> {
    watched(py, progress, |control| pack::max_documents(&dataset.0, seq_len, threads, control))
}

/// A source's name and epochs, and the stages: samples (none for no end) and a weight for each source.
type MixtureSpec = (Vec<(String, Option<u64>)>, Vec<(Option<u64>, Vec<f64>)>);

/// Which rows a rank gets, and their tokens.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Loader(pub(crate) gptrs_core::loader::Loader);

#[pymethods]
impl Loader {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        sources: Vec<(PyRef<'_, Dataset>, Option<PyRef<'_, Plan>>)>,
        mixture: Option<MixtureSpec>,
        seq_len: usize,
        global_batch: usize,
        micro_batch: usize,
        rank: usize,
        world_size: usize,
        seed: u64,
        order: &str,
    ) -> PyResult<Self> {
        let order = match order {
            order::SEQUENTIAL => OrderKind::Sequential,
            order::BLOCK => OrderKind::Block(BlockShape::default()),
            _ => OrderKind::Feistel,
        };
        let options = LoaderOptions { seq_len, global_batch, micro_batch, rank, world_size, seed, order };
        quick(|| {
            let rows = |(dataset, plan): &(PyRef<'_, Dataset>, Option<PyRef<'_, Plan>>)| match plan {
                None => RowSource::stream(Arc::clone(&dataset.0), seq_len),
                Some(plan) => RowSource::packed(Arc::clone(&dataset.0), Arc::clone(&plan.0)),
            };
            let mut sources = sources.iter().map(rows).collect::<Result<Vec<_>>>()?;
            match (mixture, sources.len()) {
                (Some(spec), _) => {
                    let mixture = mixed(spec, &sources, seed)?;
                    gptrs_core::loader::Loader::mixed(sources, mixture, options)
                }
                (None, 1) => gptrs_core::loader::Loader::of(sources.remove(0), options),
                (None, n) => Err(Error::Argument(format!("expected one source without a mixture, got {n}"))),
            }
        })
        .map(Self)
    }

    /// The first token of each row of the microbatch in its source, and the source's index.
    fn row_starts<'py>(&self, py: Python<'py>, next_sample: u64) -> PyResult<(Numbers<'py>, Numbers<'py>)> {
        let (mut starts, mut sources) = (Vec::new(), Vec::new());
        detached(py, || {
            let places = self.0.microbatch(next_sample)?;
            starts = room("row starts", places.len(), 1)?;
            sources = room("sources", places.len(), 1)?;
            for place in places {
                starts.push(self.0.sources()[place.source].start(place.row)? as i64);
                sources.push(place.source as i64);
            }
            Ok(())
        })?;
        Ok((starts.into_pyarray(py), sources.into_pyarray(py)))
    }

    /// The document of each token of the microbatch, counted in its source; -1 in padding.
    fn doc_ids<'py>(&self, py: Python<'py>, next_sample: u64) -> PyResult<Numbers<'py>> {
        let LoaderOptions { micro_batch, seq_len, .. } = *self.0.options();
        let ids = detached(py, || {
            let mut ids = room("doc_ids", micro_batch, seq_len)?;
            ids.resize(micro_batch * seq_len, 0);
            self.0.fill_doc_ids(next_sample, &mut ids)?;
            Ok(ids)
        })?;
        Ok(ids.into_iter().map(|id| id as i64).collect::<Vec<_>>().into_pyarray(py))
    }

    /// Fills the caller's arrays now.
    #[pyo3(signature = (next_sample, array, positions=None, cu_seqlens=None))]
    fn fill(
        &self,
        py: Python<'_>,
        next_sample: u64,
        array: &Bound<'_, PyAny>,
        positions: Option<&Bound<'_, PyAny>>,
        cu_seqlens: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut lent = Lent::new(array, positions, cu_seqlens)?;
        detached(py, || lent.fill(&self.0, next_sample))
    }

    /// Fills arrays ahead, from `next_sample` on.
    fn ring(&self, next_sample: u64) -> PyResult<Ring> {
        Prefetch::new(self.0.clone(), next_sample).map(Ring).map_err(py_err)
    }

    /// Epochs that each source of a mixture has given before `next_sample`.
    fn epochs(&self, next_sample: u64) -> PyResult<Vec<f64>> {
        match self.0.mixture() {
            Some(mixture) => quick(|| mixture.epochs(next_sample)),
            None => Ok(vec![next_sample as f64 / self.0.n_rows() as f64]),
        }
    }

    #[getter]
    fn n_rows(&self) -> u64 {
        self.0.n_rows()
    }

    /// Samples of a mixture's stages, if the last one ends.
    #[getter]
    fn n_samples(&self) -> Option<u64> {
        self.0.mixture().and_then(|mixture| mixture.n_samples())
    }

    /// The first sample that a mixture does not have: behind its stages, or where a source has given all it may.
    #[getter]
    fn end(&self) -> Option<u64> {
        self.0.mixture().map(|mixture| mixture.end())
    }

    #[getter]
    fn mixture_digest(&self) -> Option<String> {
        self.0.mixture().map(|mixture| hex(&mixture.digest()))
    }

    #[getter]
    fn order(&self) -> &'static str {
        self.0.options().order.name()
    }
}

type Numbers<'py> = Bound<'py, PyArray1<i64>>;

/// The mixture of these sources.
fn mixed((names, stages): MixtureSpec, sources: &[RowSource], seed: u64) -> Result<Mixture> {
    let source = |((name, max_epochs), rows): ((String, Option<u64>), &RowSource)| mixture::Source {
        name,
        n_rows: rows.n_rows(),
        max_epochs,
    };
    let listed = names.into_iter().zip(sources).map(source).collect();
    let stages: Vec<_> = stages.into_iter().map(|(samples, weights)| Stage { samples, weights }).collect();
    Mixture::new(listed, &stages, seed)
}

/// A thread that fills the arrays lent to it, oldest first.
#[pyclass(module = "gptrs._core")]
pub struct Ring(Prefetch<Lent>);

#[pymethods]
impl Ring {
    /// Lends arrays; the caller leaves them alone until `next` has come round to it.
    #[pyo3(signature = (array, positions=None, cu_seqlens=None))]
    fn submit(
        &mut self,
        array: &Bound<'_, PyAny>,
        positions: Option<&Bound<'_, PyAny>>,
        cu_seqlens: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let lent = Lent::new(array, positions, cu_seqlens)?;
        quick(|| self.0.submit(lent))
    }

    /// Waits until the oldest array is filled and gives it back.
    fn next(&mut self, py: Python<'_>) -> PyResult<()> {
        wait(py, &mut self.0).map(drop)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        close(&mut self.0);
    }
}

/// Arrays of the caller, kept alive and in place by their buffer exports until they are dropped.
struct Lent {
    tokens: Tokens,
    /// (B, T).
    positions: Option<PyBuffer<i32>>,
    /// (B * n + 1).
    cu_seqlens: Option<PyBuffer<i32>>,
}

enum Tokens {
    /// (2, B, T): tokens, then targets.
    Both(PyBuffer<i32>),
    /// (B, T + 1): rows as in the shards.
    Rows16(PyBuffer<u16>),
    /// (B, T + 1): rows as in the shards.
    Rows32(PyBuffer<u32>),
}

impl Lent {
    fn new(
        array: &Bound<'_, PyAny>,
        positions: Option<&Bound<'_, PyAny>>,
        cu_seqlens: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let buffer = writable(array)?;
        let tokens = match (buffer.item_size(), buffer.dimensions()) {
            (2, _) => buffer.into_typed().map(Tokens::Rows16)?,
            (4, 3) => buffer.into_typed().map(Tokens::Both)?,
            _ => buffer.into_typed().map(Tokens::Rows32)?,
        };
        let marks = |array: Option<&Bound<'_, PyAny>>| array.map(|a| writable(a)?.into_typed()).transpose();
        Ok(Self { tokens, positions: marks(positions)?, cu_seqlens: marks(cu_seqlens)? })
    }
}

fn writable(array: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(array)?;
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return Err(py_err(Error::Argument("expected a writable, C-contiguous array".to_owned())));
    }
    Ok(buffer)
}

impl Buffers for Lent {
    fn fill(&mut self, loader: &gptrs_core::loader::Loader, next_sample: u64) -> Result<()> {
        let Self { tokens, positions, cu_seqlens } = self;
        let marks = &mut Marks {
            positions: positions.as_mut().map_or(&mut [], memory),
            cu_seqlens: cu_seqlens.as_mut().map_or(&mut [], memory),
        };
        match tokens {
            Tokens::Both(both) => {
                let both = memory(both);
                let (tokens, targets) = both.split_at_mut(both.len() / 2);
                loader.fill_marked(next_sample, tokens, targets, marks)
            }
            Tokens::Rows16(rows) => loader.fill_rows(next_sample, memory(rows)),
            Tokens::Rows32(rows) => loader.fill_rows(next_sample, memory(rows)),
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
