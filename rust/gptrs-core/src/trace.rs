//! How a text becomes its ids: its pieces, and in each the merges in the order they happen. For people to look at.
//!
//! ```
//! use gptrs_core::trace::Origin;
//! use gptrs_core::{Specials, Splitter, Tokenizer, Vocab};
//! let vocab = Vocab::from_merges(&[(97, 98), (256, 99)])?; // ab, abc
//! let tokenizer = Tokenizer::new(vocab, Splitter::new("gpt2")?, vec![])?;
//! let pieces = tokenizer.trace(b"abc", Specials::None)?;
//! assert_eq!((pieces.len(), pieces[0].origin, &pieces[0].ids[..]), (1, Origin::Merges, &[257][..]));
//! let merges: Vec<_> = pieces[0].merges.iter().map(|m| (m.rank, m.left, m.right, m.product)).collect();
//! assert_eq!(merges, [(0, 97, 98, 256), (1, 256, 99, 257)]);
//! # Ok::<(), gptrs_core::Error>(())
//! ```

use std::collections::BTreeSet;

use crate::error::Result;
use crate::special::Specials;
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

/// Why a piece has the ids it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Its bytes were merged.
    Merges,
    /// The whole piece is a token which the merges do not reach, in a vocabulary that looks up whole pieces first.
    Whole,
    /// It is a special token.
    Special,
}

/// One piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where its bytes start and end in the text.
    pub span: (usize, usize),
    /// Where the ids come from.
    pub origin: Origin,
    /// The merges in the order in which they happen; none unless the ids come from merges.
    pub merges: Vec<Merge>,
    /// Its ids.
    pub ids: Vec<u32>,
}

/// Two neighbouring tokens that became one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Its place in the list of merges; the lowest one goes first, the leftmost of equals.
    pub rank: u32,
    /// Where the left token starts, where the right one does, and where it ends: bytes from the start of the piece.
    pub span: (usize, usize, usize),
    /// The left token.
    pub left: u32,
    /// The right token.
    pub right: u32,
    /// The token they became.
    pub product: u32,
}

impl Tokenizer {
    /// The pieces of `text` with their merges, slower than [`Tokenizer::encode`] and with the same ids; special tokens
    /// that are not `allowed` are ordinary text.
    ///
    /// Spans are places in the normalized text where the tokenizer has a normalizer.
    pub fn trace(&self, text: &[u8], allowed: Specials) -> Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        self.special_finder(allowed)?.for_each(
            text,
            &mut pieces,
            |pieces, part| {
                let normal = self.splitter().normalize(part);
                self.trace_ordinary(normal.as_deref().unwrap_or(part), pieces)
            },
            |pieces, found, bytes| {
                let at = end_of(pieces);
                let span = (at, at + bytes.len());
                pieces.push(Piece { span, origin: Origin::Special, merges: Vec::new(), ids: vec![found.id] });
            },
        )?;
        Ok(pieces)
    }

    fn trace_ordinary(&self, text: &[u8], pieces: &mut Vec<Piece>) -> Result<()> {
        self.splitter().for_each_piece(text, |piece| {
            let at = end_of(pieces);
            let span = (at, at + piece.len());
            let (merges, ids) = trace_piece(self.vocab(), piece);
            pieces.push(match self.vocab().whole_piece(piece) {
                Some(id) if ids != [id] => Piece { span, origin: Origin::Whole, merges: Vec::new(), ids: vec![id] },
                _ => Piece { span, origin: Origin::Merges, merges, ids },
            });
            Ok(())
        })
    }
}

/// Where the next piece starts.
fn end_of(pieces: &[Piece]) -> usize {
    pieces.last().map_or(0, |piece| piece.span.1)
}

/// The tokens of a piece under way, each known by where it starts.
struct Tokens<'a> {
    vocab: &'a Vocab,
    ids: Vec<u32>,
    /// Where the token that starts here ends.
    ends: Vec<usize>,
    /// Where the token that ends here starts.
    starts: Vec<usize>,
    /// Rank and start of every pair that can merge: the first is the next.
    waiting: BTreeSet<(u32, usize)>,
}

impl Tokens<'_> {
    /// Rank and product of the token at `at` with the next one.
    fn pair(&self, at: usize) -> Option<(u32, u32)> {
        let right = self.ends[at];
        self.ids.get(right).and_then(|&right| self.vocab.merge_of(self.ids[at], right))
    }

    fn offer(&mut self, at: usize) {
        self.waiting.extend(self.pair(at).map(|(rank, _)| (rank, at)));
    }

    fn withdraw(&mut self, at: usize) {
        if let Some((rank, _)) = self.pair(at) {
            self.waiting.remove(&(rank, at));
        }
    }

    /// Merges the first waiting pair.
    fn merge(&mut self) -> Option<Merge> {
        let &(rank, at) = self.waiting.first()?;
        let (_, product) = self.pair(at)?;
        let (middle, before) = (self.ends[at], (at > 0).then(|| self.starts[at]));
        let end = self.ends[middle];
        before.into_iter().chain([at, middle]).for_each(|at| self.withdraw(at));
        let merge = Merge { rank, span: (at, middle, end), left: self.ids[at], right: self.ids[middle], product };
        self.ids[at] = product;
        (self.ends[at], self.starts[end]) = (end, at);
        before.into_iter().chain([at]).for_each(|at| self.offer(at));
        Some(merge)
    }
}

fn trace_piece(vocab: &Vocab, piece: &[u8]) -> (Vec<Merge>, Vec<u32>) {
    let n = piece.len();
    let mut tokens = Tokens {
        vocab,
        ids: piece.iter().map(|&byte| vocab.byte_ids()[usize::from(byte)]).collect(),
        ends: (1..=n).collect(),
        starts: (0..=n).map(|end| end.saturating_sub(1)).collect(),
        waiting: BTreeSet::new(),
    };
    (0..n).for_each(|at| tokens.offer(at));
    let merges = std::iter::from_fn(|| tokens.merge()).collect();
    let starts = std::iter::successors(Some(0), |&at| tokens.ends.get(at).copied()).take_while(|&at| at < n);
    (merges, starts.map(|at| tokens.ids[at]).collect())
}
