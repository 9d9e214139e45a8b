//! The flow of requests: from the guest's ring into the shadow, and answers back into the ring.
//!
//! Nothing is ever dropped for want of room.  What the host can not take now stays in the backlog,
//! and what does not fit there in the guest's ring; the next answer of the host takes it up, or, if
//! there is none to come, [`Device::retry`](crate::points::Device::retry).

use xen_abi::blkif::{Response, status};
use zerocopy::IntoBytes;

use super::Vbd;
use super::request::{self, Refused};
use super::shadow::MAX_ENTRIES;
use crate::heap;
use crate::points::Cx;
use crate::points::device::Stage;

impl Vbd {
    /// Moves whatever can be moved from the guest to the host, and tells both.
    pub(super) fn pump(&mut self, cx: &mut Cx<'_>) {
        // Requests that are answered at once make room for more, so a guest could keep us here.
        let mut budget = 2 * MAX_ENTRIES;
        loop {
            if !self.issue_backlog(cx) || !self.can_take() {
                break;
            }
            if budget == 0 {
                self.wants_retry = true;
                break;
            }
            budget -= 1;
            if !self.take_one(cx) {
                break;
            }
        }
        if let (Some(ring), Some(port)) = (&mut self.host.ring, self.host.port)
            && ring.push(cx.frames)
        {
            cx.xen.notify(port);
        }
        self.push_answers(cx);
        self.guest_drained(cx);
    }

    /// Publishes the answers that were written to the guest's ring.
    pub(super) fn push_answers(&mut self, cx: &mut Cx<'_>) {
        if let (Some(ring), Some(port)) = (&mut self.guest.ring, self.guest.port)
            && ring.push(cx.frames)
        {
            cx.ports.raise(port);
        }
    }

    /// Whether a request may be taken from the guest: it can be passed on, or it has to fail.
    fn can_take(&self) -> bool {
        !self.is_quiescing
            && !self.guest.is_broken
            && self.shadow.entries.len() < MAX_ENTRIES
            // Without room one at a time: its answer takes up the next.
            && (self.shadow.entries.len() == 0 || heap::has_room())
            && matches!(self.host.stage, Stage::Connected | Stage::Broken(_))
    }

    /// Takes the guest's next request; `false` when there is none.
    fn take_one(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(ring) = &mut self.guest.ring else {
            return false;
        };
        let waiting = match ring.pending(cx.frames) {
            Ok(0) => ring.final_check(cx.frames),
            found => found.map(|_| true),
        };
        match waiting {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                self.log
                    .warn(self.id, format_args!("the guest's ring has {error}"));
                self.guest.is_broken = true;
                return false;
            }
        }
        let Some(shown) = &self.shown else {
            return false;
        };
        let slot = ring.copy_request(cx.frames, 0);
        ring.consume(1);
        let segments = self.shadow.take_segments();
        match request::parse(&slot, shown, cx.frames, cx.grants, segments) {
            Ok(mut wanted) if self.host.offer.is_none() => {
                wanted.release(cx.grants);
                self.respond(cx, wanted.id, wanted.operation, status::ERROR);
            }
            Ok(wanted) => self.shadow.add(wanted),
            Err(Refused {
                id,
                operation,
                status,
                why,
            }) => {
                self.log.warn(
                    self.id,
                    format_args!("the guest's request {id:#x} ({operation}) has {why}"),
                );
                self.respond(cx, id, operation, status);
            }
        }
        true
    }

    /// Ends an entry: lets go of the guest's frames and answers, if there is still somebody.
    pub(super) fn answer_entry(&mut self, cx: &mut Cx<'_>, number: u32) {
        let Some(mut entry) = self.shadow.entries.remove(number) else {
            return;
        };
        entry.wanted.release(cx.grants);
        self.respond(cx, entry.wanted.id, entry.wanted.operation, entry.status);
        self.shadow.keep_segments(entry.wanted.segments);
    }

    /// Writes an answer into the guest's ring.  The driver may be gone, and no other one connects
    /// before everything that it asked for has ended.
    fn respond(&mut self, cx: &mut Cx<'_>, id: u64, operation: u8, status: i16) {
        if let Some(ring) = &mut self.guest.ring {
            let response = Response {
                id,
                operation,
                status,
                ..Response::default()
            };
            ring.respond(cx.frames, response.as_bytes());
        }
    }
}
