//! Reads batches ahead on one thread, into buffers that the caller lends.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Loader;
use crate::error::{Error, Result};
use crate::shard::Token;

/// What a batch is written to.
pub trait Buffers: Send + 'static {
    /// Writes the microbatch at `next_sample`.
    fn fill(&mut self, loader: &Loader, next_sample: u64) -> Result<()>;
}

/// Tokens and targets as 64-bit integers, `micro_batch * seq_len` each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wide {
    /// The inputs.
    pub tokens: Vec<i64>,
    /// For each input the token behind it.
    pub targets: Vec<i64>,
}

/// Rows as stored, `micro_batch * (seq_len + 1)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows<T>(pub Vec<T>);

impl Wide {
    /// Zeroed buffers for a loader's microbatch.
    pub fn new(loader: &Loader) -> Self {
        let n = loader.options().micro_batch * loader.options().seq_len;
        Self { tokens: vec![0; n], targets: vec![0; n] }
    }
}

impl<T: Token> Rows<T> {
    /// Zeroed buffers for a loader's microbatch.
    pub fn new(loader: &Loader) -> Self {
        Self(vec![T::default(); loader.options().micro_batch * (loader.options().seq_len + 1)])
    }
}

impl Buffers for Wide {
    fn fill(&mut self, loader: &Loader, next_sample: u64) -> Result<()> {
        loader.fill(next_sample, &mut self.tokens, &mut self.targets)
    }
}

impl<T: Token> Buffers for Rows<T> {
    fn fill(&mut self, loader: &Loader, next_sample: u64) -> Result<()> {
        loader.fill_rows(next_sample, &mut self.0)
    }
}

/// A thread that fills submitted buffers with consecutive microbatches.
///
/// Waking a thread costs the caller more than all else that it does here. So the thread wakes by itself, about when half
/// of what it filled should be used up at the caller's pace, and is woken only when the last full buffer is taken.
///
/// The thread starts at the first [`Prefetch::submit`] and ends with [`Prefetch::close`] or the drop, which wait for
/// it. A failed read surfaces at [`Prefetch::next`]; the same batch is tried again for the buffers that follow, so
/// nothing is skipped.
#[derive(Debug)]
pub struct Prefetch<B: Buffers> {
    shared: Arc<Shared<B>>,
    loader: Loader,
    thread: Option<(JoinHandle<()>, u32)>,
    next_sample: u64,
}

#[derive(Debug)]
struct Shared<B> {
    queue: Mutex<Queue<B>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queue<B> {
    empty: VecDeque<B>,
    full: VecDeque<(B, Result<()>)>,
    /// Buffers lent and not handed back.
    n_pending: usize,
    /// When the caller took its last batch, and its time from one to the next, averaged.
    taken_at: Option<Instant>,
    pace: Duration,
    is_closed: bool,
    is_dead: bool,
}

/// The shortest and the longest sleep of the thread.
const MIN_NAP: Duration = Duration::from_micros(100);
const MAX_NAP: Duration = Duration::from_millis(100);

impl<B> Queue<B> {
    fn new() -> Self {
        let (empty, full) = (VecDeque::new(), VecDeque::new());
        let (pace, n_pending) = (Duration::ZERO, 0);
        Self { empty, full, n_pending, taken_at: None, pace, is_closed: false, is_dead: false }
    }

    /// Takes the oldest batch and learns the caller's pace.
    fn take(&mut self) -> Option<(B, Result<()>)> {
        let batch = self.full.pop_front()?;
        self.n_pending -= 1;
        let now = Instant::now();
        if let Some(before) = self.taken_at.replace(now) {
            // An eighth of the new one: a pause (evaluation, a checkpoint) does not change the pace for long.
            self.pace = (self.pace * 7 + now.duration_since(before).min(MAX_NAP)) / 8;
        }
        Some(batch)
    }

    /// Whether it is worth filling: half of the buffers are empty.
    fn is_due(&self) -> bool {
        !self.empty.is_empty() && self.empty.len() >= self.full.len()
    }

    /// How long the thread may sleep until that should be so, after `n_fruitless` looks in a row.
    fn nap(&self, n_fruitless: u32) -> Duration {
        if self.n_pending == 0 {
            return MAX_NAP; // `submit` wakes it
        }
        let n_batches = self.full.len().saturating_sub(self.empty.len()).div_ceil(2) as u32;
        (self.pace * n_batches * (1 << n_fruitless.min(10))).clamp(MIN_NAP, MAX_NAP)
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, Queue<B>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Buffers> Prefetch<B> {
    /// A prefetcher whose first batch is the one at `next_sample`.
    pub fn new(loader: Loader, next_sample: u64) -> Result<Self> {
        loader.check_start(next_sample)?;
        let shared = Shared { queue: Mutex::new(Queue::new()), changed: Condvar::new() };
        Ok(Self { shared: Arc::new(shared), loader, thread: None, next_sample })
    }

    /// The state: the sample at which the batch begins that [`Prefetch::next`] gives next. Batches that were only read
    /// ahead do not count.
    pub fn next_sample(&self) -> u64 {
        self.next_sample
    }

    /// The loader.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Lends buffers for one more batch.
    pub fn submit(&mut self, buffers: B) -> Result<()> {
        self.check_process()?;
        let is_due = {
            let mut queue = self.shared.lock();
            if queue.is_closed {
                return Err(Error::Argument("expected an open prefetcher, it was closed".to_owned()));
            }
            queue.empty.push_back(buffers);
            queue.n_pending += 1;
            queue.full.is_empty()
        };
        if is_due {
            self.shared.changed.notify_all();
        }
        if self.thread.is_none() {
            let (shared, loader, start) = (Arc::clone(&self.shared), self.loader.clone(), self.next_sample);
            let work = move || fill_ahead(&shared, &loader, start);
            let thread = thread::Builder::new().name("gptrs-loader".to_owned()).spawn(work);
            let thread = thread.map_err(Error::io("start a thread for", self.loader.dataset().dir()))?;
            self.thread = Some((thread, std::process::id()));
        }
        Ok(())
    }

    /// Waits for the oldest batch.
    ///
    /// # Panics
    /// As [`Prefetch::next_within`].
    #[allow(clippy::should_implement_trait, reason = "it needs a submit for each item")]
    pub fn next(&mut self) -> Result<B> {
        loop {
            if let Some(buffers) = self.next_within(Duration::from_secs(3600))? {
                return Ok(buffers);
            }
        }
    }

    /// Waits for the oldest batch, at most `patience`; `None` when it is not there by then.
    ///
    /// # Panics
    /// When [`Buffers::fill`] panicked on the thread.
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<B>> {
        self.check_process()?;
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.lock();
        while queue.full.is_empty() {
            if queue.n_pending == 0 || queue.is_closed {
                return Err(Error::Argument("expected submitted buffers, there are none".to_owned()));
            }
            assert!(!queue.is_dead, "the loader's thread panicked");
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.shared.changed.notify_all(); // `submit` may have left the thread asleep
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let batch = queue.take();
        drop(queue);
        let Some((buffers, end)) = batch else { return Ok(None) };
        end?;
        self.next_sample += self.loader.samples_per_microbatch();
        Ok(Some(buffers))
    }

    /// Stops the thread and waits for it; batches read ahead are dropped.
    pub fn close(&mut self) {
        if let Some((thread, process)) = self.thread.take() {
            if process != std::process::id() {
                // A forked child has the handle but not the thread, which may have held the lock: nothing to wait for.
                std::mem::forget(thread);
                return;
            }
            self.shared.lock().is_closed = true;
            self.shared.changed.notify_all();
            // A panic of the thread was printed by its hook, and shows at `next`.
            let _ = thread.join();
        }
        let mut queue = self.shared.lock();
        queue.is_closed = true;
        queue.full.clear();
        queue.empty.clear();
    }

    fn check_process(&self) -> Result<()> {
        match &self.thread {
            Some((_, process)) if *process != std::process::id() => Err(Error::Argument(
                "this loader reads ahead in the process that forked this one; hint: make a new loader here".to_owned(),
            )),
            _ => Ok(()),
        }
    }
}

impl<B: Buffers> Drop for Prefetch<B> {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread: fills buffers in the order of their submission until the prefetcher is closed.
fn fill_ahead<B: Buffers>(shared: &Shared<B>, loader: &Loader, mut next_sample: u64) {
    let _mourner = Mourner(shared);
    while let Some(mut buffers) = next_empty(shared) {
        let end = buffers.fill(loader, next_sample);
        if end.is_ok() {
            next_sample += loader.samples_per_microbatch();
        }
        let mut queue = shared.lock();
        queue.full.push_back((buffers, end));
        let is_awaited = queue.full.len() == 1;
        drop(queue);
        if is_awaited {
            shared.changed.notify_all();
        }
    }
}

/// The next buffers to fill, all there are before the thread sleeps again; `None` once the prefetcher is closed.
fn next_empty<B>(shared: &Shared<B>) -> Option<B> {
    let mut queue = shared.lock();
    let mut n_fruitless = 0;
    while !queue.is_closed {
        if (n_fruitless == 0 || queue.is_due())
            && let Some(buffers) = queue.empty.pop_front()
        {
            return Some(buffers);
        }
        let nap = queue.nap(n_fruitless);
        queue = shared.changed.wait_timeout(queue, nap).unwrap_or_else(PoisonError::into_inner).0;
        n_fruitless += 1;
    }
    None
}

/// Tells the waiting caller when the thread unwinds.
struct Mourner<'s, B>(&'s Shared<B>);

impl<B> Drop for Mourner<'_, B> {
    fn drop(&mut self) {
        self.0.lock().is_dead = thread::panicking();
        self.0.changed.notify_all();
    }
}
