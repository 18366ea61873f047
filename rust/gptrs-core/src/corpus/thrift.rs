//! A look at Thrift's compact encoding before the parquet crate decodes it: that no collection is larger than its bytes.
//!
//! The crate skips what it does not know element by element, and an element of a list of booleans takes no byte there: a
//! header of ten bytes would keep it busy for seconds, one of a kilobyte for an hour. Parquet's structures have no such
//! collection, and every other element takes a byte or more.

/// How deep structures may stand in each other; Parquet's own are six deep.
const MAX_DEPTH: usize = 32;

/// Why bytes are refused, or that they end inside the structure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Cut,
    Refused(&'static str),
}

/// Looks at the structure at the front of `bytes`, all of it unless the bytes end before.
pub(super) fn check(bytes: &[u8]) -> Result<(), Fault> {
    Walk { rest: bytes }.value(STRUCT, MAX_DEPTH)
}

const STOP: u8 = 0;
const BOOLEANS: [u8; 2] = [1, 2];
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

struct Walk<'b> {
    rest: &'b [u8],
}

impl Walk<'_> {
    fn value(&mut self, kind: u8, depth: usize) -> Result<(), Fault> {
        if depth == 0 {
            return Err(Fault::Refused("structures of at most 32 levels"));
        }
        match kind {
            3 => self.skip(1),
            4..=6 => self.number().map(|_| ()),
            7 => self.skip(8),
            13 => self.skip(16),
            BINARY => {
                let n = self.number()?;
                self.skip(n)
            }
            LIST | SET => self.list(depth),
            MAP => self.map(depth),
            STRUCT => self.fields(depth),
            _ => Err(Fault::Refused("types of Thrift's compact encoding")),
        }
    }

    fn fields(&mut self, depth: usize) -> Result<(), Fault> {
        loop {
            let head = self.byte()?;
            let (step, kind) = (head >> 4, head & 0x0F);
            if kind == STOP {
                return Ok(());
            }
            if step == 0 {
                self.number()?; // the field's own, where it is not near the one before
            }
            if !BOOLEANS.contains(&kind) {
                self.value(kind, depth - 1)?;
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<(), Fault> {
        let head = self.byte()?;
        let n = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
        self.elements(n, &[head & 0x0F], depth)
    }

    fn map(&mut self, depth: usize) -> Result<(), Fault> {
        let n = self.number()?;
        if n == 0 {
            return Ok(());
        }
        let kinds = self.byte()?;
        self.elements(n, &[kinds >> 4, kinds & 0x0F], depth)
    }

    fn elements(&mut self, n: u64, kinds: &[u8], depth: usize) -> Result<(), Fault> {
        if n > 0 && kinds.iter().any(|kind| BOOLEANS.contains(kind)) {
            return Err(Fault::Refused("no collection of booleans"));
        }
        for _ in 0..n {
            for &kind in kinds {
                self.value(kind, depth - 1)?;
            }
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let (&byte, rest) = self.rest.split_first().ok_or(Fault::Cut)?;
        self.rest = rest;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    fn skip(&mut self, n: u64) -> Result<(), Fault> {
        let n = usize::try_from(n).map_err(|_| Fault::Cut)?;
        self.rest = self.rest.get(n..).ok_or(Fault::Cut)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_walked_to_its_end() {
        // 1: i32 -3; 2: "ab"; 3: list of two i32; 5: true; 600: map of one string to a structure with a double; 601: set.
        let map = [0x0B, 0xB0, 0x09, 0x01, 0x8C, 0x01, b'k', 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0x00];
        let bytes =
            [&[0x15, 0x05, 0x18, 0x02, b'a', b'b', 0x19, 0x25, 0x02, 0x04, 0x21], &map[..], &[0x1A, 0x13, 7, 0]];
        let bytes = bytes.concat();
        assert_eq!(check(&bytes), Ok(()));
        assert_eq!(check(&[&bytes[..], &[0xFF; 9]].concat()), Ok(()), "what follows is not looked at");
        for n in 0..bytes.len() {
            assert_eq!(check(&bytes[..n]), Err(Fault::Cut), "{n} bytes");
        }
    }

    #[test]
    fn what_takes_long_to_skip_is_refused_at_once() {
        let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x07];
        for kind in BOOLEANS {
            let refused = Err(Fault::Refused("no collection of booleans"));
            assert_eq!(check(&[&[0xF9, 0xF0 | kind][..], &huge].concat()), refused);
            assert_eq!(check(&[&[0xFA, 0xF0 | kind][..], &huge].concat()), refused);
            assert_eq!(check(&[&[0x1B][..], &huge, &[kind << 4 | 5]].concat()), refused);
            assert_eq!(check(&[0x19, 0x10 | kind, 0x00]), refused);
        }
        assert_eq!(check(&[&[0xF9, 0xF5][..], &huge, &[1; 50]].concat()), Err(Fault::Cut));
        assert_eq!(check(&[0x1C; 99]), Err(Fault::Refused("structures of at most 32 levels")));
        assert_eq!(check(&[0x1F, 0x00]), Err(Fault::Refused("types of Thrift's compact encoding")));
        assert_eq!(check(&[0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]), Err(Fault::Cut));
    }
}
