//! The frontend's end of a ring.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use xen_abi::Mfn;

use super::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingError, Slots};
use crate::mem::Frames;

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
        // The backend must not read what the frames were used for before.
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
        if self.pending(mem)? > 0 {
            return Ok(true);
        }
        // As in `BackRing::final_check`: our index first, then a look at theirs.
        mem.store32(self.slots.head(), RSP_EVENT, self.rsp_cons.wrapping_add(1));
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? > 0)
    }

    /// Whether a response waits to be taken; if none does, asks to be notified of the next.
    pub fn has_response(&self, mem: &dyn Frames) -> Result<bool, RingError> {
        match self.pending(mem)? {
            0 => self.final_check(mem),
            _ => Ok(true),
        }
    }

    /// Takes the next response; if there is none, asks to be notified of it.
    pub fn take(&mut self, mem: &dyn Frames) -> Result<Option<[u8; SLOT]>, RingError> {
        if !self.has_response(mem)? {
            return Ok(None);
        }
        let slot = self.copy_response(mem, 0);
        self.consume(1);
        Ok(Some(slot))
    }
}
