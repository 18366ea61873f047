//! Texts to counts, on all threads.

use std::sync::Mutex;

use super::front::{Front, LongBatch};
use super::table::MAX_SHORT;
use super::{N_SHARDS, Shard, WordCounts, lock};
use crate::control::Control;
use crate::error::Result;
use crate::parallel;
use crate::split::{Run, Splitter};

/// Text handed to a thread at once: some milliseconds of work.
pub(crate) const TASK_BYTES: usize = 1 << 20;

/// Counts the pieces of texts that arrive one batch after the other.
///
/// A failed call takes the counter with it, so no half-counted batch is ever part of a result.
#[derive(Debug)]
pub struct Counter {
    splitter: Splitter,
    threads: usize,
    /// Shared by all threads: a thread brings the words of a shard many at once.
    shards: Vec<Mutex<Shard>>,
    /// One for each thread that has worked so far.
    fronts: Vec<Front>,
    is_utf8: bool,
}

/// A thread's way to a counter.
pub(crate) struct Worker<'c> {
    splitter: Splitter,
    front: Front,
    shards: &'c [Mutex<Shard>],
    control: &'c Control,
    is_utf8: bool,
}

impl Counter {
    /// A counter that works on `threads` threads (0: all cores).
    pub fn new(splitter: &Splitter, threads: usize) -> Self {
        let shards = (0..N_SHARDS).map(|_| Mutex::default()).collect();
        let threads = parallel::resolve_threads(threads);
        Self { splitter: splitter.clone(), threads, shards, fronts: Vec::new(), is_utf8: true }
    }

    /// Counts every text as a document of its own; long ones are cut at [`Splitter::safe_cut`] and shared by all threads.
    ///
    /// Advances `control` by the bytes; its stage is the caller's.
    pub fn add_texts<T: AsRef<[u8]> + Sync>(self, texts: &[T], control: &Control) -> Result<Self> {
        let tasks = tasks(texts, &self.splitter);
        self.run(tasks.len(), control, |worker, index| {
            let Task { first, last, start, end } = tasks[index];
            for text in &texts[first..last] {
                let text = text.as_ref();
                let part = &text[start..end.min(text.len())];
                worker.count(part)?;
                control.advance(part.len() as u64);
            }
            Ok(())
        })
    }

    /// Runs `work` for the tasks `0..n_tasks` on all threads; it hands texts to its worker.
    pub(crate) fn run(
        mut self,
        n_tasks: usize,
        control: &Control,
        work: impl Fn(&mut Worker, usize) -> Result<()> + Sync,
    ) -> Result<Self> {
        let idle = Mutex::new(std::mem::take(&mut self.fronts));
        let make_worker = || {
            let front = lock(&idle).pop().unwrap_or_else(Front::new);
            Worker { splitter: self.splitter.clone(), front, shards: &self.shards, control, is_utf8: true }
        };
        let workers = parallel::run(self.threads, n_tasks, control, make_worker, work)?;
        self.is_utf8 &= workers.iter().all(|worker| worker.is_utf8);
        self.fronts = workers.into_iter().map(|worker| worker.front).collect();
        self.fronts.append(&mut lock(&idle));
        Ok(self)
    }

    /// Whether all texts so far were valid UTF-8: the scan knows, so that nobody needs to look a second time.
    pub(crate) fn is_utf8(&self) -> bool {
        self.is_utf8
    }

    /// All counts so far.
    pub fn finish(mut self, control: &Control) -> Result<WordCounts> {
        control.check()?;
        self.fronts.iter_mut().try_for_each(|front| front.finish(&self.shards))?;
        Ok(WordCounts { shards: self.shards.into_iter().map(|shard| std::mem::take(&mut *lock(&shard))).collect() })
    }
}

impl Worker<'_> {
    /// Counts the pieces of `text`.
    pub(crate) fn count(&mut self, text: &[u8]) -> Result<()> {
        /// A custom pattern cannot be cut: look up from a long text every so many pieces.
        const CHECK_PIECES: u32 = 1 << 14;
        let Self { splitter, front, shards, control, is_utf8 } = self;
        let mut n_single = 0u32;
        let mut long = LongBatch::default();
        let normal = splitter.normalize(text);
        if normal.is_some() || !splitter.is_scanned() {
            *is_utf8 &= std::str::from_utf8(text).is_ok();
        }
        splitter.for_each_run(normal.as_deref().unwrap_or(text), |part, run| {
            let piece = match run {
                Run::Many(start, ends) => return front.add_all(part, start, ends, &mut long, shards),
                Run::One(start, end) => &part[start..end],
                Run::Invalid(len) => {
                    *is_utf8 = false;
                    &part[..len]
                }
            };
            n_single = n_single.wrapping_add(1);
            if n_single.is_multiple_of(CHECK_PIECES) {
                control.check()?;
            }
            if piece.len() > MAX_SHORT { long.add(piece, shards) } else { front.add(piece, shards) }
        })?;
        long.drain(shards)
    }
}

/// The range `start..end` of each of the texts `first..last`; several texts only when they are taken whole.
#[derive(Debug, Clone, Copy)]
struct Task {
    first: usize,
    last: usize,
    start: usize,
    end: usize,
}

/// Cuts long texts and gathers short ones, so that a task is about [`TASK_BYTES`].
fn tasks<T: AsRef<[u8]>>(texts: &[T], splitter: &Splitter) -> Vec<Task> {
    let mut tasks = Vec::new();
    let (mut first, mut n_gathered) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        let text = text.as_ref();
        if text.len() < TASK_BYTES {
            n_gathered += text.len();
            if n_gathered >= TASK_BYTES {
                tasks.push(Task { first, last: index + 1, start: 0, end: usize::MAX });
                (first, n_gathered) = (index + 1, 0);
            }
            continue;
        }
        tasks.push(Task { first, last: index, start: 0, end: usize::MAX });
        let mut start = 0;
        while start < text.len() {
            let end = splitter.safe_cut(text, (start + TASK_BYTES).min(text.len()));
            tasks.push(Task { first: index, last: index + 1, start, end });
            start = end;
        }
        (first, n_gathered) = (index + 1, 0);
    }
    tasks.push(Task { first, last: texts.len(), start: 0, end: usize::MAX });
    tasks
}
