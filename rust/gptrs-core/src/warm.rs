//! The most frequent words of the training text, which large calls encode once, before their threads start.
//!
//! They stand beside tokenizer.json, in a file with the same name and the ending `.warm`. The file holds words, not ids:
//! whatever is in it, what a cache is given is what the tokenizer makes of the words. A file that is missing, damaged
//! or of another tokenizer is left alone.
//!
//! ```text
//! "gptrs warm words 1\n" · tokenizer digest [32] · n u32 · end of each word u32 [n] · words · BLAKE3 of all this [32]
//! ```

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::cache::Cache;
use crate::control::Control;
use crate::count::WordCounts;
use crate::error::Result;
use crate::io;
use crate::parallel;
use crate::tokenizer::Tokenizer;

/// Longer words are rare and left out.
const LONGEST: usize = 64;

/// Words and bytes that a file may hold.
const MAX_WORDS: usize = 1 << 20;
const MAX_FILE: u64 = 32 << 20;

const MAGIC: &[u8; 19] = b"gptrs warm words 1\n";

/// Calls of fewer bytes meet too few of the words for their sake.
const FROM_BYTES: usize = 4 << 20;

/// Words that one task encodes.
const TASK_WORDS: usize = 1 << 12;

/// Distinct words, the most frequent first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmWords {
    bytes: Vec<u8>,
    /// The end of each word in `bytes`.
    ends: Vec<u32>,
}

impl WarmWords {
    /// How many words are kept unless said otherwise: most of what common text consists of, in some megabytes of cache.
    pub const DEFAULT_LEN: usize = 1 << 16;

    /// The at most `n` most frequent words of `counts`; of equally frequent ones the smaller bytes.
    pub fn most_frequent(counts: &WordCounts, n: usize) -> Self {
        const LAST: usize = (1 << 16) - 1;
        let n = n.min(MAX_WORDS);
        // How often a word must occur, by a histogram, so that only those are collected and sorted.
        let mut histogram = vec![0usize; LAST + 1];
        let is_kept = |word: &[u8]| word.len() <= LONGEST;
        for (_, n) in counts.iter().filter(|(word, _)| is_kept(word)) {
            histogram[usize::try_from(n).map_or(LAST, |n| n.min(LAST))] += 1;
        }
        let (mut least, mut n_words) = (LAST, histogram[LAST]);
        while least > 1 && n_words < n {
            least -= 1;
            n_words += histogram[least];
        }
        let mut words: Vec<_> = counts.iter().filter(|&(word, n)| n >= least as u64 && is_kept(word)).collect();
        words.sort_unstable_by_key(|&(word, n)| (std::cmp::Reverse(n), word));
        let mut kept = Self::default();
        for (word, _) in words.into_iter().take(n) {
            kept.bytes.extend_from_slice(word);
            kept.ends.push(kept.bytes.len() as u32);
        }
        kept
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The words.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.word(i))
    }

    fn word(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.bytes[start..self.ends[i] as usize]
    }

    /// Writes the words of the tokenizer with this digest, which is saved at `path`, beside it.
    pub fn write_beside(&self, path: &Path, digest: &[u8; 32]) -> Result<()> {
        let mut file = [MAGIC.as_slice(), digest, &(self.len() as u32).to_le_bytes()].concat();
        file.extend(self.ends.iter().flat_map(|end| end.to_le_bytes()));
        file.extend_from_slice(&self.bytes);
        let checksum = blake3::hash(&file);
        file.extend_from_slice(checksum.as_bytes());
        io::write_atomic(&beside(path), &file)
    }
}

/// The file of the warm words of the tokenizer file at `path`.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("warm")
}

/// The words of a file whose checksum is right; the digest is the tokenizer's that they belong to.
fn parse(file: &[u8]) -> Option<([u8; 32], WarmWords)> {
    let (body, checksum) = file.split_last_chunk::<32>()?;
    if blake3::hash(body).as_bytes() != checksum {
        return None;
    }
    let (digest, rest) = body.strip_prefix(MAGIC.as_slice())?.split_first_chunk::<32>()?;
    let (n, rest) = rest.split_first_chunk::<4>()?;
    let n = u32::from_le_bytes(*n) as usize;
    if n > MAX_WORDS || n > rest.len() / 4 {
        return None;
    }
    let (ends, bytes) = rest.split_at(4 * n);
    let ends: Vec<u32> = ends.as_chunks().0.iter().map(|end| u32::from_le_bytes(*end)).collect();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let are_words = starts.zip(&ends).all(|(start, &end)| start < end && (end - start) as usize <= LONGEST);
    let is_whole = ends.last().map_or(0, |&end| end as usize) == bytes.len();
    (are_words && is_whole).then(|| (*digest, WarmWords { bytes: bytes.to_vec(), ends }))
}

/// What a tokenizer knows of its training text.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    words: Option<WarmWords>,
    /// Read from a file: of the tokenizer with this digest, which is compared when the words are needed.
    digest: Option<[u8; 32]>,
    /// The cache that others are copied from. As the list of idle ones it is only ever tried, never waited for.
    cache: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Cold,
    Hot(Box<Cache>),
    /// The words are of another tokenizer.
    Never,
}

impl Warm {
    pub(crate) fn new(words: WarmWords) -> Self {
        Self { words: Some(words).filter(|words| !words.is_empty()), digest: None, cache: Mutex::default() }
    }

    /// The words beside the tokenizer file at `path`; none when there is no such file or it is not whole.
    pub(crate) fn read_beside(path: &Path) -> Self {
        let read = || {
            let mut file = Vec::new();
            let n = File::open(beside(path)).ok()?.take(MAX_FILE + 1).read_to_end(&mut file).ok()?;
            if n as u64 <= MAX_FILE { parse(&file) } else { None }
        };
        read().map_or_else(Self::default, |(digest, words)| Self { digest: Some(digest), ..Self::new(words) })
    }

    pub(crate) fn words(&self) -> Option<&WarmWords> {
        self.words.as_ref()
    }

    /// Forgets what was made of the words.
    pub(crate) fn forget(&mut self) {
        self.cache = Mutex::default();
    }

    /// A copy of the warm cache, when it was made.
    pub(crate) fn cache(&self) -> Option<Cache> {
        match &*self.cache.try_lock().ok()? {
            State::Hot(cache) => Some((**cache).clone()),
            State::Cold | State::Never => None,
        }
    }

    /// Makes the warm cache for a call of `n_bytes`; true when this call made it.
    pub(crate) fn heat(
        &self,
        tokenizer: &Tokenizer,
        n_bytes: usize,
        threads: usize,
        control: &Control,
    ) -> Result<bool> {
        let Some(words) = self.words.as_ref().filter(|_| n_bytes >= FROM_BYTES) else { return Ok(false) };
        let Ok(mut state) = self.cache.try_lock() else { return Ok(false) };
        if !matches!(*state, State::Cold) {
            return Ok(false);
        }
        if self.digest.is_some_and(|digest| digest != tokenizer.digest()) {
            *state = State::Never;
            return Ok(false);
        }
        *state = State::Hot(Box::new(hot_cache(words, tokenizer, threads, control)?));
        Ok(true)
    }
}

/// A cache that holds the words.
fn hot_cache(words: &WarmWords, tokenizer: &Tokenizer, threads: usize, control: &Control) -> Result<Cache> {
    let n_tasks = words.len().div_ceil(TASK_WORDS);
    let states = parallel::run(threads, n_tasks, control, Vec::new, |done, task| {
        let mut ids = Encodings { task, ..Encodings::default() };
        for i in TASK_WORDS * task..words.len().min(TASK_WORDS * (task + 1)) {
            tokenizer.vocab().encode_piece(words.word(i), control, &mut ids.ids)?;
            ids.ends.push(ids.ids.len());
        }
        done.push(ids);
        Ok(())
    })?;
    let mut done: Vec<Encodings> = states.into_iter().flatten().collect();
    done.sort_unstable_by_key(|ids| ids.task);
    let mut cache = tokenizer.cold_cache();
    for Encodings { task, ids, ends } in done {
        let mut start = 0;
        for (i, end) in (TASK_WORDS * task..).zip(ends) {
            cache.store(words.word(i), &ids[start..end]);
            start = end;
        }
    }
    Ok(cache)
}

#[derive(Default)]
struct Encodings {
    task: usize,
    ids: Vec<u32>,
    ends: Vec<usize>,
}
