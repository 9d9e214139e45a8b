//! What the host's backend does, and what follows: it appears, offers, connects, lies or goes away.

use alloc::borrow::ToOwned;
use alloc::format;

use xen_abi::xenbus::XenbusState;

use super::what;
use crate::host::store::is_full;
use crate::points::device::{BackendAct, Stage, on_backend};
use crate::points::disk::Vbd;
use crate::points::disk::features::{DETAIL_KEYS, Offer, Shown, parse_sectors};
use crate::points::xenbus::{LinkEvent, Nodes, why_failed};
use crate::points::{Cx, Device};

impl Vbd {
    /// Goes on with the connection to the host.
    pub(in crate::points::disk) fn host_link_event(&mut self, cx: &mut Cx<'_>, event: LinkEvent) {
        match event {
            LinkEvent::Found(nodes) => self.guest.publish(cx, &nodes),
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
                link.collect(cx.host_store, what::RING, &["max-ring-page-order"]);
            }
            BackendAct::Tell(state) => self.host.link.set_state(cx.host_store, state),
            BackendAct::Restart => {
                let link = &self.host.link;
                link.set_state(cx.host_store, XenbusState::INITIALISING);
                self.host.stage = Stage::Waiting;
            }
            BackendAct::Taken => {
                self.host.stage = Stage::Describing;
                let link = &mut self.host.link;
                link.collect(cx.host_store, what::DETAILS, DETAIL_KEYS);
            }
            BackendAct::LookAgain => {
                let link = &mut self.host.link;
                link.collect(cx.host_store, what::SIZE, &["sectors"]);
            }
            BackendAct::WaitForAnother => self.wait_for_another(cx, "the backend is gone"),
            BackendAct::Unplug => self.unplug(cx),
            BackendAct::Gone => {
                self.break_host(cx, "the backend is gone");
                self.unplug(cx);
            }
        }
    }

    fn backend_nodes(&mut self, cx: &mut Cx<'_>, what: u8, nodes: &Nodes) {
        match (what, &self.host.stage) {
            (what::RING, Stage::Negotiating) => match self.host.offer_ring(cx, nodes) {
                Ok(()) => self.host.stage = Stage::Given,
                Err(why) => self.break_host(cx, &why),
            },
            (what::DETAILS, Stage::Describing) => match Offer::parse(nodes) {
                Ok(offer) => self.host_connected(cx, offer),
                Err(why) => self.break_host(cx, &format!("the backend offers {why}")),
            },
            (what::SIZE, Stage::Connected) => match parse_sectors(nodes) {
                Ok(sectors) => self.show_size(cx, sectors),
                Err(why) => self.log.warn(self.id, format_args!("{why}")),
            },
            _ => {}
        }
    }

    fn host_connected(&mut self, cx: &mut Cx<'_>, offer: Offer) {
        if let Some(why) = self.shown.as_ref().and_then(|shown| shown.refuses(&offer)) {
            log::error!("vbd/{}: the backend is refused: {why}", self.id.index);
            self.host.stage = Stage::Refused(why);
            return;
        }
        let link = &self.host.link;
        link.set_state(cx.host_store, XenbusState::CONNECTED);
        self.host.stage = Stage::Connected;
        let sectors = offer.sectors;
        let is_first = self.shown.is_none();
        if is_first {
            self.shown = Some(Shown::fix(&offer));
        }
        self.host.offer = Some(offer);
        if is_first {
            self.show(cx);
        } else {
            self.show_size(cx, sectors);
        }
        self.pump(cx);
    }

    /// The backend lies or is gone: nothing is asked of it any more, and whatever was, fails as
    /// soon as it can no longer touch the guest's pages.
    pub(in crate::points::disk) fn break_host(&mut self, cx: &mut Cx<'_>, why: &str) {
        if matches!(self.host.stage, Stage::Broken(_) | Stage::Closed) {
            return;
        }
        if self.can_wait_for_another() {
            return self.wait_for_another(cx, why);
        }
        log::error!("vbd/{}: {why}", self.id.index);
        self.host.stage = Stage::Broken(why.to_owned());
        self.host.drop_ring(cx);
        let link = &self.host.link;
        link.set_state(cx.host_store, XenbusState::CLOSING);
        self.fail_all(cx);
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
        log::error!("vbd/{}: {why}; waiting for another backend", self.id.index);
        let had_rings = self.host.ring.is_some();
        self.host.stage = Stage::Absent(why.to_owned());
        self.host.drop_ring(cx);
        if had_rings {
            let link = &self.host.link;
            link.set_state(cx.host_store, XenbusState::INITIALISING);
        }
    }

    /// The host lists the device, which it may not have done before.
    pub(in crate::points::disk) fn host_lists_it(&mut self, cx: &mut Cx<'_>, frontend: &str) {
        if matches!(self.host.stage, Stage::Absent(_)) {
            self.host.start(cx, frontend);
        }
    }
}
