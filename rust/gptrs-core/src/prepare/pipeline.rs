//! Segments to workers, results back in order, with a bound on what is in between.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Encode;
use super::encode::{Encoded, Encoder};
use super::segments::{Segment, Segments};
use crate::control::Control;
use crate::error::{Error, Result};

/// Text in flight for each thread; its ids take about as much again, at worst four times.
const IN_FLIGHT: u64 = 8 << 20;

/// What a segment counts beyond its text.
const OVERHEAD: u64 = 4096;

struct Pipeline<'a, E> {
    encoder: &'a Encoder<'a, E>,
    queue: Mutex<Queue<'a>>,
    changed: Condvar,
    limit: u64,
}

struct Queue<'a> {
    segments: Segments<'a>,
    n_taken: u64,
    in_flight: u64,
    results: BTreeMap<u64, Result<Encoded>>,
    is_exhausted: bool,
    is_stopped: bool,
}

/// Encodes all segments on `threads` workers and calls `write` with the results in order, on this thread.
pub(super) fn run<E: Encode>(
    segments: Segments,
    encoder: &Encoder<E>,
    threads: usize,
    control: &Control,
    mut write: impl FnMut(Encoded) -> Result<()>,
) -> Result<()> {
    let (results, limit) = (BTreeMap::new(), IN_FLIGHT * threads as u64);
    let queue = Queue { segments, n_taken: 0, in_flight: 0, results, is_exhausted: false, is_stopped: false };
    let pipeline = Pipeline { encoder, queue: Mutex::new(queue), changed: Condvar::new(), limit };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| pipeline.work())).collect();
        let mut end = Ok(());
        for wanted in 0.. {
            match pipeline.result(wanted, control) {
                Ok(None) => break,
                Ok(Some(result)) => {
                    let (n_bytes, n_stored) = (result.n_bytes, result.n_stored);
                    end = write(result);
                    pipeline.lock().in_flight -= n_bytes + OVERHEAD;
                    pipeline.changed.notify_all();
                    control.advance(n_stored);
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

impl<'a, E: Encode> Pipeline<'a, E> {
    fn lock(&self) -> MutexGuard<'_, Queue<'a>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker: takes segments until there are none.
    fn work(&self) {
        let _stopper = StopOnPanic(self);
        let mut state = self.encoder.tokenizer.state();
        while let Some((number, segment)) = self.take() {
            let result = self.encoder.encode(&mut state, segment);
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
        match queue.segments.next(self.encoder.tokenizer) {
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
    fn result(&self, wanted: u64, control: &Control) -> Result<Option<Encoded>> {
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

struct StopOnPanic<'p, 'a, E: Encode>(&'p Pipeline<'a, E>);

impl<E: Encode> Drop for StopOnPanic<'_, '_, E> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}
