//! Which tokens encode to themselves.
//!
//! Where every token has one merge that makes it, of a higher rank than the merges of its two sides, merges fire in the
//! order of their ranks, and a token comes out of its own bytes unless something crosses the border of its two sides
//! before both are whole. What stands at that border over time follows from undoing the merges of both sides, latest
//! first, so a few lookups decide; other vocabularies are encoded token by token.

use crate::control::Control;
use crate::error::Result;
use crate::merge::{Merges, Scratch};
use crate::naive::Pair;
use crate::pairs::Pairs;
use crate::parallel;
use crate::tokens::Tokens;

/// Tokens that one thread checks at a time.
const TASK_TOKENS: usize = 1 << 12;

/// The rank of what no merge makes.
const NO_MERGE: u32 = u32::MAX;

/// The tokens that do not come out of their own bytes, ascending.
pub(crate) fn unreachable(tokens: &Tokens, pairs: &Pairs, merges: &[Pair], byte_ids: &[u32; 256]) -> Result<Vec<u32>> {
    match Origins::new(tokens, pairs, merges) {
        Some(origins) => origins.unreachable(tokens),
        None => by_encoding(tokens, pairs, byte_ids),
    }
}

/// Encodes every token.
fn by_encoding(tokens: &Tokens, pairs: &Pairs, byte_ids: &[u32; 256]) -> Result<Vec<u32>> {
    let control = Control::new();
    let states = each_token(tokens, |id, token, (found, ids, scratch): &mut (Vec<_>, Vec<u32>, Scratch)| {
        ids.clear();
        Merges { pairs, byte_ids }.encode(token, scratch, &control, ids)?;
        if *ids != [id] {
            found.push(id);
        }
        Ok(())
    })?;
    Ok(states.into_iter().flat_map(|(found, ..)| found).collect())
}

/// Where each token comes from.
struct Origins<'a> {
    pairs: &'a Pairs,
    merges: &'a [Pair],
    /// The rank of the merge that makes each id.
    made_by: Vec<u32>,
}

impl<'a> Origins<'a> {
    /// `None` when two merges make the same token, or one of a lower rank needs what one of a higher rank makes.
    fn new(tokens: &Tokens, pairs: &'a Pairs, merges: &'a [Pair]) -> Option<Self> {
        let mut made_by = vec![NO_MERGE; tokens.len()];
        for (rank, &(left, right)) in (0..).zip(merges) {
            let is_earlier = |id: u32| {
                let is_byte = || tokens.get(id).is_some_and(|token| token.len() == 1);
                made_by[id as usize] != NO_MERGE || is_byte()
            };
            // A side without a merge never comes to be, and so neither does the token; ranks decide nothing then.
            let is_known = is_earlier(left) && is_earlier(right);
            let slot = &mut made_by[pairs.product(rank) as usize];
            if *slot != NO_MERGE || !is_known {
                return None;
            }
            *slot = rank;
        }
        Some(Self { pairs, merges, made_by })
    }

    fn unreachable(&self, tokens: &Tokens) -> Result<Vec<u32>> {
        let states = each_token(tokens, |id, token, found: &mut Vec<u32>| {
            let rank = self.made_by[id as usize];
            if token.len() > 1 && (rank == NO_MERGE || !self.holds(self.merges[rank as usize])) {
                found.push(id);
            }
            Ok(())
        })?;
        let own = states.concat();
        if own.is_empty() {
            return Ok(own);
        }
        let mut is_unreachable = vec![false; tokens.len()];
        own.iter().for_each(|&id| is_unreachable[id as usize] = true);
        for (rank, &(left, right)) in (0..).zip(self.merges) {
            is_unreachable[self.pairs.product(rank) as usize] |=
                is_unreachable[left as usize] || is_unreachable[right as usize];
        }
        Ok((0..tokens.len() as u32).filter(|&id| is_unreachable[id as usize]).collect())
    }

    /// Whether nothing merges across the border of two tokens while they are being made.
    fn holds(&self, (mut left, mut right): Pair) -> bool {
        loop {
            let (left_rank, right_rank) = (self.made_by[left as usize], self.made_by[right as usize]);
            let is_left = match (left_rank, right_rank) {
                (NO_MERGE, NO_MERGE) => return true,
                (NO_MERGE, _) => false,
                (_, NO_MERGE) => true,
                // Of equal ranks the left place merges first, so the right one is undone first.
                (left_rank, right_rank) => left_rank > right_rank,
            };
            if is_left {
                left = self.merges[left_rank as usize].1;
                if self.pairs.rank(left, right) < left_rank {
                    return false;
                }
            } else {
                right = self.merges[right_rank as usize].0;
                if self.pairs.rank(left, right) <= right_rank {
                    return false;
                }
            }
        }
    }
}

/// Calls `f` with every token on all cores; the states of runs of tokens, ascending.
pub(crate) fn each_token<S: Default + Send>(
    tokens: &Tokens,
    f: impl Fn(u32, &[u8], &mut S) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let n_tasks = tokens.len().div_ceil(TASK_TOKENS);
    let states = parallel::run(0, n_tasks, &Control::new(), Vec::new, |done: &mut Vec<(usize, S)>, task| {
        let mut state = S::default();
        for id in task * TASK_TOKENS..tokens.len().min((task + 1) * TASK_TOKENS) {
            match tokens.get(id as u32) {
                Some(token) if !token.is_empty() => f(id as u32, token, &mut state)?,
                _ => {}
            }
        }
        done.push((task, state));
        Ok(())
    })?;
    let mut states: Vec<_> = states.into_iter().flatten().collect();
    states.sort_unstable_by_key(|(task, _)| *task);
    Ok(states.into_iter().map(|(_, state)| state).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens and merges drawn at random: merges in any order of ranks, some of them never possible.
    fn random_vocabulary(seed: u64) -> (Tokens, Vec<Pair>, Vec<u32>) {
        let mut state = seed;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut spelled: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut merges: Vec<Pair> = Vec::new();
        for _ in 0..40 {
            let side = |draw: &mut dyn FnMut(usize) -> usize| match draw(3) {
                0 => b'a' as usize + draw(2),
                _ if spelled.len() > 256 => 256 + draw(spelled.len() - 256),
                _ => b'b' as usize,
            };
            let (left, right) = (side(&mut draw), side(&mut draw));
            let token = [spelled[left].as_slice(), &spelled[right]].concat();
            let is_new = !spelled.contains(&token);
            if token.len() < 12 && (is_new || draw(20) == 0) && !merges.contains(&(left as u32, right as u32)) {
                merges.push((left as u32, right as u32));
                if is_new {
                    spelled.push(token);
                }
            }
        }
        if draw(4) == 0 {
            let last = merges.len() - 1;
            merges.swap(draw(last), last);
        }
        let mut tokens = Tokens::with_capacity(spelled.len());
        spelled.iter().for_each(|token| tokens.push(token).unwrap());
        let product = |&(l, r): &Pair| [spelled[l as usize].as_slice(), &spelled[r as usize]].concat();
        let products = merges.iter().map(|pair| tokens.id(&product(pair)).unwrap()).collect();
        (tokens, merges, products)
    }

    #[test]
    fn undoing_merges_finds_what_encoding_every_token_finds() {
        let byte_ids = std::array::from_fn(|byte| byte as u32);
        let (mut n_structural, mut n_unreachable) = (0, 0);
        for seed in 0..3000 {
            let (tokens, merges, products) = random_vocabulary(seed);
            let mut pairs = Pairs::with_capacity(merges.len());
            for (&pair, &product) in merges.iter().zip(&products) {
                assert!(pairs.push(pair, product, tokens.get(product).unwrap()));
            }
            let slow = by_encoding(&tokens, &pairs, &byte_ids).unwrap();
            if let Some(origins) = Origins::new(&tokens, &pairs, &merges) {
                assert_eq!(origins.unreachable(&tokens).unwrap(), slow, "seed {seed}: {merges:?}");
                n_structural += 1;
                n_unreachable += slow.len();
            }
        }
        assert!(n_structural > 500 && n_unreachable > 500, "{n_structural} {n_unreachable}");
    }
}
