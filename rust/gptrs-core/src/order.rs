//! The order of an epoch's rows: as they stand, `feistel-v1` ([`permute`]), or `block-v1` for storage read in blocks.
//!
//! `block-v1` is for cold disks and object stores, where a row costs as much as its block. Rows are in blocks of
//! consecutive rows; the blocks are permuted, cut into windows as equal as can be, and the rows of a window are permuted:
//!
//! ```text
//! rows ─ blocks of block_rows ─ permuted ─▶ windows of at most window_blocks ─ rows of each permuted ─▶ order
//! ```
//! So a reader touches the blocks of one window at a time, each block in one window only. It promises a random order of
//! blocks and a random order inside a window, and no more: rows of a block stay in one window.

use crate::error::{Error, Result};
use crate::permute::{self, Permutation, Words};

/// The rows as they stand.
pub const SEQUENTIAL: &str = "sequential";

/// The name of the order by blocks, as stored with a loader's state.
pub const BLOCK: &str = "block-v1";

/// Which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderKind {
    /// As they stand.
    Sequential,
    /// Permuted as a whole.
    Feistel,
    /// Permuted by blocks, then inside windows of blocks.
    Block(BlockShape),
}

impl OrderKind {
    /// Its frozen name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sequential => SEQUENTIAL,
            Self::Feistel => permute::NAME,
            Self::Block(_) => BLOCK,
        }
    }
}

/// The sizes of `block-v1`, by default 256 rows and 512 blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    block_rows: u64,
    window_blocks: u64,
}

impl Default for BlockShape {
    fn default() -> Self {
        Self { block_rows: 256, window_blocks: 512 }
    }
}

impl BlockShape {
    /// Blocks of `block_rows` rows, windows of at most `window_blocks` blocks.
    pub fn new(block_rows: u64, window_blocks: u64) -> Result<Self> {
        for (name, value) in [("block_rows", block_rows), ("window_blocks", window_blocks)] {
            if !(1..=1 << 31).contains(&value) {
                return Err(Error::Argument(format!("{name} must be 1 to 2^31, got {value}")));
            }
        }
        Ok(Self { block_rows, window_blocks })
    }

    /// Rows of a block.
    pub fn block_rows(&self) -> u64 {
        self.block_rows
    }

    /// Blocks of a window at most.
    pub fn window_blocks(&self) -> u64 {
        self.window_blocks
    }
}

/// A permutation of the rows `0..n` of an epoch.
///
/// ```
/// use gptrs_core::order::{Order, OrderKind};
///
/// let order = Order::new(OrderKind::Block(Default::default()), 1_000_000, 1, 0);
/// assert_eq!(order.inverse(order.at(123)), 123);
/// ```
#[derive(Debug, Clone)]
pub enum Order {
    /// `n` rows as they stand.
    Sequential(u64),
    /// `feistel-v1`.
    Feistel(Permutation),
    /// `block-v1`.
    Block(BlockOrder),
}

impl Order {
    /// The order of `n` rows in an epoch of a seed.
    pub fn new(kind: OrderKind, n: u64, seed: u64, epoch: u64) -> Self {
        match kind {
            OrderKind::Sequential => Self::Sequential(n),
            OrderKind::Feistel => Self::Feistel(Permutation::new(n, seed, epoch)),
            OrderKind::Block(shape) => Self::Block(BlockOrder::new(shape, n, seed, epoch)),
        }
    }

    /// Its frozen name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sequential(_) => SEQUENTIAL,
            Self::Feistel(_) => permute::NAME,
            Self::Block(_) => BLOCK,
        }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> u64 {
        match self {
            Self::Sequential(n) => *n,
            Self::Feistel(order) => order.n(),
            Self::Block(order) => order.n,
        }
    }

    /// The row at place `i`. [`Cursor`] is faster for many places.
    ///
    /// # Panics
    /// When `i` is not below the number of rows.
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n_rows(), "place {i} of {} rows", self.n_rows());
        match self {
            Self::Sequential(_) => i,
            Self::Feistel(order) => order.at(i),
            Self::Block(order) => order.at(&order.window(order.place(i)), i),
        }
    }

    /// The place of row `row`.
    ///
    /// # Panics
    /// When `row` is not below the number of rows.
    pub fn inverse(&self, row: u64) -> u64 {
        assert!(row < self.n_rows(), "row {row} of {}", self.n_rows());
        match self {
            Self::Sequential(_) => row,
            Self::Feistel(order) => order.inverse(row),
            Self::Block(order) => {
                let (place, slot) = order.find(row);
                order.window(place).inverse(slot)
            }
        }
    }
}

/// An order with the window of `block-v1` that was asked last: for places that lie close together.
#[derive(Debug, Clone)]
pub struct Cursor {
    order: Order,
    window: Option<Window>,
}

impl Cursor {
    /// A cursor of an order.
    pub fn new(order: Order) -> Self {
        Self { order, window: None }
    }

    /// The order.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// As [`Order::at`].
    ///
    /// # Panics
    /// When `i` is not below the number of rows.
    #[inline]
    pub fn at(&mut self, i: u64) -> u64 {
        let Order::Block(order) = &self.order else { return self.order.at(i) };
        if let Some(window) = &self.window
            && window.holds(i)
        {
            return order.at(window, i);
        }
        assert!(i < order.n, "place {i} of {} rows", order.n);
        let window = self.window.insert(order.window(order.place(i)));
        order.at(window, i)
    }

    /// Replaces each of `places` by its row, as [`Cursor::at`].
    ///
    /// # Panics
    /// When one is not below the number of rows.
    pub fn at_each(&mut self, places: &mut [u64]) {
        match &self.order {
            Order::Feistel(order) => order.at_each(places),
            _ => places.iter_mut().for_each(|place| *place = self.at(*place)),
        }
    }

    /// As [`Order::inverse`].
    ///
    /// # Panics
    /// When `row` is not below the number of rows.
    pub fn inverse(&mut self, row: u64) -> u64 {
        let Order::Block(order) = &self.order else { return self.order.inverse(row) };
        assert!(row < order.n, "row {row} of {}", order.n);
        let (place, slot) = order.find(row);
        match &self.window {
            Some(window) if window.holds(slot) => window.inverse(slot),
            _ => self.window.insert(order.window(place)).inverse(slot),
        }
    }
}

/// `block-v1`. A block's *place* is where it stands among the permuted blocks, a row's *slot* where it then stands.
#[derive(Debug, Clone)]
pub struct BlockOrder {
    n: u64,
    shape: BlockShape,
    seed: u64,
    epoch: u64,
    blocks: Permutation,
    /// Rows of the last block, which may be fewer.
    last_rows: u64,
    /// Its place.
    last_place: u64,
    /// Blocks of a window; the first `longer` windows have one more.
    window_blocks: u64,
    longer: u64,
}

/// A window: the places and slots from `start` to `end`, and the order between them.
#[derive(Debug, Clone)]
struct Window {
    start: u64,
    end: u64,
    rows: Permutation,
}

impl Window {
    #[inline]
    fn holds(&self, slot: u64) -> bool {
        (self.start..self.end).contains(&slot)
    }

    fn inverse(&self, slot: u64) -> u64 {
        self.start + self.rows.inverse(slot - self.start)
    }
}

impl BlockOrder {
    fn new(shape: BlockShape, n: u64, seed: u64, epoch: u64) -> Self {
        let n_blocks = n.div_ceil(shape.block_rows);
        let n_windows = n_blocks.div_ceil(shape.window_blocks).max(1);
        let blocks = Permutation::tight(n_blocks, words(shape, n, seed, epoch, 0));
        let last = n_blocks.checked_sub(1);
        Self {
            n,
            shape,
            seed,
            epoch,
            last_rows: last.map_or(0, |last| n - last * shape.block_rows),
            last_place: last.map_or(0, |last| blocks.inverse(last)),
            blocks,
            window_blocks: n_blocks / n_windows,
            longer: n_blocks % n_windows,
        }
    }

    /// The first slot of a place.
    #[inline]
    fn start(&self, place: u64) -> u64 {
        if place <= self.last_place {
            place * self.shape.block_rows
        } else {
            (place - 1) * self.shape.block_rows + self.last_rows
        }
    }

    /// The place that holds a slot.
    #[inline]
    fn place(&self, slot: u64) -> u64 {
        match slot.checked_sub(self.last_place * self.shape.block_rows) {
            None => slot / self.shape.block_rows,
            Some(beyond) => match beyond.checked_sub(self.last_rows) {
                None => self.last_place,
                Some(beyond) => self.last_place + 1 + beyond / self.shape.block_rows,
            },
        }
    }

    /// The window that holds a place.
    fn window(&self, place: u64) -> Window {
        let Self { window_blocks, longer, .. } = *self;
        let in_longer = longer * (window_blocks + 1);
        let index = match place.checked_sub(in_longer) {
            None => place / (window_blocks + 1),
            Some(beyond) => longer + beyond / window_blocks,
        };
        let first = index * window_blocks + index.min(longer);
        let end = self.start(first + window_blocks + u64::from(index < longer));
        let start = self.start(first);
        let words = words(self.shape, self.n, self.seed, self.epoch, index + 1);
        Window { start, end, rows: Permutation::tight(end - start, words) }
    }

    /// The row at place `i` of the order, which the window holds.
    #[inline]
    fn at(&self, window: &Window, i: u64) -> u64 {
        let slot = window.start + window.rows.at(i - window.start);
        let place = self.place(slot);
        self.blocks.at(place) * self.shape.block_rows + (slot - self.start(place))
    }

    /// The place of a row's block, and the row's slot.
    fn find(&self, row: u64) -> (u64, u64) {
        let place = self.blocks.inverse(row / self.shape.block_rows);
        (place, self.start(place) + row % self.shape.block_rows)
    }
}

/// The key stream of the blocks (`part` 0) or of window `part - 1`. These 62 bytes are one block for BLAKE3.
fn words(shape: BlockShape, n: u64, seed: u64, epoch: u64, part: u64) -> Words {
    Words::new("gptrs block-v1", &[seed, epoch, n, shape.block_rows, shape.window_blocks, part])
}
