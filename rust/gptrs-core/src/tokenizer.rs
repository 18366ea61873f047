//! A vocabulary, a splitter and special tokens, ready to encode and decode on any number of threads.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::cache::{Cache, DEFAULT_BYTES};
use crate::control::Control;
use crate::decode::{StreamDecoder, decode};
use crate::encode::{Count, Sink, encode_text};
use crate::error::{Error, Result};
use crate::parallel;
use crate::special::{Finder, Matching, SpecialSet, SpecialToken, Specials};
use crate::split::Splitter;
use crate::template::Template;
use crate::vocab::Vocab;

/// Bytes of documents that one task of a batch takes, so that a task outweighs its hand-out.
const TASK_BYTES: usize = 256 << 10;

/// Below this many bytes a batch stays on the calling thread.
const PARALLEL_BYTES: usize = 64 << 10;

/// Caches that wait for the next call.
const MAX_IDLE_CACHES: usize = 64;

/// Where in the text a token's bytes are: start and end.
pub type Span = (usize, usize);

/// Ids of a batch, two bytes each when the vocabulary allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// For vocabularies of at most 65,536 ids.
    U16(Vec<u16>),
    /// For all others.
    U32(Vec<u32>),
}

impl Ids {
    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The ids of many texts in one array: text `i` has `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// All ids in order of the texts.
    pub ids: Ids,
    /// One more than there are texts, from 0 to the number of ids.
    pub offsets: Vec<i64>,
}

/// Encodes and decodes; immutable, so it can be shared.
///
/// Caches are checked out of a list that is only ever tried, never waited for: no thread blocks, and a child process
/// made while the list was locked goes on with caches of its own.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    splitter: Splitter,
    specials: SpecialSet,
    template: Option<Template>,
    /// Tells the caches of one tokenizer from those of another.
    identity: u64,
    cache_bytes: usize,
    idle: Mutex<Vec<Cache>>,
}

impl Tokenizer {
    /// Joins the parts; fails when a special token is empty, doubled, or has the id of another token.
    pub fn new(vocab: Vocab, splitter: Splitter, specials: Vec<SpecialToken>) -> Result<Self> {
        let exact = specials.into_iter().map(|token| (token, Matching::EXACT));
        Self::with_matching(vocab, splitter, exact.collect())
    }

    /// [`Tokenizer::new`] with special tokens that are found as Hugging Face's files say.
    pub fn with_matching(vocab: Vocab, splitter: Splitter, specials: Vec<(SpecialToken, Matching)>) -> Result<Self> {
        static NEXT_IDENTITY: AtomicU64 = AtomicU64::new(0);
        let specials = SpecialSet::new(specials, splitter.normalizer(), &vocab)?;
        let (template, identity) = (None, NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            vocab,
            splitter,
            specials,
            template,
            identity,
            cache_bytes: DEFAULT_BYTES,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// The same tokenizer with another bound on the memory of each thread's cache; 64 MiB by default.
    #[must_use]
    pub fn with_cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes;
        self.idle = Mutex::new(Vec::new());
        self
    }

    /// The ordinary tokens and merges.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// What cuts text into pieces.
    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// The special tokens, ascending by id.
    pub fn specials(&self) -> &[SpecialToken] {
        self.specials.tokens()
    }

    /// How each of the special tokens is found.
    pub fn matching(&self) -> &[Matching] {
        self.specials.matching()
    }

    /// What Hugging Face puts around a text; nothing here does, the format and its users keep it.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// The same tokenizer with another template.
    #[must_use]
    pub fn with_template(mut self, template: Option<Template>) -> Self {
        self.template = template;
        self
    }

    /// The largest id + 1; ids below it may be holes.
    pub fn vocab_size(&self) -> usize {
        let special = self.specials().last().map_or(0, |token| token.id as usize + 1);
        self.vocab.len().max(special)
    }

    /// The special token that ends a document, under any of its usual names.
    pub fn eot_id(&self) -> Option<u32> {
        self.specials.end_of_text()
    }

    /// What this tokenizer is, whatever file it came from: blake3 over all that decides ids, which are pattern, tokens,
    /// merges, special tokens, and where there is one the normalizer and how special tokens are found.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("gptrs tokenizer identity 1");
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(self.splitter.pattern().as_bytes());
        field(&[u8::from(self.vocab.ignore_merges())]);
        field(&(self.vocab.len() as u64).to_le_bytes());
        for id in 0..self.vocab.len() as u32 {
            field(self.vocab.token(id).unwrap_or_default());
        }
        let merges: Vec<u8> =
            self.vocab.merges().iter().flat_map(|&(l, r)| [l.to_le_bytes(), r.to_le_bytes()]).flatten().collect();
        field(&merges);
        let normalizer = self.splitter.normalizer();
        for (token, matching) in self.specials().iter().zip(self.matching()) {
            field(&token.id.to_le_bytes());
            field(token.text.as_bytes());
            if let Some(flags) = matching.digest_field(normalizer) {
                field(flags);
            }
        }
        if let Some(normalizer) = normalizer {
            field(normalizer.name().as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// The ids of `text`; special tokens in it are ordinary text.
    pub fn encode_ordinary(&self, text: &[u8]) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        self.with_cache(|cache| self.encode_into(cache, text, &mut ids))?;
        Ok(ids)
    }

    /// The ids of `text`, where each `allowed` special token becomes its id; the longest one at the same place.
    ///
    /// Fails with [`Error::SpecialToken`] when the text has a special token that is `disallowed`; `Specials::All` there
    /// means all that are not `allowed`. One that is neither is ordinary text.
    pub fn encode(&self, text: &[u8], allowed: Specials, disallowed: Specials) -> Result<Vec<u32>> {
        self.encode_watched(text, allowed, disallowed, &Control::new())
    }

    /// [`Tokenizer::encode`], but ends with [`Error::Interrupted`] when `control` is cancelled.
    pub fn encode_watched(
        &self,
        text: &[u8],
        allowed: Specials,
        disallowed: Specials,
        control: &Control,
    ) -> Result<Vec<u32>> {
        self.specials.check(allowed)?;
        self.specials.check(disallowed)?;
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let is_ordinary = matches!((allowed, disallowed), (Specials::None, Specials::None));
        if is_ordinary || !self.specials.occur_in(text) {
            self.with_cache(|cache| {
                cache.claim(self.identity);
                encode_text(&self.vocab, &self.splitter, cache, text, control, &mut ids)
            })?;
            return Ok(ids);
        }
        let spared = if matches!(disallowed, Specials::All) { allowed } else { Specials::None };
        if let Some(found) = self.specials.finder_except(disallowed, spared)?.first(text) {
            let token = self.specials.text(found.id).unwrap_or_default().to_owned();
            return Err(Error::SpecialToken { token, offset: found.start });
        }
        let finder = self.specials.finder(allowed)?;
        self.with_cache(|cache| self.encode_special(cache, text, &finder, control, &mut ids))?;
        Ok(ids)
    }

    /// Appends the ids of `text` as ordinary text to `out`; for workers that keep a cache of their own.
    pub fn encode_into(&self, cache: &mut Cache, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        cache.claim(self.identity);
        encode_text(&self.vocab, &self.splitter, cache, text, &Control::new(), out)
    }

    /// A cache: one given back by an earlier call, or a new one.
    pub fn cache(&self) -> Cache {
        let idle = self.idle.try_lock().ok().and_then(|mut idle| idle.pop());
        idle.unwrap_or_else(|| Cache::new(self.identity, self.cache_bytes))
    }

    /// Runs `f` with a cache and keeps the cache for later calls.
    pub fn with_cache<R>(&self, f: impl FnOnce(&mut Cache) -> R) -> R {
        let mut cache = self.cache();
        let result = f(&mut cache);
        self.give_back(cache);
        result
    }

    /// Encodes many texts on `threads` threads (0: all cores); the result does not depend on their number.
    ///
    /// Special tokens are ordinary text unless `allowed`.
    pub fn encode_batch<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        allowed: Specials,
        threads: usize,
        control: &Control,
    ) -> Result<Encoded> {
        let finder = self.specials.finder(allowed)?;
        let (ids, offsets) = if self.vocab_size() <= 1 << 16 {
            let (ids, offsets) = self.batch(texts, &finder, threads, control)?;
            (Ids::U16(ids), offsets)
        } else {
            let (ids, offsets) = self.batch(texts, &finder, threads, control)?;
            (Ids::U32(ids), offsets)
        };
        Ok(Encoded { ids, offsets })
    }

    /// Number of ids of `text` as ordinary text.
    pub fn count(&self, text: &[u8]) -> Result<usize> {
        let mut count = Count::default();
        self.with_cache(|cache| encode_text(&self.vocab, &self.splitter, cache, text, &Control::new(), &mut count))?;
        Ok(count.0)
    }

    /// The ids of `text` as ordinary text, and the bytes of the text that each one spells.
    pub fn encode_with_offsets(&self, text: &[u8]) -> Result<(Vec<u32>, Vec<Span>)> {
        let ids = self.encode_ordinary(text)?;
        let mut end = 0;
        let spans = ids.iter().map(|&id| {
            let start = end;
            end += self.vocab.token(id).map_or(0, <[u8]>::len);
            (start, end)
        });
        let spans = spans.collect();
        Ok((ids, spans))
    }

    /// The bytes that `ids` spell; special tokens give their text.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        decode(self, ids)
    }

    /// Decodes ids one by one.
    pub fn decoder(self: &Arc<Self>) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(self))
    }

    /// The bytes of a token, special ones included.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocab.token(id).or_else(|| self.specials.text(id).map(str::as_bytes))
    }

    /// The id of a token, special ones included.
    pub fn token_id(&self, bytes: &[u8]) -> Option<u32> {
        self.vocab.id(bytes).or_else(|| self.specials.id(bytes))
    }

    /// Finds the chosen special tokens.
    pub(crate) fn special_finder(&self, choice: Specials) -> Result<Cow<'_, Finder>> {
        self.specials.finder(choice)
    }

    pub(crate) fn known_bytes(&self, id: u32, position: usize) -> Result<&[u8]> {
        self.token_bytes(id).ok_or_else(|| Error::UnknownId { id, position, vocab_size: self.vocab_size() })
    }

    fn give_back(&self, cache: Cache) {
        if let Ok(mut idle) = self.idle.try_lock()
            && idle.len() < MAX_IDLE_CACHES
        {
            idle.push(cache);
        }
    }

    /// Encodes `text`, with an id for each special token that `finder` finds; what is between are texts of their own.
    fn encode_special<S: Sink>(
        &self,
        cache: &mut Cache,
        text: &[u8],
        finder: &Finder,
        control: &Control,
        sink: &mut S,
    ) -> Result<()> {
        cache.claim(self.identity);
        finder.for_each(
            text,
            sink,
            |sink, between| encode_text(&self.vocab, &self.splitter, cache, between, control, sink),
            |sink, found, bytes| {
                sink.push(&[found.id]);
                control.advance(bytes.len() as u64);
            },
        )
    }

    fn batch<T: AsRef<[u8]> + Sync, I: Copy + Send>(
        &self,
        texts: &[T],
        finder: &Finder,
        threads: usize,
        control: &Control,
    ) -> Result<(Vec<I>, Vec<i64>)>
    where
        Vec<I>: Sink,
    {
        let n_bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        control.begin("encode bytes", n_bytes as u64);
        let threads = if n_bytes < PARALLEL_BYTES { 1 } else { threads };
        let tasks = tasks(texts);
        let make = || (self.cache(), Vec::<Chunk<I>>::new());
        let states = parallel::run(threads, tasks.len(), control, make, |(cache, done), task| {
            let mut chunk: Chunk<I> = match done.pop() {
                Some(last) if last.end == task => last,
                last => {
                    done.extend(last);
                    Chunk { start: task, end: task, ids: Vec::new(), lengths: Vec::new() }
                }
            };
            for text in &texts[tasks[task].clone()] {
                let before = chunk.ids.len();
                self.encode_special(cache, text.as_ref(), finder, control, &mut chunk.ids)?;
                chunk.lengths.push(chunk.ids.len() - before);
            }
            chunk.end = task + 1;
            done.push(chunk);
            Ok(())
        })?;
        let mut chunks = Vec::with_capacity(tasks.len());
        for (cache, done) in states {
            self.give_back(cache);
            chunks.extend(done);
        }
        chunks.sort_unstable_by_key(|chunk| chunk.start);
        Ok(join(chunks, texts.len()))
    }
}

/// What a run of tasks made, one thread's as long as no other thread took one between; alone it is the result.
struct Chunk<I> {
    start: usize,
    end: usize,
    ids: Vec<I>,
    lengths: Vec<usize>,
}

/// Runs of texts of about [`TASK_BYTES`].
fn tasks<T: AsRef<[u8]>>(texts: &[T]) -> Vec<std::ops::Range<usize>> {
    let (mut tasks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, text) in texts.iter().enumerate() {
        bytes += text.as_ref().len();
        if bytes >= TASK_BYTES || i + 1 == texts.len() {
            tasks.push(start..i + 1);
            (start, bytes) = (i + 1, 0);
        }
    }
    tasks
}

/// The ids of all chunks in one array, and where each text starts.
fn join<I: Copy>(chunks: Vec<Chunk<I>>, n_texts: usize) -> (Vec<I>, Vec<i64>) {
    let mut offsets = Vec::with_capacity(n_texts + 1);
    let mut end = 0;
    offsets.push(0);
    for length in chunks.iter().flat_map(|chunk| &chunk.lengths) {
        end += *length as i64;
        offsets.push(end);
    }
    let mut chunks = chunks.into_iter().map(|chunk| chunk.ids);
    let mut ids = chunks.next().unwrap_or_default();
    ids.reserve_exact(end as usize - ids.len());
    for chunk in chunks {
        ids.extend_from_slice(&chunk);
    }
    (ids, offsets)
}
