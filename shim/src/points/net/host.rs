//! The half that faces the host: a frontend for whatever backend there is, built anew after each
//! migration and whenever the guest's driver comes back.

mod backend;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::netif::{RX_SLOT, TX_SLOT};
use xen_abi::xenbus::XenbusState;

use super::features::{Offer, Wishes};
use super::guest::FRONT_KEYS;
use super::loose::{Held, Loose};
use crate::host::{Access, HostPort, HostRef};
use crate::points::device::Stage;
use crate::points::ring::FrontRing;
use crate::points::xenbus::HostLink;
use crate::points::{Cx, DeviceId};

/// The collection that is asked for: what the backend offers.
const OFFER: u8 = 0;

/// What is shared with the backend.
#[derive(Debug)]
pub(super) struct Rings {
    pub tx: FrontRing<TX_SLOT>,
    pub rx: FrontRing<RX_SLOT>,
    grants: [HostRef; 2],
    tx_port: HostPort,
    /// The port of the receive ring, if it has one of its own.
    rx_port: Option<HostPort>,
}

/// The connection to the host's backend.
#[derive(Debug)]
pub(super) struct HostHalf {
    pub link: HostLink,
    pub stage: Stage,
    pub rings: Option<Rings>,
    offer: Offer,
    pub loose: Loose,
}

impl HostHalf {
    pub fn new(device: DeviceId) -> Self {
        Self {
            link: HostLink::new(device),
            stage: Stage::Waiting,
            rings: None,
            offer: Offer::default(),
            loose: Loose::default(),
        }
    }

    /// Begins to connect.
    pub fn start(&mut self, cx: &mut Cx<'_>, frontend: &str) {
        self.stage = Stage::Waiting;
        self.link.start(cx.host_store, frontend, FRONT_KEYS);
    }

    pub fn ports(&self) -> Vec<HostPort> {
        let rings = self.rings.iter();
        rings
            .flat_map(|rings| [Some(rings.tx_port), rings.rx_port])
            .flatten()
            .collect()
    }

    pub fn has_port(&self, port: HostPort) -> bool {
        self.rings
            .as_ref()
            .is_some_and(|rings| rings.tx_port == port || rings.rx_port == Some(port))
    }

    /// Publishes the requests that were written to the rings.
    pub fn push(&mut self, cx: &mut Cx<'_>) {
        let Some(rings) = &mut self.rings else { return };
        let (tx, rx) = (rings.tx.push(cx.frames), rings.rx.push(cx.frames));
        match rings.rx_port {
            Some(port) if rx => cx.xen.notify(port),
            None if rx && !tx => cx.xen.notify(rings.tx_port),
            _ => {}
        }
        if tx {
            cx.xen.notify(rings.tx_port);
        }
    }

    /// The host is another one: everything that tied us to the old one is void, and all frames
    /// are ours and the guest's.
    pub fn forget(&mut self, cx: &mut Cx<'_>) {
        if let Some(rings) = self.rings.take() {
            let frames = [rings.tx.into_frames(), rings.rx.into_frames()];
            for frame in frames.into_iter().flatten() {
                cx.pool.give_back(frame);
            }
        }
        self.loose.forget(cx);
    }

    /// Ends the connection from our side, once.
    pub fn close(&mut self, cx: &mut Cx<'_>) {
        if self.stage != Stage::Closed {
            self.stage = Stage::Closed;
            self.drop_rings(cx);
            self.link.set_state(cx.host_store, XenbusState::CLOSED);
        }
        self.loose.end(cx);
    }

    /// Ends the connection, if there is one, and leads the backend to where it can take another.
    pub fn reopen(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.stage, Stage::Given | Stage::Connected) {
            self.stage = Stage::Reopening;
            self.drop_rings(cx);
            self.link.set_state(cx.host_store, XenbusState::CLOSING);
        }
    }

    /// Gives up rings and ports; the backend may keep the frames for a while.
    fn drop_rings(&mut self, cx: &mut Cx<'_>) {
        for port in self.ports() {
            cx.xen.close(port);
        }
        if let Some(rings) = self.rings.take() {
            let frames = [rings.tx.into_frames(), rings.rx.into_frames()];
            for (grant, frame) in rings.grants.into_iter().zip(frames.into_iter().flatten()) {
                self.loose.add(cx, grant, Held::Own(frame));
            }
        }
    }

    /// Makes rings and ports and offers them to the backend.
    fn offer_rings(&mut self, cx: &mut Cx<'_>, wishes: &Wishes) -> Result<(), String> {
        let tx = self.take_frame(cx)?;
        let rx = match self.take_frame(cx) {
            Ok(rx) => rx,
            Err(why) => {
                self.loose.add(cx, tx.1, Held::Own(tx.0));
                return Err(why);
            }
        };
        let backend = self.link.backend_id();
        let tx_port = match cx.xen.alloc_unbound(backend) {
            Ok(port) => port,
            Err(error) => {
                self.loose.add(cx, tx.1, Held::Own(tx.0));
                self.loose.add(cx, rx.1, Held::Own(rx.0));
                return Err(format!("there is no port for it: {error}"));
            }
        };
        // One port for both rings will do if there is no second one.
        let rx_port = match self.offer.split_ports {
            true => cx.xen.alloc_unbound(backend).ok(),
            false => None,
        };
        self.rings = Some(Rings {
            tx: FrontRing::new(cx.frames, [tx.0].into()),
            rx: FrontRing::new(cx.frames, [rx.0].into()),
            grants: [tx.1, rx.1],
            tx_port,
            rx_port,
        });
        let link = &self.link;
        let store = &mut *cx.host_store;
        link.write(store, "tx-ring-ref", &tx.1.0.to_string());
        link.write(store, "rx-ring-ref", &rx.1.0.to_string());
        let tx_port = tx_port.0.0.to_string();
        // A backend that finds ports of either kind may take the wrong ones.
        if let Some(rx_port) = rx_port {
            link.remove(store, "event-channel");
            link.write(store, "event-channel-tx", &tx_port);
            link.write(store, "event-channel-rx", &rx_port.0.0.to_string());
        } else {
            link.remove(store, "event-channel-tx");
            link.remove(store, "event-channel-rx");
            link.write(store, "event-channel", &tx_port);
        }
        for (key, is_wanted) in wishes.nodes() {
            link.write(store, key, if is_wanted { "1" } else { "0" });
        }
        link.set_state(store, XenbusState::CONNECTED);
        Ok(())
    }

    /// Takes a frame of ours and grants it to the backend.
    fn take_frame(&mut self, cx: &mut Cx<'_>) -> Result<(Mfn, HostRef), String> {
        let frame = cx.pool.take().ok_or("there is no memory for a ring")?;
        let backend = self.link.backend_id();
        match cx.host_grants.grant(backend, frame, Access::ReadWrite) {
            Some(grant) => Ok((frame, grant)),
            None => {
                cx.pool.give_back(frame);
                Err("there is no grant reference for a ring".to_owned())
            }
        }
    }
}
