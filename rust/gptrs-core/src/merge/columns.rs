//! AVX-512: sixteen pieces merging together, one in each lane of the registers.
//!
//! A round merges the lowest pair of each piece. All of it is done for sixteen at once, without branches, and their look-ups
//! wait for memory side by side. Pieces of about the same length go together, as a round costs the same however many still
//! merge.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Merges, NOTHING, PLACE_BITS, Scan, Start};
use crate::pairs::{Asked, NO_RANK};
use crate::simd::avx512::{load_words, store};

/// The most tokens that a piece may start with.
pub(super) const ROWS: usize = 32;

const LAST_ROW: u32 = ROWS as u32 - 1;

const LANES: usize = 16;

/// Columns under way.
const N_COLUMNS: usize = 4;

/// Pieces that are sorted by length together.
const TOGETHER: usize = 128;

type Row = [u32; LANES];

/// The pieces in columns: a symbol stays in the row that it starts in. Its order is the rank of the pair of it and the next one,
/// then the row, so that the least is the leftmost of the lowest; ranks are guesses, as in [`super::Scan`].
#[derive(Debug, Clone)]
struct Columns {
    ids: [Row; ROWS],
    orders: [Row; ROWS],
    /// A bit for each symbol that is left.
    alive: Row,
    /// Rows that are in use.
    n: usize,
    /// What is still to be looked at.
    merged: [Merged; ROWS],
    n_rounds: usize,
    /// The pairs beside those of this round.
    asked: [Asked; 2],
    step: Step,
}

/// What a round is about: a bit for each piece that has one, and its row.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// What was merged.
    merging: u16,
    at: Row,
    /// The symbols before and behind it.
    has_left: u16,
    previous: Row,
    has_right: u16,
}

impl Step {
    const NONE: Self = Self { merging: 0, at: [0; LANES], has_left: 0, previous: [0; LANES], has_right: 0 };
}

/// What has merged in a round.
#[derive(Debug, Clone, Copy)]
struct Merged {
    /// A bit for each piece that took part.
    which: u16,
    ranks: Row,
    left: Row,
    right: Row,
}

impl Merged {
    const NONE: Self = Self { which: 0, ranks: [0; LANES], left: [0; LANES], right: [0; LANES] };
}

/// Memory for the pieces under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room {
    columns: Vec<Columns>,
}

/// Appends to `ids` those of the pieces that start with tokens, and says in `places` where; those of none, and of more than
/// there are rows, are left out. More is added to `tokens`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn encode(
    merges: Merges<'_>,
    starts: &[Start<'_>],
    tokens: &mut Vec<u32>,
    room: &mut Room,
    ids: &mut Vec<u32>,
    places: &mut [Range<usize>],
) {
    room.columns.resize(N_COLUMNS, Columns::EMPTY);
    let n_tokens = tokens.len();
    // Sixteen may be read from each place on, and the ranks stand behind.
    tokens.resize(2 * n_tokens + 2 * LANES, 0);
    let (tokens, ranks) = tokens.split_at_mut(n_tokens + LANES);
    let mut asked = Asked::NONE;
    for (step, ranks) in ranks.as_chunks_mut().0.iter_mut().enumerate().take(n_tokens.div_ceil(LANES)) {
        let at = LANES * step;
        let Some((left, right)) = tokens[at..].first_chunk().zip(tokens[at + 1..].first_chunk()) else { break };
        merges.pairs.ask(load_words(left), load_words(right), &mut asked);
        store(merges.pairs.guess_sixteen(&asked), ranks);
    }
    for (starts, places) in starts.chunks(TOGETHER).zip(places.chunks_mut(TOGETHER)) {
        let mut by_len = [0; TOGETHER];
        let n = sort(starts, &mut by_len);
        for numbers in by_len[..n].chunks(N_COLUMNS * LANES) {
            let groups = || numbers.chunks(LANES);
            for (columns, numbers) in room.columns.iter_mut().zip(groups()) {
                columns.start(starts, numbers, tokens, ranks);
            }
            let columns = &mut room.columns[..groups().len()];
            loop {
                // While some wait for memory, others go on.
                let mut goes_on = false;
                for columns in &mut *columns {
                    goes_on |= columns.merge(merges);
                }
                if !goes_on {
                    break;
                }
                for columns in &mut *columns {
                    columns.rank(merges);
                }
            }
            for (columns, numbers) in columns.iter().zip(groups()) {
                columns.finish(merges, starts, numbers, tokens, ids, places);
            }
        }
    }
}

/// The numbers of pieces of one token to as many as there are rows, the longest first; how many these are.
fn sort(starts: &[Start<'_>], by_len: &mut [u8; TOGETHER]) -> usize {
    let mut counts = [0; ROWS + 1];
    starts.iter().filter(|start| start.tokens.len() <= ROWS).for_each(|start| counts[start.tokens.len()] += 1);
    let mut n = 0;
    for count in counts[1..].iter_mut().rev() {
        (n, *count) = (n + *count, n);
    }
    for (i, start) in starts.iter().enumerate().filter(|(_, start)| (1..=ROWS).contains(&start.tokens.len())) {
        by_len[counts[start.tokens.len()]] = i as u8;
        counts[start.tokens.len()] += 1;
    }
    n
}

/// Sixteen times the same.
#[inline]
#[target_feature(enable = "avx512f")]
fn all(word: u32) -> __m512i {
    _mm512_set1_epi32(word as i32)
}

/// The place of the lowest bit of each word; 2³² - 1 without one.
#[inline]
#[target_feature(enable = "avx512f,avx512cd")]
fn lowest_bit(words: __m512i) -> __m512i {
    highest_bit(_mm512_and_si512(words, _mm512_sub_epi32(_mm512_setzero_si512(), words)))
}

/// The same of the highest bit.
#[inline]
#[target_feature(enable = "avx512f,avx512cd")]
fn highest_bit(words: __m512i) -> __m512i {
    _mm512_sub_epi32(all(31), _mm512_lzcnt_epi32(words))
}

/// The number of the word in this row, below that of rows, and in this column.
#[inline]
#[target_feature(enable = "avx512f")]
fn place(row: __m512i, column: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_slli_epi32::<4>(_mm512_and_si512(row, all(LAST_ROW))), column)
}

/// In each column the word of this row, where there is a bit; else 0.
#[inline]
#[target_feature(enable = "avx512f")]
fn get(rows: &[Row; ROWS], which: u16, row: __m512i) -> __m512i {
    let none = _mm512_setzero_si512();
    // SAFETY: a place is below the number of words.
    unsafe { _mm512_mask_i32gather_epi32::<4>(none, which, place(row, load_words(&COLUMNS)), rows.as_ptr().cast()) }
}

/// Sets in each column the word of this row, where there is a bit.
#[inline]
#[target_feature(enable = "avx512f")]
fn set(rows: &mut [Row; ROWS], which: u16, row: __m512i, words: __m512i) {
    let place = place(row, load_words(&COLUMNS));
    // SAFETY: a place is below the number of words, and columns differ, so none is set twice.
    unsafe { _mm512_mask_i32scatter_epi32::<4>(rows.as_mut_ptr().cast(), which, place, words) }
}

/// The numbers of columns.
const COLUMNS: Row = {
    let mut columns = [0; LANES];
    let mut i = 0;
    while i < LANES {
        columns[i] = i as u32;
        i += 1;
    }
    columns
};

impl Columns {
    const EMPTY: Self = Self {
        ids: [[0; LANES]; ROWS],
        orders: [[0; LANES]; ROWS],
        alive: [0; LANES],
        n: 0,
        merged: [Merged::NONE; ROWS],
        n_rounds: 0,
        asked: [Asked::NONE; 2],
        step: Step::NONE,
    };

    /// Takes at most sixteen pieces, of which the longest is the first, that start with these tokens; `ranks` are those of
    /// each token and the one behind it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn start(&mut self, starts: &[Start<'_>], numbers: &[u8], tokens: &[u32], ranks: &[u32]) {
        let (mut froms, mut lens) = ([0; LANES], [0; LANES]);
        for ((from, len), &number) in froms.iter_mut().zip(&mut lens).zip(numbers) {
            let start = &starts[usize::from(number)];
            (*from, *len) = (start.tokens.start as u32, start.tokens.len().min(ROWS) as u32);
        }
        (self.n, self.n_rounds) = (lens[0] as usize, 0);
        let (from, len, n) = (load_words(&froms), load_words(&lens), all(tokens.len().min(ranks.len()) as u32));
        let rows = self.ids.iter_mut().zip(&mut self.orders);
        for (row, (ids, orders)) in (0..).zip(rows).take(self.n) {
            let place = _mm512_add_epi32(from, all(row));
            let is_there = _mm512_cmplt_epu32_mask(all(row), len) & _mm512_cmplt_epu32_mask(place, n);
            let is_pair = is_there & _mm512_cmplt_epu32_mask(all(row + 1), len);
            let none = all(NO_RANK);
            // SAFETY: the places are below the number of tokens, and below that of ranks.
            let [id, rank] = unsafe {
                [
                    _mm512_mask_i32gather_epi32::<4>(none, is_there, place, tokens.as_ptr().cast()),
                    _mm512_mask_i32gather_epi32::<4>(none, is_pair, place, ranks.as_ptr().cast()),
                ]
            };
            store(id, ids);
            store(order(rank, all(row)), orders);
        }
        store(_mm512_xor_si512(_mm512_sllv_epi32(all(u32::MAX), len), all(u32::MAX)), &mut self.alive);
    }

    /// Merges the lowest pair of each piece; false when there is none.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn merge(&mut self, merges: Merges<'_>) -> bool {
        let Self { ids, orders, alive, n, merged, n_rounds, asked, step } = self;
        let nothing = all(NOTHING as u32);
        let least = orders.iter().take(*n).fold(nothing, |least, row| _mm512_min_epi32(least, load_words(row)));
        let merging = _mm512_cmplt_epi32_mask(least, nothing);
        step.merging = merging;
        if merging == 0 {
            return false;
        }
        let (rank, at) = (_mm512_srli_epi32::<PLACE_BITS>(least), _mm512_and_si512(least, all(LAST_ROW)));
        let left_alive = load_words(alive);
        let up = _mm512_sllv_epi32(all(u32::MAX), at);
        let above = _mm512_and_si512(left_alive, _mm512_add_epi32(up, up));
        let gone = lowest_bit(above);
        let behind = _mm512_and_si512(above, _mm512_sub_epi32(above, all(1)));
        let before = _mm512_andnot_si512(up, left_alive);
        let (left, right) = (get(ids, merging, at), get(ids, merging, gone));
        // Looked at in the end: nothing waits for the answer, which is seldom no.
        if let Some(merged) = merged.get_mut(*n_rounds) {
            merged.which = merging;
            store(rank, &mut merged.ranks);
            store(left, &mut merged.left);
            store(right, &mut merged.right);
            merges.pairs.prefetch_merges(&merged.ranks);
        }
        *n_rounds += 1;
        let id = merges.pairs.products_of(merging, rank);
        let (has_left, has_right) = (
            _mm512_mask_test_epi32_mask(merging, before, before),
            _mm512_mask_test_epi32_mask(merging, behind, behind),
        );
        let (previous, next) = (highest_bit(before), lowest_bit(behind));
        let (left, right) = (get(ids, has_left, previous), get(ids, has_right, next));
        merges.pairs.ask(left, id, &mut asked[0]);
        merges.pairs.ask(id, right, &mut asked[1]);
        merges.pairs.prefetch_sixteen(&asked[0]);
        merges.pairs.prefetch_sixteen(&asked[1]);
        set(ids, merging, at, id);
        set(orders, merging, gone, nothing);
        (step.has_left, step.has_right) = (has_left, has_right);
        store(at, &mut step.at);
        store(previous, &mut step.previous);
        let dead = _mm512_sllv_epi32(all(1), gone);
        store(_mm512_mask_andnot_epi32(left_alive, merging, dead, left_alive), alive);
        true
    }

    /// Sees how the pairs merge that the last round has made.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn rank(&mut self, merges: Merges<'_>) {
        let Self { orders, asked, step, .. } = self;
        if step.merging == 0 {
            return;
        }
        let [left, right] = [0, 1].map(|i| merges.pairs.guess_sixteen(&asked[i]));
        let right = _mm512_mask_blend_epi32(step.has_right, all(NO_RANK), right);
        let (previous, at) = (load_words(&step.previous), load_words(&step.at));
        set(orders, step.has_left, previous, order(left, previous));
        set(orders, step.merging, at, order(right, at));
    }

    /// Appends the ids of each piece; those of which a guess was wrong are merged once more, each pair looked at before.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn finish(
        &self,
        merges: Merges<'_>,
        starts: &[Start<'_>],
        numbers: &[u8],
        tokens: &[u32],
        ids: &mut Vec<u32>,
        places: &mut [Range<usize>],
    ) {
        let mut wrong = 0;
        for Merged { which, ranks, left, right } in self.merged.iter().take(self.n_rounds) {
            wrong |= which & !merges.pairs.are_merges(load_words(ranks), load_words(left), load_words(right));
        }
        let (mut n, n_alive) = (ids.len(), self.alive.iter().map(|alive| alive.count_ones() as usize).sum::<usize>());
        ids.resize(n + n_alive + LANES, 0);
        for (column, (&number, &alive)) in (0..).zip(numbers.iter().zip(&self.alive)) {
            let from = n;
            for first in (0..self.n).step_by(LANES) {
                // Its symbols from the first of these rows on.
                let place = place(_mm512_add_epi32(load_words(&COLUMNS), all(first as u32)), all(column));
                // SAFETY: there are sixteen columns, so that a place is below the number of words.
                let found = unsafe { _mm512_i32gather_epi32::<4>(place, self.ids.as_ptr().cast()) };
                let which = (alive >> first) as u16;
                if let Some(room) = ids[n..].first_chunk_mut() {
                    store(_mm512_maskz_compress_epi32(which, found), room);
                }
                n += which.count_ones() as usize;
            }
            places[usize::from(number)] = from..n;
        }
        ids.truncate(n);
        for number in (0..LANES).filter(|i| wrong >> i & 1 == 1).map(|i| usize::from(numbers[i])) {
            let mut scan = Scan::<ROWS>::EMPTY;
            scan.start_with(merges, &tokens[starts[number].tokens.clone()]);
            while scan.step(merges) {}
            scan.finish(ids);
            places[number] = n..ids.len();
            n = ids.len();
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn order(ranks: __m512i, rows: __m512i) -> __m512i {
    _mm512_or_si512(_mm512_slli_epi32::<PLACE_BITS>(ranks), rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::Pairs;
    use crate::pairs::tests::{any_pair, any_pairs};
    use crate::simd::Level;

    /// The lowest rank first, the leftmost of equals first, until nothing merges.
    fn merge_each(pairs: &Pairs, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let ranks = ids.windows(2).map(|pair| pairs.rank(pair[0], pair[1]));
            let Some((rank, at)) = ranks.zip(0..).min().filter(|&(rank, _)| rank != NO_RANK) else { return ids };
            ids.splice(at..at + 2, [pairs.product(rank)]);
        }
    }

    #[test]
    fn pieces_with_wrong_guesses_merge_as_others() {
        if !Level::Avx512.is_available() {
            return;
        }
        for stride in [1, 2] {
            let pairs = any_pairs(stride);
            let all = (100_000..500_000).map(any_pair);
            let is_wrong = |&(left, right): &(u32, u32)| {
                pairs.guess_at(Pairs::place(left, right), left, right) != pairs.rank(left, right)
            };
            let wrong: Vec<_> = all.filter(is_wrong).collect();
            assert!(wrong.len() > 20, "{} guesses are wrong", wrong.len());
            // Of each length, some with such a pair at a place of its own and merges beside it, some without.
            let (mut tokens, mut starts, mut state) = (Vec::new(), Vec::new(), 1_u32);
            for i in 0..1000 {
                let from = tokens.len();
                for j in 0..i % (ROWS + 3) {
                    state = if j % 2 == 0 { state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) } else { state };
                    let (left, right) = pairs.merges()[state as usize >> 8 & 0x7FFF];
                    tokens.push(if j % 2 == 0 { left } else { right });
                }
                if let Some(two) = tokens[from..].get_mut(i % 11..i % 11 + 2).filter(|_| i % 3 != 0) {
                    two.copy_from_slice(&<[u32; 2]>::from(wrong[i % wrong.len()]));
                }
                starts.push(Start { bytes: &[], tokens: from..tokens.len() });
            }
            let merges = Merges { pairs: &pairs, byte_ids: &[0; 256] };
            let before = tokens.clone();
            let (mut room, mut ids, mut places) = (Room::default(), vec![7], vec![0..0; starts.len()]);
            // SAFETY: this processor has the level.
            unsafe { encode(merges, &starts, &mut tokens, &mut room, &mut ids, &mut places) }
            let mut n_merged = 0;
            for (Start { tokens, .. }, place) in starts.iter().zip(places) {
                if tokens.len() > ROWS {
                    assert!(place.is_empty());
                    continue;
                }
                n_merged += usize::from(place.len() < tokens.len());
                let piece = &before[tokens.clone()];
                assert_eq!(ids[place], merge_each(&pairs, piece.to_vec()), "{piece:?}");
            }
            assert!(n_merged > 100, "{n_merged} pieces merge");
        }
    }
}
