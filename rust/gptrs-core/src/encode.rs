//! Text to ids: scan → key → probe → emit.
//!
//! Pieces are collected a few hundred at a time, so that the probes of a batch, whose order is known, overlap in the
//! processor; the batch then goes piece by piece through cache, whole-piece lookup and merging.

use crate::cache::{Buffers, Cache, INLINE, LONGEST, PACKED, packed_key, unpack};
use crate::control::Control;
use crate::error::Result;
use crate::split::Splitter;
use crate::vocab::Vocab;

/// Pieces collected before they are looked up.
const BATCH: usize = 256;

/// Top byte of a batch entry that is a place in the text instead of a key.
const PLACE: u128 = 0xFF << 120;

/// Bytes encoded between two reports of progress.
const REPORT_EVERY: usize = 1 << 16;

/// Where ids go.
pub(crate) trait Sink {
    fn push(&mut self, ids: &[u32]);
}

impl Sink for Vec<u32> {
    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }
}

impl Sink for Vec<u16> {
    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.extend(ids.iter().map(|&id| id as u16));
    }
}

/// Counts ids without keeping them.
#[derive(Debug, Default)]
pub(crate) struct Count(pub(crate) usize);

impl Sink for Count {
    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.0 += ids.len();
    }
}

/// Encodes `text` as ordinary text and reports the bytes done to `control`.
pub(crate) fn encode_text<S: Sink>(
    vocab: &Vocab,
    splitter: &Splitter,
    cache: &mut Cache,
    text: &[u8],
    control: &Control,
    sink: &mut S,
) -> Result<()> {
    if let Some(normal) = splitter.normalize(text) {
        return encode_text(vocab, splitter, cache, &normal, control, sink);
    }
    let mut keys = std::mem::take(&mut cache.buffers.keys);
    keys.clear();
    keys.resize(BATCH, 0);
    let (mut n, mut at, mut reported) = (0, 0, 0);
    let mut encoder = Encoder { vocab, cache, text, control, sink };
    let ended = splitter.for_each_piece(text, |piece| {
        debug_assert!(std::ptr::eq(piece.as_ptr(), text[at..].as_ptr()), "pieces follow each other");
        keys[n] = if (1..=PACKED).contains(&piece.len()) {
            let key = packed_key(text, at, piece);
            encoder.cache.prefetch(key);
            key
        } else {
            PLACE | (piece.len() as u128) << 64 | at as u128
        };
        at += piece.len();
        n += 1;
        if n == BATCH {
            n = 0;
            encoder.batch(&keys)?;
            if at - reported >= REPORT_EVERY {
                control.check()?;
                control.advance((at - reported) as u64);
                reported = at;
            }
        }
        Ok(())
    });
    let ended = ended.and_then(|()| encoder.batch(&keys[..n]));
    cache.buffers.keys = keys;
    control.advance((at - reported) as u64);
    ended
}

struct Encoder<'a, S> {
    vocab: &'a Vocab,
    cache: &'a mut Cache,
    text: &'a [u8],
    control: &'a Control,
    sink: &'a mut S,
}

impl<S: Sink> Encoder<'_, S> {
    /// Encodes a batch. Ids of cached pieces are gathered without branches: always [`INLINE`] stores, then a step of n.
    fn batch(&mut self, keys: &[u128]) -> Result<()> {
        let mut ids = [0; (BATCH + 1) * INLINE];
        let mut n = 0;
        for &key in keys {
            match self.cache.get(key) {
                Some(slot) if slot.n as usize <= INLINE => {
                    ids[n..n + INLINE].copy_from_slice(&slot.ids);
                    n += slot.n as usize;
                }
                Some(slot) => {
                    self.sink.push(&ids[..n]);
                    n = 0;
                    self.sink.push(self.cache.ids(&slot));
                }
                None => {
                    self.sink.push(&ids[..n]);
                    n = 0;
                    self.miss(key)?;
                }
            }
        }
        self.sink.push(&ids[..n]);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn miss(&mut self, key: u128) -> Result<()> {
        if key >= PLACE {
            let (at, len) = (key as u64 as usize, (key >> 64 & ((1 << 56) - 1)) as usize);
            let text = self.text;
            return self.long(&text[at..at + len]);
        }
        let (bytes, len) = unpack(key);
        self.compute(&bytes[..len])?;
        let ids = std::mem::take(&mut self.cache.buffers.ids);
        self.cache.insert(key, &ids);
        self.sink.push(&ids);
        self.cache.buffers.ids = ids;
        Ok(())
    }

    fn long(&mut self, piece: &[u8]) -> Result<()> {
        if let Some(ids) = self.cache.get_long(piece) {
            self.sink.push(ids);
            return Ok(());
        }
        self.compute(piece)?;
        let ids = std::mem::take(&mut self.cache.buffers.ids);
        if piece.len() <= LONGEST {
            self.cache.insert_long(piece, &ids);
        }
        self.sink.push(&ids);
        self.cache.buffers.ids = ids;
        Ok(())
    }

    /// Leaves the ids of `piece` in the buffer.
    fn compute(&mut self, piece: &[u8]) -> Result<()> {
        let Buffers { ids, scratch, .. } = &mut self.cache.buffers;
        ids.clear();
        match self.vocab.whole_piece(piece) {
            Some(id) => ids.push(id),
            None => self.vocab.merge_piece(piece, scratch, self.control, ids)?,
        }
        Ok(())
    }
}
