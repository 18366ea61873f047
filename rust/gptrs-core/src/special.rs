//! Special tokens: texts that stand for one id each, outside the merges, and never by accident.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result};
use crate::normalizer::Normalizer;
use crate::recent::Recent;
use crate::vocab::Vocab;

/// Ids beyond the ordinary tokens that a special token may leave unused, so that a file cannot claim absurd ids.
const MAX_GAP: usize = 1 << 16;

/// Special tokens that end a document, the first present one is taken.
const END_OF_TEXT: [&str; 5] = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>"];

/// A text that encodes to `id` where special tokens are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// What stands in the text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// How a special token of a Hugging Face file is found, and what it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the format")]
pub struct Matching {
    /// Not inside a word: no word character stands beside it.
    pub single_word: bool,
    /// White space on its left belongs to it.
    pub lstrip: bool,
    /// White space on its right belongs to it.
    pub rstrip: bool,
    /// Looked for after the others, in the normalized text.
    pub normalized: bool,
    /// Control, which `skip_special_tokens` leaves out; false for words that were added to the vocabulary.
    pub special: bool,
}

impl Matching {
    /// Exactly its text, wherever it stands.
    pub const EXACT: Self = Self { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };

    /// What a tokenizer's digest says of it; nothing when it is found exactly, wherever it stands.
    pub(crate) fn digest_field(self, normalizer: Option<Normalizer>) -> Option<&'static [u8]> {
        const FLAGS: &[u8; 16] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let flags = [self.single_word, self.lstrip, self.rstrip, self.normalized && normalizer.is_some()];
        let at = flags.iter().enumerate().map(|(bit, &is_set)| usize::from(is_set) << bit).sum();
        (at > 0).then(|| &FLAGS[at..=at])
    }

    /// Whether the place of an occurrence depends on what stands beside it.
    fn looks_around(self) -> bool {
        self.single_word || self.lstrip || self.rstrip
    }
}

/// A choice among the special tokens of a tokenizer.
#[derive(Debug, Clone, Copy)]
pub enum Specials<'a> {
    /// None of them.
    None,
    /// Every one.
    All,
    /// These texts; each must be a special token.
    Set(&'a [String]),
}

/// The special tokens of one tokenizer, ascending by id.
#[derive(Debug)]
pub(crate) struct SpecialSet {
    tokens: Vec<SpecialToken>,
    /// How each of `tokens` is found.
    matching: Vec<Matching>,
    normalizer: Option<Normalizer>,
    by_text: HashMap<String, usize>,
    by_id: HashMap<u32, usize>,
    finder: Finder,
    /// Finds none.
    nothing: Finder,
    /// What finds some of them: making one takes as long as encoding a page.
    recent: Recent<Finder>,
    is_apart: bool,
}

/// A finder that is kept, or one that was made for a choice.
#[derive(Debug)]
pub(crate) enum Chosen<'a> {
    Kept(&'a Finder),
    Made(Arc<Finder>),
}

impl Deref for Chosen<'_> {
    type Target = Finder;

    fn deref(&self) -> &Finder {
        match self {
            Self::Kept(finder) => finder,
            Self::Made(finder) => finder,
        }
    }
}

impl SpecialSet {
    /// Checks that texts and ids are distinct, not empty, and apart from the ordinary tokens. A special token may share
    /// its id with the ordinary token of the same bytes, as added tokens of Hugging Face files do.
    pub(crate) fn new(
        mut tokens: Vec<(SpecialToken, Matching)>,
        normalizer: Option<Normalizer>,
        vocab: &Vocab,
    ) -> Result<Self> {
        tokens.sort_by_key(|(token, _)| token.id);
        let (tokens, matching): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let (mut by_text, mut by_id) = (HashMap::new(), HashMap::new());
        check_strips(&tokens, &matching)?;
        for (i, SpecialToken { text, id }) in tokens.iter().enumerate() {
            if text.is_empty() {
                return Err(Error::Vocab(format!("special token {id} is empty, expected at least one character")));
            }
            if let Some(other) = by_id.insert(*id, i) {
                let other: &SpecialToken = &tokens[other];
                return Err(Error::Vocab(format!("special tokens {:?} and {text:?} both have id {id}", other.text)));
            }
            if let Some(other) = by_text.insert(text.clone(), i) {
                return Err(Error::Vocab(format!("special token {text:?} has ids {} and {id}", tokens[other].id)));
            }
            check_apart(text, *id, vocab)?;
        }
        let all: Vec<_> = tokens.iter().zip(matching.iter().copied()).collect();
        let (finder, nothing) = (Finder::new(&all, normalizer)?, Finder::new(&[], normalizer)?);
        let is_apart = tokens.iter().all(|token| vocab.token(token.id).is_none());
        let recent = Recent::default();
        Ok(Self { tokens, matching, normalizer, by_text, by_id, finder, nothing, recent, is_apart })
    }

    /// Whether no special token shares its id with an ordinary one.
    pub(crate) fn is_apart(&self) -> bool {
        self.is_apart
    }

    /// How each of the tokens is found.
    pub(crate) fn matching(&self) -> &[Matching] {
        &self.matching
    }

    pub(crate) fn tokens(&self) -> &[SpecialToken] {
        &self.tokens
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|&i| self.tokens[i].text.as_str())
    }

    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(bytes).ok()?;
        self.by_text.get(text).map(|&i| self.tokens[i].id)
    }

    pub(crate) fn end_of_text(&self) -> Option<u32> {
        END_OF_TEXT.iter().find_map(|text| self.id(text.as_bytes()))
    }

    /// Finds the chosen special tokens.
    pub(crate) fn finder(&self, choice: Specials) -> Result<Chosen<'_>> {
        match choice {
            Specials::None => Ok(Chosen::Kept(&self.nothing)),
            Specials::All => Ok(Chosen::Kept(&self.finder)),
            Specials::Set(_) => self.finder_of(self.resolve(choice)?),
        }
    }

    /// Fails when a choice names a text that is no special token.
    pub(crate) fn check(&self, choice: Specials) -> Result<()> {
        let Specials::Set(texts) = choice else { return Ok(()) };
        texts.iter().try_for_each(|text| self.position(text).map(drop))
    }

    /// Finds those of `choice` that are not in `except`.
    pub(crate) fn finder_except(&self, choice: Specials, except: Specials) -> Result<Chosen<'_>> {
        let (chosen, excepted) = (self.resolve(choice)?, self.resolve(except)?);
        self.finder_of(
            chosen.into_iter().zip(excepted).map(|(is_chosen, is_excepted)| is_chosen && !is_excepted).collect(),
        )
    }

    /// True when some special token of any kind occurs; one fast pass that spares most texts the rest.
    pub(crate) fn occur_in(&self, text: &[u8]) -> bool {
        self.finder.first(text).is_some()
    }

    fn finder_of(&self, chosen: Vec<bool>) -> Result<Chosen<'_>> {
        if chosen.iter().all(|&is_chosen| is_chosen) {
            return Ok(Chosen::Kept(&self.finder));
        }
        let make = |chosen: &[bool]| {
            let tokens = self.tokens.iter().zip(self.matching.iter().copied()).zip(chosen);
            let tokens: Vec<_> = tokens.filter_map(|(token, &is_chosen)| is_chosen.then_some(token)).collect();
            Finder::new(&tokens, self.normalizer)
        };
        self.recent.get_or_make(chosen, make).map(Chosen::Made)
    }

    fn resolve(&self, choice: Specials) -> Result<Vec<bool>> {
        let mut chosen = vec![matches!(choice, Specials::All); self.tokens.len()];
        if let Specials::Set(texts) = choice {
            for text in texts {
                chosen[self.position(text)?] = true;
            }
        }
        Ok(chosen)
    }

    fn position(&self, text: &str) -> Result<usize> {
        self.by_text.get(text).copied().ok_or_else(|| {
            let known: Vec<_> = self.tokens.iter().take(8).map(|token| &token.text).collect();
            Error::Argument(format!("{text:?} is not a special token; hint: this tokenizer has {known:?}"))
        })
    }
}

/// White space that one token takes from its right cannot start another: Hugging Face gives both, one over the other.
fn check_strips(tokens: &[SpecialToken], matching: &[Matching]) -> Result<()> {
    let strips = tokens.iter().zip(matching).find(|(_, matching)| matching.rstrip);
    let starts = tokens.iter().find(|token| token.text.starts_with(char::is_whitespace));
    match (strips, starts) {
        (Some((SpecialToken { text, .. }, _)), Some(other)) => Err(Error::Vocab(format!(
            "special token {text:?} has rstrip and {:?} starts with white space, which is not supported",
            other.text
        ))),
        _ => Ok(()),
    }
}

fn check_apart(text: &str, id: u32, vocab: &Vocab) -> Result<()> {
    if id as usize >= vocab.len() + MAX_GAP {
        let n = vocab.len();
        return Err(Error::Vocab(format!(
            "special token {text:?} has id {id}, expected less than {} for {n} ordinary ids",
            n + MAX_GAP
        )));
    }
    match (vocab.token(id), vocab.id(text.as_bytes())) {
        (Some(token), _) if token != text.as_bytes() => {
            let token = token.escape_ascii();
            Err(Error::Vocab(format!("special token {text:?} has id {id}, which is the ordinary token \"{token}\"")))
        }
        (_, Some(other)) if other != id => {
            Err(Error::Vocab(format!("special token {text:?} with id {id} is also the ordinary token {other}")))
        }
        _ => Ok(()),
    }
}

/// Leftmost occurrences of some special tokens, the longest of those at the same place.
///
/// Hugging Face looks twice: for tokens as they are, then between them in the normalized text for those that are
/// `normalized`. One search does where that makes no difference; else `second` has the tokens of the second look.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    search: Search,
    second: Option<Box<Second>>,
}

#[derive(Debug, Clone)]
struct Second {
    search: Search,
    normalizer: Option<Normalizer>,
}

/// One occurrence of a special token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occurrence {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) id: u32,
}

impl Finder {
    fn new(tokens: &[(&SpecialToken, Matching)], normalizer: Option<Normalizer>) -> Result<Self> {
        let texts = |is_second: bool| {
            let those = tokens.iter().filter(move |(_, matching)| matching.normalized == is_second);
            those.map(|(token, matching)| (token.text.clone(), token.id, *matching)).collect::<Vec<_>>()
        };
        let (mut first, mut second) = (texts(false), texts(true));
        let looks_around = tokens.iter().any(|(_, matching)| matching.looks_around());
        if normalizer.is_none() && (first.is_empty() || !(looks_around || any_overlap(&first, &second))) {
            first.append(&mut second);
        }
        if second.is_empty() {
            return Ok(Self { search: Search::new(&first)?, second: None });
        }
        for (text, ..) in &mut second {
            if let Some(Cow::Owned(normal)) = normalizer.map(|form| form.apply(text.as_bytes())) {
                *text = String::from_utf8_lossy(&normal).into_owned();
            }
        }
        let second = Second { search: Search::new(&second)?, normalizer };
        Ok(Self { search: Search::new(&first)?, second: Some(Box::new(second)) })
    }

    /// Calls `on_token` with every occurrence and its bytes and `on_text` with the text between them, in order; both get
    /// `state`. Text that had to be normalized for the second look arrives so, and occurrences there lie in it.
    pub(crate) fn for_each<S: ?Sized>(
        &self,
        text: &[u8],
        state: &mut S,
        mut on_text: impl FnMut(&mut S, &[u8]) -> Result<()>,
        mut on_token: impl FnMut(&mut S, Occurrence, &[u8]),
    ) -> Result<()> {
        let mut at = 0;
        while let Some(found) = self.search.find(text, at) {
            self.between(&text[at..found.start], state, &mut on_text, &mut on_token)?;
            on_token(state, found, &text[found.start..found.end]);
            at = found.end;
        }
        self.between(&text[at..], state, &mut on_text, &mut on_token)
    }

    fn between<S: ?Sized>(
        &self,
        text: &[u8],
        state: &mut S,
        on_text: &mut impl FnMut(&mut S, &[u8]) -> Result<()>,
        on_token: &mut impl FnMut(&mut S, Occurrence, &[u8]),
    ) -> Result<()> {
        let Some(second) = &self.second else { return on_text(state, text) };
        let normal = second.normal(text);
        let mut at = 0;
        while let Some(found) = second.search.find(&normal, at) {
            on_text(state, &normal[at..found.start])?;
            on_token(state, found, &normal[found.start..found.end]);
            at = found.end;
        }
        on_text(state, &normal[at..])
    }

    /// Whether one look decides, and an occurrence does not depend on what stands around it.
    pub(crate) fn is_plain(&self) -> bool {
        self.second.is_none() && !self.search.looks_around
    }

    /// The first occurrence from `from` on, where [`Finder::is_plain`] holds.
    pub(crate) fn find(&self, text: &[u8], from: usize) -> Option<Occurrence> {
        self.search.find(text, from)
    }

    /// The first occurrence of all; its place is about right where the second look found it.
    pub(crate) fn first(&self, text: &[u8]) -> Option<Occurrence> {
        let found = self.search.find(text, 0);
        let Some(second) = &self.second else { return found };
        let mut at = 0;
        loop {
            let next = self.search.find(text, at);
            let end = next.map_or(text.len(), |found| found.start);
            if let Some(found) = second.search.find(&second.normal(&text[at..end]), 0) {
                return Some(Occurrence { start: (at + found.start).min(end), end, id: found.id });
            }
            if next.is_some() {
                return found;
            }
            at = next?.end;
        }
    }
}

impl Second {
    fn normal<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        self.normalizer.map_or(Cow::Borrowed(text), |form| form.apply(text))
    }
}

type Entry = (String, u32, Matching);

/// Whether some text has one of each at places that share a character.
fn any_overlap(first: &[Entry], second: &[Entry]) -> bool {
    first.iter().any(|(a, ..)| second.iter().any(|(b, ..)| overlap(a, b)))
}

fn overlap(a: &str, b: &str) -> bool {
    let ends_in_start = |a: &str, b: &str| b.char_indices().skip(1).any(|(n, _)| a.ends_with(&b[..n]));
    a.contains(b) || b.contains(a) || ends_in_start(a, b) || ends_in_start(b, a)
}

/// One look through a text.
#[derive(Clone)]
struct Search {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
    matching: Vec<Matching>,
    looks_around: bool,
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Search({} tokens)", self.ids.len())
    }
}

impl Search {
    fn new(entries: &[Entry]) -> Result<Self> {
        let ids = entries.iter().map(|(_, id, _)| *id).collect();
        let matching: Vec<_> = entries.iter().map(|(_, _, matching)| *matching).collect();
        let looks_around = matching.iter().any(|matching| matching.looks_around());
        let automaton = if entries.is_empty() {
            None
        } else {
            let texts = entries.iter().map(|(text, ..)| text);
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
            Some(built.map_err(|error| Error::Vocab(format!("the special tokens cannot be searched for: {error}")))?)
        };
        Ok(Self { automaton, ids, matching, looks_around })
    }

    fn find(&self, text: &[u8], from: usize) -> Option<Occurrence> {
        let automaton = self.automaton.as_ref()?;
        let mut at = from;
        loop {
            let found = automaton.find(aho_corasick::Input::new(text).range(at..))?;
            let pattern = found.pattern().as_usize();
            let occurrence = Occurrence { start: found.start(), end: found.end(), id: self.ids[pattern] };
            if !self.looks_around {
                return Some(occurrence);
            }
            if let Some(occurrence) = self.matching[pattern].fit(occurrence, text, from) {
                return Some(occurrence);
            }
            at = found.end();
        }
    }
}

impl Matching {
    /// The occurrence with the white space that belongs to it; `None` inside a word.
    fn fit(self, found: Occurrence, text: &[u8], from: usize) -> Option<Occurrence> {
        let Occurrence { mut start, mut end, id } = found;
        if self.single_word
            && (last_char(&text[..start]).is_some_and(is_word) || first_char(&text[end..]).is_some_and(is_word))
        {
            return None;
        }
        while let Some(space) = last_char(&text[from..start]).filter(|c| self.lstrip && c.is_whitespace()) {
            start -= space.len_utf8();
        }
        while let Some(space) = first_char(&text[end..]).filter(|c| self.rstrip && c.is_whitespace()) {
            end += space.len_utf8();
        }
        Some(Occurrence { start, end, id })
    }
}

/// `\w` of Rust's regex engine, which Hugging Face asks.
fn is_word(c: char) -> bool {
    regex_syntax::try_is_word_character(c).unwrap_or_else(|_| c.is_alphanumeric())
}

fn first_char(text: &[u8]) -> Option<char> {
    let start = &text[..text.len().min(4)];
    start.utf8_chunks().next()?.valid().chars().next()
}

/// The character that `text` ends with, if its last bytes make one.
pub(crate) fn last_char(text: &[u8]) -> Option<char> {
    let start = (1..=text.len().min(4)).map(|n| text.len() - n).find(|&at| text[at] & 0xC0 != 0x80)?;
    std::str::from_utf8(&text[start..]).ok()?.chars().next()
}
