//! A slot of the cache: the key of a piece, and its ids or where they are.
//!
//! ```text
//! 0            16                           31
//! key           seven ids below 2¹⁶         number     of a vocabulary that has no others
//! key           four ids: low, high halves  number
//! key           place u32, number u16       0xFF       in the arena
//! ```
//! All little-endian. Ids below 2¹⁶ stand as they are given out, and of the others the high halves have five bits.

/// Bytes of a slot.
pub(crate) const SLOT: usize = 32;

pub(crate) type RawSlot = [u8; SLOT];

/// A slot without its key, as halves of ids.
pub(crate) type Halves = [u16; N_HALVES];

pub(crate) const N_HALVES: usize = 8;

/// Ids that fit, if all are below 2¹⁶, and otherwise.
const MAX_NARROW: usize = 7;
const MAX_WIDE: usize = 4;

/// The number of ids that stand in the arena.
const ELSEWHERE: u8 = 0xFF;

/// The largest number of ids that stand in a slot.
pub(crate) const INLINE: usize = MAX_NARROW;

/// A slot with `ids` in it; `None` when they do not fit.
pub(crate) fn inline(key: u128, ids: &[u32], is_narrow: bool) -> Option<RawSlot> {
    let mut halves = [0; N_HALVES];
    if ids.len() > if is_narrow { MAX_NARROW } else { MAX_WIDE } {
        return None;
    }
    for (i, &id) in ids.iter().enumerate() {
        halves[i] = id as u16;
        if !is_narrow {
            halves[MAX_WIDE + i] = (id >> 16) as u16;
        }
    }
    Some(with(key, halves, ids.len() as u8))
}

/// A slot for `n` ids at `place` in the arena.
pub(crate) fn far(key: u128, place: u32, n: u16) -> RawSlot {
    with(key, [place as u16, (place >> 16) as u16, n, 0, 0, 0, 0, 0], ELSEWHERE)
}

fn with(key: u128, halves: Halves, n: u8) -> RawSlot {
    let mut slot = [0; SLOT];
    slot[..16].copy_from_slice(&key.to_le_bytes());
    slot[16..].chunks_exact_mut(2).zip(halves).for_each(|(bytes, half)| bytes.copy_from_slice(&half.to_le_bytes()));
    slot[SLOT - 1] = n;
    slot
}

/// The key of the slot that starts at `at`; 0 when it is free.
#[inline]
pub(crate) fn key(bytes: &[u8], at: usize) -> u128 {
    let mut key = [0; 16];
    key.copy_from_slice(&bytes[at..at + 16]);
    u128::from_le_bytes(key)
}

/// What a slot holds, and how many ids: more than [`INLINE`] when they are [`elsewhere`].
#[inline]
pub(crate) fn content(slot: &RawSlot) -> (Halves, usize) {
    let halves = std::array::from_fn(|i| u16::from_le_bytes([slot[16 + 2 * i], slot[17 + 2 * i]]));
    (halves, usize::from(slot[SLOT - 1]))
}

/// The ids of a slot that has them, in front of anything else.
#[inline]
pub(crate) fn wide(halves: Halves, is_narrow: bool) -> [u32; N_HALVES] {
    if is_narrow {
        return halves.map(u32::from);
    }
    std::array::from_fn(|i| {
        let high = halves.get(MAX_WIDE + i).map_or(0, |high| u32::from(high & 0xFF));
        u32::from(halves[i]) | high << 16
    })
}

/// Where the ids of a slot stand in the arena that has them: their place and number.
pub(crate) fn elsewhere(halves: Halves) -> (usize, usize) {
    (usize::from(halves[0]) | usize::from(halves[1]) << 16, usize::from(halves[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_gives_back_what_it_was_given() {
        for is_narrow in [true, false] {
            let largest = if is_narrow { u32::from(u16::MAX) } else { (1 << 21) - 1 };
            for n in 0..=8 {
                let ids: Vec<u32> = (0..n).map(|i| largest - i).collect();
                let room = if is_narrow { 7 } else { 4 };
                let slot = inline(5, &ids, is_narrow);
                assert_eq!(slot.is_some(), n <= room, "{n} ids");
                let Some(slot) = slot else { continue };
                let (halves, n_ids) = content(&slot);
                assert_eq!((key(&slot, 0), n_ids), (5, ids.len()));
                assert_eq!(wide(halves, is_narrow)[..n_ids], ids);
            }
        }
        let slot = far(u128::MAX, u32::MAX - 1, 128);
        assert!(content(&slot).1 > INLINE);
        assert_eq!((key(&slot, 0), elsewhere(content(&slot).0)), (u128::MAX, (u32::MAX as usize - 1, 128)));
    }
}
