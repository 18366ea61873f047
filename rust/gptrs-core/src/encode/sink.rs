//! Where ids go, and how they are gathered before.

use super::keys::BATCH;
use crate::borders::{CHAR_IDS, CharIds};
use crate::slot::{self, Halves, N_HALVES};

/// Ids that are given to the sink at the latest before others follow.
pub(crate) const READY: usize = 8192;

/// Room for ids on their way: those of a batch of short pieces, of at most 15 bytes, and those of one longer piece in the
/// place of one of them may follow before the sink is given what there is.
const ROOM: usize = READY + BATCH * 16;

/// An id as it is kept.
pub(crate) trait Id: Copy + Default {
    /// Memory for ids of this kind.
    fn ready(ready: &mut Ready) -> &mut Vec<Self>;

    fn narrow(id: u32) -> Self;

    /// The ids of a slot, in front of anything else.
    fn of_slot(halves: Halves, is_narrow: bool) -> [Self; N_HALVES];

    /// The ids of a character, in front of anything else.
    fn of_char(ids: CharIds, is_narrow: bool) -> [Self; CHAR_IDS];
}

/// Where ids go.
pub(crate) trait Sink {
    type Id: Id;

    fn push_narrow(&mut self, ids: &[Self::Id]);

    /// [`Sink::push_narrow`] of ids that are not narrowed yet.
    fn push(&mut self, ids: &[u32]);

    /// All ids of one of several texts are here.
    fn end_text(&mut self) {}
}

impl Id for u32 {
    fn ready(ready: &mut Ready) -> &mut Vec<Self> {
        &mut ready.wide
    }

    #[inline]
    fn narrow(id: u32) -> Self {
        id
    }

    #[inline]
    fn of_slot(halves: Halves, is_narrow: bool) -> [Self; N_HALVES] {
        slot::wide(halves, is_narrow)
    }

    #[inline]
    fn of_char(ids: CharIds, is_narrow: bool) -> [Self; CHAR_IDS] {
        ids.wide(is_narrow)
    }
}

/// For vocabularies whose ids are all below 2¹⁶.
impl Id for u16 {
    fn ready(ready: &mut Ready) -> &mut Vec<Self> {
        &mut ready.narrow
    }

    #[inline]
    fn narrow(id: u32) -> Self {
        id as u16
    }

    #[inline]
    fn of_slot(halves: Halves, is_narrow: bool) -> [Self; N_HALVES] {
        debug_assert!(is_narrow, "a vocabulary with larger ids");
        halves
    }

    #[inline]
    fn of_char(ids: CharIds, is_narrow: bool) -> [Self; CHAR_IDS] {
        debug_assert!(is_narrow, "a vocabulary with larger ids");
        ids.narrow()
    }
}

/// What is only counted.
impl Id for () {
    fn ready(ready: &mut Ready) -> &mut Vec<Self> {
        &mut ready.counted
    }

    #[inline]
    fn narrow(_: u32) {}

    #[inline]
    fn of_slot(_: Halves, _: bool) -> [Self; N_HALVES] {
        [(); N_HALVES]
    }

    #[inline]
    fn of_char(_: CharIds, _: bool) -> [Self; CHAR_IDS] {
        [(); CHAR_IDS]
    }
}

impl<I: Id> Sink for Vec<I> {
    type Id = I;

    #[inline]
    fn push_narrow(&mut self, ids: &[I]) {
        self.extend_from_slice(ids);
    }

    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.extend(ids.iter().map(|&id| I::narrow(id)));
    }
}

/// Counts ids without keeping them.
#[derive(Debug, Default)]
pub(crate) struct Count(pub(crate) usize);

impl Sink for Count {
    type Id = ();

    #[inline]
    fn push_narrow(&mut self, ids: &[()]) {
        self.0 += ids.len();
    }

    #[inline]
    fn push(&mut self, ids: &[u32]) {
        self.0 += ids.len();
    }
}

/// Memory for ids on their way, of one kind or another.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ready {
    narrow: Vec<u16>,
    wide: Vec<u32>,
    counted: Vec<()>,
}

/// Ids on their way to a sink, in a room of fixed size: all copies have fixed sizes, too, and go where the next one begins.
#[derive(Debug)]
pub(crate) struct Out<'a, I> {
    pub(crate) room: &'a mut Vec<I>,
    pub(crate) n: usize,
}

impl<'a, I: Id> Out<'a, I> {
    pub(crate) fn new(ready: &'a mut Ready) -> Self {
        let room = I::ready(ready);
        room.resize(ROOM, I::default());
        Self { room, n: 0 }
    }

    /// Whether the sink should be given what there is.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.n > READY
    }

    /// Adds the ids of a character.
    #[inline]
    pub(crate) fn add_char(&mut self, ids: CharIds, n: usize, is_narrow: bool) {
        self.room[self.n..self.n + CHAR_IDS].copy_from_slice(&I::of_char(ids, is_narrow));
        self.n += n;
    }

    /// Adds the ids of a slot.
    #[inline]
    pub(super) fn add_slot(&mut self, halves: Halves, n: usize, is_narrow: bool) {
        self.room[self.n..self.n + N_HALVES].copy_from_slice(&I::of_slot(halves, is_narrow));
        self.n += n;
    }

    /// Adds the ids of a piece that is stored.
    #[inline]
    pub(super) fn add(&mut self, ids: &[u32]) {
        self.n += copy(ids, &mut self.room[self.n..]);
    }
}

/// Copies ids as they are kept; how many.
#[inline]
pub(super) fn copy<I: Id>(ids: &[u32], room: &mut [I]) -> usize {
    room.iter_mut().zip(ids).for_each(|(room, &id)| *room = I::narrow(id));
    ids.len()
}
