//! Characters that become one token whatever stands beside them.

use super::chars::{char_at, char_len, is_tail, middle_code, unpack};
use super::{AFTER_SPACE, BREAKS, Borders, FIRM, N_CHARS, SOLID, SPACED, UNKNOWN};
use crate::merge::{Merges, SHORT};
use crate::pairs::NO_RANK;

/// The bytes of the longest character.
const BYTES: usize = 4;

/// Ranks by what is in front of a character's end: its first byte, or the first two of three.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fronts {
    first: [u32; 1 << 6],
    first_two: [u32; 1 << 10],
}

impl Fronts {
    pub(super) fn all(rank: u32) -> Self {
        Self { first: [rank; 1 << 6], first_two: [rank; 1 << 10] }
    }

    /// The lower one of a character of two or three bytes.
    fn lower(&self, code: u32) -> u32 {
        let (first, first_two) = places(code);
        first_two.map_or(NO_RANK, |at| self.first_two[at]).min(self.first[first])
    }

    /// Makes those of a character at least this rank.
    pub(super) fn raise(&mut self, code: u32, rank: u32) {
        let (first, first_two) = places(code);
        self.first[first] = rank.max(self.first[first]);
        if let Some(at) = first_two {
            self.first_two[at] = rank.max(self.first_two[at]);
        }
    }

    /// That of a part of a character, unless it is none or of one of four bytes.
    pub(super) fn of_part(&mut self, part: u32) -> Option<&mut u32> {
        match unpack(part)[..] {
            [a] if (2..4).contains(&char_len(a)) => self.first.get_mut(usize::from(a & 0x3F)),
            [a, b] if char_len(a) == 3 => self.first_two.get_mut(usize::from(a & 0x0F) << 6 | usize::from(b & 0x3F)),
            _ => None,
        }
    }
}

/// Where the fronts of a character stand, the second only of one of three bytes.
fn places(code: u32) -> (usize, Option<usize>) {
    let code = code as usize;
    if code < 0x800 { (code >> 6, None) } else { (0x20 | code >> 12, Some(code >> 6)) }
}

/// The lowest ranks of tokens that have a part of a character and something beside it; [`NO_RANK`] where no token has.
pub(super) struct Lowest {
    /// Of those that end in the front of a character: with anything but a space before it, and with a space.
    fronts: [Fronts; 2],
    /// Of those that start with the last byte of a character, or the last two of three.
    last: [u32; 1 << 6],
    last_two: [u32; 1 << 12],
}

impl Lowest {
    /// From the borders inside of tokens where a character is not whole, and the token's rank.
    pub(super) fn new(partial: &[(u32, u32, u32)]) -> Self {
        let (fronts, last_two) = ([Fronts::all(NO_RANK); 2], [NO_RANK; 1 << 12]);
        let mut lowest = Self { fronts, last: [NO_RANK; 1 << 6], last_two };
        let low = |byte: u8| usize::from(byte & 0x3F);
        for &(end, start, rank) in partial {
            let front = lowest.fronts[usize::from(end == u32::from(b' '))].of_part(start);
            let last = match unpack(end)[..] {
                [a] if is_tail(a) => Some(&mut lowest.last[low(a)]),
                [a, b] if is_tail(a) => Some(&mut lowest.last_two[low(a) << 6 | low(b)]),
                _ => None,
            };
            for known in [front, last].into_iter().flatten() {
                *known = rank.min(*known);
            }
        }
        lowest
    }

    /// The flags of a character of two or three bytes whose own merges make one token, the highest of them of this rank.
    pub(super) fn flags(&self, code: u32, highest: u32) -> u32 {
        let [any, after_space] = self.fronts.each_ref().map(|fronts| fronts.lower(code));
        match () {
            () if highest >= self.behind(code) => 0,
            () if highest >= any => FIRM,
            () if highest >= after_space => FIRM | SOLID,
            () => FIRM | SOLID | AFTER_SPACE,
        }
    }

    /// Of tokens that start with a part of the character.
    pub(super) fn behind(&self, code: u32) -> u32 {
        let (last, last_two) = (self.last[code as usize & 0x3F], self.last_two[code as usize & 0xFFF]);
        if code < 0x800 { last } else { last.min(last_two) }
    }
}

impl Borders {
    /// Appends to `tokens` what the bytes of `piece`, at most [`SHORT`] of them, are known to become first: one token of each
    /// character that is sure to, and single bytes.
    pub(crate) fn starts(&self, merges: Merges<'_>, piece: &[u8], is_narrow: bool, tokens: &mut Vec<u32>) {
        // Of each character where it goes, all bytes or one token.
        let (mut room, mut n, mut at) = ([0; SHORT + BYTES], 0, 0);
        // What is known of the character before, and whether it is a space.
        let (mut before, mut is_spaced) = (0, false);
        if let [b' ', a @ 0xC0..0xE0, b, ..] = *piece {
            let code = middle_code(a, b) as usize;
            if self.units[SPACED + code].meta & SOLID != 0 {
                room[0] = self.units[SPACED + code].first_id(is_narrow);
                (n, at, before) = (1, 3, self.units[code].meta);
            }
        }
        while let Some(room) = room.get_mut(n..n + BYTES)
            && at < piece.len()
        {
            let (code, len) = match piece.get(at..).and_then(<[u8]>::first_chunk) {
                Some(&[a, b]) if a >> 5 == 6 => (middle_code(a, b), 2),
                _ => char_at(piece, at),
            };
            let char = self.units[if (code as usize) < N_CHARS { code as usize } else { UNKNOWN }];
            let is_broken = before & BREAKS != 0 && char.meta & if is_spaced { AFTER_SPACE } else { SOLID } == 0;
            room[0] = char.first_id(is_narrow);
            n += 1;
            if char.meta & FIRM == 0 || is_broken {
                for (id, &byte) in room.iter_mut().zip(&piece[at..]) {
                    *id = merges.byte_ids[usize::from(byte)];
                }
                n += len - 1;
            }
            (at, before, is_spaced) = (at + len, char.meta, code == u32::from(b' '));
        }
        tokens.extend_from_slice(&room[..n]);
    }
}
