//! `prepare` and `Dataset`.

use std::path::PathBuf;
use std::sync::Arc;

use gptrs_core::corpus::{Errors, Selection};
use gptrs_core::prepare::PrepareOptions;
use gptrs_core::{Error, Result};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::prelude::*;

use crate::call::{detached, py_err, watched};
use crate::tokenizer::Tokenizer;

/// Encodes files into shards.
#[pyfunction]
#[pyo3(signature = (
    paths, tokenizer, out, *, text_field, shard_tokens, append_eot, doc_separator=None, min_document_bytes=None,
    max_document_bytes=None, dedup=false, errors="strict", source=None, weight=None, threads=0, progress=None
))]
#[allow(clippy::too_many_arguments)]
pub fn prepare(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    tokenizer: &Tokenizer,
    out: PathBuf,
    text_field: String,
    shard_tokens: u64,
    append_eot: bool,
    doc_separator: Option<String>,
    min_document_bytes: Option<u64>,
    max_document_bytes: Option<u64>,
    dedup: bool,
    errors: &str,
    source: Option<String>,
    weight: Option<f64>,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Dataset> {
    let errors = match errors {
        "strict" => Errors::Strict,
        "replace" => Errors::Replace,
        got => return Err(py_err(Error::Argument(format!("errors must be \"strict\" or \"replace\", got {got:?}")))),
    };
    let selection = Selection { doc_separator, min_document_bytes, max_document_bytes, dedup, errors };
    let options = PrepareOptions {
        text_field,
        shard_tokens,
        append_eot,
        selection,
        source,
        weight,
        threads,
        ..PrepareOptions::default()
    };
    watched(py, progress, |control| gptrs_core::prepare::prepare(&paths, &*tokenizer.0, &out, &options, control))
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
