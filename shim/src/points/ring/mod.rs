//! Shared rings of the split drivers, both ends, over one or several frames
//! (`xen/include/public/io/ring.h`).
//!
//! The other end may write anything at any moment.  An index is therefore read once and compared
//! with what is possible, and a slot is copied out before anybody looks at it; an end that lies
//! gets a [`RingError`], upon which its device leaves the ring alone for good.  Our own indexes are
//! private: those in the ring are only ever written.
//!
//! Slots are bytes; what they mean is the device's business.

mod back;
mod front;

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

use xen_abi::{Mfn, PAGE_SIZE};

use crate::mem::Frames;

pub use back::BackRing;
pub use front::FrontRing;

/// Bytes before the first slot.
const HEADER: usize = 64;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// The other end of a ring claims what can not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingError {
    /// The producer index that it wrote.
    pub claimed: u32,
    /// How far our end has come.
    pub consumed: u32,
    /// How many new entries there could be at most.
    pub possible: u32,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "producer index {:#x} after {:#x} with room for {}",
            self.claimed, self.consumed, self.possible
        )
    }
}

/// Returns how many slots of `slot` bytes a ring over `frames` frames has: a power of two, or 0
/// when not even one fits.
pub const fn ring_entries(slot: usize, frames: usize) -> u32 {
    let room = match (frames * PAGE_SIZE).checked_sub(HEADER) {
        Some(room) if slot != 0 => room / slot,
        _ => 0,
    };
    if room == 0 { 0 } else { 1 << room.ilog2() }
}

/// Where the slots are.
#[derive(Debug)]
struct Slots<const SLOT: usize> {
    frames: Vec<Mfn>,
    entries: u32,
}

impl<const SLOT: usize> Slots<SLOT> {
    fn new(frames: Vec<Mfn>) -> Self {
        let entries = ring_entries(SLOT, frames.len());
        assert!(entries > 0, "a ring needs frames");
        Self { frames, entries }
    }

    /// The frame that holds the indexes.
    fn head(&self) -> Mfn {
        self.frames[0]
    }

    /// Calls `part` for each frame that slot `index` touches, with the place in that frame and the
    /// range of the slot's bytes: a slot of a ring of several frames may lie across two of them.
    fn each_part(
        &self,
        index: u32,
        len: usize,
        mut part: impl FnMut(Mfn, usize, core::ops::Range<usize>),
    ) {
        debug_assert!(len <= SLOT);
        let start = HEADER + (index & (self.entries - 1)) as usize * SLOT;
        let mut done = 0;
        while done < len {
            let at = start + done;
            let offset = at % PAGE_SIZE;
            let end = len.min(done + PAGE_SIZE - offset);
            part(self.frames[at / PAGE_SIZE], offset, done..end);
            done = end;
        }
    }

    fn copy(&self, mem: &dyn Frames, index: u32) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        self.each_part(index, SLOT, |frame, offset, range| {
            mem.read(frame, offset, &mut bytes[range]);
        });
        bytes
    }

    fn put(&self, mem: &dyn Frames, index: u32, bytes: &[u8]) {
        self.each_part(index, bytes.len(), |frame, offset, range| {
            mem.write(frame, offset, &bytes[range]);
        });
    }

    /// Reads the producer index at `field` and returns how many entries there are beyond
    /// `consumed`, at most `possible`.
    fn produced(
        &self,
        mem: &dyn Frames,
        field: usize,
        consumed: u32,
        possible: u32,
    ) -> Result<u32, RingError> {
        let claimed = mem.load32(self.head(), field);
        // The slots must not be read before the index that says they are filled.
        fence(Ordering::Acquire);
        let new = claimed.wrapping_sub(consumed);
        if new > possible {
            return Err(RingError {
                claimed,
                consumed,
                possible,
            });
        }
        Ok(new)
    }

    /// Publishes a producer index and says whether the other end wants to be told.
    fn publish(&self, mem: &dyn Frames, prod: usize, event: usize, old: u32, new: u32) -> bool {
        // The slots must be seen before the index that says they are filled.
        fence(Ordering::Release);
        mem.store32(self.head(), prod, new);
        // The index must be seen before we look whether anybody sleeps: the other end stores its
        // event index first and looks at ours afterwards.
        fence(Ordering::SeqCst);
        let wanted = mem.load32(self.head(), event);
        // Indexes wrap around. The other end is told if `wanted` lies in what is new; by nonsense it
        // only misses news of its own, or is told once too often.
        new.wrapping_sub(wanted) < new.wrapping_sub(old)
    }
}

#[cfg(test)]
mod tests;
