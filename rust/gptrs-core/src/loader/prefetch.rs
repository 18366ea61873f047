//! Reads batches ahead into buffers that the caller lends: on one thread, and on the caller's where that is behind.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Loader;
use super::queue::{Job, Queue, Slot, averaged};
use crate::error::{Error, Result};
use crate::process::Process;
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
    thread: Option<(JoinHandle<()>, Process)>,
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

    /// How many buffers are to be lent before the next batch is taken, for `n_ahead` behind it: one at most on one core
    /// while the caller takes batches as fast as they are filled.
    pub fn n_missing(&self, n_ahead: usize) -> Result<usize> {
        self.check_process()?;
        let queue = self.shared.lock();
        let n_ahead = if queue.is_in_the_way() { 0 } else { n_ahead };
        Ok(n_ahead.saturating_add(1).saturating_sub(queue.slots.len()))
    }

    /// Lends buffers for one more batch.
    pub fn submit(&mut self, buffers: B) -> Result<()> {
        self.check_process()?;
        if self.shared.lock().is_closed {
            return Err(Error::Argument("expected an open prefetcher, it was closed".to_owned()));
        }
        self.start()?;
        let is_wanted = {
            let mut queue = self.shared.lock();
            queue.lend(buffers);
            queue.slots.len() == 1 && !queue.is_in_the_way()
        };
        if is_wanted {
            self.shared.lent.notify_one();
        }
        Ok(())
    }

    /// Starts the thread unless it runs.
    fn start(&mut self) -> Result<()> {
        if self.thread.is_none() {
            let (shared, loader) = (Arc::clone(&self.shared), self.loader.clone());
            let work = move || fill_ahead(&shared, &loader);
            let thread = thread::Builder::new().name("gptrs-loader".to_owned()).spawn(work);
            let thread = thread.map_err(Error::io("start a thread for", self.loader.dataset().dir()))?;
            self.thread = Some((thread, Process::current()));
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
    /// When [`Buffers::fill`] panicked, here or on the thread.
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
            assert!(!queue.is_dead, "filling a batch panicked");
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

    /// Stops the thread and waits for it; batches read ahead are dropped. Does nothing in a forked child, which has not
    /// got the thread, and where the lock may be held for ever.
    pub fn close(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        if let Some((thread, _)) = self.thread.take() {
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
            Some((_, process)) if !process.is_current() => Err(Error::Argument(
                "this loader reads ahead in the process that forked this one; hint: make a new loader here".to_owned(),
            )),
            _ => Ok(()),
        }
    }
}

impl<B: Buffers> Drop for Prefetch<B> {
    fn drop(&mut self) {
        self.close();
        // Left in a forked child alone, where the thread is not: its handle must not touch it.
        if let Some(thread) = self.thread.take() {
            std::mem::forget(thread);
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::mpsc;

    use super::*;
    use crate::corpus::Selection;
    use crate::dataset::Dataset;
    use crate::loader::LoaderOptions;
    use crate::manifest::{Entry, Manifest, Recipe};
    use crate::order::OrderKind;
    use crate::shard::{Dtype, ShardWriter, Spec};

    /// A loader of two rows.
    fn loader(dir: &std::path::Path) -> Result<Loader> {
        let spec = Spec { dtype: Dtype::U16, vocab_size: 9, eot_id: None, tokenizer: [1; 32], has_loss_bits: false };
        let mut writer = ShardWriter::create(&dir.join("shard-00000.gts"), spec)?;
        writer.push(&[7; 9])?;
        writer.end_document(1);
        let (header, digest) = writer.finish()?;
        let recipe = Recipe {
            tokenizer: "01".repeat(32),
            vocab_size: spec.vocab_size,
            dtype: spec.dtype,
            eot_id: None,
            append_eot: false,
            text_field: "text".to_owned(),
            loss_fields: Vec::new(),
            shard_tokens: 9,
            selection: Selection::default(),
            inputs: Vec::new(),
        };
        let entry = Entry::new("shard-00000.gts".to_owned(), &header, &digest);
        Manifest::new(recipe, vec![entry], BTreeMap::new())?.write(dir)?;
        let (seq_len, global_batch, seed, order) = (4, 1, 1, OrderKind::Sequential);
        let options = LoaderOptions { seq_len, global_batch, micro_batch: 1, rank: 0, world_size: 1, seed, order };
        Loader::new(Arc::new(Dataset::open(dir)?), options)
    }

    /// As in a forked child: the thread is another process's, and the lock is held for ever.
    #[test]
    fn a_forked_child_never_waits_for_the_lock() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io("create", "a folder"))?;
        let loader = loader(dir.path())?;
        let mut prefetch = Prefetch::new(loader.clone(), 0)?;
        prefetch.submit(Rows::<u16>::new(&loader))?;
        prefetch.next()?;
        if let Some((_, process)) = &mut prefetch.thread {
            process.id += 1;
        }
        let (shared, (sender, end)) = (Arc::clone(&prefetch.shared), mpsc::channel());
        let mut held = shared.lock();
        thread::spawn(move || {
            let errors = [prefetch.submit(Rows::new(&loader)).is_err(), prefetch.next().is_err()];
            let is_refused = errors == [true; 2] && prefetch.n_missing(4).is_err();
            prefetch.close();
            drop(prefetch);
            let _ = sender.send(is_refused);
        });
        let end = end.recv_timeout(Duration::from_secs(30));
        held.is_closed = true; // ends the thread, which runs here after all
        drop(held);
        shared.lent.notify_one();
        assert_eq!(end, Ok(true));
        Ok(())
    }
}
