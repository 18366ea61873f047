//! Datasets that are not what they say: each is refused with what was expected, what was got and where.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/corpus.rs"]
mod corpus;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use gptrs_core::dataset::Dataset;
use gptrs_core::prepare::{PrepareOptions, prepare};
use gptrs_core::shard::{Dtype, Shard, ShardWriter, Spec};
use gptrs_core::{Control, Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// A small dataset in `dir/out`.
fn make(dir: &Path) -> PathBuf {
    let (paths, out) = (corpus::write_corpus(&dir.join("text"), 200), dir.join("out"));
    prepare(&paths, &corpus::tokenizer(), &out, &corpus::options(700), &Control::new()).unwrap();
    out
}

#[track_caller]
fn says<T>(end: Result<T>, parts: &[&str]) {
    let Err(error) = end else { panic!("nothing was refused, expected {parts:?}") };
    let message = error.to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{message}, expected {parts:?}");
}

#[test]
fn a_link_is_read_as_the_shard_it_leads_to_and_refused_when_it_leads_to_anything_else() {
    let dir = corpus::temporary_dir();
    let out = make(dir.path());
    let (shard, blob) = (out.join("shard-00000.gts"), dir.path().join("blob"));
    let mut tokens = vec![0u16; 100];
    Dataset::open(&out).unwrap().read(0, &mut tokens).unwrap();
    fs::rename(&shard, &blob).unwrap();
    let link = |to: &Path| {
        let _ = fs::remove_file(&shard);
        symlink(to, &shard).unwrap();
        Dataset::open(&out)
    };
    let dataset = link(&blob).unwrap();
    let mut got = vec![0u16; 100];
    dataset.read(0, &mut got).unwrap();
    assert_eq!(got, tokens);
    dataset.verify(1, &Control::new()).unwrap();

    says(link(&out.join("shard-00001.gts")), &["shard-00000.gts", "digest", "hint: "]);
    says(link(Path::new("/etc/hostname")), &["shard-00000.gts", "valid shard"]);
    says(link(Path::new("/dev/zero")), &["shard-00000.gts", "regular file"]);
    says(link(&out), &["shard-00000.gts", "directory"]);
    says(link(&dir.path().join("absent")), &["cannot open", "shard-00000.gts"]);
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    says(link(&pipe), &["shard-00000.gts", "regular file", "hint: "]); // and nobody waits for its other end
}

#[test]
fn another_version_of_a_shard_a_manifest_or_a_journal_is_said() {
    let dir = corpus::temporary_dir();
    let out = make(dir.path());
    let shard = out.join("shard-00000.gts");
    let whole = fs::read(&shard).unwrap();
    for version in [0, 2, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let digest = xxh3_64(&bytes[..4088]);
        bytes[4088..4096].copy_from_slice(&digest.to_le_bytes());
        fs::write(&shard, bytes).unwrap();
        says(Shard::open(&shard), &["shard-00000.gts", "expected version 1 at byte 8", &format!("got {version}")]);
    }
    fs::write(&shard, whole).unwrap();

    let manifest = out.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for other in [text.replacen("\"version\": 1", "\"version\": 2", 1), "{\"version\": 2, \"new\": []}".to_owned()] {
        fs::write(&manifest, &other).unwrap();
        says(Dataset::open(&out), &["manifest.json", "expected version 1, got 2", "hint: "]);
        fs::remove_file(&manifest).unwrap();
        fs::write(out.join("prepare.json"), &other).unwrap();
        let paths = ["a.txt", "b.jsonl", "c.txt"].map(|name| dir.path().join("text").join(name));
        let end = prepare(&paths, &corpus::tokenizer(), &out, &corpus::options(700), &Control::new());
        says(end, &["prepare.json", "journal", "expected version 1, got 2", "hint: "]);
        fs::remove_file(out.join("prepare.json")).unwrap();
    }
    assert!(shard.exists());
}

#[test]
fn an_id_that_two_bytes_do_not_hold_is_refused_with_its_position() {
    let dir = corpus::temporary_dir();
    let path = dir.path().join("a.gts");
    let spec = Spec { dtype: Dtype::U16, vocab_size: 1 << 16, eot_id: None, tokenizer: [0; 32], has_loss_bits: false };
    let mut writer = ShardWriter::create(&path, spec).unwrap();
    writer.push(&[0, 65_535]).unwrap();
    for (position, id) in [(0, 65_536), (3, 65_537), (2, u32::MAX)] {
        let mut ids = vec![1; 5];
        ids[position] = id;
        says(writer.push(&ids), &[&format!("id {id} at position {position}"), "65536 ids"]);
    }
    writer.push(&[7]).unwrap();
    writer.finish().unwrap();
    let mut got = [0u32; 3];
    Shard::open(&path).unwrap().tokens(0, &mut got).unwrap();
    assert_eq!(got, [0, 65_535, 7], "what was refused left nothing");
    for (vocab_size, dtype) in [((1 << 16) + 1, Dtype::U16), (1 << 16, Dtype::U32), ((1 << 32) + 1, Dtype::U32)] {
        let end = ShardWriter::create(&path, Spec { vocab_size, dtype, ..spec });
        says(end, &[&format!("a vocabulary of {vocab_size} ids is not stored as {}", dtype.name())]);
    }
}

#[test]
fn a_manifest_over_shards_of_another_tokenizer_is_refused() {
    let dir = corpus::temporary_dir();
    let out = make(dir.path());
    let mut manifest = Dataset::open(&out).unwrap().manifest().clone();
    manifest.recipe.tokenizer = "00".repeat(32);
    manifest.write(&out).unwrap();
    says(Dataset::open(&out), &["shard-00000.gts", "its header does not say what the manifest says of it"]);
}

#[test]
fn a_folder_of_another_recipe_is_refused_by_what_differs_and_stays() {
    let dir = corpus::temporary_dir();
    let out = make(dir.path());
    let manifest = fs::read(out.join("manifest.json")).unwrap();
    let paths = ["a.txt", "b.jsonl", "c.txt"].map(|name| dir.path().join("text").join(name));
    let options = PrepareOptions { append_eot: false, ..corpus::options(701) };
    let end = prepare(&paths, &corpus::tokenizer(), &out, &options, &Control::new());
    says(
        end,
        &[
            out.to_str().unwrap(),
            "other append_eot (true, asked for false), shard_tokens (700, asked for 701);",
            "hint: ",
        ],
    );
    assert!(fs::read(out.join("manifest.json")).unwrap() == manifest);
    let file = out.join("manifest.json");
    assert!(matches!(prepare(&paths, &corpus::tokenizer(), &file, &options, &Control::new()), Err(Error::Io { .. })));
}
