//! Shards and manifests: the format's worked example, reads, and that no damage goes unseen.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gptrs_core::dataset::Dataset;
use gptrs_core::manifest::{Entry, Manifest, Recipe, Source};
use gptrs_core::shard::{Dtype, Shard, ShardWriter, Spec};
use gptrs_core::{Control, Error, Result};

#[path = "fixtures/sparse.rs"]
mod sparse;

const SPEC: Spec =
    Spec { dtype: Dtype::U16, vocab_size: 50_257, eot_id: Some(50_256), tokenizer: [0xAB; 32], has_loss_bits: false };

/// Two documents, "hello" and "hi": their ids under gpt2, each with the end-of-text id.
fn write_example(path: &Path) -> (u64, [u8; 32]) {
    let mut writer = ShardWriter::create(path, SPEC).unwrap();
    writer.push(&[31_373, 50_256]).unwrap();
    writer.end_document(5);
    writer.push(&[5303, 50_256]).unwrap();
    writer.end_document(2);
    let (header, digest) = writer.finish().unwrap();
    (header.n_tokens, digest)
}

fn open_and_verify(path: &Path) -> Result<()> {
    Shard::open(path)?.verify(&Control::new())
}

/// A dataset of `tokens` in shards of `shard_tokens`; document `i` ends before token `ends[i]`.
fn write_dataset(dir: &Path, spec: Spec, tokens: &[u32], ends: &[u64], shard_tokens: usize) -> Dataset {
    let mut entries = Vec::new();
    let mut documents = ends.iter().peekable();
    for (i, chunk) in tokens.chunks(shard_tokens).enumerate() {
        let name = format!("shard-{i:05}.gts");
        let mut writer = ShardWriter::create(&dir.join(&name), spec).unwrap();
        let mut at = (i * shard_tokens) as u64;
        let stop = at + chunk.len() as u64;
        while let Some(&end) = documents.next_if(|&&end| end <= stop) {
            let from = (at as usize) % shard_tokens;
            writer.push(&chunk[from..from + (end - at) as usize]).unwrap();
            writer.end_document(1);
            at = end;
        }
        writer.push(&chunk[chunk.len() - (stop - at) as usize..]).unwrap();
        let (header, digest) = writer.finish().unwrap();
        entries.push(Entry::new(name, &header, &digest));
    }
    Manifest::new(recipe(spec), entries, BTreeMap::new()).unwrap().write(dir).unwrap();
    Dataset::open(dir).unwrap()
}

fn recipe(spec: Spec) -> Recipe {
    let inputs = vec![Source { name: "a.txt".to_owned(), n_bytes: 7, blake3: "cd".repeat(32) }];
    Recipe { append_eot: true, inputs, ..sparse::recipe::recipe(spec, 4) }
}

#[test]
fn the_worked_example_of_the_format_has_these_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("example.gts");
    write_example(&path);
    let bytes = fs::read(&path).unwrap();
    let mut stated = vec![0u8; bytes.len()];
    let page = include_str!("../../../docs/formats.md");
    let block = page.split("```hex\n").nth(1).unwrap().split("```").next().unwrap();
    for line in block.lines() {
        let mut words = line.split_whitespace();
        let at = usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        for (i, word) in words.take(16).enumerate() {
            stated[at + i] = u8::from_str_radix(word, 16).unwrap();
        }
    }
    let shown = |bytes: &[u8]| {
        let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|&b| b != 0));
        let hex = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
        lines.map(|(i, line)| format!("{:04x}  {}", 16 * i, hex(line))).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(shown(&stated), shown(&bytes));
    open_and_verify(&path).unwrap();
}

#[test]
fn the_worked_example_of_the_manifest_has_these_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let name = "shard-00000.gts";
    write_example(&dir.path().join(name));
    let shard = Shard::open(&dir.path().join(name)).unwrap();
    let entries = vec![Entry::new(name.to_owned(), shard.header(), shard.blake3())];
    Manifest::new(recipe(SPEC), entries, BTreeMap::from([("<|endoftext|>".to_owned(), 3)]))
        .unwrap()
        .write(dir.path())
        .unwrap();
    let written = fs::read_to_string(dir.path().join("manifest.json")).unwrap();
    let page = include_str!("../../../docs/formats.md");
    assert_eq!(page.split("```json\n").nth(1).unwrap().split("```").next().unwrap(), written);
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_string();
    let checksum = written.split('"').nth_back(1).unwrap();
    assert_eq!(checksum, hash(&written.replace(checksum, "")));
    assert!(written.contains(&format!("\"fingerprint\": \"{}\"", blake3::hash(shard.blake3()))));
    assert_eq!(Dataset::open(dir.path()).unwrap().n_tokens(), 4);
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_shard_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard.gts");
    write_example(&path);
    let whole = fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    each_flip(&file, &whole, |bit| assert!(open_and_verify(&path).is_err(), "bit {bit}"));
    open_and_verify(&path).unwrap();
    file.set_len(whole.len() as u64 + 1).unwrap();
    assert!(Shard::open(&path).is_err(), "one byte more");
    for len in (0..whole.len()).rev() {
        file.set_len(len as u64).unwrap();
        assert!(Shard::open(&path).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_manifest_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), SPEC, &[1, 2, 3, 4, 5, 6], &[2, 6], 4);
    let path = dir.path().join("manifest.json");
    let whole = fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    each_flip(&file, &whole, |bit| assert!(Dataset::open(dir.path()).is_err(), "bit {bit}"));
    Dataset::open(dir.path()).unwrap();
    for len in (0..whole.len()).rev() {
        file.set_len(len as u64).unwrap();
        assert!(matches!(Dataset::open(dir.path()), Err(Error::Format { .. })), "cut to {len} bytes");
    }
}

/// Calls `check` with each bit of the file flipped, one at a time.
fn each_flip(file: &File, whole: &[u8], check: impl Fn(usize)) {
    for bit in 0..8 * whole.len() {
        let at = bit / 8;
        file.write_all_at(&[whole[at] ^ 1 << (bit % 8)], at as u64).unwrap();
        check(bit);
        file.write_all_at(&whole[at..=at], at as u64).unwrap();
    }
}

#[test]
fn a_name_that_leads_out_of_the_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write_dataset(dir.path(), SPEC, &[1, 2, 3], &[3], 4);
    let long = "x".repeat(201);
    for name in ["../x", "/etc/passwd", "a/b", "", "..", ".lock", "a\\b", "a\0b", "caf\u{e9}", &long] {
        let mut manifest = dataset.manifest().clone();
        manifest.shards[0].name = name.to_owned();
        manifest.write(dir.path()).unwrap();
        let message = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("{name:?}")), "{message}");
    }
}

#[test]
fn a_manifest_that_lies_is_refused_although_its_checksum_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write_dataset(dir.path(), SPEC, &[1, 2, 3, 4, 5, 6], &[2, 6], 4);
    let lies: [fn(&mut Manifest); 9] = [
        |m| m.version = 2,
        |m| m.n_tokens += 1,
        |m| m.fingerprint = "00".repeat(32),
        |m| m.shards.swap(0, 1),
        |m| m.shards[0].n_tokens = u64::MAX,
        |m| m.recipe.tokenizer = "00".repeat(32),
        |m| m.recipe.vocab_size = 1 << 20,
        |m| m.recipe.eot_id = Some(60_000),
        |m| m.shards[1].blake3 = m.shards[1].blake3.to_uppercase(),
    ];
    for (i, lie) in lies.iter().enumerate() {
        let mut manifest = dataset.manifest().clone();
        lie(&mut manifest);
        manifest.write(dir.path()).unwrap();
        assert!(Dataset::open(dir.path()).is_err(), "lie {i}");
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(&dir.path().join("a.gts"), SPEC).unwrap();
    let end = writer.push(&[1, 50_257, 2]);
    assert!(matches!(end, Err(Error::UnknownId { id: 50_257, position: 1, vocab_size: 50_257 })));
    let wide = Spec { vocab_size: 65_537, ..SPEC };
    assert!(ShardWriter::create(&dir.path().join("b.gts"), wide).unwrap_err().to_string().contains("65537"));
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "an unfinished shard leaves nothing");
}

#[test]
fn tokens_and_documents_are_read_across_blocks_and_shards_in_both_widths() {
    for vocab_size in [65_536, 65_537] {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec { vocab_size, dtype: Dtype::for_vocab(vocab_size), eot_id: None, ..SPEC };
        let tokens: Vec<u32> = (0..200_000u64).map(|i| (i * 7919 % vocab_size) as u32).collect();
        // Documents of 1 to 300 tokens, one much longer, some empty; one ends with the first shard.
        let mut ends: Vec<u64> = vec![0, 0, 5, 5];
        while ends[ends.len() - 1] < 200_000 {
            let last = ends[ends.len() - 1];
            let next = last + if ends.len() == 40 { 90_000 } else { last * 31 % 300 + 1 };
            ends.push(if last < 70_000 && next >= 70_000 && !ends.contains(&70_000) {
                70_000
            } else {
                next.min(200_000)
            });
        }
        let dataset = write_dataset(dir.path(), spec, &tokens, &ends, 70_000);
        assert_eq!((dataset.n_tokens(), dataset.n_documents()), (200_000, ends.len() as u64));
        let control = Control::new();
        dataset.verify(2, &control).unwrap();
        assert_eq!(control.progress().done, control.progress().total);
        let naive: Vec<u64> = (0..200_000).map(|t| ends.iter().filter(|&&end| end <= t).count() as u64).collect();
        for (start, n) in
            [(0, 10), (0, 200_000), (69_999, 2), (32_000, 1000), (199_999, 1), (200_000, 0), (65_000, 140)]
        {
            let range = start as usize..start as usize + n;
            let mut got = vec![0u32; n];
            dataset.read(start, &mut got).unwrap();
            assert!(got == tokens[range.clone()], "{start}+{n}");
            let mut got = vec![0u64; n];
            dataset.doc_ids(start, &mut got).unwrap();
            assert!(got == naive[range], "{start}+{n}");
        }
        for (i, &end) in ends.iter().enumerate() {
            assert_eq!(dataset.document(i as u64).unwrap(), if i == 0 { 0 } else { ends[i - 1] }..end);
        }
        assert!(dataset.read(199_999, &mut [0u32; 2]).is_err());
        assert!(dataset.read(u64::MAX, &mut [0u32; 2]).is_err());
        assert!(dataset.doc_ids(199_999, &mut [0; 2]).is_err());
        assert!(dataset.document(ends.len() as u64).is_err());
        assert_eq!(dataset.read(0, &mut [0u16; 2]).is_err(), vocab_size > 65_536);
    }
}

#[test]
fn a_block_is_compared_though_the_one_256_mib_before_it_was() {
    const BLOCK: u64 = 65_536;
    let dir = tempfile::tempdir().unwrap();
    sparse::write(dir.path(), 1, 3 * 4096 * BLOCK / 2).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    let file = File::options().write(true).open(dir.path().join("shard-00000.gts")).unwrap();
    let read = |block: u64| dataset.read(block * BLOCK / 2, &mut [1u16; 8]);
    for block in [4095 + 4096, 4096, 2 * 4096 + 70] {
        for near in [block - 4096, block - 1, block + 1] {
            read(near).unwrap();
        }
        file.write_all_at(&[1], 4096 + block * BLOCK + 99).unwrap();
        let message = read(block).unwrap_err().to_string();
        assert!(message.contains(&format!("block {block}")), "{message}");
        file.write_all_at(&[0], 4096 + block * BLOCK + 99).unwrap();
        read(block).unwrap();
    }
}

#[test]
fn a_read_never_gives_a_damaged_block() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = vec![7u32; 100_000];
    let dataset = write_dataset(dir.path(), SPEC, &tokens, &[100_000], 100_000);
    let path = dir.path().join("shard-00000.gts");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096 + 65_536 + 100] ^= 4;
    fs::write(&path, bytes).unwrap();
    dataset.read(0, &mut [0u16; 1000]).unwrap();
    let message = dataset.read(33_000, &mut [0u16; 10]).unwrap_err().to_string();
    assert!(message.contains("block 1") && message.contains("shard-00000.gts"), "{message}");
    assert!(matches!(dataset.verify(1, &Control::new()), Err(Error::Digest { .. })));
}

/// The files are right in every checksum and still lie: whoever can write a file can write its checksums.
#[test]
fn a_shard_with_right_checksums_and_wrong_content_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard.gts");
    write_example(&path);
    let whole = fs::read(&path).unwrap();
    let forgeries: [(usize, u8, &str); 7] = [
        (4096 + 3, 0xFF, "expected ids below 50257"),
        (4160, 9, "a document ends at 9"),
        (4160 + 8, 1, "a document ends at 1, the one before at 2"),
        (4096 + 8, 1, "expected zeros between the sections"),
        (4160 + 16, 1, "expected zeros between the sections"),
        (24, 200, "does not fit its 4 tokens and 200 documents"),
        (23, 0x80, "does not fit its 9223372036854775812 tokens"),
    ];
    for (at, value, reason) in forgeries {
        let mut bytes = whole.clone();
        bytes[at] = value;
        forge(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let message = open_and_verify(&path).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

/// Makes every checksum of the example right again.
fn forge(bytes: &mut [u8]) {
    use xxhash_rust::xxh3::xxh3_64;
    let digest = xxh3_64(&bytes[..4088]);
    bytes[4088..4096].copy_from_slice(&digest.to_le_bytes());
    let digest = xxh3_64(&bytes[4096..4224]);
    bytes[4224..4232].copy_from_slice(&digest.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    let digest = *hasher.update(&bytes[4096..4288]).update(&bytes[..4096]).finalize().as_bytes();
    bytes[4288 + 16..4288 + 48].copy_from_slice(&digest);
    let digest = xxh3_64(&bytes[4288..4344]);
    bytes[4344..4352].copy_from_slice(&digest.to_le_bytes());
}
