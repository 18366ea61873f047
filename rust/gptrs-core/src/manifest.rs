//! `manifest.json`: what a dataset is made of.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::corpus::Selection;
use crate::error::{Error, Result};
use crate::sealed::{self, from_hex};
use crate::shard::{Dtype, Header, Spec};

/// The manifest's file name.
pub const FILE: &str = "manifest.json";

/// The version that this crate writes and reads.
pub const VERSION: u32 = 1;

/// What the bytes of a dataset follow from: the same recipe gives the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Digest of the tokenizer, in hexadecimal digits.
    pub tokenizer: String,
    /// Ids are below this.
    pub vocab_size: u64,
    /// How a token is stored.
    pub dtype: Dtype,
    /// The tokenizer's end-of-text id, if it has one.
    pub eot_id: Option<u32>,
    /// Whether that id was put behind each document.
    pub append_eot: bool,
    /// The field of JSON lines that held the text, or the template of several.
    pub text_field: String,
    /// The fields whose tokens are to be predicted; with any, shards have loss bits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loss_fields: Vec<String>,
    /// Tokens of each shard but the last.
    pub shard_tokens: u64,
    /// Which documents the inputs have, and which of them were left out.
    #[serde(flatten)]
    pub selection: Selection,
    /// The files that were read, in order.
    pub inputs: Vec<Source>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name without folders.
    pub name: String,
    /// Its length.
    pub n_bytes: u64,
    /// Digest of its bytes (as `b3sum` prints it).
    pub blake3: String,
}

/// A shard of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its file name in the dataset's folder.
    pub name: String,
    /// Number of tokens.
    pub n_tokens: u64,
    /// Number of documents that end here.
    pub n_documents: u64,
    /// UTF-8 bytes of the texts of those documents.
    pub n_bytes: u64,
    /// Digest of the file, as in its trailer.
    pub blake3: String,
}

/// Documents that were read and are not in the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeftOut {
    /// Those of fewer bytes than the shortest.
    pub short: u64,
    /// Those of more bytes than the longest.
    pub long: u64,
    /// Those equal to an earlier one.
    pub duplicate: u64,
}

/// The content of `manifest.json`, without its checksum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub version: u32,
    /// What the shards follow from.
    #[serde(flatten)]
    pub recipe: Recipe,
    /// Number of tokens.
    pub n_tokens: u64,
    /// Number of documents.
    pub n_documents: u64,
    /// UTF-8 bytes of their texts.
    pub n_bytes: u64,
    /// How often the texts of special tokens occur in the documents, where they are ordinary text; 0 is left out.
    pub special_texts: BTreeMap<String, u64>,
    /// How many documents were left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub left_out: LeftOut,
    /// How many sequences that were not UTF-8 became U+FFFD, in all that was read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub replaced: u64,
    /// What the text is called, for a mixture of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its share in such a mixture, in relation to those of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The shards, in order.
    pub shards: Vec<Entry>,
    /// Identity of the tokens: BLAKE3 of the shards' digests (32 bytes each), in order.
    pub fingerprint: String,
}

impl Entry {
    /// The entry of a written shard.
    pub fn new(name: String, header: &Header, blake3: &[u8; 32]) -> Self {
        let Header { n_tokens, n_documents, n_bytes, .. } = *header;
        Self { name, n_tokens, n_documents, n_bytes, blake3: sealed::hex(blake3) }
    }
}

impl Manifest {
    /// The manifest of finished shards.
    pub fn new(recipe: Recipe, shards: Vec<Entry>, special_texts: BTreeMap<String, u64>) -> Result<Self> {
        let ([n_tokens, n_documents, n_bytes], fingerprint) = totals(&shards).map_err(Error::Argument)?;
        let (left_out, replaced, source, weight) = (LeftOut::default(), 0, None, None);
        let version = VERSION;
        Ok(Self {
            version,
            recipe,
            n_tokens,
            n_documents,
            n_bytes,
            special_texts,
            left_out,
            replaced,
            source,
            weight,
            shards,
            fingerprint,
        })
    }

    /// Reads the manifest of the dataset in `dir`; `None` when there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let manifest: Option<Self> = sealed::read(&path, "manifest", VERSION)?;
        if let Some(manifest) = &manifest {
            manifest.check().map_err(|reason| Error::Format { path, format: "manifest", reason })?;
        }
        Ok(manifest)
    }

    /// Writes it as the manifest of the dataset in `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        sealed::write(&dir.join(FILE), self)
    }

    /// What the shards have in common.
    pub fn spec(&self) -> Result<Spec> {
        self.recipe.spec().map_err(Error::Argument)
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.recipe.spec()?;
        for entry in &self.shards {
            check_name(&entry.name)?;
        }
        self.recipe.selection.check().map_err(|error| error.to_string())?;
        check_label(self.source.as_deref(), self.weight).map_err(|error| error.to_string())?;
        let (totals, fingerprint) = totals(&self.shards)?;
        if totals == [self.n_tokens, self.n_documents, self.n_bytes] && fingerprint == self.fingerprint {
            return Ok(());
        }
        Err(format!(
            "its totals or its fingerprint {} do not follow from its shards ({} tokens, fingerprint {fingerprint})",
            self.fingerprint, totals[0]
        ))
    }
}

impl Recipe {
    /// What the shards have in common, or what is wrong with it.
    pub(crate) fn spec(&self) -> std::result::Result<Spec, String> {
        let (vocab_size, dtype) = (self.vocab_size, self.dtype);
        let tokenizer = from_hex(&self.tokenizer).ok_or_else(|| {
            format!("expected 64 hexadecimal digits as the tokenizer's digest, got {:?}", self.tokenizer)
        })?;
        if vocab_size == 0 || vocab_size > 1 << 32 || !dtype.holds(vocab_size) {
            return Err(format!("a vocabulary of {vocab_size} ids is not stored as {}", dtype.name()));
        }
        if let Some(id) = self.eot_id.filter(|&id| u64::from(id) >= vocab_size) {
            return Err(format!("expected an end-of-text id below {vocab_size}, got {id}"));
        }
        let has_loss_bits = !self.loss_fields.is_empty();
        Ok(Spec { dtype, vocab_size, eot_id: self.eot_id, tokenizer, has_loss_bits })
    }
}

/// Fails unless the name and the weight of a source can be used.
pub(crate) fn check_label(source: Option<&str>, weight: Option<f64>) -> Result<()> {
    if let Some(weight) = weight.filter(|weight| !(weight.is_finite() && *weight > 0.0)) {
        return Err(Error::Argument(format!("weight must be a number above 0, got {weight}")));
    }
    match source {
        Some("") => Err(Error::Argument("expected a name of the source, got an empty one".to_owned())),
        _ => Ok(()),
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Tokens, documents and bytes of the shards, and the digest of their digests.
fn totals(shards: &[Entry]) -> std::result::Result<([u64; 3], String), String> {
    let mut hasher = blake3::Hasher::new();
    let mut totals = [0u64; 3];
    for shard in shards {
        for (total, count) in totals.iter_mut().zip([shard.n_tokens, shard.n_documents, shard.n_bytes]) {
            *total = total.checked_add(count).ok_or("the shards' counts exceed 64 bits")?;
        }
        let digest = from_hex(&shard.blake3);
        hasher.update(&digest.ok_or("expected 64 lower-case hexadecimal digits as the digest of each shard")?);
    }
    Ok((totals, hasher.finalize().to_string()))
}

/// Shards stand in the manifest's folder: a name that could lead elsewhere is refused.
pub(crate) fn check_name(name: &str) -> std::result::Result<(), String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=200).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!("the shard name {name:?} is not 1 to 200 letters, digits, '.', '_' and '-', the first not '.'"))
}
