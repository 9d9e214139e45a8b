//! Follows the guest's driver, which connects, disconnects and comes back.
//!
//! The states follow those of Linux's backends, which every driver was tested against: a driver is connected
//! once it says that its rings are there, and Closed is said to it only when nothing of its is in use any more,
//! so that whoever comes next in its memory is safe.

use xen_abi::xenbus::XenbusState;

use super::table::FrontendAct;
use super::{Carrier, Cut, Features, Protocol};
use crate::points::Cx;
use crate::points::xenbus::Nodes;

impl<P: Protocol> Carrier<P> {
    /// Looks at the driver's state and does what it calls for.
    pub(super) fn guest_state_changed(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        let guest = &mut shell.guest;
        if shell.is_gone || !guest.is_published() {
            return self.finish_unplug(cx);
        }
        let state = guest.link.frontend_state(cx.store);
        let frontend = guest.frontend(shell.is_unplugging);
        match frontend.on_state(state, P::READY.contains(&state)) {
            FrontendAct::Nothing => {}
            FrontendAct::Welcome => guest.link.set_state(cx.store, XenbusState::INIT_WAIT),
            FrontendAct::Connect => self.connect_guest(cx),
            FrontendAct::Close => guest.link.set_state(cx.store, XenbusState::CLOSING),
            FrontendAct::Disconnect => self.disconnect_guest(cx),
        }
        self.guest_drained(cx);
    }

    /// The first host has described the device: tells the guest, once and for all.
    pub(super) fn show(&mut self, cx: &mut Cx<'_>) {
        let Some(shown) = &self.shell.shown else {
            return;
        };
        let link = &mut self.shell.guest.link;
        for (key, value) in shown.nodes() {
            link.set(cx.store, key, &value);
        }
        if link.state() == XenbusState::INITIALISING {
            link.set_state(cx.store, XenbusState::INIT_WAIT);
        }
        self.guest_state_changed(cx);
    }

    /// The host has changed something about the device that may change.
    pub(super) fn follow(&mut self, cx: &mut Cx<'_>, nodes: &Nodes) {
        let shell = &mut self.shell;
        let link = &mut shell.guest.link;
        match shell.shown.as_mut().map(|shown| shown.follow(nodes)) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some((key, value)))) => {
                link.set(cx.store, key, &value);
                // Writing the state again is how a backend says that something has changed.
                if link.state() == XenbusState::CONNECTED {
                    link.set_state(cx.store, XenbusState::CONNECTED);
                }
            }
            Some(Err(why)) => shell.log.warn(shell.id, format_args!("{why}")),
        }
    }

    /// Tells the driver that it is served, if it is.
    pub(super) fn show_connected(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        let link = &mut shell.guest.link;
        if shell.guest.driver.is_some()
            && link.state() == XenbusState::INIT_WAIT
            && (!P::FOLLOWS_DRIVER || shell.host.takes_requests())
        {
            link.set_state(cx.store, XenbusState::CONNECTED);
        }
    }

    fn connect_guest(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        if let Err(why) = shell.guest.join::<P>(cx, shell.id) {
            shell.log.warn(
                shell.id,
                format_args!("the guest's driver can not connect: {why}"),
            );
            shell.guest.link.set_state(cx.store, XenbusState::CLOSING);
            return;
        }
        self.offer_rings(cx);
        self.show_connected(cx);
        self.pump(cx);
    }

    /// The driver is gone: takes back everything that it granted, and closes a connection to the host that was
    /// made by the driver's wishes.
    fn disconnect_guest(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        // First of all: what still ends from here on finds no ring to answer in.
        shell.guest.leave(cx);
        if P::FOLLOWS_DRIVER {
            shell.host.reopen(cx);
        }
        self.protocol.cut(shell, cx, Cut::DriverGone);
    }

    /// Says Closed to a driver once nothing of its is in use.
    pub(super) fn guest_drained(&mut self, cx: &mut Cx<'_>) {
        let shell = &mut self.shell;
        if shell.guest.is_draining()
            && self.protocol.in_flight() == 0
            && !shell.host.ending.has_guest_frames()
        {
            shell.guest.end_draining();
            let link = &mut shell.guest.link;
            link.set_state(cx.store, XenbusState::CLOSED);
            // It may have started anew meanwhile.
            if !shell.is_unplugging && link.frontend_state(cx.store) == XenbusState::INITIALISING {
                link.set_state(cx.store, XenbusState::INIT_WAIT);
            }
        }
        self.finish_unplug(cx);
    }
}
