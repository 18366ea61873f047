//! Tokenizer files that are broken, cut or lie: each is an error that says what and where, none is a panic, and none
//! makes the reader allocate more than the file's own size explains.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use gptrs_core::formats::{self, merges, tiktoken, tokenizer_json};
use gptrs_core::template::Slot;
use gptrs_core::{Error, SpecialToken, Specials, Splitter, Tokenizer, Vocab};
use serde_json::{Value, json};

/// A small tokenizer: 256 bytes, "aa", "aab", and two special tokens, the first of them in a gap.
fn sample(pattern: &str) -> Tokenizer {
    let vocab = Vocab::from_merges(&[(97, 97), (256, 98)]).unwrap();
    let special = |text: &str, id| SpecialToken { text: text.to_owned(), id };
    let specials = vec![special("<|endoftext|>", 258), special("<|pad 日|>", 263)];
    Tokenizer::new(vocab, Splitter::new(pattern).unwrap(), specials).unwrap()
}

fn sample_json() -> Value {
    serde_json::from_str(&tokenizer_json::to_string(&sample("gpt2")).unwrap()).unwrap()
}

fn read_json(text: &str) -> Result<Tokenizer, Error> {
    tokenizer_json::from_str(text, Path::new("t.json"))
}

/// The reason why the sample is refused after `change`.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut file = sample_json();
    change(&mut file);
    match read_json(&file.to_string()) {
        Err(Error::Format { reason, .. }) => reason,
        other => panic!("expected a format error, got {other:?}"),
    }
}

fn with_field(name: &str, value: Value) -> String {
    let mut file = sample_json();
    file[name] = value;
    file.to_string()
}

fn refusal_text(text: &str) -> String {
    read_json(text).unwrap_err().to_string()
}

fn directory(test: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile").join(test);
    fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn what_is_written_reads_back_equal() {
    let directory = directory("round_trip");
    for pattern in ["gpt2", "cl100k_base", r"\w+|\s+"] {
        let tokenizer = sample(pattern);
        let path = directory.join("tokenizer.json");
        formats::write(&tokenizer, &path).unwrap();
        for path in [&path, &directory] {
            let again = formats::read(path, None).unwrap();
            assert_eq!(again.digest(), tokenizer.digest());
            assert_eq!((again.specials(), again.eot_id()), (tokenizer.specials(), Some(258)));
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(formats::read(&path, Some(pattern)).unwrap().digest(), tokenizer.digest());
        assert!(matches!(formats::read(&path, Some("a+")), Err(Error::Argument(_))));
    }
}

#[test]
fn tokens_that_merges_cannot_reach_survive_the_round_trip() {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend([b"abc".to_vec(), Vec::new(), b"xyz".to_vec()]);
    let splitter = Splitter::new("gpt2").unwrap();
    let tokenizer = Tokenizer::new(Vocab::from_ranks(&tokens).unwrap(), splitter, vec![]).unwrap();
    assert_eq!(tokenizer.vocab().unreachable(), [256, 258]);
    assert_eq!(tokenizer.encode_ordinary(b"abc xyz xyz").unwrap()[0], 256);
    let again = read_json(&tokenizer_json::to_string(&tokenizer).unwrap()).unwrap();
    assert_eq!(again.digest(), tokenizer.digest());
    assert!(matches!(merges::to_strings(&tokenizer), Err(Error::Argument(_))), "merges.txt cannot say it");
}

#[test]
fn a_cut_file_is_an_error_at_every_length() {
    let text = tokenizer_json::to_string(&sample("gpt2")).unwrap();
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
        assert!(read_json(&text[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn merges_that_lie_are_refused() {
    let with = |merges: Value| refusal(|file| file["model"]["merges"] = merges);
    assert_eq!(with(json!([["a", "zz"]])), "merge 0 (\"a\", \"zz\") needs token \"zz\", which is missing");
    assert_eq!(with(json!([["a", "b"]])), "merge 0 (\"a\", \"b\") needs token \"ab\", which is missing");
    assert_eq!(with(json!([["a", "a"], ["a", "a"]])), "merge 1 repeats (97, 97), which spells \"aa\"");
    assert!(with(json!([["a"]])).contains("invalid length 1, expected two tokens"));
    assert!(with(json!([["a", "a", "b"]])).contains("expected two tokens"));
    assert!(with(json!(["a a b"])).contains("expected two tokens with a space between"));
    assert!(with(json!(["aa"])).contains("expected two tokens with a space between"));
    assert!(with(json!([7])).contains("expected a merge"));
}

#[test]
fn old_and_new_merges_mean_the_same() {
    let mut file = sample_json();
    file["model"]["merges"] = json!(["a a", "aa b"]);
    assert_eq!(read_json(&file.to_string()).unwrap().digest(), sample("gpt2").digest());
}

#[test]
fn vocabularies_that_lie_are_refused() {
    let with = |token: &str, id: Value| refusal(|file| file["model"]["vocab"][token] = id);
    assert!(with("q", json!(4_000_000_000_u32)).contains("expected less than"));
    assert!(with("q", json!(5_000_000_000_u64)).contains("expected u32"));
    assert!(with("q", json!(-1)).contains("expected u32"));
    assert!(with("q", json!(1e300)).contains("expected u32"));
    assert!(with("q", json!("7")).contains("expected u32"));
    assert!(with("xx", json!(97)).contains("both have id 97"));
    assert!(with("日", json!(300)).contains("'日', which is not in the byte-level alphabet"));
    let missing = refusal(|file| drop(file["model"]["vocab"].as_object_mut().unwrap().remove("q")));
    assert_eq!(missing, "byte 0x71 is missing, expected a token for each of the 256 bytes");
    let doubled = tokenizer_json::to_string(&sample("gpt2")).unwrap().replace("\"vocab\":{", "\"vocab\":{\"q\":270,");
    assert!(read_json(&doubled).unwrap_err().to_string().contains("tokens 113 and 270 are both \"q\""));
}

#[test]
fn added_tokens_that_lie_are_refused() {
    let with = |flag: &str, value: Value| refusal(|file| file["added_tokens"][0][flag] = value);
    assert!(with("id", json!(7)).contains("added token \"<|endoftext|>\" has id 7, but model.vocab has it as 258"));
    assert!(with("content", json!("new")).contains("has id 258, which is \"<|endoftext|>\" in model.vocab"));
    for flag in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
        assert!(with(flag, json!(1)).contains("expected a boolean"), "{flag}");
    }
    let stripped = refusal(|file| {
        file["added_tokens"][0]["rstrip"] = json!(true);
        file["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 264, "content": " x" }));
    });
    assert!(stripped.contains("has rstrip and \" x\" starts with white space"), "{stripped}");
    let ordinary = refusal(|file| {
        file["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 264, "content": "aab" }));
    });
    assert!(ordinary.contains("added token \"aab\" has id 264, but model.vocab has it as 257"), "{ordinary}");
    let same_bytes = refusal(|file| {
        file["model"]["vocab"]["ĠĠ"] = json!(258);
        file["model"]["vocab"].as_object_mut().unwrap().remove("<|endoftext|>");
        file["model"]["merges"].as_array_mut().unwrap().push(json!("Ġ Ġ"));
        file["added_tokens"][0] = json!({ "id": 260, "content": "  " });
    });
    assert!(same_bytes.contains("special token \"  \" with id 260 is also the ordinary token 258"), "{same_bytes}");
}

#[test]
fn added_tokens_are_found_as_their_flags_say() {
    let mut file = sample_json();
    let flags = [("<w>", "single_word"), ("<l>", "lstrip"), ("<r>", "rstrip")];
    for (i, (content, flag)) in flags.iter().enumerate() {
        let mut token = json!({ "id": 264 + i, "content": content });
        token[*flag] = json!(true);
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let tokenizer = read_json(&file.to_string()).unwrap();
    let encode = |text: &str| tokenizer.encode(text.as_bytes(), Specials::All, Specials::None).unwrap();
    assert_eq!(encode("a<w> b"), [97, 60, 119, 62, 32, 98], "a word character stands beside it");
    assert_eq!(encode("(<w>)"), [40, 264, 41]);
    assert_eq!(encode("a \u{3000}<l> b"), [97, 265, 32, 98]);
    assert_eq!(encode("a <r> \u{3000}b"), [97, 32, 266, 98]);
    assert_ne!(
        tokenizer.digest(),
        read_json(&file.to_string().replace("\"lstrip\":true", "\"lstrip\":false")).unwrap().digest()
    );
    let again = read_json(&tokenizer_json::to_string(&tokenizer).unwrap()).unwrap();
    assert_eq!(again.digest(), tokenizer.digest());
}

#[test]
fn normalized_tokens_are_looked_for_in_normal_text_after_the_others() {
    let mut file = sample_json();
    file["normalizer"] = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }] });
    file["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 264, "content": "é!", "normalized": true }));
    let tokenizer = read_json(&file.to_string()).unwrap();
    let encode = |text: &str| tokenizer.encode(text.as_bytes(), Specials::All, Specials::None).unwrap();
    assert_eq!(encode("ae\u{301}!b"), [97, 264, 98]);
    assert_eq!(encode("e\u{301}"), encode("é"));
    let refused = tokenizer.encode("e\u{301}!".as_bytes(), Specials::None, Specials::All).unwrap_err();
    assert!(matches!(refused, Error::SpecialToken { ref token, .. } if token == "é!"), "{refused}");
    let plain = read_json(&file.to_string().replace("NFC", "NFD")).unwrap();
    assert_ne!(tokenizer.digest(), plain.digest());
}

#[test]
fn an_added_token_that_merges_make_is_both() {
    let mut file = sample_json();
    let token = json!({ "id": 256, "content": "aa", "special": false, "normalized": true });
    file["added_tokens"].as_array_mut().unwrap().push(token);
    let tokenizer = read_json(&file.to_string()).unwrap();
    assert_eq!(tokenizer.vocab().token(256), Some(&b"aa"[..]));
    assert_eq!(tokenizer.specials().len(), 3);
    let again = read_json(&tokenizer_json::to_string(&tokenizer).unwrap()).unwrap();
    assert_eq!(again.digest(), tokenizer.digest());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let with = |name: &str, value: Value| refusal(|file| file[name] = value);
    for unknown in [json!({ "type": "Lowercase" }), json!(3), json!({ "type": "Sequence", "normalizers": [{}] })] {
        assert!(with("normalizer", unknown).contains("is not supported, expected null, NFC, NFD, NFKC or NFKD"));
    }
    let two = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "NFKD" }] });
    assert!(with("normalizer", two).contains("different forms"));
    assert!(with("normalizer", json!({ "type": "Sequence", "normalizers": [{ "type": "Strip" }] })).contains("Strip"));
    assert!(with("post_processor", json!({ "type": "TemplateProcessing" })).contains("TemplateProcessing"));
    assert!(with("decoder", Value::Null).contains("decoder null is not supported"));
    assert!(with("decoder", json!({ "type": "WordPiece" })).contains("decoder WordPiece"));
    assert!(with("truncation", json!({ "max_length": 4 })).contains("truncation"));
    assert!(with("padding", json!({ "strategy": "BatchLongest" })).contains("padding"));
    assert!(with("version", json!("2.0")).contains("expected version \"1.0\", got \"2.0\""));
    for pre_tokenizer in [Value::Null, json!(7), json!({ "type": "Metaspace" })] {
        assert!(with("pre_tokenizer", pre_tokenizer).contains("is not supported, expected Split, Digits or ByteLevel"));
    }
    let nested = (0..30).fold(
        json!({ "type": "ByteLevel", "add_prefix_space": false }),
        |inner, _| json!({ "type": "Sequence", "pretokenizers": [inner] }),
    );
    assert!(refusal_text(&with_field("pre_tokenizer", nested)).contains("Sequence"));
    assert!(with("pre_tokenizer", json!({ "type": "Sequence" })).contains("expected a list"));
    assert!(with("pre_tokenizer", json!({ "type": "Sequence", "pretokenizers": [] })).contains("expected ByteLevel"));
    for flag in ["use_regex", "add_prefix_space", "trim_offsets"] {
        let mut spell = json!({ "type": "ByteLevel", "add_prefix_space": false });
        spell[flag] = json!("yes");
        assert!(with("pre_tokenizer", spell).contains("in pre_tokenizer ByteLevel: invalid type: string \"yes\""));
    }
    let prefix = json!({ "type": "ByteLevel", "add_prefix_space": true });
    assert!(with("pre_tokenizer", prefix).contains("add_prefix_space"));
    let model = |name: &str, value: Value| refusal(|file| file["model"][name] = value);
    assert_eq!(model("type", json!("Unigram")), "model Unigram is not supported, expected BPE");
    assert!(model("type", json!("WordPiece")).contains("WordPiece"));
    assert!(model("byte_fallback", json!(true)).contains("model.byte_fallback"));
    assert!(model("dropout", json!(0.1)).contains("model.dropout"));
    assert!(model("end_of_word_suffix", json!("</w>")).contains("\"</w>\""));
    assert!(model("continuing_subword_prefix", json!("##")).contains("\"##\""));
}

#[test]
fn a_split_must_isolate_a_regex_that_means_the_same_here() {
    let with = |split: Value| {
        let spell = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
        refusal(|file| file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, spell] }))
    };
    let split = |regex: &str, behavior: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": behavior, "invert": false });
    assert!(with(split("a+", "Removed")).contains("Split with behavior Removed drops text"));
    assert!(with(split("a+", "Kept")).contains("unknown variant `Kept`"));
    assert!(with(split("a(", "Isolated")).contains("a("));
    assert!(with(split("a+$", "Isolated")).contains("hint: use \\z"));
    let mut inverted = split("a+", "Isolated");
    inverted["invert"] = json!(1);
    assert!(with(inverted).contains("in pre_tokenizer Split: invalid type: integer `1`, expected a boolean"));
    let written = tokenizer_json::to_string(&sample("a+$")).unwrap_err();
    assert!(written.to_string().contains("hint: use \\z"), "{written}");
}

#[test]
fn nesting_and_noise_end_in_errors() {
    let deep = "[".repeat(1 << 20);
    for text in ["", "null", "[]", "{}", "\0", "{\"model\":{}}", deep.as_str()] {
        assert!(matches!(read_json(text), Err(Error::Format { .. })), "{text:.20}");
    }
    assert!(read_json(&format!("{{\"model\":{deep}")).is_err());
    let directory = directory("noise");
    fs::write(directory.join("tokenizer.json"), b"{\"version\": \"\xFF\"}").unwrap();
    assert!(matches!(formats::read(&directory, None), Err(Error::NotUtf8 { offset: 13, .. })));
    let missing = directory.join("none").join("tokenizer.json");
    assert!(matches!(formats::read(&missing, None), Err(Error::Io { action: "read", .. })));
    fs::write(directory.join("a.model"), "").unwrap();
    assert!(matches!(formats::read(&directory.join("a.model"), None), Err(Error::Argument(_))));
    fs::create_dir_all(directory.join("empty")).unwrap();
    assert!(matches!(formats::read(&directory.join("empty"), None), Err(Error::Argument(_))));
}

/// What reading these rank lines says.
fn ranks(test: &str, bytes: &[u8]) -> String {
    let path = directory(test).join("x.tiktoken");
    fs::write(&path, bytes).unwrap();
    formats::read(&path, Some("gpt2")).map_or_else(|error| error.to_string(), |tokenizer| format!("{tokenizer:?}"))
}

#[test]
fn rank_files_that_lie_are_refused() {
    let good = tiktoken::to_string(&sample("gpt2")).unwrap();
    let with = |line: &str| ranks("ranks", format!("{good}{line}\n").as_bytes());
    assert!(with("YWI").contains("expected base64 and a rank, got \"YWI\" on line 259"));
    assert!(with("Y*I= 300").contains("is not base64"));
    assert!(with("YWI= -1").contains("expected a rank below 2^32, got \"-1\""));
    assert!(with("YWI= 99999999999999999999").contains("expected a rank below 2^32"));
    assert!(with("YWI= 4294967295").contains("expected less than"));
    assert!(with("YWI= 97").contains("both have id 97"));
    assert!(with("YWE= 300").contains("are both \"aa\""));
    assert!(with(" 300").contains("expected base64 and a rank"));
    assert!(ranks("bytes", b"YQ== \xFF\n").contains("expected a rank below 2^32"));
    assert!(ranks("empty", b"").contains("byte 0x00 is missing"));
    assert!(ranks("cut", &good.as_bytes()[..good.len() / 2]).contains("is not a valid tiktoken file"));
    let long = format!("{} 300", "YWFh".repeat(1000));
    assert!(with(&long).contains("expected at most 1024 in a rank file"));
    let path = directory("ranks").join("x.tiktoken");
    assert!(formats::read(&path, None).unwrap_err().to_string().contains("hint: pass pattern="));
}

#[test]
fn merges_out_of_the_order_of_ids_have_no_rank_file() {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend([b"ab".to_vec(), b"bc".to_vec()]);
    let vocab = Vocab::from_tokens(&tokens, vec![(98, 99), (97, 98)], false).unwrap();
    let tokenizer = Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), vec![]).unwrap();
    assert!(matches!(tiktoken::to_string(&tokenizer), Err(Error::Argument(_))));
    let again = read_json(&tokenizer_json::to_string(&tokenizer).unwrap()).unwrap();
    assert_eq!(again.encode_ordinary(b"abc").unwrap(), [97, 257]);
}

#[test]
fn a_pair_of_files_reads_back_and_its_lies_are_refused() {
    let directory = directory("pair");
    let (vocab, merges) = merges::to_strings(&sample("gpt2")).unwrap();
    assert!(merges.starts_with("#version: 0.2\na a\n"));
    let read = |vocab: &str, merges: &str| {
        fs::write(directory.join("vocab.json"), vocab).unwrap();
        fs::write(directory.join("merges.txt"), merges).unwrap();
        formats::read(&directory, None)
    };
    assert_eq!(read(&vocab, &merges).unwrap().digest(), sample("gpt2").digest());
    assert_eq!(formats::read(&directory.join("merges.txt"), None).unwrap().digest(), sample("gpt2").digest());
    let fails = |vocab: &str, merges: &str| read(vocab, merges).unwrap_err().to_string();
    assert!(fails(&vocab, "a a b\n").contains("expected two tokens with a space between, got \"a a b\" on line 1"));
    assert!(fails(&vocab, "#version: 0.2\n#version: 0.2\n").contains("which is missing"), "only the first line is one");
    assert!(fails(&vocab, "a z\n").contains("needs token \"az\", which is missing"));
    assert!(fails("[]", &merges).contains("expected a map from token to id"));
    fs::write(directory.join("vocab.json"), vocab).unwrap();
    fs::remove_file(directory.join("merges.txt")).unwrap();
    assert!(matches!(formats::read(&directory.join("vocab.json"), None), Err(Error::Io { .. })));
}

#[test]
fn a_merge_may_start_with_a_number_sign() {
    let vocab = Vocab::from_merges(&[(35, 35), (256, 35)]).unwrap();
    let tokenizer = Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), vec![]).unwrap();
    let (vocab, merges) = merges::to_strings(&tokenizer).unwrap();
    let directory = directory("number_sign");
    fs::write(directory.join("vocab.json"), vocab).unwrap();
    fs::write(directory.join("merges.txt"), merges.replace("#version: 0.2\n", "")).unwrap();
    assert_eq!(formats::read(&directory, None).unwrap().digest(), tokenizer.digest());
}

#[test]
fn special_tokens_that_a_format_cannot_tell_apart_are_not_written() {
    let special = |text: &str| vec![SpecialToken { text: text.to_owned(), id: 300 }];
    let make = |specials| {
        let vocab = Vocab::from_merges(&[(32, 97)]).unwrap();
        Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), specials).unwrap()
    };
    let clash = tokenizer_json::to_string(&make(special("Ġa"))).unwrap_err().to_string();
    assert!(clash.contains("special token \"Ġa\" clashes with the ordinary token 256"), "{clash}");
    let plain = merges::to_strings(&make(special("[END]"))).unwrap_err().to_string();
    assert!(plain.contains("\"[END]\" is not of the form <...>"), "{plain}");
    assert!(tokenizer_json::to_string(&make(special("[END]"))).is_ok());
}

#[test]
fn merges_that_double_without_end_are_refused_before_memory_runs_out() {
    let doubling: Vec<(u32, u32)> = std::iter::once((97, 97)).chain((256..400).map(|id| (id, id))).collect();
    let reason = Vocab::from_merges(&doubling).unwrap_err().to_string();
    assert!(reason.contains("expected tokens of at most 67108864 bytes in all"), "{reason}");
    for cyclic in [[(97, 256), (97, 98)], [(256, 256), (97, 98)], [(97, 98), (97, 9999)]] {
        assert!(matches!(Vocab::from_merges(&cyclic), Err(Error::Vocab(_))), "{cyclic:?}");
    }
}

#[test]
fn a_template_is_kept_and_its_lies_are_refused() {
    let piece = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = |name: &str, id: u32| {
        json!({ "type": "TemplateProcessing", "single": [piece(name), text], "pair": [text],
                "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [id], "tokens": ["<|endoftext|>"] } } })
    };
    let tokenizer = read_json(&with_field("post_processor", template("<|endoftext|>", 258))).unwrap();
    let slots = tokenizer.template().unwrap().single();
    assert_eq!(slots[0], Slot::Ids { ids: vec![258], tokens: vec!["<|endoftext|>".to_owned()], type_id: 0 });
    assert_eq!(slots[1], Slot::Text { is_second: false, type_id: 0 });
    let again = read_json(&tokenizer_json::to_string(&tokenizer).unwrap()).unwrap();
    assert_eq!(again.template(), tokenizer.template());
    let refused = |processor: Value| refusal_text(&with_field("post_processor", processor));
    assert!(refused(template("<s>", 258)).contains("post_processor uses \"<s>\""));
    assert!(refused(template("<|endoftext|>", 4_000_000_000)).contains("post_processor adds id 4000000000"));
    assert!(refused(json!({ "type": "Strange" })).contains("post_processor Strange is not supported"));
    assert!(refused(json!({ "type": "Sequence", "processors": 3 })).contains("expected a list"));
    let two =
        json!({ "type": "Sequence", "processors": [template("<|endoftext|>", 258), template("<|endoftext|>", 258)] });
    assert!(refused(two).contains("more than one template"));
}

#[test]
fn published_rank_files_bring_their_pattern_and_special_tokens() {
    let directory = directory("published");
    let ranks = tiktoken::to_string(&sample("gpt2")).unwrap();
    let read = |name: &str| {
        let path = directory.join(format!("{name}.tiktoken"));
        fs::write(&path, &ranks).unwrap();
        formats::read(&path, None)
    };
    let llama = read("llama3").unwrap();
    assert_eq!((llama.splitter().pattern(), llama.specials().len(), llama.vocab_size()), ("llama3", 256, 258 + 256));
    assert_eq!(llama.token_id(b"<|eot_id|>"), Some(258 + 9));
    assert_eq!(llama.token_id(b"<|reserved_special_token_250|>"), Some(258 + 255));
    for name in ["o200k_base", "o200k_harmony"] {
        let message = read(name).unwrap_err().to_string();
        assert!(message.contains("expected less than"), "these ids lie far behind 258 ranks: {message}");
    }
}
