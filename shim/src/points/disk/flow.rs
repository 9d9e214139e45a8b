//! The flow of requests: from the guest's ring into the shadow, and answers back into the ring.
//!
//! Nothing is ever dropped for want of room.  What the host can not take now stays in the backlog,
//! and what does not fit there in the guest's ring; the next answer of the host takes it up, or, if
//! there is none to come, [`Device::retry`](crate::points::Device::retry).

use xen_abi::blkif::{Response, status};
use zerocopy::IntoBytes;

use super::request::{self, Refused};
use super::shadow::MAX_ENTRIES;
use super::{Disk, Shell};
use crate::heap;
use crate::points::Cx;

impl Disk {
    /// Moves whatever can be moved from the guest to the host, and tells both.
    pub(super) fn move_requests(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        // Requests that are answered at once make room for more, so a guest could keep us here.
        let mut budget = 2 * MAX_ENTRIES;
        loop {
            if !self.issue_backlog(shell, cx) || !self.can_take(shell) {
                break;
            }
            if budget == 0 {
                shell.wants_retry = true;
                break;
            }
            budget -= 1;
            if !self.take_one(shell, cx) {
                break;
            }
        }
        if let Some(rings) = &mut shell.host.rings {
            rings.push(cx);
        }
        if let Some(driver) = &mut shell.guest.driver {
            driver.push(cx);
        }
    }

    /// Whether there is room for another request of the guest.
    fn can_take(&self, shell: &Shell<Self>) -> bool {
        shell.takes_requests()
            && self.shadow.entries.len() < MAX_ENTRIES
            // Without room one at a time: its answer takes up the next.
            && (self.shadow.entries.len() == 0 || heap::has_room())
    }

    /// Takes the guest's next request; `false` when there is none.
    fn take_one(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) -> bool {
        let (Some(driver), Some(shown)) = (&mut shell.guest.driver, &shell.shown) else {
            return false;
        };
        if driver.is_broken {
            return false;
        }
        let slot = match driver.ring.take(cx.frames) {
            Ok(Some(slot)) => slot,
            Ok(None) => return false,
            Err(error) => {
                driver.is_broken = true;
                let message = format_args!("the guest's ring has {error}");
                shell.log.warn(shell.id, message);
                return false;
            }
        };
        let segments = self.shadow.take_segments();
        match request::parse(&slot, shown, cx.frames, cx.grants, segments) {
            // The backend is broken, and nobody is left to be asked.
            Ok(mut wanted) if shell.host.offer.is_none() => {
                wanted.release(cx.grants);
                self.respond(shell, cx, wanted.id, wanted.operation, status::ERROR);
            }
            Ok(wanted) => self.shadow.add(wanted),
            Err(Refused {
                id,
                operation,
                status,
                why,
            }) => {
                shell.log.warn(
                    shell.id,
                    format_args!("the guest's request {id:#x} ({operation}) has {why}"),
                );
                self.respond(shell, cx, id, operation, status);
            }
        }
        true
    }

    /// Ends an entry: lets go of the guest's frames and answers, if there is still somebody.
    pub(super) fn answer_entry(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, number: u32) {
        let Some(mut entry) = self.shadow.entries.remove(number) else {
            return;
        };
        // Before the answer: with that the guest may use its pages for anything, also for page
        // tables.
        entry.wanted.release(cx.grants);
        self.respond(
            shell,
            cx,
            entry.wanted.id,
            entry.wanted.operation,
            entry.status,
        );
        self.shadow.keep_segments(entry.wanted.segments);
    }

    /// Writes an answer into the guest's ring.  The driver may be gone, and no other one connects
    /// before everything that it asked for has ended.
    fn respond(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        id: u64,
        operation: u8,
        status: i16,
    ) {
        if let Some(driver) = &mut shell.guest.driver {
            let response = Response {
                id,
                operation,
                status,
                ..Response::default()
            };
            driver.ring.respond(cx.frames, response.as_bytes());
        }
    }
}
