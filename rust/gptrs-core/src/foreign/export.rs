//! A dataset as files of other programs.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{llmc, megatron};
use crate::control::Control;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::io::{self, AtomicFile, FolderLock};
use crate::shard::{Dtype, Format};

/// Tokens that are copied at once.
const AT_ONCE: u64 = 1 << 20;
/// Documents whose ends are read at once.
const ENDS_AT_ONCE: u64 = 8 << 10;

/// What [`export`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportOptions {
    /// Whose format: nanoGPT's, llm.c's or Megatron-LM's.
    pub format: Format,
    /// Most tokens in a file of llm.c, whose header counts them with 31 bits; the others have one file.
    pub tokens_per_file: u64,
    /// Leave loss bits behind, for which no format has a place; else a dataset that has them is refused.
    pub drop_loss_bits: bool,
}

/// Writes the tokens of `dataset` into the folder `out`; returns the files that were written.
///
/// nanoGPT: `tokens.bin`. llm.c: `tokens_000000.bin`, …. Megatron-LM: `tokens.bin` and `tokens.idx`, a sequence for each
/// document. Each file appears when it is whole; one of the same name is replaced, and what a reader would take for one
/// of these is refused.
pub fn export(dataset: &Dataset, out: &Path, options: &ExportOptions, control: &Control) -> Result<Vec<PathBuf>> {
    let limit = i32::MAX as u64;
    if !(1..=limit).contains(&options.tokens_per_file) {
        let got = options.tokens_per_file;
        return Err(Error::Argument(format!("tokens_per_file must be 1 to {limit}, got {got}")));
    }
    if dataset.has_loss_bits() && !options.drop_loss_bits {
        let message =
            "expected a dataset without loss bits, which these formats cannot hold: every token would be predicted";
        let hint =
            format!("hint: drop_loss_bits (--drop-loss-bits) exports the tokens of {} alone", dataset.dir().display());
        return Err(Error::Argument(format!("{message}; {hint}")));
    }
    io::create_dir(out)?;
    let real = |path: &Path| fs::canonicalize(path).map_err(Error::io("open", path));
    if real(out)? == real(dataset.dir())? {
        let message = format!("{} is the dataset's own folder", out.display());
        return Err(Error::Argument(format!("{message}; hint: choose another one")));
    }
    let _lock = FolderLock::take(out)?;
    control.begin("export tokens", dataset.n_tokens());
    match options.format {
        Format::NanoGpt => nanogpt(dataset, out, control),
        Format::LlmC => llm_c(dataset, out, options.tokens_per_file, control),
        Format::Megatron => megatron_lm(dataset, out, control),
        other => {
            let message = format!("expected the format nanogpt, llmc or megatron, got {}", other.name());
            Err(Error::Argument(message))
        }
    }
}

fn nanogpt(dataset: &Dataset, out: &Path, control: &Control) -> Result<Vec<PathBuf>> {
    let (path, index) = (out.join("tokens.bin"), out.join("tokens.idx"));
    if index.try_exists().map_err(Error::io("open", &index))? {
        return Err(of_another(&index, "has none"));
    }
    let mut file = AtomicFile::create(&path)?;
    copy(dataset, 0..dataset.n_tokens(), Ids::U16, &mut file, control)?;
    file.commit()?;
    Ok(vec![path])
}

fn llm_c(dataset: &Dataset, out: &Path, tokens_per_file: u64, control: &Control) -> Result<Vec<PathBuf>> {
    let dtype = Dtype::for_vocab(dataset.vocab_size());
    let ids = if dtype == Dtype::U16 { Ids::U16 } else { Ids::U32 };
    let n_files = dataset.n_tokens().div_ceil(tokens_per_file);
    refuse_others(out, n_files)?;
    let mut paths = Vec::new();
    for i in 0..n_files {
        let path = out.join(llmc::name(i));
        let start = i * tokens_per_file;
        let range = start..(start + tokens_per_file).min(dataset.n_tokens());
        let mut file = AtomicFile::create(&path)?;
        // At most `tokens_per_file`, which fits.
        file.write(&llmc::header(dtype, (range.end - range.start) as i32))?;
        copy(dataset, range, ids, &mut file, control)?;
        file.commit()?;
        paths.push(path);
    }
    Ok(paths)
}

/// Fails when the folder has files of a longer export: a reader would take them for this one's.
fn refuse_others(out: &Path, n_files: u64) -> Result<()> {
    for entry in fs::read_dir(out).map_err(Error::io("list", out))? {
        let path = entry.map_err(Error::io("list", out))?.path();
        if llmc::index_of(&path).is_some_and(|i| i >= n_files) {
            return Err(of_another(&path, &format!("has {n_files} files")));
        }
    }
    Ok(())
}

/// A reader would take the file at `path` for this export's.
fn of_another(path: &Path, what: &str) -> Error {
    let message = format!("{} is of another export, this one {what}", path.display());
    Error::Argument(format!("{message}; hint: choose another folder, or remove it"))
}

fn megatron_lm(dataset: &Dataset, out: &Path, control: &Control) -> Result<Vec<PathBuf>> {
    let paths = ["tokens.bin", "tokens.idx"].map(|name| out.join(name));
    let dtype = Dtype::for_vocab(dataset.vocab_size());
    let ids = if dtype == Dtype::U16 { Ids::U16 } else { Ids::I32 };
    let mut tokens = AtomicFile::create(&paths[0])?;
    copy(dataset, 0..dataset.n_tokens(), ids, &mut tokens, control)?;
    let index = write_index(dataset, &paths[1], dtype, control)?;
    tokens.commit()?;
    index.commit()?;
    Ok(paths.into())
}

/// The `.idx` at `path`, which has no name yet: of each document the length, then of each the place, then the borders.
fn write_index(dataset: &Dataset, path: &Path, dtype: Dtype, control: &Control) -> Result<AtomicFile> {
    let mut n_documents = 0u64;
    each_document(dataset, control, |_| {
        n_documents += 1;
        Ok(())
    })?;
    let mut file = Buffered { file: AtomicFile::create(path)?, buffer: Vec::new() };
    file.write(&megatron::header(dtype, n_documents))?;
    each_document(dataset, control, |document| {
        let (start, n) = (document.start, document.end - document.start);
        let n = i32::try_from(n).map_err(|_| {
            Error::Argument(format!(
                "the document at token {start} has {n} tokens, Megatron-LM counts them with 31 bits"
            ))
        })?;
        file.write(&n.to_le_bytes())
    })?;
    each_document(dataset, control, |document| file.write(&(document.start * dtype.size() as u64).to_le_bytes()))?;
    (0..=n_documents).try_for_each(|border| file.write(&border.to_le_bytes()))?;
    file.finish()
}

/// A file that is written a number at a time.
struct Buffered {
    file: AtomicFile,
    buffer: Vec<u8>,
}

impl Buffered {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < 64 << 10 {
            return Ok(());
        }
        self.file.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<AtomicFile> {
        self.file.write(&self.buffer)?;
        Ok(self.file)
    }
}

/// The tokens of each document in turn; what stands behind the last end is one more.
fn each_document(dataset: &Dataset, control: &Control, mut f: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
    let (mut first, mut start) = (0, 0);
    let mut ends = Vec::new();
    while first < dataset.n_documents() {
        control.check()?;
        ends.resize((dataset.n_documents() - first).min(ENDS_AT_ONCE) as usize, 0);
        dataset.document_ends(first, &mut ends)?;
        for &end in &ends {
            f(start..end)?;
            start = end;
        }
        first += ends.len() as u64;
    }
    if start < dataset.n_tokens() { f(start..dataset.n_tokens()) } else { Ok(()) }
}

/// How a format stores ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    U16,
    U32,
    I32,
}

impl Ids {
    const fn dtype(self) -> Dtype {
        match self {
            Self::U16 => Dtype::U16,
            Self::U32 | Self::I32 => Dtype::U32,
        }
    }

    /// Every id that is stored is below this.
    const fn limit(self) -> u64 {
        match self {
            Self::U16 => 1 << 16,
            Self::U32 => 1 << 32,
            Self::I32 => 1 << 31,
        }
    }
}

/// Appends the tokens of `range` to `file`.
fn copy(dataset: &Dataset, range: Range<u64>, ids: Ids, file: &mut AtomicFile, control: &Control) -> Result<()> {
    let (mut tokens, mut bytes) = (Vec::new(), Vec::new());
    for start in range.clone().step_by(AT_ONCE as usize) {
        control.check()?;
        tokens.resize((range.end - start).min(AT_ONCE) as usize, 0u32);
        dataset.read(start, &mut tokens)?;
        if let Some(i) = tokens.iter().position(|&id| u64::from(id) >= ids.limit()) {
            let (token, id, limit) = (start + i as u64, tokens[i], ids.limit());
            let message = format!("token {token} is {id}, the format stores ids below {limit}");
            return Err(Error::Argument(format!("{message}; hint: choose the format llmc or megatron")));
        }
        bytes.clear();
        match ids.dtype() {
            Dtype::U16 => bytes.extend(tokens.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            Dtype::U32 => bytes.extend(tokens.iter().flat_map(|&id| id.to_le_bytes())),
        }
        file.write(&bytes)?;
        control.advance(tokens.len() as u64);
    }
    Ok(())
}
