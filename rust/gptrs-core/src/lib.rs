//! The core of gptrs: text to tokens to batches, without Python.
//!
//! ```text
//! text ─ split ─▶ pieces ─ count ─▶ word counts ─ train ─▶ merges ─▶ vocab
//!   └─ split ─ encode (cache) ─▶ ids ─ prepare ─▶ shards ─ permute, loader ─▶ batches
//!                                 └─ decode ─▶ text
//! ```
//! Every fast path has a slow twin in [`naive`] and a property test of equality.

pub mod control;
pub mod corpus;
pub mod dataset;
pub mod error;
pub mod io;
pub mod loader;
pub mod manifest;
pub mod naive;
pub mod parallel;
pub mod permute;
pub mod prepare;
mod sealed;
pub mod shard;

pub use control::Control;
pub use error::{Error, Result};
