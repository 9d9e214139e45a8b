//! The host's request to suspend: from the moment that it reaches the shim until the guest's loop takes it.
//!
//! A toolstack asks in one of two ways.  It writes `suspend` to `control/shutdown`, and gives up if that is not
//! acknowledged within 60 s (libxl: "guest didn't acknowledge suspend"); so the mirror acknowledges at once, whatever
//! the guest is doing, and a request that was withdrawn before is none.  Or it raises an event: libxl looks for
//! `device/suspend/event-channel` in the domain's directory, and where it finds a port it binds to it and notifies it
//! instead, without a round trip through the store.  The guest has a node of that name in its own store, which
//! nobody reads.  Either way the host then waits (up to 60 s) for the domain to stop: the request is *due*.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use xen_abi::{DomId, Errno};

use super::TagOwner;
use crate::host::store::replace::REPLACED;
use crate::host::{HostPort, StoreClient, StoreOp, Xen};

/// Where the toolstack looks for the port.
const NODE: &str = "device/suspend/event-channel";
/// Where the toolstack is.
const TOOLSTACK: DomId = DomId(0);

/// The request, if there is one, and the doors that it comes by.
#[derive(Debug, Default)]
pub struct SuspendRequest {
    /// The port of the present domain, if it has one.
    port: Option<HostPort>,
    /// It was read in the store, and the acknowledgement is on its way there: it may still be withdrawn.
    is_acknowledging: bool,
    /// The host waits for the domain to stop.
    is_due: bool,
}

impl SuspendRequest {
    /// The domain is a new one: it has no port, and was asked for nothing.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Makes the port and tells the toolstack, which otherwise uses the store.
    pub fn publish(&mut self, xen: &mut impl Xen, store: &mut dyn StoreClient) {
        match xen.alloc_unbound(TOOLSTACK) {
            Ok(port) => {
                self.port = Some(port);
                let value = port.0.0.to_string().into_bytes();
                store.submit(
                    TagOwner::Suspend.tag(),
                    StoreOp::Write(String::from(NODE), value),
                );
            }
            Err(errno) => log::warn!("no port for suspend requests: {errno}"),
        }
    }

    /// The host has raised an event.  `false` when it is not about this.
    pub fn notified(&mut self, port: HostPort) -> bool {
        let is_it = self.port == Some(port);
        self.is_due |= is_it;
        is_it
    }

    /// The request was read in the store.  Returns whether it is to be acknowledged, which it is once.
    #[must_use = "the host waits for the acknowledgement"]
    pub fn found_in_store(&mut self) -> bool {
        !core::mem::replace(&mut self.is_acknowledging, true)
    }

    /// The attempt to acknowledge it has this result.  Returns whether it is due now; else it was withdrawn.
    pub fn acknowledged(&mut self, result: Result<Vec<u8>, Errno>) -> bool {
        self.is_acknowledging = false;
        match result {
            Ok(outcome) if outcome == REPLACED => {
                self.is_due = true;
                return true;
            }
            Ok(_) => log::warn!("xenstore: the host has withdrawn its request to suspend"),
            Err(error) => log::error!("xenstore: acknowledging the suspend: {error}"),
        }
        false
    }

    /// Whether the host waits for the domain to stop.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// Takes the request.  Returns whether there was one.
    pub fn take(&mut self) -> bool {
        core::mem::take(&mut self.is_due)
    }
}
