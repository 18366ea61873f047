//! GPT-2's two files: vocab.json (token → id) and merges.txt (one merge a line), both in the byte-level alphabet.
//!
//! They hold neither pattern nor special tokens. An entry like `<|endoftext|>` or `<s>` that no merge makes or uses is
//! taken for a special token, which is what such entries are in the files in use.

use std::path::Path;

use super::entries::{Entries, Map, Merges, resolve};
use super::{Checked, alphabet, format_error, in_file, inexpressible, read_text, special};
use crate::error::{Error, Result};
use crate::special::SpecialToken;
use crate::split::Splitter;
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";

/// Reads vocab.json and merges.txt, whatever their names.
pub fn read(vocab_json: &Path, merges_txt: &Path, splitter: Splitter) -> Result<Tokenizer> {
    let error = format_error(vocab_json, VOCAB);
    let entries: Entries = serde_json::from_str(&read_text(vocab_json)?).map_err(|e| error(e.to_string()))?;
    let merges = parse_merges(&read_text(merges_txt)?).map_err(format_error(merges_txt, MERGES))?;
    let (vocab, specials) = join(&entries, &merges).map_err(error)?;
    in_file(Tokenizer::new(vocab, splitter, specials), vocab_json, VOCAB)
}

fn join(entries: &Entries, merges: &Merges) -> Checked<(Vocab, Vec<SpecialToken>)> {
    let is_bracketed_token = |_, bytes: &[u8]| bytes.len() > 2 && bytes.starts_with(b"<") && bytes.ends_with(b">");
    let parts = resolve(entries, merges, is_bracketed_token)?;
    if let Some((text, _)) = entries.odd().iter().find(|(text, _)| !is_bracketed(text)) {
        let c = alphabet::bytes(text).err().unwrap_or_default();
        return Err(format!("token {text:?} has {c:?}, which is not in the byte-level alphabet"));
    }
    let specials = entries.spelled().filter(|(_, id)| parts.special.contains(id));
    let specials = specials.map(|(text, id)| special(&text, id)).collect();
    Ok((Vocab::from_resolved(parts, false).map_err(super::reason)?, specials))
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
    let entries = Map(spelled_tokens(tokenizer)?);
    let json = serde_json::to_string(&entries).map_err(|error| inexpressible(VOCAB, &error.to_string()))?;
    Ok((json, lines))
}

fn is_bracketed(text: &str) -> bool {
    text.len() > 2 && text.starts_with('<') && text.ends_with('>')
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
fn parse_merges(text: &str) -> Checked<Merges> {
    let mut merges = Merges::default();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        if i > 0 || !line.starts_with("#version") {
            merges.push_line(line).map_err(|reason| format!("{reason} on line {}", i + 1))?;
        }
    }
    Ok(merges)
}
