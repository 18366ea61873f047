//! Pairs by count: a small heap of those that may be next, and a list of the many others.

use std::collections::BinaryHeap;

/// Pairs with the counts they had when they were pushed; largest count, then smallest key, first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Count above the complement of the key, from `hot` on.
    heap: BinaryHeap<u128>,
    /// The same for smaller counts, in no order.
    cold: Vec<u128>,
    hot: u64,
}

impl Queue {
    pub(super) fn push(&mut self, count: u64, key: u64) {
        let entry = u128::from(count) << 64 | u128::from(!key);
        if count >= self.hot { self.heap.push(entry) } else { self.cold.push(entry) }
    }

    /// The pair with the largest count, and this count.
    pub(super) fn pop(&mut self) -> Option<(u64, u64)> {
        if self.heap.is_empty() {
            self.warm();
        }
        self.heap.pop().map(|entry| ((entry >> 64) as u64, !(entry as u64)))
    }

    /// Moves the pairs with the largest counts into the heap.
    #[cold]
    fn warm(&mut self) {
        let largest = self.cold.iter().max().map_or(0, |entry| (entry >> 64) as u64);
        self.hot = largest - largest / 4;
        let hot = u128::from(self.hot) << 64;
        self.heap.extend(self.cold.extract_if(.., |entry| *entry >= hot));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_count_then_the_smallest_key_comes_first(
            steps in prop::collection::vec(prop::option::weighted(0.6, (0..1000u64, 0..50u64)), 0..300),
        ) {
            let (mut queue, mut expected) = (Queue::default(), BTreeSet::new());
            for step in steps {
                let Some((count, key)) = step else {
                    prop_assert_eq!(queue.pop(), expected.pop_last().map(|(count, key): (u64, std::cmp::Reverse<u64>)| (count, key.0)));
                    continue;
                };
                if expected.insert((count, std::cmp::Reverse(key))) {
                    queue.push(count, key);
                }
            }
        }
    }
}
