//! The order of lent buffers, and when it is worth filling them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::Result;

/// The buffers that a caller lent to its thread, and how both have worked so far.
#[derive(Debug)]
pub(super) struct Queue<B> {
    /// Lent and not handed back, oldest first: slot `i` is for the microbatch `i` behind the one at `next_sample`.
    pub(super) slots: VecDeque<Slot<B>>,
    pub(super) next_sample: u64,
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
    pub(super) fill_time: Duration,
    /// Whether the thread has the caller's only core.
    pub(super) shares_core: bool,
    /// Until when the thread sleeps.
    pub(super) asleep_until: Option<Instant>,
    pub(super) is_closed: bool,
    pub(super) is_dead: bool,
}

/// Buffers of one microbatch.
#[derive(Debug)]
pub(super) enum Slot<B> {
    Empty(B),
    Filling,
    Full(B, Result<()>),
}

/// A buffer on its way from empty to full.
pub(super) struct Job<B> {
    pub(super) buffers: B,
    pub(super) sample: u64,
    /// The number of its slot among all that were lent, and the failures before it was begun.
    number: u64,
    n_failed: u64,
}

/// The shortest and the longest sleep of the thread.
pub(super) const MIN_NAP: Duration = Duration::from_micros(100);
pub(super) const MAX_NAP: Duration = Duration::from_millis(100);

impl<B> Queue<B> {
    pub(super) fn new(next_sample: u64, stride: u64) -> Self {
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

    /// Puts empty buffers behind all others.
    pub(super) fn lend(&mut self, buffers: B) {
        self.slots.push_back(Slot::Empty(buffers));
        self.n_empty += 1;
    }

    /// The caller asks for a batch.
    pub(super) fn ask(&mut self) {
        if let Some(given_at) = self.given_at.take() {
            self.absence = averaged(self.absence, given_at.elapsed());
        }
    }

    /// Takes the oldest batch if it is full, and learns the caller's pace.
    pub(super) fn take(&mut self) -> Option<(B, Result<()>)> {
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
    pub(super) fn begin(&mut self) -> Option<Job<B>> {
        let i = self.slots.iter().position(|slot| matches!(slot, Slot::Empty(_)))?;
        let Slot::Empty(buffers) = std::mem::replace(&mut self.slots[i], Slot::Filling) else { return None };
        self.n_empty -= 1;
        let sample = self.next_sample.saturating_add((i as u64).saturating_mul(self.stride));
        Some(Job { buffers, sample, number: self.n_taken + i as u64, n_failed: self.n_failed })
    }

    /// Puts a filled buffer back; whether it is the one that the caller waits for.
    pub(super) fn end(&mut self, Job { buffers, number, n_failed, .. }: Job<B>, end: Result<()>) -> bool {
        let i = (number - self.n_taken) as usize;
        // A slot leaves the queue full, or by `close` after the thread: one that is being filled is there.
        if n_failed == self.n_failed {
            self.slots[i] = Slot::Full(buffers, end);
            self.n_full += 1;
        } else {
            self.slots[i] = Slot::Empty(buffers);
            self.n_empty += 1;
        }
        i == 0
    }

    /// Whether it is worth filling: half of the buffers are empty.
    pub(super) fn is_due(&self) -> bool {
        self.n_empty > 0 && self.n_empty >= self.n_full
    }

    /// How long the thread may sleep until that should be so, after `n_fruitless` looks in a row.
    pub(super) fn nap(&self, n_fruitless: u32) -> Duration {
        if self.slots.is_empty() || self.is_in_the_way() {
            return MAX_NAP; // `submit` wakes it
        }
        let n_batches = self.n_full.saturating_sub(self.n_empty).div_ceil(2) as u32;
        // Doubled from the shortest on: there is no pace before the second batch.
        ((self.pace * n_batches).max(MIN_NAP) * (1 << n_fruitless.min(10))).min(MAX_NAP)
    }

    /// Whether the thread would only take the core from a caller that does nothing else than take batches.
    pub(super) fn is_in_the_way(&self) -> bool {
        self.shares_core && self.absence < self.fill_time
    }

    /// Whether the thread sleeps too long for a caller that waits.
    pub(super) fn oversleeps(&self) -> bool {
        !self.is_in_the_way() && self.asleep_until.is_some_and(|until| until > Instant::now() + MIN_NAP)
    }
}

/// An average with an eighth of the new one: a pause (evaluation, a checkpoint) does not change it for long.
pub(super) fn averaged(average: Duration, new: Duration) -> Duration {
    (average * 7 + new.min(MAX_NAP)) / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue with `n_full` full slots, then `n_empty` empty ones.
    fn queue(n_full: usize, n_empty: usize) -> Queue<()> {
        let mut queue = Queue::new(0, 4);
        (0..n_full + n_empty).for_each(|_| queue.lend(()));
        for _ in 0..n_full {
            let job = queue.begin().expect("there is an empty slot");
            queue.end(job, Ok(()));
        }
        queue
    }

    #[test]
    fn a_nap_is_the_time_until_half_is_used_and_doubles_when_it_was_not() {
        let mut queue = queue(8, 0);
        queue.pace = Duration::from_millis(2);
        for (n_fruitless, millis) in [(0, 8), (1, 16), (2, 32), (3, 64), (4, 100), (50, 100)] {
            assert_eq!(queue.nap(n_fruitless), Duration::from_millis(millis), "{n_fruitless}");
        }
        queue.pace = Duration::from_nanos(1);
        assert_eq!((queue.nap(0), queue.nap(3)), (MIN_NAP, MIN_NAP * 8));
    }

    #[test]
    fn without_a_pace_naps_grow_to_the_longest() {
        for (n_full, n_empty) in [(8, 0), (3, 2), (1, 0)] {
            let queue = queue(n_full, n_empty);
            assert_eq!(queue.pace, Duration::ZERO);
            for n_fruitless in 0..20 {
                let doubled = MIN_NAP * (1 << n_fruitless.min(10));
                assert_eq!(queue.nap(n_fruitless), doubled.min(MAX_NAP), "{n_full}, {n_empty}, {n_fruitless}");
            }
        }
        assert_eq!(queue(0, 0).nap(0), MAX_NAP);
    }

    #[test]
    fn the_thread_is_in_the_way_on_one_core_of_a_caller_that_does_nothing_else() {
        let (short, long) = (Duration::from_micros(10), Duration::from_micros(90));
        for (shares_core, absence, fill_time, is_in_the_way) in [
            (true, short, long, true),
            (true, long, short, false),
            (true, Duration::ZERO, Duration::ZERO, false), // nothing is known yet
            (false, short, long, false),
            (false, long, short, false),
        ] {
            let mut queue = queue(2, 1);
            (queue.shares_core, queue.absence, queue.fill_time) = (shares_core, absence, fill_time);
            assert_eq!(queue.is_in_the_way(), is_in_the_way, "{shares_core}, {absence:?}, {fill_time:?}");
            assert_eq!(queue.nap(0), if is_in_the_way { MAX_NAP } else { MIN_NAP });
            queue.asleep_until = Some(Instant::now() + 100 * MAX_NAP);
            assert_eq!(queue.oversleeps(), !is_in_the_way);
        }
    }

    #[test]
    fn what_was_begun_before_a_failure_is_filled_again() {
        let mut queue = queue(0, 3);
        let [first, second] = [queue.begin(), queue.begin()].map(|job| job.expect("there is an empty slot"));
        assert_eq!((first.sample, second.sample), (0, 4));
        assert!(queue.end(first, Err(crate::Error::Interrupted)), "the caller waits for the first");
        assert!(queue.take().is_some_and(|(.., end)| end.is_err()));
        assert!(queue.end(second, Ok(())), "it is the first now");
        assert!(matches!(queue.slots[0], Slot::Empty(())) && queue.take().is_none());
        assert_eq!((queue.n_empty, queue.n_full, queue.next_sample), (2, 0, 0));
        assert_eq!(queue.begin().map(|job| job.sample), Some(0));
    }

    #[test]
    fn a_pause_does_not_change_an_average_for_long() {
        let pace = Duration::from_millis(8);
        assert_eq!(averaged(pace, pace), pace);
        assert_eq!(averaged(pace, Duration::from_secs(3600)), (pace * 7 + MAX_NAP) / 8);
    }
}
