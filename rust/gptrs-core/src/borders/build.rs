//! The borders of a vocabulary, from its tokens.

use super::chars::{char_at, char_len, is_tail, pack, unpack};
use super::{
    Borders, CHAR_IDS, COUNT, Char, LEFTS, N_CHARS, N_COLORS, N_UNITS, PARTIAL_BITS, RIGHTS, SPACED, UNKNOWN,
    WHOLE_LEFT, WHOLE_RIGHT, hashed_bit, partial_bit,
};
use crate::tokens::Tokens;

/// From how many pairs of characters side by side in tokens on it pays to look for them among single characters.
const MANY_PAIRS: usize = if cfg!(test) { 1 } else { 1 << 13 };

impl Borders {
    /// Borders of `tokens`; `encode` gives the ids of a character of at most three bytes that stands alone, and how many, or
    /// none when these are not always the same.
    pub(crate) fn new(tokens: &Tokens, encode: impl Fn(&[u8]) -> ([u32; CHAR_IDS - 1], usize)) -> Self {
        let (mut whole, mut partial) = (Vec::new(), Vec::new());
        for token in (0..tokens.len() as u32).filter_map(|id| tokens.get(id)) {
            collect(token, &mut whole, &mut partial);
        }
        for borders in [&mut whole, &mut partial] {
            borders.sort_unstable();
            borders.dedup();
        }
        let n_bits = (32 * whole.len()).next_power_of_two().max(64);
        let shift = 64 - n_bits.trailing_zeros();
        let units = vec![Char::default(); N_UNITS].into_boxed_slice().try_into();
        let units = units.unwrap_or_else(|_| unreachable!("as many as were made"));
        let bits = [n_bits, 1 << PARTIAL_BITS].map(|n| vec![0; n / 64]);
        let [pairs, no_partial] = bits;
        let mut borders = Self { units, pairs, shift, partial: no_partial, has_many_pairs: whole.len() >= MANY_PAIRS };
        borders.units[UNKNOWN].meta = !COUNT;
        (0..0x80).for_each(|ascii| borders.flag(ascii, WHOLE_RIGHT | WHOLE_LEFT));
        for (left, right) in whole {
            borders.flag(left, WHOLE_RIGHT);
            borders.flag(right, WHOLE_LEFT);
            let bit = hashed_bit((left, right), shift);
            borders.pairs[bit / 64] |= 1 << (bit % 64);
        }
        borders.color(&partial);
        borders.spell_chars(tokens.len() <= 1 << 16, encode);
        borders
    }

    /// Sets the ids of all characters with an entry.
    fn spell_chars(&mut self, is_narrow: bool, encode: impl Fn(&[u8]) -> ([u32; CHAR_IDS - 1], usize)) {
        let set = |entry: &mut Char, text: &str| {
            let (ids, n_ids) = encode(text.as_bytes());
            entry.ids = if is_narrow { [ids[0] | ids[1] << 16, ids[2], 0] } else { ids };
            entry.meta |= n_ids as u32;
        };
        for char in '\0'..='\u{FFFF}' {
            set(&mut self.units[char as usize], char.encode_utf8(&mut [0; 4]));
        }
        let space = self.units[usize::from(b' ')].meta & LEFTS;
        for char in '\u{80}'..='\u{7FF}' {
            let entry = &mut self.units[SPACED + char as usize];
            set(entry, &format!(" {char}"));
            entry.meta |= space;
        }
        for code in 0x80..0x800 {
            self.units[SPACED + code].meta |= self.units[code].meta & RIGHTS;
        }
    }

    fn flag(&mut self, code: u32, flag: u32) {
        if let Some(char) = self.units[..N_CHARS].get_mut(code as usize) {
            char.meta |= flag;
        }
    }

    /// Marks every character that ends or starts as a partial border does.
    fn color(&mut self, partial: &[(u32, u32)]) {
        let mut ends = Vec::new();
        let mut starts = Vec::new();
        for &(end, start) in partial {
            let bit = partial_bit((end, start));
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
            let bytes = unpack(end);
            let tail = bytes.iter().fold(0, |code, &byte| code << 6 | usize::from(byte & 0x3F));
            let is_whole = !is_tail(bytes[0]);
            let first = if is_whole { char_at(&bytes, 0).0 as usize } else { tail };
            let step = if is_whole { N_CHARS } else { 1 << (6 * bytes.len()) };
            (first..N_CHARS).step_by(step).for_each(|code| self.flag(code as u32, WHOLE_RIGHT << 1 << color));
        }
        for (start, color) in starts {
            let mut bytes = unpack(start);
            let n_low = 6 * (char_len(bytes[0]) - bytes.len());
            bytes.resize(char_len(bytes[0]), 0x80);
            let first = char_at(&bytes, 0).0;
            (first..first + (1 << n_low)).for_each(|code| self.flag(code, WHOLE_LEFT << 1 << color));
        }
    }
}

/// Adds the character borders inside of `token`: codes of whole characters, bytes of others. What no UTF-8 text has at a
/// border is left out, and so is what stands between two ASCII characters: there is always a border that may be spanned.
fn collect(token: &[u8], whole: &mut Vec<(u32, u32)>, partial: &mut Vec<(u32, u32)>) {
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
            partial.push((pack(left), pack(right)));
        }
    }
}
