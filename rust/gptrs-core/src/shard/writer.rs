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
        if self.header.spec.has_loss_bits {
            return Err(Error::Argument("expected a loss bit for each token, got none".to_owned()));
        }
        self.append(ids)
    }

    /// Appends tokens to a shard with loss bits: for each, whether it is to be predicted.
    pub fn push_with_bits(&mut self, ids: &[u32], bits: &[bool]) -> Result<()> {
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
    pub(crate) fn push_any(&mut self, ids: &[u32], bits: Option<&[bool]>) -> Result<()> {
        match bits {
            Some(bits) if self.header.spec.has_loss_bits => self.push_with_bits(ids, bits),
            _ => self.push(ids),
        }
    }

    fn append(&mut self, ids: &[u32]) -> Result<()> {
        let limit = self.header.spec.vocab_size;
        // By value the maximum compiles to a vector loop, of references to a call for each; the search only runs for the
        // message.
        if ids.iter().copied().max().is_some_and(|id| u64::from(id) >= limit) {
            let position = ids.iter().position(|&id| u64::from(id) >= limit).unwrap_or(0);
            return Err(Error::UnknownId { id: ids[position], position, vocab_size: limit as usize });
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

/// Writes `ids`, which fit, as stored.
fn narrow(dtype: Dtype, ids: &[u32], out: &mut [u8]) {
    match dtype {
        Dtype::U16 => {
            for (bytes, &id) in out.as_chunks_mut().0.iter_mut().zip(ids) {
                *bytes = (id as u16).to_le_bytes();
            }
        }
        Dtype::U32 => {
            for (bytes, &id) in out.as_chunks_mut().0.iter_mut().zip(ids) {
                *bytes = id.to_le_bytes();
            }
        }
    }
}
