//! The ids of one piece: the lowest rank first, the leftmost of equals first, until nothing merges.
//!
//! Short pieces scan for the minimum on the stack, O(n²) with a tiny constant; longer ones keep a heap over linked
//! symbols, O(n log n). Both equal [`crate::naive::encode_piece`] on every vocabulary that training makes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::pairs::{NO_RANK, Pairs};

/// The longest piece for the scan; the two methods cost the same somewhere between 30 and 60 bytes.
pub(crate) const SHORT: usize = 48;

/// Heap pops between two looks at the control.
const CHECK_EVERY: u32 = 1 << 16;

/// A linked symbol of a long piece; `rank` is that of the pair with the next one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    previous: u32,
    next: u32,
    id: u32,
    rank: u32,
}

/// No neighbour.
const END: u32 = u32::MAX;

/// Memory that long pieces reuse.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    heap: Vec<Reverse<u64>>,
}

/// Appends the ids of `piece` to `out`.
pub(crate) fn merge_piece(
    pairs: &Pairs,
    byte_ids: &[u32; 256],
    piece: &[u8],
    scratch: &mut Scratch,
    control: &Control,
    out: &mut Vec<u32>,
) -> Result<()> {
    if piece.len() <= SHORT {
        let mut ids = [0; SHORT];
        let n = merge_short(pairs, byte_ids, piece, &mut ids);
        out.extend_from_slice(&ids[..n]);
        Ok(())
    } else {
        merge_long(pairs, byte_ids, piece, scratch, control, out)
    }
}

/// Fills `ids` with the ids of a piece of at most [`SHORT`] bytes and returns how many there are.
///
/// Symbols stay where they start; `alive` has a bit for each one, and ranks[i] belongs to the pair of symbol i and the
/// next alive one.
fn merge_short(pairs: &Pairs, byte_ids: &[u32; 256], piece: &[u8], ids: &mut [u32; SHORT]) -> usize {
    let n = piece.len();
    let mut ranks = [NO_RANK; SHORT];
    for (id, &byte) in ids.iter_mut().zip(piece) {
        *id = byte_ids[usize::from(byte)];
    }
    for (rank, pair) in ranks.iter_mut().zip(piece.windows(2)) {
        *rank = pairs.byte_rank(pair[0], pair[1]);
    }
    let mut alive = (1_u64 << n) - 1;
    loop {
        let (mut at, mut lowest) = (0, NO_RANK);
        for (i, &rank) in ranks[..n].iter().enumerate() {
            if rank < lowest {
                (at, lowest) = (i, rank);
            }
        }
        if lowest == NO_RANK {
            break;
        }
        let above = |i: usize| alive & (u64::MAX << i << 1);
        let merged = above(at).trailing_zeros() as usize;
        let next = above(merged).trailing_zeros() as usize;
        let before = alive & !(u64::MAX << at);
        alive &= !(1 << merged);
        ids[at] = pairs.product(lowest);
        ranks[merged] = NO_RANK;
        ranks[at] = if next < n { pairs.rank(ids[at], ids[next]) } else { NO_RANK };
        if before != 0 {
            let previous = before.ilog2() as usize;
            ranks[previous] = pairs.rank(ids[previous], ids[at]);
        }
    }
    let mut n_ids = 0;
    while alive != 0 {
        ids[n_ids] = ids[alive.trailing_zeros() as usize];
        n_ids += 1;
        alive &= alive - 1;
    }
    n_ids
}

fn merge_long(
    pairs: &Pairs,
    byte_ids: &[u32; 256],
    piece: &[u8],
    scratch: &mut Scratch,
    control: &Control,
    out: &mut Vec<u32>,
) -> Result<()> {
    if piece.len() >= END as usize {
        return Err(Error::Argument(format!("expected pieces below 4 GiB, got one of {} bytes", piece.len())));
    }
    let Scratch { symbols, heap } = scratch;
    link(pairs, byte_ids, piece, symbols);
    heap.clear();
    heap.extend((0..).zip(symbols.iter()).filter(|(_, s)| s.rank != NO_RANK).map(|(at, s)| entry(s.rank, at)));
    let mut queue = BinaryHeap::from(std::mem::take(heap));
    let mut pops = 0;
    while let Some(Reverse(top)) = queue.pop() {
        let (rank, at) = ((top >> 32) as u32, top as u32);
        // A pair that changed since it was queued has another rank now, or none.
        if symbols[at as usize].rank == rank {
            merge_at(pairs, symbols, at, |rank, at| queue.push(entry(rank, at)));
        }
        pops += 1;
        if pops % CHECK_EVERY == 0 {
            control.check()?;
        }
    }
    *heap = queue.into_vec();
    let mut at = 0;
    while at != END {
        out.push(symbols[at as usize].id);
        at = symbols[at as usize].next;
    }
    Ok(())
}

/// One symbol a byte, each linked to its neighbours.
fn link(pairs: &Pairs, byte_ids: &[u32; 256], piece: &[u8], symbols: &mut Vec<Symbol>) {
    symbols.clear();
    symbols.extend((0..).zip(piece).map(|(at, &byte): (u32, &u8)| Symbol {
        previous: at.wrapping_sub(1), // END for the first one
        next: at + 1,
        id: byte_ids[usize::from(byte)],
        rank: NO_RANK,
    }));
    for (symbol, pair) in symbols.iter_mut().zip(piece.windows(2)) {
        symbol.rank = pairs.byte_rank(pair[0], pair[1]);
    }
    if let Some(last) = symbols.last_mut() {
        last.next = END;
    }
}

/// Merges the pair at `at` and reports the ranks of its new neighbours.
fn merge_at(pairs: &Pairs, symbols: &mut [Symbol], at: u32, mut report: impl FnMut(u32, u32)) {
    let Symbol { previous, next, rank, .. } = symbols[at as usize];
    let id = pairs.product(rank);
    let after = symbols[next as usize].next;
    symbols[next as usize].rank = NO_RANK;
    let mut right = NO_RANK;
    if after != END {
        symbols[after as usize].previous = at;
        right = pairs.rank(id, symbols[after as usize].id);
    }
    symbols[at as usize] = Symbol { previous, next: after, id, rank: right };
    if right != NO_RANK {
        report(right, at);
    }
    if previous != END {
        let left = pairs.rank(symbols[previous as usize].id, id);
        symbols[previous as usize].rank = left;
        if left != NO_RANK {
            report(left, previous);
        }
    }
}

/// A heap entry: lowest rank first, then leftmost.
fn entry(rank: u32, at: u32) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | u64::from(at))
}
