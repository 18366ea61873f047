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
///
/// `specials` gives the special tokens, from the number of ids that the file holds.
pub fn read(path: &Path, splitter: Splitter, specials: impl FnOnce(u32) -> Vec<SpecialToken>) -> Result<Tokenizer> {
    let error = format_error(path, FORMAT);
    let tokens = parse(&read_bytes(path)?).map_err(error)?;
    let vocab = in_file(Vocab::from_ranked(tokens), path, FORMAT)?;
    let specials = specials(vocab.len() as u32);
    in_file(Tokenizer::new(vocab, splitter, specials), path, FORMAT)
}

/// The tokenizer of tokens and their ranks; `name` stands for a path in messages.
pub fn from_ranks<T: AsRef<[u8]>>(
    ranks: &[(T, u32)],
    splitter: Splitter,
    specials: Vec<SpecialToken>,
    name: &Path,
) -> Result<Tokenizer> {
    let mut entries = Entries::default();
    for (token, rank) in ranks {
        let append = |bytes: &mut Vec<u8>| match token.as_ref() {
            [] => Err(format!("token {rank} is empty")),
            token => {
                bytes.extend_from_slice(token);
                Ok(())
            }
        };
        entries.push_bytes(*rank, append).map_err(format_error(name, FORMAT))?;
    }
    let tokens = entries.into_tokens().map_err(format_error(name, FORMAT))?;
    let vocab = in_file(Vocab::from_ranked(tokens), name, FORMAT)?;
    in_file(Tokenizer::new(vocab, splitter, specials), name, FORMAT)
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

/// Pattern and special tokens of the published files by name, for a file of `n_ranks` ids (tiktoken's
/// `openai_public.py`, and the tokenizers that Llama 3 and `DeepSeek` publish).
pub(super) fn known(stem: &str) -> Option<Known> {
    let known = match stem {
        "gpt2" | "r50k_base" | "p50k_base" => Known { pattern: "gpt2", specials: |_| named(&[(END, 50_256)]) },
        "p50k_edit" => Known {
            pattern: "gpt2",
            specials: |_| named(&[(END, 50_256), (FIM[0], 50_281), (FIM[1], 50_282), (FIM[2], 50_283)]),
        },
        "cl100k_base" => Known {
            pattern: "cl100k_base",
            specials: |_| {
                let fim = [(FIM[0], 100_258), (FIM[1], 100_259), (FIM[2], 100_260)];
                named(&[&[(END, 100_257)], &fim[..], &[("<|endofprompt|>", 100_276)]].concat())
            },
        },
        "o200k_base" => {
            Known { pattern: "o200k_base", specials: |_| named(&[(END, 199_999), ("<|endofprompt|>", 200_018)]) }
        }
        "o200k_harmony" => Known { pattern: "o200k_base", specials: |_| harmony() },
        "llama3" | "llama-3" => Known { pattern: "llama3", specials: llama3 },
        "deepseek_v3" | "deepseek-v3" => Known {
            pattern: "deepseek-v3",
            specials: |_| named(&[("<｜begin▁of▁sentence｜>", 0), ("<｜end▁of▁sentence｜>", 1), ("<｜▁pad▁｜>", 2)]),
        },
        _ => return None,
    };
    Some(known)
}

/// What a published file does not hold.
pub(super) struct Known {
    pub(super) pattern: &'static str,
    /// The special tokens, given the number of ids that the file holds.
    pub(super) specials: fn(u32) -> Vec<SpecialToken>,
}

const END: &str = "<|endoftext|>";
const FIM: [&str; 3] = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"];

fn named(tokens: &[(&str, u32)]) -> Vec<SpecialToken> {
    tokens.iter().map(|&(text, id)| special(text, id)).collect()
}

/// Id 200018 has two names there; the one that is no reserve is kept.
fn harmony() -> Vec<SpecialToken> {
    let mut tokens = named(&[
        ("<|startoftext|>", 199_998),
        (END, 199_999),
        ("<|return|>", 200_002),
        ("<|constrain|>", 200_003),
        ("<|channel|>", 200_005),
        ("<|start|>", 200_006),
        ("<|end|>", 200_007),
        ("<|message|>", 200_008),
        ("<|call|>", 200_012),
        ("<|endofprompt|>", 200_018),
    ]);
    let reserved = (200_000..201_088).filter(|id| !tokens.iter().any(|token| token.id == *id));
    let reserved: Vec<_> = reserved.map(|id| special(&format!("<|reserved_{id}|>"), id)).collect();
    tokens.extend(reserved);
    tokens
}

/// 256 tokens after the ranks.
fn llama3(n_ranks: u32) -> Vec<SpecialToken> {
    let mut texts: Vec<_> = ["<|begin_of_text|>", "<|end_of_text|>"].map(str::to_owned).to_vec();
    let reserved = |i: u32| format!("<|reserved_special_token_{i}|>");
    texts.extend((0..4).map(reserved));
    texts.extend(["<|start_header_id|>", "<|end_header_id|>"].map(str::to_owned));
    texts.push(reserved(4));
    texts.push("<|eot_id|>".to_owned());
    texts.extend((5..251).map(reserved));
    texts.into_iter().zip(n_ranks..).map(|(text, id)| SpecialToken { text, id }).collect()
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
