//! Work shared by tasks: whatever their number and order, and after any damage, the bytes of one run.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use gptrs_core::count::count_texts;
use gptrs_core::io::FolderLock;
use gptrs_core::prepare::{PrepareOptions, TaskEnd, merge_tasks, prepare, prepare_task};
use gptrs_core::ranges::Task;
use gptrs_core::shard::{Dtype, Shard};
use gptrs_core::split::Splitter;
use gptrs_core::train::{TrainOptions, train};
use gptrs_core::{Control, Error, Result, SpecialToken, Tokenizer, Vocab};
use proptest::prelude::*;

const WORDS: [&str; 9] =
    ["the", " aaa", " caf\u{e9}", "<|end|>", " \"x\"", "\u{1f600}\n", "aa<|end|>aa", "  ", " it's"];

/// About `n` words.
fn prose(seed: u64, n: u64) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 40) as usize % WORDS.len()]
    };
    (0..n).map(|_| word()).collect()
}

fn tokenizer(pattern: &str) -> Tokenizer {
    let splitter = Splitter::new(pattern).unwrap();
    let counts = count_texts(&[prose(1, 3000)], &splitter, 1, &Control::new()).unwrap();
    let merges = train(&counts, &TrainOptions { n_merges: 20, min_count: 1 }, 1, &Control::new()).unwrap();
    let vocab = Vocab::from_merges(&merges).unwrap();
    let specials = ["<|endoftext|>", "<|end|>", "a<|end|>a"].into_iter().zip(vocab.len() as u32..);
    let specials = specials.map(|(text, id)| SpecialToken { text: text.to_owned(), id }).collect();
    Tokenizer::new(vocab, splitter, specials).unwrap()
}

/// Writes a file of documents, which its name says the kind of, and returns its path.
fn write(dir: &Path, name: &str, documents: &[String]) -> PathBuf {
    let path = dir.join(name);
    let line = |text: &String| format!("{{\"n\": 1, \"text\": {}}}\r\n\n", serde_json::to_string(text).unwrap());
    let text = if name.contains("jsonl") { documents.iter().map(line).collect() } else { documents.concat() };
    let bytes = match path.extension().unwrap().to_str().unwrap() {
        "gz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        "zst" => zstd::encode_all(text.as_bytes(), 1).unwrap(),
        _ => text.into_bytes(),
    };
    fs::write(&path, bytes).unwrap();
    path
}

/// A corpus of all kinds, with empty files and empty documents at both ends and between.
fn corpus(dir: &Path) -> Vec<PathBuf> {
    let lines = |n: u64, seed: u64| (0..n).map(|i| prose(seed + i, (i * 7) % 40)).collect::<Vec<_>>();
    [
        ("0.txt", vec![]),
        ("1.jsonl", lines(20, 10)),
        ("2.txt", vec![prose(2, 900)]),
        ("3.jsonl.zst", lines(15, 30)),
        ("4.txt", vec![]),
        ("5.txt.gz", vec![prose(3, 200)]),
        ("6.jsonl", vec![String::new(); 3]),
        ("7.txt", vec![prose(4, 5)]),
        ("8.txt", vec![]),
    ]
    .iter()
    .map(|(name, documents)| write(dir, name, documents))
    .collect()
}

fn options(shard_tokens: u64) -> PrepareOptions {
    PrepareOptions { shard_tokens, threads: 1, segment_bytes: 300, ..PrepareOptions::default() }
}

fn temporary_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Names and bytes of all files but the empty lock.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| entry.path().is_file() && entry.file_name() != ".lock");
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// A corpus with a tokenizer, and the folder of its tasks.
struct Work {
    paths: Vec<PathBuf>,
    tokenizer: Tokenizer,
    out: PathBuf,
    options: PrepareOptions,
}

impl Work {
    fn task(&self, index: u64, of: u64) -> Result<TaskEnd> {
        prepare_task(&self.paths, &self.tokenizer, &self.out, Task { index, of }, &self.options, &Control::new())
    }

    fn merge(&self, of: u64) -> Result<()> {
        let merged = merge_tasks(&self.paths, &self.tokenizer, &self.out, of, false, &self.options, &Control::new())?;
        merged.verify(1, &Control::new()).map(drop)
    }

    fn merge_error(&self, of: u64) -> String {
        self.merge(of).unwrap_err().to_string()
    }

    /// What one run writes.
    fn whole(&self) -> BTreeMap<String, Vec<u8>> {
        let dir = temporary_dir();
        prepare(&self.paths, &self.tokenizer, dir.path(), &self.options, &Control::new()).unwrap();
        content(dir.path())
    }

    fn shard(&self, index: u64, of: u64, file: &str) -> PathBuf {
        self.out.join("tasks").join(Task { index, of }.name()).join(file)
    }
}

fn work(dir: &Path, shard_tokens: u64) -> Work {
    let (paths, tokenizer, out) = (corpus(dir), tokenizer("gpt2"), dir.join("out"));
    Work { paths, tokenizer, out, options: options(shard_tokens) }
}

/// The names of the fields that stand `depth` levels below the top, in a file as `serde_json` spells it.
fn fields(file: &str, depth: usize) -> String {
    let indent = "  ".repeat(depth + 1) + "\"";
    let names = file.lines().filter_map(|line| line.strip_prefix(&indent)?.split_once("\": "));
    names.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

const RECIPE: &str = "tokenizer vocab_size dtype eot_id append_eot text_field shard_tokens min_document_bytes inputs";
const ENTRY: &str = "name n_tokens n_documents n_bytes blake3 lengths";

#[test]
fn a_task_has_the_files_and_fields_of_the_format() {
    let dir = temporary_dir();
    let documents = ["one", "", "two and more", "<|end|> last"].map(str::to_owned);
    let mut work = work(dir.path(), 1 << 20);
    work.paths = vec![write(dir.path(), "a.jsonl", &documents)];
    work.options.selection.min_document_bytes = Some(1);
    work.task(0, 1).unwrap();
    let [marker, journal] =
        ["task.json", "prepare.json"].map(|file| fs::read_to_string(work.shard(0, 1, file)).unwrap());
    let sums = "n_tokens n_documents n_bytes open_bytes special_texts";
    assert_eq!(fields(&marker, 0), format!("version {RECIPE} task {sums} shards checksum"));
    assert_eq!(fields(&journal, 0), format!("version {RECIPE} task finished checksum"));
    let (task, input) = ("index of corpus start end shared surveyed", "name n_bytes blake3");
    assert!(fields(&marker, 1).starts_with(task), "{marker}");
    assert_eq!(fields(&marker, 2), format!("{input} input offset input offset left_out replaced choice {ENTRY}"));
    assert_eq!(fields(&journal, 3), "short long duplicate input offset line skip <|end|>");
    let corpus = [&7u64.to_le_bytes()[..], &fs::metadata(&work.paths[0]).unwrap().len().to_le_bytes(), b"a.jsonl"];
    assert!(marker.contains(&format!("\"corpus\": \"{}\"", blake3::hash(&corpus.concat()))), "{marker}");
    // Of four documents, the second one is left out.
    let choice = [4u64, 0b10].map(u64::to_le_bytes).concat();
    assert!(marker.contains(&format!("\"choice\": \"{}\"", blake3::hash(&choice))), "{marker}");
    let lengths = Shard::open(&work.shard(0, 1, "shard-00000.lengths")).unwrap();
    assert_eq!((lengths.header().spec.dtype, lengths.header().spec.vocab_size), (Dtype::U32, 1 << 32));
    let mut halves = [0u32; 6];
    lengths.tokens(0, &mut halves).unwrap();
    assert_eq!(halves, [3, 0, 12, 0, 12, 0]);
    assert_eq!(content(work.shard(0, 1, "").as_path()).len(), 4, "two shards, the journal and the marker");
}

#[test]
fn tasks_in_any_order_merge_to_the_bytes_of_one_run() {
    let dir = temporary_dir();
    for shard_tokens in [64, 1000, 1 << 20] {
        let mut work = work(dir.path(), shard_tokens);
        let whole = work.whole();
        for of in [1, 2, 3, 5, 8, 40] {
            work.out = dir.path().join(format!("{shard_tokens}-{of}"));
            let mut n_tokens = 0;
            for i in 0..of {
                n_tokens += work.task((i * 3 + 1) % of, of).map_or(0, |end| end.n_tokens);
            }
            for i in 0..of {
                work.task(i, of).unwrap(); // what is done already changes nothing
            }
            work.merge(of).unwrap();
            assert!(content(&work.out) == whole, "{of} tasks, shards of {shard_tokens}");
            assert!(of % 3 == 0 || n_tokens > 0);
            let again = work.task(of / 2, of).unwrap();
            assert!(again.is_merged && again.dir == work.out);
            work.merge(of).unwrap();
            assert!(content(&work.out) == whole && !work.out.join("tasks").exists());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_corpus_in_any_number_of_tasks_gives_the_bytes_of_one_run(
        files in prop::collection::vec((0..6usize, prop::collection::vec((any::<u64>(), 0..30u64), 0..12)), 1..6),
        of in prop::sample::select(vec![1u64, 2, 3, 5, 8]),
        shard_tokens in 1..400u64,
        segment_bytes in 1..500usize,
        pattern in prop::sample::select(vec!["gpt2", "cl100k_base", r"\w+|\W"]),
        append_eot in any::<bool>(),
        threads in 1..3usize,
    ) {
        let dir = temporary_dir();
        let endings = ["txt", "jsonl", "txt.gz", "jsonl.gz", "txt.zst", "jsonl.zst"];
        let file = |i: usize, kind: usize, documents: &[(u64, u64)]| {
            let documents: Vec<_> = documents.iter().map(|&(seed, n)| prose(seed, n)).collect();
            write(dir.path(), &format!("{i}.{}", endings[kind]), &documents)
        };
        let paths: Vec<_> = files.iter().enumerate().map(|(i, (kind, documents))| file(i, *kind, documents)).collect();
        let options =
            PrepareOptions { shard_tokens, segment_bytes, append_eot, threads, ..PrepareOptions::default() };
        let work = Work { paths, tokenizer: tokenizer(pattern), out: dir.path().join("out"), options };
        let one = dir.path().join("one");
        let whole = prepare(&work.paths, &work.tokenizer, &one, &work.options, &Control::new());
        let tasks = (0..of).try_for_each(|i| work.task(i, of).map(drop)).and_then(|()| work.merge(of));
        match whole {
            Ok(_) => {
                tasks.unwrap();
                prop_assert!(content(&work.out) == content(&one));
            }
            Err(Error::EmptyCorpus) => prop_assert!(matches!(tasks, Err(Error::EmptyCorpus))),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_file_of_many_parts_has_its_digest_though_no_task_reads_all_of_it() {
    let dir = temporary_dir();
    let paths = vec![write(dir.path(), "a.txt", &[prose(5, 3_000_000)]), write(dir.path(), "b.txt", &[prose(6, 10)])];
    let n_bytes = fs::metadata(&paths[0]).unwrap().len();
    assert!(n_bytes > 12 << 20, "{n_bytes}");
    let options = PrepareOptions { threads: 2, ..PrepareOptions::default() };
    let work = Work { paths, tokenizer: tokenizer("gpt2"), out: dir.path().join("out"), options };
    for i in 0..3 {
        let control = Control::new();
        prepare_task(&work.paths, &work.tokenizer, &work.out, Task { index: i, of: 3 }, &work.options, &control)
            .unwrap();
        let progress = control.progress();
        assert!(progress.done == progress.total && progress.total < n_bytes / 3 + 10_000, "{progress:?}");
    }
    work.merge(3).unwrap();
    assert!(content(&work.out) == work.whole());
}

#[test]
fn a_merge_names_the_tasks_that_are_missing() {
    let dir = temporary_dir();
    let work = work(dir.path(), 100);
    assert!(work.merge_error(4).contains("found none; hint: run them with --task"));
    work.task(2, 4).unwrap();
    let message = work.merge_error(4);
    assert!(message.contains("missing 3: 0, 1, 3; hint: run them, with --task 0 --of 4"), "{message}");
    for (index, of) in [(4, 4), (0, 0)] {
        assert!(matches!(work.task(index, of), Err(Error::Argument(_))));
    }
    assert!(!work.out.join("manifest.json").exists() && work.shard(2, 4, "task.json").exists());
}

#[test]
fn a_task_done_in_another_way_is_refused_by_name() {
    let dir = temporary_dir();
    let mut work = work(dir.path(), 100);
    (0..3).for_each(|i| drop(work.task(i, 3).unwrap()));
    let refused = |work: &Work, what: &str| {
        let message = work.merge_error(3);
        assert!(message.contains(what) && message.contains("task-0000"), "{message}");
        let message = work.task(1, 3).unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("task-00001-of-00003"), "{message}");
    };
    work.options.shard_tokens = 99;
    refused(&work, "shard_tokens");
    work.options.shard_tokens = 100;
    let tokenizer = std::mem::replace(&mut work.tokenizer, tokenizer("cl100k_base"));
    refused(&work, "tokenizer");
    work.tokenizer = tokenizer;
    work.paths.push(write(dir.path(), "9.txt", &["more".to_owned()]));
    refused(&work, "input files");
    work.paths.pop();
    // A marker of another task.
    let marker = fs::read(work.shard(1, 3, "task.json")).unwrap();
    fs::copy(work.shard(0, 3, "task.json"), work.shard(1, 3, "task.json")).unwrap();
    let message = work.merge_error(3);
    assert!(message.contains("task-00001-of-00003 cannot be used: it is that of another task"), "{message}");
    fs::write(work.shard(1, 3, "task.json"), &marker).unwrap();
    // An input that was changed between two tasks, its length the same.
    let text = fs::read(&work.paths[2]).unwrap();
    fs::write(&work.paths[2], text.to_ascii_uppercase()).unwrap();
    fs::remove_dir_all(work.shard(1, 3, "")).unwrap();
    work.task(1, 3).unwrap();
    let message = work.merge_error(3);
    assert!(message.contains("2.txt cannot be merged: it was changed between two tasks"), "{message}");
    fs::write(&work.paths[2], text).unwrap();
    assert!(work.task(1, 3).unwrap_err().to_string().contains("input files"), "the journal is of the changed input");
    fs::remove_dir_all(work.shard(1, 3, "")).unwrap();
    work.task(1, 3).unwrap();
    work.merge(3).unwrap();
    assert!(content(&work.out) == work.whole());
}

#[test]
fn a_damaged_shard_of_a_task_is_found_and_done_over_by_its_task() {
    let dir = temporary_dir();
    let work = work(dir.path(), 150);
    (0..3).for_each(|i| drop(work.task(i, 3).unwrap()));
    let restart = || {
        for name in content(&work.out).into_keys() {
            fs::remove_file(work.out.join(name)).unwrap();
        }
    };
    for file in ["shard-00001.gts", "shard-00000.lengths"] {
        let path = work.shard(0, 3, file);
        let whole = fs::read(&path).unwrap();
        for at in [0, 4100, whole.len() - 128] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            restart();
            let message = work.merge_error(3);
            assert!(message.contains(&format!("task-00000-of-00003/{file}")), "{message}");
        }
        fs::remove_file(&path).unwrap();
        restart();
        assert!(work.merge_error(3).contains(file));
        work.task(0, 3).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    let marker = fs::read_to_string(work.shard(2, 3, "task.json")).unwrap();
    fs::write(work.shard(2, 3, "task.json"), marker.replacen("150", "151", 1)).unwrap();
    assert!(work.merge_error(3).contains("task.json is not a valid task marker"));
    fs::write(work.shard(2, 3, "task.json"), marker).unwrap();
    work.merge(3).unwrap();
    assert!(content(&work.out) == work.whole());
}

#[test]
fn a_task_has_one_process_and_a_merge_touches_no_other_run() {
    let dir = temporary_dir();
    let mut work = work(dir.path(), 100);
    work.task(0, 2).unwrap();
    let lock = FolderLock::take(&work.shard(0, 2, "")).unwrap();
    assert!(matches!(work.task(0, 2), Err(Error::Locked { .. })));
    work.task(1, 2).unwrap();
    drop(lock);
    fs::write(work.out.join("shard-00000.gts"), "").unwrap();
    assert!(work.merge_error(2).contains("shard-00000.gts but neither a manifest nor a journal"));
    fs::rename(work.out.join("shard-00000.gts"), work.out.join("prepare.json")).unwrap();
    assert!(work.merge_error(2).contains("the journal of a run without tasks"));
    fs::remove_file(work.out.join("prepare.json")).unwrap();
    work.task(0, 3).unwrap(); // of another number: it stays
    work.merge(2).unwrap();
    assert!(work.shard(0, 3, "task.json").exists() && !work.shard(0, 2, "").exists());
    work.options.append_eot = false;
    assert!(work.task(0, 2).unwrap_err().to_string().contains("append_eot"));
    assert!(work.merge_error(2).contains("append_eot"));
}

#[test]
fn a_bad_line_has_its_number_in_the_file_whichever_task_reads_it() {
    let dir = temporary_dir();
    let mut lines: Vec<String> = (0..200).map(|i| format!("{{\"text\": \"line {i}\"}}\n")).collect();
    lines[170] = "{\"text\": 5}\n".to_owned();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, lines.concat()).unwrap();
    let (paths, out) = (vec![path], dir.path().join("out"));
    let work = Work { paths, tokenizer: tokenizer("gpt2"), out, options: options(100) };
    for of in [1, 4, 7] {
        let failed: Vec<_> = (0..of).filter_map(|i| work.task(i, of).err()).collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].to_string().contains("line 171: column 10: invalid type"), "{}", failed[0]);
    }
    fs::write(&work.paths[0], "\n".repeat(100)).unwrap();
    (0..3).for_each(|i| drop(work.task(i, 3).unwrap()));
    assert!(matches!(work.merge(3), Err(Error::EmptyCorpus)));
}
