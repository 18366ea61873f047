//! What is done number by number between products, compiled for the widest registers there are.

use crate::exp::exp;

/// Functions that are compiled twice, the second time for the widest registers, and choose between both when they are called.
macro_rules! wide {
    ($($(#[$about:meta])* $visible:vis fn $name:ident($($given:ident: $of:ty),* $(,)?) $(-> $found:ty)? $body:block)*) => {$(
        $(#[$about])*
        $visible fn $name($($given: $of),*) $(-> $found)? {
            #[inline(always)]
            fn plain($($given: $of),*) $(-> $found)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
                fn widest($($given: $of),*) $(-> $found)? {
                    plain($($given),*)
                }
                if $crate::simd::Level::Avx512.is_available() && is_x86_feature_detected!("avx512dq") {
                    // SAFETY: the processor has these instructions.
                    return unsafe { widest($($given),*) };
                }
            }
            plain($($given),*)
        }
    )*};
}
pub(super) use wide;

wide! {
/// Adds `share` times a row.
pub(super) fn add(sums: &mut [f32], row: &[f32], share: f32) {
    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += share * x);
}
}

/// The logistic function.
#[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

wide! {
/// h = silu(gate)·value of rows (gate | value).
pub(super) fn gated(high: &[f32], width: usize, h: &mut [f32]) {
    for (high, h) in high.chunks(2 * width).zip(h.chunks_mut(width)) {
        let (gate, value) = high.split_at(width);
        for ((h, &g), &v) in h.iter_mut().zip(gate).zip(value) {
            *h = g * sigmoid(g) * v;
        }
    }
}

/// One row of the way back: from `d_h`, the gradient of an unweighted h, that of (gate | value) times `share`; h times `share`
/// takes the place of `d_h`. Returns `d_h·h`, the gradient of the share.
pub(super) fn gated_backward(high: &[f32], share: f32, d_h: &mut [f32], d_high: &mut [f32]) -> f32 {
    let (gate, value) = high.split_at(high.len() / 2);
    let (d_gate, d_value) = d_high.split_at_mut(gate.len());
    let ((gates, gate), (values, value)) = (gate.as_chunks(), value.as_chunks());
    let ((d_hs, d_h), (d_gates, d_gate), (d_values, d_value)) =
        (d_h.as_chunks_mut(), d_gate.as_chunks_mut(), d_value.as_chunks_mut());
    let mut sums = [0.0; LANES];
    for ((((g, v), d), d_g), d_v) in gates.iter().zip(values).zip(d_hs).zip(d_gates).zip(d_values) {
        gated_backward_lanes(g, v, share, [d, d_g, d_v], &mut sums);
    }
    if !gate.is_empty() {
        let ([mut d_lanes, mut d_g, mut d_v], n) = ([lanes(d_h), [0.0; LANES], [0.0; LANES]], gate.len());
        gated_backward_lanes(&lanes(gate), &lanes(value), share, [&mut d_lanes, &mut d_g, &mut d_v], &mut sums);
        d_h.copy_from_slice(&d_lanes[..n]);
        d_gate.copy_from_slice(&d_g[..n]);
        d_value.copy_from_slice(&d_v[..n]);
    }
    sums.iter().sum()
}
}

#[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
#[inline(always)]
fn gated_backward_lanes(
    gate: &Lanes,
    value: &Lanes,
    share: f32,
    [d_h, d_gate, d_value]: [&mut Lanes; 3],
    sums: &mut Lanes,
) {
    for i in 0..LANES {
        let (g, v, d) = (gate[i], value[i], d_h[i]);
        let s = sigmoid(g);
        let silu = g * s;
        let h = silu * v;
        sums[i] += d * h;
        let d_weighted = d * share;
        d_value[i] = d_weighted * silu;
        d_gate[i] = d_weighted * v * (s + silu * (1.0 - s));
        d_h[i] = h * share;
    }
}

/// Numbers of a wide register.
pub(super) const LANES: usize = 16;
pub(super) type Lanes = [f32; LANES];

/// A few numbers, and zeros behind them.
pub(super) fn lanes(few: &[f32]) -> Lanes {
    std::array::from_fn(|i| few.get(i).copied().unwrap_or_default())
}
