//! The processor: what the shim uses of it, and what the guest is told about it.

use log::warn;
use unmoved_shim::cpu::Machine;
use unmoved_shim::emulate::cpuid::{FrozenCpuid, HypervisorLeaves};
use unmoved_shim::emulate::msr::MsrPolicy;
use unmoved_shim::points::identity::Identity;
use unmoved_shim::registers::{cr4, msr};

use super::refuse;
use crate::machine::{Bare, globals, instructions, tables, xen};

/// Width of machine addresses that the guest is told, whatever the host has: a constant, and
/// small enough for version 1 of the grant table.
const MACHINE_ADDRESS_WIDTH: u8 = 40;

/// Turns on what the CPU has and the shim uses; returns whether there is XSAVE.
pub(super) fn enable_features(percpu: *mut tables::PerCpu) -> bool {
    let leaf7 = instructions::cpuid(7, 0)[1];
    let has_xsave = instructions::cpuid(1, 0)[2] & 1 << 26 != 0;
    if leaf7 & 1 == 0 {
        // A guest's GS base changes with each switch of modes. Without the instruction that is two
        // MSRs each time, and a second way to do everything.
        refuse("CPU", "no FSGSBASE");
    }
    let mut cr4 = instructions::cr4() | cr4::FSGSBASE;
    // Without it a machine check of the host's would end the domain before anybody could say so.
    if instructions::cpuid(1, 0)[3] & 1 << 7 != 0 {
        cr4 |= cr4::MCE;
    }
    if has_xsave {
        cr4 |= cr4::OSXSAVE;
    }
    if leaf7 & 1 << 7 != 0 {
        cr4 |= cr4::SMEP;
    }
    if leaf7 & 1 << 20 != 0 {
        // All three together: with the bit in CR4 alone, the first copy from the guest would fault,
        // and an entry with AC set would leave SMAP without effect.
        cr4 |= cr4::SMAP;
        globals::set_smap(true);
        // SAFETY: the block is this vCPU's, which is not in use yet.
        unsafe { (*percpu).entry_flags |= tables::ENTRY_SMAP };
    }
    // SAFETY: each bit was checked in CPUID, and no page of the shim's is a user page.
    unsafe { instructions::set_cr4(cr4) };
    has_xsave
}

pub(super) fn identity() -> Identity {
    Identity {
        domid: Identity::GUEST,
        backend: Identity::BACKEND,
        uuid: xen::uuid(),
        version: Identity::VERSION,
        extraversion: Identity::EXTRAVERSION,
    }
}

pub(super) fn policies(m: &Bare, identity: &Identity) -> (FrozenCpuid, MsrPolicy) {
    let leaves = HypervisorLeaves {
        version: ((identity.version >> 16) as u16, identity.version as u16),
        machine_address_width: MACHINE_ADDRESS_WIDTH,
    };
    // Whether a host emulates the TSC, it decides for itself each time that it starts.  One that does
    // makes RDTSCP as slow as RDTSC, and there are emulated machines whose SVM reports the former as
    // the latter, which the host can not handle.  So no guest is told of it.
    const RDTSCP: u32 = 1 << 27;
    let cpuid = FrozenCpuid::freeze(
        |leaf, subleaf| {
            let mut regs = instructions::cpuid(leaf, subleaf);
            // Masked where it is read and not in the policy: nothing further on has to know.
            if leaf == 0x8000_0001 {
                regs[3] &= !RDTSCP;
            }
            regs
        },
        &leaves,
    );
    // Faults on CPUID in ring 3, which only the processor or its host can make; a guest that reads
    // CPUID itself would see another machine after a move.
    let can_fault = m
        .read_msr(msr::PLATFORM_INFO)
        .is_some_and(|info| info & 1 << 31 != 0);
    let msrs = MsrPolicy::freeze(|index| m.read_msr(index), &cpuid, can_fault);
    if can_fault {
        // SAFETY: the register exists; ring 0 is not concerned by the bit.
        unsafe { instructions::write_msr(msr::MISC_FEATURES_ENABLES, 1) };
    } else {
        warn!("no CPUID faulting: programs of the guest see the host's CPUID");
    }
    (cpuid, msrs)
}
