//! Writes a shard in one pass; it appears under its name when it is whole.

use std::path::Path;

use super::Dtype;
use super::blocks::BlockWriter;
use super::layout::{Header, Kind, Layout, Spec, malformed};
use crate::error::{Error, Result};

/// A shard under way. Memory: one block, 8 bytes for each document and for each block, and the loss bits.
#[derive(Debug)]
pub struct ShardWriter {
    blocks: BlockWriter,
    header: Header,
    ends: Vec<u64>,
    /// A bit for each token, the last byte begun; none without loss bits.
    bits: Vec<u8>,
}

impl ShardWriter {
    /// Starts the shard at `path`.
    pub fn create(path: &Path, spec: Spec) -> Result<Self> {
        if spec.vocab_size > 1 << 32 || Dtype::for_vocab(spec.vocab_size) != spec.dtype {
            let (vocab_size, dtype) = (spec.vocab_size, spec.dtype.name());
            return Err(Error::Argument(format!("a vocabulary of {vocab_size} ids is not stored as {dtype}")));
        }
        let header = Header { spec, n_tokens: 0, n_documents: 0, n_bytes: 0 };
        Ok(Self { blocks: BlockWriter::create(path)?, header, ends: Vec::new(), bits: Vec::new() })
    }

    /// The counts so far.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Appends tokens to a shard without loss bits; an id outside the vocabulary is refused and nothing is written.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        self.push_without_bits(ids)
    }

    fn push_without_bits<I: Copy + Into<u32>>(&mut self, ids: &[I]) -> Result<()> {
        if self.header.spec.has_loss_bits {
            return Err(Error::Argument("expected a loss bit for each token, got none".to_owned()));
        }
        self.append(ids)
    }

    /// Appends tokens to a shard with loss bits: for each, whether it is to be predicted.
    pub fn push_with_bits(&mut self, ids: &[u32], bits: &[bool]) -> Result<()> {
        self.push_all(ids, bits)
    }

    fn push_all<I: Copy + Into<u32>>(&mut self, ids: &[I], bits: &[bool]) -> Result<()> {
        if !self.header.spec.has_loss_bits || bits.len() != ids.len() {
            let (n, got) = (if self.header.spec.has_loss_bits { ids.len() } else { 0 }, bits.len());
            return Err(Error::Argument(format!("expected {n} loss bits for {} tokens, got {got}", ids.len())));
        }
        let start = self.header.n_tokens;
        self.append(ids)?;
        self.bits.resize(self.header.n_tokens.div_ceil(8) as usize, 0);
        for (at, &bit) in (start..).zip(bits) {
            self.bits[(at / 8) as usize] |= u8::from(bit) << (at % 8);
        }
        Ok(())
    }

    /// Appends tokens, with bits where there are any.
    pub(crate) fn push_any<I: Copy + Into<u32>>(&mut self, ids: &[I], bits: Option<&[bool]>) -> Result<()> {
        match bits {
            Some(bits) if self.header.spec.has_loss_bits => self.push_all(ids, bits),
            _ => self.push_without_bits(ids),
        }
    }

    fn append<I: Copy + Into<u32>>(&mut self, ids: &[I]) -> Result<()> {
        let limit = self.header.spec.vocab_size;
        let is_unknown = |id: &I| u64::from((*id).into()) >= limit;
        if has_unknown(ids, limit) {
            let position = ids.iter().position(is_unknown).unwrap_or(0);
            return Err(Error::UnknownId { id: ids[position].into(), position, vocab_size: limit as usize });
        }
        let dtype = self.header.spec.dtype;
        let mut rest = ids;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.blocks.room() / dtype.size()));
            self.blocks.append_with(now.len() * dtype.size(), |bytes| narrow(dtype, now, bytes))?;
            rest = later;
        }
        self.header.n_tokens += ids.len() as u64;
        Ok(())
    }

    /// Ends a document here; `n_bytes` is the length of its whole text.
    pub fn end_document(&mut self, n_bytes: u64) {
        self.ends.push(self.header.n_tokens);
        self.header.n_documents += 1;
        self.header.n_bytes += n_bytes;
    }

    /// Writes what stands behind the tokens, then the header, and gives the file its name. Returns its counts and
    /// BLAKE3 digest.
    pub fn finish(self) -> Result<(Header, [u8; 32])> {
        let layout = Layout::new(Kind::Shard, &self.header.spec, self.header.n_tokens, self.header.n_documents)
            .ok_or_else(|| malformed(self.blocks.path(), "its length exceeds 64 bits".to_owned()))?;
        let Self { mut blocks, header, ends, bits } = self;
        blocks.pad(layout.ends - layout.tokens_end)?;
        ends.iter().try_for_each(|end| blocks.append(&end.to_le_bytes()))?;
        blocks.pad(layout.bits.start - layout.ends - 8 * header.n_documents)?;
        blocks.append(&bits)?;
        blocks.pad(layout.digests - layout.bits.end)?;
        let table_len = layout.trailer - layout.digests;
        let (file, digest) = blocks.seal(&header.to_bytes(&layout), table_len, layout.total)?;
        file.commit()?;
        Ok((header, digest))
    }
}

/// Whether an id is not below `limit`. Without a way out the loop compiles to vectors; a maximum of two-byte ids did not,
/// and took a tenth of the time of `prepare`.
fn has_unknown<I: Copy + Into<u32>>(ids: &[I], limit: u64) -> bool {
    let Ok(limit) = u32::try_from(limit) else { return false };
    ids.iter().fold(false, |any, &id| any | (id.into() >= limit))
}

/// Writes `ids`, which fit, as stored.
fn narrow<I: Copy + Into<u32>>(dtype: Dtype, ids: &[I], out: &mut [u8]) {
    match dtype {
        Dtype::U16 => {
            for (bytes, &id) in out.as_chunks_mut().0.iter_mut().zip(ids) {
                *bytes = (id.into() as u16).to_le_bytes();
            }
        }
        Dtype::U32 => {
            for (bytes, &id) in out.as_chunks_mut().0.iter_mut().zip(ids) {
                *bytes = id.into().to_le_bytes();
            }
        }
    }
}
