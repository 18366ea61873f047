//! Tokenizer files of others, which are also ours: Hugging Face's tokenizer.json, tiktoken's ranks, GPT-2's pair of files.
//!
//! Every reader bounds what it allocates by the size of the file, refuses by name what it cannot honour, and ends in
//! the checked constructors of [`Vocab`](crate::Vocab) and [`Tokenizer`].

pub mod lengths;
pub mod merges;
pub mod tiktoken;
pub mod tokenizer_json;

pub(crate) mod alphabet;
mod entries;
mod pre_tokenizer;
mod quick;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io;
use crate::special::SpecialToken;
use crate::split::Splitter;
use crate::tokenizer::Tokenizer;

/// The largest tokenizer file that is read; the largest in use have some 30 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Names of vocab.json and merges.txt, as Hugging Face and as GPT-2's repository have them.
const MERGE_FILES: [(&str, &str); 2] = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];

/// Reads a tokenizer from a file, or from a directory that has tokenizer.json or vocab.json and merges.txt.
///
/// A `.tiktoken` file has no pattern; known names (`gpt2`, `r50k_base`, `p50k_base`, `p50k_edit`, `cl100k_base`,
/// `o200k_base`, `o200k_harmony`, `llama3`, `deepseek_v3`) bring pattern and special tokens, others need `pattern`. vocab.json and merges.txt are GPT-2's unless `pattern` says otherwise. tokenizer.json
/// has its own pattern, and `pattern` must be absent or the same.
pub fn read(path: &Path, pattern: Option<&str>) -> Result<Tokenizer> {
    if std::fs::metadata(path).map_err(Error::io("read", path))?.is_dir() {
        return read_directory(path, pattern);
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "tiktoken" => read_tiktoken(path, pattern),
        "json" => read_json(path, pattern),
        "txt" | "bpe" => {
            let names = MERGE_FILES.iter().find(|(_, merges)| path.file_name().is_some_and(|name| name == *merges));
            let vocab = path.with_file_name(names.map_or("vocab.json", |(vocab, _)| vocab));
            if !vocab.exists() {
                return Err(Error::Argument(format!(
                    "{} would be merges by its name, but {} is not there; hint: a tokenizer is a *.json, a *.tiktoken, \
                     merges.txt beside its vocab.json, or the folder of these",
                    path.display(),
                    vocab.display()
                )));
            }
            read_merges(&vocab, path, pattern)
        }
        _ => Err(Error::Argument(format!(
            "{} is not a tokenizer file by its name, expected *.json, *.tiktoken, merges.txt or a directory",
            path.display()
        ))),
    }
}

/// Writes a tokenizer atomically: `*.json` and a directory get tokenizer.json, `*.tiktoken` gets ranks, `merges.txt` and
/// `vocab.bpe` get merges with vocab.json or encoder.json beside them. The words that its training text has most of go into
/// a file beside the first two, which only saves time, see [`WarmWords`](crate::WarmWords).
pub fn write(tokenizer: &Tokenizer, path: &Path) -> Result<()> {
    let pair = MERGE_FILES.iter().find(|(_, merges)| path.file_name().is_some_and(|name| name == *merges));
    if let Some((vocab, _)) = pair {
        let (json, lines) = merges::to_strings(tokenizer)?;
        io::write_atomic(&path.with_file_name(vocab), json.as_bytes())?;
        return io::write_atomic(path, lines.as_bytes());
    }
    let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => tokenizer_json::to_string(tokenizer)?,
        Some("tiktoken") => tiktoken::to_string(tokenizer)?,
        _ => {
            return Err(Error::Argument(format!(
                "cannot tell the format of {} by its name, expected *.json, *.tiktoken or merges.txt",
                path.display()
            )));
        }
    };
    io::write_atomic(&path, text.as_bytes())?;
    match tokenizer.warm_words() {
        Some(words) => words.write_beside(&path, &tokenizer.digest()),
        None => Ok(()),
    }
}

/// What the file that [`write`] makes at `path` does not hold of a tokenizer, as its reader finds it: by words for a message.
pub fn not_written(tokenizer: &Tokenizer, path: &Path) -> Vec<String> {
    let is_tiktoken = path.extension().is_some_and(|extension| extension == "tiktoken");
    let is_pair = MERGE_FILES.iter().any(|(_, merges)| path.file_name().is_some_and(|name| name == *merges));
    let mut missing = Vec::new();
    if is_tiktoken {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let n_ranks = tokenizer.vocab().len() as u32;
        let known = tiktoken::known(stem).map_or(Vec::new(), |known| (known.specials)(n_ranks));
        let lost = tokenizer.specials().iter().filter(|token| !known.contains(token));
        let lost: Vec<_> = lost.map(|token| format!("{:?}: {}", token.text, token.id)).collect();
        if !lost.is_empty() {
            missing.push(format!("special tokens {{{}}}", lost.join(", ")));
        }
    }
    if let Some(form) = tokenizer.splitter().normalizer().filter(|_| is_tiktoken || is_pair) {
        missing.push(format!("normalizer {}", form.name()));
    }
    missing
}

fn read_directory(path: &Path, pattern: Option<&str>) -> Result<Tokenizer> {
    let json = path.join("tokenizer.json");
    if json.is_file() {
        return read_json(&json, pattern);
    }
    for (vocab, merges) in MERGE_FILES.map(|(vocab, merges)| (path.join(vocab), path.join(merges))) {
        if vocab.is_file() && merges.is_file() {
            return read_merges(&vocab, &merges, pattern);
        }
    }
    Err(Error::Argument(format!(
        "{} has no tokenizer: expected tokenizer.json, or vocab.json with merges.txt",
        path.display()
    )))
}

/// tokenizer.json by its content; a plain map from token to id is vocab.json.
fn read_json(path: &Path, pattern: Option<&str>) -> Result<Tokenizer> {
    let bytes = read_bytes(path)?;
    let pair = MERGE_FILES.iter().find(|(vocab, _)| path.file_name().is_some_and(|name| name == *vocab));
    if let Some((_, merges)) = pair
        && !tokenizer_json::has_model(&bytes)
    {
        return read_merges(path, &path.with_file_name(merges), pattern);
    }
    let tokenizer = tokenizer_json::from_bytes(bytes, path)?.with_warm_words_beside(path);
    let Some(pattern) = pattern else { return Ok(tokenizer) };
    let (wanted, own) = (Splitter::new(pattern)?, tokenizer.splitter());
    if wanted.pattern() != own.pattern() {
        return Err(Error::Argument(format!(
            "{} has the pattern {:?}, got pattern={pattern:?}; hint: leave the pattern out",
            path.display(),
            own.pattern()
        )));
    }
    Ok(tokenizer)
}

fn read_tiktoken(path: &Path, pattern: Option<&str>) -> Result<Tokenizer> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let known = tiktoken::known(stem);
    let Some(pattern) = pattern.or(known.as_ref().map(|known| known.pattern)) else {
        return Err(Error::Argument(format!(
            "{} holds ranks but no pattern, expected one; hint: pass pattern=\"gpt2\", another name or a regex",
            path.display()
        )));
    };
    tiktoken::read(path, Splitter::asked_for(pattern)?, |n_ranks| {
        known.map_or(Vec::new(), |known| (known.specials)(n_ranks))
    })
}

fn read_merges(vocab: &Path, merges: &Path, pattern: Option<&str>) -> Result<Tokenizer> {
    merges::read(vocab, merges, Splitter::asked_for(pattern.unwrap_or("gpt2"))?)
}

/// The whole file, refused before it is read when it is larger than any tokenizer.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let n_bytes = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_FILE_BYTES);
    let mut bytes = Vec::with_capacity(n_bytes as usize + 1); // one more shows the end without growing
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(Error::Format { path: path.to_path_buf(), format: "tokenizer file", reason });
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    text(read_bytes(path)?, path)
}

fn text(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| Error::NotUtf8 { path: path.to_path_buf(), offset: error.utf8_error().valid_up_to() as u64 })
}

/// A result whose error has no path yet.
type Checked<T> = std::result::Result<T, String>;

/// The text of an error of a vocabulary, without what says that it is one.
fn reason(error: Error) -> String {
    match error {
        Error::Vocab(reason) => reason,
        other => other.to_string(),
    }
}

/// Turns what a reader found into [`Error::Format`]; vocabulary errors keep their text.
fn format_error(path: &Path, format: &'static str) -> impl Fn(String) -> Error {
    let path: PathBuf = path.to_path_buf();
    move |reason| Error::Format { path: path.clone(), format, reason }
}

/// Joins the parts of a file; the error names the file.
fn in_file<T>(result: Result<T>, path: &Path, format: &'static str) -> Result<T> {
    result.map_err(|error| match error {
        Error::Vocab(reason) => Error::Format { path: path.to_path_buf(), format, reason },
        other => other,
    })
}

/// The error of a tokenizer that a format cannot express.
fn inexpressible(format: &str, reason: &str) -> Error {
    Error::Argument(format!("this tokenizer cannot be written as {format}: {reason}; hint: write another format"))
}

fn special(text: &str, id: u32) -> SpecialToken {
    SpecialToken { text: text.to_owned(), id }
}
