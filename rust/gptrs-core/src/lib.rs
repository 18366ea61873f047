//! The core of gptrs: text to tokens to batches, without Python.
//!
//! ```text
//! text ─ split ─▶ pieces ─ count ─▶ word counts ─ train ─▶ merges ─▶ vocab
//!   └─ split ─ encode (cache) ─▶ ids ─ prepare ─▶ shards ─ permute, loader ─▶ batches
//!                                 └─ decode ─▶ text
//! ```
//! Every fast path has a slow twin in [`naive`] and a property test of equality.

mod borders;
pub mod cache;
pub mod control;
pub mod corpus;
pub mod count;
pub mod count_files;
pub mod dataset;
pub mod decode;
mod encode;
pub mod error;
pub mod formats;
pub mod io;
pub mod loader;
pub mod manifest;
mod merge;
pub mod naive;
mod pairs;
pub mod parallel;
pub mod permute;
pub mod prepare;
mod sealed;
pub mod shard;
pub mod simd;
pub mod special;
pub mod split;

mod table;
pub mod tokenizer;
mod tokens;
pub mod train;
pub mod vocab;

pub use cache::Cache;
pub use control::Control;
pub use decode::StreamDecoder;
pub use error::{Error, Result};
pub use special::{SpecialToken, Specials};
pub use split::Splitter;
pub use tokenizer::{Encoded, Ids, Tokenizer};
pub use vocab::Vocab;
