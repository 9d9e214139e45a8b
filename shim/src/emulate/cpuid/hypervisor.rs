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
    /// Leaf +3 `eax`: 1 TSC emulated, 2 reliable on the host, 4 RDTSCP available.
    pub tsc_flags: u32,
    /// The guest's TSC frequency in kHz.
    pub tsc_khz: u32,
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
    table.add(
        BASE + 3,
        0,
        false,
        [leaves.tsc_flags, 0, leaves.tsc_khz, INCARNATION],
    );
    table.add(BASE + 3, 1, false, scale(leaves.tsc_khz));
    table.add(BASE + 3, 2, false, [leaves.tsc_khz, 0, 0, 0]);
    // Leaf +4 describes HVM guests only.
    table.add(
        BASE + 5,
        0,
        true,
        [0, leaves.machine_address_width.into(), 0, 0],
    );
}

/// Leaf +3.1: the offset and the scale from TSC ticks to nanoseconds, `(tsc << shift) * mul >> 32`.
fn scale(khz: u32) -> [u32; 4] {
    if khz == 0 {
        return [0; 4];
    }
    let mut ticks = u64::from(khz) * 1000;
    let mut shift = 0_i32;
    while ticks > 2_000_000_000 {
        ticks >>= 1;
        shift -= 1;
    }
    while ticks <= 1_000_000_000 {
        ticks <<= 1;
        shift += 1;
    }
    // Between 1 and 2 GHz the quotient is below 1, so the fraction fits.
    let mul = (1_000_000_000_u64 << 32) / ticks;
    [0, 0, mul as u32, shift as u32]
}
