//! Whether bytes are valid UTF-8.

use super::chars::Behind;

/// The bytes of a block by what may stand beside them; bit i is byte i.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// 0x80..=0xBF
    pub(super) cont: u64,
    /// At least 0xC0, 0xE0, 0xF0: one, two, three bytes follow.
    pub(super) leads: [u64; 3],
    /// 0xC0, 0xC1 and 0xF5..=0xFF.
    pub(super) never: u64,
    /// 0xE0, 0xED, 0xF0, 0xF4: what follows them is bounded more closely.
    pub(super) bounded: [u64; 4],
    /// Less than 0x90, less than 0xA0.
    pub(super) below: [u64; 2],
}

#[derive(Debug, Default)]
struct Carry {
    leads: (Behind<1>, Behind<2>, Behind<3>),
    bounded: [Behind<1>; 4],
}

/// Whether `text` is valid UTF-8. `high` says which bytes of a block are not ASCII; `shape` is asked when some are.
#[inline(always)]
pub(super) fn is_valid(text: &[u8], high: impl Fn(&[u8; 64]) -> u64, shape: impl Fn(&[u8; 64]) -> Shape) -> bool {
    let (blocks, rest) = text.as_chunks();
    let mut last = [0; 64]; // at least one byte of ASCII ends a text that stops inside a character
    last[..rest.len()].copy_from_slice(rest);
    let mut carry = Carry::default();
    let mut is_ascii = true;
    for block in blocks.iter().chain([&last]) {
        let was_ascii = std::mem::replace(&mut is_ascii, high(block) == 0);
        if !(is_ascii && was_ascii) && carry.errors(&shape(block)) != 0 {
            return false;
        }
    }
    true
}

impl Carry {
    #[inline(always)]
    fn errors(&mut self, shape: &Shape) -> u64 {
        let Shape { cont, leads, never, bounded, below } = *shape;
        let inside = self.leads.0.of(leads[0]) | self.leads.1.of(leads[1]) | self.leads.2.of(leads[2]);
        let bounded = [0, 1, 2, 3].map(|i: usize| self.bounded[i].of(bounded[i]));
        // 0xE0 and 0xF0 are followed by bytes from a bound on, 0xED and 0xF4 by bytes below one.
        let too_low = bounded[0] & below[1] | bounded[2] & below[0];
        let too_high = bounded[1] & !below[1] | bounded[3] & !below[0];
        inside ^ cont | never | too_low | too_high
    }
}
