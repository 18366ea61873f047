//! Hugging Face's tokenizer.json for byte-level BPE, read and written.
//!
//! What changes ids and is not honoured here is refused by name. Special tokens are written among the model's tokens
//! too, as in GPT-2's file: Hugging Face numbers all others by itself, without holes. `special: false` tokens of a file
//! are special tokens here, since Hugging Face cuts them out of the text in the same way.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::entries::{Entries, Map, Merges, resolve};
use super::lengths::Lengths;
use super::merges::{spelled_merges, spelled_tokens};
use super::quick::{self, Cut};
use super::{Checked, alphabet, format_error, in_file, inexpressible, pre_tokenizer, read_bytes, special};
use crate::error::Result;
use crate::normalizer::Normalizer;
use crate::special::{Matching, SpecialToken};
use crate::template::Template;
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

const FORMAT: &str = "tokenizer.json";

/// Reads a file.
pub fn read(path: &Path) -> Result<Tokenizer> {
    from_bytes(read_bytes(path)?, path)
}

/// Reads the bytes of a file.
pub(super) fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Tokenizer> {
    match quick_file(&bytes) {
        Some(file) => read_file(file, path),
        None => read_file(whole_file(&super::text(bytes, path)?, path)?, path),
    }
}

/// Reads the text of a file; `path` is only for messages.
pub fn from_str(text: &str, path: &Path) -> Result<Tokenizer> {
    let quick = quick_file(text.as_bytes());
    read_file(quick.map_or_else(|| whole_file(text, path), Ok)?, path)
}

/// The file, tokens and merges by [`quick`]; `None` when the JSON reader must read them.
fn quick_file(text: &[u8]) -> Option<File> {
    let Cut { vocab, merges, rest } = quick::cut(text)?;
    let mut file: File = serde_json::from_str(&rest).ok()?;
    (file.model.vocab, file.model.merges) = (vocab, merges);
    Some(file)
}

fn whole_file(text: &str, path: &Path) -> Result<File> {
    let error = format_error(path, FORMAT);
    serde_json::from_str(text).map_err(|e| error(model_type(text).unwrap_or_else(|| e.to_string())))
}

fn read_file(file: File, path: &Path) -> Result<Tokenizer> {
    let error = format_error(path, FORMAT);
    check_file(&file).map_err(&error)?;
    let lengths = Lengths::new(file.truncation, file.padding).map_err(&error)?;
    check_model(&file.model).map_err(&error)?;
    let normalizer = read_normalizer(file.normalizer.as_ref()).map_err(&error)?;
    let splitter = pre_tokenizer::read(&file.pre_tokenizer).map_err(&error)?.with_normalizer(normalizer);
    let template = file.post_processor.as_ref().map(Template::from_json).transpose().map_err(&error)?;
    let added = file.added_tokens.unwrap_or_default();
    let vocab = read_vocab(&file.model, &added).map_err(&error)?;
    let specials = added.into_iter().map(Added::into_special).collect();
    let tokenizer = in_file(Tokenizer::with_matching(vocab, splitter, specials), path, FORMAT)?;
    check_template(template.as_ref(), &tokenizer).map_err(&error)?;
    Ok(tokenizer.with_template(template).with_lengths(lengths))
}

/// The text of the file, which reads back to an equal tokenizer.
///
/// Fails when the format cannot express it: two tokens that would be spelled alike, or a pattern that Hugging Face's
/// regex engine reads differently.
pub fn to_string(tokenizer: &Tokenizer) -> Result<String> {
    to_string_with(tokenizer, tokenizer.lengths())
}

/// [`to_string`] with other lengths than the tokenizer came with.
pub fn to_string_with(tokenizer: &Tokenizer, lengths: &Lengths) -> Result<String> {
    let vocab = tokenizer.vocab();
    let specials = tokenizer.specials().iter().zip(tokenizer.matching());
    // They are written among the model's tokens, which are looked up whole then.
    let is_piece = |(token, matching): &(&SpecialToken, &Matching)| {
        let spells = alphabet::bytes(&token.text);
        let is_other = spells.is_ok_and(|bytes| matching.single_word || alphabet::is_other_text(&token.text, &bytes));
        vocab.ignore_merges() && vocab.token(token.id).is_none() && is_other
    };
    if let Some((token, _)) = specials.clone().find(is_piece) {
        let reason = format!("its special token {:?} would be read as an ordinary token as well", token.text);
        return Err(inexpressible(FORMAT, &reason));
    }
    let file = FileOut {
        version: "1.0",
        truncation: lengths.truncation.as_ref(),
        padding: lengths.padding.as_ref(),
        added_tokens: specials.map(|(token, matching)| AddedOut::new(token, *matching)).collect(),
        normalizer: tokenizer.splitter().normalizer().map(|form| json!({ "type": form.name() })),
        pre_tokenizer: pre_tokenizer::write(tokenizer.splitter())?,
        post_processor: tokenizer.template().map(Template::source),
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
            vocab: Map(spelled_tokens(tokenizer)?),
            merges: spelled_merges(vocab).collect(),
        },
    };
    serde_json::to_string(&file).map_err(|error| inexpressible(FORMAT, &error.to_string()))
}

/// Whether a JSON text is a tokenizer.json and not a plain map of tokens.
pub(super) fn has_model(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe<'a> {
        #[serde(borrow)]
        model: Option<&'a RawValue>,
    }
    serde_json::from_slice(text).is_ok_and(|Probe { model }| model.is_some_and(|model| model.get().starts_with('{')))
}

/// Why the model of a file that does not parse is not supported, when its type says so.
fn model_type(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Probe {
        model: ModelType,
    }
    #[derive(Deserialize)]
    struct ModelType {
        r#type: String,
    }
    let Probe { model } = serde_json::from_str(text).ok()?;
    (model.r#type != "BPE").then(|| format!("model {} is not supported, expected BPE", model.r#type))
}

#[derive(Deserialize)]
struct File {
    version: Option<Value>,
    truncation: Option<Value>,
    padding: Option<Value>,
    added_tokens: Option<Vec<Added>>,
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Value,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
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
    #[serde(default)]
    special: bool,
}

impl Added {
    fn into_special(self) -> (SpecialToken, Matching) {
        let Self { id, content, single_word, lstrip, rstrip, normalized, special: is_special } = self;
        (special(&content, id), Matching { single_word, lstrip, rstrip, normalized, special: is_special })
    }
}

#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Entries,
    merges: Merges,
}

fn check_file(file: &File) -> Checked<()> {
    if file.version.as_ref().and_then(Value::as_str) != Some("1.0") {
        return Err(format!("expected version \"1.0\", got {}", show(file.version.as_ref())));
    }
    check_decoder(file.decoder.as_ref())
}

/// The decoder must be `ByteLevel`, alone or in a sequence.
fn check_decoder(value: Option<&Value>) -> Checked<()> {
    let only = value.map(|value| match value["decoders"].as_array().map(Vec::as_slice) {
        Some([only]) if value["type"] == "Sequence" => only,
        _ => value,
    });
    if only.is_some_and(|only| only["type"] == "ByteLevel") {
        return Ok(());
    }
    Err(format!("decoder {} is not supported, expected ByteLevel", show(only)))
}

/// No normalizer, one of Unicode's forms, or a sequence of one.
fn read_normalizer(value: Option<&Value>) -> Checked<Option<Normalizer>> {
    let Some(value) = value else { return Ok(None) };
    let steps = match value["normalizers"].as_array() {
        Some(steps) if value["type"] == "Sequence" => steps.as_slice(),
        _ => std::slice::from_ref(value),
    };
    let mut form = None;
    for step in steps {
        let own = step["type"].as_str().and_then(Normalizer::named).ok_or_else(|| {
            format!("normalizer {} is not supported, expected null, NFC, NFD, NFKC or NFKD", show(Some(step)))
        })?;
        if form.replace(own).is_some_and(|other| other != own) {
            return Err("normalizer Sequence of different forms is not supported, expected one".to_owned());
        }
    }
    Ok(form)
}

/// A component for a message: its type, else its whole text.
fn show(value: Option<&Value>) -> String {
    let Some(value) = value else { return "null".to_owned() };
    value["type"].as_str().map_or_else(|| value.to_string().chars().take(80).collect(), str::to_owned)
}

fn check_model(model: &Model) -> Checked<()> {
    if let Some(other) = model.r#type.as_ref().filter(|name| *name != "BPE") {
        return Err(format!("model {other} is not supported, expected BPE"));
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err("model.dropout is not supported, expected null".to_owned());
    }
    if model.byte_fallback == Some(true) {
        return Err("model.byte_fallback is not supported, expected false".to_owned());
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
    Ok(())
}

/// Tokens and merges. An added token that merges make or use is an ordinary token as well.
fn read_vocab(model: &Model, added: &[Added]) -> Checked<Vocab> {
    let spelled: HashMap<u32, Vec<u8>> =
        added.iter().filter_map(|token| Some((token.id, alphabet::bytes(&token.content).ok()?))).collect();
    let ignore_merges = model.ignore_merges.unwrap_or(false);
    // Such a vocabulary gives its id to any piece that it has, also where the added token is not found.
    let by_id: HashMap<u32, &Added> = added.iter().map(|token| (token.id, token)).collect();
    let is_piece = |id: u32, bytes: &[u8]| {
        let found_elsewhere = |token: &&Added| token.single_word || alphabet::is_other_text(&token.content, bytes);
        ignore_merges && by_id.get(&id).is_some_and(found_elsewhere)
    };
    let may_be_special =
        |id: u32, bytes: &[u8]| spelled.get(&id).is_some_and(|own| own == bytes) && !is_piece(id, bytes);
    let parts = resolve(&model.vocab, &model.merges, may_be_special)?;
    let odd: HashMap<u32, &str> = model.vocab.odd().iter().map(|(text, id)| (*id, text.as_str())).collect();
    for Added { id, content, .. } in added {
        let own = spelled.get(id);
        let as_other = own.and_then(|bytes| parts.tokens.id(bytes)).filter(|other| other != id);
        if let Some(other) = as_other {
            return Err(format!("added token {content:?} has id {id}, but model.vocab has it as {other}"));
        }
        let ordinary = parts.tokens.get(*id).filter(|bytes| !bytes.is_empty() && own.is_none_or(|own| own != bytes));
        let other = ordinary.map(alphabet::spell).or_else(|| odd.get(id).map(|text| (*text).to_owned()));
        if let Some(other) = other.filter(|other| other != content) {
            return Err(format!("added token {content:?} has id {id}, which is {other:?} in model.vocab"));
        }
    }
    check_odd(model.vocab.odd(), added)?;
    check_numbers(&model.vocab, added)?;
    Vocab::from_resolved(parts, ignore_merges).map_err(super::reason)
}

/// Tokens outside the byte-level alphabet can only be added ones.
fn check_odd(odd: &[(String, u32)], added: &[Added]) -> Checked<()> {
    let ids: HashMap<&str, u32> = added.iter().map(|token| (token.content.as_str(), token.id)).collect();
    for (text, id) in odd {
        match ids.get(text.as_str()) {
            Some(claimed) if claimed == id => {}
            Some(claimed) => {
                return Err(format!("added token {text:?} has id {claimed}, but model.vocab has it as {id}"));
            }
            None => {
                let c = alphabet::bytes(text).err().unwrap_or_default();
                return Err(format!("token {text:?} has {c:?}, which is not in the byte-level alphabet"));
            }
        }
    }
    Ok(())
}

/// Hugging Face gives an added token that is not in the model's vocabulary the next number, whatever the file says.
fn check_numbers(vocab: &Entries, added: &[Added]) -> Checked<()> {
    let first = added.iter().map(|token| token.id).min().unwrap_or(u32::MAX);
    let listed: HashSet<u32> = vocab.ids().filter(|&id| id >= first).collect();
    let mut next = vocab.len() as u32;
    for Added { id, content, .. } in added {
        if *id != next && !listed.contains(id) {
            return Err(format!(
                "added token {content:?} has id {id}, but Hugging Face makes it {next}: the first number after its vocabulary \
                 and the added tokens before; hint: put it into model.vocab, or list the added tokens by id"
            ));
        }
        next = next.max(id.saturating_add(1));
    }
    Ok(())
}

/// A template may only add ids that are tokens.
fn check_template(template: Option<&Template>, tokenizer: &Tokenizer) -> Checked<()> {
    let unknown = template.and_then(|template| template.ids().find(|&id| tokenizer.token_bytes(id).is_none()));
    unknown.map_or(Ok(()), |id| Err(format!("post_processor adds id {id}, which is no token")))
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: &'static str,
    truncation: Option<&'a Value>,
    padding: Option<&'a Value>,
    added_tokens: Vec<AddedOut<'a>>,
    normalizer: Option<Value>,
    pre_tokenizer: Value,
    post_processor: Option<&'a Value>,
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
    fn new(token: &'a SpecialToken, matching: Matching) -> Self {
        let Matching { single_word, lstrip, rstrip, normalized, special } = matching;
        Self { id: token.id, content: &token.text, single_word, lstrip, rstrip, normalized, special }
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
    vocab: Map,
    merges: Vec<(String, String)>,
}
