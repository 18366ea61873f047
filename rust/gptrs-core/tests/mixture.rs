//! Mixtures: a worked example, frozen values, exact shares, each source in its own order, seeking equal to walking, and
//! limits that are exact.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/random.rs"]
mod random;

use std::sync::Arc;

use gptrs_core::Error;
use gptrs_core::mixture::{Limit, Mixture, Pick, Source, Stage};
use random::Random;

fn sources(n_rows: &[(u64, Option<u64>)]) -> Vec<Source> {
    let named = |(i, &(n_rows, max_epochs))| Source { name: format!("s{i}"), n_rows, max_epochs };
    n_rows.iter().enumerate().map(named).collect()
}

fn stage(samples: impl Into<Option<u64>>, weights: &[f64]) -> Stage {
    Stage { samples: samples.into(), weights: weights.to_vec() }
}

fn endless(weights: &[f64], seed: u64) -> Arc<Mixture> {
    let rows = vec![(1000, None); weights.len()];
    Arc::new(Mixture::new(sources(&rows), &[stage(None, weights)], seed).unwrap())
}

#[test]
fn two_stages_of_two_sources() {
    let stages = [stage(8, &[3.0, 1.0]), stage(None, &[0.0, 1.0])];
    let mixture = Arc::new(Mixture::new(sources(&[(100, None), (5, Some(2))]), &stages, 1).unwrap());
    let picks: Vec<Pick> = mixture.walk(0).unwrap().map_while(Result::ok).collect();
    // Three of four are of the first source until sample 8; then only the second, until it has come twice.
    let of = |source: usize| picks.iter().filter(|pick| pick.source == source).count();
    assert_eq!(mixture.counts(8).unwrap(), [6, 2]);
    assert_eq!((picks.len(), of(0), of(1)), (16, 6, 10));
    assert_eq!(mixture.limit(), Some(Limit { sample: 16, source: 1 }));
    assert_eq!(mixture.epochs(16).unwrap(), [0.06, 2.0]);
    assert_eq!([0, 7, 8].map(|sample| mixture.stage(sample)), [0, 0, 1]);
    let message = mixture.at(16).unwrap_err().to_string();
    assert!(message.contains("before sample 16, got 16: source \"s1\" has given its 5 rows 2 times"), "{message}");
}

/// Walks from 0 by the definition of a mixture: counts are all that it knows.
fn check_walk(mixture: &Arc<Mixture>, n: u64) {
    let mut counts = vec![0; mixture.sources().len()];
    let mut walk = mixture.walk(0).unwrap();
    for sample in 0..n {
        let pick = mixture.at(sample).unwrap();
        assert_eq!(walk.next().unwrap().unwrap(), pick, "sample {sample}");
        assert_eq!(pick.index, counts[pick.source], "sample {sample}");
        counts[pick.source] += 1;
        assert_eq!(mixture.counts(sample + 1).unwrap(), counts, "sample {sample}");
    }
}

#[test]
fn each_source_comes_in_its_own_order() {
    check_walk(&endless(&[1.0], 1), 3000);
    check_walk(&endless(&[7.0, 2.0, 1.0], 2), 5000);
    check_walk(&endless(&[0.5, 0.0, 0.3, 0.2], 3), 5000);
    let stages = [stage(1, &[1.0, 1.0]), stage(1500, &[1.0, 9.0]), stage(3001, &[5.0, 0.01]), stage(7, &[0.0, 1.0])];
    let mixture = Arc::new(Mixture::new(sources(&[(10, None); 2]), &stages, 9).unwrap());
    check_walk(&mixture, 4509);
    assert!(matches!(mixture.at(4509), Err(Error::MixtureEnd { end: 4509, .. })));
}

#[test]
fn every_aligned_power_of_two_has_the_rounded_share_of_its_block() {
    let mixture = endless(&[7.0, 2.0, 1.0], 5);
    let mut random = Random(5);
    for _ in 0..1000 {
        let size = 1u64 << random.below(11);
        let start = random.below(1 << 40) as u64 / size * size;
        let block = start / 1024 * 1024;
        let between = |a: u64, b: u64| -> Vec<u64> {
            let (a, b) = (mixture.counts(a).unwrap(), mixture.counts(b).unwrap());
            b.iter().zip(a).map(|(b, a)| b - a).collect()
        };
        let quotas = between(block, block + 1024);
        for (got, quota) in between(start, start + size).into_iter().zip(quotas) {
            assert!(got == quota * size / 1024 || got == (quota * size).div_ceil(1024), "{start} {size}");
        }
    }
}
