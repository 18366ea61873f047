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

/// How many indices go through the rounds side by side, and how many at most walk on until all are in `0..n`.
const LANES: usize = 8;
const WALKERS: usize = 64;

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
    Feistel { left_bits: u32, right_bits: u32, keys: [[u64; 2]; ROUNDS / 2] },
}

impl Permutation {
    /// The permutation of `0..n` for an epoch of a seed.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let bits = bits(n).div_ceil(2);
        Self::keyed(n, [bits; 2], Words::new("gptrs feistel-v1", &[seed, epoch, n]))
    }

    /// The same with other keys, and halves that together are as long as `n - 1`: fewer than 2 walks on average.
    pub(crate) fn tight(n: u64, words: Words) -> Self {
        let bits = bits(n);
        Self::keyed(n, [bits / 2, bits.div_ceil(2)], words)
    }

    fn keyed(n: u64, [left_bits, right_bits]: [u32; 2], mut words: Words) -> Self {
        let method = if n < TABLE_BELOW {
            shuffled(n as u16, words)
        } else {
            let keys = std::array::from_fn(|_| [words.next(), words.next()]);
            Method::Feistel { left_bits, right_bits, keys }
        };
        Self { n, method }
    }

    /// How many numbers are permuted.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Where index `i` goes.
    ///
    /// # Panics
    /// When `i` is not below `n`.
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "index {i} of a permutation of {}", self.n);
        match &self.method {
            Method::Table { forward, .. } => u64::from(forward[i as usize]),
            // Two rounds at a time leave the halves where they are.
            Method::Feistel { left_bits, right_bits, keys } => walk(i, self.n, |x| {
                let (mut l, mut r) = halves(x, *right_bits);
                for &[even, odd] in keys {
                    l ^= round(r, even, *left_bits);
                    r ^= round(l, odd, *right_bits);
                }
                l << right_bits | r
            }),
        }
    }

    /// Replaces each of `indices` by where it goes, as [`Permutation::at`]. A round waits for the one before; here the
    /// rounds of other indices fill that time.
    ///
    /// # Panics
    /// When one is not below `n`.
    pub fn at_each(&self, indices: &mut [u64]) {
        let Method::Feistel { left_bits, right_bits, keys } = &self.method else {
            return indices.iter_mut().for_each(|i| *i = self.at(*i));
        };
        let all_below = indices.iter().all(|&i| i < self.n);
        assert!(all_below, "an index of a permutation of {}", self.n);
        for indices in indices.chunks_mut(WALKERS) {
            let mut walkers: [usize; WALKERS] = std::array::from_fn(|k| k);
            let mut n_walkers = indices.len();
            while n_walkers > 0 {
                for lanes in walkers[..n_walkers].chunks(LANES) {
                    let lane = |k: usize| indices[*lanes.get(k).unwrap_or(&lanes[0])];
                    let images = network(std::array::from_fn(lane), [*left_bits, *right_bits], keys);
                    lanes.iter().zip(images).for_each(|(&lane, image)| indices[lane] = image);
                }
                let mut n_left = 0;
                for k in 0..n_walkers {
                    let walker = walkers[k];
                    walkers[n_left] = walker;
                    n_left += usize::from(indices[walker] >= self.n);
                }
                n_walkers = n_left;
            }
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
            Method::Feistel { left_bits, right_bits, keys } => walk(j, self.n, |x| {
                let (mut l, mut r) = halves(x, *right_bits);
                for &[even, odd] in keys.iter().rev() {
                    r ^= round(l, odd, *right_bits);
                    l ^= round(r, even, *left_bits);
                }
                l << right_bits | r
            }),
        }
    }
}

/// A key stream: the output of BLAKE3 for a name and some numbers, as words.
pub(crate) struct Words {
    stream: blake3::OutputReader,
    block: [u8; 64],
    used: usize,
}

impl Words {
    pub(crate) fn new(name: &str, values: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes());
        for value in values {
            hasher.update(&value.to_le_bytes());
        }
        Self { stream: hasher.finalize_xof(), block: [0; 64], used: 64 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        // Whole blocks: a shorter read would compute its block again each time.
        if self.used == self.block.len() {
            self.stream.fill(&mut self.block);
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(word)
    }
}

/// The length of `n - 1` in binary.
fn bits(n: u64) -> u32 {
    64 - n.saturating_sub(1).leading_zeros()
}

/// Fisher–Yates from the end; a draw below `k` is the high half of `word * k` (biased by less than 2⁻⁵⁴).
fn shuffled(n: u16, mut words: Words) -> Method {
    let mut forward: Vec<u16> = (0..n).collect();
    for i in (1..n).rev() {
        let draw = (u128::from(words.next()) * (u128::from(i) + 1)) >> 64;
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

/// Where the network sends each of some indices, two rounds at a time.
#[inline]
fn network(xs: [u64; LANES], [left_bits, right_bits]: [u32; 2], keys: &[[u64; 2]; ROUNDS / 2]) -> [u64; LANES] {
    let mut halves = xs.map(|x| halves(x, right_bits));
    for &[even, odd] in keys {
        for (l, r) in &mut halves {
            *l ^= round(*r, even, left_bits);
            *r ^= round(*l, odd, right_bits);
        }
    }
    halves.map(|(l, r)| l << right_bits | r)
}

#[inline]
fn halves(x: u64, right_bits: u32) -> (u64, u64) {
    (x >> right_bits, x & ((1 << right_bits) - 1))
}

/// The round function.
#[inline]
fn round(half: u64, key: u64, bits: u32) -> u64 {
    mixed(half.wrapping_add(key)) >> (64 - bits)
}

/// The finaliser of `SplitMix64`.
#[inline]
pub(crate) fn mixed(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}
