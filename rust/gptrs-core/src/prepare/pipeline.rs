//! Segments to workers, results back in order, with a bound on what is in between.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::segments::{Segment, Segments};
use crate::control::Control;
use crate::error::{Error, Result};

/// Text in flight for each thread; its ids take about as much again, at worst four times.
const IN_FLIGHT: u64 = 8 << 20;

/// What a segment counts beyond its text.
const OVERHEAD: u64 = 4096;

/// What workers make of segments.
pub(super) trait Work: Sync {
    /// A worker's scratch memory.
    type State;
    /// What becomes of a segment.
    type Output: Send;

    /// Makes the scratch memory of one worker.
    fn state(&self) -> Self::State;

    /// A worker's part.
    fn work(&self, state: &mut Self::State, segment: Segment) -> Result<Self::Output>;
}

struct Pipeline<'a, W: Work> {
    worker: &'a W,
    queue: Mutex<Queue<'a, W::Output>>,
    changed: Condvar,
    limit: u64,
}

struct Queue<'a, T> {
    segments: Segments<'a>,
    n_taken: u64,
    in_flight: u64,
    results: BTreeMap<u64, Result<Done<T>>>,
    is_exhausted: bool,
    is_stopped: bool,
}

/// A segment's result, its bytes of text, and those of the input as it is stored.
struct Done<T> {
    output: T,
    n_bytes: u64,
    n_stored: u64,
}

/// Works on all segments on `threads` workers and calls `write` with the results in order, on this thread.
pub(super) fn run<W: Work>(
    segments: Segments,
    worker: &W,
    threads: usize,
    control: &Control,
    mut write: impl FnMut(W::Output) -> Result<()>,
) -> Result<()> {
    let (results, limit) = (BTreeMap::new(), IN_FLIGHT * threads as u64);
    let queue = Queue { segments, n_taken: 0, in_flight: 0, results, is_exhausted: false, is_stopped: false };
    let pipeline = Pipeline { worker, queue: Mutex::new(queue), changed: Condvar::new(), limit };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| pipeline.work())).collect();
        let mut end = Ok(());
        for wanted in 0.. {
            match pipeline.result(wanted, control) {
                Ok(None) => break,
                Ok(Some(result)) => {
                    end = write(result.output);
                    pipeline.lock().in_flight -= result.n_bytes + OVERHEAD;
                    pipeline.changed.notify_all();
                    control.advance(result.n_stored);
                }
                Err(error) => end = Err(error),
            }
            if end.is_err() {
                break;
            }
        }
        pipeline.stop();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        end
    })
}

impl<'a, W: Work> Pipeline<'a, W> {
    fn lock(&self) -> MutexGuard<'_, Queue<'a, W::Output>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker: takes segments until there are none.
    fn work(&self) {
        let _stopper = StopOnPanic(self);
        let mut state = self.worker.state();
        while let Some((number, segment)) = self.take() {
            let (n_bytes, n_stored) = (segment.n_bytes, segment.n_stored);
            let result = self.worker.work(&mut state, segment).map(|output| Done { output, n_bytes, n_stored });
            self.lock().results.insert(number, result);
            self.changed.notify_all();
        }
    }

    /// The next segment with its number, when there is room for it.
    fn take(&self) -> Option<(u64, Segment)> {
        let mut queue = self.lock();
        while queue.in_flight >= self.limit && !queue.is_stopped {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.is_exhausted || queue.is_stopped {
            return None;
        }
        let number = queue.n_taken;
        match queue.segments.next() {
            Ok(Some(segment)) => {
                queue.n_taken += 1;
                queue.in_flight += segment.n_bytes + OVERHEAD;
                return Some((number, segment));
            }
            Ok(None) => queue.is_exhausted = true,
            Err(error) => {
                // It is reported after the segments before it are written.
                queue.is_exhausted = true;
                queue.n_taken += 1;
                queue.results.insert(number, Err(error));
            }
        }
        drop(queue);
        self.changed.notify_all();
        None
    }

    /// Waits for result `wanted`; `None` when there are no more.
    fn result(&self, wanted: u64, control: &Control) -> Result<Option<Done<W::Output>>> {
        let mut queue = self.lock();
        loop {
            control.check()?;
            if let Some(result) = queue.results.remove(&wanted) {
                return result.map(Some);
            }
            if queue.is_exhausted && queue.n_taken == wanted {
                return Ok(None);
            }
            if queue.is_stopped {
                return Err(Error::Interrupted); // a worker panicked: its panic follows
            }
            let wait = self.changed.wait_timeout(queue, Duration::from_millis(20));
            queue = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }
}

struct StopOnPanic<'p, 'a, W: Work>(&'p Pipeline<'a, W>);

impl<W: Work> Drop for StopOnPanic<'_, '_, W> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}
