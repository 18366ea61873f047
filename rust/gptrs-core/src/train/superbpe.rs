//! SuperBPE: merges inside words first, then merges that may cross the spaces between words.
//!
//! ```text
//! word counts ─ first stage ─▶ merges ─ applied to runs of words ─ second stage ─▶ more merges
//! ```
//! The finished tokenizer cuts text into runs and applies all merges there in order of rank, as any other does. That is
//! what the second stage starts from, so encoding equals training. No merge of the first stage crosses a border inside
//! a run (letter to space, letter to apostrophe): it leaves the words in the tokens that the first stage made.

use super::options::{Recipe, Tie};
use super::resume::Start;
use crate::control::Control;
use crate::count::superwords::Stages;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::vocab::Vocab;

/// A tokenizer of both stages, with the pattern of runs.
///
/// Its merges begin with those of a tokenizer that [`Recipe::train`] makes of the words with `transition` ids, special
/// tokens included. When the runs are a sample, `min_count` holds for what it stands for.
pub fn train(
    recipe: &Recipe,
    transition: usize,
    stages: &Stages,
    threads: usize,
    control: &Control,
) -> Result<Tokenizer> {
    check(recipe, transition)?;
    let first = Recipe { vocab_size: transition, ..recipe.clone() };
    let mut merges = first.first_merges(&stages.word_counts, first.check(None)?, threads, control)?;
    let n_merges = recipe.check(None)? - merges.len();
    let second = Recipe { min_count: recipe.min_count >> stages.level.min(63), ..recipe.clone() };
    let vocab = Vocab::from_merges(&merges)?;
    let start = Start { vocab: &vocab, n_ids: vocab.len() };
    let reserved = recipe.special_tokens.iter().map(|text| text.as_bytes().to_vec()).collect();
    merges.extend(second.more_merges(&stages.run_counts, start, reserved, n_merges, threads, control)?);
    recipe.tokenizer(&merges, None, stages.runs.clone())
}

/// Fails when the transition is not between the smallest vocabulary and the whole one.
pub fn check(recipe: &Recipe, transition: usize) -> Result<()> {
    let (smallest, size) = (256 + recipe.special_tokens.len(), recipe.vocab_size);
    if recipe.tie != Tie::Id {
        return Err(Error::Argument("superbpe_from goes with tie=\"id\" only; hint: leave the tie out".to_owned()));
    }
    if transition < smallest || transition > size {
        return Err(Error::Argument(format!(
            "superbpe_from must be {smallest} (256 bytes and the special tokens) to vocab_size={size}, got {transition}"
        )));
    }
    Ok(())
}
