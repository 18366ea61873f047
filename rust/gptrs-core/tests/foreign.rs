//! Token files of other programs: what each becomes, what is refused, and that no damage goes unseen.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use gptrs_core::dataset::Dataset;
use gptrs_core::foreign::{ExportOptions, ImportOptions, export, import};
use gptrs_core::shard::{Dtype, Format, Shard};
use gptrs_core::{Control, Error, Result, SpecialToken, Splitter, Tokenizer, Vocab};

#[path = "fixtures/random.rs"]
mod random;

const EOT: u32 = 50_256;

/// 50,257 ids: bytes, "ab" (256), special tokens of three bytes, end of text.
static NARROW: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(50_257, EOT));
/// As `NARROW` with 70,000 ids.
static WIDE: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(65_700, EOT));

fn tokenizer(vocab_size: u32, eot: u32) -> Tokenizer {
    let vocab = Vocab::from_merges(&[(97, 98)]).unwrap();
    let name = |id: u32| if id == eot { "<|endoftext|>".to_owned() } else { format!("<{id:x}>") };
    let specials = (257..vocab_size).map(|id| SpecialToken { text: name(id), id }).collect();
    Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), specials).unwrap()
}

fn u16s(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| u16::try_from(id).unwrap().to_le_bytes()).collect()
}

fn u32s(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn llmc(magic: [i32; 3], payload: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = magic.iter().flat_map(|number| number.to_le_bytes()).collect();
    bytes.resize(1024, 0);
    [&bytes, payload].concat()
}

/// An `.idx` of these parts, whatever they say.
fn idx(code: u8, lengths: &[i32], pointers: &[i64], borders: &[i64]) -> Vec<u8> {
    let mut bytes = b"MMIDIDX\0\0".to_vec();
    bytes.extend(1u64.to_le_bytes());
    bytes.push(code);
    bytes.extend((lengths.len() as u64).to_le_bytes());
    bytes.extend((borders.len() as u64).to_le_bytes());
    bytes.extend(lengths.iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(pointers.iter().chain(borders).flat_map(|n| n.to_le_bytes()));
    bytes
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Names and bytes.
type Files<'a> = Vec<(&'a str, Vec<u8>)>;

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with these files.
    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            fs::write(folder.path(name), bytes).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn import(&self, names: &[&str], tokenizer: &Tokenizer, options: &ImportOptions) -> Result<Dataset> {
        let paths: Vec<_> = names.iter().map(|name| self.path(name)).collect();
        import(&paths, tokenizer, options, &Control::new())
    }

    fn open(&self) -> Result<Dataset> {
        Dataset::open(self.0.path())
    }

    /// Imports the folder, which must be refused, and leave nothing.
    #[track_caller]
    fn refused(&self, tokenizer: &Tokenizer, options: &ImportOptions, reason: &str) {
        let message = self.import(&[""], tokenizer, options).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
        assert!(!self.path("manifest.json").exists());
    }
}

fn tokens(dataset: &Dataset) -> Vec<u32> {
    let mut out = vec![0; dataset.n_tokens() as usize];
    dataset.read(0, &mut out).unwrap();
    out
}

fn ends(dataset: &Dataset) -> Vec<u64> {
    let mut out = vec![0; dataset.n_documents() as usize];
    dataset.document_ends(0, &mut out).unwrap();
    out
}

fn verify(dataset: &Dataset) -> Result<u64> {
    dataset.verify(2, &Control::new())
}

const IDS: [u32; 8] = [104, 105, EOT, 256, 300, EOT, 97, 98];

#[test]
fn every_format_becomes_the_same_tokens_and_documents() {
    let lines = "0,3,id,src,1\n3,6,id,src,2\n6,8,\"a,b\",src,3\n";
    let cases: [(&str, Files); 9] = [
        ("nanogpt", vec![("a.bin", u16s(&IDS))]),
        ("llmc", vec![("a.bin", llmc([20_240_520, 1, 8], &u16s(&IDS)))]),
        ("llmc", vec![("a.bin", llmc([20_240_801, 7, 8], &u32s(&IDS)))]),
        ("megatron", vec![("a.bin", u16s(&IDS)), ("a.idx", idx(8, &[3, 3, 2], &[0, 6, 12], &[0, 1, 2, 3]))]),
        ("megatron", vec![("a.bin", u32s(&IDS)), ("a.idx", idx(4, &[3, 0, 3, 2], &[0, 12, 12, 24], &[0, 2, 3, 4]))]),
        ("datatrove", vec![("a.ds", u16s(&IDS)), ("a.ds.index", u64s(&[3, 6, 8]))]),
        (
            "datatrove",
            vec![("a.ds", u32s(&IDS)), ("a.ds.index", u64s(&[3, 6, 8])), ("a.ds.metadata", b"gpt2|4\n8\n8 T".to_vec())],
        ),
        ("olmo", vec![("a.npy", u16s(&IDS)), ("a.csv.gz", gzip(lines))]),
        ("olmo", vec![("a.npy", u16s(&IDS))]),
    ];
    for (i, (format, files)) in cases.iter().enumerate() {
        let folder = Folder::with(files);
        let before: Vec<_> = files.iter().map(|(name, _)| fs::read(folder.path(name)).unwrap()).collect();
        let dataset = folder.import(&[files[0].0], &NARROW, &ImportOptions::default()).unwrap();
        assert_eq!(tokens(&dataset), IDS, "{format}, case {i}");
        assert_eq!(ends(&dataset), [3, 6, 8], "{format}, case {i}");
        // "hi", "ab" and a special token of five bytes, "ab": the end of text has none.
        assert_eq!(dataset.manifest().n_bytes, 2 + 2 + 5 + 2, "{format}, case {i}");
        let mut documents = [0; 8];
        dataset.doc_ids(0, &mut documents).unwrap();
        assert_eq!(documents, [0, 0, 0, 1, 1, 1, 2, 2]);
        let entry = &dataset.manifest().shards[0].name;
        let shard = Shard::open(&folder.path(entry)).unwrap();
        assert_eq!(shard.payload().unwrap().format.name(), *format);
        assert_eq!(dataset.manifest().recipe.inputs.len(), files.len(), "companions are inputs");
        let after: Vec<_> = files.iter().map(|(name, _)| fs::read(folder.path(name)).unwrap()).collect();
        assert!(before == after, "the files stay as they are");
        verify(&dataset).unwrap();
    }
}

#[test]
fn an_end_of_text_id_may_stand_before_documents_and_they_may_cross_files() {
    let (a, b, c) = ([EOT, 97, 97], [97, EOT, 97, EOT, 256], [97, 97]);
    for (eot_first, expected, bytes) in [(false, vec![1, 5, 7, 10], [0, 4, 4]), (true, vec![4, 6, 10], [0, 4, 4])] {
        let folder = Folder::with(&[("a.bin", u16s(&a)), ("b.bin", u16s(&b)), ("c.bin", u16s(&c))]);
        let options = ImportOptions { eot_first, threads: 2, ..ImportOptions::default() };
        let dataset = folder.import(&[""], &NARROW, &options).unwrap();
        assert_eq!(ends(&dataset), expected);
        assert_eq!(tokens(&dataset), [&a[..], &b[..], &c[..]].concat());
        let found: Vec<u64> = dataset.manifest().shards.iter().map(|shard| shard.n_bytes).collect();
        assert_eq!(found, bytes, "a document's bytes count where it ends");
        verify(&dataset).unwrap();
    }
}

/// Long enough for several parts of a scan and many blocks, in two files whose tokens begin at any offset.
fn long_ids(n: usize, seed: u64) -> Vec<u32> {
    let mut draw = random::Random(seed);
    (0..n).map(|_| if draw.below(900) == 0 { EOT } else { draw.below(50_256) as u32 }).collect()
}

#[test]
fn long_files_give_the_same_bytes_on_any_number_of_threads_and_a_second_time() {
    let (a, b) = (long_ids(5_000_011, 1), long_ids(2_100_000, 2));
    let header = |ids: &[u32]| llmc([20_240_520, 1, ids.len() as i32], &u16s(ids));
    let folder = Folder::with(&[("a.bin", header(&a)), ("b.bin", header(&b))]);
    let mut seen: Option<Vec<Vec<u8>>> = None;
    for threads in [1, 2, 3, 8] {
        let options = ImportOptions { threads, ..ImportOptions::default() };
        let control = Control::new();
        let dataset = import(&[folder.path("")], &NARROW, &options, &control).unwrap();
        assert_eq!(control.progress().done, control.progress().total);
        let names = ["manifest.json", "a.bin.gti", "b.bin.gti"];
        let now: Vec<_> = names.iter().map(|name| fs::read(folder.path(name)).unwrap()).collect();
        assert!(seen.get_or_insert_with(|| now.clone()) == &now, "{threads} threads");
        if threads == 8 {
            let all = [&a[..], &b[..]].concat();
            assert!(tokens(&dataset) == all);
            let mut expected: Vec<u64> = (1..).zip(&all).filter(|(_, id)| **id == EOT).map(|(end, _)| end).collect();
            expected.extend((*all.last().unwrap() != EOT).then_some(all.len() as u64));
            assert!(ends(&dataset) == expected);
            let len = |&id: &u32| if id == EOT { 0 } else { NARROW.token_bytes(id).unwrap().len() as u64 };
            assert_eq!(dataset.manifest().n_bytes, all.iter().map(len).sum::<u64>());
            let control = Control::new();
            dataset.verify(2, &control).unwrap();
            assert_eq!(control.progress().done, control.progress().total);
            assert!(dataset.manifest().recipe.inputs[0].blake3 == blake3::hash(&header(&a)).to_string());
        }
        if threads < 3 {
            fs::remove_file(folder.path("manifest.json")).unwrap(); // the third time it is there, and stays
        }
    }
}

#[test]
fn a_dataset_that_another_import_made_is_not_replaced() {
    let folder = Folder::with(&[("a.bin", u16s(&IDS))]);
    let options = ImportOptions::default();
    folder.import(&["a.bin"], &NARROW, &options).unwrap();
    let manifest = fs::read(folder.path("manifest.json")).unwrap();
    let message = |end: Result<Dataset>| end.unwrap_err().to_string();
    let other = ImportOptions { eot_first: true, ..options.clone() };
    assert!(message(folder.import(&["a.bin"], &NARROW, &other)).contains("made with other eot_at;"));
    let other = ImportOptions { format: Some(Format::Olmo), ..options.clone() };
    assert!(message(folder.import(&["a.bin"], &NARROW, &other)).contains("made with other format;"));
    let other = tokenizer(50_258, EOT);
    assert!(message(folder.import(&["a.bin"], &other, &options)).contains("made with other tokenizer;"));
    let mut ids = IDS;
    ids[0] = 105;
    fs::write(folder.path("a.bin"), u16s(&ids)).unwrap();
    assert!(message(folder.import(&["a.bin"], &NARROW, &options)).contains("made with other files;"));
    assert!(fs::read(folder.path("manifest.json")).unwrap() == manifest);
    fs::remove_file(folder.path("manifest.json")).unwrap();
    let control = Control::new();
    control.cancel();
    assert!(matches!(import(&[folder.path("")], &NARROW, &options, &control), Err(Error::Interrupted)));
    assert!(!folder.path("manifest.json").exists());
}

#[test]
fn every_flipped_bit_and_every_cut_of_an_index_and_its_payload_is_found() {
    let folder = Folder::with(&[("a.bin", llmc([20_240_520, 1, 8], &u16s(&IDS)))]);
    folder.import(&["a.bin"], &NARROW, &ImportOptions::default()).unwrap();
    let check = || folder.open().and_then(|dataset| verify(&dataset));
    for name in ["a.bin", "a.bin.gti"] {
        let whole = fs::read(folder.path(name)).unwrap();
        let file = File::options().write(true).open(folder.path(name)).unwrap();
        for bit in 0..8 * whole.len() {
            let at = bit / 8;
            file.write_all_at(&[whole[at] ^ 1 << (bit % 8)], at as u64).unwrap();
            assert!(check().is_err(), "bit {bit} of {name}");
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
        check().unwrap();
        file.set_len(whole.len() as u64 + 1).unwrap();
        assert!(folder.open().is_err(), "one byte more in {name}");
        for len in (0..whole.len()).rev() {
            file.set_len(len as u64).unwrap();
            assert!(folder.open().is_err(), "{name} cut to {len} bytes");
        }
        file.set_len(0).unwrap();
        file.write_all_at(&whole, 0).unwrap();
        check().unwrap();
    }
}

#[test]
fn a_read_never_gives_a_damaged_block_of_a_payload() {
    let ids = long_ids(100_000, 3);
    let folder = Folder::with(&[("a.bin", u16s(&ids))]);
    folder.import(&["a.bin"], &NARROW, &ImportOptions::default()).unwrap();
    let mut bytes = u16s(&ids);
    bytes[65_536 + 100] ^= 4;
    fs::write(folder.path("a.bin"), bytes).unwrap();
    let dataset = folder.open().unwrap();
    dataset.read(0, &mut [0u16; 1000]).unwrap();
    let message = dataset.read(33_000, &mut [0u16; 10]).unwrap_err().to_string();
    assert!(message.contains("a.bin is damaged: block 1 has digest"), "{message}");
}

#[test]
fn files_that_lie_are_refused_by_reason() {
    let ids = u16s(&IDS);
    let auto = ImportOptions::default();
    let cases: [(&str, Files); 29] = [
        ("expected ids of 2 bytes, got 15 bytes", vec![("a.bin", ids[..15].to_vec())]),
        ("it has no tokens", vec![("a.bin", Vec::new())]),
        ("token 1 is 50257, the tokenizer's ids are below 50257", vec![("a.bin", u16s(&[1, 50_257]))]),
        ("expected a header of 1024 bytes", vec![("a.bin", llmc([20_240_520, 1, 0], &[])[..1000].to_vec())]),
        ("its 9 tokens make 1042 bytes, it has 1040", vec![("a.bin", llmc([20_240_520, 1, 9], &ids))]),
        ("its 8 tokens make 1040 bytes, it has 1056", vec![("a.bin", llmc([20_240_520, 1, 8], &u32s(&IDS)))]),
        ("it says that it has -8 tokens", vec![("a.bin", llmc([20_240_520, 1, -8], &ids))]),
        ("expected magic and version", vec![("a.bin", llmc([20_240_520, 2, 8], &ids))]),
        ("it holds questions with answers", vec![("a.bin", llmc([20_240_522, 1, 8], &ids))]),
        ("it has no tokens", vec![("a.bin", llmc([20_240_520, 1, 0], &[]))]),
        ("expected at least 34 bytes, got 10", vec![("a.bin", ids.clone()), ("a.idx", b"MMIDIDX\0\0\x01".to_vec())]),
        ("its length of 58 bytes does not fit", {
            let mut index = idx(8, &[8], &[0], &[0, 1]);
            index[18..26].copy_from_slice(&u64::MAX.to_le_bytes());
            index.truncate(58);
            vec![("a.bin", ids.clone()), ("a.idx", index)]
        }),
        ("got int64 (code 5)", vec![("a.bin", ids.clone()), ("a.idx", idx(5, &[2], &[0], &[0, 1]))]),
        ("got an unknown type (code 0)", vec![("a.bin", ids.clone()), ("a.idx", idx(0, &[2], &[0], &[0, 1]))]),
        ("sequence 1 has a length of -3", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[8, -3], &[0, 16], &[0, 2]))]),
        ("expected sequence 1 at byte 8", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[4, 4], &[0, 6], &[0, 2]))]),
        ("expected sequence 1 at byte 8", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[4, 4], &[0, 10], &[0, 2]))]),
        ("expected sequence 0 at byte 0, ", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[8], &[-2], &[0, 1]))]),
        ("sequence 0 ends behind the 16 bytes", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[9], &[0], &[0, 1]))]),
        ("have 7 tokens, the .bin has 16 bytes", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[7], &[0], &[0, 1]))]),
        ("the first document to begin", vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[8], &[0], &[1, 1]))]),
        ("a document ends before sequence 1", {
            vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[4, 4], &[0, 8], &[0, 2, 1]))]
        }),
        ("its documents end before the last", {
            vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[4, 4], &[0, 8], &[0, 1]))]
        }),
        ("document 1 ends at token 2, the one before at 3", {
            vec![("a.ds", ids.clone()), ("a.ds.index", u64s(&[3, 2, 8]))]
        }),
        ("it lists 18 documents for 16 bytes", {
            vec![("a.bin", ids.clone()), ("a.idx", idx(8, &[8], &[0], &[[0].as_slice(), &[1; 18]].concat()))]
        }),
        ("it lists 17 documents for 16 bytes", vec![("a.ds", ids.clone()), ("a.ds.index", u64s(&[8; 17]))]),
        ("expected 2 or 4 bytes a token", vec![("a.ds", ids.clone()), ("a.ds.metadata", b"x|3\n8".to_vec())]),
        ("expected 9 tokens of type uint16, got 16 bytes", {
            vec![("a.ds", ids.clone()), ("a.ds.index", u64s(&[3, 9]))]
        }),
        ("it has numpy's header", vec![("a.npy", [b"\x93NUMPY\x01\0", &ids[..]].concat())]),
    ];
    for (reason, files) in cases {
        Folder::with(&files).refused(&NARROW, &auto, reason);
    }
    for (reason, lines) in [
        ("expected \"3,END,...\" in line 2, got \"4,8", "0,3,x\n4,8,x\n"),
        ("expected \"0,END,...\" in line 1, got \"id,s", "id,start\n0,8\n"),
        ("document 2 ends at token 9 of 8", "0,3\n3,9\n"),
        ("its documents end at token 7 of 8", "0,3\n3,7\n"),
        ("expected \"3,END,...\" in line 2, got \"3,2", "0,3\n3,2\n"),
        ("document 9 ends at token 0 of 8", &"0,0\n".repeat(1_000_000)),
        ("line 1 is longer than", &"0".repeat(3 << 20)),
    ] {
        Folder::with(&[("a.npy", ids.clone()), ("a.csv.gz", gzip(lines))]).refused(&NARROW, &auto, reason);
    }
    let cut = gzip("0,8\n");
    let files = [("a.npy", ids.clone()), ("a.csv.gz", cut[..cut.len() - 4].to_vec())];
    Folder::with(&files).refused(&NARROW, &auto, "cannot be decompressed");
}

#[test]
fn ids_that_do_not_fit_the_vocabulary_or_the_type_are_refused() {
    let wide = ImportOptions { dtype: Some(Dtype::U32), ..ImportOptions::default() };
    let folder = Folder::with(&[("a.bin", u16s(&IDS))]);
    folder.refused(&WIDE, &ImportOptions::default(), "ids of type uint16 cannot be those of a tokenizer of 65700 ids");
    let folder = Folder::with(&[("a.bin", u32s(&[1, 65_699, 65_700]))]);
    folder.refused(&WIDE, &wide, "token 2 is 65700, the tokenizer's ids are below 65700");
    let folder = Folder::with(&[("a.bin", u32s(&[1, 65_699, EOT, 5]))]);
    let dataset = folder.import(&["a.bin"], &WIDE, &wide).unwrap();
    assert_eq!((tokens(&dataset), ends(&dataset)), (vec![1, 65_699, EOT, 5], vec![3, 4]));
    let negative = [("a.bin", u32s(&[1, u32::MAX])), ("a.idx", idx(4, &[2], &[0], &[0, 1]))];
    Folder::with(&negative).refused(&NARROW, &ImportOptions::default(), "token 1 is 4294967295");
    let folder = Folder::with(&[("a.bin", llmc([20_240_520, 1, 8], &u16s(&IDS)))]);
    folder.refused(&NARROW, &wide, "expected ids of type uint32, it has uint16");
}

#[test]
fn what_is_no_dataset_together_is_refused() {
    let ids = u16s(&IDS);
    let auto = ImportOptions::default();
    let folder = Folder::with(&[("train.bin", ids.clone()), ("val.bin", ids.clone())]);
    folder.refused(&NARROW, &auto, "holds train.bin and val.bin, which are no dataset together");
    folder.import(&["train.bin"], &NARROW, &auto).unwrap();
    Folder::with(&[("a.txt", ids.clone())]).refused(&NARROW, &auto, "has no files that end in .bin, .ds or .npy");
    let folder = Folder::with(&[("a.bin", ids.clone()), ("b.npy", ids.clone())]);
    folder.refused(&NARROW, &auto, "a.bin is nanogpt of type uint16, b.npy is olmo of type uint16");
    let message = |names: &[&str]| folder.import(names, &NARROW, &auto).unwrap_err().to_string();
    assert!(message(&["a.bin", "a.bin"]).contains("expected each file once"));
    assert!(message(&[]).contains("at least one token file"));
    assert!(message(&["c.bin"]).contains("c.bin"));
    let other = Folder::with(&[("a.bin", ids.clone())]);
    let both = [folder.path("a.bin"), other.path("a.bin")];
    let error = import(&both, &NARROW, &auto, &Control::new()).unwrap_err();
    assert!(error.to_string().contains("expected files of one folder"), "{error}");
    let folder = Folder::with(&[("a b.bin", ids)]);
    folder.refused(&NARROW, &auto, "hint: rename the file");
}

#[test]
fn a_link_that_leads_out_of_the_folder_is_refused_when_it_is_imported_and_later() {
    let outside = Folder::with(&[("a.bin", u16s(&IDS))]);
    let folder = Folder::with(&[("b.bin", u16s(&IDS))]);
    std::os::unix::fs::symlink(outside.path("a.bin"), folder.path("a.bin")).unwrap();
    let message = folder.import(&["a.bin"], &NARROW, &ImportOptions::default()).unwrap_err().to_string();
    assert!(message.contains("leads out of the folder"), "{message}");
    fs::remove_file(folder.path("a.bin")).unwrap();
    std::os::unix::fs::symlink("b.bin", folder.path("a.bin")).unwrap();
    folder.import(&["a.bin"], &NARROW, &ImportOptions::default()).unwrap(); // a link inside is fine
    fs::remove_file(folder.path("a.bin")).unwrap();
    std::os::unix::fs::symlink(outside.path("a.bin"), folder.path("a.bin")).unwrap();
    let message = folder.open().unwrap_err().to_string();
    assert!(message.contains("leads out of the folder"), "{message}");
}

#[test]
fn an_index_with_right_checksums_and_wrong_content_is_refused() {
    let folder = Folder::with(&[("a.bin", u16s(&IDS))]);
    folder.import(&["a.bin"], &NARROW, &ImportOptions::default()).unwrap();
    let path = folder.path("a.bin.gti");
    let whole = fs::read(&path).unwrap();
    let forgeries: [(usize, &[u8], &str); 9] = [
        (16, &9u64.to_le_bytes(), "9 tokens from byte 0 on do not fit a payload of 16 bytes"),
        (112, &u64::MAX.to_le_bytes(), "8 tokens from byte 18446744073709551615 on do not fit"),
        (120, &24u64.to_le_bytes(), "expected 24 bytes, got 16"),
        (160, b"nanogpu", "expected one of the formats nanogpt"),
        (176, &(1u64 << 40).to_le_bytes(), "expected a payload's name of at most 196 bytes"),
        (184, b"../ab", "is not 1 to 200 letters"),
        (300, b"x", "its header contradicts itself"),
        (24, &(1u64 << 62).to_le_bytes(), "does not fit its 8 tokens and 4611686018427387904 documents"),
        (4096, &9u64.to_le_bytes(), "a document ends at 9, the one before at 0"),
    ];
    for (at, value, reason) in forgeries {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        forge(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let end = Shard::open(&path).and_then(|shard| shard.verify(&Control::new()));
        let message = end.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

/// Makes every checksum of an index of three documents right again.
fn forge(bytes: &mut [u8]) {
    use xxhash_rust::xxh3::xxh3_64;
    let put = |bytes: &mut [u8], at: usize, digest: u64| bytes[at..at + 8].copy_from_slice(&digest.to_le_bytes());
    let digest = xxh3_64(&bytes[..4088]);
    put(bytes, 4088, digest);
    let digest = xxh3_64(&bytes[4096..4160]);
    put(bytes, 4168, digest);
    let mut hasher = blake3::Hasher::new();
    let digest = *hasher.update(&bytes[4096..4224]).update(&bytes[..4096]).finalize().as_bytes();
    bytes[4224 + 16..4224 + 48].copy_from_slice(&digest);
    let digest = xxh3_64(&bytes[4224..4280]);
    put(bytes, 4280, digest);
}

fn exported(dataset: &Dataset, out: &Path, format: Format, tokens_per_file: u64) -> Result<Vec<String>> {
    let options = ExportOptions { format, tokens_per_file, drop_loss_bits: false };
    let paths = export(dataset, out, &options, &Control::new())?;
    Ok(paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
}

#[test]
fn what_is_exported_comes_back_with_equal_tokens_and_documents() {
    let ids = [long_ids(100_000, 4), vec![EOT, EOT]].concat();
    for tokenizer in [&*NARROW, &*WIDE] {
        let folder = Folder::with(&[("a.npy", u32s(&ids))]);
        let wide = ImportOptions { dtype: Some(Dtype::U32), ..ImportOptions::default() };
        let dataset = folder.import(&["a.npy"], tokenizer, &wide).unwrap();
        for (format, expected) in [(Format::NanoGpt, 1), (Format::LlmC, 4), (Format::Megatron, 2)] {
            let out = tempfile::tempdir().unwrap();
            let names = exported(&dataset, out.path(), format, 30_000).unwrap();
            assert_eq!(names.len(), expected);
            let twice = exported(&dataset, out.path(), format, 30_000).unwrap();
            assert_eq!(names, twice, "again is fine");
            if (format, tokenizer.vocab_size()) == (Format::NanoGpt, 65_700) {
                continue; // its own reader would not know of two bytes; see the refusal below
            }
            let auto = ImportOptions::default();
            let again = import(&[out.path().to_owned()], tokenizer, &auto, &Control::new()).unwrap();
            assert_eq!(tokens(&again), ids, "{format:?}");
            assert_eq!(ends(&again), ends(&dataset), "{format:?}");
            assert_eq!(again.manifest().n_bytes, dataset.manifest().n_bytes);
            verify(&again).unwrap();
        }
    }
}

#[test]
fn an_export_that_cannot_be_right_is_refused() {
    let folder = Folder::with(&[("a.npy", u32s(&[1, 2, 65_535, 65_536, EOT]))]);
    let dataset = folder.import(&["a.npy"], &WIDE, &ImportOptions::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let message = |out: &Path, format, n| exported(&dataset, out, format, n).unwrap_err().to_string();
    let said = message(out.path(), Format::NanoGpt, 100);
    assert!(said.contains("token 3 is 65536, the format stores ids below 65536"), "{said}");
    assert!(!out.path().join("tokens.bin").exists());
    assert!(message(out.path(), Format::Olmo, 100).contains("expected the format nanogpt, llmc or megatron"));
    assert!(message(out.path(), Format::LlmC, 1 << 31).contains("tokens_per_file must be 1 to 2147483647"));
    assert!(message(folder.0.path(), Format::LlmC, 5).contains("is the dataset's own folder"));
    assert_eq!(exported(&dataset, out.path(), Format::LlmC, 2).unwrap().len(), 3);
    assert!(message(out.path(), Format::LlmC, 5).contains("is of another export, this one has 1 files"));
    let control = Control::new();
    control.cancel();
    let options = ExportOptions { format: Format::Megatron, tokens_per_file: 1, drop_loss_bits: false };
    assert!(matches!(export(&dataset, out.path(), &options, &control), Err(Error::Interrupted)));
    assert!(!out.path().join("tokens.bin").exists() && !out.path().join("tokens.idx").exists());
    exported(&dataset, out.path(), Format::Megatron, 100).unwrap();
    let said = message(out.path(), Format::NanoGpt, 100);
    assert!(said.contains("tokens.idx is of another export, this one has none; hint: "), "{said}");
}
