//! Ids in as few bytes as the vocabulary allows.

use crate::error::{Error, Result};

/// Ids, two bytes each when the vocabulary allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// For vocabularies of at most 65,536 ids.
    U16(Vec<u16>),
    /// For all others.
    U32(Vec<u32>),
}

impl Ids {
    /// None yet, with room for `n`, of a vocabulary of `vocab_size`.
    pub fn with_room(vocab_size: usize, n: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16(Vec::with_capacity(n)) } else { Self::U32(Vec::with_capacity(n)) }
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every id, widened.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        (0..self.len()).map(|i| match self {
            Self::U16(ids) => u32::from(ids[i]),
            Self::U32(ids) => ids[i],
        })
    }

    /// Appends an id.
    pub fn push(&mut self, id: u32) -> Result<()> {
        match self {
            Self::U16(ids) => ids.push(narrow(id)?),
            Self::U32(ids) => ids.push(id),
        }
        Ok(())
    }

    /// Appends what `others` has.
    pub fn append(&mut self, others: &Self) -> Result<()> {
        match (self, others) {
            (Self::U16(ids), Self::U16(others)) => ids.extend_from_slice(others),
            (Self::U32(ids), Self::U32(others)) => ids.extend_from_slice(others),
            (ids, others) => others.iter().try_for_each(|id| ids.push(id))?,
        }
        Ok(())
    }
}

/// An id in two bytes.
pub(crate) fn narrow(id: u32) -> Result<u16> {
    u16::try_from(id).map_err(|_| Error::UnknownId { id, position: 0, vocab_size: 1 << 16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_as_narrow_as_the_vocabulary_allows() {
        let mut narrow = Ids::with_room(1 << 16, 2);
        let mut wide = Ids::with_room((1 << 16) + 1, 2);
        for ids in [&mut narrow, &mut wide] {
            ids.push(7).unwrap();
            ids.push(65_535).unwrap();
        }
        assert_eq!((&narrow, &wide), (&Ids::U16(vec![7, 65_535]), &Ids::U32(vec![7, 65_535])));
        wide.append(&narrow).unwrap();
        narrow.append(&wide).unwrap();
        assert_eq!(narrow.iter().collect::<Vec<_>>(), [7, 65_535, 7, 65_535, 7, 65_535]);
        wide.push(65_536).unwrap();
        for end in [narrow.push(65_536), narrow.append(&wide)] {
            assert!(matches!(end, Err(Error::UnknownId { id: 65_536, .. })));
        }
    }
}
