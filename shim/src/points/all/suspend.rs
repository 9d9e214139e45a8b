//! The event by which the host asks for a suspend without a round trip through the store.
//!
//! libxl looks for `device/suspend/event-channel` in the domain's directory; where it finds a port
//! it binds to it, notifies it instead of writing `control/shutdown`, and waits for the domain to
//! stop.  The guest has a node of that name in its own store, which nobody reads.

use alloc::string::{String, ToString as _};

use xen_abi::DomId;

use crate::host::{HostPort, StoreClient, StoreOp, Xen};
use crate::points::TagOwner;

/// Where the toolstack looks for the port.
const NODE: &str = "device/suspend/event-channel";
/// Where the toolstack is.
const TOOLSTACK: DomId = DomId(0);

/// The port of the present domain, if it has one.
#[derive(Debug, Default)]
pub struct SuspendPort(Option<HostPort>);

impl SuspendPort {
    /// Whether `port` is this one.
    pub fn is(&self, port: HostPort) -> bool {
        self.0 == Some(port)
    }

    /// The domain is a new one, without the port.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// Makes the port and tells the toolstack, which otherwise uses the store.
    pub fn publish(&mut self, xen: &mut impl Xen, store: &mut dyn StoreClient) {
        match xen.alloc_unbound(TOOLSTACK) {
            Ok(port) => {
                self.0 = Some(port);
                let value = port.0.0.to_string().into_bytes();
                store.submit(
                    TagOwner::Suspend.tag(),
                    StoreOp::Write(String::from(NODE), value),
                );
            }
            Err(errno) => log::warn!("no port for suspend requests: {errno}"),
        }
    }
}
