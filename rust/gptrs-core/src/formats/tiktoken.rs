//! tiktoken's rank files: one line a token, `base64(bytes) rank`. They hold neither pattern nor special tokens.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::entries::Entries;
use super::{Checked, format_error, in_file, inexpressible, read_bytes, special};
use crate::error::Result;
use crate::special::SpecialToken;
use crate::split::Splitter;
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;
use crate::vocab::Vocab;

const FORMAT: &str = "tiktoken file";

/// Reads a rank file.
pub fn read(path: &Path, splitter: Splitter, specials: Vec<SpecialToken>) -> Result<Tokenizer> {
    let error = format_error(path, FORMAT);
    let tokens = parse(&read_bytes(path)?).map_err(error)?;
    let vocab = in_file(Vocab::from_ranked(tokens), path, FORMAT)?;
    in_file(Tokenizer::new(vocab, splitter, specials), path, FORMAT)
}

/// The rank file of a tokenizer; fails when its merges are not those that follow from the ranks.
pub fn to_string(tokenizer: &Tokenizer) -> Result<String> {
    let vocab = tokenizer.vocab();
    let tokens: Vec<_> = (0..vocab.len() as u32).map(|id| vocab.token(id).unwrap_or_default().to_vec()).collect();
    let mut lines = String::new();
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{} {id}", STANDARD.encode(token));
    }
    let ranked = Vocab::from_ranks(&tokens)?;
    if ranked.merges() != vocab.merges() || ranked.ignore_merges() != vocab.ignore_merges() {
        return Err(inexpressible(FORMAT, "the order of its merges is not that of its ids"));
    }
    Ok(lines)
}

/// Pattern and special tokens of the published files by name (tiktoken's `openai_public.py`).
pub(super) fn known(stem: &str) -> Option<(&'static str, Vec<SpecialToken>)> {
    let end = "<|endoftext|>";
    match stem {
        "gpt2" | "r50k_base" | "p50k_base" => Some(("gpt2", vec![special(end, 50_256)])),
        "cl100k_base" => Some((
            "cl100k_base",
            vec![
                special(end, 100_257),
                special("<|fim_prefix|>", 100_258),
                special("<|fim_middle|>", 100_259),
                special("<|fim_suffix|>", 100_260),
                special("<|endofprompt|>", 100_276),
            ],
        )),
        _ => None,
    }
}

fn parse(bytes: &[u8]) -> Checked<Tokens> {
    let mut entries = Entries::default();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if !line.is_empty() {
            parse_line(line, &mut entries).map_err(|reason| format!("{reason} on line {}", i + 1))?;
        }
    }
    entries.into_tokens()
}

fn parse_line(line: &[u8], entries: &mut Entries) -> Checked<()> {
    let Some((token, rank)) = memchr::memchr(b' ', line).map(|space| (&line[..space], &line[space + 1..])) else {
        return Err(format!("expected base64 and a rank, got {}", show(line)));
    };
    let digits = std::str::from_utf8(rank).ok();
    let rank = digits.and_then(|digits| digits.parse().ok());
    let rank = rank.ok_or_else(|| format!("expected a rank below 2^32, got {}", show(&line[token.len() + 1..])))?;
    if token.is_empty() {
        return Err(format!("token {rank} is empty"));
    }
    entries.push_bytes(rank, |bytes| {
        let decoded = STANDARD.decode_vec(token, bytes);
        decoded.map_err(|error| format!("{} is not base64: {error}", show(token)))
    })
}

/// The start of a line, for a message.
fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes[..bytes.len().min(60)].escape_ascii())
}
