//! A vocabulary, a splitter and special tokens, ready to encode and decode on any number of threads.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use once_cell::race::OnceBox;

use crate::batch::How;
use crate::cache::{Cache, DEFAULT_BYTES};
use crate::control::Control;
use crate::decode::{StreamDecoder, decode};
use crate::encode::{Count, Sink, encode_text, encode_texts};
use crate::error::{Error, Result};
use crate::formats::lengths::Lengths;
use crate::simd::Level;
use crate::special::{Chosen, Matching, SpecialSet, SpecialToken, Specials};
use crate::split::Splitter;
use crate::template::Template;
use crate::vocab::Vocab;
use crate::warm::{Warm, WarmWords};

/// Caches that wait for the next call.
const MAX_IDLE_CACHES: usize = 64;

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
    lengths: Lengths,
    /// Tells the caches of one tokenizer from those of another.
    identity: u64,
    cache_bytes: usize,
    idle: Mutex<Vec<Cache>>,
    warm: Warm,
    digest: OnceBox<[u8; 32]>,
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
        let identity = NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            vocab,
            splitter,
            specials,
            template: None,
            lengths: Lengths::default(),
            identity,
            cache_bytes: DEFAULT_BYTES,
            idle: Mutex::new(Vec::new()),
            warm: Warm::default(),
            digest: OnceBox::new(),
        })
    }

    /// The same tokenizer with these vector instructions for cutting and merging, as [`Splitter::with_level`].
    pub fn with_level(self, level: Level) -> Result<Self> {
        Ok(Self { splitter: self.splitter.with_level(level)?, ..self })
    }

    /// The same tokenizer with another bound on the memory of each thread's cache; 64 MiB by default.
    #[must_use]
    pub fn with_cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes;
        self.idle = Mutex::new(Vec::new());
        self.warm.forget();
        self
    }

    /// The same tokenizer with words that large calls put into their caches beforehand; the ids stay the same.
    #[must_use]
    pub fn with_warm_words(mut self, words: WarmWords) -> Self {
        self.warm = Warm::new(words);
        self
    }

    /// The same tokenizer with the words beside the file at `path`, if they are there and whole.
    pub(crate) fn with_warm_words_beside(mut self, path: &Path) -> Self {
        self.warm = Warm::read_beside(path);
        self
    }

    /// The words given by [`Tokenizer::with_warm_words`].
    pub fn warm_words(&self) -> Option<&WarmWords> {
        self.warm.words()
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

    /// What Hugging Face cuts and fills lists of ids to; nothing here does, the format and its users keep it.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// The same tokenizer with other lengths for its file.
    #[must_use]
    pub fn with_lengths(mut self, lengths: Lengths) -> Self {
        self.lengths = lengths;
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
        // None of its parts ever changes. Waiting for another thread's would wait forever in a child of `fork`: whoever
        // finds none computes it.
        *self.digest.get_or_init(|| Box::new(self.hash()))
    }

    fn hash(&self) -> [u8; 32] {
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
        self.refuse(text, allowed, disallowed)?;
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let finder = self.specials.finder(allowed)?;
        let how = How { finder, dropout: None, may_join: false };
        self.with_cache(|cache| self.encode_range(cache, text, 0, 0..text.len(), &how, control, &mut ids))?;
        Ok(ids)
    }

    /// The ids of bytes that are one piece, whatever they are: nothing is cut and nothing is special.
    pub fn encode_piece(&self, piece: &[u8], control: &Control) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.vocab.encode_piece(piece, control, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` as ordinary text to `out`; for workers that keep a cache of their own.
    pub fn encode_into(&self, cache: &mut Cache, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        self.encode_stretch(cache, text, &Control::new(), out)
    }

    /// A cache: one given back by an earlier call, a copy of the warm one, or a new one.
    pub fn cache(&self) -> Cache {
        let idle = self.idle.try_lock().ok().and_then(|mut idle| idle.pop());
        idle.or_else(|| self.warm.cache()).unwrap_or_else(|| self.cold_cache())
    }

    /// The same for about `n_bytes` of text.
    pub(crate) fn cache_for(&self, n_bytes: usize) -> Cache {
        let mut cache = self.cache();
        cache.announce(n_bytes);
        cache
    }

    /// Prepares for a call of `n_bytes`: a large one has its caches made from the warm words.
    pub(crate) fn warm_up(&self, n_bytes: usize, threads: usize, control: &Control) -> Result<()> {
        if self.warm.heat(self, n_bytes, threads, control)?
            && let Ok(mut idle) = self.idle.try_lock()
        {
            idle.clear(); // these know less
        }
        Ok(())
    }

    /// An empty cache of this tokenizer.
    pub(crate) fn cold_cache(&self) -> Cache {
        Cache::new(self.identity, self.vocab.is_narrow(), self.cache_bytes)
    }

    /// Runs `f` with a cache and keeps the cache for later calls.
    pub fn with_cache<R>(&self, f: impl FnOnce(&mut Cache) -> R) -> R {
        let mut cache = self.cache();
        let result = f(&mut cache);
        self.give_back(cache);
        result
    }

    /// Number of ids of `text` as ordinary text.
    pub fn count(&self, text: &[u8]) -> Result<usize> {
        let mut count = Count::default();
        self.with_cache(|cache| self.encode_stretch(cache, text, &Control::new(), &mut count))?;
        Ok(count.0)
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
    pub(crate) fn special_finder(&self, choice: Specials) -> Result<Chosen<'_>> {
        self.specials.finder(choice)
    }

    pub(crate) fn known_bytes(&self, id: u32, position: usize) -> Result<&[u8]> {
        self.token_bytes(id).ok_or_else(|| Error::UnknownId { id, position, vocab_size: self.vocab_size() })
    }

    pub(crate) fn special_set(&self) -> &SpecialSet {
        &self.specials
    }

    /// Fails when `text` has a special token that is `disallowed`, or a choice names none.
    pub(crate) fn refuse(&self, text: &[u8], allowed: Specials, disallowed: Specials) -> Result<()> {
        self.specials.check(allowed)?;
        self.specials.check(disallowed)?;
        // One fast pass spares most texts the rest.
        if matches!(disallowed, Specials::None) || !self.specials.occur_in(text) {
            return Ok(());
        }
        let spared = if matches!(disallowed, Specials::All) { allowed } else { Specials::None };
        match self.specials.finder_except(disallowed, spared)?.first(text) {
            Some(found) => {
                let token = self.specials.text(found.id).unwrap_or_default().to_owned();
                Err(Error::SpecialToken { token, offset: found.start })
            }
            None => Ok(()),
        }
    }

    /// Encodes `text`, in which nothing is special.
    #[inline]
    pub(crate) fn encode_stretch<S: Sink>(
        &self,
        cache: &mut Cache,
        text: &[u8],
        control: &Control,
        sink: &mut S,
    ) -> Result<()> {
        cache.claim(self.identity, self.vocab.is_narrow());
        encode_text(&self.vocab, &self.splitter, cache, text, control, sink)
    }

    /// Encodes texts that end at `ends` in `joined`, in which nothing is special, and tells the sink where each ends: as one
    /// stream, where nothing has to be normalized.
    pub(crate) fn encode_stretches<S: Sink>(
        &self,
        cache: &mut Cache,
        joined: &[u8],
        ends: &[usize],
        control: &Control,
        sink: &mut S,
    ) -> Result<()> {
        if self.splitter.normalizer().is_none() {
            cache.claim(self.identity, self.vocab.is_narrow());
            return encode_texts(&self.vocab, &self.splitter, cache, joined, ends, control, sink);
        }
        let mut start = 0;
        for &end in ends {
            self.encode_stretch(cache, &joined[std::mem::replace(&mut start, end)..end], control, sink)?;
            sink.end_text();
        }
        Ok(())
    }

    pub(crate) fn give_back(&self, cache: Cache) {
        if let Ok(mut idle) = self.idle.try_lock()
            && idle.len() < MAX_IDLE_CACHES
        {
            idle.push(cache);
        }
    }
}
