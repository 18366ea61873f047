//! The read before the work: every input that is not compressed is UTF-8, and the digest of each as it is stored.

use std::fs;
use std::ops::Range;
use std::time::SystemTime;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::corpus::{self, Codec, Input, Kind};
use crate::error::{Error, Result};
use crate::io;
use crate::manifest::Source;
use crate::parallel;
use crate::ranges;
use crate::sealed::{from_hex, hex};

/// Files are read in parts of this size by all threads; a power of two of BLAKE3's chunks.
const PART: usize = 4 << 20;

/// Bytes that a thread reads at a time.
const STRETCH: usize = 256 << 10;

/// What each input is, in order; fails on the first byte of text that is not UTF-8, unless that is replaced.
pub(super) fn sources(inputs: &[Input], replaces: bool, threads: usize, control: &Control) -> Result<Vec<Source>> {
    let digests = digests(inputs, PART, replaces, threads, control)?;
    Ok(inputs.iter().zip(digests).map(|(input, blake3)| source(input, blake3)).collect())
}

/// An input with its digest.
pub(super) fn source(input: &Input, blake3: String) -> Source {
    let name = input.path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    Source { name, n_bytes: input.n_bytes, blake3 }
}

/// Length and time of each input.
pub(super) fn stamps(inputs: &[Input]) -> Result<Vec<(u64, Option<SystemTime>)>> {
    let stamp = |input: &Input| {
        let metadata = fs::metadata(&input.path).map_err(Error::io("read the metadata of", &input.path))?;
        Ok((metadata.len(), metadata.modified().ok()))
    };
    inputs.iter().map(stamp).collect()
}

/// Fails when an input was changed since its stamp.
pub(super) fn refuse_changed(inputs: &[Input], stamps: &[(u64, Option<SystemTime>)]) -> Result<()> {
    match inputs.iter().zip(self::stamps(inputs)?).zip(stamps).find(|((_, now), before)| now != *before) {
        Some(((input, _), _)) => Err(input.changed()),
        None => Ok(()),
    }
}

/// The hexadecimal BLAKE3 digest of each input.
fn digests(inputs: &[Input], part: usize, replaces: bool, threads: usize, control: &Control) -> Result<Vec<String>> {
    let whole: Vec<_> = inputs.iter().map(|input| 0..n_parts(input.n_bytes, part)).collect();
    Ok(parts(inputs, &whole, part, replaces, threads, control)?.iter().map(|parts| root(parts)).collect())
}

/// Parts of a file of `n_bytes`, at least one.
fn n_parts(n_bytes: u64, part: usize) -> u64 {
    n_bytes.div_ceil(part as u64).max(1)
}

/// The digests of some parts of each input; reads those alone.
fn parts(
    inputs: &[Input],
    wanted: &[Range<u64>],
    part: usize,
    replaces: bool,
    threads: usize,
    control: &Control,
) -> Result<Vec<Vec<Digest>>> {
    let tasks: Vec<(usize, u64)> =
        wanted.iter().enumerate().flat_map(|(i, parts)| parts.clone().map(move |k| (i, k))).collect();
    let len = |&(i, k): &(usize, u64)| inputs[i].n_bytes.saturating_sub(k * part as u64).min(part as u64);
    control.begin("check bytes", tasks.iter().map(len).sum());
    let state = || (Vec::new(), Vec::new());
    let states = parallel::run(threads, tasks.len(), control, state, |(buffer, done), task| {
        let (i, k) = tasks[task];
        let digest = check_part(&inputs[i], k * part as u64, part, replaces, buffer)?;
        done.push((task, digest));
        control.advance(len(&tasks[task]));
        Ok(())
    })?;
    let mut done: Vec<(usize, Digest)> = states.into_iter().flat_map(|(_, done)| done).collect();
    done.sort_unstable_by_key(|(task, _)| *task);
    let mut digests = done.into_iter().map(|(_, digest)| digest);
    Ok(wanted.iter().map(|parts| digests.by_ref().take((parts.end - parts.start) as usize).collect()).collect())
}

/// What a task knows of an input that others have a share of too: the digests of the parts that it read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shared {
    /// Index of the input.
    pub(super) input: u64,
    /// The first of the parts, and the digest of each: of the file where there is only one, else a node of its tree.
    pub(super) first: u64,
    pub(super) nodes: Vec<String>,
}

/// What the inputs of a task are: those that it shares have no digest, but the parts that hold something of its `range`,
/// or of the `behind` bytes on both sides that it looks at.
///
/// Two tasks that meet inside a part both read it, so that a file that was changed between them is found.
pub(super) fn shared_sources(
    inputs: &[Input],
    range: &ranges::Range,
    behind: u64,
    replaces: bool,
    threads: usize,
    control: &Control,
) -> Result<(Vec<Source>, Vec<Shared>)> {
    let mine = range.inputs();
    let wanted = mine.clone().map(|i| {
        let (input, bytes) = (&inputs[i], range.bytes(i, &inputs[i]));
        let first = bytes.start.saturating_sub(behind) / PART as u64;
        first..(bytes.end + behind).div_ceil(PART as u64).clamp(first + 1, n_parts(input.n_bytes, PART))
    });
    let wanted: Vec<_> = wanted.collect();
    let digests = parts(&inputs[mine.clone()], &wanted, PART, replaces, threads, control)?;
    let (mut sources, mut shared) = (Vec::new(), Vec::new());
    for ((i, parts), digests) in mine.zip(wanted).zip(digests) {
        let is_whole = range.bytes(i, &inputs[i]) == (0..inputs[i].n_bytes);
        if !is_whole {
            let nodes = digests.iter().copied().map(Digest::to_hex).collect();
            shared.push(Shared { input: i as u64, first: parts.start, nodes });
        }
        sources.push(source(&inputs[i], if is_whole { root(&digests) } else { String::new() }));
    }
    Ok((sources, shared))
}

/// The digest of a file of `n_bytes` from what all tasks that share it know, in order; says what is wrong with it.
pub(super) fn join_shared<'a>(
    n_bytes: u64,
    shares: impl Iterator<Item = &'a Shared>,
) -> std::result::Result<String, &'static str> {
    let n_parts = n_parts(n_bytes, PART);
    let mut nodes: Vec<&str> = Vec::new();
    for share in shares {
        let known = nodes.len().checked_sub(share.first as usize).ok_or("a part of it was read by no task")?;
        let same = share.nodes.len().min(known);
        if nodes[share.first as usize..][..same].iter().ne(&share.nodes[..same]) {
            return Err("it was changed between two tasks");
        }
        nodes.extend(share.nodes[same..].iter().map(String::as_str));
    }
    if nodes.len() as u64 != n_parts {
        return Err("a part of it was read by no task");
    }
    let digests = nodes.iter().map(|hex| Digest::from_hex(hex, n_parts == 1)).collect::<Option<Vec<_>>>();
    digests.map(|digests| root(&digests)).ok_or("the digest of a part is no 64 hexadecimal digits")
}

/// The digest of a part of a file: of the only one, or a node of the file's tree.
#[derive(Clone, Copy)]
pub(crate) enum Digest {
    Whole(blake3::Hash),
    Node(ChainingValue),
}

impl Digest {
    fn to_hex(self) -> String {
        match self {
            Self::Whole(hash) => hash.to_string(),
            Self::Node(node) => hex(&node),
        }
    }

    fn from_hex(digits: &str, is_whole: bool) -> Option<Self> {
        let bytes = from_hex(digits)?;
        Some(if is_whole { Self::Whole(bytes.into()) } else { Self::Node(bytes) })
    }
}

/// Reads `part` bytes from `start` on, in stretches that stay in the cache while they are looked at.
///
/// They meet inside characters, so each is checked from its first byte that begins one to that of the next part. More
/// than three bytes that begin none are invalid wherever the border lies.
fn check_part(input: &Input, start: u64, part: usize, replaces: bool, buffer: &mut Vec<u8>) -> Result<Digest> {
    let (file, len) = io::open_regular(&input.path)?;
    if len != input.n_bytes {
        return Err(input.changed());
    }
    let end = len.min(start.saturating_add(part as u64));
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start);
    for at in (start..end).step_by(STRETCH) {
        let n = (end - at).min(STRETCH as u64) as usize;
        buffer.resize(n + (len - at - n as u64).min(3) as usize, 0);
        io::read_exact_at(&file, at, buffer, &input.path)?;
        let from = if at == 0 { 0 } else { continues(buffer) };
        let to = n + continues(&buffer[n..]);
        if input.codec == Codec::Plain && input.kind != Kind::Parquet && !replaces {
            corpus::utf8(&buffer[from.min(to)..to], at + from as u64, &input.path)?;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(if (start, end) == (0, len) {
        Digest::Whole(hasher.finalize())
    } else {
        Digest::Node(hasher.finalize_non_root())
    })
}

/// Bytes at the front that continue a character, at most three.
fn continues(bytes: &[u8]) -> usize {
    bytes.iter().take(3).take_while(|&&b| b & 0xC0 == 0x80).count()
}

/// BLAKE3's tree over the parts of a file.
pub(crate) fn root(parts: &[Digest]) -> String {
    match parts {
        [Digest::Whole(hash)] => hash.to_string(),
        parts => {
            let nodes: Vec<_> =
                parts.iter().filter_map(|d| if let Digest::Node(v) = d { Some(*v) } else { None }).collect();
            let (left, right) = nodes.split_at(left_len(nodes.len()));
            merge_subtrees_root(&node(left), &node(right), Mode::Hash).to_string()
        }
    }
}

fn node(parts: &[ChainingValue]) -> ChainingValue {
    match parts {
        [only] => *only,
        parts => {
            let (left, right) = parts.split_at(left_len(parts.len()));
            merge_subtrees_non_root(&node(left), &node(right), Mode::Hash)
        }
    }
}

/// The largest power of two below `n`: the parts on the left of a tree over `n`.
fn left_len(n: usize) -> usize {
    n.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, bytes).unwrap();
        let input = Input { path, kind: Kind::Text, codec: Codec::Plain, n_bytes: bytes.len() as u64 };
        Ok(digests(&[input], 1024, false, 2, &Control::new())?.remove(0))
    }

    #[test]
    fn the_digest_in_parts_is_the_digest_of_the_whole() {
        for len in [0, 1, 1023, 1024, 1025, 2048, 2049, 3072, 4096, 5000, 7 * 1024, 17_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 127) as u8).collect();
            assert_eq!(digest(&bytes).unwrap(), blake3::hash(&bytes).to_string(), "{len} bytes");
        }
    }

    #[test]
    fn the_first_invalid_byte_is_found_wherever_the_parts_meet() {
        for unit in ["a", "\u{e9}", "\u{20ac}", "\u{1f600}"] {
            for shift in 0..4 {
                let text = "x".repeat(shift) + &unit.repeat(3000);
                digest(text.as_bytes()).unwrap();
                for at in (1016..1034).chain(2040..2056) {
                    for bad in [&b"\xFF"[..], b"\x80", b"\x80\x80\x80\x80\x80\x80", b"\xC3", b"\xF0\x9F"] {
                        let mut bytes = text.clone().into_bytes();
                        bytes[at..at + bad.len()].copy_from_slice(bad);
                        let expected = std::str::from_utf8(&bytes).map_err(|e| e.valid_up_to() as u64);
                        let got = digest(&bytes).map_err(|e| match e {
                            Error::NotUtf8 { offset, .. } => offset,
                            other => panic!("{other}"),
                        });
                        assert_eq!(got.map(|_| ()), expected.map(|_| ()), "{unit} {shift} {at} {bad:?}");
                    }
                }
            }
        }
    }
}
