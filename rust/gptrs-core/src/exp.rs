//! The exponential function of many numbers, by whatever registers the caller is compiled for.

/// Beyond these, results are 0, or infinite.
const LOWEST: f32 = -87.336_54;
const HIGHEST: f32 = 88.722_83;

/// eˣ, with an error below 1.5 units in the last place; results below the smallest normal number are 0.
///
/// eˣ = 2ⁿ·eʳ with n the integer nearest to x / ln 2, so |r| ≤ ln 2 / 2, and eʳ by its series up to r⁷ / 7!, of which the
/// rest is below 6·10⁻⁹.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two parts, the first with so few bits that n times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Added and taken away, it rounds to an integer, which stands in its lowest bits meanwhile.
    const ROUNDS: f32 = 12_582_912.0;
    let inside = x.clamp(LOWEST, HIGHEST);
    let shifted = inside.mul_add(std::f32::consts::LOG2_E, ROUNDS);
    let n = shifted - ROUNDS;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], inside));
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = r.mul_add(sum, factor);
    }
    // n is between -126 and 128, and the power of two is taken in halves: 2¹²⁸ is no number.
    let half = (shifted.to_bits() as i32 - ROUNDS.to_bits() as i32) >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let rest = shifted.to_bits() as i32 - ROUNDS.to_bits() as i32 - half;
    let found = sum * power(half) * power(rest);
    let found = if x < LOWEST { 0.0 } else { found };
    let found = if x > HIGHEST { f32::INFINITY } else { found };
    if x.is_nan() { x } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_exact_as_its_type() {
        for i in 0..2_000_000 {
            let x = -87.3 + 176.0 * i as f32 / 2_000_000.0;
            let wanted = f64::from(x).exp();
            let error = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(error < 1.5 * f64::from(f32::EPSILON), "{x} {error:e}");
        }
        for x in [-0.0, 0.0] {
            assert_eq!(exp(x).to_bits(), 1.0_f32.to_bits());
        }
    }

    #[test]
    fn it_ends_at_zero_and_at_infinity() {
        let ends = [-1e9, -87.4, f32::NEG_INFINITY, 88.8, 1e9, f32::INFINITY].map(exp);
        assert_eq!(
            ends.map(f32::to_bits),
            [0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY].map(f32::to_bits)
        );
        assert!(exp(f32::NAN).is_nan() && exp(HIGHEST).is_finite() && exp(LOWEST) >= f32::MIN_POSITIVE);
    }
}
