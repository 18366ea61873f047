//! Large arrays in huge pages: the system clears and maps two megabytes at a time, where page by page this would take a
//! tenth of the time of encoding.

/// Smaller arrays have small pages: a huge page may be larger than what is used of it.
const HUGE: usize = 4 << 20;

/// Smaller arrays are had from the allocator each time, and no larger than they are.
pub(crate) const KEPT: usize = 1 << 20;

/// An empty array with room for `n`, which costs nothing until it is used.
pub(crate) fn with_room<T>(n: usize) -> Vec<T> {
    let mut items = Vec::with_capacity(n);
    ask_for_huge(items.spare_capacity_mut());
    items
}

/// An array of `n` zeros; its pages come as they are touched, so each thread gets those that it fills.
pub(crate) fn zeros<T: Copy + Default>(n: usize) -> Vec<T> {
    let mut items = vec![T::default(); n];
    ask_for_huge(&mut items);
    items
}

/// Gives back what is left over of a small array. In a large one it has no pages yet, and the next result may need it.
pub(crate) fn fit<T>(items: &mut Vec<T>) {
    if items.capacity() * size_of::<T>() < KEPT {
        items.shrink_to_fit();
    }
}

/// Asks for huge pages where it is worth it. Without them everything works, only slower.
fn ask_for_huge<T>(items: &mut [T]) {
    #[cfg(target_os = "linux")]
    if size_of_val(items) >= HUGE {
        let (start, n_bytes) = whole_pages(items);
        // SAFETY: the range lies inside `items`, and the advice changes neither what it holds nor who may use it.
        unsafe { libc::madvise(start, n_bytes, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = items;
}

/// Empties an array whose memory is to be used again: the system takes the pages of what it held when it needs them, and
/// those behind at once. Whether this can be done; a small array stays as it is.
#[cfg(target_os = "linux")]
pub(crate) fn leave<T: Copy>(items: &mut Vec<T>) -> bool {
    if items.capacity() * size_of::<T>() < KEPT {
        return false;
    }
    let n = items.len();
    items.clear();
    let (held, behind) = items.spare_capacity_mut().split_at_mut(n);
    for (room, advice) in [(held, libc::MADV_FREE), (behind, libc::MADV_DONTNEED)] {
        let (start, n_bytes) = whole_pages(room);
        // SAFETY: the range lies inside `room`, where nothing is held, so it may be anything afterwards.
        unsafe { libc::madvise(start, n_bytes, advice) };
    }
    true
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn leave<T: Copy>(_: &mut Vec<T>) -> bool {
    false
}

/// The first whole page of an array, and how many bytes its whole pages have. A page is as large as Linux commonly has them:
/// it rounds up to its own, and with larger ones than these would take bytes behind the array.
#[cfg(target_os = "linux")]
fn whole_pages<T>(items: &mut [T]) -> (*mut libc::c_void, usize) {
    const PAGE: usize = 64 << 10;
    let (start, n_bytes) = (items.as_mut_ptr().cast::<u8>(), size_of_val(items));
    let skipped = start.align_offset(PAGE);
    if skipped > n_bytes {
        return (start.cast(), 0);
    }
    (start.wrapping_add(skipped).cast(), (n_bytes - skipped) / PAGE * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_arrays_are_as_any_other() {
        for n in [0, 1, 1000, KEPT, HUGE, 3 * HUGE + 5] {
            let mut items = with_room(n);
            assert!(items.capacity() >= n && items.is_empty());
            items.extend((0..n).map(|i| i as u8));
            assert!(items.iter().enumerate().all(|(i, &item)| item == i as u8));
            let room = items.capacity();
            fit(&mut items);
            assert_eq!((items.len(), items.capacity()), (n, if n < KEPT { n } else { room }));
            assert_eq!(zeros::<u16>(n), vec![0; n]);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_array_that_was_left_can_be_filled_again() {
        for (n, n_held) in [(KEPT - 1, 9), (KEPT + 1, KEPT + 1), (5 * HUGE, 3 * HUGE), (5 * HUGE, 5), (HUGE, 0)] {
            let mut items: Vec<u8> = with_room(n);
            items.resize(n_held, 7);
            assert_eq!(leave(&mut items), n >= KEPT, "{n_held} of {n}");
            assert_eq!(items.len(), if n < KEPT { n_held } else { 0 });
            items.clear();
            items.extend((0..n).map(|i| i as u8));
            assert!(items.iter().enumerate().all(|(i, &item)| item == i as u8));
        }
    }
}
