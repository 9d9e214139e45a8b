//! Disks: a blkif backend towards the guest, a blkif frontend towards the host, and between them
//! the translation of each request, without touching its data.
//!
//! For every segment the guest's reference is looked up and its frame granted to the real backend
//! under a real reference.  What is in flight is kept in a [`shadow`], so that the host's half can
//! be thrown away at a migration.  The device's features are fixed when the first host describes
//! it ([`features`]); what a later host lacks is made up for when a request is turned into
//! requests of that host ([`shadow::Plan`], [`issue`]): large ones are split, discards dropped,
//! barriers done by flushes.
//!
//! What is in flight at the host is bounded ([`budget`]), so that a suspend never waits long for
//! it.  The rest of the backlog is not asked for while it waits: it travels with the guest.
//!
//! Persistent grants, which most backends offer, are not used: they save the backend from mapping
//! pages anew by having the frontend copy all data through pages that stay mapped, and the shim
//! does not copy.  The feature is optional for both ends.
//!
//! | file | does |
//! |---|---|
//! | `budget` | bounds what is in flight |
//! | `features` | what the host offers, what the guest was told |
//! | `request` | checks a request of the guest |
//! | `shadow` | knows what is in flight and what is left to do |
//! | `guest` | connects and disconnects the guest's driver |
//! | `host` | connects the host's backend, notices when it goes |
//! | `flow` | takes requests from the guest, writes answers to it |
//! | `issue` | makes requests to the host |
//! | `answer` | takes the host's answers |

mod answer;
mod budget;
mod features;
mod flow;
mod guest;
mod host;
mod issue;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod request;
mod shadow;
mod slab;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Mfn, Port};

use self::budget::Budget;
use self::features::Shown;
use self::guest::GuestHalf;
use self::host::HostHalf;
use self::shadow::Shadow;
use super::device::Stage;
use super::xenbus::LogLimit;
use super::{Cx, Device, DeviceClass, DeviceId, Progress};
use crate::host::{HostPort, HostRef, StoreEvent};

/// A virtual block device.
#[derive(Debug)]
pub struct Vbd {
    id: DeviceId,
    guest: GuestHalf,
    host: HostHalf,
    /// What the guest was told; nothing before the first host has described the disk.
    shown: Option<Shown>,
    shadow: Shadow,
    /// What may be in flight at the host.
    budget: Budget,
    /// Pages for the segments of indirect requests to the host, kept for the next one.
    spare_pages: Vec<Mfn>,
    /// Lists for what a request grants, likewise.
    spare_grants: Vec<Vec<HostRef>>,
    /// No new work is taken from the guest.
    is_quiescing: bool,
    /// The host half was rebuilt since the guest last ran.
    was_reattached: bool,
    /// The host wants the device gone.
    is_unplugging: bool,
    is_gone: bool,
    /// Work was left for which no event will come.
    wants_retry: bool,
    log: LogLimit,
}

impl Vbd {
    /// Makes the disk number `index` and begins to connect it at `host_frontend`, its frontend
    /// directory in the real store.
    pub fn new(cx: &mut Cx<'_>, index: u32, host_frontend: &str) -> Self {
        let id = DeviceId {
            class: DeviceClass::Vbd,
            index,
        };
        let mut vbd = Self::unattached(id, cx.guest_domid, cx.backend_domid);
        vbd.host.start(cx, host_frontend);
        vbd
    }

    fn unattached(id: DeviceId, guest: DomId, backend: DomId) -> Self {
        Self {
            id,
            guest: GuestHalf::new(id, guest, backend),
            host: HostHalf::new(id),
            shown: None,
            shadow: Shadow::new(),
            budget: Budget::of(1),
            spare_pages: Vec::new(),
            spare_grants: Vec::new(),
            is_quiescing: false,
            was_reattached: false,
            is_unplugging: false,
            is_gone: false,
            wants_retry: false,
            log: LogLimit::new(20),
        }
    }

    /// Drops both halves once nothing is left to be done for the guest.
    fn finish_unplug(&mut self, cx: &mut Cx<'_>) {
        if !self.is_unplugging || self.is_gone || !self.guest.is_idle() {
            return;
        }
        if self.shadow.entries.len() > 0 {
            return;
        }
        self.host.close(cx);
        if self.host.loose.is_empty() {
            self.spare_pages
                .drain(..)
                .for_each(|page| cx.pool.give_back(page));
            self.guest.link.remove(cx.store);
            self.host.link.stop(cx.host_store);
            self.is_gone = true;
        }
    }
}

impl Device for Vbd {
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
        if self.host.port == Some(port) {
            self.take_answers(cx);
            self.pump(cx);
        }
    }

    fn quiesce(&mut self, cx: &mut Cx<'_>) -> Progress {
        self.is_quiescing = true;
        self.take_answers(cx);
        self.pump(cx);
        match self.in_flight() {
            0 => Progress::Done,
            _ => Progress::Waiting,
        }
    }

    fn in_flight(&self) -> usize {
        self.shadow.parts.len()
    }

    fn share(&mut self, devices: usize) {
        self.budget = Budget::of(devices);
    }

    fn reattach(&mut self, cx: &mut Cx<'_>, host_frontend: &str) {
        self.host.forget(cx);
        let (pages, done) = self.shadow.rewind(!self.guest.is_draining);
        self.spare_pages.extend(pages);
        for entry in done {
            self.answer_entry(cx, entry);
        }
        self.push_answers(cx);
        self.was_reattached = true;
        self.host.start(cx, host_frontend);
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
            _ => Ok(Progress::Waiting),
        }
    }

    fn resume(&mut self, cx: &mut Cx<'_>) {
        self.is_quiescing = false;
        if core::mem::take(&mut self.was_reattached)
            && let Some(port) = self.guest.port
        {
            cx.ports.raise(port);
        }
        self.pump(cx);
    }

    fn wants_retry(&self) -> bool {
        self.wants_retry || !self.host.loose.is_empty()
    }

    fn retry(&mut self, cx: &mut Cx<'_>) {
        self.wants_retry = false;
        self.host.end_loose(cx);
        self.settle_all(cx);
        self.pump(cx);
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
        self.host.port.into_iter().collect()
    }
}
