//! The small ones: FPU, debug registers, I/O privilege, assists, the emergency console.

use log::trace;
use xen_abi::physdev::{SetIobitmap, op as physdev};
use xen_abi::{Errno, GuestVa};

use super::segments::is_canonical;
use super::{Answer, Args, is_guests, read};
use crate::cpu::{Assist, Machine};
use crate::guest::Guest;
use crate::host::Host;
use crate::mm::Flush;

/// `VMASST_CMD_enable`.
const ENABLE: u64 = 0;
/// `VMASST_CMD_disable`.
const DISABLE: u64 = 1;
/// `CONSOLEIO_write`.
const CONSOLE_WRITE: u64 = 0;
/// CR4.DE: debug registers 4 and 5 are not there, and I/O breakpoints are.
const DE: u64 = 1 << 3;
/// Longest text that is taken from one `console_io`.
const CONSOLE_CHUNK: usize = 256;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `fpu_taskswitch(set)`.
    pub(super) fn fpu_taskswitch(&mut self, v: usize, [set, ..]: Args) -> Answer {
        self.set_task_switched(v, set != 0);
        Ok(0)
    }

    /// Sets the guest's CR0.TS.
    pub(crate) fn set_task_switched(&mut self, v: usize, on: bool) {
        // Kernels make this call at each switch of processes, often without a change.
        if self.vcpus[v].task_switched != on {
            self.vcpus[v].task_switched = on;
            self.m.set_task_switched(on);
        }
    }

    /// `set_debugreg(index, value)`.
    pub(super) fn set_debugreg(&mut self, v: usize, [index, value, ..]: Args) -> Answer {
        // ENODEV for any register that is not there, however large its number (`set_debugreg`).
        let index = u8::try_from(index).map_err(|_| Errno::ENODEV)?;
        self.load_debug_register(v, index, value)?;
        Ok(0)
    }

    /// Checks a debug register's value and loads it (SDM Vol. 3B §17.2).
    pub(crate) fn load_debug_register(
        &mut self,
        v: usize,
        index: u8,
        value: u64,
    ) -> Result<(), Errno> {
        const GENERAL_DETECT: u64 = 1 << 13;
        // The guest's CR4, which decides for it whether 4 and 5 are other names of 6 and 7.
        let has_de = self.vcpus[v].cr4 & DE != 0;
        let (index, value) = match index {
            0..=3 => {
                // A breakpoint on the shim would be a fault in ring 0.
                let is_ours = (xen_abi::mmu::HYPERVISOR_VIRT_START
                    ..xen_abi::mmu::HYPERVISOR_VIRT_END)
                    .contains(&value);
                if is_ours || !is_canonical(value) {
                    return Err(Errno::EPERM);
                }
                (index, value)
            }
            4 | 6 if index == 6 || !has_de => {
                // EINVAL for a reserved bit, EPERM below for one that exists and is not the
                // guest's: the emulator of MOV DR makes #GP of both, callers of the hypercall tell
                // them apart.
                if value >> 32 != 0 {
                    return Err(Errno::EINVAL);
                }
                // Reserved bits get the fixed values that the real register would show.
                (6, value & 0xe00f | 0xffff_0ff0)
            }
            5 | 7 if index == 7 || !has_de => {
                if value >> 32 != 0 {
                    return Err(Errno::EINVAL);
                }
                // General detect would let the guest trap the shim's own use of the registers.
                if value & GENERAL_DETECT != 0 {
                    return Err(Errno::EPERM);
                }
                // After the test for general detect, which is among the bits that go.
                let value = value & !0xfc00 | 0x400;
                // Without CR4.DE this type is undefined, and processors may differ.
                let wants_io =
                    (0..4).any(|n| value >> (2 * n) & 3 != 0 && value >> (16 + 4 * n) & 3 == 2);
                if wants_io && !has_de {
                    return Err(Errno::EPERM);
                }
                (7, value)
            }
            _ => return Err(Errno::ENODEV),
        };
        self.vcpus[v].debug[usize::from(index)] = value;
        self.m.set_debug_register(index, value);
        Ok(())
    }

    /// `get_debugreg(index)`.
    pub(super) fn get_debugreg(&mut self, v: usize, [index, ..]: Args) -> Answer {
        match index {
            0..=3 | 6 | 7 => Ok(self.vcpus[v].debug[index as usize]),
            4 | 5 if self.vcpus[v].cr4 & DE == 0 => Ok(self.vcpus[v].debug[index as usize + 2]),
            _ => Err(Errno::ENODEV),
        }
    }

    /// `physdev_op(command, argument)`.
    pub(super) fn physdev_op(&mut self, v: usize, [command, arg, ..]: Args) -> Answer {
        match command {
            physdev::SET_IOPL => {
                let iopl: u32 = read(&self.m, arg)?;
                // Virtual only: ring 3 really runs with IOPL 0, and port instructions are emulated.
                if iopl > 3 {
                    return Err(Errno::EINVAL);
                }
                self.vcpus[v].iopl = iopl as u8;
            }
            physdev::SET_IOBITMAP => {
                let set: SetIobitmap = read(&self.m, arg)?;
                // The bitmap is not read yet: it is looked up at each access, through the kernel's
                // tables, as it is then.
                if set.nr_ports > 65536 || !is_guests(set.bitmap, u64::from(set.nr_ports) / 8) {
                    return Err(Errno::EINVAL);
                }
                self.vcpus[v].io_bitmap = (GuestVa(set.bitmap), set.nr_ports);
            }
            physdev::EOI | physdev::IRQ_STATUS_QUERY => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    /// `vm_assist(command, type)`.
    pub(super) fn vm_assist(&mut self, [command, kind, ..]: Args) -> Answer {
        // Shifts by 64 and more give no flag, instead of one that wraps to a small number.
        let flag = u32::try_from(kind)
            .ok()
            .and_then(|bit| 1u64.checked_shl(bit))
            .unwrap_or(0);
        let flag = Assist::from_bits(flag)
            .filter(|flag| !flag.is_empty())
            .ok_or(Errno::EINVAL)?;
        match command {
            // The type is checked before the command, so two bad ones are EINVAL (`do_vm_assist`).
            ENABLE => self.assist |= flag,
            DISABLE => self.assist -= flag,
            _ => return Err(Errno::ENOSYS),
        }
        if flag == Assist::M2P_STRICT {
            // First the entry, then the flush, or a CPU could load the old one again in between.
            (0..self.vcpus.len()).for_each(|v| self.show_m2p(v));
            self.flush(Flush::Full);
        }
        Ok(0)
    }

    /// `console_io(command, count, buffer)`: what a kernel says before it has a console goes to the
    /// shim's log.
    pub(super) fn console_io(&mut self, [command, count, buffer, ..]: Args) -> Answer {
        // EPERM is what an ordinary domain gets from Xen for reading; a write would get it too, and
        // every kernel ignores the result.
        if command != CONSOLE_WRITE {
            return Err(Errno::EPERM);
        }
        let mut text = [0; CONSOLE_CHUNK];
        // The rest is lost and the call succeeds: it is only a log, and its length is the guest's
        // choice.
        let length = (count as usize).min(CONSOLE_CHUNK);
        self.m.read_guest(GuestVa(buffer), &mut text[..length])?;
        if let Ok(text) = core::str::from_utf8(&text[..length]) {
            trace!("guest: {}", text.trim_end());
        }
        Ok(0)
    }
}
