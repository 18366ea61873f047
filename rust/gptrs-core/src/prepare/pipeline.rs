//! Segments to workers, results back in order, with a bound on what is in between.
//!
//! ```text
//! segments ─ read (one at a time) ─▶ ready ─ work (threads) ─▶ results ─ write (this thread, in order) ─▶
//! ```
//! The calling thread reads ahead while it has nothing to write; a worker that finds nothing ready reads for itself. So
//! decompressing goes on beside encoding, and neither waits for a lock that is held while something is read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::segments::{Segment, Segments};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::io::inherit;

/// Text in flight for each thread; its ids take about as much again, at worst four times.
const IN_FLIGHT: u64 = 8 << 20;

/// Segments read ahead for each thread: a large page of a Parquet file gives many at once, and none while the next one is
/// decompressed.
const AHEAD: usize = 8;

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

    /// Takes it back when the work is done.
    fn give_back(&self, _state: Self::State) {}

    /// A worker's part.
    fn work(&self, state: &mut Self::State, segment: Segment) -> Result<Self::Output>;
}

struct Pipeline<'a, W: Work> {
    worker: &'a W,
    /// Locked by the thread that has set `is_reading`, so nobody waits for it.
    segments: Mutex<Segments<'a>>,
    queue: Mutex<Queue<W::Output>>,
    changed: Condvar,
    threads: usize,
    limit: u64,
}

struct Queue<T> {
    /// Segments that were read and that no worker has taken, and how many were read in all.
    ready: VecDeque<Numbered>,
    n_read: u64,
    /// Bytes of text that were read and not yet written.
    in_flight: u64,
    results: BTreeMap<u64, Result<Done<T>>>,
    is_reading: bool,
    is_exhausted: bool,
    is_stopped: bool,
}

/// A segment with its number.
type Numbered = (u64, Segment);

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
    let pipeline = Pipeline::new(segments, worker, threads);
    thread::scope(|scope| {
        let _stopper = StopOnPanic(&pipeline);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(inherit(|| pipeline.work()))).collect();
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

impl<T> Queue<T> {
    /// Whether a segment may be read now.
    fn may_read(&self, limit: u64) -> bool {
        !self.is_reading && !self.is_exhausted && !self.is_stopped && self.in_flight < limit
    }
}

impl<'a, W: Work> Pipeline<'a, W> {
    fn new(segments: Segments<'a>, worker: &'a W, threads: usize) -> Self {
        let (ready, results) = (VecDeque::new(), BTreeMap::new());
        let (is_reading, is_exhausted, is_stopped) = (false, false, false);
        let queue = Queue { ready, n_read: 0, in_flight: 0, results, is_reading, is_exhausted, is_stopped };
        let (segments, queue, changed) = (Mutex::new(segments), Mutex::new(queue), Condvar::new());
        Self { worker, segments, queue, changed, threads, limit: IN_FLIGHT * threads as u64 }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<W::Output>> {
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
        self.worker.give_back(state);
    }

    /// The next segment with its number: one that is ready, or read now, when there is room for it.
    fn take(&self) -> Option<Numbered> {
        let mut queue = self.lock();
        loop {
            if queue.is_stopped {
                return None;
            }
            if let Some(segment) = queue.ready.pop_front() {
                return Some(segment);
            }
            if queue.is_exhausted {
                return None;
            }
            if queue.may_read(self.limit) {
                queue = self.read(queue);
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Reads a segment, without the lock of the queue.
    fn read<'q>(&'q self, mut queue: MutexGuard<'q, Queue<W::Output>>) -> MutexGuard<'q, Queue<W::Output>> {
        queue.is_reading = true;
        drop(queue);
        let segment = self.segments.lock().unwrap_or_else(PoisonError::into_inner).next();
        let mut queue = self.lock();
        queue.is_reading = false;
        let number = queue.n_read;
        match segment {
            Ok(Some(segment)) => {
                queue.n_read += 1;
                queue.in_flight += segment.n_bytes + OVERHEAD;
                queue.ready.push_back((number, segment));
            }
            Ok(None) => queue.is_exhausted = true,
            Err(error) => {
                // It is reported after the segments before it are written.
                queue.is_exhausted = true;
                queue.n_read += 1;
                queue.results.insert(number, Err(error));
            }
        }
        self.changed.notify_all();
        queue
    }

    /// Waits for result `wanted` and reads ahead meanwhile, [`AHEAD`]; `None` when there are no more.
    fn result(&self, wanted: u64, control: &Control) -> Result<Option<Done<W::Output>>> {
        let mut queue = self.lock();
        loop {
            control.check()?;
            if let Some(result) = queue.results.remove(&wanted) {
                return result.map(Some);
            }
            if queue.is_exhausted && queue.n_read == wanted {
                return Ok(None);
            }
            if queue.is_stopped {
                return Err(Error::Interrupted); // a worker panicked: its panic follows
            }
            if queue.ready.len() < AHEAD * self.threads && queue.may_read(self.limit) {
                queue = self.read(queue);
            } else {
                let wait = self.changed.wait_timeout(queue, Duration::from_millis(20));
                queue = wait.unwrap_or_else(PoisonError::into_inner).0;
            }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use super::super::journal::Position;
    use super::super::segments::Reading;
    use super::super::texts::Cutter;
    use super::super::{PrepareOptions, segments};
    use super::*;
    use crate::corpus::{self, TextField};
    use crate::io::sweep::temporary_dir;

    const SEGMENT: usize = 1 << 16;

    /// Gives the offset of each segment, after what `on_segment` does with it.
    struct Offsets<F> {
        on_segment: F,
        /// Memory of workers that was not given back.
        n_lent: AtomicU64,
    }

    impl<F: Fn(u64) + Sync> Work for Offsets<F> {
        type State = ();
        type Output = u64;

        fn state(&self) {
            self.n_lent.fetch_add(1, Ordering::SeqCst);
        }

        fn give_back(&self, (): ()) {
            self.n_lent.fetch_sub(1, Ordering::SeqCst);
        }

        fn work(&self, (): &mut (), segment: Segment) -> Result<u64> {
            (self.on_segment)(segment.place.at.offset);
            Ok(segment.place.at.offset)
        }
    }

    /// Runs over a file of these bytes; `on_cut` is told how many bytes were read before each cut.
    fn run_over(
        (name, bytes): (&str, &[u8]),
        threads: usize,
        on_cut: impl Fn(u64) + Sync,
        on_segment: impl Fn(u64) + Sync,
        write: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let dir = temporary_dir();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let inputs = corpus::inputs(&[path]).unwrap();
        let options = PrepareOptions { segment_bytes: SEGMENT, ..PrepareOptions::default() };
        let text_field = TextField::new("text").unwrap();
        let safe_cut = |text: &[u8], at: usize| {
            on_cut((bytes.len() - text.len()) as u64);
            at
        };
        let cutter = Cutter::new(&options, 0, &safe_cut);
        let reading = Reading { cutter, text_field: &text_field, replaces: false };
        let segments = segments::Segments::new(&inputs, Position::START, reading);
        let offsets = Offsets { on_segment, n_lent: AtomicU64::new(0) };
        let end = run(segments, &offsets, threads, &Control::new(), write);
        assert_eq!(offsets.n_lent.into_inner(), 0, "all memory is given back");
        end
    }

    #[test]
    fn an_error_of_reading_comes_behind_all_that_was_read_before() {
        let lines: Vec<_> = (0..60_000).map(|i| format!("{{\"text\": \"{i}\"}}\n")).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(lines.concat().as_bytes()).unwrap();
        let mut packed = encoder.finish().unwrap();
        packed.truncate(packed.len() / 2);
        let mut first = Vec::new();
        for threads in [1, 2, 5] {
            let mut written = Vec::new();
            let end = run_over(
                ("a.jsonl.gz", &packed),
                threads,
                |_| (),
                |_| (),
                |offset| {
                    written.push(offset);
                    Ok(())
                },
            );
            assert!(matches!(end, Err(Error::Format { .. })), "{end:?}");
            assert!(written.len() > 3 && written.is_sorted(), "{written:?}");
            if threads == 1 {
                first.clone_from(&written);
            }
            assert_eq!(written, first);
        }
    }

    #[test]
    fn text_in_flight_is_bounded_however_slow_the_writer_is() {
        let text = b"word ".repeat(5 << 20);
        for threads in [1, 2] {
            let (written, most) = (AtomicU64::new(0), AtomicU64::new(0));
            let on_cut = |read: u64| {
                most.fetch_max(read - written.load(Ordering::SeqCst), Ordering::SeqCst);
            };
            run_over(
                ("a.txt", &text),
                threads,
                on_cut,
                |_| (),
                |_| {
                    thread::sleep(Duration::from_micros(300));
                    written.fetch_add(SEGMENT as u64, Ordering::SeqCst);
                    Ok(())
                },
            )
            .unwrap();
            let (most, limit) = (most.load(Ordering::SeqCst), IN_FLIGHT * threads as u64);
            assert!((limit / 2..=limit + SEGMENT as u64).contains(&most), "{most} of {limit}");
        }
    }

    #[test]
    fn the_next_segment_is_read_while_the_only_worker_works() {
        let text = b"word ".repeat(SEGMENT);
        let read = AtomicU64::new(0);
        let on_segment = |offset: u64| {
            let start = Instant::now();
            while offset == 0 && read.load(Ordering::SeqCst) == 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "nothing is read before the first segment is done");
                thread::yield_now();
            }
        };
        let on_cut = |n: u64| {
            read.fetch_max(n, Ordering::SeqCst);
        };
        run_over(("a.txt", &text), 1, on_cut, on_segment, |_| Ok(())).unwrap();
    }

    #[test]
    fn a_panic_of_any_part_ends_the_call() {
        let text = b"word ".repeat(SEGMENT);
        let fails = |is_last: bool| assert!(!is_last, "no more");
        for part in 0..3 {
            for threads in [1, 3] {
                let end = catch_unwind(AssertUnwindSafe(|| {
                    let on_cut = |read: u64| fails(part == 0 && read > 100_000);
                    let on_segment = |offset: u64| fails(part == 1 && offset > 100_000);
                    run_over(("a.txt", &text), threads, on_cut, on_segment, |offset| {
                        fails(part == 2 && offset > 100_000);
                        Ok(())
                    })
                }));
                assert!(end.is_err(), "part {part}, {threads} threads");
            }
        }
    }
}
