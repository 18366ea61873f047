//! `prepare` with loss fields: which tokens count, and that nothing but the recipe decides it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "the lines are written here")]
#[path = "fixtures/corpus.rs"]
mod corpus;
#[allow(dead_code, reason = "all columns are written alike")]
#[path = "fixtures/parquet.rs"]
mod parquet_files;
#[path = "fixtures/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gptrs_core::corpus::{Errors, Selection};
use gptrs_core::dataset::Dataset;
use gptrs_core::foreign::{ExportOptions, export};
use gptrs_core::manifest::Manifest;
use gptrs_core::normalizer::Normalizer;
use gptrs_core::prepare::{PrepareOptions, encode_files, merge_tasks, prepare, prepare_task};
use gptrs_core::ranges::Task;
use gptrs_core::shard::Format;
use gptrs_core::{Control, Splitter, Tokenizer, Vocab};
use parquet::basic::Encoding;
use parquet_files::{Layout, write_parquet};
use random::Random;

fn options(text_field: &str, loss_fields: &[&str], shard_tokens: u64) -> PrepareOptions {
    let loss_fields = loss_fields.iter().map(|&name| name.to_owned()).collect();
    PrepareOptions { text_field: text_field.to_owned(), loss_fields, ..corpus::options(shard_tokens) }
}

fn tokens_and_bits(dataset: &Dataset) -> (Vec<u32>, Vec<bool>) {
    let n = dataset.n_tokens() as usize;
    let (mut tokens, mut bits) = (vec![0; n], vec![false; n]);
    dataset.read(0, &mut tokens).unwrap();
    dataset.loss_bits(0, &mut bits).unwrap();
    (tokens, bits)
}

#[test]
fn a_token_belongs_to_the_field_of_its_last_byte() {
    let dir = corpus::temporary_dir();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, "{\"q\": \"ab\", \"a\": \"abc\"}\n{\"a\": \"\", \"q\": \"x\"}\n").unwrap();
    // Tokens: "ab" is 256, " ab" 257, " abc" 258, the end of text 259.
    let run = |text_field: &str, loss_fields: &[&str]| {
        let out = dir.path().join(format!("{text_field}-{}", loss_fields.join("-")).replace(['{', '}', ' '], "_"));
        let options = options(text_field, loss_fields, 1000);
        let dataset = prepare(&[&path].map(PathBuf::from), &corpus::tokenizer(), &out, &options, &Control::new());
        tokens_and_bits(&dataset.unwrap())
    };
    let (yes, no) = (true, false);
    // The blank is the template's, and the token that begins with it ends in the answer.
    let (tokens, bits) = run("{q} {a}", &["a"]);
    assert_eq!(tokens, [256, 258, 259, u32::from(b'x'), u32::from(b' '), 259]);
    assert_eq!(bits, [no, yes, yes, no, no, yes]);
    assert_eq!(run("{q} {a}", &["q"]).1, [yes, no, yes, yes, no, yes]);
    assert_eq!(run("{q} {a}", &["q", "a"]).1, [yes, yes, yes, yes, no, yes]);
    // Here the token "ab" is a part of both fields.
    fs::write(&path, "{\"q\": \"a\", \"a\": \"b\"}\n").unwrap();
    assert_eq!(run("{q}{a}", &["a"]), (vec![256, 259], vec![yes, yes]));
    assert_eq!(run("{q}{a}", &["q"]), (vec![256, 259], vec![no, yes]));
    assert_eq!(run("a", &["a"]).1, [yes, yes]);
}

/// Lines of random texts with their prompts and answers.
fn write_lines(path: &Path, n: usize) -> Vec<[String; 2]> {
    let mut random = Random(n as u64);
    let words = ["abc", "ab", "caf\u{e9}", " c ab", "<|endoftext|>", "\u{1f600}", "12\n", "", " "];
    let mut text = |most: usize| -> String { (0..random.below(most)).map(|_| words[random.below(9)]).collect() };
    let documents: Vec<_> = (0..n).map(|_| [text(12), text(30)]).collect();
    let line = |[prompt, answer]: &[String; 2]| {
        serde_json::json!({"answer": answer, "id": 7, "prompt": prompt}).to_string() + "\n"
    };
    fs::write(path, documents.iter().map(line).collect::<String>()).unwrap();
    documents
}

fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| !path.ends_with(".lock"));
    files.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
}

#[test]
fn bits_are_those_of_a_slow_twin_for_any_threads_segments_and_tasks() {
    let dir = corpus::temporary_dir();
    let paths: Vec<_> = ["a.jsonl", "b.jsonl"].iter().map(|name| dir.path().join(name)).collect();
    let documents = [write_lines(&paths[0], 300), write_lines(&paths[1], 77)].concat();
    let (tokenizer, control) = (corpus::tokenizer(), Control::new());
    let (mut tokens, mut bits) = (Vec::new(), Vec::new());
    for [prompt, answer] in &documents {
        let text = format!("{prompt}: {answer}|");
        let answer = prompt.len() + 2..prompt.len() + 2 + answer.len();
        let (ids, spans) = tokenizer.encode_with_offsets(text.as_bytes()).unwrap();
        tokens.extend(ids.into_iter().chain([259]));
        bits.extend(spans.into_iter().map(|(_, end)| answer.contains(&(end - 1))).chain([true]));
    }
    assert!(bits.iter().filter(|&&bit| bit).count() > 1000 && bits.iter().filter(|&&bit| !bit).count() > 1000);
    let options = options("{prompt}: {answer}|", &["answer"], 700);
    let whole = dir.path().join("whole");
    let dataset = prepare(&paths, &tokenizer, &whole, &options, &control).unwrap();
    dataset.verify(1, &control).unwrap();
    assert!(tokens_and_bits(&dataset) == (tokens, bits));
    assert_eq!(dataset.manifest().recipe.loss_fields, ["answer"]);
    for (threads, segment_bytes) in [(3, 1), (2, 333), (1, 1 << 20)] {
        let out = dir.path().join(format!("{threads}"));
        let options = PrepareOptions { threads, segment_bytes, ..options.clone() };
        prepare(&paths, &tokenizer, &out, &options, &control).unwrap();
        assert!(content(&out) == content(&whole), "{threads} threads");
    }
    let out = dir.path().join("tasks");
    for index in [2, 0, 1] {
        prepare_task(&paths, &tokenizer, &out, Task { index, of: 3 }, &options, &control).unwrap();
    }
    merge_tasks(&paths, &tokenizer, &out, 3, false, &options, &control).unwrap();
    assert!(content(&out) == content(&whole), "three tasks");
}

/// Texts as a Parquet file of prompts and answers.
fn write_rows(path: &Path, documents: &[[Vec<u8>; 2]], layout: Layout) {
    let column = |i: usize| documents.iter().map(|texts| Some(texts[i].as_slice())).collect();
    write_parquet(path, &[("answer", column(1)), ("prompt", column(0))], layout);
}

/// All of a dataset but what names its inputs.
fn without_inputs(dir: &Path) -> (BTreeMap<PathBuf, Vec<u8>>, Manifest) {
    let mut files = content(dir);
    files.remove(Path::new("manifest.json"));
    let mut manifest = Dataset::open(dir).unwrap().manifest().clone();
    manifest.recipe.inputs.clear();
    (files, manifest)
}

#[test]
fn rows_of_a_parquet_file_have_the_bits_of_the_same_lines() {
    let dir = corpus::temporary_dir();
    let paths: Vec<_> = ["a.jsonl", "b.jsonl"].iter().map(|name| dir.path().join(name)).collect();
    let documents = [write_lines(&paths[0], 120), write_lines(&paths[1], 77)];
    let (tokenizer, control) = (corpus::tokenizer(), Control::new());
    let options = options("{prompt}: {answer}|{prompt}", &["answer"], 700);
    let whole = dir.path().join("whole");
    prepare(&paths, &tokenizer, &whole, &options, &control).unwrap();
    for (i, (rows_of_group, rows_of_page, encoding)) in
        [(1000, 1000, None), (10, 3, Some(Encoding::PLAIN)), (7, 1, Some(Encoding::DELTA_BYTE_ARRAY))]
            .into_iter()
            .enumerate()
    {
        let [a, b] = ["a", "b"].map(|name| dir.path().join(format!("{name}{i}.parquet")));
        for (path, documents) in [(&a, &documents[0]), (&b, &documents[1])] {
            let documents: Vec<_> =
                documents.iter().map(|texts| texts.each_ref().map(|text| text.clone().into_bytes())).collect();
            write_rows(path, &documents, Layout { rows_of_group, rows_of_page, encoding });
        }
        let rows = [a, b];
        for (threads, segment_bytes) in [(3, 1), (2, 333), (1, 1 << 20)] {
            let out = dir.path().join(format!("{i}-{threads}"));
            let options = PrepareOptions { threads, segment_bytes, ..options.clone() };
            prepare(&rows, &tokenizer, &out, &options, &control).unwrap();
            assert!(without_inputs(&out) == without_inputs(&whole), "{threads} threads");
        }
        let out = dir.path().join(format!("{i}-tasks"));
        for index in [2, 0, 1] {
            prepare_task(&rows, &tokenizer, &out, Task { index, of: 3 }, &options, &control).unwrap();
        }
        merge_tasks(&rows, &tokenizer, &out, 3, false, &options, &control).unwrap();
        assert!(without_inputs(&out) == without_inputs(&whole), "three tasks");
    }
}

#[test]
fn bits_of_rows_stay_with_their_text_when_bytes_are_replaced_and_documents_left_out() {
    let dir = corpus::temporary_dir();
    let (lines, rows) = (dir.path().join("a.jsonl"), dir.path().join("a.parquet"));
    let broken: [&[u8]; 6] = [b"", b"\xFF", b"\xE2\x82", b"ab\xC3", b"\xF0\x9F\x98c", "é".as_bytes()];
    let mut documents: Vec<[Vec<u8>; 2]> = Vec::new();
    for prompt in broken {
        for answer in broken {
            documents.push([[b"abc", prompt].concat(), [answer, b" ab", answer].concat()]);
            documents.push([prompt.to_vec(), b"x".to_vec()]);
        }
    }
    let line = |[prompt, answer]: &[Vec<u8>; 2]| {
        [b"{\"prompt\": \"", prompt.as_slice(), b"\", \"answer\": \"", answer, b"\"}\n"].concat()
    };
    fs::write(&lines, documents.iter().flat_map(line).collect::<Vec<_>>()).unwrap();
    write_rows(&rows, &documents, Layout { rows_of_group: 20, rows_of_page: 3, encoding: None });
    let selection =
        Selection { errors: Errors::Replace, dedup: true, min_document_bytes: Some(4), ..Selection::default() };
    for (i, loss_fields) in [&["answer"][..], &["prompt"], &["answer", "prompt"]].into_iter().enumerate() {
        let options = PrepareOptions { selection: selection.clone(), ..options("{prompt}:{answer}", loss_fields, 90) };
        let outs = [&lines, &rows].map(|path| {
            let out = dir.path().join(format!("{i}-{}", path.extension().unwrap().display()));
            prepare(std::slice::from_ref(path), &corpus::tokenizer(), &out, &options, &Control::new()).unwrap();
            without_inputs(&out)
        });
        assert!(outs[0].1.replaced > 50 && outs[0].1.left_out.duplicate > 20, "{:?}", outs[0].1.left_out);
        assert!(outs[0] == outs[1], "{loss_fields:?}");
    }
}

#[test]
fn an_export_leaves_loss_bits_behind_only_where_it_is_told_to() {
    let dir = corpus::temporary_dir();
    let [lines, data, out] = ["a.jsonl", "data", "out"].map(|name| dir.path().join(name));
    write_lines(&lines, 10);
    let (options, control) = (options("{prompt} {answer}", &["answer"], 700), Control::new());
    let dataset = prepare(&[lines], &corpus::tokenizer(), &data, &options, &control).unwrap();
    for format in [Format::NanoGpt, Format::LlmC, Format::Megatron] {
        let options = ExportOptions { format, tokens_per_file: 1 << 20, drop_loss_bits: false };
        let message = export(&dataset, &out, &options, &control).unwrap_err().to_string();
        assert!(message.contains("without loss bits") && message.contains("hint: drop_loss_bits"), "{message}");
        assert!(!out.exists());
    }
    let options = ExportOptions { format: Format::NanoGpt, tokens_per_file: 1, drop_loss_bits: true };
    let paths = export(&dataset, &out, &options, &control).unwrap();
    assert_eq!(fs::metadata(&paths[0]).unwrap().len(), 2 * dataset.n_tokens());
}

#[test]
fn what_cannot_have_loss_bits_is_refused_before_any_work() {
    let dir = corpus::temporary_dir();
    let [lines, text] = ["a.jsonl", "b.txt"].map(|name| dir.path().join(name));
    write_lines(&lines, 10);
    fs::write(&text, "abc").unwrap();
    let (tokenizer, control, out) = (corpus::tokenizer(), Control::new(), dir.path().join("out"));
    let options = options("{prompt} {answer}", &["answer"], 700);
    let refused = |paths: &[&PathBuf], tokenizer: &Tokenizer, options: &PrepareOptions, part: &str| {
        let paths: Vec<PathBuf> = paths.iter().map(|&path| path.clone()).collect();
        let task = Task { index: 0, of: 1 };
        let ends = [
            prepare(&paths, tokenizer, &out, options, &control).map(drop),
            prepare_task(&paths, tokenizer, &out, task, options, &control).map(drop),
        ];
        for end in ends {
            let message = end.unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("hint: "), "{message}");
        }
        assert!(!out.join("prepare.json").exists() && !out.join("tasks").exists());
    };
    refused(&[&lines, &text], &tokenizer, &options, "b.txt has none");
    let other = PrepareOptions { loss_fields: vec!["reply".to_owned()], ..options.clone() };
    refused(&[&lines], &tokenizer, &other, "among the fields of text_field (\"prompt\", \"answer\"), got \"reply\"");
    let splitter = Splitter::new("gpt2").unwrap().with_normalizer(Some(Normalizer::Nfc));
    let normalizing = Tokenizer::new(Vocab::from_merges(&[]).unwrap(), splitter, vec![]).unwrap();
    refused(&[&lines], &normalizing, &options, "changes it by a normalizer");
    assert!(
        encode_files(std::slice::from_ref(&lines), &tokenizer, &options, &control)
            .unwrap_err()
            .to_string()
            .contains("no loss bits")
    );

    prepare(std::slice::from_ref(&lines), &tokenizer, &out, &options, &control).unwrap();
    let without = PrepareOptions { loss_fields: Vec::new(), ..options.clone() };
    let message = prepare(std::slice::from_ref(&lines), &tokenizer, &out, &without, &control).unwrap_err().to_string();
    assert!(message.contains("made with other loss_fields ("), "{message}");
    let twice = PrepareOptions { loss_fields: vec!["answer".to_owned(); 2], ..options };
    prepare(&[lines], &tokenizer, &out, &twice, &control).unwrap();
}
