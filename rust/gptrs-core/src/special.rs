//! Special tokens: texts that stand for one id each, outside the merges, and never by accident.

use std::borrow::Cow;
use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::{Error, Result};
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
    by_text: HashMap<String, usize>,
    by_id: HashMap<u32, usize>,
    finder: Finder,
    is_apart: bool,
}

impl SpecialSet {
    /// Checks that texts and ids are distinct, not empty, and apart from the ordinary tokens. A special token may share
    /// its id with the ordinary token of the same bytes, as added tokens of Hugging Face files do.
    pub(crate) fn new(mut tokens: Vec<SpecialToken>, vocab: &Vocab) -> Result<Self> {
        tokens.sort_by_key(|token| token.id);
        let (mut by_text, mut by_id) = (HashMap::new(), HashMap::new());
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
        let finder = Finder::new(&tokens)?;
        let is_apart = tokens.iter().all(|token| vocab.token(token.id).is_none());
        Ok(Self { tokens, by_text, by_id, finder, is_apart })
    }

    /// Whether no special token shares its id with an ordinary one.
    pub(crate) fn is_apart(&self) -> bool {
        self.is_apart
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
    pub(crate) fn finder(&self, choice: Specials) -> Result<Cow<'_, Finder>> {
        let chosen = self.resolve(choice)?;
        self.finder_of(|i| chosen[i])
    }

    /// Fails when a choice names a text that is no special token.
    pub(crate) fn check(&self, choice: Specials) -> Result<()> {
        let Specials::Set(texts) = choice else { return Ok(()) };
        texts.iter().try_for_each(|text| self.position(text).map(drop))
    }

    /// Finds those of `choice` that are not in `except`.
    pub(crate) fn finder_except(&self, choice: Specials, except: Specials) -> Result<Cow<'_, Finder>> {
        let (chosen, excepted) = (self.resolve(choice)?, self.resolve(except)?);
        self.finder_of(|i| chosen[i] && !excepted[i])
    }

    /// True when some special token of any kind occurs; one fast pass that spares most texts the rest.
    pub(crate) fn occur_in(&self, text: &[u8]) -> bool {
        self.finder.find(text, 0).is_some()
    }

    fn finder_of(&self, is_chosen: impl Fn(usize) -> bool) -> Result<Cow<'_, Finder>> {
        let chosen: Vec<_> =
            self.tokens.iter().enumerate().filter(|&(i, _)| is_chosen(i)).map(|(_, t)| t.clone()).collect();
        if chosen.len() == self.tokens.len() {
            return Ok(Cow::Borrowed(&self.finder));
        }
        Finder::new(&chosen).map(Cow::Owned)
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
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

/// One occurrence of a special token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occurrence {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) id: u32,
}

impl Finder {
    fn new(tokens: &[SpecialToken]) -> Result<Self> {
        let ids = tokens.iter().map(|token| token.id).collect();
        let automaton = if tokens.is_empty() {
            None
        } else {
            let texts = tokens.iter().map(|token| &token.text);
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
            Some(built.map_err(|error| Error::Vocab(format!("the special tokens cannot be searched for: {error}")))?)
        };
        Ok(Self { automaton, ids })
    }

    /// The first occurrence at or after `from`.
    pub(crate) fn find(&self, text: &[u8], from: usize) -> Option<Occurrence> {
        let found = self.automaton.as_ref()?.find(aho_corasick::Input::new(text).range(from..))?;
        Some(Occurrence { start: found.start(), end: found.end(), id: self.ids[found.pattern().as_usize()] })
    }
}
