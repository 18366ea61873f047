//! `AdamW`'s step of a matrix whose gradient was just made, while it is near.

use super::elementwise::{LANES, Lanes, lanes, wide};

/// The numbers of a step, of one group of parameters.
///
/// Source: arXiv 1711.05101, algorithm 2, with the rate in the decay as torch has it; in the order of torch's fused kernel.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// The rate.
    pub lr: f64,
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// ε.
    pub eps: f64,
    /// λ.
    pub weight_decay: f64,
    /// The number of this step, from 1.
    pub step: f64,
}

impl AdamW {
    /// Moves weights by a gradient, with their moments, and returns the sum of the gradient's squares.
    pub(super) fn make_step(&self, weights: &mut [f32], [first, second]: [&mut [f32]; 2], gradient: &[f32]) -> f64 {
        let [b1, b2] = self.betas;
        let factors = Factors {
            rate: (self.lr / (1.0 - b1.powf(self.step))) as f32,
            correction: (1.0 - b2.powf(self.step)).sqrt() as f32,
            eps: self.eps as f32,
            keeps: (1.0 - self.lr * self.weight_decay) as f32,
            new: [(1.0 - b1) as f32, (1.0 - b2) as f32],
            old: b2 as f32,
        };
        let stretches = weights.chunks_mut(STRETCH).zip(first.chunks_mut(STRETCH));
        let stretches = stretches.zip(second.chunks_mut(STRETCH)).zip(gradient.chunks(STRETCH));
        stretches.map(|(((w, m), v), g)| step_stretch(&factors, w, m, v, g)).sum()
    }
}

/// Numbers whose squares are summed in 32 bits.
const STRETCH: usize = 1 << 10;

/// What all numbers of a step have in common.
struct Factors {
    rate: f32,
    correction: f32,
    eps: f32,
    keeps: f32,
    new: [f32; 2],
    old: f32,
}

wide! {
/// Moves a stretch, and returns the sum of its gradient's squares.
fn step_stretch(factors: &Factors, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) -> f64 {
    let ((ws, w), (ms, m), (vs, v)) = (w.as_chunks_mut(), m.as_chunks_mut(), v.as_chunks_mut());
    let (gs, g) = g.as_chunks();
    let mut sums = [0.0; LANES];
    for (((w, m), v), g) in ws.iter_mut().zip(ms).zip(vs).zip(gs) {
        factors.step_lanes(w, m, v, g, &mut sums);
    }
    if !g.is_empty() {
        let [mut w_lanes, mut m_lanes, mut v_lanes] = [&*w, &*m, &*v].map(lanes);
        factors.step_lanes(&mut w_lanes, &mut m_lanes, &mut v_lanes, &lanes(g), &mut sums);
        for (to, from) in [(w, w_lanes), (m, m_lanes), (v, v_lanes)] {
            to.copy_from_slice(&from[..to.len()]);
        }
    }
    sums.iter().map(|&sum| f64::from(sum)).sum()
}
}

impl Factors {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn step_lanes(&self, w: &mut Lanes, m: &mut Lanes, v: &mut Lanes, g: &Lanes, sums: &mut Lanes) {
        for i in 0..LANES {
            sums[i] += g[i] * g[i];
            m[i] += self.new[0] * (g[i] - m[i]);
            v[i] = v[i] * self.old + self.new[1] * g[i] * g[i];
            w[i] = w[i] * self.keeps - self.rate * m[i] / (v[i].sqrt() / self.correction + self.eps);
        }
    }
}
