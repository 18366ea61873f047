//! Class masks of a block: ASCII by vector instructions, other characters by table.

use super::super::class::{self, class_of};

/// What the ASCII bytes of a block are: bit i is byte i.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ascii {
    pub(super) letter: u64,
    pub(super) number: u64,
    pub(super) space: u64,
    /// U+0020.
    pub(super) blank: u64,
    /// CR and LF.
    pub(super) line: u64,
    /// Apostrophe.
    pub(super) quote: u64,
    /// Not ASCII.
    pub(super) high: u64,
}

/// What the bytes of a block are that are not ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct High {
    /// Bytes of a character after its first.
    pub(super) cont: u64,
    /// First bytes that [`EASY_LEADS`] names.
    pub(super) easy: u64,
}

/// By ASCII byte: the flags of its classes.
pub(super) const ASCII: [u8; 128] = {
    let mut flags = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        flags[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => IS_LETTER,
            b'0'..=b'9' => IS_NUMBER,
            b' ' => IS_SPACE | IS_BLANK,
            b'\r' | b'\n' => IS_SPACE | IS_LINE,
            b'\t'..=b'\x0C' => IS_SPACE,
            b'\'' => IS_QUOTE,
            _ => 0,
        };
        byte += 1;
    }
    flags
};
pub(super) const IS_LETTER: u8 = 1;
pub(super) const IS_NUMBER: u8 = 2;
pub(super) const IS_SPACE: u8 = 4;
pub(super) const IS_BLANK: u8 = 8;
pub(super) const IS_LINE: u8 = 16;
pub(super) const IS_QUOTE: u8 = 32;

/// The classes of the characters in a block; every byte of a character has its class.
#[derive(Debug, Clone, Copy)]
pub(in crate::split) struct Masks {
    pub(super) letter: u64,
    pub(super) number: u64,
    pub(super) space: u64,
    pub(super) other: u64,
    pub(super) blank: u64,
    pub(super) line: u64,
    pub(super) quote: u64,
    /// Bytes of a character after its first.
    pub(super) cont: u64,
    /// First bytes of white space that is not ASCII.
    pub(super) wide_space: u64,
    /// First bytes of numbers that are not ASCII.
    pub(super) wide_number: u64,
}

/// By the low six bits of a first byte 0xC0..=0xFF: not 0 when all characters that start with it are letters.
pub(super) const EASY_LEADS: [u8; 64] = {
    let mut easy = [0; 64];
    let mut lead = 0xC2;
    while lead < 0xF0 {
        let (first, n) = if lead < 0xE0 { ((lead & 0x1F) << 6, 1 << 6) } else { ((lead & 0x0F) << 12, 1 << 12) };
        let mut code = first;
        while code < first + n && class_of(code) == class::LETTER {
            code += 1;
        }
        easy[(lead & 0x3F) as usize] = (code == first + n) as u8;
        lead += 1;
    }
    easy
};

/// Classes of the first plane, two bits each.
static PLANE: [u64; 2048] = {
    let mut plane = [0; 2048];
    let mut code = 0;
    while code < 0x1_0000 {
        plane[code >> 5] |= (class_of(code as u32) as u64) << (2 * (code & 31));
        code += 1;
    }
    plane
};

/// The class of the character of several bytes at the start of `text`.
#[inline(always)]
fn wide_class(text: &[u8]) -> u64 {
    let tail = |byte: u8| (byte & 0x3F) as usize;
    let code = match *text {
        [a, b, c, ..] if (0xE0..0xF0).contains(&a) => (a as usize & 0x0F) << 12 | tail(b) << 6 | tail(c),
        [a, b, ..] if a < 0xE0 => (a as usize & 0x1F) << 6 | tail(b),
        [a, b, c, d, ..] => {
            return class_of((a as u32 & 0x07) << 18 | (tail(b) << 12 | tail(c) << 6 | tail(d)) as u32).into();
        }
        _ => return 0,
    };
    PLANE[code >> 5 & 2047] >> (2 * (code & 31)) & 3
}

/// A mask as seen `N` bytes further on, over the borders of blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Behind<const N: u32>(u64);

impl<const N: u32> Behind<N> {
    /// The bytes `N` before have it. Call once a block.
    #[inline(always)]
    pub(super) fn of(&mut self, here: u64) -> u64 {
        // An addition instead of an or: one instruction.
        let shifted = (here << N).wrapping_add(self.0);
        self.0 = here >> (64 - N);
        shifted
    }

    /// Whether the last block left nothing.
    #[inline(always)]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Where runs of `here` start.
#[inline(always)]
pub(super) fn run_starts(here: u64, behind: &mut Behind<1>) -> u64 {
    here & !behind.of(here)
}

/// Bits carried on through runs of others, over the borders of blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spread(u64);

impl Spread {
    /// The runs in `runs` that start at a bit of `firsts`, or at the block's start when the last block's did not end.
    ///
    /// Adding one to the lowest of a run of bits clears the run.
    #[inline(always)]
    pub(super) fn over(&mut self, firsts: u64, runs: u64) -> u64 {
        let (sum, over) = runs.overflowing_add(firsts);
        let (sum, over_again) = sum.overflowing_add(self.0);
        self.0 = u64::from(over | over_again);
        runs & !sum
    }

    /// `leads` and the rest of their characters.
    #[inline(always)]
    pub(super) fn whole(&mut self, leads: u64, cont: u64) -> u64 {
        let rest = self.over(leads << 1, cont);
        self.0 |= leads >> 63;
        leads | rest
    }
}

/// Makes class masks of block after block.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chars {
    letter: Spread,
    number: Spread,
    space: Spread,
}

impl Chars {
    /// The masks of the block that starts at `at` in `text`; `high_of` is asked when it is not all ASCII.
    #[inline(always)]
    pub(super) fn masks(&mut self, ascii: Ascii, high_of: impl FnOnce() -> High, text: &[u8], at: usize) -> Masks {
        let Ascii { letter, number, space, blank, line, quote, high } = ascii;
        let (cont, wide_space, wide_number, other) = (0, 0, 0, 0);
        let mut masks = Masks { letter, number, space, other, blank, line, quote, cont, wide_space, wide_number };
        if high == 0 {
            *self = Self::default();
        } else {
            let High { cont, easy } = high_of();
            self.add_wide(text, at, high & !cont, easy, cont, &mut masks);
        }
        masks.other = !(masks.letter | masks.number | masks.space);
        masks
    }

    #[inline(always)]
    fn add_wide(&mut self, text: &[u8], at: usize, leads: u64, easy: u64, cont: u64, masks: &mut Masks) {
        let (mut low, mut high) = (easy, 0);
        let mut hard = leads & !easy;
        while hard != 0 {
            let place = hard.trailing_zeros();
            let class = wide_class(&text[at + place as usize..]);
            low |= (class & 1) << place;
            high |= (class >> 1) << place;
            hard &= hard - 1;
        }
        masks.cont = cont;
        masks.letter |= self.letter.whole(low & !high, cont);
        masks.number |= self.number.whole(high & !low, cont);
        masks.space |= self.space.whole(high & low, cont);
        (masks.wide_number, masks.wide_space) = (high & !low, high & low);
    }
}
