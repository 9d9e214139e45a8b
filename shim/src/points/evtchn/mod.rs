//! The guest's event channels: two-level ports that the shim issues.
//!
//! Ports, virtual interrupts and inter-processor interrupts live here and in the guest's shared
//! info page only, so a migration has nothing to do: what is at the other end of a port is a
//! [`Peer`] in the shim, never a port of the host.

mod operations;
mod view;

use alloc::vec::Vec;

use xen_abi::shared_info::{EVTCHN_2L_PORTS, EVTCHN_MASK, EVTCHN_PENDING, vcpu_info};
use xen_abi::{DomId, Errno, Mfn, Port};

pub use self::view::PortsView;
use super::DeviceId;
use crate::cpu::Vcpu;
use crate::heap;
use crate::mem::Frames;

/// Who is at the other end of an interdomain port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The virtual xenstore.
    Store,
    /// The console relay.
    Console,
    /// A device.
    Device(DeviceId),
    /// Another port of the guest itself.
    Own(Port),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    Closed,
    Unbound { remote: DomId },
    Interdomain { remote: DomId, peer: Peer },
    Virq(u32),
    Ipi,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    binding: Binding,
    vcpu: u32,
}

/// All ports of the guest.
#[derive(Debug)]
pub struct EventChannels {
    /// The guest's shared info page.
    shared_info: Mfn,
    guest: DomId,
    backend: DomId,
    /// Indexed by port; port 0 never exists.
    channels: Vec<Channel>,
}

const CLOSED: Channel = Channel {
    binding: Binding::Closed,
    vcpu: 0,
};

impl EventChannels {
    /// Makes a domain without ports.
    pub fn new(shared_info: Mfn, guest: DomId, backend: DomId) -> Self {
        Self {
            shared_info,
            guest,
            backend,
            channels: alloc::vec![CLOSED],
        }
    }

    fn is_self(&self, domain: u16) -> bool {
        domain == DomId::SELF.0 || domain == self.guest.0
    }

    fn get(&self, port: u32) -> Result<Channel, Errno> {
        match self.channels.get(port as usize) {
            Some(channel) if port != 0 && channel.binding != Binding::Closed => Ok(*channel),
            _ => Err(Errno::EINVAL),
        }
    }

    fn allocate(&mut self, frames: &dyn Frames, channel: Channel) -> Result<Port, Errno> {
        // The lowest free port, as in Xen's `get_free_port`: a kernel meets the numbers that it
        // would there.
        let free = self
            .channels
            .iter()
            .skip(1)
            .position(|c| c.binding == Binding::Closed);
        let port = free.map_or(self.channels.len(), |index| index + 1);
        if port >= EVTCHN_2L_PORTS as usize {
            return Err(Errno::ENOSPC);
        }
        if port == self.channels.len() {
            // Only a longer table needs memory. A port below has its place already.
            heap::room()?;
            self.channels.push(channel);
        } else {
            self.channels[port] = channel;
        }
        // The page is the guest's to write. A bit that is set already would swallow the first event
        // (`raise`).
        let (word, bit) = position(port as u32);
        frames.fetch_and64(self.shared_info, EVTCHN_PENDING + word, !bit);
        Ok(Port(port as u32))
    }

    /// Makes a port that is connected to `peer` from the start (store and console).
    pub fn connect_new(&mut self, frames: &dyn Frames, peer: Peer) -> Result<Port, Errno> {
        let binding = Binding::Interdomain {
            remote: self.backend,
            peer,
        };
        self.allocate(frames, Channel { binding, vcpu: 0 })
    }

    /// `EVTCHNOP_send`: notifies the other end, and returns it if it is one of the shim's.
    pub fn send(
        &self,
        frames: &dyn Frames,
        vcpus: &[Vcpu],
        port: Port,
    ) -> Result<Option<Peer>, Errno> {
        match self.get(port.0)?.binding {
            Binding::Interdomain {
                peer: Peer::Own(other),
                ..
            } => {
                self.raise(frames, vcpus, other);
                Ok(None)
            }
            Binding::Interdomain { peer, .. } => Ok(Some(peer)),
            Binding::Ipi => {
                self.raise(frames, vcpus, port);
                Ok(None)
            }
            // Nobody is there yet: dropped without a word, as in Xen's `evtchn_send`.
            Binding::Unbound { .. } => Ok(None),
            Binding::Virq(_) | Binding::Closed => Err(Errno::EINVAL),
        }
    }

    /// `EVTCHNOP_unmask`.
    pub fn unmask(&self, frames: &dyn Frames, vcpus: &[Vcpu], port: Port) -> Result<(), Errno> {
        let channel = match port {
            // Xen has a channel behind port 0, which is in no use.
            Port(0) => CLOSED,
            port => self.get(port.0)?,
        };
        // The mask goes before the pending bit is looked at, and `raise` does it the other way
        // round: whichever comes second selects the port.
        let (word, bit) = position(port.0);
        let was_masked = frames.fetch_and64(self.shared_info, EVTCHN_MASK + word, !bit) & bit != 0;
        if was_masked && frames.load64(self.shared_info, EVTCHN_PENDING + word) & bit != 0 {
            select(frames, &vcpus[channel.vcpu as usize], port.0);
        }
        Ok(())
    }

    /// Raises a port, as the hypervisor does for an event: pending, and unless masked selected for
    /// the vCPU that it is bound to.
    pub fn raise(&self, frames: &dyn Frames, vcpus: &[Vcpu], port: Port) {
        // The guest may have closed the port of a device that is still at work.
        let Ok(channel) = self.get(port.0) else {
            return;
        };
        let (word, bit) = position(port.0);
        // Pending already: it was selected then, or it is masked and `unmask` will do it (Xen:
        // `evtchn_2l_set_pending`).
        if frames.fetch_or64(self.shared_info, EVTCHN_PENDING + word, bit) & bit != 0 {
            return;
        }
        if frames.load64(self.shared_info, EVTCHN_MASK + word) & bit == 0 {
            select(frames, &vcpus[channel.vcpu as usize], port.0);
        }
    }

    /// Raises a virtual interrupt on a vCPU, if the guest bound it.
    pub fn raise_virq(&self, frames: &dyn Frames, vcpus: &[Vcpu], virq: u32, vcpu: u32) {
        if let Some(port) = self.virq_port(virq, vcpu) {
            self.raise(frames, vcpus, port);
        }
    }

    /// Raises every port that leads to a peer in the shim, so that nothing lost is missed.
    pub fn raise_all(&self, frames: &dyn Frames, vcpus: &[Vcpu]) {
        for port in 1..self.channels.len() {
            if let Binding::Interdomain { peer, .. } = self.channels[port].binding
                && !matches!(peer, Peer::Own(_))
            {
                self.raise(frames, vcpus, Port(port as u32));
            }
        }
    }

    /// Whether a port is pending, masked or not.
    pub fn is_pending(&self, frames: &dyn Frames, port: u32) -> bool {
        let (word, bit) = position(port);
        frames.load64(self.shared_info, EVTCHN_PENDING + word) & bit != 0
    }

    /// How many ports are open.
    pub fn open_ports(&self) -> usize {
        self.channels
            .iter()
            .filter(|c| c.binding != Binding::Closed)
            .count()
    }

    fn virq_port(&self, virq: u32, vcpu: u32) -> Option<Port> {
        let index = self
            .channels
            .iter()
            .position(|c| c.binding == Binding::Virq(virq) && c.vcpu == vcpu)?;
        Some(Port(index as u32))
    }
}

/// Returns the byte offset of a port's 64-bit word in a bitmap, and its bit.
fn position(port: u32) -> (usize, u64) {
    ((port / 64) as usize * 8, 1 << (port % 64))
}

/// Marks a port's word as having news, and the vCPU as having events.
fn select(frames: &dyn Frames, vcpu: &Vcpu, port: u32) {
    let info = vcpu.info;
    let word = 1 << (port / 64);
    // The selector before the byte, for the guest clears the byte before it takes the selector. A
    // selector bit that is set has had its byte (Xen: `vcpu_mark_events_pending`).
    if frames.fetch_or64(info.frame, info.offset + vcpu_info::PENDING_SEL, word) & word == 0 {
        frames.store8(info.frame, info.offset + vcpu_info::UPCALL_PENDING, 1);
    }
}
