//! `truncation` and `padding` of a tokenizer.json: kept for those who ask for them, and written back as they were.

use serde_json::Value;

use super::Checked;
use crate::error::{Error, Result};

/// What Hugging Face cuts and fills lists of ids to; nothing here does, the file and its users keep it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths {
    /// The file's `truncation`.
    pub truncation: Option<Value>,
    /// The file's `padding`.
    pub padding: Option<Value>,
}

impl Lengths {
    /// Those of two JSON texts, as a tokenizer.json has them.
    pub fn from_json(truncation: Option<&str>, padding: Option<&str>) -> Result<Self> {
        let value = |text: Option<&str>| text.map(serde_json::from_str).transpose().map_err(|error| error.to_string());
        let lengths = value(truncation).and_then(|truncation| Self::new(truncation, value(padding)?));
        lengths.map_err(Error::Argument)
    }

    /// Fails on what Hugging Face would not read.
    pub(super) fn new(truncation: Option<Value>, padding: Option<Value>) -> Checked<Self> {
        for (name, value, is_known) in [
            ("truncation", &truncation, is_truncation as fn(&Value) -> bool),
            ("padding", &padding, is_padding as fn(&Value) -> bool),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !is_known(value)) {
                let got: String = value.to_string().chars().take(80).collect();
                return Err(format!("expected null or what Hugging Face writes as {name}, got {got}"));
            }
        }
        Ok(Self { truncation, padding })
    }
}

fn is_truncation(value: &Value) -> bool {
    are_counts(value, &["max_length", "stride"])
        && is_one_of(&value["strategy"], &["LongestFirst", "OnlyFirst", "OnlySecond"])
        && (value.get("direction").is_none() || is_direction(value))
}

fn is_padding(value: &Value) -> bool {
    let multiple = &value["pad_to_multiple_of"];
    are_counts(value, &["pad_id", "pad_type_id"])
        && value["pad_token"].is_string()
        && (value["strategy"] == "BatchLongest" || value["strategy"]["Fixed"].is_u64())
        && (multiple.is_null() || multiple.is_u64())
        && is_direction(value)
}

fn is_direction(value: &Value) -> bool {
    is_one_of(&value["direction"], &["Left", "Right"])
}

fn is_one_of(value: &Value, known: &[&str]) -> bool {
    value.as_str().is_some_and(|text| known.contains(&text))
}

fn are_counts(value: &Value, fields: &[&str]) -> bool {
    fields.iter().all(|field| value[field].is_u64())
}
