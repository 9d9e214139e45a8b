//! The leaves at 0x40000000 by which a guest recognises Xen.

use super::FrozenCpuid;

/// First leaf of the hypervisor's range.
pub const BASE: u32 = 0x4000_0000;
/// The MSR that fills a hypercall page.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// Leaf +2 `ecx`: page-table updates can keep accessed and dirty bits.
const PRESERVE_AD: u32 = 1;
/// Leaf +3 `edx`: it counts migrations, so a guest that sees none sees it stand still.
const INCARNATION: u32 = 1;

/// What the hypervisor's leaves say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypervisorLeaves {
    /// Major and minor version, as the `xen_version` hypercall reports them.
    pub version: (u16, u16),
    /// Bits in the highest machine address, from which a guest chooses its grant table version.
    pub machine_address_width: u8,
}

/// Adds the leaves.
pub fn fill(table: &mut FrozenCpuid, leaves: &HypervisorLeaves) {
    let [ebx, ecx, edx] = [*b"XenV", *b"MMXe", *b"nVMM"].map(u32::from_le_bytes);
    let (major, minor) = leaves.version;
    table.add(BASE, 0, true, [BASE + 5, ebx, ecx, edx]);
    table.add(
        BASE + 1,
        0,
        true,
        [u32::from(major) << 16 | u32::from(minor), 0, 0, 0],
    );
    table.add(BASE + 2, 0, true, [1, HYPERCALL_MSR, PRESERVE_AD, 0]);
    table.add(BASE + 3, 0, false, [0, 0, 0, INCARNATION]);
    // No flags and no frequency: each host decides by itself whether to emulate the TSC, and measures
    // its frequency anew when it starts, so a guest that moves would be left with what held on a host
    // long gone.  The time info in `vcpu_info` is always that of the present one.
    table.add(BASE + 3, 1, false, [0; 4]);
    table.add(BASE + 3, 2, false, [0; 4]);
    // Leaf +4 describes HVM guests only.
    table.add(
        BASE + 5,
        0,
        true,
        [0, leaves.machine_address_width.into(), 0, 0],
    );
}
