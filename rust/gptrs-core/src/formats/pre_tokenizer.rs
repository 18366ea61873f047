//! The `pre_tokenizer` of a tokenizer.json ⇄ [`Splitter`].

use serde::Deserialize;
use serde_json::{Value, json};

use super::Checked;
use crate::error::{Error, Result};
use crate::split::Splitter;
use crate::split::chain::{self, Behavior, Matcher, Step};
use crate::split::onig::{from_onig, reads_differently, to_onig};

/// Sequences inside sequences that are followed.
const MAX_DEPTH: usize = 16;

/// The splitter with a name where there is one, else a regular expression, else the chain of all steps.
///
/// `ByteLevel` comes last, as it spells bytes: alone it cuts with GPT-2's pattern first, after a `Split` it mostly does not.
pub(super) fn read(value: &Value) -> Checked<Splitter> {
    let mut steps = Vec::new();
    flatten(value, &mut steps, 0)?;
    let [cuts @ .., Step::ByteLevel { use_regex, .. }] = steps.as_slice() else {
        let names: Vec<_> = steps.iter().map(name).collect();
        return Err(format!("pre_tokenizer {names:?} is not supported, expected ByteLevel as its last step"));
    };
    if cuts.iter().any(|step| matches!(step, Step::ByteLevel { .. })) {
        return Err("pre_tokenizer with two ByteLevel steps is not supported, expected one".to_owned());
    }
    match (cuts, use_regex) {
        ([], true) => new_splitter("gpt2"),
        ([Step::Split { pattern: Matcher::Regex(regex), behavior, invert }], false)
            if is_whole(regex, *behavior, *invert)? =>
        {
            check_regex(regex)?;
            new_splitter(&from_onig(regex))
        }
        _ => match named_sequence(cuts) {
            Some(splitter) if !use_regex => Ok(splitter),
            _ => {
                cuts.iter().try_for_each(check_step)?;
                new_splitter(&chain::pattern_of(steps))
            }
        },
    }
}

/// What makes the same pieces in Hugging Face.
pub(super) fn write(splitter: &Splitter) -> Result<Value> {
    if splitter.pattern() == "gpt2" {
        return Ok(byte_level(true));
    }
    if splitter.pattern().starts_with('{') {
        let steps = chain::steps_of(splitter.pattern())?;
        let steps: Vec<_> = steps.iter().map(|step| json!(step)).collect();
        return Ok(json!({ "type": "Sequence", "pretokenizers": steps }));
    }
    let mut steps = Vec::new();
    for regex in splitter.onig_sequence() {
        if let Some(what) = reads_differently(&regex) {
            return Err(Error::Argument(format!("the pattern {regex:?} cannot be written as tokenizer.json: {what}")));
        }
        let pattern = json!({ "Regex": to_onig(&regex) });
        steps.push(json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false }));
    }
    steps.push(byte_level(false));
    Ok(json!({ "type": "Sequence", "pretokenizers": steps }))
}

/// The component which spells bytes in the alphabet and with `use_regex` first cuts with GPT-2's pattern.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

/// Appends the steps of a pre-tokenizer, those of sequences inside sequences too.
fn flatten(value: &Value, steps: &mut Vec<Step>, depth: usize) -> Checked<()> {
    let name = value["type"].as_str().map_or_else(|| value.to_string().chars().take(80).collect(), str::to_owned);
    match name.as_str() {
        "Sequence" if depth < MAX_DEPTH => {
            let inner = value["pretokenizers"].as_array();
            let inner = inner.ok_or("expected a list as the pretokenizers of pre_tokenizer Sequence")?;
            inner.iter().try_for_each(|value| flatten(value, steps, depth + 1))
        }
        "Split" | "Digits" | "ByteLevel" => {
            let step = Step::deserialize(value).map_err(|error| format!("in pre_tokenizer {name}: {error}"))?;
            if matches!(step, Step::ByteLevel { add_prefix_space: true, .. }) {
                return Err("pre_tokenizer ByteLevel with add_prefix_space is not supported, expected false".to_owned());
            }
            steps.push(step);
            Ok(())
        }
        _ => Err(format!("pre_tokenizer {name} is not supported, expected Split, Digits or ByteLevel")),
    }
}

/// The named splitter that several steps make, each of which isolates the matches of a regex.
fn named_sequence(steps: &[Step]) -> Option<Splitter> {
    let regex = |step: &Step| match step {
        Step::Split { pattern: Matcher::Regex(regex), behavior: Behavior::Isolated, .. } => Some(regex.clone()),
        _ => None,
    };
    Splitter::from_sequence(&steps.iter().map(regex).collect::<Option<Vec<_>>>()?).ok()
}

fn name(step: &Step) -> &'static str {
    match step {
        Step::Split { .. } => "Split",
        Step::Digits { .. } => "Digits",
        Step::ByteLevel { .. } => "ByteLevel",
    }
}

/// Whether the pieces of a `Split` are the matches of its regex and what is between them.
///
/// Keeping only the matches is the same as isolating them for a pattern that leaves no gap, as the named ones do.
fn is_whole(regex: &str, behavior: Behavior, invert: bool) -> Checked<bool> {
    let is_named = || new_splitter(regex).map(|splitter| splitter.pattern() != regex);
    Ok(behavior == Behavior::Isolated || (behavior == Behavior::Removed && invert && is_named()?))
}

fn check_step(step: &Step) -> Checked<()> {
    match step {
        Step::Split { pattern: Matcher::Regex(regex), .. } => check_regex(regex),
        _ => Ok(()),
    }
}

fn check_regex(regex: &str) -> Checked<()> {
    let is_named = new_splitter(regex)?.pattern() != regex;
    match reads_differently(regex).filter(|_| !is_named) {
        Some(what) => Err(format!("the pattern {regex:?} of pre_tokenizer Split is not supported: {what}")),
        None => Ok(()),
    }
}

fn new_splitter(pattern: &str) -> Checked<Splitter> {
    Splitter::new(pattern).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_splitter_reads_back() {
        let chain = r#"{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}"#;
        for pattern in crate::split::NAMES.into_iter().chain([r"\w+|[^\w\s]+|\b\s+", chain]) {
            let splitter = Splitter::new(pattern).unwrap();
            assert_eq!(read(&write(&splitter).unwrap()).unwrap().pattern(), pattern);
        }
    }
}
