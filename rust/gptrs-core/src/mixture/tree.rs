//! The order inside a block of a mixture: which position gets which slot.
//!
//! A block of `len` positions and as many slots is halved until one of each is left. Of the first `border` slots the
//! left half gets `⌊(border · ⌊len / 2⌋ + dither) / len⌋`, with a dither in `0..len` drawn once for the node: so from any
//! run of slots each half gets its share rounded down or up, and the shares add up. In a block of a power of two every
//! aligned power of two of positions therefore holds the rounded share of every run.
//!
//! Counting is as cheap as looking up: slots of a run keep their order in time as they are numbered by [`Tree::rank`].

use crate::permute::{Words, mixed};

/// The order of one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    len: u64,
    key: u64,
}

/// A node, numbered as in a heap: the root is 1, the halves of `x` are `2x` and `2x + 1`.
#[derive(Clone, Copy)]
struct Node {
    len: u64,
    number: u64,
    draw: u64,
}

impl Tree {
    pub(super) fn new(len: u64, seed: u64, stage: u64, block: u64) -> Self {
        Self { len, key: Words::new("gptrs mixture-v1", &[seed, stage, block]).next() }
    }

    #[inline]
    fn node(&self, len: u64, number: u64) -> Node {
        Node { len, number, draw: mixed(self.key.wrapping_add(number)) }
    }

    fn root(&self) -> Node {
        self.node(self.len, 1)
    }

    fn left(&self, node: Node) -> Node {
        self.node(node.half(), 2 * node.number)
    }

    fn right(&self, node: Node) -> Node {
        self.node(node.len - node.half(), 2 * node.number + 1)
    }

    /// The slot of a position below `len`.
    #[inline]
    pub(super) fn slot(&self, position: u64) -> u64 {
        if self.len.is_power_of_two() { self.slot_in_even(position) } else { self.slot_in(self.root(), position) }
    }

    /// [`Tree::slot_in`] where every node halves evenly: each gives one bit of the slot, the root the lowest.
    #[inline]
    fn slot_in_even(&self, position: u64) -> u64 {
        let bits = self.len.trailing_zeros();
        (0..bits).fold(0, |slot, level| {
            let below = bits - level;
            let draw = mixed(self.key.wrapping_add(1 << level | position >> below));
            slot | (draw >> 63 ^ 1 ^ (position >> (below - 1) & 1)) << level
        })
    }

    fn slot_in(&self, node: Node, position: u64) -> u64 {
        let Node { len, .. } = node;
        let half = node.half();
        if len == 1 {
            0
        } else if position < half {
            // The one slot that is counted first where the left half has one more.
            ((self.slot_in(self.left(node), position) + 1) * len - node.dither() - 1) / half
        } else {
            (self.slot_in(self.right(node), position - half) * len + node.dither()) / (len - half)
        }
    }

    /// How many of the first `border` slots lie before `position`; both at most `len`.
    pub(super) fn rank(&self, mut border: u64, mut position: u64) -> u64 {
        let (mut node, mut rank) = (self.root(), 0);
        while position != 0 && position != node.len {
            let (half, left) = (node.half(), node.left_of(border));
            if position <= half {
                (node, border) = (self.left(node), left);
            } else {
                rank += left;
                (node, border, position) = (self.right(node), border - left, position - half);
            }
        }
        if position == 0 { rank } else { rank + border }
    }

    /// The position of the slot of `low..high` that comes after `rank` others.
    pub(super) fn select(&self, mut low: u64, mut high: u64, mut rank: u64) -> u64 {
        let (mut node, mut position) = (self.root(), 0);
        while node.len > 1 {
            let (left_low, left_high) = (node.left_of(low), node.left_of(high));
            let left = left_high - left_low;
            if rank < left {
                (node, low, high) = (self.left(node), left_low, left_high);
            } else {
                position += node.half();
                (node, low, high, rank) = (self.right(node), low - left_low, high - left_high, rank - left);
            }
        }
        position
    }
}

impl Node {
    #[inline]
    fn half(&self) -> u64 {
        self.len / 2
    }

    #[inline]
    fn dither(&self) -> u64 {
        ((u128::from(self.draw) * u128::from(self.len)) >> 64) as u64
    }

    /// How many of the first `border` slots the left half gets. Blocks are shorter than 2^21.
    #[inline]
    fn left_of(&self, border: u64) -> u64 {
        (border * self.half() + self.dither()) / self.len
    }
}
