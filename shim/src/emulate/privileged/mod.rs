//! Privileged instructions of the guest's kernel and, where allowed, of its processes.
//!
//! The guest runs in ring 3, so the CPU refuses them with a fault; whatever a PV guest may have is
//! done here on the vCPU behind [`PrivilegedState`], everything else is
//! [`Outcome::NotHandled`] and the fault is delivered to the guest as it came.

mod control;
mod io;

use super::cpuid::{FrozenCpuid, View};
use super::insn::{Gpr, Insn, Strings, Width};
use super::msr::{self, MsrPolicy, MsrState, Written};
use super::regs::{After, RAX, RBX, RCX, RDX, RegisterFile, read, retire, write};
use super::{CodeSize, Decoded, decode};
use xen_abi::Mfn;

pub use control::{CR0_TS, CR4_DE, CR4_FIXED, CR4_FSGSBASE, CR4_OSXSAVE, CR4_TSD};
use control::{debug_number, read_cr, write_cr};

/// The vector of a general protection fault.
pub const GENERAL_PROTECTION: u8 = 13;
/// The vector of a page fault.
pub const PAGE_FAULT: u8 = 14;

/// How a change of a control register ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// It happened.
    Done,
    /// It did not: a general protection fault.
    Refused,
    /// It takes longer: the guest runs the instruction again.
    Again,
}

impl From<bool> for Loaded {
    fn from(done: bool) -> Self {
        if done { Self::Done } else { Self::Refused }
    }
}

/// Guest memory could not be accessed: the error code of the page fault that this is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessFault {
    /// As the CPU pushes it, but for the user bit, which the emulator adds for processes.
    pub error_code: u32,
    /// The linear address that faulted.
    pub address: u64,
}

/// A vCPU as privileged instructions see it.
pub trait PrivilegedState: MsrState {
    /// Returns the privilege level the guest believes to run at: 3 for processes, 1 for its
    /// kernel, or 0 if it chose architectural IOPL handling.
    fn cpl(&self) -> u8;
    /// Returns the virtual IOPL (0 to 3).
    fn iopl(&self) -> u8;
    /// Whether the guest's I/O permission bitmap allows access to a port.
    fn port_allowed(&self, port: u16) -> bool;
    /// Returns the privilege level of a registered trap handler, `None` where there is none.
    fn gate_dpl(&self, vector: u8) -> Option<u8>;
    /// Returns CR0 with the guest's TS.
    fn cr0(&self) -> u64;
    /// Sets the guest's TS, as the `fpu_taskswitch` hypercall does.
    fn set_task_switched(&mut self, ts: bool);
    /// Returns the guest's CR2.
    fn cr2(&self) -> u64;
    /// Sets the guest's CR2.
    fn set_cr2(&mut self, value: u64);
    /// Returns the machine address of the guest's kernel page table.
    fn cr3(&self) -> u64;
    /// Switches the kernel page table, as `MMUEXT_NEW_BASEPTR` does.
    fn set_cr3(&mut self, value: u64) -> Loaded;
    /// Returns the guest's CR4.
    fn cr4(&self) -> u64;
    /// Sets the guest's CR4; the value is already limited to what the guest may set.
    fn set_cr4(&mut self, value: u64);
    /// Returns a debug register (0 to 3, 6, 7).
    fn debug_register(&self, n: u8) -> u64;
    /// Sets a debug register, as the `set_debugreg` hypercall does; `false` if that fails.
    fn set_debug_register(&mut self, n: u8, value: u64) -> bool;
    /// Returns XCR0.
    fn xcr0(&self) -> u64;
    /// Sets XCR0 to a value that [`FrozenCpuid::xcr0_allowed`] accepts.
    fn set_xcr0(&mut self, value: u64);
    /// Returns what CPUID says.
    fn cpuid(&self) -> &FrozenCpuid;
    /// Returns what MSRs say.
    fn msr_policy(&self) -> &MsrPolicy;
    /// Writes a hypercall page into a frame; `false` if the frame is none of the guest's own.
    fn fill_hypercall_page(&mut self, frame: Mfn) -> bool;
    /// Reads guest memory with the rights of the interrupted mode.  Only processes that were given
    /// ports get here with `cpl` 3, and only with addresses of the lower half.
    fn load(&self, address: u64, buf: &mut [u8]) -> Result<(), AccessFault>;
    /// Writes guest memory with the rights of the interrupted mode.
    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault>;
}

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
    regs: &mut impl RegisterFile,
    state: &mut impl PrivilegedState,
) -> Outcome {
    match decode(bytes, size) {
        Ok(decoded) => finish(execute(&decoded, regs, state), size, regs),
        Err(_) => Outcome::NotHandled,
    }
}

/// Handles an invalid opcode fault at `rip`: only forced-emulation CPUID is anything to Xen.
pub fn invalid_opcode(
    bytes: &[u8],
    size: CodeSize,
    regs: &mut impl RegisterFile,
    state: &mut impl PrivilegedState,
) -> Outcome {
    match decode(bytes, size) {
        Ok(decoded) if decoded.insn == Insn::ForcedCpuid => {
            finish(forced_cpuid(&decoded, regs, state), size, regs)
        }
        _ => Outcome::NotHandled,
    }
}

/// Instruction pointers of 32-bit code wrap at 4 GiB.
fn finish(outcome: Outcome, size: CodeSize, regs: &mut impl RegisterFile) -> Outcome {
    if size == CodeSize::Bits32 {
        regs.set_rip(regs.rip() & 0xffff_ffff);
    }
    outcome
}

/// Executes a decoded instruction that raised a general protection fault.
pub fn execute(
    decoded: &Decoded,
    regs: &mut impl RegisterFile,
    state: &mut impl PrivilegedState,
) -> Outcome {
    let len = decoded.len;
    let kernel = state.cpl() < 3;
    match decoded.insn {
        Insn::In(width, port) => io::input(regs, state, width, port, len),
        Insn::Out(width, port) => io::output(regs, state, width, port, len),
        Insn::Ins(strings) => io::input_string(regs, state, strings, len),
        Insn::Outs(_) => io::output_string(decoded, regs, state),
        // With enough IOPL they are accepted, and ring 3 stays interruptible all the same.
        Insn::Cli | Insn::Sti if state.cpl() <= state.iopl() => Outcome::Done(retire(regs, len)),
        Insn::Int(vector) => software_interrupt(regs, state, vector, len),
        Insn::Cpuid if kernel || !msr::cpuid_faults(state) => {
            cpuid(regs, state, View::Native);
            Outcome::Done(retire(regs, len))
        }
        _ if !kernel => Outcome::NotHandled,
        Insn::Clts => {
            state.set_task_switched(false);
            Outcome::Done(retire(regs, len))
        }
        Insn::ReadCr { cr, gpr } => read_cr(regs, state, cr, gpr, len),
        Insn::WriteCr { cr, gpr } => {
            let value = regs.gpr(gpr);
            match write_cr(state, cr, value) {
                Loaded::Again => Outcome::Done(After::Continue),
                loaded => done_if(loaded == Loaded::Done, regs, len),
            }
        }
        Insn::ReadDr { dr, gpr } => match debug_number(state, dr) {
            Some(n) => {
                regs.set_gpr(gpr, state.debug_register(n));
                Outcome::Done(retire(regs, len))
            }
            None => Outcome::NotHandled,
        },
        Insn::WriteDr { dr, gpr } => {
            let value = regs.gpr(gpr);
            let number = debug_number(state, dr);
            done_if(
                number.is_some_and(|n| state.set_debug_register(n, value)),
                regs,
                len,
            )
        }
        Insn::Rdmsr => match msr::read(regs.gpr(RCX) as u32, state, state.msr_policy()) {
            Some(value) => {
                set_pair(regs, value);
                Outcome::Done(retire(regs, len))
            }
            None => Outcome::NotHandled,
        },
        Insn::Wrmsr => {
            let policy = *state.msr_policy();
            let written = msr::write(regs.gpr(RCX) as u32, pair(regs), state, &policy);
            let ok = match written {
                Written::Done => true,
                Written::FillHypercallPage(frame) => state.fill_hypercall_page(frame),
                Written::Fault => false,
            };
            done_if(ok, regs, len)
        }
        // These trap only while the guest itself has set TSD, which does not bind its kernel.
        Insn::Rdtsc | Insn::Rdtscp => {
            set_pair(regs, state.tsc());
            if decoded.insn == Insn::Rdtscp {
                regs.set_gpr(RCX, u64::from(state.tsc_aux()));
            }
            Outcome::Done(retire(regs, len))
        }
        Insn::Xsetbv => {
            let (index, value) = (regs.gpr(RCX) as u32, pair(regs));
            let enabled = state.cr4() & CR4_OSXSAVE != 0;
            let ok = index == 0 && enabled && state.cpuid().xcr0_allowed(value);
            if ok {
                state.set_xcr0(value);
            }
            done_if(ok, regs, len)
        }
        // Without devices there is nothing that could see a stale cache.
        Insn::Wbinvd => Outcome::Done(retire(regs, len)),
        _ => Outcome::NotHandled,
    }
}

fn done_if(ok: bool, regs: &mut impl RegisterFile, len: u8) -> Outcome {
    if ok {
        Outcome::Done(retire(regs, len))
    } else {
        Outcome::NotHandled
    }
}

/// Returns `edx:eax`.
fn pair(regs: &impl RegisterFile) -> u64 {
    regs.gpr(RDX) << 32 | regs.gpr(RAX) & 0xffff_ffff
}

/// Sets `edx:eax`.
fn set_pair(regs: &mut impl RegisterFile, value: u64) {
    regs.set_gpr(RAX, value & 0xffff_ffff);
    regs.set_gpr(RDX, value >> 32);
}

/// `int n`: the vector comes from the instruction, as some machines report it wrongly.
fn software_interrupt(
    regs: &mut impl RegisterFile,
    state: &impl PrivilegedState,
    vector: u8,
    len: u8,
) -> Outcome {
    if state.gate_dpl(vector).is_some_and(|dpl| dpl >= state.cpl()) {
        regs.set_rip(regs.rip().wrapping_add(len.into()));
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

fn cpuid(regs: &mut impl RegisterFile, state: &impl PrivilegedState, view: View) {
    let (leaf, subleaf) = (regs.gpr(RAX) as u32, regs.gpr(RCX) as u32);
    let osxsave = state.cr4() & CR4_OSXSAVE != 0;
    let answer = state
        .cpuid()
        .query(leaf, subleaf, view, osxsave, state.xcr0());
    for (n, value) in [RAX, RBX, RCX, RDX].into_iter().zip(answer) {
        regs.set_gpr(n, value.into());
    }
}

fn forced_cpuid(
    decoded: &Decoded,
    regs: &mut impl RegisterFile,
    state: &impl PrivilegedState,
) -> Outcome {
    let kernel = state.cpl() < 3;
    if !kernel && msr::cpuid_faults(state) {
        // As if the prefix had been executed and the instruction behind it had faulted.
        regs.set_rip(regs.rip().wrapping_add(u64::from(decoded.len) - 2));
        return Outcome::Inject {
            vector: GENERAL_PROTECTION,
            error_code: Some(0),
        };
    }
    cpuid(
        regs,
        state,
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
