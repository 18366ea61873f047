//! GPT-2's two files: vocab.json (token → id) and merges.txt (one merge a line), both in the byte-level alphabet.
//!
//! They hold neither pattern nor special tokens. An entry like `<|endoftext|>` or `<s>` that no merge makes or uses is
//! taken for a special token, which is what such entries are in the files in use.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::tokenizer_json::Entries;
use super::{alphabet, by_id, format_error, in_file, inexpressible, read_text, special};
use crate::error::{Error, Result};
use crate::naive::Pair;
use crate::special::SpecialToken;
use crate::split::Splitter;
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";

/// Reads vocab.json and merges.txt, whatever their names.
pub fn read(vocab_json: &Path, merges_txt: &Path, splitter: Splitter) -> Result<Tokenizer> {
    let error = format_error(vocab_json, VOCAB);
    let text = read_text(vocab_json)?;
    let Entries(entries) = serde_json::from_str(&text).map_err(|e| error(e.to_string()))?;
    let merges = parse_merges(&read_text(merges_txt)?).map_err(format_error(merges_txt, MERGES))?;
    let (tokens, pairs, specials) =
        resolve(entries, &merges, |text, is_used| !is_used && is_bracketed(text)).map_err(error)?;
    let vocab = in_file(Vocab::from_tokens(&tokens, pairs, false), vocab_json, VOCAB)?;
    in_file(Tokenizer::new(vocab, splitter, specials), vocab_json, VOCAB)
}

/// The text of vocab.json and of merges.txt; fails when they cannot express the tokenizer.
pub fn to_strings(tokenizer: &Tokenizer) -> Result<(String, String)> {
    let vocab = tokenizer.vocab();
    if vocab.ignore_merges() {
        return Err(inexpressible(MERGES, "it looks whole pieces up before merging"));
    }
    if let Some(token) = tokenizer.specials().iter().find(|token| !is_bracketed(&token.text)) {
        let reason = format!("its special token {:?} is not of the form <...> and would be read as text", token.text);
        return Err(inexpressible(VOCAB, &reason));
    }
    let unreachable = vocab.unreachable().iter().filter_map(|&id| vocab.token(id));
    if let Some(token) = unreachable.map(alphabet::spell).find(|text| is_bracketed(text)) {
        return Err(inexpressible(VOCAB, &format!("its ordinary token {token:?} would be read as a special token")));
    }
    let mut lines = String::from("#version: 0.2\n");
    for (left, right) in spelled_merges(vocab) {
        lines.extend([left.as_str(), " ", right.as_str(), "\n"]);
    }
    let entries = Entries(spelled_tokens(tokenizer)?);
    let json = serde_json::to_string(&entries).map_err(|error| inexpressible(VOCAB, &error.to_string()))?;
    Ok((json, lines))
}

fn is_bracketed(text: &str) -> bool {
    text.len() > 2 && text.starts_with('<') && text.ends_with('>')
}

/// Tokens, merges and special tokens of a file.
pub(super) type Parts = (Vec<Vec<u8>>, Vec<Pair>, Vec<SpecialToken>);

/// Turns spelled entries and merges into bytes and ids; `is_special` gets an entry's text and whether a merge makes or
/// uses it.
pub(super) fn resolve(
    entries: Vec<(String, u32)>,
    merges: &[(String, String)],
    is_special: impl Fn(&str, bool) -> bool,
) -> std::result::Result<Parts, String> {
    let mut ids = HashMap::with_capacity(entries.len());
    for (text, id) in &entries {
        if let Some(other) = ids.insert(text.as_str(), *id) {
            return Err(format!("token {text:?} has ids {other} and {id}"));
        }
    }
    let (pairs, used) = resolve_merges(&ids, merges)?;
    drop(ids);
    let mut specials = Vec::new();
    let mut tokens = Vec::with_capacity(entries.len());
    for entry in by_id(entries, |text| format!("{text:?}"))? {
        let Some(text) = entry else {
            tokens.push(Vec::new());
            continue;
        };
        let id = tokens.len() as u32;
        let bytes = alphabet::bytes(&text);
        let is_used = used.contains(&id) || bytes.as_ref().is_ok_and(|bytes| bytes.len() == 1);
        if is_special(&text, is_used) {
            specials.push(special(&text, id));
            tokens.push(Vec::new());
        } else {
            tokens
                .push(bytes.map_err(|c| format!("token {text:?} has {c:?}, which is not in the byte-level alphabet"))?);
        }
    }
    Ok((tokens, pairs, specials))
}

/// The ids of every merge, and the ids that any merge makes or uses.
fn resolve_merges(
    ids: &HashMap<&str, u32>,
    merges: &[(String, String)],
) -> std::result::Result<(Vec<Pair>, HashSet<u32>), String> {
    let mut pairs = Vec::with_capacity(merges.len());
    let mut used = HashSet::with_capacity(merges.len());
    let mut product = String::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        product.clear();
        product.extend([left.as_str(), right.as_str()]);
        let id = |text: &str| {
            ids.get(text)
                .copied()
                .ok_or_else(|| format!("merge {rank} ({left:?}, {right:?}) needs token {text:?}, which is missing"))
        };
        let pair = (id(left)?, id(right)?);
        used.extend([pair.0, pair.1, id(&product)?]);
        pairs.push(pair);
    }
    Ok((pairs, used))
}

/// Every token, special ones included, with its id, ascending; fails when two of them are spelled alike.
pub(super) fn spelled_tokens(tokenizer: &Tokenizer) -> Result<Vec<(String, u32)>> {
    let vocab = tokenizer.vocab();
    let ordinary = (0..vocab.len() as u32).filter_map(|id| vocab.token(id).map(|token| (alphabet::spell(token), id)));
    let mut entries: Vec<_> = ordinary.collect();
    for SpecialToken { text, id } in tokenizer.specials() {
        let other = alphabet::bytes(text).ok().and_then(|bytes| vocab.id(&bytes));
        if vocab.token(*id).is_none() && other.is_none() {
            entries.push((text.clone(), *id));
        } else if other != Some(*id) {
            let clash = other.unwrap_or(*id);
            return Err(Error::Argument(format!(
                "this tokenizer cannot be written: in the byte-level alphabet special token {text:?} clashes with the \
                 ordinary token {clash}"
            )));
        }
    }
    entries.sort_by_key(|&(_, id)| id);
    Ok(entries)
}

/// Every merge in the alphabet, in order of rank.
pub(super) fn spelled_merges(vocab: &Vocab) -> impl Iterator<Item = (String, String)> {
    let spell = |id| alphabet::spell(vocab.token(id).unwrap_or_default());
    vocab.merges().iter().map(move |&(left, right)| (spell(left), spell(right)))
}

/// Lines of two tokens; the first line may be a version. A later line that starts with `#` is a merge.
fn parse_merges(text: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let is_merge = |(i, line): &(usize, &str)| !line.is_empty() && (*i > 0 || !line.starts_with("#version"));
    let parse =
        |(i, line)| parse_merge(line).ok_or_else(|| format!("expected two tokens on line {}, got {line:?}", i + 1));
    text.lines().enumerate().filter(is_merge).map(parse).collect()
}

/// Two tokens with one space between.
pub(super) fn parse_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    let is_pair = !left.is_empty() && !right.is_empty() && !right.contains(' ');
    is_pair.then(|| (left.to_owned(), right.to_owned()))
}
