//! The backend's end of a ring.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use xen_abi::Mfn;

use super::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingError, Slots};
use crate::mem::Frames;

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
        // A request that is not answered keeps its slot, for the answer. Whoever claims more than
        // the rest is lying.
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
        // Not something a guest can bring about: `pending` has checked what it claimed.
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
        // The counterpart of `publish`: each end stores its own index first and reads the other's
        // afterwards, so at least one of them sees the other.
        mem.store32(self.slots.head(), REQ_EVENT, self.req_cons.wrapping_add(1));
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? > 0)
    }

    /// Whether a request waits to be taken; if none does, asks to be notified of the next.
    pub fn has_request(&self, mem: &dyn Frames) -> Result<bool, RingError> {
        match self.pending(mem)? {
            0 => self.final_check(mem),
            _ => Ok(true),
        }
    }

    /// Takes the next request; if there is none, asks to be notified of it.
    pub fn take(&mut self, mem: &dyn Frames) -> Result<Option<[u8; SLOT]>, RingError> {
        if !self.has_request(mem)? {
            return Ok(None);
        }
        let slot = self.copy_request(mem, 0);
        self.consume(1);
        Ok(Some(slot))
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
