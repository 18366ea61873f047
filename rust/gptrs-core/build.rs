//! Writes the tables of character classes from the same crate that the regex engine uses.
//!
//! Two stages each: `BLOCK_OF[code point / 256]` picks a block of 256 classes; equal blocks are stored once. The coarse
//! table (letter, number, white space) is small and serves most patterns; the traits serve those that look closer.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use regex_syntax::hir::{Class, HirKind};

const CODE_POINTS: usize = 0x11_0000;
const BLOCK: usize = 256;

/// The coarse classes; 0 is every other character.
const CLASSES: [(&str, u8); 3] = [(r"\p{L}", 1), (r"\p{N}", 2), (r"\s", 3)];

/// The traits: one bit each, and the bits are the ones that `split/traits.rs` names.
const TRAITS: [(&str, u8); 7] = [
    (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", 1),
    (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", 2),
    (r"\p{M}", 4),
    (r"\p{N}", 8),
    (r"\s", 16),
    (r"[\p{P}\p{S}]", 32),
    (r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]", 64),
];
/// What has none of the traits but perhaps the last: controls and code points without a character.
const GAP: (&str, u8) = (r"[^\p{L}\p{M}\p{N}\s\p{P}\p{S}]", 128);

/// Adds `bits` to every code point that the character class `pattern` holds.
fn mark(table: &mut [u8], (pattern, bits): (&str, u8)) {
    let hir = regex_syntax::parse(pattern).expect("a fixed pattern that parses");
    let HirKind::Class(Class::Unicode(set)) = hir.kind() else { panic!("{pattern} is not a Unicode class") };
    for range in set.ranges() {
        for entry in &mut table[range.start() as usize..=range.end() as usize] {
            *entry |= bits;
        }
    }
}

/// The source of two statics, `NAME_BLOCK_OF` and `NAME_BLOCKS`.
fn two_stages(name: &str, table: &[u8]) -> String {
    let mut blocks: Vec<&[u8]> = Vec::new();
    let mut block_of: Vec<u8> = Vec::new();
    for block in table.chunks(BLOCK) {
        let index = blocks.iter().position(|known| *known == block).unwrap_or_else(|| {
            blocks.push(block);
            blocks.len() - 1
        });
        block_of.push(u8::try_from(index).expect("at most 256 distinct blocks"));
    }
    let bytes = blocks.concat();
    let mut source = String::new();
    writeln!(source, "static {name}_BLOCK_OF: [u8; {}] = {block_of:?};", block_of.len()).expect("writing to a string");
    writeln!(source, "static {name}_BLOCKS: [u8; {}] = {bytes:?};", bytes.len()).expect("writing to a string");
    source
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    for (name, file, marks) in
        [("CLASS", "unicode_classes.rs", &CLASSES[..]), ("TRAIT", "unicode_traits.rs", &[&TRAITS[..], &[GAP]].concat())]
    {
        let mut table = vec![0u8; CODE_POINTS];
        for &class in marks {
            mark(&mut table, class);
        }
        fs::write(Path::new(&out).join(file), two_stages(name, &table)).expect("cargo's output folder takes a file");
    }
}
