//! Token files of other programs: read where they are, and written.
//!
//! ```text
//! files ─ header, companions ─▶ Source ─ scan (threads): ids, document ends, digests ─▶ NAME.gti each ─▶ manifest
//! dataset ─ export ─▶ .bin, .idx
//! ```
//! An imported dataset is the folder that holds the files: beside each stands an index with all that a shard has but the
//! tokens, which are not copied. What reads datasets reads it, and finds a file that was changed.

mod column;
mod datatrove;
mod export;
mod llmc;
mod megatron;
mod nanogpt;
mod olmo;
mod scan;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::control::Control;
use crate::corpus::Selection;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::io::{self, FolderLock};
use crate::manifest::{Entry, Manifest, Recipe};
use crate::sealed::hex;
use crate::shard::{Dtype, Format, Header, INDEX_ENDING, Payload, Shard, Spec, write_index};
use crate::tokenizer::Tokenizer;

pub use export::{ExportOptions, export};
use scan::{Scanned, Target};
use source::Source;

/// How [`import`] reads files that do not say it themselves.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Whose format it is; otherwise what ending and first bytes say.
    pub format: Option<Format>,
    /// How ids are stored; otherwise what the format or the size of the vocabulary says.
    pub dtype: Option<Dtype>,
    /// Whether the end-of-text id stands before each document, not behind it.
    pub eot_first: bool,
    /// Worker threads; 0 means all cores.
    pub threads: usize,
}

/// Makes the folder of `paths` a dataset: indexes and a manifest beside the files, which stay as they are.
///
/// A path is a token file or a folder to search, all of one folder and one format. The ids are those of `tokenizer`; one
/// that it does not have is refused. The same call again returns the dataset if the files are still the same.
pub fn import(paths: &[PathBuf], tokenizer: &Tokenizer, options: &ImportOptions, control: &Control) -> Result<Dataset> {
    let target = Target::new(tokenizer);
    let (dir, names) = source::find(paths)?;
    let _lock = FolderLock::take(&dir)?;
    io::remove_stale(&dir)?;
    let sources = source::open_all(&dir, &names, &target, options)?;
    let scanned = scan::scan(&sources, &target, options, control)?;
    let first = &sources[0];
    let spec = target.spec(first.dtype);
    let recipe = Recipe {
        tokenizer: hex(&spec.tokenizer),
        vocab_size: spec.vocab_size,
        dtype: spec.dtype,
        eot_id: spec.eot_id,
        append_eot: !options.eot_first,
        text_field: String::new(),
        loss_fields: Vec::new(),
        shard_tokens: 0,
        selection: Selection::default(),
        inputs: scanned.inputs.clone(),
    };
    if let Some(manifest) = Manifest::read(&dir)? {
        refuse_other(&dir, &manifest, &recipe, first.format)?;
        return Dataset::open(&dir);
    }
    let entries = write_indexes(&dir, spec, &sources, scanned)?;
    Manifest::new(recipe, entries, BTreeMap::new())?.write(&dir)?;
    Dataset::open(&dir)
}

/// Writes the index of each source.
fn write_indexes(dir: &Path, spec: Spec, sources: &[Source], scanned: Scanned) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (source, file) in sources.iter().zip(scanned.files) {
        let Source { format, len, offset, n_tokens, .. } = *source;
        let n_documents = file.ends.len() as u64;
        let header = Header { spec, n_tokens, n_documents, n_bytes: file.n_bytes };
        let payload = Payload { format, name: source.name.clone(), len, offset, blake3: file.blake3 };
        let name = format!("{}{INDEX_ENDING}", source.name);
        let digest = write_index(&dir.join(&name), &header, &payload, &file.ends, file.blocks)?;
        entries.push(Entry::new(name, &header, &digest));
    }
    Ok(entries)
}

/// Fails unless the folder's dataset is what this call would make.
fn refuse_other(dir: &Path, manifest: &Manifest, recipe: &Recipe, format: Format) -> Result<()> {
    let found = &manifest.recipe;
    let format_of = |entry: &Entry| Shard::open(&dir.join(&entry.name)).ok()?.payload().map(|payload| payload.format);
    let same = [
        ("tokenizer", (&found.tokenizer, found.vocab_size) == (&recipe.tokenizer, recipe.vocab_size)),
        ("files", found.inputs == recipe.inputs),
        ("dtype", found.dtype == recipe.dtype),
        ("eot_at", found.append_eot == recipe.append_eot),
        ("format", manifest.shards.first().and_then(format_of) == Some(format)),
    ];
    let names: Vec<_> = same.into_iter().filter(|&(_, is_same)| !is_same).map(|(name, _)| name).collect();
    if names.is_empty() && found == recipe {
        return Ok(());
    }
    let (dir, names) = (dir.display(), names.join(", "));
    Err(Error::Argument(format!(
        "{dir} holds a dataset made with other {names}; hint: remove its manifest.json to import the files again"
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::io::sweep::{WRITE_FAULTS, each_change, temporary_dir};
    use crate::{SpecialToken, Splitter, Vocab};

    fn tokenizer() -> Tokenizer {
        let eot = SpecialToken { text: "<|endoftext|>".to_owned(), id: 257 };
        Tokenizer::new(Vocab::from_merges(&[(97, 98)]).unwrap(), Splitter::new("gpt2").unwrap(), vec![eot]).unwrap()
    }

    /// Names and bytes of all files but the lock, which stays.
    fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let paths =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with(".lock"));
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
    }

    #[test]
    fn a_run_that_fails_or_dies_at_any_change_of_a_file_is_made_good_by_the_next() {
        let ids: Vec<u8> = [1u16, 2, 257, 3, 4, 257, 5].into_iter().flat_map(u16::to_le_bytes).collect();
        let (tokenizer, options, control) = (tokenizer(), ImportOptions::default(), Control::new());
        let dir = temporary_dir();
        let [data, out] = ["data", "data/out"].map(|name| dir.path().join(name));
        let run = || {
            let dataset = import(std::slice::from_ref(&data), &tokenizer, &options, &control)?;
            let options = ExportOptions { format: Format::Megatron, tokens_per_file: 1, drop_loss_bits: false };
            export(&dataset, &out, &options, &control)?;
            Ok(dataset)
        };
        let start = || {
            let _ = fs::remove_dir_all(&data);
            fs::create_dir_all(&out).unwrap();
            for name in ["a.bin", "b.bin"] {
                fs::write(data.join(name), &ids).unwrap();
            }
        };
        let mut whole = None;
        let check = |_: bool, what: &str| {
            run().unwrap().verify(1, &control).unwrap();
            let exported = content(&out);
            fs::remove_dir_all(&out).unwrap();
            let now = (content(&data), exported);
            assert!(whole.get_or_insert_with(|| now.clone()) == &now, "{what}");
        };
        let n = each_change(&WRITE_FAULTS, start, || run().map(drop), check);
        assert!(n > 20, "two indexes, a manifest and two files are more changes than {n}");
    }
}
