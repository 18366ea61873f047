//! Ids back to text, also one by one.

use std::sync::Arc;

use crate::control::Control;
use crate::error::Result;
use crate::parallel;
use crate::tokenizer::Tokenizer;

/// The bytes that `ids` spell.
pub(crate) fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<u8>> {
    let mut n_bytes = 0;
    for (position, &id) in ids.iter().enumerate() {
        n_bytes += tokenizer.known_bytes(id, position)?.len();
    }
    // Room for the last copy, which may write up to 15 bytes too many.
    let mut bytes = vec![0; n_bytes + 16];
    let mut at = 0;
    for (position, &id) in ids.iter().enumerate() {
        if let Some((window, n)) = tokenizer.vocab().window(id) {
            bytes[at..at + 16].copy_from_slice(window);
            at += n;
        } else {
            let token = tokenizer.known_bytes(id, position)?;
            bytes[at..at + token.len()].copy_from_slice(token);
            at += token.len();
        }
    }
    bytes.truncate(n_bytes);
    Ok(bytes)
}

impl Tokenizer {
    /// The bytes of each of many sequences of ids, on `threads` threads (0: all cores).
    pub fn decode_batch<T: AsRef<[u32]> + Sync>(
        &self,
        batch: &[T],
        threads: usize,
        control: &Control,
    ) -> Result<Vec<Vec<u8>>> {
        let n_ids: usize = batch.iter().map(|ids| ids.as_ref().len()).sum();
        let threads = if n_ids < PARALLEL_IDS { 1 } else { threads };
        let n_tasks = batch.len().div_ceil(TASK_SEQUENCES);
        let states = parallel::run(threads, n_tasks, control, Vec::new, |done, task| {
            let first = TASK_SEQUENCES * task;
            let last = batch.len().min(first + TASK_SEQUENCES);
            let texts: Result<Vec<_>> = batch[first..last].iter().map(|ids| decode(self, ids.as_ref())).collect();
            done.push((task, texts?));
            Ok(())
        })?;
        let mut done: Vec<_> = states.into_iter().flatten().collect();
        done.sort_unstable_by_key(|(task, _)| *task);
        Ok(done.into_iter().flat_map(|(_, texts)| texts).collect())
    }
}

/// Below this many ids a batch stays on the calling thread.
const PARALLEL_IDS: usize = 1 << 17;

/// Sequences that one task decodes.
const TASK_SEQUENCES: usize = 64;

/// Decodes ids as they come and gives out whole characters only.
///
/// The parts concatenate to the lossy UTF-8 decoding of all bytes: each maximal invalid sequence is one U+FFFD, given out
/// as soon as it is known to be invalid.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    /// The start of a character that is not complete; at most 3 bytes between calls.
    pending: Vec<u8>,
    n_pushed: usize,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, pending: Vec::new(), n_pushed: 0 }
    }

    /// The characters that `id` completes; often empty in the middle of one. Fails on an unknown id and stays usable.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let bytes = self.tokenizer.known_bytes(id, self.n_pushed)?;
        self.n_pushed += 1;
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            rest = chunk.invalid().len();
            if rest > 0 {
                text.push('\u{FFFD}');
            }
        }
        let tail = &self.pending[self.pending.len() - rest..];
        let is_incomplete = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
        if is_incomplete {
            text.pop();
        } else {
            rest = 0;
        }
        self.pending.drain(..self.pending.len() - rest);
        Ok(text)
    }

    /// U+FFFD when a character was left incomplete; the decoder is then at its start again.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        self.n_pushed = 0;
        String::from_utf8_lossy(&rest).into_owned()
    }
}
