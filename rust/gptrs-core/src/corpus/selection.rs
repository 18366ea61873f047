//! Which documents a corpus has.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest text that may stand between documents, in bytes.
const MAX_SEPARATOR: usize = 4096;

/// Where texts are cut into documents, which documents are left out, and what becomes of bytes that are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// What stands between the documents of a text file and belongs to none; without it a file is one document.
    ///
    /// Occurrences are taken from front to back and do not overlap; where nothing is between two, or at an end of the
    /// file, there is no document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_separator: Option<String>,
    /// Documents of fewer bytes are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_document_bytes: Option<u64>,
    /// Documents of more bytes are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_document_bytes: Option<u64>,
    /// Whether a document is left out whose bytes are those of an earlier one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dedup: bool,
    /// What becomes of bytes that are not UTF-8.
    #[serde(skip_serializing_if = "Errors::is_strict")]
    pub errors: Errors,
}

/// What becomes of bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    /// The file is refused, by the place of the first.
    #[default]
    Strict,
    /// Each maximal invalid sequence becomes U+FFFD, as in Python's `bytes.decode(errors="replace")`.
    Replace,
}

impl Errors {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
    fn is_strict(&self) -> bool {
        *self == Self::Strict
    }
}

impl Selection {
    /// Fails when a value is out of its range.
    pub fn check(&self) -> Result<()> {
        if let Some(got) = self.doc_separator.as_ref().map(String::len).filter(|n| !(1..=MAX_SEPARATOR).contains(n)) {
            return Err(Error::Argument(format!("doc_separator must have 1 to {MAX_SEPARATOR} bytes, got {got}")));
        }
        let (min, max) = (self.min_document_bytes.unwrap_or(1), self.max_document_bytes.unwrap_or(u64::MAX));
        if min == 0 || max == 0 || min > max {
            let message = "min_document_bytes and max_document_bytes must be 1 or more, the first at most the second";
            return Err(Error::Argument(format!("{message}, got {min} and {max}")));
        }
        Ok(())
    }

    /// Whether U+FFFD stands for what is not UTF-8.
    pub fn replaces(&self) -> bool {
        self.errors == Errors::Replace
    }

    /// Whether something must be known of the documents before they are encoded.
    pub(crate) fn needs_survey(&self) -> bool {
        self.min_document_bytes.is_some() || self.max_document_bytes.is_some() || self.dedup || self.replaces()
    }
}
