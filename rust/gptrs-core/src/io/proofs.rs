//! Whatever fails under a writer or a reader, and wherever: the file of before or a whole new one, and no wrong byte.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::random::Random;
use super::fault::{self, Fault};
use super::sweep::{self, WRITE_FAULTS, temporary_dir};
use crate::control::Control;
use crate::corpus::{self, Rows, Selection, TextField};
use crate::count::WordCounts;
use crate::count::file;
use crate::count::join;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::loader::{Loader, LoaderOptions};
use crate::manifest::{Entry, Manifest, Recipe};
use crate::order::OrderKind;
use crate::prepare::parquet_files::{Layout, write_parquet};
use crate::shard::{Dtype, Shard, ShardWriter, Spec};
use crate::split::Splitter;

const SPEC: Spec =
    Spec { dtype: Dtype::U16, vocab_size: 65_536, eot_id: None, tokenizer: [1; 32], has_loss_bits: false };

/// Tokens of more than one block.
fn tokens(seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..50_000).map(|_| random.below(65_536) as u32).collect()
}

fn write_shard(path: &Path, tokens: &[u32]) -> Result<Entry> {
    let mut writer = ShardWriter::create(path, SPEC)?;
    for document in tokens.chunks(9_999) {
        writer.push(document)?;
        writer.end_document(7);
    }
    let (header, digest) = writer.finish()?;
    Ok(Entry::new(path.file_name().unwrap().to_str().unwrap().to_owned(), &header, &digest))
}

/// The files of a folder that have a name of their own.
fn visible(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let named = entries.filter(|entry| {
        let name = entry.file_name().into_string().unwrap();
        !(name.starts_with('.') && name.ends_with(super::TEMPORARY))
    });
    named.map(|entry| (entry.path(), fs::read(entry.path()).unwrap())).collect()
}

/// `work`, which writes files into `dir`, is tried with every fault from the state that `start` makes: what is there
/// then is the state of before or of after. Tried again it ends as though nothing had been.
fn all_or_nothing(dir: &Path, start: impl Fn(), work: impl Fn() -> Result<()>, least: u64) {
    start();
    let before = visible(dir);
    work().unwrap();
    let after = visible(dir);
    let check = |is_done: bool, what: &str| {
        let now = visible(dir);
        assert!(now == after || (now == before && !is_done), "{what}");
        work().unwrap();
        assert!(visible(dir) == after, "{what}, again");
        assert_eq!(fs::read_dir(dir).unwrap().count(), after.len(), "{what}: temporary files that stay");
    };
    let n = sweep::each_change(&WRITE_FAULTS, &start, &work, check);
    assert!(n >= least, "{n} changes, at least {least} were expected");
}

#[test]
fn a_removed_file_stays_removed_and_a_failed_removal_leaves_it_whole() {
    let dir = temporary_dir();
    let path = dir.path().join("file");
    let start = || fs::write(&path, b"old").unwrap();
    let check = |is_removed: bool, what: &str| match fs::read(&path) {
        Ok(bytes) => assert!(bytes == b"old" && !is_removed, "{what}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{what}"),
    };
    assert_eq!(sweep::each_change(&WRITE_FAULTS, start, || super::remove(&path), check), 2);
}

#[test]
fn a_name_comes_after_the_bytes_and_an_error_leaves_no_temporary_file() {
    let dir = temporary_dir();
    let path = dir.path().join("file");
    let start = || super::write_atomic(&path, b"old").unwrap();
    let work = || super::write_atomic(&path, b"new bytes");
    // Each of these cuts keeps another part of what was not synced: some keep the name and not the bytes.
    let cuts: Vec<_> = (0..40).map(|seed| Fault::PowerCut(Some(seed))).collect();
    sweep::each_change(&cuts, start, work, |is_done, what| {
        let now = fs::read(&path).unwrap();
        assert!(now == b"new bytes" || (now == b"old" && !is_done), "{what}");
    });
    let errors = [fault::EIO, fault::ENOSPC].map(Fault::Error);
    sweep::each_change(&errors, start, work, |_, what| {
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{what}");
    });
}

/// The layer itself: without a sync, a power cut takes everything.
#[test]
fn a_power_cut_takes_what_was_not_synced() {
    let dir = temporary_dir();
    let (path, other) = (dir.path().join("file"), dir.path().join("other"));
    fs::write(&path, b"old").unwrap();
    let names = || visible(dir.path()).into_keys().collect::<Vec<_>>();
    let write = |is_synced: bool| {
        let file = fault::create(&dir.path().join("new"), true).unwrap();
        fault::on(&file).write_all(b"12").unwrap();
        if is_synced {
            fault::sync(&file).unwrap();
        }
        fault::on(&file).write_all(b"34").unwrap();
        fault::rename(&dir.path().join("new"), &path).unwrap();
        fault::create_dir(&other).unwrap();
    };
    fault::at(Fault::PowerCut(None), u64::MAX, || write(true));
    assert_eq!((names(), fs::read(&path).unwrap()), (vec![path.clone()], b"old".to_vec()));
    let left = [true, false].map(|is_synced| {
        let work = || {
            write(is_synced);
            fault::sync_dir(dir.path()).unwrap();
            fs::remove_dir(&other).unwrap();
        };
        fault::at(Fault::PowerCut(None), u64::MAX, work);
        fs::read(&path).unwrap()
    });
    assert_eq!(left, [b"12".to_vec(), Vec::new()]);
    fault::at(Fault::PowerCut(None), u64::MAX, || fault::remove_file(&path).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn a_shard_is_whole_or_not_there_whatever_fails() {
    let dir = temporary_dir();
    let path = dir.path().join("a.gts");
    let tokens = tokens(1);
    let absent = || drop(fs::remove_file(&path));
    let write = || write_shard(&path, &tokens).map(drop);
    all_or_nothing(dir.path(), absent, write, 9);
    let old = || drop(write_shard(&path, &[1, 2, 3]).unwrap());
    all_or_nothing(dir.path(), old, write, 9);
    Shard::open(&path).unwrap().verify(&Control::new()).unwrap();
}

#[test]
fn a_count_file_is_whole_or_not_there_whatever_fails() {
    let dir = temporary_dir();
    let path = dir.path().join("a.gtc");
    let splitter = Splitter::new("gpt2").unwrap();
    let mut counts = WordCounts::new();
    for i in 0..6000u64 {
        counts.add(format!("word{i:06}").as_bytes(), i + 1).unwrap();
    }
    let absent = || drop(fs::remove_file(&path));
    let write = || file::write(&path, &counts, 3, &splitter, &Control::new()).map(drop);
    all_or_nothing(dir.path(), absent, write, 9);

    // More files than are read at a time: intermediate results without a name.
    let inputs = temporary_dir();
    let paths: Vec<PathBuf> = (0..=join::FAN_IN).map(|i| inputs.path().join(format!("{i}.gtc"))).collect();
    for (i, path) in paths.iter().enumerate() {
        let mut counts = WordCounts::new();
        counts.add(format!("word{i:06}").as_bytes(), 1).unwrap();
        file::write(path, &counts, 1, &splitter, &Control::new()).unwrap();
    }
    all_or_nothing(dir.path(), absent, || join::join(&paths, &path, &Control::new()).map(drop), 12);
}

/// A dataset of two shards.
fn dataset(dir: &Path) -> Result<Manifest> {
    let entries =
        [1, 2].map(|i| write_shard(&dir.join(format!("shard-{i}.gts")), &tokens(i))).into_iter().collect::<Result<_>>();
    let recipe = Recipe {
        tokenizer: "01".repeat(32),
        vocab_size: SPEC.vocab_size,
        dtype: SPEC.dtype,
        eot_id: None,
        append_eot: false,
        text_field: "text".to_owned(),
        loss_fields: Vec::new(),
        shard_tokens: 50_000,
        selection: Selection::default(),
        inputs: Vec::new(),
    };
    Manifest::new(recipe, entries?, BTreeMap::new())
}

#[test]
fn a_manifest_is_whole_or_not_there_whatever_fails() {
    let dir = temporary_dir();
    let manifest = dataset(dir.path()).unwrap();
    let path = dir.path().join(crate::manifest::FILE);
    all_or_nothing(dir.path(), || drop(fs::remove_file(&path)), || manifest.write(dir.path()), 5);
    let other = Manifest { special_texts: [("a".to_owned(), 1)].into(), ..manifest.clone() };
    all_or_nothing(dir.path(), || other.write(dir.path()).unwrap(), || manifest.write(dir.path()), 5);
}

#[test]
fn a_read_that_fails_or_is_short_is_an_error_and_never_a_wrong_token() {
    let dir = temporary_dir();
    dataset(dir.path()).unwrap().write(dir.path()).unwrap();
    let tokens = [tokens(1), tokens(2)].concat();
    let work = |threads: usize| {
        let dataset = Dataset::open(dir.path())?;
        let mut got = vec![0u32; 70_000];
        dataset.read(20_000, &mut got)?;
        assert!(got == tokens[20_000..90_000]);
        assert_eq!(dataset.document(7)?, 59_999..69_998);
        dataset.verify(threads, &Control::new()).map(drop)
    };
    let [one, two] = [1, 2].map(|threads| sweep::each_read(dir.path().to_str().unwrap(), || work(threads)));
    assert!(one > 20 && one == two, "{one} reads of one thread, {two} of two");
}

#[test]
fn a_batch_is_right_or_an_error_and_the_next_try_is_right() {
    let dir = temporary_dir();
    dataset(dir.path()).unwrap().write(dir.path()).unwrap();
    let tokens = [tokens(1), tokens(2)].concat();
    let (seq_len, global_batch, micro_batch, seed, order) = (99, 8, 8, 1, OrderKind::Feistel);
    let options = LoaderOptions { seq_len, global_batch, micro_batch, rank: 0, world_size: 1, seed, order };
    let fill = |loader: &Loader| {
        let mut rows = vec![0u16; 800];
        loader.fill_rows(800, &mut rows)?;
        for (row, sample) in rows.chunks(100).zip(800..) {
            let start = loader.place(sample).unwrap().row as usize * 99;
            assert!(row.iter().map(|&id| u32::from(id)).eq(tokens[start..start + 100].iter().copied()));
        }
        Ok(())
    };
    let work = || {
        let loader = Loader::new(Arc::new(Dataset::open(dir.path())?), options)?;
        let end = fill(&loader);
        if end.is_err() {
            fill(&loader).unwrap();
        }
        end
    };
    assert!(sweep::each_read(dir.path().to_str().unwrap(), work) > 20);
}

#[test]
fn rows_are_right_or_an_error_of_the_disk() {
    let dir = temporary_dir();
    let path = dir.path().join("a.parquet");
    let texts = ["one", "", "three", "four"];
    let column = texts.map(|text| Some(text.as_bytes())).to_vec();
    for encoding in [None, Some(parquet::basic::Encoding::PLAIN)] {
        let layout = Layout { rows_of_group: 3, rows_of_page: 1, encoding };
        write_parquet(&path, &[("text", column.clone())], layout);
        let input = &corpus::inputs(std::slice::from_ref(&path)).unwrap()[0];
        for first in [0, 1] {
            let work = || {
                let mut rows = Rows::open(input, &TextField::new("text")?, first)?;
                let (mut got, mut ends) = (Vec::new(), Vec::new());
                while rows.next(&mut got)?.is_some() {
                    ends.push(got.len());
                }
                assert!(got == texts[first as usize..].concat().as_bytes() && ends.len() == 4 - first as usize);
                Ok(())
            };
            let n = sweep::each_read(path.to_str().unwrap(), work);
            assert!(n > 13, "a footer, and a look, a header and its values for each of four pages, are more than {n}");
        }
    }
}

#[test]
fn a_count_file_that_cannot_be_read_is_an_error_and_leaves_no_sum() {
    let dir = temporary_dir();
    let [path, out] = ["a.gtc", "b.gtc"].map(|name| dir.path().join(name));
    let splitter = Splitter::new("gpt2").unwrap();
    let mut counts = WordCounts::new();
    for i in 0..6000u64 {
        counts.add(format!("word{i:06}").as_bytes(), i + 1).unwrap();
    }
    file::write(&path, &counts, 3, &splitter, &Control::new()).unwrap();
    let whole = fs::read(&path).unwrap();
    let work = || {
        let _ = fs::remove_file(&out);
        let end = join::join(std::slice::from_ref(&path), &out, &Control::new()).map(drop);
        assert_eq!(fs::read(&out).ok(), end.is_ok().then(|| whole.clone()));
        end
    };
    assert!(sweep::each_read(dir.path().to_str().unwrap(), work) > 10);
}
