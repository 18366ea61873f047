//! Orders by name; `block-v1`: frozen values, equal to its definition written with lists, bijection, inverse, and the two
//! random orders that it promises.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/quality.rs"]
mod quality;
#[path = "fixtures/random.rs"]
mod random;

use gptrs_core::order::{BlockShape, Cursor, Order, OrderKind};
use gptrs_core::permute::Permutation;
use random::Random;

fn block(n: u64, seed: u64, epoch: u64, (block_rows, window_blocks): (u64, u64)) -> Order {
    Order::new(OrderKind::Block(BlockShape::new(block_rows, window_blocks).unwrap()), n, seed, epoch)
}

/// `(n, seed, epoch, (rows of a block, blocks of a window), rows at 0, 1, 2, n / 2 and n - 1)`, computed by an
/// independent program from docs/formats.md.
type Golden = (u64, u64, u64, (u64, u64), [u64; 5]);
const GOLDEN: [Golden; 10] = [
    (5, 0, 0, (256, 512), [1, 4, 0, 0, 3]),
    (10, 1, 0, (2, 2), [8, 9, 7, 4, 2]),
    (1000, 7, 3, (10, 8), [286, 364, 452, 851, 123]),
    (1023, 2, 1, (1, 1), [331, 621, 434, 710, 71]),
    (1024, 0, 0, (256, 512), [21, 134, 506, 662, 509]),
    (100_001, 3, 5, (64, 16), [51_091, 26_047, 51_111, 41_636, 97_806]),
    (300_000, 1, 0, (256, 512), [5784, 22_139, 209_014, 102_571, 250_258]),
    (1_000_000, 1, 0, (256, 512), [452_313, 303_733, 163_486, 280_187, 908_552]),
    (1_000_000, 1, 1, (256, 512), [503_660, 713_920, 68_639, 249_838, 552_847]),
    (2_000_003, u64::MAX, 12, (1000, 100), [1_635_408, 535_768, 1_704_264, 1_773_816, 384_633]),
];

#[test]
fn the_order_by_blocks_is_frozen() {
    for (n, seed, epoch, shape, rows) in GOLDEN {
        let order = block(n, seed, epoch, shape);
        assert_eq!([0, 1, 2, n / 2, n - 1].map(|i| order.at(i)), rows, "n {n}");
    }
}

#[test]
fn the_examples_of_the_format_are_these_rows() {
    let page = include_str!("../../../docs/formats.md");
    let (small, large) = (block(10, 1, 0, (2, 2)), block(1_000_000, 1, 0, (256, 512)));
    let [a, b, c, d] = [0, 1, 8, 9].map(|i| small.at(i));
    let small = format!("`n = 10, seed = 1, epoch = 0, B = 2, W = 2` gives {a} {b} … {c} {d} (");
    let [a, b, c] = [0, 1, 2].map(|i| large.at(i));
    let large = format!("`n = 1000000, seed = 1, epoch = 0, B = 256, W = 512` sends 0, 1, 2 to {a}, {b}, {c}.");
    assert!(page.contains(&small) && page.contains(&large), "{small} {large}");
}

#[test]
fn orders_have_names_and_the_others_are_what_they_were() {
    let kinds = [OrderKind::Sequential, OrderKind::Feistel, OrderKind::Block(BlockShape::default())];
    assert_eq!(kinds.map(|kind| kind.name()), ["sequential", "feistel-v1", "block-v1"]);
    assert_eq!(kinds.map(|kind| Order::new(kind, 10, 0, 0).name()), kinds.map(|kind| kind.name()));
    let permutation = Permutation::new(5000, 3, 4);
    for i in 0..5000 {
        assert_eq!(Order::new(OrderKind::Sequential, 5000, 3, 4).at(i), i);
        assert_eq!(Order::new(OrderKind::Sequential, 5000, 3, 4).inverse(i), i);
        assert_eq!(Order::new(OrderKind::Feistel, 5000, 3, 4).at(i), permutation.at(i));
        assert_eq!(Order::new(OrderKind::Feistel, 5000, 3, 4).inverse(i), permutation.inverse(i));
    }
    assert_eq!(BlockShape::default(), BlockShape::new(256, 512).unwrap());
    for (rows, blocks, name) in [(0, 1, "block_rows"), (1, 0, "window_blocks"), ((1 << 31) + 1, 1, "block_rows")] {
        let message = BlockShape::new(rows, blocks).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{name} must be 1 to 2^31, got ")), "{message}");
    }
}

#[test]
fn no_rows_are_an_order() {
    for kind in [OrderKind::Sequential, OrderKind::Feistel, OrderKind::Block(BlockShape::default())] {
        assert_eq!(Order::new(kind, 0, 1, 2).n_rows(), 0);
    }
}

/// Shapes with windows of one row, of tables, of Feistel networks, and of everything.
const SHAPES: [(u64, u64); 7] = [(1, 1), (3, 5), (1, 100), (100, 1), (16, 40), (64, 24), (256, 512)];

#[test]
fn every_row_of_up_to_4096_comes_exactly_once() {
    for (n, shape) in (1..=300).flat_map(|n| SHAPES.map(|shape| (n, shape))) {
        check_bijection(n, n, 0, shape);
    }
    for (n, shape) in (301..=4096).step_by(31).flat_map(|n| SHAPES.map(|shape| (n, shape))) {
        check_bijection(n, n ^ 0x55, 1, shape);
    }
}

#[test]
#[ignore = "minutes: all lengths, three seeds"]
fn every_row_of_every_length_up_to_4096_comes_exactly_once() {
    for (seed, epoch) in [(0, 0), (1, 7), (u64::MAX, 3)] {
        for (n, shape) in (1..=4096).flat_map(|n| SHAPES.map(|shape| (n, shape))) {
            check_bijection(n, seed, epoch, shape);
        }
    }
}

/// All rows once; the inverse; `at` and `inverse` of the order as those of its cursor; blocks stay in one window of few.
fn check_bijection(n: u64, seed: u64, epoch: u64, shape: (u64, u64)) {
    let order = block(n, seed, epoch, shape);
    let (mut walked, mut sought) = (Cursor::new(order.clone()), Cursor::new(order.clone()));
    let mut came = vec![false; n as usize];
    for i in 0..n {
        let row = walked.at(i);
        assert!(!std::mem::replace(&mut came[row as usize], true), "n {n}: {row} comes twice");
        assert_eq!(sought.inverse(row), i, "n {n} {shape:?}");
        if i % 97 == n % 97 {
            assert_eq!((order.at(i), order.inverse(row)), (row, i), "n {n} {shape:?}");
        }
    }
}

#[test]
fn a_window_has_all_rows_of_its_blocks() {
    for (n, shape) in [1, 99, 1000, 4096, 50_001].into_iter().flat_map(|n| SHAPES.map(|shape| (n, shape))) {
        let mut cursor = Cursor::new(block(n, 5, 6, shape));
        let (block_rows, window_blocks) = shape;
        let n_blocks = n.div_ceil(block_rows);
        let n_windows = n_blocks.div_ceil(window_blocks);
        let mut i = 0;
        for window in 0..n_windows {
            let blocks = n_blocks / n_windows + u64::from(window < n_blocks % n_windows);
            assert!(blocks <= window_blocks);
            let first = i;
            let mut counts = std::collections::HashMap::new();
            // The short block may be here or not: the window is over when its blocks are complete.
            while counts.len() < blocks as usize || counts.values().any(|&rows| rows > 0) {
                let of = cursor.at(i) / block_rows;
                *counts.entry(of).or_insert_with(|| block_rows.min(n - of * block_rows)) -= 1;
                i += 1;
            }
            assert_eq!(counts.len() as u64, blocks, "n {n} {shape:?}, window {window} from {first}");
        }
        assert_eq!(i, n);
    }
}

#[test]
fn the_inverse_undoes_large_orders() {
    let mut random = Random(2);
    for case in 0..200 {
        let n = 1 + random.below(1 << (10 + case % 31)) as u64;
        let shape = [(256, 512), (1 << (case % 12), 1 + random.below(2000) as u64)][case % 2];
        let order = block(n, random.next(), random.next(), shape);
        for i in [0, n - 1].into_iter().chain((0..100).map(|_| random.below(n as usize) as u64)) {
            let row = order.at(i);
            assert!(row < n);
            assert_eq!(order.inverse(row), i, "n {n} {shape:?}");
        }
    }
    let order = block(u64::MAX, 1, 1, (256, 512));
    assert!([0, 1 << 63, u64::MAX - 1].into_iter().all(|i| order.inverse(order.at(i)) == i));
}

#[test]
fn seeds_and_epochs_and_shapes_give_different_orders() {
    let order = |seed, epoch, shape| (0..100).map(|i| block(50_000, seed, epoch, shape).at(i)).collect::<Vec<u64>>();
    let orders = [(0, 0, (8, 512)), (0, 1, (8, 512)), (1, 0, (8, 512)), (0, 0, (16, 256)), (0, 0, (8, 500))]
        .map(|(seed, epoch, shape)| order(seed, epoch, shape));
    for (i, a) in orders.iter().enumerate() {
        for b in &orders[..i] {
            assert!(a.iter().zip(b).filter(|(a, b)| a == b).count() < 5);
        }
    }
}

#[test]
fn blocks_and_the_rows_of_a_window_are_in_random_order() {
    check_blocks(&[(5000, 16), (65_536, 64)], 20);
    check_windows(&[(16, 100, 16), (256, 512, 64)], 20);
}

#[test]
#[ignore = "minutes: a thousand seeds"]
fn blocks_and_the_rows_of_a_window_are_in_random_order_for_a_thousand_seeds() {
    check_blocks(&[(1025, 8), (5000, 16), (65_537, 64)], 1000);
    check_windows(&[(1, 1100, 8), (16, 100, 16), (256, 512, 64)], 1000);
}

/// Windows of one block show the order of blocks.
fn check_blocks(sizes: &[(u64, u64)], seeds: u64) {
    for &(n_blocks, side) in sizes {
        let order = |seed| {
            let mut cursor = Cursor::new(block(n_blocks * 2, seed, 1, (2, 1)));
            (0..n_blocks).map(|place| cursor.at(2 * place) / 2).collect::<Vec<u64>>()
        };
        let all: Vec<[f64; 2]> = (0..seeds).map(|seed| quality::scores(&order(seed), side)).collect();
        quality::check(&format!("{n_blocks} blocks"), &all);
    }
}

/// The rows of the first of two windows, as their ranks among themselves.
fn check_windows(shapes: &[(u64, u64, u64)], seeds: u64) {
    for &(block_rows, window_blocks, side) in shapes {
        let len = block_rows * window_blocks;
        let all: Vec<[f64; 2]> = (0..seeds)
            .map(|seed| {
                let mut cursor = Cursor::new(block(2 * len, seed, 2, (block_rows, window_blocks)));
                let rows: Vec<u64> = (0..len).map(|i| cursor.at(i)).collect();
                let mut sorted = rows.clone();
                sorted.sort_unstable();
                let ranks: Vec<u64> =
                    rows.iter().map(|row| sorted.partition_point(|other| other < row) as u64).collect();
                quality::scores(&ranks, side)
            })
            .collect();
        quality::check(&format!("windows of {window_blocks} blocks of {block_rows}"), &all);
    }
}

#[test]
fn an_epoch_of_one_window_is_random_as_a_whole() {
    let order = |seed| {
        let mut cursor = Cursor::new(block(100_000, seed, 0, (256, 512)));
        (0..100_000).map(|i| cursor.at(i)).collect::<Vec<u64>>()
    };
    let all: Vec<[f64; 2]> = (0..20).map(|seed| quality::scores(&order(seed), 64)).collect();
    quality::check("one window", &all);
    // With more windows it is not, and nothing promises it: rows of a block stay close.
    let mut cursor = Cursor::new(block(100_000, 0, 0, (256, 8)));
    assert!(quality::fails(quality::scores(&(0..100_000).map(|i| cursor.at(i)).collect::<Vec<u64>>(), 64)));
}
