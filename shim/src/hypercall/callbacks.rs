//! Where the guest wants its exceptions and events: `set_trap_table`, `callback_op`,
//! `set_callbacks`, `nmi_op`.

use xen_abi::callback::{MASK_EVENTS, REGISTER, Register, UNREGISTER, kind};
use xen_abi::mmu::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
use xen_abi::trap::{FLAT_RING3_CS64, TrapInfo, vector};
use xen_abi::{Errno, GuestVa};

use super::segments::is_canonical;
use super::{Answer, Args, element, read};
use crate::cpu::{Callback, Machine};
use crate::guest::Guest;
use crate::host::Host;

/// Whether the guest may have code there.
fn is_handler(address: u64) -> bool {
    is_canonical(address) && !(HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&address)
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// `set_trap_table(table)`; a null table clears every handler.
    pub(super) fn set_trap_table(&mut self, v: usize, [table, ..]: Args) -> Answer {
        if table == 0 {
            // From here on an exception is the end of the guest, as under Xen.
            *self.vcpus[v].traps = [TrapInfo::default(); 256];
            return Ok(0);
        }
        // The end is an entry of the guest's, which may never come: one page mapped over and over
        // makes the list as long as the address space.
        for index in 0.. {
            let at = element::<TrapInfo>(table, index)?;
            // At least one entry each time, or a host that is never quiet would keep the guest here
            // for ever.
            if index > 0 && self.should_stop() {
                self.continuation = Some([at, 0, 0, 0, 0]);
                break;
            }
            let info: TrapInfo = read(&self.m, at)?;
            // Entries before a bad one stay set, as in `do_set_trap_table`.
            if info.address == 0 {
                break;
            }
            if !is_handler(info.address) {
                // Refused when it is registered, as in `do_set_trap_table`: an exception would have
                // nowhere to go.
                return Err(Errno::EINVAL);
            }
            self.vcpus[v].traps[usize::from(info.vector)] = info;
        }
        Ok(0)
    }

    /// `callback_op(command, argument)`.
    pub(super) fn callback_op(&mut self, v: usize, [command, arg, ..]: Args) -> Answer {
        match command {
            REGISTER => {
                let register: Register = read(&self.m, arg)?;
                self.set_callback(v, register.kind, register.flags, register.address)?;
            }
            UNREGISTER => {
                let kind: u16 = read(&self.m, arg)?;
                match kind {
                    // EINVAL for what exists and cannot be taken back, ENOSYS for what does not
                    // exist (`unregister_guest_callback`).
                    kind::NMI => self.vcpus[v].traps[2] = TrapInfo::default(),
                    kind::EVENT..=kind::SYSCALL32 if kind != 3 && kind != 6 => {
                        return Err(Errno::EINVAL);
                    }
                    _ => return Err(Errno::ENOSYS),
                }
            }
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    fn set_callback(&mut self, v: usize, kind: u16, flags: u16, address: u64) -> Result<(), Errno> {
        // Before the kind is looked at, as in `register_guest_callback`: a bad address of a kind
        // that does not exist is EINVAL.
        if !is_handler(address) {
            return Err(Errno::EINVAL);
        }
        let vcpu = &mut self.vcpus[v];
        let callback = Callback {
            address,
            masks_events: flags & MASK_EVENTS != 0,
        };
        match kind {
            // `masks_events` is kept, but an event always masks others: the same event would
            // otherwise interrupt its own handler.
            kind::EVENT => vcpu.event = callback,
            kind::FAILSAFE => vcpu.failsafe = callback,
            kind::SYSCALL => vcpu.syscall = callback,
            kind::SYSENTER => vcpu.sysenter = callback,
            kind::SYSCALL32 => vcpu.syscall32 = callback,
            kind::NMI => {
                // As the trap table would say it; an NMI's handler starts with events masked.
                vcpu.traps[2] = TrapInfo {
                    vector: vector::NMI,
                    flags: TrapInfo::MASKS_EVENTS,
                    cs: FLAT_RING3_CS64,
                    pad: 0,
                    address,
                };
            }
            _ => return Err(Errno::ENOSYS),
        }
        Ok(())
    }

    /// `set_callbacks(event, failsafe, syscall)`, the older form, which reports no
    /// mistake: a bad address leaves the callback as it was.
    pub(super) fn set_callbacks(
        &mut self,
        v: usize,
        [event, failsafe, syscall, ..]: Args,
    ) -> Answer {
        for (kind, address) in [
            (kind::EVENT, event),
            (kind::FAILSAFE, failsafe),
            (kind::SYSCALL, syscall),
        ] {
            let _ = self.set_callback(v, kind, 0, address);
        }
        Ok(0)
    }

    /// `nmi_op(command, argument)`: register (0) and unregister (1) the NMI handler.
    pub(super) fn nmi_op(&mut self, v: usize, [command, arg, ..]: Args) -> Answer {
        match command {
            0 => {
                // struct xennmi_callback: handler address, then a pad.
                let address: u64 = read(&self.m, GuestVa(arg).0)?;
                self.set_callback(v, kind::NMI, 0, address)?;
            }
            1 => self.vcpus[v].traps[2] = TrapInfo::default(),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }
}
