//! `Tokenizer` and `StreamDecoder`.

use std::path::PathBuf;
use std::sync::Arc;

use gptrs_core::formats::{self, tokenizer_json};
use gptrs_core::{Control, Ids, Specials};
use numpy::PyArray1;
use numpy::prelude::*;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::call::{detached, py_err, quick, watched};
use crate::text::{self, Names, Text};

/// Texts up to this length keep the GIL: encoding them takes less than 10 µs, and handing it over costs as much.
const QUICK_BYTES: usize = 200;
/// Longer texts are encoded on a thread of their own, so that Ctrl-C ends it: this takes some 50 ms.
const LONG_BYTES: usize = 1 << 22;
/// Batches up to this length are encoded on the calling thread: starting threads would take longer.
const SMALL_BATCH_BYTES: usize = 1 << 16;

/// Where a token's bytes begin and end in the text.
type Span = (usize, usize);

/// Text to ids and back; immutable, safe to share between threads and after `fork`.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Tokenizer(pub Arc<gptrs_core::tokenizer::Tokenizer>);

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    #[pyo3(signature = (path, pattern=None))]
    fn read(py: Python<'_>, path: PathBuf, pattern: Option<String>) -> PyResult<Self> {
        detached(py, || formats::read(&path, pattern.as_deref())).map(|tokenizer| Self(Arc::new(tokenizer)))
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let name = PathBuf::from("tokenizer.json");
        detached(py, || tokenizer_json::from_str(text, &name)).map(|tokenizer| Self(Arc::new(tokenizer)))
    }

    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || tokenizer_json::to_string(&self.0))
    }

    fn write(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || formats::write(&self.0, &path))
    }

    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        allowed_special: Names,
        disallowed_special: Names,
    ) -> PyResult<Bound<'py, PyList>> {
        let (allowed, disallowed) = (specials(&allowed_special), specials(&disallowed_special));
        self.list(py, &text, allowed, disallowed)
    }

    fn encode_ordinary<'py>(&self, py: Python<'py>, text: Text) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &text, Specials::None, Specials::None)
    }

    #[pyo3(signature = (texts, allowed_special, threads=0))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        allowed_special: Names,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>)> {
        let texts = text::texts(texts)?;
        let allowed = specials(&allowed_special);
        let n_bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        let encoded = if n_bytes <= SMALL_BATCH_BYTES {
            detached(py, || self.0.encode_batch(&texts, allowed, 1, &Control::new()))?
        } else {
            watched(py, None, |control| self.0.encode_batch(&texts, allowed, threads, control))?
        };
        let ids = match encoded.ids {
            Ids::U16(ids) => ids.into_pyarray(py).into_any(),
            Ids::U32(ids) => ids.into_pyarray(py).into_any(),
        };
        Ok((ids, encoded.offsets.into_pyarray(py)))
    }

    fn encode_with_offsets(&self, py: Python<'_>, text: Text) -> PyResult<(Vec<u32>, Vec<Span>)> {
        detached(py, || self.0.encode_with_offsets(text.as_ref()))
    }

    fn count(&self, py: Python<'_>, text: Text) -> PyResult<usize> {
        let bytes = text.as_ref();
        if bytes.len() <= LONG_BYTES {
            return detached(py, || self.0.count(bytes));
        }
        let encode = |control: &Control| self.0.encode_watched(bytes, Specials::None, Specials::None, control);
        watched(py, None, encode).map(|ids| ids.len())
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = text::ids(ids)?;
        let bytes = if ids.len() <= QUICK_BYTES {
            quick(|| self.0.decode_bytes(&ids))?
        } else {
            detached(py, || self.0.decode_bytes(&ids))?
        };
        Ok(PyBytes::new(py, &bytes))
    }

    fn decoder(&self) -> StreamDecoder {
        StreamDecoder(self.0.decoder())
    }

    fn token_bytes<'py>(&self, py: Python<'py>, id: i128) -> Option<Bound<'py, PyBytes>> {
        let id = u32::try_from(id).ok()?;
        self.0.token_bytes(id).map(|bytes| PyBytes::new(py, bytes))
    }

    fn token_id(&self, token: Text) -> Option<u32> {
        self.0.token_id(token.as_ref())
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let by_text = PyDict::new(py);
        for special in self.0.specials() {
            by_text.set_item(&special.text, special.id)?;
        }
        Ok(by_text)
    }

    #[getter]
    fn eot_id(&self) -> Option<u32> {
        self.0.eot_id()
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.0.splitter().pattern()
    }

    #[getter]
    fn regex(&self) -> &str {
        self.0.splitter().regex()
    }

    #[getter]
    fn digest(&self) -> String {
        let bytes = self.0.digest();
        let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16)).collect()
    }
}

impl Tokenizer {
    fn list<'py>(
        &self,
        py: Python<'py>,
        text: &Text,
        allowed: Specials,
        disallowed: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let bytes = text.as_ref();
        let ids = if bytes.len() <= QUICK_BYTES {
            quick(|| self.0.encode(bytes, allowed, disallowed))?
        } else if bytes.len() <= LONG_BYTES {
            detached(py, || self.0.encode(bytes, allowed, disallowed))?
        } else {
            watched(py, None, |control| self.0.encode_watched(bytes, allowed, disallowed, control))?
        };
        PyList::new(py, ids)
    }
}

fn specials(names: &Names) -> Specials<'_> {
    match names {
        Names::All => Specials::All,
        Names::Some(names) if names.is_empty() => Specials::None,
        Names::Some(names) => Specials::Set(names),
    }
}

/// Ids to text, one id at a time, never half a character.
#[pyclass(module = "gptrs._core")]
pub struct StreamDecoder(gptrs_core::StreamDecoder);

#[pymethods]
impl StreamDecoder {
    fn push(&mut self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        let id = text::one_id(id)?;
        self.0.push(id).map_err(py_err)
    }

    fn finish(&mut self) -> String {
        self.0.finish()
    }
}
