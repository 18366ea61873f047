//! Which part of a corpus task I of N has, so that many machines can share the work without talking to each other.
//!
//! ```text
//! inputs  a.txt ─────────── b.jsonl ──── c.jsonl.gz ────── d.txt ──────────────
//! bytes   0        total/4 ⇢      total/2 ⇢        3·total/4 ⇢          total      ⇢ on to where it may be cut
//! ```
//! Border k is at byte ⌊k · total / N⌋ of the inputs as they are stored, moved forward: in JSON lines to the next line,
//! in a text to the next place where cutting changes nothing, and to the end of a file that is compressed. Each border
//! follows from the inputs, k and N alone, and whoever needs one reads only around it.

use serde::{Deserialize, Serialize};

use crate::corpus::{Codec, Input, Kind, MAX_LINE, Source};
use crate::error::{Error, Result};
use crate::io::Map;

/// The most tasks that a corpus is split into.
pub const MAX_TASKS: u64 = 100_000;

/// One of several equal tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its number, from 0.
    pub index: u64,
    /// How many there are.
    pub of: u64,
}

/// A byte of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Index of the input.
    pub input: u64,
    /// Offset in it; below its length.
    pub offset: u64,
}

/// What a task has of the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its first byte.
    pub start: Place,
    /// The byte behind its last; with offset 0 the end of the input before.
    pub end: Place,
}

impl Task {
    /// Task `index` of `of`; fails when there is no such task.
    pub fn new(index: u64, of: u64) -> Result<Self> {
        if !(1..=MAX_TASKS).contains(&of) {
            return Err(Error::Argument(format!("the number of tasks must be 1 to {MAX_TASKS}, got {of}")));
        }
        if index >= of {
            let last = of - 1;
            return Err(Error::Argument(format!("expected a task from 0 to {last} of {of}, got task {index}")));
        }
        Ok(Self { index, of })
    }

    /// What files and folders of this task are called: `task-00003-of-00016`.
    pub fn name(self) -> String {
        format!("task-{:05}-of-{:05}", self.index, self.of)
    }

    /// The part of `inputs` that this task has; `safe_cut` gives the smallest place from an offset of a text on where it
    /// may be cut.
    pub fn range(self, inputs: &[Input], safe_cut: impl Fn(&[u8], usize) -> usize) -> Result<Range> {
        let [start, end] = [self.index, self.index + 1].map(|k| border(inputs, k, self.of, &safe_cut));
        Ok(Range { start: start?, end: end? })
    }
}

impl Range {
    /// All of `inputs`.
    pub fn whole(inputs: &[Input]) -> Self {
        Self { start: Place { input: 0, offset: 0 }, end: Place { input: inputs.len() as u64, offset: 0 } }
    }

    /// The inputs that have a byte in the range, or are empty and in it.
    pub fn inputs(&self) -> std::ops::Range<usize> {
        let end = self.end.input + u64::from(self.end.offset > 0);
        self.start.input as usize..(end as usize).max(self.start.input as usize)
    }

    /// The bytes of input `i` that are in the range.
    pub fn bytes(&self, i: usize, input: &Input) -> std::ops::Range<u64> {
        let start = if i as u64 == self.start.input { self.start.offset } else { 0 };
        let end = if i as u64 == self.end.input { self.end.offset } else { input.n_bytes };
        start..end
    }
}

fn border(inputs: &[Input], k: u64, of: u64, safe_cut: &impl Fn(&[u8], usize) -> usize) -> Result<Place> {
    if k == 0 {
        return Ok(Place { input: 0, offset: 0 });
    }
    let total: u128 = inputs.iter().map(|input| u128::from(input.n_bytes)).sum();
    let mut at = u128::from(k) * total / u128::from(of);
    for (i, input) in (0..).zip(inputs) {
        if at < u128::from(input.n_bytes) && k < of {
            let offset = cut(input, at as u64, safe_cut)?;
            let is_end = offset >= input.n_bytes;
            return Ok(if is_end { Place { input: i + 1, offset: 0 } } else { Place { input: i, offset } });
        }
        at = at.saturating_sub(u128::from(input.n_bytes));
    }
    Ok(Place { input: inputs.len() as u64, offset: 0 })
}

/// The first place from `at` on where `input` may be cut.
fn cut(input: &Input, at: u64, safe_cut: &impl Fn(&[u8], usize) -> usize) -> Result<u64> {
    match (input.kind, input.codec) {
        _ if at == 0 => Ok(0),
        (Kind::Text, Codec::Plain) => {
            let map = Map::open(&input.path)?;
            let text = map.as_bytes();
            if text.len() as u64 != input.n_bytes {
                return Err(input.changed());
            }
            Ok(safe_cut(text, at as usize) as u64)
        }
        (Kind::JsonLines, Codec::Plain) => {
            let (mut line, limit) = (Vec::new(), MAX_LINE as u64 + 2);
            let n = Source::open(input, at - 1)?.line(limit, &mut line)?;
            // Who reads a line that is too long refuses it; the others have nothing to do.
            Ok(if line.last() == Some(&b'\n') { at - 1 + n as u64 } else { input.n_bytes })
        }
        _ => Ok(input.n_bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::split::Splitter;

    fn inputs(dir: &Path, files: &[(&str, &str)]) -> Vec<Input> {
        let paths: Vec<_> = files.iter().map(|(name, _)| dir.join(name)).collect();
        paths.iter().zip(files).for_each(|(path, (_, text))| fs::write(path, text).unwrap());
        crate::corpus::inputs(&paths).unwrap()
    }

    fn ranges(inputs: &[Input], of: u64) -> Vec<Range> {
        let splitter = Splitter::new("gpt2").unwrap();
        let range =
            |index| Task::new(index, of).unwrap().range(inputs, |text, at| splitter.safe_cut(text, at)).unwrap();
        (0..of).map(range).collect()
    }

    #[test]
    fn borders_move_on_to_the_next_place_where_the_text_may_be_cut() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("a.txt", "one two three"), ("b.jsonl", "{\"text\": \"x\"}\n{}\n"), ("c.txt.gz", "123456789")];
        let inputs = inputs(dir.path(), &files);
        let places: Vec<_> = ranges(&inputs, 5).iter().map(|r| (r.start.input, r.start.offset)).collect();
        // 39 bytes: the borders 7, 15, 23 and 31 are in " three", in both lines, and in the compressed file.
        assert_eq!(places, [(0, 0), (0, 7), (1, 14), (1, 14), (3, 0)]);
        assert_eq!(ranges(&inputs, 5)[4].end, Place { input: 3, offset: 0 });
    }

    #[test]
    fn the_ranges_of_all_tasks_are_the_inputs_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let long = "caf\u{e9} 12 \u{1f600}\n".repeat(700);
        let lines = "{\"text\": \"one\"}\n\n".repeat(90);
        let files =
            [("0.txt", ""), ("1.txt", &long), ("2.jsonl", ""), ("3.jsonl", &lines), ("4.txt", "x"), ("5.txt", "")];
        let inputs = inputs(dir.path(), &files);
        for of in [1, 2, 3, 7, 64, 999] {
            let ranges = ranges(&inputs, of);
            assert_eq!((ranges[0].start, ranges[of as usize - 1].end), {
                let whole = Range::whole(&inputs);
                (whole.start, whole.end)
            });
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(ranges.iter().all(|range| range.start <= range.end));
            for (i, (_, text)) in files.iter().enumerate() {
                let parts = ranges.iter().filter(|range| range.inputs().contains(&i));
                let parts: Vec<_> = parts.map(|range| range.bytes(i, &inputs[i])).collect();
                assert!(parts.first().unwrap().start == 0 && parts.last().unwrap().end == text.len() as u64);
                assert!(text.is_empty() == parts.iter().all(|part| part.end == 0), "{of} tasks have {parts:?} of {i}");
            }
        }
    }

    #[test]
    fn a_task_that_is_not_there_is_refused() {
        for (index, of) in [(0, 0), (4, 4), (0, MAX_TASKS + 1)] {
            assert!(matches!(Task::new(index, of), Err(Error::Argument(_))));
        }
        assert_eq!(Task::new(3, 16).unwrap().name(), "task-00003-of-00016");
    }
}
