//! How a dataset is made, and what it follows from.

use std::path::Path;

use serde::Serialize;

use super::Encode;
use crate::corpus::{self, Input, Kind, Selection};
use crate::error::{Error, Result};
use crate::manifest::{Recipe, Source, check_label};
use crate::sealed::hex;
use crate::shard::Dtype;

/// How [`prepare`](super::prepare) works. The first five decide the bytes, `threads` and `segment_bytes` only speed and memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// The field of JSON lines that holds the text, or a template of fields (see [`TextField`](corpus::TextField)).
    pub text_field: String,
    /// The fields of those whose tokens alone are to be predicted; none for no loss bits.
    ///
    /// A token is of the field in which its last byte lies. The end-of-text id behind a document is always to be predicted.
    pub loss_fields: Vec<String>,
    /// Tokens of a shard; the last one has the rest.
    pub shard_tokens: u64,
    /// Whether each document ends with the tokenizer's end-of-text id, when it has one.
    pub append_eot: bool,
    /// Which documents the inputs have, and which of them are left out.
    pub selection: Selection,
    /// What the manifest calls the text, for a mixture of several.
    pub source: Option<String>,
    /// The share of the text in such a mixture, in relation to those of the others.
    pub weight: Option<f64>,
    /// Worker threads; 0 means all cores.
    pub threads: usize,
    /// Bytes of text that a worker encodes at a time.
    pub segment_bytes: usize,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        let (text_field, loss_fields, shard_tokens) = ("text".to_owned(), Vec::new(), 1 << 27);
        let (selection, source, weight) = (Selection::default(), None, None);
        let (append_eot, threads, segment_bytes) = (true, 0, 1 << 20);
        Self { text_field, loss_fields, shard_tokens, append_eot, selection, source, weight, threads, segment_bytes }
    }
}

pub(super) fn check_options(options: &PrepareOptions) -> Result<()> {
    corpus::TextField::new(&options.text_field)?.with_targets(&options.loss_fields)?;
    options.selection.check()?;
    check_label(options.source.as_deref(), options.weight)?;
    let sizes = [("shard_tokens", options.shard_tokens), ("segment_bytes", options.segment_bytes as u64)];
    match sizes.into_iter().find(|&(_, value)| !(1..=1 << 40).contains(&value)) {
        Some((name, value)) => Err(Error::Argument(format!("{name} must be 1 to 2^40, got {value}"))),
        None => Ok(()),
    }
}

pub(super) fn check_separator(inputs: &[Input], selection: &Selection) -> Result<()> {
    if selection.doc_separator.is_none() || inputs.iter().any(|input| input.kind == Kind::Text) {
        return Ok(());
    }
    let expected = "expected a text file among the inputs, which doc_separator cuts into documents, got none";
    Err(Error::Argument(format!("{expected}; hint: lines and rows are documents already")))
}

/// What a dataset of `inputs` will be made of.
pub(super) fn recipe<E: Encode>(inputs: Vec<Source>, tokenizer: &E, options: &PrepareOptions) -> Result<Recipe> {
    let vocab_size = tokenizer.vocab_size() as u64;
    let recipe = Recipe {
        tokenizer: hex(&tokenizer.digest()),
        vocab_size,
        dtype: Dtype::for_vocab(vocab_size),
        eot_id: tokenizer.eot_id(),
        append_eot: options.append_eot,
        text_field: options.text_field.clone(),
        loss_fields: corpus::TextField::new(&options.text_field)?.with_targets(&options.loss_fields)?.targets(),
        shard_tokens: options.shard_tokens,
        selection: options.selection.clone(),
        inputs,
    };
    recipe.spec().map_err(Error::Argument)?;
    Ok(recipe)
}

/// Fails unless what is in the folder was made the way this call asks for, from the same part of the inputs; says what
/// differs, and how.
pub(super) fn refuse_other(dir: &Path, found: &Recipe, asked: &Recipe, is_same_part: bool) -> Result<()> {
    let (had, has) = (&found.selection, &asked.selection);
    let differences = [
        (found.tokenizer != asked.tokenizer)
            .then(|| values("tokenizer", &start(&found.tokenizer), &start(&asked.tokenizer))),
        differing("vocab_size", &found.vocab_size, &asked.vocab_size),
        differing("end-of-text id", &found.eot_id, &asked.eot_id),
        differing("append_eot", &found.append_eot, &asked.append_eot),
        differing("text_field", &found.text_field, &asked.text_field),
        differing("loss_fields", &found.loss_fields, &asked.loss_fields),
        differing("shard_tokens", &found.shard_tokens, &asked.shard_tokens),
        differing("doc_separator", &had.doc_separator, &has.doc_separator),
        differing("min_document_bytes", &had.min_document_bytes, &has.min_document_bytes),
        differing("max_document_bytes", &had.max_document_bytes, &has.max_document_bytes),
        differing("dedup", &had.dedup, &has.dedup),
        differing("errors", &had.errors, &has.errors),
        differing_inputs(&found.inputs, &asked.inputs),
        (!is_same_part && found.inputs == asked.inputs).then(|| "part of the input files".to_owned()),
    ];
    let differences: Vec<_> = differences.into_iter().flatten().collect();
    if differences.is_empty() {
        return Ok(());
    }
    let (dir, differences) = (dir.display(), differences.join(", "));
    Err(Error::Argument(format!(
        "{dir} holds a dataset made with other {differences}; hint: choose another folder, or remove this one to start \
         over"
    )))
}

/// The first digits of a digest, enough to look at.
fn start(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

/// What differs, with both values.
fn differing<T: PartialEq + Serialize>(name: &str, found: &T, asked: &T) -> Option<String> {
    (found != asked).then(|| values(name, found, asked))
}

/// A name with two values as JSON writes them; one that cannot be written is passed over.
fn values<T: Serialize>(name: &str, found: &T, asked: &T) -> String {
    let text = |value: &T| serde_json::to_string(value).unwrap_or_default();
    format!("{name} ({}, asked for {})", text(found), text(asked))
}

/// The first input that differs, or how many there are.
fn differing_inputs(found: &[Source], asked: &[Source]) -> Option<String> {
    let first = found.iter().zip(asked).find(|(had, has)| had != has);
    let what = match first {
        Some((had, has)) if had.name == has.name => format!("{} has other bytes", has.name),
        Some((had, has)) => format!("{}, asked for {}", had.name, has.name),
        None if found.len() != asked.len() => format!("{}, asked for {}", found.len(), asked.len()),
        None => return None,
    };
    Some(format!("input files ({what})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_that_differ_in_their_last_digit_are_of_two_tokenizers() {
        let found = Recipe {
            tokenizer: "0".repeat(64),
            vocab_size: 300,
            dtype: Dtype::U16,
            eot_id: None,
            append_eot: false,
            text_field: "text".to_owned(),
            loss_fields: Vec::new(),
            shard_tokens: 100,
            selection: Selection::default(),
            inputs: Vec::new(),
        };
        let asked = Recipe { tokenizer: "0".repeat(63) + "1", ..found.clone() };
        refuse_other(Path::new("out"), &found, &found, true).unwrap();
        let message = refuse_other(Path::new("out"), &found, &asked, true).unwrap_err().to_string();
        assert!(message.contains("other tokenizer (\"00000000\", asked for \"00000000\");"), "{message}");
        let message = refuse_other(Path::new("out"), &found, &found, false).unwrap_err().to_string();
        assert!(message.contains("other part of the input files;"), "{message}");
    }
}
