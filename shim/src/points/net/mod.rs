//! Network interfaces: a netif backend towards the guest, a netif frontend towards the host, and
//! between them the translation of each slot, without touching a packet.
//!
//! For every slot the guest's reference is looked up and its frame granted to the real backend
//! under a real reference.  Slots to send keep a [`shadow`] until they are answered; buffers to
//! receive into are posted to the host one for one and in order, because frontends rely on it that
//! a response lies in the slot of its request ([`rx`]).
//!
//! What the guest's driver can receive (large packets, blank checksums) is its own choice and has
//! to reach the host's backend, which looks at it once when it connects.  Therefore the host half
//! connects when the guest's driver does, and is closed and opened again with it.  The features
//! that the guest is *offered* are fixed when the first host describes them ([`features`]); a
//! later host that lacks one of them is a reason why the guest can not go on there.
//!
//! At a migration sent packets in flight are drained for a moment only, for the network may lose
//! packets anyway.  Buffers to receive into are in flight all the time: they are posted again to
//! the next host.  What the old host's backend still writes into them, or into its rings, after
//! the machine was suspended is not looked at, for nobody can say which of it was there when the
//! memory was copied.
//!
//! | file | does |
//! |---|---|
//! | `features` | what the host offers, what the guest was told, what its driver wants |
//! | `guest` | connects and disconnects the guest's driver |
//! | `host` | connects the host's backend, notices when it goes |
//! | `packet` | makes sense of the slots of a packet to send |
//! | `tx` | sends packets |
//! | `shadow` | knows what was sent and is not answered |
//! | `rx` | posts buffers and passes received packets on |
//! | `incoming` | makes sense of the slots of a received packet |
//! | `announce` | tells the switches where the guest is now |
//! | `loose` | remembers what a backend may still have in use |

mod announce;
mod features;
mod guest;
mod host;
mod incoming;
mod loose;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod packet;
mod rx;
mod shadow;
#[cfg(test)]
mod tests;
mod tx;

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Mfn, Port};

use self::announce::Announcer;
use self::features::Shown;
use self::guest::GuestHalf;
use self::host::HostHalf;
use self::shadow::Shadow;
use super::device::Stage;
use super::xenbus::LogLimit;
use super::{Cx, Device, DeviceClass, DeviceId, Progress};
use crate::host::{HostPort, StoreEvent};

/// For how long sent packets are waited for before a suspend.
const DRAIN_NS: u64 = 50_000_000;

/// A virtual network interface.
#[derive(Debug)]
pub struct Vif {
    id: DeviceId,
    guest: GuestHalf,
    host: HostHalf,
    /// What the guest was told; nothing before the first host has described the interface.
    shown: Option<Shown>,
    tx: Shadow,
    rx: rx::Buffers,
    announcer: Announcer,
    /// A page of ours for packets that would go where the guest may not have them written.
    trash: Option<Mfn>,
    /// Since when no new work is taken from the guest.
    quiescing_since: Option<u64>,
    /// The host half was rebuilt since the guest last ran.
    was_reattached: bool,
    /// The host wants the device gone.
    is_unplugging: bool,
    is_gone: bool,
    /// Work was left for which no event will come.
    wants_retry: bool,
    log: LogLimit,
}

impl Vif {
    /// Makes the interface number `index` and begins to connect it at `host_frontend`, its frontend
    /// directory in the real store.
    pub fn new(cx: &mut Cx<'_>, index: u32, host_frontend: &str) -> Self {
        let id = DeviceId {
            class: DeviceClass::Vif,
            index,
        };
        let mut vif = Self::unattached(id, cx.guest_domid, cx.backend_domid);
        vif.host.start(cx, host_frontend);
        vif
    }

    fn unattached(id: DeviceId, guest: DomId, backend: DomId) -> Self {
        Self {
            id,
            guest: GuestHalf::new(id, guest, backend),
            host: HostHalf::new(id),
            shown: None,
            tx: Shadow::new(),
            rx: rx::Buffers::new(),
            announcer: Announcer::new(),
            trash: None,
            quiescing_since: None,
            was_reattached: false,
            is_unplugging: false,
            is_gone: false,
            wants_retry: false,
            log: LogLimit::new(20),
        }
    }

    /// Moves whatever can be moved between guest and host, and tells both.
    fn pump(&mut self, cx: &mut Cx<'_>) {
        self.send_packets(cx);
        self.post_buffers(cx);
        self.push(cx);
    }

    /// Publishes what was written to the rings of either side, and tells who wants to know.
    fn push(&mut self, cx: &mut Cx<'_>) {
        self.host.push(cx);
        self.guest.push(cx);
    }

    /// Takes what the host has to say.
    fn take_answers(&mut self, cx: &mut Cx<'_>) {
        self.take_sent(cx);
        self.take_received(cx);
    }

    /// Drops both halves once nothing is left to be done for the guest.
    fn finish_unplug(&mut self, cx: &mut Cx<'_>) {
        if !self.is_unplugging || self.is_gone || !self.guest.is_idle() {
            return;
        }
        self.host.close(cx);
        if self.host.loose.is_empty() {
            let pages = self.trash.take().into_iter().chain(self.announcer.page());
            pages.for_each(|page| cx.pool.give_back(page));
            self.guest.link.remove(cx.store);
            self.host.link.stop(cx.host_store);
            self.is_gone = true;
        }
    }
}

impl Device for Vif {
    fn guest_store_changed(&mut self, cx: &mut Cx<'_>, path: &str) {
        if self.guest.link.is_frontend_state(path) {
            self.guest_state_changed(cx);
        }
    }

    fn host_store_event(&mut self, cx: &mut Cx<'_>, detail: u32, event: StoreEvent) {
        if let Some(event) = self.host.link.event(cx.host_store, detail, event) {
            self.host_link_event(cx, event);
        }
    }

    fn guest_kick(&mut self, cx: &mut Cx<'_>, _port: Port) {
        self.pump(cx);
    }

    fn host_kick(&mut self, cx: &mut Cx<'_>, port: HostPort) {
        if self.host.has_port(port) {
            self.take_answers(cx);
            self.pump(cx);
        }
    }

    fn quiesce(&mut self, cx: &mut Cx<'_>) -> Progress {
        let now = cx.xen.now_ns();
        let since = *self.quiescing_since.get_or_insert(now);
        self.take_answers(cx);
        self.push(cx);
        match now.saturating_sub(since) < DRAIN_NS && self.tx.in_flight() > 0 {
            true => Progress::Waiting,
            false => Progress::Done,
        }
    }

    fn in_flight(&self) -> usize {
        self.tx.in_flight()
    }

    fn reattach(&mut self, cx: &mut Cx<'_>, host_frontend: &str) {
        self.host.forget(cx);
        self.forget_sent(cx);
        self.rewind_buffers(cx);
        self.guest.push(cx);
        self.announcer.stop();
        self.was_reattached = true;
        self.host.start(cx, host_frontend);
        self.guest_drained(cx);
    }

    fn listed(&mut self, cx: &mut Cx<'_>, host_frontend: &str) {
        self.host_lists_it(cx, host_frontend);
    }

    fn is_shown(&self) -> bool {
        self.shown.is_some()
    }

    fn attached(&self) -> Result<Progress, String> {
        match &self.host.stage {
            Stage::Refused(why) | Stage::Broken(why) | Stage::Absent(why) => Err(why.clone()),
            Stage::Connected | Stage::Closed => Ok(Progress::Done),
            Stage::Offered if self.guest.driver.is_none() => Ok(Progress::Done),
            _ => Ok(Progress::Waiting),
        }
    }

    fn resume(&mut self, cx: &mut Cx<'_>) {
        self.quiescing_since = None;
        if core::mem::take(&mut self.was_reattached) {
            self.guest.raise(cx);
            self.announcer.start(cx.xen.now_ns());
        }
        self.take_answers(cx);
        self.announce(cx);
        self.pump(cx);
    }

    fn wants_retry(&self) -> bool {
        self.wants_retry
            || !self.host.loose.is_empty()
            || self.has_to_announce()
            || self.has_to_poll()
            || (self.quiescing_since.is_some() && self.tx.in_flight() > 0)
    }

    fn retry(&mut self, cx: &mut Cx<'_>) {
        self.wants_retry = false;
        self.host.loose.end(cx);
        self.settle_sent(cx);
        self.end_withdrawn(cx);
        self.take_answers(cx);
        self.announce(cx);
        self.pump(cx);
        self.guest_drained(cx);
    }

    fn unplug(&mut self, cx: &mut Cx<'_>) {
        if self.is_gone {
            return;
        }
        if !core::mem::replace(&mut self.is_unplugging, true) && self.guest.is_published {
            self.guest.link.set(cx.store, "online", "0");
            self.guest.link.set_state(cx.store, XenbusState::CLOSING);
        }
        // A driver that never connected has nothing to close.
        self.guest_state_changed(cx);
    }

    fn is_gone(&self) -> bool {
        self.is_gone
    }

    fn host_ports(&self) -> Vec<HostPort> {
        self.host.ports()
    }
}
