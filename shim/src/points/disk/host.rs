//! The ring of the host's backend.

use alloc::format;
use alloc::string::{String, ToString};

use xen_abi::blkif::{PROTOCOL, SLOT_SIZE};

use crate::host::HostPort;
use crate::points::Cx;
use crate::points::device::Offering;
use crate::points::ring::FrontRing;

/// Requests that a frame of a ring holds.
const SLOTS: usize = 32;
/// log2 of the most frames that any backend takes (`XENBUS_MAX_RING_GRANT_ORDER` of Linux).
const MAX_RING_ORDER: u32 = 4;

/// What the host's backend was given.
#[derive(Debug)]
pub struct Rings {
    pub(super) ring: FrontRing<SLOT_SIZE>,
    port: HostPort,
}

impl Rings {
    /// Makes a ring for up to `requests` requests at a time, as far as the backend and memory allow, and
    /// publishes it.
    ///
    /// No more than the disk may have in flight, for the backend pays: Linux's keeps a MiB for each frame, and a
    /// guest with 27 disks of 8 frames took all memory of a small control domain.
    pub(super) fn offer(with: &mut Offering<'_, '_>, requests: usize) -> Result<Self, String> {
        let theirs = with.terms.number("max-ring-page-order").unwrap_or(0u32);
        let wanted = requests.div_ceil(SLOTS).next_power_of_two();
        let frames = with.frames(wanted.min(1 << theirs.min(MAX_RING_ORDER)))?;
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
