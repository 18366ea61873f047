//! The ring of buffers under any order of its calls: no batch is lost, none comes twice, nobody waits for ever.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/dataset.rs"]
mod dataset;
#[path = "fixtures/random.rs"]
mod random;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use gptrs_core::loader::{Buffers, Loader, LoaderOptions, Prefetch, Rows};
use gptrs_core::order::OrderKind;
use gptrs_core::{Error, Result};
use random::Random;

fn loader() -> (tempfile::TempDir, Loader) {
    let dir = tempfile::tempdir().unwrap();
    let spec = dataset::spec(65_536);
    let entry = dataset::write_shard(dir.path(), spec, 0, &(0..2000).collect::<Vec<u32>>());
    let dataset = Arc::new(dataset::finish(dir.path(), spec, vec![entry], 2000));
    let (seq_len, global_batch, seed, order) = (10, 4, 1, OrderKind::Feistel);
    let options = LoaderOptions { seq_len, global_batch, micro_batch: 4, rank: 0, world_size: 1, seed, order };
    (dir, Loader::new(dataset, options).unwrap())
}

/// Submits, takes, waits and closes as `random` says; a batch that comes is the one that is due.
fn work(loader: &Loader, mut random: Random) {
    let start = 4 * random.below(100) as u64;
    let mut prefetch = Prefetch::new(loader.clone(), start).unwrap();
    let (mut n_lent, mut n_taken) = (0u64, 0);
    for _ in 0..random.below(60) {
        match random.below(8) {
            0..4 => {
                prefetch.submit(Rows::<u16>::new(loader)).unwrap();
                n_lent += 1;
            }
            4..7 if n_lent == 0 => assert!(prefetch.next().is_err(), "nothing is lent, so nothing comes"),
            4..7 => {
                let patience = [Duration::ZERO, Duration::from_secs(600)][random.below(2)];
                let Some(rows) = prefetch.next_within(patience).unwrap() else {
                    assert!(patience.is_zero());
                    continue;
                };
                let mut expected = Rows::<u16>::new(loader);
                loader.fill_rows(start + 4 * n_taken, &mut expected.0).unwrap();
                assert_eq!(rows, expected);
                (n_lent, n_taken) = (n_lent - 1, n_taken + 1);
            }
            _ => thread::yield_now(),
        }
        assert_eq!(prefetch.next_sample(), start + 4 * n_taken);
    }
    if random.below(2) == 0 {
        prefetch.close();
        assert!(prefetch.submit(Rows::new(loader)).is_err() && prefetch.next().is_err());
    }
}

#[test]
fn any_order_of_calls_gives_every_batch_once_and_ends() {
    let (_dir, loader) = loader();
    let (sender, ends) = mpsc::channel();
    // Several at a time: what a thread does between two calls is then anything.
    for first in 0..4 {
        let (loader, sender) = (loader.clone(), sender.clone());
        thread::spawn(move || {
            for seed in (first..200).step_by(4) {
                let end = std::panic::catch_unwind(|| work(&loader, Random(seed)));
                sender.send((seed, end.is_ok())).unwrap();
            }
        });
    }
    for _ in 0..200 {
        let (seed, is_right) = ends.recv_timeout(Duration::from_secs(120)).unwrap();
        assert!(is_right, "seed {seed}");
    }
}

/// Notes which batch it was filled with; every seventh filling fails, and some take long.
struct Flaky {
    sample: u64,
    n_fillings: Arc<AtomicU64>,
}

impl Buffers for Flaky {
    fn fill(&mut self, _: &Loader, next_sample: u64) -> Result<()> {
        let n = self.n_fillings.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(5) {
            thread::sleep(Duration::from_micros(200));
        }
        self.sample = next_sample;
        if n % 7 == 6 { Err(Error::Argument(next_sample.to_string())) } else { Ok(()) }
    }
}

#[test]
fn a_batch_that_failed_comes_next_whoever_fills_it() {
    let (_dir, loader) = loader();
    for ahead in [1, 2, 5, 8] {
        let n_fillings = Arc::new(AtomicU64::new(0));
        let mut prefetch = Prefetch::new(loader.clone(), 0).unwrap();
        let (mut n_lent, mut due, mut n_failed) = (0, 0, 0);
        while due < 4 * 300 {
            while n_lent < ahead {
                prefetch.submit(Flaky { sample: u64::MAX, n_fillings: Arc::clone(&n_fillings) }).unwrap();
                n_lent += 1;
            }
            if due % 3 == 0 {
                thread::sleep(Duration::from_micros(300)); // the thread is ahead, and has begun what a failure undoes
            }
            match prefetch.next() {
                Ok(batch) => {
                    assert_eq!(batch.sample, due, "{ahead}");
                    due += 4;
                }
                Err(error) => {
                    assert!(error.to_string().contains(&due.to_string()), "{error}, not {due}");
                    n_failed += 1;
                }
            }
            n_lent -= 1;
            assert_eq!(prefetch.next_sample(), due);
        }
        assert!(n_failed > 20, "{n_failed}");
    }
}

/// Panics, where it is to, once it was begun and the caller may wait.
struct Panicking {
    on_thread: bool,
    begun: mpsc::Sender<()>,
}

impl Buffers for Panicking {
    fn fill(&mut self, _: &Loader, _: u64) -> Result<()> {
        if (thread::current().name() == Some("gptrs-loader")) == self.on_thread {
            self.begun.send(()).unwrap();
            thread::sleep(Duration::from_millis(50));
            panic!("as the test wants");
        }
        Ok(())
    }
}

#[test]
fn a_panic_while_filling_ends_the_wait_for_it() {
    for on_thread in [true, false] {
        let (_dir, loader) = loader();
        let ((begun, begins), (sender, end)) = (mpsc::channel(), mpsc::channel());
        thread::spawn(move || {
            let mut prefetch = Prefetch::new(loader, 0).unwrap();
            let text = loop {
                prefetch.submit(Panicking { on_thread, begun: begun.clone() }).unwrap();
                if on_thread {
                    begins.recv().unwrap(); // or this thread might be the first
                }
                let next = std::panic::AssertUnwindSafe(|| prefetch.next().map(drop));
                if let Err(panic) = std::panic::catch_unwind(next) {
                    break panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                }
            };
            let again = std::panic::AssertUnwindSafe(|| prefetch.next().map(drop));
            assert!(std::panic::catch_unwind(again).is_err(), "it is still the batch that is due");
            drop(prefetch);
            sender.send(text).unwrap();
        });
        let text = end.recv_timeout(Duration::from_secs(60)).unwrap();
        let expected = if on_thread { "filling a batch panicked" } else { "as the test wants" };
        assert_eq!(text.as_deref(), Some(expected));
    }
}

#[test]
fn a_thread_that_cannot_start_leaves_nothing_lent() {
    const STACK: &str = "RUST_MIN_STACK"; // more than there is for any thread, in a process of its own
    let (_dir, loader) = loader();
    if std::env::var_os(STACK).is_some() {
        let mut prefetch = Prefetch::new(loader.clone(), 0).unwrap();
        for _ in 0..3 {
            let error = prefetch.submit(Rows::<u16>::new(&loader)).unwrap_err();
            assert!(matches!(error, Error::Io { action: "start a thread for", .. }), "{error}");
            assert_eq!(prefetch.n_missing(4).unwrap(), 5);
        }
        assert!(prefetch.next().is_err(), "nothing is lent");
        return;
    }
    let name = "a_thread_that_cannot_start_leaves_nothing_lent";
    let mut this = std::process::Command::new(std::env::current_exe().unwrap());
    let end = this.args([name, "--exact", "--test-threads=1"]).env(STACK, (1u64 << 60).to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&end.stdout).into_owned() + &String::from_utf8_lossy(&end.stderr);
    assert!(end.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_failed_batch_leaves_as_much_to_lend_as_one_that_came() {
    let (_dir, loader) = loader();
    let n_fillings = Arc::new(AtomicU64::new(0));
    let mut prefetch = Prefetch::new(loader, 0).unwrap();
    let (mut n_lent, mut n_failed) = (0, 0);
    for _ in 0..40 {
        // All of them, or on one core maybe only the next.
        let n_missing = prefetch.n_missing(3).unwrap();
        assert!(n_missing == 4 - n_lent || n_missing == 1usize.saturating_sub(n_lent), "{n_missing}, {n_lent}");
        for _ in 0..n_missing {
            prefetch.submit(Flaky { sample: 0, n_fillings: Arc::clone(&n_fillings) }).unwrap();
        }
        n_failed += usize::from(prefetch.next().is_err());
        n_lent += n_missing - 1;
    }
    assert!(n_failed > 3, "{n_failed}");
}
