//! Disks: a blkif backend towards the guest, a blkif frontend towards the host, and between them
//! the translation of each request, without touching its data.
//!
//! For every segment the guest's reference is looked up and its frame granted to the real backend
//! under a real reference.  A [`shadow`] has every request until it is answered, so that the host's
//! half can be thrown away at a migration; by then it holds the backlog alone, which travels with
//! the guest, since a suspend waits for all that the host has.  The device's features are fixed
//! when the first host describes it ([`features`]); what a later host lacks is made up for when a
//! request is turned into requests of that host ([`shadow::Plan`], [`issue`]): large ones are split,
//! discards dropped, barriers done by flushes.  The rest is what every device does
//! ([`device`](super::device)).
//!
//! What is in flight at the host is bounded ([`budget`]), so that a suspend never waits long for
//! it.  Meanwhile the backlog is not issued.
//!
//! **Words.** A request of the guest (*wanted*, once checked) is an *entry* from being taken until
//! it is answered.  On a given host its *plan* is up to three *steps*; each step goes out as one or
//! more *parts*, one request to the host each (a *piece* before it is granted).  *In flight* is said
//! of parts; an entry is *open*.
//!
//! **Ways.** In: `event_channel_op` (send), `Points::guest_notify`, `Bus::guest_kick`,
//! `Carrier::pump`, `Disk::move_requests`, `take_one` and `issue_backlog`, `FrontRing::push`.
//! Back: the upcall, `Guest::before_return`, `host_events`, `Points::host_event`, `Bus::host_kick`,
//! `take_answers`, `end_part`, `answer_entry`, `BackRing::respond`; then the pump raises the port.
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
//! | `guest` | the ring of the guest's driver |
//! | `host` | the ring of the host's backend |
//! | `flow` | takes requests from the guest, writes answers to it |
//! | `issue` | makes requests to the host |
//! | `answer` | takes the host's answers |
//! | `slab` | things with numbers |

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

use xen_abi::Mfn;
use xen_abi::xenbus::XenbusState;

use self::budget::Budget;
use self::features::{DETAIL_KEYS, Offer, Shown};
use self::guest::Driver;
use self::host::Rings;
use self::shadow::Shadow;
use super::device::{Carrier, Cut, Joining, Offering, Protocol, Shell};
use super::{Cx, DeviceClass};
use crate::host::HostRef;

/// A virtual block device.
pub type Vbd = Carrier<Disk>;

/// What is in flight between a guest's disk and the host's.
#[derive(Debug, Default)]
pub struct Disk {
    shadow: Shadow,
    /// What may be in flight at the host.
    budget: Budget,
    /// Pages for the segments of indirect requests to the host, kept for the next one.
    spare_pages: Vec<Mfn>,
    /// Lists for what a request grants, likewise.
    spare_grants: Vec<Vec<HostRef>>,
}

impl Protocol for Disk {
    const CLASS: DeviceClass = DeviceClass::Vbd;
    const FRONT_KEYS: &'static [&'static str] = &["virtual-device", "device-type"];
    const BACK_KEYS: &'static [&'static str] = &[];
    const BACK_NODES: &'static [(&'static str, &'static str)] = &[];
    const TERMS: &'static [&'static str] = &["max-ring-page-order"];
    // Linux's backend writes them only when it has the ring.
    const DETAILS: &'static [&'static str] = DETAIL_KEYS;
    const CHANGES: &'static [&'static str] = &["sectors"];
    const GIVEN: XenbusState = XenbusState::INITIALISED;
    const READY: &'static [XenbusState] = &[XenbusState::INITIALISED, XenbusState::CONNECTED];
    // A guest looks for its disks before a driver of it has said anything.
    const FOLLOWS_DRIVER: bool = false;
    // A write that is asked again of the next host could land after a later one of the guest.
    const DRAIN_NS: Option<u64> = None;

    type Offer = Offer;
    type Shown = Shown;
    type Driver = Driver;
    type Rings = Rings;

    fn join(with: &mut Joining<'_, '_>) -> Result<Driver, String> {
        Driver::join(with)
    }

    fn offer(&self, with: &mut Offering<'_, '_>, _: Option<&Driver>) -> Result<Rings, String> {
        Rings::offer(with, self.budget.requests())
    }

    fn pump(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.move_requests(shell, cx);
    }

    fn take_answers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) -> Result<(), String> {
        while let Some(slot) = Self::next_answer(shell, cx)? {
            self.take_answer(shell, cx, &slot)?;
        }
        Ok(())
    }

    fn retry_ending(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.end_answered_parts(shell, cx);
    }

    fn cut(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, why: Cut) {
        match why {
            Cut::Broken => self.fail_all(shell, cx),
            // Nothing is asked of a backend before it is connected.
            Cut::Absent => {}
            Cut::Moved => {
                let (pages, done) = self.shadow.rewind(!shell.guest.is_draining());
                self.spare_pages.extend(pages);
                for entry in done {
                    self.answer_entry(shell, cx, entry);
                }
            }
            Cut::DriverGone => self.empty_backlog(shell, cx),
            Cut::Over => self
                .spare_pages
                .drain(..)
                .for_each(|page| cx.pool.give_back(page)),
        }
    }

    fn in_flight(&self) -> usize {
        self.shadow.parts.len()
    }

    fn share(&mut self, devices: usize) {
        self.budget = Budget::of(devices);
    }
}
