//! A byte-level BPE vocabulary whose invariants hold by construction.
//!
//! Two ways to say what merges: a list of pairs in order of rank (Hugging Face) or ranks of whole tokens (tiktoken).
//! Both become one table of pairs. For ranks, the pair that makes a token is what is left of its bytes just before the
//! last merge: BPE restricted to a span behaves as on the span alone, so no other pair can ever make this token.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use crate::borders::Borders;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::merge::{Merges, Scratch};
use crate::naive::Pair;
use crate::pairs::{ID_BITS, NO_RANK, Pairs};
use crate::reach::unreachable;
use crate::tokens::Tokens;

/// The longest token of a rank file; finding its merge is quadratic. The largest vocabularies in use have 128 bytes.
const MAX_RANKED_BYTES: usize = 1024;

/// Merges that enter the table of pairs together.
const TOGETHER: usize = 32;

/// What a file says: ids are known, the invariants are not checked.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) tokens: Tokens,
    pub(crate) merges: Vec<Pair>,
    /// The token that each merge makes.
    pub(crate) products: Vec<u32>,
    /// Ids whose token is left out of `tokens` as a special one.
    pub(crate) special: BTreeSet<u32>,
}

/// Tokens, merges and what follows from them.
///
/// Ids are dense; an id may be a hole (no ordinary token), which special tokens in the middle of real vocabularies need.
/// All tokens are distinct, every single byte is one, and every merge joins two tokens into a third.
#[derive(Debug, Clone)]
pub struct Vocab {
    tokens: Tokens,
    pairs: Pairs,
    byte_ids: [u32; 256],
    unreachable: Vec<u32>,
    ignore_merges: bool,
    /// Made when the first long text needs it.
    borders: OnceLock<Borders>,
}

impl Vocab {
    /// Bytes are ids 0..=255, merge `i` makes id `256 + i`.
    ///
    /// ```
    /// let vocab = gptrs_core::Vocab::from_merges(&[(97, 97), (256, 98)])?;
    /// assert_eq!(vocab.token(257), Some(&b"aab"[..]));
    /// assert_eq!(vocab.id(b"aa"), Some(256));
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn from_merges(merges: &[Pair]) -> Result<Self> {
        let mut tokens = Tokens::with_capacity(256 + merges.len());
        for byte in 0..=255 {
            tokens.push(&[byte])?;
        }
        for (i, &pair) in merges.iter().enumerate() {
            let token = spell(&tokens, pair, i)?;
            tokens.push(&token)?;
        }
        Self::from_parts(tokens, merges.to_vec(), false)
    }

    /// Token `i` has id `i` (an empty one is a hole); `merges` stand in order of rank.
    ///
    /// With `ignore_merges` a piece that is a token is that token, whatever the merges would make of it, as in Hugging
    /// Face; it changes nothing when every token encodes to itself.
    pub fn from_tokens<T: AsRef<[u8]>>(tokens: &[T], merges: Vec<Pair>, ignore_merges: bool) -> Result<Self> {
        Self::from_parts(collect(tokens)?, merges, ignore_merges)
    }

    /// Token `i` has id and rank `i` (an empty one is a hole), as in tiktoken: a piece that is a token is that token,
    /// else the two neighbours whose bytes together have the lowest rank merge.
    pub fn from_ranks<T: AsRef<[u8]>>(tokens: &[T]) -> Result<Self> {
        Self::from_ranked(collect(tokens)?)
    }

    /// [`Vocab::from_ranks`] of tokens that are collected.
    ///
    /// The merges of lower ranks bring most tokens down to two, which merge. One that they do not may still come down by
    /// tokens of higher ranks.
    pub(crate) fn from_ranked(tokens: Tokens) -> Result<Self> {
        let byte_ids = byte_ids(&tokens)?;
        let mut pairs = Pairs::with_capacity(tokens.len());
        let mut unreachable = Vec::new();
        let (mut ids, mut scratch, mut parts, control) = (Vec::new(), Scratch::default(), Vec::new(), Control::new());
        for id in 0..tokens.len() as u32 {
            let token = tokens.get(id).unwrap_or_default();
            check_ranked(id, token)?;
            if token.len() < 2 {
                continue;
            }
            ids.clear();
            Merges { pairs: &pairs, byte_ids: &byte_ids }.encode(token, &mut scratch, &control, &mut ids)?;
            let pair = match ids[..] {
                [left, right] => Some((left, right)),
                _ => last_pair(&tokens, token, &mut parts),
            };
            match pair {
                Some(pair) => {
                    let is_new = pairs.push(pair, id, token);
                    debug_assert!(is_new, "two tokens of the same bytes");
                }
                None => unreachable.push(id),
            }
        }
        let ignore_merges = !unreachable.is_empty();
        Ok(Self { tokens, pairs, byte_ids, unreachable, ignore_merges, borders: OnceLock::new() })
    }

    /// The vocabulary of a file whose merges are known to make the products.
    pub(crate) fn from_resolved(parts: Resolved, ignore_merges: bool) -> Result<Self> {
        let Resolved { tokens, merges, products, .. } = parts;
        let byte_ids = byte_ids(&tokens)?;
        let pairs = pair_table(&tokens, &merges, &products)?;
        let unreachable = unreachable(&tokens, &pairs, &merges, &byte_ids)?;
        let ignore_merges = ignore_merges && !unreachable.is_empty();
        Ok(Self { tokens, pairs, byte_ids, unreachable, ignore_merges, borders: OnceLock::new() })
    }

    fn from_parts(tokens: Tokens, merges: Vec<Pair>, ignore_merges: bool) -> Result<Self> {
        let products = products(&tokens, &merges)?;
        Self::from_resolved(Resolved { tokens, merges, products, special: BTreeSet::new() }, ignore_merges)
    }

    /// Number of ids, holes included.
    #[expect(clippy::len_without_is_empty, reason = "a vocabulary has at least the 256 bytes")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes of `id`; `None` for a hole and past the last id.
    #[inline]
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id).filter(|token| !token.is_empty())
    }

    /// The id of the token spelled `bytes`.
    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.tokens.id(bytes)
    }

    /// The merges in order of rank.
    pub fn merges(&self) -> &[Pair] {
        self.pairs.merges()
    }

    /// Rank and product of the merge of two tokens; `None` when they never merge.
    pub fn merge_of(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let rank = self.pairs.rank(left, right);
        (rank != NO_RANK).then(|| (rank, self.pairs.product(rank)))
    }

    /// The id of every single byte.
    pub fn byte_ids(&self) -> &[u32; 256] {
        &self.byte_ids
    }

    /// The tokens that do not encode to themselves by merges alone, ascending.
    pub fn unreachable(&self) -> &[u32] {
        &self.unreachable
    }

    /// Whether all ids are below 2¹⁶.
    pub(crate) fn is_narrow(&self) -> bool {
        self.len() <= 1 << 16
    }

    /// Whether a piece that is an unreachable token is still that token.
    pub fn ignore_merges(&self) -> bool {
        self.ignore_merges
    }

    /// A copy source of fixed size for the bytes of `id`, see [`Tokens::window`].
    #[inline]
    pub(crate) fn window(&self, id: u32) -> Option<(&[u8; 16], usize)> {
        self.tokens.window(id)
    }

    /// The id of a whole piece where looking it up first is exact.
    #[inline]
    pub(crate) fn whole_piece(&self, piece: &[u8]) -> Option<u32> {
        if self.unreachable.is_empty() || self.ignore_merges { self.tokens.id(piece) } else { None }
    }

    /// The rank of the merge of two ids, if there is one.
    pub(crate) fn merge_rank(&self, left: u32, right: u32) -> Option<u32> {
        Some(self.pairs.rank(left, right)).filter(|&rank| rank != NO_RANK)
    }

    /// The id that the merge of `rank` makes.
    pub(crate) fn merge_product(&self, rank: u32) -> u32 {
        self.pairs.product(rank)
    }

    /// Appends the ids of `piece`, as encoding makes them.
    pub(crate) fn encode_piece(&self, piece: &[u8], control: &Control, out: &mut Vec<u32>) -> Result<()> {
        if let Some(id) = self.whole_piece(piece) {
            out.push(id);
            return Ok(());
        }
        self.merge_piece(piece, &mut Scratch::default(), control, out)
    }

    /// Whether a piece spelled as the token `id` has this id alone.
    pub(crate) fn is_piece(&self, id: u32) -> bool {
        self.ignore_merges || self.unreachable.binary_search(&id).is_err()
    }

    pub(crate) fn merges_by_id(&self) -> Merges<'_> {
        Merges { pairs: &self.pairs, byte_ids: &self.byte_ids }
    }

    /// Where pieces fall apart; the first call takes some milliseconds.
    pub(crate) fn borders(&self) -> &Borders {
        self.borders.get_or_init(|| {
            // A whole piece may be a token that no part of a piece is.
            let is_unreachable = |id| self.unreachable.binary_search(&id).is_ok();
            let is_other = |char: &[u8]| self.ignore_merges && self.tokens.id(char).is_some_and(is_unreachable);
            let merges = self.merges_by_id();
            Borders::new(&self.tokens, merges, is_other)
        })
    }

    /// [`Vocab::borders`], once something has asked for them.
    pub(crate) fn made_borders(&self) -> Option<&Borders> {
        self.borders.get()
    }

    /// Appends the ids of `piece` by merges alone.
    pub(crate) fn merge_piece(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        control: &Control,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        self.merges_by_id().encode(piece, scratch, control, out)
    }
}

fn collect<T: AsRef<[u8]>>(tokens: &[T]) -> Result<Tokens> {
    let n = tokens.iter().rposition(|token| !token.as_ref().is_empty()).map_or(0, |last| last + 1);
    let mut set = Tokens::with_capacity(n);
    set.extend(tokens[..n].iter().map(AsRef::as_ref))?;
    Ok(set)
}

/// The bytes of both sides of merge `rank`.
fn spell(tokens: &Tokens, (left, right): Pair, rank: usize) -> Result<Vec<u8>> {
    let side = |id| {
        tokens.get(id).filter(|token| !token.is_empty()).ok_or_else(|| {
            let n = tokens.len();
            Error::Vocab(format!(
                "merge {rank} is ({left}, {right}), but there is no token {id}; {n} ids are known there"
            ))
        })
    };
    Ok([side(left)?, side(right)?].concat())
}

fn byte_ids(tokens: &Tokens) -> Result<[u32; 256]> {
    let mut ids = [0; 256];
    for (byte, id) in (0..=255).zip(&mut ids) {
        *id = tokens.id(&[byte]).ok_or_else(|| {
            Error::Vocab(format!("byte {byte:#04x} is missing, expected a token for each of the 256 bytes"))
        })?;
    }
    Ok(ids)
}

/// The token that each merge makes.
fn products(tokens: &Tokens, merges: &[Pair]) -> Result<Vec<u32>> {
    let product = |(rank, &pair): (usize, &Pair)| {
        let token = spell(tokens, pair, rank)?;
        tokens.id(&token).ok_or_else(|| {
            let text = token.escape_ascii();
            Error::Vocab(format!("merge {rank} is {pair:?} and spells \"{text}\", which is not a token"))
        })
    };
    merges.iter().enumerate().map(product).collect()
}

fn pair_table(tokens: &Tokens, merges: &[Pair], products: &[u32]) -> Result<Pairs> {
    if merges.len() >= 1 << ID_BITS {
        return Err(Error::Vocab(format!("expected fewer than {} merges, got {}", 1 << ID_BITS, merges.len())));
    }
    let mut pairs = Pairs::with_capacity(merges.len());
    for (rank, (&pair, &product)) in merges.iter().zip(products).enumerate() {
        if rank % TOGETHER == 0 {
            pairs.fetch(&merges[rank..merges.len().min(rank + TOGETHER)]);
        }
        let token = tokens.get(product).unwrap_or_default();
        if !pairs.push(pair, product, token) {
            let text = token.escape_ascii();
            return Err(Error::Vocab(format!("merge {rank} repeats {pair:?}, which spells \"{text}\"")));
        }
    }
    Ok(pairs)
}

fn check_ranked(id: u32, token: &[u8]) -> Result<()> {
    if token.len() <= MAX_RANKED_BYTES {
        return Ok(());
    }
    let n = token.len();
    Err(Error::Vocab(format!("token {id} has {n} bytes, expected at most {MAX_RANKED_BYTES} in a rank file")))
}

/// A span of the token under way and the rank of the bytes that it and the next span spell.
#[derive(Clone, Copy)]
struct Part {
    start: usize,
    rank: u32,
}

/// The two tokens that merge into `token` under the order of ranks; `None` when its bytes never come down to two.
fn last_pair(tokens: &Tokens, token: &[u8], parts: &mut Vec<Part>) -> Option<Pair> {
    let rank = |start: usize, end: usize| tokens.id(&token[start..end]).unwrap_or(u32::MAX);
    let n = token.len();
    parts.clear();
    parts.extend(
        (0..n).map(|start| Part { start, rank: if start + 1 < n { rank(start, start + 2) } else { u32::MAX } }),
    );
    let start_of = |parts: &[Part], i: usize| parts.get(i).map_or(n, |part| part.start);
    while parts.len() > 2 {
        let (at, lowest) =
            parts.iter().enumerate().min_by_key(|(_, part)| part.rank).map_or((0, u32::MAX), |(i, p)| (i, p.rank));
        if lowest == u32::MAX {
            return None;
        }
        parts.remove(at + 1);
        if at > 0 {
            parts[at - 1].rank = rank(parts[at - 1].start, start_of(parts, at + 1));
        }
        let is_last = at + 1 == parts.len();
        parts[at].rank = if is_last { u32::MAX } else { rank(parts[at].start, start_of(parts, at + 2)) };
    }
    let middle = start_of(parts, 1);
    tokens.id(&token[..middle]).zip(tokens.id(&token[middle..]))
}
