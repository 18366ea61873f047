//! llm.c: 256 numbers of four bytes, then the ids.

use std::path::Path;

use super::source::{Opened, Source, malformed};
use crate::error::Result;
use crate::io;
use crate::shard::{Dtype, Format};

/// Bytes before the ids.
pub(super) const HEADER: usize = 1024;

/// Magic, version and width of the ids, for vocabularies like GPT-2's and like Llama 3's.
const KINDS: [([i32; 2], Dtype); 2] = [([20_240_520, 1], Dtype::U16), ([20_240_801, 7], Dtype::U32)];

/// Magic of a file of multiple-choice questions.
const QUESTIONS: i32 = 20_240_522;

/// Whether a file that starts so is one of llm.c's.
pub(super) fn is_magic(start: &[u8]) -> bool {
    start.first_chunk().is_some_and(|&bytes| {
        let magic = i32::from_le_bytes(bytes);
        magic == QUESTIONS || KINDS.iter().any(|([known, _], _)| *known == magic)
    })
}

/// What the file says of itself.
pub(super) fn open(opened: Opened) -> Result<Source> {
    let path = opened.path.clone();
    let bad = |reason: String| malformed(Format::LlmC, &path, reason);
    if opened.len < HEADER as u64 {
        return Err(bad(format!("expected a header of {HEADER} bytes, got {} bytes in all", opened.len)));
    }
    let mut bytes = [0; 12];
    io::read_exact_at(&opened.file, 0, &mut bytes, &path)?;
    let [magic, version, n_tokens] = numbers(&bytes);
    if magic == QUESTIONS {
        return Err(bad("it holds questions with answers, not a text's tokens".to_owned()));
    }
    let Some(&(_, dtype)) = KINDS.iter().find(|(start, _)| *start == [magic, version]) else {
        let expected = "20240520 and 1, or 20240801 and 7";
        return Err(bad(format!("expected magic and version {expected}, got {magic} and {version}")));
    };
    let n_tokens = u64::try_from(n_tokens).map_err(|_| bad(format!("it says that it has {n_tokens} tokens")))?;
    let expected = HEADER as u64 + n_tokens * dtype.size() as u64;
    if opened.len != expected {
        let len = opened.len;
        return Err(bad(format!("its {n_tokens} tokens make {expected} bytes, it has {len}; it may be cut")));
    }
    opened.of(dtype, HEADER as u64, n_tokens)
}

fn numbers(bytes: &[u8; 12]) -> [i32; 3] {
    let [a, b, c] = [0, 4, 8].map(|at| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [a, b, c].map(i32::from_le_bytes)
}

/// The header of a file of `n_tokens` ids.
pub(super) fn header(dtype: Dtype, n_tokens: i32) -> [u8; HEADER] {
    let [magic, version] = if dtype == Dtype::U16 { KINDS[0].0 } else { KINDS[1].0 };
    let mut bytes = [0; HEADER];
    for (i, number) in [magic, version, n_tokens].into_iter().enumerate() {
        bytes[4 * i..4 * i + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// The name of file `i` of a dataset.
pub(super) fn name(i: u64) -> String {
    format!("tokens_{i:06}.bin")
}

/// Whether an export could have written `path`, and as which file.
pub(super) fn index_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let i = name.strip_prefix("tokens_")?.strip_suffix(".bin")?.parse().ok()?;
    (self::name(i) == name).then_some(i)
}
