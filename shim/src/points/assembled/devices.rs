//! Makes devices.

use alloc::boxed::Box;

use crate::points::bus::DeviceFactory;
use crate::points::disk::Vbd;
use crate::points::net::Vif;
use crate::points::{Cx, Device, DeviceClass, DeviceId};

/// Makes disks and network interfaces.
pub struct Factory;

impl DeviceFactory for Factory {
    fn make(&mut self, cx: &mut Cx<'_>, id: DeviceId, host_frontend: &str) -> Box<dyn Device> {
        match id.class {
            DeviceClass::Vbd => Box::new(Vbd::new(cx, id.index, host_frontend)),
            DeviceClass::Vif => Box::new(Vif::new(cx, id.index, host_frontend)),
        }
    }
}
