//! What the files of others hold beside tokens and merges, and what their users ask for.

use std::path::PathBuf;
use std::sync::Arc;

use gptrs_core::formats::lengths::Lengths;
use gptrs_core::formats::{tiktoken, tokenizer_json};
use gptrs_core::split::Splitter;
use gptrs_core::template::Slot;
use gptrs_core::{SpecialToken, Specials};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;

use crate::call::{detached, py_err};
use crate::text::Text;
use crate::tokenizer::Tokenizer;

/// id, text, `single_word`, `lstrip`, `rstrip`, `normalized`, `special`.
type Added<'a> = (u32, &'a str, bool, bool, bool, bool, bool);
/// Which text, or none for ids; the ids and what they are called; the type id.
type Part = (Option<bool>, Vec<u32>, Vec<String>, u32);
/// What stands around one text and around two; how often offsets are trimmed; the type id of parts cut off.
type Around = (Vec<Part>, Vec<Part>, Vec<bool>, Option<u32>);
/// Where a token's characters begin and end in the text.
type Span = (usize, usize);
/// Ids, their places and pieces; which of them are written otherwise in the text, and how.
type Placed = (Vec<u32>, Vec<Span>, Vec<u32>, Vec<(usize, String)>);

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn from_ranks(
        py: Python<'_>,
        ranks: Vec<(PyBackedBytes, u32)>,
        pattern: &str,
        special_tokens: Vec<(String, u32)>,
        name: PathBuf,
    ) -> PyResult<Self> {
        let specials = special_tokens.into_iter().map(|(text, id)| SpecialToken { text, id }).collect();
        let read = || tiktoken::from_ranks(&ranks, Splitter::new(pattern)?, specials, &name);
        detached(py, read).map(|tokenizer| Self(Arc::new(tokenizer)))
    }

    /// The lines of a .tiktoken file.
    fn to_tiktoken(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || tiktoken::to_string(&self.0))
    }

    #[getter]
    fn added_tokens(&self) -> Vec<Added<'_>> {
        let tokens = self.0.specials().iter().zip(self.0.matching());
        tokens
            .map(|(token, m)| (token.id, &*token.text, m.single_word, m.lstrip, m.rstrip, m.normalized, m.special))
            .collect()
    }

    #[getter]
    fn normalizer(&self) -> Option<&'static str> {
        self.0.splitter().normalizer().map(gptrs_core::normalizer::Normalizer::name)
    }

    fn normalize<'py>(&self, py: Python<'py>, text: Text) -> PyResult<Bound<'py, PyBytes>> {
        let text = text.as_ref();
        let normal = detached(py, || Ok(self.0.splitter().normalizer().map(|form| form.apply(text))))?;
        Ok(PyBytes::new(py, normal.as_deref().unwrap_or(text)))
    }

    #[getter]
    fn template(&self) -> Option<Around> {
        let template = self.0.template()?;
        let parts = |slots: &[Slot]| slots.iter().map(part).collect();
        Some((
            parts(template.single()),
            parts(template.pair()),
            template.trims_offsets().to_vec(),
            template.part_type_id(),
        ))
    }

    fn encode_with_places(&self, py: Python<'_>, text: PyBackedStr, allowed_special: Vec<String>) -> PyResult<Placed> {
        let places = detached(py, || self.0.encode_with_places(&text, Specials::Set(&allowed_special)))?;
        Ok((places.ids, places.chars, places.pieces, places.written))
    }

    /// `truncation` and `padding` of the file, as JSON.
    #[getter]
    fn lengths(&self) -> (Option<String>, Option<String>) {
        let Lengths { truncation, padding } = self.0.lengths();
        (truncation.as_ref().map(ToString::to_string), padding.as_ref().map(ToString::to_string))
    }

    /// The same tokenizer with others, as the text of a tokenizer.json.
    fn to_json_with(&self, py: Python<'_>, truncation: Option<&str>, padding: Option<&str>) -> PyResult<String> {
        let lengths = Lengths::from_json(truncation, padding).map_err(py_err)?;
        detached(py, || tokenizer_json::to_string_with(&self.0, &lengths))
    }
}

fn part(slot: &Slot) -> Part {
    match slot {
        Slot::Text { is_second, type_id } => (Some(*is_second), Vec::new(), Vec::new(), *type_id),
        Slot::Ids { ids, tokens, type_id } => (None, ids.clone(), tokens.clone(), *type_id),
    }
}
