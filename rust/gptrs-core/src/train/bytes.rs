//! The first counts and postings, while every token is a byte: dense arrays instead of hashing, on all threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::layout::{Layout, Symbol};
use super::pairs::{Entry, key};
use crate::control::Control;
use crate::error::Result;
use crate::parallel;

/// Places that a thread walks between two looks at the control.
const TASK: usize = 1 << 20;

/// Sum of counts and number of borders of a pair.
type Sum = (u64, usize);

/// Every pair of neighbouring bytes with its count, and the postings of all, in order of the pairs.
pub(super) fn pairs<S: Symbol>(
    layout: &Layout<S>,
    threads: usize,
    control: &Control,
) -> Result<(Vec<Entry>, Vec<u32>)> {
    let sums = sums(layout, threads, control)?;
    let mut n_postings = 0;
    let entries: Vec<Entry> = (0u32..)
        .zip(&sums)
        .filter(|(_, (_, n))| *n > 0)
        .map(|(pair, &(count, n))| {
            let start = n_postings;
            n_postings += n;
            Entry { key: key(pair >> 8, pair & 0xFF), count, start, n_postings: n as u32 }
        })
        .collect();
    let postings = postings(layout, &sums, threads, control)?;
    Ok((entries, postings))
}

/// The sum of each pair, at `left * 256 + right`: every thread walks a part of the places.
fn sums<S: Symbol>(layout: &Layout<S>, threads: usize, control: &Control) -> Result<Vec<Sum>> {
    let tasks = tasks(layout);
    let make_state = || vec![Sum::default(); 1 << 16];
    let parts = parallel::run(threads, tasks.len(), control, make_state, |sums, index| {
        layout.for_each_byte_border(tasks[index].clone(), |left, right, _, weight| {
            let sum = &mut sums[(left << 8 | right) as usize & 0xFFFF];
            *sum = (sum.0 + weight, sum.1 + 1);
        });
        Ok(())
    })?;
    let add = |a: Vec<Sum>, b: Vec<Sum>| a.iter().zip(b).map(|(a, b)| (a.0 + b.0, a.1 + b.1)).collect();
    Ok(parts.into_iter().reduce(add).unwrap_or_else(make_state))
}

/// All postings: every thread walks all places, but writes those of its own range of left bytes.
fn postings<S: Symbol>(layout: &Layout<S>, sums: &[Sum], threads: usize, control: &Control) -> Result<Vec<u32>> {
    let mut postings = vec![0; sums.iter().map(|(_, n)| n).sum()];
    let mut rest = &mut postings[..];
    let parts: Vec<_> = shares(sums, parallel::resolve_threads(threads))
        .into_iter()
        .map(|bytes| {
            let n = sums[bytes.start << 8..bytes.end << 8].iter().map(|(_, n)| n).sum();
            Mutex::new((bytes, rest.split_off_mut(..n).unwrap_or_default()))
        })
        .collect();
    let tasks = tasks(layout);
    parallel::run(
        threads,
        parts.len(),
        control,
        || (),
        |(), index| {
            let (bytes, postings) = &mut *parts[index].lock().unwrap_or_else(PoisonError::into_inner);
            let mut next = Vec::with_capacity(bytes.len() << 8);
            sums[bytes.start << 8..bytes.end << 8].iter().fold(0, |start, (_, n)| {
                next.push(start);
                start + n
            });
            for task in &tasks {
                control.check()?;
                layout.for_each_byte_border(task.clone(), |left, right, at, _| {
                    let pair = ((left << 8 | right) as usize).wrapping_sub(bytes.start << 8);
                    if let Some(place) = next.get_mut(pair) {
                        postings[*place] = at;
                        *place += 1;
                    }
                });
            }
            Ok(())
        },
    )?;
    drop(parts);
    Ok(postings)
}

/// All places, task by task.
fn tasks<S: Symbol>(layout: &Layout<S>) -> Vec<Range<usize>> {
    let n_places = layout.symbols.len();
    (1..n_places).step_by(TASK).map(|start| start..(start + TASK).min(n_places)).collect()
}

/// Cuts the left bytes into `n` ranges with about as many borders each.
fn shares(sums: &[Sum], n: usize) -> Vec<Range<usize>> {
    let n_all: usize = sums.iter().map(|(_, n)| n).sum();
    let (mut shares, mut start, mut n_seen) = (Vec::new(), 0, 0);
    for byte in 0..256 {
        n_seen += sums[byte << 8..(byte + 1) << 8].iter().map(|(_, n)| n).sum::<usize>();
        if n_seen * n >= n_all * (shares.len() + 1) || byte == 255 {
            shares.push(start..byte + 1);
            start = byte + 1;
        }
    }
    shares
}
