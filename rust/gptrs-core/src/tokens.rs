//! The spelling of every id in one arena, and the way back from bytes to id.

use std::hint::black_box;

use crate::error::{Error, Result};
use crate::pairs::ID_BITS;

/// Bytes that all tokens together may have: fifty times the largest vocabulary in use.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// Ids that a vocabulary may have: eight times the largest in use.
const MAX_IDS: u32 = (1 << ID_BITS) - 1;

/// An empty slot of the index.
const EMPTY: u64 = u64::MAX;

/// Tokens that are entered together.
const TOGETHER: usize = 32;

/// The part of a hash that an index entry keeps.
const UPPER: u64 = !0 << 32;

/// Token bytes by id. An empty token is a hole: an id without an ordinary token.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[starts[id]..starts[id + 1]]`.
    starts: Vec<u32>,
    /// Open addressing at a load of at most 1/2: the upper half of the hash, which spares most comparisons, and the id.
    index: Vec<u64>,
    longest: usize,
}

impl Tokens {
    /// An empty set with room for `n` tokens.
    pub(crate) fn with_capacity(n: usize) -> Self {
        let mut starts = Vec::with_capacity(n + 1);
        starts.push(0);
        Self { bytes: Vec::new(), starts, index: vec![EMPTY; (2 * n).next_power_of_two().max(16)], longest: 0 }
    }

    /// Gives the next id to `token`; an empty one makes a hole. The caller keeps to the capacity.
    pub(crate) fn push(&mut self, token: &[u8]) -> Result<()> {
        self.push_hashed(token, hash_bytes(token))
    }

    /// Gives the next ids to `tokens`: their slots are fetched side by side instead of one after the other.
    pub(crate) fn extend<'a>(&mut self, tokens: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        let mask = self.index.len() - 1;
        let (mut tokens, mut chunk) = (tokens.into_iter(), Vec::with_capacity(TOGETHER));
        loop {
            chunk.clear();
            chunk.extend(tokens.by_ref().take(TOGETHER).map(|token| (token, hash_bytes(token))));
            if chunk.is_empty() {
                return Ok(());
            }
            black_box(chunk.iter().fold(0, |all, (_, hash)| all | self.index[*hash as usize & mask]));
            chunk.iter().try_for_each(|&(token, hash)| self.push_hashed(token, hash))?;
        }
    }

    fn push_hashed(&mut self, token: &[u8], hash: u64) -> Result<()> {
        debug_assert!(2 * self.len() < self.index.len(), "the index was made for fewer tokens");
        let id = self.len() as u32;
        if id >= MAX_IDS {
            return Err(Error::Vocab(format!("expected at most {MAX_IDS} ids, got more")));
        }
        if self.bytes.len() + token.len() > MAX_TOTAL_BYTES {
            return Err(Error::Vocab(format!(
                "expected tokens of at most {MAX_TOTAL_BYTES} bytes in all, token {id} with {} bytes exceeds it",
                token.len()
            )));
        }
        if !token.is_empty() {
            let at = self.slot(token, hash);
            if self.index[at] != EMPTY {
                let (first, text) = (self.index[at] as u32, token.escape_ascii());
                return Err(Error::Vocab(format!(
                    "tokens {first} and {id} are both \"{text}\", expected distinct tokens"
                )));
            }
            self.index[at] = hash & UPPER | u64::from(id);
        }
        self.bytes.extend_from_slice(token);
        self.starts.push(self.bytes.len() as u32);
        self.longest = self.longest.max(token.len());
        Ok(())
    }

    /// Number of ids, holes included.
    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The bytes of `id`; empty for a hole, `None` past the last id.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.starts.get(id + 1)? as usize;
        Some(&self.bytes[self.starts[id] as usize..end])
    }

    /// The bytes of `id` and what follows them in the arena, 16 in all, and the length of `id`; a copy of fixed size is
    /// faster than one of the right size. `None` for long tokens, holes, and at the arena's end.
    #[inline]
    pub(crate) fn window(&self, id: u32) -> Option<(&[u8; 16], usize)> {
        let id = id as usize;
        let end = *self.starts.get(id + 1)? as usize;
        let start = self.starts[id] as usize;
        let n = end - start;
        if n == 0 || n > 16 { None } else { Some((self.bytes[start..].first_chunk()?, n)) }
    }

    /// The id spelled `token`.
    #[inline]
    pub(crate) fn id(&self, token: &[u8]) -> Option<u32> {
        if token.is_empty() || token.len() > self.longest {
            return None;
        }
        let entry = self.index[self.slot(token, hash_bytes(token))];
        if entry == EMPTY { None } else { Some(entry as u32) }
    }

    /// [`Tokens::id`] of many tokens: their memory is fetched side by side instead of one after the other.
    pub(crate) fn ids<const N: usize>(&self, tokens: [&[u8]; N]) -> [Option<u32>; N] {
        let mask = self.index.len() - 1;
        let hashes = tokens.map(hash_bytes);
        let entries = hashes.map(|hash| self.index[hash as usize & mask]);
        let places = entries.map(|entry| {
            let id = entry as u32 as usize;
            self.starts.get(id).copied().zip(self.starts.get(id.wrapping_add(1)).copied())
        });
        std::array::from_fn(|i| {
            let (entry, hash, token) = (entries[i], hashes[i], tokens[i]);
            match places[i] {
                Some((start, end))
                    if (entry ^ hash) & UPPER == 0 && self.bytes[start as usize..end as usize] == *token =>
                {
                    Some(entry as u32)
                }
                _ => self.id(token),
            }
        })
    }

    /// Where `token` is in the index, or the empty slot where it would be.
    fn slot(&self, token: &[u8], hash: u64) -> usize {
        let mask = self.index.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let entry = self.index[at];
            if entry == EMPTY || ((entry ^ hash) & UPPER == 0 && self.get(entry as u32) == Some(token)) {
                return at;
            }
            at = (at + 1) & mask;
        }
    }
}

/// A hash of short byte strings: eight bytes at a time, folded multiplication.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    let mut hash = bytes.len() as u64;
    for &word in words {
        hash = fold(hash ^ u64::from_le_bytes(word), 0x9E37_79B9_7F4A_7C15);
    }
    fold(hash ^ u64::from_le_bytes(tail), 0xD6E8_FEB8_6659_FD93)
}

/// The two halves of the product, mixed: every input bit reaches every output bit.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}
