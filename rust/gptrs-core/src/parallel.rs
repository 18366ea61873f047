//! Numbered tasks over scoped threads, handed out in order by one counter.
//!
//! Threads live only inside the call. There is no pool to break after `fork`, nothing to configure and nothing left
//! behind; starting one costs some 30 µs, so callers run small work on the calling thread (`threads = 1`).

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::io::inherit;

/// No result depends on the number of threads, so more than any machine has use for are not asked of the system, which
/// may refuse them.
const MOST_THREADS: usize = 1024;

/// The thread count to use: `threads`, 1,024 at most, or the cores this process may use when it is 0.
pub fn resolve_threads(threads: usize) -> usize {
    match threads {
        0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
        _ => threads.min(MOST_THREADS),
    }
}

/// Runs `work(state, task)` for every task in `0..n_tasks` and returns the threads' states.
///
/// Tasks start in ascending order, so putting long ones first balances the load. The first error, in task order, stops
/// the rest and is returned; the result must not depend on which thread ran which task.
pub fn run<S: Send>(
    threads: usize,
    n_tasks: usize,
    control: &Control,
    make_state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let threads = resolve_threads(threads).min(n_tasks).max(1);
    let next = AtomicUsize::new(0);
    let body = || -> (S, Option<(usize, Error)>) {
        let mut state = make_state();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= n_tasks {
                return (state, None);
            }
            if let Err(error) = control.check().and_then(|()| work(&mut state, task)) {
                next.store(n_tasks, Ordering::Relaxed);
                return (state, Some((task, error)));
            }
        }
    };
    let ends: Vec<_> = if threads == 1 {
        vec![body()]
    } else {
        thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(inherit(&body))).collect();
            handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    };
    let (states, errors): (Vec<S>, Vec<_>) = ends.into_iter().unzip();
    match errors.into_iter().flatten().min_by_key(|(task, _)| *task) {
        Some((_, error)) => Err(error),
        None => Ok(states),
    }
}

/// Numbered tasks, for threads that someone else starts.
#[derive(Debug)]
pub(crate) struct Queue {
    next: AtomicUsize,
    n_tasks: usize,
}

impl Queue {
    pub(crate) fn new(n_tasks: usize) -> Self {
        Self { next: AtomicUsize::new(0), n_tasks }
    }

    /// A task that no thread has taken yet, in ascending order.
    pub(crate) fn take(&self) -> Option<usize> {
        let task = self.next.fetch_add(1, Ordering::Relaxed);
        (task < self.n_tasks).then_some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sweep::temporary_dir;
    use crate::io::{self, fault};

    #[test]
    fn absurd_thread_counts_are_not_asked_of_the_system() {
        assert_eq!([1, 1024, 1025, usize::MAX].map(resolve_threads), [1, 1024, 1024, 1024]);
        assert!((1..=MOST_THREADS).contains(&resolve_threads(0)));
    }

    #[test]
    fn every_task_runs_once_on_any_thread_count() {
        for threads in [1, 2, 3, 8] {
            let states = run(threads, 1000, &Control::new(), Vec::new, |seen: &mut Vec<usize>, task| {
                seen.push(task);
                Ok(())
            })
            .unwrap();
            let mut all: Vec<usize> = states.concat();
            all.sort_unstable();
            assert_eq!(all, (0..1000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn changes_of_files_on_any_thread_are_those_of_the_caller() {
        let dir = temporary_dir();
        for threads in [1, 2, 8] {
            let work = |(): &mut (), task: usize| io::create_dir(&dir.path().join(format!("{threads}-{task}")));
            let (end, n_changes, _) = fault::measured(|| run(threads, 8, &Control::new(), || (), work));
            end.unwrap();
            assert_eq!(n_changes, 2 * 8, "a folder and a sync for each task on {threads} threads");
        }
    }

    #[test]
    fn an_error_or_a_cancel_stops_the_work() {
        let control = Control::new();
        let end = run(2, 100, &control, || (), |(), task| if task == 7 { Err(Error::EmptyCorpus) } else { Ok(()) });
        assert!(matches!(end, Err(Error::EmptyCorpus)));
        control.cancel();
        assert!(matches!(run(2, 100, &control, || (), |(), _| Ok(())), Err(Error::Interrupted)));
    }
}
