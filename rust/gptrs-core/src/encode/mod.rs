//! Text to ids: scan → key → probe → emit.
//!
//! Keys of pieces are collected a batch ahead, so that the probes, whose order is known, overlap in the processor. The
//! ids of pieces seen before are gathered; an unseen piece leaves a hole among them. When there are enough holes, they are
//! filled together: most time of merging goes by waiting for memory, and many pieces can wait at once.

mod known;
mod sink;

use std::ops::Range;

use self::known::{Holes, Known};
pub(crate) use self::sink::{Count, Id, Out, READY, Ready, Sink};
use crate::borders::{Parts, Row};
use crate::cache::{Cache, LONG, LONGEST, PACKED, PLACE, WIDE, long_key, packed_key};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::merge::Scratch;
use crate::slot;
use crate::split::{Run, Splitter};
use crate::vocab::Vocab;

/// Pieces collected before they are looked up. Two batches are under way, and their cache lines must fit beside all else
/// into the first cache.
const BATCH: usize = 128;

/// Set in the key of a part whose ids may not be those of the same bytes as a piece.
const PART: u128 = 0x10 << 120;

/// Bytes encoded between two reports of progress.
const REPORT_EVERY: usize = 1 << 16;

/// The first byte of characters that are written without spaces: from U+3000 on.
const WIDE_LEAD: u8 = 0xE3;

/// The first byte of characters of three bytes.
pub(crate) const LONG_LEAD: u8 = 0xE0;

/// The first byte of characters that are not written among those of ASCII: from U+0300 on. In vocabularies that are not
/// made for their scripts, most of these are tokens of their own.
pub(crate) const OTHER_LEAD: u8 = 0xCC;

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
    let mut buffers = cache.buffers.take().unwrap_or_default();
    let Buffers { batches: [filling, waiting], ready, holes, scratch, row } = &mut *buffers;
    let known = Known { vocab, cache, level: splitter.level(), text, control, holes, scratch };
    let mut encoder = Encoder { known, sink, filling, waiting, out: Out::new(ready), row };
    let (mut at, mut reported) = (0, 0);
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
    buffers.forget();
    cache.buffers = Some(buffers);
    control.advance((at - reported) as u64);
    ended
}

/// What stands for a piece whose bytes are not in its key: the key of a long one, or none where a piece is likely to fall
/// apart, as it is with characters from the first byte `apart` on.
#[inline]
fn far_key(piece: &[u8], apart: u8) -> u128 {
    let n = piece.len() as u128;
    match piece {
        [WIDE_LEAD..0xF0, _, _, ..] => WIDE | n << 64,
        [a, b, ..] if (PACKED + 1..=LONGEST).contains(&piece.len()) && *a < apart && *b < apart => long_key(piece),
        _ => PLACE | n << 64,
    }
}

/// Whether a piece may stand among wide ones in a row: such a one, or a single byte of ASCII that is not a space.
#[inline]
fn goes_on(key: u128) -> bool {
    (WIDE..PLACE).contains(&key) || key.wrapping_sub((1 << 120) + 0x21) < 0x5F
}

/// The length of the piece that has this key.
#[inline]
fn len_of(key: u128) -> usize {
    if key >= WIDE { (key >> 64 & ((1 << 56) - 1)) as usize } else { (key >> 120) as usize % 16 }
}

/// The length of a piece as ends are handed on.
fn near(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::Argument(format!("expected pieces below 4 GiB, got one of {len} bytes")))
}

/// Pieces on their way to the cache: their keys, where these are in the table, and where they end in the text.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    keys: [u128; BATCH],
    places: [u32; BATCH],
    ends: [usize; BATCH],
    n: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { keys: [0; BATCH], places: [0; BATCH], ends: [0; BATCH], n: 0 }
    }
}

/// Memory that encoding reuses from call to call.
#[derive(Debug, Default, Clone)]
pub(crate) struct Buffers {
    /// The batch that is filled and the one that waits.
    batches: [Batch; 2],
    ready: Ready,
    holes: Holes,
    scratch: Scratch,
    row: Row,
}

impl Buffers {
    /// Forgets what an error may have left.
    fn forget(&mut self) {
        self.batches.iter_mut().for_each(|batch| batch.n = 0);
        self.holes.clear();
    }
}

struct Encoder<'a, S: Sink> {
    known: Known<'a>,
    sink: &'a mut S,
    filling: &'a mut Batch,
    /// The batch before, whose part of the cache is on its way.
    waiting: &'a mut Batch,
    out: Out<'a, S::Id>,
    row: &'a mut Row,
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
        self.known.spill(&mut self.out, self.sink)
    }

    /// Puts the keys of pieces into the batch and asks for what the cache has of them; the end of the last.
    #[inline]
    fn collect(&mut self, base: usize, mut start: usize, new: &[u32]) -> usize {
        let Batch { keys, places, ends, n } = &mut *self.filling;
        let (text, table, apart) = (self.known.text, self.known.cache.view(), self.known.cache.apart);
        let slots = keys[*n..].iter_mut().zip(&mut places[*n..]).zip(&mut ends[*n..]);
        for (((key, place), last), &end) in slots.zip(new) {
            let end = base + end as usize;
            let piece = &text[start..end];
            *key = if (1..=PACKED).contains(&piece.len()) && piece[0] < WIDE_LEAD {
                packed_key(text, start, piece)
            } else {
                far_key(piece, apart)
            };
            *place = table.prefetch(*key);
            *last = end;
            start = end;
        }
        *n += new.len();
        start
    }

    /// Encodes the batch that waits, and lets the other one wait.
    #[inline(never)]
    fn turn(&mut self) -> Result<()> {
        let (mut at, n_keys) = (0, self.waiting.n);
        while at < n_keys {
            if self.known.is_full() || self.out.is_full() {
                self.known.spill(&mut self.out, self.sink)?;
            }
            at += self.hits(at, n_keys);
            if at < n_keys {
                at += self.other(at, n_keys)?;
            }
        }
        self.waiting.n = 0;
        std::mem::swap(&mut self.filling, &mut self.waiting);
        Ok(())
    }

    /// Gives out the ids of short pieces up to the first that is not stored; how many these are. Ids are gathered without
    /// branches: always all halves of the slot, then a step of their number.
    #[inline]
    fn hits(&mut self, from: usize, to: usize) -> usize {
        let Self { out, waiting: Batch { keys, places, .. }, known, .. } = self;
        let (table, is_narrow) = (known.cache.view(), known.cache.is_narrow());
        let (room, mut n, mut n_hits) = (out.room.as_mut_slice(), out.n, 0);
        for (&key, &place) in keys[from..to].iter().zip(&places[from..to]) {
            let Some(slot) = table.get(place, key) else { break };
            let (halves, n_ids) = slot::content(slot);
            if n_ids <= slot::INLINE {
                room[n..n + slot::N_HALVES].copy_from_slice(&S::Id::of_slot(halves, is_narrow));
                n += n_ids;
            } else if key < WIDE {
                n += sink::copy(known.cache.elsewhere(halves), &mut room[n..]);
            } else {
                break;
            }
            n_hits += 1;
        }
        out.n = n;
        n_hits
    }

    /// Deals with the piece at which [`Encoder::hits`] ended, or with several; how many.
    #[inline(never)]
    fn other(&mut self, at: usize, to: usize) -> Result<usize> {
        let (key, end) = (self.waiting.keys[at], self.waiting.ends[at]);
        let (bytes, known, out) = (end - len_of(key)..end, &mut self.known, &mut self.out);
        match key {
            ..WIDE => known.packed(key, bytes, true, out),
            LONG.. => known.long(key, bytes, true, out),
            PLACE.. if known.falls_apart(&known.text[bytes.clone()]) => self.one_apart(at, bytes)?,
            // Those in a row go together.
            WIDE..PLACE if known.may_part(bytes.len()) => {
                let n = self.waiting.keys[at..to].iter().take_while(|&&key| goes_on(key)).count();
                self.parts(at..at + n, bytes)?;
                return Ok(n);
            }
            _ => known.part(bytes, true, out),
        }
        Ok(1)
    }

    /// Encodes a piece part by part, and notes how that goes.
    fn one_apart(&mut self, at: usize, bytes: Range<usize>) -> Result<()> {
        let (is_short, n_bytes) = (self.known.text[bytes.start] < LONG_LEAD, bytes.len());
        let n_left = self.parts(at..at + 1, bytes)?;
        if is_short {
            self.known.cache.parted(2 * n_left < n_bytes);
        }
        Ok(())
    }

    /// Encodes these pieces of the batch, the first of which is here, part by part; how many bytes were in parts of several
    /// characters.
    fn parts(&mut self, pieces: Range<usize>, first: Range<usize>) -> Result<usize> {
        let Self { known, out, sink, waiting, row, .. } = self;
        let (ends, mut n_left) = (&waiting.ends[pieces], 0);
        let mut parts = Parts::new(known.vocab, known.level, known.text, first, row);
        loop {
            let is_done = parts.chars(ends, out, |bytes, is_piece, out| {
                n_left += bytes.len();
                known.part(bytes, is_piece, out);
                !known.is_full() && !out.is_full()
            });
            if is_done {
                return Ok(n_left);
            }
            known.spill(out, *sink)?;
        }
    }
}
