//! nanoGPT: ids of two bytes and nothing else.

use super::source::{Opened, Source};
use crate::error::Result;
use crate::shard::Dtype;

/// What the file is.
pub(super) fn open(opened: Opened) -> Result<Source> {
    let dtype = opened.options.dtype.unwrap_or(Dtype::U16);
    opened.all_of(dtype)
}
