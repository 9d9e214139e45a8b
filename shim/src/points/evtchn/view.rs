//! The guest's ports as devices see them.

use xen_abi::Port;

use super::{Binding, Channel, EventChannels, Peer};
use crate::cpu::Vcpu;
use crate::mem::Frames;
use crate::points::{DeviceId, GuestPorts};

/// The ports together with what raising one needs, as devices are given them.
pub struct PortsView<'a> {
    /// The ports.
    pub channels: &'a mut EventChannels,
    /// Memory.
    pub frames: &'a dyn Frames,
    /// The vCPUs that ports notify.
    pub vcpus: &'a [Vcpu],
}

impl GuestPorts for PortsView<'_> {
    fn connect(&mut self, port: Port, device: DeviceId) -> bool {
        let backend = self.channels.backend;
        match self.channels.get(port.0) {
            Ok(Channel {
                binding: Binding::Unbound { remote },
                ..
            }) if remote == backend => {
                let peer = Peer::Device(device);
                self.channels.channels[port.0 as usize].binding =
                    Binding::Interdomain { remote, peer };
                true
            }
            _ => false,
        }
    }

    fn raise(&mut self, port: Port) {
        self.channels.raise(self.frames, self.vcpus, port);
    }

    fn disconnect(&mut self, port: Port) {
        // The guest may have closed the port, or have made it into something else since.
        if let Ok(Channel {
            binding:
                Binding::Interdomain {
                    remote,
                    peer: Peer::Device(_),
                },
            ..
        }) = self.channels.get(port.0)
        {
            self.channels.channels[port.0 as usize].binding = Binding::Unbound { remote };
        }
    }
}
