//! Ids of real vocabularies against what tiktoken and an independent implementation made of the same bytes.
//!
//! The data is not part of the project: set `GPTRS_TEST_DATA` to its directory, else these tests say that they were
//! skipped.
#![allow(clippy::print_stderr)] // a skipped test says so
#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use flate2::read::GzDecoder;
use gptrs_core::{Control, Ids, Specials, Splitter, Tokenizer, Vocab, formats};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn data() -> Option<PathBuf> {
    let directory = std::env::var_os("GPTRS_TEST_DATA").map(PathBuf::from);
    if directory.is_none() {
        eprintln!("skipped: GPTRS_TEST_DATA is not set");
    }
    directory
}

fn gunzip(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Unpacks vocabulary files under the names that readers know into a directory of their own.
fn unpack(data: &Path, test: &str, files: &[(&str, &str)]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    fs::create_dir_all(&directory).unwrap();
    for (packed, name) in files {
        fs::write(directory.join(name), gunzip(&data.join(packed))).unwrap();
    }
    directory
}

fn gpt2(data: &Path, test: &str) -> Tokenizer {
    let files = [("gpt2_encoder.json.gz", "encoder.json"), ("gpt2_vocab.bpe.gz", "vocab.bpe")];
    formats::read(&unpack(data, test, &files), None).unwrap()
}

fn cl100k(data: &Path, test: &str) -> Tokenizer {
    let files = [("cl100k_base.tiktoken.gz", "cl100k_base.tiktoken")];
    formats::read(&unpack(data, test, &files).join(files[0].1), None).unwrap()
}

/// The four published vocabularies, by the names that the golden files have.
fn published(data: &Path, test: &str) -> Vec<(&'static str, Tokenizer)> {
    let ranks = |packed: &str, pattern: &str| {
        let name = format!("{pattern}.tiktoken");
        let folder = unpack(data, test, &[(packed, &name)]);
        formats::read(&folder.join(name), Some(pattern)).unwrap()
    };
    vec![
        ("gpt2", gpt2(data, test)),
        ("cl100k_base", cl100k(data, test)),
        ("o200k_base", ranks("o200k_base.tiktoken.gz", "o200k_base")),
        ("deepseek_v3", ranks("deepseek_v3.bytes.tiktoken.gz", "deepseek-v3")),
    ]
}

#[test]
fn friendship_is_friend_and_ship() {
    let Some(data) = data() else { return };
    let tokenizer = gpt2(&data, "friendship");
    let ids = tokenizer.encode_ordinary(b"friendship").unwrap();
    let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
    assert_eq!(tokens, [&b"friend"[..], b"ship"]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot_id()), (50_257, Some(50_256)));
}

#[test]
fn every_golden_line_has_its_ids() {
    let Some(data) = data() else { return };
    let input = fs::read_to_string(data.join("golden_input.txt")).unwrap();
    for (name, tokenizer) in published(&data, "lines") {
        let golden = String::from_utf8(gunzip(&data.join(format!("golden_ids_{name}.txt.gz")))).unwrap();
        let expected: Vec<Vec<u32>> =
            golden.lines().map(|line| line.split(", ").map(|id| id.parse().unwrap()).collect()).collect();
        let lines: Vec<&str> = input.split_terminator('\n').collect();
        assert_eq!(lines.len(), expected.len());
        for (i, (line, expected)) in lines.iter().zip(&expected).enumerate() {
            let ids = tokenizer.encode_ordinary(line.as_bytes()).unwrap();
            assert_eq!(&ids, expected, "{name}, line {i}");
            assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), line.as_bytes());
        }
    }
}

fn digest(ids: &[u32]) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()) {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
}

fn check(expected: &Value, tokenizer: &Tokenizer, text: &[u8], what: &str) {
    let ids = tokenizer.encode_ordinary(text).unwrap();
    assert_eq!(Value::from(ids.len()), expected["tokens"], "{what}");
    assert_eq!(Value::from(digest(&ids)), expected["sha256"], "{what}");
    assert_eq!(tokenizer.count(text).unwrap(), ids.len(), "{what}");
    assert!(tokenizer.decode_bytes(&ids).unwrap() == text, "{what}");
}

/// The text of an adversarial case, or its bytes, which are no UTF-8: tiktoken cannot be asked about those.
fn adversarial(case: &Value) -> Vec<u8> {
    let part = |name: &str| case[name].as_str().unwrap_or_default();
    let n = case["repeat"].as_u64().unwrap() as usize;
    match case["bytes_b64"].as_str() {
        Some(packed) => base64::engine::general_purpose::STANDARD.decode(packed).unwrap().repeat(n),
        None => format!("{}{}{}", part("prefix"), part("text").repeat(n), part("suffix")).into_bytes(),
    }
}

#[test]
fn whole_files_and_adversarial_texts_have_the_ids_of_tiktoken() {
    let Some(data) = data() else { return };
    let golden: Value = serde_json::from_slice(&fs::read(data.join("golden_tiktoken.json")).unwrap()).unwrap();
    let cases = fs::read_to_string(data.join("adversarial.jsonl")).unwrap();
    let mut n_cases = 0;
    for (name, tokenizer) in published(&data, "files") {
        for file in ["tinyshakespeare.txt", "multi_sample.txt", "golden_input.txt"] {
            let text = fs::read(data.join(file)).unwrap();
            assert!(tokenizer.decode_bytes(&tokenizer.encode_ordinary(&text).unwrap()).unwrap() == text, "{name}");
            if golden["files"][file][name].is_null() {
                continue; // tiktoken has no deepseek_v3; its ids are in every_golden_line_has_its_ids
            }
            check(&golden["files"][file][name], &tokenizer, &text, &format!("{name}, {file}"));
        }
        for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let id = case["name"].as_str().unwrap();
            let expected = &golden["adversarial"][id][name];
            let text = adversarial(&case);
            if expected["sha256"].is_string() {
                check(expected, &tokenizer, &text, &format!("{name}, {id}"));
                n_cases += 1;
            } else {
                let ids = tokenizer.encode_ordinary(&text).unwrap();
                assert!(tokenizer.decode_bytes(&ids).unwrap() == text, "{name}, {id}");
            }
        }
    }
    assert!(n_cases >= 300, "only {n_cases} cases were compared");
}

#[test]
fn any_number_of_threads_gives_the_ids_of_one_text_after_the_other() {
    let Some(data) = data() else { return };
    let text = fs::read(data.join("multi_sample.txt")).unwrap();
    let texts: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    let tokenizer = gpt2(&data, "threads");
    let single: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode_ordinary(text).unwrap()).collect();
    for threads in [0, 1, 2, 5] {
        let encoded = tokenizer.encode_batch(&texts, Specials::None, threads, &Control::new()).unwrap();
        let Ids::U16(ids) = encoded.ids else { panic!("GPT-2 has fewer than 65,536 ids") };
        assert_eq!(encoded.offsets.len(), texts.len() + 1);
        for (i, single) in single.iter().enumerate() {
            let range = encoded.offsets[i] as usize..encoded.offsets[i + 1] as usize;
            assert!(ids[range].iter().map(|&id| u32::from(id)).eq(single.iter().copied()), "text {i}");
        }
    }
}

#[test]
fn every_spelling_of_a_vocabulary_is_the_same_tokenizer() {
    let Some(data) = data() else { return };
    let tokenizer = gpt2(&data, "spellings");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spellings");
    for name in ["tokenizer.json", "gpt2.tiktoken"] {
        formats::write(&tokenizer, &directory.join(name)).unwrap();
        assert_eq!(formats::read(&directory.join(name), None).unwrap().digest(), tokenizer.digest(), "{name}");
    }
    let (vocab, merges) = formats::merges::to_strings(&tokenizer).unwrap();
    assert_eq!(merges.as_bytes(), gunzip(&data.join("gpt2_vocab.bpe.gz")));
    fs::write(directory.join("vocab.json"), vocab).unwrap();
    fs::write(directory.join("merges.txt"), merges).unwrap();
    let again = formats::read(&directory.join("vocab.json"), None).unwrap();
    assert_eq!(again.digest(), tokenizer.digest());
    let tokenizer = cl100k(&data, "spellings");
    formats::write(&tokenizer, &directory.join("cl100k.json")).unwrap();
    assert_eq!(formats::read(&directory.join("cl100k.json"), None).unwrap().digest(), tokenizer.digest());
}

#[test]
fn gpt2_cl100k_and_o200k_have_no_unreachable_token() {
    let Some(data) = data() else { return };
    let o200k = unpack(&data, "reach", &[("o200k_base.tiktoken.gz", "o200k_base.tiktoken")]);
    let o200k = formats::read(&o200k.join("o200k_base.tiktoken"), Some(r"\s+|\S+")).unwrap();
    for tokenizer in [gpt2(&data, "reach"), cl100k(&data, "reach"), o200k] {
        assert!(tokenizer.vocab().unreachable().is_empty());
    }
}

#[test]
fn a_vocabulary_from_its_own_ranks_has_the_published_merges() {
    let Some(data) = data() else { return };
    let tokenizer = gpt2(&data, "ranks");
    let vocab = tokenizer.vocab();
    let tokens: Vec<_> = (0..vocab.len() as u32).map(|id| vocab.token(id).unwrap_or_default()).collect();
    let ranked = Tokenizer::new(Vocab::from_ranks(&tokens).unwrap(), Splitter::new("gpt2").unwrap(), vec![]).unwrap();
    assert_eq!(ranked.vocab().merges(), vocab.merges());
}
