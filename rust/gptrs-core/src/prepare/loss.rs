//! Which tokens are to be predicted: those of some fields of a document.
//!
//! ```text
//! {prompt} {answer}    What? Nothing.
//! tokens               What · ? · ␣Nothing · .     the third ends in the answer: 0 0 1 1
//! ```

use std::ops::Range;

use super::{Encode, PrepareOptions};
use crate::corpus::{Input, Kind};
use crate::error::{Error, Result};
use crate::ids::Ids;

/// Knows how many bytes of its text each token spells.
pub(super) struct Marker {
    token_lens: Vec<u32>,
}

impl Marker {
    /// Fails for a tokenizer whose ids do not spell the bytes of a text.
    pub(super) fn new<E: Encode>(tokenizer: &E) -> Result<Self> {
        let Some(token_lens) = tokenizer.token_lens() else {
            let message =
                "loss_fields need tokens that spell the text, this tokenizer changes it by a normalizer first";
            return Err(Error::Argument(format!(
                "{message}; hint: normalize the files, and use a tokenizer without a normalizer"
            )));
        };
        Ok(Self { token_lens })
    }

    /// Appends for each of `ids` from the first of a document on, which has `n_bytes` and `n_added` tokens behind it,
    /// whether it is to be predicted: those whose last byte lies in one of `targets`, and the added ones.
    pub(super) fn mark(
        &self,
        ids: &Ids,
        first: usize,
        n_added: usize,
        n_bytes: usize,
        targets: &[Range<usize>],
        bits: &mut Vec<bool>,
    ) -> Result<()> {
        let (mut end, mut targets) = (0, targets.iter().peekable());
        let n = ids.len() - first - n_added;
        for id in ids.iter().skip(first).take(n) {
            end += self.token_lens.get(id as usize).map_or(0, |&len| len as usize);
            while targets.next_if(|target| target.end < end).is_some() {}
            bits.push(targets.peek().is_some_and(|target| target.start < end));
        }
        bits.extend(std::iter::repeat_n(true, n_added));
        if end == n_bytes {
            return Ok(());
        }
        Err(Error::Vocab(format!("expected tokens that spell the {n_bytes} bytes of a document, got {end} bytes")))
    }
}

/// Fails when loss fields are asked for that the inputs or the tokenizer cannot have.
pub(super) fn check<E: Encode>(inputs: &[Input], tokenizer: &E, options: &PrepareOptions) -> Result<()> {
    if options.loss_fields.is_empty() {
        return Ok(());
    }
    if let Some(input) = inputs.iter().find(|input| input.kind == Kind::Text) {
        let path = input.path.display();
        return Err(Error::Argument(format!(
            "loss_fields are fields of JSON lines or columns of Parquet files, {path} has none; hint: make it a .jsonl file, \
             or leave loss_fields out to predict every token"
        )));
    }
    Marker::new(tokenizer).map(|_| ())
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges")]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::tests::{Bytes, each_change_of};
    use super::super::{merge_tasks, prepare, prepare_task};
    use super::*;
    use crate::control::Control;
    use crate::io::sweep::{WRITE_FAULTS, temporary_dir};
    use crate::ranges::Task;

    #[test]
    fn a_token_counts_when_its_last_byte_is_in_a_field() {
        // Tokens of 0 to 3 bytes.
        let marker = Marker { token_lens: vec![0, 1, 2, 3] };
        let mark = |ids: &[u32], n_added: usize, n_bytes: usize, targets: &[Range<usize>]| {
            let mut bits = Vec::new();
            marker.mark(&Ids::U32(ids.to_vec()), 0, n_added, n_bytes, targets, &mut bits).map(|()| bits)
        };
        // Bytes 0, 1-2, 3-5, 6, and one that was added.
        let ids = [1, 2, 3, 1, 3];
        for (targets, expected) in [
            (vec![], [false, false, false, false, true]),
            (vec![0..7], [true, true, true, true, true]),
            (vec![0..0, 5..6], [false, false, true, false, true]),
            (vec![3..5], [false, false, false, false, true]),
            (vec![1..2, 2..4, 6..7], [false, true, false, true, true]),
            (vec![0..1, 2..2, 2..3], [true, true, false, false, true]),
        ] {
            assert_eq!(mark(&ids, 1, 7, &targets).unwrap(), expected, "{targets:?}");
        }
        assert_eq!(mark(&[9], 1, 0, &[]).unwrap(), [true]);
        assert!(mark(&ids, 0, 7, &[]).unwrap_err().to_string().contains("7 bytes of a document, got 10 bytes"));
    }

    #[test]
    fn bits_are_those_of_each_byte() {
        let marker = Marker { token_lens: vec![1, 2, 3, 4] };
        let mut state = 1u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for _ in 0..2000 {
            let ids: Vec<u32> = (0..below(20)).map(|_| below(4) as u32).collect();
            let n_bytes: usize = ids.iter().map(|&id| id as usize + 1).sum();
            let (mut at, mut targets) = (0, Vec::new());
            let mut is_target = vec![false; n_bytes];
            while at < n_bytes {
                let end = n_bytes.min(at + below(6) as usize);
                if below(2) == 0 {
                    targets.push(at..end);
                    is_target[at..end].fill(true);
                }
                at = end + below(3) as usize;
            }
            let mut bits = Vec::new();
            marker.mark(&Ids::U32(ids.clone()), 0, 0, n_bytes, &targets, &mut bits).unwrap();
            let ends = ids.iter().scan(0, |end, &id| {
                *end += id as usize + 1;
                Some(*end)
            });
            assert_eq!(bits, ends.map(|end| is_target[end - 1]).collect::<Vec<_>>(), "{ids:?} {targets:?}");
        }
    }

    /// Two documents, "q: answer" and ": b", in shards of four tokens, and their bits.
    fn small(dir: &Path) -> (PrepareOptions, Vec<bool>) {
        let lines = "{\"q\": \"q\", \"a\": \"answer\"}\n\n{\"a\": \"b\", \"q\": \"\"}\n";
        fs::write(dir.join("a.jsonl"), lines).unwrap();
        let (text_field, loss_fields) = ("{q}: {a}".to_owned(), vec!["a".to_owned()]);
        let sizes = PrepareOptions { shard_tokens: 4, segment_bytes: 3, threads: 1, ..PrepareOptions::default() };
        let bits = [[false; 3].as_slice(), &[true; 7], &[false; 2], &[true; 2]].concat();
        (PrepareOptions { text_field, loss_fields, ..sizes }, bits)
    }

    #[test]
    fn runs_and_tasks_that_fail_or_die_at_any_change_of_a_file_end_in_the_same_bits() {
        let dir = temporary_dir();
        let (options, bits) = small(dir.path());
        let (paths, control) = ([dir.path().join("a.jsonl")], Control::new());
        let [whole, out] = ["whole", "out"].map(|name| dir.path().join(name));
        let dataset = prepare(&paths, &Bytes, &whole, &options, &control).unwrap();
        let mut got = vec![false; dataset.n_tokens() as usize];
        dataset.loss_bits(0, &mut got).unwrap();
        assert_eq!(got, bits);
        let one = || prepare(&paths, &Bytes, &out, &options, &control);
        let tasks = || {
            for index in 0..2 {
                prepare_task(&paths, &Bytes, &out, Task { index, of: 2 }, &options, &control)?;
            }
            merge_tasks(&paths, &Bytes, &out, 2, false, &options, &control)
        };
        for run in [&one as &dyn Fn() -> Result<_>, &tasks] {
            let n = each_change_of(&WRITE_FAULTS, &out, &whole, run);
            assert!(n > 30, "{n} changes");
        }
    }
}
