//! Progress of a long call and the way to stop it, shared between the worker threads and one watcher.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// What a long call is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is under way, for example `"count bytes"`; the last word is the unit.
    pub stage: &'static str,
    /// Units finished.
    pub done: u64,
    /// Units in all; 0 when it is not known.
    pub total: u64,
}

/// Counters that the workers advance and a watcher reads; cancelling makes the next [`Control::check`] fail.
///
/// The watcher polls, so no callback ever runs on a worker thread.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    stage: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Control {
    /// A control at the start of its work.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop; it ends with [`Error::Interrupted`] at its next check.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Fails once [`Control::cancel`] was called. Workers call it at least every few milliseconds.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Opens a stage of `total` units (0: unknown) and sets its counter to zero.
    pub fn begin(&self, stage: &'static str, total: u64) {
        let mut current = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *current = stage;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts `n` more units as finished.
    pub fn advance(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }

    /// What is under way now.
    pub fn progress(&self) -> Progress {
        let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        Progress { stage, done: self.done.load(Ordering::Relaxed), total: self.total.load(Ordering::Relaxed) }
    }
}
