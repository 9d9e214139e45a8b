//! The ring of the host's backend.

use alloc::format;
use alloc::string::{String, ToString};

use xen_abi::blkif::{PROTOCOL, SLOT_SIZE};

use crate::host::HostPort;
use crate::points::Cx;
use crate::points::device::Offering;
use crate::points::ring::FrontRing;

/// log2 of the frames of our ring: 8 frames hold 256 requests, which is all that may be in flight.
const MAX_RING_ORDER: u32 = 3;

/// What the host's backend was given.
#[derive(Debug)]
pub struct Rings {
    pub(super) ring: FrontRing<SLOT_SIZE>,
    port: HostPort,
}

impl Rings {
    /// Makes a ring as large as the backend takes and memory allows, and publishes it.
    pub(super) fn offer(with: &mut Offering<'_, '_>) -> Result<Self, String> {
        let theirs = with.terms.number("max-ring-page-order").unwrap_or(0u32);
        let frames = with.frames(1 << theirs.min(MAX_RING_ORDER))?;
        let port = with.port()?;
        if let [(grant, _)] = frames[..] {
            // Backends look for this name only when no order is given.
            with.write("ring-ref", &grant.0.to_string());
            with.remove("ring-page-order");
        } else {
            for (index, (grant, _)) in frames.iter().enumerate() {
                with.write(&format!("ring-ref{index}"), &grant.0.to_string());
            }
            with.write("ring-page-order", &frames.len().ilog2().to_string());
        }
        with.write("event-channel", &port.0.0.to_string());
        with.write("protocol", PROTOCOL);
        with.write("feature-persistent", "0");
        let frames = frames.into_iter().map(|(_, frame)| frame).collect();
        Ok(Self {
            ring: FrontRing::new(with.cx.frames, frames),
            port,
        })
    }

    /// Publishes the requests that were written to the ring.
    pub(super) fn push(&mut self, cx: &mut Cx<'_>) {
        if self.ring.push(cx.frames) {
            cx.xen.notify(self.port);
        }
    }
}
