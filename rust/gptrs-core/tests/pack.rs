//! Packing: every token once, documents cut only where they must be, and the rows that a slow twin makes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "these datasets are written document by document")]
#[path = "fixtures/dataset.rs"]
mod dataset;
#[path = "fixtures/documents.rs"]
mod documents;
#[path = "fixtures/random.rs"]
mod random;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;

use documents::{token, write_documents};
use gptrs_core::Control;
use gptrs_core::dataset::Dataset;
use gptrs_core::pack::{Blank, IGNORED, Marks, NO_DOCUMENT, Piece, Plan, fill_stream_marks, max_documents};
use proptest::prelude::*;
use random::Random;

const BLANK: Blank<i64> = Blank { token: 7, target: IGNORED };

fn plan(dataset: &Dataset, seq_len: usize) -> Plan {
    Plan::bestfit(dataset, seq_len, 1, &Control::new()).unwrap()
}

/// A row as arrays.
#[derive(Debug, PartialEq, Eq)]
struct Arrays {
    tokens: Vec<i64>,
    targets: Vec<i64>,
    positions: Vec<i32>,
    segments: Vec<i32>,
    doc_ids: Vec<u64>,
    cu_seqlens: Vec<i32>,
}

impl Arrays {
    fn new(seq_len: usize, n_cu_seqlens: usize) -> Self {
        let (tokens, targets) = (vec![-1; seq_len], vec![-1; seq_len]);
        let (positions, segments, doc_ids) = (vec![-1; seq_len], vec![-1; seq_len], vec![9; seq_len]);
        Self { tokens, targets, positions, segments, doc_ids, cu_seqlens: vec![-1; n_cu_seqlens] }
    }

    fn filled(dataset: &Dataset, plan: &Plan, row: u64) -> Self {
        let mut arrays = Self::new(plan.seq_len(), plan.max_pieces() + 2);
        let Self { tokens, targets, positions, segments, doc_ids, cu_seqlens } = &mut arrays;
        let mut marks = Marks { positions, segments, doc_ids, cu_seqlens };
        plan.fill_row(dataset, row, BLANK, tokens, targets, &mut marks).unwrap();
        arrays
    }
}

#[test]
fn a_board_example() {
    let dir = tempfile::tempdir().unwrap();
    // Tokens 0..3, 3..14, none, 14..16, 16..20, and two tokens of a document that does not end; shards of 9 tokens.
    let dataset = write_documents(dir.path(), &[3, 11, 0, 2, 4], 2, 9);
    let plan = plan(&dataset, 4);
    // Document 1 fills two rows and leaves 3; pieces 4, 3, 3, 2, 2 make four more rows, one position stays in two.
    let piece = |start, len, document, offset, ends_document| Piece { start, len, document, offset, ends_document };
    let rows = [
        vec![piece(0, 3, 0, 0, true)],
        vec![piece(3, 4, 1, 0, false)],
        vec![piece(7, 4, 1, 4, false)],
        vec![piece(11, 3, 1, 8, true)],
        vec![piece(14, 2, 3, 0, true), piece(20, 2, 5, 0, true)],
        vec![piece(16, 4, 4, 0, true)],
    ];
    assert_eq!((plan.n_rows(), plan.padding(), plan.max_pieces()), (6, 2, 2));
    for (row, pieces) in (0..).zip(&rows) {
        assert_eq!(plan.row(&dataset, row).unwrap(), *pieces, "row {row}");
    }
    assert!(plan.row(&dataset, 6).is_err());
    let ids = |range: std::ops::Range<u64>| range.map(|i| i64::from(token(i))).collect::<Vec<_>>();
    // The middle of a document: its next token is the last target.
    let arrays = Arrays {
        tokens: ids(7..11),
        targets: ids(8..12),
        positions: vec![0, 1, 2, 3],
        segments: vec![0; 4],
        doc_ids: vec![1; 4],
        cu_seqlens: vec![0, 4, 4, 4],
    };
    assert_eq!(Arrays::filled(&dataset, &plan, 2), arrays);
    let arrays = Arrays {
        tokens: [ids(11..14), vec![7]].concat(),
        targets: [ids(12..14), vec![IGNORED, IGNORED]].concat(),
        positions: vec![0, 1, 2, 0],
        segments: vec![0, 0, 0, 1],
        doc_ids: vec![1, 1, 1, NO_DOCUMENT],
        cu_seqlens: vec![0, 3, 4, 4],
    };
    assert_eq!(Arrays::filled(&dataset, &plan, 3), arrays);
    let arrays = Arrays {
        tokens: [ids(14..16), ids(20..22)].concat(),
        targets: [ids(15..16), vec![IGNORED], ids(21..22), vec![IGNORED]].concat(),
        positions: vec![0, 1, 0, 1],
        segments: vec![0, 0, 1, 1],
        doc_ids: vec![3, 3, 5, 5],
        cu_seqlens: vec![0, 2, 4, 4],
    };
    assert_eq!(Arrays::filled(&dataset, &plan, 4), arrays);
}

/// The pieces of a row: document, tokens of it before the piece, tokens.
type Pieces = Vec<(usize, u64, u64)>;

/// The rows of documents of these lengths, as docs/formats.md has them, with a map of rows instead of bits.
fn twin(lens: &[u64], seq_len: u64) -> Vec<Pieces> {
    let [fewest, most] = [24, 17].map(|bits| lens.len().div_ceil(1 << bits));
    let n_parts = ((lens.iter().sum::<u64>() / (4096 * seq_len)) as usize).clamp(fewest, most);
    let mut rows = Vec::new();
    for part in 0..n_parts {
        let [first, end] = [part, part + 1].map(|i| lens.len() * i / n_parts);
        let mut pieces: Pieces = Vec::new(); // the last pieces
        for document in (first..end).filter(|&document| lens[document] > 0) {
            let n_full = (lens[document] - 1) / seq_len;
            rows.extend((0..n_full).map(|n| vec![(document, n * seq_len, seq_len)]));
            pieces.push((document, n_full * seq_len, lens[document] - n_full * seq_len));
        }
        pieces.sort_by_key(|&(_, _, len)| Reverse(len));
        let mut rooms: BTreeMap<u64, Vec<Pieces>> = BTreeMap::new();
        for piece in pieces {
            let best = rooms.range_mut(piece.2..).find(|(_, rows)| !rows.is_empty());
            let (room, mut row) = best.map_or((seq_len, Vec::new()), |(room, rows)| (*room, rows.pop().unwrap()));
            row.push(piece);
            rooms.entry(room - piece.2).or_default().push(row);
        }
        rows.extend(rooms.into_values().flatten());
    }
    for row in &mut rows {
        row.sort_unstable();
    }
    rows.sort_unstable_by_key(|row| row[0]);
    rows
}

fn planned(dataset: &Dataset, plan: &Plan) -> Vec<Pieces> {
    let piece = |piece: Piece| (piece.document as usize, piece.offset, u64::from(piece.len));
    (0..plan.n_rows()).map(|row| plan.row(dataset, row).unwrap().into_iter().map(piece).collect()).collect()
}

/// What a row's arrays are, from the rows of the twin and the tokens as one array.
fn twin_arrays(row: &Pieces, lens: &[u64], seq_len: usize, max_pieces: usize) -> Arrays {
    let mut arrays = Arrays::new(0, 0);
    for (segment, &(document, offset, len)) in row.iter().enumerate() {
        let start: u64 = lens[..document].iter().sum();
        arrays.cu_seqlens.push(arrays.tokens.len() as i32);
        for i in 0..len {
            let place = offset + i;
            let next = if place + 1 < lens[document] { i64::from(token(start + place + 1)) } else { -100 };
            arrays.tokens.push(i64::from(token(start + place)));
            arrays.targets.push(next);
            arrays.positions.push(i as i32);
            arrays.segments.push(segment as i32);
            arrays.doc_ids.push(document as u64);
        }
    }
    if arrays.tokens.len() < seq_len {
        arrays.cu_seqlens.push(arrays.tokens.len() as i32);
    }
    for i in 0..(seq_len - arrays.tokens.len()) as i32 {
        arrays.tokens.push(BLANK.token);
        arrays.targets.push(-100);
        arrays.positions.push(i);
        arrays.segments.push(row.len() as i32);
        arrays.doc_ids.push(u64::MAX);
    }
    arrays.cu_seqlens.resize(max_pieces + 2, seq_len as i32);
    arrays
}

fn check(lens: &[u64], n_tail: u64, seq_len: usize, shard_tokens: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write_documents(dir.path(), lens, n_tail, shard_tokens);
    let plan = plan(&dataset, seq_len);
    let lens = &[lens, if n_tail > 0 { std::slice::from_ref(&n_tail) } else { &[] }].concat();
    let rows = twin(lens, seq_len as u64);
    assert_eq!(planned(&dataset, &plan), rows);
    let n_tokens: u64 = lens.iter().sum();
    assert_eq!(plan.padding(), rows.len() as u64 * seq_len as u64 - n_tokens);
    assert_eq!(plan.max_pieces(), rows.iter().map(Vec::len).max().unwrap_or(0));
    for (r, row) in (0..).zip(&rows) {
        let expected = twin_arrays(row, lens, seq_len, plan.max_pieces());
        assert_eq!(Arrays::filled(&dataset, &plan, r), expected, "row {r}");
    }
}

fn lens() -> impl Strategy<Value = Vec<u64>> {
    let len = prop_oneof![4 => 0..12u64, 3 => 0..60u64, 1 => 0..400u64, 1 => Just(16), 1 => Just(32)];
    prop::collection::vec(len, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_those_of_the_twin(
        lens in lens(),
        n_tail in prop_oneof![3 => Just(0u64), 1 => 1..40u64],
        seq_len in prop_oneof![Just(1usize), Just(16), Just(64), 2..200usize],
        shard_tokens in 1..300u64,
    ) {
        let n_tokens = lens.iter().sum::<u64>() + n_tail;
        check(&lens, n_tail, seq_len, shard_tokens.max(n_tokens / 40));
    }

    #[test]
    fn marks_of_the_stream_are_those_of_its_tokens(
        lens in lens(), n_tail in 0..20u64, seq_len in 1..50usize, shard_tokens in 20..300u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = write_documents(dir.path(), &lens, n_tail, shard_tokens);
        let document_of: Vec<u64> =
            (0..).zip(lens.iter().chain([&n_tail])).flat_map(|(i, &n)| (0..n).map(move |_| i)).collect();
        let rows: Vec<&[u64]> =
            document_of.chunks(seq_len).take(dataset.n_rows(seq_len) as usize).collect();
        let distinct = |row: &[u64]| row.chunk_by(|a, b| a == b).count();
        let most = rows.iter().map(|row| distinct(row)).max().unwrap_or(0);
        prop_assert_eq!(max_documents(&dataset, seq_len, 2, &Control::new()).unwrap(), most);
        for (r, row) in (0..).zip(&rows) {
            let mut expected = Arrays::new(0, 0);
            for (segment, documents) in row.chunk_by(|a, b| a == b).enumerate() {
                expected.cu_seqlens.push(expected.doc_ids.len() as i32);
                expected.positions.extend(0..documents.len() as i32);
                expected.segments.resize(expected.positions.len(), segment as i32);
                expected.doc_ids.extend(documents);
            }
            expected.cu_seqlens.resize(most + 1, seq_len as i32);
            let mut got = Arrays::new(seq_len, most + 1);
            (got.tokens, got.targets) = (Vec::new(), Vec::new());
            let Arrays { positions, segments, doc_ids, cu_seqlens, .. } = &mut got;
            fill_stream_marks(&dataset, r, seq_len, &mut Marks { positions, segments, doc_ids, cu_seqlens }).unwrap();
            prop_assert_eq!(got, expected);
        }
    }
}

/// More documents than a part holds, on several threads: the rows of the twin, and every token once.
#[test]
fn parts_together_hold_every_token_once_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(3);
    let lens: Vec<u64> = (0..(1 << 18) + 5).map(|_| [0, 1, 3, 9, 40][random.below(5)] + random.next() % 3).collect();
    let dataset = write_documents(dir.path(), &lens, 0, 1_000_000);
    // As many parts as there are 2^17 documents, then fewer for the sake of their rows.
    for seq_len in [32, 256, 2048] {
        let one = plan(&dataset, seq_len);
        let rows = planned(&dataset, &one);
        assert_eq!(rows, twin(&lens, seq_len as u64));
        check_once(rows.concat(), &lens);
        for threads in [2, 3, 8] {
            assert_eq!(Plan::bestfit(&dataset, seq_len, threads, &Control::new()).unwrap(), one);
        }
        assert!(one.memory() <= 8 * lens.len(), "{}", one.memory());
    }
}

/// Every token of the documents is in exactly one piece.
fn check_once(mut pieces: Pieces, lens: &[u64]) {
    pieces.sort_unstable();
    let mut at = (0, 0);
    for (document, offset, len) in pieces {
        while at.1 == lens[at.0] {
            at = (at.0 + 1, 0);
        }
        assert_eq!((document, offset), at);
        at.1 += len;
    }
    while at.1 == lens[at.0] && at.0 + 1 < lens.len() {
        at = (at.0 + 1, 0);
    }
    assert_eq!(at, (lens.len() - 1, lens[lens.len() - 1]));
}

#[test]
fn narrow_rows_carry_a_value_that_is_no_id_where_nothing_is_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write_documents(dir.path(), &[2, 1], 0, 9);
    let (mut tokens, mut targets) = ([0u16; 4], [0u16; 4]);
    let blank = Blank { token: 0, target: u16::MAX };
    plan(&dataset, 4).fill_row(&dataset, 0, blank, &mut tokens, &mut targets, &mut Marks::default()).unwrap();
    assert_eq!(tokens, [token(0) as u16, token(1) as u16, token(2) as u16, 0]);
    assert_eq!(targets, [token(1) as u16, u16::MAX, u16::MAX, u16::MAX]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let [dir, other] = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let dataset = write_documents(dir.path(), &[1, 2, 3, 0, 9], 0, 9);
    let planned = plan(&dataset, 4);
    let (tokens, targets) = (&mut [0; 4], &mut [0; 4]);
    let mut short = [0; 2];
    let message = |end: gptrs_core::Result<()>| end.unwrap_err().to_string();
    let mut marks = Marks { cu_seqlens: &mut short, ..Marks::default() };
    let said = message(planned.fill_row(&dataset, 0, BLANK, tokens, targets, &mut marks));
    assert!(said.starts_with("expected cu_seqlens of at least 3 elements for the 2 sequences of row 0, got 2; hint: "));
    let mut marks = Marks { positions: &mut [0; 3], ..Marks::default() };
    let said = message(planned.fill_row(&dataset, 0, BLANK, tokens, targets, &mut marks));
    assert_eq!(said, "expected positions of 4 elements, got 3");
    assert!(planned.fill_row(&dataset, 0, BLANK, tokens, &mut [0; 5], &mut Marks::default()).is_err());
    for seq_len in [0, (1 << 24) + 1] {
        assert!(Plan::bestfit(&dataset, seq_len, 1, &Control::new()).is_err());
    }
    // Another dataset: never a wrong row that overflows, never a panic.
    for lens in [&[9, 0, 0, 0, 0, 0][..], &[0, 9, 1], &[1], &[]] {
        let dataset = write_documents(other.path(), lens, 0, 9);
        let ends = (0..planned.n_rows())
            .map(|row| planned.fill_row(&dataset, row, BLANK, tokens, targets, &mut Marks::default()));
        assert!(ends.filter(Result::is_err).count() > 0);
    }
    let cancelled = Control::new();
    cancelled.cancel();
    assert!(matches!(Plan::bestfit(&dataset, 4, 1, &cancelled), Err(gptrs_core::Error::Interrupted)));
}

/// Only a plan that is read needs no work, which a cancelled call would refuse.
fn is_read(dataset: &Dataset, seq_len: usize) -> bool {
    let cancelled = Control::new();
    cancelled.cancel();
    Plan::cached(dataset, seq_len, 1, &cancelled).is_ok()
}

fn cached(dataset: &Dataset, seq_len: usize) -> Plan {
    Plan::cached(dataset, seq_len, 1, &Control::new()).unwrap()
}

/// A plan's file as docs/formats.md has it: one part.
fn file(dataset: &Dataset, seq_len: u64, n_rows: u64, n_documents: u64, numbers: &[u32]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"gptrs bestfit-v1").update(&seq_len.to_le_bytes()).update(dataset.fingerprint().as_bytes());
    let mut file = [b"GPTRSPAK".as_slice(), &[1, 0, 0, 0, 0, 0, 0, 0], hasher.finalize().as_bytes()].concat();
    file.extend([seq_len, n_documents, n_rows].iter().flat_map(|n| n.to_le_bytes()));
    file.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    sealed(file)
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let digest = blake3::hash(&body);
    body.extend_from_slice(digest.as_bytes());
    body
}

#[test]
fn a_plan_is_kept_in_a_file_and_made_anew_when_a_byte_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write_documents(dir.path(), &[3, 11, 0, 2, 4], 2, 9);
    let path = Plan::path(&dataset, 4);
    assert!(!is_read(&dataset, 4));
    let plan = cached(&dataset, 4);
    assert_eq!(plan, self::plan(&dataset, 4));
    // Packed rows, their documents, long documents, full rows; then the four rows; then document 1 from row 1 on.
    let numbers = [4, 5, 1, 2, 0, 1, 2, 4, 5, 0, 1, 3, 5, 4, 1, 1, 0];
    let bytes = file(&dataset, 4, 6, 6, &numbers);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let shown = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let stated = [0..4, 4..9, 9..14, 14..17].map(|range| shown(&numbers[range])).join(" · ");
    assert!(include_str!("../../../docs/formats.md").contains(&format!("one part, {stated}.")), "{stated}");
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(name, format!("pack-{}.gtp", blake3::Hash::from_bytes(*plan.digest()).to_hex().get(..16).unwrap()));
    assert!(is_read(&dataset, 4) && !is_read(&dataset, 5));
    assert_eq!(cached(&dataset, 4), plan);
    for i in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[i] ^= 1 << (i % 8);
        for wrong in [&damaged, &bytes[..i], &[&bytes, &bytes[..=i]].concat()] {
            fs::write(&path, wrong).unwrap();
            assert!(!is_read(&dataset, 4), "byte {i}");
        }
    }
    assert_eq!(cached(&dataset, 4), plan);
    assert_eq!(fs::read(&path).unwrap(), bytes, "the file is whole again");
}

#[test]
fn a_file_that_lies_under_a_right_checksum_is_made_anew_or_read_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let lens: Vec<u64> = (0..40).map(|i| i * 7 % 23).collect();
    let dataset = write_documents(dir.path(), &lens, 0, 500);
    let path = Plan::path(&dataset, 8);
    cached(&dataset, 8);
    let bytes = fs::read(&path).unwrap();
    let body = &bytes[..bytes.len() - 32];
    let mut random = Random(9);
    let mut n_read = 0;
    for _ in 0..6_000 {
        let mut body = body.to_vec();
        for _ in 0..=random.below(3) {
            let at = 48 + 4 * random.below((body.len() - 48) / 4);
            let other = 48 + 4 * random.below((body.len() - 48) / 4);
            match random.below(3) {
                0 => body[at..at + 4].copy_from_slice(&(random.next() as u32 >> random.below(32)).to_le_bytes()),
                1 => body.copy_within(other..other + 4, at),
                _ => body[at] = body[at].wrapping_add(1),
            }
        }
        fs::write(&path, sealed(body)).unwrap();
        let cancelled = Control::new();
        cancelled.cancel();
        let Ok(plan) = Plan::cached(&dataset, 8, 1, &cancelled) else { continue };
        n_read += 1;
        for row in 0..plan.n_rows() {
            let (mut tokens, mut targets) = ([0; 8], [0; 8]);
            // A wrong row may be refused or filled with the dataset's tokens; it is never out of bounds.
            let _ = plan.fill_row(&dataset, row, BLANK, &mut tokens, &mut targets, &mut Marks::default());
        }
    }
    assert!(n_read > 30, "{n_read}");
}

#[test]
fn a_folder_that_takes_no_file_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write_documents(dir.path(), &[3, 11], 0, 9);
    let path = Plan::path(&dataset, 4);
    fs::create_dir(&path).unwrap();
    for _ in 0..2 {
        assert_eq!(cached(&dataset, 4), plan(&dataset, 4));
    }
    fs::remove_dir(&path).unwrap();
    assert!(!is_read(&dataset, 4));
}
