//! Text from several sources in one call: special tokens only where the source is trusted.

use crate::batch::How;
use crate::cache::Cache;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::special::Specials;
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The ids of spans of text, each with whether it is trusted: `allowed` special tokens are recognised there and
    /// nowhere else.
    ///
    /// Each span is a text of its own: no piece, no token and no special token crosses a border between two spans,
    /// trusted or not. The ids are those of [`Tokenizer::encode`] of each trusted span and of
    /// [`Tokenizer::encode_ordinary`] of each other one, with one exception: where a vocabulary has a special token
    /// among its ordinary ones, an untrusted span gets what that token is merged from instead. So untrusted text never
    /// yields the id of a special token.
    ///
    /// ```
    /// # use gptrs_core::{Control, SpecialToken, Specials, Splitter, Tokenizer, Vocab};
    /// let end = SpecialToken { text: "<e>".to_owned(), id: 256 };
    /// let tokenizer = Tokenizer::new(Vocab::from_merges(&[])?, Splitter::new("gpt2")?, vec![end])?;
    /// let spans = [("<e>", true), ("<e>", false), ("<", true), ("e>", true)];
    /// let ids = tokenizer.encode_spans(&spans, Specials::All, &Control::new())?;
    /// assert_eq!(ids, [256, 60, 101, 62, 60, 101, 62]);
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn encode_spans<T: AsRef<[u8]>>(
        &self,
        spans: &[(T, bool)],
        allowed: Specials,
        control: &Control,
    ) -> Result<Vec<u32>> {
        let how = How { finder: self.special_set().finder(allowed)?, dropout: None, may_join: false };
        control.begin("encode bytes", spans.iter().map(|(text, _)| text.as_ref().len() as u64).sum());
        let mut ids = Vec::new();
        self.with_cache(|cache| {
            for (text, is_trusted) in spans {
                let text = text.as_ref();
                if *is_trusted {
                    self.encode_range(cache, text, 0, 0..text.len(), &how, control, &mut ids)?;
                } else {
                    self.encode_untrusted(cache, text, control, &mut ids)?;
                }
            }
            Ok(())
        })?;
        Ok(ids)
    }

    fn encode_untrusted(&self, cache: &mut Cache, text: &[u8], control: &Control, ids: &mut Vec<u32>) -> Result<()> {
        let start = ids.len();
        self.encode_stretch(cache, text, control, ids)?;
        let is_special = |id: u32| self.special_set().text(id).is_some();
        if self.special_set().is_apart() || !ids[start..].iter().any(|&id| is_special(id)) {
            return Ok(());
        }
        let mut todo: Vec<u32> = ids.drain(start..).rev().collect();
        while let Some(id) = todo.pop() {
            if is_special(id) {
                let (left, right) = self.halves(id)?;
                todo.extend([right, left]);
            } else {
                ids.push(id);
            }
        }
        Ok(())
    }

    /// The two tokens that merge into `id`.
    fn halves(&self, id: u32) -> Result<(u32, u32)> {
        let token = self.vocab().token(id).unwrap_or_default();
        let spells = |&&(left, right): &&(u32, u32)| {
            let (left, right) = (self.vocab().token(left), self.vocab().token(right));
            left.zip(right).is_some_and(|(left, right)| token.strip_prefix(left) == Some(right))
        };
        self.vocab().merges().iter().find(spells).copied().ok_or_else(|| {
            Error::Argument(format!(
                "the special token \"{}\" is also an ordinary token that no merge makes, so text that is not trusted \
                 cannot be spelt without it; hint: give the special token another text",
                token.escape_ascii()
            ))
        })
    }
}
