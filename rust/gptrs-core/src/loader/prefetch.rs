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
    is_closed: bool,
    is_dead: bool,
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
        let (empty, full) = (VecDeque::new(), VecDeque::new());
        let queue = Mutex::new(Queue { empty, full, n_pending: 0, is_closed: false, is_dead: false });
        Ok(Self { shared: Arc::new(Shared { queue, changed: Condvar::new() }), loader, thread: None, next_sample })
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
            // A wake-up costs the caller more than anything else here: one for half the buffers, not for each.
            queue.full.len() <= queue.empty.len()
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
        let batch = queue.full.pop_front();
        queue.n_pending -= 1;
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
    loop {
        let mut queue = shared.lock();
        let mut buffers = loop {
            if queue.is_closed {
                return;
            }
            match queue.empty.pop_front() {
                Some(buffers) => break buffers,
                None => queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(queue);
        let end = buffers.fill(loader, next_sample);
        if end.is_ok() {
            next_sample += loader.samples_per_microbatch();
        }
        shared.lock().full.push_back((buffers, end));
        shared.changed.notify_all();
    }
}

/// Tells the waiting caller when the thread unwinds.
struct Mourner<'s, B>(&'s Shared<B>);

impl<B> Drop for Mourner<'_, B> {
    fn drop(&mut self) {
        self.0.lock().is_dead = thread::panicking();
        self.0.changed.notify_all();
    }
}
