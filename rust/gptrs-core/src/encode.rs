//! Text to ids: scan → key → probe → emit.
//!
//! Keys of pieces are collected a batch ahead, so that the probes, whose order is known, overlap in the processor; the
//! batch then goes piece by piece through cache, whole-piece lookup and merging.

use crate::borders::{CHAR_BYTES, Part};
use crate::cache::{Buffers, Cache, INLINE, LONGEST, NOWHERE, PACKED, PLACE, packed_key, unpack};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::split::{Run, Splitter};
use crate::table::{Ids, content};
use crate::vocab::Vocab;

/// Pieces collected before they are looked up. Two batches are under way, and their cache lines must fit beside all else
/// into the first cache.
const BATCH: usize = 128;

/// Pieces among which others are looked for when one is unseen, at most: four merge in the time of two, but looking costs
/// something, and late in a text unseen pieces are rare.
const AHEAD: usize = 96;

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

/// Ids collected before they are given to the sink: those of a batch have room behind as many others.
const READY: usize = BATCH * INLINE;

/// Where ids go.
pub(crate) trait Sink {
    /// An id as it is kept.
    type Id: Copy + Default;

    fn narrow(ids: Ids) -> [Self::Id; INLINE];

    fn push_narrow(&mut self, ids: &[Self::Id]);

    /// [`Sink::push_narrow`] of ids that are not narrowed yet.
    fn push(&mut self, ids: &[u32]);
}

impl Sink for Vec<u32> {
    type Id = u32;

    #[inline]
    fn narrow(ids: Ids) -> [u32; INLINE] {
        ids.wide()
    }

    #[inline]
    fn push_narrow(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }

    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }
}

impl Sink for Vec<u16> {
    type Id = u16;

    #[inline]
    fn narrow(ids: Ids) -> [u16; INLINE] {
        ids.low
    }

    #[inline]
    fn push_narrow(&mut self, ids: &[u16]) {
        self.extend_from_slice(ids);
    }

    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.extend(ids.iter().map(|&id| id as u16));
    }
}

/// Counts ids without keeping them.
#[derive(Debug, Default)]
pub(crate) struct Count(pub(crate) usize);

impl Sink for Count {
    type Id = ();

    #[inline]
    fn narrow(_: Ids) -> [(); INLINE] {
        [(); INLINE]
    }

    #[inline]
    fn push_narrow(&mut self, ids: &[()]) {
        self.0 += ids.len();
    }

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
    cache.expect(text.len(), vocab);
    let mut batches = std::mem::take(&mut cache.buffers.batches);
    let [filling, waiting] = &mut *batches;
    let (mut at, mut reported) = (0, 0);
    let ready = [S::Id::default(); 2 * READY];
    let mut encoder = Encoder { vocab, cache, text, control, sink, filling, waiting, ready, n_ready: 0 };
    let ended = splitter.for_each_run(text, |_, run| {
        let mut one = |len| encoder.add(at, at, &[near(len)?]).map(|()| len);
        at += match run {
            Run::Many(start, ends) => {
                encoder.add(at - start, at, ends)?;
                ends.last().map_or(0, |&end| end as usize - start)
            }
            Run::One(start, end) => one(end - start)?,
            Run::Invalid(len) => one(len)?,
        };
        if at - reported >= REPORT_EVERY {
            control.check()?;
            control.advance((at - reported) as u64);
            reported = at;
        }
        Ok(())
    });
    let ended = ended.and_then(|()| encoder.flush());
    for batch in [encoder.filling, encoder.waiting] {
        batch.n = 0;
    }
    cache.buffers.batches = batches;
    control.advance((at - reported) as u64);
    ended
}

/// The length of a piece as ends are handed on.
fn near(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::Argument(format!("expected pieces below 4 GiB, got one of {len} bytes")))
}

/// Pieces on their way to the cache: their keys and where these are in the table.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    keys: [u128; BATCH],
    places: [u32; BATCH],
    n: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { keys: [0; BATCH], places: [0; BATCH], n: 0 }
    }
}

struct Encoder<'a, S: Sink> {
    vocab: &'a Vocab,
    cache: &'a mut Cache,
    text: &'a [u8],
    control: &'a Control,
    sink: &'a mut S,
    filling: &'a mut Batch,
    /// The batch before, whose part of the cache is on its way.
    waiting: &'a mut Batch,
    /// Ids on their way to the sink, and how many.
    ready: [S::Id; 2 * READY],
    n_ready: usize,
}

impl<S: Sink> Encoder<'_, S> {
    /// Takes pieces that end at these distances from `base`, the first of which starts at `start`.
    #[inline]
    fn add(&mut self, base: usize, mut start: usize, mut ends: &[u32]) -> Result<()> {
        while !ends.is_empty() {
            let (now, later) = ends.split_at(ends.len().min(BATCH - self.filling.n));
            start = self.collect(base, start, now);
            ends = later;
            if self.filling.n == BATCH {
                self.turn()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.turn()?;
        self.turn()?;
        self.spill();
        Ok(())
    }

    /// Gives the ids that are ready to the sink.
    #[inline]
    fn spill(&mut self) {
        self.sink.push_narrow(&self.ready[..std::mem::take(&mut self.n_ready)]);
    }

    /// Gives ids to the sink, behind those that are ready.
    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.spill();
        self.sink.push(ids);
    }

    /// Puts the keys of pieces into the batch and asks for what the cache has of them; the end of the last.
    #[inline]
    fn collect(&mut self, base: usize, mut start: usize, ends: &[u32]) -> usize {
        let Batch { keys, places, n } = &mut *self.filling;
        let (text, table) = (self.text, self.cache.view());
        for ((key, at), &end) in keys[*n..].iter_mut().zip(&mut places[*n..]).zip(ends) {
            let end = base + end as usize;
            let piece = &text[start..end];
            if (1..=PACKED).contains(&piece.len()) && piece[0] < WIDE_LEAD {
                *key = packed_key(text, start, piece);
                *at = table.prefetch(*key);
            } else {
                *key = PLACE | (piece.len() as u128) << 64 | start as u128;
            }
            start = end;
        }
        *n += ends.len();
        start
    }

    /// Encodes the batch that waits, and lets the other one wait.
    #[inline(never)]
    fn turn(&mut self) -> Result<()> {
        let text = self.text;
        let (mut at, mut resolved) = (0, 0);
        let n_keys = self.waiting.n;
        while at < n_keys {
            at += self.hits(at, n_keys);
            if at == n_keys {
                break;
            }
            let key = self.waiting.keys[at];
            if key >= PLACE {
                let (start, len) = (key as u64 as usize, (key >> 64 & ((1 << 56) - 1)) as usize);
                self.place(&text[start..start + len])?;
                at += 1;
                continue;
            }
            let number = self.cache.find(key);
            if number == NOWHERE && at >= resolved {
                resolved = n_keys.min(at + self.cache.ahead);
                self.resolve(at, resolved);
                continue;
            }
            self.other(key, number)?;
            at += 1;
        }
        self.waiting.n = 0;
        std::mem::swap(&mut self.filling, &mut self.waiting);
        Ok(())
    }

    /// Gives out the ids of pieces up to the first that is not stored or has more than [`INLINE`] of them; how many these
    /// are. Ids are gathered without branches: always [`INLINE`] stores, then a step of their number.
    #[inline]
    fn hits(&mut self, from: usize, to: usize) -> usize {
        if self.n_ready > READY {
            self.spill();
        }
        let Self { ready, waiting: Batch { keys, places, .. }, cache, n_ready, .. } = self;
        let table = cache.view();
        let (mut n, mut n_hits) = (*n_ready, 0);
        for (&key, &place) in keys[from..to].iter().zip(&places[from..to]) {
            let Some(slot) = table.get(place, key) else { break };
            let (ids, n_ids) = content(slot);
            ready[n..n + INLINE].copy_from_slice(&S::narrow(ids));
            if n_ids as usize > INLINE {
                break;
            }
            n += n_ids as usize;
            n_hits += 1;
        }
        *n_ready = n;
        n_hits
    }

    /// Computes and stores the unseen pieces among keys of the batch, four at a time where merging alone gives the ids.
    /// The first is one; the more others there are, the further the next call looks.
    #[inline(never)]
    fn resolve(&mut self, from: usize, to: usize) {
        let (mut group, mut n, mut n_unseen) = ([0; 4], 0, 0);
        for i in from..to {
            let key = self.waiting.keys[i];
            if key >= PLACE || self.cache.view().get(self.waiting.places[i], key).is_some() {
                continue;
            }
            n_unseen += 1;
            let (bytes, len) = unpack(key);
            if self.merges_alone(&bytes[..len]) {
                group[n] = key;
                n += 1;
                if n == group.len() {
                    self.resolve_four(&group);
                    n = 0;
                }
            }
        }
        self.resolve_four(&group[..n]);
        self.cache.ahead = (16 * n_unseen).clamp(1, AHEAD);
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
        let piece = |i: usize| &unpacked[i].0[..unpacked[i].1];
        match keys {
            [] => {}
            &[key] => self.cache.insert(key, self.vocab.merge_one(piece(0)).as_slice()),
            _ => {
                let merged = self.vocab.merge_four(std::array::from_fn(piece));
                for (ids, &key) in merged.iter().zip(keys) {
                    if self.cache.find(key) == NOWHERE {
                        self.cache.insert(key, ids.as_slice());
                    }
                }
            }
        }
    }

    /// A piece whose ids are many, or not stored.
    #[inline(never)]
    fn other(&mut self, key: u128, number: u32) -> Result<()> {
        if number != NOWHERE {
            let slot = self.cache.slot(number);
            self.spill();
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
        // An invalid sequence has at most three bytes, and three of them only at the front of a longer character; every
        // other piece is UTF-8.
        let is_utf8 = piece.len() > 3 || (piece.len() == 3 && piece[0] < 0xF0);
        debug_assert!(
            piece.len() > 3
                || piece.is_ascii()
                || is_utf8 == std::str::from_utf8(piece).is_ok()
                || piece[0] < LONG_LEAD
        );
        if !is_utf8 || piece.iter().all(|&byte| byte < LONG_LEAD) {
            return false;
        }
        self.cache.wide_bytes = self.cache.wide_bytes.saturating_add(piece.len());
        self.cache.wide_bytes >= WIDE_BYTES
    }

    /// Encodes a piece part by part.
    fn parts(&mut self, piece: &[u8]) -> Result<()> {
        self.vocab.borders().for_each_part(piece, |part| {
            let (ids, n_ids) = match part {
                Part::Char(ids, n_ids) => (ids, n_ids),
                Part::Bytes(start, end) => {
                    let (bytes, is_piece) = (&piece[start..end], end - start == piece.len());
                    let Some(found) = self.inline(bytes, is_piece) else { return self.cached(bytes, is_piece) };
                    found
                }
            };
            if self.n_ready > READY {
                self.spill();
            }
            self.ready[self.n_ready..self.n_ready + INLINE].copy_from_slice(&S::narrow(ids));
            self.n_ready += n_ids;
            Ok(())
        })
    }

    /// The ids of a piece or a part of one when they stand in a slot, and how many they are.
    #[inline]
    fn inline(&self, bytes: &[u8], is_piece: bool) -> Option<(Ids, usize)> {
        if bytes.len() > PACKED {
            return None;
        }
        let key = self.part_key(bytes, is_piece);
        let table = self.cache.view();
        let (ids, n) = content(table.get(table.prefetch(key), key)?);
        let n = n as usize;
        (n <= INLINE).then_some((ids, n))
    }

    /// The key of a piece of at most [`PACKED`] bytes or a part of one: only with `ignore_merges` a part may have other ids
    /// than the same bytes as a piece.
    #[inline]
    fn part_key(&self, bytes: &[u8], is_piece: bool) -> u128 {
        packed_key(bytes, 0, bytes) | if !is_piece && self.vocab.ignore_merges() { PART } else { 0 }
    }

    /// Encodes a piece or a part of one, and stores what it encodes to.
    fn cached(&mut self, bytes: &[u8], is_piece: bool) -> Result<()> {
        if (1..=PACKED).contains(&bytes.len()) {
            let key = self.part_key(bytes, is_piece);
            let number = self.cache.find(key);
            if number != NOWHERE {
                let slot = self.cache.slot(number);
                self.spill();
                self.sink.push(self.cache.ids(&slot));
                return Ok(());
            }
            self.compute(bytes, is_piece)?;
            self.keep(key);
            return Ok(());
        }
        let is_other = !is_piece && self.vocab.ignore_merges();
        self.spill();
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
        self.push(&ids);
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
                ids.extend_from_slice(&of_char.wide()[..n]);
                Ok(())
            }
            Part::Bytes(start, end) => self.vocab.merge_piece(&piece[start..end], scratch, self.control, ids),
        })
    }
}
