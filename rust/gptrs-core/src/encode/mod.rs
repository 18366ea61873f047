//! Text to ids: scan → key → probe → emit.
//!
//! Keys of pieces are collected a batch ahead, so that the probes, whose order is known, overlap in the processor. The
//! ids of pieces seen before are gathered; an unseen piece leaves a hole among them. When there are enough holes, they are
//! filled together: most time of merging goes by waiting for memory, and many pieces can wait at once.

mod keys;
mod known;
mod sink;

use std::ops::Range;

use self::keys::{Batch, n_in_row};
use self::known::{Holes, Known};
pub(crate) use self::sink::{Count, Id, Out, READY, Ready, Sink};
use crate::borders::{Parts, Row};
use crate::cache::{Cache, LONG, PLACE, WIDE};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::merge::Scratch;
use crate::slot;
use crate::split::{Run, Splitter};
use crate::vocab::Vocab;

/// Set in the key of a part whose ids may not be those of the same bytes as a piece.
const PART: u128 = 0x10 << 120;

/// What stands among pieces where one of several texts ends: a piece of no bytes.
const END_OF_TEXT: &[u32] = &[0];

/// Bytes encoded between two reports of progress.
const REPORT_EVERY: usize = 1 << 16;

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
    encode_all(vocab, splitter, cache, text, None, control, sink)
}

/// Encodes texts that stand one behind the other in `text` and end at `ends`, each as [`encode_text`] does, and tells the sink
/// where one ends. Nothing is normalized. What a text leaves to be merged waits for that of the next, so that short ones take
/// no longer than a long one.
pub(crate) fn encode_texts<S: Sink>(
    vocab: &Vocab,
    splitter: &Splitter,
    cache: &mut Cache,
    text: &[u8],
    ends: &[usize],
    control: &Control,
    sink: &mut S,
) -> Result<()> {
    encode_all(vocab, splitter, cache, text, Some(ends), control, sink)
}

/// All of `text`, or the texts in it that end at `ends`.
fn encode_all<S: Sink>(
    vocab: &Vocab,
    splitter: &Splitter,
    cache: &mut Cache,
    text: &[u8],
    ends: Option<&[usize]>,
    control: &Control,
    sink: &mut S,
) -> Result<()> {
    cache.expect(text.len(), vocab);
    let mut buffers = cache.buffers.take().unwrap_or_default();
    let Buffers { batches: [filling, waiting], ready, holes, scratch, row } = &mut *buffers;
    let known = Known { vocab, cache, level: splitter.level(), text, control, holes, scratch };
    let mut encoder = Encoder { known, sink, filling, waiting, out: Out::new(ready), row };
    let (mut at, mut reported) = (0, 0);
    let mut ended = Ok(());
    for &end in ends.unwrap_or(&[text.len()]) {
        ended = splitter.for_each_run(&text[at..end], |_, run| {
            let mut one = |len| encoder.add(at, &[near(len)?]).map(|()| len);
            at += match run {
                Run::Many(start, ends) => {
                    encoder.add(at - start, ends)?;
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
        if ended.is_ok() && ends.is_some() {
            ended = encoder.add(end, END_OF_TEXT);
        }
        if ended.is_err() {
            break;
        }
    }
    let ended = ended.and_then(|()| encoder.flush());
    buffers.forget();
    cache.buffers = Some(buffers);
    control.advance((at - reported) as u64);
    ended
}

/// The length of a piece as ends are handed on.
fn near(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::Argument(format!("expected pieces below 4 GiB, got one of {len} bytes")))
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
        self.batches.iter_mut().for_each(|batch| batch.begin(0));
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
    /// Takes the next pieces, which end at these distances from `base`.
    #[inline]
    fn add(&mut self, base: usize, mut ends: &[u32]) -> Result<()> {
        while !ends.is_empty() {
            ends = self.filling.take(base, ends);
            if self.filling.is_full() {
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

    /// Encodes the batch that waits, and lets the other one wait.
    #[inline(never)]
    fn turn(&mut self) -> Result<()> {
        let Known { cache, level, text, .. } = &self.known;
        // Where one batch has runs, the next one will.
        let expects_runs = cache.apart < LONG_LEAD && self.waiting.has_runs();
        self.filling.make_keys(*level, text, cache.apart, &cache.view(), expects_runs);
        let (mut at, n_keys) = (0, self.waiting.len());
        while at < n_keys {
            if self.known.is_full() || self.out.is_full() {
                self.known.spill(&mut self.out, self.sink)?;
            }
            let run = self.waiting.run_from(at).min(n_keys);
            at += self.hits(at, run);
            at += match run {
                _ if at < run => self.other(at, run)?,
                _ if at < n_keys => self.run(at)?,
                _ => 0,
            };
        }
        self.waiting.begin(self.filling.end());
        std::mem::swap(&mut self.filling, &mut self.waiting);
        Ok(())
    }

    /// Gives out the ids of short pieces up to the first that is not stored; how many these are. Ids are gathered without
    /// branches: always all halves of the slot, then a step of their number.
    #[inline]
    fn hits(&mut self, from: usize, to: usize) -> usize {
        let Self { out, waiting, known, .. } = self;
        let (table, is_narrow, (keys, places)) = (known.cache.view(), known.cache.is_narrow(), waiting.keys());
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
        let (keys, bytes) = (self.waiting.keys().0, self.waiting.piece(at));
        let (key, known, out) = (keys[at], &mut self.known, &mut self.out);
        match key {
            // It was just looked up.
            ..WIDE => known.hole(Some(key), bytes, true, out.n),
            LONG.. => known.long(key, bytes, true, out),
            PLACE.. if known.falls_apart(&known.text[bytes.clone()]) => self.apart(at..at + 1, bytes)?,
            // Those in a row go together.
            WIDE..PLACE if known.cache.may_part(bytes.len()) => {
                let n = n_in_row(&keys[at..to]);
                self.parts(at..at + n, bytes)?;
                return Ok(n);
            }
            _ => known.part(bytes, true, out),
        }
        Ok(1)
    }

    /// Encodes the run that starts here, if that pays; how many pieces it has, or none.
    #[inline(never)]
    fn run(&mut self, at: usize) -> Result<usize> {
        let pieces = at..self.waiting.run_end(at);
        let first = self.waiting.piece(at);
        let n_bytes = self.waiting.bounds()[pieces.end] - first.start;
        let Known { cache, level, text, .. } = &mut self.known;
        if cache.apart < LONG_LEAD && cache.may_part(n_bytes) {
            let n = pieces.len();
            self.apart(pieces, first)?;
            return Ok(n);
        }
        self.waiting.dissolve_runs(*level, text, cache.apart, &cache.view());
        Ok(0)
    }

    /// Encodes these pieces of the batch, the first of which is here, part by part, and notes how that goes.
    fn apart(&mut self, pieces: Range<usize>, first: Range<usize>) -> Result<()> {
        let (is_short, n) = (self.known.text[first.start] < LONG_LEAD, pieces.len());
        let n_bytes = self.waiting.bounds()[pieces.end] - first.start;
        let n_left = self.parts(pieces, first)?;
        if is_short {
            self.known.cache.parted(2 * n_left < n_bytes, n);
        }
        Ok(())
    }

    /// Encodes these pieces of the batch, the first of which is here, part by part; how many bytes were in parts of several
    /// characters.
    fn parts(&mut self, pieces: Range<usize>, first: Range<usize>) -> Result<usize> {
        let Self { known, out, sink, waiting, row, .. } = self;
        let (ends, mut n_left) = (&waiting.ends()[pieces], 0);
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
