//! The order of rows: frozen values, bijection, inverse, and that it looks random where an affine order does not.

#[path = "fixtures/quality.rs"]
mod quality;
#[path = "fixtures/random.rs"]
mod random;

use gptrs_core::permute::Permutation;
use random::Random;

/// `(n, seed, epoch, images of 0, 1, 2, 3 and n - 1)`, computed by an independent program from docs/formats.md.
const GOLDEN: [(u64, u64, u64, [u64; 5]); 8] = [
    (5, 0, 0, [0, 3, 2, 1, 4]),
    (10, 1, 0, [3, 1, 6, 7, 0]),
    (1_023, 7, 3, [176, 808, 512, 175, 63]),
    (1_024, 0, 0, [901, 115, 0, 671, 140]),
    (1_000_000, 1, 0, [883_956, 454_977, 849_886, 587_188, 878_960]),
    (1_000_000, 1, 1, [398_766, 351_256, 295_300, 621_574, 62_664]),
    (1 << 40, u64::MAX, 12, [1_027_953_696_631, 434_832_906_790, 111_319_967_830, 636_256_947_023, 465_691_321_447]),
    (
        u64::MAX,
        3,
        1 << 63,
        [
            10_613_567_919_793_471_239,
            9_165_877_161_055_935_016,
            12_098_141_452_476_506_735,
            17_203_195_563_625_060_907,
            11_007_989_741_192_519_186,
        ],
    ),
];

#[test]
fn the_order_is_frozen() {
    for (n, seed, epoch, images) in GOLDEN {
        let p = Permutation::new(n, seed, epoch);
        assert_eq!([0, 1, 2, 3, n - 1].map(|i| p.at(i)), images, "n {n}");
    }
}

#[test]
fn the_examples_of_the_format_are_these_images() {
    let page = include_str!("../../../docs/formats.md");
    let images = |n, seed, end| {
        let p = Permutation::new(n, seed, 0);
        (0..end).map(|i| p.at(i).to_string()).collect::<Vec<_>>()
    };
    let (five, four) = (images(5, 0, 5).join(" "), images(1_000_000, 1, 4).join(", "));
    let small = format!("`n = 5, seed = 0, epoch = 0` gives {five}.");
    let large = format!("`n = 1000000, seed = 1, epoch = 0` sends 0, 1, 2, 3 to {four}.");
    assert!(page.contains(&small) && page.contains(&large), "{small} {large}");
}

#[test]
fn many_indices_at_once_go_where_each_goes() {
    for n in [1, 2, 1000, 1023, 1024, 1025, 4096, 100_003, 1 << 40, u64::MAX] {
        let p = Permutation::new(n, 3, 2);
        for len in [0, 1, 7, 8, 9, 63, 64, 65, 200] {
            let indices: Vec<u64> = (0..len).map(|i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % n).collect();
            let mut images = indices.clone();
            p.at_each(&mut images);
            assert_eq!(images, indices.iter().map(|&i| p.at(i)).collect::<Vec<_>>(), "n {n}, {len} indices");
        }
    }
}

#[test]
#[should_panic(expected = "an index of a permutation of 5000")]
fn an_index_that_is_not_below_n_panics_among_others() {
    Permutation::new(5000, 0, 0).at_each(&mut [0, 1, 5000, 2]);
}

#[test]
fn every_index_up_to_4096_rows_comes_exactly_once() {
    check_bijections(|n| n ^ 0x55, 1);
}

#[test]
#[ignore = "a minute: 20 seeds"]
fn every_index_up_to_4096_rows_comes_exactly_once_for_more_seeds() {
    (0..20).for_each(|seed| check_bijections(|_| seed, seed / 3));
}

fn check_bijections(seed: impl Fn(u64) -> u64, epoch: u64) {
    let mut marks = vec![0u64; 4096];
    for n in 1..=4096u64 {
        let p = Permutation::new(n, seed(n), epoch);
        for i in 0..n {
            let j = p.at(i);
            assert!(marks[j as usize] < n, "n {n}: {j} comes twice");
            marks[j as usize] = n;
            assert_eq!(p.inverse(j), i, "n {n}");
        }
        assert!(marks[..n as usize].iter().all(|&mark| mark == n), "n {n}");
    }
}

#[test]
fn the_inverse_undoes_large_permutations() {
    let mut random = Random(1);
    for case in 0..400 {
        let n = 1024 + random.below(1 << (10 + case % 31)) as u64;
        let p = Permutation::new(n, random.next(), random.next());
        for i in [0, n - 1].into_iter().chain((0..200).map(|_| random.below(n as usize) as u64)) {
            let j = p.at(i);
            assert!(j < n);
            assert_eq!(p.inverse(j), i, "n {n}");
        }
    }
}

#[test]
fn seeds_and_epochs_give_different_orders() {
    let orders: Vec<Vec<u64>> = [(0, 0), (0, 1), (1, 0), (1, 1)]
        .map(|(seed, epoch)| (0..100).map(|i| Permutation::new(5000, seed, epoch).at(i)).collect())
        .to_vec();
    for (i, a) in orders.iter().enumerate() {
        for b in &orders[..i] {
            assert!(a.iter().zip(b).filter(|(a, b)| a == b).count() < 5);
        }
    }
}

#[test]
fn neighbours_and_places_are_independent() {
    check_quality(&[(1024, 16), (1100, 16), (4095, 16), (4097, 16), (65_536, 64), (200_001, 64)], 40);
}

#[test]
#[ignore = "minutes: a thousand seeds"]
fn neighbours_and_places_are_independent_for_a_thousand_seeds() {
    check_quality(&[(1024, 8), (4097, 16), (65_537, 64), (300_000, 64)], 1000);
}

fn check_quality(sizes: &[(u64, u64)], seeds: u64) {
    for &(n, side) in sizes {
        let order = |p: Permutation| (0..n).map(|i| p.at(i)).collect::<Vec<u64>>();
        let all: Vec<[f64; 2]> =
            (0..seeds).map(|seed| quality::scores(&order(Permutation::new(n, seed, seed % 3)), side)).collect();
        quality::check(&format!("n {n}"), &all);
    }
}

#[test]
fn a_shuffle_passes_and_affine_orders_fail() {
    let mut random = Random(3);
    let shuffled: Vec<[f64; 2]> = (0..200)
        .map(|_| {
            let mut order: Vec<u64> = (0..65_536).collect();
            (1..order.len()).rev().for_each(|i| order.swap(i, random.below(i + 1)));
            quality::scores(&order, 64)
        })
        .collect();
    quality::check("shuffle", &shuffled);
    for n in [65_537, 200_003] {
        for _ in 0..50 {
            // Both n are prime: each factor gives a permutation.
            let (factor, offset) = (1 + random.below(n as usize - 1) as u64, random.below(n as usize) as u64);
            let order: Vec<u64> = (0..n).map(|i| (i * factor + offset) % n).collect();
            assert!(quality::fails(quality::scores(&order, 64)), "n {n}, {factor}");
        }
    }
}
