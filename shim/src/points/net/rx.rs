//! Receiving: the guest's buffers are posted to the host, and what the host puts into them is
//! passed on.
//!
//! Both rings are kept in step: the guest's buffers go to the host one for one and in order, and
//! each response of the host answers the oldest buffer.  A buffer that can not be granted is
//! replaced by a page of ours, so that the order stays; a packet that runs through it fails as a
//! whole.  The guest sees whole packets only, so that one that the host never completes, because
//! the machine has moved, can be turned into errors.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

use xen_abi::netif::{RING_ENTRIES, RxRequest, RxResponse, status};
use zerocopy::{FromBytes, IntoBytes};

use super::incoming::{Buffer, Packet};
use super::{Net, Shell};
use crate::host::Access;
use crate::points::Cx;
use crate::points::device::Held;

/// With fewer buffers than this a driver that does not notify is looked after now and then.
const FEW: usize = 64;

/// The guest's buffers, in order.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    queue: VecDeque<Buffer>,
    /// How many of them, the oldest, are in the host's ring.
    posted: usize,
    packet: Packet,
}

impl Net {
    /// Takes the guest's buffers and posts to the host as many as there is room for.
    pub(super) fn post_buffers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        if shell.is_quiescing() {
            return;
        }
        self.take_buffers(shell, cx);
        let backend = shell.host.link.backend_id();
        while let (Some(rings), Some(buffer)) =
            (&mut shell.host.rings, self.rx.queue.get_mut(self.rx.posted))
        {
            if rings.rx.free() == 0 {
                return;
            }
            let Some(frame) = buffer.frame.or_else(|| {
                self.trash = self.trash.or_else(|| cx.pool.take());
                self.trash
            }) else {
                shell.wants_retry = true;
                return;
            };
            let Some(grant) = cx.host_grants.grant(backend, frame, Access::ReadWrite) else {
                shell.wants_retry = true;
                return;
            };
            buffer.grant = Some(grant);
            // The id is the slot: in this ring a response lies where its request was.
            buffer.host_id = rings.rx.next_index() as u16 % RING_ENTRIES as u16;
            let request = RxRequest {
                id: buffer.host_id,
                pad: 0,
                gref: grant.0,
            };
            rings.rx.put(cx.frames, request.as_bytes());
            self.rx.posted += 1;
        }
    }

    /// Takes what buffers there are in the guest's ring; they are never more than a ring full.
    fn take_buffers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        let Some(driver) = &mut shell.guest.driver else {
            return;
        };
        while !driver.is_broken {
            let slot = match driver.rx.take(cx.frames) {
                Ok(Some(slot)) => slot,
                Ok(None) => return,
                Err(error) => {
                    driver.is_broken = true;
                    shell.log.warn(
                        shell.id,
                        format_args!("the guest's receive ring has {error}; it is left alone"),
                    );
                    return;
                }
            };
            let request = RxRequest::read_from_bytes(&slot).expect("a slot has a request's size");
            let frame = cx.grants.acquire(cx.frames, request.gref, true);
            if let Err(why) = frame {
                shell.log.warn(
                    shell.id,
                    format_args!(
                        "a buffer of the guest has reference {}: {why:?}",
                        request.gref
                    ),
                );
            }
            self.rx.queue.push_back(Buffer {
                id: request.id,
                host_id: 0,
                frame: frame.ok(),
                grant: None,
            });
        }
    }

    /// Whether the guest's ring has to be looked at without having been told.
    pub(super) fn has_to_poll(&self, shell: &Shell<Self>) -> bool {
        self.rx.queue.len() < FEW
            && shell.host.rings.is_some()
            && shell
                .guest
                .driver
                .as_ref()
                .is_some_and(|driver| !driver.wishes.rx_notify)
    }

    /// Takes a response; `false` when there is none that could be taken.
    pub(super) fn take_received_part(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
    ) -> Result<bool, String> {
        let (Some(rings), Some(driver)) = (&mut shell.host.rings, &shell.guest.driver) else {
            return Ok(false);
        };
        let waiting = rings.rx.has_response(cx.frames);
        if !waiting.map_err(|error| format!("the backend's receive ring has {error}"))? {
            return Ok(false);
        }
        let buffer = self
            .rx
            .queue
            .front_mut()
            .expect("a response that can be there answers a buffer that was posted");
        // Only now, and not before the backend has let go, is it certain what the buffer holds.
        if let Some(grant) = buffer.grant {
            if !cx.host_grants.end(grant) {
                shell.wants_retry = true;
                return Ok(false);
            }
            buffer.grant = None;
        }
        let slot = rings.rx.copy_response(cx.frames, 0);
        if !self.rx.packet.wants_extra {
            let response = RxResponse::read_from_bytes(&slot).expect("a slot has its size");
            if response.id != buffer.host_id {
                return Err(format!(
                    "the backend answers buffer {} as {}",
                    buffer.host_id, response.id
                ));
            }
        }
        rings.rx.consume(1);
        self.rx.posted -= 1;
        let buffer = self.rx.queue.pop_front().expect("it was there just now");
        if let Some(frame) = buffer.frame {
            cx.grants.release(frame, true);
        }
        if let Some(wrong) = self.rx.packet.add(&buffer, slot, &driver.wishes) {
            shell
                .log
                .warn(shell.id, format_args!("a packet of the host has {wrong}"));
        }
        if self.rx.packet.is_complete() {
            self.finish_packet(shell, cx, false);
        }
        Ok(true)
    }

    /// Passes the packet that was being received on to the guest, or the news that it has failed.
    fn finish_packet(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, is_cut: bool) {
        let packet = &mut self.rx.packet;
        let failed = packet.is_bad || is_cut;
        if let Some(driver) = &mut shell.guest.driver {
            for (id, bytes) in &packet.parts {
                // Each part for itself, so that the guest does not look for more of a packet.
                let error = RxResponse {
                    id: *id,
                    status: status::ERROR,
                    ..RxResponse::default()
                };
                let response = if failed { error.as_bytes() } else { bytes };
                driver.rx.respond(cx.frames, response);
            }
        }
        packet.parts.clear();
        packet.wants_extra = false;
        packet.wants_data = false;
        packet.is_bad = false;
    }

    /// The host is another one: all buffers are to be posted anew.
    pub(super) fn rewind_buffers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.finish_packet(shell, cx, true);
        self.rx.posted = 0;
        for buffer in &mut self.rx.queue {
            // Not ended: `StoresAndGrants::reattach` has dealt with the whole table.
            buffer.grant = None;
        }
    }

    /// The host's backend is not to write into the buffers any more.
    pub(super) fn withdraw_buffers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.finish_packet(shell, cx, true);
        self.rx.posted = 0;
        self.end_withdrawn(shell, cx);
    }

    /// Tries again to end the grants of buffers that were taken back from the host.
    pub(super) fn end_withdrawn(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        for buffer in self.rx.queue.iter_mut().skip(self.rx.posted) {
            if let Some(grant) = buffer.grant {
                if cx.host_grants.end(grant) {
                    buffer.grant = None;
                } else {
                    shell.wants_retry = true;
                }
            }
        }
    }

    /// The guest's driver is gone: its frames are free as soon as the backend lets go of them.
    pub(super) fn drop_buffers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.finish_packet(shell, cx, true);
        self.rx.posted = 0;
        for buffer in self.rx.queue.drain(..) {
            match (buffer.grant, buffer.frame) {
                (Some(grant), Some(frame)) => {
                    let held = Held::Guest { frame, write: true };
                    shell.host.ending.add(cx, grant, held);
                }
                (Some(grant), None) => shell.host.ending.add(cx, grant, Held::Nothing),
                (None, Some(frame)) => cx.grants.release(frame, true),
                (None, None) => {}
            }
        }
    }
}
