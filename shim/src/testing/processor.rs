//! Processors by what their CPUID says, and what a guest that was started on one is told.

use crate::emulate::cpuid::{FrozenCpuid, HypervisorLeaves, Leaf};
use crate::emulate::msr::MsrPolicy;

/// An Intel CPU with XSAVE, AVX, FSGSBASE, RDTSCP, speculation control and breakpoint masks.
pub fn intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        (1, _) => [0x806f8, 0, 1 << 26 | 1 << 28, 0x0700_01ff],
        (7, 0) => [2, 1, 0, 1 << 26 | 1 << 29 | 1 << 31],
        (7, 2) => [0, 0, 0, 1],
        (0xd, 0) => [7, 832, 832, 0],
        (0xd, 1) => [0; 4],
        (0xd, 2) => [256, 576, 0, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, 1 << 26, 1 << 27 | 1 << 29],
        _ => [0; 4],
    }
}

/// The same, but AMD.
pub fn amd(leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        0 => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        7 => [0, 1, 0, 0],
        0x8000_0008 => [0x3030, 1 << 12, 0, 0],
        _ => intel(leaf, subleaf),
    }
}

/// Returns what a guest is told that was started on a processor with these leaves, all of whose MSRs read as ones.
pub fn policies(raw: fn(u32, u32) -> Leaf) -> (FrozenCpuid, MsrPolicy) {
    let hypervisor = HypervisorLeaves {
        version: (4, 17),
        machine_address_width: 40,
    };
    let cpuid = FrozenCpuid::freeze(raw, &hypervisor);
    let msrs = MsrPolicy::freeze(|_| Some(u64::MAX), &cpuid, true);
    (cpuid, msrs)
}
