//! `event_channel_op`.

use xen_abi::evtchn::{AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Status, op};
use xen_abi::{Errno, Port};

use super::{Answer, Args, read, write};
use crate::cpu::Machine;
use crate::guest::Guest;
use crate::host::Host;

/// Units of work to close all ports: there are 4,096, and each takes a few stores.
const RESET: u32 = 1024;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `event_channel_op(command, argument)`.
    pub(super) fn event_channel_op(&mut self, [command, arg, ..]: Args) -> Answer {
        match command {
            op::SEND => {
                let port = Port(read(&self.m, arg)?);
                if let Some(peer) = self.channels.send(&self.m, &self.vcpus, port)? {
                    // Only ends on the shim's side come here; `send` itself raises the guest's own.
                    self.with_points(|points, env| points.guest_notify(env, peer, port));
                }
            }
            op::UNMASK => {
                self.channels
                    .unmask(&self.m, &self.vcpus, Port(read(&self.m, arg)?))?;
            }
            op::ALLOC_UNBOUND => {
                let mut alloc: AllocUnbound = read(&self.m, arg)?;
                self.channels.alloc_unbound(&self.m, &mut alloc)?;
                // A port whose number cannot be written stays open, as in Xen: the guest loses one
                // of its own ports.
                write(&self.m, arg, &alloc)?;
            }
            op::BIND_INTERDOMAIN => {
                let mut bind: BindInterdomain = read(&self.m, arg)?;
                self.channels
                    .bind_interdomain(&self.m, &self.vcpus, &mut bind)?;
                write(&self.m, arg, &bind)?;
            }
            op::BIND_VIRQ => {
                let mut bind: BindVirq = read(&self.m, arg)?;
                self.channels.bind_virq(&self.m, &self.vcpus, &mut bind)?;
                write(&self.m, arg, &bind)?;
            }
            op::BIND_IPI => {
                let mut bind: BindIpi = read(&self.m, arg)?;
                self.channels.bind_ipi(&self.m, &self.vcpus, &mut bind)?;
                write(&self.m, arg, &bind)?;
            }
            op::BIND_VCPU => {
                let bind: BindVcpu = read(&self.m, arg)?;
                self.channels.bind_vcpu(&self.vcpus, &bind)?;
            }
            op::CLOSE => self.channels.close(&self.m, Port(read(&self.m, arg)?))?,
            op::STATUS => {
                let mut status: Status = read(&self.m, arg)?;
                self.channels.status(&mut status)?;
                write(&self.m, arg, &status)?;
            }
            op::RESET => {
                // Charged, not divided: a reset that began anew after an interruption would close
                // what was opened since.
                self.ledger.work().spend(RESET);
                self.channels.reset(&self.m, read(&self.m, arg)?)?;
            }
            // Two-level ports are all there is; the arguments are still looked at first.
            op::INIT_CONTROL | op::EXPAND_ARRAY | op::SET_PRIORITY => {
                let mut probe = [0; 8];
                self.m.read_guest(xen_abi::GuestVa(arg), &mut probe)?;
                return Err(Errno::EOPNOTSUPP);
            }
            op::BIND_PIRQ => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }
}
