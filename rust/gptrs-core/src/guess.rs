//! A long text under a pattern that has no safe cuts, on all threads.
//!
//! A thread cannot know whether a piece begins where its range does. It encodes as though one did, and past the range's
//! end to the end of its last piece. Two scans that once stand at the same place stay together, so what it made is right
//! from the first place on where the scan from the left arrives as well; that is known when the ranges are joined in
//! order. A range in which the two never meet is encoded again from where the left one ended.

use std::collections::HashMap;
use std::ops::Range;

use crate::batch::{Made, Store};
use crate::control::Control;
use crate::error::Result;
use crate::split::Splitter;
use crate::tasks::Task;
use crate::tokenizer::Tokenizer;

/// Pieces that are remembered as places where two scans may meet; in practice they do within a few.
const KEPT: usize = 1 << 10;

/// Pieces between two looks at the control.
const CHECK_EVERY: usize = 1 << 10;

/// The longest piece whose ids are kept for its next occurrence.
const LONGEST: usize = 64;

/// What a range was encoded to if a piece begins at its start.
pub(crate) struct Guess {
    /// The first pieces: where each starts and how many ids are before it.
    starts: Vec<(usize, usize)>,
    /// The end of the last piece; `None` when the pattern does not allow to guess.
    end: Option<usize>,
}

impl Tokenizer {
    /// Encodes the pieces of `text` that begin in `range`, as though one began at its start.
    pub(crate) fn guess<S: Store>(
        &self,
        splitter: &Splitter,
        text: &str,
        range: Range<usize>,
        control: &Control,
        store: &mut S,
    ) -> Result<Guess> {
        let first = store.n_ids();
        let (mut starts, mut n_pieces) = (Vec::new(), 0);
        let (mut ids, mut known): (Vec<u32>, HashMap<&[u8], Range<usize>>) = (Vec::new(), HashMap::new());
        let end = splitter.for_each_custom_span(text, range, |start, end| {
            n_pieces += 1;
            if n_pieces % CHECK_EVERY == 0 {
                control.check()?;
            }
            if n_pieces <= KEPT {
                starts.push((start, store.n_ids() - first));
            }
            let piece = &text.as_bytes()[start..end];
            if let Some(place) = known.get(piece) {
                store.push(&ids[place.clone()]);
                return Ok(());
            }
            let before = ids.len();
            self.vocab().encode_piece(piece, control, &mut ids)?;
            store.push(&ids[before..]);
            if piece.len() <= LONGEST {
                known.insert(piece, before..ids.len());
            } else {
                ids.truncate(before);
            }
            control.advance(piece.len() as u64);
            Ok(())
        })?;
        Ok(Guess { starts, end })
    }

    /// Keeps of every guess what is right; false when the pattern does not allow to guess.
    pub(crate) fn settle<S: Store>(
        &self,
        valid: &[&str],
        tasks: &[Task],
        made: &mut Made<S>,
        control: &Control,
    ) -> Result<bool> {
        let mut repairs = S::with_room(0);
        let mut at = 0;
        for part in &mut made.parts {
            let Task { start, end, guess: Some(text), .. } = tasks[part.task] else { continue };
            let Some(Guess { starts, end: Some(last) }) = &part.guess else { return Ok(false) };
            if start == 0 {
                at = 0;
            }
            if at >= end {
                part.ids = 0..0; // one piece from the left covers it
            } else if let Ok(i) = starts.binary_search_by_key(&at, |&(start, _)| start) {
                part.ids.start += starts[i].1;
                at = *last;
            } else {
                let before = repairs.n_ids();
                let again = self.guess(self.splitter(), valid[text], at..end, control, &mut repairs)?;
                let Some(last) = again.end else { return Ok(false) };
                (part.thread, part.ids, at) = (made.stores.len(), before..repairs.n_ids(), last);
            }
            made.offsets[tasks[part.task].first + 1] += part.ids.len() as i64;
        }
        made.stores.push(repairs);
        Ok(true)
    }
}
