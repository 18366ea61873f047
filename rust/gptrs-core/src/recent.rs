//! What was made for the last few choices.

use std::sync::{Arc, RwLock};

use crate::error::Result;

/// Choices that are kept.
const N_KEPT: usize = 8;

/// Values by the choice that they were made for, newest last.
#[derive(Debug)]
pub(crate) struct Recent<T>(RwLock<Vec<(Vec<bool>, Arc<T>)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T> Recent<T> {
    /// What was made for `choice`, or what `make` makes. Never waits for the lock: a forked child may find it held for
    /// ever, and then makes it each time.
    pub(crate) fn get_or_make(&self, choice: Vec<bool>, make: impl FnOnce(&[bool]) -> Result<T>) -> Result<Arc<T>> {
        if let Ok(kept) = self.0.try_read()
            && let Some((_, value)) = kept.iter().find(|(known, _)| *known == choice)
        {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(make(&choice)?);
        if let Ok(mut kept) = self.0.try_write() {
            if kept.len() == N_KEPT {
                kept.remove(0);
            }
            kept.push((choice, Arc::clone(&value)));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(i: usize) -> Vec<bool> {
        (0..=N_KEPT).map(|bit| bit == i).collect()
    }

    /// The value for choice `i`, and whether it was made now.
    fn ask(recent: &Recent<usize>, i: usize) -> (usize, bool) {
        let mut is_new = false;
        let made = recent.get_or_make(choice(i), |_| {
            is_new = true;
            Ok(i)
        });
        (made.map_or(usize::MAX, |value| *value), is_new)
    }

    #[test]
    fn the_last_choices_are_made_once() {
        let recent = Recent::default();
        assert!((0..N_KEPT).all(|i| ask(&recent, i) == (i, true)));
        assert!((0..N_KEPT).all(|i| ask(&recent, i) == (i, false)));
        assert_eq!(ask(&recent, N_KEPT), (N_KEPT, true));
        assert_eq!(ask(&recent, 1), (1, false));
        assert_eq!(ask(&recent, 0), (0, true), "the oldest made room");
    }

    #[test]
    fn a_lock_that_is_held_for_ever_is_not_waited_for() {
        let recent = Recent::default();
        assert_eq!(ask(&recent, 1), (1, true));
        let held = recent.0.write();
        assert_eq!(ask(&recent, 1), (1, true));
        drop(held);
        assert_eq!(ask(&recent, 1), (1, false));
    }

    #[test]
    fn what_cannot_be_made_is_not_kept() {
        let recent = Recent::default();
        assert!(recent.get_or_make(choice(1), |_| Err::<usize, _>(crate::Error::Interrupted)).is_err());
        assert_eq!(ask(&recent, 1), (1, true));
    }
}
