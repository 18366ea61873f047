//! Class masks of a block: ASCII by vector instructions, other characters by table.

use super::kinds::{EXTRA, Kinds, LETTER, NUMBERS, Rule, SPACES};

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
    /// Upper case letters.
    pub(super) upper: u64,
    /// Controls that are no white space.
    pub(super) control: u64,
    /// Slash.
    pub(super) slash: u64,
    /// Not ASCII.
    pub(super) high: u64,
}

/// What the bytes of a block are that are not ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct High {
    /// Bytes of a character after its first.
    pub(super) cont: u64,
    /// First bytes of characters whose kinds are in `bits`.
    pub(super) known: u64,
    /// The three bits of kinds.
    pub(super) bits: [u64; 3],
}

impl High {
    /// With the kinds of the characters that start with the `easy` bytes.
    #[inline(always)]
    pub(super) fn easy(cont: u64, easy: u64, kinds: &Kinds) -> Self {
        let bits = [0, 1, 2].map(|bit| if kinds.easy_kind >> bit & 1 != 0 { easy } else { 0 });
        Self { cont, known: easy, bits }
    }
}

/// By ASCII byte: the flags of its classes.
pub(super) const ASCII: [u8; 128] = {
    let mut flags = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        flags[byte] = match byte as u8 {
            b'a'..=b'z' => IS_LETTER,
            b'A'..=b'Z' => IS_LETTER | IS_UPPER,
            b'0'..=b'9' => IS_NUMBER,
            b' ' => IS_SPACE | IS_BLANK,
            b'\r' | b'\n' => IS_SPACE | IS_LINE,
            b'\t'..=b'\x0C' => IS_SPACE,
            b'\'' => IS_QUOTE,
            0..b' ' | 0x7F => IS_CONTROL,
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
pub(super) const IS_UPPER: u8 = 64;
pub(super) const IS_CONTROL: u8 = 128;

/// The kinds of the characters in a block; every byte of a character has its kind.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::split) struct Masks {
    /// See [`LETTER`].
    pub(super) letter: u64,
    pub(super) number: u64,
    pub(super) space: u64,
    pub(super) other: u64,
    /// See [`EXTRA`].
    pub(super) extra: [u64; 4],
    pub(super) blank: u64,
    pub(super) line: u64,
    pub(super) quote: u64,
    pub(super) slash: u64,
    /// Not ASCII.
    pub(super) high: u64,
    /// Bytes of a character after its first.
    pub(super) cont: u64,
    /// First bytes of white space that is not ASCII.
    pub(super) wide_space: u64,
    /// First bytes of numbers that are not ASCII.
    pub(super) wide_number: u64,
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

    /// Whether the last block left nothing.
    #[inline(always)]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// `leads` and the rest of their characters.
    #[inline(always)]
    pub(super) fn whole(&mut self, leads: u64, cont: u64) -> u64 {
        let rest = self.over(leads << 1, cont);
        self.0 |= leads >> 63;
        leads | rest
    }
}

/// Makes masks of block after block.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chars {
    /// One for each kind but the others.
    spreads: [Spread; 8],
}

impl Chars {
    /// The masks of the block that starts at `at` in `text`; `high_of` is asked when it is not all ASCII.
    #[inline(always)]
    pub(super) fn masks(
        &mut self,
        rule: Rule,
        kinds: &Kinds,
        ascii: Ascii,
        high_of: impl FnOnce() -> High,
        text: &[u8],
        at: usize,
    ) -> Masks {
        let Ascii { letter, number, space, blank, line, quote, upper, control, slash, high } = ascii;
        let mut masks = Masks { letter, number, space, blank, line, quote, slash, high, ..Masks::default() };
        match rule {
            Rule::Coarse => {}
            Rule::Case => (masks.letter, masks.extra) = (0, [0, upper, letter & !upper, 0]),
            Rule::Script => masks.extra[0] = control,
        }
        if high == 0 {
            *self = Self::default();
        } else {
            self.add_wide(rule, kinds, high_of(), text, at, &mut masks);
        }
        let [a, b, c, d] = masks.extra;
        masks.other = !(masks.letter | masks.number | masks.space | a | b | c | d);
        masks
    }

    #[inline(always)]
    fn add_wide(&mut self, rule: Rule, kinds: &Kinds, high: High, text: &[u8], at: usize, masks: &mut Masks) {
        let High { cont, known, mut bits } = high;
        let leads = masks.high & !cont;
        let mut hard = leads & !known;
        while hard != 0 {
            let place = hard.trailing_zeros();
            let kind = kinds.wide(&text[at + place as usize..]);
            bits[0] |= (kind & 1) << place;
            bits[1] |= (kind >> 1 & 1) << place;
            if rule != Rule::Coarse {
                bits[2] |= (kind >> 2) << place;
            }
            hard &= hard - 1;
        }
        masks.cont = cont;
        let of = |kind: u8| {
            let has = |bit: usize| if kind >> bit & 1 != 0 { bits[bit] } else { !bits[bit] };
            leads & has(0) & has(1) & has(2)
        };
        let mut spread = |kind: u8, mask: &mut u64| {
            let (marked, spread) = (of(kind), &mut self.spreads[kind as usize]);
            if marked != 0 || !spread.is_empty() {
                *mask |= spread.whole(marked, cont);
            }
        };
        spread(LETTER, &mut masks.letter);
        spread(NUMBERS, &mut masks.number);
        spread(SPACES, &mut masks.space);
        if rule != Rule::Coarse {
            for (kind, mask) in (EXTRA..).zip(&mut masks.extra) {
                spread(kind, mask);
            }
        }
        (masks.wide_number, masks.wide_space) = (of(NUMBERS), of(SPACES));
    }
}
