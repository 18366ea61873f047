//! Codes and bytes of characters, whole and in parts.

#[inline]
pub(super) fn middle_code(a: u8, b: u8) -> u32 {
    u32::from(a & 0x1F) << 6 | u32::from(b & 0x3F)
}

#[inline]
pub(super) fn wide_code(a: u8, b: u8, c: u8) -> u32 {
    u32::from(a & 0x0F) << 12 | u32::from(b & 0x3F) << 6 | u32::from(c & 0x3F)
}

/// The code and the length of the character at `at`; no character's code where the text ends inside of one.
#[inline]
pub(super) fn char_at(text: &[u8], at: usize) -> (u32, usize) {
    let tail = |byte: u8| u32::from(byte & 0x3F);
    match text[at..] {
        [a, b, c, ..] if a >> 4 == 0xE => (wide_code(a, b, c), 3),
        [a, b, ..] if a >> 5 == 6 => (middle_code(a, b), 2),
        [a, b, c, d, ..] if a >= 0xF0 => (u32::from(a & 7) << 18 | tail(b) << 12 | tail(c) << 6 | tail(d), 4),
        [a, ..] if a < 0x80 => (u32::from(a), 1),
        [_, ..] => (u32::MAX, 1),
        [] => (u32::MAX, 0),
    }
}

/// The length that a first byte tells.
pub(super) fn char_len(first: u8) -> usize {
    match first {
        0..0xC0 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
    }
}

pub(super) fn is_tail(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// The bytes of a character as [`pack`] gives them, and how many.
#[inline]
pub(super) fn spell(code: u32) -> (u32, u32) {
    let low = |shift: u32| 0x80 | (code >> shift & 0x3F);
    match code {
        0..0x80 => (code, 1),
        0x80..0x800 => ((0xC0 | code >> 6) << 8 | low(0), 2),
        0x800..0x1_0000 => ((0xE0 | code >> 12) << 16 | low(6) << 8 | low(0), 3),
        _ => ((0xF0 | (code >> 18 & 7)) << 24 | low(12) << 16 | low(6) << 8 | low(0), 4),
    }
}

/// The bytes of a character of up to four bytes as a number.
pub(super) fn pack(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |packed, &byte| packed << 8 | u32::from(byte))
}

pub(super) fn unpack(packed: u32) -> Vec<u8> {
    let bytes = packed.to_be_bytes();
    let n_zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    bytes[n_zeros.min(3)..].to_vec()
}
