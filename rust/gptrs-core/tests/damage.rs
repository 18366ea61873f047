//! Damage of shards, manifests and journals: every bit, every cut, and random edits. None goes unseen or gives a wrong token.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/corpus.rs"]
mod corpus;
#[path = "fixtures/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gptrs_core::dataset::Dataset;
use gptrs_core::prepare::prepare;
use gptrs_core::shard::{BLOCK, Dtype, HEADER, Shard, ShardWriter, Spec};
use gptrs_core::{Control, Error, Result};
use random::Random;

/// A file under test, and what must hold when its bytes are not the written ones.
struct Subject<'a> {
    path: PathBuf,
    whole: Vec<u8>,
    check: &'a dyn Fn(&str),
}

impl Subject<'_> {
    fn each_bit(&self) {
        let file = File::options().write(true).open(&self.path).unwrap();
        for bit in 0..8 * self.whole.len() {
            let at = bit / 8;
            file.write_all_at(&[self.whole[at] ^ 1 << (bit % 8)], at as u64).unwrap();
            (self.check)(&format!("bit {bit}"));
            file.write_all_at(&self.whole[at..=at], at as u64).unwrap();
        }
        assert!(fs::read(&self.path).unwrap() == self.whole);
    }

    fn each_length(&self) {
        let file = File::options().write(true).open(&self.path).unwrap();
        for len in (0..self.whole.len()).rev() {
            file.set_len(len as u64).unwrap();
            (self.check)(&format!("cut to {len} bytes"));
        }
        for more in [1, 7, 64, 4096, BLOCK] {
            fs::write(&self.path, [&self.whole[..], &vec![0; more]].concat()).unwrap();
            (self.check)(&format!("{more} bytes more"));
        }
        fs::write(&self.path, &self.whole).unwrap();
    }

    fn random_edits(&self, n: u64) {
        for seed in 0..n {
            let edited = edit(&self.whole, &mut Random(seed));
            if edited != self.whole {
                fs::write(&self.path, edited).unwrap();
                (self.check)(&format!("random edit of seed {seed}"));
            }
        }
        fs::write(&self.path, &self.whole).unwrap();
    }
}

/// One to four changes as disks, tools and people make them.
fn edit(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=random.below(4) {
        let len = bytes.len().max(1);
        let most = [4, 16, 64, 512][random.below(4)];
        let n = (1 + random.below(most)).min(bytes.len());
        let [at, other] = [0; 2].map(|_| random.below(len - n + 1).min(bytes.len() - n));
        let noise: Vec<u8> = (0..n).map(|_| random.next() as u8).collect();
        match random.below(7) {
            0 => bytes[at..at + n].copy_from_slice(&noise),
            1 => bytes[at..at + n].fill(0),
            2 => drop(bytes.drain(at..at + n)),
            3 => drop(bytes.splice(at..at, noise)),
            4 => bytes.copy_within(at..at + n, other),
            5 => {
                let (first, second) = (bytes[at..at + n].to_vec(), bytes[other..other + n].to_vec());
                bytes[at..at + n].copy_from_slice(&second);
                bytes[other..other + n].copy_from_slice(&first);
            }
            _ => {
                bytes.truncate(at);
                bytes.extend(noise);
            }
        }
    }
    bytes
}

/// Fails unless `end` is an error about the file at `path`.
#[track_caller]
fn refused<T>(end: Result<T>, path: &Path, what: &str) {
    match end {
        Err(Error::Format { path: got, .. } | Error::Digest { path: got, .. }) => assert_eq!(got, path, "{what}"),
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} was not found"),
    }
}

// ── shards ──

/// A shard of `n` tokens: no read of it after damage gives anything but the written tokens, and a check finds it.
fn shard(n: usize, dtype: Dtype, has_loss_bits: bool, damage: impl Fn(Subject)) {
    let dir = corpus::temporary_dir();
    let path = dir.path().join("a.gts");
    let vocab_size = if dtype == Dtype::U16 { 50_257 } else { 100_000 };
    let mut random = Random(n as u64);
    let tokens: Vec<u32> = (0..n).map(|_| random.below(vocab_size) as u32).collect();
    let bits: Vec<bool> = (0..n).map(|_| !has_loss_bits || random.below(2) == 1).collect();
    let spec = Spec { dtype, vocab_size: vocab_size as u64, eot_id: Some(50_256), tokenizer: [7; 32], has_loss_bits };
    let mut writer = ShardWriter::create(&path, spec).unwrap();
    let mut ends = Vec::new();
    for (document, bits) in tokens.chunks(n / 5 + 1).zip(bits.chunks(n / 5 + 1)) {
        if has_loss_bits { writer.push_with_bits(document, bits) } else { writer.push(document) }.unwrap();
        writer.end_document(3);
        ends.push(writer.header().n_tokens);
    }
    writer.finish().unwrap();
    let check = |what: &str| {
        let opened = Shard::open(&path);
        let Ok(shard) = opened else { return refused(opened, &path, what) };
        assert_eq!(shard.header().n_tokens, n as u64, "{what}: an opened shard has its own header");
        for (start, part) in (0..).step_by(BLOCK / 4).zip(tokens.chunks(BLOCK / 4)) {
            let mut got = vec![0u32; part.len()];
            match shard.tokens(start, &mut got) {
                Ok(()) => assert!(got == part, "{what}: wrong tokens"),
                end => refused(end, &path, what),
            }
        }
        let mut got = vec![0; ends.len()];
        match shard.document_ends(0, &mut got) {
            Ok(()) => assert!(got == ends, "{what}: wrong documents"),
            end => refused(end, &path, what),
        }
        let mut got = vec![false; n];
        match shard.loss_bits(0, &mut got) {
            Ok(()) => assert!(got == bits, "{what}: wrong bits"),
            end => refused(end, &path, what),
        }
        refused(shard.verify(&Control::new()), &path, what);
    };
    damage(Subject { path: path.clone(), whole: fs::read(&path).unwrap(), check: &check });
    Shard::open(&path).unwrap().verify(&Control::new()).unwrap();
}

#[test]
fn every_damage_of_a_small_shard_is_found() {
    for (dtype, has_loss_bits) in [(Dtype::U16, false), (Dtype::U32, false), (Dtype::U16, true)] {
        shard(77, dtype, has_loss_bits, |subject| {
            subject.each_bit();
            subject.each_length();
        });
    }
    shard(40_000, Dtype::U16, true, |subject| subject.random_edits(300));
}

#[test]
#[ignore = "a minute or more"]
fn every_damage_of_a_shard_of_two_blocks_is_found() {
    shard(35_000, Dtype::U16, true, |subject| {
        assert!(subject.whole.len() > HEADER + BLOCK);
        subject.each_bit();
        subject.each_length();
        subject.random_edits(10_000);
    });
}

// ── manifests and journals ──

/// A dataset under way: its last input has a line that is no JSON, so that its journal stays.
fn interrupted(dir: &Path) -> impl Fn() -> Result<Dataset> + use<> {
    let mut paths = corpus::write_corpus(&dir.join("text"), 200);
    paths.push(dir.join("text/d.jsonl"));
    fs::write(&paths[3], "{\"text\": \"ab\"}\nnone\n").unwrap();
    let out = dir.join("out");
    move || prepare(&paths, &corpus::tokenizer(), &out, &corpus::options(700), &Control::new())
}

fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn journal(damage: impl Fn(Subject)) {
    let dir = corpus::temporary_dir();
    let run = interrupted(dir.path());
    let message = run().unwrap_err().to_string();
    assert!(message.contains("d.jsonl"), "{message}");
    let path = dir.path().join("out/prepare.json");
    let whole = content(&dir.path().join("out"));
    assert!(whole.len() > 3);
    damage(Subject { path: path.clone(), whole: whole[&path].clone(), check: &|what| refused(run(), &path, what) });
    assert!(content(&dir.path().join("out")) == whole, "a journal that is refused changes nothing");
    fs::write(dir.path().join("text/d.jsonl"), "{\"text\": \"ab\"}\n{}\n").unwrap();
    assert!(run().unwrap_err().to_string().contains("input files"), "the recipe holds the inputs' content");
}

fn manifest(damage: impl Fn(Subject)) {
    let dir = corpus::temporary_dir();
    let (paths, out) = (corpus::write_corpus(&dir.path().join("text"), 200), dir.path().join("out"));
    prepare(&paths, &corpus::tokenizer(), &out, &corpus::options(700), &Control::new()).unwrap();
    let path = out.join("manifest.json");
    let check = |what: &str| refused(Dataset::open(&out), &path, what);
    damage(Subject { path: path.clone(), whole: fs::read(&path).unwrap(), check: &check });
    Dataset::open(&out).unwrap().verify(1, &Control::new()).unwrap();
}

#[test]
fn every_bit_and_every_cut_of_a_manifest_and_of_a_journal_is_found() {
    for_both(|subject| {
        subject.each_bit();
        subject.each_length();
        subject.random_edits(300);
    });
}

#[test]
#[ignore = "the long form"]
fn random_edits_of_a_manifest_and_of_a_journal_are_found() {
    for_both(|subject| subject.random_edits(10_000));
}

fn for_both(damage: impl Fn(Subject)) {
    manifest(&damage);
    journal(damage);
}
