//! What of a product is done when, and how it is cut into tasks.

use std::ops::Range;

use super::panel::{DEPTH, SIDE, STEP};

/// Numbers of a line that are multiplied in one go, at most: with the panels of a task they fill half of a second cache of
/// 2 MiB, and the next shared panel comes while the task's own are multiplied with the last one.
const MOST_DEPTH: usize = 768;

/// Panels that a task splits for itself, at most.
const MOST_OWN: usize = 8;

/// Panels that are split for all threads, at most.
const MOST_SHARED: usize = 64;

/// Tasks of a stage that there should be at least for each thread, so that threads end together.
const LEAST_TASKS: usize = 2;

/// The stages of a product. For each stretch of shared lines and each of the depth: one in which panels are split for all, a
/// task each, then one in which they are multiplied.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) is_a_shared: bool,
    /// Panels of the factor that is split for all, and of the other one.
    n_shared: usize,
    n_own: usize,
    depth: usize,
    /// Numbers of a line in a stretch.
    stretch: usize,
    /// Panels that are split for all in one stage.
    together: usize,
    /// Panels that a task splits for all, or for itself.
    group: usize,
    own: usize,
}

/// A task in its stage.
#[derive(Debug, PartialEq)]
pub(super) struct Stage {
    /// Whether it splits panels that are shared.
    pub(super) is_split: bool,
    /// Panels that are shared, and the task's own: those of them that it splits, or those of the other factor that it
    /// multiplies them with.
    pub(super) shared: Range<usize>,
    pub(super) own: Range<usize>,
    /// Numbers of each line.
    pub(super) depth: Range<usize>,
    /// Tasks of all stages before.
    pub(super) n_before: usize,
}

impl Plan {
    /// The plan for so many threads; the order in which a number is summed does not depend on them.
    pub(super) fn new(m: usize, n: usize, depth: usize, threads: usize) -> Self {
        let (is_a_shared, few, many) = if m <= n { (true, m, n) } else { (false, n, m) };
        let (n_shared, n_own) = (few.div_ceil(SIDE), many.div_ceil(SIDE));
        let together = n_shared.div_ceil(n_shared.div_ceil(MOST_SHARED).max(1)).max(1);
        let least = LEAST_TASKS * threads.max(1);
        let [group, own] = [together, n_own].map(|n: usize| n.div_ceil(least).clamp(1, MOST_OWN));
        let n_stretches = depth.div_ceil(MOST_DEPTH).max(1);
        let stretch = depth.div_ceil(n_stretches).next_multiple_of(DEPTH).max(DEPTH);
        Self { is_a_shared, n_shared, n_own, depth, stretch, together, group, own }
    }

    /// Rows of tiles in a panel.
    pub(super) fn panel_lines(&self) -> usize {
        self.stretch / DEPTH * STEP
    }

    /// Rows of tiles in all panels that are shared at a time.
    pub(super) fn shared_lines(&self) -> usize {
        self.together.min(self.n_shared) * self.panel_lines()
    }

    /// Rows of tiles in all panels of a task.
    pub(super) fn own_lines(&self) -> usize {
        self.own * self.panel_lines()
    }

    /// The task of this number, if there are as many.
    pub(super) fn stage(&self, task: usize) -> Option<Stage> {
        if self.n_shared == 0 {
            return None;
        }
        let n_tasks = self.n_own.div_ceil(self.own);
        let n_stretches = self.depth.div_ceil(self.stretch).max(1);
        // All but the last shared stretch have as many panels.
        let per_stretch = self.together.div_ceil(self.group) + n_tasks;
        let turn = (task / (n_stretches * per_stretch)).min((self.n_shared - 1) / self.together);
        let start = turn * self.together;
        let shared = start..(start + self.together).min(self.n_shared);
        let before = turn * n_stretches * per_stretch;
        let n_splits = shared.len().div_ceil(self.group);
        let (at, in_stage) = ((task - before) / (n_splits + n_tasks), (task - before) % (n_splits + n_tasks));
        if at >= n_stretches {
            return None;
        }
        let depth = at * self.stretch..((at + 1) * self.stretch).min(self.depth);
        let (is_split, n_before) = (in_stage < n_splits, before + at * (n_splits + n_tasks));
        let (own, n_before) = if is_split {
            let first = start + in_stage * self.group;
            (first..(first + self.group).min(shared.end), n_before)
        } else {
            let first = (in_stage - n_splits) * self.own;
            (first..(first + self.own).min(self.n_own), n_before + n_splits)
        };
        Some(Stage { is_split, shared, own, depth, n_before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_multiplied_once_a_stretch_behind_what_it_needs() {
        let sizes = [1, 31, 32, 33, 256, 257, 700, 2049, 5000];
        let all = sizes.iter().flat_map(|&m| sizes.iter().flat_map(move |&n| sizes.map(|k| (m, n, k))));
        for (i, (m, n, k)) in all.enumerate() {
            let plan = Plan::new(m, n, k, [1, 2, 16][i % 3]);
            assert_eq!(plan.stretch, Plan::new(m, n, k, 4).stretch, "sums do not depend on threads");
            let (mut done, mut split, mut task) = (std::collections::HashSet::new(), Vec::new(), 0);
            while let Some(stage) = plan.stage(task) {
                assert!(stage.n_before <= task && !stage.depth.is_empty() && stage.depth.end <= k);
                assert_eq!(stage.depth.start % DEPTH, 0);
                if stage.is_split {
                    if stage.own.start == stage.shared.start {
                        assert_eq!(stage.n_before, task, "all before are done when the first panel is overwritten");
                        split.clear();
                    }
                    for panel in stage.own {
                        assert_eq!(panel, stage.shared.start + split.len());
                        split.push((stage.shared.clone(), stage.depth.clone()));
                    }
                } else {
                    assert_eq!(split, vec![(stage.shared.clone(), stage.depth.clone()); stage.shared.len()]);
                    assert!(stage.own.len() <= plan.own);
                    for (one, other) in stage.shared.flat_map(|one| stage.own.clone().map(move |other| (one, other))) {
                        let (row, column) = if plan.is_a_shared { (one, other) } else { (other, one) };
                        assert!(done.insert((row, column, stage.depth.start)));
                    }
                }
                task += 1;
            }
            let n_stretches = k.div_ceil(plan.stretch);
            assert_eq!(done.len(), m.div_ceil(SIDE) * n.div_ceil(SIDE) * n_stretches, "{m} {n} {k}");
        }
        assert_eq!(Plan::new(0, 5, 5, 2).stage(0), None);
        assert!(Plan::new(5, 5, 0, 0).stage(1).is_some_and(|stage| !stage.is_split && stage.depth.is_empty()));
    }
}
