//! Count files: any partition of a corpus, joined in any way, gives the tokenizer of a single run; a damaged file is
//! refused with its name and the place.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gptrs_core::count::file::{self, BLOCK, CountFile, CountWriter, HEADER, TRAILER};
use gptrs_core::count::join::{FAN_IN, join, read};
use gptrs_core::count::{WordCounts, count_texts};
use gptrs_core::train::{TrainOptions, train};
use gptrs_core::{Control, Error, Result, Splitter};
use proptest::prelude::*;

type Words = BTreeMap<Vec<u8>, u64>;

const OPTIONS: TrainOptions = TrainOptions { n_merges: 60, min_count: 1 };

fn gpt2() -> Splitter {
    Splitter::new("gpt2").unwrap()
}

/// A folder in memory where there is one: some tests write and sync thousands of files.
fn folder() -> tempfile::TempDir {
    let memory = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
    memory.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap()
}

fn map_of(counts: &WordCounts) -> Words {
    counts.iter().map(|(word, n)| (word.to_vec(), n)).collect()
}

fn put(path: &Path, words: &Words, n_documents: u64) -> PathBuf {
    let mut counts = WordCounts::new();
    for (word, n) in words {
        counts.add(word, *n).unwrap();
    }
    file::write(path, &counts, n_documents, &gpt2(), &Control::new()).unwrap();
    path.to_owned()
}

fn words_of(path: &Path) -> Result<Words> {
    let mut file = CountFile::open(path)?;
    let (mut words, mut word) = (Words::new(), Vec::new());
    while let Some(n) = file.next(&mut word)? {
        words.insert(word.clone(), n);
    }
    assert_eq!(file.next(&mut word)?, None, "the end stays the end");
    Ok(words)
}

/// A small generator: the tests need many draws, not good ones.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

const CORPUS: &str = "Low, lower, the lowest: 2 newer words are the newest of 12 words.\n\nIt's wide, wider; the widest \
                      isn't the newest. 天地玄黄、宇宙洪荒。日月盈昃\n  low low newer — the lowest news\u{e9}e 2024\n";

/// Texts that are a corpus together.
fn documents() -> Vec<String> {
    CORPUS.split_inclusive(['.', ',', '\n', '。']).map(str::to_owned).collect()
}

#[test]
fn the_worked_example_of_the_documentation_is_written_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let counts = count_texts(&["low lower low"], &gpt2(), 1, &Control::new()).unwrap();
    let path = dir.path().join("example.gtc");
    let header = file::write(&path, &counts, 1, &gpt2(), &Control::new()).unwrap();
    assert_eq!((header.n_words, header.n_pieces, header.n_bytes, header.n_documents), (3, 3, 13, 1));
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md")).unwrap();
    let section = docs.split("## Counts: `NAME.gtc`").nth(1).unwrap();
    let listing = section.split("```hex\n").nth(1).unwrap().split("```").next().unwrap();
    let mut expected = vec![0; fs::metadata(&path).unwrap().len() as usize];
    for line in listing.lines() {
        let (offset, bytes) = line.split_once("  ").unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        for (i, byte) in bytes.split(' ').enumerate() {
            expected[offset + i] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn a_thousand_random_partitions_give_the_tokenizer_of_one_run() {
    let (documents, control) = (documents(), Control::new());
    let whole = count_texts(&documents, &gpt2(), 1, &control).unwrap();
    let expected = train(&whole, &OPTIONS, 1, &control).unwrap();
    assert_eq!(expected.len(), 60);
    let dir = folder();
    let single = dir.path().join("single.gtc");
    file::write(&single, &whole, documents.len() as u64, &gpt2(), &control).unwrap();
    let single = fs::read(single).unwrap();
    let mut draws = Draws(1);
    for round in 0..1000 {
        let mut parts: Vec<Vec<&str>> = vec![Vec::new(); 1 + draws.below(6)];
        for document in &documents {
            let at = draws.below(parts.len());
            parts[at].push(document);
        }
        let (mut paths, mut serial) = (Vec::new(), 0);
        for (i, part) in parts.iter().enumerate() {
            let counts = count_texts(part, &gpt2(), 1 + i % 2, &control).unwrap();
            let path = dir.path().join(format!("{i}.gtc"));
            file::write(&path, &counts, part.len() as u64, &gpt2(), &control).unwrap();
            paths.push(path);
        }
        // Some joined before the others, some joined twice over.
        while paths.len() > 1 && draws.below(2) == 0 {
            let rest = paths.split_off(1 + draws.below(paths.len()));
            let out = dir.path().join(format!("joined-{serial}.gtc"));
            join(&paths, &out, &control).unwrap();
            paths = rest.into_iter().chain([out]).collect();
            serial += 1;
        }
        let joined = read(&paths, &control).unwrap();
        assert_eq!((map_of(&joined.counts), joined.n_documents), (map_of(&whole), documents.len() as u64), "{round}");
        assert_eq!(train(&joined.counts, &OPTIONS, 1, &control).unwrap(), expected, "{round}");
        let all = dir.path().join("all.gtc");
        join(&paths, &all, &control).unwrap();
        assert!(fs::read(&all).unwrap() == single, "round {round}: the joined file is that of the single run");
    }
}

#[test]
fn many_files_are_joined_in_groups_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let n_files = 3 * FAN_IN + 7;
    let mut expected = Words::new();
    let mut paths = Vec::new();
    for i in 0..n_files {
        let words = Words::from([(b"common".to_vec(), 2), (format!("word {}", i % 100).into_bytes(), 1 + i as u64)]);
        for (word, n) in &words {
            *expected.entry(word.clone()).or_default() += n;
        }
        paths.push(put(&dir.path().join(format!("{i}.gtc")), &words, 3));
    }
    let out = dir.path().join("out.gtc");
    let header = join(&paths, &out, &Control::new()).unwrap();
    assert_eq!((words_of(&out).unwrap(), header.n_documents), (expected, 3 * n_files as u64));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), n_files + 1);
    // The output may be one of the inputs.
    join(&[paths[0].clone(), out.clone()], &out, &Control::new()).unwrap();
    assert_eq!(words_of(&out).unwrap()[&b"common"[..]], 2 * n_files as u64 + 2);
}

#[test]
fn words_of_any_length_cross_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let mut words = Words::from([(vec![0], 1), (vec![b'x'; BLOCK], 2), (vec![b'x'; 3 * BLOCK + 1], u64::MAX >> 20)]);
    for i in 0..20_000u64 {
        words.insert(i.to_be_bytes().to_vec(), i + 1);
    }
    let path = put(&dir.path().join("long.gtc"), &words, 9);
    assert_eq!(words_of(&path).unwrap(), words);
    let header = CountFile::open(&path).unwrap().header().clone();
    assert_eq!(header.n_bytes, words.iter().map(|(word, n)| word.len() as u64 * n).sum::<u64>());
    let out = dir.path().join("out.gtc");
    join(std::slice::from_ref(&path), &out, &Control::new()).unwrap();
    assert!(fs::read(out).unwrap() == fs::read(path).unwrap());
}

#[track_caller]
fn refused(end: Result<impl std::fmt::Debug>, parts: &[&str]) -> String {
    let Err(error) = end else { panic!("expected an error, got {end:?}") };
    let message = error.to_string();
    assert!(matches!(error, Error::Argument(_) | Error::Format { .. }), "{error:?}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    message
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let (dir, control) = (tempfile::tempdir().unwrap(), Control::new());
    let [a, b, c, out] = ["a", "b", "c", "out"].map(|name| dir.path().join(format!("{name}.gtc")));
    put(&a, &Words::from([(b"low".to_vec(), 1)]), 1);
    let mut counts = WordCounts::new();
    counts.add(b"low", 1).unwrap();
    file::write(&b, &counts, 1, &Splitter::new("cl100k_base").unwrap(), &control).unwrap();
    file::write(&c, &counts, 1, &Splitter::new(r"\w+|\W").unwrap(), &control).unwrap();
    let [a_name, b_name] = [&a, &b].map(|path| path.to_str().unwrap());
    for end in
        [join(&[a.clone(), b.clone()], &out, &control).map(|_| ()), read(&[a.clone(), b.clone()], &control).map(|_| ())]
    {
        refused(end, &[a_name, b_name, "\"gpt2\"", "\"cl100k_base\"", "hint:"]);
    }
    refused(join(&[c.clone(), a.clone()], &out, &control), &[r"\\w+|\\W", "gpt2"]);
    refused(join(&[a.clone(), a.clone()], &out, &control), &[a_name, "twice"]);
    refused(join(&[], &out, &control), &["at least one count file"]);
    assert!(!out.exists());
    let missing = dir.path().join("missing.gtc");
    assert!(matches!(join(&[a.clone(), missing], &out, &control), Err(Error::Io { .. })));
    control.cancel();
    assert!(matches!(file::write(&out, &counts, 1, &gpt2(), &control), Err(Error::Interrupted)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn sums_that_leave_64_bits_are_refused_and_leave_no_output() {
    let (dir, control) = (tempfile::tempdir().unwrap(), Control::new());
    let out = dir.path().join("out.gtc");
    let big = Words::from([(b"a".to_vec(), u64::MAX - 1)]);
    let a = put(&dir.path().join("a.gtc"), &big, 1);
    let b = put(&dir.path().join("b.gtc"), &big, u64::MAX);
    let c = put(&dir.path().join("c.gtc"), &Words::from([(b"c".to_vec(), 2)]), 1);
    refused(join(&[a.clone(), c.clone()], &out, &control), &["sums", "\"c\"", "64 bits"]);
    let d = put(&dir.path().join("d.gtc"), &big, 1);
    refused(join(&[a.clone(), d.clone()], &out, &control), &["\"a\"", "exceeds 64 bits", ".gtc"]);
    refused(read(&[a.clone(), d.clone()], &control), &["d.gtc", "64 bits"]);
    refused(join(&[b, c], &out, &control), &["documents", "64 bits"]);
    assert!(!out.exists());
    let mut writer = CountWriter::create(&out, &gpt2()).unwrap();
    refused(writer.push(b"two", u64::MAX), &["64 bits", "\"two\""]);
}

#[test]
fn a_writer_takes_words_in_order_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = CountWriter::create(&dir.path().join("a.gtc"), &gpt2()).unwrap();
    writer.push(b"b", 1).unwrap();
    refused(writer.push(b"b", 1), &["ascend"]);
    refused(writer.push(b"a", 1), &["ascend", "\"a\" after \"b\""]);
    refused(writer.push(b"", 1), &["1 to 2^32 - 1 bytes"]);
    refused(writer.push(b"c", 0), &["at least 1"]);
    writer.push(b"ba", 1).unwrap();
    assert_eq!(writer.finish(0).unwrap().n_words, 2);
    let long = format!("a{}", "|b".repeat(3000));
    refused(
        CountWriter::create(&dir.path().join("b.gtc"), &Splitter::new(&long).unwrap()),
        &["at most 4008 bytes", "hint:"],
    );
}

// ── damaged files ──

/// Reads the whole file in every way.
fn read_all(path: &Path, out: &Path) -> [Result<()>; 3] {
    let control = Control::new();
    let paths = [path.to_owned()];
    [words_of(path).map(|_| ()), read(&paths, &control).map(|_| ()), join(&paths, out, &control).map(|_| ())]
}

#[test]
fn every_flipped_bit_and_every_cut_is_found_and_named() {
    let dir = folder();
    let (path, out) = (dir.path().join("small.gtc"), dir.path().join("out.gtc"));
    put(&path, &Words::from([(b"low".to_vec(), 2), (b" lower".to_vec(), 1), (b" the".to_vec(), 1 << 40)]), 4);
    let whole = fs::read(&path).unwrap();
    let name = path.to_str().unwrap().to_owned();
    let check = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        for end in read_all(&path, &out) {
            let message = refused(end, &[&name, "count file"]);
            assert!(message.contains("hint:"), "{what}: {message}");
        }
        assert!(!out.exists(), "{what}");
    };
    for at in 0..whole.len() {
        for bit in 0..8 {
            // The header's zeros are all alike: one bit of each byte is enough there.
            if (PATTERN_END..HEADER - 8).contains(&at) && bit != at % 8 {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            check(&bytes, &format!("bit {bit} of byte {at}"));
        }
    }
    for len in (0..HEADER).step_by(61).chain(HEADER..whole.len()) {
        check(&whole[..len], &format!("cut to {len}"));
    }
    check(&[&whole[..], b"\0"].concat(), "one byte more");
    fs::write(&path, &whole).unwrap();
    read_all(&path, &out).into_iter().for_each(Result::unwrap);
}

/// Behind the header's fields.
const PATTERN_END: usize = 256;

/// Puts fields into a valid file and seals it again, as a liar would.
fn forged(whole: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    change(&mut bytes);
    let digests = u64_at(whole, 56) as usize;
    let block = xxhash_rust::xxh3::xxh3_64(&bytes[HEADER..digests]);
    bytes[digests..digests + 8].copy_from_slice(&block.to_le_bytes());
    let header = xxhash_rust::xxh3::xxh3_64(&bytes[..HEADER - 8]);
    bytes[HEADER - 8..HEADER].copy_from_slice(&header.to_le_bytes());
    let end = bytes.len() - TRAILER;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[HEADER..end]).update(&bytes[..HEADER]);
    bytes[end + 16..end + 48].copy_from_slice(hasher.finalize().as_bytes());
    let trailer = xxhash_rust::xxh3::xxh3_64(&bytes[end..end + TRAILER - 8]);
    bytes[end + TRAILER - 8..].copy_from_slice(&trailer.to_le_bytes());
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn lying_numbers_under_valid_digests_are_refused_without_being_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("liar.gtc"), dir.path().join("out.gtc"));
    put(&path, &Words::from([(b"ab".to_vec(), 2), (b"cd".to_vec(), 3)]), 1);
    let whole = fs::read(&path).unwrap();
    assert!(forged(&whole, |_| ()) == whole, "sealing again changes nothing");
    let huge = u64::MAX.to_le_bytes();
    let cases: [(&str, usize, &[u8]); 14] = [
        ("version", 8, &[2]),
        ("Unicode", 12, &[15]),
        ("header says", 16, &huge),                  // n_words
        ("header says", 24, &huge),                  // n_pieces
        ("header says", 32, &huge),                  // n_bytes
        ("does not fit", 48, &huge),                 // records_len
        ("does not fit", 48, &[200]),                // another layout
        ("contradicts", 56, &huge),                  // where the digests stand
        ("pattern", 72, &huge),                      // lengths of the pattern
        ("pattern", 76, &[0xFF, 0x0F]),              // a pattern that reaches the digest
        ("record 0 at byte 4096", 4096, &[0]),       // a count of 0
        ("record 0 at byte 4096", 4104, &[0xFF; 4]), // a word of 4 GiB
        ("record 1 at byte 4110", 4118, &[3]),       // a word longer than what is left
        ("does not stand behind", 4122, b"aa"),      // words out of order
    ];
    for (what, at, field) in cases {
        fs::write(&path, forged(&whole, |bytes| bytes[at..at + field.len()].copy_from_slice(field))).unwrap();
        for end in read_all(&path, &out) {
            refused(end, &[path.to_str().unwrap(), what, "hint:"]);
        }
    }
    fs::write(&path, forged(&whole, |bytes| bytes[4096..4104].copy_from_slice(&huge))).unwrap();
    for end in read_all(&path, &out) {
        refused(end, &["64 bits"]);
    }
    fs::write(&path, forged(&whole, |bytes| bytes[80..84].copy_from_slice(b"gpt3"))).unwrap();
    refused(read(std::slice::from_ref(&path), &Control::new()), &["pattern \"gpt3\"", "here it is", "hint:"]);
    assert!(!out.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn joined_files_are_sums_of_maps(
        parts in prop::collection::vec(
            prop::collection::btree_map(prop::collection::vec(b'a'..b'd', 1..5), 1..1_000u64, 0..30), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> =
            parts.iter().enumerate().map(|(i, words)| put(&dir.path().join(format!("{i}.gtc")), words, 1)).collect();
        let mut expected = Words::new();
        for (word, n) in parts.iter().flatten() {
            *expected.entry(word.clone()).or_default() += n;
        }
        let out = dir.path().join("out.gtc");
        join(&paths, &out, &Control::new()).unwrap();
        prop_assert_eq!(words_of(&out).unwrap(), expected.clone());
        match read(&paths, &Control::new()) {
            Ok(joined) => prop_assert_eq!(map_of(&joined.counts), expected),
            Err(error) => prop_assert!(matches!(error, Error::EmptyCorpus) && expected.is_empty()),
        }
    }
}
