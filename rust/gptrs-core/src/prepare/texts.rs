//! A text from front to back: where its documents end, and where they may be cut.

use std::ops::Range;
use std::sync::Arc;

use memchr::memmem::Finder;

use super::PrepareOptions;
use crate::corpus::{Codec, Input, Source};
use crate::error::{Error, Result};
use crate::io::Map;

/// A large text is mapped again after so many bytes, which gives the memory of the pages behind back.
const REMAP: u64 = 32 << 20;

/// The longest text between two places where it may be cut, of one that is not mapped; all of it is in memory.
const MAX_UNCUT: usize = 256 << 20;

/// Bytes of the longest character, which a place to cut may have at each side.
const CHAR: usize = 4;

/// The smallest place from one on where a text may be cut: both sides give the ids of the whole.
pub(super) type SafeCut<'a> = dyn Fn(&[u8], usize) -> usize + Sync + 'a;

/// How a text is cut.
pub(super) struct Cutter<'a> {
    /// Bytes of a part, about.
    pub(super) segment_bytes: usize,
    /// Bytes behind a part that a worker must see.
    pub(super) lookahead: usize,
    /// What stands between documents.
    pub(super) separator: Option<Finder<'a>>,
    pub(super) safe_cut: &'a SafeCut<'a>,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(options: &'a PrepareOptions, lookahead: usize, safe_cut: &'a SafeCut<'a>) -> Self {
        let separator = options.selection.doc_separator.as_deref().map(Finder::new);
        Self { segment_bytes: options.segment_bytes, lookahead, separator, safe_cut }
    }

    fn separator_len(&self) -> usize {
        self.separator.as_ref().map_or(0, |separator| separator.needle().len())
    }

    /// Where to cut a text behind a segment.
    fn place(&self, text: &[u8]) -> usize {
        let least = self.segment_bytes.min(text.len());
        (self.safe_cut)(text, least).clamp(least, text.len())
    }

    /// The end of the first part of a document.
    fn end(&self, document: &[u8]) -> usize {
        if document.len() <= self.segment_bytes { document.len() } else { self.place(document) }
    }
}

/// Where the first document begins that is behind byte `at` of `text`; its end when there is none.
///
/// Whoever looks only here finds what a search from the front finds: the search begins at a place that is inside of no
/// occurrence of the separator, which may overlap itself.
pub(super) fn next_document(text: &[u8], at: usize, separator: &[u8]) -> usize {
    let (finder, len) = (Finder::new(separator), separator.len());
    let mut from = at;
    // An occurrence that begins before `from` and ends behind it.
    let around = |from: usize| from.saturating_sub(len - 1)..text.len().min(from + len - 1);
    while let Some(found) = text.get(around(from)).and_then(|near| finder.find(near)) {
        from = around(from).start + found + len;
    }
    let rest = text.get(from..).unwrap_or_default();
    finder.find(rest).map_or(text.len(), |found| from + found + len)
}

/// A document, or a part of one.
pub(super) struct Part {
    pub(super) range: Range<usize>,
    /// Where in the input the document begins.
    pub(super) start: u64,
    /// The end of the document's bytes that a worker may look at.
    pub(super) seen: usize,
    pub(super) ends_document: bool,
}

/// Text that lies in a file, or that was read.
pub(super) enum Shared {
    Map(Arc<Map>, usize),
    Bytes(Vec<u8>),
}

/// A text under way.
pub(super) struct Text {
    bytes: Bytes,
    /// Where its bytes begin in the input, and the document of the first of them.
    offset: u64,
    start: u64,
    /// Where it ends in the input, or behind: at a place where it may be cut, between documents if they have separators.
    limit: u64,
}

enum Bytes {
    /// A file, from byte `from` on.
    Map { map: Arc<Map>, from: usize, mapped_at: u64 },
    /// What was read and not yet given out of a stream, and how much was read of the file before.
    Stream { source: Box<Source>, text: Vec<u8>, n_stored: u64, n_replaced: u64 },
}

/// Parts of a text and how much of it they take.
pub(super) struct Taken {
    pub(super) text: Shared,
    /// The parts, each without the separator behind it.
    pub(super) parts: Vec<Part>,
    /// Bytes of the text up to the next part, and those of the file as it is stored.
    pub(super) n_bytes: usize,
    pub(super) n_stored: u64,
    /// Invalid sequences that were replaced.
    pub(super) n_replaced: u64,
    pub(super) is_done: bool,
}

struct Cut {
    part: Part,
    next: usize,
    is_done: bool,
}

impl Shared {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Map(map, from) => &map.as_bytes()[*from..],
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Text {
    /// The text of `input` from byte `offset` up to `limit`, in a document that begins at `start`. One that is no plain
    /// file has no limit.
    pub(super) fn open(input: &Input, offset: u64, start: u64, limit: u64, replaces: bool) -> Result<Self> {
        if input.codec != Codec::Plain || replaces {
            let source = if replaces { Source::replacing(input, offset) } else { Source::open(input, offset) }?;
            let bytes = Bytes::Stream { source: Box::new(source), text: Vec::new(), n_stored: 0, n_replaced: 0 };
            return Ok(Self { bytes, offset, start, limit: u64::MAX });
        }
        let map = Map::open(&input.path)?;
        if map.as_bytes().len() as u64 != input.n_bytes {
            return Err(input.changed());
        }
        let from = usize::try_from(offset).ok().filter(|&from| from <= map.as_bytes().len()).ok_or_else(|| {
            let path = input.path.display();
            Error::Argument(format!("the journal continues at byte {offset} of {path}, which is shorter"))
        })?;
        Ok(Self { bytes: Bytes::Map { map: Arc::new(map), from, mapped_at: offset }, offset, start, limit })
    }

    /// The next parts, together a segment; at least one unless there is nothing but separators.
    pub(super) fn take(&mut self, input: &Input, cutter: &Cutter) -> Result<Taken> {
        let (mut parts, mut next) = (Vec::new(), 0);
        let is_done = loop {
            let cut = self.cut(input, cutter, next)?;
            next = cut.next;
            if cut.part.ends_document {
                self.start = self.offset + next as u64;
            }
            // Between separators nothing is no document.
            if !cut.part.range.is_empty() || cutter.separator.is_none() {
                parts.push(cut.part);
            }
            if cut.is_done || next >= cutter.segment_bytes {
                break cut.is_done;
            }
        };
        let (text, n_stored, n_replaced) = self.give_out(input, next, parts.last().map_or(0, |part| part.seen))?;
        self.offset += next as u64;
        Ok(Taken { text, parts, n_bytes: next, n_stored, n_replaced, is_done })
    }

    /// The part that begins at byte `from` of the bytes to come.
    fn cut(&mut self, input: &Input, cutter: &Cutter, from: usize) -> Result<Cut> {
        let (separator_len, lookahead) = (cutter.separator_len(), cutter.lookahead);
        let behind = lookahead.max(CHAR).max(separator_len);
        let (mut size, mut searched) = (cutter.segment_bytes, 0);
        loop {
            let has_all = self.fill(from + size + behind)?;
            let text = &self.bytes()[from..];
            let rest = &text[..text.len().min(self.n_left(from))];
            // The end of such a document is that of the file; without one, specials are looked for behind the limit.
            let goes_on = separator_len == 0 && rest.len() < text.len();
            let window = if separator_len > 0 { &rest[..rest.len().min(size + behind)] } else { rest };
            let found = cutter.separator.as_ref().and_then(|s| s.find(&window[searched..])).map(|at| at + searched);
            let is_whole = has_all && window.len() == rest.len();
            if let Some(len) = found.or(is_whole.then_some(window.len())) {
                let end = cutter.end(&window[..len]);
                let ends_document = end == len && !goes_on;
                let next = if ends_document && found.is_some() { end + separator_len } else { end };
                let is_done = has_all && next == rest.len();
                let seen = from + if goes_on { text.len() } else { len }.min(end + lookahead);
                let range = from..from + end;
                let part = Part { range, start: self.start, seen, ends_document };
                return Ok(Cut { part, next: from + next, is_done });
            }
            // Where to cut follows from the characters at both sides, which must be there; and no separator begins
            // before the last bytes of the window.
            let end = cutter.place(window);
            if end + behind <= window.len() {
                let (range, seen) = (from..from + end, from + end + lookahead);
                let part = Part { range, start: self.start, seen, ends_document: false };
                return Ok(Cut { part, next: from + end, is_done: false });
            }
            if size >= MAX_UNCUT && matches!(self.bytes, Bytes::Stream { .. }) {
                return Err(input.uncut(self.offset + from as u64, MAX_UNCUT));
            }
            searched = (window.len() + 1).saturating_sub(separator_len);
            size *= 2;
        }
    }

    /// Bytes behind byte `from` of the bytes to come, up to the limit.
    fn n_left(&self, from: usize) -> usize {
        usize::try_from(self.limit.saturating_sub(self.offset + from as u64)).unwrap_or(usize::MAX)
    }

    /// Reads until there are `n` bytes; whether there are no more behind them.
    fn fill(&mut self, n: usize) -> Result<bool> {
        let Bytes::Stream { source, text, .. } = &mut self.bytes else { return Ok(true) };
        let want = n.saturating_sub(text.len());
        Ok(source.read(want as u64, text)? < want)
    }

    /// Where the document begins that comes next, or that is under way.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Map { map, from, .. } => &map.as_bytes()[*from..],
            Bytes::Stream { text, .. } => text,
        }
    }

    /// The bytes to come up to `seen`, of which `next` are done; the bytes stored that they took, and the replacements.
    fn give_out(&mut self, input: &Input, next: usize, seen: usize) -> Result<(Shared, u64, u64)> {
        match &mut self.bytes {
            Bytes::Map { map, from, mapped_at } => {
                let shared = Shared::Map(Arc::clone(map), *from);
                *from += next;
                let now = *from as u64;
                if now - *mapped_at >= REMAP && now < input.n_bytes {
                    self.bytes = Self::open(input, now, self.start, self.limit, false)?.bytes;
                }
                Ok((shared, next as u64, 0))
            }
            Bytes::Stream { source, text, n_stored, n_replaced } => {
                let rest = text[next..].to_vec();
                text.truncate(seen);
                let stored = source.n_stored() - std::mem::replace(n_stored, source.n_stored());
                let replaced = source.n_replaced() - std::mem::replace(n_replaced, source.n_replaced());
                Ok((Shared::Bytes(std::mem::replace(text, rest)), stored, replaced))
            }
        }
    }
}
