//! Bad tokenizer files: each is refused with an error that names the file, and none brings a reader down.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gptrs_core::naive::Pair;
use gptrs_core::{Error, SpecialToken, Splitter, Tokenizer, Vocab, formats};
use serde_json::{Value, json};

/// a b → ab, ab c → abc.
const MERGES: [Pair; 2] = [(97, 98), (256, 99)];

fn tokenizer(pattern: &str) -> Tokenizer {
    let special = SpecialToken { text: "<|endoftext|>".to_owned(), id: 258 };
    Tokenizer::new(Vocab::from_merges(&MERGES).unwrap(), Splitter::new(pattern).unwrap(), vec![special]).unwrap()
}

/// A folder for one test's files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A small valid tokenizer.json.
    fn valid_json(&self, pattern: &str) -> Vec<u8> {
        let path = self.path("valid.json");
        formats::write(&tokenizer(pattern), &path).unwrap();
        assert_eq!(formats::read(&path, None).unwrap().digest(), tokenizer(pattern).digest());
        fs::read(path).unwrap()
    }

    fn valid_value(&self) -> Value {
        serde_json::from_slice(&self.valid_json("cl100k_base")).unwrap()
    }

    /// Reads `content` as a tokenizer.json, which must be refused.
    #[track_caller]
    fn refused_json(&self, content: impl AsRef<[u8]>, what: &str) -> String {
        refused(&self.put("tokenizer.json", content), None, what)
    }

    /// Reads the valid tokenizer.json after a change, which must be refused.
    #[track_caller]
    fn refused_change(&self, what: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut value = self.valid_value();
        change(&mut value);
        self.refused_json(value.to_string(), what)
    }
}

/// The message of the error that reading the file must end in, which names the file.
#[track_caller]
fn refused(path: &Path, pattern: Option<&str>, what: &str) -> String {
    let Err(error) = formats::read(path, pattern) else { panic!("{what}: this file was read") };
    named(&error, path, what)
}

#[track_caller]
fn named(error: &Error, path: &Path, what: &str) -> String {
    let message = error.to_string();
    assert!(message.contains(path.to_str().unwrap()), "{what}: the message names no file: {message}");
    message
}

/// Any end is right but a panic and an error that names no file.
#[track_caller]
fn survives(path: &Path, pattern: Option<&str>, what: &str) {
    if let Err(error) = formats::read(path, pattern) {
        named(&error, path, what);
    }
}

#[test]
fn a_truncated_tokenizer_json_is_refused() {
    let folder = Folder::new();
    let valid = folder.valid_json("cl100k_base");
    let starts = (0..valid.len()).step_by(3).chain(valid.len() - 40..valid.len());
    for n in starts {
        folder.refused_json(&valid[..n], &format!("{n} bytes"));
    }
}

#[test]
fn no_flipped_byte_brings_the_reader_down() {
    let folder = Folder::new();
    let valid = folder.valid_json("cl100k_base");
    for at in 0..valid.len() {
        for flip in [1 << (at % 8), 0xFF, valid[at] ^ b'"', valid[at] ^ b'9'] {
            let mut bytes = valid.clone();
            bytes[at] ^= flip;
            survives(&folder.put("tokenizer.json", bytes), None, &format!("byte {at} with {flip:#04x}"));
        }
    }
}

#[test]
fn what_is_no_json_map_is_refused() {
    let folder = Folder::new();
    let valid = folder.valid_json("gpt2");
    let mut not_utf8 = valid.clone();
    let at = not_utf8.iter().position(|&byte| byte == b'a').unwrap();
    not_utf8[at] = 0xFF;
    assert!(folder.refused_json(&not_utf8, "not UTF-8").contains(&format!("offset {at}")));
    folder.refused_json([&valid[..], b"{}"].concat(), "text after the end");
    folder.refused_json([b"\xEF\xBB\xBF", &valid[..]].concat(), "a byte order mark");
    for text in ["", " ", "\0", "null", "3", "\"x\"", "[]", "{}", "{\"model\":null}", "{\"model\":{}}"] {
        folder.refused_json(text, text);
    }
    for open in ["[", "{\"model\":", "{\"a\":"] {
        folder.refused_json(open.repeat(100_000), "deep nesting");
        let nested = String::from_utf8(valid.clone()).unwrap().replacen("null", &open.repeat(100_000), 1);
        folder.refused_json(nested, "deep nesting inside");
    }
}

#[test]
fn a_wrong_type_in_any_field_is_refused() {
    let folder = Folder::new();
    let wrong = [json!(3), json!(-1), json!(0.5), json!("x"), json!(true), json!([3]), json!({ "x": 3 })];
    let fields = [
        "/version",
        "/truncation",
        "/padding",
        "/added_tokens",
        "/added_tokens/0",
        "/added_tokens/0/id",
        "/added_tokens/0/content",
        "/added_tokens/0/single_word",
        "/added_tokens/0/lstrip",
        "/added_tokens/0/rstrip",
        "/added_tokens/0/normalized",
        "/added_tokens/0/special",
        "/normalizer",
        "/pre_tokenizer",
        "/pre_tokenizer/type",
        "/pre_tokenizer/pretokenizers",
        "/pre_tokenizer/pretokenizers/0",
        "/pre_tokenizer/pretokenizers/0/type",
        "/pre_tokenizer/pretokenizers/0/pattern",
        "/pre_tokenizer/pretokenizers/0/behavior",
        "/pre_tokenizer/pretokenizers/1",
        "/pre_tokenizer/pretokenizers/1/type",
        "/pre_tokenizer/pretokenizers/1/add_prefix_space",
        "/pre_tokenizer/pretokenizers/1/use_regex",
        "/post_processor",
        "/decoder",
        "/decoder/type",
        "/model",
        "/model/type",
        "/model/dropout",
        "/model/continuing_subword_prefix",
        "/model/end_of_word_suffix",
        "/model/ignore_merges",
        "/model/vocab",
        "/model/vocab/a",
        "/model/merges",
        "/model/merges/0",
        "/model/merges/0/0",
        "/model/merges/0/1",
    ];
    let may_be_true = [
        "/added_tokens/0/single_word",
        "/added_tokens/0/lstrip",
        "/added_tokens/0/rstrip",
        "/added_tokens/0/normalized",
        "/added_tokens/0/special",
        "/pre_tokenizer/pretokenizers/1/use_regex",
        "/model/ignore_merges",
    ];
    for field in fields {
        for value in &wrong {
            if *value == true && may_be_true.contains(&field) {
                continue;
            }
            let what = format!("{field} is {value}");
            folder.refused_change(&what, |file| *file.pointer_mut(field).unwrap() = value.clone());
        }
    }
    for field in ["/version", "/pre_tokenizer", "/decoder", "/model", "/model/vocab", "/model/vocab/a", "/model/merges"]
    {
        folder.refused_change(field, |file| *file.pointer_mut(field).unwrap() = Value::Null);
    }
}

#[test]
fn an_unknown_component_is_refused_by_name() {
    let folder = Folder::new();
    let cases = [
        ("/normalizer", json!({ "type": "Lowercase" }), "Lowercase"),
        ("/pre_tokenizer", json!({ "type": "Metaspace" }), "Metaspace"),
        ("/pre_tokenizer/pretokenizers/0", json!({ "type": "Digits" }), "Digits"),
        ("/post_processor", json!({ "type": "TemplateProcessing" }), "TemplateProcessing"),
        ("/decoder", json!({ "type": "WordPiece" }), "WordPiece"),
        ("/model/type", json!("Unigram"), "Unigram"),
        ("/version", json!("2.0"), "2.0"),
        ("/truncation", json!({ "max_length": 8 }), "truncation"),
        ("/padding", json!({ "strategy": "BatchLongest" }), "padding"),
        ("/model/byte_fallback", json!(true), "byte_fallback"),
        ("/model/end_of_word_suffix", json!("</w>"), "</w>"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("(a"), "(a"),
    ];
    for (field, value, name) in cases {
        let message = folder.refused_change(field, |file| *file.pointer_mut(field).unwrap() = value);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn a_vocabulary_that_does_not_hold_together_is_refused() {
    let folder = Folder::new();
    let change_vocab = |what: &str, token: &str, id: Value| {
        folder.refused_change(what, |file| file["model"]["vocab"][token] = id);
    };
    for id in [1u64 << 20, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        change_vocab("a huge id", "a", json!(id));
        folder.refused_change("a huge id of the special token", |file| {
            file["model"]["vocab"]["<|endoftext|>"] = json!(id);
        });
    }
    change_vocab("two tokens with one id", "a", json!(98));
    change_vocab("a token outside the alphabet", "x y", json!(300));
    for text in ["a", "!", "Ġ", "ÿ"] {
        let message = folder.refused_change("a missing byte", |file| {
            file["model"]["vocab"].as_object_mut().unwrap().remove(text).unwrap();
        });
        assert!(message.contains("missing"), "{message}");
    }
    folder.refused_change("an added token that is another token", |file| file["added_tokens"][0]["id"] = json!(97));
    folder.refused_change("an empty added token", |file| {
        file["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 300, "content": "" }));
    });
    folder.refused_change("an added token twice", |file| {
        file["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 259, "content": "<|endoftext|>" }));
    });
    folder.refused_change("two added tokens with one id", |file| {
        file["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 258, "content": "<|other|>" }));
    });
    let doubled = String::from_utf8(folder.valid_json("gpt2")).unwrap().replacen("\"a\":97", "\"a\":97,\"a\":300", 1);
    folder.refused_json(doubled, "a token with two ids");
}

#[test]
fn merges_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let cases = [
        ("an unknown left token", json!([["xy", "a"]])),
        ("an unknown right token", json!([["a", "xy"]])),
        ("a product that is no token", json!([["a", "b"], ["a", "c"]])),
        ("a merge twice", json!([["a", "b"], ["ab", "c"], ["a", "b"]])),
        ("a merge twice, in both spellings", json!([["a", "b"], "a b"])),
        ("one token", json!([["ab"]])),
        ("three tokens", json!([["a", "b", "c"]])),
        ("no token", json!([[]])),
        ("one token in a string", json!(["ab"])),
        ("three tokens in a string", json!(["a b c"])),
        ("an empty left token", json!([["", "a"]])),
        ("an empty string", json!([""])),
    ];
    for (what, merges) in cases {
        folder.refused_change(what, |file| file["model"]["merges"] = merges);
    }
    for pair in [["", "a"], ["a", ""], ["", ""]] {
        folder.refused_change("a token that makes itself", |file| {
            file["model"]["vocab"][""] = json!(300);
            file["model"]["merges"] = json!([pair]);
        });
    }
    for pair in [["<|endoftext|>", "a"], ["Ā", "中"]] {
        folder.refused_change("a merge of what is no ordinary token", |file| {
            file["model"]["merges"] = json!([pair]);
        });
    }
}

/// A line of a rank file: a token and its rank, which may be no number.
type Ranked = (Vec<u8>, String);

/// A rank file of the bytes, `ab` and `abc`.
fn ranks() -> Vec<Ranked> {
    let tokens = (0..=255).map(|byte| vec![byte]).chain([b"ab".to_vec(), b"abc".to_vec()]);
    tokens.enumerate().map(|(rank, token)| (token, rank.to_string())).collect()
}

fn lines(ranks: &[Ranked]) -> String {
    ranks.iter().fold(String::new(), |mut lines, (token, rank)| {
        writeln!(lines, "{} {rank}", STANDARD.encode(token)).unwrap();
        lines
    })
}

#[test]
fn a_bad_rank_file_is_refused() {
    let folder = Folder::new();
    let refused_lines = |what: &str, content: &[u8]| refused(&folder.put("x.tiktoken", content), Some("gpt2"), what);
    let refused_change = |what: &str, change: &dyn Fn(&mut Vec<Ranked>)| {
        let mut ranks = ranks();
        change(&mut ranks);
        refused_lines(what, lines(&ranks).as_bytes())
    };
    let valid = lines(&ranks());
    let path = folder.put("x.tiktoken", &valid);
    let digest = Tokenizer::new(Vocab::from_merges(&MERGES).unwrap(), Splitter::new("gpt2").unwrap(), Vec::new());
    assert_eq!(formats::read(&path, Some("gpt2")).unwrap().digest(), digest.unwrap().digest());
    refused(&path, None, "no pattern");

    for content in ["", "\n\n", " ", "\0"] {
        refused_lines("an empty file", content.as_bytes());
    }
    for line in ["!!!! 300", "YQ 300", "YWI", "YWI=", "YWI= ", " 300", "YWI=  300", "YWI=\t300", "YWI= 300 4", "= 300"]
    {
        let message = refused_lines(line, format!("{valid}{line}\n").as_bytes());
        assert!(message.contains("line 259"), "{message}");
    }
    refused_lines("not UTF-8", &[valid.as_bytes(), b"\xFF\xFE 300\n"].concat());
    for rank in
        ["4294967295", "4294967296", "99999999999999999999999", "-1", "1.5", "0x10", "1e3", "x", "５", "2000000"]
    {
        refused_change(rank, &|ranks| rank.clone_into(&mut ranks[257].1));
    }
    refused_change("two tokens with one rank", &|ranks| ranks[257].1 = "256".to_owned());
    refused_change("a byte's rank twice", &|ranks| ranks[98].1 = "97".to_owned());
    refused_change("a token twice", &|ranks| ranks[257].0 = b"ab".to_vec());
    refused_change("a byte twice", &|ranks| ranks[98].0 = b"a".to_vec());
    refused_change("a token that is too long", &|ranks| ranks[257].0 = b"a".repeat(5000));
    for byte in [0, 97, 255] {
        let message = refused_change("a missing byte", &|ranks| drop(ranks.remove(byte)));
        assert!(message.contains(&format!("{byte:#04x}")), "{message}");
    }
    for n in 0..valid.len() - 20 {
        survives(&folder.put("x.tiktoken", &valid[..n]), Some("gpt2"), &format!("{n} bytes"));
    }
}

#[test]
fn a_gap_between_ranks_is_a_hole_when_it_is_small() {
    let folder = Folder::new();
    let mut ranks = ranks();
    ranks[257].1 = "300".to_owned();
    let tokenizer = formats::read(&folder.put("x.tiktoken", lines(&ranks)), Some("gpt2")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 301);
    assert_eq!(tokenizer.token_bytes(299), None);
    assert_eq!(tokenizer.encode_ordinary(b"abc").unwrap(), [300]);
    let error = tokenizer.decode_bytes(&[97, 299]).unwrap_err();
    assert!(matches!(error, Error::UnknownId { id: 299, position: 1, .. }), "{error}");
}

#[test]
fn vocab_json_and_merges_txt_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let tokenizer = tokenizer("gpt2");
    let (vocab, merges) = formats::merges::to_strings(&tokenizer).unwrap();
    let (vocab_path, merges_path) = (folder.path("vocab.json"), folder.path("merges.txt"));
    let put = |vocab: &str, merges: &[u8]| {
        fs::write(&vocab_path, vocab).unwrap();
        fs::write(&merges_path, merges).unwrap();
    };
    // The pair is found by either name and by its folder, and every way ends alike.
    let refused_pair = |named: &Path, what: &str| {
        for path in [&vocab_path, &merges_path, folder.0.path()] as [&Path; 3] {
            let Err(error) = formats::read(path, None) else { panic!("{what}: this pair was read") };
            self::named(&error, named, what);
        }
    };
    put(&vocab, merges.as_bytes());
    for path in [&vocab_path, &merges_path, folder.0.path()] as [&Path; 3] {
        assert_eq!(formats::read(path, None).unwrap().digest(), tokenizer.digest());
    }

    for line in ["a", "a b c", "a  b", " a", "a ", "a\tb"] {
        put(&vocab, format!("{merges}{line}\n").as_bytes());
        refused_pair(&merges_path, line);
    }
    put(&vocab, &[merges.as_bytes(), b"\xFF a\n"].concat());
    refused_pair(&merges_path, "merges that are not UTF-8");
    for line in ["x y", "xy a", "a xy", "a b", "#version: 0.2", "<|endoftext|> a"] {
        put(&vocab, format!("{merges}{line}\n").as_bytes());
        refused_pair(&vocab_path, line);
    }
    for text in ["", " ", "null", "[]", "3", "{}", "{\"a\":97", "{\"a\":\"97\"}", "{\"a\":-1}", "{\"a\":1.5}"] {
        put(text, merges.as_bytes());
        refused_pair(&vocab_path, text);
    }
    let changes = [
        ("\"abc\":257", "\"abd\":257"),
        ("\"abc\":257", "\"abc\":256"),
        ("\"abc\":257", "\"abc\":4294967295"),
        ("\"abc\":257", "\"abc\":4294967296"),
        ("\"abc\":257", "\"abc\":null"),
        ("\"abc\":257", "\"abc\":257,\"abc\":300"),
        ("\"a\":97,", ""),
    ];
    for (from, to) in changes {
        assert!(vocab.contains(from));
        put(&vocab.replacen(from, to, 1), merges.as_bytes());
        refused_pair(&vocab_path, to);
    }
    put(&vocab, b"");
    survives(&vocab_path, None, "no merges");

    fs::remove_file(&merges_path).unwrap();
    let error = formats::read(&vocab_path, None).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    named(&error, &merges_path, "merges.txt is missing");
    refused(folder.0.path(), None, "half a pair");
}

#[test]
fn what_is_no_tokenizer_by_its_name_is_refused() {
    let folder = Folder::new();
    refused(folder.0.path(), None, "an empty folder");
    for name in ["x.json", "x.tiktoken", "merges.txt", "x.bin", "x"] {
        refused(&folder.path(name), Some("gpt2"), "a missing file");
    }
    for name in ["x.json", "x.tiktoken", "cl100k_base.tiktoken", "vocab.json", "x.bin", "x", "JSON"] {
        refused(&folder.put(name, ""), Some("gpt2"), "an empty file");
    }
    let other = folder.put("tokenizer.json", folder.valid_json("gpt2"));
    let message = refused(&other, Some("cl100k_base"), "another pattern");
    assert!(message.contains("cl100k_base"), "{message}");
}
