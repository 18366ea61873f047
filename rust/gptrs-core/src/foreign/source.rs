//! Which files there are, and what each says of itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::scan::Target;
use super::{ImportOptions, datatrove, llmc, megatron, nanogpt, olmo};
use crate::error::{Error, Result};
use crate::io;
use crate::shard::{Dtype, Format, check_payload_name, inside};

/// Endings of token files.
const ENDINGS: [&str; 3] = ["bin", "ds", "npy"];

/// A token file before the scan.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) dtype: Dtype,
    /// Length of the file.
    pub(super) len: u64,
    /// Where the tokens begin.
    pub(super) offset: u64,
    pub(super) n_tokens: u64,
    /// Ends of the documents in tokens, where a companion says them.
    pub(super) ends: Option<Vec<u64>>,
    /// The file, then the others that were read for it.
    pub(super) files: Vec<Stamp>,
}

/// A file and what changes when somebody writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) path: PathBuf,
    pub(super) len: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(Error::io("read the metadata of", path))?;
        Ok(Self { path: path.to_owned(), len: metadata.len(), modified: metadata.modified().ok() })
    }

    /// Fails when the file is no longer the one that was opened.
    pub(super) fn refuse_changed(&self) -> Result<()> {
        if Self::of(&self.path)? == *self {
            return Ok(());
        }
        let path = self.path.display();
        Err(Error::Argument(format!("{path} was changed while it was read; hint: import it when its writer has ended")))
    }
}

/// A file of which the first bytes were read.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) file: File,
    pub(super) len: u64,
    pub(super) start: Vec<u8>,
    pub(super) format: Format,
    pub(super) options: &'a ImportOptions,
    /// The narrowest type for the vocabulary.
    pub(super) narrowest: Dtype,
    pub(super) ends: Option<Vec<u64>>,
    files: Vec<Stamp>,
}

impl Opened<'_> {
    /// Notes a file that is read for this one; it is in the same folder.
    pub(super) fn companion(&mut self, path: &Path) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        inside(dir, &path.file_name().unwrap_or_default().to_string_lossy())?;
        self.files.push(Stamp::of(path)?);
        Ok(())
    }

    /// All of the file as tokens.
    pub(super) fn all_of(self, dtype: Dtype) -> Result<Source> {
        if !self.len.is_multiple_of(dtype.size() as u64) {
            let (len, size) = (self.len, dtype.size());
            let reason = format!("expected ids of {size} bytes, got {len} bytes; it may be cut, or of another dtype");
            return Err(malformed(self.format, &self.path, reason));
        }
        let n_tokens = self.len / dtype.size() as u64;
        self.of(dtype, 0, n_tokens)
    }

    /// The `n_tokens` from `offset` on.
    pub(super) fn of(self, dtype: Dtype, offset: u64, n_tokens: u64) -> Result<Source> {
        let Self { path, name, len, format, ends, files, .. } = self;
        if let Some(asked) = self.options.dtype.filter(|&asked| asked != dtype) {
            let (asked, got) = (asked.name(), dtype.name());
            return Err(malformed(format, &path, format!("expected ids of type {asked}, it has {got}")));
        }
        if n_tokens == 0 {
            return Err(malformed(format, &path, "it has no tokens".to_owned()));
        }
        if let Some(last) = ends.as_ref().map(|ends| ends.last().copied().unwrap_or(0)).filter(|&end| end != n_tokens) {
            let reason = format!("its documents end at token {last} of {n_tokens}; it may be cut");
            return Err(malformed(format, &path, reason));
        }
        Ok(Source { name, format, dtype, len, offset, n_tokens, ends, files })
    }
}

/// The folder of `paths` and the names of the token files that they are, in order; those of a folder are sorted.
pub(super) fn find(paths: &[PathBuf]) -> Result<(PathBuf, Vec<String>)> {
    let mut found: Option<PathBuf> = None;
    let mut names: Vec<String> = Vec::new();
    for path in paths {
        let is_dir = path.is_dir();
        let dir = if is_dir { path.clone() } else { parent(path).to_owned() };
        let real = fs::canonicalize(&dir).map_err(Error::io("open", &dir))?;
        if found.as_ref().is_some_and(|first| fs::canonicalize(first).ok() != Some(real)) {
            let (first, second) = (found.unwrap_or_default(), dir.display());
            let message = format!("expected files of one folder, got {} and {second}", first.display());
            return Err(Error::Argument(format!("{message}; hint: import each folder as a dataset of its own")));
        }
        found = Some(dir.clone());
        names.extend(if is_dir { search(&dir)? } else { vec![name_of(path)?] });
    }
    let dir = found.ok_or_else(|| Error::Argument("expected at least one token file, got none".to_owned()))?;
    if let Some(twice) = (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
        return Err(Error::Argument(format!("expected each file once, got {:?} twice", names[twice])));
    }
    Ok((dir, names))
}

fn name_of(path: &Path) -> Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    check_payload_name(&name).map_err(|reason| Error::Argument(format!("{}: {reason}", path.display())))?;
    Ok(name)
}

/// The token files of a folder, sorted. Files for training and for validation are no dataset together.
fn search(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) && path.is_file() {
            names.push(name_of(&path)?);
        }
    }
    names.sort_unstable();
    let folder = dir.display();
    if names.is_empty() {
        let message = format!("{folder} has no files that end in .bin, .ds or .npy");
        return Err(Error::Argument(format!("{message}; hint: name the files")));
    }
    let of = |kind: &str| names.iter().find(|name| name.contains(kind));
    if let (Some(train), Some(other)) = (of("train"), of("val").or(of("test"))) {
        let message = format!("{folder} holds {train} and {other}, which are no dataset together");
        return Err(Error::Argument(format!(
            "{message}; hint: name the files, and move the others to their own folder"
        )));
    }
    Ok(names)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens the files `names` of the folder; all are of one format and type.
pub(super) fn open_all(dir: &Path, names: &[String], target: &Target, options: &ImportOptions) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = Vec::new();
    for name in names {
        let source = open(dir, name, target, options)?;
        let is = |source: &Source| format!("{} of type {}", source.format.name(), source.dtype.name());
        if let Some(first) = sources.first().filter(|first| is(first) != is(&source)) {
            let message = format!("{} is {}, {} is {}", first.name, is(first), source.name, is(&source));
            return Err(Error::Argument(format!("{message}; hint: a dataset has one format, so move some files away")));
        }
        sources.push(source);
    }
    Ok(sources)
}

fn open(dir: &Path, name: &str, target: &Target, options: &ImportOptions) -> Result<Source> {
    let path = inside(dir, name)?;
    let (file, len) = io::open_regular(&path)?;
    let mut start = vec![0; len.min(16) as usize];
    io::read_exact_at(&file, 0, &mut start, &path)?;
    let format = match options.format {
        Some(format) => format,
        None => guess(&path, &start)?,
    };
    let files = vec![Stamp::of(&path)?];
    let (name, narrowest) = (name.to_owned(), Dtype::for_vocab(target.vocab_size()));
    let opened = Opened { path, name, file, len, start, format, options, narrowest, ends: None, files };
    let path = opened.path.clone();
    let source = match format {
        Format::NanoGpt => nanogpt::open(opened),
        Format::LlmC => llmc::open(opened),
        Format::Megatron => megatron::open(opened),
        Format::Datatrove => datatrove::open(opened),
        Format::Olmo => olmo::open(opened),
    }?;
    if !source.dtype.holds(target.vocab_size()) {
        let (dtype, vocab_size) = (source.dtype.name(), target.vocab_size());
        let message = format!("ids of type {dtype} cannot be those of a tokenizer of {vocab_size} ids");
        return Err(malformed(format, &path, format!("{message}; hint: name the dtype, or the right tokenizer")));
    }
    Ok(source)
}

/// The format that the ending and the first bytes of a file say.
fn guess(path: &Path, start: &[u8]) -> Result<Format> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("bin") if megatron::is_beside(path) => Ok(Format::Megatron),
        Some("bin") if llmc::is_magic(start) => Ok(Format::LlmC),
        Some("bin") => Ok(Format::NanoGpt),
        Some("ds") => Ok(Format::Datatrove),
        Some("npy") => Ok(Format::Olmo),
        _ => {
            let message = format!("expected a token file that ends in .bin, .ds or .npy, got {}", path.display());
            Err(Error::Argument(format!("{message}; hint: name its format")))
        }
    }
}

pub(super) fn malformed(format: Format, path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_owned(), format: format.file(), reason }
}
