//! Inputs of every kind, and which of their documents become tokens.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/parquet.rs"]
mod parquet_files;
#[path = "fixtures/words.rs"]
mod words;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gptrs_core::corpus::{Errors, Rows, Selection, TextField, inputs};
use gptrs_core::dataset::Dataset;
use gptrs_core::manifest::LeftOut;
use gptrs_core::prepare::{Encode, PrepareOptions, encode_files, merge_tasks, prepare, prepare_task};
use gptrs_core::ranges::Task;
use gptrs_core::{Control, Error, Result};
use parquet::basic::Encoding;
use proptest::prelude::*;

use parquet_files::{Layout, write_parquet};
use words::{Words, content, gzip, temporary_dir};

const LAYOUTS: [Layout; 4] = [
    Layout { rows_of_group: 1000, rows_of_page: 1000, encoding: Some(Encoding::PLAIN) },
    Layout { rows_of_group: 7, rows_of_page: 3, encoding: None },
    Layout { rows_of_group: 50, rows_of_page: 13, encoding: Some(Encoding::DELTA_LENGTH_BYTE_ARRAY) },
    Layout { rows_of_group: 31, rows_of_page: 1, encoding: Some(Encoding::DELTA_BYTE_ARRAY) },
];

fn options(selection: Selection) -> PrepareOptions {
    PrepareOptions { shard_tokens: 300, threads: 2, segment_bytes: 200, selection, ..PrepareOptions::default() }
}

fn rows(texts: &[&str]) -> Vec<Option<Vec<u8>>> {
    texts.iter().map(|text| Some(text.as_bytes().to_vec())).collect()
}

fn columns<'v>(columns: &[(&'v str, &'v [Option<Vec<u8>>])]) -> Vec<(&'v str, Vec<Option<&'v [u8]>>)> {
    columns.iter().map(|(name, values)| (*name, values.iter().map(Option::as_deref).collect())).collect()
}

/// The tokens that the documents must give.
fn tokens_of<T: AsRef<[u8]>>(documents: &[T]) -> Vec<u32> {
    let (words, mut tokens) = (Words::new(), Vec::new());
    for document in documents {
        words.encode_into(&mut (), document.as_ref(), &mut tokens).unwrap();
        tokens.extend(words.eot_id());
    }
    tokens
}

fn tokens(dataset: &Dataset) -> Vec<u32> {
    let mut tokens = vec![0; dataset.n_tokens() as usize];
    dataset.read(0, &mut tokens).unwrap();
    tokens
}

fn run(paths: &[PathBuf], out: &Path, options: &PrepareOptions) -> Result<Dataset> {
    prepare(paths, &Words::new(), out, options, &Control::new())
}

#[test]
fn a_row_of_a_parquet_file_is_a_document() {
    let dir = temporary_dir();
    let texts: Vec<String> = (0..100).map(|i| "caf\u{e9} and so on ".repeat(i * i % 7)).collect();
    let titles: Vec<String> = (0..100).map(|i| format!("On {} hats", i % 5)).collect();
    let [texts, titles] = [texts, titles].map(|list| rows(&list.iter().map(String::as_str).collect::<Vec<_>>()));
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.parquet"));
        write_parquet(&path, &columns(&[("title", &titles), ("text", &texts)]), layout);
        let joined: Vec<Vec<u8>> = titles
            .iter()
            .zip(&texts)
            .map(|(title, text)| [title.as_ref().unwrap(), &b": "[..], text.as_ref().unwrap()].concat())
            .collect();
        let plain: Vec<Vec<u8>> = texts.iter().map(|text| text.clone().unwrap()).collect();
        for (field, documents) in [("text", plain), ("{title}: {text}", joined)] {
            let options = PrepareOptions { text_field: field.to_owned(), ..options(Selection::default()) };
            let control = Control::new();
            let out = dir.path().join(format!("{i}-{field}"));
            let dataset = prepare(std::slice::from_ref(&path), &Words::new(), &out, &options, &control).unwrap();
            assert_eq!(tokens(&dataset), tokens_of(&documents), "{layout:?} {field}");
            let progress = control.progress();
            assert_eq!((progress.done, progress.total), (progress.total, fs::metadata(&path).unwrap().len()));
            let encoded = encode_files(std::slice::from_ref(&path), &Words::new(), &options, &Control::new()).unwrap();
            assert_eq!(encoded.ids.iter().collect::<Vec<_>>(), tokens_of(&documents));
        }
    }
}

/// Values, lengths and levels of all bytes: none of them may be taken for the header of a page.
#[test]
fn rows_are_read_from_any_row_on() {
    let dir = temporary_dir();
    let texts: Vec<Vec<u8>> = (0..=255u8).map(|i| vec![i; 15 + usize::from(i) * usize::from(i) % 41]).collect();
    let values: Vec<_> = texts.iter().cloned().map(Some).collect();
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.parquet"));
        write_parquet(&path, &columns(&[("text", &values)]), layout);
        let input = &inputs(std::slice::from_ref(&path)).unwrap()[0];
        let field = TextField::new("text").unwrap();
        for start in 0..=texts.len() {
            let mut rows = Rows::open(input, &field, start as u64).unwrap();
            for (row, text) in texts.iter().enumerate().skip(start) {
                let mut out = Vec::new();
                assert_eq!(rows.next(&mut out).unwrap(), Some(row as u64), "{layout:?} from row {start}");
                assert!(out == *text, "{layout:?}: row {row} from row {start}");
            }
            assert_eq!(rows.next(&mut Vec::new()).unwrap(), None);
        }
        let error = Rows::open(input, &field, 257).unwrap_err().to_string();
        assert!(error.contains("expected a row 257, got 256 rows"), "{error}");
    }
}

/// The length stands at the end of the file: its bytes are no header either.
#[test]
fn a_footer_has_any_length() {
    let dir = temporary_dir();
    let path = dir.path().join("a.parquet");
    for n in 1..=256 {
        let name = "n".repeat(n);
        write_parquet(&path, &columns(&[(&name, &rows(&["text"]))]), LAYOUTS[0]);
        let field = TextField::new(&name).unwrap();
        let mut text = Vec::new();
        Rows::open(&inputs(std::slice::from_ref(&path)).unwrap()[0], &field, 0).unwrap().next(&mut text).unwrap();
        assert_eq!(text, b"text", "{n} bytes more");
    }
}

#[test]
fn what_is_wrong_with_a_row_or_a_column_is_named() {
    let dir = temporary_dir();
    let path = dir.path().join("a.parquet");
    let mut texts = rows(&["a", "b", "c", "d"]);
    texts[2] = None;
    let bad = [&b"a"[..], b"caf\xE9", b"c", b"d"].map(|text| Some(text.to_vec()));
    let all = columns(&[("text", &texts), ("latin", &bad)]);
    write_parquet(&path, &all, Layout { rows_of_group: 2, rows_of_page: 1, encoding: None });
    let message = |field: &str| {
        let options = PrepareOptions { text_field: field.to_owned(), ..options(Selection::default()) };
        run(std::slice::from_ref(&path), &dir.path().join("out"), &options).unwrap_err().to_string()
    };
    for (field, part) in [
        ("text", "a.parquet is not a valid Parquet file: row 2: expected a string in column \"text\", got null; hint"),
        ("{latin}", "row 1: expected UTF-8, got an invalid byte at byte 3 of its text"),
        ("body", "expected a column \"body\", found id, text, latin; hint"),
        ("id", "expected strings in column \"id\", got INT64"),
    ] {
        assert!(message(field).contains(part), "{}", message(field));
    }
    fs::write(&path, include_bytes!("../../fuzz/corpus/parquet/booleans_without_bytes")).unwrap();
    let hint = "in the header of a page, got others; hint: the file is damaged, write it anew";
    assert!(message("text").contains(&format!("expected no collection of booleans {hint}")), "{}", message("text"));
    fs::write(&path, b"PAR1").unwrap();
    assert!(message("text").contains("expected 12 or more"));
    for (tail, part) in
        [(b"PAR1\x05\0\0\0PAR1", "it has 12 bytes, its footer is to have 5"), (b"PAR1\0\0\0\0PARE", "plain footer")]
    {
        fs::write(&path, tail).unwrap();
        assert!(message("text").contains(part), "{}", message("text"));
    }
}

#[test]
fn a_parquet_file_of_any_bytes_is_read_or_refused() {
    let dir = temporary_dir();
    let texts = rows(&["one two ", "", "three four five ", "one two ", "six "]);
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.parquet"));
        write_parquet(&path, &columns(&[("text", &texts)]), Layout { rows_of_group: 3, rows_of_page: 2, ..layout });
        let whole = fs::read(&path).unwrap();
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            encode_files(std::slice::from_ref(&path), &Words::new(), &options(Selection::default()), &Control::new())
        };
        assert_eq!(read(&whole).unwrap().offsets.len(), 6);
        for cut in 0..whole.len() {
            let error = read(&whole[..cut]).unwrap_err();
            assert!(matches!(error, Error::Format { .. } | Error::EmptyCorpus), "cut at {cut}: {error}");
        }
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0x55, 0xFF] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                if let Err(error) = read(&bytes) {
                    assert!(matches!(error, Error::Format { .. }), "byte {at}: {error}");
                }
            }
        }
    }
}

/// What a corpus of all kinds holds: files, and their documents in order before any is left out.
fn write_corpus(dir: &Path) -> (Vec<PathBuf>, Vec<Vec<u8>>) {
    let text = |seed: usize, n: usize| -> Vec<u8> {
        let words = ["the ", "aaa ", "caf\u{e9} ", "<|end|> ", "\u{1f600}\n"];
        let text: String = (0..n).map(|i| words[(i * i + seed * 3 + i / 3) % 5]).collect();
        text.into_bytes()
    };
    let documents = |seed: usize, n: usize| -> Vec<Vec<u8>> {
        (0..n).map(|i| text(seed + i % 5, [3, 0, 9, 40, 3, 150][(seed + i) % 6])).collect()
    };
    let broken = |mut text: Vec<u8>| {
        let middle = text.len() / 2;
        text.splice(middle..middle, *b"\xFF\xE2\x82 \xC3");
        text
    };
    fs::create_dir_all(dir).unwrap();
    let (mut paths, mut all) = (Vec::new(), Vec::new());
    for (i, name) in ["0.txt", "1.jsonl", "2.parquet", "3.txt.gz", "4.jsonl.zst", "5.txt"].iter().enumerate() {
        let path = dir.join(name);
        let mut documents = documents(i, if i == 5 { 3 } else { 24 });
        documents[2] = broken(documents[2].clone());
        match i {
            1 | 4 => {
                let escaped = |&b: &u8| match b {
                    b'\n' => b"\\n".to_vec(),
                    0xFF if i == 4 => b"\\ud83d".to_vec(), // half a pair, which is replaced as well
                    _ => vec![b],
                };
                let line = |text: &Vec<u8>| {
                    let inner: Vec<u8> = text.iter().flat_map(escaped).collect();
                    [b"{\"text\": \"", inner.as_slice(), b"\"}\n\n"].concat()
                };
                let lines: Vec<u8> = documents.iter().flat_map(line).collect();
                fs::write(&path, if i == 4 { zstd::encode_all(lines.as_slice(), 1).unwrap() } else { lines }).unwrap();
            }
            2 => {
                let values: Vec<_> = documents.iter().cloned().map(Some).collect();
                let layout = Layout { rows_of_group: 10, rows_of_page: 4, encoding: None };
                write_parquet(&path, &columns(&[("text", &values)]), layout);
            }
            _ => {
                // Nothing between two separators, and at the end, is no document.
                let bytes = [documents.join(&b"\n--\n"[..]), b"\n--\n\n--\n".to_vec()].concat();
                fs::write(&path, if i == 3 { gzip(&bytes) } else { bytes }).unwrap();
                documents.retain(|document| !document.is_empty());
            }
        }
        paths.push(path);
        all.extend(documents);
    }
    (paths, all)
}

fn everything() -> Selection {
    Selection {
        doc_separator: Some("\n--\n".to_owned()),
        min_document_bytes: Some(20),
        max_document_bytes: Some(700),
        dedup: true,
        errors: Errors::Replace,
    }
}

/// The documents that stay, what is left out, and the sequences that are replaced, the slow way.
fn select(documents: &[Vec<u8>]) -> (Vec<String>, LeftOut, u64) {
    let (mut kept, mut left_out, mut n_replaced) = (Vec::new(), LeftOut::default(), 0);
    for document in documents {
        let text = String::from_utf8_lossy(document).into_owned();
        n_replaced += text.matches('\u{FFFD}').count() as u64;
        match text.len() {
            ..20 => left_out.short += 1,
            701.. => left_out.long += 1,
            _ if kept.contains(&text) => left_out.duplicate += 1,
            _ => kept.push(text),
        }
    }
    (kept, left_out, n_replaced)
}

#[test]
fn inputs_of_all_kinds_give_the_selected_documents_whatever_the_threads_and_segments() {
    let dir = temporary_dir();
    let (paths, documents) = write_corpus(&dir.path().join("text"));
    let (kept, left_out, n_replaced) = select(&documents);
    assert!(left_out.short > 5 && left_out.long > 5 && left_out.duplicate > 5 && n_replaced > 10, "{left_out:?}");
    let mut first = None;
    for (i, (threads, segment_bytes)) in
        [(1, 1 << 20), (1, 1), (2, 64), (3, 200), (8, 77), (2, 4096)].into_iter().enumerate()
    {
        let out = dir.path().join(i.to_string());
        let options = PrepareOptions { threads, segment_bytes, ..options(everything()) };
        let dataset = run(&paths, &out, &options).unwrap();
        assert_eq!(tokens(&dataset), tokens_of(&kept), "{threads} threads, {segment_bytes} bytes");
        let manifest = dataset.manifest();
        assert_eq!((manifest.left_out, manifest.replaced), (left_out, n_replaced));
        assert_eq!(manifest.n_bytes, kept.iter().map(|text| text.len() as u64).sum::<u64>());
        let content = content(&out);
        assert!(*first.get_or_insert_with(|| content.clone()) == content, "{threads} threads, {segment_bytes} bytes");
    }
    let encoded = encode_files(&paths, &Words::new(), &options(everything()), &Control::new()).unwrap();
    assert_eq!(encoded.ids.iter().collect::<Vec<_>>(), tokens_of(&kept));
}

#[test]
fn tasks_select_the_documents_of_one_run() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"));
    let separator = || Selection { doc_separator: Some("\n--\n".to_owned()), ..replacing() };
    let selections = [
        ("all", everything()),
        ("replace", replacing()),
        ("separator", separator()),
        ("dedup", Selection { dedup: true, ..replacing() }),
        ("dedup of parts", Selection { dedup: true, ..separator() }),
        ("short", Selection { min_document_bytes: Some(20), ..separator() }),
        ("long", Selection { max_document_bytes: Some(700), ..separator() }),
    ];
    for (name, selection) in selections {
        let options = PrepareOptions { shard_tokens: 60, segment_bytes: 77, ..options(selection) };
        let whole = dir.path().join(name);
        run(&paths, &whole, &options).unwrap();
        for of in [1, 2, 3, 7, 40] {
            let out = dir.path().join(format!("{name}-{of}"));
            for index in (0..of).rev() {
                let task = Task::new(index, of).unwrap();
                prepare_task(&paths, &Words::new(), &out, task, &options, &Control::new()).unwrap();
            }
            merge_tasks(&paths, &Words::new(), &out, of, false, &options, &Control::new()).unwrap();
            assert!(content(&out) == content(&whole), "{name} in {of} tasks");
        }
    }
}

/// Whole files, with U+FFFD for what is not UTF-8.
fn replacing() -> Selection {
    Selection { errors: Errors::Replace, ..Selection::default() }
}

#[test]
fn a_run_over_all_kinds_stopped_at_any_text_is_continued_to_the_same_bytes() {
    let dir = temporary_dir();
    let (paths, _) = write_corpus(&dir.path().join("text"));
    for (name, selection) in [
        ("all", everything()),
        ("separator", Selection { max_document_bytes: None, min_document_bytes: None, dedup: false, ..everything() }),
    ] {
        let (whole, words) = (dir.path().join(name), Words::new());
        let options = PrepareOptions { shard_tokens: 60, ..options(selection) };
        prepare(&paths, &words, &whole, &options, &Control::new()).unwrap();
        let (whole, n_texts) = (content(&whole), words.n_texts.into_inner());
        assert!(n_texts > 15 && whole.len() > 4, "{n_texts} texts, {} files", whole.len());
        for stop in 0..n_texts {
            let out = dir.path().join(format!("{name}-{stop}"));
            let control = Arc::new(Control::new());
            let handle = Arc::clone(&control);
            let on_text = Box::new(move |n| {
                if n >= stop {
                    handle.cancel();
                }
            });
            drop(prepare(&paths, &Words { on_text, ..Words::new() }, &out, &options, &control));
            run(&paths, &out, &PrepareOptions { segment_bytes: 77, ..options.clone() }).unwrap();
            assert!(content(&out) == whole, "{name} stopped at text {stop}");
            fs::remove_dir_all(out).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Texts in which separators touch, overlap and stand at both ends.
    #[test]
    fn a_text_is_cut_where_a_search_from_its_front_finds_the_separator(
        text in "[ab \n\u{e9}]{0,60}",
        separator in prop_oneof![Just("\n\n"), Just("a"), Just("aba"), Just("ab ab"), Just("\u{e9}\n")],
        segment_bytes in 1usize..30,
        is_packed in any::<bool>(),
    ) {
        let dir = temporary_dir();
        let path = dir.path().join(if is_packed { "a.txt.gz" } else { "a.txt" });
        fs::write(&path, if is_packed { gzip(text.as_bytes()) } else { text.clone().into_bytes() }).unwrap();
        let selection = Selection { doc_separator: Some(separator.to_owned()), ..Selection::default() };
        let options = PrepareOptions { segment_bytes, ..options(selection) };
        let got = encode_files(&[path], &Words::new(), &options, &Control::new()).unwrap();
        let documents: Vec<&str> = text.split(separator).filter(|document| !document.is_empty()).collect();
        prop_assert_eq!(got.ids.iter().collect::<Vec<_>>(), tokens_of(&documents));
        prop_assert_eq!(got.offsets.len(), documents.len() + 1);
    }
}

#[test]
fn a_dataset_has_a_name_and_a_weight_that_can_be_changed() {
    let dir = temporary_dir();
    let (path, out) = (dir.path().join("a.txt"), dir.path().join("out"));
    fs::write(&path, "one two three").unwrap();
    let plain = options(Selection::default());
    run(std::slice::from_ref(&path), &out, &plain).unwrap();
    let text = fs::read_to_string(out.join("manifest.json")).unwrap();
    for field in ["source", "weight", "left_out", "replaced", "doc_separator", "dedup", "errors", "document_bytes"] {
        assert!(!text.contains(field), "{field} is left out where it says nothing");
    }
    let named = PrepareOptions { source: Some("web".to_owned()), weight: Some(0.25), ..plain.clone() };
    for options in [&named, &plain, &PrepareOptions { weight: Some(0.25), ..plain.clone() }] {
        let dataset = run(std::slice::from_ref(&path), &out, options).unwrap();
        let manifest = Dataset::open(dataset.dir()).unwrap().manifest().clone();
        assert_eq!((manifest.source.as_deref(), manifest.weight), (Some("web"), Some(0.25)));
    }
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = run(std::slice::from_ref(&path), &out, &PrepareOptions { weight: Some(weight), ..plain.clone() })
            .unwrap_err();
        assert!(error.to_string().contains("weight must be a number above 0"), "{error}");
    }
}

#[test]
fn a_selection_that_says_nothing_sensible_is_refused() {
    let dir = temporary_dir();
    let lines = dir.path().join("a.jsonl");
    fs::write(&lines, "{\"text\": \"one two\"}\n").unwrap();
    let error = |selection: Selection| {
        run(std::slice::from_ref(&lines), &dir.path().join("out"), &options(selection)).unwrap_err().to_string()
    };
    let none = Selection::default;
    for (selection, part) in [
        (Selection { doc_separator: Some(String::new()), ..none() }, "doc_separator must have 1 to 4096 bytes, got 0"),
        (Selection { doc_separator: Some("\n".to_owned()), ..none() }, "expected a text file among the inputs"),
        (Selection { min_document_bytes: Some(9), max_document_bytes: Some(8), ..none() }, "got 9 and 8"),
        (Selection { max_document_bytes: Some(0), ..none() }, "must be 1 or more"),
        (Selection { min_document_bytes: Some(8), ..none() }, "of 1 documents min_document_bytes=8 left out 1"),
    ] {
        assert!(error(selection.clone()).contains(part), "{}", error(selection));
    }
    run(std::slice::from_ref(&lines), &dir.path().join("other"), &options(none())).unwrap();
    let dedup = options(Selection { dedup: true, ..none() });
    let other = |files: &[PathBuf], options: &PrepareOptions| {
        run(files, &dir.path().join("other"), options).unwrap_err().to_string()
    };
    let message = other(std::slice::from_ref(&lines), &dedup);
    assert!(message.contains("made with other dedup (false, asked for true); hint"), "{message}");
    let (renamed, further) = (dir.path().join("b.jsonl"), dir.path().join("c.jsonl"));
    fs::copy(&lines, &renamed).unwrap();
    fs::write(&further, "{\"text\": \"three\"}\n").unwrap();
    let message = other(std::slice::from_ref(&renamed), &options(none()));
    assert!(message.contains("made with other input files (a.jsonl, asked for b.jsonl); hint"), "{message}");
    let message = other(&[lines.clone(), further.clone()], &options(none()));
    assert!(message.contains("made with other input files (1, asked for 2); hint"), "{message}");
    fs::copy(&further, &lines).unwrap();
    let message = other(&[lines], &options(none()));
    assert!(message.contains("made with other input files (a.jsonl has other bytes); hint"), "{message}");
}

#[test]
fn equal_documents_longer_than_a_segment_are_found() {
    let dir = temporary_dir();
    let long = "a long text \u{e9} ".repeat(500);
    let texts = [long.clone(), long.clone() + "!", long.clone(), "x".to_owned(), long[1..].to_owned()];
    let path = dir.path().join("a.txt");
    fs::write(&path, texts.join("<|sep|>")).unwrap();
    let lines = dir.path().join("b.jsonl");
    fs::write(&lines, texts.each_ref().map(|text| format!("{{\"text\": \"{text}\"}}\n")).concat()).unwrap();
    let selection = Selection { doc_separator: Some("<|sep|>".to_owned()), dedup: true, ..Selection::default() };
    for segment_bytes in [1, 100, 6_000, 1 << 20] {
        let options = PrepareOptions { segment_bytes, ..options(selection.clone()) };
        let out = dir.path().join(segment_bytes.to_string());
        let dataset = run(&[path.clone(), lines.clone()], &out, &options).unwrap();
        assert_eq!(tokens(&dataset), tokens_of(&[&texts[0], &texts[1], &texts[3], &texts[4]]));
        assert_eq!(dataset.manifest().left_out, LeftOut { duplicate: 6, ..LeftOut::default() });
    }
}

#[test]
fn a_line_without_an_end_is_refused_by_its_number_and_the_limit() {
    let dir = temporary_dir();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, "{\"text\": \"one\"}\n").unwrap();
    File::options().write(true).open(&path).unwrap().set_len(2 << 30).unwrap();
    for errors in [Errors::Strict, Errors::Replace] {
        let options = options(Selection { errors, ..Selection::default() });
        let error = encode_files(std::slice::from_ref(&path), &Words::new(), &options, &Control::new()).unwrap_err();
        assert!(error.to_string().contains("line 2: expected at most 268435456 bytes, got more"), "{error}");
    }
}
