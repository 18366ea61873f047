//! Where each token stands in its text, in bytes or in characters.

use std::sync::{Mutex, PoisonError};

use crate::batch::{EncodeOptions, Encoded};
use crate::control::Control;
use crate::error::Result;
use crate::ids::Ids;
use crate::parallel;
use crate::tokenizer::Tokenizer;

/// Where a token begins and ends in its text.
pub type Span = (usize, usize);

/// What offsets count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Bytes of the UTF-8.
    #[default]
    Bytes,
    /// Characters (Unicode scalar values, the index of a Python `str`).
    ///
    /// A token that begins or ends inside a character has the start and the end of the characters that it touches, as
    /// in Hugging Face: the tokens of one emoji all have the emoji's place. An invalid sequence counts as one
    /// character, the U+FFFD that stands for it when the bytes are decoded.
    Chars,
}

impl Tokenizer {
    /// The ids of `text` as ordinary text, and the bytes of the text that each one spells.
    pub fn encode_with_offsets(&self, text: &[u8]) -> Result<(Vec<u32>, Vec<Span>)> {
        let (encoded, spans) = self.encode_batch_with_offsets(&[text], Unit::Bytes, 1, &Control::new())?;
        Ok((encoded.ids.iter().collect(), spans))
    }

    /// The ordinary ids of many texts, and for each id its place in its text.
    ///
    /// ```
    /// # use gptrs_core::{Control, Splitter, Tokenizer, Unit, Vocab};
    /// let tokenizer = Tokenizer::new(Vocab::from_merges(&[])?, Splitter::new("gpt2")?, vec![])?;
    /// let encode = |unit| tokenizer.encode_batch_with_offsets(&["a\u{e9}"], unit, 1, &Control::new());
    /// assert_eq!(encode(Unit::Bytes)?.1, [(0, 1), (1, 2), (2, 3)]);
    /// assert_eq!(encode(Unit::Chars)?.1, [(0, 1), (1, 2), (1, 2)]);
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn encode_batch_with_offsets<T: AsRef<[u8]> + Sync>(
        &self,
        texts: &[T],
        unit: Unit,
        threads: usize,
        control: &Control,
    ) -> Result<(Encoded, Vec<Span>)> {
        let options = EncodeOptions { threads, ..EncodeOptions::default() };
        let encoded = self.encode_batch_with(texts, &options, control)?;
        let mut spans = vec![(0, 0); encoded.ids.len()];
        let (mut rest, mut places) = (spans.as_mut_slice(), Vec::with_capacity(texts.len()));
        for (text, ends) in texts.iter().zip(encoded.offsets.windows(2)) {
            let (place, later) = rest.split_at_mut((ends[1] - ends[0]) as usize);
            places.push(Mutex::new((text.as_ref(), ends[0] as usize, place)));
            rest = later;
        }
        let threads = if encoded.ids.len() < 1 << 14 { 1 } else { threads };
        parallel::run(
            threads,
            places.len(),
            control,
            || (),
            |(), i| {
                let mut place = places[i].lock().unwrap_or_else(PoisonError::into_inner);
                let (text, first, spans) = &mut *place;
                match &encoded.ids {
                    Ids::U16(ids) => self.locate(ids[*first..].iter().map(|&id| u32::from(id)), spans),
                    Ids::U32(ids) => self.locate(ids[*first..].iter().copied(), spans),
                }
                if unit == Unit::Chars {
                    let normal = self.splitter().normalize(text);
                    to_chars(normal.as_deref().unwrap_or(text), spans);
                }
                Ok(())
            },
        )?;
        drop(places);
        Ok((encoded, spans))
    }

    /// The bytes of each id: tokens follow each other without a gap.
    fn locate(&self, ids: impl Iterator<Item = u32>, spans: &mut [Span]) {
        let mut end = 0;
        for (span, id) in spans.iter_mut().zip(ids) {
            let start = end;
            end += self.vocab().token(id).map_or(0, <[u8]>::len);
            *span = (start, end);
        }
    }
}

/// Turns spans in bytes, which follow each other, into those of the characters that they touch.
fn to_chars(text: &[u8], spans: &mut [Span]) {
    let (mut i, mut start, mut n_chars, mut at) = (0, 0, 0, 0);
    for_each_char(text, |len| {
        // Every span that begins in this character or before it and did not end before it.
        while i < spans.len() && spans[i].0 < at + len {
            if spans[i].0 >= at {
                start = n_chars;
            }
            if spans[i].1 > at + len {
                break; // it goes on in the next character
            }
            spans[i] = (start, n_chars + 1);
            i += 1;
        }
        n_chars += 1;
        at += len;
    });
}

/// Calls `f` with the length of every character and of every invalid sequence.
fn for_each_char(text: &[u8], mut f: impl FnMut(usize)) {
    for chunk in text.utf8_chunks() {
        chunk.valid().chars().for_each(|c| f(c.len_utf8()));
        if !chunk.invalid().is_empty() {
            f(chunk.invalid().len());
        }
    }
}
