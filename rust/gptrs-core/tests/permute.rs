//! The order of rows: frozen values, bijection, inverse, and that it looks random where an affine order does not.

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
fn every_index_up_to_4096_rows_comes_exactly_once() {
    let mut seen = vec![0u64; 4096];
    for n in 1..=4096u64 {
        let p = Permutation::new(n, n ^ 0x55, 1);
        for i in 0..n {
            let j = p.at(i);
            assert!(seen[j as usize] < n, "n {n}: {j} comes twice");
            seen[j as usize] = n;
            assert_eq!(p.inverse(j), i, "n {n}");
        }
        assert!(seen[..n as usize].iter().all(|&mark| mark == n), "n {n}");
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
fn neighbours_and_places_are_independent_and_an_affine_order_fails_the_test() {
    for n in [1024, 1100, 4095, 4097, 65_536, 200_001] {
        let scores: Vec<(f64, f64)> = (0..40)
            .map(|seed| {
                let p = Permutation::new(n, seed, 0);
                quality(n, |i| p.at(i))
            })
            .collect();
        let worst = |score: fn(&(f64, f64)) -> f64| scores.iter().map(score).fold(0.0, |a: f64, b| a.max(b.abs()));
        let mean = |score: fn(&(f64, f64)) -> f64| scores.iter().map(score).sum::<f64>() / (scores.len() as f64).sqrt();
        // 240 draws of each score: a normal variable stays below 4.5 in all but 0.2 % of such sets.
        assert!(worst(|s| s.0) < 4.5 && worst(|s| s.1) < 4.5, "n {n}: {scores:?}");
        assert!(mean(|s| s.0).abs() < 4.0 && mean(|s| s.1).abs() < 4.0, "n {n}: {scores:?}");
        let affine = quality(n, |i| (i * 2_654_435_761 + 12_345) % n); // 2654435761 is prime
        assert!(affine.0.abs() > 10.0 || affine.1.abs() > 10.0, "n {n}: {affine:?}");
    }
}

/// Two scores that are about standard normal for a random order: the correlation of neighbours, and chi-square over a
/// square grid of (place, value).
fn quality(n: u64, at: impl Fn(u64) -> u64) -> (f64, f64) {
    let values: Vec<f64> = (0..n).map(|i| at(i) as f64 / n as f64 - 0.5).collect();
    let variance = values.iter().map(|v| v * v).sum::<f64>() / n as f64;
    let correlation = values.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n as f64 / variance;
    let side = if n < 65_536 { 16 } else { 64 };
    let mut grid = vec![0f64; (side * side) as usize];
    for i in 0..n {
        grid[(i * side / n * side + at(i) * side / n) as usize] += 1.0;
    }
    let count = |bucket: u64| ((bucket + 1) * n).div_ceil(side) as f64 - (bucket * n).div_ceil(side) as f64;
    let chi: f64 = (0..side * side)
        .map(|cell| {
            let expected = count(cell / side) * count(cell % side) / n as f64;
            (grid[cell as usize] - expected).powi(2) / expected
        })
        .sum();
    let freedom = ((side - 1) * (side - 1)) as f64;
    (correlation * (n as f64).sqrt(), (chi - freedom) / (2.0 * freedom).sqrt())
}
