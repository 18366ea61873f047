//! Piece borders by vector instructions: 64 bytes at a time to one bit a byte.
//!
//! ```text
//! block ─ ascii, high ─▶ Ascii, High ─ chars, kinds ─▶ Masks ─ Borders ─▶ Starts ─ walk ─▶ 64 bits ─ flatten ─▶ ends
//!          instructions                 table                 shifts                                instructions
//! ```
//! What is not called instructions is the same code for every level. What the masks leave in doubt, a scheme's own
//! scanner settles: it starts at a border that is certain and runs until it meets one of the masks'.
//! Text is valid UTF-8.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod chars;
mod cl100k;
mod deepseek;
mod gpt2;
mod kinds;
mod o200k;
mod utf8;
mod walk;

use chars::Masks;
pub(super) use walk::{Borders, Ends, Walk};

use crate::simd::Level;

/// Text shorter than this is not worth a block.
const SHORT: usize = 96;

/// Scans on: replaces `ends` by the next ends in `text`, at least one; none when the last call gave its end.
pub(super) fn fill<B: Borders>(level: Level, walk: &mut Walk, text: &[u8], ends: &mut Ends) {
    #[cfg(target_arch = "x86_64")]
    if level > Level::Scalar && text.len() >= SHORT {
        // SAFETY: a splitter's level is one that this processor was found to have.
        return unsafe {
            if level == Level::Avx512 { avx512::fill::<B>(walk, text, ends) } else { avx2::fill::<B>(walk, text, ends) }
        };
    }
    walk.fill_scalar::<B>(text, ends);
}

/// Whether `text` is valid UTF-8.
pub(super) fn is_utf8(level: Level, text: &[u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level > Level::Scalar && text.len() >= SHORT {
        // SAFETY: a splitter's level is one that this processor was found to have.
        return unsafe { if level == Level::Avx512 { avx512::is_utf8(text) } else { avx2::is_utf8(text) } };
    }
    std::str::from_utf8(text).is_ok()
}

/// The starts of white space in `spaces` with a byte of `next` after it, by how many bytes later that is known.
#[inline(always)]
fn last_spaces(here: &Masks, spaces: u64, next: u64, carry: &mut walk::Carry) -> [u64; 3] {
    let narrow = carry.narrow.of(spaces & !here.cont & !here.wide_space) & next;
    let after_cont = carry.cont.of(here.cont);
    if here.wide_space == 0 && carry.wide.0.is_empty() && carry.wide.1.is_empty() {
        return [narrow, 0, 0];
    }
    let after_two = carry.wide.0.of(here.wide_space) & next & !here.cont;
    let after_three = carry.wide.1.of(here.wide_space) & next & !here.cont & after_cont;
    [narrow, after_two, after_three]
}
