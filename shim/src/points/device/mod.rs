//! One shell for all devices: a backend towards the guest, a frontend towards the host, and between them a
//! [`Protocol`].
//!
//! The shell owns what does not depend on what a device is for: the handshakes with both ends and the stages
//! that they have come to, what is shared with either end (frames, references, ports), grants that a backend
//! has not let go of, quiescing, the new start on another host, and the unplugging.  The protocol owns its
//! rings, as many as it likes, and what is in flight; it is asked for them, lent the shell while it works, and
//! told when an end is lost.  It can not change a stage, so that each device goes through the same ones.
//!
//! | file | does |
//! |---|---|
//! | `protocol` | what a class of devices has to bring |
//! | `table` | what follows from a state of either end |
//! | `backend` | follows the host's backend, which appears, offers, connects, lies or goes away |
//! | `frontend` | follows the guest's driver, which connects, disconnects and comes back |
//! | `host` | what is shared with the host's backend |
//! | `guest` | what the guest's driver shares with us |
//! | `ending_grants` | remembers what a backend may still have in use |

mod backend;
mod ending_grants;
mod frontend;
mod guest;
mod host;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod protocol;
mod table;
#[cfg(test)]
pub(super) mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Port};

pub use self::ending_grants::{EndingGrants, Held};
pub use self::guest::{GuestHalf, Joining};
pub use self::host::{HostHalf, Offering};
pub use self::protocol::{Cut, Features, Protocol};
use super::xenbus::LogLimit;
use super::{Cx, Device, DeviceId, Progress};
use crate::host::{HostPort, StoreEvent};

/// Lines that a device may write into the log about what others do wrong.
const LOG_LINES: u32 = 20;

/// How far the connection to the host's backend has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionStage {
    /// The backend is being looked for, or is not ready.
    Waiting,
    /// It is being asked what it offers.
    Negotiating,
    /// What it offers is known, and no driver of the guest wants it yet.
    Offered,
    /// It was given rings.
    Given,
    /// It took them, and is being asked what the device is like.
    Describing,
    /// Requests flow.
    Connected,
    /// We closed the connection to open another.
    Reopening,
    /// Where the guest came to there is none, or none that works; requests wait until there is.
    Absent(String),
    /// What it offers can not stand behind what the guest was told; requests wait.
    Refused(String),
    /// It lied or went away; requests fail.
    Broken(String),
    /// We closed the connection for good.
    Closed,
}

/// What the shell keeps of a device, and lends to its protocol.
#[derive(Debug)]
pub struct Shell<P: Protocol> {
    /// The device's name.
    pub id: DeviceId,
    /// The half that faces the guest.
    pub guest: GuestHalf<P::Driver>,
    /// The half that faces the host.
    pub host: HostHalf<P::Rings, P::Offer>,
    /// What the guest was told; nothing before the first host has described the device.
    pub shown: Option<P::Shown>,
    /// Work was left for which no event will come.
    pub wants_retry: bool,
    /// Complaints about the guest and the host.
    pub log: LogLimit,
    /// Since when no new work is taken from the guest.
    quiescing_since: Option<u64>,
    /// The host half was rebuilt since the guest last ran.
    was_reattached: bool,
    /// The host wants the device gone.
    is_unplugging: bool,
    is_gone: bool,
}

impl<P: Protocol> Shell<P> {
    /// Whether the machine is about to be suspended: nothing new is asked of the host.
    pub fn is_quiescing(&self) -> bool {
        self.quiescing_since.is_some()
    }

    /// Whether requests may be taken from the guest: they can be passed on, or they have to fail.
    pub fn takes_requests(&self) -> bool {
        !self.is_quiescing() && self.host.takes_requests()
    }

    /// Tells the log of something that an operator should know.
    fn error(&self, message: fmt::Arguments<'_>) {
        log::error!("{}/{}: {message}", self.id.class.name(), self.id.index);
    }
}

/// A device: the shell, and what is in it.
#[derive(Debug)]
pub struct Carrier<P: Protocol> {
    pub(super) shell: Shell<P>,
    pub(super) protocol: P,
}

impl<P: Protocol> Carrier<P> {
    /// Makes the device number `index` of its class and begins to connect it at `host_frontend`, its frontend
    /// directory in the real store.
    pub fn new(cx: &mut Cx<'_>, index: u32, host_frontend: &str) -> Self {
        let mut device = Self::unattached(index, cx.guest_domid, cx.backend_domid);
        device.start(cx, host_frontend);
        device
    }

    pub(super) fn unattached(index: u32, guest: DomId, backend: DomId) -> Self {
        let class = P::CLASS;
        let id = DeviceId { class, index };
        Self {
            shell: Shell {
                id,
                guest: GuestHalf::new(id, guest, backend),
                host: HostHalf::new(id),
                shown: None,
                wants_retry: false,
                log: LogLimit::new(LOG_LINES),
                quiescing_since: None,
                was_reattached: false,
                is_unplugging: false,
                is_gone: false,
            },
            protocol: P::default(),
        }
    }

    /// Begins to connect to the host.
    pub(super) fn start(&mut self, cx: &mut Cx<'_>, host_frontend: &str) {
        self.shell.host.start(cx, host_frontend, P::FRONT_KEYS);
    }

    /// Moves whatever can be moved between guest and host, and tells both.
    fn pump(&mut self, cx: &mut Cx<'_>) {
        self.protocol.pump(&mut self.shell, cx);
        self.guest_drained(cx);
    }

    /// Takes the host's answers.
    fn take_answers(&mut self, cx: &mut Cx<'_>) {
        if let Err(why) = self.protocol.take_answers(&mut self.shell, cx) {
            self.break_host(cx, &why);
        }
    }

    /// Drops both halves once nothing is left to be done for the guest.
    fn finish_unplug(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        if !shell.is_unplugging
            || shell.is_gone
            || !shell.guest.is_idle()
            || self.protocol.in_flight() > 0
        {
            return;
        }
        shell.host.close(cx);
        // The device remembers what the backend may still have in use, so it has to outlive that.
        if shell.host.ending.is_empty() {
            self.protocol.cut(shell, cx, Cut::Over);
            shell.guest.link.remove(cx.store);
            shell.host.link.stop(cx.host_store);
            shell.is_gone = true;
        }
    }
}

impl<P: Protocol> Device for Carrier<P> {
    fn guest_store_changed(&mut self, cx: &mut Cx<'_>, path: &str) {
        if self.shell.guest.link.is_frontend_state(path) {
            self.guest_state_changed(cx);
        }
    }

    fn host_store_event(&mut self, cx: &mut Cx<'_>, detail: u32, event: StoreEvent) {
        if let Some(event) = self.shell.host.link.event(cx.host_store, detail, event) {
            self.host_link_event(cx, event);
        }
    }

    fn guest_kick(&mut self, cx: &mut Cx<'_>, _port: Port) {
        self.pump(cx);
    }

    fn host_kick(&mut self, cx: &mut Cx<'_>, port: HostPort) {
        // The kick may be for a port that was closed after it was raised.
        if self.shell.host.ports().contains(&port) {
            self.take_answers(cx);
            self.pump(cx);
        }
    }

    fn quiesce(&mut self, cx: &mut Cx<'_>) -> Progress {
        let now = cx.xen.now_ns();
        // Noted before the pump, which then takes nothing new and only passes answers on.
        let since = *self.shell.quiescing_since.get_or_insert(now);
        self.take_answers(cx);
        self.pump(cx);
        let is_due = P::DRAIN_NS.is_some_and(|limit| now.saturating_sub(since) >= limit);
        match is_due || self.in_flight() == 0 {
            true => Progress::Done,
            false => Progress::Waiting,
        }
    }

    fn in_flight(&self) -> usize {
        self.protocol.in_flight()
    }

    fn share(&mut self, devices: usize) {
        self.protocol.share(devices);
    }

    fn reattach(&mut self, cx: &mut Cx<'_>, host_frontend: &str) {
        self.shell.host.forget(cx);
        self.protocol.cut(&mut self.shell, cx, Cut::Moved);
        self.shell.was_reattached = true;
        // The guest gets the answers that there were; a device that was only waiting for them goes, and says
        // nothing to a host that may not have it.
        self.pump(cx);
        if !self.shell.is_gone {
            self.start(cx, host_frontend);
        }
    }

    fn begin_if_absent(&mut self, cx: &mut Cx<'_>, host_frontend: &str) {
        if matches!(self.shell.host.stage(), ConnectionStage::Absent(_)) {
            self.start(cx, host_frontend);
        }
    }

    fn is_shown(&self) -> bool {
        self.shell.shown.is_some()
    }

    fn attached(&self) -> Result<Progress, String> {
        match self.shell.host.stage() {
            ConnectionStage::Refused(why)
            | ConnectionStage::Broken(why)
            | ConnectionStage::Absent(why) => Err(why.clone()),
            // An offer that stands is one that only a driver of the guest is missing to.
            ConnectionStage::Connected | ConnectionStage::Offered | ConnectionStage::Closed => {
                Ok(Progress::Done)
            }
            ConnectionStage::Waiting
            | ConnectionStage::Negotiating
            | ConnectionStage::Given
            | ConnectionStage::Describing
            | ConnectionStage::Reopening => Ok(Progress::Waiting),
        }
    }

    fn resume(&mut self, cx: &mut Cx<'_>) {
        self.shell.quiescing_since = None;
        if core::mem::take(&mut self.shell.was_reattached) {
            self.shell.guest.raise(cx);
            self.protocol.arrived(&self.shell, cx);
        }
        self.take_answers(cx);
        self.pump(cx);
    }

    fn wants_retry(&self) -> bool {
        let ends_by_time = P::DRAIN_NS.is_some() && self.shell.is_quiescing();
        self.shell.wants_retry
            || !self.shell.host.ending.is_empty()
            || ends_by_time && self.in_flight() > 0
            || self.protocol.wants_retry(&self.shell)
    }

    fn retry(&mut self, cx: &mut Cx<'_>) {
        // Cleared first: whatever still can not be done sets it again.
        self.shell.wants_retry = false;
        self.shell.host.ending.end(cx);
        self.protocol.retry_ending(&mut self.shell, cx);
        self.take_answers(cx);
        self.pump(cx);
    }

    fn unplug(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        if shell.is_gone {
            return;
        }
        if !core::mem::replace(&mut shell.is_unplugging, true) && shell.guest.is_published() {
            shell.guest.link.set(cx.store, "online", "0");
            shell.guest.link.set_state(cx.store, XenbusState::CLOSING);
        }
        // A driver that never connected has nothing to close.
        self.guest_state_changed(cx);
    }

    fn is_gone(&self) -> bool {
        self.shell.is_gone
    }

    fn host_ports(&self) -> Vec<HostPort> {
        self.shell.host.ports().to_vec()
    }
}
