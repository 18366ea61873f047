//! The borders of a vocabulary, from its tokens.

use super::chars::{char_at, char_len, is_tail, pack, unpack};
use super::duos::Duos;
use super::solid::{Fronts, Lowest};
use super::{
    AFTER_SPACE, BREAKS, Borders, Char, FIRM, IN_ROW, LEFTS, N_CHARS, N_COLORS, N_UNITS, PARTIAL_BITS, RIGHTS, SOLID,
    SPACED, UNKNOWN, WHOLE_LEFT, WHOLE_RIGHT, pair_bit, partial_bit, partial_key,
};
use crate::merge::{Few, Merges};
use crate::pairs::NO_RANK;
use crate::tokens::Tokens;

/// From how many pairs of characters side by side in tokens on it pays to look for them among single characters; where tests
/// run, one is enough.
const MANY_PAIRS: usize = if cfg!(debug_assertions) { 1 } else { 1 << 13 };

impl Borders {
    /// Borders of `tokens`; `is_other` says of a character of at most three bytes whether it is another token when it stands
    /// alone.
    pub(crate) fn new(tokens: &Tokens, merges: Merges<'_>, is_other: impl Fn(&[u8]) -> bool) -> Self {
        let (mut whole, mut partial) = (Vec::new(), Vec::new());
        // A token that no merge makes may still be a whole piece.
        let mut ranks = vec![NO_RANK; tokens.len()];
        for (rank, product) in (0..).zip(merges.pairs.products()) {
            ranks[product as usize] = rank.min(ranks[product as usize]);
        }
        for (id, rank) in (0..).zip(ranks) {
            let token = tokens.get(id).unwrap_or_default();
            if !token.is_ascii() {
                collect(token, rank, &mut whole, &mut partial);
            }
        }
        whole.sort_unstable();
        whole.dedup();
        // Of equals the lowest rank.
        partial.sort_unstable();
        partial.dedup_by_key(|&mut (end, start, _)| (end, start));
        let n_bits = (32 * whole.len()).next_power_of_two().clamp(1 << 6, 1 << 28);
        let shift = 32 - n_bits.trailing_zeros();
        let units = vec![Char::default(); N_UNITS].into_boxed_slice().try_into();
        let units = units.unwrap_or_else(|_| unreachable!("as many as were made"));
        let (pairs, no_partial) = (vec![0; n_bits / 32], vec![0; (1 << PARTIAL_BITS) / 64]);
        let mut borders = Self {
            units,
            pairs,
            shift,
            partial: no_partial,
            has_many_pairs: whole.len() >= MANY_PAIRS,
            duos: Duos::new(&[]),
        };
        borders.units[UNKNOWN].meta = RIGHTS | LEFTS | BREAKS;
        let highest = borders.spell_chars(tokens.len() <= 1 << 16, merges, &Lowest::new(&partial), is_other);
        for unit in late(tokens, merges) {
            borders.units[unit].meta &= !(FIRM | SOLID | AFTER_SPACE);
            if let Some(spaced) = (0x80..0x800).contains(&unit).then_some(SPACED + unit) {
                borders.units[spaced].meta &= !AFTER_SPACE;
            }
        }
        borders.find_breaks(highest, &partial);
        (0..0x80).for_each(|ascii| borders.flag(ascii, WHOLE_RIGHT | WHOLE_LEFT));
        for &(left, right) in &whole {
            borders.flag(left, WHOLE_RIGHT);
            borders.flag(right, WHOLE_LEFT);
            let bit = pair_bit(left, right, shift);
            borders.pairs[bit as usize / 32] |= 1 << (bit % 32);
        }
        borders.color(&partial);
        borders.duos = borders.find_duos(&whole, merges, tokens.len() <= 1 << 16);
        borders
    }

    /// What those of `pairs` merge into that are a token each.
    fn find_duos(&self, pairs: &[(u32, u32)], merges: Merges<'_>, is_narrow: bool) -> Duos {
        let id = |code: u32| {
            let char = self.units[..N_CHARS].get(code as usize)?;
            (char.n_ids() == 1).then(|| char.first_id(is_narrow))
        };
        let duos = pairs.iter().filter_map(|&(left, right)| {
            let rank = merges.pairs.rank(id(left)?, id(right)?);
            (rank != NO_RANK).then(|| (left, right, merges.pairs.product(rank)))
        });
        Duos::new(&duos.collect::<Vec<_>>())
    }

    /// Sets the ids of all characters with an entry, and which of them are solid; by their fronts, the highest ranks that
    /// firm ones need.
    fn spell_chars(
        &mut self,
        is_narrow: bool,
        merges: Merges<'_>,
        lowest: &Lowest,
        is_other: impl Fn(&[u8]) -> bool,
    ) -> Fronts {
        let mut highest = Fronts::all(0);
        let set = |entry: &mut Char, text: &str| {
            let few = merges.few(text.as_bytes());
            let n_ids = if is_other(text.as_bytes()) { 0 } else { few.n };
            entry.ids = if is_narrow { [few.ids[0] | few.ids[1] << 16, few.ids[2], 0] } else { few.ids };
            entry.meta |= n_ids as u32;
            Few { n: n_ids, ..few }
        };
        for char in '\0'..='\u{FFFF}' {
            let entry = &mut self.units[char as usize];
            let few = set(entry, char.encode_utf8(&mut [0; 4]));
            if few.n == 1 && char.is_ascii() {
                entry.meta |= FIRM | SOLID | AFTER_SPACE;
            } else if few.n == 1 {
                let flags = lowest.flags(char as u32, few.highest);
                entry.meta |= flags;
                if flags & FIRM != 0 {
                    highest.raise(char as u32, few.highest);
                }
            }
        }
        let rank = |left, right| merges.pairs.byte_rank(left, right);
        for char in '\u{80}'..='\u{7FF}' {
            let text = format!(" {char}");
            let alone = self.units[char as usize].meta;
            let entry = &mut self.units[SPACED + char as usize];
            let few = set(entry, &text);
            // Its last byte stays behind, alone, until all are one token; or the character is done before.
            let &[space, a, b] = text.as_bytes() else { continue };
            let is_last = few.n == 1 && rank(space, a) < rank(a, b) && few.highest < lowest.behind(char as u32);
            entry.meta |= if is_last { SOLID } else { alone & AFTER_SPACE };
        }
        highest
    }

    /// Marks the characters that may take a part of a firm one behind them.
    fn find_breaks(&mut self, mut highest: Fronts, partial: &[(u32, u32, u32)]) {
        for &(end, start, rank) in partial {
            if highest.of_part(start).is_some_and(|&mut highest| rank < highest) {
                chars_with_end(&unpack(end)).for_each(|code| self.units[code].meta |= BREAKS);
            }
        }
    }

    fn flag(&mut self, code: u32, flag: u32) {
        if let Some(char) = self.units[..N_CHARS].get_mut(code as usize) {
            char.meta |= flag;
        }
    }

    /// Marks every character that ends or starts as a partial border does, but for a solid one that has a part there.
    fn color(&mut self, partial: &[(u32, u32, u32)]) {
        let mut ends = Vec::new();
        let mut starts = Vec::new();
        for &(end, start, _) in partial {
            let bit = partial_bit(partial_key(end, start));
            self.partial[bit / 64] |= 1 << (bit % 64);
            let bytes = unpack(start);
            let (part, side) = if bytes.len() == char_len(bytes[0]) { (end, 0) } else { (start, 1) };
            let color = (part.wrapping_mul(0x9E37_79B1) >> 16) % (N_COLORS / 2) * 2 + side;
            ends.push((end, color));
            starts.push((start, color));
        }
        for sides in [&mut ends, &mut starts] {
            sides.sort_unstable();
            sides.dedup();
        }
        for (end, color) in ends {
            let (bytes, flag) = (unpack(end), WHOLE_RIGHT << 1 << color);
            let is_whole = !is_tail(bytes[0]);
            for code in chars_with_end(&bytes) {
                if is_whole || self.units[code].meta & SOLID == 0 {
                    self.units[code].meta |= flag;
                }
                if !is_whole
                    && (0x80..0x800).contains(&code)
                    && self.units[SPACED + code].meta & (SOLID | AFTER_SPACE) == 0
                {
                    self.units[SPACED + code].meta |= flag;
                }
            }
        }
        for (start, color) in starts {
            let mut bytes = unpack(start);
            let n_low = 6 * (char_len(bytes[0]) - bytes.len());
            bytes.resize(char_len(bytes[0]), 0x80);
            let (first, flag) = (char_at(&bytes, 0).0 as usize, WHOLE_LEFT << 1 << color);
            for char in self.units[..N_CHARS].iter_mut().skip(first).take(1 << n_low) {
                if n_low == 0 || char.meta & SOLID == 0 {
                    char.meta |= flag;
                }
            }
        }
        let space = self.units[usize::from(b' ')].meta & LEFTS;
        for code in 0x80..0x800 {
            self.units[SPACED + code].meta |= space | self.units[code].meta & RIGHTS;
            self.units[usize::from(IN_ROW) + code] = self.units[SPACED + code];
        }
    }
}

/// The codes of characters that end as `bytes` do, which are one character or its last bytes.
fn chars_with_end(bytes: &[u8]) -> impl Iterator<Item = usize> + use<> {
    let tail = bytes.iter().fold(0, |code, &byte| code << 6 | usize::from(byte & 0x3F));
    let is_whole = !is_tail(bytes[0]);
    let first = if is_whole { char_at(bytes, 0).0 as usize } else { tail };
    (first..N_CHARS).step_by(if is_whole { N_CHARS } else { 1 << (6 * bytes.len()) })
}

/// The entries of tokens that merge with others at a lower rank than one of the merges that make them, as a file's merges may
/// say: they must not be there before their time.
fn late(tokens: &Tokens, merges: Merges<'_>) -> Vec<usize> {
    // The highest rank that it takes to make each token.
    let (mut highest, mut late) = (vec![NO_RANK; tokens.len()], Vec::new());
    merges.byte_ids.iter().for_each(|&id| highest[id as usize] = 0);
    let sides_and_products = merges.pairs.merges().iter().zip(merges.pairs.products());
    for (rank, (&(left, right), product)) in (0..).zip(sides_and_products) {
        let sides = [left, right].map(|id| (id, highest[id as usize]));
        for (id, _) in sides.into_iter().filter(|&(_, highest)| highest > rank) {
            late.extend(tokens.get(id).and_then(entry_of));
        }
        let made = sides.iter().fold(rank, |made, &(_, highest)| made.max(highest));
        // Made by two merges, of which this may be the one that makes it in a text.
        if std::mem::replace(&mut highest[product as usize], made) != NO_RANK {
            late.extend(tokens.get(product).and_then(entry_of));
        }
    }
    late
}

/// The entry that a token has, as a character or as a space and one.
fn entry_of(token: &[u8]) -> Option<usize> {
    let (space, char) = match token {
        [b' ', char @ ..] if char.len() == 2 => (SPACED, char),
        char => (0, char),
    };
    let &first = char.first()?;
    (char_len(first) == char.len() && char.len() <= 3).then(|| space + char_at(char, 0).0 as usize)
}

/// Adds the character borders inside of `token`: codes of whole characters, bytes of others. What no UTF-8 text has at a
/// border is left out, and so is what stands between two ASCII characters: there is always a border that may be spanned.
fn collect(token: &[u8], rank: u32, whole: &mut Vec<(u32, u32)>, partial: &mut Vec<(u32, u32, u32)>) {
    for at in (1..token.len()).filter(|&at| !is_tail(token[at]) && !token[at - 1..=at].is_ascii()) {
        let n_tail = token[..at].iter().rev().take_while(|&&byte| is_tail(byte)).count();
        let from = at - (n_tail + 1).min(at);
        let (left, rest) = (&token[from..at], &token[at..]);
        let is_left_whole = !is_tail(left[0]);
        let right = &rest[..char_len(rest[0]).min(rest.len())];
        let is_right_whole = right.len() == char_len(right[0]);
        if n_tail > 3 || !right[1..].iter().copied().all(is_tail) || (is_left_whole && char_len(left[0]) != left.len())
        {
            continue;
        }
        if is_left_whole && is_right_whole {
            whole.push((char_at(left, 0).0, char_at(right, 0).0));
        } else {
            partial.push((pack(left), pack(right), rank));
        }
    }
}
