//! From files to a dataset: the same bytes for any threads and segments, and after any kill.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gptrs_core::dataset::Dataset;
use gptrs_core::prepare::{Encode, PrepareOptions, prepare};
use gptrs_core::{Control, Error};

use words::{Words, content, gzip, temporary_dir};

/// A corpus of both kinds with documents of 0 to some thousand words, and its documents.
fn write_corpus(dir: &Path, n_words: u64) -> (Vec<PathBuf>, Vec<String>) {
    let words = ["the", "aaa", "caf\u{e9}", "<|end|>", "\"x\"", "\u{1f600}\n", "aa<|end|>aa"];
    let text = |seed: u64, n: u64| -> String {
        (0..n).map(|i| words[((i * i + seed * 7 + i / 3) % 7) as usize].to_owned() + " ").collect()
    };
    fs::create_dir_all(dir).unwrap();
    let mut documents = Vec::new();
    let mut paths = Vec::new();
    for (i, share) in [(0, 5), (1, 0), (2, 1), (3, 3), (4, 2)] {
        let is_text = i % 2 == 0;
        let path = dir.join(format!("part-{i}.{}", if is_text { "txt" } else { "jsonl" }));
        if is_text {
            documents.push(text(i, n_words * share / 11));
            fs::write(&path, &documents[documents.len() - 1]).unwrap();
        } else {
            let lines: Vec<String> = (0..share * 20).map(|k| text(i + k, n_words / 11 / 20 * (k % 3))).collect();
            let spell = |text: &String| format!("{{\"text\": {}, \"n\": 1}}\n\n", serde_json::to_string(text).unwrap());
            fs::write(&path, lines.iter().map(spell).collect::<String>()).unwrap();
            documents.extend(lines);
        }
        paths.push(path);
    }
    (paths, documents)
}

fn options(shard_tokens: u64) -> PrepareOptions {
    PrepareOptions { shard_tokens, threads: 2, segment_bytes: 1000, ..PrepareOptions::default() }
}

/// The tokens that the documents must give, one after the other.
fn expected_tokens(documents: &[String]) -> (Vec<u32>, Vec<u64>) {
    let (words, mut tokens, mut ends) = (Words::new(), Vec::new(), Vec::new());
    for document in documents {
        words.encode_into(&mut (), document.as_bytes(), &mut tokens).unwrap();
        tokens.extend(words.eot_id());
        ends.push(tokens.len() as u64);
    }
    (tokens, ends)
}

#[test]
fn documents_stand_in_order_each_with_its_end_of_text() {
    let dir = temporary_dir();
    let (paths, documents) = write_corpus(&dir.path().join("text"), 3000);
    let control = Control::new();
    let dataset = prepare(&paths, &Words::new(), &dir.path().join("out"), &options(700), &control).unwrap();
    dataset.verify(2, &Control::new()).unwrap();
    let (tokens, ends) = expected_tokens(&documents);
    let mut got = vec![0u32; dataset.n_tokens() as usize];
    dataset.read(0, &mut got).unwrap();
    assert_eq!(got, tokens);
    let got: Vec<u64> = (0..dataset.n_documents()).map(|i| dataset.document(i).unwrap().end).collect();
    assert_eq!(got, ends);
    let manifest = dataset.manifest();
    assert_eq!(manifest.n_bytes, documents.iter().map(|d| d.len() as u64).sum::<u64>());
    let (last, full) = manifest.shards.split_last().unwrap();
    assert!(full.len() > 3 && full.iter().all(|shard| shard.n_tokens == 700) && last.n_tokens <= 700);
    let n_input: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let progress = control.progress();
    assert_eq!((progress.stage, progress.done, progress.total), ("encode bytes", n_input, n_input));
    for (source, path) in manifest.recipe.inputs.iter().zip(&paths) {
        assert_eq!(source.blake3, blake3::hash(&fs::read(path).unwrap()).to_string());
    }
    let starts = |special: &str| -> u64 {
        documents
            .iter()
            .map(|d| (0..d.len()).filter(|&i| d.as_bytes()[i..].starts_with(special.as_bytes())).count() as u64)
            .sum()
    };
    let special_texts = ["<|end|>", "aa"].map(|special| (special.to_owned(), starts(special)));
    assert_eq!(manifest.special_texts, special_texts.into());
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_segments() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 5000);
    let mut first = None;
    for (i, (threads, segment_bytes)) in
        [(1, 1 << 20), (1, 1), (2, 64), (3, 1000), (8, 77), (16, 4096)].into_iter().enumerate()
    {
        let out = dir.path().join(i.to_string());
        let options = PrepareOptions { threads, segment_bytes, ..options(1000) };
        prepare(&paths, &Words::new(), &out, &options, &Control::new()).unwrap();
        let content = content(&out);
        assert!(*first.get_or_insert_with(|| content.clone()) == content, "{threads} threads, {segment_bytes} bytes");
    }
}

#[test]
fn a_run_stopped_at_any_text_is_continued_to_the_same_bytes() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 4000);
    let whole = dir.path().join("whole");
    let words = Words::new();
    prepare(&paths, &words, &whole, &options(300), &Control::new()).unwrap();
    let (whole, n_texts) = (content(&whole), words.n_texts.into_inner());
    assert!(n_texts > 50 && whole.len() > 8, "{n_texts} texts, {} files", whole.len());
    for stop in 0..n_texts {
        let out = dir.path().join(stop.to_string());
        for segment_bytes in [1000, 333] {
            // Stops at `stop`, goes on with other segments, and stops again as far behind.
            let control = std::sync::Arc::new(Control::new());
            let handle = std::sync::Arc::clone(&control);
            let on_text = Box::new(move |n| {
                if n >= stop {
                    handle.cancel();
                }
            });
            let words = Words { on_text, ..Words::new() };
            let options = PrepareOptions { segment_bytes, ..options(300) };
            match prepare(&paths, &words, &out, &options, &control) {
                Err(Error::Interrupted) => assert!(!out.join("manifest.json").exists()),
                end => drop(end.unwrap()),
            }
        }
        prepare(&paths, &Words::new(), &out, &options(300), &Control::new()).unwrap();
        assert!(content(&out) == whole, "stopped at text {stop}");
        fs::remove_dir_all(out).unwrap();
    }
}

/// The files compressed beside themselves, those of even number by gzip in two members, the others by Zstandard in two
/// frames.
fn compress(paths: &[PathBuf]) -> Vec<PathBuf> {
    let compress = |(i, path): (usize, &PathBuf)| {
        let bytes = fs::read(path).unwrap();
        let (front, back) = bytes.split_at(bytes.len() / 3);
        let (ending, stored) = if i % 2 == 0 {
            ("gz", [front, back].map(gzip).concat())
        } else {
            ("zst", [front, back].map(|part| zstd::encode_all(part, 3).unwrap()).concat())
        };
        let path = PathBuf::from(format!("{}.{ending}", path.display()));
        fs::write(&path, stored).unwrap();
        path
    };
    paths.iter().enumerate().map(compress).collect()
}

/// The shards of a dataset, which hold no names of inputs.
fn shards(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    content(dir).into_iter().filter(|(name, _)| name.starts_with("shard-")).collect()
}

#[test]
fn compressed_files_give_the_shards_of_what_they_hold() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 5000);
    let compressed = compress(&paths);
    let n_stored: u64 = compressed.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    prepare(&paths, &Words::new(), &dir.path().join("plain"), &options(1000), &Control::new()).unwrap();
    let plain = shards(&dir.path().join("plain"));
    for (threads, segment_bytes) in [(1, 1 << 20), (1, 1), (2, 64), (3, 1000), (8, 77)] {
        let out = dir.path().join(format!("{threads}-{segment_bytes}"));
        let (options, control) = (PrepareOptions { threads, segment_bytes, ..options(1000) }, Control::new());
        let dataset = prepare(&compressed, &Words::new(), &out, &options, &control).unwrap();
        assert!(shards(&out) == plain, "{threads} threads, {segment_bytes} bytes");
        let progress = control.progress();
        assert_eq!((progress.stage, progress.done, progress.total), ("encode bytes", n_stored, n_stored));
        for (source, path) in dataset.manifest().recipe.inputs.iter().zip(&compressed) {
            assert_eq!(source.blake3, blake3::hash(&fs::read(path).unwrap()).to_string());
        }
    }
}

#[test]
fn a_stopped_run_over_compressed_files_is_continued_to_the_same_bytes() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 2000);
    let (paths, whole, words) = (compress(&paths), dir.path().join("whole"), Words::new());
    prepare(&paths, &words, &whole, &options(300), &Control::new()).unwrap();
    let (whole, n_texts) = (content(&whole), words.n_texts.into_inner());
    assert!(n_texts > 30 && whole.len() > 4, "{n_texts} texts, {} files", whole.len());
    for stop in 0..n_texts {
        let out = dir.path().join(stop.to_string());
        let control = std::sync::Arc::new(Control::new());
        let handle = std::sync::Arc::clone(&control);
        let on_text = Box::new(move |n| {
            if n >= stop {
                handle.cancel();
            }
        });
        let words = Words { on_text, ..Words::new() };
        drop(prepare(&paths, &words, &out, &options(300), &control));
        let options = PrepareOptions { segment_bytes: 333, ..options(300) };
        prepare(&paths, &Words::new(), &out, &options, &Control::new()).unwrap();
        assert!(content(&out) == whole, "stopped at text {stop}");
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn a_damaged_compressed_file_is_named_and_gives_no_dataset() {
    let dir = temporary_dir();
    let text = "{\"text\": \"one two three four five six\"}\n".repeat(30);
    let run = |name: &str, stored: &[u8]| {
        let (path, out) = (dir.path().join(name), dir.path().join("out"));
        fs::write(&path, stored).unwrap();
        let end = prepare(&[path], &Words::new(), &out, &options(50), &Control::new());
        let _ = fs::remove_dir_all(out);
        end
    };
    for (name, stored) in [("a.jsonl.gz", gzip(text.as_bytes())), ("a.jsonl.zst", zstd_checked(text.as_bytes()))] {
        assert_eq!(run(name, &stored).unwrap().n_documents(), 30);
        for cut in 1..stored.len() {
            let error = run(name, &stored[..cut]).unwrap_err();
            assert!(matches!(&error, Error::Format { path, .. } if path.ends_with(name)), "cut at {cut}: {error}");
        }
        let mut n_unseen = 0;
        for bit in 0..8 * stored.len() {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match run(name, &flipped) {
                // The time and the system of a gzip header, a name that is not there, or a reserved bit.
                Ok(dataset) => {
                    n_unseen += 1;
                    assert_eq!((dataset.n_documents(), dataset.manifest().n_bytes), (30, 30 * 27), "bit {bit}");
                }
                Err(error) => assert!(error.to_string().contains(name), "bit {bit}: {error}"),
            }
        }
        assert!(n_unseen <= 64, "{name}: {n_unseen} flipped bits of {} unseen", 8 * stored.len());
        let trailing = [stored, b"garbage".to_vec()].concat();
        assert!(matches!(run(name, &trailing), Err(Error::Format { .. })), "{name} with garbage behind");
    }
    // Zeros behind a member are filling, more than a buffer of them as well; what stands behind them must be a member.
    let (front, back) = text.as_bytes().split_at(333);
    let filled = [gzip(front), vec![0; 600_000], gzip(back), vec![0; 1000]].concat();
    assert_eq!(run("a.jsonl.gz", &filled).unwrap().n_documents(), 30);
    for stored in [[filled, b"x".to_vec()].concat(), vec![0; 1000]] {
        assert!(matches!(run("a.jsonl.gz", &stored), Err(Error::Format { .. })));
    }
    assert!(matches!(run("latin.txt.gz", &gzip(b"one caf\xE9 two")), Err(Error::NotUtf8 { offset: 7, .. })));
    assert_eq!(run("empty.txt.gz", &gzip(b"")).unwrap_err().to_string(), Error::EmptyCorpus.to_string());
}

fn zstd_checked(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_far_larger_inside_is_refused_before_it_fills_the_memory() {
    let dir = temporary_dir();
    let zeros = vec![0; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..1200 {
        gzip.write_all(&zeros).unwrap();
        zstd.write_all(&zeros).unwrap();
    }
    for (name, stored) in [("a.gz", gzip.finish().unwrap()), ("a.zst", zstd.finish().unwrap())] {
        for inner in ["txt", "jsonl"] {
            let path = dir.path().join(format!("{inner}-{name}").replace("-a", &format!(".{inner}")));
            fs::write(&path, &stored).unwrap();
            let error =
                prepare(&[path], &Words::new(), &dir.path().join("out"), &options(50), &Control::new()).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error}");
        }
    }
    // A frame that asks for a window of 2 GiB.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(31).unwrap();
    encoder.write_all(b"one two").unwrap();
    let path = dir.path().join("window.txt.zst");
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    let error = prepare(&[path], &Words::new(), &dir.path().join("out"), &options(50), &Control::new()).unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
}

const CHILD: &str = "GPTRS_TEST_PREPARE_IN";

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_prepares() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = PathBuf::from(dir);
    let on_text = Box::new(|_| std::thread::sleep(Duration::from_millis(1)));
    let words = Words { on_text, ..Words::new() };
    let (paths, _) = write_corpus_once(&dir);
    let options = PrepareOptions { threads: 1, ..options(300) };
    prepare(&paths, &words, &dir.join("out"), &options, &Control::new()).unwrap();
}

fn write_corpus_once(dir: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let text = dir.join("text");
    if !text.exists() {
        return write_corpus(&text, 2000);
    }
    let mut paths: Vec<_> = fs::read_dir(text).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    (paths, Vec::new())
}

#[test]
fn a_killed_process_is_continued_to_the_same_bytes() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus_once(dir.path());
    let whole = dir.path().join("whole");
    prepare(&paths, &Words::new(), &whole, &options(300), &Control::new()).unwrap();
    let whole = content(&whole);
    let (mut n_killed, mut n_resumed) = (0, 0);
    for schedule in 0..24u64 {
        let _ = fs::remove_dir_all(dir.path().join("out"));
        let mut delay_ms = 5 + schedule * 37 % 110;
        while !dir.path().join("out/manifest.json").exists() {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child
                .args(["--exact", "child_prepares"])
                .env(CHILD, dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = child.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(delay_ms));
            child.kill().unwrap();
            n_killed += u64::from(!child.wait().unwrap().success());
            n_resumed += u64::from(dir.path().join("out/shard-00000.gts").exists());
            delay_ms += 13;
        }
        let words = Words::new();
        prepare(&paths, &words, &dir.path().join("out"), &options(300), &Control::new()).unwrap();
        assert!(content(&dir.path().join("out")) == whole, "schedule {schedule}");
    }
    assert!(n_killed >= 20 && n_resumed >= 20, "{n_killed} kills, {n_resumed} with finished shards");
}

#[test]
fn the_same_call_again_encodes_nothing_and_any_other_is_refused() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 500);
    let out = dir.path().join("out");
    prepare(&paths, &Words::new(), &out, &options(300), &Control::new()).unwrap();
    let before = content(&out);
    let words = Words::new();
    let dataset =
        prepare(&paths, &words, &out, &PrepareOptions { threads: 1, ..options(300) }, &Control::new()).unwrap();
    assert_eq!((words.n_texts.into_inner(), dataset.n_documents()), (0, Dataset::open(&out).unwrap().n_documents()));

    let refused = |paths: &[PathBuf], words: &Words, options: &PrepareOptions, reason: &str| {
        let message = prepare(paths, words, &out, options, &Control::new()).unwrap_err().to_string();
        assert!(message.contains(reason) && message.contains("hint"), "{message}");
    };
    refused(
        &paths,
        &Words { vocab_size: 60_001, ..Words::new() },
        &options(300),
        "other tokenizer (\"60606060\", asked for \"61616161\"), vocab_size (60000, asked for 60001), end-of-text id (",
    );
    refused(&paths, &Words::new(), &options(301), "other shard_tokens (300, asked for 301);");
    refused(
        &paths,
        &Words::new(),
        &PrepareOptions { append_eot: false, ..options(300) },
        "other append_eot (true, asked for false);",
    );
    refused(&paths[1..], &Words::new(), &options(300), "other input files (");
    // The same length and the same time do not make it the same text.
    let time = fs::metadata(&paths[0]).unwrap().modified().unwrap();
    let changed = fs::read_to_string(&paths[0]).unwrap().replacen("the", "tha", 1);
    fs::write(&paths[0], changed).unwrap();
    File::options().write(true).open(&paths[0]).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    refused(&paths, &Words::new(), &options(300), "has other bytes);");
    assert!(content(&out) == before);
}

#[test]
fn an_unfinished_dataset_of_another_recipe_is_refused_and_a_damaged_shard_is_written_again() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 8000);
    let [whole, out] = ["whole", "out"].map(|name| dir.path().join(name));
    prepare(&paths, &Words::new(), &whole, &options(300), &Control::new()).unwrap();
    let control = std::sync::Arc::new(Control::new());
    let handle = std::sync::Arc::clone(&control);
    let third = out.join("shard-00002.gts");
    let on_text = Box::new(move |n| {
        while n == 40 && !third.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if n == 40 {
            handle.cancel();
        }
    });
    let words = Words { on_text, ..Words::new() };
    assert!(matches!(prepare(&paths, &words, &out, &options(300), &control), Err(Error::Interrupted)));

    let message = prepare(&paths, &Words::new(), &out, &options(299), &Control::new()).unwrap_err().to_string();
    assert!(message.contains("other shard_tokens"), "{message}");
    let mut bytes = fs::read(out.join("shard-00001.gts")).unwrap();
    bytes[4099] ^= 1;
    fs::write(out.join("shard-00001.gts"), bytes).unwrap();
    let words = Words::new();
    prepare(&paths, &words, &out, &options(300), &Control::new()).unwrap();
    assert!(content(&out) == content(&whole));
    // The first shard was kept: fewer texts than a run from the start.
    let all = Words::new();
    prepare(&paths, &all, &dir.path().join("again"), &options(300), &Control::new()).unwrap();
    assert!(words.n_texts.into_inner() < all.n_texts.into_inner());
}

#[test]
fn what_is_wrong_with_the_inputs_is_said_before_anything_is_written() {
    let dir = temporary_dir();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.txt"), "good ").unwrap();
    fs::write(path("empty.txt"), "").unwrap();
    fs::write(path("latin.txt"), b"caf\xE9").unwrap();
    let out = path("out");
    let run = |names: &[&str]| {
        let paths: Vec<_> = names.iter().map(|name| path(name)).collect();
        prepare(&paths, &Words::new(), &out, &options(10), &Control::new())
    };
    assert!(matches!(run(&["a.txt", "absent.txt"]), Err(Error::Io { .. })));
    assert!(matches!(run(&["empty.txt"]), Err(Error::EmptyCorpus)));
    assert!(matches!(run(&[]), Err(Error::EmptyCorpus)));
    assert!(!out.exists());
    assert!(matches!(run(&["a.txt", "latin.txt"]), Err(Error::NotUtf8 { offset: 3, .. })));
    assert!(content(&out).is_empty());
    assert_eq!(run(&["empty.txt", "a.txt", "empty.txt"]).unwrap().n_documents(), 3);
}

#[test]
fn a_bad_line_is_named_and_can_be_cured_before_the_first_shard_is_done() {
    let dir = temporary_dir();
    let [lines, out] = ["a.jsonl", "out"].map(|name| dir.path().join(name));
    fs::write(&lines, "{\"text\": \"one two\"}\n\n{\"txt\": \"three\"}\n").unwrap();
    let run = || prepare(std::slice::from_ref(&lines), &Words::new(), &out, &options(10), &Control::new());
    let message = run().unwrap_err().to_string();
    assert!(message.contains("a.jsonl") && message.contains("line 3"), "{message}");
    fs::write(&lines, "{\"text\": \"one two\"}\n\n{\"text\": \"three\"}\n").unwrap();
    assert_eq!(run().unwrap().n_tokens(), 5);

    fs::write(&lines, "{\"text\": \"\"}\n").unwrap();
    let out = dir.path().join("nothing");
    assert!(matches!(prepare(&[lines], &Words::new(), &out, &options(10), &Control::new()), Err(Error::EmptyCorpus)));
    assert!(content(&out).is_empty());
}

#[test]
fn a_folder_with_foreign_shards_or_a_second_writer_is_refused() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 100);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("other.gts"), "").unwrap();
    let run = || prepare(&paths, &Words::new(), &out, &options(300), &Control::new());
    let message = run().unwrap_err().to_string();
    assert!(message.contains("holds other.gts but neither a manifest nor a journal"), "{message}");
    fs::remove_file(out.join("other.gts")).unwrap();
    let lock = gptrs_core::io::FolderLock::take(&out).unwrap();
    assert!(matches!(run(), Err(Error::Locked { .. })));
    drop(lock);
    run().unwrap();
}

#[test]
fn an_encoder_that_panics_ends_the_call_with_its_panic() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"), 1000);
    let words = Words { on_text: Box::new(|n| assert!(n < 5, "the sixth text")), ..Words::new() };
    let run = || prepare(&paths, &words, &dir.path().join("out"), &options(300), &Control::new());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the sixth text"));
}
