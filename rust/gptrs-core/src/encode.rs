//! Text to ids: scan → key → probe → emit.
//!
//! Pieces are collected a few hundred at a time, so that the probes of a batch, whose order is known, overlap in the
//! processor; the batch then goes piece by piece through cache, whole-piece lookup and merging.

use crate::borders::{CHAR_BYTES, Part};
use crate::cache::{Buffers, Cache, INLINE, LONGEST, NOWHERE, PACKED, packed_key, unpack};
use crate::control::Control;
use crate::error::Result;
use crate::split::Splitter;
use crate::table::content;
use crate::vocab::Vocab;

/// Pieces collected before they are looked up.
const BATCH: usize = 256;

/// Top byte of a batch entry that is a place in the text instead of a key.
const PLACE: u128 = 0xFF << 120;

/// Set in the key of a part whose ids may not be those of the same bytes as a piece.
const PART: u128 = 0x10 << 120;

/// Bytes encoded between two reports of progress.
const REPORT_EVERY: usize = 1 << 16;

/// Bytes of pieces that may fall apart before the table of borders is worth making.
const WIDE_BYTES: usize = 1 << 14;

/// The first byte of characters that are written without spaces: from U+3000 on.
const WIDE_LEAD: u8 = 0xE3;

/// The first byte of characters of three bytes: long enough to gain from borders.
const LONG_LEAD: u8 = 0xE0;

/// Ids collected before they are given to the sink.
const READY: usize = 1024;

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
    let mut encoder = Encoder { vocab, cache, text, control, sink, ready: [0; READY + INLINE] };
    let ended = splitter.for_each_piece(text, |piece| {
        debug_assert!(std::ptr::eq(piece.as_ptr(), text[at..].as_ptr()), "pieces follow each other");
        keys[n] = if (1..=PACKED).contains(&piece.len()) && piece[0] < WIDE_LEAD {
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
    /// Ids on their way to the sink; of no meaning between calls.
    ready: [u32; READY + INLINE],
}

impl<S: Sink> Encoder<'_, S> {
    fn batch(&mut self, keys: &[u128]) -> Result<()> {
        debug_assert!(keys.len() * INLINE <= READY);
        let (mut at, mut is_resolved) = (0, false);
        while let Some(&key) = keys.get(at) {
            if key >= PLACE {
                let (start, len) = (key as u64 as usize, (key >> 64 & ((1 << 56) - 1)) as usize);
                let text = self.text;
                self.place(&text[start..start + len])?;
                at += 1;
                continue;
            }
            let n_hits = self.hits(&keys[at..]);
            at += n_hits;
            if n_hits > 0 {
                continue;
            }
            let number = self.cache.find(key);
            if number == NOWHERE && !is_resolved {
                self.resolve(&keys[at..]);
                is_resolved = true;
                continue;
            }
            self.other(key, number)?;
            at += 1;
        }
        Ok(())
    }

    /// Gives out the ids of pieces up to the first that is not stored or has more than [`INLINE`] of them; how many these
    /// are. Ids are gathered without branches: always [`INLINE`] stores, then a step of their number.
    fn hits(&mut self, keys: &[u128]) -> usize {
        let table = self.cache.view();
        let (mut n, mut n_hits) = (0, 0);
        for &key in keys {
            if key >= PLACE {
                break;
            }
            let Some(slot) = table.get(key) else { break };
            let (ids, n_ids) = content(slot);
            self.ready[n..n + INLINE].copy_from_slice(&ids);
            if n_ids as usize > INLINE {
                break;
            }
            n += n_ids as usize;
            n_hits += 1;
        }
        self.sink.push(&self.ready[..n]);
        n_hits
    }

    /// Computes and stores the unseen pieces among `keys`, four at a time where merging alone gives the ids.
    #[inline(never)]
    fn resolve(&mut self, keys: &[u128]) {
        let mut group = [0; 4];
        let mut n = 0;
        for &key in keys.iter().filter(|&&key| key < PLACE) {
            let (bytes, len) = unpack(key);
            if self.cache.find(key) == NOWHERE && self.merges_alone(&bytes[..len]) {
                group[n] = key;
                n += 1;
                if n == group.len() {
                    self.resolve_four(&group);
                    n = 0;
                }
            }
        }
        self.resolve_four(&group[..n]);
    }

    /// Whether nothing but merging the bytes one by one is asked for.
    fn merges_alone(&self, piece: &[u8]) -> bool {
        !self.vocab.ignore_merges() && piece.iter().all(|&byte| byte < LONG_LEAD)
    }

    fn resolve_four(&mut self, keys: &[u128]) {
        let mut unpacked = [([0; 16], 0); 4];
        for (unpacked, &key) in unpacked.iter_mut().zip(keys) {
            *unpacked = unpack(key);
        }
        let merged = self.vocab.merge_four(std::array::from_fn(|i| &unpacked[i].0[..unpacked[i].1]));
        for (ids, &key) in merged.iter().zip(keys) {
            if self.cache.find(key) == NOWHERE {
                self.cache.insert(key, ids.as_slice());
            }
        }
    }

    /// A piece whose ids are many, or not stored.
    #[inline(never)]
    fn other(&mut self, key: u128, number: u32) -> Result<()> {
        if number != NOWHERE {
            let slot = self.cache.slot(number);
            self.sink.push(self.cache.ids(&slot));
            return Ok(());
        }
        let (bytes, len) = unpack(key);
        self.compute(&bytes[..len], true)?;
        self.keep(key);
        Ok(())
    }

    /// A piece that is long, or has no spaces around it by the custom of its script.
    fn place(&mut self, piece: &[u8]) -> Result<()> {
        // With `ignore_merges` a character may have other ids as a piece than as a part of one.
        let may_part = piece.len() > CHAR_BYTES || !self.vocab.ignore_merges();
        if may_part && self.falls_apart(piece) { self.parts(piece) } else { self.cached(piece, true) }
    }

    /// Whether it pays to look for borders in `piece`.
    fn falls_apart(&mut self, piece: &[u8]) -> bool {
        // An invalid sequence has at most three bytes; every other piece is UTF-8.
        if piece.iter().all(|&byte| byte < LONG_LEAD) || (piece.len() < 4 && std::str::from_utf8(piece).is_err()) {
            return false;
        }
        self.cache.wide_bytes = self.cache.wide_bytes.saturating_add(piece.len());
        self.cache.wide_bytes >= WIDE_BYTES
    }

    /// Encodes a piece part by part.
    fn parts(&mut self, piece: &[u8]) -> Result<()> {
        let mut n = 0;
        self.vocab.borders().for_each_part(piece, |part| {
            match part {
                Part::Char(ids, n_ids) => {
                    self.ready[n..n + CHAR_BYTES].copy_from_slice(&ids);
                    n += n_ids;
                    if n < READY {
                        return Ok(());
                    }
                    self.sink.push(&self.ready[..n]);
                }
                Part::Bytes(start, end) => {
                    self.sink.push(&self.ready[..n]);
                    self.cached(&piece[start..end], end - start == piece.len())?;
                }
            }
            n = 0;
            Ok(())
        })?;
        self.sink.push(&self.ready[..n]);
        Ok(())
    }

    /// Encodes a piece or a part of one, and stores what it encodes to.
    fn cached(&mut self, bytes: &[u8], is_piece: bool) -> Result<()> {
        // Only with `ignore_merges` a part may have other ids than the same bytes as a piece.
        let is_other = !is_piece && self.vocab.ignore_merges();
        if (1..=PACKED).contains(&bytes.len()) {
            let key = packed_key(bytes, 0, bytes) | if is_other { PART } else { 0 };
            let number = self.cache.find(key);
            if number != NOWHERE {
                let slot = self.cache.slot(number);
                self.sink.push(self.cache.ids(&slot));
                return Ok(());
            }
            self.compute(bytes, is_piece)?;
            self.keep(key);
            return Ok(());
        }
        if !is_other && let Some(ids) = self.cache.get_long(bytes) {
            self.sink.push(ids);
            return Ok(());
        }
        self.compute(bytes, is_piece)?;
        let ids = std::mem::take(&mut self.cache.buffers.ids);
        if bytes.len() <= LONGEST && !is_other {
            self.cache.insert_long(bytes, &ids);
        }
        self.sink.push(&ids);
        self.cache.buffers.ids = ids;
        Ok(())
    }

    /// Stores the ids in the buffer under `key` and gives them out.
    fn keep(&mut self, key: u128) {
        let ids = std::mem::take(&mut self.cache.buffers.ids);
        self.cache.insert(key, &ids);
        self.sink.push(&ids);
        self.cache.buffers.ids = ids;
    }

    /// Leaves the ids of `bytes` in the buffer.
    fn compute(&mut self, bytes: &[u8], is_piece: bool) -> Result<()> {
        self.cache.buffers.ids.clear();
        if is_piece {
            if let Some(id) = self.vocab.whole_piece(bytes) {
                self.cache.buffers.ids.push(id);
                return Ok(());
            }
            if bytes.len() <= PACKED && self.falls_apart(bytes) {
                return self.merge_parts(bytes);
            }
        }
        let Buffers { ids, scratch, .. } = &mut self.cache.buffers;
        self.vocab.merge_piece(bytes, scratch, self.control, ids)
    }

    /// Appends the ids of a piece that is no token to the buffer, part by part.
    fn merge_parts(&mut self, piece: &[u8]) -> Result<()> {
        let Buffers { ids, scratch, .. } = &mut self.cache.buffers;
        self.vocab.borders().for_each_part(piece, |part| match part {
            Part::Char(of_char, n) => {
                ids.extend_from_slice(&of_char[..n]);
                Ok(())
            }
            Part::Bytes(start, end) => self.vocab.merge_piece(&piece[start..end], scratch, self.control, ids),
        })
    }
}
