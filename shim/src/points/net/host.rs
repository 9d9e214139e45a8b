//! The rings of the host's backend.

use alloc::string::{String, ToString};

use xen_abi::netif::{RX_SLOT, TX_SLOT};

use super::features::{Offer, Wishes};
use crate::host::HostPort;
use crate::points::Cx;
use crate::points::device::Offering;
use crate::points::ring::FrontRing;

/// What the host's backend was given.
#[derive(Debug)]
pub struct Rings {
    pub(super) tx: FrontRing<TX_SLOT>,
    pub(super) rx: FrontRing<RX_SLOT>,
    tx_port: HostPort,
    /// The port of the receive ring, which may be the other one's.
    rx_port: HostPort,
}

impl Rings {
    /// Makes rings and ports, and publishes them with what the guest's driver wants.
    pub(super) fn offer(with: &mut Offering<'_, '_>, wishes: &Wishes) -> Result<Self, String> {
        let (tx_grant, tx) = with.frame()?;
        let (rx_grant, rx) = with.frame()?;
        let tx_port = with.port()?;
        // One port for both rings will do if there is no second one.
        let rx_port = match Offer::read(with.terms).split_ports {
            true => with.port().unwrap_or(tx_port),
            false => tx_port,
        };
        with.write("tx-ring-ref", &tx_grant.0.to_string());
        with.write("rx-ring-ref", &rx_grant.0.to_string());
        let [tx_name, rx_name] = [tx_port, rx_port].map(|port| port.0.0.to_string());
        // A backend that finds ports of either kind may take the wrong ones.
        if rx_port == tx_port {
            with.remove("event-channel-tx");
            with.remove("event-channel-rx");
            with.write("event-channel", &tx_name);
        } else {
            with.remove("event-channel");
            with.write("event-channel-tx", &tx_name);
            with.write("event-channel-rx", &rx_name);
        }
        for (key, is_wanted) in wishes.nodes() {
            with.write(key, if is_wanted { "1" } else { "0" });
        }
        Ok(Self {
            tx: FrontRing::new(with.cx.frames, [tx].into()),
            rx: FrontRing::new(with.cx.frames, [rx].into()),
            tx_port,
            rx_port,
        })
    }

    /// Publishes the requests that were written to the rings.
    pub(super) fn push(&mut self, cx: &mut Cx<'_>) {
        let (tx, rx) = (self.tx.push(cx.frames), self.rx.push(cx.frames));
        if tx {
            cx.xen.notify(self.tx_port);
        }
        if rx && !(tx && self.rx_port == self.tx_port) {
            cx.xen.notify(self.rx_port);
        }
    }
}
