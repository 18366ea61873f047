//! Best-fit decreasing: the longest piece first, each into the row with the least room that still holds it.
//!
//! A counting sort gives the order. Rows with equal room are a stack, and a bit for each room, 64 of them under one
//! bit of the level above, finds the next stack that is not empty: a piece costs the same however many rows there are.

/// No row, or no piece.
pub(super) const NONE: u32 = u32::MAX;

/// Replaces each length, 0 to `seq_len`, by the row of its piece, [`NONE`] for length 0.
///
/// Pieces of equal length come in their order; of rows with equal room the one that got a piece last is taken; a piece
/// that fits nowhere opens the next row. `order` is room for the work, as long as `lens`, of fewer than [`NONE`].
/// Returns a number for each row, of no meaning: room that the caller may use.
pub(super) fn best_fit(lens: &mut [u32], seq_len: usize, order: &mut [u32]) -> Vec<u32> {
    let ends = sort(lens, seq_len, order);
    let mut rows = Rows::new(seq_len);
    for len in (1..=seq_len).rev() {
        for &i in &order[ends[len + 1] as usize..ends[len] as usize] {
            let (row, room) = rows.take(len);
            rows.put(row, room - len);
            lens[i as usize] = row;
        }
    }
    rows.under
}

/// Sorts the places of the lengths other than 0 by length, the longest first; returns where each length ends in
/// `order`, at `seq_len + 1` where the longest begins. Lengths of 0 become [`NONE`].
fn sort(lens: &mut [u32], seq_len: usize, order: &mut [u32]) -> Vec<u32> {
    let mut ends = vec![0u32; seq_len + 2];
    for &len in lens.iter() {
        ends[len as usize] += 1;
    }
    let mut start = 0;
    for n in ends[1..].iter_mut().rev() {
        (*n, start) = (start, start + *n);
    }
    for (i, len) in lens.iter_mut().enumerate() {
        if *len == 0 {
            *len = NONE;
            continue;
        }
        let place = &mut ends[*len as usize];
        order[*place as usize] = i as u32;
        *place += 1;
    }
    ends
}

/// Rows with room left, in a stack for each room.
struct Rows {
    seq_len: usize,
    /// One bit for each room: whether its stack holds a row; then one for each word of the level below, up to one word.
    levels: Vec<Vec<u64>>,
    /// The last row put on each stack.
    tops: Vec<u32>,
    /// For each row the one under it in its stack.
    under: Vec<u32>,
}

impl Rows {
    fn new(seq_len: usize) -> Self {
        let mut levels: Vec<Vec<u64>> = Vec::new();
        let mut n_bits = seq_len + 1;
        while levels.last().is_none_or(|level| level.len() > 1) {
            n_bits = n_bits.div_ceil(64);
            levels.push(vec![0; n_bits]);
        }
        Self { seq_len, levels, tops: vec![NONE; seq_len + 1], under: Vec::new() }
    }

    /// The row with the least room of at least `len`, a new one if there is none, and its room.
    #[inline]
    fn take(&mut self, len: usize) -> (u32, usize) {
        let Some(room) = self.least(len) else {
            self.under.push(NONE);
            return (self.under.len() as u32 - 1, self.seq_len);
        };
        let row = self.tops[room];
        self.tops[room] = self.under[row as usize];
        if self.tops[room] == NONE {
            let mut at = room;
            for level in &mut self.levels {
                level[at / 64] &= !(1 << (at % 64));
                if level[at / 64] != 0 {
                    break;
                }
                at /= 64;
            }
        }
        (row, room)
    }

    /// Puts a row on the stack of its room; a full one is done with.
    #[inline]
    fn put(&mut self, row: u32, room: usize) {
        if room == 0 {
            return;
        }
        self.under[row as usize] = self.tops[room];
        if self.tops[room] == NONE {
            let mut at = room;
            for level in &mut self.levels {
                level[at / 64] |= 1 << (at % 64);
                at /= 64;
            }
        }
        self.tops[room] = row;
    }

    /// The least room of at least `len` that a row has.
    #[inline]
    fn least(&self, len: usize) -> Option<usize> {
        let mut at = len;
        for (height, level) in self.levels.iter().enumerate() {
            let word = at / 64;
            let bits = level.get(word)? & (u64::MAX << (at % 64));
            if bits != 0 {
                let found = word * 64 + bits.trailing_zeros() as usize;
                let down = self.levels[..height].iter().rev();
                return Some(down.fold(found, |at, level| at * 64 + level[at].trailing_zeros() as usize));
            }
            at = word + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on a board: for each piece all rows are looked at.
    fn naive(lens: &[u32], seq_len: usize) -> Vec<u32> {
        let mut order: Vec<usize> = (0..lens.len()).filter(|&i| lens[i] > 0).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(lens[i])); // stable
        let mut rows: Vec<(u32, usize)> = Vec::new(); // room, when a piece came last
        let mut row_of = vec![NONE; lens.len()];
        for (now, i) in order.into_iter().enumerate() {
            let fitting = (0..rows.len()).filter(|&row| rows[row].0 >= lens[i]);
            let best = fitting.min_by_key(|&row| (rows[row].0, std::cmp::Reverse(rows[row].1)));
            let row = best.unwrap_or_else(|| {
                rows.push((seq_len as u32, 0));
                rows.len() - 1
            });
            rows[row] = (rows[row].0 - lens[i], now);
            row_of[i] = row as u32;
        }
        row_of
    }

    fn fast(lens: &[u32], seq_len: usize) -> (Vec<u32>, usize) {
        let mut rows = lens.to_vec();
        let n = best_fit(&mut rows, seq_len, &mut vec![0; lens.len()]).len();
        (rows, n)
    }

    #[test]
    fn a_board_example() {
        // 7 opens row 0 and 6 row 1, which 4 fills; the first 3 fills row 0, the second opens row 2.
        assert_eq!(fast(&[3, 7, 0, 6, 3, 4], 10), (vec![0, 0, NONE, 1, 2, 1], 3));
        // 7 opens row 0 and 6 row 1; 2 goes where less room is left, into row 0.
        assert_eq!(fast(&[6, 2, 7], 10), (vec![1, 0, 0], 2));
        // Rows with equal room: the last one that got a piece.
        assert_eq!(fast(&[6, 6, 2], 8), (vec![0, 1, 1], 2));
    }

    #[test]
    fn as_the_naive_one() {
        let mut random = 1u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        for case in 0..3000 {
            let seq_len = [1, 2, 5, 63, 64, 65, 300, 4096, 70_000, 300_000][below(10)];
            let limit = 1 + below(seq_len);
            let n = below(120);
            let lens: Vec<u32> = (0..n).map(|_| below(limit + 1) as u32).collect();
            let expected = naive(&lens, seq_len);
            let n_rows = expected.iter().filter(|&&row| row != NONE).max().map_or(0, |&row| row as usize + 1);
            assert_eq!(fast(&lens, seq_len), (expected, n_rows), "case {case}, {seq_len}");
        }
    }
}
