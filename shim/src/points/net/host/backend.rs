//! What the host's backend does, and what follows: it appears, offers, connects, lies or goes away.

use alloc::borrow::ToOwned;

use xen_abi::xenbus::XenbusState;

use super::OFFER;
use crate::host::store::is_full;
use crate::points::device::{BackendAct, Stage, on_backend};
use crate::points::net::Vif;
use crate::points::net::features::{OFFER_KEYS, Offer, Shown};
use crate::points::xenbus::{LinkEvent, Nodes, why_failed};
use crate::points::{Cx, Device};

impl Vif {
    /// Goes on with the connection to the host.
    pub(in crate::points::net) fn host_link_event(&mut self, cx: &mut Cx<'_>, event: LinkEvent) {
        match event {
            LinkEvent::Found(nodes) => {
                self.announcer.set_mac(nodes.text("mac"));
                self.guest.publish(cx, &nodes);
            }
            LinkEvent::State(state) => self.backend_state(cx, state),
            LinkEvent::Nodes { what, nodes } => self.backend_nodes(cx, what, &nodes),
            LinkEvent::Failed { path, error } => match &self.host.stage {
                // The directory goes before we do when the device is removed by force.
                Stage::Closed | Stage::Broken(_) | Stage::Absent(_) => {}
                // Something makes way, and it begins again.
                stage if is_full(error) && *stage != Stage::Connected => {
                    self.wait_for_another(cx, &why_failed(&path, error));
                }
                _ => self.break_host(cx, &why_failed(&path, error)),
            },
        }
    }

    fn backend_state(&mut self, cx: &mut Cx<'_>, state: XenbusState) {
        match on_backend(&self.host.stage, state, self.can_wait_for_another()) {
            BackendAct::Nothing => {}
            BackendAct::Negotiate => {
                self.host.stage = Stage::Negotiating;
                let link = &mut self.host.link;
                link.collect(cx.host_store, OFFER, OFFER_KEYS);
            }
            BackendAct::Tell(state) => self.host.link.set_state(cx.host_store, state),
            BackendAct::Restart => {
                let link = &self.host.link;
                link.set_state(cx.host_store, XenbusState::INITIALISING);
                self.host.stage = Stage::Waiting;
            }
            BackendAct::Taken => {
                self.host.stage = Stage::Connected;
                self.show_connected(cx);
                self.announce(cx);
                self.pump(cx);
            }
            // Nothing about an interface changes.
            BackendAct::LookAgain => {}
            BackendAct::WaitForAnother => self.wait_for_another(cx, "the backend is gone"),
            BackendAct::Unplug => self.unplug(cx),
            BackendAct::Gone => {
                self.break_host(cx, "the backend is gone");
                self.unplug(cx);
            }
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
    pub(in crate::points::net) fn connect_host(&mut self, cx: &mut Cx<'_>) {
        let (Stage::Offered, Some(driver)) = (&self.host.stage, &self.guest.driver) else {
            return;
        };
        let wishes = driver.wishes;
        match self.host.offer_rings(cx, &wishes) {
            Ok(()) => {
                self.host.stage = Stage::Given;
                // Buffers may be there from the first moment on.
                self.post_buffers(cx);
                self.push(cx);
            }
            Err(why) => self.break_host(cx, &why),
        }
    }

    /// The backend lies or is gone: nothing is asked of it any more, and whatever was sent fails as
    /// soon as it can no longer touch the guest's pages.
    pub(in crate::points::net) fn break_host(&mut self, cx: &mut Cx<'_>, why: &str) {
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
        self.show_connected(cx);
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
    pub(in crate::points::net) fn host_lists_it(&mut self, cx: &mut Cx<'_>, frontend: &str) {
        if matches!(self.host.stage, Stage::Absent(_)) {
            self.host.start(cx, frontend);
        }
    }
}
