//! A stage of a mixture: shares as whole numbers, and blocks whose borders never err by a sample.

use super::tree::Tree;
use super::{Source, Stage};

/// Blocks have at least so many samples.
const MIN_BLOCK: u64 = 1 << 10;
/// And at most so many: a share must be at least one sample of such a block.
const MAX_BLOCK: u64 = 1 << 20;

/// A stage with its place in the stream.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Its number, from 0.
    pub(super) number: u64,
    /// Its first sample.
    pub(super) start: u64,
    /// Its length; that of an endless stage ends with the counter.
    pub(super) samples: u64,
    /// Samples of each source in the stages before.
    pub(super) before: Vec<u64>,
    /// The weights as whole numbers without a common divisor.
    pub(super) weights: Vec<u64>,
    /// Sums of the first 0, 1, ... weights.
    sums: Vec<u64>,
    /// Length of a block.
    block: u64,
}

/// A block of a stage: the samples from `start` to `start + len`, counted in the stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) tree: Tree,
}

impl Part {
    /// The stage, or what is wrong with its weights.
    pub(super) fn new(
        number: u64,
        stage: &Stage,
        sources: &[Source],
        start: u64,
        before: Vec<u64>,
    ) -> Result<Self, String> {
        let weights = whole(&stage.weights, sources)?;
        let mut sums = vec![0; weights.len() + 1];
        for (i, &weight) in weights.iter().enumerate() {
            sums[i + 1] = sums[i] + weight;
        }
        let total = sums[weights.len()];
        let smallest = weights.iter().copied().filter(|&weight| weight > 0).min().unwrap_or(total);
        let block = total.div_ceil(smallest).max(MIN_BLOCK).next_power_of_two();
        let samples = stage.samples.unwrap_or(u64::MAX - start);
        Ok(Self { number, start, samples, before, weights, sums, block })
    }

    /// Samples of the first `i` sources among the first `n` of this stage: their exact share, rounded down.
    ///
    /// So a source has `⌊x + y⌋ - ⌊x⌋` samples where its share is `y`: less than one more or less. From one border to
    /// the next `y` grows by at least 1, as a block holds a sample of each share: by more than `1 - 2`, so the count,
    /// a whole number, never falls.
    fn quota(&self, i: usize, n: u64) -> u64 {
        let total = self.sums[self.weights.len()];
        (u128::from(self.sums[i]) * u128::from(n) / u128::from(total)) as u64
    }

    /// The block of sample `n` of this stage. What is left at the end of a stage belongs to its last block.
    pub(super) fn block(&self, n: u64, seed: u64) -> Block {
        let last = (self.samples / self.block).max(1) - 1;
        let index = (n / self.block).min(last);
        let start = index * self.block;
        let len = if index == last { self.samples - start } else { self.block };
        Block { start, len, tree: Tree::new(len, seed, self.number, index) }
    }

    /// Slots of the first `i` sources in a block.
    pub(super) fn border(&self, i: usize, block: &Block) -> u64 {
        self.quota(i, block.start + block.len) - self.quota(i, block.start)
    }

    /// The source whose run holds a slot of a block.
    pub(super) fn source(&self, block: &Block, slot: u64) -> usize {
        let (mut low, mut high) = (0, self.weights.len() - 1);
        while low < high {
            let middle = low.midpoint(high);
            if self.border(middle + 1, block) <= slot {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Samples of a source before sample `n` of this stage, those of earlier stages included; the block holds `n`.
    pub(super) fn count(&self, source: usize, block: &Block, n: u64) -> u64 {
        let first = |i| self.quota(i, block.start) + block.tree.rank(self.border(i, block), n - block.start);
        self.before[source] + first(source + 1) - first(source)
    }

    /// Samples of each source when the stage is over.
    pub(super) fn after(&self) -> Vec<u64> {
        let of = |i| self.quota(i + 1, self.samples) - self.quota(i, self.samples);
        (0..self.weights.len()).map(|i| self.before[i] + of(i)).collect()
    }

    /// Where in this stage a source gets its sample number `index`, counted over all stages, if here.
    pub(super) fn find(&self, source: usize, index: u64, seed: u64) -> Option<u64> {
        let index = index.checked_sub(self.before[source])?;
        let count = |n| self.quota(source + 1, n) - self.quota(source, n);
        if count(self.samples) <= index {
            return None;
        }
        // Counts at the starts of blocks never fall: the last start that has at most `index`.
        let (mut low, mut high) = (0, (self.samples / self.block).max(1) - 1);
        while low < high {
            let middle = low.midpoint(high) + 1;
            if count(middle * self.block) <= index {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let block = self.block(low * self.block, seed);
        let run = [source, source + 1].map(|i| self.border(i, &block));
        Some(block.start + block.tree.select(run[0], run[1], index - count(block.start)))
    }
}

/// Weights in units of the last place of the largest one, rounded down, without their common divisor; one for each
/// source, which a message names.
fn whole(weights: &[f64], sources: &[Source]) -> Result<Vec<u64>, String> {
    if let Some((i, weight)) = weights.iter().enumerate().find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
        return Err(format!("weight of {:?} must be finite and not negative, got {weight:?}", sources[i].name));
    }
    let parts: Vec<(u64, u64)> = weights.iter().map(|&weight| parts(weight)).collect();
    let top = parts.iter().map(|part| part.1).max().unwrap_or(0);
    let whole: Vec<u64> =
        parts.iter().map(|&(digits, power)| digits.checked_shr((top - power) as u32).unwrap_or(0)).collect();
    let total: u64 = whole.iter().sum();
    if total == 0 {
        return Err("expected at least one weight above 0, got none".to_owned());
    }
    let least = total.div_ceil(MAX_BLOCK);
    if let Some(i) = (0..whole.len()).find(|&i| weights[i] > 0.0 && whole[i] < least) {
        let weight = weights[i];
        return Err(format!(
            "weight of {:?} must be 0 or at least a 2^20th of the sum, got {weight:?}; hint: use 0 or more",
            sources[i].name
        ));
    }
    let divisor = whole.iter().copied().fold(0, gcd);
    Ok(whole.iter().map(|weight| weight / divisor).collect())
}

/// Digits and power of two of a number that is not negative: `digits · 2^(power - 1075)`.
fn parts(weight: f64) -> (u64, u64) {
    let bits = weight.abs().to_bits();
    match bits >> 52 {
        0 => (bits, 1),
        power => (bits & ((1 << 52) - 1) | 1 << 52, power),
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
