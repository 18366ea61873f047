//! Piece borders by vector instructions: 64 bytes at a time to one bit a byte.
//!
//! ```text
//! block ─ classify ─▶ Bytes ─ chars ─▶ Masks ─ borders ─▶ starts ─ flatten ─▶ ends
//!          avx2, avx512        table    3 blocks           64 bits              avx2, avx512
//! ```
//! Everything between the two arrows of intrinsics is the same for every level. What the masks cannot tell, a scheme's
//! own scanner settles: it starts at a border that is certain and runs until it meets one of the masks'.
//! Text is valid UTF-8.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod chars;
mod cl100k;
mod gpt2;
mod walk;

use chars::Masks;
pub(super) use walk::{Borders, Ends, Walk};

use crate::simd::Level;

/// Text shorter than this is not worth a block.
const SHORT: usize = 96;

/// Scans on: replaces `ends` by the next ends in `text`, at least one; none when the last call gave its end.
pub(super) fn fill<B: Borders>(level: Level, walk: &mut Walk, text: &[u8], ends: &mut Ends) {
    if level == Level::Scalar || text.len() < SHORT {
        return walk.fill_scalar::<B>(text, ends);
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a splitter's level is one that this processor was found to have.
    unsafe {
        if level == Level::Avx512 { avx512::fill::<B>(walk, text, ends) } else { avx2::fill::<B>(walk, text, ends) }
    }
}

/// The starts of white space in `spaces` that is followed by something else, by how many bytes later that is known.
#[inline(always)]
fn last_spaces(here: &Masks, spaces: u64, carry: &mut walk::Carry) -> [u64; 3] {
    let narrow = carry.narrow.of(spaces & !here.cont & !here.wide_space) & !here.space;
    let after_cont = carry.cont.of(here.cont);
    if here.wide_space == 0 && carry.wide.0.is_empty() && carry.wide.1.is_empty() {
        return [narrow, 0, 0];
    }
    let end = !here.cont & !here.space;
    let after_two = carry.wide.0.of(here.wide_space) & end;
    let after_three = carry.wide.1.of(here.wide_space) & end & after_cont;
    [narrow, after_two, after_three]
}
