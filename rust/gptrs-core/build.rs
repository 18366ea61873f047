//! Writes the table of character classes: letters, numbers, white space, from the same crate that the regex engine uses.
//!
//! Two stages: `BLOCK_OF[code point / 256]` picks a block of 256 classes; equal blocks are stored once (some 30 kB).

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use regex_syntax::hir::{Class, HirKind};

const CODE_POINTS: usize = 0x11_0000;
const BLOCK: usize = 256;

/// Marks with `class` every code point that the character class `pattern` holds.
fn mark(classes: &mut [u8], pattern: &str, class: u8) {
    let hir = regex_syntax::parse(pattern).expect("a fixed pattern that parses");
    let HirKind::Class(Class::Unicode(set)) = hir.kind() else { panic!("{pattern} is not a Unicode class") };
    for range in set.ranges() {
        classes[range.start() as usize..=range.end() as usize].fill(class);
    }
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut classes = vec![0u8; CODE_POINTS];
    for (class, pattern) in [(1, r"\p{L}"), (2, r"\p{N}"), (3, r"\s")] {
        mark(&mut classes, pattern, class);
    }
    let mut blocks: Vec<&[u8]> = Vec::new();
    let mut block_of: Vec<u8> = Vec::new();
    for block in classes.chunks(BLOCK) {
        let index = blocks.iter().position(|known| *known == block).unwrap_or_else(|| {
            blocks.push(block);
            blocks.len() - 1
        });
        block_of.push(u8::try_from(index).expect("at most 256 distinct blocks"));
    }
    let table = blocks.concat();
    let mut source = String::new();
    writeln!(source, "static BLOCK_OF: [u8; {}] = {block_of:?};", block_of.len()).expect("writing to a string");
    writeln!(source, "static CLASSES: [u8; {}] = {table:?};", table.len()).expect("writing to a string");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("unicode_classes.rs"), source).expect("cargo's output folder takes a file");
}
