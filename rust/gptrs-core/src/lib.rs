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
pub mod error;
pub mod io;
pub mod naive;
pub mod parallel;
pub mod permute;

pub use control::Control;
pub use error::{Error, Result};
