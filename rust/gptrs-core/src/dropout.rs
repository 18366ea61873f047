//! BPE-dropout: merges skipped at random, so that a model sees a word in several spellings.
//!
//! Source: Provilkov, Emelianenko and Voita 2020 (arXiv 1910.13267), algorithm 1. At each step every merge that could be
//! made is dropped with probability p, and the first one left, in order of rank and then of place, is made; a piece is
//! done when none is left. A draw is only needed down to the merge that is made, so they are taken in that order.
//!
//! The random numbers of a piece follow from the seed, the index of its text and its place there: neither threads nor
//! what was encoded before change them. The word cache is not asked and not filled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::control::Control;
use crate::encode::Sink;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

/// Draws between two looks at the control.
const CHECK_EVERY: u32 = 1 << 16;

/// No neighbour.
const END: u32 = u32::MAX;

/// How often merges are skipped, and the seed of the random numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    p: f64,
    seed: u64,
}

impl Dropout {
    /// Skips each merge with probability `p`: 0 changes nothing, 1 leaves bytes.
    pub fn new(p: f64, seed: u64) -> Result<Self> {
        if (0.0..=1.0).contains(&p) {
            Ok(Self { p, seed })
        } else {
            Err(Error::Argument(format!("dropout must be a probability from 0 to 1, got {p}")))
        }
    }

    /// Whether no merge is ever skipped.
    pub fn is_none(self) -> bool {
        self.p <= 0.0
    }

    /// The draws of the piece that starts at byte `offset` of the text `index` of a batch.
    pub fn draws(self, index: usize, offset: usize) -> Draws {
        Draws { state: mix(mix(mix(self.seed) ^ index as u64) ^ offset as u64), p: self.p }
    }
}

/// The decisions of one piece, one after the other: `SplitMix64` compared with p.
#[derive(Debug, Clone)]
pub struct Draws {
    state: u64,
    p: f64,
}

impl Draws {
    /// Whether the next merge is skipped.
    pub fn skips(&mut self) -> bool {
        self.state = self.state.wrapping_add(GAMMA);
        ((mix(self.state) >> 11) as f64) < self.p * (1u64 << 53) as f64
    }
}

/// The increment of `SplitMix64`: the golden ratio's fraction, odd.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of `SplitMix64` (Steele, Lea and Flood 2014): a bijection whose bits depend on all bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

impl Tokenizer {
    /// Encodes `part`, ordinary text from byte `at` of the text `index` of a batch on, with dropout.
    pub(crate) fn encode_dropout<S: Sink>(
        &self,
        part: &[u8],
        mut at: usize,
        index: usize,
        dropout: Dropout,
        control: &Control,
        sink: &mut S,
    ) -> Result<()> {
        let (mut merger, mut ids) = (Merger::default(), Vec::new());
        let normal = self.splitter().normalize(part);
        self.splitter().for_each_piece(normal.as_deref().unwrap_or(part), |piece| {
            ids.clear();
            merger.encode(self.vocab(), piece, dropout.draws(index, at), control, &mut ids)?;
            sink.push(&ids);
            control.advance(piece.len() as u64);
            at += piece.len();
            Ok(())
        })
    }
}

/// A token of the piece under way, linked to its neighbours; `rank` is that of the pair with the next one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    previous: u32,
    next: u32,
    id: u32,
    rank: Option<u32>,
}

/// What pieces reuse. A pair that was replaced stays in the queue and is known by its rank: pairs only grow, so a place
/// never has the same one again.
#[derive(Debug, Default)]
struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32)>>,
    /// Merges skipped in the step under way.
    skipped: Vec<Reverse<(u32, u32)>>,
    n_draws: u32,
}

impl Merger {
    fn encode(
        &mut self,
        vocab: &Vocab,
        piece: &[u8],
        mut draws: Draws,
        control: &Control,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        if piece.len() >= END as usize {
            return Err(Error::Argument(format!("expected pieces below 4 GiB, got one of {} bytes", piece.len())));
        }
        self.link(vocab, piece);
        while let Some(Reverse((rank, at))) = self.queue.pop() {
            if self.symbols[at as usize].rank != Some(rank) {
                continue;
            }
            self.n_draws = self.n_draws.wrapping_add(1);
            if self.n_draws.is_multiple_of(CHECK_EVERY) {
                control.check()?;
            }
            if draws.skips() {
                self.skipped.push(Reverse((rank, at)));
            } else {
                self.merge(vocab, rank, at);
                self.queue.extend(self.skipped.drain(..));
            }
        }
        self.skipped.clear();
        let mut at = if piece.is_empty() { END } else { 0 };
        while at != END {
            out.push(self.symbols[at as usize].id);
            at = self.symbols[at as usize].next;
        }
        Ok(())
    }

    /// One symbol a byte.
    fn link(&mut self, vocab: &Vocab, piece: &[u8]) {
        self.symbols.clear();
        self.symbols.extend((0..).zip(piece).map(|(at, &byte): (u32, &u8)| Symbol {
            previous: at.wrapping_sub(1), // END for the first one
            next: if at as usize + 1 < piece.len() { at + 1 } else { END },
            id: vocab.byte_ids()[usize::from(byte)],
            rank: None,
        }));
        self.queue.clear();
        (0..piece.len() as u32).for_each(|at| self.rank(vocab, at));
    }

    /// Looks up the pair at `at` and queues it.
    fn rank(&mut self, vocab: &Vocab, at: u32) {
        let Symbol { id, next, .. } = self.symbols[at as usize];
        let rank = if next == END { None } else { vocab.merge_rank(id, self.symbols[next as usize].id) };
        self.symbols[at as usize].rank = rank;
        self.queue.extend(rank.map(|rank| Reverse((rank, at))));
    }

    fn merge(&mut self, vocab: &Vocab, rank: u32, at: u32) {
        let Symbol { previous, next, .. } = self.symbols[at as usize];
        let after = self.symbols[next as usize].next;
        self.symbols[next as usize].rank = None;
        self.symbols[at as usize].id = vocab.merge_product(rank);
        self.symbols[at as usize].next = after;
        if after != END {
            self.symbols[after as usize].previous = at;
        }
        self.rank(vocab, at);
        if previous != END {
            self.rank(vocab, previous);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_from_seed_text_and_place_alone() {
        let take = |seed, index, offset| {
            let mut draws = Dropout::new(0.5, seed).unwrap().draws(index, offset);
            (0..64).map(|_| draws.skips()).collect::<Vec<_>>()
        };
        assert_eq!(take(1, 2, 3), take(1, 2, 3));
        for other in [take(0, 2, 3), take(1, 3, 3), take(1, 2, 4), take(1, 3, 2)] {
            assert_ne!(take(1, 2, 3), other);
        }
    }

    #[test]
    fn the_share_of_skipped_merges_is_p() {
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let mut draws = Dropout::new(p, 7).unwrap().draws(0, 0);
            let n = (0..100_000).filter(|_| draws.skips()).count();
            assert!((n as f64 / 1e5 - p).abs() < 0.01, "{p}: {n}");
            assert!((p > 0.0 || n == 0) && (p < 1.0 || n == 100_000));
        }
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(Dropout::new(bad, 0), Err(Error::Argument(_))));
        }
    }
}
