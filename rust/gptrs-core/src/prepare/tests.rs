//! Faults at every change and every read of a file.

use std::fs;

use super::*;
use crate::corpus::Selection;
use crate::io::fault::{self, Fault};
use crate::io::sweep::{READ_FAULTS, WRITE_FAULTS, each_change, temporary_dir};
use crate::ranges::Task;

/// A byte is a token; any place is a safe cut.
pub(super) struct Bytes;

impl Encode for Bytes {
    type State = ();

    fn state(&self, _: usize) {}

    fn encode_into(&self, (): &mut (), text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        out.extend(text.iter().map(|&b| u32::from(b)));
        Ok(())
    }

    fn safe_cut(&self, _: &[u8], at: usize) -> usize {
        at
    }

    fn vocab_size(&self) -> usize {
        257
    }

    fn eot_id(&self) -> Option<u32> {
        Some(256)
    }

    fn digest(&self) -> [u8; 32] {
        [7; 32]
    }

    fn special_texts(&self) -> Vec<String> {
        vec!["b c".to_owned()]
    }

    fn token_lens(&self) -> Option<Vec<u32>> {
        Some(vec![1; 257])
    }
}

/// Names and bytes of all files but the lock, which stays.
pub(super) fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = paths
        .filter(|path| !path.ends_with(".lock"))
        .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()));
    files.collect()
}

/// Inputs of three kinds, and options that leave documents out and make four shards of the others.
fn small(dir: &Path) -> ([PathBuf; 3], PrepareOptions) {
    let paths = ["a.txt", "b.jsonl", "c.parquet"].map(|name| dir.join(name));
    fs::write(&paths[0], b"a b c d e \xFFf g d too long a document").unwrap();
    let lines = ["b c b c", "", "h", "b c b c"].map(|text| format!("{{\"text\": \"{text}\"}}\n"));
    fs::write(&paths[1], lines.concat()).unwrap();
    let rows = ["p", "q", "p"].map(|text| Some(text.as_bytes())).to_vec();
    let layout = parquet_files::Layout { rows_of_group: 2, rows_of_page: 1, encoding: None };
    parquet_files::write_parquet(&paths[2], &[("text", rows)], layout);
    let selection = Selection {
        doc_separator: Some(" d ".to_owned()),
        min_document_bytes: Some(1),
        max_document_bytes: Some(8),
        dedup: true,
        errors: corpus::Errors::Replace,
    };
    let sizes = PrepareOptions { shard_tokens: 8, segment_bytes: 3, threads: 1, ..PrepareOptions::default() };
    (paths, PrepareOptions { selection, weight: Some(0.5), ..sizes })
}

#[test]
fn a_run_that_fails_or_dies_at_any_change_of_a_file_is_continued_to_the_same_bytes() {
    let dir = temporary_dir();
    let (paths, options) = small(dir.path());
    let [whole, half, out] = ["whole", "half", "deep/out"].map(|name| dir.path().join(name));
    let run = |out: &Path| prepare(&paths, &Bytes, out, &options, &Control::new());
    let manifest = run(&whole).unwrap().manifest().clone();
    assert_eq!(manifest.special_texts, [("b c".to_owned(), 3)].into());
    assert_eq!(manifest.left_out, crate::manifest::LeftOut { short: 1, long: 1, duplicate: 2 });
    assert_eq!((manifest.n_documents, manifest.replaced, manifest.weight), (6, 1, Some(0.5)));
    fault::at(Fault::Kill, 40, || run(&half).unwrap_err());
    assert!(content(&half).keys().any(|name| name.ends_with("prepare.json")) && !half.join("manifest.json").exists());
    let check = |is_done: bool, what: &str| {
        if is_done || out.join("manifest.json").exists() {
            Dataset::open(&out).unwrap().verify(1, &Control::new()).unwrap();
        }
        if is_done {
            assert!(content(&out) == content(&whole), "{what}");
        }
        run(&out).unwrap().verify(1, &Control::new()).unwrap();
        assert!(content(&out) == content(&whole), "{what}, again");
    };
    for from_half in [false, true] {
        let start = || {
            let _ = fs::remove_dir_all(dir.path().join("deep"));
            if from_half {
                copy(&half, &out);
            }
        };
        let n = each_change(&WRITE_FAULTS, start, || run(&out).map(drop), check);
        assert!(n > 30, "four shards, five journals and a manifest are more changes than {n}");
    }
}

#[test]
fn a_run_that_cannot_read_ends_in_an_error_or_in_the_same_bytes() {
    let dir = temporary_dir();
    let (paths, options) = small(dir.path());
    let [whole, half, out] = ["whole", "half", "out"].map(|name| dir.path().join(name));
    let run = |out: &Path| prepare(&paths, &Bytes, out, &options, &Control::new());
    run(&whole).unwrap();
    fault::at(Fault::Kill, 40, || run(&half).unwrap_err());
    for (fault, from) in READ_FAULTS.into_iter().flat_map(|fault| [(fault, &half), (fault, &whole)]) {
        for n in 0.. {
            copy(from, &out);
            let (end, is_reached) = fault::at_read(fault, n, || run(&out));
            match &end {
                // A finished shard of a journal that cannot be read is written again.
                Ok(_) => assert!(content(&out) == content(&whole), "{fault:?} at read {n}"),
                Err(Error::Io { .. }) => assert!(is_reached && !fault.is_harmless(), "{fault:?} at read {n}"),
                Err(error) => assert!(fault == Fault::End, "{fault:?} at read {n}: {error}"),
            }
            run(&out).unwrap();
            assert!(content(&out) == content(&whole), "{fault:?} at read {n}, again");
            fs::remove_dir_all(&out).unwrap();
            if !is_reached {
                assert!(n > if from == &half { 90 } else { 30 }, "{n} reads");
                break;
            }
        }
    }
}

#[test]
fn tasks_and_a_merge_that_fail_or_die_at_any_change_of_a_file_end_in_the_bytes_of_one_run() {
    let dir = temporary_dir();
    let (paths, options) = small(dir.path());
    let [whole, out] = ["whole", "out"].map(|name| dir.path().join(name));
    let (control, n_tasks) = (Control::new(), 3);
    prepare(&paths, &Bytes, &whole, &options, &control).unwrap();
    let run = |threads: usize| {
        let options = PrepareOptions { threads, ..options.clone() };
        for index in 0..n_tasks {
            prepare_task(&paths, &Bytes, &out, Task { index, of: n_tasks }, &options, &control)?;
        }
        merge_tasks(&paths, &Bytes, &out, n_tasks, false, &options, &control)
    };
    let some = [Fault::Error(fault::EIO), Fault::Kill, Fault::PowerCut(Some(1))];
    for (threads, faults) in [(1, &WRITE_FAULTS[..]), (2, &some[..])] {
        let n = each_change_of(faults, &out, &whole, || run(threads));
        assert!(n > 100, "three tasks and a merge are more changes than {n}");
    }
}

/// Fails or stops `run`, which writes `out`, by each of `faults` at each change of a file: it ends, then or run again, in
/// the bytes of `whole`. How many changes there were.
pub(super) fn each_change_of(faults: &[Fault], out: &Path, whole: &Path, run: impl Fn() -> Result<Dataset>) -> u64 {
    let start = || {
        let _ = fs::remove_dir_all(out);
    };
    let check = |is_done: bool, what: &str| {
        assert!(!is_done || content(out) == content(whole), "{what}");
        run().unwrap().verify(1, &Control::new()).unwrap();
        assert!(content(out) == content(whole), "{what}, again");
    };
    each_change(faults, start, || run().map(drop), check)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in content(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}
