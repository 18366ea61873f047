//! Ids with their places in the text and their pieces, as Hugging Face's `Encoding` has them.

use crate::error::Result;
use crate::special::Specials;
use crate::tokenizer::Tokenizer;

/// Ids of a text and where they come from; all lists but the last have one entry for each id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The ids.
    pub ids: Vec<u32>,
    /// Start and end in characters of the (normalized) text: those that have a byte of the token.
    pub chars: Vec<(usize, usize)>,
    /// Which piece of the text, special tokens being pieces too.
    pub pieces: Vec<u32>,
    /// The places among the ids of special tokens that are written otherwise in the text, and how: with the white space
    /// that they take, or normalized.
    pub written: Vec<(usize, String)>,
}

/// Where a walk through a text stands.
struct Walk {
    places: Places,
    /// Characters before the part under way.
    n_chars: usize,
    n_pieces: u32,
}

impl Tokenizer {
    /// The ids of `text`, where each `allowed` special token becomes its id, with their places.
    ///
    /// Places are those of the normalized text where the tokenizer has a normalizer.
    pub fn encode_with_places(&self, text: &str, allowed: Specials) -> Result<Places> {
        let finder = self.special_finder(allowed)?;
        let mut walk = Walk { places: Places::default(), n_chars: 0, n_pieces: 0 };
        finder.for_each(
            text.as_bytes(),
            &mut walk,
            |walk, part| {
                let normal = self.splitter().normalize(part);
                self.walk_part(walk, normal.as_deref().unwrap_or(part))
            },
            |walk, found, bytes| {
                let n_chars = count_chars(bytes);
                if self.token_bytes(found.id) != Some(bytes) {
                    walk.places.written.push((walk.places.ids.len(), String::from_utf8_lossy(bytes).into_owned()));
                }
                walk.places.ids.push(found.id);
                walk.places.chars.push((walk.n_chars, walk.n_chars + n_chars));
                walk.places.pieces.push(walk.n_pieces);
                walk.n_chars += n_chars;
                walk.n_pieces += 1;
            },
        )?;
        Ok(walk.places)
    }

    fn walk_part(&self, walk: &mut Walk, part: &[u8]) -> Result<()> {
        let ids = self.encode_ordinary(part)?;
        let mut piece_ends = Vec::new();
        self.splitter().for_each_piece(part, |piece| {
            piece_ends.push(piece_ends.last().copied().unwrap_or(0) + piece.len());
            Ok(())
        })?;
        // Characters that begin before the byte at `at`, and before the last byte of the token there.
        let (mut at, mut n_before, mut piece) = (0, 0, 0);
        for id in ids {
            let end = at + self.vocab().token(id).map_or(0, <[u8]>::len);
            let n_through = n_before + count_chars(&part[at..end]);
            let is_inside = part.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
            walk.places.ids.push(id);
            walk.places.chars.push((walk.n_chars + n_before - usize::from(is_inside), walk.n_chars + n_through));
            walk.places.pieces.push(walk.n_pieces + piece);
            (at, n_before) = (end, n_through);
            piece += u32::from(piece_ends.get(piece as usize).is_some_and(|&piece_end| piece_end <= at));
        }
        walk.n_chars += n_before;
        walk.n_pieces += piece_ends.len() as u32;
        Ok(())
    }
}

/// Characters that begin in `bytes`.
fn count_chars(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&byte| byte & 0xC0 != 0x80).count()
}
