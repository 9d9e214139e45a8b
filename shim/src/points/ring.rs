//! Shared rings of the split drivers, both ends, over one or several frames
//! (`xen/include/public/io/ring.h`).
//!
//! The other end may write anything at any moment.  An index is therefore read once and compared
//! with what is possible, and a slot is copied out before anybody looks at it; an end that lies
//! gets a [`RingError`], upon which its device leaves the ring alone for good.  Our own indexes are
//! private: those in the ring are only ever written.
//!
//! Slots are bytes; what they mean is the device's business.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

use xen_abi::{Mfn, PAGE_SIZE};

use crate::mem::Frames;

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
        new.wrapping_sub(wanted) < new.wrapping_sub(old)
    }
}

/// The end that takes requests and gives responses.
#[derive(Debug)]
pub struct BackRing<const SLOT: usize> {
    slots: Slots<SLOT>,
    /// Requests up to here were taken.
    req_cons: u32,
    /// Responses up to here were written ...
    rsp_prod: u32,
    /// ... and up to here are known to the other end.
    rsp_published: u32,
}

impl<const SLOT: usize> BackRing<SLOT> {
    /// Attaches to a ring that the other end has made.  `frames` are as many as the other end
    /// announced, at least one.
    pub fn attach(mem: &dyn Frames, frames: Vec<Mfn>) -> Result<Self, RingError> {
        let slots = Slots::new(frames);
        // A frontend that comes back may offer the ring that it had; everything up to the last
        // response is settled.
        let start = mem.load32(slots.head(), RSP_PROD);
        let ring = Self {
            slots,
            req_cons: start,
            rsp_prod: start,
            rsp_published: start,
        };
        ring.pending(mem)?;
        Ok(ring)
    }

    /// Number of slots.
    pub fn entries(&self) -> u32 {
        self.slots.entries
    }

    /// The ring's frames.
    pub fn frames(&self) -> &[Mfn] {
        &self.slots.frames
    }

    /// Number of requests that were taken and not yet answered.
    pub fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Number of requests that wait to be taken.
    pub fn pending(&self, mem: &dyn Frames) -> Result<u32, RingError> {
        let possible = self.slots.entries - self.unanswered();
        self.slots.produced(mem, REQ_PROD, self.req_cons, possible)
    }

    /// Copies a waiting request, `ahead` after the next one, without taking it.  It must be one of
    /// those that [`pending`](Self::pending) counted, and what it says may have changed when it is
    /// copied again.
    pub fn copy_request(&self, mem: &dyn Frames, ahead: u32) -> [u8; SLOT] {
        self.slots.copy(mem, self.req_cons.wrapping_add(ahead))
    }

    /// Takes the next `count` requests, which [`pending`](Self::pending) counted.
    pub fn consume(&mut self, count: u32) {
        assert!(
            count <= self.slots.entries - self.unanswered(),
            "more requests taken than the ring holds"
        );
        self.req_cons = self.req_cons.wrapping_add(count);
    }

    /// Writes the next response; the other end sees it after the next [`push`](Self::push).
    pub fn respond(&mut self, mem: &dyn Frames, response: &[u8]) {
        assert!(self.unanswered() > 0, "a response without a request");
        self.slots.put(mem, self.rsp_prod, response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Publishes what was written and says whether the other end wants to be notified.
    #[must_use]
    pub fn push(&mut self, mem: &dyn Frames) -> bool {
        if self.rsp_prod == self.rsp_published {
            return false;
        }
        let old = core::mem::replace(&mut self.rsp_published, self.rsp_prod);
        self.slots
            .publish(mem, RSP_PROD, RSP_EVENT, old, self.rsp_prod)
    }

    /// Asks to be notified of the next request, and says whether one is there already.
    pub fn final_check(&self, mem: &dyn Frames) -> Result<bool, RingError> {
        if self.pending(mem)? > 0 {
            return Ok(true);
        }
        mem.store32(self.slots.head(), REQ_EVENT, self.req_cons.wrapping_add(1));
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? > 0)
    }

    /// Asks not to be notified before the other end has made `more` further requests: for a ring
    /// whose requests are left waiting until something else happens.
    pub fn ignore_next(&self, mem: &dyn Frames, more: u32) {
        mem.store32(
            self.slots.head(),
            REQ_EVENT,
            self.req_cons.wrapping_add(more).wrapping_add(1),
        );
    }
}

/// The end that gives requests and takes responses.
#[derive(Debug)]
pub struct FrontRing<const SLOT: usize> {
    slots: Slots<SLOT>,
    /// Requests up to here were written ...
    req_prod: u32,
    /// ... and up to here are known to the other end.
    req_published: u32,
    /// Responses up to here were taken.
    rsp_cons: u32,
}

impl<const SLOT: usize> FrontRing<SLOT> {
    /// Makes an empty ring over `frames`, whose content is lost.
    pub fn new(mem: &dyn Frames, frames: Vec<Mfn>) -> Self {
        let slots = Slots::new(frames);
        slots.frames.iter().for_each(|&frame| mem.clear(frame));
        mem.store32(slots.head(), REQ_EVENT, 1);
        mem.store32(slots.head(), RSP_EVENT, 1);
        Self {
            slots,
            req_prod: 0,
            req_published: 0,
            rsp_cons: 0,
        }
    }

    /// Number of slots.
    pub fn entries(&self) -> u32 {
        self.slots.entries
    }

    /// The ring's frames.
    pub fn frames(&self) -> &[Mfn] {
        &self.slots.frames
    }

    /// Ends the use of the ring and returns its frames.
    pub fn into_frames(self) -> Vec<Mfn> {
        self.slots.frames
    }

    /// Number of requests that can be written.
    pub fn free(&self) -> u32 {
        self.slots.entries - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes the next request, for which there must be room; the other end sees it after the next
    /// [`push`](Self::push).
    pub fn put(&mut self, mem: &dyn Frames, request: &[u8]) {
        assert!(self.free() > 0, "a request without room");
        self.slots.put(mem, self.req_prod, request);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// The index that the next request written will have.
    pub fn next_index(&self) -> u32 {
        self.req_prod
    }

    /// Publishes what was written and says whether the other end wants to be notified.
    #[must_use]
    pub fn push(&mut self, mem: &dyn Frames) -> bool {
        if self.req_prod == self.req_published {
            return false;
        }
        let old = core::mem::replace(&mut self.req_published, self.req_prod);
        self.slots
            .publish(mem, REQ_PROD, REQ_EVENT, old, self.req_prod)
    }

    /// Number of responses that wait to be taken.
    pub fn pending(&self, mem: &dyn Frames) -> Result<u32, RingError> {
        let possible = self.req_published.wrapping_sub(self.rsp_cons);
        self.slots.produced(mem, RSP_PROD, self.rsp_cons, possible)
    }

    /// Copies a waiting response, `ahead` after the next one, without taking it.
    pub fn copy_response(&self, mem: &dyn Frames, ahead: u32) -> [u8; SLOT] {
        self.slots.copy(mem, self.rsp_cons.wrapping_add(ahead))
    }

    /// Takes the next `count` responses, which [`pending`](Self::pending) counted.
    pub fn consume(&mut self, count: u32) {
        assert!(
            count <= self.req_published.wrapping_sub(self.rsp_cons),
            "more responses taken than requests made"
        );
        self.rsp_cons = self.rsp_cons.wrapping_add(count);
    }

    /// Asks to be notified of the next response, and says whether one is there already.
    pub fn final_check(&self, mem: &dyn Frames) -> Result<bool, RingError> {
        self.check_after(mem, 1)
    }

    /// Asks to be notified when half of what has been asked is answered, and says whether a response
    /// is there already: for responses that nobody hurries for.  The last one is always told of.
    pub fn final_check_half(&self, mem: &dyn Frames) -> Result<bool, RingError> {
        let unanswered = self.req_published.wrapping_sub(self.rsp_cons);
        self.check_after(mem, unanswered / 2 + 1)
    }

    fn check_after(&self, mem: &dyn Frames, responses: u32) -> Result<bool, RingError> {
        if self.pending(mem)? > 0 {
            return Ok(true);
        }
        let wanted = self.rsp_cons.wrapping_add(responses);
        mem.store32(self.slots.head(), RSP_EVENT, wanted);
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? > 0)
    }
}

#[cfg(test)]
mod tests;
