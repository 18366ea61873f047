//! What [`prepare`](super::prepare) needs of a tokenizer.

use crate::batch::EncodeOptions;
use crate::cache::Cache;
use crate::control::Control;
use crate::encode::{Id, Sink};
use crate::error::Result;
use crate::ids::{self, Ids};
use crate::tokenizer::Tokenizer;

/// A tokenizer, as workers see it.
pub trait Encode: Sync {
    /// A worker's scratch memory, for example its cache.
    type State;

    /// Makes the scratch memory of one worker, which will encode about `n_bytes`.
    fn state(&self, n_bytes: usize) -> Self::State;

    /// Takes it back when the work is done.
    fn give_back(&self, _state: Self::State) {}

    /// Called once, before workers encode `n_bytes` in all.
    fn warm_up(&self, _n_bytes: u64, _threads: usize, _control: &Control) -> Result<()> {
        Ok(())
    }

    /// Appends the ids of `text` to `out`; the texts of special tokens are ordinary text.
    fn encode_into(&self, state: &mut Self::State, text: &[u8], out: &mut Vec<u32>) -> Result<()>;

    /// As [`Encode::encode_into`], for a vocabulary of at most 65,536 ids.
    fn encode_narrow(&self, state: &mut Self::State, text: &[u8], out: &mut Vec<u16>) -> Result<()> {
        let mut ids = Vec::new();
        self.encode_into(state, text, &mut ids)?;
        ids.into_iter().try_for_each(|id| ids::narrow(id).map(|id| out.push(id)))
    }

    /// Appends the ids of each of the texts that stand one behind the other in `joined` and end at `ends`, `eot_id` behind
    /// them where there is one, and to `ids_ends` where these end in `out`.
    fn encode_texts(
        &self,
        state: &mut Self::State,
        (joined, ends): (&[u8], &[usize]),
        eot_id: Option<u32>,
        out: &mut Ids,
        ids_ends: &mut Vec<usize>,
    ) -> Result<()> {
        let mut start = 0;
        for &end in ends {
            let text = &joined[std::mem::replace(&mut start, end)..end];
            match out {
                Ids::U16(ids) => self.encode_narrow(state, text, ids)?,
                Ids::U32(ids) => self.encode_into(state, text, ids)?,
            }
            eot_id.map_or(Ok(()), |id| out.push(id))?;
            ids_ends.push(out.len());
        }
        Ok(())
    }

    /// The ids of a text that cannot be cut, made by several threads; `None` where there is no such way.
    fn encode_long(&self, _text: &[u8], _threads: usize) -> Result<Option<Ids>> {
        Ok(None)
    }

    /// The smallest place from `at` on where `text` may be cut: both sides give the ids of the whole.
    fn safe_cut(&self, text: &[u8], at: usize) -> usize;

    /// Ids are below this.
    fn vocab_size(&self) -> usize;

    /// The id that ends a document, if there is one.
    fn eot_id(&self) -> Option<u32>;

    /// Identity of the tokenizer.
    fn digest(&self) -> [u8; 32];

    /// The texts of its special tokens, to be counted.
    fn special_texts(&self) -> Vec<String>;

    /// The bytes that each id spells; `None` when the ids of a text may not spell it.
    fn token_lens(&self) -> Option<Vec<u32>> {
        None
    }
}

/// Where the ids of several texts go, each with one behind it, and where they end.
struct Ended<'a, I> {
    ids: &'a mut Vec<I>,
    eot_id: Option<I>,
    ids_ends: &'a mut Vec<usize>,
}

impl<I: Id> Sink for Ended<'_, I> {
    type Id = I;

    #[inline]
    fn push_narrow(&mut self, ids: &[I]) {
        self.ids.push_narrow(ids);
    }

    #[inline]
    fn push(&mut self, ids: &[u32]) {
        Sink::push(self.ids, ids);
    }

    fn end_text(&mut self) {
        self.ids.extend(self.eot_id);
        self.ids_ends.push(self.ids.len());
    }
}

impl Encode for Tokenizer {
    type State = Cache;

    fn state(&self, n_bytes: usize) -> Self::State {
        self.cache_for(n_bytes)
    }

    fn give_back(&self, cache: Self::State) {
        self.give_back(cache);
    }

    fn warm_up(&self, n_bytes: u64, threads: usize, control: &Control) -> Result<()> {
        self.warm_up(usize::try_from(n_bytes).unwrap_or(usize::MAX), threads, control)
    }

    fn encode_into(&self, cache: &mut Self::State, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        self.encode_into(cache, text, out)
    }

    fn encode_narrow(&self, cache: &mut Self::State, text: &[u8], out: &mut Vec<u16>) -> Result<()> {
        self.encode_stretch(cache, text, &Control::new(), out)
    }

    fn encode_texts(
        &self,
        cache: &mut Self::State,
        (joined, ends): (&[u8], &[usize]),
        eot_id: Option<u32>,
        out: &mut Ids,
        ids_ends: &mut Vec<usize>,
    ) -> Result<()> {
        match out {
            Ids::U16(ids) => {
                let eot_id = eot_id.map(ids::narrow).transpose()?;
                self.encode_stretches(cache, joined, ends, &Control::new(), &mut Ended { ids, eot_id, ids_ends })
            }
            Ids::U32(ids) => {
                self.encode_stretches(cache, joined, ends, &Control::new(), &mut Ended { ids, eot_id, ids_ends })
            }
        }
    }

    fn encode_long(&self, text: &[u8], threads: usize) -> Result<Option<Ids>> {
        let options = EncodeOptions { threads, ..EncodeOptions::default() };
        self.encode_with(text, &options, &Control::new()).map(Some)
    }

    fn safe_cut(&self, text: &[u8], at: usize) -> usize {
        self.splitter().safe_cut(text, at)
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size()
    }

    fn eot_id(&self) -> Option<u32> {
        self.eot_id()
    }

    fn digest(&self) -> [u8; 32] {
        self.digest()
    }

    fn special_texts(&self) -> Vec<String> {
        self.specials().iter().map(|special| special.text.clone()).collect()
    }

    fn token_lens(&self) -> Option<Vec<u32>> {
        if self.splitter().normalizer().is_some() {
            return None;
        }
        let len = |id| self.vocab().token(id).map_or(0, |token| token.len() as u32);
        Some((0..self.vocab_size() as u32).map(len).collect())
    }
}
