//! Block after block to piece ends.

use super::super::Scheme;
use super::chars::{Ascii, Behind, Chars, High, Masks, Spread};
use super::kinds::{Kinds, Rule};
use super::utf8::AHEAD;
use crate::simd::prefetch;

/// Ends of pieces handed on at once.
const BATCH: usize = 512;
const BLOCK: usize = 64;

/// How far behind the classes of bytes the starts of pieces are: white space of three bytes starts a piece of its own
/// only when the byte after it does not go on with white space.
const LAG: usize = 3;

/// Ends of pieces that follow each other.
#[derive(Debug)]
pub(in crate::split) struct Ends {
    list: [u32; BATCH + BLOCK],
    n: usize,
}

impl Ends {
    pub(in crate::split) fn new() -> Self {
        Self { list: [0; BATCH + BLOCK], n: 0 }
    }

    pub(in crate::split) fn as_slice(&self) -> &[u32] {
        &self.list[..self.n]
    }

    fn push(&mut self, end: usize) {
        self.list[self.n] = end as u32;
        self.n += 1;
    }
}

/// The instructions of one level.
pub(super) struct Vectors<A, H, F> {
    pub(super) ascii: A,
    /// For a block that is not all ASCII.
    pub(super) high: H,
    /// Writes a base plus the place of each bit of a mask to the front of a list, in order, and anything after them.
    pub(super) flatten: F,
}

/// What one block leaves to the next.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::split) struct Carry {
    pub(super) letter: Behind<1>,
    pub(super) number: Behind<1>,
    pub(super) space: Behind<1>,
    pub(super) other: Behind<1>,
    pub(super) blank: Behind<1>,
    pub(super) line: Behind<1>,
    pub(super) cont: Behind<1>,
    pub(super) flat: Behind<1>,
    pub(super) narrow: Behind<1>,
    pub(super) wide: (Behind<2>, Behind<3>),
    pub(super) joined: (Spread, Behind<1>),
    pub(super) leaders: (Spread, Behind<1>),
    /// Letters after an ASCII mark that leads them.
    pub(super) led: (Spread, Behind<1>),
    pub(super) lower: Behind<1>,
    pub(super) caseless: Behind<1>,
    pub(super) ideograph: Behind<1>,
    pub(super) ideograph_mark: Behind<1>,
    pub(super) quotes: Behind<1>,
    /// Starts of pieces after contractions of the last block.
    pub(super) starts: u64,
    /// Bytes inside contractions of the last block.
    pub(super) inside: u64,
    /// Numbers and starts of pieces of numbers, for as many bytes as a piece has.
    pub(super) digits: Digits,
}

/// See [`Carry::digits`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Digits {
    pub(super) numbers: u64,
    pub(super) starts: u64,
}

/// Where pieces start, as far as one block tells: bit i is byte i.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::split) struct Starts {
    /// Known at the byte itself.
    pub(super) here: u64,
    /// Known one, two, three bytes later.
    pub(super) later: [u64; 3],
    /// From the lowest doubt on, the starts may be wrong until the scheme's own scanner comes to one above the highest.
    pub(super) doubts: u64,
}

/// The starts of pieces by shifts of class masks.
pub(in crate::split) trait Borders: Scheme {
    /// What stands after the end of the text: white space, so that a run of it there has no last character.
    const PAD: u8;
    /// How characters are told apart.
    const RULE: Rule;
    /// What `RULE` says.
    const KINDS: &'static Kinds;

    /// Starts in the block at `at`.
    fn starts(here: &Masks, carry: &mut Carry, text: &[u8], at: usize) -> Starts;
}

/// A scan of one text under way.
#[derive(Debug, Default)]
pub(in crate::split) struct Walk {
    /// Where the next block starts; for the scheme's own scanner, where the next piece does.
    at: usize,
    chars: Chars,
    carry: Carry,
    lag: Lag,
    /// The last start of a piece.
    last: usize,
    /// A start of a piece from the scheme's own scanner, until the masks come to the same one.
    own: Option<usize>,
}

/// Starts and doubts of the last block that go out with the next.
#[derive(Debug, Clone, Copy, Default)]
struct Lag {
    here: Behind<3>,
    later: (Behind<2>, Behind<1>),
    doubts: Behind<3>,
}

impl Lag {
    /// Starts and doubts of the [`BLOCK`] bytes that are [`LAG`] behind.
    #[inline(always)]
    fn of(&mut self, starts: &Starts) -> (u64, u64) {
        let Starts { here, later: [one, two, three], doubts } = *starts;
        let starts = self.here.of(here) | self.later.0.of(one) | self.later.1.of(two) | three;
        (starts, self.doubts.of(doubts))
    }
}

impl Walk {
    /// Replaces `ends` by the next ends, at least one; `text` is the same for each call, not empty and below 4 GiB, and
    /// no call follows the one that gave its end.
    #[inline(always)]
    pub(super) fn fill<B: Borders>(
        &mut self,
        text: &[u8],
        ends: &mut Ends,
        vectors: &Vectors<
            impl Fn(&[u8; BLOCK]) -> Ascii,
            impl Fn(&[u8; BLOCK], &Kinds) -> High,
            impl Fn(u64, u32, &mut [u32; BLOCK]),
        >,
    ) {
        let Self { mut at, mut chars, mut carry, mut lag, .. } = *self;
        let mut n = 0;
        while at < text.len() + LAG && n < BATCH {
            prefetch(text, at + AHEAD);
            let padding;
            let block = if let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk()) {
                block
            } else {
                padding = padded::<B>(text, at);
                &padding
            };
            let high = || (vectors.high)(block, B::KINDS);
            let masks = chars.masks(B::RULE, B::KINDS, (vectors.ascii)(block), high, text, at);
            let (mut starts, doubts) = lag.of(&B::starts(&masks, &mut carry, text, at));
            if at + BLOCK > text.len() + LAG {
                starts &= (1 << (text.len() + LAG - at)) - 1;
            }
            if doubts != 0 || self.own.is_some() {
                let last = if n > 0 { ends.list[n - 1] as usize } else { self.last };
                starts = self.settle::<B>(text, at, starts, doubts, last);
            }
            if at == 0 {
                starts &= !(1 << LAG);
            }
            let Some(list) = ends.list[n..].first_chunk_mut() else { break };
            (vectors.flatten)(starts, (at as u32).wrapping_sub(LAG as u32), list);
            n += starts.count_ones() as usize;
            at += BLOCK;
        }
        (self.at, self.chars, self.carry, self.lag) = (at, chars, carry, lag);
        ends.n = n;
        if at >= text.len() + LAG {
            ends.push(text.len());
        }
        self.last = ends.list[ends.n - 1] as usize;
    }

    /// The starts in the [`BLOCK`] bytes [`LAG`] before `at`, with the scheme's own scanner wherever the masks are in
    /// doubt. `last` is the last start before them.
    #[cold]
    #[inline(never)]
    fn settle<S: Scheme>(&mut self, text: &[u8], at: usize, starts: u64, doubts: u64, last: usize) -> u64 {
        let (mut starts, mut doubts, mut settled) = (starts, doubts, 0u64);
        loop {
            let Some(own) = self.own else {
                if doubts == 0 {
                    return settled | starts;
                }
                settled |= starts & ((1 << doubts.trailing_zeros()) - 1);
                let from = settled.checked_ilog2().map_or(last, |place| at + place as usize - LAG);
                self.own = Some(S::piece_end(text, from));
                continue;
            };
            if own >= text.len() || own + LAG >= at + BLOCK {
                return settled;
            }
            let bit = 1 << (own + LAG - at);
            (starts, doubts) = (starts & !(bit - 1), doubts & !(bit - 1));
            if starts & !doubts & bit != 0 {
                self.own = None;
            } else {
                settled |= bit;
                self.own = Some(S::piece_end(text, own));
            }
        }
    }

    /// As [`Walk::fill`], by the scheme's own scanner.
    pub(super) fn fill_scalar<S: Scheme>(&mut self, text: &[u8], ends: &mut Ends) {
        ends.n = 0;
        while self.at < text.len() && ends.n < BATCH {
            self.at = S::piece_end(text, self.at);
            ends.push(self.at);
        }
    }
}

/// The block at `at`, filled up with [`Borders::PAD`].
#[cold]
#[inline(never)]
fn padded<B: Borders>(text: &[u8], at: usize) -> [u8; BLOCK] {
    let mut block = [B::PAD; BLOCK];
    if let Some(rest) = text.get(at..) {
        block[..rest.len()].copy_from_slice(rest);
    }
    block
}
