//! The patterns that have a scanner: their names and the spellings that others gave them.

use std::borrow::Cow;
use std::mem::discriminant;

use super::{Kind, cl100k, deepseek, gpt2, o200k};

/// What is known of one pattern.
pub(super) struct Known {
    pub(super) kind: Kind,
    /// The first is the one we write; the others are the vocabularies and models that share the pattern.
    names: &'static [&'static str],
    /// As one expression in fancy-regex's syntax, which is tiktoken's.
    pub(super) regex: &'static str,
    /// As expressions for Oniguruma, Hugging Face's engine, to be applied one after the other.
    pub(super) onig: &'static [&'static str],
    /// Other spellings with the same pieces, in either engine.
    spellings: &'static [&'static str],
}

/// As the models' own code and their files for Hugging Face spell it.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const NANOCHAT: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

static KNOWN: [Known; 7] = [
    Known {
        kind: Kind::Gpt2,
        names: &["gpt2", "r50k_base", "p50k_base", "p50k_edit", "r50k", "p50k"],
        regex: gpt2::REGEX,
        onig: &[gpt2::ONIG_REGEX],
        spellings: &[gpt2::OLD_REGEX, r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    },
    Known {
        kind: Kind::Cl100k,
        names: &["cl100k_base", "cl100k"],
        regex: cl100k::REGEX,
        onig: &[cl100k::ONIG_REGEX],
        spellings: &[],
    },
    Known {
        kind: Kind::O200k,
        names: &["o200k_base", "o200k", "o200k_harmony"],
        regex: o200k::REGEX,
        onig: &[o200k::REGEX],
        spellings: &[],
    },
    Known {
        kind: Kind::Llama3,
        names: &["llama3", "llama-3", "olmo2", "olmo3"],
        regex: LLAMA3,
        onig: &[LLAMA3],
        spellings: &[
            // rustbpe's default
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    },
    Known { kind: Kind::Qwen2, names: &["qwen2", "qwen2.5", "qwen3"], regex: QWEN2, onig: &[QWEN2], spellings: &[] },
    Known {
        kind: Kind::DeepSeekV3,
        names: &["deepseek-v3", "deepseek_v3", "deepseek-r1"],
        regex: deepseek::REGEX,
        onig: &deepseek::SEQUENCE,
        spellings: &[],
    },
    Known { kind: Kind::Nanochat, names: &["nanochat"], regex: NANOCHAT, onig: &[NANOCHAT], spellings: &[] },
];

impl Known {
    pub(super) fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The pattern of this name or spelling. Spellings compare as text, but for how they write a line break.
    pub(super) fn find(pattern: &str) -> Option<&'static Self> {
        let pattern = &*escape_breaks(pattern);
        KNOWN.iter().find(|known| {
            known.names.contains(&pattern)
                || known.regex == pattern
                || known.onig == [pattern]
                || known.spellings.contains(&pattern)
        })
    }

    /// The pattern which is these expressions for Hugging Face, applied one after the other.
    pub(super) fn find_sequence(regexes: &[&str]) -> Option<&'static Self> {
        let regexes: Vec<_> = regexes.iter().map(|regex| escape_breaks(regex)).collect();
        KNOWN.iter().find(|known| known.onig == regexes)
    }

    /// What is known of a named pattern.
    pub(super) fn of(kind: &Kind) -> &'static Self {
        let same = |known: &&Self| discriminant(&known.kind) == discriminant(kind);
        KNOWN.iter().find(same).expect("every kind but the custom one is in the table, and a test looks each up")
    }
}

/// DeepSeek's file holds the line breaks of its classes as they are.
fn escape_breaks(pattern: &str) -> Cow<'_, str> {
    if pattern.contains(['\r', '\n']) {
        pattern.replace('\r', r"\r").replace('\n', r"\n").into()
    } else {
        pattern.into()
    }
}
