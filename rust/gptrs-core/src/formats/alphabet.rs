//! GPT-2's byte-level alphabet: one printable character for each byte, so that JSON and text files can hold tokens.
//!
//! Printable Latin-1 stands for itself, the other 68 bytes are U+0100 onwards in order (openai/gpt-2, src/encoder.py).

const fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        let point = if is_itself(byte as u8) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        chars[byte] = match char::from_u32(point) {
            Some(c) => c,
            None => panic!("all code points here are below U+0144"),
        };
        byte += 1;
    }
    chars
};

/// Byte by code point, for the code points below U+0144.
const BYTES: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// The byte that a character spells.
#[inline]
pub(super) fn byte(point: u32) -> Option<u8> {
    BYTES.get(point as usize).copied().flatten()
}

/// `bytes` in the alphabet.
pub(super) fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHARS[usize::from(byte)]).collect()
}

/// The bytes that `text` spells; the first character outside the alphabet otherwise.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>, char> {
    let mut bytes = Vec::new();
    extend(&mut bytes, text).map(|()| bytes)
}

/// Whether `bytes`, which `text` spells, are another text.
pub(super) fn is_other_text(text: &str, bytes: &[u8]) -> bool {
    text.as_bytes() != bytes && std::str::from_utf8(bytes).is_ok()
}

/// Appends the bytes that `text` spells. Fails with the first character outside the alphabet; some are appended then.
#[inline]
pub(super) fn extend(bytes: &mut Vec<u8>, text: &str) -> Result<(), char> {
    bytes.reserve(text.len());
    for c in text.chars() {
        bytes.push(byte(c as u32).ok_or(c)?);
    }
    Ok(())
}

/// All bytes in the order of their characters.
pub(crate) fn order() -> [u8; 256] {
    let mut order = std::array::from_fn(|byte| byte as u8);
    order.sort_unstable_by_key(|&byte| CHARS[usize::from(byte)]);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_dotted_g_and_a_newline_dotted_c() {
        assert_eq!(spell(b" a\n"), "ĠaĊ");
        assert_eq!(bytes("ĠaĊ"), Ok(b" a\n".to_vec()));
        assert_eq!(bytes("a b"), Err(' '));
    }

    #[test]
    fn printable_bytes_come_first_in_order() {
        let expected: Vec<u8> =
            (33..=126).chain(161..=172).chain(174..=255).chain(0..=32).chain(127..=160).chain([173]).collect();
        assert_eq!(order()[..], expected);
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&spell(&all)), Ok(all));
    }
}
