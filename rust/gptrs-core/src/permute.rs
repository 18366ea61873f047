//! `feistel-v1`: the order of the rows of an epoch, as a keyed permutation of `0..n` that needs no table.
//!
//! A pure function of `(seed, epoch, n)`, frozen: an order that changes gets a new name. Key material is the BLAKE3
//! output stream of `"gptrs feistel-v1"`, then seed, epoch and n as little-endian u64, read as u64 words `w`.
//! From 1024 rows on, a balanced Feistel network of 8 rounds permutes `0..4^h`, the smallest such block that holds n;
//! results outside `0..n` are permuted again (cycle walking, fewer than 4 walks on average). Round `k` maps halves
//! `(l, r)` to `(r, l ^ f(r))` where `f(r)` is the top `h` bits of the finaliser of `SplitMix64` applied to `r + w[k]`.
//! Below, the block would be too small to look random, and a Fisher–Yates shuffle with draws from `w` makes a table.

/// The name of this order, as stored with a loader's state.
pub const NAME: &str = "feistel-v1";

/// Smaller permutations are tables.
const TABLE_BELOW: u64 = 1024;
const ROUNDS: usize = 8;

/// A permutation of `0..n`.
///
/// ```
/// let p = gptrs_core::permute::Permutation::new(1_000_000, 1, 0);
/// assert_eq!(p.inverse(p.at(123)), 123);
/// ```
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    method: Method,
}

#[derive(Debug, Clone)]
enum Method {
    Table { forward: Vec<u16>, backward: Vec<u16> },
    Feistel { half_bits: u32, keys: [u64; ROUNDS] },
}

impl Permutation {
    /// The permutation of `0..n` for an epoch of a seed.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let mut words = words(n, seed, epoch);
        let method = if n < TABLE_BELOW {
            shuffled(n as u16, words)
        } else {
            let bits = 64 - (n - 1).leading_zeros();
            Method::Feistel { half_bits: bits.div_ceil(2), keys: std::array::from_fn(|_| words()) }
        };
        Self { n, method }
    }

    /// Where index `i` goes.
    ///
    /// # Panics
    /// When `i` is not below `n`.
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "index {i} of a permutation of {}", self.n);
        match &self.method {
            Method::Table { forward, .. } => u64::from(forward[i as usize]),
            Method::Feistel { half_bits, keys } => walk(i, self.n, |x| {
                let (mut l, mut r) = halves(x, *half_bits);
                for &key in keys {
                    (l, r) = (r, l ^ round(r, key, *half_bits));
                }
                l << half_bits | r
            }),
        }
    }

    /// The index that goes to `j`.
    ///
    /// # Panics
    /// When `j` is not below `n`.
    pub fn inverse(&self, j: u64) -> u64 {
        assert!(j < self.n, "index {j} of a permutation of {}", self.n);
        match &self.method {
            Method::Table { backward, .. } => u64::from(backward[j as usize]),
            Method::Feistel { half_bits, keys } => walk(j, self.n, |x| {
                let (mut l, mut r) = halves(x, *half_bits);
                for &key in keys.iter().rev() {
                    (l, r) = (r ^ round(l, key, *half_bits), l);
                }
                l << half_bits | r
            }),
        }
    }
}

/// The key stream: the next word at each call.
fn words(n: u64, seed: u64, epoch: u64) -> impl FnMut() -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"gptrs feistel-v1");
    for value in [seed, epoch, n] {
        hasher.update(&value.to_le_bytes());
    }
    let mut stream = hasher.finalize_xof();
    move || {
        let mut word = [0; 8];
        stream.fill(&mut word);
        u64::from_le_bytes(word)
    }
}

/// Fisher–Yates from the end; a draw below `k` is the high half of `word * k` (biased by less than 2⁻⁵⁴).
fn shuffled(n: u16, mut words: impl FnMut() -> u64) -> Method {
    let mut forward: Vec<u16> = (0..n).collect();
    for i in (1..n).rev() {
        let draw = (u128::from(words()) * (u128::from(i) + 1)) >> 64;
        forward.swap(usize::from(i), draw as usize);
    }
    let mut backward = vec![0; usize::from(n)];
    for (i, &j) in forward.iter().enumerate() {
        backward[usize::from(j)] = i as u16;
    }
    Method::Table { forward, backward }
}

/// Applies `permute` until the result is below `n`: a bijection of `0..n`, for it follows one cycle of `permute`.
#[inline]
fn walk(start: u64, n: u64, permute: impl Fn(u64) -> u64) -> u64 {
    let mut x = permute(start);
    while x >= n {
        x = permute(x);
    }
    x
}

#[inline]
fn halves(x: u64, half_bits: u32) -> (u64, u64) {
    (x >> half_bits, x & ((1 << half_bits) - 1))
}

/// The round function: the finaliser of `SplitMix64`, cut to the half's width.
#[inline]
fn round(half: u64, key: u64, half_bits: u32) -> u64 {
    let mut z = half.wrapping_add(key);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ z >> 31) >> (64 - half_bits)
}
