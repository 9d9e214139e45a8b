//! The half that faces the guest: its driver connects, disconnects and comes back.
//!
//! The states follow those of Linux's backend, which every driver was tested against: a driver is
//! connected once it says Initialised, and Closed is said to it only when nothing of its is in
//! flight any more, so that whoever comes next in its memory is safe.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::blkif::{PROTOCOL, SLOT_SIZE};
use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Mfn, Port};

use super::Vbd;
use super::features::SHOWN_RING_ORDER;
use crate::points::device::{Frontend, FrontendAct};
use crate::points::ring::BackRing;
use crate::points::xenbus::{GuestLink, Nodes, connect_port};
use crate::points::{Cx, DeviceId};

/// The frontend's nodes that the guest is shown as the real frontend directory has them.
pub(super) const FRONT_KEYS: &[&str] = &["virtual-device", "device-type"];

/// The guest's driver, as far as it is connected.
#[derive(Debug)]
pub(super) struct GuestHalf {
    pub link: GuestLink,
    pub ring: Option<BackRing<SLOT_SIZE>>,
    pub port: Option<Port>,
    /// The driver wrote nonsense to its ring: no more is taken from there.
    pub is_broken: bool,
    /// Whether the directories were made.
    pub is_published: bool,
    /// The driver is gone, but not everything that it asked for has ended.
    pub is_draining: bool,
}

impl GuestHalf {
    pub fn new(device: DeviceId, guest: DomId, backend: DomId) -> Self {
        Self {
            link: GuestLink::new(device, guest, backend),
            ring: None,
            port: None,
            is_broken: false,
            is_published: false,
            is_draining: false,
        }
    }

    /// Whether no driver is connected and none is left to be waited for.
    pub fn is_idle(&self) -> bool {
        self.ring.is_none()
            && !self.is_draining
            && (!self.is_published || self.link.state() == XenbusState::CLOSED)
    }

    /// Makes the two directories, once.
    pub fn publish(&mut self, cx: &mut Cx<'_>, real: &Nodes) {
        if core::mem::replace(&mut self.is_published, true) {
            return;
        }
        let front: Vec<(&str, &str)> = FRONT_KEYS
            .iter()
            .filter_map(|key| Some((*key, real.text(key)?)))
            .collect();
        self.link.publish(cx.store, &front, &[]);
    }
}

impl Vbd {
    /// Looks at the driver's state and does what it calls for.
    pub(super) fn guest_state_changed(&mut self, cx: &mut Cx<'_>) {
        if self.is_gone || !self.guest.is_published {
            return self.finish_unplug(cx);
        }
        let front = self.guest.link.frontend_state(cx.store);
        let frontend = Frontend {
            ours: self.guest.link.state(),
            has_driver: self.guest.ring.is_some(),
            is_unplugging: self.is_unplugging,
        };
        match frontend.on_state(
            front,
            matches!(front, XenbusState::INITIALISED | XenbusState::CONNECTED),
        ) {
            FrontendAct::Nothing => {}
            FrontendAct::Welcome => self.guest.link.set_state(cx.store, XenbusState::INIT_WAIT),
            FrontendAct::Connect => self.connect_guest(cx),
            FrontendAct::Close => self.guest.link.set_state(cx.store, XenbusState::CLOSING),
            FrontendAct::Disconnect => self.disconnect_guest(cx),
        }
        self.guest_drained(cx);
    }

    /// The first host has described the disk: tells the guest, once and for all.
    pub(super) fn show(&mut self, cx: &mut Cx<'_>) {
        let Some(shown) = &self.shown else { return };
        for (key, value) in shown.nodes() {
            self.guest.link.set(cx.store, key, &value);
        }
        if self.guest.link.state() == XenbusState::INITIALISING {
            self.guest.link.set_state(cx.store, XenbusState::INIT_WAIT);
        }
        self.guest_state_changed(cx);
    }

    /// The host has resized the disk.
    pub(super) fn show_size(&mut self, cx: &mut Cx<'_>, sectors: u64) {
        let Some(shown) = &mut self.shown else { return };
        if core::mem::replace(&mut shown.sectors, sectors) != sectors {
            self.guest
                .link
                .set(cx.store, "sectors", &format!("{sectors}"));
            // Writing the state again is how a backend says that it has changed.
            if self.guest.link.state() == XenbusState::CONNECTED {
                self.guest.link.set_state(cx.store, XenbusState::CONNECTED);
            }
        }
    }

    fn connect_guest(&mut self, cx: &mut Cx<'_>) {
        if let Err(why) = self.try_connect_guest(cx) {
            self.log.warn(
                self.id,
                format_args!("the guest's driver can not connect: {why}"),
            );
            self.guest.link.set_state(cx.store, XenbusState::CLOSING);
            return;
        }
        self.guest.link.set_state(cx.store, XenbusState::CONNECTED);
        self.pump(cx);
    }

    fn try_connect_guest(&mut self, cx: &mut Cx<'_>) -> Result<(), String> {
        let link = &self.guest.link;
        if let Some(protocol) = link.text(cx.store, "protocol")
            && protocol != PROTOCOL
        {
            return Err(format!("protocol {protocol:?}"));
        }
        let order = link.number(cx.store, "ring-page-order");
        let names: Vec<String> = match order {
            None => [String::from("ring-ref")].into(),
            Some(order @ 0..=SHOWN_RING_ORDER) => (0..1u32 << order)
                .map(|index| format!("ring-ref{index}"))
                .collect(),
            Some(order) => return Err(format!("a ring of order {order}")),
        };
        let mut frames = Vec::new();
        let result = self.try_connect_ring(cx, &names, &mut frames);
        if result.is_err() {
            release_all(cx, &frames);
        }
        result
    }

    fn try_connect_ring(
        &mut self,
        cx: &mut Cx<'_>,
        names: &[String],
        frames: &mut Vec<Mfn>,
    ) -> Result<(), String> {
        let link = &self.guest.link;
        for name in names {
            let reference = match link.number(cx.store, name) {
                // A ring of order 0 may go by either name.
                None if names.len() == 1 => link.number(cx.store, "ring-ref"),
                found => found,
            };
            let reference: u32 = reference.ok_or_else(|| format!("no {name}"))?;
            let frame = cx
                .grants
                .acquire(cx.frames, reference, true)
                .map_err(|why| format!("{name} {reference}: {why:?}"))?;
            frames.push(frame);
        }
        let ring = BackRing::attach(cx.frames, frames.clone())
            .map_err(|error| format!("its ring has {error}"))?;
        let port = connect_port(cx, link, self.id, "event-channel")
            .ok_or("it has no port for the backend")?;
        self.guest.ring = Some(ring);
        self.guest.port = Some(port);
        self.guest.is_broken = false;
        Ok(())
    }

    /// The driver is gone: forgets its ring and what it still had to be asked of the host.
    fn disconnect_guest(&mut self, cx: &mut Cx<'_>) {
        if let Some(port) = self.guest.port.take() {
            cx.ports.disconnect(port);
        }
        if let Some(ring) = self.guest.ring.take() {
            release_all(cx, ring.frames());
        }
        self.guest.is_draining = true;
        self.empty_backlog(cx);
    }

    /// Says Closed to a driver once nothing of its is in flight.
    pub(super) fn guest_drained(&mut self, cx: &mut Cx<'_>) {
        if self.guest.is_draining && self.shadow.entries.len() == 0 {
            self.guest.is_draining = false;
            self.guest.link.set_state(cx.store, XenbusState::CLOSED);
            // It may have started anew meanwhile.
            if !self.is_unplugging
                && self.guest.link.frontend_state(cx.store) == XenbusState::INITIALISING
            {
                self.guest.link.set_state(cx.store, XenbusState::INIT_WAIT);
            }
        }
        self.finish_unplug(cx);
    }
}

fn release_all(cx: &mut Cx<'_>, frames: &[Mfn]) {
    for &frame in frames {
        cx.grants.release(frame, true);
    }
}
