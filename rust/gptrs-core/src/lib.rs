//! The core of gptrs: text to tokens to batches, without Python.
//!
//! ```text
//! text ─ split ─▶ pieces ─ count ─▶ word counts ─ train ─▶ merges ─▶ vocab
//!   └─ split ─ encode (cache) ─▶ ids ─ prepare ─▶ shards ─ permute, loader ─▶ batches
//!                                 └─ decode ─▶ text
//! ```
//! Every fast path has a slow twin in [`naive`] and a property test of equality.

pub mod attention;
mod batch;
mod borders;
pub mod cache;
pub mod control;
pub mod corpus;
pub mod count;
pub mod count_files;
pub mod dataset;
pub mod decode;
mod dropout;
mod encode;
pub mod error;
mod exp;
pub mod experts;
pub mod foreign;
pub mod formats;
pub mod gemm;
mod guess;
mod ids;
pub mod io;
mod kept;
pub mod loader;
pub mod manifest;
mod merge;
pub mod mixture;
pub mod naive;
pub mod normalizer;
mod offsets;
pub mod order;
pub mod pack;
mod pages;
mod pairs;
pub mod parallel;
pub mod permute;
mod places;
pub mod prepare;
pub mod process;
pub mod ranges;
mod reach;
mod recent;
mod sealed;
pub mod shard;
pub mod simd;
mod slot;
mod spans;
mod spare;
pub mod special;
pub mod split;
mod table;
mod tasks;
pub mod template;
pub mod tokenizer;
mod tokens;
pub mod trace;
pub mod train;
pub mod vocab;
mod warm;

pub use batch::{EncodeOptions, Encoded};
pub use cache::Cache;
pub use control::Control;
pub use decode::StreamDecoder;
pub use dropout::{Draws, Dropout};
pub use error::{Error, Result};
pub use ids::Ids;
pub use kept::give_back;
pub use offsets::{Span, Unit};
pub use places::Places;
pub use special::{Matching, SpecialToken, Specials};
pub use split::Splitter;
pub use tokenizer::Tokenizer;
pub use vocab::Vocab;
pub use warm::WarmWords;
