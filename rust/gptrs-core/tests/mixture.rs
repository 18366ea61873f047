//! Mixtures: a worked example, frozen values, exact shares, each source in its own order, seeking equal to walking, and
//! limits that are exact.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/random.rs"]
mod random;

use std::sync::Arc;

use gptrs_core::Error;
use gptrs_core::mixture::{Limit, Mixture, NAME, Pick, Source, Stage};
use proptest::prelude::*;
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
    let eight = |of: fn(&Pick) -> String| picks.iter().take(8).map(of).collect::<Vec<_>>().join(" ");
    let (sources_of, numbers) = (eight(|pick| pick.source.to_string()), eight(|pick| pick.index.to_string()));
    let stated = format!("Sources by position: {sources_of}; their numbers: {numbers}.");
    assert!(include_str!("../../../docs/formats.md").contains(&stated), "{stated}");
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

/// `(stages, seed, samples, (number, source, index) of some, start of BLAKE3 of the pairs of u64 of all, digest of the
/// mixture of sources s0, s1, ... with 1000 rows)`, computed by an independent program from docs/formats.md.
type Golden<'a> = (&'a [(Option<u64>, &'a [f64])], u64, u64, [(u64, usize, u64); 3], &'a str, &'a str);
const GOLDEN: [Golden; 4] = [
    (
        &[(None, &[7.0, 2.0, 1.0])],
        1,
        60_000,
        [(0, 2, 0), (5009, 0, 3506), (59_999, 2, 5999)],
        "84893d9da58574e6",
        "e77a570873be23a1718bdec533a762f66f350e333c3c353498d6687e74b87fc2",
    ),
    (
        &[(None, &[0.7, 0.2, 0.1])],
        1,
        60_000,
        [(0, 2, 0), (5009, 0, 3506), (59_999, 2, 5999)],
        "84893d9da58574e6",
        "136d82ecf1dde56d2bb6abea6103cdf76e25634d9217350716b5bfdce963e881",
    ),
    (
        &[(Some(10), &[1.0, 1.0, 0.0]), (Some(5000), &[0.1, 0.0, 5.0]), (None, &[0.3, 0.3, 1e-3])],
        u64::MAX,
        60_000,
        [(9, 0, 4), (5010, 0, 103), (59_999, 1, 27_453)],
        "48a5ee4081669e38",
        "0524290c2c7673b4a2e3256cd8a50749ab8e43cc20ad2f1d9e21872c700a8a0f",
    ),
    (
        &[(Some(123_457), &[1.0, 1e-4])],
        7,
        123_457,
        [(1024, 0, 1024), (5009, 0, 5008), (59_999, 0, 59_993)],
        "36d61569d3642767",
        "c65a55a624c04123b4ea4d206380c566cba86248a8e364f74cb28a1707cb1d98",
    ),
];

#[test]
fn the_mixture_is_frozen() {
    assert_eq!(NAME, "mixture-v1");
    for (stages, seed, n, some, all, digest) in GOLDEN {
        let rows = vec![(1000, None); stages[0].1.len()];
        let stages: Vec<Stage> = stages.iter().map(|&(samples, weights)| stage(samples, weights)).collect();
        let mixture = Arc::new(Mixture::new(sources(&rows), &stages, seed).unwrap());
        for (sample, source, index) in some {
            assert_eq!(mixture.at(sample).unwrap(), Pick { source, index });
        }
        let mut hasher = blake3::Hasher::new();
        for pick in mixture.walk(0).unwrap().take(n as usize).map(Result::unwrap) {
            hasher.update(&(pick.source as u64).to_le_bytes()).update(&pick.index.to_le_bytes());
        }
        assert_eq!(hasher.finalize().to_hex()[..16], *all);
        assert_eq!(blake3::Hash::from(mixture.digest()).to_hex().as_str(), digest);
    }
}

/// The definition, with lists: each stage is `(samples, weights)`, the last as long as it need be.
fn naive(stages: &[(u64, Vec<u64>)], seed: u64) -> Vec<Pick> {
    let mut counts = vec![0; stages[0].1.len()];
    let mut picks = Vec::new();
    for (number, (samples, weights)) in stages.iter().enumerate() {
        let total: u64 = weights.iter().sum();
        let smallest = *weights.iter().filter(|&&weight| weight > 0).min().unwrap();
        let block = total.div_ceil(smallest).next_power_of_two().max(1024);
        let blocks = (samples / block).max(1);
        for index in 0..blocks {
            let (start, end) = (index * block, if index + 1 == blocks { *samples } else { (index + 1) * block });
            let quota = |source: usize, n: u64| weights[..source].iter().sum::<u64>() * n / total;
            let run = |source| {
                (quota(source + 1, end) - quota(source + 1, start)) - (quota(source, end) - quota(source, start))
            };
            let slots = (0..weights.len()).flat_map(|source| vec![source; run(source) as usize]).collect();
            let key = ["gptrs mixture-v1".as_bytes(), &words([seed, number as u64, index])].concat();
            let key = u64::from_le_bytes(blake3::hash(&key).as_bytes()[..8].try_into().unwrap());
            for source in halved(slots, key, 1) {
                picks.push(Pick { source, index: counts[source] });
                counts[source] += 1;
            }
        }
    }
    picks
}

fn words(values: [u64; 3]) -> [u8; 24] {
    values.map(u64::to_le_bytes).concat().try_into().unwrap()
}

fn halved(slots: Vec<usize>, key: u64, node: u64) -> Vec<usize> {
    let (n, half) = (slots.len() as u128, slots.len() as u128 / 2);
    if n == 1 {
        return slots;
    }
    // The first draw of SplitMix64 with the seed that makes its state `key + node`.
    let draw = Random(key.wrapping_add(node).wrapping_sub(0x9E37_79B9_7F4A_7C15)).next();
    let dither = (u128::from(draw) * n) >> 64;
    let goes_left = |slot: u128| ((slot + 1) * half + dither) / n > (slot * half + dither) / n;
    let (left, right): (Vec<_>, Vec<_>) = (0..n).zip(slots).partition(|&(slot, _)| goes_left(slot));
    let of = |side: Vec<(u128, usize)>, node| halved(side.into_iter().map(|(_, source)| source).collect(), key, node);
    [of(left, 2 * node), of(right, 2 * node + 1)].concat()
}

/// A mixture of whole weights and its picks by definition; it ends with them.
fn both(stages: &[(u64, Vec<u64>)], rows: &[(u64, Option<u64>)], seed: u64) -> (Arc<Mixture>, Vec<Pick>) {
    let float = |(samples, weights): &(u64, Vec<u64>)| Stage {
        samples: Some(*samples),
        weights: weights.iter().map(|&weight| weight as f64).collect(),
    };
    let mixture = Mixture::new(sources(rows), &stages.iter().map(float).collect::<Vec<_>>(), seed).unwrap();
    (Arc::new(mixture), naive(stages, seed))
}

fn check_walk(mixture: &Arc<Mixture>, picks: &[Pick]) {
    let mut counts = vec![0; mixture.sources().len()];
    let mut walk = mixture.walk(0).unwrap();
    for (sample, pick) in (0..).zip(picks) {
        assert_eq!(walk.next().unwrap().unwrap(), *pick, "sample {sample}");
        assert_eq!(mixture.at(sample).unwrap(), *pick, "sample {sample}");
        assert_eq!(pick.index, counts[pick.source], "sample {sample}");
        assert_eq!(mixture.counts(sample).unwrap(), counts, "sample {sample}");
        counts[pick.source] += 1;
    }
    let end = picks.len() as u64;
    assert_eq!((mixture.end(), mixture.counts(end).unwrap(), walk.next_sample()), (end, counts, end));
    for error in [walk.next().unwrap().map(|_| ()), mixture.at(end).map(|_| ()), mixture.check(u64::MAX)] {
        assert!(matches!(error.unwrap_err(), Error::MixtureEnd { end: at, .. } if at == end));
    }
    assert!(walk.next().is_none() && mixture.counts(end + 1).is_err() && mixture.walk(end + 1).is_err());
}

fn stages_of(k: usize, stages: usize, samples: u64) -> impl Strategy<Value = Vec<(u64, Vec<u64>)>> {
    let weight = prop_oneof![Just(0u64), 1..10u64, 1..2000u64];
    let weights =
        proptest::collection::vec(weight, k).prop_filter("a weight", |weights| weights.iter().any(|&w| w > 0));
    proptest::collection::vec((1..samples, weights), 1..=stages)
}

fn mixtures() -> impl Strategy<Value = (Vec<(u64, Vec<u64>)>, u64)> {
    (1..7usize).prop_flat_map(|k| (stages_of(k, 4, 6000), any::<u64>()))
}

/// Exact shares where a stage and its blocks end: weights are whole numbers, so this is arithmetic without rounding.
fn check_shares(weights: &[u64], seed: u64, samples: u64, random: &mut Random) {
    let total: u64 = weights.iter().sum();
    let smallest = *weights.iter().filter(|&&weight| weight > 0).min().unwrap();
    let block = total.div_ceil(smallest).next_power_of_two().max(1024);
    let floats: Vec<f64> = weights.iter().map(|&weight| weight as f64).collect();
    let mixture = Mixture::new(sources(&vec![(1000, None); weights.len()]), &[stage(samples, &floats)], seed).unwrap();
    let inside = (0..30).map(|_| random.next() % (samples / block).max(1) * block);
    for n in inside.chain([samples]) {
        let counts = mixture.counts(n).unwrap();
        assert_eq!(counts.iter().sum::<u64>(), n);
        for (&count, &weight) in counts.iter().zip(weights) {
            let error = i128::from(count) * i128::from(total) - i128::from(weight) * i128::from(n);
            assert!(error.unsigned_abs() < u128::from(total), "{weights:?}: {count} of {n} samples");
        }
    }
}

/// One sample is one more of its source, wherever it is.
fn check_somewhere(mixture: &Mixture, sample: u64) {
    let (before, after) = (mixture.counts(sample).unwrap(), mixture.counts(sample + 1).unwrap());
    let Pick { source, index } = mixture.at(sample).unwrap();
    assert_eq!(before[source], index);
    let mut expected = before;
    expected[source] += 1;
    assert_eq!(after, expected, "sample {sample}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_mixture_is_what_its_definition_says((stages, seed) in mixtures()) {
        let (mixture, picks) = both(&stages, &vec![(7, None); stages[0].1.len()], seed);
        check_walk(&mixture, &picks);
    }

    #[test]
    fn the_limit_is_the_first_sample_too_many((stages, seed) in mixtures(), rows in 1..900u64, epochs in 1..4u64) {
        let k = stages[0].1.len();
        let specs: Vec<_> = (0..k as u64).map(|i| (rows + i * 100, (i % 3 != 2).then_some(epochs))).collect();
        let (mixture, mut picks) = both(&stages, &specs, seed);
        let is_over = |pick: &Pick| specs[pick.source].1.is_some_and(|epochs| pick.index >= specs[pick.source].0 * epochs);
        let first = picks.iter().position(is_over);
        let expected = first.map(|at| Limit { sample: at as u64, source: picks[at].source });
        prop_assert_eq!(mixture.limit(), expected);
        picks.truncate(first.unwrap_or(picks.len()));
        check_walk(&mixture, &picks);
    }

    #[test]
    fn no_source_errs_by_a_sample_at_a_border((stages, seed) in mixtures(), samples in 1..u64::MAX) {
        for (number, (_, weights)) in (0..).zip(&stages) {
            check_shares(weights, seed, samples >> (number * 9), &mut Random(seed));
        }
    }

    #[test]
    fn counts_rise_one_by_one_at_any_distance(
        weights in proptest::collection::vec(1e-4..1.0f64, 1..9), seed: u64, samples in proptest::collection::vec(0..u64::MAX - 1, 20)
    ) {
        let mixture = endless(&weights, seed);
        for sample in samples {
            check_somewhere(&mixture, sample);
            let mut walk = mixture.walk(sample).unwrap();
            for next in sample..sample.saturating_add(3).min(mixture.end()) {
                prop_assert_eq!(walk.next().unwrap().unwrap(), mixture.at(next).unwrap());
            }
        }
    }

    #[test]
    fn distant_limits_are_exact(weights in proptest::collection::vec(1e-4..1.0f64, 1..9), seed: u64, rows in 1..u64::MAX >> 5) {
        let specs = |epochs| sources(&vec![(rows, epochs); weights.len()]);
        let stages = [stage(12_345, &weights), stage(None, &weights)];
        let mixture = Mixture::new(specs(Some(1)), &stages, seed).unwrap();
        let free = Mixture::new(specs(None), &stages, seed).unwrap();
        let Limit { sample, source } = mixture.limit().unwrap();
        prop_assert_eq!(free.at(sample).unwrap(), Pick { source, index: rows });
        prop_assert!(free.counts(sample).unwrap().iter().all(|&count| count <= rows));
        prop_assert_eq!(mixture.at(sample - 1).unwrap(), free.at(sample - 1).unwrap());
        prop_assert!(mixture.at(sample).is_err());
    }
}

/// The properties above for more and longer mixtures.
#[test]
#[ignore = "minutes: thousands of mixtures"]
fn mixtures_are_what_their_definition_says() {
    let mut random = Random(11);
    for case in 0..3000u64 {
        let k = 1 + random.below(12);
        let stages: Vec<(u64, Vec<u64>)> = (0..=random.below(4))
            .map(|_| {
                let mut weights: Vec<u64> = (0..k).map(|_| random.next() >> random.below(64) & 0xFFF).collect();
                weights[random.below(k)] += 1;
                (1 + random.next() % (1 << random.below(15)), weights)
            })
            .collect();
        let (mixture, picks) = both(&stages, &vec![(5, None); k], case);
        check_walk(&mixture, &picks);
        for (_, weights) in &stages {
            check_shares(weights, case, 1 + (random.next() >> random.below(63)), &mut random);
        }
    }
}

#[test]
fn stages_switch_at_the_exact_sample() {
    let stages: Vec<(u64, Vec<u64>)> =
        [1, 1023, 1024, 1025, 2047, 2048, 1].map(|samples| (samples, vec![0, 0])).to_vec();
    let stages: Vec<_> = (0..).zip(stages).map(|(i, (samples, _))| (samples, vec![i % 2, 1 - i % 2])).collect();
    let (mixture, picks) = both(&stages, &[(10, None); 2], 3);
    check_walk(&mixture, &picks);
    let mut sample = 0;
    for (number, (samples, _)) in stages.iter().enumerate() {
        for n in sample..sample + samples {
            assert_eq!((mixture.stage(n), mixture.at(n).unwrap().source), (number, 1 - number % 2), "sample {n}");
        }
        sample += samples;
    }
    assert_eq!((mixture.n_samples(), mixture.end(), mixture.limit()), (Some(7169), 7169, None));
    let message = mixture.at(7169).unwrap_err().to_string();
    assert!(message.ends_with("got 7169: its stages are over; hint: lengthen the last one"), "{message}");
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

#[test]
fn every_position_has_each_source_as_often_as_its_share() {
    // 1024 positions of a whole block, and the uneven ones of a stage that is shorter or longer than a block.
    for samples in [700u64, 1024, 1500] {
        let runs = 1500;
        let mut often = vec![[0u64; 3]; samples as usize];
        let mut quotas = [0; 3];
        for seed in 0..runs {
            let specs = sources(&[(1000, None); 3]);
            let mixture = Arc::new(Mixture::new(specs, &[stage(samples, &[7.0, 2.0, 1.0])], seed).unwrap());
            let picks = mixture.walk(0).unwrap().map_while(Result::ok);
            often.iter_mut().zip(picks).for_each(|(often, pick)| often[pick.source] += 1);
            quotas.copy_from_slice(&mixture.counts(samples).unwrap());
        }
        for (source, quota) in quotas.into_iter().enumerate() {
            let share = quota as f64 / samples as f64;
            let spread = (runs as f64 * share * (1.0 - share)).sqrt();
            let scores = often.iter().map(|often| (often[source] as f64 - runs as f64 * share) / spread);
            // 9672 scores in all, about normal: one beyond 5.5 has a probability of 4e-4.
            let worst = scores.fold(0.0, |worst: f64, score| worst.max(score.abs()));
            assert!(worst < 5.5, "{samples} samples, source {source}: {worst}");
        }
    }
}

#[test]
fn weights_are_ratios() {
    let digest = |weights: &[f64]| endless(weights, 1).digest();
    assert_eq!(digest(&[3.0, 1.0, 0.0]), digest(&[0.75, 0.25, -0.0]));
    assert_eq!(digest(&[f64::MAX, f64::MAX, f64::MAX]), digest(&[1.0; 3]));
    assert_eq!(digest(&[5e-324, 1e-323]), digest(&[1.0, 2.0]));
    assert_eq!(digest(&[f64::from_bits(1 << 52), f64::from_bits(1 << 51)]), digest(&[2.0, 1.0]));
    assert_eq!(endless(&vec![1e300; 1024], 1).counts(1 << 50).unwrap(), vec![1 << 40; 1024]);
    let rare = endless(&[f64::from((1 << 20) - 1), 1.0], 1);
    assert_eq!(rare.counts(1 << 40).unwrap(), [(1 << 40) - (1 << 20), 1 << 20]);
    check_somewhere(&rare, (1 << 50) + 12_345);
}

#[test]
fn the_digest_is_of_all_that_decides_samples() {
    let of = |name: &str, n_rows, max_epochs, samples: Option<u64>, weights: &[f64], seed| {
        let sources = vec![Source { name: name.to_owned(), n_rows, max_epochs }, sources(&[(5, None)]).remove(0)];
        Mixture::new(sources, &[stage(samples, weights)], seed).unwrap().digest()
    };
    let digest = of("a", 9, None, None, &[1.0, 2.0], 1);
    assert_eq!(digest, of("a", 9, Some(3), None, &[1.0, 2.0], 1));
    let others = [
        of("b", 9, None, None, &[1.0, 2.0], 1),
        of("a", 8, None, None, &[1.0, 2.0], 1),
        of("a", 9, None, Some(100), &[1.0, 2.0], 1),
        of("a", 9, None, None, &[2.0, 1.0], 1),
        of("a", 9, None, None, &[1.0, 2.0], 2),
    ];
    assert!(others.iter().all(|other| *other != digest));
}

#[test]
fn what_does_not_fit_is_refused() {
    let rows = [(10, None), (20, Some(1))];
    let ok = || stage(None, &[1.0, 1.0]);
    let cases: [(Vec<Source>, Vec<Stage>, &str); 15] = [
        (vec![], vec![ok()], "expected 1 to 1024 sources, got 0"),
        (sources(&vec![(1, None); 1025]), vec![ok()], "expected 1 to 1024 sources, got 1025"),
        (
            [sources(&rows), sources(&rows)].concat(),
            vec![ok()],
            "expected sources of different names, got \"s0\" twice",
        ),
        (sources(&[(1, None), (0, None)]), vec![ok()], "source \"s1\" has no rows; hint: use a smaller seq_len"),
        (sources(&[(1, None), (1, Some(0))]), vec![ok()], "max_epochs of source \"s1\" must be at least 1, got 0"),
        (sources(&rows), vec![], "expected at least one stage, got none"),
        (sources(&rows), vec![stage(None, &[1.0])], "stage 0: expected 2 weights, one for each source, got 1"),
        (sources(&rows), vec![ok(), ok()], "stage 0 has no length; hint: only the last one may be without end"),
        (sources(&rows), vec![stage(0, &[1.0; 2])], "stage 0: expected 1 to 18446744073709551615 samples, got 0"),
        (
            sources(&rows),
            vec![stage(5, &[1.0; 2]), stage(u64::MAX, &[1.0; 2])],
            "stage 1: expected 1 to 18446744073709551610",
        ),
        (
            sources(&rows),
            vec![stage(5, &[f64::NAN, 1.0])],
            "stage 0: weight of \"s0\" must be finite and not negative, got NaN",
        ),
        (
            sources(&rows),
            vec![stage(5, &[1.0, f64::INFINITY])],
            "stage 0: weight of \"s1\" must be finite and not negative, got inf",
        ),
        (
            sources(&rows),
            vec![stage(5, &[1.0, -1.0])],
            "stage 0: weight of \"s1\" must be finite and not negative, got -1",
        ),
        (sources(&rows), vec![stage(5, &[0.0, 0.0])], "stage 0: expected at least one weight above 0, got none"),
        (
            sources(&rows),
            vec![stage(5, &[1.0, 1e-7])],
            "stage 0: weight of \"s1\" must be 0 or at least a 2^20th of the sum",
        ),
    ];
    for (sources, stages, expected) in cases {
        let message = Mixture::new(sources, &stages, 0).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}
