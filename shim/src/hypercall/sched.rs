//! `sched_op`: giving the processor away, waiting, and stopping the domain.

use alloc::vec::Vec;

use xen_abi::sched::{Poll, ShutdownReason, op};
use xen_abi::shared_info::EVTCHN_2L_PORTS;
use xen_abi::vcpu::runstate;
use xen_abi::{Errno, GuestVa};
use zerocopy::IntoBytes;

use super::{Answer, Args, read};
use crate::cpu::{Machine, deliver};
use crate::guest::Guest;
use crate::host::Host;

/// Most ports in one poll (`SCHEDOP_poll` of Xen refuses more).
const MAX_POLL: u32 = 128;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `sched_op(command, argument)`.
    pub(super) fn sched_op(&mut self, v: usize, [command, arg, ..]: Args) -> Answer {
        match command {
            op::YIELD => self.host.yield_now(),
            op::BLOCK => {
                // Unmasked first: an event that is pending already ends the wait at once, when the
                // turn asks for one. No wake-up is lost between the two.
                deliver::mask_events(&self.m, &self.vcpus[v], false);
                self.block(v);
            }
            op::POLL => self.poll(v, arg)?,
            op::SHUTDOWN => {
                let reason: u32 = read(&self.m, arg)?;
                return self.guest_shutdown(reason);
            }
            op::SHUTDOWN_CODE | op::WATCHDOG | op::REMOTE_SHUTDOWN => return Err(Errno::ENOSYS),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    fn block(&mut self, v: usize) {
        self.vcpus[v].is_blocked = true;
        let now = self.now();
        self.set_runstate(v, runstate::BLOCKED, now);
    }

    fn poll(&mut self, v: usize, arg: u64) -> Result<(), Errno> {
        let poll: Poll = read(&self.m, arg)?;
        // Before anything is allocated: the length is the guest's choice.
        if poll.nr_ports > MAX_POLL {
            return Err(Errno::EINVAL);
        }
        let mut ports: Vec<u32> = alloc::vec![0; poll.nr_ports as usize];
        self.m
            .read_guest(GuestVa(poll.ports), ports.as_mut_bytes())?;
        if ports.iter().any(|&port| port >= EVTCHN_2L_PORTS) {
            return Err(Errno::EINVAL);
        }
        if ports
            .iter()
            .any(|&port| self.channels.is_pending(&self.m, port))
        {
            // Without blocking, as `do_poll`: the event came before the call.
            return Ok(());
        }
        // Ports that become pending from here on are seen by the turn, which looks before it waits.
        self.block(v);
        let vcpu = &mut self.vcpus[v];
        vcpu.polling = ports;
        // 0 is no limit. A time that has passed already wakes the vCPU at the first look.
        vcpu.timer.poll = (poll.timeout != 0).then_some(poll.timeout);
        Ok(())
    }

    /// The guest stops itself.
    ///
    /// A suspend is a guest's business only under a hypervisor that cannot move it without its
    /// help.  Here it is answered as one that was cancelled at once: the guest finds everything as
    /// it was and goes on.
    fn guest_shutdown(&mut self, reason: u32) -> Answer {
        if reason > ShutdownReason::MAX {
            return Err(Errno::EINVAL);
        }
        if ShutdownReason(reason) == ShutdownReason::SUSPEND {
            return Ok(1);
        }
        self.stop(ShutdownReason(reason))
    }
}
