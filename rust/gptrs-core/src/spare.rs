//! Memory of calls that are done, for those to come: new pages for each would cost as much as what is done with them.

use std::sync::Mutex;

use crate::pages;

/// Stretches of numbers of one kind, whose content nobody relies on.
pub(crate) struct Spare<T>(Mutex<Vec<Vec<T>>>);

impl<T: Copy + Default> Spare<T> {
    /// How many stretches are kept, at most.
    const MOST: usize = 16;

    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// At least `n` of anything. A process may have been forked while the lock was held, so nobody waits for it.
    pub(crate) fn take(&self, n: usize) -> Vec<T> {
        let mut found = self.0.try_lock().ok().and_then(|mut spare| {
            let fits = |stretch: &Vec<T>| (stretch.len() < n, stretch.len());
            let best = (0..spare.len()).min_by_key(|&i| fits(&spare[i]))?;
            Some(spare.swap_remove(best))
        });
        let stretch = found.get_or_insert_default();
        if stretch.len() < n {
            *stretch = pages::zeros(n);
        }
        std::mem::take(stretch)
    }

    pub(crate) fn give(&self, stretch: Vec<T>) {
        if let Ok(mut spare) = self.0.try_lock()
            && spare.len() < Self::MOST
        {
            spare.push(stretch);
        }
    }
}
