use super::*;

/// Sizes of a case: B, H, K, T, columns of own keys, of shared ones, and of values.
type Sizes = [usize; 7];

const CASES: [Sizes; 9] = [
    [1, 1, 1, 1, 1, 0, 1],
    [2, 2, 1, 31, 8, 0, 24],
    [1, 2, 2, 32, 32, 32, 32],
    [1, 3, 3, 33, 64, 32, 64],
    [1, 4, 2, 100, 40, 0, 48],
    [1, 2, 1, 130, 64, 16, 33],
    [2, 1, 1, 130, 96, 0, 16],
    [1, 3, 1, 257, 33, 7, 50],
    [1, 1, 1, 300, 16, 0, 16],
];

/// Numbers that are laid out with room between rows.
struct Laid {
    numbers: Vec<f32>,
    shape: [usize; 4],
    steps: [usize; 3],
}

impl Laid {
    /// Drawn numbers (B, heads, T, width), laid out head by head or position by position.
    fn new(shape: [usize; 4], seed: u64, is_by_position: bool) -> Self {
        let [b, heads, t, width] = shape;
        let row = width + 3;
        let steps = if is_by_position { [t * heads * row, row, heads * row] } else { [heads * t * row, t * row, row] };
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state as i32) as f32 / (1_u64 << 30) as f32
        };
        let mut drawn = vec![f32::NAN; b * steps[0]];
        for (b, h, t, i) in places(shape) {
            drawn[b * steps[0] + h * steps[1] + t * steps[2] + i] = draw();
        }
        Self { numbers: drawn, shape, steps }
    }

    fn view(&self) -> View<'_> {
        View::new(&self.numbers, self.shape, self.steps).unwrap()
    }

    fn at(&self, b: usize, h: usize, t: usize, i: usize) -> f64 {
        f64::from(self.numbers[b * self.steps[0] + h * self.steps[1] + t * self.steps[2] + i])
    }
}

fn places(shape: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let [b, h, t, n] = shape;
    (0..b * h * t * n).map(move |i| (i / (h * t * n), i / (t * n) % h, i / n % t, i % n))
}

struct Case {
    sizes: Sizes,
    q: Laid,
    k: Laid,
    v: Laid,
    key: Option<Laid>,
    d_out: Laid,
    scale: f32,
}

/// What is made of a case: out, lse, dq, dk, dv, dkey, each in its order.
type Results<T> = [Vec<T>; 6];

impl Case {
    fn new(sizes: Sizes, seed: u64) -> Self {
        let [b, h, n, t, own, shared, value] = sizes;
        let is_by_position = seed.is_multiple_of(2);
        let laid = |shape, i| Laid::new(shape, 10 * seed + i, is_by_position);
        let key = (shared > 0).then(|| laid([b, 1, t, shared], 4));
        let (q, k, v) = (laid([b, h, t, own + shared], 1), laid([b, n, t, own], 2), laid([b, n, t, value], 3));
        Self { sizes, q, k, v, key, d_out: laid([b, h, t, value], 5), scale: 0.5 }
    }

    fn inputs(&self) -> Inputs<'_> {
        let key = self.key.as_ref().map(Laid::view);
        Inputs::new(self.q.view(), self.k.view(), self.v.view(), key, self.scale).unwrap()
    }

    fn lengths(&self) -> [usize; 6] {
        let [b, h, n, t, own, shared, value] = self.sizes;
        [
            b * t * h * value,
            b * h * t,
            b * t * h * (own + shared),
            b * t * n * own,
            b * t * n * value,
            b * t * n * shared,
        ]
    }

    fn found(&self, n_threads: usize) -> Results<f32> {
        let [b, h, _, t, _, _, value] = self.sizes;
        let [mut out, mut lse, mut q, mut k, mut v, mut key] = self.lengths().map(|n| vec![f32::NAN; n]);
        let run = |work: &(dyn Fn() + Sync)| {
            std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(work))));
        };
        let forward = Forward::new(self.inputs(), &mut out, &mut lse).unwrap();
        run(&|| forward.work());
        drop(forward);
        let view = View::new(&out, [b, h, t, value], [t * h * value, value, h * value]).unwrap();
        let gradients = Gradients { q: &mut q, k: &mut k, v: &mut v, key: &mut key };
        let backward = Backward::new(self.inputs(), view, &lse, self.d_out.view(), gradients).unwrap();
        run(&|| backward.work());
        drop(backward);
        [out, lse, q, k, v, key]
    }

    /// The same in float64, by the definition.
    fn expected(&self) -> Results<f64> {
        let [b_, h_, n_, t_, own, shared, value] = self.sizes;
        let [mut out, mut lse, mut dq, mut dk, mut dv, mut dkey] = self.lengths().map(|n| vec![0.0; n]);
        let (width, scale) = (own + shared, f64::from(self.scale));
        for (b, h, t) in (0..b_ * h_ * t_).map(|i| (i / (h_ * t_), i / t_ % h_, i % t_)) {
            let n = h / (h_ / n_);
            let key = |s: usize, i: usize| match &self.key {
                Some(key) if i >= own => key.at(b, 0, s, i - own),
                _ => self.k.at(b, n, s, i),
            };
            let scores: Vec<f64> =
                (0..=t).map(|s| scale * (0..width).map(|i| self.q.at(b, h, t, i) * key(s, i)).sum::<f64>()).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = top + scores.iter().map(|score| (score - top).exp()).sum::<f64>().ln();
            lse[(b * h_ + h) * t_ + t] = total;
            let weights: Vec<f64> = scores.iter().map(|score| (score - total).exp()).collect();
            let d_weights: Vec<f64> =
                (0..=t).map(|s| (0..value).map(|i| self.d_out.at(b, h, t, i) * self.v.at(b, n, s, i)).sum()).collect();
            let delta: f64 = weights.iter().zip(&d_weights).map(|(a, b)| a * b).sum();
            let at = (b * t_ + t) * h_ + h;
            for s in 0..=t {
                let d_score = weights[s] * (d_weights[s] - delta) * scale;
                let at_key = (b * t_ + s) * n_ + n;
                for i in 0..value {
                    out[at * value + i] += weights[s] * self.v.at(b, n, s, i);
                    dv[at_key * value + i] += weights[s] * self.d_out.at(b, h, t, i);
                }
                for i in 0..width {
                    dq[at * width + i] += d_score * key(s, i);
                    let sum = if i < own { &mut dk[at_key * own + i] } else { &mut dkey[at_key * shared + i - own] };
                    *sum += d_score * self.q.at(b, h, t, i);
                }
            }
        }
        [out, lse, dq, dk, dv, dkey]
    }
}

#[test]
fn values_and_gradients_are_those_of_the_definition() {
    // Without tiles sums of 32 numbers are taken one after the other.
    let bound = if crate::gemm::is_available() { 2e-6 } else { 1e-5 };
    for (seed, sizes) in CASES.into_iter().enumerate() {
        let case = Case::new(sizes, seed as u64);
        let names = ["out", "lse", "dq", "dk", "dv", "dkey"];
        for ((found, expected), name) in case.found(1).iter().zip(case.expected()).zip(names) {
            let size = expected.iter().fold(1.0_f64, |size, x| size.max(x.abs()));
            let error = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(
                found.iter().all(|x| x.is_finite()) && error <= bound * size,
                "{sizes:?} {name}: {error:e} of {size}"
            );
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for sizes in [[2, 4, 2, 70, 24, 8, 16], [1, 6, 6, 140, 32, 0, 32]] {
        let case = Case::new(sizes, 3);
        let bits = |n| case.found(n).map(|numbers| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        let one = bits(1);
        assert!([2, 5].into_iter().all(|n| bits(n) == one), "{sizes:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let numbers = vec![0.0; 1000];
    let view = |shape: [usize; 4]| {
        let [_, h, t, n] = shape;
        View::new(&numbers, shape, [h * t * n, t * n, n]).unwrap()
    };
    assert!(View::new(&numbers, [1, 10, 10, 11], [1, 100, 10]).is_err());
    assert!(View::new(&numbers, [2, 2, 2, 2], [usize::MAX, 2, 2]).is_err());
    let inputs = |q, k, v, key: Option<[usize; 4]>, scale| Inputs::new(view(q), view(k), view(v), key.map(view), scale);
    let (q, k, v, key) = ([1, 4, 5, 6], [1, 2, 5, 4], [1, 2, 5, 3], Some([1, 1, 5, 2]));
    assert!(inputs(q, k, v, key, 1.0).is_ok());
    for (q, k, v, key, scale) in [
        (q, k, v, None, 1.0),
        (q, k, v, key, f32::NAN),
        (q, k, v, Some([1, 2, 5, 2]), 1.0),
        (q, k, v, Some([1, 1, 4, 2]), 1.0),
        ([1, 3, 5, 6], k, v, key, 1.0),
        ([2, 4, 5, 6], k, v, key, 1.0),
        (q, [1, 2, 6, 4], v, key, 1.0),
        (q, k, [1, 4, 5, 3], key, 1.0),
        ([1, 4, 0, 6], [1, 2, 0, 4], [1, 2, 0, 3], Some([1, 1, 0, 2]), 1.0),
        ([1, 4, 5, 4], k, v, Some([1, 1, 5, 0]), 1.0),
    ] {
        assert!(inputs(q, k, v, key, scale).is_err(), "{q:?} {k:?} {v:?} {key:?} {scale}");
    }
    let inputs = inputs(q, k, v, key, 1.0).unwrap();
    for (out, lse) in [(59, 20), (61, 20), (60, 19)] {
        assert!(Forward::new(inputs, &mut vec![0.0; out], &mut vec![0.0; lse]).is_err());
    }
    let sizes = [120, 40, 30, 20];
    for (wrong, out, lse) in
        [(4, [1, 4, 5, 3], 20), (0, [1, 4, 5, 3], 20), (4, [1, 4, 5, 2], 20), (4, [1, 4, 5, 3], 21)]
            .into_iter()
            .chain((1..4).map(|i| (i, [1, 4, 5, 3], 20)))
    {
        let [mut q, mut k, mut v, mut key] = std::array::from_fn(|i| vec![0.0; sizes[i] + usize::from(i == wrong)]);
        let gradients = Gradients { q: &mut q, k: &mut k, v: &mut v, key: &mut key };
        let made = Backward::new(inputs, view(out), &numbers[..lse], view(out), gradients);
        assert_eq!(made.is_ok(), wrong == 4 && out[3] == 3 && lse == 20, "{wrong} {out:?} {lse}");
    }
}
