//! Whether this is still the process that something was made in, or the child of a fork.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static IS_TOLD: AtomicBool = AtomicBool::new(false);
static N_FORKS: AtomicU64 = AtomicU64::new(0);

/// Promises that [`forked`] is called in the child of each fork from now on. Then the system is not asked for the number
/// of the process any more: where its code has left the caches, that takes longer than handing out a batch.
pub fn tells_of_forks() {
    IS_TOLD.store(true, Ordering::Relaxed);
}

/// Tells, in its child, of a fork.
pub fn forked() {
    N_FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    pub(crate) id: u32,
    n_forks: u64,
}

impl Process {
    /// The one that calls.
    pub(crate) fn current() -> Self {
        Self { id: std::process::id(), n_forks: N_FORKS.load(Ordering::Relaxed) }
    }

    /// Whether it is the one that calls.
    pub(crate) fn is_current(&self) -> bool {
        self.n_forks == N_FORKS.load(Ordering::Relaxed)
            && (IS_TOLD.load(Ordering::Relaxed) || self.id == std::process::id())
    }
}
