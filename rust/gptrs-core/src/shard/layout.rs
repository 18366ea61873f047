//! Where everything stands in a shard and in an index; the header and the trailer as bytes.

use std::ops::Range;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::Dtype;
use super::area::n_blocks;
use crate::error::{Error, Result};

/// Bytes of the header: tokens start here.
pub const HEADER: usize = 4096;
/// Bytes of the trailer, the last of the file.
pub const TRAILER: usize = 64;
/// Bytes behind the header that share a checksum.
pub const BLOCK: usize = 64 << 10;

const END_MAGIC: &[u8; 8] = b"GPTRSEND";
const VERSION: u32 = 1;
const NO_EOT: u64 = u64::MAX;
/// Where a shard's header has the offset of the loss bits, or 0.
const LOSS_BITS: usize = 112;

/// What all shards of a dataset have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// How a token is stored.
    pub dtype: Dtype,
    /// Ids are below this.
    pub vocab_size: u64,
    /// The id that ends a document, if the tokenizer has one.
    pub eot_id: Option<u32>,
    /// The tokenizer's digest.
    pub tokenizer: [u8; 32],
    /// Whether there is a bit for each token that says whether it is to be predicted.
    pub has_loss_bits: bool,
}

/// What a shard's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it shares with the dataset's other shards.
    pub spec: Spec,
    /// Number of tokens.
    pub n_tokens: u64,
    /// Number of documents that end here.
    pub n_documents: u64,
    /// UTF-8 bytes of the texts of those documents.
    pub n_bytes: u64,
}

/// Which of the two files with such a header it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tokens and what belongs to them.
    Shard,
    /// What belongs to tokens in another file.
    Index,
}

impl Kind {
    /// The kind of a file that starts with these bytes.
    pub(super) fn of(bytes: &[u8; HEADER]) -> Self {
        if &bytes[..8] == Self::Index.magic() { Self::Index } else { Self::Shard }
    }

    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Shard => b"GPTRSTOK",
            Self::Index => b"GPTRSIDX",
        }
    }
}

/// Offsets of the sections, a function of the counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) tokens_end: u64,
    pub(super) ends: u64,
    /// The loss bits; without them the length is 0.
    pub(super) bits: Range<u64>,
    pub(super) digests: u64,
    /// Blocks of tokens in another file; their digests come first.
    pub(super) n_token_blocks: u64,
    pub(super) trailer: u64,
    pub(super) total: u64,
}

impl Layout {
    /// The layout for these counts; `None` when a length exceeds 64 bits, and for an index with loss bits.
    pub(super) fn new(kind: Kind, spec: &Spec, n_tokens: u64, n_documents: u64) -> Option<Self> {
        if kind == Kind::Index && spec.has_loss_bits {
            return None;
        }
        let tokens_len = n_tokens.checked_mul(spec.dtype.size() as u64)?;
        let (here, n_token_blocks) = match kind {
            Kind::Shard => (tokens_len, 0),
            Kind::Index => (0, n_blocks(tokens_len)),
        };
        let tokens_end = here.checked_add(HEADER as u64)?;
        let ends = tokens_end.checked_next_multiple_of(64)?;
        let bits_start = n_documents.checked_mul(8)?.checked_add(ends)?.checked_next_multiple_of(64)?;
        let bits_len = if spec.has_loss_bits { n_tokens.div_ceil(8) } else { 0 };
        let bits = bits_start..bits_start.checked_add(bits_len)?;
        let digests = bits.end.checked_next_multiple_of(64)?;
        let n_blocks = n_blocks(digests - HEADER as u64).checked_add(n_token_blocks)?;
        let trailer = n_blocks.checked_mul(8)?.checked_add(digests)?.checked_next_multiple_of(64)?;
        let total = trailer.checked_add(TRAILER as u64)?;
        Some(Self { tokens_end, ends, bits, digests, n_token_blocks, trailer, total })
    }

    /// The digests behind the blocks, without the zeros that follow them.
    pub(super) fn digests_len(&self) -> u64 {
        8 * (self.n_token_blocks + n_blocks(self.digests - HEADER as u64))
    }
}

impl Header {
    /// The header of a shard as stored.
    pub(super) fn to_bytes(self, layout: &Layout) -> [u8; HEADER] {
        let mut bytes = self.fields(Kind::Shard, layout);
        if self.spec.has_loss_bits {
            bytes[LOSS_BITS..LOSS_BITS + 8].copy_from_slice(&layout.bits.start.to_le_bytes());
        }
        let digest = xxh3_64(&bytes[..HEADER - 8]);
        bytes[HEADER - 8..].copy_from_slice(&digest.to_le_bytes());
        bytes
    }

    /// What the headers of both kinds have, without the digest.
    pub(super) fn fields(self, kind: Kind, layout: &Layout) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(kind.magic());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.spec.dtype.size() as u32).to_le_bytes());
        let eot_id = self.spec.eot_id.map_or(NO_EOT, u64::from);
        let numbers = [self.n_tokens, self.n_documents, self.n_bytes, self.spec.vocab_size, eot_id];
        for (i, number) in numbers.into_iter().chain([layout.ends, layout.digests, layout.trailer]).enumerate() {
            bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        bytes[80..112].copy_from_slice(&self.spec.tokenizer);
        bytes
    }

    /// Reads a shard's header; `len` is the length of its file, which the counts must explain to the byte.
    pub(super) fn parse(bytes: &[u8; HEADER], len: u64, path: &Path) -> Result<(Self, Layout)> {
        let (header, layout) = Self::parse_fields(Kind::Shard, bytes, len, path)?;
        let Spec { dtype, vocab_size, .. } = header.spec;
        if Dtype::for_vocab(vocab_size) != dtype || header.to_bytes(&layout) != *bytes {
            return Err(malformed(path, "its header contradicts itself".to_owned()));
        }
        Ok((header, layout))
    }

    /// Reads what the headers of both kinds have.
    pub(super) fn parse_fields(kind: Kind, bytes: &[u8; HEADER], len: u64, path: &Path) -> Result<(Self, Layout)> {
        if &bytes[..8] != kind.magic() {
            return Err(malformed(path, format!("expected the magic GPTRSTOK at byte 0, got {:?}", &bytes[..8])));
        }
        check(path, "header", u64_at(bytes, HEADER - 8), xxh3_64(&bytes[..HEADER - 8]))?;
        let version = u64_at(bytes, 8) & 0xFFFF_FFFF;
        if version != u64::from(VERSION) {
            return Err(malformed(path, format!("expected version {VERSION} at byte 8, got {version}")));
        }
        let dtype = match u64_at(bytes, 8) >> 32 {
            2 => Dtype::U16,
            4 => Dtype::U32,
            got => return Err(malformed(path, format!("expected 2 or 4 bytes a token at byte 12, got {got}"))),
        };
        let [n_tokens, n_documents, n_bytes, vocab_size, eot_id, ..] = numbers(bytes);
        let eot_id = match eot_id {
            NO_EOT => None,
            id if id < vocab_size.min(1 << 32) => Some(id as u32),
            id => return Err(malformed(path, format!("expected an end-of-text id below {vocab_size}, got {id}"))),
        };
        let mut tokenizer = [0; 32];
        tokenizer.copy_from_slice(&bytes[80..112]);
        // In an index other fields stand there.
        let has_loss_bits = kind == Kind::Shard && u64_at(bytes, LOSS_BITS) != 0;
        let spec = Spec { dtype, vocab_size, eot_id, tokenizer, has_loss_bits };
        let layout = Layout::new(kind, &spec, n_tokens, n_documents).filter(|layout| layout.total == len);
        let Some(layout) = layout else {
            let counts = format!("{n_tokens} tokens and {n_documents} documents");
            return Err(malformed(path, format!("its length of {len} bytes does not fit its {counts}; it may be cut")));
        };
        if vocab_size > 1 << 32 {
            return Err(malformed(path, format!("expected a vocabulary of at most 2^32 ids, got {vocab_size}")));
        }
        Ok((Self { spec, n_tokens, n_documents, n_bytes }, layout))
    }
}

/// The trailer as stored.
pub(crate) fn trailer(total: u64, blake3: &[u8; 32]) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..8].copy_from_slice(END_MAGIC);
    bytes[8..16].copy_from_slice(&total.to_le_bytes());
    bytes[16..48].copy_from_slice(blake3);
    let digest = xxh3_64(&bytes[..TRAILER - 8]);
    bytes[TRAILER - 8..].copy_from_slice(&digest.to_le_bytes());
    bytes
}

/// The digest that a trailer of a file of `len` bytes holds.
pub(super) fn parse_trailer(bytes: &[u8; TRAILER], len: u64, path: &Path) -> Result<[u8; 32]> {
    let mut blake3 = [0; 32];
    blake3.copy_from_slice(&bytes[16..48]);
    if trailer(len, &blake3) != *bytes {
        return Err(malformed(path, format!("its last {TRAILER} bytes are no trailer of a file of {len} bytes")));
    }
    Ok(blake3)
}

/// Fails when a stored digest is not the computed one.
pub(super) fn check(path: &Path, what: impl Into<String>, expected: u64, got: u64) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let [expected, got] = [expected, got].map(|digest| format!("{digest:016x}"));
    Err(Error::Digest { path: path.to_owned(), what: what.into(), expected, got })
}

pub(super) fn malformed(path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_owned(), format: "shard", reason }
}

fn numbers(bytes: &[u8]) -> [u64; 8] {
    std::array::from_fn(|i| u64_at(bytes, 16 + 8 * i))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
