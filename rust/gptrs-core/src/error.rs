//! One variant for each way an input can be wrong.

use std::io;
use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong: what was expected, what was got, where, and a hint when there is a likely cure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller cancelled the work.
    #[error("interrupted")]
    Interrupted,

    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create", "rename".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A file that must be UTF-8 is not.
    #[error("{} is not UTF-8: invalid byte at offset {offset}; hint: convert it, for example with iconv, or prepare it with --errors replace", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte.
        offset: u64,
    },

    /// There was no text to train on or to write.
    #[error("the corpus is empty: expected at least one byte of text; hint: check what the input holds")]
    EmptyCorpus,

    /// The options leave out every document that there was.
    #[error("no text is left: of {n} documents {left_out}; hint: change these options")]
    NothingLeft {
        /// Documents in all.
        n: u64,
        /// Which options left out how many of them.
        left_out: String,
    },

    /// A file's content does not follow its format.
    #[error("{} is not a valid {format}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format's name: "tokenizer.json", "shard", "manifest".
        format: &'static str,
        /// What was expected, what was got, and where in the file.
        reason: String,
    },

    /// A checksum does not match: the file was changed or damaged after it was written.
    #[error("{} is damaged: {what} has digest {got}, expected {expected}; hint: restore or prepare the file again", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Which part: "header", "block 17", "file".
        what: String,
        /// The stored digest.
        expected: String,
        /// The computed digest.
        got: String,
    },

    /// An argument is out of its range or does not fit another one.
    #[error("{0}")]
    Argument(String),

    /// There is no memory for what the arguments ask for.
    #[error("no memory for {what} of {rows} x {columns}; hint: use a smaller micro_batch")]
    Memory {
        /// What was to be held.
        what: &'static str,
        /// Rows of a microbatch.
        rows: usize,
        /// Values of a row.
        columns: usize,
    },

    /// A vocabulary breaks an invariant.
    #[error("invalid vocabulary: {0}")]
    Vocab(String),

    /// A regular expression does not compile or gave up on a text.
    #[error("pattern {pattern:?}: {reason}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// The engine's reason.
        reason: String,
    },

    /// Text contains a special token that the caller did not allow.
    #[error(
        "the text contains the special token {token:?} at byte {offset}; hint: pass allowed_special={{{token:?}}} to \
         encode it as one id, or disallowed_special=() to treat it as text"
    )]
    SpecialToken {
        /// The special token's text.
        token: String,
        /// Byte offset in the text.
        offset: usize,
    },

    /// One of several texts is wrong.
    #[error("text {index}: {source}")]
    InText {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        source: Box<Self>,
    },

    /// An id is not in the vocabulary.
    #[error("id {id} at position {position} is out of range: the vocabulary has {vocab_size} ids")]
    UnknownId {
        /// The id.
        id: u32,
        /// Its index in the input.
        position: usize,
        /// Number of ids.
        vocab_size: usize,
    },

    /// A mixture of sources has no such sample.
    #[error("the mixture ends before sample {end}, got {sample}: {reason}")]
    MixtureEnd {
        /// The sample that was asked for.
        sample: u64,
        /// The first one that does not exist.
        end: u64,
        /// Which source has been used up, or that the stages are over, with a hint.
        reason: String,
    },

    /// Another writer holds the folder.
    #[error("{} is being written by another process; hint: wait for it to end or choose another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps an [`io::Error`] with what was tried on which file: `.map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
