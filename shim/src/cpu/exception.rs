//! What to do about each way out of ring 3 that is not a hypercall.

use xen_abi::GuestVa;
use xen_abi::shared_info::vcpu_info;
use xen_abi::trap::{FLAT_RING3_CS32, vector};

use super::deliver::{self, Bounce, Doomed};
use super::{Machine, Regs, first};
use crate::emulate;
use crate::emulate::address::SegmentBases;
use crate::emulate::decode::CodeSize;
use crate::emulate::privileged::{self, GuestCpu, Outcome};
use crate::emulate::regs::After;
use crate::guest::{Guest, mm};
use crate::host::Host;

/// Vector by which the host announces events; what it announced is handled on every way back.
pub const UPCALL_VECTOR: u8 = 0xf3;

/// Page-fault error code bits (SDM Vol. 3A §4.7).
const PF_PRESENT: u64 = 1 << 0;
const PF_WRITE: u64 = 1 << 1;
const PF_USER: u64 = 1 << 2;

/// In DR6: the CPU was single-stepping.
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// Longest instruction.
const MAX_INSTRUCTION: usize = 15;

impl<M: Machine, H: Host> Guest<M, H> {
    /// Handles an exception, interrupt or rare kind of system call.
    pub(crate) fn exception(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        const NMI: u64 = vector::NMI as u64;
        const MACHINE_CHECK: u64 = vector::MACHINE_CHECK as u64;
        const UPCALL: u64 = UPCALL_VECTOR as u64;
        match regs.vector {
            // The host's: `Guest::before_return` takes it on the way back.
            UPCALL | NMI | MACHINE_CHECK => return Ok(()),
            Regs::LOST_FRAME => return Err(Doomed("a breakpoint and ICEBP at once")),
            Regs::SYSCALL32 => {
                regs.rip &= 0xffff_ffff;
                let callback = self.vcpus[v].syscall32;
                return self.call_or_fault(v, regs, callback, vector::INVALID_OPCODE, None);
            }
            Regs::SYSENTER => {
                let callback = self.vcpus[v].sysenter;
                return self.call_or_fault(v, regs, callback, vector::GENERAL_PROTECTION, Some(0));
            }
            Regs::FAILED_IRET => {
                let (m, vcpu) = (&mut self.m, &mut self.vcpus[v]);
                return deliver::failsafe(m, vcpu, self.assist, regs);
            }
            _ => {}
        }
        let number = regs.vector as u8;
        match number {
            vector::PAGE_FAULT => self.page_fault(v, regs),
            vector::GENERAL_PROTECTION => self.general_protection(v, regs),
            vector::INVALID_OPCODE => self.invalid_opcode(v, regs),
            vector::DEVICE_NOT_AVAILABLE => {
                self.set_task_switched(v, false);
                self.inject(v, regs, number, None)
            }
            vector::DEBUG => {
                let status = self.m.take_debug_status();
                let seen = &mut self.vcpus[v].debug[6];
                // Set bits stay until the guest clears them, and those that mean something when
                // clear likewise.
                *seen = (*seen | status & !first::DR6) & (status | !first::DR6);
                self.inject(v, regs, number, None)
            }
            // This gate can be used from ring 3 directly; for the guest it has the privilege that
            // it gave it.  (So can those of INT3 and INTO, which Xen passes on in any case.)
            vector::INT80 => {
                let cpl = self.vcpus[v].virtual_cpl(self.assist);
                let trap = self.vcpus[v].traps[usize::from(number)];
                if trap.address == 0 || trap.dpl() < cpl {
                    regs.rip = regs.rip.wrapping_sub(2);
                    let error = u64::from(number) << 3 | 2;
                    return self.inject(v, regs, vector::GENERAL_PROTECTION, Some(error));
                }
                self.inject(v, regs, number, None)
            }
            _ => {
                let error = vector::has_error_code(number).then_some(regs.error);
                self.inject(v, regs, number, error)
            }
        }
    }

    /// SYSCALL from 64-bit user mode.
    pub(crate) fn system_call(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        let callback = self.vcpus[v].syscall;
        if callback.address == 0 {
            // To the program SYSCALL does not exist, and the fault is at the instruction.
            regs.rip = regs.rip.wrapping_sub(2);
            return self.inject(v, regs, vector::INVALID_OPCODE, None);
        }
        let to = Bounce {
            address: callback.address,
            error: None,
            masks_events: callback.masks_events,
            clears_direction: true,
        };
        deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to)
    }

    fn call_or_fault(
        &mut self,
        v: usize,
        regs: &mut Regs,
        callback: super::Callback,
        fault: u8,
        error: Option<u64>,
    ) -> Result<(), Doomed> {
        if callback.address == 0 || self.vcpus[v].in_kernel {
            return self.inject(v, regs, fault, error);
        }
        let to = Bounce {
            address: callback.address,
            error: None,
            masks_events: callback.masks_events,
            clears_direction: true,
        };
        deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to)
    }

    /// Enters the guest kernel's handler for an exception.
    fn inject(
        &mut self,
        v: usize,
        regs: &mut Regs,
        number: u8,
        error: Option<u64>,
    ) -> Result<(), Doomed> {
        let trap = self.vcpus[v].traps[usize::from(number)];
        if trap.address == 0 {
            return Err(Doomed("an exception that the kernel has no handler for"));
        }
        let to = Bounce {
            address: trap.address,
            error,
            masks_events: trap.masks_events(),
            clears_direction: false,
        };
        deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to)
    }

    fn inject_page_fault(
        &mut self,
        v: usize,
        regs: &mut Regs,
        address: u64,
        error: u64,
    ) -> Result<(), Doomed> {
        let vcpu = &self.vcpus[v];
        self.m
            .store64(vcpu.info.frame, vcpu.info.offset + vcpu_info::CR2, address);
        // To the CPU both modes are user mode; to the guest its kernel is not.
        let error = if vcpu.in_kernel {
            error & !PF_USER
        } else {
            error | PF_USER
        };
        self.inject(v, regs, vector::PAGE_FAULT, Some(error))
    }

    fn page_fault(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        // Read first: an access to guest memory from here on may fault too, and changes CR2.
        let address = self.m.fault_address();
        let is_refused_write = regs.error & (PF_PRESENT | PF_WRITE) == PF_PRESENT | PF_WRITE;
        // Tables in use are mapped read-only, and only the kernel may have a store to them carried
        // out (Xen: `fixup_page_fault`). Every other fault is the guest's own.
        if is_refused_write
            && self.vcpus[v].in_kernel
            && let Some(after) = self.page_table_store(v, regs, address)
        {
            return self.retire(v, regs, after);
        }
        self.inject_page_fault(v, regs, address, regs.error)
    }

    /// Carries out a store to a live L1 table that the guest has mapped read-only; `None` when the
    /// fault is something else.
    fn page_table_store(&mut self, v: usize, regs: &mut Regs, address: u64) -> Option<After> {
        let root = self.vcpus[v].spaces.as_ref()?.kernel();
        let mut bytes = [0; MAX_INSTRUCTION];
        let got = self.fetch_bytes(regs, &mut bytes);
        let bases = SegmentBases {
            fs: self.m.fs_base(),
            gs: self.m.gs_base(),
        };
        let mut mm = mm!(self);
        let bytes = &bytes[..got];
        match emulate::live::write_fault(bytes, regs, bases, address, root, &mut mm, &self.m) {
            emulate::ptstore::Outcome::Done(after) => Some(after),
            // `rip` has not moved: the guest makes the store again, and the host gets its turn
            // between.
            emulate::ptstore::Outcome::Again => Some(After::Continue),
            // The kernel hears of a bad entry by the fault that its store had, as under Xen.
            emulate::ptstore::Outcome::Refused(_) | emulate::ptstore::Outcome::NotHandled => None,
        }
    }

    fn code_size(regs: &Regs) -> CodeSize {
        if regs.cs as u16 == FLAT_RING3_CS32 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits64
        }
    }

    /// Reads what can be read of the instruction at `rip`, which may end where a page does.
    fn fetch_bytes(&self, regs: &Regs, bytes: &mut [u8; MAX_INSTRUCTION]) -> usize {
        if self.m.read_guest(GuestVa(regs.rip), bytes).is_ok() {
            return MAX_INSTRUCTION;
        }
        let to_page_end = (0x1000 - (regs.rip & 0xfff) as usize).min(MAX_INSTRUCTION);
        match self
            .m
            .read_guest(GuestVa(regs.rip), &mut bytes[..to_page_end])
        {
            Ok(()) => to_page_end,
            Err(_) => 0,
        }
    }

    fn general_protection(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        let mut bytes = [0; MAX_INSTRUCTION];
        let got = self.fetch_bytes(regs, &mut bytes);
        let size = Self::code_size(regs);
        let mut cpu = GuestCpu::new(self, v);
        let outcome = privileged::general_protection(&bytes[..got], size, regs, &mut cpu);
        self.emulated(v, regs, outcome)
    }

    fn invalid_opcode(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        let mut bytes = [0; MAX_INSTRUCTION];
        let got = self.fetch_bytes(regs, &mut bytes);
        let size = Self::code_size(regs);
        let mut cpu = GuestCpu::new(self, v);
        let outcome = privileged::invalid_opcode(&bytes[..got], size, regs, &mut cpu);
        self.emulated(v, regs, outcome)
    }

    fn emulated(&mut self, v: usize, regs: &mut Regs, outcome: Outcome) -> Result<(), Doomed> {
        match outcome {
            Outcome::Done(after) => self.retire(v, regs, after),
            Outcome::Inject {
                vector: number,
                error_code,
            } => {
                let error = error_code.map(u64::from);
                if number == vector::PAGE_FAULT {
                    let vcpu = &self.vcpus[v];
                    let at = vcpu.info.offset + vcpu_info::CR2;
                    // The emulator has left the address there. The CPU's CR2 knows nothing of it:
                    // what trapped was a general protection fault.
                    let address = self.m.load64(vcpu.info.frame, at);
                    return self.inject_page_fault(v, regs, address, error.unwrap_or(0));
                }
                self.inject(v, regs, number, error)
            }
            Outcome::NotHandled => {
                let number = regs.vector as u8;
                let error = vector::has_error_code(number).then_some(regs.error);
                self.inject(v, regs, number, error)
            }
        }
    }

    fn retire(&mut self, v: usize, regs: &mut Regs, after: After) -> Result<(), Doomed> {
        regs.vector = 0;
        match after {
            After::Continue => Ok(()),
            After::DebugTrap => {
                self.vcpus[v].debug[6] |= DR6_SINGLE_STEP;
                self.inject(v, regs, vector::DEBUG, None)
            }
        }
    }
}
