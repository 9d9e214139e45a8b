//! Privileged instructions of the guest's kernel and, where allowed, of its processes.
//!
//! The guest runs in ring 3, so the CPU refuses them with a fault; whatever a PV guest may have is
//! done here on the [`GuestCpu`], everything else is
//! [`Outcome::NotHandled`] and the fault is delivered to the guest as it came.

mod control;
mod guest_cpu;
mod io;

use super::cpuid::View;
use super::insn::{Gpr, Insn, Strings, Width};
use super::msr::{self, Written};
use super::regs::{After, RAX, RBX, RCX, RDX, read, retire, write};
use super::{CodeSize, Decoded, decode};
use crate::cpu::{Machine, Regs};
use crate::host::Host;

use crate::registers::cr4;
use control::{debug_number, read_cr, write_cr};
pub use guest_cpu::{AccessFault, GuestCpu, Loaded};

/// The vector of a general protection fault.
pub const GENERAL_PROTECTION: u8 = 13;
/// The vector of a page fault.
pub const PAGE_FAULT: u8 = 14;

/// How a trapped instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has been executed; registers and `rip` are up to date.
    Done(After),
    /// The guest gets an exception or software interrupt; `rip` is what its frame has to show.
    Inject {
        /// The vector.
        vector: u8,
        /// The error code, if the vector has one here.
        error_code: Option<u32>,
    },
    /// The guest gets the fault that brought it here, unchanged.
    NotHandled,
}

/// Handles a general protection fault at `rip`, whose instruction bytes are `bytes`.
pub fn general_protection(
    bytes: &[u8],
    size: CodeSize,
    regs: &mut Regs,
    cpu: &mut GuestCpu<'_, impl Machine, impl Host>,
) -> Outcome {
    match decode(bytes, size) {
        Ok(decoded) => finish(execute(&decoded, regs, cpu), size, regs),
        Err(_) => Outcome::NotHandled,
    }
}

/// Handles an invalid opcode fault at `rip`: only forced-emulation CPUID is anything to Xen.
pub fn invalid_opcode(
    bytes: &[u8],
    size: CodeSize,
    regs: &mut Regs,
    cpu: &mut GuestCpu<'_, impl Machine, impl Host>,
) -> Outcome {
    match decode(bytes, size) {
        Ok(decoded) if decoded.insn == Insn::ForcedCpuid => {
            finish(forced_cpuid(&decoded, regs, cpu), size, regs)
        }
        _ => Outcome::NotHandled,
    }
}

/// Instruction pointers of 32-bit code wrap at 4 GiB.
fn finish(outcome: Outcome, size: CodeSize, regs: &mut Regs) -> Outcome {
    if size == CodeSize::Bits32 {
        regs.rip &= 0xffff_ffff;
    }
    outcome
}

/// Executes a decoded instruction that raised a general protection fault.
pub fn execute(
    decoded: &Decoded,
    regs: &mut Regs,
    cpu: &mut GuestCpu<'_, impl Machine, impl Host>,
) -> Outcome {
    let len = decoded.len;
    let kernel = cpu.cpl() < 3;
    match decoded.insn {
        Insn::In(width, port) => io::input(regs, cpu, width, port, len),
        Insn::Out(width, port) => io::output(regs, cpu, width, port, len),
        Insn::Ins(strings) => io::input_string(regs, cpu, strings, len),
        Insn::Outs(_) => io::output_string(decoded, regs, cpu),
        // With enough IOPL they are accepted, and ring 3 stays interruptible all the same.
        Insn::Cli | Insn::Sti if cpu.cpl() <= cpu.vcpu().iopl => Outcome::Done(retire(regs, len)),
        Insn::Int(vector) => software_interrupt(regs, cpu, vector, len),
        Insn::Cpuid if kernel || !msr::cpuid_faults(cpu.vcpu()) => {
            cpuid(regs, cpu, View::Native);
            Outcome::Done(retire(regs, len))
        }
        _ if !kernel => Outcome::NotHandled,
        Insn::Clts => {
            cpu.set_task_switched(false);
            Outcome::Done(retire(regs, len))
        }
        Insn::ReadCr { cr, gpr } => read_cr(regs, cpu, cr, gpr, len),
        Insn::WriteCr { cr, gpr } => {
            let value = regs.gpr(gpr);
            match write_cr(cpu, cr, value) {
                // The instruction has not moved, so the guest makes it again, as it does a
                // hypercall.
                Loaded::Again => Outcome::Done(After::Continue),
                loaded => done_if(loaded == Loaded::Done, regs, len),
            }
        }
        Insn::ReadDr { dr, gpr } => match debug_number(cpu, dr) {
            Some(n) => {
                regs.set_gpr(gpr, cpu.vcpu().debug[usize::from(n & 7)]);
                Outcome::Done(retire(regs, len))
            }
            None => Outcome::NotHandled,
        },
        Insn::WriteDr { dr, gpr } => {
            let value = regs.gpr(gpr);
            let number = debug_number(cpu, dr);
            done_if(
                number.is_some_and(|n| cpu.set_debug_register(n, value)),
                regs,
                len,
            )
        }
        Insn::Rdmsr => {
            let (number, guest) = (regs.gpr(RCX) as u32, &cpu.guest);
            match msr::read(number, cpu.vcpu(), &guest.m, &guest.msrs) {
                Some(value) => {
                    set_pair(regs, value);
                    Outcome::Done(retire(regs, len))
                }
                None => Outcome::NotHandled,
            }
        }
        Insn::Wrmsr => {
            let policy = cpu.guest.msrs;
            let (vcpu, m) = cpu.vcpu_and_machine();
            let written = msr::write(regs.gpr(RCX) as u32, pair(regs), vcpu, m, &policy);
            let ok = match written {
                Written::Done => true,
                Written::FillHypercallPage(frame) => cpu.fill_hypercall_page(frame),
                Written::Fault => false,
            };
            done_if(ok, regs, len)
        }
        // These trap only while the guest itself has set TSD, which does not bind its kernel.
        Insn::Rdtsc | Insn::Rdtscp => {
            set_pair(regs, cpu.guest.m.tsc());
            if decoded.insn == Insn::Rdtscp {
                regs.set_gpr(RCX, u64::from(cpu.vcpu().tsc_aux));
            }
            Outcome::Done(retire(regs, len))
        }
        Insn::Xsetbv => {
            let (index, value) = (regs.gpr(RCX) as u32, pair(regs));
            let enabled = cpu.vcpu().cr4 & cr4::OSXSAVE != 0;
            let ok = index == 0 && enabled && cpu.guest.cpuid.xcr0_allowed(value);
            if ok {
                cpu.guest.m.set_xcr0(value);
            }
            done_if(ok, regs, len)
        }
        // Without devices there is nothing that could see a stale cache.
        Insn::Wbinvd => Outcome::Done(retire(regs, len)),
        _ => Outcome::NotHandled,
    }
}

fn done_if(ok: bool, regs: &mut Regs, len: u8) -> Outcome {
    if ok {
        Outcome::Done(retire(regs, len))
    } else {
        Outcome::NotHandled
    }
}

/// Returns `edx:eax`.
fn pair(regs: &Regs) -> u64 {
    regs.gpr(RDX) << 32 | regs.gpr(RAX) & 0xffff_ffff
}

/// Sets `edx:eax`.
fn set_pair(regs: &mut Regs, value: u64) {
    regs.set_gpr(RAX, value & 0xffff_ffff);
    regs.set_gpr(RDX, value >> 32);
}

/// `int n`: the vector comes from the instruction, as some machines report it wrongly.
fn software_interrupt(
    regs: &mut Regs,
    cpu: &GuestCpu<'_, impl Machine, impl Host>,
    vector: u8,
    len: u8,
) -> Outcome {
    // A trap shows the instruction after it, and a refused one the instruction itself. So `rip`
    // moves on only here.
    if cpu.gate_dpl(vector).is_some_and(|dpl| dpl >= cpu.cpl()) {
        regs.rip = regs.rip.wrapping_add(len.into());
        Outcome::Inject {
            vector,
            error_code: None,
        }
    } else {
        let error_code = Some(u32::from(vector) << 3 | 2);
        Outcome::Inject {
            vector: GENERAL_PROTECTION,
            error_code,
        }
    }
}

fn cpuid(regs: &mut Regs, cpu: &GuestCpu<'_, impl Machine, impl Host>, view: View) {
    let (leaf, subleaf) = (regs.gpr(RAX) as u32, regs.gpr(RCX) as u32);
    let osxsave = cpu.vcpu().cr4 & cr4::OSXSAVE != 0;
    let xcr0 = cpu.guest.m.xcr0();
    let answer = cpu.guest.cpuid.query(leaf, subleaf, view, osxsave, xcr0);
    for (n, value) in [RAX, RBX, RCX, RDX].into_iter().zip(answer) {
        regs.set_gpr(n, value.into());
    }
}

fn forced_cpuid(
    decoded: &Decoded,
    regs: &mut Regs,
    cpu: &GuestCpu<'_, impl Machine, impl Host>,
) -> Outcome {
    let kernel = cpu.cpl() < 3;
    if !kernel && msr::cpuid_faults(cpu.vcpu()) {
        // As if the prefix had been executed and the instruction behind it had faulted.
        regs.rip = regs.rip.wrapping_add(u64::from(decoded.len) - 2);
        return Outcome::Inject {
            vector: GENERAL_PROTECTION,
            error_code: Some(0),
        };
    }
    cpuid(
        regs,
        cpu,
        if kernel {
            View::ForcedKernel
        } else {
            View::Native
        },
    );
    Outcome::Done(retire(regs, decoded.len))
}

#[cfg(test)]
mod tests;
