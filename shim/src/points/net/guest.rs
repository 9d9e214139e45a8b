//! The half that faces the guest: its driver connects, disconnects and comes back.
//!
//! The states follow those of Linux's backend, which every driver was tested against: a driver is
//! connected once it says Connected, and Closed is said to it only when nothing of its is in use
//! any more, so that whoever comes next in its memory is safe.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::netif::{RX_SLOT, TX_SLOT};
use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Mfn, Port};

use super::Vif;
use super::features::Wishes;
use crate::points::device::{Frontend, FrontendAct, Stage};
use crate::points::ring::BackRing;
use crate::points::xenbus::{GuestLink, Nodes, connect_port};
use crate::points::{Cx, DeviceId};

/// The frontend's nodes that the guest is shown as the real frontend directory has them.
pub(super) const FRONT_KEYS: &[&str] = &["handle", "mac", "mtu", "trusted"];

/// A connected driver of the guest.
#[derive(Debug)]
pub(super) struct Driver {
    pub tx: BackRing<TX_SLOT>,
    pub rx: BackRing<RX_SLOT>,
    tx_port: Port,
    /// The port of the receive ring, if it has one of its own.
    rx_port: Option<Port>,
    pub wishes: Wishes,
    /// The driver wrote nonsense to a ring: no more is taken from there.
    pub is_broken: bool,
}

/// The guest's driver, as far as it is connected.
#[derive(Debug)]
pub(super) struct GuestHalf {
    pub link: GuestLink,
    pub driver: Option<Driver>,
    /// Whether the directories were made.
    pub is_published: bool,
    /// The driver is gone, but a backend may still use what it granted.
    is_draining: bool,
}

impl GuestHalf {
    pub fn new(device: DeviceId, guest: DomId, backend: DomId) -> Self {
        Self {
            link: GuestLink::new(device, guest, backend),
            driver: None,
            is_published: false,
            is_draining: false,
        }
    }

    /// Whether no driver is connected and none is left to be waited for.
    pub fn is_idle(&self) -> bool {
        self.driver.is_none()
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
        let mut back: Vec<(&str, &str)> = front
            .iter()
            .filter(|(key, _)| matches!(*key, "handle" | "mac"))
            .copied()
            .collect();
        back.push(("hotplug-status", "connected"));
        self.link.publish(cx.store, &front, &back);
    }

    /// Publishes the answers that were written to the guest's rings.
    pub fn push(&mut self, cx: &mut Cx<'_>) {
        let Some(driver) = &mut self.driver else {
            return;
        };
        let (tx, rx) = (driver.tx.push(cx.frames), driver.rx.push(cx.frames));
        match driver.rx_port {
            Some(port) if rx => cx.ports.raise(port),
            None if rx && !tx => cx.ports.raise(driver.tx_port),
            _ => {}
        }
        if tx {
            cx.ports.raise(driver.tx_port);
        }
    }

    /// Raises the driver's ports, whatever there is to tell.
    pub fn raise(&self, cx: &mut Cx<'_>) {
        if let Some(driver) = &self.driver {
            cx.ports.raise(driver.tx_port);
            if let Some(port) = driver.rx_port {
                cx.ports.raise(port);
            }
        }
    }
}

impl Vif {
    /// Looks at the driver's state and does what it calls for.
    pub(super) fn guest_state_changed(&mut self, cx: &mut Cx<'_>) {
        if self.is_gone || !self.guest.is_published {
            return self.finish_unplug(cx);
        }
        let front = self.guest.link.frontend_state(cx.store);
        let frontend = Frontend {
            ours: self.guest.link.state(),
            has_driver: self.guest.driver.is_some(),
            is_unplugging: self.is_unplugging,
        };
        match frontend.on_state(front, front == XenbusState::CONNECTED) {
            FrontendAct::Nothing => {}
            FrontendAct::Welcome => self.guest.link.set_state(cx.store, XenbusState::INIT_WAIT),
            FrontendAct::Connect => self.connect_guest(cx),
            FrontendAct::Close => self.guest.link.set_state(cx.store, XenbusState::CLOSING),
            FrontendAct::Disconnect => self.disconnect_guest(cx),
        }
        self.guest_drained(cx);
    }

    /// The first host has described the interface: tells the guest, once and for all.
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

    /// Tells the driver that packets are taken, if they are.
    pub(super) fn show_connected(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.host.stage, Stage::Connected | Stage::Broken(_))
            && self.guest.driver.is_some()
            && self.guest.link.state() == XenbusState::INIT_WAIT
        {
            self.guest.link.set_state(cx.store, XenbusState::CONNECTED);
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
        self.connect_host(cx);
        self.show_connected(cx);
        self.pump(cx);
    }

    fn try_connect_guest(&mut self, cx: &mut Cx<'_>) -> Result<(), String> {
        let wishes = Wishes::read(&self.guest.link, cx.store)?;
        let tx_frame = self.ring_frame(cx, "tx-ring-ref")?;
        let result = self.ring_frame(cx, "rx-ring-ref").and_then(|rx_frame| {
            self.try_connect_rings(cx, tx_frame, rx_frame, wishes)
                .inspect_err(|_| cx.grants.release(rx_frame, true))
        });
        result.inspect_err(|_| cx.grants.release(tx_frame, true))
    }

    fn ring_frame(&self, cx: &mut Cx<'_>, name: &str) -> Result<Mfn, String> {
        let reference: u32 = self
            .guest
            .link
            .number(cx.store, name)
            .ok_or_else(|| format!("no {name}"))?;
        cx.grants
            .acquire(cx.frames, reference, true)
            .map_err(|why| format!("{name} {reference}: {why:?}"))
    }

    fn try_connect_rings(
        &mut self,
        cx: &mut Cx<'_>,
        tx_frame: Mfn,
        rx_frame: Mfn,
        wishes: Wishes,
    ) -> Result<(), String> {
        if tx_frame == rx_frame {
            return Err("both rings are one".to_string());
        }
        let tx = BackRing::attach(cx.frames, [tx_frame].into())
            .map_err(|error| format!("its transmit ring has {error}"))?;
        let rx = BackRing::attach(cx.frames, [rx_frame].into())
            .map_err(|error| format!("its receive ring has {error}"))?;
        let link = &self.guest.link;
        let is_split = link.text(cx.store, "event-channel-tx").is_some();
        let (tx_port, rx_port) = if is_split {
            let tx_port = connect_port(cx, link, self.id, "event-channel-tx");
            let rx_port = connect_port(cx, link, self.id, "event-channel-rx");
            if let (Some(port), None) | (None, Some(port)) = (tx_port, rx_port) {
                cx.ports.disconnect(port);
            }
            (tx_port.and(rx_port).and(tx_port), rx_port)
        } else {
            (connect_port(cx, link, self.id, "event-channel"), None)
        };
        let tx_port = tx_port.ok_or("it has no port for the backend")?;
        self.guest.driver = Some(Driver {
            tx,
            rx,
            tx_port,
            rx_port,
            wishes,
            is_broken: false,
        });
        Ok(())
    }

    /// The driver is gone: takes back everything that it granted, and closes the connection to the
    /// host, which was made by the driver's wishes.
    fn disconnect_guest(&mut self, cx: &mut Cx<'_>) {
        if let Some(driver) = self.guest.driver.take() {
            cx.ports.disconnect(driver.tx_port);
            if let Some(port) = driver.rx_port {
                cx.ports.disconnect(port);
            }
            let rings = [driver.tx.frames(), driver.rx.frames()];
            for &frame in rings.into_iter().flatten() {
                cx.grants.release(frame, true);
            }
        }
        self.host.reopen(cx);
        self.drop_sent(cx);
        self.drop_buffers(cx);
        self.guest.is_draining = true;
    }

    /// Says Closed to a driver once nothing of its is in use.
    pub(super) fn guest_drained(&mut self, cx: &mut Cx<'_>) {
        if self.guest.is_draining && !self.host.loose.has_guests() {
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
