//! The half that faces the guest: its two directories, and what a driver shares with us.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Mfn, Port};

use super::Protocol;
use super::table::Frontend;
use crate::points::xenbus::{GuestLink, Nodes, connect_port};
use crate::points::{Cx, DeviceId};

/// The guest's driver, as far as it is connected.
#[derive(Debug)]
pub struct GuestHalf<D> {
    /// The device's directories in the guest's store.
    pub link: GuestLink,
    /// The rings of the connected driver.
    pub driver: Option<D>,
    /// The frames of these rings, each with a hold for writing.
    frames: Vec<Mfn>,
    /// The driver's ports.
    ports: Vec<Port>,
    /// Whether the directories were made.
    is_published: bool,
    /// The driver is gone, but something that it granted may still be in use.
    is_draining: bool,
}

impl<D> GuestHalf<D> {
    pub(super) fn new(device: DeviceId, guest: DomId, backend: DomId) -> Self {
        Self {
            link: GuestLink::new(device, guest, backend),
            driver: None,
            frames: Vec::new(),
            ports: Vec::new(),
            is_published: false,
            is_draining: false,
        }
    }

    /// Whether no driver is connected and none is left to be waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.driver.is_none()
            && !self.is_draining
            && (!self.is_published || self.link.state() == XenbusState::CLOSED)
    }

    /// Whether the directories were made.
    pub(super) const fn is_published(&self) -> bool {
        self.is_published
    }

    /// Whether the driver that everything in flight was asked by has gone.
    pub const fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Nothing of a driver that has gone is in use any more.
    pub(super) const fn end_draining(&mut self) {
        self.is_draining = false;
    }

    /// What the driver's states are measured by.
    pub(super) fn frontend(&self, is_unplugging: bool) -> Frontend {
        Frontend {
            ours: self.link.state(),
            has_driver: self.driver.is_some(),
            is_unplugging,
        }
    }

    /// Makes the two directories, once.
    pub(super) fn publish<P: Protocol>(&mut self, cx: &mut Cx<'_>, real: &Nodes) {
        if core::mem::replace(&mut self.is_published, true) {
            return;
        }
        let real = |keys: &[&'static str]| -> Vec<(&str, &str)> {
            keys.iter()
                .filter_map(|key| Some((*key, real.text(key)?)))
                .collect()
        };
        let mut back = real(P::BACK_KEYS);
        back.extend_from_slice(P::BACK_NODES);
        self.link.publish(cx.store, &real(P::FRONT_KEYS), &back);
    }

    /// Raises the driver's ports, whatever there is to tell.
    pub(super) fn raise(&self, cx: &mut Cx<'_>) {
        self.ports.iter().for_each(|port| cx.ports.raise(*port));
    }

    /// Lets a driver join.
    ///
    /// # Errors
    /// Why it can not; nothing of it is kept then.
    pub(super) fn join<P: Protocol<Driver = D>>(
        &mut self,
        cx: &mut Cx<'_>,
        device: DeviceId,
    ) -> Result<(), String> {
        let mut joining = Joining {
            cx,
            link: &self.link,
            device,
            frames: Vec::new(),
            ports: Vec::new(),
        };
        let driver = P::join(&mut joining);
        // Kept in either case: a driver that can not join may have given half of it, which goes
        // back by `let_go`.
        (self.frames, self.ports) = (joining.frames, joining.ports);
        match driver {
            Ok(driver) => {
                self.driver = Some(driver);
                Ok(())
            }
            Err(why) => {
                self.let_go(cx);
                Err(why)
            }
        }
    }

    /// The driver is gone: gives back its rings, but not yet what else it granted.
    pub(super) fn leave(&mut self, cx: &mut Cx<'_>) {
        self.let_go(cx);
        self.driver = None;
        self.is_draining = true;
    }

    fn let_go(&mut self, cx: &mut Cx<'_>) {
        self.ports
            .drain(..)
            .for_each(|port| cx.ports.disconnect(port));
        // No backend of the host has these frames: what wrote to them for the guest is the shim, so
        // the holds end at once.
        self.frames
            .drain(..)
            .for_each(|frame| cx.grants.release(frame, true));
    }
}

/// A driver that is about to be connected: reads what it has published and takes hold of it.  What was taken is
/// given back by the shell if the driver can not join after all.
pub struct Joining<'a, 'c> {
    /// Everything around the device.
    pub cx: &'a mut Cx<'c>,
    /// The device's directories in the guest's store.
    pub link: &'a GuestLink,
    device: DeviceId,
    frames: Vec<Mfn>,
    ports: Vec<Port>,
}

impl Joining<'_, '_> {
    /// Takes hold of the frame of a ring, for writing, whose reference is in the node `name`.
    ///
    /// # Errors
    /// Why it can not be had.
    pub fn ring_frame(&mut self, name: &str) -> Result<Mfn, String> {
        let reference: u32 = self
            .link
            .number(self.cx.store, name)
            .ok_or_else(|| format!("no {name}"))?;
        let frame = self
            .cx
            .grants
            .acquire(self.cx.frames, reference, true)
            .map_err(|why| format!("{name} {reference}: {why:?}"))?;
        self.frames.push(frame);
        Ok(frame)
    }

    /// Connects the port in the node `name`; `None` if there is none to be connected.
    pub fn port(&mut self, name: &str) -> Option<Port> {
        let port = connect_port(self.cx, self.link, self.device, name)?;
        self.ports.push(port);
        Some(port)
    }
}
