//! `prepare`, `import_tokens` and `Dataset`.

use std::path::PathBuf;
use std::sync::Arc;

use gptrs_core::corpus::{Errors, Selection};
use gptrs_core::foreign::{ExportOptions, ImportOptions};
use gptrs_core::prepare::PrepareOptions;
use gptrs_core::ranges::Task;
use gptrs_core::shard::{Dtype, Format};
use gptrs_core::{Error, Result};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::prelude::*;

use crate::call::{detached, py_err, watched};
use crate::tokenizer::Tokenizer;

/// The options of `prepare`, a dict in Python.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Options {
    text_field: String,
    shard_tokens: u64,
    append_eot: bool,
    threads: usize,
    #[pyo3(default)]
    loss_fields: Vec<String>,
    #[pyo3(default)]
    doc_separator: Option<String>,
    #[pyo3(default)]
    min_document_bytes: Option<u64>,
    #[pyo3(default)]
    max_document_bytes: Option<u64>,
    #[pyo3(default)]
    dedup: bool,
    #[pyo3(default)]
    errors: Option<String>,
    #[pyo3(default)]
    source: Option<String>,
    #[pyo3(default)]
    weight: Option<f64>,
}

impl Options {
    fn into_core(self) -> Result<PrepareOptions> {
        let Self { text_field, loss_fields, shard_tokens, append_eot, threads, source, weight, .. } = self;
        let Self { doc_separator, min_document_bytes, max_document_bytes, dedup, .. } = self;
        let errors = match self.errors.as_deref() {
            None | Some("strict") => Errors::Strict,
            Some("replace") => Errors::Replace,
            Some(got) => {
                return Err(Error::Argument(format!("errors must be \"strict\" or \"replace\", got {got:?}")));
            }
        };
        let selection = Selection { doc_separator, min_document_bytes, max_document_bytes, dedup, errors };
        let defaults = PrepareOptions::default();
        let sizes = PrepareOptions { text_field, loss_fields, shard_tokens, append_eot, threads, ..defaults };
        Ok(PrepareOptions { selection, source, weight, ..sizes })
    }
}

/// Encodes files into shards.
#[pyfunction]
#[pyo3(signature = (paths, tokenizer, out, options, progress=None))]
pub fn prepare(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tokenizer: &Tokenizer,
    out: PathBuf,
    options: Options,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Dataset> {
    let options = options.into_core().map_err(py_err)?;
    watched(py, progress, |control| gptrs_core::prepare::prepare(&paths, &*tokenizer.0, &out, &options, control))
        .map(|dataset| Dataset(Arc::new(dataset)))
}

/// Encodes the part of files that a task has: (tokens, documents, folder, whether all tasks are merged already).
#[pyfunction]
#[pyo3(signature = (paths, tokenizer, out, task, options, progress=None))]
pub fn prepare_task(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tokenizer: &Tokenizer,
    out: PathBuf,
    task: (u64, u64),
    options: Options,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<(u64, u64, PathBuf, bool)> {
    let options = options.into_core().map_err(py_err)?;
    let end = watched(py, progress, |control| {
        let task = Task::new(task.0, task.1)?;
        gptrs_core::prepare::prepare_task(&paths, &*tokenizer.0, &out, task, &options, control)
    })?;
    Ok((end.n_tokens, end.n_documents, end.dir, end.is_merged))
}

/// Joins finished tasks into the dataset of one run.
#[pyfunction]
#[pyo3(signature = (paths, tokenizer, out, of, keep_tasks, options, progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn merge_tasks(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tokenizer: &Tokenizer,
    out: PathBuf,
    of: u64,
    keep_tasks: bool,
    options: Options,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Dataset> {
    let options = options.into_core().map_err(py_err)?;
    watched(py, progress, |control| {
        gptrs_core::prepare::merge_tasks(&paths, &*tokenizer.0, &out, of, keep_tasks, &options, control)
    })
    .map(|dataset| Dataset(Arc::new(dataset)))
}

/// Makes the folder of token files of other programs a dataset.
#[pyfunction]
#[pyo3(signature = (paths, tokenizer, *, format=None, dtype=None, eot_first=false, threads=0, progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn import_tokens(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tokenizer: &Tokenizer,
    format: Option<&str>,
    dtype: Option<&str>,
    eot_first: bool,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Dataset> {
    let format = format.map(Format::from_name).transpose().map_err(py_err)?;
    let dtype = dtype.map(Dtype::from_name).transpose().map_err(py_err)?;
    let options = ImportOptions { format, dtype, eot_first, threads };
    watched(py, progress, |control| gptrs_core::foreign::import(&paths, &tokenizer.0, &options, control))
        .map(|dataset| Dataset(Arc::new(dataset)))
}

/// A folder of shards, read only.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Dataset(pub(crate) Arc<gptrs_core::dataset::Dataset>);

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

    fn loss_bits<'py>(&self, py: Python<'py>, start: u64, n_tokens: usize) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let bits = detached(py, || self.filled(n_tokens, |out| self.0.loss_bits(start, out)))?;
        Ok(bits.into_pyarray(py))
    }

    #[pyo3(signature = (threads=0, progress=None))]
    fn verify(&self, py: Python<'_>, threads: usize, progress: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        watched(py, progress, |control| self.0.verify(threads, control))
    }

    #[pyo3(signature = (out, format, *, tokens_per_file, drop_loss_bits=false, progress=None))]
    fn export(
        &self,
        py: Python<'_>,
        out: PathBuf,
        format: &str,
        tokens_per_file: u64,
        drop_loss_bits: bool,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<PathBuf>> {
        let options =
            ExportOptions { format: Format::from_name(format).map_err(py_err)?, tokens_per_file, drop_loss_bits };
        watched(py, progress, |control| gptrs_core::foreign::export(&self.0, &out, &options, control))
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
    fn has_loss_bits(&self) -> bool {
        self.0.has_loss_bits()
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
