//! The rings of the guest's driver.

use alloc::format;
use alloc::string::{String, ToString};

use xen_abi::Port;
use xen_abi::netif::{RX_SLOT, TX_SLOT};

use super::features::Wishes;
use crate::points::Cx;
use crate::points::device::Joining;
use crate::points::ring::BackRing;

/// A connected driver of the guest.
#[derive(Debug)]
pub struct Driver {
    pub(super) tx: BackRing<TX_SLOT>,
    pub(super) rx: BackRing<RX_SLOT>,
    tx_port: Port,
    /// The port of the receive ring, which may be the other one's.
    rx_port: Port,
    pub(super) wishes: Wishes,
    /// The driver wrote nonsense to a ring: no more is taken from there.
    pub(super) is_broken: bool,
}

impl Driver {
    /// Attaches to the rings that a driver has published.
    pub(super) fn join(with: &mut Joining<'_, '_>) -> Result<Self, String> {
        let wishes = Wishes::read(with.link, with.cx.store)?;
        let tx = with.ring_frame("tx-ring-ref")?;
        let rx = with.ring_frame("rx-ring-ref")?;
        if tx == rx {
            return Err("both rings are one".to_string());
        }
        let tx = BackRing::attach(with.cx.frames, [tx].into())
            .map_err(|error| format!("its transmit ring has {error}"))?;
        let rx = BackRing::attach(with.cx.frames, [rx].into())
            .map_err(|error| format!("its receive ring has {error}"))?;
        let is_split = with.link.text(with.cx.store, "event-channel-tx").is_some();
        let names = match is_split {
            true => ["event-channel-tx", "event-channel-rx"],
            false => ["event-channel"; 2],
        };
        let none = "it has no port for the backend";
        let tx_port = with.port(names[0]).ok_or(none)?;
        let rx_port = match is_split {
            true => with.port(names[1]).ok_or(none)?,
            false => tx_port,
        };
        Ok(Self {
            tx,
            rx,
            tx_port,
            rx_port,
            wishes,
            is_broken: false,
        })
    }

    /// Publishes the answers that were written to the rings.
    pub(super) fn push(&mut self, cx: &mut Cx<'_>) {
        let (tx, rx) = (self.tx.push(cx.frames), self.rx.push(cx.frames));
        if tx {
            cx.ports.raise(self.tx_port);
        }
        if rx && !(tx && self.rx_port == self.tx_port) {
            cx.ports.raise(self.rx_port);
        }
    }
}
