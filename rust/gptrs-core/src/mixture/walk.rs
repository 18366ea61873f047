//! The samples of a mixture one after another.

use std::sync::Arc;

use super::tree::Tree;
use super::{Mixture, Pick};
use crate::error::Result;

/// The samples from one on, with what a block has in common. After the last sample comes the error of
/// [`Mixture::check`], once.
#[derive(Debug, Clone)]
pub struct Walk {
    mixture: Arc<Mixture>,
    next: u64,
    /// Samples of each source before `next`.
    counts: Vec<u64>,
    block: Block,
    is_over: bool,
}

#[derive(Debug, Clone)]
struct Block {
    start: u64,
    end: u64,
    tree: Tree,
    /// Ends of the sources' runs of slots.
    ends: Vec<u64>,
}

impl Walk {
    pub(super) fn new(mixture: Arc<Mixture>, sample: u64) -> Result<Self> {
        let counts = mixture.counts(sample)?;
        let block = Block { start: 0, end: 0, tree: Tree::new(1, 0, 0, 0), ends: vec![0; counts.len()] };
        Ok(Self { mixture, next: sample, counts, block, is_over: false })
    }

    /// The number of the sample that comes next.
    pub fn next_sample(&self) -> u64 {
        self.next
    }

    fn enter(&mut self) -> Result<()> {
        self.mixture.check(self.next)?;
        let part = self.mixture.part(self.next);
        let block = part.block(self.next - part.start, self.mixture.seed());
        for (i, end) in self.block.ends.iter_mut().enumerate() {
            *end = part.border(i + 1, &block);
        }
        self.block.tree = block.tree;
        self.block.start = part.start + block.start;
        self.block.end = (self.block.start + block.len).min(self.mixture.end());
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Result<Pick>;

    #[inline]
    fn next(&mut self) -> Option<Result<Pick>> {
        if self.next >= self.block.end {
            if self.is_over {
                return None;
            }
            if let Err(error) = self.enter() {
                self.is_over = true;
                return Some(Err(error));
            }
        }
        let slot = self.block.tree.slot(self.next - self.block.start);
        let source = self.block.ends.partition_point(|&end| end <= slot);
        let index = self.counts[source];
        self.counts[source] += 1;
        self.next += 1;
        Some(Ok(Pick { source, index }))
    }
}
