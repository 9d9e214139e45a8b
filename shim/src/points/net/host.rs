//! The half that faces the host: a frontend for whatever backend there is, built anew after each
//! migration and whenever the guest's driver comes back.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::netif::{RX_SLOT, TX_SLOT};
use xen_abi::xenbus::XenbusState;

use super::Vif;
use super::features::{OFFER_KEYS, Offer, Shown, Wishes};
use super::guest::FRONT_KEYS;
use super::loose::{Held, Loose};
use crate::host::{Access, HostPort, HostRef};
use crate::points::ring::FrontRing;
use crate::points::xenbus::{HostLink, LinkEvent, Nodes, why_failed};
use crate::points::{Cx, Device, DeviceId};

/// The collection that is asked for: what the backend offers.
const OFFER: u8 = 0;

/// How far the connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The backend is being looked for, or is not ready.
    Waiting,
    /// It is being asked what it offers.
    Negotiating,
    /// Its offer is known, and no driver of the guest wants it yet.
    Offered,
    /// It was given the rings.
    Connecting,
    /// Packets flow.
    Connected,
    /// We closed the connection to open another.
    Reopening,
    /// Where the guest came to there is none, or none that works; packets wait until there is.
    Absent(String),
    /// What it offers can not stand behind what the guest was told; packets wait.
    Refused(String),
    /// It lied or went away; packets are lost.
    Broken(String),
    /// We closed the connection for good.
    Closed,
}

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
        if matches!(self.stage, Stage::Connecting | Stage::Connected) {
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

impl Vif {
    /// Goes on with the connection to the host.
    pub(super) fn host_link_event(&mut self, cx: &mut Cx<'_>, event: LinkEvent) {
        match event {
            LinkEvent::Found(nodes) => {
                self.announcer.set_mac(nodes.text("mac"));
                self.guest.publish(cx, &nodes);
            }
            LinkEvent::State(state) => self.backend_state(cx, state),
            LinkEvent::Nodes { what, nodes } => self.backend_nodes(cx, what, &nodes),
            LinkEvent::Failed { path, error } => match self.host.stage {
                // The directory goes before we do when the device is removed by force.
                Stage::Closed | Stage::Broken(_) | Stage::Absent(_) => {}
                _ => self.break_host(cx, &why_failed(&path, error)),
            },
        }
    }

    fn backend_state(&mut self, cx: &mut Cx<'_>, state: XenbusState) {
        let link = &self.host.link;
        match (&self.host.stage, state) {
            (Stage::Closed, _) => {}
            (
                Stage::Waiting | Stage::Absent(_),
                XenbusState::INIT_WAIT | XenbusState::INITIALISED,
            ) => {
                self.host.stage = Stage::Negotiating;
                let link = &mut self.host.link;
                link.collect(cx.host_store, OFFER, OFFER_KEYS);
            }
            // Connected, but not with us: left over from a domain that was resumed where it was.
            // It is led once around to where it began.
            (Stage::Waiting, XenbusState::CONNECTED) => {
                link.set_state(cx.host_store, XenbusState::CLOSING);
            }
            (Stage::Waiting | Stage::Reopening | Stage::Broken(_), XenbusState::CLOSING) => {
                link.set_state(cx.host_store, XenbusState::CLOSED);
            }
            (Stage::Waiting | Stage::Reopening, XenbusState::CLOSED) => {
                link.set_state(cx.host_store, XenbusState::INITIALISING);
                self.host.stage = Stage::Waiting;
            }
            (Stage::Connecting, XenbusState::CONNECTED) => {
                self.host.stage = Stage::Connected;
                self.show_connected(cx);
                self.announce(cx);
                self.pump(cx);
            }
            (Stage::Waiting | Stage::Absent(_), _) | (Stage::Broken(_), XenbusState::CLOSED) => {}
            (_, XenbusState::CLOSING | XenbusState::CLOSED | XenbusState::UNKNOWN)
                if self.can_wait_for_another() =>
            {
                self.wait_for_another(cx, "the backend is gone");
            }
            (_, XenbusState::CLOSING) => self.unplug(cx),
            (_, XenbusState::CLOSED | XenbusState::UNKNOWN) => {
                self.break_host(cx, "the backend is gone");
                self.unplug(cx);
            }
            _ => {}
        }
    }

    fn backend_nodes(&mut self, cx: &mut Cx<'_>, what: u8, nodes: &Nodes) {
        if what != OFFER || self.host.stage != Stage::Negotiating {
            return;
        }
        let offer = Offer::parse(nodes);
        let is_first = self.shown.is_none();
        let shown = self.shown.get_or_insert_with(|| Shown::fix(&offer));
        if let Some(why) = shown.refuses(&offer) {
            log::error!("vif/{}: the backend is refused: {why}", self.id.index);
            self.host.stage = Stage::Refused(why);
            // Nothing was promised to anybody.
            if is_first {
                self.shown = None;
            }
            return;
        }
        self.host.offer = offer;
        self.host.stage = Stage::Offered;
        if is_first {
            self.show(cx);
        }
        self.connect_host(cx);
    }

    /// Connects to the backend if both it and a driver of the guest are ready.
    pub(super) fn connect_host(&mut self, cx: &mut Cx<'_>) {
        let (Stage::Offered, Some(driver)) = (&self.host.stage, &self.guest.driver) else {
            return;
        };
        let wishes = driver.wishes;
        match self.host.offer_rings(cx, &wishes) {
            Ok(()) => {
                self.host.stage = Stage::Connecting;
                // Buffers may be there from the first moment on.
                self.post_buffers(cx);
                self.push(cx);
            }
            Err(why) => self.break_host(cx, &why),
        }
    }

    /// The backend lies or is gone: nothing is asked of it any more, and whatever was sent fails as
    /// soon as it can no longer touch the guest's pages.
    pub(super) fn break_host(&mut self, cx: &mut Cx<'_>, why: &str) {
        if matches!(self.host.stage, Stage::Broken(_) | Stage::Closed) {
            return;
        }
        if self.can_wait_for_another() {
            return self.wait_for_another(cx, why);
        }
        log::error!("vif/{}: {why}", self.id.index);
        self.host.stage = Stage::Broken(why.to_owned());
        self.host.drop_rings(cx);
        let link = &self.host.link;
        link.set_state(cx.host_store, XenbusState::CLOSING);
        self.fail_sent(cx);
        self.withdraw_buffers(cx);
        self.pump(cx);
    }
    /// Whether the guest has come to another host and not run there yet, so that it need not learn
    /// what its new backend does before it works.
    fn can_wait_for_another(&self) -> bool {
        self.was_reattached && self.host.stage != Stage::Connected
    }

    /// There is no backend that works where the guest came to: gives up what was offered to it, and
    /// begins anew when one appears, or when the host lists the device again.
    fn wait_for_another(&mut self, cx: &mut Cx<'_>, why: &str) {
        log::error!("vif/{}: {why}; waiting for another backend", self.id.index);
        let had_rings = self.host.rings.is_some();
        self.host.stage = Stage::Absent(why.to_owned());
        self.host.drop_rings(cx);
        self.withdraw_buffers(cx);
        if had_rings {
            let link = &self.host.link;
            link.set_state(cx.host_store, XenbusState::INITIALISING);
        }
    }

    /// The host lists the device, which it may not have done before.
    pub(super) fn host_lists_it(&mut self, cx: &mut Cx<'_>, frontend: &str) {
        if matches!(self.host.stage, Stage::Absent(_)) {
            self.host.start(cx, frontend);
        }
    }
}
