//! Sending: packets go from the guest's ring to the host's, answers come back.
//!
//! Nothing is dropped for want of room: what the host can not take now stays in the guest's ring
//! until the next answer makes room, or, if there is none to come, until
//! [`Device::retry`](crate::points::Device::retry).  Only where there is nobody left who could send
//! a packet does it fail.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::size_of;

use xen_abi::Mfn;
use xen_abi::netif::{RING_ENTRIES, TX_SLOT, TxRequest, TxResponse, status, tx_flags};
use zerocopy::{FromBytes, IntoBytes};

use super::packet::{Kind, MAX_PARTS, Packet};
use super::shadow::{Owner, Sent};
use super::{Net, Shell};
use crate::host::{Access, HostRef};
use crate::points::Cx;
use crate::points::device::Held;

/// What became of an attempt to send a packet.
enum Attempt {
    /// It is at the host.
    Sent,
    /// The host can not take it now.
    Blocked,
    /// It can not be sent.
    Refused(&'static str),
}

impl Net {
    /// Sends what the guest's ring holds, as far as the host can take it.
    pub(super) fn send_packets(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        // Packets that are answered at once make room for more, so a guest could keep us here.
        for _ in 0..2 * RING_ENTRIES {
            if !shell.takes_requests() || !self.send_next(shell, cx) {
                return;
            }
        }
        shell.wants_retry = true;
    }

    /// Sends the guest's next packet; `false` when there is none, or when it has to wait.
    fn send_next(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) -> bool {
        let (Some(shown), Some(driver)) = (&shell.shown, &mut shell.guest.driver) else {
            return false;
        };
        if driver.is_broken {
            return false;
        }
        let pending = match driver.tx.pending(cx.frames) {
            Ok(0) => driver
                .tx
                .final_check(cx.frames)
                .and_then(|_| driver.tx.pending(cx.frames)),
            found => found,
        };
        let packet = match pending {
            Ok(0) => return false,
            Ok(pending) => {
                let slot = |ahead| driver.tx.copy_request(cx.frames, ahead);
                // A driver publishes whole packets. For less, Linux's netback gives the interface
                // up, too.
                Packet::read(slot, pending, shown).ok_or_else(|| String::from("half a packet"))
            }
            Err(error) => Err(format!("{error}")),
        };
        let packet = match packet {
            Ok(packet) => packet,
            Err(why) => {
                driver.is_broken = true;
                shell.log.warn(
                    shell.id,
                    format_args!("the guest's transmit ring has {why}; it is left alone"),
                );
                return false;
            }
        };
        let went = match packet.kind {
            _ if shell.host.rings.is_none() => Err(status::ERROR),
            Kind::Bad(why) => {
                shell
                    .log
                    .warn(shell.id, format_args!("a packet of the guest has {why}"));
                Err(status::ERROR)
            }
            Kind::Multicast { .. } => Err(status::OKAY),
            Kind::Data => match self.send_packet(shell, cx, &packet) {
                Attempt::Sent => Ok(()),
                Attempt::Blocked => return false,
                Attempt::Refused(why) => {
                    shell
                        .log
                        .warn(shell.id, format_args!("a packet of the guest has {why}"));
                    Err(status::ERROR)
                }
            },
        };
        if let Some(driver) = &mut shell.guest.driver {
            // Only now: a packet that has to wait stays in the ring, and is read and checked anew.
            driver.tx.consume(packet.guest_slots());
        }
        if let Err(answer) = went {
            for (index, &id) in packet.ids().iter().enumerate() {
                let extras = if index == 0 { packet.extras } else { 0 };
                self.answer_sent(shell, cx, id, answer, extras);
            }
        }
        true
    }

    fn send_packet(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        packet: &Packet,
    ) -> Attempt {
        let Some(rings) = &mut shell.host.rings else {
            return Attempt::Blocked;
        };
        let parts = packet.parts();
        if rings.tx.free() < packet.host_slots() || self.tx.room() < parts.len() {
            return Attempt::Blocked;
        }
        let backend = shell.host.link.backend_id();
        // Everything is granted before the first slot is written: a packet goes to the host as a
        // whole or not at all.
        let mut granted = [(Mfn(0), HostRef(0)); MAX_PARTS];
        let mut done = 0;
        let mut failed = None;
        for (place, part) in granted.iter_mut().zip(parts) {
            let Ok(frame) = cx.grants.acquire(cx.frames, part.gref, false) else {
                failed = Some(Attempt::Refused("a bad reference"));
                break;
            };
            let Some(grant) = cx.host_grants.grant(backend, frame, Access::ReadOnly) else {
                cx.grants.release(frame, false);
                shell.wants_retry = true;
                failed = Some(Attempt::Blocked);
                break;
            };
            *place = (frame, grant);
            done += 1;
        }
        if let Some(failed) = failed {
            for (frame, grant) in granted[..done].iter().copied() {
                // The backend was never told of them.
                let held = Held::Guest {
                    frame,
                    write: false,
                };
                shell.host.ending.add(cx, grant, held);
            }
            return failed;
        }

        let last = parts.len() - 1;
        for (index, part) in parts.iter().enumerate() {
            let (frame, grant) = granted[index];
            let owner = Owner::Guest {
                id: part.id,
                extras: if index == 0 { packet.extras } else { 0 },
                frame,
            };
            let mut flags = 0;
            if index < last {
                flags |= tx_flags::MORE_DATA;
            }
            if index == 0 {
                flags |= part.flags & (tx_flags::CSUM_BLANK | tx_flags::DATA_VALIDATED);
                if packet.gso.is_some() {
                    flags |= tx_flags::EXTRA_INFO;
                }
            }
            let request = TxRequest {
                gref: grant.0,
                id: self.tx.add(grant, owner),
                flags,
                ..*part
            };
            rings.tx.put(cx.frames, request.as_bytes());
            if index == 0
                && let Some(gso) = packet.gso
            {
                rings.tx.put(cx.frames, gso.as_bytes());
                self.tx.extras += 1;
            }
        }
        Attempt::Sent
    }

    /// Sends `size` bytes of a page of ours; `false` when there is no room.
    pub(super) fn send_own(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        page: Mfn,
        size: u16,
    ) -> bool {
        let Some(rings) = &mut shell.host.rings else {
            return false;
        };
        if rings.tx.free() == 0 || self.tx.room() == 0 {
            return false;
        }
        let backend = shell.host.link.backend_id();
        let Some(grant) = cx.host_grants.grant(backend, page, Access::ReadOnly) else {
            return false;
        };
        let request = TxRequest {
            gref: grant.0,
            id: self.tx.add(grant, Owner::Shim),
            size,
            ..TxRequest::default()
        };
        rings.tx.put(cx.frames, request.as_bytes());
        true
    }

    /// Takes the host's next answer out of its ring.
    pub(super) fn next_sent(
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
    ) -> Result<Option<[u8; TX_SLOT]>, String> {
        let Some(rings) = &mut shell.host.rings else {
            return Ok(None);
        };
        // A guest's TCP waits for its packets' answers before it sends more, so each is asked for.
        let taken = rings.tx.take(cx.frames);
        taken.map_err(|error| format!("the backend's transmit ring has {error}"))
    }

    /// Notes an answer of the host.
    pub(super) fn take_sent_slot(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        slot: &[u8; TX_SLOT],
    ) -> Result<(), String> {
        let response = TxResponse::read_from_bytes(&slot[..size_of::<TxResponse>()])
            .expect("the slice has a response's size");
        if response.status == status::NULL {
            self.tx.extras = self
                .tx
                .extras
                .checked_sub(1)
                .ok_or("the backend answers an extra that nobody sent")?;
            return Ok(());
        }
        let Some((number, sent)) = self.tx.named(response.id) else {
            return Err(format!(
                "the backend answers a packet {:#x} that nobody sent",
                response.id
            ));
        };
        sent.answer = Some(match response.status {
            // A driver may trip over a status that the protocol does not have.
            known @ (status::OKAY | status::ERROR | status::DROPPED) => known,
            _ => status::ERROR,
        });
        self.settle_part(shell, cx, number);
        Ok(())
    }

    /// Ends what an answered part granted.  Only when the backend has let go of it is the guest
    /// told, for it may use its page for something else the moment after.
    fn settle_part(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, number: u8) {
        let Some(sent) = &self.tx.sent[usize::from(number)] else {
            return;
        };
        let Some(answer) = sent.answer else { return };
        if !cx.host_grants.end(sent.grant) {
            shell.wants_retry = true;
            return;
        }
        if let Some(sent) = self.tx.remove(number) {
            self.answer_owner(shell, cx, sent.owner, answer);
        }
    }

    /// Tries again to end what answered parts granted.
    pub(super) fn settle_sent(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        for number in 0..=u8::MAX {
            self.settle_part(shell, cx, number);
        }
    }

    /// Everything that is at the host has failed.
    pub(super) fn fail_sent(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.tx.extras = 0;
        for sent in self.tx.sent.iter_mut().flatten() {
            sent.answer = sent.answer.or(Some(status::ERROR));
        }
        self.settle_sent(shell, cx);
    }

    /// The host is another one.  The one before may have sent what it was given or not, and the
    /// guest is told that it did: nobody can rely on a packet's arrival.
    pub(super) fn forget_sent(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        let all: Vec<Sent> = self.tx.drain().collect();
        for sent in all {
            self.answer_owner(shell, cx, sent.owner, sent.answer.unwrap_or(status::OKAY));
        }
    }

    /// The guest's driver is gone: its frames are free as soon as the backend lets go of them.
    pub(super) fn drop_sent(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        for sent in self.tx.drain() {
            let held = match sent.owner {
                Owner::Guest { frame, .. } => Held::Guest {
                    frame,
                    write: false,
                },
                Owner::Shim => Held::Nothing,
            };
            shell.host.ending.add(cx, sent.grant, held);
        }
    }

    fn answer_owner(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        owner: Owner,
        answer: i16,
    ) {
        if let Owner::Guest { id, extras, frame } = owner {
            // Before the answer, by which the guest has its page again.
            cx.grants.release(frame, false);
            self.answer_sent(shell, cx, id, answer, extras);
        }
    }

    fn answer_sent(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        id: u16,
        answer: i16,
        extras: u32,
    ) {
        let Some(driver) = &mut shell.guest.driver else {
            return;
        };
        let response = TxResponse { id, status: answer };
        driver.tx.respond(cx.frames, response.as_bytes());
        let null = TxResponse {
            id: 0,
            status: status::NULL,
        };
        for _ in 0..extras {
            driver.tx.respond(cx.frames, null.as_bytes());
        }
    }
}
