//! What training may merge and how its ids are numbered: ties, limits, special tokens, a vocabulary to go on from.

use std::borrow::Cow;
use std::collections::HashSet;

use super::resume::{Start, resume};
use super::{TrainOptions, train_with};
use crate::control::Control;
use crate::count::WordCounts;
use crate::error::{Error, Result};
use crate::formats::alphabet;
use crate::naive::Pair;
use crate::special::{Matching, SpecialToken};
use crate::split::Splitter;
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

/// Which of the pairs with the same count merges first, and how ids are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tie {
    /// The smallest left id, then the smallest right id; byte `b` is id `b`, then come merges, then special tokens.
    #[default]
    Id,
    /// The same rule over Hugging Face's ids: special tokens, then the bytes in the order of their characters in the
    /// byte-level alphabet, then merges.
    HuggingFace,
}

/// All options of training but the text.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Ids of the finished tokenizer, special tokens included; fewer when pairs run out.
    pub vocab_size: usize,
    /// Texts with an id of their own. They are ordinary text in the corpus, and no merge spells one of them.
    pub special_tokens: Vec<String>,
    /// A pair that occurs less often is not merged; 0 is as good as 1.
    pub min_count: u64,
    /// A pair whose product is longer is not merged.
    pub max_token_bytes: Option<usize>,
    /// The tie rule; [`Tie::Id`] with a base, whose ids stand.
    pub tie: Tie,
}

impl Recipe {
    /// Checks what can be checked before any text is read; returns the number of merges to make.
    ///
    /// `base` is the tokenizer to go on from: its ids stay, new merges and then new special tokens follow.
    pub fn check(&self, base: Option<&Tokenizer>) -> Result<usize> {
        if let Some(limit) = self.max_token_bytes.filter(|&limit| limit < 2) {
            return Err(Error::Argument(format!("max_token_bytes must be at least 2, got {limit}")));
        }
        if base.is_some() && self.tie != Tie::Id {
            let message = "a base brings its own ids, which decide ties";
            return Err(Error::Argument(format!("{message}, got tie=\"hf\"; hint: leave the tie out")));
        }
        let n_merges = self.n_merges(base)?;
        // Whatever is wrong with the special tokens shows without any merge.
        self.tokenizer(&[], base, Splitter::new("gpt2")?)?;
        Ok(n_merges)
    }

    fn n_merges(&self, base: Option<&Tokenizer>) -> Result<usize> {
        let (n_base, n_new) = (base.map_or(256, Tokenizer::vocab_size), self.new_specials(base).count());
        let n_smallest = n_base + n_new;
        let ids = if base.is_some() { "ids of the base" } else { "bytes" };
        self.vocab_size.checked_sub(n_smallest).ok_or_else(|| {
            let got = self.vocab_size;
            Error::Argument(format!(
                "vocab_size must be at least {n_smallest} ({n_base} {ids} and {n_new} special tokens), got {got}; hint: use \
                 vocab_size={n_smallest} for a vocabulary without {}merges",
                if base.is_some() { "new " } else { "" }
            ))
        })
    }

    /// The special tokens that the base does not have.
    fn new_specials<'r>(&'r self, base: Option<&'r Tokenizer>) -> impl Iterator<Item = &'r String> {
        let known = base.map(Tokenizer::specials).unwrap_or_default();
        self.special_tokens.iter().filter(|&text| known.iter().all(|special| special.text != *text))
    }

    /// Learns the merges of `counts`, which `splitter` cut, and returns the finished tokenizer.
    pub fn train(
        &self,
        counts: &WordCounts,
        splitter: &Splitter,
        base: Option<&Tokenizer>,
        threads: usize,
        control: &Control,
    ) -> Result<Tokenizer> {
        let n_merges = self.check(base)?;
        let merges = match base {
            None => self.first_merges(counts, n_merges, threads, control)?,
            Some(base) => {
                let start = Start { vocab: base.vocab(), n_ids: base.vocab_size() };
                let specials = base.specials().iter().map(|special| &special.text);
                let reserved =
                    self.special_tokens.iter().chain(specials).map(|text| text.as_bytes().to_vec()).collect();
                self.more_merges(counts, start, reserved, n_merges, threads, control)?
            }
        };
        self.tokenizer(&merges, base, splitter.clone())
    }

    /// The merges over bytes; byte `b` is id `b` in them, whatever the tie rule.
    pub(super) fn first_merges(
        &self,
        counts: &WordCounts,
        n_merges: usize,
        threads: usize,
        control: &Control,
    ) -> Result<Vec<Pair>> {
        let options = TrainOptions { n_merges, min_count: self.min_count };
        let mut rules =
            Rules::new(self.max_token_bytes, self.special_tokens.iter().map(|text| text.as_bytes().to_vec()));
        if self.tie == Tie::Id {
            return Ok(train_with(Cow::Borrowed(counts), &options, rules, threads, control)?.0);
        }
        // The loop orders ties by symbol: each byte becomes its place in the order, and comes back afterwards.
        let order = alphabet::order();
        let mut places = [0; 256];
        for (place, &byte) in (0..=255).zip(&order) {
            places[usize::from(byte)] = place;
        }
        rules.rename(&places);
        let counts = Cow::Owned(renamed(counts, &places, control)?);
        let (merges, _) = train_with(counts, &options, rules, threads, control)?;
        let byte_of = |id: u32| order.get(id as usize).map_or(id, |&byte| u32::from(byte));
        Ok(merges.into_iter().map(|(left, right)| (byte_of(left), byte_of(right))).collect())
    }

    /// The merges that follow those of `start`, in its ids; merge `i` makes `start.n_ids + i`.
    pub(super) fn more_merges(
        &self,
        counts: &WordCounts,
        start: Start,
        mut reserved: Vec<Vec<u8>>,
        n_merges: usize,
        threads: usize,
        control: &Control,
    ) -> Result<Vec<Pair>> {
        let options = TrainOptions { n_merges, min_count: self.min_count };
        // Tokens that the base's merges do not reach could be spelled a second time.
        reserved.extend(start.vocab.unreachable().iter().filter_map(|&id| start.vocab.token(id)).map(<[u8]>::to_vec));
        let rules = Rules::new(self.max_token_bytes, reserved.into_iter());
        resume(counts, start, &options, rules, threads, control)
    }

    /// The tokenizer of these merges.
    pub(super) fn tokenizer(&self, merges: &[Pair], base: Option<&Tokenizer>, splitter: Splitter) -> Result<Tokenizer> {
        // The base's special tokens are found as its file says, and its template names ids that stay.
        let of_base = base.into_iter().flat_map(|base| base.specials().iter().zip(base.matching()));
        let mut specials: Vec<_> = of_base.map(|(token, matching)| (token.clone(), *matching)).collect();
        let (vocab, first) = match (base, self.tie) {
            (None, Tie::Id) => (Vocab::from_merges(merges)?, 256 + merges.len()),
            (None, Tie::HuggingFace) => (hugging_face_vocab(merges, self.special_tokens.len())?, 0),
            (Some(base), _) => (extended_vocab(base, merges)?, base.vocab_size() + merges.len()),
        };
        let new = self.new_specials(base).zip(first as u32..);
        specials.extend(new.map(|(text, id)| (SpecialToken { text: text.clone(), id }, Matching::EXACT)));
        let template = base.and_then(Tokenizer::template).cloned();
        Ok(Tokenizer::with_matching(vocab, splitter, specials)?.with_template(template))
    }
}

/// Holes for `n_specials` special tokens, the bytes in the alphabet's order, then the products.
fn hugging_face_vocab(merges: &[Pair], n_specials: usize) -> Result<Vocab> {
    let order = alphabet::order();
    let mut tokens = vec![Vec::new(); n_specials];
    tokens.extend(order.iter().map(|&byte| vec![byte]));
    let mut ids = [0; 256];
    for (id, &byte) in (n_specials as u32..).zip(&order) {
        ids[usize::from(byte)] = id;
    }
    let id_of = |id: u32| ids.get(id as usize).copied().unwrap_or(id + n_specials as u32);
    let merges: Vec<Pair> = merges.iter().map(|&(left, right)| (id_of(left), id_of(right))).collect();
    push_products(&mut tokens, &merges);
    Vocab::from_tokens(&tokens, merges, false)
}

/// The base's tokens at their ids, holes where its special tokens are, then the products.
fn extended_vocab(base: &Tokenizer, merges: &[Pair]) -> Result<Vocab> {
    let vocab = base.vocab();
    let ids = 0..base.vocab_size() as u32;
    let mut tokens: Vec<Vec<u8>> = ids.map(|id| vocab.token(id).unwrap_or_default().to_vec()).collect();
    push_products(&mut tokens, merges);
    Vocab::from_tokens(&tokens, [vocab.merges(), merges].concat(), vocab.ignore_merges())
}

/// Appends what each merge spells; the merges come from training, so their sides stand before them.
fn push_products(tokens: &mut Vec<Vec<u8>>, merges: &[Pair]) {
    for &(left, right) in merges {
        tokens.push([&tokens[left as usize][..], &tokens[right as usize]].concat());
    }
}

/// The same words with every byte replaced.
fn renamed(counts: &WordCounts, names: &[u8; 256], control: &Control) -> Result<WordCounts> {
    let (mut all, mut word) = (WordCounts::new(), Vec::new());
    for (i, (bytes, n)) in counts.iter().enumerate() {
        if i.is_multiple_of(1 << 12) {
            control.check()?;
        }
        word.clear();
        word.extend(bytes.iter().map(|&byte| names[usize::from(byte)]));
        all.add(&word, n)?;
    }
    Ok(all)
}

/// Which pairs may merge; asked once for each pair that is about to.
#[derive(Debug, Default)]
pub(super) struct Rules<'v> {
    max_bytes: Option<usize>,
    /// What no merge may spell.
    reserved: HashSet<Vec<u8>>,
    /// Tokens that do not come from merges of this run; symbols below 256 are bytes without it.
    start: Option<Start<'v>>,
    /// The merges so far with the lengths of their products.
    made: Vec<(Pair, usize)>,
}

impl<'v> Rules<'v> {
    fn new(max_bytes: Option<usize>, reserved: impl Iterator<Item = Vec<u8>>) -> Self {
        Self { max_bytes, reserved: reserved.collect(), start: None, made: Vec::new() }
    }

    /// The same rules for merges that follow those of `start`.
    pub(super) fn after(self, start: Start<'v>) -> Self {
        Self { start: Some(start), ..self }
    }

    /// Spells what is reserved in symbols instead of bytes.
    fn rename(&mut self, symbols: &[u8; 256]) {
        let renamed = |text: Vec<u8>| text.into_iter().map(|byte| symbols[usize::from(byte)]).collect();
        self.reserved = std::mem::take(&mut self.reserved).into_iter().map(renamed).collect();
    }

    /// Whether the pair may merge now; it becomes the next id when it may.
    pub(super) fn admit(&mut self, pair: Pair) -> bool {
        if self.max_bytes.is_none() && self.reserved.is_empty() {
            return true;
        }
        let len = self.len(pair.0) + self.len(pair.1);
        let is_reserved =
            || self.reserved.iter().any(|text| text.len() == len) && self.reserved.contains(&self.spell(pair));
        if self.max_bytes.is_some_and(|max| len > max) || is_reserved() {
            return false;
        }
        self.made.push((pair, len));
        true
    }

    /// The merge that made `id`, with the length of its product; `None` for an id that was there before.
    fn merge(&self, id: u32) -> Option<(Pair, usize)> {
        let n_known = self.start.map_or(256, |start| start.n_ids);
        (id as usize).checked_sub(n_known).and_then(|merge| self.made.get(merge).copied())
    }

    fn len(&self, id: u32) -> usize {
        match (self.merge(id), &self.start) {
            (Some((_, len)), _) => len,
            (None, Some(start)) => start.vocab.token(id).unwrap_or_default().len(),
            (None, None) => 1,
        }
    }

    fn spell(&self, (left, right): Pair) -> Vec<u8> {
        let (mut token, mut rest) = (Vec::new(), vec![right, left]);
        while let Some(id) = rest.pop() {
            match (self.merge(id), &self.start) {
                (Some(((left, right), _)), _) => rest.extend([right, left]),
                (None, Some(start)) => token.extend_from_slice(start.vocab.token(id).unwrap_or_default()),
                (None, None) => token.push(id as u8),
            }
        }
        token
    }
}
