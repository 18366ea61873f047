//! Tokens and merges of a file, out of the byte-level alphabet into arenas, and from there to ids.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::{Checked, alphabet};
use crate::control::Control;
use crate::naive::Pair;
use crate::parallel;
use crate::tokens::Tokens;
use crate::vocab::Resolved;

/// Merges that one task turns into ids.
const TASK: usize = 1 << 13;

/// Merges whose tokens are looked up together.
const TOGETHER: usize = 16;

/// No entry.
const NONE: u32 = u32::MAX;

/// The tokens of a file in its order.
#[derive(Debug, Default)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    regular: Vec<Entry>,
    /// Tokens outside the byte-level alphabet.
    odd: Vec<(String, u32)>,
}

/// A token: `bytes[start..end]` of the arena.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u32,
    end: u32,
    id: u32,
}

impl Entries {
    /// Adds a token by its spelling.
    pub(super) fn push(&mut self, text: &str) {
        if !self.push_by(|bytes| alphabet::extend(bytes, text).ok()) {
            self.odd.push((text.to_owned(), NONE));
        }
    }

    /// Adds a token that `append` spells; it gives `None`, and nothing is added, when the token is not in the alphabet.
    #[inline]
    pub(super) fn push_by(&mut self, append: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> bool {
        let start = self.bytes.len();
        if append(&mut self.bytes).is_none() {
            self.bytes.truncate(start);
            return false;
        }
        self.regular.push(Entry { start: start as u32, end: self.bytes.len() as u32, id: NONE });
        true
    }

    /// Gives an id to the token that was added last; those before have theirs.
    pub(super) fn set_last_id(&mut self, id: u32) -> Option<()> {
        let odd = self.odd.last_mut().filter(|odd| odd.1 == NONE).map(|odd| &mut odd.1);
        *odd.or(self.regular.last_mut().map(|entry| &mut entry.id))? = id;
        Some(())
    }

    /// Adds a token of a file that holds bytes.
    pub(super) fn push_bytes(&mut self, id: u32, append: impl FnOnce(&mut Vec<u8>) -> Checked<()>) -> Checked<()> {
        let start = self.bytes.len() as u32;
        append(&mut self.bytes)?;
        self.regular.push(Entry { start, end: self.bytes.len() as u32, id });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.regular.len() + self.odd.len()
    }

    /// Every id.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.regular.iter().map(|entry| entry.id).chain(self.odd.iter().map(|(_, id)| *id))
    }

    fn bytes(&self, entry: Entry) -> &[u8] {
        &self.bytes[entry.start as usize..entry.end as usize]
    }

    /// Every token that is no special token for sure, as it is spelled, with its id.
    pub(super) fn spelled(&self) -> impl Iterator<Item = (String, u32)> {
        let odd = self.odd.iter().cloned();
        self.regular.iter().map(|&entry| (alphabet::spell(self.bytes(entry)), entry.id)).chain(odd)
    }

    /// Tokens outside the byte-level alphabet.
    pub(super) fn odd(&self) -> &[(String, u32)] {
        &self.odd
    }

    /// The index of the entry of every id; `NONE` for a hole.
    ///
    /// A lying id cannot make it allocate more than a few times what the file holds.
    fn by_id(&self) -> Checked<Vec<u32>> {
        let bound = (2 * self.len() + 1024) as u32;
        let highest = self.ids().max().map_or(0, |id| id.min(bound - 1) as usize + 1);
        let mut order = vec![NONE; highest];
        for (i, entry) in self.regular.iter().enumerate() {
            let show = |entry: Entry| format!("\"{}\"", self.bytes(entry).escape_ascii());
            let Some(at) = order.get_mut(entry.id as usize).filter(|_| entry.id < bound) else {
                return Err(format!("token {} has id {}, expected less than {bound}", show(*entry), entry.id));
            };
            if *at != NONE {
                let other = self.regular[*at as usize];
                return Err(format!("tokens {} and {} both have id {}", show(other), show(*entry), entry.id));
            }
            *at = i as u32;
        }
        for (text, id) in &self.odd {
            match order.get(*id as usize) {
                None => return Err(format!("token {text:?} has id {id}, expected less than {bound}")),
                Some(&NONE) => {}
                Some(&other) => {
                    let other = self.bytes(self.regular[other as usize]).escape_ascii();
                    return Err(format!("tokens \"{other}\" and {text:?} both have id {id}"));
                }
            }
        }
        Ok(order)
    }

    /// The tokens by id, without those that `is_hole` says; also their bytes.
    fn tokens(&self, order: &[u32], is_hole: impl Fn(u32) -> bool) -> Checked<(Tokens, HashMap<&[u8], u32>)> {
        let is_token = |&(id, &at): &(u32, &u32)| at != NONE && !is_hole(id);
        let last = (0..).zip(order).filter(is_token).last().map_or(0, |(id, _)| id as usize + 1);
        let mut tokens = Tokens::with_capacity(last);
        let mut left_out = HashMap::new();
        let bytes_at = |at: u32| if at == NONE { &[] } else { self.bytes(self.regular[at as usize]) };
        for (id, &at) in (0..).zip(order).filter(|(id, _)| is_hole(*id)) {
            let bytes = bytes_at(at);
            if !bytes.is_empty()
                && let Some(other) = left_out.insert(bytes, id)
            {
                return Err(format!("token \"{}\" has ids {other} and {id}", bytes.escape_ascii()));
            }
        }
        let with_ids = (0..).zip(&order[..last]);
        tokens.extend(with_ids.map(|(id, &at)| if is_hole(id) { &[] } else { bytes_at(at) })).map_err(super::reason)?;
        Ok((tokens, left_out))
    }

    /// The tokens of a file without special tokens.
    pub(super) fn into_tokens(self) -> Checked<Tokens> {
        let order = self.by_id()?;
        Ok(self.tokens(&order, |_| false)?.0)
    }
}

/// The merges of a file in order of rank.
#[derive(Debug, Default)]
pub(super) struct Merges {
    bytes: Vec<u8>,
    /// Ends of the left and of the right token; a merge starts where the one before ends.
    ends: Vec<(u32, u32)>,
}

impl Merges {
    /// Adds the merge that `line` spells: two tokens with one space between.
    pub(super) fn push_line(&mut self, line: &str) -> Checked<()> {
        let pair = line.split_once(' ');
        match pair.filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' ')) {
            Some((left, right)) => {
                let middle = self.push_side(left)?;
                let end = self.push_side(right)?;
                self.ends.push((middle, end));
                Ok(())
            }
            None => Err(format!("expected two tokens with a space between, got {line:?}")),
        }
    }

    /// Adds the merge whose sides `append` spells, and gives where the second one begins; `None` adds nothing.
    #[inline]
    pub(super) fn push_by(&mut self, append: impl FnOnce(&mut Vec<u8>) -> Option<usize>) -> bool {
        let start = self.bytes.len();
        let middle = append(&mut self.bytes);
        match middle {
            Some(middle) => self.ends.push((middle as u32, self.bytes.len() as u32)),
            None => self.bytes.truncate(start),
        }
        middle.is_some()
    }

    fn push_side(&mut self, text: &str) -> Checked<u32> {
        alphabet::extend(&mut self.bytes, text).map_err(|c| {
            let rank = self.ends.len();
            format!("merge {rank} needs token {text:?}, whose {c:?} is not in the byte-level alphabet")
        })?;
        Ok(self.bytes.len() as u32)
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    /// Both tokens of a merge and where the first one ends.
    fn get(&self, rank: usize) -> (&[u8], usize) {
        let start = rank.checked_sub(1).map_or(0, |before| self.ends[before].1 as usize);
        let (middle, end) = self.ends[rank];
        (&self.bytes[start..end as usize], middle as usize - start)
    }
}

/// Turns tokens and merges into ids. A token that `may_be_special` is one unless it is a byte, or merges make or use it.
pub(super) fn resolve(
    entries: &Entries,
    merges: &Merges,
    may_be_special: impl Fn(u32, &[u8]) -> bool,
) -> Checked<Resolved> {
    let order = entries.by_id()?;
    let with_ids = entries.regular.iter().map(|&entry| (entry.id, entries.bytes(entry)));
    let candidates = with_ids.filter(|&(id, bytes)| bytes.len() > 1 && may_be_special(id, bytes));
    let mut special: BTreeSet<u32> = candidates.map(|(id, _)| id).collect();
    loop {
        let (tokens, left_out) = entries.tokens(&order, |id| special.contains(&id))?;
        let found = resolve_merges(&tokens, &left_out, merges)?;
        if found.iter().all(|part| part.used.is_empty()) {
            let products = found.iter().flat_map(|part| part.products.iter().copied()).collect();
            let merges = found.iter().flat_map(|part| part.pairs.iter().copied()).collect();
            special.extend(entries.odd.iter().map(|(_, id)| *id));
            return Ok(Resolved { tokens, merges, products, special });
        }
        for id in found.iter().flat_map(|part| &part.used) {
            special.remove(id);
        }
    }
}

/// The ids of a run of merges.
#[derive(Default)]
struct Part {
    start: usize,
    pairs: Vec<Pair>,
    products: Vec<u32>,
    /// Left-out tokens that they make or use.
    used: Vec<u32>,
}

impl Part {
    /// Adds the merge of `rank`, whose sides are `ids` where they are ordinary tokens.
    fn push(
        &mut self,
        tokens: &Tokens,
        left_out: &HashMap<&[u8], u32>,
        rank: usize,
        both: &[u8],
        middle: usize,
        ids: (Option<u32>, Option<u32>),
    ) -> crate::Result<()> {
        let (left, right) = both.split_at(middle);
        let mut id = |bytes: &[u8], known: Option<u32>| {
            let other = || left_out.get(bytes).copied().inspect(|&id| self.used.push(id));
            known.or_else(other).ok_or_else(|| {
                let [left, right, missing] = [left, right, bytes].map(alphabet::spell);
                let reason = format!("merge {rank} ({left:?}, {right:?}) needs token {missing:?}, which is missing");
                crate::Error::Vocab(reason)
            })
        };
        let pair = (id(left, ids.0)?, id(right, ids.1)?);
        // Merges mostly make the tokens in their order: looking at the next one spares a search.
        let next = self.products.last().map_or(0, |last| last + 1);
        let product = if tokens.get(next) == Some(both) { next } else { id(both, tokens.id(both))? };
        self.pairs.push(pair);
        self.products.push(product);
        Ok(())
    }
}

fn resolve_merges(tokens: &Tokens, left_out: &HashMap<&[u8], u32>, merges: &Merges) -> Checked<Vec<Part>> {
    let n_tasks = merges.len().div_ceil(TASK);
    let states = parallel::run(0, n_tasks, &Control::new(), Vec::new, |parts: &mut Vec<Part>, task| {
        let mut part = Part { start: task * TASK, ..Part::default() };
        let ranks = part.start..merges.len().min(part.start + TASK);
        for start in ranks.clone().step_by(TOGETHER) {
            // The last few merges of a run stand for those that are missing.
            let rank_of = |i: usize| (start + i).min(ranks.end - 1);
            let both: [_; TOGETHER] = std::array::from_fn(|i| merges.get(rank_of(i)));
            let lefts = tokens.ids(both.map(|(both, middle)| &both[..middle]));
            let rights = tokens.ids(both.map(|(both, middle)| &both[middle..]));
            for (i, (both, middle)) in both.into_iter().enumerate().take(ranks.end - start) {
                part.push(tokens, left_out, start + i, both, middle, (lefts[i], rights[i]))?;
            }
        }
        parts.push(part);
        Ok(())
    });
    let mut parts: Vec<Part> = states.map_err(super::reason)?.into_iter().flatten().collect();
    parts.sort_unstable_by_key(|part| part.start);
    Ok(parts)
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                loop {
                    let push = |text: &str| {
                        entries.push(text);
                        Ok(())
                    };
                    if map.next_key_seed(Spelling(push))?.is_none() {
                        return Ok(entries);
                    }
                    entries.set_last_id(map.next_value()?).ok_or_else(|| A::Error::custom("no token"))?;
                }
            }
        }
        deserializer.deserialize_map(All)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Merges;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merges, A::Error> {
                let mut merges = Merges::default();
                while seq.next_element_seed(One(&mut merges))?.is_some() {}
                Ok(merges)
            }
        }
        deserializer.deserialize_seq(All)
    }
}

/// A merge as a pair, or as one string of older files.
struct One<'a>(&'a mut Merges);

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a merge: two tokens, in a list or with a space between")
    }
    fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<(), E> {
        self.0.push_line(line).map_err(E::custom)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let wrong = |n| A::Error::invalid_length(n, &"two tokens");
        let mut ends = [0; 2];
        for (n, end) in ends.iter_mut().enumerate() {
            let merges = &mut *self.0;
            let side = Spelling(|text: &str| merges.push_side(text).map(|at| *end = at));
            seq.next_element_seed(side)?.ok_or_else(|| wrong(n))?;
        }
        self.0.ends.push(ends.into());
        seq.next_element::<IgnoredAny>()?.map_or(Ok(()), |_| Err(wrong(3)))
    }
}

/// A string that goes through `F` without a copy of its own.
struct Spelling<F>(F);

impl<'de, F: FnOnce(&str) -> Checked<()>> DeserializeSeed<'de> for Spelling<F> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<F: FnOnce(&str) -> Checked<()>> Visitor<'_> for Spelling<F> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a token")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// Tokens with their ids as a JSON map in the order given.
pub(super) struct Map(pub(super) Vec<(String, u32)>);

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, id)| (text, id)))
    }
}
