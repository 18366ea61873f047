//! Large arrays in huge pages: the system clears and maps two megabytes at a time, where page by page this would take a
//! tenth of the time of encoding.

use std::mem::size_of_val;

/// Smaller arrays stay as they are: a huge page may be larger than what is used of it.
const HUGE: usize = 4 << 20;

/// An empty array with room for `n`, which costs nothing until it is used.
pub(crate) fn with_room<T>(n: usize) -> Vec<T> {
    let mut items = Vec::with_capacity(n);
    advise(items.spare_capacity_mut());
    items
}

/// An array of `n` zeros; its pages come as they are touched, so each thread gets those that it fills.
pub(crate) fn zeros<T: Copy + Default>(n: usize) -> Vec<T> {
    let mut items = vec![T::default(); n];
    advise(&mut items);
    items
}

/// Asks for huge pages. Without them everything works, only slower.
#[cfg(target_os = "linux")]
fn advise<T>(items: &mut [T]) {
    const PAGE: usize = 4096;
    let (start, n_bytes) = (items.as_mut_ptr().cast::<u8>(), size_of_val(items));
    let skipped = start.align_offset(PAGE);
    if n_bytes < HUGE || skipped > n_bytes {
        return;
    }
    let n_bytes = (n_bytes - skipped) / PAGE * PAGE;
    // SAFETY: the range lies inside `items`, and the advice changes neither what it holds nor who may use it.
    unsafe { libc::madvise(start.add(skipped).cast(), n_bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise<T>(_: &mut [T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_arrays_are_as_any_other() {
        for n in [0, 1, 1000, HUGE, 3 * HUGE + 5] {
            let mut items = with_room(n);
            assert!(items.capacity() >= n && items.is_empty());
            items.extend((0..n).map(|i| i as u8));
            assert!(items.iter().enumerate().all(|(i, &item)| item == i as u8));
            items.shrink_to_fit();
            assert_eq!(items.len(), n);
            assert_eq!(zeros::<u16>(n), vec![0; n]);
        }
    }
}
