//! The half that faces the host: a frontend for whatever backend there is, built anew after each migration and,
//! for some classes, whenever the guest's driver comes back.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::xenbus::XenbusState;

use super::{ConnectionStage, EndingGrants, Held, Protocol};
use crate::host::{Access, HostPort, HostRef};
use crate::points::xenbus::{HostLink, Nodes};
use crate::points::{Cx, DeviceId};

/// The connection to the host's backend.
#[derive(Debug)]
pub struct HostHalf<R, O> {
    /// The device's directories in the real store.
    pub link: HostLink,
    pub(super) stage: ConnectionStage,
    /// The rings that the backend was given.
    pub rings: Option<R>,
    /// The frames of these rings.
    frames: Vec<(HostRef, Mfn)>,
    /// The ports that the backend was given.
    ports: Vec<HostPort>,
    /// What the backend said of itself before it was given anything.
    pub(super) terms: Nodes,
    /// What it offers, once that is known and for as long as it stands.
    pub offer: Option<O>,
    /// What it may still have in use.
    pub ending: EndingGrants,
}

impl<R, O> HostHalf<R, O> {
    pub(super) fn new(device: DeviceId) -> Self {
        Self {
            link: HostLink::new(device),
            stage: ConnectionStage::Waiting,
            rings: None,
            frames: Vec::new(),
            ports: Vec::new(),
            terms: Nodes::default(),
            offer: None,
            ending: EndingGrants::default(),
        }
    }

    /// How far the connection has come.
    pub const fn stage(&self) -> &ConnectionStage {
        &self.stage
    }

    /// Whether requests can be passed on, or have to fail.
    pub(super) const fn takes_requests(&self) -> bool {
        matches!(
            self.stage,
            ConnectionStage::Connected | ConnectionStage::Broken(_)
        )
    }

    /// The ports that the backend was given.
    pub(super) fn ports(&self) -> &[HostPort] {
        &self.ports
    }

    /// Begins to connect.
    pub(super) fn start(&mut self, cx: &mut Cx<'_>, frontend: &str, keys: &'static [&'static str]) {
        self.stage = ConnectionStage::Waiting;
        self.link.start(cx.host_store, frontend, keys);
    }

    /// The connection ended with a suspend.  On another host all frames are ours and the guest's; in the same domain
    /// the old backend may have some of them for a while.
    pub(super) fn forget(&mut self, cx: &mut Cx<'_>) {
        self.stage = ConnectionStage::Closed;
        self.rings = None;
        self.offer = None;
        self.ports.clear();
        // The grants are not ended one by one: `StoresAndGrants::reattach` has dealt with the whole
        // table.  What it could not end waits in the list.
        self.ending.forget(cx);
        for (grant, frame) in self.frames.drain(..) {
            self.ending.forget_one(cx, grant, Held::Own(frame));
        }
    }

    /// Ends the connection from our side, once.
    pub(super) fn close(&mut self, cx: &mut Cx<'_>) {
        if self.stage != ConnectionStage::Closed {
            self.stage = ConnectionStage::Closed;
            self.drop_rings(cx);
            self.link.set_state(cx.host_store, XenbusState::CLOSED);
        }
        self.ending.end(cx);
    }

    /// Ends the connection, if there is one, and leads the backend to where it can take another.
    pub(super) fn reopen(&mut self, cx: &mut Cx<'_>) {
        if matches!(
            self.stage,
            ConnectionStage::Given | ConnectionStage::Describing | ConnectionStage::Connected
        ) {
            self.stage = ConnectionStage::Reopening;
            self.drop_rings(cx);
            self.link.set_state(cx.host_store, XenbusState::CLOSING);
        }
    }

    /// Gives up rings and ports; the backend may keep the frames for a while.
    pub(super) fn drop_rings(&mut self, cx: &mut Cx<'_>) {
        self.rings = None;
        self.offer = None;
        self.ports.drain(..).for_each(|port| cx.xen.close(port));
        for (grant, frame) in self.frames.drain(..) {
            self.ending.add(cx, grant, Held::Own(frame));
        }
    }

    /// Makes rings and offers them to the backend.
    ///
    /// # Errors
    /// What there is too little of; nothing is kept of them then.
    pub(super) fn offer_rings<P: Protocol<Rings = R>>(
        &mut self,
        cx: &mut Cx<'_>,
        protocol: &P,
        driver: Option<&P::Driver>,
    ) -> Result<(), String> {
        let mut offering = Offering {
            cx,
            link: &self.link,
            terms: &self.terms,
            ending: &mut self.ending,
            frames: Vec::new(),
            ports: Vec::new(),
        };
        let rings = protocol.offer(&mut offering, driver);
        // Kept in either case, so that `drop_rings` finds what was made before something was
        // missing.
        (self.frames, self.ports) = (offering.frames, offering.ports);
        match rings {
            Ok(rings) => {
                self.rings = Some(rings);
                // Last: a backend reads all the rest when it sees this state, and the store keeps
                // the order of writes.
                self.link.set_state(cx.host_store, P::GIVEN);
                Ok(())
            }
            Err(why) => {
                self.drop_rings(cx);
                Err(why)
            }
        }
    }
}

/// Rings that are about to be offered: takes frames and ports and grants them to the backend.  What was taken is
/// given back by the shell if something is missing after all.
pub struct Offering<'a, 'c> {
    /// Everything around the device.
    pub cx: &'a mut Cx<'c>,
    /// What the backend said of itself.
    pub terms: &'a Nodes,
    link: &'a HostLink,
    ending: &'a mut EndingGrants,
    frames: Vec<(HostRef, Mfn)>,
    ports: Vec<HostPort>,
}

impl Offering<'_, '_> {
    /// Takes a frame and grants it.
    ///
    /// # Errors
    /// What there is too little of.
    pub fn frame(&mut self) -> Result<(HostRef, Mfn), String> {
        let cx = &mut *self.cx;
        let frame = cx.pool.take().ok_or("there is no memory for a ring")?;
        let backend = self.link.backend_id();
        match cx.host_grants.grant(backend, frame, Access::ReadWrite) {
            Some(grant) => {
                self.frames.push((grant, frame));
                Ok((grant, frame))
            }
            None => {
                cx.pool.give_back(frame);
                Err("there is no grant reference for a ring".to_owned())
            }
        }
    }

    /// Takes the frames of one ring: `most` of them, or as many as there are, rounded to a power of two.
    ///
    /// # Errors
    /// What there is too little of for even one.
    pub fn frames(&mut self, most: usize) -> Result<Vec<(HostRef, Mfn)>, String> {
        let first = self.frames.len();
        let mut why = String::new();
        while self.frames.len() - first < most {
            if let Err(error) = self.frame() {
                why = error;
                break;
            }
        }
        let order = (self.frames.len() - first).checked_ilog2().ok_or(why)?;
        // The backend was never told of those that are too many.
        for (grant, frame) in self.frames.drain(first + (1 << order)..) {
            self.ending.add(self.cx, grant, Held::Own(frame));
        }
        Ok(self.frames[first..].to_vec())
    }

    /// Makes a port for the backend.
    ///
    /// # Errors
    /// Why there is none.
    pub fn port(&mut self) -> Result<HostPort, String> {
        let port = self
            .cx
            .xen
            .alloc_unbound(self.link.backend_id())
            .map_err(|error| format!("there is no port for it: {error}"))?;
        self.ports.push(port);
        Ok(port)
    }

    /// Tells the backend something.
    pub fn write(&mut self, key: &str, value: &str) {
        self.link.write(self.cx.host_store, key, value);
    }

    /// Leaves nothing that the backend could read under this name.
    pub fn remove(&mut self, key: &str) {
        self.link.remove(self.cx.host_store, key);
    }
}
