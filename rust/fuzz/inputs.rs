//! What each fuzz target does with its input: read it as a file that may lie, or encode it.
//!
//! A reader may refuse with an error that says something; it may not panic, and what it accepts must work. Checksums
//! are put right first where a format has them: an input that only fails its checksum tests nothing else.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

use gptrs_core::corpus::{Rows, TextField, inputs};
use gptrs_core::count::{count_texts, join};
use gptrs_core::count_files::count_files;
use gptrs_core::dataset::Dataset;
use gptrs_core::foreign::{ExportOptions, ImportOptions, export, import};
use gptrs_core::manifest::Entry;
use gptrs_core::naive::{self, Pair};
use gptrs_core::pack::{Blank, IGNORED, Marks, Plan};
use gptrs_core::shard::{Format, Shard, ShardWriter};
use gptrs_core::train::{TrainOptions, train};
use gptrs_core::{Control, Error, SpecialToken, Specials, Splitter, Tokenizer, Vocab, formats};
use xxhash_rust::xxh3::xxh3_64;

#[path = "../gptrs-core/tests/fixtures/dataset.rs"]
#[allow(dead_code, reason = "its shards have one document")]
mod datasets;

const PATTERNS: [&str; 7] = ["gpt2", "cl100k_base", "o200k_base", "llama3", "qwen2", "deepseek-v3", "nanochat"];

const TEXT: &str = "the cat's hat isn't that flat, DON'T they'll say \u{4e2d}\u{6587}\u{4e2d}\u{6587} 12345 123 \
    \u{43a}\u{43e}\u{442}\u{44b} \u{43a}\u{43e}\u{442} cafe\u{301} caf\u{e9} <|end <|endoftext|> \n\n  \t x=y; f(x) \
    \u{1f469}\u{200d}\u{1f4bb}\u{1f469}\u{200d}\u{1f4bb} \u{ff76}\u{ff80}\u{30ab}\u{30bf}";

/// tokenizer.json, also under the name of vocab.json's folder.
pub fn tokenizer_json(data: &[u8]) {
    let folder = folder();
    let path = put(&folder, "tokenizer.json", data);
    if let Some(tokenizer) = accepted(formats::read(&path, None)) {
        works(&tokenizer);
        if let Some(text) = accepted(formats::tokenizer_json::to_string(&tokenizer)) {
            let again = formats::tokenizer_json::from_str(&text, &path).expect("what we write can be read");
            assert_eq!(again.digest(), tokenizer.digest(), "what we write is the same tokenizer");
        }
    }
}

/// A file of ranks with a pattern of its own.
pub fn tiktoken(data: &[u8]) {
    let folder = folder();
    let path = put(&folder, "x.tiktoken", data);
    if let Some(tokenizer) = accepted(formats::read(&path, Some("cl100k_base"))) {
        works(&tokenizer);
    }
}

/// vocab.json and merges.txt, divided by the first zero byte.
pub fn merges(data: &[u8]) {
    let folder = folder();
    let at = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    put(&folder, "vocab.json", &data[..at]);
    put(&folder, "merges.txt", data.get(at + 1..).unwrap_or_default());
    if let Some(tokenizer) = accepted(formats::read(folder.path(), None)) {
        works(&tokenizer);
    }
}

/// A .jsonl file and a .txt file of a corpus, both also as if they were compressed, and the template of a document.
pub fn corpus(data: &[u8]) {
    let folder = folder();
    let splitter = Splitter::new("gpt2").expect("a named pattern");
    for name in ["a.jsonl", "a.txt"] {
        let path = put(&folder, name, data);
        if let Some((counts, _)) = accepted(count_files(&[path], "text", &splitter, 1, &Control::new())) {
            assert!(counts.n_bytes() <= data.len() as u64, "a text has no more bytes than its file");
        }
    }
    for name in ["a.jsonl.gz", "a.txt.gz", "a.jsonl.zst", "a.txt.zst"] {
        let path = put(&folder, name, data);
        accepted(count_files(&[path], "text", &splitter, 1, &Control::new()));
    }
    accepted(TextField::new(&String::from_utf8_lossy(data)));
}

/// A .parquet file with one column of texts, and with a template of two; also from its second and fourth row on.
pub fn parquet(data: &[u8]) {
    let folder = folder();
    let splitter = Splitter::new("gpt2").expect("a named pattern");
    let path = put(&folder, "a.parquet", data);
    for field in ["text", "{text}{id}"] {
        accepted(count_files(std::slice::from_ref(&path), field, &splitter, 1, &Control::new()));
        let field = TextField::new(field).expect("a field");
        for row in [1, 3] {
            let Some(inputs) = accepted(inputs(std::slice::from_ref(&path))) else { continue };
            let Some(mut rows) = accepted(Rows::open(&inputs[0], &field, row)) else { continue };
            let mut next = row;
            while let Some(Some(row)) = accepted(rows.next(&mut Vec::new())) {
                assert_eq!(row, next, "rows come in their order");
                next += 1;
            }
        }
    }
}

/// A shard whose header, first block and trailer have the digests of their bytes.
pub fn shard(data: &[u8]) {
    let bytes = sealed(data);
    let folder = folder();
    let path = put(&folder, "a.gts", &bytes);
    let Some(shard) = accepted(Shard::open(&path)) else { return };
    let (n_tokens, n_documents) = (shard.header().n_tokens, shard.header().n_documents);
    assert!(n_tokens <= bytes.len() as u64 && n_documents <= bytes.len() as u64);
    let mut tokens = vec![0u32; n_tokens.min(1000) as usize];
    accepted(shard.tokens(0, &mut tokens));
    accepted(shard.tokens(n_tokens, &mut [0u32; 1]).map(|()| panic!("there is no token behind the last")));
    let mut ends = vec![0; n_documents.min(1000) as usize];
    accepted(shard.document_ends(0, &mut ends));
    accepted(shard.documents_before(n_tokens / 2));
    accepted(shard.verify(&Control::new()));
}

/// An index of two documents in four tokens, whose header, blocks and trailer have the digests of their bytes.
pub fn index(data: &[u8]) {
    const PAYLOAD: &[u8] = &[0x8d, 0x7a, 0x50, 0xc4, 0xb7, 0x14, 0x50, 0xc4];
    let mut bytes = sealed(data);
    let folder = folder();
    put(&folder, "train.bin", PAYLOAD);
    if (4096 + 128..4096 + 8192).contains(&bytes.len()) {
        let (table, ends) = (bytes.len() - 128, xxh3_64(&bytes[4096..bytes.len() - 128]));
        bytes[table..table + 8].copy_from_slice(&xxh3_64(PAYLOAD).to_le_bytes());
        bytes[table + 8..table + 16].copy_from_slice(&ends.to_le_bytes());
    }
    let Some(shard) = accepted(Shard::open(&put(&folder, "train.bin.gti", &bytes))) else { return };
    let n_tokens = shard.header().n_tokens;
    assert!(n_tokens <= PAYLOAD.len() as u64 && shard.header().n_documents <= bytes.len() as u64);
    accepted(shard.tokens(0, &mut vec![0u32; n_tokens as usize]));
    accepted(shard.documents_before(n_tokens / 2));
    accepted(shard.verify(&Control::new()));
}

/// The plan of a small dataset, whose digests, of the plan and of the file, are put right.
pub fn plan(data: &[u8]) {
    const SEQ_LEN: usize = 4;
    let folder = folder();
    let dataset = documents(folder.path());
    let made = Plan::bestfit(&dataset, SEQ_LEN, 1, &Control::new()).expect("a plan of our own");
    let mut bytes = data.to_vec();
    if let Some(end) = bytes.len().checked_sub(32).filter(|&end| end >= 48) {
        bytes[16..48].copy_from_slice(made.digest());
        let digest = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(digest.as_bytes());
    }
    fs::write(Plan::path(&dataset, SEQ_LEN), &bytes).expect("a temporary file");
    let plan = Plan::cached(&dataset, SEQ_LEN, 1, &Control::new()).expect("what is no plan is made anew");
    assert!(plan.n_rows() <= dataset.n_tokens(), "a row has a token");
    let (mut tokens, mut targets, mut ends) = ([0; SEQ_LEN], [0; SEQ_LEN], vec![0; plan.max_pieces() + 2]);
    for row in 0..plan.n_rows() {
        let mut marks = Marks { cu_seqlens: &mut ends, ..Marks::default() };
        let blank = Blank { token: 0i64, target: IGNORED };
        accepted(plan.fill_row(&dataset, row, blank, &mut tokens, &mut targets, &mut marks));
    }
}

/// Documents of 3, 11, 0, 2 and 4 tokens, and 2 tokens behind them.
fn documents(dir: &Path) -> Dataset {
    let (spec, name) = (datasets::spec(100), "shard-00000.gts".to_owned());
    let mut writer = ShardWriter::create(&dir.join(&name), spec).expect("a temporary file");
    for len in [3, 11, 0, 2, 4] {
        writer.push(&vec![len; len as usize]).expect("tokens of the vocabulary");
        writer.end_document(1);
    }
    writer.push(&[9; 2]).expect("tokens of the vocabulary");
    let (header, digest) = writer.finish().expect("a temporary file");
    datasets::finish(dir, spec, vec![Entry::new(name, &header, &digest)], 22)
}

/// A token file of another program and what stands beside it, divided by the second byte; the first chooses the format.
pub fn foreign(data: &[u8]) {
    let [format, at, rest @ ..] = data else { return };
    let (tokens, beside) = rest.split_at((4 * usize::from(*at)).min(rest.len()));
    let folder = folder();
    let (name, companion) = match format % 6 {
        0 => ("a.bin", None),
        1 => ("a.bin", Some(("a.idx", beside.to_vec()))),
        2 => ("a.ds", Some(("a.ds.index", beside.to_vec()))),
        3 => ("a.ds", Some(("a.ds.metadata", beside.to_vec()))),
        4 => ("a.npy", Some(("a.csv.gz", beside.to_vec()))),
        _ => ("a.npy", Some(("a.csv.gz", gzip(beside)))),
    };
    let path = put(&folder, name, if companion.is_some() { tokens } else { rest });
    if let Some((name, bytes)) = companion {
        put(&folder, name, &bytes);
    }
    let options = ImportOptions { eot_first: format & 128 != 0, threads: 1, ..ImportOptions::default() };
    let Some(dataset) = accepted(import(&[path], &TOKENIZERS[0].2, &options, &Control::new())) else { return };
    assert!(dataset.n_tokens() <= data.len() as u64 && dataset.n_documents() <= data.len() as u64);
    dataset.verify(1, &Control::new()).expect("what was imported is whole");
    let out = folder.path().join("out");
    for format in [Format::NanoGpt, Format::LlmC, Format::Megatron] {
        let options = ExportOptions { format, tokens_per_file: 7, drop_loss_bits: false };
        export(&dataset, &out, &options, &Control::new()).expect("what was imported can be exported");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to a Vec cannot fail")
}

/// A count file, made whole in the same way.
pub fn count_file(data: &[u8]) {
    let folder = folder();
    let path = put(&folder, "a.gtc", &sealed(data));
    let Some(joined) = accepted(join::read(std::slice::from_ref(&path), &Control::new())) else { return };
    assert!(joined.counts.len() <= data.len(), "a word has bytes");
    let out = path.with_file_name("b.gtc");
    if accepted(join::join(&[path.clone(), path], &out, &Control::new())).is_some() {
        let twice = join::read(&[out], &Control::new()).expect("what we write can be read");
        assert_eq!(twice.counts.len(), joined.counts.len());
    }
}

/// `data` with the digests put right that shards and count files have: of the header, of the first block when it is
/// the only one, of the trailer.
fn sealed(data: &[u8]) -> Vec<u8> {
    const HEADER: usize = 4096;
    const TRAILER: usize = 64;
    let mut bytes = data.to_vec();
    let len = bytes.len();
    let mut seal = |from: usize, to: usize, at: usize| {
        let digest = xxh3_64(&bytes[from..to]);
        bytes[at..at + 8].copy_from_slice(&digest.to_le_bytes());
    };
    if len >= HEADER + TRAILER {
        seal(0, HEADER - 8, HEADER - 8);
        if (HEADER + 2 * TRAILER..HEADER + (64 << 10)).contains(&len) {
            seal(HEADER, len - 2 * TRAILER, len - 2 * TRAILER);
        }
        seal(len - TRAILER, len - 8, len - 8);
    }
    bytes
}

/// A manifest whose checksum field, `""` in the input, gets the digest of its bytes; no shard is there.
pub fn manifest(data: &[u8]) {
    let (mark, folder) = (b"\"checksum\": \"\"", folder());
    let mut bytes = data.to_vec();
    if let Some(at) = data.windows(mark.len()).rposition(|window| window == mark) {
        let digest = blake3::hash(data).to_hex();
        let inside = at + mark.len() - 1;
        bytes.splice(inside..inside, digest.bytes());
    }
    put(&folder, "manifest.json", &bytes);
    if let Some(dataset) = accepted(Dataset::open(folder.path())) {
        assert_eq!(dataset.n_tokens(), 0, "tokens without shards");
        accepted(dataset.verify(1, &Control::new()));
    }
}

/// Any bytes through every way of encoding, under the pattern that the first byte names.
pub fn encode(data: &[u8]) {
    let Some((&first, text)) = data.split_first() else { return };
    let (pattern, merges, tokenizer) = &TOKENIZERS[first as usize % PATTERNS.len()];
    let ids = tokenizer.encode_ordinary(text).expect("any bytes can be encoded");
    assert!(tokenizer.decode_bytes(&ids).expect("ids of our own") == text, "{pattern}: not the bytes");
    assert_eq!(ids, textbook(tokenizer, merges, text), "{pattern}");
    assert_eq!(tokenizer.count(text).expect("any bytes can be counted"), ids.len());
    let (same, spans) = tokenizer.encode_with_offsets(text).expect("any bytes have offsets");
    assert_eq!(same, ids);
    let mut at = 0;
    for span in spans {
        assert_eq!(span.0, at, "offsets leave no gap");
        at = span.1;
    }
    assert_eq!(at, text.len());
    let special = tokenizer.encode(text, Specials::All, Specials::None).expect("all are allowed");
    assert!(tokenizer.decode_bytes(&special).expect("ids of our own") == text);
    accepted(tokenizer.encode(text, Specials::None, Specials::All));
}

/// The ids by the definition, piece by piece.
fn textbook(tokenizer: &Tokenizer, merges: &[Pair], text: &[u8]) -> Vec<u32> {
    let ranked: Vec<(Pair, u32)> = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
    let byte_ids = std::array::from_fn(|byte| byte as u32);
    let mut ids = Vec::new();
    let (mut joined, mut n_pieces) = (Vec::new(), 0);
    let split = tokenizer.splitter().for_each_piece(text, |piece| {
        assert!(!piece.is_empty(), "a piece has bytes");
        joined.extend_from_slice(piece);
        n_pieces += 1;
        ids.extend(naive::encode_piece(piece, &byte_ids, &ranked));
        Ok(())
    });
    split.expect("a named pattern cannot fail");
    assert!(joined == text && n_pieces <= text.len(), "pieces are the text");
    ids
}

static TOKENIZERS: LazyLock<Vec<(&str, Vec<Pair>, Tokenizer)>> = LazyLock::new(|| {
    let of = |pattern| {
        let splitter = Splitter::new(pattern).expect("a named pattern");
        let counts = count_texts(&[TEXT.repeat(2)], &splitter, 1, &Control::new()).expect("a short text");
        let options = TrainOptions { n_merges: 200, min_count: 1 };
        let merges = train(&counts, &options, 1, &Control::new()).expect("a short text");
        let id = 256 + merges.len() as u32;
        let specials = vec![special("<|end", id), special("<|endoftext|>", id + 1)];
        let vocab = Vocab::from_merges(&merges).expect("merges of our own");
        let tokenizer = Tokenizer::new(vocab, splitter, specials).expect("a vocabulary of our own");
        (pattern, merges, tokenizer)
    };
    PATTERNS.map(of).into()
});

fn special(text: &str, id: u32) -> SpecialToken {
    SpecialToken { text: text.to_owned(), id }
}

/// A tokenizer that a reader accepted does what a tokenizer does.
fn works(tokenizer: &Tokenizer) {
    let through = |text: &[u8]| {
        let ids = tokenizer.encode_ordinary(text).expect("a tokenizer encodes any text");
        tokenizer.decode_bytes(&ids).expect("ids of its own")
    };
    let text = through(TEXT.as_bytes());
    if tokenizer.splitter().normalizer().is_none() {
        assert_eq!(text, TEXT.as_bytes());
    }
    assert_eq!(through(&text), text, "a normal form stays as it is");
    for id in [0, 255, 256, u32::MAX] {
        accepted(tokenizer.decode_bytes(&[id]));
    }
}

/// The value; an error must say something.
fn accepted<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let mut said = String::new();
            write!(said, "{error}").expect("writing to a String cannot fail");
            assert!(said.len() > 10, "an error says what is wrong, got {said:?}");
            None
        }
    }
}

fn folder() -> tempfile::TempDir {
    static MEMORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()));
    match memory {
        Some(path) => tempfile::tempdir_in(path),
        None => tempfile::tempdir(),
    }
    .expect("a temporary folder")
}

fn put(folder: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path: PathBuf = Path::new(folder.path()).join(name);
    fs::write(&path, content).expect("a temporary file");
    path
}
