//! Lists of slots, first in, first out; a slot is in one list or in none.
//!
//! Entries stand in blocks of one cache line, so that taking a slot out touches its own block and seldom a neighbour's, and the slots
//! that come next can be read ahead without following a chain. Blocks that run empty join their neighbours, which bounds the memory.

use crate::id::Slot;
use crate::memory::prefetch;

const ENTRIES: usize = 13;
/// Neighbours that have no more entries than this between them become one block.
const JOINED: u8 = 8;
/// A block that has no more than this looks for such a neighbour when it loses an entry. So two neighbours have `JOINED` at least: where
/// one has fewer than `JOINED - 1`, they had more when it looked, and the other has not looked since.
const LOOKING: u8 = JOINED - 2;
const NONE: u32 = u32::MAX;
/// A block's number and a place in it share a word.
const PLACE_BITS: u32 = 4;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Block {
    /// Slots in order, `NONE` where one was taken out.
    entries: [u32; ENTRIES],
    previous: u32,
    next: u32,
    list: u16,
    /// Places used so far, and how many of them still have a slot.
    used: u8,
    live: u8,
}

/// Where a slot is.
#[derive(Clone, Copy)]
struct Place {
    at: u32,
    list: u16,
}

const NOWHERE: Place = Place { at: NONE, list: u16::MAX };

/// The most blocks of so many entries: two neighbours for every `JOINED` of them, and the last block of each list.
fn blocks(entries: usize, lists: usize) -> usize {
    entries * 2 / usize::from(JOINED) + lists.min(entries) + 1
}

/// Lists of slots, by number.
pub(super) struct SlotLists {
    places: Vec<Place>,
    blocks: Vec<Block>,
    /// Blocks that no list has, chained by `next`.
    free: u32,
    /// The first and the last block of each list.
    ends: Vec<(u32, u32)>,
    /// The lists that are not empty, as bits.
    occupied: Vec<u64>,
}

impl SlotLists {
    /// So many empty lists.
    pub(super) fn new(slots: u32, lists: u16) -> Self {
        Self {
            places: vec![NOWHERE; slots as usize],
            blocks: Vec::with_capacity(blocks(slots as usize, usize::from(lists))),
            free: NONE,
            ends: vec![(NONE, NONE); usize::from(lists)],
            occupied: vec![0; usize::from(lists).div_ceil(64)],
        }
    }

    /// Makes room for so many more, behind the slots that there were room for at first.
    pub(super) fn extend_behind(&mut self, slots: u32, more: usize) {
        let entries = self.places.len().max(slots as usize + more);
        self.places.resize(entries, NOWHERE);
        self.blocks.reserve_exact(blocks(entries, self.ends.len()) - self.blocks.len());
    }

    /// Puts a slot that is in no list in the place of another, which is in none then.
    pub(super) fn rename(&mut self, from: Slot, to: Slot) {
        debug_assert!(self.list_of(to).is_none());
        let place = std::mem::replace(&mut self.places[from.index()], NOWHERE);
        self.places[to.index()] = place;
        if place.at != NONE {
            let block = &mut self.blocks[(place.at >> PLACE_BITS) as usize];
            block.entries[(place.at & ((1 << PLACE_BITS) - 1)) as usize] = to.0;
        }
    }

    /// The list that has the slot.
    #[inline]
    pub(super) fn list_of(&self, slot: Slot) -> Option<u16> {
        let place = self.places[slot.index()];
        (place.at != NONE).then_some(place.list)
    }

    /// The lists `64 * word` to `64 * word + 63` that are not empty, as bits.
    #[inline]
    pub(super) fn occupied(&self, word: usize) -> u64 {
        self.occupied[word]
    }

    /// The first slot of a list.
    #[inline]
    pub(super) fn first(&self, list: u16) -> Option<Slot> {
        let block = self.blocks.get(self.ends[usize::from(list)].0 as usize)?;
        block.entries.iter().find(|&&slot| slot != NONE).map(|&slot| Slot(slot))
    }

    /// The slots of a list, in order.
    pub(super) fn slots(&self, list: u16) -> impl Iterator<Item = Slot> {
        let block = |at: &u32| self.blocks.get(*at as usize);
        let (first, _) = self.ends[usize::from(list)];
        std::iter::successors(Some(first), move |at| block(at).map(|block| block.next))
            .map_while(move |at| block(&at))
            .flat_map(|block| block.entries[..usize::from(block.used)].iter().copied())
            .filter(|&slot| slot != NONE)
            .map(Slot)
    }

    /// Asks for what moving the slot reads.
    #[inline]
    pub(super) fn prefetch(&self, slot: Slot) {
        prefetch(&self.places, slot.index());
    }

    /// Appends a slot that is in no list.
    pub(super) fn append(&mut self, list: u16, slot: Slot) {
        debug_assert!(self.list_of(slot).is_none());
        let last = match self.ends[usize::from(list)].1 {
            NONE => self.extend(list),
            last => match self.blocks[last as usize] {
                Block { used, .. } if usize::from(used) < ENTRIES => last,
                Block { live, .. } if live <= JOINED => {
                    self.tighten(last);
                    last
                }
                _ => self.extend(list),
            },
        };
        self.put(last, slot.0);
    }

    /// Takes a slot out of its list, if it is in one.
    pub(super) fn remove(&mut self, slot: Slot) {
        let Place { at, .. } = std::mem::replace(&mut self.places[slot.index()], NOWHERE);
        if at == NONE {
            return;
        }
        let block = at >> PLACE_BITS;
        let Block { entries, live, previous, next, .. } = &mut self.blocks[block as usize];
        entries[(at & ((1 << PLACE_BITS) - 1)) as usize] = NONE;
        *live -= 1;
        let (previous, next) = (*previous, *next);
        if *live == 0 {
            self.unlink(block);
        } else if *live <= LOOKING && !self.join(block, next) {
            self.join(previous, block);
        }
    }

    /// Gives a list one more block, at its end.
    fn extend(&mut self, list: u16) -> u32 {
        let (first, last) = self.ends[usize::from(list)];
        let fresh = Block { entries: [NONE; ENTRIES], previous: last, next: NONE, list, used: 0, live: 0 };
        let at = match self.free {
            NONE => {
                debug_assert!(self.blocks.len() < self.blocks.capacity(), "the bound on blocks is wrong");
                self.blocks.push(fresh);
                self.blocks.len() as u32 - 1
            }
            at => {
                self.free = std::mem::replace(&mut self.blocks[at as usize], fresh).next;
                at
            }
        };
        match last {
            NONE => self.occupied[usize::from(list) / 64] |= 1 << (list % 64),
            last => self.blocks[last as usize].next = at,
        }
        self.ends[usize::from(list)] = (if first == NONE { at } else { first }, at);
        at
    }

    /// Puts a slot at the end of a block with room.
    #[inline]
    fn put(&mut self, at: u32, slot: u32) {
        let block = &mut self.blocks[at as usize];
        block.entries[usize::from(block.used)] = slot;
        self.places[slot as usize] = Place { at: at << PLACE_BITS | u32::from(block.used), list: block.list };
        block.used += 1;
        block.live += 1;
    }

    /// Closes the gaps of a block.
    fn tighten(&mut self, at: u32) {
        let block = &mut self.blocks[at as usize];
        let entries = std::mem::replace(&mut block.entries, [NONE; ENTRIES]);
        (block.used, block.live) = (0, 0);
        entries.into_iter().filter(|&slot| slot != NONE).for_each(|slot| self.put(at, slot));
    }

    /// Makes a block and its follower one, where they are there and few entries remain; whether it did.
    fn join(&mut self, at: u32, next: u32) -> bool {
        let (Some(block), Some(follower)) = (self.blocks.get(at as usize), self.blocks.get(next as usize)) else {
            return false;
        };
        if block.live + follower.live > JOINED {
            return false;
        }
        let entries = follower.entries;
        self.tighten(at);
        self.unlink(next);
        entries.into_iter().filter(|&slot| slot != NONE).for_each(|slot| self.put(at, slot));
        true
    }

    /// Takes a block from its list.
    fn unlink(&mut self, at: u32) {
        let Block { previous, next, list, .. } = self.blocks[at as usize];
        let ends = &mut self.ends[usize::from(list)];
        match previous {
            NONE => ends.0 = next,
            previous => self.blocks[previous as usize].next = next,
        }
        match next {
            NONE => ends.1 = previous,
            next => self.blocks[next as usize].previous = previous,
        }
        if ends.0 == NONE {
            self.occupied[usize::from(list) / 64] &= !(1 << (list % 64));
        }
        self.blocks[at as usize].next = self.free;
        self.free = at;
    }

    pub(super) fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<Place>()
            + self.blocks.capacity() * size_of::<Block>()
            + self.ends.capacity() * size_of::<(u32, u32)>()
            + self.occupied.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the lists are lists, in memory that stays within its bound. Method: plain lists beside them, over random appends and removals
    //! with long runs of either, so that blocks fill, run empty and join.
    use super::*;
    use proptest::prelude::*;

    const SLOTS: u32 = 120;
    const LISTS: u16 = 3;

    proptest! {
        #[test]
        fn they_are_first_in_first_out(
            runs in prop::collection::vec((any::<bool>(), 0..LISTS, prop::collection::vec(0..SLOTS, 0..60)), 0..40)
        ) {
            let mut lists = SlotLists::new(SLOTS, LISTS);
            let bound = lists.blocks.capacity();
            let mut model = vec![Vec::new(); usize::from(LISTS)];
            for (append, list, slots) in runs {
                for slot in slots.into_iter().map(Slot) {
                    if !append {
                        lists.remove(slot);
                        model.iter_mut().for_each(|list| list.retain(|&other| other != slot));
                    } else if lists.list_of(slot).is_none() {
                        lists.append(list, slot);
                        model[usize::from(list)].push(slot);
                    }
                }
                for list in 0..LISTS {
                    let expected = &model[usize::from(list)];
                    prop_assert_eq!(&lists.slots(list).collect::<Vec<_>>(), expected);
                    prop_assert_eq!(lists.first(list), expected.first().copied());
                    prop_assert_eq!(lists.occupied(0) >> list & 1 == 1, !expected.is_empty());
                    prop_assert!(expected.iter().all(|&slot| lists.list_of(slot) == Some(list)));
                }
                let listed: usize = model.iter().map(Vec::len).sum();
                let anywhere = (0..SLOTS).filter(|&slot| lists.list_of(Slot(slot)).is_some()).count();
                prop_assert_eq!(anywhere, listed);
                prop_assert_eq!(lists.blocks.capacity(), bound);
            }
        }
    }

    #[test]
    fn a_slot_takes_the_place_of_one_behind_the_slots() {
        let mut lists = SlotLists::new(3, 1);
        lists.extend_behind(3, 2);
        (0..5).for_each(|slot| lists.append(0, Slot(slot)));
        lists.remove(Slot(1));
        lists.rename(Slot(3), Slot(1));
        assert_eq!(lists.slots(0).collect::<Vec<_>>(), [0, 2, 1, 4].map(Slot));
        assert_eq!((lists.list_of(Slot(1)), lists.list_of(Slot(3))), (Some(0), None));
        lists.remove(Slot(1));
        assert_eq!(lists.slots(0).collect::<Vec<_>>(), [0, 2, 4].map(Slot));
    }

    #[test]
    fn scattered_survivors_keep_to_the_bound() {
        let slots = 10_000;
        let mut lists = SlotLists::new(slots, 64);
        let bound = lists.blocks.capacity();
        for round in 0..20 {
            for slot in (0..slots).map(Slot).filter(|slot| slot.0 % 13 != round % 13) {
                lists.remove(slot);
                lists.append((slot.0 * 7 % 64) as u16, slot);
            }
        }
        assert_eq!(lists.blocks.capacity(), bound);
    }
}
