//! Experts against sums of float64, one after the other.

use super::*;

/// Numbers around zero, in an order that does not repeat soon.
fn numbers(n: usize, seed: u64, spread: f64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n).map(|_| ((draw() as i32) as f64 / f64::from(i32::MAX) * spread) as f32).collect()
}

/// A layer with everything that goes in.
struct Case {
    sizes: Sizes,
    x: Vec<f32>,
    dy: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    weights: Vec<f32>,
    order: Vec<i64>,
    loads: Vec<i64>,
}

/// What comes out.
#[derive(Debug, PartialEq)]
struct Found {
    y: Vec<f32>,
    x: Vec<f32>,
    weights: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

impl Case {
    fn new([n_tokens, dim, width, n_choices, n_experts]: [usize; 5], seed: u64) -> Self {
        let sizes = Sizes { n_tokens, dim, width, n_choices };
        let drawn = numbers(n_tokens * n_choices, seed, 1e6);
        // The first expert has many, the second none, when there are others.
        let expert = |place: usize| match drawn[place].abs() as usize % (n_experts + 2) {
            i if i >= n_experts || (i == 1 && n_experts > 1) => 0,
            i => i,
        };
        let mut order: Vec<i64> = (0..n_tokens * n_choices).map(|place| place as i64).collect();
        order.sort_by_key(|&place| expert(place as usize));
        let mut loads = vec![0; n_experts];
        (0..n_tokens * n_choices).for_each(|place| loads[expert(place)] += 1);
        Self {
            sizes,
            x: numbers(n_tokens * dim, seed + 1, 1.0),
            dy: numbers(n_tokens * dim, seed + 2, 1.0),
            up: numbers(n_experts * 2 * width * dim, seed + 3, 1.0),
            down: numbers(n_experts * dim * width, seed + 4, 1.0),
            weights: numbers(n_tokens * n_choices, seed + 5, 1.0),
            order,
            loads,
        }
    }

    fn routes(&self) -> Routes<'_> {
        Routes::new(self.sizes, &self.weights, &self.order, &self.loads).expect("they fit together")
    }

    fn forward(&self, threads: usize) -> Vec<f32> {
        let Sizes { n_tokens, dim, n_choices, .. } = self.sizes;
        let (mut y, mut rows) = (vec![f32::NAN; n_tokens * dim], vec![f32::NAN; n_tokens * n_choices * dim]);
        let matrices = [self.up.as_slice(), &self.down];
        let run = |work: &(dyn Fn() + Sync)| on(threads, work);
        forward(&self.routes(), &self.x, matrices, &mut rows, &mut y, &run).expect("sizes are right");
        y
    }

    /// Forth and back; what moves instead of getting a gradient is left as the gradient's place.
    fn found(&self, threads: usize) -> Found {
        let y = self.forward(threads);
        let (mut up, mut down) = (vec![f32::NAN; self.up.len()], vec![f32::NAN; self.down.len()]);
        let matrices = [Matrices::Taught(&self.up, &mut up), Matrices::Taught(&self.down, &mut down)];
        let (x, weights, squares) = self.backward(matrices, threads);
        assert_eq!(squares.map(f64::to_bits), [0; 2]);
        Found { y, x, weights, up, down }
    }

    fn backward(&self, matrices: [Matrices<'_>; 2], threads: usize) -> (Vec<f32>, Vec<f32>, [f64; 2]) {
        let mut rows = vec![f32::NAN; self.order.len() * self.sizes.dim];
        let (mut x, mut weights) = (vec![f32::NAN; self.x.len()], vec![f32::NAN; self.weights.len()]);
        let to = Gradients { x: &mut x, weights: &mut weights, rows: &mut rows };
        let run = |work: &(dyn Fn() + Sync)| on(threads, work);
        let squares = backward(&self.routes(), &self.dy, &self.x, matrices, to, &run).expect("sizes are right");
        (x, weights, squares)
    }

    /// The same by float64, token by token.
    fn wanted(&self) -> [Vec<f64>; 5] {
        let Sizes { dim, width, n_choices, .. } = self.sizes;
        let wide = |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|&x| f64::from(x)).collect() };
        let [x, dy, up, down, weights] = [&self.x, &self.dy, &self.up, &self.down, &self.weights].map(|v| wide(v));
        let [mut y, mut d_x, mut d_weights, mut d_up, mut d_down] =
            [x.len(), x.len(), weights.len(), up.len(), down.len()].map(|n| vec![0.0; n]);
        let mut at = 0;
        for (expert, &load) in self.loads.iter().enumerate() {
            for &place in &self.order[at..at + load as usize] {
                let (place, token) = (place as usize, place as usize / n_choices);
                let (x, dy) = (&x[token * dim..][..dim], &dy[token * dim..][..dim]);
                let up_at = |row: usize| (expert * 2 * width + row) * dim;
                let down_at = |row: usize| (expert * dim + row) * width;
                let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
                for i in 0..width {
                    let [g, v] = [i, width + i].map(|row| dot(&up[up_at(row)..][..dim], x));
                    let s = 1.0 / (1.0 + (-g).exp());
                    let (h, share) = (g * s * v, weights[place]);
                    let mut d_h = 0.0;
                    for c in 0..dim {
                        y[token * dim + c] += share * h * down[down_at(c) + i];
                        d_h += dy[c] * down[down_at(c) + i];
                        d_down[down_at(c) + i] += share * h * dy[c];
                    }
                    d_weights[place] += d_h * h;
                    let d = [d_h * share * v * (s + g * s * (1.0 - s)), d_h * share * g * s];
                    for (row, d) in [i, width + i].into_iter().zip(d) {
                        for c in 0..dim {
                            d_x[token * dim + c] += d * up[up_at(row) + c];
                            d_up[up_at(row) + c] += d * x[c];
                        }
                    }
                }
            }
            at += load as usize;
        }
        [y, d_x, d_weights, d_up, d_down]
    }
}

fn on(threads: usize, work: &(dyn Fn() + Sync)) {
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
}

#[test]
fn all_gradients_are_those_of_float64_whatever_the_threads() {
    let cases = [[1, 1, 1, 1, 1], [5, 3, 2, 2, 4], [40, 33, 17, 3, 5], [130, 64, 48, 2, 3], [0, 8, 8, 2, 4]];
    for (seed, shape) in cases.into_iter().enumerate() {
        let case = Case::new(shape, seed as u64 + 1);
        let found = case.found(1);
        for threads in [2, 5] {
            assert!(found == case.found(threads), "{shape:?} on {threads} threads");
        }
        let Found { y, x, weights, up, down } = found;
        for (i, (found, wanted)) in [y, x, weights, up, down].iter().zip(case.wanted()).enumerate() {
            let largest = wanted.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            for (&found, wanted) in found.iter().zip(&wanted) {
                let error = (f64::from(found) - wanted).abs();
                assert!(error <= 2e-6 * largest, "{shape:?} {i}: {found} for {wanted}, {error:e} of {largest}");
            }
        }
    }
}

#[test]
fn matrices_that_move_are_those_of_a_step_behind() {
    let case = Case::new([60, 40, 24, 2, 4], 9);
    let step = AdamW { lr: 0.01, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.1, step: 3.0 };
    let wanted = case.found(2);
    let mut moved = [case.up.clone(), case.down.clone()];
    let mut moments = [&case.up, &case.down]
        .map(|of| [numbers(of.len(), 5, 0.1), numbers(of.len(), 6, 0.1).iter().map(|x| x.abs()).collect::<Vec<f32>>()]);
    let before = (moved.clone(), moments.clone());
    let [up, down] = &mut moved;
    let [[up_1, up_2], [down_1, down_2]] = &mut moments;
    let matrices = [Matrices::Moved(up, [up_1, up_2], step), Matrices::Moved(down, [down_1, down_2], step)];
    let (x, weights, squares) = case.backward(matrices, 2);
    assert_eq!((x, weights), (wanted.x, wanted.weights), "the gradients of others do not notice");
    for (i, gradient) in [wanted.up, wanted.down].iter().enumerate() {
        let sum: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
        assert!((squares[i] - sum).abs() < 1e-6 * sum, "{} {sum}", squares[i]);
        for (at, &g) in gradient.iter().enumerate() {
            let [g, w, m, v] = [g, before.0[i][at], before.1[i][0][at], before.1[i][1][at]].map(f64::from);
            let (m, v) = (m * 0.9 + g * 0.1, v * 0.99 + g * g * 0.01);
            let by = m / (1.0 - 0.9_f64.powi(3)) / ((v / (1.0 - 0.99_f64.powi(3))).sqrt() + 1e-8);
            for (found, wanted) in
                [(moved[i][at], w * (1.0 - 0.01 * 0.1) - 0.01 * by), (moments[i][0][at], m), (moments[i][1][at], v)]
            {
                let error = (f64::from(found) - wanted).abs();
                assert!(error <= 1e-6 * wanted.abs().max(1e-2), "{i} {at}: {found} for {wanted}");
            }
        }
    }
}

#[test]
fn what_is_fixed_needs_no_room() {
    let case = Case::new([20, 16, 8, 2, 3], 4);
    let (x, weights, squares) = case.backward([Matrices::Fixed(&case.up), Matrices::Fixed(&case.down)], 2);
    let wanted = case.found(1);
    assert_eq!((x, weights), (wanted.x, wanted.weights));
    assert_eq!(squares.map(f64::to_bits), [0; 2]);
}

#[test]
fn routes_and_memory_that_do_not_fit_are_refused() {
    let case = Case::new([4, 3, 2, 2, 2], 1);
    let refused = |order: &[i64], loads: &[i64]| {
        Routes::new(case.sizes, &case.weights, order, loads).expect_err("they do not fit").to_string()
    };
    let order: Vec<i64> = (0..8).collect();
    assert!(refused(&order[..7], &[4, 4]).contains("expected 8 choices, got loads of 8, an order of 7, 8 weights"));
    assert!(refused(&order, &[4, 3]).contains("got loads of 7"));
    assert!(refused(&order, &[9, -1]).contains("expected loads of 0 or more, got -1"));
    for bad in [0, 8, -1] {
        let order = [0, 1, 2, 3, 4, 5, 6, bad];
        assert!(refused(&order, &[4, 4]).contains(&format!("each of 8 places once, got {bad} again")));
    }
    let none = Sizes { width: 0, ..case.sizes };
    assert!(Routes::new(none, &case.weights, &order, &[4, 4]).is_err());
    let (mut rows, mut y) = (vec![0.0; 24], vec![0.0; 11]);
    let made = forward(&case.routes(), &case.x, [&case.up, &case.down], &mut rows, &mut y, &|work| on(1, work));
    assert!(made.expect_err("y is short").to_string().contains("expected 12 numbers of y, got 11"));
}
