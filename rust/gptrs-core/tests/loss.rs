//! Loss bits: the format's example, reads across shards, and loaders against a slow twin.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "these shards are written here")]
#[path = "fixtures/dataset.rs"]
mod dataset;
#[path = "fixtures/random.rs"]
mod random;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use gptrs_core::dataset::Dataset;
use gptrs_core::loader::{Loader, LoaderOptions, RowSource, Rows, Wide};
use gptrs_core::manifest::Entry;
use gptrs_core::mixture::{Mixture, Source, Stage};
use gptrs_core::order::OrderKind;
use gptrs_core::pack::Plan;
use gptrs_core::shard::{Dtype, Shard, ShardWriter, Spec};
use gptrs_core::{Control, Error};
use random::Random;

const IGNORED: i64 = -100;
const SPEC: Spec =
    Spec { dtype: Dtype::U16, vocab_size: 50_257, eot_id: Some(50_256), tokenizer: [0xAB; 32], has_loss_bits: true };

/// The documents "hello" and "hi", of which all but "hello" is to be predicted.
fn write_example(path: &Path) {
    let mut writer = ShardWriter::create(path, SPEC).unwrap();
    writer.push_with_bits(&[31_373, 50_256], &[false, true]).unwrap();
    writer.end_document(5);
    writer.push_with_bits(&[5303, 50_256], &[true, true]).unwrap();
    writer.end_document(2);
    writer.finish().unwrap();
}

#[test]
fn the_worked_example_of_the_format_has_these_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("example.gts");
    write_example(&path);
    let bytes = fs::read(&path).unwrap();
    let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|&b| b != 0));
    let hex = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    let shown = lines.map(|(i, line)| format!("{:04x}  {}\n", 16 * i, hex(line))).collect::<Vec<_>>().concat();
    let page = include_str!("../../../docs/formats.md");
    let section = page.split("### Worked example with loss bits").nth(1).unwrap();
    assert_eq!(section.split("```hex\n").nth(1).unwrap().split("```").next().unwrap(), shown);
    assert_eq!(bytes.len(), 4416);
    let shard = Shard::open(&path).unwrap();
    shard.verify(&Control::new()).unwrap();
    let mut bits = [false; 4];
    shard.loss_bits(0, &mut bits).unwrap();
    assert_eq!(bits, [false, true, true, true]);
    assert!(shard.loss_bits(3, &mut [false; 2]).is_err());
}

/// Makes every checksum of the example right again.
fn forge(bytes: &mut [u8]) {
    use xxhash_rust::xxh3::xxh3_64;
    let digest = xxh3_64(&bytes[..4088]);
    bytes[4088..4096].copy_from_slice(&digest.to_le_bytes());
    let digest = xxh3_64(&bytes[4096..4288]);
    bytes[4288..4296].copy_from_slice(&digest.to_le_bytes());
    let digest = *blake3::Hasher::new().update(&bytes[4096..4352]).update(&bytes[..4096]).finalize().as_bytes();
    bytes[4352 + 16..4352 + 48].copy_from_slice(&digest);
    let digest = xxh3_64(&bytes[4352..4408]);
    bytes[4408..4416].copy_from_slice(&digest.to_le_bytes());
}

#[test]
fn a_shard_with_right_checksums_and_wrong_bits_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard.gts");
    write_example(&path);
    let whole = fs::read(&path).unwrap();
    let open = || Shard::open(&path)?.verify(&Control::new());
    for (at, value, reason) in [
        (4224, 0x1E, "expected zeros behind the last token's loss bit"),
        (4225, 1, "expected zeros between the sections"),
        (4160 + 16, 1, "expected zeros between the sections"),
        (112, 0x81, "its header contradicts itself"),
        (113, 0, "its header contradicts itself"),
        (120, 1, "its header contradicts itself"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] = value;
        forge(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.contains(reason), "{at}: {message}");
    }
    let mut bytes = whole;
    bytes[112..120].fill(0); // the same file, said to be one without bits
    forge(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    assert!(open().unwrap_err().to_string().contains("does not fit its 4 tokens and 2 documents"));
}

#[test]
fn tokens_and_bits_are_written_together_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut with = ShardWriter::create(&dir.path().join("a.gts"), SPEC).unwrap();
    let mut without = ShardWriter::create(&dir.path().join("b.gts"), Spec { has_loss_bits: false, ..SPEC }).unwrap();
    let refused = |end: gptrs_core::Result<()>, part: &str| {
        let message = end.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(with.push(&[1]), "expected a loss bit for each token");
    refused(with.push_with_bits(&[1, 2], &[true]), "expected 2 loss bits for 2 tokens, got 1");
    refused(without.push_with_bits(&[1], &[true]), "expected 0 loss bits for 1 tokens, got 1");
    assert!(matches!(with.push_with_bits(&[1, 60_000], &[true; 2]), Err(Error::UnknownId { position: 1, .. })));
    with.push_with_bits(&[3], &[true]).unwrap();
    with.finish().unwrap();
    let mut bits = [false];
    Shard::open(&dir.path().join("a.gts")).unwrap().loss_bits(0, &mut bits).unwrap();
    assert!(bits[0], "what was refused left no bit");
}

/// Tokens, their bits, and the ends of documents.
struct Text {
    tokens: Vec<u32>,
    bits: Vec<bool>,
    ends: Vec<usize>,
}

impl Text {
    fn random(seed: u64, n_documents: usize, longest: usize) -> Self {
        let mut random = Random(seed);
        let (mut tokens, mut bits, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..n_documents {
            // A prompt, then an answer; either may be empty.
            for is_answer in [false, true] {
                let n = random.below(longest);
                tokens.extend((0..n).map(|_| random.below(65_536) as u32));
                bits.resize(tokens.len(), is_answer);
            }
            ends.push(tokens.len());
        }
        Self { tokens, bits, ends }
    }

    /// A dataset of it in shards of `shard_tokens`, with its bits or without.
    fn write(&self, dir: &Path, shard_tokens: usize, has_loss_bits: bool) -> Arc<Dataset> {
        fs::create_dir_all(dir).unwrap();
        let spec = Spec { has_loss_bits, ..dataset::spec(65_536) };
        let mut ends = self.ends.iter().peekable();
        let mut entries = Vec::new();
        for start in (0..self.tokens.len()).step_by(shard_tokens) {
            let stop = self.tokens.len().min(start + shard_tokens);
            let name = format!("shard-{:05}.gts", entries.len());
            let mut writer = ShardWriter::create(&dir.join(&name), spec).unwrap();
            let mut at = start;
            let mut push = |writer: &mut ShardWriter, end: usize| {
                let (ids, bits) = (&self.tokens[at..end], &self.bits[at..end]);
                at = end;
                if has_loss_bits { writer.push_with_bits(ids, bits) } else { writer.push(ids) }.unwrap();
            };
            while let Some(&end) = ends.next_if(|&&end| end <= stop) {
                push(&mut writer, end);
                writer.end_document(1);
            }
            push(&mut writer, stop);
            let (header, digest) = writer.finish().unwrap();
            entries.push(Entry::new(name, &header, &digest));
        }
        let dataset = dataset::finish(dir, spec, entries, shard_tokens);
        dataset.verify(1, &Control::new()).unwrap();
        assert_eq!(dataset.has_loss_bits(), has_loss_bits);
        Arc::new(dataset)
    }

    /// The target that token `at` is: the slow twin of every loader.
    fn target(&self, at: usize) -> i64 {
        if self.bits[at] { i64::from(self.tokens[at]) } else { IGNORED }
    }
}

#[test]
fn bits_are_read_across_blocks_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    for (case, shard_tokens) in [7, 64, 1000, 1_000_000].into_iter().enumerate() {
        let text = Text::random(case as u64, 300, 40);
        let with = text.write(&dir.path().join(format!("with-{case}")), shard_tokens, true);
        let without = text.write(&dir.path().join(format!("without-{case}")), shard_tokens, false);
        let n = text.tokens.len();
        let mut random = Random(9);
        for _ in 0..200 {
            let start = random.below(n + 1);
            let len = random.below(n - start + 1).min(random.below(2000));
            let mut bits = vec![false; len];
            with.loss_bits(start as u64, &mut bits).unwrap();
            assert!(bits == text.bits[start..start + len], "{start}+{len}");
            without.loss_bits(start as u64, &mut bits).unwrap();
            assert!(bits.iter().all(|&bit| bit));
        }
        for dataset in [&with, &without] {
            assert!(dataset.loss_bits(n as u64, &mut [false]).is_err());
            assert!(dataset.loss_bits(u64::MAX, &mut [false; 2]).is_err());
        }
        assert_ne!(with.fingerprint(), without.fingerprint());
    }
    // More than a block of bits: 600,000 tokens are 75,000 bytes.
    let bits: Vec<bool> = (0..600_000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 31 == 1).collect();
    let text = Text { tokens: vec![5; bits.len()], ends: vec![bits.len()], bits };
    let dataset = text.write(&dir.path().join("long"), 1_000_000, true);
    let mut got = vec![false; 70_000];
    dataset.loss_bits(499_999, &mut got).unwrap();
    assert!(got == text.bits[499_999..569_999]);
}

fn options(seq_len: usize, global_batch: usize) -> LoaderOptions {
    let (rank, world_size, seed, order) = (0, 1, 1, OrderKind::Feistel);
    LoaderOptions { seq_len, global_batch, micro_batch: global_batch, rank, world_size, seed, order }
}

fn batch(loader: &Loader, next_sample: u64) -> Wide {
    let mut batch = Wide::new(loader);
    loader.fill(next_sample, &mut batch.tokens, &mut batch.targets).unwrap();
    batch
}

/// Row `row` of the stream.
fn stream_row(text: &Text, seq_len: usize, row: u64) -> (Vec<i64>, Vec<i64>) {
    let start = row as usize * seq_len;
    let tokens = text.tokens[start..start + seq_len].iter().map(|&id| i64::from(id)).collect();
    (tokens, (start + 1..=start + seq_len).map(|at| text.target(at)).collect())
}

/// Row `row` of a plan.
fn packed_row(text: &Text, dataset: &Dataset, plan: &Plan, row: u64) -> (Vec<i64>, Vec<i64>) {
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    for piece in plan.row(dataset, row).unwrap() {
        for at in piece.start as usize..(piece.start + u64::from(piece.len)) as usize {
            tokens.push(i64::from(text.tokens[at]));
            targets.push(if text.ends.contains(&(at + 1)) { IGNORED } else { text.target(at + 1) });
        }
    }
    tokens.resize(plan.seq_len(), 0);
    targets.resize(plan.seq_len(), IGNORED);
    (tokens, targets)
}

#[test]
fn loaders_give_the_rows_of_a_slow_twin() {
    let dir = tempfile::tempdir().unwrap();
    for (case, (seq_len, shard_tokens)) in [(5, 3), (16, 50), (33, 10_000)].into_iter().enumerate() {
        let text = Text::random(case as u64 + 20, 120, 25);
        let dataset = text.write(&dir.path().join(case.to_string()), shard_tokens, true);
        let stream = Loader::new(Arc::clone(&dataset), options(seq_len, 1)).unwrap();
        let plan = Arc::new(Plan::bestfit(&dataset, seq_len, 1, &Control::new()).unwrap());
        let source = RowSource::packed(Arc::clone(&dataset), Arc::clone(&plan)).unwrap();
        let packed = Loader::of(source, options(seq_len, 1)).unwrap();
        let (mut n_ignored, mut n_targets) = (0, 0);
        for sample in 0..stream.n_rows() {
            let (got, row) = (batch(&stream, sample), stream.place(sample).unwrap().row);
            assert_eq!((got.tokens, got.targets.clone()), stream_row(&text, seq_len, row), "row {row}");
            n_ignored += got.targets.iter().filter(|&&target| target == IGNORED).count();
            n_targets += seq_len;
        }
        assert!(n_ignored > n_targets / 4 && n_ignored < n_targets * 3 / 4, "{n_ignored} of {n_targets}");
        for sample in 0..packed.n_rows() {
            let (got, row) = (batch(&packed, sample), packed.place(sample).unwrap().row);
            assert_eq!((got.tokens, got.targets), packed_row(&text, &dataset, &plan, row), "packed row {row}");
        }
        let mut narrow = (vec![0i32; seq_len], vec![0i32; seq_len]);
        stream.fill(0, &mut narrow.0, &mut narrow.1).unwrap();
        let wide = batch(&stream, 0);
        assert!(narrow.1.iter().zip(&wide.targets).all(|(&a, &b)| i64::from(a) == b));
        for loader in [&stream, &packed] {
            let mut rows = Rows::<u16>::new(loader);
            let message = loader.fill_rows(0, &mut rows.0).unwrap_err().to_string();
            assert!(message.contains("targets of their own; hint: use fill"), "{message}");
            let (mut tokens, mut targets) = (vec![0u32; seq_len], vec![0u32; seq_len]);
            let message = loader.fill(0, &mut tokens, &mut targets).unwrap_err().to_string();
            assert!(message.contains("need signed targets"), "{message}");
        }
    }
}

#[test]
fn a_run_that_goes_on_with_other_ranks_sees_the_same_targets() {
    let dir = tempfile::tempdir().unwrap();
    let text = Text::random(5, 400, 30);
    let dataset = text.write(dir.path(), 900, true);
    let plan = Arc::new(Plan::bestfit(&dataset, 16, 1, &Control::new()).unwrap());
    let source = |is_packed: bool| {
        if is_packed {
            RowSource::packed(Arc::clone(&dataset), Arc::clone(&plan)).unwrap()
        } else {
            RowSource::stream(Arc::clone(&dataset), 16).unwrap()
        }
    };
    for is_packed in [false, true] {
        let one = Loader::of(source(is_packed), options(16, 24)).unwrap();
        let expected: Vec<i64> = (0..12).flat_map(|step| batch(&one, step * 24).targets).collect();
        let (mut got, mut next) = (Vec::new(), 0);
        for (world_size, micro_batch, n) in [(2, 4, 9), (3, 8, 5), (1, 12, 8)] {
            let split = |rank| LoaderOptions { rank, world_size, micro_batch, ..options(16, 24) };
            let ranks: Vec<_> =
                (0..world_size).map(|rank| Loader::of(source(is_packed), split(rank)).unwrap()).collect();
            for _ in 0..n {
                got.extend(ranks.iter().flat_map(|loader| batch(loader, next).targets));
                next += (world_size * micro_batch) as u64;
            }
        }
        assert_eq!(next, 12 * 24);
        assert!(got == expected, "packed: {is_packed}");
    }
}

#[test]
fn a_mixture_takes_datasets_with_bits_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let texts = [Text::random(1, 100, 30), Text::random(2, 100, 30)];
    let datasets = [("a", true), ("b", false)].map(|(name, has)| (name, has));
    let sources: Vec<_> = texts
        .iter()
        .zip(datasets)
        .map(|(text, (name, has))| RowSource::stream(text.write(&dir.path().join(name), 500, has), 8).unwrap())
        .collect();
    let named = |(name, rows): ((&str, bool), &RowSource)| Source {
        name: name.0.to_owned(),
        n_rows: rows.n_rows(),
        max_epochs: None,
    };
    let named = datasets.into_iter().zip(&sources).map(named).collect();
    let mixture = Mixture::new(named, &[Stage { samples: None, weights: vec![1.0, 1.0] }], 1).unwrap();
    let loader = Loader::mixed(sources, mixture, options(8, 1)).unwrap();
    let mut n_ignored = [0; 2];
    for sample in 0..200 {
        let (got, place) = (batch(&loader, sample), loader.place(sample).unwrap());
        let (tokens, mut targets) = stream_row(&texts[place.source], 8, place.row);
        if place.source == 1 {
            let start = place.row as usize * 8 + 1;
            targets = texts[1].tokens[start..start + 8].iter().map(|&id| i64::from(id)).collect();
        }
        n_ignored[place.source] += got.targets.iter().filter(|&&target| target == IGNORED).count();
        assert_eq!((got.tokens, got.targets), (tokens, targets));
    }
    assert!(n_ignored[0] > 100 && n_ignored[1] == 0, "{n_ignored:?}");
}
