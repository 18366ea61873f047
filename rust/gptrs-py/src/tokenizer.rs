//! `Tokenizer` and `StreamDecoder`.

use std::path::PathBuf;
use std::sync::Arc;

use gptrs_core::formats::{self, tokenizer_json};
use gptrs_core::prepare::{PrepareOptions, encode_files};
use gptrs_core::simd::Level;
use gptrs_core::trace::{Merge, Origin, Piece};
use gptrs_core::{Control, Dropout, EncodeOptions, Encoded, Error, Ids, Result, Specials, Unit, give_back};
use numpy::ndarray::Array1;
use numpy::prelude::*;
use numpy::{Element, PyArray1, PyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::call::{detached, hex, py_err, quick, watched};
use crate::text::{self, Names, Text};

/// Texts up to this length keep the GIL: encoding them takes less than 10 µs, and handing it over costs as much.
const QUICK_BYTES: usize = 200;
/// Longer texts are encoded by threads of their own, so that Ctrl-C ends it: below, starting them takes as long.
const SMALL_BYTES: usize = 1 << 16;

/// Where a token's bytes begin and end in the text.
type Span = (usize, usize);

type TracedMerge = (u32, (usize, usize, usize), (u32, u32, u32));
type TracedPiece = (Span, &'static str, Vec<TracedMerge>, Vec<u32>);

/// The vector instructions of this name.
fn level(name: &str) -> Result<Level> {
    Level::ALL.into_iter().find(|level| level.to_string() == name).ok_or_else(|| {
        let names = Level::ALL.map(|level| level.to_string()).join(", ");
        Error::Argument(format!("expected one of {names} as simd, got {name:?}"))
    })
}

/// Text to ids and back; immutable, safe to share between threads and after `fork`.
#[pyclass(frozen, module = "gptrs._core")]
pub struct Tokenizer(pub Arc<gptrs_core::tokenizer::Tokenizer>);

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    #[pyo3(signature = (path, pattern=None, simd=None))]
    fn read(py: Python<'_>, path: PathBuf, pattern: Option<String>, simd: Option<String>) -> PyResult<Self> {
        let level = simd.map(|name| level(&name)).transpose().map_err(py_err)?;
        detached(py, || {
            let tokenizer = formats::read(&path, pattern.as_deref())?;
            match level {
                Some(level) => tokenizer.with_level(level),
                None => Ok(tokenizer),
            }
        })
        .map(|tokenizer| Self(Arc::new(tokenizer)))
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let name = PathBuf::from("tokenizer.json");
        detached(py, || tokenizer_json::from_str(text, &name)).map(|tokenizer| Self(Arc::new(tokenizer)))
    }

    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || tokenizer_json::to_string(&self.0))
    }

    /// Pickles as the text of tokenizer.json, and so do the views that hold it.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        let text = slf.get().to_json(slf.py())?;
        Ok((slf.get_type().getattr("from_json")?, (text,)))
    }

    /// Writes the file and says what it does not hold.
    fn write(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
        detached(py, || formats::write(&self.0, &path).map(|()| formats::not_written(&self.0, &path)))
    }

    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        allowed_special: Names,
        disallowed_special: Names,
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &text, &options(&allowed_special, &disallowed_special, None, 0))
    }

    fn encode_ordinary<'py>(&self, py: Python<'py>, text: Text) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &text, &EncodeOptions::default())
    }

    fn encode_piece(&self, py: Python<'_>, piece: Text) -> PyResult<Vec<u32>> {
        let piece = piece.as_ref();
        run(py, piece.len(), |control| self.0.encode_piece(piece, control))
    }

    fn encode_dropout<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        allowed_special: Names,
        disallowed_special: Names,
        dropout: f64,
        seed: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let dropout = Dropout::new(dropout, seed).map_err(py_err)?;
        let options = options(&allowed_special, &disallowed_special, Some(dropout), 0);
        let ids = run(py, text.as_ref().len(), |control| self.0.encode_with(text.as_ref(), &options, control))?;
        id_list(py, ids)
    }

    fn encode_spans<'py>(
        &self,
        py: Python<'py>,
        spans: &Bound<'py, PyAny>,
        allowed_special: Names,
    ) -> PyResult<Bound<'py, PyList>> {
        let spans: Vec<(Text, bool)> = spans.try_iter()?.map(|span| span?.extract()).collect::<PyResult<_>>()?;
        let n_bytes = spans.iter().map(|(text, _)| text.as_ref().len()).sum();
        let allowed = specials(&allowed_special);
        let ids = run(py, n_bytes, |control| self.0.encode_spans(&spans, allowed, control))?;
        id_list(py, Ids::U32(ids))
    }

    #[pyo3(signature = (texts, allowed_special, disallowed_special, dropout=0.0, seed=0, threads=0))]
    #[expect(clippy::too_many_arguments, reason = "one for each of Python's")]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        allowed_special: Names,
        disallowed_special: Names,
        dropout: f64,
        seed: u64,
        threads: usize,
    ) -> PyResult<Arrays<'py>> {
        let texts = text::texts(texts)?;
        let dropout = Dropout::new(dropout, seed).map_err(py_err)?;
        let options = options(&allowed_special, &disallowed_special, Some(dropout), threads);
        let encode = |control: &Control| self.0.encode_batch_with(&texts, &options, control);
        run(py, n_bytes(&texts), encode).and_then(|encoded| arrays(py, encoded))
    }

    #[pyo3(signature = (paths, text_field, append_eot, threads=0, progress=None))]
    fn encode_files<'py>(
        &self,
        py: Python<'py>,
        paths: Vec<PathBuf>,
        text_field: String,
        append_eot: bool,
        threads: usize,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Arrays<'py>> {
        let options = PrepareOptions { text_field, append_eot, threads, ..PrepareOptions::default() };
        watched(py, progress, |control| encode_files(&paths, &*self.0, &options, control))
            .and_then(|encoded| arrays(py, encoded))
    }

    fn encode_with_offsets(&self, py: Python<'_>, text: Text, unit: &str) -> PyResult<(Vec<u32>, Vec<Span>)> {
        let unit = parse_unit(unit)?;
        let texts = [text.as_ref()];
        let encode = |control: &Control| self.0.encode_batch_with_offsets(&texts, unit, 0, control);
        let (encoded, spans) = run(py, texts[0].len(), encode)?;
        Ok((encoded.ids.iter().collect(), spans))
    }

    #[pyo3(signature = (texts, unit, threads=0))]
    fn encode_batch_with_offsets<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        unit: &str,
        threads: usize,
    ) -> PyResult<(Arrays<'py>, Bound<'py, PyArray2<i64>>)> {
        let (texts, unit) = (text::texts(texts)?, parse_unit(unit)?);
        let encode = |control: &Control| {
            let (encoded, spans) = self.0.encode_batch_with_offsets(&texts, unit, threads, control)?;
            Ok((encoded, spans.into_iter().flat_map(|(start, end)| [start as i64, end as i64]).collect::<Vec<_>>()))
        };
        let (encoded, spans) = run(py, n_bytes(&texts), encode)?;
        let n = spans.len() / 2;
        Ok((arrays(py, encoded)?, spans.into_pyarray(py).reshape([n, 2])?))
    }

    fn count(&self, py: Python<'_>, text: Text) -> PyResult<i64> {
        let texts = [text.as_ref()];
        if texts[0].len() <= QUICK_BYTES {
            return quick(|| self.0.count(texts[0])).map(|n| n as i64);
        }
        run(py, texts[0].len(), |control| self.0.count_batch(&texts, 0, control)).map(|counts| counts[0])
    }

    #[pyo3(signature = (texts, threads=0))]
    fn count_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let texts = text::texts(texts)?;
        let count = |control: &Control| self.0.count_batch(&texts, threads, control);
        Ok(run(py, n_bytes(&texts), count)?.into_pyarray(py))
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

    /// The text that `ids` spell: made from the bytes at once where they are UTF-8, else as `errors` says.
    fn decode<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>, errors: &str) -> PyResult<Bound<'py, PyAny>> {
        let ids = text::ids(ids)?;
        let decode = || self.0.decode_bytes(&ids).map(String::from_utf8);
        let text = if ids.len() <= QUICK_BYTES { quick(decode)? } else { detached(py, decode)? };
        match text {
            Ok(text) => Ok(PyString::new(py, &text).into_any()),
            Err(other) => PyBytes::new(py, other.as_bytes()).call_method1("decode", ("utf-8", errors)),
        }
    }

    /// The bytes of each of many sequences of ids.
    #[pyo3(signature = (batch, threads=0))]
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        batch: &Bound<'py, PyAny>,
        threads: usize,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let batch: Vec<Vec<u32>> = batch.try_iter()?.map(|ids| text::ids(&ids?)).collect::<PyResult<_>>()?;
        let decode = |control: &Control| self.0.decode_batch(&batch, threads, control);
        let texts = run(py, 4 * batch.iter().map(Vec::len).sum::<usize>(), decode)?;
        Ok(texts.iter().map(|bytes| PyBytes::new(py, bytes)).collect())
    }

    /// Each piece: start and end of its bytes, origin, merges, ids. A merge: rank, three places in the piece, three ids.
    fn trace(&self, py: Python<'_>, text: Text, allowed_special: Names) -> PyResult<Vec<TracedPiece>> {
        let pieces = detached(py, || self.0.trace(text.as_ref(), specials(&allowed_special)))?;
        let merge = |m: Merge| (m.rank, m.span, (m.left, m.right, m.product));
        let plain = |piece: Piece| {
            let origin = match piece.origin {
                Origin::Merges => "merges",
                Origin::Whole => "whole",
                Origin::Special => "special",
            };
            (piece.span, origin, piece.merges.into_iter().map(merge).collect(), piece.ids)
        };
        Ok(pieces.into_iter().map(plain).collect())
    }

    fn decoder(&self) -> StreamDecoder {
        StreamDecoder(self.0.decoder())
    }

    fn token_bytes<'py>(&self, py: Python<'py>, id: i128) -> Option<Bound<'py, PyBytes>> {
        let id = u32::try_from(id).ok()?;
        self.0.token_bytes(id).map(|bytes| PyBytes::new(py, bytes))
    }

    fn is_ordinary(&self, id: u32) -> bool {
        self.0.vocab().token(id).is_some()
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
        hex(&self.0.digest())
    }
}

impl Tokenizer {
    fn list<'py>(&self, py: Python<'py>, text: &Text, options: &EncodeOptions) -> PyResult<Bound<'py, PyList>> {
        let bytes = text.as_ref();
        if bytes.len() > SMALL_BYTES {
            let ids = watched(py, None, |control| self.0.encode_with(bytes, options, control))?;
            return id_list(py, ids);
        }
        let encode = || self.0.encode(bytes, options.allowed, options.disallowed);
        if bytes.len() <= QUICK_BYTES {
            PyList::new(py, quick(encode)?)
        } else {
            id_list(py, Ids::U32(detached(py, encode)?))
        }
    }
}

/// `work` on `n_bytes` of text: with all threads and Ctrl-C where it takes long enough.
fn run<T: Send>(py: Python<'_>, n_bytes: usize, work: impl FnOnce(&Control) -> Result<T> + Send) -> PyResult<T> {
    if n_bytes <= SMALL_BYTES { detached(py, || work(&Control::new())) } else { watched(py, None, work) }
}

/// Ids and where each text's start, as numpy arrays.
type Arrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>);

fn arrays(py: Python<'_>, encoded: Encoded) -> PyResult<Arrays<'_>> {
    Ok((id_array(py, encoded.ids)?, encoded.offsets.into_pyarray(py)))
}

/// What an array of ids lies in. Once nobody uses it, the next result may.
#[pyclass(frozen)]
struct IdMemory(Kind);

enum Kind {
    U16(Array1<u16>),
    U32(Array1<u32>),
}

impl Drop for IdMemory {
    fn drop(&mut self) {
        give_back(match &mut self.0 {
            Kind::U16(ids) => Ids::U16(std::mem::take(ids).into_raw_vec_and_offset().0),
            Kind::U32(ids) => Ids::U32(std::mem::take(ids).into_raw_vec_and_offset().0),
        });
    }
}

fn id_array(py: Python<'_>, ids: Ids) -> PyResult<Bound<'_, PyAny>> {
    let kind = match ids {
        Ids::U16(ids) => Kind::U16(ids.into()),
        Ids::U32(ids) => Kind::U32(ids.into()),
    };
    let memory = Bound::new(py, IdMemory(kind))?;
    Ok(match &memory.get().0 {
        Kind::U16(ids) => array_in(&memory, ids),
        Kind::U32(ids) => array_in(&memory, ids),
    })
}

fn array_in<'py, I: Element>(memory: &Bound<'py, IdMemory>, ids: &Array1<I>) -> Bound<'py, PyAny> {
    // SAFETY: the array of numpy holds `memory`, whose ids stay in their place until it is dropped. It may write: the pointer
    // is that of the array that owns the ids, not one borrowed from this reference, and nobody else reads or writes them.
    unsafe { PyArray1::borrow_from_array(ids, memory.clone().into_any()) }.into_any()
}

/// A list of many ids, made by numpy: an item through the stable ABI takes several times as long.
fn id_list(py: Python<'_>, ids: Ids) -> PyResult<Bound<'_, PyList>> {
    Ok(id_array(py, ids)?.call_method0("tolist")?.cast_into()?)
}

fn n_bytes(texts: &[Text]) -> usize {
    texts.iter().map(|text| text.as_ref().len()).sum()
}

fn options<'n>(
    allowed: &'n Names,
    disallowed: &'n Names,
    dropout: Option<Dropout>,
    threads: usize,
) -> EncodeOptions<'n> {
    EncodeOptions { allowed: specials(allowed), disallowed: specials(disallowed), dropout, threads }
}

fn parse_unit(unit: &str) -> PyResult<Unit> {
    match unit {
        "bytes" => Ok(Unit::Bytes),
        "chars" => Ok(Unit::Chars),
        got => Err(py_err(Error::Argument(format!("unit must be \"bytes\" or \"chars\", got {got:?}")))),
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
