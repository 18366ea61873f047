//! What Hugging Face puts around a text when special tokens are asked for: its post-processors.
//!
//! Encoding here never adds a token that is not in the text. The template is kept for the files, and for those who
//! want the same ids as `encode(text, add_special_tokens=True)` of a Hugging Face tokenizer.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// The first text of a call, or its second.
    Text {
        /// Which text it is.
        is_second: bool,
        /// The type id of its tokens.
        type_id: u32,
    },
    /// Ids of their own.
    Ids {
        /// The ids.
        ids: Vec<u32>,
        /// What they are called.
        tokens: Vec<String>,
        /// Their type id.
        type_id: u32,
    },
}

/// What stands around one text, and around two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: Value,
    single: Vec<Slot>,
    pair: Vec<Slot>,
    trims_offsets: Vec<bool>,
    part_type_id: Option<u32>,
}

impl Template {
    /// What `post_processor` of a tokenizer.json says; the error names what is not supported there.
    pub fn from_json(source: &Value) -> Result<Self, String> {
        let mut template = Self {
            source: source.clone(),
            single: vec![Slot::Text { is_second: false, type_id: 0 }],
            pair: [false, true].map(|is_second| Slot::Text { is_second, type_id: is_second.into() }).to_vec(),
            trims_offsets: Vec::new(),
            part_type_id: None,
        };
        let steps = match source.get("processors").filter(|_| source["type"] == "Sequence") {
            Some(steps) => steps.as_array().ok_or("expected a list as the processors of post_processor Sequence")?,
            None => std::slice::from_ref(source),
        };
        let mut n_templates = 0;
        for step in steps {
            match parse(step)? {
                Processor::ByteLevel { trims } => template.trims_offsets.extend(trims),
                Processor::Template { single, pair, trims, part_type_id } => {
                    (template.single, template.pair, template.part_type_id) = (single, pair, part_type_id);
                    template.trims_offsets.extend(trims);
                    n_templates += 1;
                }
            }
        }
        if n_templates > 1 {
            return Err("post_processor Sequence with more than one template is not supported".to_owned());
        }
        Ok(template)
    }

    /// The JSON it came from.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// What stands around one text.
    pub fn single(&self) -> &[Slot] {
        &self.single
    }

    /// What stands around two texts.
    pub fn pair(&self) -> &[Slot] {
        &self.pair
    }

    /// How often Hugging Face leaves white space at the ends of a token out of its offsets; `true` when one space at the
    /// start of the text stays, which is taken for one that was put there.
    pub fn trims_offsets(&self) -> &[bool] {
        &self.trims_offsets
    }

    /// The type id of the text of parts that truncation cuts off, where it is not 0 for the first text and 1 for the second.
    pub fn part_type_id(&self) -> Option<u32> {
        self.part_type_id
    }

    /// Every id that it adds.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let slots = self.single.iter().chain(&self.pair);
        slots.flat_map(|slot| if let Slot::Ids { ids, .. } = slot { ids.as_slice() } else { &[] }).copied()
    }
}

enum Processor {
    ByteLevel { trims: Option<bool> },
    Template { single: Vec<Slot>, pair: Vec<Slot>, trims: Option<bool>, part_type_id: Option<u32> },
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Written {
    ByteLevel {
        #[serde(default = "yes")]
        trim_offsets: bool,
        #[serde(default = "yes")]
        add_prefix_space: bool,
    },
    TemplateProcessing {
        single: Vec<Piece>,
        pair: Vec<Piece>,
        special_tokens: HashMap<String, Special>,
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        trim_offsets: bool,
        add_prefix_space: bool,
    },
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
enum Piece {
    Sequence { id: Which, type_id: u32 },
    SpecialToken { id: String, type_id: u32 },
}

#[derive(Deserialize)]
enum Which {
    A,
    B,
}

#[derive(Deserialize)]
struct Special {
    ids: Vec<u32>,
    tokens: Vec<String>,
}

fn parse(step: &Value) -> Result<Processor, String> {
    let name = step["type"].as_str().unwrap_or("null");
    let known = ["ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"];
    if !known.contains(&name) {
        return Err(format!("post_processor {name} is not supported, expected one of {}", known.join(", ")));
    }
    let written = Written::deserialize(step).map_err(|error| format!("in post_processor {name}: {error}"))?;
    let text = |is_second, type_id| Slot::Text { is_second, type_id };
    let one = |(token, id): &(String, u32), type_id| Slot::Ids { ids: vec![*id], tokens: vec![token.clone()], type_id };
    Ok(match written {
        Written::ByteLevel { trim_offsets, add_prefix_space } => {
            Processor::ByteLevel { trims: trim_offsets.then_some(add_prefix_space) }
        }
        Written::TemplateProcessing { single, pair, special_tokens } => {
            let slots = |pieces: Vec<Piece>| -> Result<Vec<_>, _> {
                pieces.into_iter().map(|piece| slot(piece, &special_tokens)).collect()
            };
            Processor::Template { single: slots(single)?, pair: slots(pair)?, trims: None, part_type_id: None }
        }
        Written::RobertaProcessing { sep, cls, trim_offsets, add_prefix_space } => {
            let (begin, end) = (one(&cls, 0), one(&sep, 0));
            let single = vec![begin.clone(), text(false, 0), end.clone()];
            let pair = vec![begin, text(false, 0), end.clone(), end.clone(), text(true, 0), end];
            let trims = trim_offsets.then_some(add_prefix_space);
            Processor::Template { single, pair, trims, part_type_id: Some(0) }
        }
        Written::BertProcessing { sep, cls } => {
            let single = vec![one(&cls, 0), text(false, 0), one(&sep, 0)];
            let pair = [single.clone(), vec![text(true, 1), one(&sep, 1)]].concat();
            Processor::Template { single, pair, trims: None, part_type_id: None }
        }
    })
}

fn slot(piece: Piece, special_tokens: &HashMap<String, Special>) -> Result<Slot, String> {
    match piece {
        Piece::Sequence { id, type_id } => Ok(Slot::Text { is_second: matches!(id, Which::B), type_id }),
        Piece::SpecialToken { id, type_id } => {
            let special = special_tokens
                .get(&id)
                .ok_or_else(|| format!("post_processor uses {id:?}, which is not among its special_tokens"))?;
            let Special { ids, tokens } = special;
            if ids.len() != tokens.len() {
                return Err(format!("post_processor has {} tokens for the {} ids of {id:?}", tokens.len(), ids.len()));
            }
            Ok(Slot::Ids { ids: ids.clone(), tokens: tokens.clone(), type_id })
        }
    }
}
