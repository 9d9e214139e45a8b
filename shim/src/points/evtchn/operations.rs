//! The operations of `event_channel_op` by which the guest makes, asks about and closes ports.

use xen_abi::evtchn::{AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Status};
use xen_abi::evtchn::{status, virq};
use xen_abi::shared_info::{EVTCHN_2L_PORTS, EVTCHN_PENDING};
use xen_abi::{DomId, Errno, Port};

use super::{Binding, CLOSED, Channel, EventChannels, Peer, position};
use crate::cpu::Vcpu;
use crate::mem::Frames;
use crate::points::identity::Identity;

impl EventChannels {
    /// `EVTCHNOP_alloc_unbound`.
    pub fn alloc_unbound(
        &mut self,
        frames: &dyn Frames,
        op: &mut AllocUnbound,
    ) -> Result<(), Errno> {
        if !self.is_self(op.dom) {
            return Err(Identity::refusal(op.dom));
        }
        let remote = if self.is_self(op.remote_dom) {
            self.guest
        } else {
            DomId(op.remote_dom)
        };
        let channel = Channel {
            binding: Binding::Unbound { remote },
            vcpu: 0,
        };
        op.port = self.allocate(frames, channel)?.0;
        Ok(())
    }

    /// `EVTCHNOP_bind_interdomain`: the only unbound ports that a guest can reach are its own.
    pub fn bind_interdomain(
        &mut self,
        frames: &dyn Frames,
        vcpus: &[Vcpu],
        op: &mut BindInterdomain,
    ) -> Result<(), Errno> {
        if !self.is_self(op.remote_dom) {
            return Err(match Identity::refusal(op.remote_dom) {
                // That domain is there, and has no port for this one.
                Errno::EPERM => Errno::EINVAL,
                absent => absent,
            });
        }
        match self.get(op.remote_port)?.binding {
            Binding::Unbound { remote } if remote == self.guest => {}
            _ => return Err(Errno::EINVAL),
        }
        let remote = self.guest;
        let peer = Peer::Own(Port(op.remote_port));
        let binding = Binding::Interdomain { remote, peer };
        // What may fail comes first: the other end changes only when this one exists.
        let local = self.allocate(frames, Channel { binding, vcpu: 0 })?;
        self.channels[op.remote_port as usize].binding = Binding::Interdomain {
            remote,
            peer: Peer::Own(local),
        };
        op.local_port = local.0;
        // As Xen does: the new end starts with an event, so that none from before is missed.
        self.raise(frames, vcpus, local);
        Ok(())
    }

    /// `EVTCHNOP_bind_virq`.
    pub fn bind_virq(
        &mut self,
        frames: &dyn Frames,
        vcpus: &[Vcpu],
        op: &mut BindVirq,
    ) -> Result<(), Errno> {
        // EINVAL, ENOENT, EEXIST: in the order of Xen's `evtchn_bind_virq`.
        let is_per_vcpu = matches!(op.virq, virq::TIMER | virq::DEBUG | virq::XENPMU);
        if op.virq >= virq::COUNT || !is_per_vcpu && op.vcpu != 0 {
            return Err(Errno::EINVAL);
        }
        if op.vcpu as usize >= vcpus.len() {
            return Err(Errno::ENOENT);
        }
        let channel = Channel {
            binding: Binding::Virq(op.virq),
            vcpu: op.vcpu,
        };
        if self.virq_port(op.virq, op.vcpu).is_some() {
            return Err(Errno::EEXIST);
        }
        op.port = self.allocate(frames, channel)?.0;
        Ok(())
    }

    /// `EVTCHNOP_bind_ipi`.
    pub fn bind_ipi(
        &mut self,
        frames: &dyn Frames,
        vcpus: &[Vcpu],
        op: &mut BindIpi,
    ) -> Result<(), Errno> {
        if op.vcpu as usize >= vcpus.len() {
            return Err(Errno::ENOENT);
        }
        op.port = self
            .allocate(
                frames,
                Channel {
                    binding: Binding::Ipi,
                    vcpu: op.vcpu,
                },
            )?
            .0;
        Ok(())
    }

    /// `EVTCHNOP_bind_vcpu`.
    pub fn bind_vcpu(&mut self, vcpus: &[Vcpu], op: &BindVcpu) -> Result<(), Errno> {
        if op.vcpu as usize >= vcpus.len() {
            return Err(Errno::ENOENT);
        }
        // These were made for one vCPU and stay with it (Xen: `evtchn_bind_vcpu`).
        let is_bound_for_good = match self.get(op.port)?.binding {
            Binding::Virq(n) => matches!(n, virq::TIMER | virq::DEBUG | virq::XENPMU),
            Binding::Ipi => true,
            _ => false,
        };
        if is_bound_for_good {
            return Err(Errno::EINVAL);
        }
        self.channels[op.port as usize].vcpu = op.vcpu;
        Ok(())
    }

    /// `EVTCHNOP_close`.
    pub fn close(&mut self, frames: &dyn Frames, port: Port) -> Result<(), Errno> {
        let channel = self.get(port.0)?;
        if let Binding::Interdomain {
            remote,
            peer: Peer::Own(other),
        } = channel.binding
        {
            // The other end stays open and may be bound again, as under Xen.
            self.channels[other.0 as usize].binding = Binding::Unbound { remote };
        }
        self.channels[port.0 as usize] = CLOSED;
        // Whoever has the number next must not inherit an event (Xen: `evtchn_close`).
        let (word, bit) = position(port.0);
        frames.fetch_and64(self.shared_info, EVTCHN_PENDING + word, !bit);
        Ok(())
    }

    /// `EVTCHNOP_reset`: closes every port.
    pub fn reset(&mut self, frames: &dyn Frames, domain: u16) -> Result<(), Errno> {
        if !self.is_self(domain) {
            return Err(Errno::EPERM);
        }
        for port in 1..self.channels.len() as u32 {
            if self.get(port).is_ok() {
                self.close(frames, Port(port))?;
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_status`.
    pub fn status(&self, op: &mut Status) -> Result<(), Errno> {
        if !self.is_self(op.dom) {
            return Err(Identity::refusal(op.dom));
        }
        if op.port >= EVTCHN_2L_PORTS {
            return Err(Errno::EINVAL);
        }
        let channel = self
            .channels
            .get(op.port as usize)
            .copied()
            .unwrap_or(CLOSED);
        op.vcpu = channel.vcpu;
        (op.detail, op.remote_port) = (0, 0);
        op.status = match channel.binding {
            Binding::Closed => status::CLOSED,
            Binding::Unbound { remote } => {
                op.detail = remote.0.into();
                status::UNBOUND
            }
            Binding::Interdomain { remote, peer } => {
                op.detail = remote.0.into();
                // A peer in the shim has no port; the guest's own number is as constant as any.
                op.remote_port = if let Peer::Own(other) = peer {
                    other.0
                } else {
                    op.port
                };
                status::INTERDOMAIN
            }
            Binding::Virq(n) => {
                op.detail = n;
                status::VIRQ
            }
            Binding::Ipi => status::IPI,
        };
        Ok(())
    }
}
