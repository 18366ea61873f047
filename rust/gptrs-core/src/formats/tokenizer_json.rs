//! Hugging Face's tokenizer.json for byte-level BPE, read and written.
//!
//! What changes ids and is not honoured here is refused by name. Special tokens are written among the model's tokens
//! too, as in GPT-2's file: Hugging Face numbers all others by itself, without holes. `special: false` tokens of a file
//! are special tokens here, since Hugging Face cuts them out of the text in the same way.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::merges::{Parts, parse_merge, resolve, spelled_merges, spelled_tokens};
use super::{format_error, in_file, inexpressible, pre_tokenizer, read_text, special};
use crate::error::Result;
use crate::special::SpecialToken;
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

const FORMAT: &str = "tokenizer.json";

/// A result whose error has no path yet.
type Checked<T> = std::result::Result<T, String>;

/// Reads a file.
pub fn read(path: &Path) -> Result<Tokenizer> {
    from_str(&read_text(path)?, path)
}

/// Reads the text of a file; `path` is only for messages.
pub fn from_str(text: &str, path: &Path) -> Result<Tokenizer> {
    let error = format_error(path, FORMAT);
    let file: File = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
    check_file(&file).map_err(&error)?;
    let model = read_model(file.model).map_err(&error)?;
    let ignore_merges = model.ignore_merges.unwrap_or(false);
    let (tokens, merges, specials) = parts(model, &file.added_tokens.unwrap_or_default()).map_err(&error)?;
    let vocab = in_file(Vocab::from_tokens(&tokens, merges, ignore_merges), path, FORMAT)?;
    let splitter = pre_tokenizer::read(&file.pre_tokenizer).map_err(&error)?;
    in_file(Tokenizer::new(vocab, splitter, specials), path, FORMAT)
}

/// The text of the file, which reads back to an equal tokenizer.
///
/// Fails when the format cannot express it: two tokens that would be spelled alike, or a pattern that Hugging Face's
/// regex engine reads differently.
pub fn to_string(tokenizer: &Tokenizer) -> Result<String> {
    let vocab = tokenizer.vocab();
    let file = FileOut {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: tokenizer.specials().iter().map(AddedOut::new).collect(),
        normalizer: (),
        pre_tokenizer: pre_tokenizer::write(tokenizer.splitter())?,
        post_processor: (),
        decoder: pre_tokenizer::byte_level(true),
        model: ModelOut {
            r#type: "BPE",
            dropout: (),
            unk_token: (),
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: vocab.ignore_merges(),
            vocab: Entries(spelled_tokens(tokenizer)?),
            merges: spelled_merges(vocab).collect(),
        },
    };
    serde_json::to_string(&file).map_err(|error| inexpressible(FORMAT, &error.to_string()))
}

/// Whether a JSON text is a tokenizer.json and not a plain map of tokens.
pub(super) fn has_model(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Probe<'a> {
        #[serde(borrow)]
        model: Option<&'a RawValue>,
    }
    serde_json::from_str(text).is_ok_and(|Probe { model }| model.is_some_and(|model| model.get().starts_with('{')))
}

#[derive(Deserialize)]
struct File<'a> {
    version: Option<Value>,
    truncation: Option<Value>,
    padding: Option<Value>,
    added_tokens: Option<Vec<Added>>,
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Value,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the format")]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

#[derive(Deserialize)]
struct ModelType {
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    ignore_merges: Option<bool>,
    vocab: Entries,
    merges: Vec<Merge>,
}

fn check_file(file: &File) -> Checked<()> {
    if file.version.as_ref().and_then(Value::as_str) != Some("1.0") {
        return Err(format!("expected version \"1.0\", got {}", show(file.version.as_ref())));
    }
    for (name, value) in [("truncation", &file.truncation), ("padding", &file.padding)] {
        if value.is_some() {
            return Err(format!("{name} is not supported, expected null; hint: set it to null and cut in the loader"));
        }
    }
    check_normalizer(file.normalizer.as_ref())?;
    check_type("post_processor", file.post_processor.as_ref(), true)?;
    check_type("decoder", file.decoder.as_ref(), false)
}

/// No normalizer, or an empty sequence of them.
fn check_normalizer(value: Option<&Value>) -> Checked<()> {
    let is_empty = value.is_none_or(|v| v["normalizers"].as_array().is_some_and(Vec::is_empty));
    if is_empty { Ok(()) } else { Err(format!("normalizer {} is not supported, expected null", show(value))) }
}

/// A component that must be of type `ByteLevel`, which changes no id here, or perhaps null.
fn check_type(name: &str, value: Option<&Value>, may_be_null: bool) -> Checked<()> {
    let is_byte_level = value.map_or(may_be_null, |value| value["type"] == "ByteLevel");
    if is_byte_level { Ok(()) } else { Err(format!("{name} {} is not supported, expected ByteLevel", show(value))) }
}

/// A component for a message: its type, else its whole text.
fn show(value: Option<&Value>) -> String {
    let Some(value) = value else { return "null".to_owned() };
    value["type"].as_str().map_or_else(|| value.to_string().chars().take(80).collect(), str::to_owned)
}

fn read_model(model: &RawValue) -> Checked<Model> {
    let in_model = |error: serde_json::Error| format!("in model: {error}");
    let ModelType { r#type } = serde_json::from_str(model.get()).map_err(in_model)?;
    if let Some(other) = r#type.filter(|name| name != "BPE") {
        return Err(format!("model {other} is not supported, expected BPE"));
    }
    let model: Model = serde_json::from_str(model.get()).map_err(in_model)?;
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err("model.dropout is not supported, expected null".to_owned());
    }
    let affixes = [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ];
    for (name, affix) in affixes {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return Err(format!("model.{name} {affix:?} is not supported, expected null"));
        }
    }
    Ok(model)
}

/// Bytes, merges and special tokens. An added token that merges make or use is an ordinary token as well.
fn parts(model: Model, added: &[Added]) -> Checked<Parts> {
    check_added(added)?;
    let mut missing: HashMap<&str, u32> = added.iter().map(|token| (token.content.as_str(), token.id)).collect();
    let merges: Vec<_> = model.merges.into_iter().map(|Merge(left, right)| (left, right)).collect();
    for (text, id) in &model.vocab.0 {
        if let Some(claimed) = missing.remove(text.as_str()).filter(|claimed| claimed != id) {
            return Err(format!("added token {text:?} has id {claimed}, but model.vocab has it as {id}"));
        }
    }
    let taken: HashMap<u32, &str> = model.vocab.0.iter().map(|(text, id)| (*id, text.as_str())).collect();
    for (text, id) in missing {
        if let Some(other) = taken.get(&id) {
            return Err(format!("added token {text:?} has id {id}, which is {other:?} in model.vocab"));
        }
    }
    let texts: HashMap<&str, u32> = added.iter().map(|token| (token.content.as_str(), token.id)).collect();
    let is_special = |text: &str, is_used: bool| !is_used && texts.contains_key(text);
    let (tokens, pairs, _) = resolve(model.vocab.0, &merges, is_special)?;
    Ok((tokens, pairs, added.iter().map(|token| special(&token.content, token.id)).collect()))
}

fn check_added(added: &[Added]) -> Checked<()> {
    for token in added {
        let flags = [("single_word", token.single_word), ("lstrip", token.lstrip), ("rstrip", token.rstrip)];
        if let Some((flag, _)) = flags.iter().find(|(_, is_set)| *is_set) {
            return Err(format!("added token {:?} has {flag}, which is not supported", token.content));
        }
    }
    // Hugging Face looks for normalized tokens in a second pass; one pass is the same unless two of them can overlap.
    let (second, first): (Vec<_>, Vec<_>) = added.iter().partition(|token| token.normalized);
    for (a, b) in second.iter().flat_map(|a| first.iter().map(move |b| (a, b))) {
        if overlap(&a.content, &b.content) {
            return Err(format!(
                "added tokens {:?} (normalized) and {:?} can overlap, which is not supported",
                a.content, b.content
            ));
        }
    }
    Ok(())
}

/// Whether some text has both at places that share a character.
fn overlap(a: &str, b: &str) -> bool {
    let ends_in_start = |a: &str, b: &str| b.char_indices().skip(1).any(|(n, _)| a.ends_with(&b[..n]));
    a.contains(b) || b.contains(a) || ends_in_start(a, b) || ends_in_start(b, a)
}

/// A map from token to id in the file's order, doubles included.
pub(super) struct Entries(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl Serialize for Entries {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, id)| (text, id)))
    }
}

/// A merge as a pair, or as one string of older files.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge: two tokens, in a list or with a space between")
            }
            fn visit_str<E: serde::de::Error>(self, line: &str) -> std::result::Result<Merge, E> {
                let pair = parse_merge(line).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(line), &self));
                pair.map(|(left, right)| Merge(left, right))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merge, A::Error> {
                let wrong = |n| serde::de::Error::invalid_length(n, &"two tokens");
                let left = seq.next_element()?.ok_or_else(|| wrong(0))?;
                let right = seq.next_element()?.ok_or_else(|| wrong(1))?;
                match seq.next_element::<serde::de::IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(wrong(3)),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedOut<'a>>,
    normalizer: (),
    pre_tokenizer: Value,
    post_processor: (),
    decoder: Value,
    model: ModelOut,
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the format")]
struct AddedOut<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedOut<'a> {
    fn new(token: &'a SpecialToken) -> Self {
        let (id, content) = (token.id, token.text.as_str());
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
    }
}

#[derive(Serialize)]
struct ModelOut {
    r#type: &'static str,
    dropout: (),
    unk_token: (),
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Entries,
    merges: Vec<(String, String)>,
}
