//! Follows the host's backend, which appears, offers, connects, lies or goes away.

use alloc::borrow::ToOwned;
use alloc::format;

use xen_abi::xenbus::XenbusState;

use super::table::{BackendAct, on_backend};
use super::{Carrier, ConnectionStage, Cut, Features, Protocol};
use crate::host::store::is_full;
use crate::points::xenbus::{LinkEvent, Nodes, why_failed};
use crate::points::{Cx, Device};

/// The collections that are asked for.
mod what {
    /// [`Protocol::TERMS`](super::Protocol::TERMS).
    pub const TERMS: u8 = 0;
    /// [`Protocol::DETAILS`](super::Protocol::DETAILS).
    pub const DETAILS: u8 = 1;
    /// [`Protocol::CHANGES`](super::Protocol::CHANGES).
    pub const CHANGES: u8 = 2;
}

impl<P: Protocol> Carrier<P> {
    /// Goes on with the connection to the host.
    pub(super) fn host_link_event(&mut self, cx: &mut Cx<'_>, event: LinkEvent) {
        match event {
            LinkEvent::Found(nodes) => self.shell.guest.publish::<P>(cx, &nodes),
            LinkEvent::State(state) => self.backend_state(cx, state),
            LinkEvent::Nodes { what, nodes } => self.backend_nodes(cx, what, nodes),
            LinkEvent::Failed { path, error } => match &self.shell.host.stage {
                // The directory goes before we do when the device is removed by force.
                ConnectionStage::Closed
                | ConnectionStage::Broken(_)
                | ConnectionStage::Absent(_) => {}
                // Something makes way, and it begins again.
                stage if is_full(error) && *stage != ConnectionStage::Connected => {
                    self.wait_for_another(cx, &why_failed(&path, error));
                }
                _ => self.break_host(cx, &why_failed(&path, error)),
            },
        }
    }

    fn backend_state(&mut self, cx: &mut Cx<'_>, state: XenbusState) {
        let may_wait = self.may_wait();
        let host = &mut self.shell.host;
        match on_backend(&host.stage, state, may_wait) {
            BackendAct::Nothing => {}
            BackendAct::Negotiate => {
                host.stage = ConnectionStage::Negotiating;
                host.link.collect(cx.host_store, what::TERMS, P::TERMS);
            }
            BackendAct::Tell(state) => host.link.set_state(cx.host_store, state),
            BackendAct::Restart => {
                let link = &host.link;
                link.set_state(cx.host_store, XenbusState::INITIALISING);
                host.stage = ConnectionStage::Waiting;
            }
            BackendAct::Taken if P::DETAILS.is_empty() => self.connected(cx),
            BackendAct::Taken => {
                host.stage = ConnectionStage::Describing;
                host.link.collect(cx.host_store, what::DETAILS, P::DETAILS);
            }
            // Nothing about some devices ever changes.
            BackendAct::LookAgain if P::CHANGES.is_empty() => {}
            BackendAct::LookAgain => {
                host.link.collect(cx.host_store, what::CHANGES, P::CHANGES);
            }
            BackendAct::WaitForAnother => self.wait_for_another(cx, "the backend is gone"),
            BackendAct::Unplug => self.unplug(cx),
            BackendAct::Gone => {
                self.break_host(cx, "the backend is gone");
                self.unplug(cx);
            }
        }
    }

    fn backend_nodes(&mut self, cx: &mut Cx<'_>, what: u8, nodes: Nodes) {
        match (what, &self.shell.host.stage) {
            (what::TERMS, ConnectionStage::Negotiating) if P::DETAILS.is_empty() => {
                let Some(is_first) = self.accept(cx, &nodes) else {
                    return;
                };
                self.shell.host.stage = ConnectionStage::Offered;
                self.shell.host.terms = nodes;
                if is_first {
                    self.show(cx);
                }
                self.offer_rings(cx);
            }
            (what::TERMS, ConnectionStage::Negotiating) => {
                self.shell.host.stage = ConnectionStage::Offered;
                self.shell.host.terms = nodes;
                self.offer_rings(cx);
            }
            (what::DETAILS, ConnectionStage::Describing) => {
                let Some(is_first) = self.accept(cx, &nodes) else {
                    return;
                };
                let host = &mut self.shell.host;
                host.link.set_state(cx.host_store, XenbusState::CONNECTED);
                host.stage = ConnectionStage::Connected;
                match is_first {
                    true => self.show(cx),
                    false => self.follow(cx, &nodes),
                }
                self.connected(cx);
            }
            (what::CHANGES, ConnectionStage::Connected) => self.follow(cx, &nodes),
            _ => {}
        }
    }

    /// Decides whether what a backend offers will do; says whether it is the first that describes the device.
    fn accept(&mut self, cx: &mut Cx<'_>, nodes: &Nodes) -> Option<bool> {
        let offer = match P::Shown::parse(nodes) {
            Ok(offer) => offer,
            Err(why) => {
                self.break_host(cx, &format!("the backend offers {why}"));
                return None;
            }
        };
        let shell = &mut self.shell;
        let first = match shell.shown {
            Some(_) => None,
            None => Some(P::Shown::fix(&offer)),
        };
        let shown = shell.shown.as_ref().or(first.as_ref())?;
        if let Some(why) = shown.refuses(&offer) {
            shell.error(format_args!("the backend is refused: {why}"));
            shell.host.stage = ConnectionStage::Refused(why);
            return None;
        }
        let is_first = first.is_some();
        // Only now, after the refusal above: the guest is told nothing that its first host does not
        // stand behind.
        shell.shown = first.or(shell.shown.take());
        shell.host.offer = Some(offer);
        Some(is_first)
    }

    /// Gives the backend rings if it can take them, and if there is a driver of the guest where it has to be told
    /// what that wants.
    pub(super) fn offer_rings(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        let driver = shell.guest.driver.as_ref();
        if shell.host.stage != ConnectionStage::Offered || P::FOLLOWS_DRIVER && driver.is_none() {
            return;
        }
        match shell.host.offer_rings(cx, &self.protocol, driver) {
            Ok(()) => {
                shell.host.stage = ConnectionStage::Given;
                // What the host is to have from the first moment on.
                self.pump(cx);
            }
            Err(why) => self.break_host(cx, &why),
        }
    }

    fn connected(&mut self, cx: &mut Cx<'_>) {
        self.shell.host.stage = ConnectionStage::Connected;
        self.show_connected(cx);
        self.pump(cx);
    }

    /// The backend lies or is gone: nothing is asked of it any more, and whatever was, fails as soon as it can
    /// no longer touch the guest's pages.
    pub(super) fn break_host(&mut self, cx: &mut Cx<'_>, why: &str) {
        if matches!(
            self.shell.host.stage,
            ConnectionStage::Broken(_) | ConnectionStage::Closed
        ) {
            return;
        }
        if self.may_wait() {
            return self.wait_for_another(cx, why);
        }
        let shell = &mut self.shell;
        shell.error(format_args!("{why}"));
        shell.host.stage = ConnectionStage::Broken(why.to_owned());
        // Rings and ports go before what is in flight fails, so that no answer can come for it
        // afterwards.
        shell.host.drop_rings(cx);
        let link = &shell.host.link;
        link.set_state(cx.host_store, XenbusState::CLOSING);
        self.protocol.cut(shell, cx, Cut::Broken);
        self.show_connected(cx);
        self.pump(cx);
    }

    /// Whether the guest has come to another host and not run there yet, so that it need not learn what its new
    /// backend does before it works.
    fn may_wait(&self) -> bool {
        self.shell.was_reattached && self.shell.host.stage != ConnectionStage::Connected
    }

    /// There is no backend that works where the guest came to: gives up what was offered to it, and begins anew
    /// when one appears, or when the host lists the device again.
    fn wait_for_another(&mut self, cx: &mut Cx<'_>, why: &str) {
        let shell = &mut self.shell;
        shell.error(format_args!("{why}; waiting for another backend"));
        let had_rings = shell.host.rings.is_some();
        shell.host.stage = ConnectionStage::Absent(why.to_owned());
        shell.host.drop_rings(cx);
        self.protocol.cut(shell, cx, Cut::Absent);
        // A backend that was given none has seen no state of ours that would have to be taken back.
        if had_rings {
            let link = &shell.host.link;
            link.set_state(cx.host_store, XenbusState::INITIALISING);
        }
    }
}
