//! The ring of the guest's driver.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::Port;
use xen_abi::blkif::{PROTOCOL, SLOT_SIZE};

use super::features::SHOWN_RING_ORDER;
use crate::points::Cx;
use crate::points::device::Joining;
use crate::points::ring::BackRing;

/// A connected driver of the guest.
#[derive(Debug)]
pub struct Driver {
    pub(super) ring: BackRing<SLOT_SIZE>,
    port: Port,
    /// The driver wrote nonsense to its ring: no more is taken from there.
    pub(super) is_broken: bool,
}

impl Driver {
    /// Attaches to the ring that a driver has published.
    pub(super) fn join(with: &mut Joining<'_, '_>) -> Result<Self, String> {
        if let Some(protocol) = with.link.text(with.cx.store, "protocol")
            && protocol != PROTOCOL
        {
            return Err(format!("protocol {protocol:?}"));
        }
        let ring_ref0: Option<u32> = with.link.number(with.cx.store, "ring-ref0");
        let mut frames = Vec::new();
        match with.link.number(with.cx.store, "ring-page-order") {
            None => frames.push(with.ring_frame("ring-ref")?),
            // A ring of order 0 may go by either name.
            Some(0u32) if ring_ref0.is_none() => {
                frames.push(with.ring_frame("ring-ref")?);
            }
            Some(order @ 0..=SHOWN_RING_ORDER) => {
                for index in 0..1u32 << order {
                    frames.push(with.ring_frame(&format!("ring-ref{index}"))?);
                }
            }
            Some(order) => return Err(format!("a ring of order {order}")),
        }
        let ring = BackRing::attach(with.cx.frames, frames)
            .map_err(|error| format!("its ring has {error}"))?;
        let port = with
            .port("event-channel")
            .ok_or("it has no port for the backend")?;
        Ok(Self {
            ring,
            port,
            is_broken: false,
        })
    }

    /// Publishes the answers that were written to the ring.
    pub(super) fn push(&mut self, cx: &mut Cx<'_>) {
        if self.ring.push(cx.frames) {
            cx.ports.raise(self.port);
        }
    }
}
