//! Reads batches ahead into buffers that the caller lends: on one thread, and on the caller's where that is behind.

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

/// Buffers that are filled with consecutive microbatches, by a thread ahead of the caller.
///
/// Waking a thread costs the caller more than all else that it does here. So the thread wakes by itself, about when half
/// of what it filled should be used up at the caller's pace. A caller that finds its next batch not begun fills it
/// itself, on one core without a change of threads, on several beside the thread.
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
    /// Wakes the thread.
    lent: Condvar,
    /// Wakes the caller.
    filled: Condvar,
}

#[derive(Debug)]
struct Queue<B> {
    /// Lent and not handed back, oldest first: slot `i` is for the microbatch `i` behind the one at `next_sample`.
    slots: VecDeque<Slot<B>>,
    next_sample: u64,
    stride: u64,
    n_empty: usize,
    n_full: usize,
    n_taken: u64,
    /// Failures that were handed out; what was begun before one is for another microbatch.
    n_failed: u64,
    /// When the caller took its last batch, and its time from one to the next, averaged.
    taken_at: Option<Instant>,
    pace: Duration,
    /// When the caller was last given a batch, until it asks for the next; and how long it stays away, averaged.
    given_at: Option<Instant>,
    absence: Duration,
    /// What filling took, averaged.
    fill_time: Duration,
    /// Whether the thread has the caller's only core.
    shares_core: bool,
    /// Until when the thread sleeps.
    asleep_until: Option<Instant>,
    is_closed: bool,
    is_dead: bool,
}

#[derive(Debug)]
enum Slot<B> {
    Empty(B),
    Filling,
    Full(B, Result<()>),
}

/// A buffer on its way from empty to full.
struct Job<B> {
    buffers: B,
    sample: u64,
    /// The number of its slot among all that were lent, and the failures before it was begun.
    number: u64,
    n_failed: u64,
}

/// The shortest and the longest sleep of the thread.
const MIN_NAP: Duration = Duration::from_micros(100);
const MAX_NAP: Duration = Duration::from_millis(100);

impl<B> Queue<B> {
    fn new(next_sample: u64, stride: u64) -> Self {
        Self {
            slots: VecDeque::new(),
            next_sample,
            stride,
            n_empty: 0,
            n_full: 0,
            n_taken: 0,
            n_failed: 0,
            taken_at: None,
            pace: Duration::ZERO,
            given_at: None,
            absence: Duration::ZERO,
            fill_time: Duration::ZERO,
            shares_core: false,
            asleep_until: None,
            is_closed: false,
            is_dead: false,
        }
    }

    /// The caller asks for a batch.
    fn ask(&mut self) {
        if let Some(given_at) = self.given_at.take() {
            self.absence = averaged(self.absence, given_at.elapsed());
        }
    }

    /// Takes the oldest batch if it is full, and learns the caller's pace.
    fn take(&mut self) -> Option<(B, Result<()>)> {
        let (buffers, end) = match self.slots.pop_front()? {
            Slot::Full(buffers, end) => (buffers, end),
            other => {
                self.slots.push_front(other);
                return None;
            }
        };
        self.n_full -= 1;
        self.n_taken += 1;
        match &end {
            Ok(()) => self.next_sample += self.stride,
            Err(_) => self.begin_again(),
        }
        let now = Instant::now();
        if let Some(before) = self.taken_at.replace(now) {
            self.pace = averaged(self.pace, now.duration_since(before));
        }
        self.given_at = Some(now);
        Some((buffers, end))
    }

    /// Every buffer is for one microbatch earlier than before.
    fn begin_again(&mut self) {
        self.n_failed += 1;
        for slot in &mut self.slots {
            *slot = match std::mem::replace(slot, Slot::Filling) {
                Slot::Full(buffers, _) => Slot::Empty(buffers),
                other => other,
            };
        }
        self.n_empty += std::mem::take(&mut self.n_full);
    }

    /// Begins with the oldest empty buffer.
    fn begin(&mut self) -> Option<Job<B>> {
        let i = self.slots.iter().position(|slot| matches!(slot, Slot::Empty(_)))?;
        let Slot::Empty(buffers) = std::mem::replace(&mut self.slots[i], Slot::Filling) else { return None };
        self.n_empty -= 1;
        let sample = self.next_sample.saturating_add((i as u64).saturating_mul(self.stride));
        Some(Job { buffers, sample, number: self.n_taken + i as u64, n_failed: self.n_failed })
    }

    /// Puts a filled buffer back; whether it is the one that the caller waits for.
    fn end(&mut self, Job { buffers, number, n_failed, .. }: Job<B>, end: Result<()>) -> bool {
        let i = (number - self.n_taken) as usize;
        let Some(slot) = self.slots.get_mut(i) else { return false }; // closed
        if n_failed == self.n_failed {
            *slot = Slot::Full(buffers, end);
            self.n_full += 1;
        } else {
            *slot = Slot::Empty(buffers);
            self.n_empty += 1;
        }
        i == 0
    }

    /// Whether it is worth filling: half of the buffers are empty.
    fn is_due(&self) -> bool {
        self.n_empty > 0 && self.n_empty >= self.n_full
    }

    /// How long the thread may sleep until that should be so, after `n_fruitless` looks in a row.
    fn nap(&self, n_fruitless: u32) -> Duration {
        if self.slots.is_empty() || self.is_in_the_way() {
            return MAX_NAP; // `submit` wakes it
        }
        let n_batches = self.n_full.saturating_sub(self.n_empty).div_ceil(2) as u32;
        (self.pace * n_batches * (1 << n_fruitless.min(10))).clamp(MIN_NAP, MAX_NAP)
    }

    /// Whether the thread would only take the core from a caller that does nothing else than take batches.
    fn is_in_the_way(&self) -> bool {
        self.shares_core && self.absence < self.fill_time
    }

    /// Whether the thread sleeps too long for a caller that waits.
    fn oversleeps(&self) -> bool {
        !self.is_in_the_way() && self.asleep_until.is_some_and(|until| until > Instant::now() + MIN_NAP)
    }
}

/// An average with an eighth of the new one: a pause (evaluation, a checkpoint) does not change it for long.
fn averaged(average: Duration, new: Duration) -> Duration {
    (average * 7 + new.min(MAX_NAP)) / 8
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, Queue<B>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Buffers> Shared<B> {
    /// Fills the buffers of `job` without the lock.
    fn fill(&self, loader: &Loader, mut job: Job<B>) -> MutexGuard<'_, Queue<B>> {
        let mourner = Mourner(self);
        let start = Instant::now();
        let end = job.buffers.fill(loader, job.sample);
        let fill_time = start.elapsed();
        std::mem::forget(mourner);
        let mut queue = self.lock();
        queue.fill_time = averaged(queue.fill_time, fill_time);
        if queue.end(job, end) {
            self.filled.notify_one();
        }
        queue
    }
}

impl<B: Buffers> Prefetch<B> {
    /// A prefetcher whose first batch is the one at `next_sample`.
    pub fn new(loader: Loader, next_sample: u64) -> Result<Self> {
        loader.check_start(next_sample)?;
        let queue = Queue::new(next_sample, loader.samples_per_microbatch());
        let shared = Shared { queue: Mutex::new(queue), lent: Condvar::new(), filled: Condvar::new() };
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

    /// Whether it is worth lending more than the next batch: not on one core while the caller takes batches as fast as
    /// they are filled.
    pub fn is_worth_it(&self) -> bool {
        !self.shared.lock().is_in_the_way()
    }

    /// Lends buffers for one more batch.
    pub fn submit(&mut self, buffers: B) -> Result<()> {
        self.check_process()?;
        let is_wanted = {
            let mut queue = self.shared.lock();
            if queue.is_closed {
                return Err(Error::Argument("expected an open prefetcher, it was closed".to_owned()));
            }
            queue.slots.push_back(Slot::Empty(buffers));
            queue.n_empty += 1;
            queue.slots.len() == 1 && !queue.is_in_the_way()
        };
        if is_wanted {
            self.shared.lent.notify_one();
        }
        if self.thread.is_none() {
            let (shared, loader) = (Arc::clone(&self.shared), self.loader.clone());
            let work = move || fill_ahead(&shared, &loader);
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

    /// Waits for the oldest batch, at most `patience`, and fills it on this thread when nobody has begun with it;
    /// `None` when it is not there by then. Without patience it only looks.
    ///
    /// # Panics
    /// When [`Buffers::fill`] panicked on the thread.
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<B>> {
        self.check_process()?;
        let mut deadline = None;
        let mut queue = self.shared.lock();
        queue.ask();
        let (buffers, end) = loop {
            if let Some(batch) = queue.take() {
                break batch;
            }
            if queue.slots.is_empty() || queue.is_closed {
                return Err(Error::Argument("expected submitted buffers, there are none".to_owned()));
            }
            assert!(!queue.is_dead, "the loader's thread panicked");
            if patience.is_zero() {
                return Ok(None);
            }
            if let Some(Slot::Empty(_)) = queue.slots.front()
                && let Some(job) = queue.begin()
            {
                let oversleeps = queue.oversleeps();
                drop(queue);
                if oversleeps {
                    self.shared.lent.notify_one();
                }
                queue = self.shared.fill(&self.loader, job);
                continue;
            }
            let left =
                deadline.get_or_insert_with(|| Instant::now() + patience).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            queue = self.shared.filled.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.next_sample = queue.next_sample;
        drop(queue);
        end.map(|()| Some(buffers))
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
            self.shared.lent.notify_one();
            // A panic of the thread was printed by its hook, and shows at `next`.
            let _ = thread.join();
        }
        let mut queue = self.shared.lock();
        queue.is_closed = true;
        queue.slots.clear();
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
fn fill_ahead<B: Buffers>(shared: &Shared<B>, loader: &Loader) {
    let shares_core = thread::available_parallelism().is_ok_and(|n| n.get() == 1);
    shared.lock().shares_core = shares_core;
    while let Some(job) = next_job(shared) {
        drop(shared.fill(loader, job));
    }
}

/// The next buffers to fill, all there are before the thread sleeps again; `None` once the prefetcher is closed.
fn next_job<B>(shared: &Shared<B>) -> Option<Job<B>> {
    let mut queue = shared.lock();
    let mut n_fruitless = 0;
    while !queue.is_closed {
        if (n_fruitless == 0 || queue.is_due())
            && !queue.is_in_the_way()
            && let Some(job) = queue.begin()
        {
            return Some(job);
        }
        let nap = queue.nap(n_fruitless);
        queue.asleep_until = Some(Instant::now() + nap);
        queue = shared.lent.wait_timeout(queue, nap).unwrap_or_else(PoisonError::into_inner).0;
        queue.asleep_until = None;
        n_fruitless += 1;
    }
    None
}

/// Tells a waiting caller when a filling thread unwinds.
struct Mourner<'s, B>(&'s Shared<B>);

impl<B> Drop for Mourner<'_, B> {
    fn drop(&mut self) {
        self.0.lock().is_dead = true;
        self.0.filled.notify_one();
    }
}
