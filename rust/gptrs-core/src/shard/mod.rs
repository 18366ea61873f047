//! `.gts` shards: tokens that numpy can map, with a digest for every byte.
//!
//! ```text
//! header 4096 │ tokens u16|u32 │ document ends u64 │ loss bits │ xxh3-64 of each 64 KiB block │ trailer 64
//! ```
//! All numbers are little-endian, sections start at multiples of 64 bytes, gaps are zero. docs/formats.md has every
//! offset and worked examples; most shards have no loss bits. An index (`.gti`) is the same without the tokens, which stand in another file.

mod area;
mod blocks;
mod index;
mod layout;
mod reader;
mod widen;
mod writer;

pub(crate) use blocks::BlockWriter;
pub use index::{Format, INDEX_ENDING, Payload};
pub(crate) use index::{check_payload_name, inside, write_index};
pub use layout::{BLOCK, HEADER, Header, Spec, TRAILER};
pub(crate) use layout::{trailer, u64_at};
pub use reader::Shard;
pub(crate) use reader::{check_width, file_len, verified_len};
pub(crate) use widen::{widen, widen_row};
pub use writer::ShardWriter;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// Two bytes: for vocabularies of up to 65,536 ids.
    #[serde(rename = "uint16")]
    U16,
    /// Four bytes.
    #[serde(rename = "uint32")]
    U32,
}

impl Dtype {
    /// The narrowest type that holds ids below `vocab_size`.
    pub fn for_vocab(vocab_size: u64) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Whether it holds all ids below `vocab_size`.
    pub fn holds(self, vocab_size: u64) -> bool {
        self.size() >= Self::for_vocab(vocab_size).size()
    }

    /// Bytes of a token.
    pub const fn size(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// The type of this name.
    pub fn from_name(name: &str) -> Result<Self> {
        [Self::U16, Self::U32]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| Error::Argument(format!("expected the type uint16 or uint32, got {name:?}")))
    }

    /// numpy's name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U16 => "uint16",
            Self::U32 => "uint32",
        }
    }
}

/// A type that tokens are delivered as.
pub trait Token: Copy + Default + Send + 'static {
    /// Bytes of a value.
    const SIZE: usize = size_of::<Self>();

    /// The target that predicts nothing, as `PyTorch`'s cross entropy ignores it; unsigned types have none.
    const IGNORED: Option<Self>;

    /// The value of a stored two-byte token.
    fn from_u16(id: u16) -> Self;

    /// The value of a stored four-byte token; only called for types of at least four bytes.
    fn from_u32(id: u32) -> Self;
}

macro_rules! token {
    ($($t:ty: $ignored:expr),*) => {$(
        impl Token for $t {
            const IGNORED: Option<Self> = $ignored;

            #[inline(always)]
            fn from_u16(id: u16) -> Self {
                id as Self
            }

            #[inline(always)]
            fn from_u32(id: u32) -> Self {
                id as Self
            }
        }
    )*};
}
token!(u16: None, u32: None, i32: Some(-100), i64: Some(-100));
