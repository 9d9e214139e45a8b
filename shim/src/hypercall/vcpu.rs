//! `vcpu_op`: vCPUs, their info pages and their timers.

use xen_abi::shared_info::{VCPU_INFO_SIZE, vcpu_info};
use xen_abi::vcpu::{RegisterVcpuInfo, RunstateInfo, op, runstate};
use xen_abi::{Errno, GuestVa, Mfn, PAGE_SIZE};

use super::{Answer, Args, is_guests, read, write};
use crate::cpu::{InfoPage, Machine};
use crate::guest::Guest;
use crate::host::Host;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `vcpu_op(command, vcpu, argument)`.
    pub(super) fn vcpu_op(&mut self, v: usize, [command, id, arg, ..]: Args) -> Answer {
        // Kernels count their vCPUs up to the first number that answers ENOENT.
        let target = usize::try_from(id).map_err(|_| Errno::ENOENT)?;
        if target >= self.vcpus.len() {
            return Err(Errno::ENOENT);
        }
        let is_self = target == v;
        match command {
            op::IS_UP => return Ok(self.vcpus[target].is_up.into()),
            // vCPU 0 is the only one until the shim carries more, and it runs already.
            op::INITIALISE => return Err(Errno::EEXIST),
            op::UP => {}
            // The last vCPU going down would end the domain under Xen. A kernel with one vCPU never
            // means that.
            op::DOWN => return Err(Errno::EBUSY),
            op::GET_RUNSTATE_INFO => {
                let now = self.now();
                let state = self.vcpus[target].runstate.state;
                // The same state entered anew: that adds the time until now to its sum.
                self.set_runstate(target, state, now);
                write(&self.m, arg, &self.vcpus[target].runstate)?;
            }
            op::REGISTER_RUNSTATE_MEMORY_AREA => {
                let area: u64 = read(&self.m, arg)?;
                if !is_guests(area, size_of::<RunstateInfo>() as u64) {
                    return Err(Errno::EFAULT);
                }
                // Only an address: the pages behind it may come and go, and each update looks them
                // up again.
                self.vcpus[target].runstate_area = (area != 0).then_some(GuestVa(area));
                if is_self {
                    let now = self.now();
                    self.set_runstate(target, runstate::RUNNING, now);
                }
            }
            op::REGISTER_VCPU_TIME_MEMORY_AREA => {
                // Only useful for a clock read in user mode, which needs a TSC that never changes
                // its frequency; refused, as by a host that does not have it.
                return Err(Errno::ENOSYS);
            }
            op::REGISTER_VCPU_INFO => self.register_vcpu_info(target, arg)?,
            op::SET_PERIODIC_TIMER if is_self => return self.set_periodic(v, arg),
            op::STOP_PERIODIC_TIMER => self.vcpus[target].timer.periodic = None,
            op::SET_SINGLESHOT_TIMER if is_self => return self.set_singleshot(v, arg),
            op::STOP_SINGLESHOT_TIMER if is_self => self.vcpus[v].timer.singleshot = None,
            // Of another vCPU: EINVAL as in `common_vcpu_op`.
            op::SET_SINGLESHOT_TIMER | op::STOP_SINGLESHOT_TIMER => return Err(Errno::EINVAL),
            op::SEND_NMI if arg != 0 => return Err(Errno::EINVAL),
            op::SEND_NMI => self.vcpus[target].nmi_pending = true,
            op::GET_PHYSID => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    /// `VCPUOP_register_vcpu_info`: moves a vCPU's info to a page of the guest, once.
    fn register_vcpu_info(&mut self, target: usize, arg: u64) -> Result<(), Errno> {
        let register: RegisterVcpuInfo = read(&self.m, arg)?;
        let offset = register.offset as usize;
        // The place first and the rest after, in the order of Xen's `map_vcpu_info` of 4.17. Inside
        // one page, so that one reference holds all of it.
        if !offset.is_multiple_of(8) || offset > PAGE_SIZE - VCPU_INFO_SIZE {
            return Err(Errno::ENXIO);
        }
        // Once only: nothing ever gives the reference back, so the shim writes to this frame at any
        // time without asking again.
        if self.vcpus[target].info.is_registered {
            return Err(Errno::EBUSY);
        }
        let frame = Mfn(register.mfn);
        // The reference keeps the page from becoming a page table behind the shim's back.
        // EINVAL for a frame that is not the guest's, EACCES for one that is and cannot be written:
        // a page table, say.
        if !self.ledger.is_readable(frame) {
            return Err(Errno::EINVAL);
        }
        self.ledger
            .get_writable(frame, &self.m)
            .map_err(|_| Errno::EACCES)?;
        let old = self.vcpus[target].info;
        let mut content = [0; VCPU_INFO_SIZE];
        // The old contents come along: the event mask is in there, and a guest with events masked
        // must not find them open.
        crate::mem::Frames::read(&self.m, old.frame, old.offset, &mut content);
        crate::mem::Frames::write(&self.m, frame, offset, &content);
        self.vcpus[target].info = InfoPage {
            frame,
            offset,
            is_registered: true,
        };
        // Into the new place before the guest reads it; the next update of the host's may be a long
        // time off.
        self.publish_time_now(target);
        // Whatever was signalled in the old place: look at everything once.
        // The selector before the flag that has the guest look at it.
        self.m.store64(frame, offset + vcpu_info::PENDING_SEL, !0);
        self.m.store8(frame, offset + vcpu_info::UPCALL_PENDING, 1);
        Ok(())
    }
}
