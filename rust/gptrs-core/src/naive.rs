//! The textbook: byte-pair training and encoding as one would write them on a board.
//!
//! Quadratic and allocation-happy on purpose; the fast paths are tested equal to these functions.
//! Source: Sennrich et al. 2016 (arXiv 1508.07909), over bytes as in GPT-2.

use std::collections::BTreeMap;

/// A merge: the ids of the left and the right token.
pub type Pair = (u32, u32);

/// The first `n_merges` merges of byte-level BPE over words with their counts.
///
/// Ids 0..=255 are the bytes; merge `i` makes id `256 + i`. Each round merges the pair with the highest count, then
/// the smallest left id, then the smallest right id; it stops early when no pair occurs `min_count` times (at least
/// once). Overlapping windows count: "aaa" has two of (a, a); a merge takes the leftmost ones.
///
/// ```
/// let merges = gptrs_core::naive::train(&[(b"aaabdaaabac".to_vec(), 1)], 3, 1);
/// assert_eq!(merges, [(97, 97), (97, 98), (256, 257)]); // aa, ab, aaab
/// ```
pub fn train(words: &[(Vec<u8>, u64)], n_merges: usize, min_count: u64) -> Vec<Pair> {
    let words = words.iter().map(|(word, n)| (word.iter().map(|&b| u32::from(b)).collect(), *n)).collect();
    resume(words, 256, n_merges, min_count, |_, _| true)
}

/// As [`train`] over words that are tokens already: merge `i` makes id `first_id + i`.
///
/// A pair for which `allow(merges so far, pair)` is false is passed over.
pub fn resume(
    mut words: Vec<(Vec<u32>, u64)>,
    first_id: u32,
    n_merges: usize,
    min_count: u64,
    allow: impl Fn(&[Pair], Pair) -> bool,
) -> Vec<Pair> {
    let mut merges = Vec::new();
    while merges.len() < n_merges {
        let mut counts: BTreeMap<Pair, u64> = BTreeMap::new();
        for (ids, n) in &words {
            for pair in ids.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += n;
            }
        }
        counts.retain(|&pair, _| allow(&merges, pair));
        let best = counts.into_iter().max_by_key(|&(pair, n)| (n, std::cmp::Reverse(pair)));
        let Some((pair, _)) = best.filter(|&(_, n)| n >= min_count.max(1)) else { break };
        let id = first_id + merges.len() as u32;
        for (ids, _) in &mut words {
            *ids = merge(ids, pair, id);
        }
        merges.push(pair);
    }
    merges
}

/// `ids` with every leftmost non-overlapping `pair` replaced by `id`.
///
/// ```
/// assert_eq!(gptrs_core::naive::merge(&[1, 1, 1, 2], (1, 1), 9), [9, 1, 2]);
/// ```
pub fn merge(ids: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(ids.len());
    let mut i = 0;
    while i < ids.len() {
        if i + 1 < ids.len() && (ids[i], ids[i + 1]) == pair {
            merged.push(id);
            i += 2;
        } else {
            merged.push(ids[i]);
            i += 1;
        }
    }
    merged
}

/// The ids of one piece: its bytes, then every merge of `ranked` in order of rank, lowest first.
///
/// `byte_ids[b]` is the id of byte `b`; `ranked[i]` is `(pair, id)` of the merge with rank `i`.
pub fn encode_piece(piece: &[u8], byte_ids: &[u32; 256], ranked: &[(Pair, u32)]) -> Vec<u32> {
    let ranks: BTreeMap<Pair, (usize, u32)> =
        ranked.iter().enumerate().map(|(rank, &(pair, id))| (pair, (rank, id))).collect();
    let mut ids: Vec<u32> = piece.iter().map(|&b| byte_ids[usize::from(b)]).collect();
    while let Some((_, id, pair)) =
        ids.windows(2).filter_map(|w| ranks.get(&(w[0], w[1])).map(|&(rank, id)| (rank, id, (w[0], w[1])))).min()
    {
        ids = merge(&ids, pair, id);
    }
    ids
}

/// The ids of one piece under BPE-dropout: at each step the merges that could be made are taken in order of rank and
/// place, `skips` says for each whether it is dropped, and the first that is not is made.
///
/// Source: Provilkov et al. 2020 (arXiv 1910.13267), algorithm 1; draws that cannot matter are not taken.
pub fn encode_piece_dropout(
    piece: &[u8],
    byte_ids: &[u32; 256],
    ranked: &[(Pair, u32)],
    mut skips: impl FnMut() -> bool,
) -> Vec<u32> {
    let ranks: BTreeMap<Pair, usize> = ranked.iter().enumerate().map(|(rank, &(pair, _))| (pair, rank)).collect();
    let mut ids: Vec<u32> = piece.iter().map(|&b| byte_ids[usize::from(b)]).collect();
    loop {
        let pairs = ids.windows(2).enumerate();
        let mut possible: Vec<(usize, usize)> =
            pairs.filter_map(|(at, w)| ranks.get(&(w[0], w[1])).map(|&rank| (rank, at))).collect();
        possible.sort_unstable();
        let Some((rank, at)) = possible.into_iter().find(|_| !skips()) else { return ids };
        ids.splice(at..at + 2, [ranked[rank].1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encyclopedia_example_merges_aa_then_ab_then_aaab() {
        let merges = train(&[(b"aaabdaaabac".to_vec(), 1)], 3, 1);
        assert_eq!(merges, [(97, 97), (97, 98), (256, 257)]);
        let ranked: Vec<_> = merges.iter().enumerate().map(|(i, &pair)| (pair, 256 + i as u32)).collect();
        let byte_ids = std::array::from_fn(|b| b as u32);
        assert_eq!(encode_piece(b"aaabdaaabac", &byte_ids, &ranked), [258, 100, 258, 97, 99]);
    }

    #[test]
    fn training_stops_when_no_pair_is_left() {
        assert_eq!(train(&[(b"ab".to_vec(), 3)], 10, 1), [(97, 98)]);
        assert_eq!(train(&[(b"ab".to_vec(), 3)], 10, 4), []);
    }
}
