//! The `pre_tokenizer` of a tokenizer.json ⇄ [`Splitter`].

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::split::Splitter;

/// `ByteLevel` alone cuts with GPT-2's pattern; in a sequence a `Split` cuts and `ByteLevel` only spells bytes.
pub(super) fn read(value: &Value) -> std::result::Result<Splitter, String> {
    let steps = if value["type"] == "Sequence" {
        value["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default()
    } else {
        std::slice::from_ref(value)
    };
    let names: Vec<_> = steps.iter().map(|step| step["type"].as_str().unwrap_or("null")).collect();
    match (names.as_slice(), steps) {
        (["ByteLevel"], [only]) if has_own_pattern(only)? => new_splitter("gpt2"),
        (["Split", "ByteLevel"], [split, spell]) if !has_own_pattern(spell)? => read_split(split),
        _ => Err(format!(
            "pre_tokenizer {names:?} is not supported, expected ByteLevel with use_regex, or Split and then ByteLevel \
             without use_regex"
        )),
    }
}

/// What makes the same pieces in Hugging Face.
pub(super) fn write(splitter: &Splitter) -> Result<Value> {
    if splitter.pattern() == "gpt2" {
        return Ok(byte_level(true));
    }
    let regex = splitter.onig_regex();
    if let Some(what) = reads_differently(&regex) {
        return Err(Error::Argument(format!("the pattern {regex:?} cannot be written as tokenizer.json: {what}")));
    }
    let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    Ok(json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] }))
}

/// The component which spells bytes in the alphabet and with `use_regex` first cuts with GPT-2's pattern.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn has_own_pattern(byte_level: &Value) -> std::result::Result<bool, String> {
    if byte_level["add_prefix_space"] != false {
        return Err("pre_tokenizer ByteLevel with add_prefix_space is not supported, expected false".to_owned());
    }
    Ok(byte_level["use_regex"] != false)
}

fn read_split(split: &Value) -> std::result::Result<Splitter, String> {
    let Some(regex) = split["pattern"]["Regex"].as_str() else {
        return Err(format!("expected a Regex as the pattern of pre_tokenizer Split, got {}", split["pattern"]));
    };
    let splitter = new_splitter(regex)?;
    let is_named = splitter.pattern() != regex;
    // Keeping only the matches is the same as isolating them for a pattern that leaves no gap, as the named ones do.
    let behavior = (split["behavior"].as_str().unwrap_or_default(), split["invert"] == true);
    if behavior != ("Isolated", false) && !(is_named && behavior == ("Removed", true)) {
        return Err(format!(
            "pre_tokenizer Split with {behavior:?} (behavior, invert) is not supported, expected Isolated"
        ));
    }
    match reads_differently(regex).filter(|_| !is_named) {
        Some(what) => Err(format!("the pattern {regex:?} of pre_tokenizer Split is not supported: {what}")),
        None => Ok(splitter),
    }
}

fn new_splitter(pattern: &str) -> std::result::Result<Splitter, String> {
    Splitter::new(pattern).map_err(|error| error.to_string())
}

/// Why Oniguruma, Hugging Face's engine, would cut differently; `None` when nothing speaks for it.
fn reads_differently(regex: &str) -> Option<&'static str> {
    let (mut depth, mut chars) = (0, regex.chars().peekable());
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match c {
            '\\' => {
                chars.next();
                if chars.peek() == Some(&'{') {
                    chars.by_ref().find(|&c| c == '}');
                }
            }
            '[' => depth += 1,
            ']' if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            '^' => return Some("^ is the start of every line in Oniguruma; hint: use \\A"),
            '$' => return Some("$ is the end of every line in Oniguruma; hint: use \\z"),
            '}' if next == Some('+') => return Some("{m,n}+ repeats in Oniguruma; hint: use (?>...{m,n})"),
            '(' if next == Some('?') => {
                let flags = chars.clone().skip(1).take_while(|c| c.is_ascii_alphabetic() || *c == '-');
                if flags.filter(|c| !matches!(c, 'i' | '-' | 'P')).count() > 0 {
                    return Some(
                        "flags other than (?i) have other meanings in Oniguruma; hint: write the pattern without",
                    );
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_oniguruma_reads_differently_is_found_outside_classes_and_escapes() {
        for regex in [r"\s+$", "^a", r"\p{N}{1,3}+", "(?s).", "(?m:.)", "[a]$"] {
            assert!(reads_differently(regex).is_some(), "{regex}");
        }
        for regex in [r"\$|\^|[$^]", r"[^\s]+\p{L}++", r"(?i:'s)|\p{L}{1,3}|a(?!\S)|(?>a{1,2})", "(?<!a)b"] {
            assert!(reads_differently(regex).is_none(), "{regex}");
        }
    }

    #[test]
    fn a_written_splitter_reads_back() {
        for pattern in ["gpt2", "cl100k_base", r"\w+|\s+"] {
            let splitter = Splitter::new(pattern).unwrap();
            assert_eq!(read(&write(&splitter).unwrap()).unwrap().pattern(), pattern);
        }
    }
}
